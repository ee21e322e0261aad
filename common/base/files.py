"""Files on disk: written whole or not at all, tensors without pickle, digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as format_safetensors

from fedgraft.common.base.disk import instead_of
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.locking import lock

PACKAGE = Path(__file__).parents[2]
"""Where fedgraft is installed, or the links of a checkout are."""
CONFIGS = PACKAGE / "configs"
"""The files that ship: studies, scenarios, sites, weights."""


_DIGEST = "arrays_sha256"
_SEAL = "seal"
_NAME = 60
"""So much of a file's name is in that of the file which becomes it: names may be 255 bytes long, and letters four."""


def home() -> Path:
    """Where fedgraft keeps what outlives a run: `$FEDGRAFT_HOME`, else ~/.fedgraft."""
    return Path(os.environ.get("FEDGRAFT_HOME") or Path.home() / ".fedgraft")


def make_folder(path: Path) -> None:
    """Make a folder for its owner alone, unless there is one, and all that are missing above it."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True, mode=0o700)


def open_private(path: Path, mode: str) -> IO[Any]:
    """Open a file; one that is made is readable by its owner alone."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))


def write_atomic(path: Path, data: bytes, *, private: bool = True, sync: bool = True) -> None:
    """Replace `path` by a file with `data`: after a crash it is the old one or the new one, never a part.

    It is readable by its owner alone, unless it is not `private`. Missing folders are made. Without `sync` that holds
    for a kill of the process, and not for a loss of power.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name[:_NAME]}.{secrets.token_hex(4)}")
    with instead_of(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
    if sync:
        sync_folder(path.parent)


@contextlib.contextmanager
def private_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and all that is written below it meanwhile or was there before, its owner's alone: 700 and 600.

    Whatever writes it: the mask of the process holds for other libraries and for processes that are started as well.
    """
    before = os.umask(0o077)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):  # somebody else's folder has somebody else's rules
            folder.chmod(0o700)
        yield
    finally:
        os.umask(before)
        make_private(folder)


def make_private(folder: Path) -> None:
    """Take from all others what they may do with a folder and all below it; links are left alone."""
    for place, folders, names in os.walk(folder):
        own = [(Path(place), 0o700), *((Path(place, name), 0o600) for name in names)]
        own += [(Path(place, name), 0o700) for name in folders]
        for path, mode in own:
            with contextlib.suppress(PermissionError, FileNotFoundError):
                if not path.is_symlink() and path.stat().st_mode & 0o077:
                    path.chmod(mode)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that lock the same path out, by a file beside it that stays; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def demand_own(path: Path, *, readable: bool = False) -> None:
    """InputError if others than its owner may read this file, or change it where they may read it.

    OSError if there is none.
    """
    if path.stat().st_mode & (0o022 if readable else 0o077):
        does, mode = ("change", "go-w") if readable else ("read", "600")
        raise InputError(f"{path}: others may {does} this file.", fix=f"chmod {mode} {path}")


def sync_folder(folder: Path) -> None:
    """See to it that the names in a folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(content: Any) -> bytes:
    """`content` as JSON with one form only: keys sorted, no spaces, UTF-8. ValueError for NaN or infinity."""
    return _CANONICAL.encode(content).encode()


def write_json(path: Path, content: Any, *, private: bool = True, sync: bool = True) -> None:
    """Write `content` as readable JSON, all or nothing; `sync` as above. ValueError for NaN or infinity."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text.encode() + b"\n", private=private, sync=sync)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` and a digest of all of it, for a file that decides what is computed or said. See `read_sealed`."""
    return {**content, _SEAL: _seal_of(content)}


def unsealed(content: Any, source: str) -> dict[str, Any]:
    """What `sealed` was given; InputError names `source` if it is not that, to the last letter."""
    if not isinstance(content, dict) or content.get(_SEAL) != _seal_of(plain := without_seal(content)):
        raise InputError(f"{source}: is not as it was written: its digest is another.")
    return plain


def is_sealed(content: Any) -> bool:
    """Whether the content of a file says that it is sealed."""
    return isinstance(content, dict) and _SEAL in content


def without_seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a sealed file, believed or not."""
    return {key: value for key, value in content.items() if key != _SEAL}


def read_sealed(path: Path) -> dict[str, Any]:
    """What was written of `sealed`; InputError names the file if it cannot be read, or one letter is another."""
    return unsealed(read_json(path), str(path))


def _seal_of(content: Mapping[str, Any]) -> str:
    try:
        return hashlib.sha256(canonical_json(content)).hexdigest()
    except ValueError:  # half a letter, or no number, which nobody has written
        return ""


def is_there(path: Path) -> bool:
    """Whether something has this name, readable or not: what cannot be read must not be taken for what is not there.

    OSError if it cannot be known, as in a folder that this account may not open.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


def read_json(path: Path, sha256: str | None = None) -> Any:
    """The content of a JSON file; InputError names the file if it cannot be read, is no JSON, or not of this digest."""
    try:
        data = path.read_bytes()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise InputError(f"{path}: is another file than it was: its digest is another.")
        return json.loads(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON: {error}.") from None


def save_tensors(path: Path, arrays: Mapping[str, np.ndarray], *, private: bool = True, sync: bool = True) -> str:
    """Write arrays as a safetensors file, all or nothing; the SHA-256 of the file, 64 hex digits. `sync` is as above.

    The digest of the arrays is in the file, and `load_tensors` compares it.
    """
    whole = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    data = format_safetensors(whole, {_DIGEST: digest_arrays(whole)})
    write_atomic(path, data, private=private, sync=sync)
    return hashlib.sha256(data).hexdigest()


def load_tensors(path: Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; InputError names the file if it is missing, damaged, or not of this digest.

    Nor are arrays given that are not those which `save_tensors` wrote: one flipped bit is another model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{path}: is not as it was written: its digest is another.")
    arrays = parse_tensors(data, str(path))
    if (written := _digest_in(data)) is not None and written != digest_arrays(arrays):
        raise InputError(f"{path}: is not as it was written: the digest of its arrays is another.")
    return arrays


def _digest_in(data: bytes) -> str | None:
    """The digest that a whole safetensors file has in its head; None in one of another origin."""
    size = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get(_DIGEST)
    return None if found is None else str(found)


def parse_tensors(data: bytes, source: str) -> dict[str, np.ndarray]:
    """The arrays in the bytes of a safetensors file; InputError names `source` if they are damaged."""
    try:
        return dict(parse_safetensors(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{source}: is not a whole safetensors file: {error}.") from None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and contents, whatever the order of the mapping."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.asarray(arrays[key], order="C")
        digest.update(json.dumps([key, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
