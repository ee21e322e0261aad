"""Provisioning, kits and rosters: what is made, what may be changed, and what damage and forgery look like."""

from __future__ import annotations

import json
import ssl
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.join import join, rejoin, update_roster
from fedgraft.client.privacy.masking.used_masks import SecureAggregationSettings, read_pairs
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import InputError, RosterError, StudyError
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

COHORT = CohortSpec(kind="images", root=Path("images"))


def consortium(*sites: str | dict[str, str], **changes: object) -> Consortium:
    base = {"name": "trial", "server": {"host": "fl.example.org"}, "sites": sites or ("north", "south")}
    return Consortium.model_validate(base | changes)


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    Authority(tmp_path / "kits").provision(consortium())
    return tmp_path / "kits"


def passphrase(kits: Path, site: str = "north") -> str:
    return (kits / f"{site}.passphrase").read_text().strip()


def joined(kits: Path, site: str = "north", folder: Path | None = None) -> SiteHome:
    home = SiteHome(folder or kits.parent / site)
    join(kits / f"{site}.zip", passphrase(kits, site), COHORT, SitePolicy(), home)
    return home


def test_what_must_be_private_is(kits):
    for path in kits.rglob("*"):
        secret = path.suffix in (".key", ".zip", ".passphrase") or path.name in ("secret.bin", "sites.json")
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


def test_a_kit_opens_with_its_passphrase_alone(kits):
    kit = read_kit(kits / "north.zip", passphrase(kits))
    assert kit.facts.site == "north"
    assert b"ENCRYPTED" in kit.files["node.key"]
    with pytest.raises(InputError, match="passphrase"):
        read_kit(kits / "north.zip", passphrase(kits, "south"))
    with pytest.raises(InputError, match="passphrase"):
        load_node_key(kit.files["node.key"], "node.key", "another")


