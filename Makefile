# `make demo` and `make test` need nothing but python3 (3.11 or newer), pip and make.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv
CONSTRAINTS := $(wildcard constraints/py$(VERSION).txt)

PYTHONS ?= $(PYTHON)

.PHONY: demo test lint docs wheel-check bench bench-quick clean
.SECONDARY:

demo: $(VENV)/.py$(VERSION)-demo
	$(VENV)/bin/ginseng demo

test: $(VENV)/.py$(VERSION)-test
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.py$(VERSION)-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.py$(VERSION)-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# The wheel, built here or WHEEL=, in clean environments: make wheel-check PYTHONS="python3.11 python3.12 python3.13"
wheel-check: $(VENV)/.py$(VERSION)-wheel
	$(VENV)/bin/python tests/wheel.py $(addprefix --wheel ,$(WHEEL)) $(PYTHONS)

# Ours beside the others: DATA= is a folder of .h5ad with cell_type and donor in obs, OUT= where results and page go,
# RACE= further arguments: make bench DATA=cells RACE="--questions accuracy --with SingleR"
BENCH_PYTHON ?= 3.12
OUT ?= .bench/race

bench: $(VENV)/.py$(VERSION)-bench
	$(VENV)/bin/python -m benchmarks.race --python $(BENCH_PYTHON) $(addprefix --data ,$(DATA)) --out $(OUT) $(RACE)

bench-quick: $(VENV)/.py$(VERSION)-bench
	$(VENV)/bin/python -m benchmarks.race --python $(BENCH_PYTHON) --quick $(RACE)

clean:
	rm -rf $(VENV) .bench .cache demo site

# One stamp per Python and per extra. The pip of $(PYTHON) fills the environment, so that ensurepip is not needed.
$(VENV)/.py$(VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make ... PYTHON=python3.12")'
	$(PYTHON) -m venv --clear --without-pip $(VENV)
	@touch $@

$(VENV)/.py$(VERSION)-%: $(VENV)/.py$(VERSION) pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m pip --python $(VENV)/bin/python install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) pip --editable ".[$*]"
	@touch $@
