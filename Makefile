# make quickstart: set up .venv and answer the question on this machine. make test: the promises, in a
# few minutes; make test-all: everything. None relies on anything installed by hand but Python 3.11 or
# 3.12 (PYTHON=... picks one).

VENV ?= .venv
# Of tests side by side; one core each, about 3 GB.
JOBS ?= 2
BIN := $(VENV)/bin
SUPPORTED := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo $$p; break; }; done)

# The claims that matter while one works: exactness, plan, splice, ledger, resume, gradients, probes,
# scores, the arrows, the README's numbers. Of these files what is not marked slow.
PROMISES := tests/data_injection tests/test_architecture.py tests/test_readme.py \
	tests/olmo_ext/test_config.py tests/olmo_ext/test_data.py tests/olmo_ext/test_train.py \
	tests/olmo_ext/test_batch_check.py tests/olmo_ext/callbacks/test_interference.py \
	tests/eval/test_records.py tests/eval/scores/test_accuracy.py tests/eval/scores/test_cells.py \
	tests/eval/features/test_probes.py tests/eval/interference tests/launch/test_cli.py \
	tests/launch/test_grid.py

# OLMo-core's own environment: its version excludes ai2-olmo's.
CORE ?= .venv-core

.PHONY: test-core quickstart smoke confirm mechanism faults docs test test-all tests lint install clean

quickstart: install
	$(BIN)/olmo-ext quickstart

smoke: install
	$(BIN)/olmo-ext quickstart --smoke --check

confirm: install
	$(BIN)/olmo-ext confirm

mechanism: install
	@# The chain's links by width and host; again, it goes on where it was stopped.
	$(BIN)/olmo-ext confirm --chapter hosts

faults: install
	FAULTS=24 FAULTS_OUT=runs/faults.jsonl $(BIN)/pytest tests/olmo_ext/test_faults.py -k killed

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

test: lint
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow" $(PROMISES)

test-all: install
	@# Side by side: mypy is one process, beside which the other core would idle.
	$(MAKE) --jobs=2 lint tests

tests: install
	@# One more than cores: some wait on SLURM and on agents.
	$(BIN)/pytest -n $$(($(JOBS) + 1)) --dist loadfile --no-loadscope-reorder

test-core: $(CORE)/bin/.installed
	@# Without OLMo-core 3 its tests skip: here that is a failure.
	$(CORE)/bin/python -c 'from olmo_ext.core.compat import require_core; require_core()'
	$(CORE)/bin/pytest -n $(JOBS) --dist loadfile tests/olmo_ext/core

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing (a few minutes the first time) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[olmo,dev]'
	@touch $@

$(CORE)/bin/.installed: pyproject.toml setup.py constraints-core.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(CORE)
	$(CORE)/bin/pip install --quiet --disable-pip-version-check -c constraints-core.txt \
		-e '.[core]' pytest pytest-timeout pytest-xdist
	@touch $@

clean:
	rm -rf $(VENV) $(CORE) build *.egg-info