def test_a_kit_may_be_unpacked_first(kits, tmp_path):
    with zipfile.ZipFile(kits / "north.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert read_kit(tmp_path / "unpacked", passphrase(kits)).facts.site == "north"


@pytest.mark.parametrize("name", ["ca.crt", "roster.json", "node.key", "kit.json", "README.txt", "SHA256SUMS"])
def test_a_kit_with_any_file_changed_is_refused(kits, tmp_path, name):
    with zipfile.ZipFile(kits / "north.zip") as archive:
        archive.extractall(tmp_path / "kit")
    path = tmp_path / "kit" / name
    path.write_bytes(path.read_bytes().replace(b"o", b"0", 1) + b" ")
    with pytest.raises(InputError, match=r"not what the kit's checksums say|was changed"):
        read_kit(tmp_path / "kit", passphrase(kits))


def test_a_kit_with_a_file_more_or_less_is_refused(kits, tmp_path):
    for change in (lambda kit: (kit / "more.txt").write_text("x"), lambda kit: (kit / "ca.crt").unlink()):
        folder = tmp_path / str(id(change))
        with zipfile.ZipFile(kits / "north.zip") as archive:
            archive.extractall(folder)
        change(folder)
        with pytest.raises(InputError, match="checksums"):
            read_kit(folder, passphrase(kits))


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
    before = {path: path.read_bytes() for path in (*kits.glob("*.zip"), *kits.rglob("*.key"), *kits.rglob("*.crt"))}
    made = Authority(kits).provision(consortium("north", "south", "east"))
    assert list(made.kits) == ["east"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert set(Authority(kits).home.admitted().values()) == {"north", "south", "east"}


def test_a_folder_is_for_one_consortium(kits, tmp_path):
    with pytest.raises(InputError, match="another consortium"):
        Authority(kits).provision(consortium(name="other"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        Authority(tmp_path / "used").provision(consortium())


def test_a_revoked_site_is_out_until_it_is_renewed(kits):
    authority = Authority(kits)
    authority.revoke("north")
    assert set(authority.home.admitted().values()) == {"south"}
    assert authority.home.sites()["north"].revoked
    assert not (kits / "north.zip").exists()
    authority.provision(consortium())
    assert set(authority.home.admitted().values()) == {"south"}
    authority.renew_site("north")
    assert set(authority.home.admitted().values()) == {"north", "south"}
    with pytest.raises(InputError, match="no site nowhere"):
        authority.revoke("nowhere")


def test_the_roster_says_who_is_in_and_only_the_authority_can_sign_it(kits, tmp_path):
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
    home = joined(kits)
    assert fingerprint(public_pem(home.node_key())) == fingerprint(home.roster().members["north"].node.encode())
    assert fingerprint(public_pem(home.masking_key())) == fingerprint(home.roster().members["north"].masking.encode())
    assert home.path.stat().st_mode & 0o077 == 0
    for name in ("node.key", "masking.key", "site.yaml", "joined.json"):
        assert (home.path / name).stat().st_mode & 0o077 == 0
    text = home.config.read_text()
    assert read_config(home.config).name == "north"
    assert [line for line in text.splitlines() if "#" not in line] == [], "every key says what it means"
    with pytest.raises(InputError, match="in use"):
        joined(kits)


def test_a_site_can_make_its_own_keys(tmp_path):
    kits = tmp_path / "kits"
    made = Authority(kits).provision(consortium("north", {"name": "south", "keys": "site"}))
    assert made.awaited == ("south",)
    home = joined(kits, "south")
    enrolment = home.path / "south.enrolment.json"
    assert "PRIVATE" not in enrolment.read_text()
    assert Authority(kits).enrol(enrolment) == "south"
    assert set(Authority(kits).home.admitted().values()) == {"north", "south"}
    assert update_roster(kits / "roster.json", home) == 2
    assert home.roster().members["south"].node == public_pem(home.node_key()).decode()


def test_an_enrolment_with_other_keys_put_in_is_refused(tmp_path):
    kits = tmp_path / "kits"
    Authority(kits).provision(consortium({"name": "south", "keys": "site"}, "north"))
    enrolment = joined(kits, "south").path / "south.enrolment.json"
    content = json.loads(enrolment.read_text())
    for field, key in (("node", new_node_key()), ("masking", new_masking_key())):
        enrolment.write_text(json.dumps(content | {field: public_pem(key).decode()}))
        with pytest.raises(InputError, match="signature"):
            Authority(kits).enrol(enrolment)
    enrolment.write_text(json.dumps(content | {"site": "north"}))
    with pytest.raises(InputError, match="signature"):
        Authority(kits).enrol(enrolment)


def test_keys_of_another_site_cannot_be_replaced_by_enrolment(tmp_path):
    from fedgraft.common.identity.enrolment import write_enrolment

    Authority(tmp_path / "kits").provision(consortium())
    write_enrolment(tmp_path / "e.json", "trial", "north", new_node_key(), new_masking_key())
    with pytest.raises(InputError, match="has other keys"):
        Authority(tmp_path / "kits").enrol(tmp_path / "e.json")
    write_enrolment(tmp_path / "e.json", "other", "north", new_node_key(), new_masking_key())
    with pytest.raises(InputError, match="another consortium"):
        Authority(tmp_path / "kits").enrol(tmp_path / "e.json")


def test_a_renewed_kit_replaces_keys_and_nothing_else(kits):
    home = joined(kits)
    old, config = home.node_key(), read_config(home.config)
    Authority(kits).renew_site("north")
    rejoin(kits / "north.zip", passphrase(kits), home)
    assert private_pem(home.node_key()) != private_pem(old)
    assert read_config(home.config).model_copy(update={"secure_aggregation": None}) == config.model_copy(
        update={"secure_aggregation": None}
    )
    with pytest.raises(InputError, match="another site"):
        rejoin(kits / "south.zip", passphrase(kits, "south"), home)


def test_a_persons_comments_outlive_a_newer_roster_and_a_renewed_kit(kits):
    home = joined(kits)
    commented = "# ours, change with care\n" + yaml.safe_dump(yaml.safe_load(home.config.read_text())) + "# the end\n"
    home.config.write_text(commented.replace("threads: 0", "threads: 3  # it has four"))
    Authority(kits).renew_site("south")
    update_roster(kits / "roster.json", home, accept=["south"])
    Authority(kits).renew_site("north")
    rejoin(kits / "north.zip", passphrase(kits), home)
    text = home.config.read_text()
    assert text.startswith("# ours, change with care\n")
    assert "threads: 3  # it has four\n" in text
    assert "# the end\n" in text
    config = read_config(home.config)
    assert config.threads == 3
    assert config.secure_aggregation.identities == home.roster().identities()


def test_an_older_roster_is_not_taken(kits):
    old = (kits / "roster.json").read_bytes()
    Authority(kits).revoke("south")
    home = joined(kits)
    update_roster(kits / "roster.json", home)
    (kits / "old.json").write_bytes(old)
    with pytest.raises(InputError, match="older"):
        update_roster(kits / "old.json", home)


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


def test_sites_that_joined_share_secrets_for_masks_pair_by_pair(kits):
    north, south = (read_pairs(name, masks(joined(kits, name))) for name in ("north", "south"))
    assert north.secret("south") == south.secret("north")
    Authority(kits).provision(consortium("north", "south", "east"))
    home = SiteHome(kits.parent / "north")
    update_roster(kits / "roster.json", home)
    east = read_pairs("east", masks(joined(kits, "east")))
    assert read_pairs("north", masks(home)).secret("east") == east.secret("north") != north.secret("south")


def masks(home: SiteHome) -> SecureAggregationSettings:
    found = read_config(home.config).secure_aggregation
    assert found is not None
    return found


def test_an_authority_cannot_put_a_mask_key_of_its_own_in_a_sites_place(kits):
    """The coordinator holds the authority: its signature alone must not be believed for mask keys."""
    certificate = x509.load_pem_x509_certificate((kits / "authority" / "ca.crt").read_bytes())
    key = load_node_key((kits / "authority" / "ca.key").read_bytes(), "ca.key")
    home = joined(kits)
    honest = read_membership(kits / "roster.json", certificate)
    member = honest.members["south"].model_copy(update={"masking": public_pem(new_masking_key()).decode()})
    forged = honest.model_copy(update={"members": {**honest.members, "south": member}, "serial": 9})
    forged.signed_by(key).write(kits / "forged.json")
    update_roster(kits / "forged.json", home)
    with pytest.raises(RosterError, match="not signed by that site"):
        read_pairs("north", masks(home))


def test_another_identity_of_a_known_site_is_believed_only_when_a_person_says_so(kits):
    home = joined(kits)
    before = home.roster_file.read_bytes()
    Authority(kits).renew_site("south")
    with pytest.raises(InputError, match=r"other identities than before. south: ([0-9a-f]{4} ){7}"):
        update_roster(kits / "roster.json", home)
    assert home.roster_file.read_bytes() == before
    update_roster(kits / "roster.json", home, accept=["south"])
    assert masks(home).identities["south"] == home.roster().members["south"].node


def keys_of(kits: Path, name: str) -> list[str]:
    return [key for key, site in Authority(kits).home.admitted().items() if site == name]


def test_renewed_keys_leave_the_old_ones_time_and_then_only_the_new_ones_hold(kits):
    authority = Authority(kits)
    (old,) = keys_of(kits, "north")
    authority.renew_site("north")
    assert keys_of(kits, "north") == [authority.home.sites()["north"].node, old]
    (kept,) = authority.home.sites()["north"].old
    assert timedelta(hours=71) < kept.until - datetime.now(UTC) <= timedelta(hours=72)
    authority.renew_site("south", timedelta(seconds=0.5))
    assert len(keys_of(kits, "south")) == 2
    time.sleep(0.6)
    assert keys_of(kits, "south") == [authority.home.sites()["south"].node]


def test_a_grace_of_nothing_shuts_the_old_keys_out_at_once(kits):
    Authority(kits).renew_site("north", timedelta(0))
    assert keys_of(kits, "north") == [Authority(kits).home.sites()["north"].node]
    assert Authority(kits).home.sites()["north"].old == ()


def test_the_grace_outlives_other_changes_of_the_list_and_a_second_renewal(kits):
    authority = Authority(kits)
    (first,) = keys_of(kits, "north")
    authority.renew_site("north")
    second = authority.home.sites()["north"].node
    authority.provision(consortium("north", "south", "east"))
    assert keys_of(kits, "north") == [second, first]
    authority.renew_site("north")
    assert keys_of(kits, "north")[1:] == [first, second]


def test_revocation_knows_no_grace(kits):
    authority = Authority(kits)
    authority.renew_site("north")
    authority.revoke("north")
    assert keys_of(kits, "north") == []
    authority.renew_site("north")
    assert keys_of(kits, "north") == [authority.home.sites()["north"].node], "what was revoked does not come back"


def test_the_consortium_says_how_long_old_keys_hold(tmp_path):
    content = {"name": "trial", "server": {"host": "h"}, "sites": ["north"], "renewal_grace_hours": 5}
    authority = Authority(tmp_path / "kits")
    authority.provision(Consortium.model_validate(content))
    authority.renew_site("north")
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
