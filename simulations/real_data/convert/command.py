"""`fedgraft data convert`: say what there is, convert, and count what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError
from fedgraft.simulations.real_data.convert.collection import Converted
from fedgraft.simulations.real_data.convert.heart import flamby_heart, uci_heart
from fedgraft.simulations.real_data.convert.medmnist import medmnist
from fedgraft.simulations.real_data.convert.xrays import kermany, nih_cxr14

CONVERTERS: Mapping[str, Callable[[Path, Path, int], Converted]] = {
    "nih-cxr14": nih_cxr14,
    "kermany": kermany,
    "uci-heart": uci_heart,
    "medmnist": medmnist,
    "flamby-heart": flamby_heart,
}


def convert(kind: str, source: Path, out: Path, size: int) -> None:
    """Convert public data of this kind. InputError for a kind that there is not, or a source that is not there."""
    if kind not in CONVERTERS:
        raise InputError(f"No data are called {kind!r}; there are: {', '.join(CONVERTERS)}.")
    if not source.exists():
        raise InputError(f"{source}: is not there.")
    demand_place(out)
    found = CONVERTERS[kind](source, out, size)
    labels = ", ".join(f"{label} {count:,}" for label, count in sorted(found.labels.items()))
    say(f"{out}: {found.site}, {found.labels.total():,} cases of {found.patients:,} patients ({labels}).")
    for reason, count in sorted(found.left_out.items()):
        if count:
            say(f"{count:,} left out: {reason}.")
