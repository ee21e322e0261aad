"""How far a site has come in a study, on its own disk before it answers: a coordinator's word does not count.

One line per exchange that the site took up, appended: its number, and the stage in which the site worked, or `-`; and
one per greeting. A line that was torn by a crash never led to an answer.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from fedgraft.common.base.disk import read_bytes
from fedgraft.common.base.files import make_folder
from fedgraft.common.study.schedule import Step

_LOOKED = "-"
_GREETED = "greeted"
_TAKEN_UP = re.compile(rb"(?m)^([0-9]+) .")
"""The number of each exchange on a record: the whole of it is read at every visit, however long it is by then."""
_BACK = 1
"""By how many exchanges a coordinator that was started again may be behind: it saves each round after the answers."""


@dataclass(frozen=True)
class _Known:
    """What the first `size` bytes of the file say: last and furthest exchange, stages worked in, whether greeted."""

    size: int = 0
    last: int = 0
    furthest: int = 0
    worked: frozenset[int] = frozenset()
    greeted: bool = False


class Progress:
    """The record of one study at one site. Another process of the site may add to it in between."""

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        """Without `sync` the record survives a kill of the process, not a loss of power: enough for a simulation."""
        self._path = path
        self._place = str(path)
        self._sync = sync
        self._known = _Known()

    @property
    def last(self) -> int:
        """The exchange that was taken up last; 0 at first."""
        return self._read().last

    @property
    def worked(self) -> frozenset[int]:
        """The stages in which the site has worked in this course of the study, as indices into its plan."""
        return self._read().worked

    def greeted(self) -> None:
        """A coordinator has greeted: it may begin anew, or go on from its last checkpoint."""
        if self._read().last:
            self._append(_GREETED)

    def in_turn(self, step: Step) -> bool:
        """Whether the site may take up this step: the next, a later one if it missed some, or the same again.

        After a greeting also the one before the furthest: not the one before the last, or step by step all of them.
        """
        known = self._read()
        again = known.greeted and (step.exchange >= known.furthest - _BACK or step.exchange == 1)
        return step.exchange >= known.last or again

    def begins_anew(self, step: Step) -> bool:
        """Whether this step is the first of a new course, of a study that the site has been in before."""
        return step.exchange == 1 < self._read().last

    def take_up(self, step: Step, *, work: bool) -> None:
        """Put the step on record, before anything of it is done."""
        if self.begins_anew(step):
            set_aside(self._path)
        self._append(f"{step.exchange} {step.stage if work else _LOOKED}")

    def _append(self, words: str) -> None:
        try:
            descriptor = self._open()
        except FileNotFoundError:
            make_folder(self._path.parent)
            descriptor = self._open()
        try:
            # The line before may have been torn by a crash; it must not swallow this one.
            data = f"\n{words}\n".encode()
            written = os.write(descriptor, data)
            if self._sync:
                os.fdatasync(descriptor)
            if written == len(data) and os.fstat(descriptor).st_size == self._known.size + written:
                # Nobody else has added to it since it was read: what it says now need not be read.
                self._known = replace(_after(self._known, words.split()), size=self._known.size + written)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        return os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _read(self) -> _Known:
        try:
            size = os.stat(self._place).st_size  # noqa: PTH116 - asked at every visit
        except FileNotFoundError:
            size = 0
        if size < self._known.size:
            self._known = _Known()
        if size > self._known.size:
            with self._path.open("rb") as file:
                file.seek(self._known.size)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            for line in whole.decode("ascii", "replace").splitlines():
                self._known = _after(self._known, line.split())
            self._known = replace(self._known, size=self._known.size + len(whole))
        return self._known


def progress_file(folder: Path, digest: str) -> Path:
    """Where the record of a study is, in the folder of what lasts of it."""
    return folder / "progress" / f"{digest}.log"


def taken_up(path: Path) -> frozenset[int]:
    """All exchanges on a record, those of earlier courses of the study as well."""
    folder, own = str(path.parent), path.name
    while True:
        try:
            names = os.listdir(folder)  # noqa: PTH208 - asked at every visit
        except FileNotFoundError:
            return frozenset()
        with contextlib.suppress(FileNotFoundError):  # another process has set one aside, under a name that is new
            of = [path if name == own else path.with_name(name) for name in names if _is_of(name, own)]
            numbers = [_numbers(one) for one in of]
            return numbers[0] if len(numbers) == 1 else frozenset().union(*numbers)


def _is_of(name: str, own: str) -> bool:
    """Whether a file in the folder is the record of this name, or one that was set aside."""
    return name.startswith(own) and (len(name) == len(own) or name.startswith(f"{own}.before-"))


@dataclass(frozen=True)
class _Read:
    """What a file said when all of it was last read."""

    data: bytes
    numbers: frozenset[int]


_READ: dict[Path, _Read] = {}
"""By path, for as many records as one process of a simulation may have."""
_MOST_READ = 4096


def _numbers(path: Path) -> frozenset[int]:
    """The exchanges on one file. All of it is read every time; what it said before is not worked out again."""
    data, before = read_bytes(path), _READ.get(path)
    if before is not None and before.data == data:
        return before.numbers
    if before is not None and before.data.endswith(b"\n") and data.startswith(before.data):
        numbers = before.numbers.union(map(int, _TAKEN_UP.findall(data, len(before.data))))
    else:
        numbers = frozenset(map(int, _TAKEN_UP.findall(data)))
    if len(_READ) >= _MOST_READ:
        _READ.clear()
    _READ[path] = _Read(data, numbers)
    return numbers


def _after(known: _Known, words: list[str]) -> _Known:
    match words:
        case [word] if word == _GREETED:
            return replace(known, greeted=True)
        case [number, stage] if number.isdigit() and (stage.isdigit() or stage == _LOOKED):
            worked = known.worked | ({int(stage)} if stage.isdigit() else set())
            return _Known(known.size, int(number), max(known.furthest, int(number)), worked)
    return known


def set_aside(path: Path) -> None:
    """Give what is at `path` the first free name after it: nothing of an earlier course of a study is lost."""
    if path.exists():
        names = (path.with_name(f"{path.name}.before-{number}") for number in range(1, 10**6))
        path.rename(next(name for name in names if not name.exists()))
