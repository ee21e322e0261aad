"""Files and modules with code of one's own, for simulations: `--plugin my_loss.py`, `fg.load_plugin("my_package")`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from fedgraft.common.base.errors import ENDS, FedgraftError, InputError
from fedgraft.common.plugins.installed import digest_of_code
from fedgraft.common.plugins.plugin import LOCAL, Plugin
from fedgraft.common.plugins.registry import file_name, loading

VARIABLE = "FEDGRAFT_PLUGINS"
"""Names what processes are to load that Flower starts for a simulation, as JSON."""


def load_plugin(place: str | Path) -> Plugin:
    """Run a Python file, a package's folder, or a module by its name, which registers what it brings.

    A file is run anew each time. InputError if there is none, if it raises, or if it registers nothing.
    """
    path = Path(place).expanduser()
    if path.is_file() or path.suffix == ".py" or (path / "__init__.py").is_file():
        return _load_file(path.resolve())
    return _load_module(str(place))


def load_plugins(places: Iterable[str]) -> None:
    """Load all of them, in order."""
    for place in places:
        load_plugin(place)


def environment_for(places: Iterable[str]) -> dict[str, str]:
    """The environment variable by which `load_from_environment` of another process knows them."""
    return {VARIABLE: json.dumps(list(places))}


@cache
def load_from_environment() -> None:
    """Load, once, what the simulation had loaded for which Flower started this process."""
    load_plugins(json.loads(os.environ.get(VARIABLE, "[]")))


def _load_file(path: Path) -> Plugin:
    start = path / "__init__.py" if path.is_dir() else path
    if not start.is_file():
        raise InputError(f"--plugin {path}: there is no such file.")
    plugin = Plugin(distribution=file_name(path), version=LOCAL + digest_of_code(path))
    name = f"fedgraft_plugin_{path.stem}"
    below = [str(path)] if path.is_dir() else None
    spec = spec_from_file_location(name, start, submodule_search_locations=below)
    assert spec is not None
    assert spec.loader is not None
    for old in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
        del sys.modules[old]
    sys.modules[name] = module = module_from_spec(spec)
    try:
        with loading(str(path), plugin):
            spec.loader.exec_module(module)
    except (FedgraftError, *ENDS):
        raise
    except BaseException as error:  # a module that is run may raise anything
        raise InputError(f"--plugin {path}: {type(error).__name__}: {error}") from error
    return plugin


def _load_module(name: str) -> Plugin:
    try:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise InputError(f"--plugin {name}: there is no such file or module.", fix="Give a .py file by its path.")
        code = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        plugin = Plugin(distribution=name, version=LOCAL + digest_of_code(code))
        with loading(name, plugin):
            for old in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
                del sys.modules[old]
            import_module(name)
    except (FedgraftError, *ENDS):
        raise
    except BaseException as error:  # a module that is run may raise anything
        raise InputError(f"--plugin {name}: {type(error).__name__}: {error}") from error
    return plugin
