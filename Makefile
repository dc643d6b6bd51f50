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
# Test files side by side: they wait for servers more than they compute. JOBS=0 is one after the other, for a debugger.
JOBS := 2
MINUTES := 60
SECONDS := 60
SOURCES := $(wildcard cdc handlers tests bench scripts)
# With which Pythons the wheel is tried: `make wheel PYTHONS="python3.11 python3.13"`.
PYTHONS = $(BIN)/python
AUDIT ?=

.PHONY: help setup system postgresql servers lint format types test docs screenshot demo bench bench-handlers bench-charts bench-micro soak fuzz check check-image audit release sbom wheel lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMPS)/project system ## environment, pinned dependencies, PostgreSQL with wal2json; does only what is missing

system:
	@scripts/system-packages.sh postgresql

postgresql: ## PostgreSQL PG=17 with wal2json from the PostgreSQL project's own repository, for PG_BINDIR
	@scripts/system-packages.sh pgdg $(PG)

# Only what talks to them needs them: the tests and the bench.
servers:
	@scripts/system-packages.sh servers

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "walsignal needs Python 3.11 or newer; name one with: make setup PYTHON=python3.12" >&2; exit 1; }
	@scripts/system-packages.sh venv $(PYTHON)
	$(PYTHON) -m venv --clear $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# The locks name every distribution: with --no-deps pip does not choose any itself, which old pips (23) do for extras.
INSTALL_LOCKED := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r

$(STAMPS)/dev: requirements/dev.txt $(STAMPS)/venv
	$(INSTALL_LOCKED) $<
	@touch $@

$(STAMPS)/project: pyproject.toml $(STAMPS)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMPS)/bench: requirements/bench.txt $(STAMPS)/dev
	$(INSTALL_LOCKED) $<
	@touch $@

$(STAMPS)/debezium: requirements/debezium.txt $(STAMPS)/bench
	$(INSTALL_LOCKED) $<
	@touch $@

lint: $(STAMPS)/project ## ruff: rules and formatting
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

format: $(STAMPS)/project ## ruff mends what it can
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

types: $(STAMPS)/project ## mypy --strict
	@$(BIN)/mypy $(SOURCES)

test: setup servers lint types ## lint, types and every test, with coverage; K=words chooses tests, ARGS goes to pytest, JOBS=0 runs no two side by side
	@$(BIN)/pytest -n $(JOBS) --dist loadfile --cov --cov-report=term:skip-covered $(if $(K),-k "$(K)") $(ARGS)

screenshot: setup servers ## docs/status-page.png anew: the status page of `make demo`, after some minutes of traffic
	@$(BIN)/python -m tests.screenshot $(ARGS)

docs: $(STAMPS)/project ## what in docs/ is written from the code: options, configuration, metrics, alerts
	@$(BIN)/python -m tests.docs.pages
	@$(BIN)/python -m tests.metric_reference

demo: setup ## a PostgreSQL of its own, live traffic, and every change on your screen; ARGS goes to `cdc demo`
	@$(BIN)/cdc demo $(ARGS)

# Debezium's engine is one of the contenders where a Java runtime is; it is not the bench that installs one.
bench: setup servers $(STAMPS)/bench $(if $(shell command -v java),$(STAMPS)/debezium) ## the measurements, 45 minutes; ARGS goes to `python -m bench` (--quick: 3 minutes)
	@$(BIN)/python -m bench $(ARGS)
	@$(if $(ARGS),,$(BIN)/python -m bench.handlers_throughput)

bench-handlers: setup servers $(STAMPS)/bench ## events/s of each built-in handler against its real server; ARGS names handlers
	@$(BIN)/python -m bench.handlers_throughput $(ARGS)

bench-charts: setup $(STAMPS)/bench ## the charts of the README anew, from the figures of the last `make bench`
	@$(BIN)/python -m bench charts --charts docs/charts $(ARGS)

bench-micro: setup $(STAMPS)/bench ## micro-benchmarks, one per stage of the stream; K=words chooses, ARGS goes to pytest
	@$(BIN)/pytest bench/micro $(if $(K),-k "$(K)") $(ARGS)

soak: setup ## the service under random load and random faults for MINUTES=60; fails when it loses, doubles or grows
	@$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

fuzz: setup ## any bytes into the decoders for SECONDS=60: a value, or the documented error
	@$(BIN)/python -m tests.properties.fuzz --seconds $(SECONDS) $(ARGS)

check: test audit wheel ## what a release must pass: make test (lint, types, tests, docs), audit, release, wheel

audit: $(STAMPS)/project ## known vulnerabilities of all that is locked; AUDIT=skip leaves it out where no service can be asked
	@AUDIT=$(AUDIT) $(BIN)/python scripts/audit.py $(ARGS)

release: $(STAMPS)/project ## build/release: wheel, sdist, SBOM (CycloneDX), SHA256SUMS, each byte reproducible
	@scripts/release.sh $(BIN)/python

sbom: release ## what is in it: build/release/walsignal.cdx.json
	@$(BIN)/python -m json.tool build/release/walsignal.cdx.json | grep -c '"purl"' | sed 's/$$/ components in build\/release\/walsignal.cdx.json/'

wheel: release system ## the released wheel in an empty environment: imports, cdc init, check and run on a PostgreSQL; PYTHONS
	@scripts/check-wheel.sh build/release/walsignal-*.whl $(PYTHONS)

check-image: setup ## deploy/Dockerfile built in a Debian tree, and the service run in it; as root, with the network; minutes
	@scripts/check-image.sh $(BIN)/python $(ARGS)

lock: ## write requirements/*.txt anew from pyproject.toml (needs the network)
	@scripts/system-packages.sh venv $(PYTHON)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	scripts/lock.sh build/lock/bin/uv

clean: ## remove everything make has made here (system packages stay)
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
