"""Certificates of a consortium's server that hold for as long as a test wants."""

from __future__ import annotations

from pathlib import Path

from fedgraft.common.identity.keys import load_certificate, load_node_key
from fedgraft.server.provisioning.pki import server_certificate
from fedgraft.server.provisioning.provision import Authority

SECOND = 1 / 86400


def certify(kits: Path, days: float) -> None:
    """Give the server of these kits new certificates, by its own authority; up to -0.01 days, which have expired."""
    folder, home = kits / "authority", Authority(kits).home
    signs = load_certificate(folder / "ca.crt"), load_node_key((folder / "ca.key").read_bytes(), "ca.key")
    for certificate, key in (home.gate, home.inner):
        made = server_certificate(*signs, ["localhost", "127.0.0.1"], days)
        certificate.write_bytes(made.certificate)
        key.write_bytes(made.key)
