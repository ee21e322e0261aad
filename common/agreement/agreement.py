"""What sites answered about one study, as a file that a run can be pinned to: its digest covers every answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, read_json
from fedgraft.common.protocol import words as said
from fedgraft.common.protocol.answer_words import read_answer
from fedgraft.common.protocol.answers import Pin, SiteAnswer, question
from fedgraft.common.protocol.bundle import WireError
from fedgraft.common.protocol.instructions import Code, Refusal
from fedgraft.common.study.study import Study

AGREEMENT = "agreement.json"
_FIX = "Ask the sites again: fedgraft study ask STUDY."
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SupplyAgreement:
    """Answers by site, and why others gave none. `study` and `question` are digests; `at` is when it was asked."""

    name: str
    study: str
    question: str
    at: str
    answers: Mapping[str, SiteAnswer]
    refusals: Mapping[str, Code]

    @classmethod
    def of(cls, study: Study, found: Mapping[str, SiteAnswer | Refusal], at: str) -> SupplyAgreement:
        """What sites said to a study; an answer under another name than the site's own does not count."""
        answers = {site: one for site, one in found.items() if isinstance(one, SiteAnswer)}
        refusals = {site: one.code for site, one in found.items() if isinstance(one, Refusal)}
        return cls(study.name, study.digest, question(study), at, answers, refusals)

    def plain(self) -> dict[str, Any]:
        """The same as values of JSON."""
        return {
            "name": self.name,
            "study": self.study,
            "question": self.question,
            "at": self.at,
            "answers": {site: answer.plain() for site, answer in self.answers.items()},
            "refusals": {site: code.value for site, code in self.refusals.items()},
        }

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.plain())).hexdigest()

    @property
    def pins(self) -> dict[str, Pin]:
        """What a run holds each site to."""
        return {site: answer.pin for site, answer in self.answers.items()}

    def content(self) -> dict[str, Any]:
        """The file: all of it with its digest."""
        return {"agreement": self.plain(), "digest": self.digest}


def read_agreement(path: Path) -> SupplyAgreement:
    """The agreement in a file, or in the folder that `fedgraft study ask` wrote. InputError if it is not as written."""
    path = path / AGREEMENT if path.is_dir() else path
    content = read_json(path)
    try:
        whole = said.mapping(content)
        found = _read(said.mapping(whole.get("agreement")))
        digest = said.text(whole, "digest")
    except WireError as error:
        raise InputError(f"{path}: is no agreement of sites: {error}.", fix=_FIX) from None
    if digest != found.digest:
        raise InputError(f"{path}: was changed since it was written: its digest does not fit.", fix=_FIX)
    return found


def agreed(path: Path, study: Study) -> SupplyAgreement:
    """The agreement to which a run of `study` is to be pinned; InputError unless it is about what the study asks."""
    agreement = read_agreement(path)
    if agreement.question != question(study):
        raise InputError(
            f"{path}: sites were asked about other tasks or columns than those of study {study.name}.", fix=_FIX
        )
    return agreement


def remarks(agreement: SupplyAgreement, study: Study, sites: Collection[str]) -> Iterator[str]:
    """What is to be said of a run over these sites that is pinned to it."""
    yield f"pinned to agreement {agreement.digest[:12]}, over {len(agreement.answers)} sites' answers"
    if agreement.study != study.digest:
        yield "the study was changed since the sites were asked: prices in the agreement are of another plan"
    if unasked := sorted(set(sites) - agreement.answers.keys()):
        yield f"nothing is pinned for {', '.join(unasked)}: the agreement has no answer of theirs"


def _read(words: Mapping[str, Any]) -> SupplyAgreement:
    answers = {site: read_answer(said.mapping(own)) for site, own in said.mapping(words.get("answers")).items()}
    if any(answer.site != site for site, answer in answers.items()):
        raise WireError("an answer under another name than its own")
    known, codes = {code.value for code in Code}, said.mapping(words.get("refusals"))
    if strange := [code for code in codes.values() if code not in known]:
        raise WireError(f"refusal {strange[0]!a}")
    study, asked = said.text(words, "study"), said.text(words, "question")
    if not _DIGEST.fullmatch(study) or not _DIGEST.fullmatch(asked):
        raise WireError("digests")
    refusals = {site: Code(code) for site, code in codes.items()}
    return SupplyAgreement(said.text(words, "name"), study, asked, said.text(words, "at"), answers, refusals)
