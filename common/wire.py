"""Orders, updates and refusals as Flower records: the only file that knows record keys.

Arrays travel raw (C order, little endian) in a Flower ArrayRecord, small ones together as one Array, since Flower's
work is per Array; everything else travels as one JSON text. Nothing is ever unpickled. Decoding checks all that it
reads and raises WireError, never anything else, on garbage. The refusal of a hello has exchange 0.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from typing import Any, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.orders import Arrays, Code, Greeting, Hello, Order, Refusal, Update
from common.privacy import Spend, Unit

HELLO = "query.hello"
VISIT = "train.visit"
"""Flower message types of the two things that are ever asked of a site."""

_RAW, _BUNDLE = "fedgraft.raw", "fedgraft.bundle"
_SMALL_BYTES = 1 << 14
_ALIGN = 8
_DTYPES = {
    np.dtype(name): name for name in ("float32", "float64", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
_NAMES = {name: dtype for dtype, name in _DTYPES.items()}
_TENSORS, _METRICS, _WORDS = "tensors", "metrics", "words"


class WireError(ValueError):
    """A message that is not what it should be."""


def pack_hello(hello: Hello) -> RecordDict:
    """Hello as records."""
    return _pack({"protocol": hello.protocol, "study": hello.study.decode()})


def unpack_hello(records: RecordDict) -> Hello:
    """Hello from records; WireError on garbage."""
    words = _words(records)
    return Hello(study=_text(words, "study").encode(), protocol=_count(words, "protocol"))


def pack_greeting(greeting: Greeting) -> RecordDict:
    """A greeting as records."""
    words = {
        "site": greeting.site,
        "cases": dict(greeting.cases),
        "labels": {task: dict(counts) for task, counts in greeting.labels.items()},
        "problems": dict(greeting.problems),
        "observer": greeting.observer,
    }
    return _pack(words)


def unpack_greeting(records: RecordDict) -> Greeting | Refusal:
    """A greeting or refusal from records; WireError on garbage."""
    words = _words(records)
    if "refused" in words:
        return _refusal(words)
    labels = words.get("labels")
    if not isinstance(labels, dict):
        raise WireError("labels")
    return Greeting(
        site=_text(words, "site"),
        cases=_counts(words.get("cases")),
        labels={str(task): _counts(counts) for task, counts in labels.items()},
        problems=_counts(words.get("problems")),
        observer=words.get("observer") is True,
    )


def pack_tensors(arrays: Arrays, *, views: bool = False) -> ArrayRecord:
    """Arrays as a record; one record may serve many messages.

    `views` saves the copy of every array, for messages that stay in this process: then nobody may write to `arrays`
    as long as the record lives.
    """
    record, small = ArrayRecord(), {}
    for key, array in arrays.items():
        if array.nbytes <= _SMALL_BYTES:
            small[key] = array
        else:
            record[key] = _pack_array(array, views)
    if small:
        record[_BUNDLE] = _pack_bundle(small)
    return record


def pack_order(order: Order, tensors: ArrayRecord) -> RecordDict:
    """An order as records, its tensors already packed."""
    words = {
        "study": order.study,
        "exchange": order.exchange,
        "stage": order.stage,
        "round": order.round,
        "work": order.work,
        "evaluate": order.evaluate,
        "held": order.held,
    }
    return RecordDict({_WORDS: ConfigRecord({"json": json.dumps(words)}), _TENSORS: tensors})


def unpack_order(records: RecordDict) -> Order:
    """An order from records; WireError on garbage."""
    words = _words(records)
    evaluate = words.get("evaluate")
    if evaluate not in (None, "train", "val", "test", "all") or not isinstance(words.get("work"), bool):
        raise WireError("evaluate or work")
    return Order(
        study=_text(words, "study"),
        exchange=_count(words, "exchange"),
        stage=_count(words, "stage"),
        round=_count(words, "round"),
        work=words["work"],
        evaluate=evaluate,
        tensors=_unpack_arrays(records.get(_TENSORS)),
        held=_text(words, "held"),
    )


def pack_reply(reply: Update | Refusal, *, views: bool = False) -> RecordDict:
    """A site's answer to an order as records; `views` as for `pack_tensors`."""
    if isinstance(reply, Refusal):
        return _pack({"exchange": reply.exchange, "refused": reply.code.value, "site": reply.site})
    words = {"exchange": reply.exchange, "weights": dict(reply.weights), "train": dict(reply.train)}
    records = _pack(words | ({"spent": asdict(reply.spent)} if reply.spent else {}))
    metrics = {f"{task}/{key}": value for task, sums in reply.metrics.items() for key, value in sums.items()}
    for name, arrays in ((_TENSORS, reply.tensors), (_METRICS, metrics)):
        if arrays:
            records[name] = pack_tensors(arrays, views=views)
    return records


def unpack_reply(records: RecordDict) -> Update | Refusal:
    """A site's answer from records; WireError on garbage."""
    words = _words(records)
    if "refused" in words:
        return _refusal(words)
    metrics: dict[str, dict[str, np.ndarray]] = {}
    for name, array in _unpack_arrays(records.get(_METRICS)).items():
        task, slash, key = name.partition("/")
        if not slash:
            raise WireError("metrics")
        metrics.setdefault(task, {})[key] = array
    return Update(
        exchange=_count(words, "exchange"),
        tensors=_unpack_arrays(records.get(_TENSORS)),
        weights=_numbers(words.get("weights")),
        train=_numbers(words.get("train")),
        metrics=metrics,
        spent=_spend(words.get("spent")),
    )


