"""Windows: which values are black, which white, and what lies between (PS3.3 C.11.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.decoding.shades import MOST_LEVELS, Floats, Levels


def windowed(values: NDArray[np.float64], center: float, width: float, function: str) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with an output from 0 to 1."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    # LINEAR is not defined below a width of 1; whoever writes that has values of small steps and means LINEAR_EXACT.
    if function == "LINEAR_EXACT" or width < 1:
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def on_screen(shown: NDArray[np.float64], padding: NDArray[np.bool_] | None = None, *, inverted: bool) -> Floats:
    """Values in [0, 1], white high, as images are given: nothing is left of padding and of what is no number."""
    if inverted:
        shown = 1 - shown
    shown[np.isnan(shown)] = 0
    if padding is not None:
        shown[padding] = 0
    return np.ascontiguousarray(shown, dtype=np.float32)


@dataclass(frozen=True)
class Straight:
    """All that decides what a stored value looks like where a straight line does, whatever else is in the image."""

    slope: float
    intercept: float
    center: float
    width: float
    function: str
    inverted: bool

    def __call__(self, values: NDArray[np.float64]) -> Floats:
        """What stored values look like."""
        shown = windowed(values * self.slope + self.intercept, self.center, self.width, self.function)
        return on_screen(shown, inverted=self.inverted)


class WindowTable:
    """What stored values look like by one line: worked out once for all images of a series, as far as they go."""

    def __init__(self, line: Straight) -> None:
        self._line, self._least, self._shown = line, 0, np.zeros(0, np.float32)

    def of(self, found: Levels) -> Floats:
        """Of each level. It is kept: whoever changes it takes a copy."""
        least, end = int(found.values[0]), int(found.values[-1]) + 1
        if least < self._least or end > self._least + len(self._shown):
            low, high = least, end
            if len(self._shown):
                low, high = min(least, self._least), max(end, self._least + len(self._shown))
            if high - low > MOST_LEVELS:
                low, high = least, end
            self._least, self._shown = low, self._line(np.arange(low, high).astype(np.float64))
            self._shown.flags.writeable = False
        return self._shown[least - self._least : end - self._least]


window_table = lru_cache(maxsize=8)(WindowTable)
"""That of a line: a folder holds a few series at a time, and each file may as well have a window of its own."""
