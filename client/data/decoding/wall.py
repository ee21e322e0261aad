"""The wall around all decoders: whatever one does to a damaged file costs that file, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedgraft.client.data.decoding.unusable import FaultyError, UnusableError
from fedgraft.common.base.errors import ENDS


@contextmanager
def wall(reason: str) -> Iterator[None]:
    """Whatever is raised within becomes UnusableError with `reason`; `too_large` where memory ran out.

    Decoders and parsers raise what they like on damaged data, and those in Rust panic with what is no Exception.
    """
    try:
        yield
    except (UnusableError, FaultyError, *ENDS):
        raise
    except MemoryError:
        raise UnusableError("too_large") from None
    except BaseException:
        raise UnusableError(reason) from None
