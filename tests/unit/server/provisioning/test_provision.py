"""Provisioning, kits and rosters: what is made, what may be changed, and what damage and forgery look like."""

from __future__ import annotations

import json
import ssl
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.join import join, rejoin
from fedgraft.client.enrolment.members import update_roster
from fedgraft.client.privacy.masking.used_masks import SecureAggregationSettings, read_pairs
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import InputError, RosterError, StudyError
from fedgraft.common.identity.enrolment import SiteKeys, write_enrolment
from fedgraft.common.identity.keys import (
    fingerprint,
    load_node_key,
    new_masking_key,
    new_node_key,
    private_pem,
    public_pem,
)
from fedgraft.common.identity.kit import read_kit
from fedgraft.common.identity.roster import read_membership
from fedgraft.server.provisioning.consortium import Consortium, ServerEntry, read_consortium
from fedgraft.server.provisioning.provision import Authority
from fedgraft.simulations.poc.consortium import pin_each_other
from helpers.members import COHORT, code_of, enrolled, fingerprint_of, joined


def consortium(*sites: str, **changes: object) -> Consortium:
    base = {"name": "trial", "server": {"host": "fl.example.org"}, "sites": sites or ("north", "south")}
    return Consortium.model_validate(base | changes)


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    Authority(tmp_path / "kits").provision(consortium())
    return tmp_path / "kits"


def test_what_must_be_private_is(kits):
    for path in kits.rglob("*"):
        secret = path.suffix in (".key", ".zip", ".code") or path.name in ("secret.bin", "sites.json")
        if path.is_file() and secret:
            assert path.stat().st_mode & 0o077 == 0, path
    assert not list((kits / "server").glob("ca.key")), "the server holds no authority"


def test_the_certificates_hold_for_the_servers_names_alone(kits):
    authority = x509.load_pem_x509_certificate((kits / "server" / "ca.crt").read_bytes())
    gate = x509.load_pem_x509_certificate((kits / "server" / "gate.crt").read_bytes())
    gate.verify_directly_issued_by(authority)
    names = gate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    constraints = gate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    ssl.create_default_context(cafile=str(kits / "server" / "ca.crt"))


def test_a_kit_opens_with_its_code_alone(kits):
    kit = read_kit(kits / "north.zip", code_of(kits))
    assert kit.facts.site == "north"
    assert kit.files.keys() == {"kit.json", "ca.crt", "roster.json", "README.txt"}
    with pytest.raises(InputError, match="code"):
        read_kit(kits / "north.zip", code_of(kits, "south"))


