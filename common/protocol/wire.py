"""Instructions, updates and refusals as Flower records: the only file that knows record keys.

Arrays travel raw (C order, little endian) in a Flower ArrayRecord, together as one Array, since Flower's work is per
Array; large ones that stay in this process travel as views of their own. All else travels as one JSON text. Nothing is
ever unpickled. Decoding checks all that it reads and raises WireError, never anything else, on garbage. The refusal of
a hello has exchange 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedgraft.common.privacy.accountant import Spend, Unit
from fedgraft.common.protocol import words as said
from fedgraft.common.protocol.answer_words import read_answer, read_pins
from fedgraft.common.protocol.answers import SiteAnswer
from fedgraft.common.protocol.bundle import (
    MOST_ARRAYS,
    NAMES,
    LastUnpacked,
    WireError,
    form_of,
    name_of,
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
ASK = "query.ask"
PING = "query.ping"
"""Flower message types of all that is ever asked of a site; a ping is empty, and so is its answer."""

_RAW, _BUNDLE = "fedgraft.raw", "fedgraft.bundle"
_SMALL_BYTES = 1 << 14
_TENSORS, _METRICS, _MASKED, _WORDS = "tensors", "metrics", "secure_aggregation", "words"


def pack_hello(hello: Hello) -> RecordDict:
    """The first message to a site as records, as `unpack_hello` takes them."""
    words = {"protocol": hello.protocol, "study": hello.study.decode()}
    if hello.pins:
        pins = {site: pin.plain() for site, pin in hello.pins.items()}
        words |= {"agreement": hello.agreement, "pins": pins}
    return _pack(words)


def unpack_hello(records: RecordDict) -> Hello:
    """Hello from records; WireError on garbage."""
    words = _words(records)
    agreement, pins = ("", {}) if "pins" not in words else (said.text(words, "agreement"), read_pins(words["pins"]))
    return Hello(said.long_text(words, "study"), said.count(words, "protocol"), agreement, pins)


def pack_answer(answer: SiteAnswer) -> RecordDict:
    """A site's answer to `ASK` as records, as `unpack_answer` takes them."""
    return _pack(answer.plain())


def unpack_answer(records: RecordDict) -> SiteAnswer | Refusal:
    """An answer or a refusal from records; WireError on garbage."""
    words = _words(records)
    return _refusal(words) if "refused" in words else read_answer(words)


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
    return Greeting(
        site=name_of(words.get("site")),
        cases=said.counts(words.get("cases")),
        labels={task: said.counts(counts) for task, counts in said.mapping(words.get("labels")).items()},
        problems=said.counts(words.get("problems")),
        observer=said.flag(words, "observer"),
        labelled=said.flag(words, "labelled"),
        evaluates=said.flag(words, "evaluates"),
        source=said.flag(words, "source"),
        nonce=said.nonce(words, "nonce"),
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
    return RecordDict({_WORDS: ConfigRecord({"json": said.write(words)}), _TENSORS: tensors})


def unpack_instruction(records: RecordDict) -> Instruction:
    """An instruction from records; WireError on garbage."""
    words = _words(records)
    evaluate = words.get("evaluate")
    if evaluate not in (None, "train", "val", "test", "all"):
        raise WireError("evaluate")
    return Instruction(
        study=said.text(words, "study"),
        exchange=said.count(words, "exchange"),
        stage=said.count(words, "stage"),
        round=said.count(words, "round"),
        work=said.flag(words, "work"),
        evaluate=evaluate,
        tensors=_UNPACKED.of(records.get(_TENSORS)),
        held=said.text(words, "held"),
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
    taken = {"cluster": reply.cluster} if reply.cluster else {}
    facts = {"weights": dict(reply.weights), "train": dict(reply.train)}
    records = _pack({"exchange": reply.exchange, **facts, **spent, **taken})
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
        contexts = said.mapping(words["contexts"])
        parts = _unpack_arrays(records.get(_MASKED))
        if contexts.keys() != parts.keys():
            raise WireError("contexts")
        digests = {part: said.text(contexts, part) for part in contexts}
        return MaskedUpdate(said.count(words, "exchange"), parts, digests, _spend(words.get("spent")))
    metrics: dict[str, dict[str, np.ndarray]] = {}
    for name, array in _unpack_arrays(records.get(_METRICS)).items():
        task, slash, key = name.partition("/")
        if not slash:
            raise WireError("metrics")
        metrics.setdefault(task, {})[key] = array
    return Update(
        exchange=said.count(words, "exchange"),
        tensors=_unpack_arrays(records.get(_TENSORS)),
        weights=said.numbers(words.get("weights")),
        train=said.numbers(words.get("train")),
        metrics=metrics,
        spent=_spend(words.get("spent")),
        cluster=said.text(words, "cluster") if "cluster" in words else "",
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
    return RecordDict({_WORDS: ConfigRecord({"json": said.write(words)})})


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
        found = (
            unpack_bundle(memoryview(array.data)) if array.stype == _BUNDLE else {name_of(key): _unpack_array(array)}
        )
        if not arrays.keys().isdisjoint(found) or len(arrays) + len(found) > MOST_ARRAYS:
            raise WireError("two arrays of one name, or too many")
        arrays |= found
    return arrays


_UNPACKED = LastUnpacked(_unpack_arrays)
"""What an instruction brings is the same record for all sites of a process."""


def _unpack_array(array: Array) -> np.ndarray:
    dtype = NAMES.get(array.dtype)
    if array.stype != _RAW or dtype is None:
        raise WireError("array of a kind that does not travel")
    shape, count = form_of(array.shape, dtype)
    if count * dtype.itemsize != len(array.data):
        raise WireError("array with a wrong number of bytes")
    return np.frombuffer(array.data, dtype=dtype).reshape(shape)


def _words(records: RecordDict) -> dict[str, Any]:
    record = records.get(_WORDS)
    if not isinstance(record, ConfigRecord):
        raise WireError("no words")
    return said.read(record.get("json"))


def _groups(value: object) -> AggregationGroups | None:
    if value is None:
        return None
    groups = said.mapping(value)
    found = {}
    for part, group in said.mapping(groups.get("parts")).items():
        sites = said.mapping(group)
        found[part] = {site: said.text(sites, site) for site in sites}
    return AggregationGroups(said.count(groups, "number"), found)


def _spend(value: object) -> Spend | None:
    if value is None:
        return None
    found = said.mapping(value)
    if set(found) != {field.name for field in fields(Spend)}:
        raise WireError("spent")
    epsilon, delta = said.number(found["epsilon"]), said.number(found["delta"])
    words = (found["unit"], found["relation"], found["accountant"])
    known = (get_args(Unit), ("add/remove",), ("rdp", "prv"))
    if not (epsilon >= 0 and 0 < delta < 1) or any(word not in all_ for word, all_ in zip(words, known, strict=True)):
        raise WireError("spent")
    unit, relation, accountant = words
    return Spend(epsilon, delta, unit, relation, accountant, said.count(found, "steps"))


def _refusal(words: Mapping[str, Any]) -> Refusal:
    try:
        code = Code(said.text(words, "refused"))
    except WireError:
        raise
    except ValueError:
        raise WireError("refused") from None
    return Refusal(exchange=said.count(words, "exchange"), code=code, site=said.text(words, "site"))
