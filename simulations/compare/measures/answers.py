"""What a model says of a site's test cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answers:
    """Of a site's cases whose target is known: outputs, targets, and whose they are, patients 0.. (N,).

    Outputs and targets are as `predictions` gives them: logits (N, classes) and classes (N,); logits (N, labels) and
    1, 0 or NaN; values (N,) in their unit, both; of masks rows (N, 5), see `mask_rows`, and zeros.
    """

    outputs: np.ndarray
    targets: np.ndarray
    patients: np.ndarray


MERGED = "*"
"""The name of the one model that all sites share; a site's own model has the site's name, which is never this."""

Found = dict[str, dict[str, dict[str, Answers]]]
"""By model, site and task."""
