"""A site masks only for groups that it lends itself to, and never twice under one number, whatever it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.masking import masked_upload as sealing
from fedgraft.client.privacy.masking.masked_upload import Sealer
from fedgraft.client.privacy.masking.used_masks import MaskBook, Regroup, SecureAggregationSettings
from fedgraft.common.base.errors import FedgraftError, RosterError
from fedgraft.common.base.files import read_json, write_json
from fedgraft.common.protocol.instructions import (
    AggregationGroups,
    Code,
    Instruction,
    MaskedUpdate,
)
from fedgraft.common.secure_aggregation.masking import Layout, MaskedSum
from fedgraft.common.secure_aggregation.summing import METRICS, TENSORS, Summands
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.keys import make_keys

NAMES = ("east", "north", "south", "west")
ARRAYS = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}


class Sites:
    """Four sites of a study with secure aggregation, and the coordinator's part in between."""

    def __init__(self, study: Study, folder: Path, regroup: Regroup = "private") -> None:
        for name in NAMES:
            (folder / name).mkdir()
        self.study, self.folder = study, folder
        self.settings = {
            name: SecureAggregationSettings(**(own.model_dump() | {"regroup": regroup}))
            for name, own in make_keys(folder, NAMES).items()
        }
        self.sealers = {name: self.again(name) for name in NAMES}
        self.nonces = {name: sealer.greet() for name, sealer in self.sealers.items()}

    def again(self, name: str) -> Sealer:
        """The site in a process that has just started."""
        return Sealer(self.study, self.settings[name], name, self.folder / name)

    def instruction(
        self, number: int = 1, names: tuple[str, ...] = NAMES, parts: tuple[str, ...] = (TENSORS,)
    ) -> Instruction:
        group = {name: self.nonces[name] for name in names}
        return Instruction(
            self.study.digest, 1, 0, 1, True, None, {}, "", AggregationGroups(number, dict.fromkeys(parts, group))
        )

    def answer(self, name: str, instruction: Instruction, sealer: Sealer | None = None) -> MaskedUpdate:
        sealer = sealer or self.sealers[name]
        accepted = sealer.accept(instruction, self.study.plan[instruction.stage])
        return sealer.seal(instruction, accepted, {part: Summands(ARRAYS, {}) for part in accepted.parts}, "model")


@pytest.fixture
def sites(make_study, tmp_path: Path) -> Sites:
    return Sites(make_study(secure_aggregation=True), tmp_path)


def test_four_sites_add_up(sites: Sites) -> None:
    total = MaskedSum(Layout.of({"w": ((50,), "float32")}), 4)
    for name in NAMES:
        total.add(sites.answer(name, sites.instruction()).parts[TENSORS])
    assert np.abs(total.open()["w"] - 4 * ARRAYS["w"]).max() < 1e-6


def test_a_number_is_used_once(sites: Sites) -> None:
    sites.answer("east", sites.instruction(3))
    for number in (3, 2, 1):
        with pytest.raises(Refused) as caught:
            sites.answer("east", sites.instruction(number))
        assert caught.value.code is Code.MASK_REUSED
    assert sites.answer("east", sites.instruction(4)).parts


def test_a_number_stays_used_when_the_site_restarts(sites: Sites) -> None:
    sites.answer("east", sites.instruction(1))
    with pytest.raises(Refused) as caught:
        sites.answer("east", sites.instruction(1), sites.again("east"))
    assert caught.value.code is Code.MASK_REUSED


