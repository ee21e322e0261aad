"""What a backbone is to the rest of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Backbone:
    """A network without head, the width of its features, and the name that its own last layer had, "" if none."""

    module: nn.Module
    feature_dim: int
    head: str = ""
    ties_cases: bool = False
    """Whether what it says of a case in training depends on others in the batch, other than by norm layers."""
    draws: bool = False
    """Whether it was seen to draw in training, by layers of whatever make."""
    unseparated: str = ""
    """A layer whose adapter does not see each case once, by itself, so that no case has a gradient there."""
