"""A fuzzer of whatever ginseng opens: `python -m tests.fuzz --help`."""
