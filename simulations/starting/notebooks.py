"""The notebooks that come with fedgraft, brought to where a person works."""

from __future__ import annotations

from pathlib import Path

from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import CONFIGS, write_atomic
from fedgraft.common.config.suggest import instead

_SHIPPED = CONFIGS / "notebooks"


def bring(name: str, out: Path) -> Path:
    """Write the notebook into the folder `out`, and say how to open it.

    InputError if none is called so, or it is there already: what a person has worked on is not overwritten.
    """
    known = {path.stem: path for path in _SHIPPED.glob("*.ipynb")}
    if name not in known:
        raise InputError(f"--notebook {name}: there is no such notebook{instead(name, known)}.")
    place = out / known[name].name
    if place.exists():
        raise InputError(f"{place}: exists, and is not overwritten.", fix="Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(place, known[name].read_bytes())
    say(
        f"Written: {place}. Open it where you work with notebooks, such as: pip install jupyterlab; jupyter lab {place}"
    )
    return place
