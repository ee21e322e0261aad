"""Plug-ins by kind and name: entry points of distributions, and what was registered in this process.

Names are told from the distributions' descriptions; code is imported when its name is used, and not before. A name that
two of them have is an error where it is used: nobody could tell which of them a study means.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from fedgraft.common.base.errors import ENDS, FedgraftError, InputError
from fedgraft.common.config.suggest import instead
from fedgraft.common.plugins.entry_points import points_of
from fedgraft.common.plugins.installed import digest_of, digest_of_code, version_of
from fedgraft.common.plugins.plugin import LOCAL, Plugin, canonical


class Kind(StrEnum):
    """What can be added; entry points of the group `fedgraft.KIND` are of it. A new kind is one more line."""

    BACKBONES = "backbones"
    LOSSES = "losses"
    METRICS = "metrics"
    READERS = "readers"
    METHODS = "methods"
    TRACKERS = "trackers"

    @property
    def word(self) -> str:
        """One of it, as messages say: "backbone", "loss"."""
        return self.removesuffix("es") if self.endswith("sses") else self.removesuffix("s")

    @property
    def names(self) -> tuple[str, str]:
        """What its names are like: a pattern, as studies hold them to it, and the same in words."""
        if self in (Kind.LOSSES, Kind.METRICS):
            return r"[a-z][a-z0-9_]{0,31}", "Up to 32 small letters, digits and '_', a letter first,"
        return r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", "Up to 64 letters, digits, '.', '_' and '-'"

    @property
    def sees_data(self) -> bool:
        """Whether its code runs at a site, on the site's data; a tracker runs where the coordinator is."""
        return self is not Kind.TRACKERS


@dataclass(frozen=True)
class PluginSource:
    """Where the plug-in of a name comes from; `get` imports it."""

    name: str
    plugin: Plugin
    get: Callable[[], object]


_registered: dict[tuple[Kind, str], PluginSource] = {}
_places: list[str] = []
"""Files and modules that were loaded here and register something, for processes that are to know the same."""
_loading: list[Plugin] = []
"""What is being loaded now, the innermost last."""
_guard: ContextVar[Callable[[Plugin], None] | None] = ContextVar("guard", default=None)
_digests: dict[str, str] = {}
"""By distribution what its files were when its code was first imported here: what is replaced later does not run."""


def register(kind: Kind, name: str, thing: object) -> None:
    """Let `thing` be found under this name in this process; again under the same name it takes the old one's place.

    A file that was tried out with this, and has gone into a distribution whose entry point names the same, is that
    distribution's and no second one. InputError for a name that a study could not write.
    """
    pattern, letters = kind.names
    if not (isinstance(name, str) and re.fullmatch(pattern, name)):
        raise InputError(f"{name!r} is no name for a {kind.word}.", fix=f"{letters} make one.")
    if any(point.name == name and point.module == _caller().get("__name__") for point in points_of(kind)):
        return
    whose = _loading[-1] if _loading else _whose(_caller(), name, thing)
    _registered[kind, name] = PluginSource(name, whose, lambda: thing)


@contextmanager
def loading(place: str, plugin: Plugin) -> Iterator[None]:
    """What is registered meanwhile comes from this file or module. InputError if nothing is."""
    before = dict(_registered)
    _loading.append(plugin)
    try:
        yield
    finally:
        _loading.pop()
    if not any(found.plugin == plugin for found in _registered.values()):
        _registered.clear()
        _registered.update(before)
        raise InputError(f"{place}: registers nothing.", fix="Let it call fg.register_backbone(NAME, FACTORY) or such.")
    _keep_place(place)


@contextmanager
def guarded(demand: Callable[[Plugin], None]) -> Iterator[None]:
    """Nothing that would see a site's data is imported meanwhile of which `demand` raises."""
    token = _guard.set(demand)
    try:
        yield
    finally:
        _guard.reset(token)


def names(kind: Kind) -> list[str]:
    """All that there is of a kind besides fedgraft's own."""
    return sorted({name for each, name in _registered if each is kind} | {point.name for point in points_of(kind)})


def source(kind: Kind, name: str) -> PluginSource | None:
    """Where the plug-in of this name comes from; None if there is none. InputError if two distributions have one."""
    own = [_registered[kind, name]] if (kind, name) in _registered else []
    found = own + [_of(point) for point in points_of(kind) if point.name == name]
    if len(found) > 1:
        who = " and ".join(str(one.plugin) for one in found)
        raise InputError(f"{who} both have a {kind.word} {name!r}.", fix="Remove one, or give it another name.")
    return found[0] if found else None


