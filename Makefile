# One door for people and CI. Every target may be called any number of times; what is done is not done again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXTENSION_SOURCES := setup.py fanout/_core.pyx fanout/_csrc.pxd $(wildcard csrc/*.c csrc/*.h)
PYTEST_ARGS ?=

# Two tests at a time: each waits for its devices half of its time. Those of one file stay together, because they share what takes long to
# make; a process that hangs ends the run. In one process: PYTEST_ARGS=-n0, which --pdb needs, too.
SIDE_BY_SIDE = -n2 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0

# The long runs: `make nightly KILLS=…`; the seed of any of them: FANOUT_SEED=….
KILLS ?= 100000
LONG = $(BIN)/python -P -m pytest -m long -o faulthandler_timeout=14400 $(PYTEST_ARGS)
POLICY = fanout/policy.py,fanout/placing.py,fanout/blame.py

.PHONY: help system setup build driver demo test test-python test-c test-faults nightly coverage lint format
.PHONY: faults-simulation faults-kills faults-kills-io_uring faults-kills-threads faults-moments faults-devices
.PHONY: sanitize sanitize-address sanitize-thread sanitize-python stress soak fuzz bench cost clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

system: # asked each time: it takes a tenth of a second, and packages can go away
	@scripts/setup.sh system

$(STAMPS)/venv: pyproject.toml scripts/setup.sh | system
	@scripts/setup.sh venv
	@mkdir -p $(STAMPS) && touch $@

setup: system $(STAMPS)/venv ## install what is missing: Debian packages (as root), virtual environment, tools

# The extension in place, and the package installed as a link to this tree; its dependencies come along.
$(STAMPS)/install: pyproject.toml setup.py $(STAMPS)/venv
	@echo 'fanout: building and installing into $(VENV)' >&2
	@$(PIP) install -qq --no-build-isolation --editable .
	@touch $@ && touch $(STAMPS)/build

$(STAMPS)/build: $(EXTENSION_SOURCES) $(STAMPS)/venv | $(STAMPS)/install
	@if [ -n "$$(find $(EXTENSION_SOURCES) -newer $@ 2>/dev/null)" ] || ! compgen -G 'fanout/_core*.so' >/dev/null; then \
	    echo 'fanout: building the extension' >&2; \
	    $(BIN)/python setup.py -q build_ext --inplace; \
	fi
	@touch $@

build: system $(STAMPS)/build ## build the extension in place

driver: system # the C driver, a peer in the benchmarks
	@$(MAKE) --no-print-directory -s -C csrc

demo: build ## the whole scenario on real data and real targets, in seconds
	$(BIN)/fanout demo

test: test-python test-c ## every test, Python's and C's

test-python: build driver
	@scripts/setup.sh faults
	$(BIN)/python -P -m pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

test-faults: build ## what fails on purpose: simulation, loops, crash states, planted bugs; kills and the matrix on real devices
	@scripts/setup.sh faults
	$(MAKE) --jobs=5 --output-sync=target faults-simulation faults-kills faults-moments faults-devices

# Side by side: each waits for its devices and deadlines now and then. What only computes comes behind them in line for the processors.
faults-simulation:
	nice -n 19 $(BIN)/python -m tests.sim.suite faults

faults-kills: faults-kills-io_uring faults-kills-threads

faults-kills-io_uring faults-kills-threads: faults-kills-%:
	FANOUT_EVIDENCE=tests/crash/results/kills-$* $(LONG) tests/crash/test_kill_points.py -k $*

faults-moments:
	FANOUT_EVIDENCE=tests/crash/results/moments $(LONG) tests/crash/test_random_kills.py tests/crash/test_crowd.py

faults-devices:
	FANOUT_EVIDENCE=tests/crash/results/devices $(LONG) tests/crash/test_matrix.py tests/crash/test_ext4.py
	FANOUT_EVIDENCE=tests/crash/results/disasters FANOUT_DISASTERS=100:130 $(BIN)/python -P -m pytest tests/store/test_disasters.py $(PYTEST_ARGS)

nightly: build ## the same with the large numbers: hours. KILLS=100000 random kills, all of the matrix, the full oracle at every kill point
	@scripts/setup.sh faults
	$(BIN)/python -m tests.sim.suite nightly
	FANOUT_EVIDENCE=tests/crash/results/nightly FANOUT_CRASH_KILLS=$(KILLS) FANOUT_CRASH_FULL=1 FANOUT_MATRIX=all $(LONG) tests/crash

coverage: build ## branches of the policy modules (must be all), lines and branches of the C core
	$(BIN)/coverage run -m pytest -q tests/policy tests/session
	@$(BIN)/coverage combine -q
	$(BIN)/coverage report --include=$(POLICY) --fail-under=100
	@rm -rf csrc/build-coverage # counts of an earlier run would add up
	$(MAKE) -C csrc test SAN=coverage
	$(BIN)/python scripts/coverage.py

test-c: system
	$(MAKE) -C csrc test

sanitize: system ## the C tests under ASan + UBSan, and under TSan beside it
	$(MAKE) --jobs=2 --output-sync=target sanitize-address sanitize-thread

sanitize-address sanitize-thread: sanitize-%:
	$(MAKE) -C csrc test SAN=$*

sanitize-python: build ## tests/engine over the extension under ASan + UBSan, then under TSan
	scripts/sanitize.sh address
	scripts/sanitize.sh thread

fuzz: build ## forged blocks, volumes, catalogs, configurations, command lines for SECONDS=600
	$(MAKE) -C csrc build-address/test_hostile SAN=address
	FO_HOSTILE_SECONDS=$$(( $(or $(SECONDS),600) / 6 )) csrc/build-address/test_hostile
	$(BIN)/python -m tests.hostile.fuzz $$(( $(or $(SECONDS),600) * 5 / 6 ))

# No suppressions: what ThreadSanitizer says of the core is a failure.
stress: system ## many threads on failing targets under TSan, for SECONDS=60
	$(MAKE) -C csrc stress SAN=thread SECONDS=$(or $(SECONDS),60)

soak: build ## random faults, sizes and sessions for SECONDS=600: nothing may leak
	@scripts/setup.sh faults
	$(BIN)/python -m tests.soak.soak --seconds $(or $(SECONDS),600) $(SOAK_ARGS)

lint: build ## ruff, cython-lint, mypy --strict, stubtest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint fanout # it calls pycodestyle
	$(BIN)/mypy fanout tests examples setup.py $(wildcard benchmarks/*.py)
	$(BIN)/python -m mypy.stubtest fanout._core

format: setup ## let ruff format and sort
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

bench: build ## micro-benchmarks, then fanout against its peers on the same targets
	$(BIN)/python -P -m pytest benchmarks --benchmark-only
	$(BIN)/fanout bench quick

cost: build driver ## the cost table, from benchmarks/scenarios/cost.toml: JSON and an HTML report under benchmarks/results
	@scripts/setup.sh peers
	$(BIN)/fanout bench run benchmarks/scenarios/cost.toml --html benchmarks/results/cost.html

clean: ## remove what was built; keeps the virtual environment (rm -rf .venv for that)
	rm -rf build dist *.egg-info fanout/_core.c fanout/*.so $(STAMPS)/build
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	$(MAKE) -C csrc clean
