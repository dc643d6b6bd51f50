# The only front door. `make` alone says what there is.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
# Stamps live inside the environment: whoever removes it removes them too.
STAMPS := $(VENV)/.made
MINUTES := 60
SECONDS := 60
SOURCES := $(wildcard cdc handlers tests bench)

.PHONY: help setup system lint format types test demo bench soak fuzz check lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMPS)/project system ## environment, pinned dependencies, PostgreSQL with wal2json; does only what is missing

system:
	@scripts/system-packages.sh postgresql

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "walsignal needs Python 3.11 or newer; name one with: make setup PYTHON=python3.12" >&2; exit 1; }
	@scripts/system-packages.sh venv $(PYTHON)
	$(PYTHON) -m venv --clear $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: requirements/dev.txt $(STAMPS)/venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(STAMPS)/project: pyproject.toml $(STAMPS)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMPS)/bench: requirements/bench.txt $(STAMPS)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

lint: $(STAMPS)/project ## ruff: rules and formatting
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

format: $(STAMPS)/project ## ruff mends what it can
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

types: $(STAMPS)/project ## mypy --strict
	@$(BIN)/mypy $(SOURCES)

test: setup lint types ## lint, types and every test, with coverage; K=words chooses tests, ARGS goes to pytest
	@$(BIN)/pytest --cov --cov-report=term:skip-covered $(if $(K),-k "$(K)") $(ARGS)

demo: setup ## a PostgreSQL of its own, live traffic, and every change on your screen; ARGS goes to `cdc demo`
	@$(BIN)/cdc demo $(ARGS)

bench: setup $(STAMPS)/bench ## the measurements; ARGS goes to `python -m bench`
	@$(BIN)/python -m bench $(ARGS)

soak: setup ## the service under random load and random faults for MINUTES=60; fails when it loses, doubles or grows
	@$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

fuzz: setup ## any bytes into the decoders for SECONDS=60: a value, or the documented error
	@$(BIN)/python -m tests.properties.fuzz --seconds $(SECONDS) $(ARGS)

check: test ## all of `make test`, then the wheel in an empty environment
	@scripts/check-wheel.sh $(BIN)/python

lock: ## write requirements/*.txt anew from pyproject.toml (needs the network)
	@scripts/system-packages.sh venv $(PYTHON)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	scripts/lock.sh build/lock/bin/uv

clean: ## remove everything make has made here (system packages stay)
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
