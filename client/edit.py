"""Changing a few values of a file that a person keeps: all other lines stay as they are, with their comments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError
from common.files import write_atomic


def change_values(path: Path, changes: Mapping[str, Any]) -> None:
    """Give top-level keys of a YAML or JSON file other values.

    InputError, and the file as it was, if it is written in a way in which only a person can change it.
    """
    text = path.read_text(encoding="utf-8")
    before = yaml.safe_load(text)
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
