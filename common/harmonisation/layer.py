"""The layer that takes site effects out of a table's columns, before they are brought to one scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

COMMON = ("level", "spread", "slopes", "centre")
"""Entries of the layer that follow from all sites' sums; the others are each site's own."""


class HarmoniseColumns(nn.Module):
    """ComBat's adjustment: values (N, width) as if every case had been measured at the mean of the sites.

    At first, and at sites that have no effects of their own, columns are what they were. A covariate that is missing
    counts as the mean over sites; a value that is missing stays so.
    """

    level: Tensor
    spread: Tensor
    shift: Tensor
    factor: Tensor
    columns: Tensor
    slopes: Tensor | None
    centre: Tensor | None
    _taken: Tensor

    def __init__(self, width: int, columns: Sequence[int], covariates: Sequence[tuple[int, int]]) -> None:
        """`columns` are adjusted; covariates are spans of columns, a number's of one, a category's of one per word."""
        super().__init__()
        self.spans = tuple(covariates)
        """Of each covariate from where to where it stands among the columns."""
        count = sum(stop - start - (stop - start > 1) for start, stop in covariates)
        self.register_buffer("level", torch.zeros(len(columns)))
        self.register_buffer("spread", torch.zeros(len(columns)))
        self.register_buffer("slopes", torch.zeros(len(columns), count) if count else None)
        self.register_buffer("centre", torch.zeros(count) if count else None)
        self.register_buffer("shift", torch.zeros(len(columns)))
        self.register_buffer("factor", torch.ones(len(columns)))
        self.register_buffer("columns", torch.tensor(list(columns)), persistent=False)
        place = {column: width + number for number, column in enumerate(columns)}
        taken = [place.get(column, column) for column in range(width)]
        self.register_buffer("_taken", torch.tensor(taken), persistent=False)

    def covariates(self, x: Tensor) -> Tensor:
        """Covariates (N, q) of rows (N, width): numbers, and each word of a category but the first; NaN if missing."""
        found = [x[:, :0]]
        for start, stop in self.spans:
            own = x[:, start:stop]
            if stop - start > 1:
                own = torch.where(own.sum(1, keepdim=True) > 0, own[:, 1:], torch.nan)
            found.append(own)
        return torch.cat(found, 1)

    def expected(self, x: Tensor) -> Tensor:
        """What is expected of each adjusted column (N, p) by the covariates; NaN if one is missing."""
        level = self.level.to(x.dtype)
        if self.slopes is None or self.centre is None:
            return level.expand(len(x), -1)
        return level + (self.covariates(x) - self.centre.to(x.dtype)) @ self.slopes.to(x.dtype).T

    def forward(self, x: Tensor) -> Tensor:
        """Rows (N, width) without the site's effects."""
        expected = self.level
        if self.slopes is not None and self.centre is not None:
            away = torch.nan_to_num(self.covariates(x) - self.centre, nan=0.0)
            expected = expected + away @ self.slopes.T
        adjusted = expected + (x[:, self.columns] - expected - self.shift) / self.factor
        return torch.cat([x, adjusted], 1)[:, self._taken]