def load(kind: Kind, name: str, own: Iterable[str] = ()) -> Any:
    """The plug-in itself. InputError for a name that nobody has (`own` are fedgraft's), or that cannot be imported."""
    found = source(kind, name)
    if found is None:
        raise InputError(f"There is no {kind.word} {name!r}{instead(name, [*own, *names(kind)])}.")
    if kind.sees_data and (guard := _guard.get()) is not None:
        guard(found.plugin)
    if kind.sees_data and not found.plugin.is_local and found.plugin.key not in _digests:
        _digests[found.plugin.key] = digest_of(found.plugin.distribution)
    try:
        return found.get()
    except (FedgraftError, *ENDS):
        raise
    except BaseException as error:  # a module that is imported may raise anything
        raise InputError(f"The {kind.word} {name!r} of {found.plugin} cannot be loaded: {_said(error)}.") from error


def loaded_digest(plugin: Plugin) -> str:
    """The digest of what runs here of a plug-in: of what was imported, else of what is installed or loaded.

    InputError if that is nothing, or if the files are others now than when they were imported.
    """
    if plugin.is_local:
        return plugin.version.removeprefix(LOCAL)
    now = digest_of(plugin.distribution)
    if _digests.get(plugin.key, now) != now:
        raise InputError(
            f"{plugin.distribution} was replaced after this process had loaded it.", fix="Start this process again."
        )
    return now


def version_here(plugin: Plugin) -> str | None:
    """The version that is installed, or the content that is loaded, of the plug-in of this name; None for none."""
    if not plugin.is_local:
        return version_of(plugin.distribution)
    here = {one.plugin for one in _registered.values() if one.plugin.key == plugin.key}
    return plugin.version if plugin in here else next((one.version for one in here), None)


def providers() -> dict[str, list[tuple[Kind, str]]]:
    """By distribution that is installed here what it brings, as (kind, name)."""
    found: dict[str, list[tuple[Kind, str]]] = {}
    for kind in Kind:
        for point in points_of(kind):
            found.setdefault(_of(point).plugin.distribution, []).append((kind, point.name))
    return found


def places(plugins: Iterable[Plugin]) -> tuple[str, ...]:
    """Files and modules that another process must load to know these as well.

    InputError for what was registered outside of any file, which no other process can load.
    """
    for plugin in plugins:
        if plugin.distribution.startswith(SESSION):
            raise InputError(
                f"{plugin.distribution.removeprefix(SESSION)!r} was registered in this session, and other processes do "
                "not know it.",
                fix="Write it into a file and load that (fg.load_plugin, or --plugin FILE), or use engine inprocess.",
            )
    return tuple(_places)


SESSION = "session-"
"""Begins what stands for the file of something that was typed in a notebook or at a prompt, before its name."""


def _keep_place(place: str) -> None:
    if place not in _places:
        _places.append(place)


def _of(point: EntryPoint) -> PluginSource:
    assert point.dist is not None  # entry points are read from distributions
    plugin = Plugin(distribution=canonical(point.dist.metadata["Name"]), version=point.dist.version)
    return PluginSource(point.name, plugin, point.load)


def _caller() -> Mapping[str, Any]:
    """The names of the module that called, which is none of fedgraft's."""
    frame = sys._getframe(1)
    while str(frame.f_globals.get("__name__")).partition(".")[0] == "fedgraft" and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_globals


def _whose(module: Mapping[str, Any], name: str, thing: object) -> Plugin:
    """The file that registers something, by its content; of what was typed in a session, its text."""
    file = module.get("__file__")
    if module.get("__name__") != "__main__" and file is not None and Path(file).is_file():
        _keep_place(str(Path(file).resolve()))
        return Plugin(distribution=file_name(Path(file)), version=LOCAL + digest_of_code(Path(file)))
    try:
        text = inspect.getsource(thing)  # type: ignore[arg-type]  # whatever has none raises
    except (OSError, TypeError):
        text = getattr(thing, "__qualname__", type(thing).__qualname__)
    return Plugin(distribution=SESSION + name, version=LOCAL + hashlib.sha256(text.encode()).hexdigest())


def file_name(path: Path) -> str:
    """A file's name as a study may write it."""
    return "".join(each if each.isascii() and (each.isalnum() or each in "._-") else "_" for each in path.name)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
