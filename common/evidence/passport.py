"""The passport of a run at one site: its parts, whether they agree, and their words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedgraft.common.base.console.printable import in_one_line
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.errors import InputError
from fedgraft.common.evidence.audit_sheet import NOT_TESTED, verdict
from fedgraft.common.evidence.signed_parts import Document, parse_document, read_document
from fedgraft.common.identity.keys import is_fingerprint_of
from fedgraft.common.identity.persons import Signed, approval_words, fingerprint_of, release_words

PARTS = ("study", "code", "egress", "releases", "ledger", "audit", "refusals")


def read_passport(path: Path) -> Document:
    """The passport in a file, not checked yet; InputError if it is none."""
    return read_document(path)


def passport_faults(document: Document) -> tuple[str, ...]:
    """What was changed in a passport, or does not belong together, in words; none if all is as the site signed it."""
    if broken := document.faults():
        return broken
    head = document.head()
    if head.kind != "passport" or head.parts != PARTS:
        return (f"it is a document of kind {head.kind}, and has not the parts of a passport",)
    found = []
    if document.content("study").get("digest") != head.study:
        found.append("part study is of another study than head")
    found += _sheet_faults(document)
    found += _signature_faults(document)
    if not found and not _can_be_read(document):
        found.append("its parts do not say what those of a passport say")
    return tuple(found)


def _can_be_read(document: Document) -> bool:
    """Whether a site signed what a passport holds, and not something else under the same names."""
    try:
        passport_in_words(document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return True


def sheet_of(document: Document) -> Document | None:
    """The audit sheet in a passport, not checked; None if no audit was made."""
    content = document.content("audit")
    return None if NOT_TESTED in content else parse_document(content.get("sheet"), f"{document.source}: audit")


def _sheet_faults(document: Document) -> Iterator[str]:
    try:
        sheet = sheet_of(document)
    except InputError:
        yield "the part audit holds no audit sheet"
        return
    if sheet is None:
        return
    if faults := sheet.faults():
        yield f"the sheet in part audit: {'; '.join(faults)}"
        return
    own, whole = sheet.head(), document.head()
    if (own.kind, own.site, own.study) != ("audit", whole.site, whole.study):
        yield "the sheet in part audit is of another site or study"


def _signature_faults(document: Document) -> Iterator[str]:
    """Signatures of persons that are not over what the passport says was signed."""
    study = document.content("study")
    try:
        digest = str(study["digest"])
        signed = [("part study: the approval", study.get("approval_signed"), approval_words(digest, study["approved"]))]
        signed += [
            (f"part releases: exchange {one['exchange']}", one["signed"], release_words(digest, one["exchange"], one))
            for one in document.content("releases")["decided"]
        ]
    except (KeyError, TypeError, AttributeError):
        yield "its parts do not say what those of a passport say"
        return
    for what, signature, words in signed:
        if signature is not None and not _holds(signature, words):
            yield f"{what} is not signed by the person that it names"


def _holds(signature: Any, words: Mapping[str, Any]) -> bool:
    try:
        return Signed.model_validate(signature).holds(words)
    except ValidationError:
        return False


def _approved(study: Mapping[str, Any]) -> str:
    if not study["approved"]:
        return "not on record"
    return (
        f"{study['approved']}, by {_person(study['approved_by'], study['approval_signed'], study['approver_removed'])}"
    )


def _person(by: str | None, signature: Mapping[str, Any] | None, removed: str | None) -> str:
    """Who decided, by which key, and whether that person was removed since."""
    if signature is None:
        return f"{by or 'nobody named'}, not signed"
    since = "" if removed is None else f", removed since {removed}"
    return f"{signature['name']}, signed with {fingerprint_of(signature['key'])}{since}"


def passport_in_words(document: Document) -> list[str]:
    """The lines that a person reads."""
    head, egress = document.head(), document.content("egress")
    study, code, ledger = (document.content(name) for name in ("study", "code", "ledger"))
    lines = [
        f"Passport of site {head.site} for study {study['name']} ({head.study}), made {head.made}",
        f"Approved at the site: {_approved(study)}",
        f"Code: fedgraft {code['fedgraft']}, digest {code['digest'][:12]}; plug-ins: {_pairs(code['plugins'])}",
        "What left:",
        *(
            f"  {kind}: {own['messages']} messages, {own['bytes']:,} bytes of arrays"
            for kind, own in egress["kinds"].items()
        ),
        f"  on the grounds: {'; '.join(egress['grounds']) or 'none'}",
    ]
    lines += list(releases_in_words(document.content("releases")))
    lines.append(f"Privacy: {ledger_in_words(ledger)}")
    sheet = sheet_of(document)
    if sheet is None:
        lines.append(f"Audit: not tested: {document.content('audit')[NOT_TESTED]}")
    else:
        for row in sheet.content("audit")["membership"]:
            lines.append(f"Audit, {row['target']}, {row['attack']}: {verdict(row)}")
    refused = document.content("refusals")
    lines.append(f"Refused: instructions {_pairs(refused['instructions'])}; charges {_pairs(refused['charges'])}")
    return [in_one_line(line) for line in lines]


def releases_in_words(releases: Mapping[str, Any]) -> Iterator[str]:
    """Who let the last that leaves go, from a passport's part; a line each."""
    for one in releases["decided"]:
        what = "released" if one["decision"] == "signed" else "NOT released"
        who = _person(one["by"], one["signed"], one["removed"])
        yield in_one_line(f"Answer {one['digest'][:12]} to exchange {one['exchange']}: {what} by {who}, {one['at']}")
    for exchange in releases["waiting"]:
        yield in_one_line(f"The answer to exchange {exchange} waits for a person's decision")
    if not releases["decided"] and not releases["waiting"]:
        held = releases["policy"] == "hold"
        yield "Released: nothing was held" + (" yet, though policy holds the last that leaves" if held else "")


