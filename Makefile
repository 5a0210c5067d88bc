# Everything runs in a virtual environment of its own, made on first use.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check install clean

# Trains three networks on scikit-learn's digits and shows how invariant they are.
demo: $(STAMP)
	$(BIN)/python examples/digits.py --out demo_results

# Everything that must hold: format, lint, types, doctests, tests.
test: check
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(STAMP)

# escnn and lie_learn go in without their declared dependencies: some of those need a Fortran compiler, and none is
# needed for groups of the plane.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' numpy scipy joblib requests
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps escnn lie_learn
	touch $@

clean:
	rm -rf $(VENV) demo_results .pytest_cache .mypy_cache .ruff_cache .hypothesis
