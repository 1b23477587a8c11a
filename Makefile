# `make help` lists the verbs. Each verb sets up what it needs in .venv first, and does so again only when
# requirements.lock or pyproject.toml has changed.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test reproduce study lab notebooks site lint lock

# Given on the command line only (make test BOOTSTRAP=python3.12): variables of the environment are not read.
BOOTSTRAP = python3
ARGS =
TORCH = $(shell sed -n 's/^torch==//p' requirements.lock)

VENV := .venv
STAMP := $(VENV)/.installed
MINIMUM := $(shell sed -n 's/^requires-python = ">=\(.*\)"$$/\1/p' pyproject.toml)

ifeq ($(origin PYTHON),command line)
# An environment of the user's own: nothing is installed, the package is taken from this folder.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
SETUP :=
else
ifeq ($(origin PYTHON),environment)
$(info note: PYTHON of the environment is not read; to use an environment of your own: make $(MAKECMDGOALS) PYTHON=$(PYTHON))
endif
override PYTHON := $(VENV)/bin/python
SETUP := $(STAMP)
endif

define check_version
command -v $(BOOTSTRAP) >/dev/null || { echo "$(BOOTSTRAP) was not found: install Python $(MINIMUM) or newer, or name yours: make $(MAKECMDGOALS) BOOTSTRAP=python3.12" >&2; exit 1; }
$(BOOTSTRAP) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MINIMUM)".split("."))))' || { echo "bpgo needs Python $(MINIMUM) or newer, but $(BOOTSTRAP) is $$($(BOOTSTRAP) --version 2>&1); name another: make $(MAKECMDGOALS) BOOTSTRAP=python3.12" >&2; exit 1; }
endef

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS='-k sde'               passed on to the command behind test, reproduce, study, lab, notebooks and site"
	@echo "  PYTHON=/path/python         use that existing environment and install nothing"
	@echo "  BOOTSTRAP=python3.12        the Python that makes $(VENV) (at least $(MINIMUM); delete $(VENV) to change it)"

test: $(SETUP)  ## lint, then run the tests (the long ones: make test ARGS='-m slow')
	$(PYTHON) -m ruff check .
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(PYTHON) -m pytest -n auto --maxprocesses=4 --dist loadfile $(ARGS)

reproduce: $(SETUP)  ## run the study and rebuild its tables and figures
	$(PYTHON) reproduce/run.py $(ARGS)

study: $(SETUP)  ## run what is missing of the study (hours), and write its tables
	$(PYTHON) reproduce/study.py $(ARGS)

lab: $(SETUP)  ## open the notebooks in JupyterLab
	$(PYTHON) -m jupyterlab notebooks $(ARGS)

notebooks: $(SETUP)  ## build notebooks/*.ipynb from their .py sources
	$(PYTHON) reproduce/notebooks.py build $(ARGS)

site: $(SETUP)  ## build the web site from notebooks and docstrings into runs/site
	$(PYTHON) reproduce/site/conf.py $(ARGS)

lint: $(SETUP)  ## check style only
	$(PYTHON) -m ruff check .

# The stamp goes first and comes back last. Without one, what an interrupted install left is thrown away.
$(STAMP): requirements.lock pyproject.toml
	@$(check_version)
	@echo "Setting up $(VENV) from requirements.lock (some minutes the first time) ..."
	@if [ -e $@ ]; then rm $@; else $(BOOTSTRAP) -m venv --clear $(VENV); fi
	@$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -r requirements.lock
	@$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -e .
	@touch $@

# Accelerator libraries are left out of the lock: torch pins its own, and they differ from machine to machine.
lock:  ## resolve pyproject.toml anew into requirements.lock (another torch: make lock TORCH=2.13.0)
	@$(check_version)
	@test -n "$(TORCH)" || { echo "requirements.lock names no torch: say make lock TORCH=2.13.0" >&2; exit 1; }
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(BOOTSTRAP) -m venv "$$scratch/venv"; \
	pip="$$scratch/venv/bin/python -m pip --disable-pip-version-check"; \
	echo "Resolving in a fresh environment ..."; \
	$$pip install --quiet "torch==$(TORCH)" ".[test,reproduce,site]"; \
	{ echo "# Everything that '.[test,reproduce,site]' needs, resolved with $$($(BOOTSTRAP) --version) on $$(uname -sm)."; \
	  echo "# Made by: make lock TORCH=$(TORCH)"; \
	  $$pip freeze --exclude bpgo --exclude pip --exclude setuptools --exclude wheel \
	  | sed -E 's/\+[A-Za-z0-9.]+$$//; /^(nvidia|cuda)-|^triton/d'; } > "$$scratch/lock"; \
	if grep -nE '^[^#].*[@/]' "$$scratch/lock"; then echo "the lines above are no plain pins" >&2; exit 1; fi; \
	cat "$$scratch/lock" > requirements.lock; \
	echo "requirements.lock: $$(grep -c == requirements.lock) packages"
