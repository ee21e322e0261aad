"""What somebody meant who typed a name that does not exist."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel


def instead(name: str, known: Iterable[str]) -> str:
    """`; did you mean pool? There are: inprocess, pool, ray`, to go after a message; "" if nothing is known."""
    names = sorted(map(str, known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return f"{meant} there are: {', '.join(names)}".replace("? there", "? There") if names else ""


_NUMBER = re.compile(r"([+-]?)0*(\d+)(?:[.,](\d*?)0*)?")


@lru_cache(maxsize=4096)
def plain_word(word: str) -> str:
    """A word without case, its accents in one form; of a number its digits alone, as 1, 01 and 1.0 are one."""
    word = word.strip()
    number = _NUMBER.fullmatch(word)
    if number is not None:
        sign, whole, part = number.groups()
        return f"{'-' if sign == '-' else ''}{whole}{f'.{part}' if part else ''}"
    return unicodedata.normalize("NFC", word.casefold())


def keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys that a mapping at this place of a file may have, by the model of the file. `place` is pydantic's."""
    here = [model]
    for part in place:
        below = [found for one in here if (field := one.model_fields.get(str(part))) for found in _models(field)]
        tagged = [one for one in here if str(part) in _tags(one)]
        here = below or tagged or here
    return sorted({name for one in here for name in (*one.model_fields, *getattr(one, "WRITTEN_TOO", ()))})


def _models(field: Any) -> Iterator[type[BaseModel]]:
    """All models in the type of a field."""
    pending = [field.annotation]
    while pending:
        found = pending.pop()
        if isinstance(found, type) and get_origin(found) is None and issubclass(found, BaseModel):
            yield found
        pending += get_args(found)


def _tags(model: type[BaseModel]) -> set[str]:
    """The words by which a model is told from others in a union."""
    return {
        str(word)
        for field in model.model_fields.values()
        if get_origin(field.annotation) is Literal
        for word in get_args(field.annotation)
    }