def test_a_number_is_used_up_by_a_crash_before_the_first_masked_byte(sites: Sites, monkeypatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(sealing, "mask", crash)
        with pytest.raises(KeyboardInterrupt):
            sites.answer("east", sites.instruction(1))
    with pytest.raises(Refused):
        sites.answer("east", sites.instruction(1), sites.again("east"))


def test_of_two_processes_asked_at_once_one_masks(sites: Sites, monkeypatch) -> None:
    """Both have looked at the number before either used it."""
    meet = threading.Barrier(2)
    use = MaskBook.use

    def together(self: MaskBook, *facts: object) -> None:
        meet.wait(timeout=120)
        use(self, *facts)

    monkeypatch.setattr(MaskBook, "use", together)
    secure_aggregation: list[MaskedUpdate] = []
    codes: list[Code] = []

    def ask() -> None:
        try:
            secure_aggregation.append(sites.answer("east", sites.instruction(1), sites.again("east")))
        except Refused as error:
            codes.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(secure_aggregation) == 1
    assert codes == [Code.MASK_REUSED]


@pytest.mark.parametrize("part", [TENSORS, METRICS])
def test_of_two_groups_that_were_accepted_at_once_one_is_masked(make_study, tmp_path: Path, part: str) -> None:
    """Work lies between the look and the mask: another process may have been asked meanwhile, about one site less."""
    sites = Sites(make_study(secure_aggregation=True), tmp_path, "never")
    four, three = sites.instruction(1, NAMES, (part,)), sites.instruction(2, NAMES[:3], (part,))
    sealers = sites.again("east"), sites.again("east")
    stage = sites.study.plan[0]
    accepted = [sealer.accept(one, stage) for sealer, one in zip(sealers, (four, three), strict=True)]
    assert all(part in one.parts for one in accepted)
    summands = {part: Summands(ARRAYS, {})}
    assert sealers[0].seal(four, accepted[0], summands, "").parts
    with pytest.raises(Refused) as caught:
        sealers[1].seal(three, accepted[1], summands, "")
    assert caught.value.code is Code.NOT_SECURE


def test_a_new_greeting_ends_the_run_before(sites: Sites) -> None:
    """A replayed order of an earlier run names a nonce that the site no longer answers to."""
    old = sites.instruction(5)
    sites.nonces["east"] = sites.sealers["east"].greet()
    with pytest.raises(Refused) as caught:
        sites.answer("east", old)
    assert caught.value.code is Code.MASK_REUSED
    assert sites.answer("east", sites.instruction(1)).parts


def test_the_same_work_in_a_new_run_is_masked_anew_even_if_the_book_is_lost(sites: Sites) -> None:
    """A restored backup or a deleted book cannot bring a mask back: nonces are drawn anew."""
    first = sites.answer("east", sites.instruction(1)).parts[TENSORS]
    (sites.folder / "east" / "masks.sqlite").unlink()
    sealer = sites.again("east")
    sites.nonces["east"] = sealer.greet()
    second = sites.answer("east", sites.instruction(1), sealer).parts[TENSORS]
    assert (first != second).mean() > 0.99


def stranger(sites: Sites, instruction: Instruction) -> Instruction:
    assert instruction.groups is not None
    parts = {part: {**group, "sybil": "nonce"} for part, group in instruction.groups.parts.items()}
    return replace(instruction, groups=AggregationGroups(1, parts))


ODD: dict[str, Callable[[Sites], Instruction]] = {
    "in the open": lambda s: replace(s.instruction(), groups=None),
    "two sites": lambda s: s.instruction(names=("east", "north")),
    "one site": lambda s: s.instruction(names=("east",)),
    "without the site itself": lambda s: s.instruction(names=("north", "south", "west")),
    "with a stranger": lambda s: stranger(s, s.instruction()),
    "an unknown part": lambda s: s.instruction(parts=("weights",)),
}


@pytest.mark.parametrize("what", ODD)
def test_a_circle_that_is_none_is_refused(sites: Sites, what: str) -> None:
    with pytest.raises(Refused) as caught:
        sites.answer("east", ODD[what](sites))
    assert caught.value.code is Code.NOT_SECURE
    assert sites.answer("east", sites.instruction(1)).parts, "nothing was used up"


def test_a_site_may_ask_for_larger_circles(make_study, tmp_path: Path) -> None:
    sites = Sites(make_study(secure_aggregation=True), tmp_path)
    picky = sites.settings["east"].model_copy(update={"fewest": 4})
    sealer = Sealer(sites.study, picky, "east", tmp_path / "east")
    with pytest.raises(Refused):
        sites.answer("east", sites.instruction(names=("east", "north", "south")), sealer)
    assert sites.answer("east", sites.instruction(), sealer).parts


def test_fewer_than_three_cannot_be_allowed(sites: Sites) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 3"):
        SecureAggregationSettings(**(sites.settings["east"].model_dump() | {"fewest": 2}))


PRIVATE = {"steps": 2, "private": {"noise_multiplier": 1.0, "sample_rate": 0.5}}


@pytest.mark.parametrize(
    ("regroup", "noise", "again"),
    [("never", True, False), ("private", False, False), ("private", True, True), ("always", False, True)],
)
def test_the_same_work_in_another_circle(make_study, tmp_path, regroup: Regroup, noise: bool, again: bool) -> None:
    """The difference of the two sums would be west's part."""
    local = PRIVATE if noise else {"epochs": 1}
    sites = Sites(
        make_study(method={"name": "linear_probe", "local": local}, secure_aggregation=True), tmp_path, regroup
    )
    assert (sites.study.plan[0].local.private is not None) == noise
    sites.answer("east", sites.instruction(1))
    smaller = sites.instruction(2, ("east", "north", "south"))
    # In another run of the study, and in another process, it is the same work.
    sites.nonces["east"] = sites.again("east").greet()
    for instruction in (smaller, sites.instruction(2, ("east", "north", "south"))):
        if again and instruction is not smaller:
            assert sites.answer("east", instruction, sites.again("east")).parts
        else:
            with pytest.raises(Refused):
                sites.answer("east", instruction, sites.again("east"))
    assert sites.answer("east", sites.instruction(3)).parts, "the first group may always meet again"


def test_metrics_are_left_out_of_a_new_circle_and_the_work_goes_on(make_study, tmp_path) -> None:
    sites = Sites(
        make_study(method={"name": "linear_probe", "local": PRIVATE}, secure_aggregation=True), tmp_path, "private"
    )
    assert sites.answer("east", sites.instruction(1, parts=(TENSORS, METRICS))).parts.keys() == {TENSORS, METRICS}
    smaller = sites.instruction(2, ("east", "north", "south"), (TENSORS, METRICS))
    assert sites.answer("east", smaller).parts.keys() == {TENSORS}


def test_the_book_says_what_was_masked_with_whom(sites: Sites) -> None:
    import sqlite3

    answer = sites.answer("east", sites.instruction(1, ("east", "north", "west")))
    path = sites.folder / "east" / "masks.sqlite"
    assert path.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(path) as db:
        ((number, part, group, context),) = db.execute("SELECT number, part, sites, context FROM sums").fetchall()
    assert (number, part, group) == (1, TENSORS, "east\nnorth\nwest")
    assert context == answer.contexts[TENSORS]


def test_keys_that_cannot_be_used_are_named(sites: Sites) -> None:
    settings = sites.settings["east"]
    good = settings.key.read_bytes()
    settings.key.chmod(0o640)
    with pytest.raises(RosterError, match="others can read this key"):
        sites.again("east")
    settings.key.chmod(0o600)
    other = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for bad in (b"", b"no key", good[:-40], other):
        settings.key.write_bytes(bad)
        with pytest.raises(RosterError, match=r"mask_key.pem: is no X25519 private key"):
            sites.again("east")
    settings.key.write_bytes((sites.folder / "north" / "mask_key.pem").read_bytes())
    with pytest.raises(RosterError, match="another mask key for 'east'"):
        sites.again("east")
    settings.key.unlink()
    with pytest.raises(RosterError, match="no X25519"):
        sites.again("east")


def test_a_tampered_roster_is_named(sites: Sites) -> None:
    path = sites.settings["east"].roster
    content = read_json(path)
    content["entries"][1]["key"] = content["entries"][2]["key"]
    write_json(path, content)
    with pytest.raises(RosterError, match="'north' was not signed"):
        sites.again("east")
    for bad in ({"entries": [{"site": "east"}]}, {}, []):
        write_json(path, bad)
        with pytest.raises(FedgraftError, match=r"roster.json"):
            sites.again("east")
