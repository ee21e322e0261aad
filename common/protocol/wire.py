"""Instructions, updates and refusals as Flower records: the only file that knows record keys.

Arrays travel raw (C order, little endian) in a Flower ArrayRecord, together as one Array, since Flower's work is per
Array; large ones that stay in this process travel as views of their own. All else travels as one JSON text. Nothing is
ever unpickled. Decoding checks all that it reads and raises WireError, never anything else, on garbage. The refusal of
a hello has exchange 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedgraft.common.privacy.accountant import Spend, Unit
from fedgraft.common.protocol.bundle import (
    NAMES,
    WireError,
    pack_bundle,
    type_that_travels,
    unpack_bundle,
)
from fedgraft.common.protocol.instructions import (
    AggregationGroups,
    Answer,
    Arrays,
    Code,
    Greeting,
    Hello,
    Instruction,
    MaskedUpdate,
    Refusal,
    Update,
)

HELLO = "query.hello"
VISIT = "train.visit"
PING = "query.ping"
"""Flower message types of all that is ever asked of a site; a ping is empty, and so is its answer."""

_RAW, _BUNDLE = "fedgraft.raw", "fedgraft.bundle"
_SMALL_BYTES = 1 << 14
_TENSORS, _METRICS, _MASKED, _WORDS = "tensors", "metrics", "secure_aggregation", "words"


def pack_hello(hello: Hello) -> RecordDict:
    """The first message to a site as records, as `unpack_hello` takes them."""
    return _pack({"protocol": hello.protocol, "study": hello.study.decode()})


def unpack_hello(records: RecordDict) -> Hello:
    """Hello from records; WireError on garbage."""
    words = _words(records)
    return Hello(study=_text(words, "study").encode(), protocol=_count(words, "protocol"))


def pack_greeting(greeting: Greeting) -> RecordDict:
    """A site's answer to hello as records, as `unpack_greeting` takes them."""
    words = {
        "site": greeting.site,
        "cases": dict(greeting.cases),
        "labels": {task: dict(counts) for task, counts in greeting.labels.items()},
        "problems": dict(greeting.problems),
        "observer": greeting.observer,
        "labelled": greeting.labelled,
        "evaluates": greeting.evaluates,
        "source": greeting.source,
        "nonce": greeting.nonce,
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
        labelled=words.get("labelled") is True,
        evaluates=words.get("evaluates") is True,
        source=words.get("source") is True,
        nonce=_text(words, "nonce"),
    )


def pack_tensors(arrays: Arrays, *, views: bool = False) -> ArrayRecord:
    """Arrays as a record; one record may serve many messages.

    `views` saves the copy of every array, for messages that stay in this process: then nobody may write to `arrays`
    as long as the record lives.
    """
    record, small = ArrayRecord(), {}
    for key, array in arrays.items():
        # What goes over a network is copied anyway, and there every Array costs a request or two.
        if not views or array.nbytes <= _SMALL_BYTES:
            small[key] = array
        else:
            record[key] = _view(array)
    if small:
        data = pack_bundle(small)
        record[_BUNDLE] = Array("uint8", (len(data),), _BUNDLE, data)
    return record


def pack_instruction(instruction: Instruction, tensors: ArrayRecord) -> RecordDict:
    """An instruction as records, its tensors already packed."""
    words = {
        "study": instruction.study,
        "exchange": instruction.exchange,
        "stage": instruction.stage,
        "round": instruction.round,
        "work": instruction.work,
        "evaluate": instruction.evaluate,
        "held": instruction.held,
    }
    if instruction.groups is not None:
        words["groups"] = {
            "number": instruction.groups.number,
            "parts": {p: dict(c) for p, c in instruction.groups.parts.items()},
        }
    return RecordDict({_WORDS: ConfigRecord({"json": json.dumps(words)}), _TENSORS: tensors})


def unpack_instruction(records: RecordDict) -> Instruction:
    """An instruction from records; WireError on garbage."""
    words = _words(records)
    evaluate = words.get("evaluate")
    if evaluate not in (None, "train", "val", "test", "all") or not isinstance(words.get("work"), bool):
        raise WireError("evaluate or work")
    return Instruction(
        study=_text(words, "study"),
        exchange=_count(words, "exchange"),
        stage=_count(words, "stage"),
        round=_count(words, "round"),
        work=words["work"],
        evaluate=evaluate,
        tensors=_unpack_arrays(records.get(_TENSORS)),
        held=_text(words, "held"),
        groups=_groups(words.get("groups")),
    )


def pack_reply(reply: Answer, *, views: bool = False) -> RecordDict:
    """A site's answer to an instruction as records; `views` as for `pack_tensors`."""
    if isinstance(reply, Refusal):
        return _pack({"exchange": reply.exchange, "refused": reply.code.value, "site": reply.site})
    spent = {"spent": asdict(reply.spent)} if reply.spent else {}
    if isinstance(reply, MaskedUpdate):
        records = _pack({"exchange": reply.exchange, "contexts": dict(reply.contexts), **spent})
        if reply.parts:
            records[_MASKED] = pack_tensors(reply.parts, views=views)
        return records
    records = _pack({"exchange": reply.exchange, "weights": dict(reply.weights), "train": dict(reply.train), **spent})
    metrics = {f"{task}/{key}": value for task, sums in reply.metrics.items() for key, value in sums.items()}
    for name, arrays in ((_TENSORS, reply.tensors), (_METRICS, metrics)):
        if arrays:
            records[name] = pack_tensors(arrays, views=views)
    return records


def unpack_reply(records: RecordDict) -> Answer:
    """A site's answer from records; WireError on garbage."""
    words = _words(records)
    if "refused" in words:
        return _refusal(words)
    if "contexts" in words:
        contexts = words["contexts"]
        parts = _unpack_arrays(records.get(_MASKED))
        if not isinstance(contexts, dict) or contexts.keys() != parts.keys():
            raise WireError("contexts")
        digests = {part: _text(contexts, part) for part in contexts}
        return MaskedUpdate(_count(words, "exchange"), parts, digests, _spend(words.get("spent")))
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


def _view(array: np.ndarray) -> Array:
    packed = Array(type_that_travels(array), array.shape, _RAW, b"")
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
        found = unpack_bundle(memoryview(array.data)) if array.stype == _BUNDLE else {str(key): _unpack_array(array)}
        if not arrays.keys().isdisjoint(found):
            raise WireError("two arrays of one name")
        arrays |= found
    return arrays


def _unpack_array(array: Array) -> np.ndarray:
    dtype = NAMES.get(array.dtype)
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


def _groups(value: object) -> AggregationGroups | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(parts := value.get("parts"), dict):
        raise WireError("groups")
    found = {}
    for part, group in parts.items():
        if not isinstance(group, dict):
            raise WireError("groups")
        found[str(part)] = {str(site): _text(group, site) for site in group}
    return AggregationGroups(_count(value, "number"), found)


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
