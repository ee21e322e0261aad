"""Opening the reader of a cohort. One that a plug-in brings is held to what readers promise.

Of its faults the error says whose code it was, and at which file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.kinds import KINDS
from fedgraft.client.data.readers.reader import Case, Contents, Reader
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import ENDS, DataError, FedgraftError
from fedgraft.common.study.inputs import InputSpec
from fedgraft.common.study.tasks import AnyTask

_SLACK = 1e-3
"""How far rounding may carry a shade beyond black or white."""


def open_reader(spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec) -> Reader:
    """The reader of a cohort's kind. DataError if the cohort cannot be read in this way."""
    make = spec.what.reader
    if isinstance(make, str):
        module, _, name = make.partition(":")
        make = getattr(import_module(module), name)
    if spec.kind in KINDS:
        return cast(Reader, make(spec, tasks, wanted))
    return PluggedReader(make, spec, tasks, wanted)


class PluggedReader:
    """A plug-in's reader. DataError for what else it raises than a reader may, and for cases that are none."""

    def __init__(
        self, make: Callable[..., object], spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec
    ) -> None:
        self._kind = spec.kind
        self._reader = cast(Reader, self._tried("cannot be made", lambda: make(spec, tasks, wanted)))

    def read(self, path: Path, name: str) -> Contents:
        """The cases of a file, each looked at as it is asked for."""
        found = self._tried(f"fails at {name}", lambda: self._reader.read(path, name))
        if not isinstance(found, Contents):
            raise self._error(f"gives {type(found).__name__} of {name}, and no Contents")
        return replace(found, cases=self._looked_at(found.cases, name))

    def finish(self) -> Counter[str]:
        """What is odd about all files together."""
        found: Counter[str] = self._tried("fails at the end", self._reader.finish)
        return found

    def _looked_at(self, cases: Iterable[Case], name: str) -> Iterator[Case]:
        each = self._tried(f"fails at {name}", lambda: iter(cases))
        while (case := self._tried(f"fails at {name}", lambda: next(each, None))) is not None:
            if not (isinstance(case, Case) and isinstance(case.values, np.ndarray)):
                raise self._error(f"gives {type(case).__name__} of {name}, and no Case of an array")
            if case.values.ndim > 1 and not _is_shades(case.values):
                raise self._error(
                    f"gives {case.values.dtype} from {case.values.min()} to {case.values.max()} of {name}, where an "
                    "image is floats from 0 to 1, white high",
                    fix="Divide by the largest possible value.",
                )
            yield case

    def _tried(self, where: str, attempt: Callable[[], Any]) -> Any:
        try:
            return attempt()
        except (FedgraftError, UnusableError, MemoryError, *ENDS):
            raise
        except BaseException as error:  # the code of others may raise anything
            raise self._error(f"{where}: {type(error).__name__}: {error}") from error

    def _error(self, what: str, fix: str = "") -> DataError:
        return DataError(f"The reader {self._kind!r} {what}.", fix=fix)


def _is_shades(values: np.ndarray[Any, Any]) -> bool:
    if values.dtype.kind != "f" or not values.size or not np.isfinite(values).all():
        return False
    return bool(values.min() >= -_SLACK and values.max() <= 1 + _SLACK)
