# `make demo` and `make test` do all the set-up on a fresh machine; both rest on `make install`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test soak bench lint types format clean
install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/swavstream demo

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest

# The long forms of tests that kill: runs, readers, ingests, prunes, producers. SWAVSTREAM_SOAK_S makes them longer.
soak: install
	$(BIN)/python -m pytest -m slow

# What is measured and not tested: each script prints a table.
bench: install
	for script in tests/benchmarks/[a-z]*.py; do \
	    echo "== $$script"; $(BIN)/python -m "tests.benchmarks.$$(basename $$script .py)" || exit 1; \
	done

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf demo-run .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
