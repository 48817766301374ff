# Every target does its own set-up. Python 3.11+ with venv, make and pip is all that must be there.
.PHONY: setup demo serve test check fix bench bench-policies bench-search
PYTHON ?= python3
BIN = .venv/bin
RUN = PATH="$(CURDIR)/.venv/bin:$$PATH"

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt service/requirements.txt simulator/requirements.txt
	@echo "setting up .venv (a few minutes the first time, mostly PyTorch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## the whole story in a few minutes; QUICK=1 for the short one
	@$(RUN) $(BIN)/rebound-sim demo $(if $(QUICK),--quick)

serve: setup  ## the service on http://127.0.0.1:8000, state in .rebound/
	@$(RUN) $(BIN)/rebound serve

test: setup
	@$(RUN) $(BIN)/python -m pytest $(ARGS)

check: setup  ## format, lint, types; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

fix: setup  ## what `check` can mend by itself
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.venv/.rivals: .venv/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[rivals]'
	@touch $@

bench: setup .venv/.rivals  ## the figures of docs/benchmarks.md
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) $(BIN)/python -m pytest --override-ini=addopts= --override-ini=testpaths=tests/benchmarks -s $(ARGS)

bench-policies: setup  ## the table of policies and worlds; goes on where it stopped. ARGS=--quick: in minutes
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.policies $(ARGS)

bench-search: setup  ## how the defaults were found: the same budget for every policy
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.search $(ARGS)
