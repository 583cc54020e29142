# Everything happens in .venv. `make` alone lists the targets.

PYTHON ?= python3
# What pip is asked for when no torch is there; all of pip's own options may follow the version, for instance
#   make setup TORCH="torch==2.12.1 --index-url <the index that pytorch.org names for your CUDA>"
# To change the build of a .venv that has one: make clean first.
TORCH ?= torch==2.13.0

BIN := .venv/bin
STAMP := .venv/.setup

# True where a usable torch is there already. One that you name with TORCH=... comes before one that is found.
HAS_TORCH := -c 'import torch; raise SystemExit(not (2, 11) <= tuple(map(int, torch.__version__.split(".")[:2])) <= (2, 13))' 2>/dev/null
NAMED_TORCH := $(filter-out file,$(origin TORCH))

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow lint format clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP) ## make .venv with everything in it; TORCH="..." picks the torch build, PYTHON=... the interpreter

quickstart: setup ## the whole loop on a laptop: train three ways, compare, write report.html
	$(BIN)/unbraid quickstart

test: lint ## format, lint, types and all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: setup ## the slow tests only
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

lint: setup ## the checks without the tests
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pyright

format: setup ## put the code in order
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

clean: ## remove .venv, caches and build products (not your runs)
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# A torch that the interpreter has is used in place. Where python3-venv is missing, pip alone is enough.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "unbraid needs Python 3.11 or newer and $(PYTHON) is not that: make setup PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(PYTHON) -m pip --version >/dev/null 2>&1 \
	  || { echo "$(PYTHON) can make no virtual environment: apt install python3-venv, then make setup"; exit 1; }
	@options=; [ -n "$(NAMED_TORCH)" ] || ! $(PYTHON) $(HAS_TORCH) || options=--system-site-packages; \
	if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $$options .venv; \
	else $(PYTHON) -m venv --without-pip $$options .venv && $(PYTHON) -m pip --python .venv/bin/python install --ignore-installed pip; fi

# Torch comes first and by itself, so that the rest of the installation finds it and leaves it alone.
$(STAMP): pyproject.toml constraints.txt | .venv/bin/pip
	@[ -z "$(NAMED_TORCH)" ] && $(BIN)/python $(HAS_TORCH) || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

# Naming a build asks for it again, even where nothing else has changed.
ifneq ($(NAMED_TORCH),)
.PHONY: $(STAMP)
endif