def ledger_in_words(ledger: Mapping[str, Any]) -> str:
    """What the study cost, from a passport's part."""
    if not ledger["charges"]:
        return "nothing was charged to the ledger for this study"
    return (
        f"{ledger['charges']} charges, epsilon {ledger['study']:.2f} at delta {ledger['delta']:.1e} "
        f"for one {ledger['unit']}; all studies together {ledger['before']:.2f} before and {ledger['after']:.2f} after"
    )


def verify_passports(paths: Sequence[Path], fingerprints: Sequence[str]) -> int:
    """Say of each file whether it is as its site signed it, and who that is; 1 if any is not."""
    expected = dict(_named(one) for one in fingerprints)
    wrong = 0
    for path in paths:
        document = read_passport(path)
        faults = [*passport_faults(document)]
        if not faults and (known := expected.get(document.head().site)) is not None:
            faults += (
                [] if is_fingerprint_of(known, document.head().key) else ["its key is not the one of that fingerprint"]
            )
        wrong += bool(faults)
        if faults:
            say(f"{path}: NOT as it was signed: {'; '.join(faults)}.")
            continue
        for line in passport_in_words(document):
            say(line)
        say(_signer(document, checked=document.head().site in expected))
    return int(wrong > 0)


def _signer(document: Document, *, checked: bool) -> str:
    head = document.head()
    if head.identity == "drawn":
        return f"{document.source}: whole; signed with a key that was drawn at the site, which no consortium knows."
    says = "which is the one you gave" if checked else "compare it with what the site's people say"
    return f"{document.source}: whole; signed with the key {document.fingerprint()}, {says}."


def _named(text: str) -> tuple[str, str]:
    site, _, value = text.partition("=")
    if not site or not value:
        raise InputError(f"--fingerprint {text}: is not NAME=FINGERPRINT.")
    return site, value


def _pairs(values: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{key} {value[:12] if isinstance(value, str) else value}" for key, value in values.items()) or "none"
    )
