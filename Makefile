# `make help` lists the verbs. Each verb first sets up what it needs in .venv, and again only after
# requirements.lock or pyproject.toml has changed.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test reproduce study lab notebooks site lint lock

# To be given on the command line (make test BOOTSTRAP=python3.12). Environment variables are not read.
BOOTSTRAP = python3
ARGS =
TORCH = $(shell sed -n 's/^torch==//p' requirements.lock)

VENV := .venv
STAMP := $(VENV)/.installed
MINIMUM := $(shell sed -n 's/^requires-python = ">=\(.*\)"$$/\1/p' pyproject.toml)

ifeq ($(origin PYTHON),command line)
# An existing environment: nothing is installed, and the package in this folder is used.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
SETUP :=
else
ifeq ($(origin PYTHON),environment)
$(info note: the environment variable PYTHON is not read; to use that Python: make $(MAKECMDGOALS) PYTHON=$(PYTHON))
endif
override PYTHON := $(VENV)/bin/python
SETUP := $(STAMP)
endif

define check_version
command -v $(BOOTSTRAP) >/dev/null || { echo "$(BOOTSTRAP) was not found: install Python $(MINIMUM) or newer, or say where it is: make $(MAKECMDGOALS) BOOTSTRAP=python3.12" >&2; exit 1; }
$(BOOTSTRAP) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MINIMUM)".split("."))))' || { echo "bpgo needs Python $(MINIMUM) or newer, but $(BOOTSTRAP) is $$($(BOOTSTRAP) --version 2>&1); choose another: make $(MAKECMDGOALS) BOOTSTRAP=python3.12" >&2; exit 1; }
endef

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS='-k sde'               arguments for test, reproduce, study, lab, notebooks or site"
	@echo "  PYTHON=/path/python         use that environment and install nothing"
	@echo "  BOOTSTRAP=python3.12        the Python that creates $(VENV) (at least $(MINIMUM); delete $(VENV) to change it)"

test: lint  ## lint, then run the tests (the long ones: make test ARGS='-m slow')
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(PYTHON) -m pytest -n auto --maxprocesses=4 --dist loadfile $(ARGS)

reproduce: $(SETUP)  ## train all objectives, small, and print the table and reports (minutes)
	$(PYTHON) reproduce/run.py $(ARGS)

study: $(SETUP)  ## run what is missing of the study (hours) and write its tables
	$(PYTHON) reproduce/study.py $(ARGS)

lab: $(SETUP)  ## open the notebooks in JupyterLab
	$(PYTHON) -m jupyterlab notebooks $(ARGS)

notebooks: $(SETUP)  ## build notebooks/*.ipynb from their .py sources
	$(PYTHON) reproduce/notebooks.py build $(ARGS)

site: $(SETUP)  ## build the web site in runs/site from the built notebooks and the docstrings
	$(PYTHON) reproduce/site/conf.py $(ARGS)

lint: $(SETUP)  ## check style and formatting only
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# The stamp is removed first and written last. Without a stamp, what an interrupted installation has
# left is deleted.
$(STAMP): requirements.lock pyproject.toml
	@$(check_version)
	@echo "Setting up $(VENV) from requirements.lock (a few minutes the first time) ..."
	@if [ -e $@ ]; then rm $@; else $(BOOTSTRAP) -m venv --clear $(VENV); fi
	@$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -r requirements.lock
	@$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -e .
	@touch $@

# The lock has no accelerator libraries, because torch pins its own, and they depend on the machine.
lock:  ## resolve pyproject.toml again into requirements.lock (another torch: make lock TORCH=2.13.0)
	@$(check_version)
	@test -n "$(TORCH)" || { echo "requirements.lock has no torch: choose one with make lock TORCH=2.13.0" >&2; exit 1; }
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(BOOTSTRAP) -m venv "$$scratch/venv"; \
	pip="$$scratch/venv/bin/python -m pip --disable-pip-version-check"; \
	echo "Resolving in a fresh environment ..."; \
	$$pip install --quiet "torch==$(TORCH)" ".[test,reproduce,site]"; \
	{ echo "# Everything that '.[test,reproduce,site]' needs, resolved with $$($(BOOTSTRAP) --version) on $$(uname -sm)."; \
	  echo "# Made by: make lock TORCH=$(TORCH)"; \
	  $$pip freeze --exclude bpgo --exclude pip --exclude setuptools --exclude wheel \
	  | sed -E 's/\+[A-Za-z0-9.]+$$//; /^(nvidia|cuda)-|^triton/d'; } > "$$scratch/lock"; \
	if grep -nE '^[^#].*[@/]' "$$scratch/lock"; then echo "the lines above are not plain pins" >&2; exit 1; fi; \
	cat "$$scratch/lock" > requirements.lock; \
	echo "requirements.lock: $$(grep -c == requirements.lock) packages"
