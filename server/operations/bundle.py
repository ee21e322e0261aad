"""The bundle that Flower wants for a run: a manifest that names the installed apps, and no code."""

from __future__ import annotations


def manifest(engine: str = "") -> str:
    """The bundle's pyproject.toml; `engine` is what the run's result says of how it was carried out."""
    return _MANIFEST.replace('engine = ""', f'engine = "{engine}"')


_MANIFEST = """\
[project]
name = "fedgraft"
version = "0.1.0"
dependencies = []

[tool.flwr.app]
publisher = "fedgraft"
fab-include = ["manifest.yaml"]

[tool.flwr.app.components]
serverapp = "fedgraft.server.rounds.app:app"
clientapp = "fedgraft.client.runtime.app:app"

[tool.flwr.app.config]
run = ""
engine = ""
synthetic = false
ask = false
mark = ""
patience_s = 0.0
away_s = 0.0
"""
