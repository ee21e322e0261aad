"""Rows as a pandas DataFrame, where pandas is there: fedgraft itself does not need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.common.base.errors import InputError


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A DataFrame of the rows. InputError if pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise InputError("pandas is not installed.", fix="Install it: pip install pandas.") from None
    return pandas.DataFrame(list(rows))
