"""Changing a few values of a file that a person keeps: all other lines stay as they are, with their comments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedgraft.common.base.disk import read_bytes
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import write_atomic


def change_values(path: Path, changes: Mapping[str, Any]) -> None:
    """Give top-level keys of a YAML or JSON file other values.

    InputError, and the file as it was, if it is written in a way in which only a person can change it.
    """
    text = read_bytes(path).decode()
    before = yaml.safe_load(text)
    changes = {key: value for key, value in changes.items() if key not in before or before[key] != value}
    if not changes:
        return
    after = text
    try:
        json.loads(text)
    except ValueError:
        for key, value in changes.items():
            after = _changed(after, key, value)
    else:  # JSON has no comments
        after = json.dumps(before | dict(changes), indent=1)
    if _parsed(after) != before | dict(changes):
        keys = ", ".join(f"`{key}`" for key in changes)
        shown = yaml.safe_dump(dict(changes), sort_keys=False)
        raise InputError(f"{path}: {keys} cannot be changed here.", fix=f"Put this in its place by hand:\n{shown}")
    if after != text:
        write_atomic(path, after.encode(), private=True)


def filled(text: str, values: Mapping[str, Any]) -> str:
    """A file that explains its keys, with other values behind them; `values` are all of the file's.

    `text` has one key in a line, those of a block two blanks further in, and explains each behind it. Raises ValueError
    if that is not so.
    """
    lines, block = [], ""
    for line in text.splitlines():
        comment = _comment(line)
        found = _KEY.match(line[: len(line) - len(comment)])
        if found is None:
            if not line or line.lstrip().startswith("#"):  # anything else belongs to a value that is replaced
                lines.append(line)
            continue
        indent, key, said = found.groups()
        block = block if indent else key
        own = values.get(block) if indent else values
        value = own.get(key) if isinstance(own, Mapping) else None
        opens = not indent and not said and isinstance(value, Mapping)
        shown = f"{indent}{key}:" if opens else f"{indent}{key}: {_flow(value)}"
        lines.append(f"{shown:<31} {comment.strip()}".rstrip())
    after = "\n".join(lines) + "\n"
    if _parsed(after) != values:
        raise ValueError("the text does not explain these keys line by line")
    return after


_KEY = re.compile(r"^((?:  )?)([a-z_]+): *(.*?) *$")


def _flow(value: Any) -> str:
    """A value as YAML in one line (flow style), or as JSON where YAML would need more lines."""
    shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    shown = shown.removesuffix("\n...\n").strip()
    return json.dumps(value, ensure_ascii=False) if "\n" in shown else shown


def _changed(text: str, key: str, value: Any) -> str:
    """`text` with the block of a top-level key replaced, or the key added at the end."""
    lines = text.splitlines()
    start = next((at for at, line in enumerate(lines) if re.match(rf"[\"']?{re.escape(key)}[\"']?\s*:", line)), None)
    fresh = yaml.safe_dump({key: value}, sort_keys=False, width=10**6).splitlines()
    if start is None:
        return "\n".join([*lines, *fresh]) + "\n"
    end = start + 1
    for at in range(start + 1, len(lines)):
        if lines[at].startswith((" ", "\t", "- ")):
            end = at + 1
        elif lines[at] and not lines[at].startswith("#"):
            break
    fresh[0] += _comment(lines[start])
    return "\n".join([*lines[:start], *fresh, *lines[end:]]) + "\n"


def _comment(line: str) -> str:
    """The comment at a line's end, with the blanks before it."""
    for found in re.finditer(r"\s+#", line):
        if _parsed(line[: found.start()]) == _parsed(line):
            return line[found.start() :]
    return ""


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
