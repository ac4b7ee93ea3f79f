# Each target starts from nothing but python3, make and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: compare test test-fast real docs fuzz lint format benchmark clean

# Two test processes with a thread each: with more threads than cores they wait for each other, and take twice as long.
# A file's tests stay in one process, and the files keep the order of tests/conftest.py: the longest come first.
PYTEST := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Convert the built-in checkpoint and prove the port.
compare: $(STAMP)
	$(BIN)/facenet-port compare

# All tests that download nothing, in two processes.
test: $(STAMP)
	$(PYTEST) -m "not real"

# The tests for the loop while writing: under two minutes on two cores.
test-fast: $(STAMP)
	$(PYTEST) -m "not slow and not real"

# The tests on real trained weights, photographs and published packages. Without a package index they are skipped, and
# the summary says so.
real: $(STAMP)
	$(PYTEST) -m real

# The pages as a site, in site/; a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Mutated files of each format (100,000 each), damaged networks, flipped bits, killed writers and trainings: it takes hours.
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(STAMP)
	$(BIN)/facenet-port benchmark

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site *.egg-info

# torch is installed first and alone, so that a build that is already there stays.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@echo "Setting up $(VENV): PyTorch and TensorFlow take a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
