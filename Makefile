# What a developer or a newcomer types. Everything is installed into .venv, nothing outside it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# `make fast ROOM=client/privacy`: the quick tests of one room. A test lies in tests/<tier>/<package>/<room>/, so a
# room's tests are those in the folders of its name. ROOM=client takes all rooms of a package.
ROOM ?=
QUICK := not slow and not learning and not ray and not gpu and not deployment

.PHONY: simulate test lint fast format clean

simulate: $(VENV)/installed
	$(BIN)/fedgraft simulate configs/studies/quickstart.yaml --out runs/quickstart-$$(date +%Y%m%d-%H%M%S)

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest --numprocesses 2

fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 -m "$(QUICK)" $(if $(ROOM),$(or $(wildcard tests/*/$(ROOM)),$(error no tests lie in tests/*/$(ROOM))))

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
