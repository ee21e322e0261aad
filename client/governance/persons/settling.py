"""What a settlement makes of a book of persons that forgot whom people removed: they are removed again.

A removal's signature is over the book as it was then, which is lost. The egress log tells of the removal, and answers
for it. Where the book cannot be read, or lets more stand than the log, it is put aside: people add themselves anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there
from fedgraft.common.identity.person_book import BOOK, PersonBook, Removal


def removals_in(kind: object, words: Mapping[str, Any]) -> Iterator[Removal]:
    """What a line of the egress log tells of removed persons; what cannot be read tells of nothing."""
    told = [words] if kind == "person_removed" else words.get("removed", ()) if kind == "settlement" else ()
    for one in told if isinstance(told, list) else ():
        try:
            yield Removal.model_validate(one)
        except ValidationError:
            continue


def remove_again(home: Path, told: Iterable[Removal]) -> list[dict[str, Any]]:
    """Remove all of whom the log tells once more, if the book does not have it; all removals that are in it then."""
    strictest: dict[str, Removal] = {}
    for one in told:
        known = strictest.get(one.key, one)
        stands = tuple(sorted({*one.stands} & {*known.stands}))
        strictest[one.key] = one.model_copy(update={"stands": stands})
    if not _can_go_on(home, strictest):
        _put_aside(home / BOOK)
    book = PersonBook(home)
    try:
        there = {one.key for one in book.removals()}
    except InputError:  # damaged, and the log tells of nothing that it could have forgotten
        return []
    for key, one in strictest.items():
        if key not in there:
            book.remove_again(one)
    return [one.model_dump(mode="json") for one in book.removals()]


def _can_go_on(home: Path, told: Mapping[str, Removal]) -> bool:
    try:
        there = PersonBook(home).removals()
    except InputError:
        return not told
    return all({*one.stands} <= {*told[one.key].stands} for one in there if one.key in told)


def _put_aside(path: Path) -> None:
    names = (path.with_name(f"{path.name}.before-{number}") for number in range(1, 10**6))
    path.rename(next(name for name in names if not is_there(name)))
