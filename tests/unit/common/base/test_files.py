"""Files are whole or not there, and equal contents have equal digests."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import (
    canonical_json,
    digest_arrays,
    load_tensors,
    parse_tensors,
    read_json,
    read_sealed,
    save_tensors,
    sealed,
    sha256_file,
    write_atomic,
    write_json,
)

ARRAYS = {
    "scalar": np.array(3, np.int64),
    "row": np.arange(6, dtype=np.float32),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "strided": np.arange(20, dtype=np.float32)[::3],
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, where, trouble) -> None:
    path = tmp_path / "kept.bin"
    write_atomic(path, b"old")

    def stop(*_: object) -> None:
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(where, stop)
        with pytest.raises(type(trouble)):
            write_atomic(path, b"new" * 1000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept.bin"]  # noqa: PTH208
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_nobody_ever_sees_a_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.bin"
    write_atomic(path, b"old")
    real, seen = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        seen.append((path.read_bytes(), self.read_bytes(), self.parent))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_atomic(path, b"new")
    assert seen == [(b"old", b"new", tmp_path)]


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "a" / "b" / "secret", b"x", private=True)
        write_json(tmp_path / "secret.json", {}, private=True)
        save_tensors(tmp_path / "secret.safetensors", ARRAYS, private=True)
        write_atomic(tmp_path / "open", b"x", private=False)
        (tmp_path / "was_open").write_bytes(b"x")
        (tmp_path / "was_open").chmod(0o666)
        write_atomic(tmp_path / "was_open", b"x", private=True)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(("secret", "secret.json", "secret.safetensors", "was_open"), 0o600) | {"open": 0o644}


def test_json_has_one_form() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == canonical_json({"a": "ü", "b": [1, 2.5]})
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'.encode()
    content = {"x": 0.1, "y": [None, True, "\n"], "z": -1e-300}
    assert json.loads(canonical_json(content)) == content


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_json_does_not_know(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": [number]})
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": number})
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"{'a': 1}"])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.json: is not valid JSON"):
        read_json(path)
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        read_json(tmp_path / "none.json")


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    save_tensors(tmp_path / "t.safetensors", ARRAYS)
    back = load_tensors(tmp_path / "t.safetensors")
    assert set(back) == set(ARRAYS)
    for key, array in ARRAYS.items():
        assert (back[key].shape, back[key].dtype) == (array.shape, array.dtype)
        assert np.array_equal(back[key], array)


def test_damaged_tensors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, ARRAYS)
    data = path.read_bytes()
    for cut in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(InputError, match="here: is not a whole safetensors file"):
            parse_tensors(data[:cut], "here")
    rng = np.random.default_rng(0)
    refused = 0
    for at in range(0, min(len(data), 500)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        try:
            parse_tensors(bytes(flipped), "here")
        except InputError:
            refused += 1
    assert refused > 50
    with pytest.raises(InputError, match="cannot be read"):
        load_tensors(tmp_path / "none.safetensors")


def test_a_digest_ignores_order_and_layout() -> None:
    backwards = {key: np.array(ARRAYS[key], order="F") for key in reversed(ARRAYS)}
    assert digest_arrays(backwards) == digest_arrays(ARRAYS)
    assert digest_arrays({}) != digest_arrays({"": np.zeros(0)})


@pytest.mark.parametrize(
    "other",
    [
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros(4, np.float64)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.zeros((4, 1), np.float32)},
        {"a": np.float32([0, 0, 0, 1e-45])},
        {"a": np.float32([0, 0, 0, -0.0])},
        {"a": np.zeros(4, np.float32), "b": np.zeros(0, np.float32)},
        {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)},
        {},
    ],
)
def test_a_digest_sees_every_difference(other: dict[str, np.ndarray]) -> None:
    assert digest_arrays(other) != digest_arrays({"a": np.zeros(4, np.float32)})


def test_a_number_and_a_row_of_one_differ() -> None:
    assert digest_arrays({"a": np.array(1)}) != digest_arrays({"a": np.array([1])})


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_one_flipped_bit_of_tensors_that_were_saved_is_noticed(tmp_path) -> None:
    """Own entries of a site, answers of a comparison and replies that are sent again were other ones, in silence."""
    path = tmp_path / "a.safetensors"
    save_tensors(path, ARRAYS)
    whole, wrong = path.read_bytes(), 0
    for at in range(len(whole)):
        for bit in (1, 8, 128):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                found = load_tensors(path)
            except InputError as error:
                wrong += str(path) in str(error)
            else:  # of the name under which the digest stands, or of blanks
                assert digest_arrays(found) == digest_arrays(ARRAYS)
    assert wrong > 2 * len(whole)


@pytest.mark.parametrize(
    "changed", ['{"a": 2, "seal": "%s"}', '{"a": 1}', '{"a": 1, "b": null, "seal": "%s"}', "[1]", "7"]
)
def test_what_is_sealed_is_read_as_it_was_written_or_not_at_all(tmp_path, changed: str) -> None:
    path = tmp_path / "facts.json"
    write_json(path, sealed({"a": 1}))
    assert read_sealed(path) == {"a": 1}
    seal = read_json(path)["seal"]
    path.write_text(changed % seal if "%s" in changed else changed)
    with pytest.raises(InputError, match=r"facts\.json: is not as it was written"):
        read_sealed(path)
