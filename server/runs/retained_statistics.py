"""What the sites sent for a closed-form head, kept in the run's folder, so that sites can leave or join it afterwards.

Sums tell of patients: the files are for their owner alone, and there are none unless the study says so, and none under
masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import (
    digest_arrays,
    load_tensors,
    read_sealed,
    save_tensors,
    sealed,
    write_json,
)
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.plan import Role

_FOLDER = "sums"


@dataclass(frozen=True)
class RetainedStatistics:
    """The sums of one stage by site, and the digest of the entries that its features come from."""

    stage: str
    features: str
    sites: Mapping[str, Arrays]

    def write(self, run: Path) -> None:
        """Put them into a run's folder: the sums first, then the file that says whose they are."""
        folder = run / _FOLDER
        folder.mkdir(exist_ok=True, mode=0o700)
        names = sorted(self.sites)
        arrays = {f"{at}/{key}": array for at, name in enumerate(names) for key, array in self.sites[name].items()}
        save_tensors(folder / f"{self.stage}.safetensors", arrays, private=True)
        facts = {"sites": names, "features": self.features, "sums": digest_arrays(arrays)}
        write_json(folder / f"{self.stage}.json", sealed(facts), private=True)

    @classmethod
    def read(cls, run: Path, stage: str) -> RetainedStatistics:
        """What `write` put there. InputError if it is missing or damaged."""
        path = run / _FOLDER / f"{stage}.json"
        facts = read_sealed(path)
        arrays = load_tensors(path.with_suffix(".safetensors"))
        if digest_arrays(arrays) != facts["sums"]:
            raise InputError(f"{path}: is not about the sums that lie beside it.", fix="Run the study again.")
        sites: dict[str, dict[str, object]] = {name: {} for name in facts["sites"]}
        for key, array in arrays.items():
            at, _, name = key.partition("/")
            sites[facts["sites"][int(at)]][name] = array
        return cls(stage, str(facts["features"]), sites)  # type: ignore[arg-type] # values are arrays


def features_digest(state: Arrays, tags: Tags) -> str:
    """The digest of all that decides a case's features: every entry but heads and domain discriminators."""
    outside = (Role.HEAD, Role.DOMAIN_DISCRIMINATOR)
    return digest_arrays({key: array for key, array in state.items() if tags[key].role not in outside})
