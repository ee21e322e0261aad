"""Switches of other programs that are turned off before these are imported."""

from __future__ import annotations

import os


def set_switches() -> None:
    """Let nothing call home or look where it should not; what somebody has set stays as it is.

    Flower reports home and looks for updates unless told not to; a hospital's machine does neither. And no Python that
    is started from here looks for modules in the folder where somebody works, where a `random.py` may lie.
    """
    for switch, value in (
        ("FLWR_TELEMETRY_ENABLED", "0"),
        ("FLWR_DISABLE_UPDATE_CHECK", "1"),
        ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("PYTHONSAFEPATH", "1"),
    ):
        os.environ.setdefault(switch, value)
