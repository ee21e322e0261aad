# What a developer or a newcomer types. Everything is installed into .venv, nothing outside it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: simulate test lint fast format clean

simulate: $(VENV)/installed
	$(BIN)/fedgraft simulate configs/studies/quickstart.yaml --out runs/quickstart-$$(date +%Y%m%d-%H%M%S)

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest --numprocesses 2

fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 -m "not slow and not learning and not ray and not gpu and not deployment"

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev,ray]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV)
