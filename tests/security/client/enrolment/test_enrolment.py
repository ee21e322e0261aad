"""The coordinator provisions, holds the authority, and opens nothing: keys are the sites' own, pins are people's."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from fedgraft.client.cli import deployed_commands
from fedgraft.client.data.cohorts.cohort import learning_patients
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.join import rejoin
from fedgraft.client.enrolment.members import update_roster
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.masking.masked_upload import Sealer
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.identity.enrolment import SiteKeys
from fedgraft.common.identity.keys import fingerprint, load_node_key
from fedgraft.common.identity.roster import Member, Membership, read_membership
from fedgraft.common.protocol.instructions import AggregationGroups, Code, Instruction, MaskedUpdate, Refusal
from fedgraft.common.secure_aggregation.summing import TENSORS
from fedgraft.common.study.study import Study
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.provision import Authority
from fedgraft.simulations.engines.run import OPEN
from fedgraft.simulations.poc.consortium import pin_each_other
from helpers import work
from helpers.members import code_of, enrolled, fingerprint_of, joined

NAMES = ("north", "south", "west")


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    content = {"name": "trial", "server": {"host": "fl.example.org"}, "sites": list(NAMES)}
    Authority(tmp_path / "kits").provision(Consortium.model_validate(content))
    return tmp_path / "kits"


# 1. What is on the coordinator's disk


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """All files of a folder, and what is packed in them."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    yield from ((f"{path}:{name}", archive.read(name)) for name in archive.namelist())


def loot(folder: Path) -> dict[str, str]:
    """Public halves of all private keys that somebody with this folder can use, and where each was found.

    Every line and every word in the folder is tried as a passphrase of the keys that have one.
    """
    found = dict(everything(folder))
    words: set[bytes | None] = {None}
    for data in found.values():
        words |= {word for word in re.findall(rb"[!-~]{8,64}", data) if word.count(b"-") == 5}
    opened = {}
    for name, data in found.items():
        for pem in re.findall(rb"-----BEGIN[^-]*PRIVATE KEY-----.*?-----END[^-]*PRIVATE KEY-----", data, re.DOTALL):
            for word in words:
                try:
                    key = load_pem_private_key(pem, word)
                except (ValueError, TypeError):
                    continue
                public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                opened[public.decode()] = name
    return opened


def test_nothing_on_the_coordinators_disk_is_a_sites_key_or_opens_one(kits: Path) -> None:
    """Before anybody joined, when all are enrolled, and when one was renewed."""
    seen = loot(kits)
    homes = [joined(kits, name) for name in NAMES]
    seen |= loot(kits)
    for home in homes:
        Authority(kits).enrol(home.path / f"{home.joined().site}.enrolment.json")
    Authority(kits).renew_site("north")
    rejoin(kits / "north.zip", code_of(kits), homes[0])
    seen |= loot(kits)
    Authority(kits).enrol(homes[0].path / "north.enrolment.json")
    seen |= loot(kits)
    certificate = x509.load_pem_x509_certificate((kits / "authority" / "ca.crt").read_bytes())
    members = read_membership(kits / "roster.json", certificate).members
    assert set(members) == set(NAMES)
    theirs = {key for member in members.values() for key in (member.node, member.masking)}
    assert not theirs & seen.keys(), [seen[key] for key in theirs & seen.keys()]
    places = {Path(place).relative_to(kits).as_posix() for place in seen.values()}
    assert places == {"authority/ca.key", "server/gate.key", "server/inner.key"}
    # The same search of the sites' own folders finds all of their keys: it would have found them.
    assert theirs <= {key for home in homes for key in loot(home.path)}


# 2. Who is in a group


def made_up(kits: Path, *names: str) -> dict[str, Member]:
    """A coordinator that fills the roster with members of its own, signed as any other."""
    certificate = x509.load_pem_x509_certificate((kits / "authority" / "ca.crt").read_bytes())
    honest = read_membership(kits / "roster.json", certificate)
    sybils = {name: SiteKeys.new().member(name) for name in names}
    signed_roster(kits, honest.members | sybils, honest.serial + 1)
    return sybils


def signed_roster(kits: Path, members: dict[str, Member], serial: int) -> None:
    key = load_node_key((kits / "authority" / "ca.key").read_bytes(), "ca.key")
    Membership(consortium="trial", serial=serial, members=members).signed_by(key).write(kits / "roster.json")


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    return make_study(secure_aggregation=True)


def running(home: SiteHome, study: Study) -> Site:
    """The real site of this folder, as it takes part in a study."""
    config = read_config(home.config)
    inputs, labels = work.images(30)
    mine = work.cohort(inputs, {task.name: labels for task in study.tasks}, held_out=6, name=config.name)
    guard = PrivacyGuard(study, OPEN, config.state, learning_patients(study, mine))
    assert config.secure_aggregation is not None
    sealer = Sealer(study, config.secure_aggregation, config.name, config.state)
    return Site(study, mine, LocalModel(study, torch.device("cpu")), config.state, guard, sealer)


