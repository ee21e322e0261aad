# What a developer or a newcomer types. Everything is installed into .venv, nothing outside it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# `make fast ROOM=client/privacy`: the quick tests of one room. A test lies in tests/<tier>/<package>/<room>/, so a
# room's tests are those in the folders of its name. ROOM=client takes all rooms of a package.
ROOM ?=
QUICK := not slow and not learning and not ray and not gpu and not deployment

.PHONY: simulate test lint fast nightly mutants format lock sbom clean docs docs-serve

simulate: $(VENV)/installed
	$(BIN)/fedgraft simulate configs/studies/quickstart.yaml --out runs/quickstart-$$(date +%Y%m%d-%H%M%S)

# What servers, sites, workers and decoders import is compiled once before the tests, which start hundreds of them: where
# PYTHONDONTWRITEBYTECODE is set, as images of Python have it, each would compile all of it again, 3 s of a processor.
STARTED := torch._dynamo, fedgraft.client.runtime.app, fedgraft.client.cli.deployed_commands, \
	fedgraft.client.data.decoding.worker, fedgraft.server.rounds.app, fedgraft.server.operations.superlink, \
	fedgraft.simulations.engines.workers.worker, fedgraft.simulations.compare.command, fedgraft.cli, \
	flwr.superlink.cli, flwr.supercore.cli, flwr.supernode.cli, pytest, xdist.remote

# Three workers for two cores: one of them waits for servers nearly all the time (tests/helpers/schedule.py).
test: $(VENV)/installed-dev lint
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c "import $(STARTED)"
	$(BIN)/python -m pytest --numprocesses 3

fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 -m "$(QUICK)" $(if $(ROOM),$(or $(wildcard tests/*/$(ROOM)),$(error no tests lie in tests/*/$(ROOM))))

# What CI tries at the same moments every time, at moments of its own; NIGHTS times. A failure prints FEDGRAFT_KILLS=…
# And laws that hold for any input, for other inputs than CI's.
NIGHTS ?= 5
nightly: $(VENV)/installed-dev
	for night in $$(seq $(NIGHTS)); do \
	  FEDGRAFT_KILLS=random $(BIN)/python -m pytest tests/deployment/test_kills.py || exit 1; \
	  $(BIN)/python -m pytest --hypothesis-profile nightly $$(grep -rlE '^ *@given' tests) || exit 1; done

# Breaks one thing at a time in PATHS and runs the quick tests of its room; what nobody notices is printed.
PATHS ?= server/aggregation common/metrics client/data/cohorts client/privacy client/data/decoding
mutants: $(VENV)/installed-dev
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/mutation/mutate.py $(PATHS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What a hospital installs, to the byte: pip install --require-hashes -r requirements.lock. Versions are those that are
# installed here; deploy/build.lock is what builds the wheel in the image, and the pip of install kits.
LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header \
	--python-version 3.11 --python-platform x86_64-manylinux_2_31 --constraint $(VENV)/versions.txt
lock: $(VENV)/installed
	$(BIN)/python -m pip freeze --exclude-editable | grep -v ' @ ' > $(VENV)/versions.txt
	$(BIN)/python -c "import tomllib, pathlib; \
	  print(*tomllib.loads(pathlib.Path('pyproject.toml').read_text())['build-system']['requires'], 'pip', sep='\n')" \
	  > $(VENV)/build.in
	$(LOCK) pyproject.toml --output-file requirements.lock
	$(LOCK) $(VENV)/build.in --output-file deploy/build.lock

# What that is, with licences, as CycloneDX.
sbom: $(VENV)/installed
	$(BIN)/uv tool run --quiet --from 'cyclonedx-bom==7.5.0' cyclonedx-py environment $(BIN)/python \
	  --pyproject pyproject.toml --output-reproducible --of JSON --sv 1.6 --output-file $(VENV)/environment.json
	$(BIN)/python deploy/sbom.py $(VENV)/environment.json requirements.lock deploy/sbom.json

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# Not compiled: that takes a minute for all of it, and Python compiles the part that is used when it is used.
$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev,ray]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV)

# The documentation as a site, into site/; a broken link or an unknown name is an error.
docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

docs-serve: $(VENV)/installed-dev
	$(BIN)/mkdocs serve
