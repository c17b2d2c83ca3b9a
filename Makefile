# Every target works from a checkout path with a space in it: paths are relative, and a tool is called as
# "python -m tool", because the scripts of a virtual environment name their interpreter by its full path.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The first of these that is Python 3.11 or 3.12; "make demo PYTHON=/path/to/python3.12" names another one.
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo "$$name" && break; done)

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
PIP_INSTALL := "$(VENV_PYTHON)" -m pip install --quiet --disable-pip-version-check --no-warn-script-location

# Each editable install of a checkout with more than one folder makes setuptools warn of name clashes; there are none.
$(VENV)/.installed-%: export PYTHONWARNINGS := ignore

# Models and data come from files: without this the Hugging Face libraries first ask their hub, then wait for time-outs.
export HF_HUB_OFFLINE := 1

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(VENV)/.installed-demo ## Run the whole pipeline here on the embedded model and data (no GPU, no cluster)
	@"$(VENV_PYTHON)" run_local.py --demo

.PHONY: demo-schedule
demo-schedule: $(VENV)/.installed-demo ## Play five scheduled runs in a row, beside the same with plain fine-tuning
	@"$(VENV_PYTHON)" run_schedule.py

# A file's tests stay in one process, where its models are made once. The order is that of tests/conftest.py. Three
# processes keep two cores busy: some tests wait for clocks and servers.
IN_PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: test
test: $(VENV)/.installed-dev ## Run every test, the slow ones too
	@"$(VENV_PYTHON)" -m pytest $(IN_PARALLEL)

.PHONY: test-fast
test-fast: $(VENV)/.installed-dev ## Run the tests that are not marked slow
	@"$(VENV_PYTHON)" -m pytest $(IN_PARALLEL) -m "not slow"

.PHONY: lint
lint: $(VENV)/.installed-dev ## Check style, format, types and Containerfiles
	"$(VENV_PYTHON)" -m ruff check .
	"$(VENV_PYTHON)" -m ruff format --check .
	"$(VENV_PYTHON)" -m mypy
	"$(VENV)/bin/hadolint" images/*/Containerfile

.PHONY: format
format: $(VENV)/.installed-dev ## Rewrite the code in the project's format and mend what ruff can mend
	"$(VENV_PYTHON)" -m ruff check --fix .
	"$(VENV_PYTHON)" -m ruff format .

.PHONY: compile
compile: $(VENV)/.installed-demo ## Write the pipeline as YAML for the cluster, into dist/
	@"$(VENV_PYTHON)" compile.py

.PHONY: constraints
constraints: pins := build/pins
constraints: ## Resolve all dependencies anew and rewrite constraints.txt (Python 3.11)
	rm -rf "$(pins)"
	python3.11 -m venv "$(pins)"
	"$(pins)/bin/python" -m pip install --quiet --upgrade pip setuptools
	"$(pins)/bin/python" -m pip install --quiet torch==2.13.0 --editable ".[pipeline,remote,kubeflow,registry]" --group dev
	sed '/^[^#]/,$$d' constraints.txt > "$(pins)/constraints.txt"
	"$(pins)/bin/python" -m pip freeze --all --exclude-editable \
		| grep -viE '^(nvidia|cuda|triton|wheel)' | sed 's/+.*//' | LC_ALL=C sort -f >> "$(pins)/constraints.txt"
	mv "$(pins)/constraints.txt" constraints.txt

# What is measured is chosen by options: make bench-engine BENCH_OPTIONS="--shape smoke --rounds 2 --tokens-per-row 32"
BENCH_VENV := build/bench-venv
BENCH_OPTIONS ?=

.PHONY: bench-engine
bench-engine: $(BENCH_VENV)/.installed ## Measure the engine beside plain fine-tuning and its peers (about half an hour)
	@"$(BENCH_VENV)/bin/python" -m benchmarks.engine $(BENCH_OPTIONS)

# The peers come into an environment of their own.
$(BENCH_VENV)/.installed: export PYTHONWARNINGS := ignore
$(BENCH_VENV)/.installed: benchmarks/requirements.txt pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing the engine and its peers into $(BENCH_VENV) (a few minutes)"
	@"$(VENV_PYTHON)" -m venv --clear "$(BENCH_VENV)"
	@"$(BENCH_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	@"$(BENCH_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
		--constraint constraints.txt --build-constraint constraints.txt \
		--requirement benchmarks/requirements.txt --editable .
	@touch "$@"

# The peer is a program of its own to the benchmark, which runs in the project's environment.
DATA_PEER_VENV := build/bench-data-venv

.PHONY: bench-data
bench-data: $(VENV)/.installed-dev $(DATA_PEER_VENV)/.installed ## Measure download, validation and processing beside a peer (about 25 minutes)
	@"$(VENV_PYTHON)" -m benchmarks.data $(BENCH_OPTIONS)

$(DATA_PEER_VENV)/.installed: benchmarks/data/requirements.txt constraints.txt | $(VENV)/.created
	@echo "Installing the peer into $(DATA_PEER_VENV) (a few minutes)"
	@"$(VENV_PYTHON)" -m venv --clear "$(DATA_PEER_VENV)"
	@"$(DATA_PEER_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	@"$(DATA_PEER_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
		--constraint constraints.txt --build-constraint constraints.txt torch \
		--requirement benchmarks/data/requirements.txt
	@touch "$@"

.PHONY: bench-evaluation
bench-evaluation: $(VENV)/.installed-dev ## Measure the evaluation beside plain lm-eval (about 6 minutes)
	@"$(VENV_PYTHON)" -m benchmarks.evaluation $(BENCH_OPTIONS)

.PHONY: bench-sequences
bench-sequences: $(VENV)/.installed-dev ## Learn tasks one after the other with every method (about an hour and a half)
	@"$(VENV_PYTHON)" -m benchmarks.sequences $(BENCH_OPTIONS)

.PHONY: clean
clean: ## Remove .venv, dist/, build/ and the tools' caches (workspace/ stays)
	rm -rf "$(VENV)" dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in two steps so that an interrupted one is made anew and a changed pin only installs what changed.
$(VENV)/.created:
	@if [[ -z "$(PYTHON)" ]]; then \
		echo "No Python 3.11 or 3.12 found. Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("Python %d.%d will not do: name a 3.11 or 3.12, make PYTHON=/path/to/python3.12" % v)'
	@echo "Creating $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@touch "$@"

# pip before all else: the one that a new environment starts with is older than --group and --build-constraint.
$(VENV)/.installed-demo: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing what the pipeline needs (pinned by constraints.txt; the first time takes a few minutes)"
	@$(PIP_INSTALL) --constraint constraints.txt pip
	@$(PIP_INSTALL) --constraint constraints.txt --build-constraint constraints.txt --editable ".[pipeline]"
	@touch "$@"

# The models of TrainJobs, one folder a version: they are one package, and no environment can hold several of it. The
# tests hold what is sent to a cluster against each.
TRAINER_APIS := 2.0.1 2.1.0 2.2.1 2.3.0

build/trainer-api/.installed: Makefile | $(VENV)/.installed-demo
	@for version in $(TRAINER_APIS); do \
		$(PIP_INSTALL) --no-deps --upgrade --target "build/trainer-api/$$version" "kubeflow-trainer-api==$$version"; done
	@touch "$@"

$(VENV)/.installed-dev: $(VENV)/.installed-demo build/trainer-api/.installed
	@echo "Installing what tests and linting need (pinned by constraints.txt)"
	@$(PIP_INSTALL) --constraint constraints.txt --build-constraint constraints.txt --editable ".[pipeline,remote,kubeflow,registry]" --group dev
	@touch "$@"
