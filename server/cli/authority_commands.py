"""What `fedgraft server` does with the authority of a consortium: certificates, kits, and whose keys count."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import sha256_file
from fedgraft.common.identity.keys import fingerprint
from fedgraft.server.provisioning.actions import NOBODY, ByWhom
from fedgraft.server.provisioning.consortium import read_consortium
from fedgraft.server.provisioning.home import ServerHome, expires
from fedgraft.server.provisioning.provision import Authority


def provision(path: Path, out: Path, by: ByWhom = NOBODY) -> None:
    """Make authority, server and kits, or what is not there yet of them."""
    authority, consortium = Authority(out), read_consortium(path)
    if authority.begun:
        authority.actions.record(by, "provision", {"consortium": consortium.model_dump(mode="json")})
    made = authority.provision(consortium)
    for name, kit in made.kits.items():
        _say_kit(authority, name, kit)
    if made.awaited:
        say(f"Each makes its own keys when it joins; enrol what they send: {', '.join(made.awaited)}")
    else:
        say("All sites are enrolled.")
    say(f"Copy {out / 'server'} to the server, and keep {out / 'authority'} off it.")
    say(f"The server will listen on {ServerHome(out / 'server').facts().server.says_where}.")


def enrol(paths: Sequence[Path], out: Path, grace_hours: float | None, by: ByWhom = NOBODY) -> None:
    """Take in the keys that sites made."""
    authority = Authority(out)
    digests = {str(path): _digest(path) for path in paths}
    authority.actions.record(by, "enrol", {"files": digests, "grace_hours": grace_hours})
    for path in paths:
        grace = None if grace_hours is None else timedelta(hours=grace_hours)
        found = authority.enrol(path, grace, digests[str(path)])
        _say_old_keys(authority.home, found.site)
        say(f"{found.site} is enrolled, fingerprint {fingerprint(found.member.node)}")
    say(f"Copy {out / 'server' / 'sites.json'} to the server, and send {out / 'roster.json'} to all sites.")


def revoke(name: str, out: Path, by: ByWhom = NOBODY) -> None:
    """Shut a site out."""
    Authority(out).actions.record(by, "revoke", {"site": name})
    Authority(out).revoke(name)
    say(f"{name} is revoked. Copy {out / 'server' / 'sites.json'} to the server; it shuts the site out in seconds.")


def renew(name: str | None, out: Path, by: ByWhom = NOBODY) -> None:
    """Renew the server's certificates, or a site's kit."""
    authority = Authority(out)
    authority.actions.record(by, "renew", {"site": name})
    if name is None:
        authority.renew_server()
        say(f"New certificates until {expires(authority.home.gate[0]):%Y-%m-%d}. Restart the server to use them.")
    else:
        _say_kit(authority, name, authority.renew_site(name))
        say("For `fedgraft site rejoin`. Keys that it has now are good until its new ones are enrolled.")


def _say_kit(authority: Authority, name: str, kit: Path) -> None:
    say(f"{name}: send {kit}, and tell the code in {authority.code_file(name)} another way")


def _say_old_keys(home: ServerHome, name: str) -> None:
    """Until when keys hold that a site had before, and whether it works with them at this moment."""
    if not (old := home.sites()[name].old):
        return
    say(f"{name}: its old keys hold until {max(key.until for key in old):%Y-%m-%d %H:%M} UTC.")
    connected = _is_connected(home, name)
    if connected:
        say(f"Warning: {name} is connected at this moment with one of its keys. Until then it has to start again.")
    elif connected is None:
        say(f"The server does not run here, so that nobody knows whether {name} is connected: tell it to start again.")


def _is_connected(home: ServerHome, name: str) -> bool | None:
    """Whether a site is connected to the server of this folder; None if that server does not run here."""
    from fedgraft.server.operations.control import RunControl

    try:
        with RunControl(home) as control:
            return any(node.online and node.name == name for node in control.nodes())
    except (RunError, InputError):
        return None


def _digest(path: Path) -> str:
    """Of a file; nothing if it cannot be read, which is said by who reads it."""
    try:
        return sha256_file(path)
    except OSError:
        return ""
