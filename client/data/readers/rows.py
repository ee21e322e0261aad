"""Rows to ask a model about: of a CSV table, or of a file of features."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.readers.features import read_features
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import Table
from fedgraft.client.data.tables.table import read_inputs
from fedgraft.common.study.inputs import FeaturesInput, TableInput


def read_rows(path: Path, columns: TableInput) -> tuple[Table, NDArray[np.float32], Counter[str]]:
    """A file's rows, their inputs (N, width) not yet standardised, and problems by reason.

    DataError if columns are missing or words mean nothing, or if features were made by another extractor.
    """
    if not isinstance(columns, FeaturesInput):
        return read_inputs(path, columns)
    found = read_features(path, CohortSpec(kind="features", root=path), columns)
    return found.table, found.features, Counter()
