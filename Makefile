# `make demo` and `make test` do all the set-up on a fresh machine; both rest on `make install`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Test files that run at once; many wait for servers and processes more than they compute. The longest come first.
TEST_WORKERS ?= 3

.PHONY: install demo test docs soak bench bench-learn lint types format clean
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

# Tests start hundreds of processes: without .pyc files each compiles the program again.
test soak bench: export PYTHONDONTWRITEBYTECODE =
# Several test processes share the cores: more threads in each would only wait for each other.
test soak: export OMP_NUM_THREADS ?= 1
# Types are checked beside the tests: mypy has one thread, and tests often wait.
test: lint
	@echo "$(BIN)/mypy beside the tests"; $(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types && exit $$tests

# Writes the tables, trees and help texts of the documentation from the code; a test compares them.
docs: install
	$(BIN)/python -m tests.generated_docs

# The long forms: kills of runs, readers, ingests, prunes and producers, a topic there and back, every planted fault.
# SWAVSTREAM_SOAK_S=3600 kills at random for an hour more, SWAVSTREAM_SOAK_RECORDS=1000000 fills a larger topic.
soak: install
	$(BIN)/python -m pytest -m slow -s

# What is measured and not tested: each script prints a table.
bench: install
	for script in tests/benchmarks/[a-z]*.py; do \
	    echo "== $$script"; $(BIN)/python -m "tests.benchmarks.$$(basename $$script .py)" || exit 1; \
	done

# Accuracy against processor seconds: recipes x data x orders x seeds. Hours; goes on where it was stopped.
# BENCH_LEARN="--help" shows how to choose a part of it.
bench-learn: install
	$(BIN)/python -m tests.benchmarks.learning $(BENCH_LEARN)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf demo-run .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
