"""Keys of a consortium: making, storing and showing them. ECDSA P-384 says who a site is; X25519 masks its sums."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fedgraft.common.base.errors import InputError

NodeKey = ec.EllipticCurvePrivateKey
MaskingKey = x25519.X25519PrivateKey

_AGAIN = "Restore it from where it was copied, or ask the coordinator for a new kit."


def new_node_key() -> NodeKey:
    """A key to sign with: P-384, which Flower asks of its nodes."""
    return ec.generate_private_key(ec.SECP384R1())


def new_masking_key() -> MaskingKey:
    """A new X25519 key, with which a site agrees on masks with every other."""
    return x25519.X25519PrivateKey.generate()


def private_pem(key: NodeKey | MaskingKey) -> bytes:
    """A private key as PKCS8."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: NodeKey | MaskingKey) -> bytes:
    """The public half of a key, as PEM (SubjectPublicKeyInfo)."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_node_key(pem: bytes, source: str) -> NodeKey:
    """A P-384 key from PEM; InputError names `source` if it is none."""
    key = _load(pem, source)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError(f"{source}: is no P-384 key.")
    return key


def load_masking_key(pem: bytes, source: str) -> MaskingKey:
    """An X25519 key from PEM; InputError as for `load_node_key`."""
    key = _load(pem, source)
    if not isinstance(key, x25519.X25519PrivateKey):
        raise InputError(f"{source}: is no X25519 key.")
    return key


def _load(pem: bytes, source: str) -> object:
    try:
        return load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{source}: is no private key, or is locked with a passphrase.", fix=_AGAIN) from None


def load_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file; InputError if there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.", fix=_AGAIN) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: is no certificate.", fix=_AGAIN) from None


def load_bundle(path: Path) -> bytes:
    """All certificates in a PEM file, and nothing else of it; InputError if there is none."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.", fix=_AGAIN) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: is no certificate.", fix=_AGAIN) from None
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in found)


def load_node_public(pem: bytes, source: str) -> ec.EllipticCurvePublicKey:
    """A public P-384 key from PEM; InputError if it is none."""
    key = _load_public(pem, source)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError(f"{source}: is no public P-384 key.")
    return key


def load_masking_public(pem: bytes, source: str) -> x25519.X25519PublicKey:
    """A public X25519 key from PEM; InputError if it is none."""
    key = _load_public(pem, source)
    if not isinstance(key, x25519.X25519PublicKey):
        raise InputError(f"{source}: is no public X25519 key.")
    return key


def _load_public(pem: bytes, source: str) -> object:
    try:
        return load_pem_public_key(pem.decode("ascii").encode())  # who shows the key reads it as text
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{source}: is no public key.") from None


def sign(key: NodeKey, message: bytes) -> bytes:
    """An ECDSA signature with SHA-384, DER-encoded."""
    return key.sign(message, ec.ECDSA(hashes.SHA384()))


def signed(public: ec.EllipticCurvePublicKey, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is by the owner of `public` over this very message."""
    try:
        public.verify(signature, message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def fingerprint(pem: str) -> str:
    """A public key in a form that people can compare over the telephone: 8 groups of 4 hex digits."""
    key = cast("ec.EllipticCurvePublicKey | x25519.X25519PublicKey", load_pem_public_key(pem.encode()))
    digits = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:32]
    return "-".join(digits[place : place + 4] for place in range(0, 32, 4))


def is_fingerprint_of(typed: str, pem: str) -> bool:
    """Whether somebody typed the fingerprint of this public key, in whatever groups; all of it, and nothing else."""
    return re.sub(r"[\s:-]", "", typed).lower() == fingerprint(pem).replace("-", "")
