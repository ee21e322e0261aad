"""Answers and pins as a message or a file says them: read with bounds, since whoever wrote them is not trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fedgraft.common.protocol import words as said
from fedgraft.common.protocol.answers import AskedPrice, Band, Pin, SiteAnswer, TaskSupply
from fedgraft.common.protocol.bundle import WireError

_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_answer(words: Mapping[str, Any]) -> SiteAnswer:
    """An answer from what a message or a file says; WireError on garbage."""
    tasks = {task: _supply(said.mapping(own)) for task, own in said.mapping(words.get("tasks")).items()}
    price = said.mapping(words.get("price"))
    epsilon, delta = said.number(price.get("epsilon")), said.number(price.get("delta"))
    if epsilon < 0 or not 0 <= delta < 1:
        raise WireError("price")
    if not (site := said.text(words, "site")):
        raise WireError("site")
    return SiteAnswer(
        site=site,
        exact=said.flag(words, "exact"),
        observer=said.flag(words, "observer"),
        patients=_band(words.get("patients")),
        tasks=tasks,
        facts={name: _bands(own) for name, own in said.mapping(words.get("facts")).items()},
        missing=_bands(words.get("missing")),
        price=AskedPrice(epsilon, delta, said.text(price, "refused")),
        state=_hex(words, "state"),
        seal=_hex(words, "seal"),
    )


def read_pins(value: object) -> dict[str, Pin]:
    """Pins by site; WireError on garbage."""
    found = {site: said.mapping(own) for site, own in said.mapping(value).items()}
    return {site: Pin(_hex(own, "answer"), _hex(own, "state"), _hex(own, "seal")) for site, own in found.items()}


def _supply(words: Mapping[str, Any]) -> TaskSupply:
    bands = _bands(words.get("words")), _band(words.get("rest")), _band(words.get("unknown"))
    return TaskSupply(*bands, said.text(words, "others"), said.text(words, "silent"))


def _bands(value: object) -> dict[str, Band]:
    return {word: _band(band) for word, band in said.mapping(value).items()}


def _band(value: object) -> Band:
    if not isinstance(value, list) or len(value) != 2:
        raise WireError("band")
    least, most = (said.count({"band": one}, "band") for one in value)
    if least > most:
        raise WireError("band")
    return least, most


def _hex(words: Mapping[str, Any], key: str) -> str:
    value = said.text(words, key)
    if not _DIGEST.fullmatch(value):
        raise WireError(key)
    return value
