"""The consortium's own authority and the server's certificates, made with the `cryptography` library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedgraft.common.identity.keys import NodeKey, new_node_key, private_pem

_AUTHORITY_DAYS = 3650
_BACKDATED = timedelta(minutes=15)
"""Clocks differ: a fresh certificate must hold at once for a site whose clock is slow."""


@dataclass(frozen=True)
class Issued:
    """A certificate with its private key, both as PEM."""

    certificate: bytes
    key: bytes


def new_authority(consortium: str) -> Issued:
    """A self-signed authority that signs certificates and rosters of one consortium, and nothing else."""
    key = new_node_key()
    name = _name(f"{consortium} authority")
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Issued(builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM), private_pem(key))


def server_certificate(authority: x509.Certificate, key: NodeKey, names: Sequence[str], days: float) -> Issued:
    """A certificate for a server that is reached under `names`, which are host names or IP addresses."""
    own = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(names[0]), authority.subject, own.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return Issued(builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM), private_pem(own))


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
