"""Features of a site's cases under a frozen backbone: computed once, then kept in memory and on the site's disk.

Features tell of patients what images tell. They lie in the site's own folder, readable by its owner alone, as one
version per study, and are deleted when the study ends, another one begins, or the site is started anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.training.device.autocast import features_in_halves
from fedgraft.client.training.model.alike_passes import answers_of, groups, sizes_for
from fedgraft.client.training.model.evaluate import BATCH
from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.disk import listed
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import (
    canonical_json,
    digest_arrays,
    load_tensors,
    make_folder,
    save_tensors,
)

_FOLDER = "features"


def forget_features(state: Path, but: str = "") -> None:
    """Delete what studies have left below a site's folder `state`, all but that of the study with the digest `but`.

    A study that was broken off never says that it is over. One that still runs loses time and nothing else.
    """
    for folder in listed(state, f"{_FOLDER}/*", f"*/{_FOLDER}/*"):
        if not but or folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)


class Features:
    """One site's features in one study.

    A case's features depend in their last digits on how many are in the same batch. They are always computed in the
    same batches, so that it makes no difference to any result whether they were kept, or where; and in passes of alike
    rows if private work is to be done with them.
    """

    def __init__(self, loader: Loader, state: Path, study: str, *, keep: bool = True, alike: bool = False) -> None:
        """`state` is the site's folder and `study` a digest. Without `keep` they are computed anew for every use."""
        self._feed = loader
        self._alike = alike
        self._folder = state / _FOLDER / study
        self._keep = keep
        self._key = ""
        self._rows: Tensor | None = None
        self._through: Loader | None = None
        self._known: set[str] = set()
        self._cases = ""

    def loader(self, local_model: LocalModel, backbone: str, split: str) -> Loader:
        """The site's loader with features as inputs, those of the split's labelled cases; all others are NaN.

        `local_model` computes them, and `backbone` is the digest of its entries without heads.
        """
        if not self._keep or backbone != self._key or self._rows is None:
            self._key, self._known = backbone, set()
            self._rows = torch.full((len(self._feed.splits["all"]), local_model.model.feature_dim), float("nan"))
            self._rows = self._rows.to(local_model.device)
            self._through = None
        if split not in self._known:
            indices = self._feed.labelled(split).to(local_model.device)
            self._rows[indices] = self._found(local_model, split)
            self._known.add(split)
            self._through = None  # what a loader says of its cases was said of those that were there
        if self._through is None:
            self._through = self._feed.through(self._rows)
        return self._through

    def forget(self) -> None:
        """Delete all features in memory and on disk: the study is over."""
        self._rows, self._through, self._key, self._known = None, None, "", set()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _found(self, local_model: LocalModel, split: str) -> Tensor:
        """The split's features, (labelled cases, dim): from the disk, or else computed and put there."""
        if not self._keep:
            return self._computed(local_model, split)
        path, digest = self._folder / f"{split}.safetensors", self._digest(local_model, split)
        with contextlib.suppress(InputError, KeyError, ValueError):
            kept = load_tensors(path)
            if kept["of"].tobytes() == digest and kept["whole"].tobytes() == _whole(kept["rows"]):
                return torch.from_numpy(kept["rows"]).to(local_model.device)
        rows = self._computed(local_model, split)
        array = rows.cpu().numpy()
        entries = {"of": digest, "whole": _whole(array)}
        with contextlib.suppress(OSError):  # a full disk costs time, not the round
            make_folder(self._folder)
            save_tensors(
                path, {"rows": array} | {k: np.frombuffer(v, np.uint8) for k, v in entries.items()}, private=True
            )
        return rows

    def _computed(self, local_model: LocalModel, split: str) -> Tensor:
        local_model.model.eval()
        features, indices = local_model.model.features, self._feed.labelled(split)
        in_passes = [(group, len(group)) for group in in_order(indices, BATCH)]
        if self._alike:
            alone = answers_of(lambda inputs: (features_in_halves(features, inputs),))
            in_passes = groups(indices, sizes_for(local_model, self._feed, local_model.model, "features", alone))
        with torch.no_grad():
            batches = self._feed.batches([group for group, _ in in_passes])
            parts = [
                features_in_halves(features, batch.inputs)[:count].float()
                for batch, (_, count) in zip(batches, in_passes, strict=True)
            ]
        return torch.cat(parts) if parts else torch.zeros((0, local_model.model.feature_dim), device=local_model.device)

    def _digest(self, local_model: LocalModel, split: str) -> bytes:
        """Of all that these features depend on, to the last bit."""
        if not self._cases:
            self._cases = self._feed.digest()
        content = {
            "backbone": self._key,
            "cases": self._cases,
            "indices": self._feed.labelled(split).tolist(),
            "batch": "alike" if self._alike else BATCH,
            "torch": torch.__version__,
            "device": [str(local_model.device), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
        }
        return hashlib.sha256(canonical_json(content)).digest()


def _whole(rows: np.ndarray) -> bytes:
    return bytes.fromhex(digest_arrays({"rows": rows}))
