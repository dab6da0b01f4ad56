# The first command in a fresh clone is `make test`: it installs what is missing, then checks everything.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Python 3.11 is what CI uses and what constraints.txt was resolved for; a newer one will do.
PYTHON ?= $(shell for python in python3.11 python3; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done)
# Every worker starts the servers its tests use (a second, 0.3 GB): not one per core of a large machine.
WORKERS ?= auto --maxprocesses 4
# A server named here that is missing fails its tests instead of skipping them.
SOVSTORE_TEST_REQUIRE ?= s3,moto,azurite,faults,keyring,openbao,kmip,softhsm$(if $(CI),$(comma)okms)

# The fake of OVHcloud KMS needs the description of its interface, which is not ours to hand on: CI has it.
comma := ,

VENV := .venv
BIN := $(VENV)/bin
AZURITE := tests/servers/azurite
# Servers from PyPI, each in an environment of its own: their dependencies do not get to choose the versions that
# sovstore is tested with.
PYTHON_SERVERS := $(patsubst %,tests/servers/%/.venv/.installed,moto openbao pykmip)
# What the benchmarks compare with; not below `benchmarks`, all of which is linted and audited.
PEERS := $(patsubst benchmarks/peers/%.txt,build/peers/%/.installed,$(wildcard benchmarks/peers/*.txt))
# Of `make stress`: kills of each operation at each host, and where the figures of the run go, one JSON object a line.
KILLS ?= 200
STRESS_WORKERS ?= 1
FIGURES ?= build/figures.jsonl
# Inputs for each target of `make fuzz`.
RUNS ?= 1000000
EXTRAS_DEV := all,dev
EXTRAS_DEMO := parquet
# Not the tests, which start servers, hold dummy passwords and make attacks.
AUDITED := src tools benchmarks
TYPED := src benchmarks tests/conftest.py tests/servers $(wildcard tools)

# $(call step,what,commands joined by &&): one line per step; its output is shown only when it fails.
define step
@echo "- $(1)"; log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
if ! { $(2); } >"$$log" 2>&1; then cat "$$log" >&2; echo "make: failed: $(1)" >&2; exit 1; fi
endef

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The build backend is installed apart, so it is pinned apart.
PIP_INSTALL_EDITABLE = $(PIP_INSTALL) --build-constraint constraints.txt --editable

# What is installed for the library, its development and the servers of its tests; Azurite has npm's own lock file.
PINNED := constraints.txt $(wildcard tests/servers/*/requirements.txt)

.PHONY: help test check lint pytest unit stress demo bench fuzz audit venv peers servers format clean

help: ## Print this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

test: $(BIN)/python ## Install what is missing, then run `make check`: the first command in a fresh clone
	@$(MAKE) -j2 venv servers
	@$(MAKE) check

check: lint pytest ## Lint and run all tests: exactly what CI runs

lint: venv ## Run ruff, mypy and the import contracts
	$(call step,ruff check,$(BIN)/ruff check --output-format concise)
	$(call step,ruff format,$(BIN)/ruff format --check --diff)
	$(call step,mypy,$(BIN)/mypy $(TYPED))
	$(call step,bandit,$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(AUDITED))
	$(call step,import contracts,$(BIN)/lint-imports)

pytest: venv
	@echo "- all tests, servers required: $(or $(SOVSTORE_TEST_REQUIRE),none)"
	@SOVSTORE_TEST_REQUIRE='$(SOVSTORE_TEST_REQUIRE)' $(BIN)/pytest -q -n $(WORKERS) --maxschedchunk 2 $(ARGS)

unit: venv ## Run the tests that need no server; ARGS="..." goes to pytest
	@$(BIN)/pytest -q -n $(WORKERS) -m 'not server' $(ARGS)

# Alone on its cores: what is killed is killed at a moment of the time that the command takes.
stress: $(BIN)/python ## Run the long form of the tests that have one, hours of them, and print their figures
	@$(MAKE) -j2 venv servers
	@mkdir -p build && rm -f $(FIGURES)
	@status=0; SOVSTORE_TEST_REQUIRE='$(SOVSTORE_TEST_REQUIRE)' SOVSTORE_TEST_FIGURES='$(abspath $(FIGURES))' \
		SOVSTORE_TEST_STRESS=1 SOVSTORE_TEST_KILLS=$(KILLS) \
		$(BIN)/pytest -q -m stress -n $(STRESS_WORKERS) -o timeout=0 $(ARGS) || status=$$?; \
		$(BIN)/python -m tests.stress $(FIGURES); exit $$status

# With the development set-up there is nothing more to install; without it the runtime is enough.
demo: $(if $(wildcard $(VENV)/.dev),venv,$(VENV)/.demo) ## Run `sovstore demo` (needs no server)
	@$(BIN)/sovstore demo $(ARGS)

bench: venv peers ## Measure sovstore beside what else encrypts; ARGS="stream-write --rounds 7" and the like, ARGS=--help
	@$(BIN)/python -m benchmarks $(ARGS)

fuzz: venv ## Fuzz every parser, RUNS=1000000 inputs each; ARGS="config --json" and the like
	@$(BIN)/python -m tests.fuzz --runs $(RUNS) $(ARGS)

# The answers are those of today, so it is no part of `make check`: the same commit would fail tomorrow.
audit: venv ## Write the SBOM, and ask for known vulnerabilities of all that is pinned (needs the network); ARGS="--service osv"
	@$(BIN)/python tools/sbom.py dist/sbom.cdx.json
	@$(BIN)/python tools/audit.py $(PINNED) $(ARGS)

venv: $(VENV)/.dev ## Make .venv with the package, every extra and the development tools
	@:

peers: $(PEERS) ## Install what the benchmarks compare with, each in an environment of its own (pip)
	@:

servers: $(AZURITE)/node_modules/.installed $(PYTHON_SERVERS) ## Install the real servers of the tests (Debian packages, npm, pip)
	@tests/servers/install debian

format: venv ## Format the code and apply the safe fixes of the linter
	$(call step,ruff format,$(BIN)/ruff format)
	$(call step,ruff check --fix,$(BIN)/ruff check --fix)

clean: ## Remove .venv, the servers of the tests, caches and build output; Debian packages stay
	$(call step,clean,rm -rf $(VENV) $(AZURITE)/node_modules tests/servers/*/.venv build dist .*_cache .fuzz .hypothesis && find src tests -name __pycache__ -prune -exec rm -rf {} +)

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "make: no Python >= 3.11 found; say which: make PYTHON=..." >&2; exit 1; fi
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tests/servers/install python
	@# What Python 3.11 puts there besides pip is old, and pinned and audited by nobody; nothing needs it.
	$(call step,$(VENV) by $(PYTHON),$(PYTHON) -m venv $(VENV) && $(PIP_INSTALL) pip && $(BIN)/python -m pip uninstall --quiet --yes setuptools)

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call step,Python packages,$(PIP_INSTALL_EDITABLE) '.[$(EXTRAS_DEV)]')
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(call step,Python packages of the demo,$(PIP_INSTALL_EDITABLE) '.[$(EXTRAS_DEMO)]')
	@touch $@

$(AZURITE)/node_modules/.installed: $(AZURITE)/package.json $(AZURITE)/package-lock.json
	@command -v npm >/dev/null || { echo "make: npm not found; Azurite needs Node.js and npm" >&2; exit 1; }
	$(call step,Azurite from npm,npm --prefix $(AZURITE) ci --loglevel=error)
	@touch $@

tests/servers/%/.venv/.installed: tests/servers/%/requirements.txt | $(BIN)/python
	$(call step,$* in an environment of its own,$(PYTHON) -m venv --clear $(@D) && $(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<)
	@touch $@

build/peers/%/.installed: benchmarks/peers/%.txt | $(BIN)/python
	$(call step,$* in an environment of its own,$(PYTHON) -m venv --clear $(@D) && $(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<)
	@touch $@