def size(records: RecordDict) -> int:
    """Bytes of the payload that these records carry, tensors and words; what Flower adds around is not counted."""
    total = 0
    for record in records.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for array in record.values())
        else:
            total += sum(len(str(value)) for value in record.values())
    return total


def _pack(words: Mapping[str, Any]) -> RecordDict:
    return RecordDict({_WORDS: ConfigRecord({"json": json.dumps(words)})})


def _type_that_travels(array: np.ndarray) -> str:
    name = _DTYPES.get(array.dtype)
    if name is None or sys.byteorder != "little":
        raise TypeError(f"arrays of {array.dtype} do not travel on a {sys.byteorder}-endian machine")
    return name


def _pack_array(array: np.ndarray, view: bool) -> Array:
    name = _type_that_travels(array)
    if not view:
        return Array(name, array.shape, _RAW, array.tobytes())
    packed = Array(name, array.shape, _RAW, b"")
    # Flower insists on bytes only when it builds an Array; a read-only view serves as well within one process.
    packed.data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data.toreadonly()  # type: ignore[assignment]
    return packed


def _unpack_arrays(record: object) -> dict[str, np.ndarray]:
    if record is None:
        return {}
    if not isinstance(record, ArrayRecord):
        raise WireError("not an array record")
    arrays: dict[str, np.ndarray] = {}
    for key, array in record.items():
        found = _unpack_bundle(array) if array.stype == _BUNDLE else {str(key): _unpack_array(array)}
        if not arrays.keys().isdisjoint(found):
            raise WireError("two arrays of one name")
        arrays |= found
    return arrays


def _pack_bundle(arrays: Arrays) -> Array:
    """Many arrays as one: 4 bytes with the length of a JSON list of name, type and shape, the list, the arrays."""
    index = [(key, _type_that_travels(array), array.shape) for key, array in arrays.items()]
    text = json.dumps(index).encode()
    parts = [len(text).to_bytes(4, "little"), text, bytes(-(4 + len(text)) % _ALIGN)]
    for array in arrays.values():
        parts += [array.tobytes(), bytes(-array.nbytes % _ALIGN)]
    data = b"".join(parts)
    return Array("uint8", (len(data),), _BUNDLE, data)


def _unpack_bundle(bundle: Array) -> dict[str, np.ndarray]:
    data, arrays = memoryview(bundle.data), {}
    length = int.from_bytes(data[:4], "little")
    at = 4 + length + -(4 + length) % _ALIGN
    for key, dtype, shape in _index(bytes(data[4 : 4 + length])):
        count = math.prod(shape)
        if key in arrays or count * dtype.itemsize > len(data) - at:
            raise WireError("bundle with too few bytes, or two arrays of one name")
        arrays[key] = np.frombuffer(data, dtype, count, at).reshape(shape) if count else np.zeros(shape, dtype)
        at += count * dtype.itemsize + -(count * dtype.itemsize) % _ALIGN
    if at != len(data):
        raise WireError("bundle with too many bytes")
    return arrays


@lru_cache(maxsize=64)
def _index(text: bytes) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Names, types and shapes from a bundle's list; kept, since it is the same in every message of a stage."""
    try:
        index = [(key, _NAMES[name], tuple(shape)) for key, name, shape in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise WireError("bundle") from None
    if any(not isinstance(key, str) or any(type(n) is not int or n < 0 for n in shape) for key, _, shape in index):
        raise WireError("bundle")
    return index


def _unpack_array(array: Array) -> np.ndarray:
    dtype = _NAMES.get(array.dtype)
    if array.stype != _RAW or dtype is None:
        raise WireError("array of a kind that does not travel")
    shape = tuple(array.shape)
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(array.data):
        raise WireError("array with a wrong number of bytes")
    return np.frombuffer(array.data, dtype=dtype).reshape(shape)


def _words(records: RecordDict) -> dict[str, Any]:
    record = records.get(_WORDS)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise WireError("no words")
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        raise WireError("words are not JSON") from None
    if not isinstance(words, dict):
        raise WireError("words are no mapping")
    return words


def _text(words: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := words.get(key), str):
        raise WireError(key)
    return value


def _count(words: Mapping[str, Any], key: str) -> int:
    value = words.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WireError(key)
    return value


def _counts(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise WireError("counts")
    return {str(key): _count(value, key) for key in value}


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise WireError("number")
    return float(value)


def _numbers(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise WireError("numbers")
    return {str(key): _number(number) for key, number in value.items()}


def _spend(value: object) -> Spend | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(Spend)}:
        raise WireError("spent")
    epsilon, delta = _number(value["epsilon"]), _number(value["delta"])
    words = (value["unit"], value["relation"], value["accountant"])
    known = (get_args(Unit), ("add/remove",), ("rdp", "prv"))
    if not (epsilon >= 0 and 0 < delta < 1) or any(word not in all_ for word, all_ in zip(words, known, strict=True)):
        raise WireError("spent")
    unit, relation, accountant = words
    return Spend(epsilon, delta, unit, relation, accountant, _count(value, "steps"))


def _refusal(words: Mapping[str, Any]) -> Refusal:
    try:
        code = Code(_text(words, "refused"))
    except ValueError:
        raise WireError("refused") from None
    return Refusal(exchange=_count(words, "exchange"), code=code, site=_text(words, "site"))
