"""Sums of metrics that plug-ins bring, beside those that a kind of task has anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, kw_only=True)
class WithMore:
    """What all sums of a task have."""

    more: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """By metric its sums over the same cases; what one of two lacks, their sum lacks too."""
