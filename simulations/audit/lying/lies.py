"""Instructions that differ from an honest one, field by field: what the type of a field allows, a lie may say.

Nothing here knows which fields an instruction has. One that is added later is lied about as well; one of a type that
no rule is for is an error.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

import numpy as np

from fedgraft.common.protocol.instructions import Instruction

_STRANGER = "stranger"
_HEX = 64

_SIMPLE: dict[Any, Callable[[Any], list[Any]]] = {
    bool: lambda value: [not value],
    int: lambda value: sorted({value + 1, value - 1, value + 7, -value, 0, -1, 10**6, 2**63} - {value}),
    float: lambda value: [value + 1, -value - 1, 0.0, float("inf"), float("nan")],
    str: lambda value: sorted({"", _STRANGER, "0" * _HEX, value[::-1], value.upper()} - {value}),
}


def lies_about(honest: Instruction, rng: np.random.Generator) -> list[tuple[str, Instruction]]:
    """All that one field alone can say otherwise, each with the field's name."""
    hints = typing.get_type_hints(type(honest))
    return [
        (field.name, replace(honest, **{field.name: other}))
        for field in fields(honest)
        for other in others(hints[field.name], getattr(honest, field.name), rng)
    ]


def mixed(
    lies: list[tuple[str, Instruction]], honest: Instruction, count: int, rng: np.random.Generator
) -> list[tuple[str, Instruction]]:
    """`count` instructions that lie about several fields at once, each with the fields' names."""
    found = []
    for _ in range(count):
        chosen = {lies[at][0]: lies[at][1] for at in rng.integers(len(lies), size=rng.integers(2, 5))}
        said = {name: getattr(lie, name) for name, lie in chosen.items()}
        found.append((" and ".join(sorted(said)), replace(honest, **said)))
    return found


def others(hint: Any, value: Any, rng: np.random.Generator) -> Iterator[Any]:
    """Values of the type `hint` that are not `value`. TypeError for a type that no rule is for."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is not None and type(None) in parts:
            yield None
        for part in parts:
            if part is not type(None):
                like = _example(part) if value is None else value
                yield from ([like] if value is None else [])
                yield from (other for other in others(part, like, rng) if other is not None)
    elif origin is Literal:
        yield from (word for word in parts if word != value)
    elif hint in _SIMPLE:
        yield from _SIMPLE[hint](value)
    elif hint is np.ndarray:
        yield from _other_arrays(value)
    elif origin is not None and issubclass(origin, Mapping):
        yield from _other_mappings(parts[1], value, rng)
    elif is_dataclass(hint):
        kinds = typing.get_type_hints(hint)
        for field in fields(hint):
            mine = getattr(value, field.name)
            yield from (replace(value, **{field.name: other}) for other in others(kinds[field.name], mine, rng))
    else:
        raise TypeError(f"no lies are known about a field of type {hint}")


def _other_mappings(kind: Any, value: Mapping[str, Any], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Without one entry or all, with one more, and with one that says something else, of every kind of name."""
    yield from ([{}] if value else [])
    like = next(iter(value.values()), None)
    yield dict(value) | {_STRANGER: _example(kind) if like is None else like}
    by_kind: dict[str, list[str]] = {}
    for key in value:
        by_kind.setdefault(key.partition("/")[0] if "/" in key else "", []).append(key)
    for keys in by_kind.values():
        key = keys[int(rng.integers(len(keys)))]
        yield {name: one for name, one in value.items() if name != key}
        yield {name: one for name, one in value.items() if name not in keys}
        yield from (dict(value) | {key: other} for other in others(kind, value[key], rng))


def _other_arrays(value: np.ndarray) -> Iterator[np.ndarray]:
    """Other shapes and types, and other numbers of the same."""
    yield value.ravel()[:0]
    yield value[None]
    yield value.ravel() if value.ndim != 1 else value.reshape(-1, 1)
    yield value.astype(np.float16 if value.dtype != np.float16 else np.float32)
    yield np.asarray(value + np.ones((), value.dtype))  # of one number NumPy makes no array
    if np.issubdtype(value.dtype, np.floating):
        yield np.full_like(value, np.nan)


def _example(hint: Any) -> Any:
    """Some value of a type, where an honest instruction has none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return parts[0]
    if origin is not None and issubclass(origin, Mapping):
        return {_STRANGER: _example(parts[1])}
    if is_dataclass(hint):
        return hint(**{field.name: _example(typing.get_type_hints(hint)[field.name]) for field in fields(hint)})  # type: ignore[operator]
    if hint is np.ndarray:
        return np.zeros(3, np.float32)
    return hint(1)
