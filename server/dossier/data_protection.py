"""The data-flow sheet, and the facts for a data-protection impact assessment."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.server.dossier.document import Block, Chapter, Fact, Missing, Section
from fedgraft.server.dossier.evidence import Evidence, attacked, ledgers, left_by_site
from fedgraft.server.report import tables
from fedgraft.server.report.history import mapping


def data_flow(evidence: Evidence) -> Chapter:
    """What went to and fro, as the coordinator counted it and as each site's own log has it."""
    return Chapter(
        "Data-flow sheet",
        "What the sites sent and received. The coordinator's own count comes first, then what each site's log says.",
        (
            Section("Stages", (tables.stages(evidence.record),)),
            Section("As the coordinator counted it", tuple(_counted(evidence))),
            Section("As the sites logged it", tuple(left_by_site(evidence))),
            Section(
                "Storage and deletion",
                (Missing("Where model, logs and passports are kept, how long, and who reads them."),),
            ),
        ),
    )


def _counted(evidence: Evidence) -> Iterator[Block]:
    moved = mapping(evidence.result.get("bytes"))
    yield Fact(
        f"{len(evidence.record.exchanges)} exchanges; {tables.size(moved.get('up'))} from sites, "
        f"{tables.size(moved.get('down'))} to sites."
    )
    if evidence.study.secure_aggregation:
        yield Fact("Updates were masked: the coordinator could read sums over several sites alone.")
    else:
        yield Fact("Updates were not masked: the coordinator could read each site's own.")


def impact_facts(evidence: Evidence) -> Chapter:
    """What a DPIA (GDPR Art. 35) asks that a run can answer; the rest is named."""
    return Chapter(
        "Facts for a data-protection impact assessment",
        "What the run shows of the questions in GDPR Art. 35(7). It is no assessment, and nobody's legal opinion.",
        (
            Section("Description of the processing", tuple(_processing(evidence))),
            Section("Approval at the sites", tuple(_approvals(evidence))),
            Section("Differential privacy", tuple(_privacy(evidence))),
            Section("Attacks by the sites themselves", tuple(attacked(evidence))),
            Section(
                "Necessity, rights and consultation",
                (
                    Missing("Legal basis, necessity and proportionality of the processing."),
                    Missing("How patients are informed, and how they object or withdraw."),
                    Missing("Whether data-protection officers and patients were consulted, and what they said."),
                    Missing("The assessment of the remaining risk, and who accepts it."),
                ),
            ),
        ),
    )


def _processing(evidence: Evidence) -> Iterator[Block]:
    tasks = ", ".join(task.name for task in evidence.study.tasks)
    yield Fact(
        f"Study {evidence.study.name} ({evidence.study.digest}) over {len(evidence.sites)} sites; tasks: {tasks}."
    )
    if evidence.sites:
        yield tables.cohorts(evidence.record)
    yield Missing("Controllers and processors, and the contracts between them.")


def _approvals(evidence: Evidence) -> Iterator[Block]:
    for site, document in evidence.passports.items():
        approved = document.content("study")["approved"]
        if approved:
            yield Fact(f"{site} approved the study by its digest at {approved}.")
        else:
            yield Missing(f"{site}: its passport has no approval on record.")
    yield from evidence.no_passport()


def _privacy(evidence: Evidence) -> Iterator[Block]:
    spent = mapping(evidence.result.get("privacy"))
    if spent:
        yield tables.privacy(evidence.record)
    else:
        yield Missing("The run does not say what the study cost the sites.")
    if spent and not any(mapping(own).get("dp") for own in spent.values()):
        yield Fact("No site worked with differential privacy.")
    plain = sorted(site for site, own in spent.items() if mapping(own).get("without_dp"))
    if plain:
        yield Fact(f"Without noise something left {', '.join(plain)}: epsilon says nothing of that.")
    yield from ledgers(evidence)
