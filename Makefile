# `make` lists the targets. They use .venv, which is rebuilt when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
# Options of `pip install`, such as the index of a CPU-only build of PyTorch.
PIP_FLAGS ?=
# Test processes; each loads torch and a small model.
PYTEST_WORKERS ?= 2

BIN := .venv/bin
# Packages of the machine's build of torch; not pinned in constraints.txt.
UNPINNED := ^(torch|torchvision|triton|(nvidia|cuda)-[a-z0-9-]*|sympy|mpmath|networkx)==
DEMO := runs/demo-weights
# The source scenes of configs/cycle/demo-full.yaml; a test compares them.
SOURCE_TRAIN := --recordings=24 --frames=30 --hour='[12, 15]'
SOURCE_VAL := --recordings=6 --frames=12 --hour='[12, 15]' --first-recording=100
SOURCE := --data.train='["$(DEMO)/train/annotations.json"]' --data.val='["$(DEMO)/val/annotations.json"]'

.DEFAULT_GOAL := help
.PHONY: help demo demo-full test docs format lint types unit fuzz audit constraints demo-weights clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: .venv/installed ## A short cycle on synthetic traffic that grows dark; ends with a table and a report
	$(BIN)/cahqp cycle run --plan configs/cycle/demo.yaml

demo-full: .venv/installed ## The same cycle with more frames and three times the steps
	$(BIN)/cahqp cycle run --plan configs/cycle/demo-full.yaml

test: ## Formatter, linter, strict types and all tests
	@$(MAKE) --no-print-directory lint types unit

# The variable silences an announcement of the theme's authors.
docs: .venv/installed-dev ## Build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: .venv/installed-dev ## Format the code and apply the linter's fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: .venv/installed-dev ## Check format, lint rules and import layers, change nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: .venv/installed-dev ## Check types strictly
	$(BIN)/mypy

# One thread per process: the tests' tensors are small, and threads of two processes would compete.
unit: .venv/installed-dev ## Run the tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n $(PYTEST_WORKERS) --dist worksteal --durations=10

# Seconds for each external format; `make test` takes 2.
FUZZ_SECONDS ?= 600

fuzz: .venv/installed-dev ## Read changed files of every external format for FUZZ_SECONDS each, with other seeds each time
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$$(date +%s) OMP_NUM_THREADS=1 $(BIN)/pytest tests/fuzz -rP

# pip-audit has an environment of its own: what it depends on would otherwise decide the versions under test.
audit: ## Compare constraints.txt with the known vulnerabilities of the Python package index; needs a network
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

constraints: .venv/installed-dev ## Write constraints.txt from .venv; install without it first to take newer releases
	{ grep '^#' constraints.txt; $(BIN)/pip freeze --exclude-editable | grep -viE '$(UNPINNED)'; } > constraints.new
	mv constraints.new constraints.txt

demo-weights: .venv/installed ## Train the demo's source models again and write weights/
	$(BIN)/cahqp scenes --output=$(DEMO)/train --seed=0 $(SOURCE_TRAIN)
	$(BIN)/cahqp scenes --output=$(DEMO)/val --seed=0 $(SOURCE_VAL)
	$(BIN)/cahqp fit --config=configs/teacher/demo.yaml $(SOURCE) --output=$(DEMO)/teacher --seed=0
	$(BIN)/cahqp fit --config=configs/student/demo.yaml $(SOURCE) --output=$(DEMO)/student --seed=0
	mkdir -p weights
	$(BIN)/python -m cahqp.detectors.shrink $(DEMO)/teacher/model.safetensors weights/demo-teacher.safetensors
	$(BIN)/python -m cahqp.detectors.shrink $(DEMO)/student/model.safetensors weights/demo-student.safetensors

clean: ## Remove the environment and all caches; runs/ and weights/ stay
	rm -rf .venv .venv-audit build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(PIP_FLAGS) --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed $@
