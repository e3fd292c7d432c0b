"""Ours beside the others: `make bench DATA=DIR`, or `make bench-quick`; see `python -m benchmarks.race --help`."""
