"""When a certificate that ends is told of, in the same words at the server and at the sites."""

from __future__ import annotations

WARN_DAYS = 30.0
"""From so many days before its end on, a certificate is told of."""


def left(days: float) -> str:
    """How long something is good for yet: "12 days", "1 day", "less than a day"."""
    if days < 1:
        return "less than a day"
    whole = int(days)
    return "1 day" if whole == 1 else f"{whole} days"