def test_a_kit_may_be_unpacked_first(kits, tmp_path):
    with zipfile.ZipFile(kits / "north.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert read_kit(tmp_path / "unpacked", code_of(kits)).facts.site == "north"


@pytest.mark.parametrize("name", ["ca.crt", "roster.json", "kit.json", "README.txt", "SHA256SUMS"])
def test_a_kit_with_any_file_changed_is_refused(kits, tmp_path, name):
    with zipfile.ZipFile(kits / "north.zip") as archive:
        archive.extractall(tmp_path / "kit")
    path = tmp_path / "kit" / name
    path.write_bytes(path.read_bytes().replace(b"o", b"0", 1) + b" ")
    with pytest.raises(InputError, match=r"not what the kit's checksums say|was changed"):
        read_kit(tmp_path / "kit", code_of(kits))


def test_a_kit_with_a_file_more_or_less_is_refused(kits, tmp_path):
    for change in (lambda kit: (kit / "more.txt").write_text("x"), lambda kit: (kit / "ca.crt").unlink()):
        folder = tmp_path / str(id(change))
        with zipfile.ZipFile(kits / "north.zip") as archive:
            archive.extractall(folder)
        change(folder)
        with pytest.raises(InputError, match="checksums"):
            read_kit(folder, code_of(kits))


@pytest.mark.parametrize("content", [b"", b"PK", b"\0" * 100])
def test_what_is_no_kit_is_said_to_be_none(tmp_path, content):
    (tmp_path / "kit.zip").write_bytes(content)
    with pytest.raises(InputError, match="no readable kit"):
        read_kit(tmp_path / "kit.zip", "x")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "kit.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("kit.json", bytes(50 << 20))
    with pytest.raises(InputError, match="too large"):
        read_kit(tmp_path / "kit.zip", "x")


def test_provisioning_again_adds_sites_and_changes_nothing_else(kits):
    enrolled(kits, "south")
    kinds = ("*.zip", "*.code", "*.key", "*.crt")
    before = {path: path.read_bytes() for kind in kinds for path in kits.rglob(kind)}
    made = Authority(kits).provision(consortium("north", "south", "east"))
    assert list(made.kits) == ["east"]
    assert made.awaited == ("north", "east")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert set(Authority(kits).home.admitted().values()) == {"south"}


def test_a_folder_is_for_one_consortium(kits, tmp_path):
    with pytest.raises(InputError, match="another consortium"):
        Authority(kits).provision(consortium(name="other"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        Authority(tmp_path / "used").provision(consortium())


def test_a_revoked_site_is_out_until_it_is_renewed_and_makes_other_keys(kits):
    authority, north = Authority(kits), enrolled(kits)
    enrolled(kits, "south")
    authority.revoke("north")
    assert set(authority.home.admitted().values()) == {"south"}
    assert authority.home.sites()["north"].revoked
    assert not (kits / "north.zip").exists()
    authority.provision(consortium())
    assert not (kits / "north.code").exists()
    assert set(authority.home.admitted().values()) == {"south"}
    authority.renew_site("north")
    assert set(authority.home.admitted().values()) == {"south"}, "an invitation lets nobody in"
    path = north.path / "again.json"
    write_enrolment(path, "trial", "north", SiteKeys(north.node_key(), north.masking_key()), code_of(kits))
    with pytest.raises(InputError, match="shut out"):
        authority.enrol(path)
    rejoin(kits / "north.zip", code_of(kits), north)
    authority.enrol(north.path / "north.enrolment.json")
    assert set(authority.home.admitted().values()) == {"north", "south"}
    with pytest.raises(InputError, match="no site nowhere"):
        authority.revoke("nowhere")


def test_an_invitation_can_be_taken_back_and_stays_so(kits):
    north, authority = joined(kits), Authority(kits)
    authority.revoke("north")
    assert authority.provision(consortium()).awaited == ("south",)
    with pytest.raises(InputError, match="no code that is still good"):
        authority.enrol(north.path / "north.enrolment.json")


def test_the_roster_says_who_is_in_and_only_the_authority_can_sign_it(kits, tmp_path):
    for name in ("north", "south"):
        enrolled(kits, name)
    certificate = x509.load_pem_x509_certificate((kits / "authority" / "ca.crt").read_bytes())
    roster = read_membership(kits / "roster.json", certificate)
    assert set(roster.members) == {"north", "south"}
    forged = roster.model_copy(update={"members": {"north": roster.members["south"]}})
    forged.write(tmp_path / "forged.json")
    with pytest.raises(InputError, match="not signed"):
        read_membership(tmp_path / "forged.json", certificate)
    forged.signed_by(new_node_key()).write(tmp_path / "forged.json")
    with pytest.raises(InputError, match="not signed"):
        read_membership(tmp_path / "forged.json", certificate)


def test_a_site_joins_once_and_keeps_its_keys_to_itself(kits):
    home = enrolled(kits)
    update_roster(home, kits / "roster.json")
    member = home.roster().members["north"]
    assert fingerprint(public_pem(home.node_key()).decode()) == fingerprint(member.node)
    assert fingerprint(public_pem(home.masking_key()).decode()) == fingerprint(member.masking)
    assert "PRIVATE" not in (home.path / "north.enrolment.json").read_text()
    assert home.path.stat().st_mode & 0o077 == 0
    for name in ("node.key", "masking.key", "site.yaml", "joined.json"):
        assert (home.path / name).stat().st_mode & 0o077 == 0
    text = home.config.read_text()
    assert read_config(home.config).name == "north"
    assert [line for line in text.splitlines() if "#" not in line] == [], "every key says what it means"
    with pytest.raises(InputError, match="in use"):
        join(kits / "north.zip", "any", COHORT, SitePolicy(), home)


def test_all_sites_are_enrolled_and_nobody_is_awaited(kits):
    for name in ("north", "south"):
        enrolled(kits, name)
    made = Authority(kits).provision(consortium())
    assert (made.kits, made.awaited) == ({}, ())
    assert set(Authority(kits).home.admitted().values()) == {"north", "south"}


def test_an_enrolment_with_anything_changed_is_refused(kits):
    enrolment = joined(kits, "south").path / "south.enrolment.json"
    content = json.loads(enrolment.read_text())
    for field, key in (("node", new_node_key()), ("masking", new_masking_key())):
        member = content["member"] | {field: public_pem(key).decode()}
        enrolment.write_text(json.dumps(content | {"member": member}))
        with pytest.raises(InputError, match="signature"):
            Authority(kits).enrol(enrolment)
    for change in ({"site": "north"}, {"consortium": "other"}):
        enrolment.write_text(json.dumps(content | change))
        with pytest.raises(InputError, match="signature"):
            Authority(kits).enrol(enrolment)
    assert Authority(kits).home.admitted() == {}


def test_keys_come_in_with_the_sites_own_code_once(kits, tmp_path):
    authority, path, keys = Authority(kits), tmp_path / "e.json", SiteKeys.new()
    code = code_of(kits)
    for wrong in (code_of(kits, "south"), "", "guess"):
        write_enrolment(path, "trial", "north", keys, wrong)
        with pytest.raises(InputError, match="not made with the code of north"):
            authority.enrol(path)
    write_enrolment(path, "other", "north", keys, code)
    with pytest.raises(InputError, match="another consortium"):
        authority.enrol(path)
    write_enrolment(path, "trial", "nowhere", keys, code)
    with pytest.raises(InputError, match="no code that is still good"):
        authority.enrol(path)
    assert authority.home.admitted() == {}
    write_enrolment(path, "trial", "north", keys, code)
    assert authority.enrol(path).site == "north"
    assert authority.enrol(path).site == "north", "sent twice is no harm"
    write_enrolment(path, "trial", "north", SiteKeys.new(), code)
    with pytest.raises(InputError, match="no code that is still good"):
        authority.enrol(path)
    assert authority.home.admitted() == {public_pem(keys.node).decode(): "north"}


def test_two_sites_cannot_enrol_with_one_key(kits, tmp_path):
    keys = SiteKeys.new()
    for name in ("north", "south"):
        write_enrolment(tmp_path / f"{name}.json", "trial", name, keys, code_of(kits, name))
    Authority(kits).enrol(tmp_path / "north.json")
    with pytest.raises(RosterError, match="one key"):
        Authority(kits).enrol(tmp_path / "south.json")
    assert set(Authority(kits).home.admitted().values()) == {"north"}


def test_a_renewed_kit_replaces_keys_and_nothing_else(kits):
    home = enrolled(kits)
    old, config = home.node_key(), read_config(home.config)
    authority = Authority(kits)
    authority.renew_site("north")
    assert authority.home.admitted() == {public_pem(old).decode(): "north"}, "the old key is good until then"
    rejoin(kits / "north.zip", code_of(kits), home)
    assert private_pem(home.node_key()) != private_pem(old)
    authority.enrol(home.path / "north.enrolment.json", timedelta(0))
    assert authority.home.admitted() == {public_pem(home.node_key()).decode(): "north"}
    assert read_config(home.config).model_copy(update={"secure_aggregation": None}) == config.model_copy(
        update={"secure_aggregation": None}
    )
    with pytest.raises(InputError, match="another site"):
        rejoin(kits / "south.zip", code_of(kits, "south"), home)


def test_a_server_that_moved_costs_no_new_keys(kits):
    home = enrolled(kits)
    old = private_pem(home.node_key())
    authority = Authority(kits)
    authority.provision(consortium(server={"host": "new.example.org"}))
    authority.renew_site("north")
    assert rejoin(kits / "north.zip", code_of(kits), home, keep_keys=True).enrolment is None
    assert private_pem(home.node_key()) == old
    assert (home.joined().host, read_config(home.config).server.host) == ("new.example.org", "new.example.org")


def test_a_persons_comments_outlive_a_newer_roster_and_a_renewed_kit(kits):
    home, south = enrolled(kits), enrolled(kits, "south")
    commented = "# ours, change with care\n" + yaml.safe_dump(yaml.safe_load(home.config.read_text())) + "# the end\n"
    home.config.write_text(commented.replace("threads: 0", "threads: 3  # it has four"))
    update_roster(home, kits / "roster.json", {"south": fingerprint_of(south)})
    Authority(kits).renew_site("north")
    rejoin(kits / "north.zip", code_of(kits), home)
    Authority(kits).enrol(home.path / "north.enrolment.json")
    update_roster(home, kits / "roster.json")
    text = home.config.read_text()
    assert text.startswith("# ours, change with care\n")
    assert "threads: 3  # it has four\n" in text
    assert "# the end\n" in text
    config = read_config(home.config)
    assert config.threads == 3
    assert config.secure_aggregation.identities == home.roster().identities()


def test_an_older_roster_is_not_taken(kits):
    home = enrolled(kits)
    enrolled(kits, "south")
    old = (kits / "roster.json").read_bytes()
    Authority(kits).revoke("south")
    update_roster(home, kits / "roster.json")
    (kits / "old.json").write_bytes(old)
    with pytest.raises(InputError, match="older"):
        update_roster(home, kits / "old.json")


def test_without_the_authoritys_key_nothing_is_signed(kits):
    (kits / "authority" / "ca.key").unlink()
    with pytest.raises(InputError, match="authority"):
        Authority(kits).renew_server()


def test_all_faults_of_a_consortium_file_are_told_at_once(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: Not Good\nserver: {host: x, port: 99999, tls: 1}\nsites: [North, north]\n")
    with pytest.raises(StudyError) as error:
        read_consortium(path)
    text = str(error.value)
    assert all(key in text for key in ("name:", "server.port:", "server.tls:"))
    path.write_text("name: good\nserver: {host: x}\nsites: [North, north]\n")
    with pytest.raises(StudyError, match="more than one site is called north"):
        read_consortium(path)


def test_a_site_with_keys_made_elsewhere_cannot_be_asked_for(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: good\nserver: {host: x}\nsites: [north, {name: south, keys: enclosed}]\n")
    with pytest.raises(StudyError, match="makes its own keys"):
        read_consortium(path)


def test_sites_that_pinned_each_other_share_secrets_for_masks_pair_by_pair(kits):
    homes = {name: enrolled(kits, name) for name in ("north", "south")}
    Authority(kits).provision(consortium("north", "south", "east"))
    homes["east"] = enrolled(kits, "east")
    pin_each_other(kits, list(homes.values()))
    north, south, east = (read_pairs(name, masks(homes[name])) for name in ("north", "south", "east"))
    assert north.secret("south") == south.secret("north")
    assert north.secret("east") == east.secret("north") != north.secret("south")


def masks(home: SiteHome) -> SecureAggregationSettings:
    found = read_config(home.config).secure_aggregation
    assert found is not None
    return found


def test_an_authority_cannot_put_a_mask_key_of_its_own_in_a_sites_place(kits):
    """The coordinator holds the authority: its signature alone must not be believed for mask keys."""
    certificate = x509.load_pem_x509_certificate((kits / "authority" / "ca.crt").read_bytes())
    key = load_node_key((kits / "authority" / "ca.key").read_bytes(), "ca.key")
    home, south = enrolled(kits), enrolled(kits, "south")
    pin_each_other(kits, [home, south])
    honest = read_membership(kits / "roster.json", certificate)
    member = honest.members["south"].model_copy(update={"masking": public_pem(new_masking_key()).decode()})
    forged = honest.model_copy(update={"members": {**honest.members, "south": member}, "serial": 9})
    forged.signed_by(key).write(kits / "forged.json")
    update_roster(home, kits / "forged.json")
    with pytest.raises(RosterError, match="not signed by that site"):
        read_pairs("north", masks(home))


def test_another_identity_of_a_known_site_is_believed_only_when_a_person_says_so(kits):
    home, south = enrolled(kits), enrolled(kits, "south")
    pin_each_other(kits, [home, south])
    before = home.roster_file.read_bytes(), home.config.read_bytes(), home.secure_aggregation_file.read_bytes()
    Authority(kits).renew_site("south")
    rejoin(kits / "south.zip", code_of(kits, "south"), south)
    Authority(kits).enrol(south.path / "south.enrolment.json")
    for typed in ({}, {"south": fingerprint_of(home)}):
        with pytest.raises(InputError, match=r"other identities than before for south|not that of its key") as error:
            update_roster(home, kits / "roster.json", typed)
        assert fingerprint_of(south) not in str(error.value), (
            "what should be heard by telephone is not shown for copying"
        )
    after = home.roster_file.read_bytes(), home.config.read_bytes(), home.secure_aggregation_file.read_bytes()
    assert after == before
    update_roster(home, kits / "roster.json", {"south": fingerprint_of(south)})
    assert masks(home).identities["south"] == home.roster().members["south"].node


def keys_of(kits: Path, name: str) -> list[str]:
    return [key for key, site in Authority(kits).home.admitted().items() if site == name]


def renewed(kits: Path, home: SiteHome, grace: timedelta | None = None) -> str:
    """The site makes new keys with a renewed kit, and they are enrolled; the new public key."""
    name = home.joined().site
    Authority(kits).renew_site(name)
    rejoin(kits / f"{name}.zip", code_of(kits, name), home)
    Authority(kits).enrol(home.path / f"{name}.enrolment.json", grace)
    return Authority(kits).home.sites()[name].node


def test_renewed_keys_leave_the_old_ones_time_and_then_only_the_new_ones_hold(kits):
    north, south = enrolled(kits), enrolled(kits, "south")
    (old,) = keys_of(kits, "north")
    new = renewed(kits, north)
    assert sorted(keys_of(kits, "north")) == sorted([new, old])
    (kept,) = Authority(kits).home.sites()["north"].old
    assert timedelta(hours=71) < kept.until - datetime.now(UTC) <= timedelta(hours=72)
    new = renewed(kits, south, timedelta(hours=1))
    assert len(keys_of(kits, "south")) == 2
    home = Authority(kits).home
    entry = home.sites()["south"]
    over = tuple(key.model_copy(update={"until": datetime.now(UTC)}) for key in entry.old)
    home.write_sites(home.sites() | {"south": entry.model_copy(update={"old": over})})
    assert keys_of(kits, "south") == [new]


def test_a_grace_of_nothing_shuts_the_old_keys_out_at_once(kits):
    new = renewed(kits, enrolled(kits), timedelta(0))
    assert keys_of(kits, "north") == [new]
    assert Authority(kits).home.sites()["north"].old == ()


def test_the_grace_outlives_other_changes_of_the_list_and_a_second_renewal(kits):
    north = enrolled(kits)
    (first,) = keys_of(kits, "north")
    second = renewed(kits, north)
    Authority(kits).provision(consortium("north", "south", "east"))
    assert sorted(keys_of(kits, "north")) == sorted([second, first])
    third = renewed(kits, north)
    assert sorted(keys_of(kits, "north")) == sorted([third, first, second])


def test_revocation_knows_no_grace(kits):
    north = enrolled(kits)
    renewed(kits, north)
    Authority(kits).revoke("north")
    assert keys_of(kits, "north") == []
    new = renewed(kits, north)
    assert keys_of(kits, "north") == [new], "what was revoked does not come back"


def test_the_consortium_says_how_long_old_keys_hold(tmp_path):
    authority = Authority(tmp_path / "kits")
    authority.provision(consortium("north", renewal_grace_hours=5))
    renewed(tmp_path / "kits", enrolled(tmp_path / "kits"))
    (kept,) = authority.home.sites()["north"].old
    assert timedelta(hours=4) < kept.until - datetime.now(UTC) <= timedelta(hours=5)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"host": "fl.example.org"}, "only this machine reaches it. For sites elsewhere, give `listen`"),
        ({"host": "127.0.0.1"}, "127.0.0.1 port 8443, the loopback address: only this machine reaches it"),
        ({"host": "fl.example.org", "listen": "::1"}, "only this machine"),
        ({"host": "fl.example.org", "listen": "0.0.0.0"}, "0.0.0.0 port 8443: other machines can reach it"),
        ({"host": "fl.example.org", "listen": "::"}, "other machines can reach it"),
        ({"host": "fl.example.org", "listen": "10.1.2.3", "listen_port": 99}, "10.1.2.3 port 99: other machines"),
        ({"host": "fl.example.org", "listen_port": 8444}, "127.0.0.1 port 8444, the loopback address"),
    ],
)
def test_where_the_server_listens_is_said_and_is_loopback_unless_asked(server: dict[str, Any], said: str):
    assert said in ServerEntry.model_validate(server).says_where
    if "listen" not in server:
        assert ServerEntry.model_validate(server).listen == "127.0.0.1"


@pytest.mark.parametrize("key", ["vouch", "masking", "node"])
@pytest.mark.parametrize("value", ["", "x", "x" * 300, "\0"])
def test_a_roster_whose_members_could_mask_nothing_is_no_roster(kits, key, value):
    """It was one, until a site was revoked: "this should not have happened"."""
    enrolled(kits)
    content = json.loads((kits / "roster.json").read_text())
    content["members"]["north"][key] = value
    (kits / "roster.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"roster\.json|north"):
        Authority(kits).revoke("south")
