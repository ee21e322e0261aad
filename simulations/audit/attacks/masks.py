"""Masked uploads as three sites send them: each looks like uniform noise, and only all together are the sum."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chisquare

from fedgraft.client.attacks.measurement import Measurement
from fedgraft.client.privacy.masking.masked_upload import Sealer
from fedgraft.common.protocol.instructions import AggregationGroups, Instruction
from fedgraft.common.secure_aggregation.masking import Layout, MaskedSum, NotOpened
from fedgraft.common.secure_aggregation.summing import TENSORS, Summands
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.keys import make_keys

_SITES = ("east", "north", "south")
_ENTRIES = 400_000
_NAME = "body.weight"

Uploads = Mapping[str, NDArray[np.uint64]]


def uniform(study: Study, seed: int) -> Measurement:
    """The least likely of nine counts of bytes, all together and each place of a word by itself, if all are uniform."""
    (sent,) = _sent(study, _updates(seed), rounds=1)
    content = sent["south"].view(np.uint8)
    chances = [chisquare(np.bincount(part, minlength=256)).pvalue for part in (content, *content.reshape(-1, 8).T)]
    words = f"the bytes of an upload are uniform (smallest p of 9: {min(chances):.2g})"
    return Measurement(float(min(chances)), 1e-9, words, "at least")


def unlike(study: Study, seed: int) -> Measurement:
    """The largest correlation of an upload with the update in it, with other sites' uploads, and with the next."""
    updates = _updates(seed)
    first, second = _sent(study, updates, rounds=2)
    own, update = _numbers(first["south"]), updates["south"][_NAME].astype(np.float64)
    others = [update, *(_numbers(first[site]) for site in ("east", "north")), _numbers(second["south"])]
    worst = max(abs(float(np.corrcoef(own, other)[0, 1])) for other in others)
    words = f"an upload correlates by {worst:.4f} with its update, with others' uploads, and with the next of the same"
    return Measurement(worst, 0.01, words)


def only_together(study: Study, seed: int) -> Measurement:
    """The error of the sum over all sites; infinite if two of three open as well, or all do not."""
    updates = _updates(seed)
    (sent,) = _sent(study, updates, rounds=1)
    found = _opened(list(sent.values()))
    alone = any(_opened([words for site, words in sent.items() if site != missing]) is not None for missing in _SITES)
    if found is None or alone:
        return Measurement(float("inf"), 1e-6, "uploads open without one of the sites" if alone else "the sum is lost")
    total = np.sum([arrays[_NAME].astype(np.float64) for arrays in updates.values()], axis=0)
    error = float(np.abs(found - total).max())
    return Measurement(error, 1e-6, f"all together open to the sum (error {error:.1g}), two of three to nothing")


def _updates(seed: int) -> dict[str, dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)
    return {site: {_NAME: rng.normal(0, 0.01, _ENTRIES).astype(np.float32)} for site in _SITES}


def _sent(study: Study, updates: Mapping[str, Mapping[str, NDArray[np.float32]]], rounds: int) -> list[Uploads]:
    """What each site's own sealing makes of its update, round by round, under fresh keys."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as temporary:
        folder = Path(temporary)
        settings = make_keys(folder, _SITES)
        sealers = {site: Sealer(study, settings[site], site, folder / site) for site in _SITES}
        group = {site: sealer.greet() for site, sealer in sealers.items()}
        sent: list[Uploads] = []
        for number in range(1, rounds + 1):
            instruction = Instruction(
                study.digest, number, 0, number, True, None, {}, groups=AggregationGroups(number, {TENSORS: group})
            )
            uploads = {}
            for site, sealer in sealers.items():
                accepted = sealer.accept(instruction, study.plan[0])
                summands = {TENSORS: Summands(updates[site], {})}
                uploads[site] = sealer.seal(instruction, accepted, summands, "the model").parts[TENSORS]
            sent.append(uploads)
    return sent


def _opened(uploads: list[NDArray[np.uint64]]) -> NDArray[np.float64] | None:
    total = MaskedSum(_layout(), len(uploads))
    for words in uploads:
        total.add(words)
    try:
        return total.open()[_NAME]
    except NotOpened:
        return None


def _layout() -> Layout:
    return Layout.of({_NAME: ((_ENTRIES,), "float32")})


def _numbers(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The masked values as fixed-point numbers; what comes before them is the tag."""
    return words[-_ENTRIES:].view(np.int64).astype(np.float64)
