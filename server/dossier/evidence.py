"""All that a dossier is made from: the run's record, its study and model, and the passports that were collected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there
from fedgraft.common.evidence.audit_sheet import NOT_TESTED, verdict
from fedgraft.common.evidence.passport import ledger_in_words, releases_in_words, sheet_of
from fedgraft.common.evidence.signed_parts import Document
from fedgraft.common.models.weights import WeightsManifest, load_manifest
from fedgraft.common.study.study import Study
from fedgraft.server.dossier.document import Block, Fact, Missing, table
from fedgraft.server.report.history import Row, RunRecord, mapping, read_run, text
from fedgraft.server.runs.passports import collected
from fedgraft.server.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Evidence:
    """One finished run."""

    record: RunRecord
    study: Study
    manifest: WeightsManifest
    passports: dict[str, Document]
    deployed: bool

    @classmethod
    def of(cls, run: Path) -> Evidence:
        """InputError if the run is not finished, or a file or passport of it is not as it was written."""
        record = read_run(run)
        if not record.result:
            raise InputError(f"{run}: the run has not finished.", fix="Continue it with --resume.")
        study = RunFolder(run).study()
        deployed = is_there(run / "deployment.json")
        return cls(record, study, load_manifest(str(run)), collected(run), deployed)

    @property
    def result(self) -> Row:
        """The run's `result.json`."""
        return self.record.result

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that took part."""
        return tuple(sorted(mapping(self.result.get("sites"))))

    def no_passport(self) -> Iterator[Missing]:
        """The sites that have handed on none."""
        if absent := [site for site in self.sites if site not in self.passports]:
            fix = "fedgraft site passport writes it, and fedgraft server collect keeps it"
            yield Missing(f"No passport of {', '.join(absent)} was collected: {fix}.")


def left_by_site(evidence: Evidence) -> list[Block]:
    """By site what its own log says has left, and on which grounds."""
    rows = []
    for site, document in evidence.passports.items():
        egress = document.content("egress")
        for kind, own in egress["kinds"].items():
            rows.append((site, kind.replace("_", " "), f"{own['messages']:,}", f"{own['bytes']:,}"))
    blocks: list[Block] = [table(("site", "kind", "messages", "bytes of arrays"), rows, words=2)] if rows else []
    for site, document in evidence.passports.items():
        grounds = "; ".join(document.content("egress")["grounds"])
        blocks.append(Fact(f"{site} let it go on these grounds: {grounds or 'none'}."))
        blocks += [Fact(f"{site}: {line}.") for line in releases_in_words(document.content("releases"))]
        whose = "its key in the consortium" if document.head().identity == "consortium" else "a key of its own"
        blocks.append(Fact(f"{site} signed its passport with {whose}, {document.fingerprint()}."))
    return [*blocks, *evidence.no_passport()]


def attacked(evidence: Evidence) -> list[Block]:
    """What the hospitals' own attacks found, and which made none."""
    rows, absent = [], []
    for site, document in evidence.passports.items():
        sheet = sheet_of(document)
        if sheet is None:
            absent.append(site)
            continue
        for row in sheet.content("audit")["membership"]:
            tested = NOT_TESTED not in row
            figures = (f"{row['auc']:.2f}", f"{row['tpr']:.1%}") if tested else ("–", "–")
            rows.append((site, row["target"], row["attack"], verdict(row), *figures))
    blocks: list[Block] = []
    if rows:
        columns = ("site", "attacked", "attack", "finding", "AUC", "members found at 1 % false")
        blocks += [table(columns, rows, words=4), Fact("An attack that finds nobody is no proof that none can.")]
    if absent:
        blocks.append(Missing(f"{', '.join(absent)} made no audit of the model (fedgraft site audit)."))
    return [*blocks, *evidence.no_passport()]


def ledgers(evidence: Evidence) -> list[Block]:
    """What the sites' ledgers say of the study, from their passports."""
    return [Fact(f"{site}: {ledger_in_words(doc.content('ledger'))}.") for site, doc in evidence.passports.items()]


def words(value: object) -> str:
    """A value of the run as text, and a dash for none."""
    return text(value) or "–"