def asked(home: SiteHome, study: Study, group: tuple[str, ...]) -> MaskedUpdate | Refusal:
    """What the site answers to an instruction to train, and to mask the result with this group."""
    site = running(home, study)
    nonces = dict.fromkeys(group, "00" * 16) | {site.name: site.greet().nonce}
    entries = LocalModel(study, torch.device("cpu"))
    arrays = {key: array.copy() for key, array in entries.read(entries.tags).items()}
    groups = AggregationGroups(1, {TENSORS: nonces})
    answer = site.visit(Instruction(study.digest, 1, 0, 1, True, None, arrays, "", groups))
    assert isinstance(answer, MaskedUpdate | Refusal)
    return answer


GROUP = ("north", "sybil1", "sybil2")


def test_a_victim_and_two_made_up_members_are_no_group(kits: Path, study: Study) -> None:
    """The coordinator signs what it likes. What it signed reaches the site as a newer roster, and in a renewed kit."""
    homes = [enrolled(kits, name) for name in NAMES]
    pin_each_other(kits, homes)
    north = homes[0]
    made_up(kits, "sybil1", "sybil2")
    assert update_roster(north, kits / "roster.json").unpinned == ("sybil1", "sybil2")
    assert asked(north, study, GROUP) == Refusal(1, Code.NOT_SECURE)
    assert asked(north, study, ("north", "south", "sybil1")) == Refusal(1, Code.NOT_SECURE)
    Authority(kits).renew_site("north")
    rejoin(kits / "north.zip", code_of(kits), north, keep_keys=True)
    assert asked(north, study, GROUP) == Refusal(1, Code.NOT_SECURE)
    assert isinstance(asked(north, study, NAMES), MaskedUpdate), "with the members that people pinned it masks"


def test_a_kit_with_made_up_members_pins_none_of_them(kits: Path, study: Study) -> None:
    made_up(kits, "sybil1", "sybil2")
    (kits / "north.code").unlink()
    Authority(kits).renew_site("north")
    north = joined(kits)
    assert asked(north, study, GROUP) == Refusal(1, Code.NOT_SECURE)
    assert update_roster(north).pinned == ("north",)


def test_a_member_is_pinned_by_the_fingerprint_that_its_people_say_and_by_nothing_else(
    kits: Path, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    """The coordinator enrols keys of its own for south. South's people read out what is true, and it does not fit."""
    north, south, west = (enrolled(kits, name) for name in NAMES)
    honest = read_membership(
        kits / "roster.json", x509.load_pem_x509_certificate((kits / "authority" / "ca.crt").read_bytes())
    )
    false = SiteKeys.new().member("south")
    signed_roster(kits, honest.members | {"south": false}, honest.serial + 1)
    deployed_commands.roster(kits / "roster.json", north.path, [f"west={fingerprint_of(west)}"])
    before = north.config.read_bytes()
    for typed in (
        fingerprint_of(south),
        "",
        "south",
        fingerprint_of(west),
        fingerprint_of(south)[:-1],
        fingerprint(false.node)[:20],
    ):
        with pytest.raises(InputError, match="not that of its key"):
            deployed_commands.roster(None, north.path, [f"south={typed}"])
    for typed in ("south", "--all"):
        with pytest.raises(InputError, match="NAME=FINGERPRINT"):
            deployed_commands.roster(None, north.path, [typed])
    with pytest.raises(InputError, match="there is no nobody"):
        deployed_commands.roster(None, north.path, [f"nobody={fingerprint_of(west)}"])
    assert north.config.read_bytes() == before
    assert asked(north, study, NAMES) == Refusal(1, Code.NOT_SECURE)
    deployed_commands.roster(None, north.path, [])
    heard = capsys.readouterr().out
    assert fingerprint_of(north) in heard
    assert fingerprint(false.node) not in heard, "what a person must hear from south is never offered for copying"
    signed_roster(kits, honest.members, honest.serial + 2)
    deployed_commands.roster(
        kits / "roster.json", north.path, [f"south={fingerprint_of(south).upper().replace('-', ' ')}"]
    )
    assert isinstance(asked(north, study, NAMES), MaskedUpdate)


def test_whoever_is_enrolled_in_the_sites_own_name_is_noticed(kits: Path) -> None:
    north = joined(kits)
    made_up(kits, "north")
    before = north.config.read_bytes()
    with pytest.raises(InputError, match="other keys for north than this site has"):
        update_roster(north, kits / "roster.json")
    assert north.config.read_bytes() == before


def test_a_pin_that_a_person_takes_out_of_the_sites_file_is_gone(kits: Path, study: Study) -> None:
    """And what is on disk beside it does not count: then the site masks nothing, until the roster is taken again."""
    homes = [enrolled(kits, name) for name in NAMES]
    pin_each_other(kits, homes)
    content = yaml.safe_load(homes[0].config.read_text())
    del content["secure_aggregation"]["identities"]["west"]
    homes[0].config.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="'west', whose identity was never pinned"):
        running(homes[0], study)
    assert update_roster(homes[0]).unpinned == ("west",)
    assert asked(homes[0], study, NAMES) == Refusal(1, Code.NOT_SECURE)
