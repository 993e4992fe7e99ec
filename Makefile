# Two commands do everything: `make demo` and `make test`. Both make .venv, install what they need and say so.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# `make demo EXTRA=gpu` takes FAISS for the GPU instead; never both.
EXTRA ?= cpu
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check bench system label-studio clean

demo: $(VENV)/.installed-$(EXTRA) ## draw faces, open the labeling page on them
	$(BIN)/annotator demo

# About half of the tests, by time: they run beside the others, and what they say comes at the end.
BESIDE := tests/labelstudio tests/loop tests/test_readme.py

test: $(VENV)/.installed-dev system ## run the tests
	@$(BIN)/python -m pytest $(BESIDE) > $(VENV)/beside.log 2>&1 & half=$$!; \
	trap 'kill $$half' INT TERM; \
	$(BIN)/python -m pytest $(BESIDE:%=--ignore=%); others=$$?; \
	wait $$half; beside=$$?; \
	echo "beside them, $(BESIDE):"; cat $(VENV)/beside.log; \
	exit $$((others || beside))

check: $(VENV)/.installed-dev ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev ## every benchmark; takes a while
	for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python -m tests.benchmarks.$$(basename $$script .py) || exit 1; done

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 demo"; exit 1; }
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the project and its libraries into $(VENV) (about 5 GB with PyTorch; the first time takes minutes)"
	@$(PIP) --editable ".[$*]"
	@touch $@

# Chromium for the browser tests and PostgreSQL for the store tests, where apt-get is at hand; tests that need a missing
# one say so and are left out.
system: label-studio
	@sh -c 'if ! command -v chromium >/dev/null || ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then \
		if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
			echo "installing Chromium and PostgreSQL for the tests"; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
				chromium postgresql fonts-dejavu-core >/dev/null; \
		else \
			echo "Chromium or PostgreSQL is missing: tests that need it are left out (install: chromium postgresql)"; \
		fi; fi'

# A real Label Studio in an environment of its own, kept in the user's cache folder for later runs and other checkouts.
label-studio:
	@$(PYTHON) tests/labelstudio/install.py

clean: ## remove the virtual environment and the demo workspace
	rm -rf $(VENV) demo-workspace
