"""Persons who decide: a name, a key that only they can use, and what it signed, in a form that others can check.

Keys and signatures have the form of OpenSSH, so that a key in ssh-agent will do, also of a hardware token:
`ssh-ed25519` and `sk-ssh-ed25519@openssh.com`, whose signature says too that somebody touched the token. Where fedgraft
makes the key itself it lies in a file under a passphrase.
"""

from __future__ import annotations

import binascii
import hashlib
import secrets
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, read_json, write_json
from fedgraft.common.base.value import Value
from fedgraft.common.identity.ssh_wire import SshReader, string

PLAIN, TOKEN = "ssh-ed25519", "sk-ssh-ed25519@openssh.com"
SHORTEST = 10
"""Letters of a passphrase."""
_TOUCHED = 1
"""The bit by which a token says that somebody was there."""

_ALPHABETS = frozenset({"LATIN", "GREEK", "CYRILLIC"})
"""Those that have letters in common to the eye."""


def _demand_plain(name: str) -> str:
    """ValueError for a name that looks like another one: hidden letters, blanks, two spellings, two alphabets."""
    alphabets = {unicodedata.name(one, "").partition(" ")[0] for one in name} & _ALPHABETS
    hidden = any(unicodedata.category(one) == "Cf" for one in name)
    if hidden or len(alphabets) > 1 or name != unicodedata.normalize("NFKC", " ".join(name.split())):
        raise ValueError("looks like another name: one alphabet, one blank between words, and no hidden letters")
    return name


PersonName = Annotated[str, Field(pattern=r"^[^\W_][\w .'-]{0,63}$"), AfterValidator(_demand_plain)]
_NAME: TypeAdapter[str] = TypeAdapter(PersonName)
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
"""When, in UTC, to the second."""
PublicKey = Annotated[str, Field(pattern=r"^(ssh-ed25519|sk-ssh-ed25519@openssh\.com) [A-Za-z0-9+/=]{40,400}$")]


class Signed(Value):
    """Whose signature of some words it is: the person's name and public key, and the signature in base64."""

    name: PersonName
    key: PublicKey
    signature: Annotated[str, Field(max_length=2000)]

    def holds(self, words: Mapping[str, Any]) -> bool:
        """Whether the owner of the key has signed these very words."""
        try:
            return _verified(_blob(self.key), b64decode(self.signature, validate=True), signed_bytes(self.name, words))
        except (ValueError, InvalidSignature):
            return False


class Signer(Protocol):
    """A key at hand: in a file whose passphrase was typed, or in an agent."""

    @property
    def public(self) -> str:
        """Its public half, as OpenSSH writes it: the kind and the rest in base64."""

    def sign(self, data: bytes) -> bytes:
        """The signature of `data` as OpenSSH has it. InputError if the key's owner does not agree."""


def demand_name(name: str) -> None:
    """InputError if this is no name of a person."""
    try:
        _NAME.validate_python(name)
    except ValidationError:
        raise InputError(
            f"{name!a}: is no name: letters of one alphabet, digits, single blanks, '.', '-' and \"'\", 64 at most."
        ) from None


def alike(name: str) -> str:
    """What two names have in common that people, or file systems, take for one."""
    return name.casefold()


class PersonKey:
    """A key that fedgraft made."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes_raw()
        self.public = f"{PLAIN} {b64encode(string(PLAIN.encode()) + string(raw)).decode()}"

    def sign(self, data: bytes) -> bytes:
        """The signature as OpenSSH has it."""
        return string(PLAIN.encode()) + string(self._key.sign(data))


def new_person_key(path: Path, passphrase: str) -> PersonKey:
    """Make a key, and write it under a passphrase. InputError if that is short."""
    if len(passphrase) < SHORTEST:
        raise InputError(f"The passphrase has fewer than {SHORTEST} letters.", fix="Choose a longer one.")
    key, salt = Ed25519PrivateKey.generate(), secrets.token_bytes(16)
    closed = BestAvailableEncryption(stretched(passphrase, salt))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, closed).decode()
    write_json(path, {"salt": salt.hex(), "key": pem}, private=True)
    return PersonKey(key)


def open_person_key(path: Path, passphrase: str) -> PersonKey:
    """The key in a file. InputError if there is none, or the passphrase is another one."""
    content = read_json(path)
    try:
        salt = bytes.fromhex(content["salt"])
        key = load_pem_private_key(content["key"].encode(), stretched(passphrase, salt))
    except (ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
        raise InputError(f"{path}: cannot be opened.", fix="Is the passphrase right?") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: is no ed25519 key.")
    return PersonKey(key)


def stretched(passphrase: str, salt: bytes) -> bytes:
    """128 hex digits of a passphrase: whoever has what they are compared with or open pays 32 MiB for each guess."""
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=1 << 15, r=8, p=1, maxmem=1 << 26).hex().encode()


def signed_by(name: str, signer: Signer, words: Mapping[str, Any]) -> Signed:
    """The person's signature of these words."""
    signature = signer.sign(signed_bytes(name, words))
    return Signed(name=name, key=signer.public, signature=b64encode(signature).decode())


def signed_bytes(name: str, words: Mapping[str, Any]) -> bytes:
    """What a signature is over: nothing that SSH asks a key to sign begins so."""
    return b"fedgraft person 1\n" + canonical_json({"name": name, "words": words})


def words_digest(name: str, words: Mapping[str, Any]) -> str:
    """By what a record knows that a person has signed these words, 64 hex digits."""
    return hashlib.sha256(signed_bytes(name, words)).hexdigest()


def release_words(study: str, exchange: int, decided: Mapping[str, Any]) -> dict[str, Any]:
    """What a person signs who decides on a held answer: `decided` says what, of which answer, and when."""
    said = {"decision": decided["decision"], "answer": decided["digest"], "at": decided["at"]}
    return {"action": "release", "study": study, "exchange": exchange, **said}


def approval_words(study: str, at: str) -> dict[str, Any]:
    """What a person signs who approves a study, by its digest, at that time."""
    return {"action": "approve", "study": study, "at": at}


def fingerprint_of(key: str) -> str:
    """A public key as `ssh-keygen -l` shows it, for people to compare."""
    return "SHA256:" + b64encode(hashlib.sha256(_blob(key)).digest()).decode().rstrip("=")


def _blob(key: str) -> bytes:
    """The bytes of a public key; ValueError if they are not of the kind that is said."""
    kind, _, rest = key.partition(" ")
    try:
        blob = b64decode(rest, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if SshReader(blob).string() != kind.encode():
        raise ValueError("of another kind")
    return blob


def _verified(blob: bytes, signature: bytes, data: bytes) -> bool:
    key, given = SshReader(blob), SshReader(signature)
    kind = key.string()
    public = Ed25519PublicKey.from_public_bytes(key.string())
    if given.string() != kind:
        return False
    own = given.string()
    if kind == PLAIN.encode():
        key.demand_end()  # one key has one spelling, and one fingerprint
        given.demand_end()
        public.verify(own, data)
        return True
    application = key.string()
    key.demand_end()
    flags, counter = given.take(1), given.take(4)
    given.demand_end()
    if not flags[0] & _TOUCHED:
        return False
    public.verify(own, hashlib.sha256(application).digest() + flags + counter + hashlib.sha256(data).digest())
    return True
