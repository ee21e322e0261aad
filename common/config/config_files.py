"""YAML files that people write: read strictly, with every fault told by its key and what to do about it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fedgraft.common.base.errors import StudyError
from fedgraft.common.config.renamed import new_name
from fedgraft.common.config.suggest import instead, keys_at

_BOOLEAN, _WHOLE, _DECIMAL = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float"))
_LISTS: Mapping[str, str] = {
    "tuple_type": "must be a list, such as [first, second]",
    "dict_type": "must be a mapping, such as {key: value}",
}


class _Strict(yaml.SafeLoader):
    """YAML in which a key stands once in a mapping; the standard says so, and PyYAML lets the last one win.

    Only true and false are true and false, as in YAML 1.2: yes, no, on and off are words, such as the names of classes.
    So are 010, which would be 8, 0x1F, and 12:30, which would be 750.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML declares it
        first: [(tag, pattern) for tag, pattern in found if tag not in (_BOOLEAN, _WHOLE, _DECIMAL)]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As PyYAML's; ConstructorError with both lines for a key that comes twice."""
        places: dict[Hashable, int] = {}
        for key, _ in node.value:
            # Anchored mappings that are merged in (<<) may be overridden, which is what they are for.
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key), key.start_mark.line + 1
            if name in places:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice, on lines {places[name]} and {line}", None
                )
            places[name] = line
        return super().construct_mapping(node, deep)


_Strict.add_implicit_resolver(_BOOLEAN, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Strict.add_implicit_resolver(_WHOLE, re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Strict.add_implicit_resolver(
    _DECIMAL,
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


NO_MAPPING = "must be a mapping of keys to values"


def parse_yaml(text: str) -> Any:
    """The value in a YAML text; YAMLError if it is none, or gives a key twice."""
    try:
        return yaml.load(text, _Strict)  # noqa: S506 - a SafeLoader that is stricter still
    except RecursionError:
        raise yaml.YAMLError("its values stand too deep in each other") from None
    except (ValueError, TypeError) as error:  # a date or a number that is none, a key that cannot be one
        raise yaml.YAMLError(f"a value is not what it looks like: {error}") from None


def _parse(path: Path) -> Any:
    """What a file says. JSON, which fedgraft writes where nobody will edit it, is read as such: that is far quicker."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    return parse_yaml(text)  # which also says in what line something is wrong


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _no_number(word: str) -> None:
    raise ValueError(word)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; StudyError if it cannot be read, is no YAML, or is no mapping."""
    try:
        data = _parse(path)
    except FileNotFoundError:
        raise StudyError(str(path), ["there is no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(str(path), [f"cannot be read: {error}"]) from None
    except yaml.constructor.ConstructorError as error:
        raise StudyError(str(path), [str(error.problem)]) from None
    except yaml.YAMLError as error:
        raise StudyError(str(path), [f"is not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(data, dict):
        raise StudyError(str(path), [NO_MAPPING])
    return data


def describe(error: ValidationError, model: type[BaseModel] | None = None) -> list[str]:
    """One line per fault: the dotted key, what is wrong, and the value found.

    By the `model` of the whole file it is said what was meant by a key that does not exist.
    """
    lines = []
    faults = error.errors(include_url=False, include_context=False)
    for fault in faults:
        # A list whose items are all faulty also counts as too short, which says nothing new.
        if fault["type"] == "too_short" and any(_within(other["loc"], fault["loc"]) for other in faults):
            continue
        key = ".".join(str(part) for part in _as_written(fault["loc"])) or "the file as a whole"
        message = new_name(fault) or _no_such_key(fault, model) or _LISTS.get(fault["type"])
        message = message or fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "string_type" and not isinstance(fault["input"], list | dict):
            message += "; YAML takes this for something else than a word, so put it in quotes"
        shown = repr(fault["input"])
        value = f" (found {shown})" if len(shown) <= 60 and fault["type"] != "missing" else ""
        lines.append(f"{key}: {message}{value}")
    return lines


def _no_such_key(fault: Mapping[str, Any], model: type[BaseModel] | None) -> str:
    if fault["type"] != "extra_forbidden" or model is None:
        return ""
    *place, name = fault["loc"]
    return f"there is no such key{instead(str(name), keys_at(model, tuple(place)))}"


def _as_written(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A fault's key without the kind of task, which pydantic puts between."""
    return place[:2] + place[3:] if place[:1] == ("tasks",) else place


def _within(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def override(data: dict[str, Any], item: str) -> str | None:
    """Set `dotted.key=value` in place; the fault as text, or None."""
    key, equals, text = item.partition("=")
    if not equals or not key:
        return f"--set {item}: must look like key=value"
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return f"--set {item}: the value is not valid YAML"
    fault = put(data, key, value)
    return fault and f"--set {item}: {fault}"


def of_overrides(faults: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The faults of a file, those that `--set` has brought in with what was typed."""
    typed = {item.partition("=")[0]: item for item in overrides}
    return [next((f"--set {item}: {f}" for key, item in typed.items() if _about(f, key)), f) for f in faults]


def _about(fault: str, key: str) -> bool:
    place, typed = fault.partition(":")[0].split("."), key.split(".")
    rest = iter(place)  # in which kinds of losses and stages stand between, as pydantic tells them
    return all(part in rest for part in typed) or typed[: len(place)] == place


def put(data: dict[str, Any], key: str, value: Any) -> str | None:
    """Set a dotted key in place, numbers being places in a list; the fault as text, or None."""
    *parents, last = key.split(".")
    here: Any = data
    for part in parents:
        step = int(part) if isinstance(here, list) and part.isdigit() else part
        if isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
        elif isinstance(here, dict):
            here = here.setdefault(step, {})
        else:
            return f"there is no {part!r} to set a key in"
    if isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        return f"{key} cannot be set"
    return None
