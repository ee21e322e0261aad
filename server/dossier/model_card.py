"""The model card: what the model is, on which data it stands, its figures with their support, and its limits."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.common.metrics.conformal import least_cases
from fedgraft.common.study.inputs import TableInput
from fedgraft.server.dossier.document import Block, Chapter, Fact, Missing, Section, table
from fedgraft.server.dossier.evidence import Evidence, words
from fedgraft.server.report import figures, tables
from fedgraft.server.report.history import enough, mapping, sequence, text
from fedgraft.server.report.subgroups import by_attribute


def model_card(evidence: Evidence) -> Chapter:
    """The chapter; intended use is left to a person."""
    return Chapter(
        "Model card",
        "What the run shows of the model. Figures are of test cases of the sites, with 95 % intervals where known.",
        (
            Section("Model", (_model(evidence),)),
            Section(
                "Intended use", (Missing("Purpose, users, patients, and what it must not be used for: a person."),)
            ),
            Section("Data", tuple(_data(evidence))),
            Section("Figures", tuple(_figures(evidence))),
            Section("Operating point", tuple(_points(evidence))),
            Section("Conformal sets", tuple(_sets(evidence))),
            Section("Subgroups", tuple(_subgroups(evidence))),
            Section("Limits", tuple(_limits(evidence))),
        ),
    )


def _model(evidence: Evidence) -> Block:
    manifest, study = evidence.manifest, evidence.study
    classes = [f"{task.name}: {', '.join(task.names)}" for task in study.tasks]
    spec = study.input
    seen = (
        f"{spec.width} columns"
        if isinstance(spec, TableInput)
        else f"images, {spec.channels} x {spec.size} x {spec.size}"
    )
    rows = {
        "study": f"{study.name}, digest {study.digest}",
        "model": f"{manifest.backbone}, SHA-256 {manifest.sha256}",
        "began from": manifest.how.rpartition("starting from ")[2] or manifest.how,
        "answers": "; ".join(classes),
        "sees": seen,
        "licence": manifest.licence,
        "made with": f"fedgraft {words(evidence.result.get('fedgraft'))}",
    }
    return table(("what", "value"), list(rows.items()), words=2)


def _data(evidence: Evidence) -> Iterator[Block]:
    how = "sites of a deployed consortium" if evidence.deployed else "folders on one machine (a simulation)"
    yield Fact(f"{len(evidence.sites)} sites took part, as {how}. {text(evidence.result.get('headline'))}.")
    if evidence.result.get("synthetic") is True:
        yield Fact("The data are synthetic: the figures say nothing of patients.")
    if evidence.sites:
        yield tables.cohorts(evidence.record)
    if any(not mapping(own).get("cases") for own in mapping(evidence.result.get("sites")).values()):
        yield Missing("Some sites tell no exact counts, by their policy or under masks.")
    yield Missing("How the data were collected, labelled and by whom, and whom they represent: a person at each site.")


def _figures(evidence: Evidence) -> Iterator[Block]:
    if not evidence.record.tasks:
        yield Missing("The run has no figures on test cases: no site let any out.")
    for task in evidence.record.tasks:
        shown = figures.site_metrics(evidence.record, task)
        if shown.rows:
            yield Fact(f"Task {task}:")
            yield shown
        else:
            yield Missing(f"Task {task} has no figures on test cases.")


def _points(evidence: Evidence) -> Iterator[Block]:
    found = False
    for task in evidence.record.tasks:
        shown = figures.at_operating_points(evidence.record, task)
        if shown.rows:
            found = True
            yield Fact(f"Task {task}, chosen on validation cases:")
            yield shown
    if not found:
        yield Missing("No operating point was chosen (evaluate.operating_point of the study).")


def _sets(evidence: Evidence) -> Iterator[Block]:
    asked = evidence.study.evaluate.conformal
    if asked is None:
        yield Missing("No conformal thresholds were asked for (evaluate.conformal of the study).")
        return
    for task in evidence.record.tasks:
        shown = figures.conformal_sets(evidence.record, task)
        if shown.rows:
            yield Fact(
                f"For a coverage of {asked:g}, task {task}: each site's threshold rests on its validation cases; it "
                "holds for new cases of that site that come as these did, and for no other hospital."
            )
            yield shown
        if any(line.cells[-1] == "no threshold" for line in shown.rows):
            why = f"too few validation cases ({least_cases(asked)} are needed), or no exact ones shown"
            yield Missing(f"Task {task}: some sites have no threshold: {why}.")


def _subgroups(evidence: Evidence) -> Iterator[Block]:
    asked = [(task, view) for task in evidence.record.tasks for view in by_attribute(evidence.record, task)]
    for task, view in asked:
        yield Fact(f"Task {task}, by {view.name}:")
        if view.table.rows:
            yield view.table
        yield from ((Fact if view.table.rows else Missing)(remark) for remark in view.remarks)
    if not asked:
        yield Missing("No figures by sex, age band or vendor were asked for (evaluate.subgroups of the study).")


def _limits(evidence: Evidence) -> Iterator[Block]:
    result = evidence.result
    for remark in sequence(result.get("remarks")):
        yield Fact(text(remark))
    if text(result.get("status")) != "completed":
        yield Fact(f"The run is {text(result.get('status'))}: not all sites that were asked took part to the end.")
    for task in evidence.record.tasks:
        final = evidence.record.final(task)
        if few := sorted(set(mapping(final.get("sites"))) - set(enough(final))):
            yield Fact(f"Task {task}: too few test cases to say anything of each of {', '.join(few)} alone.")
    missing, more = tables.refusals(evidence.record)
    if missing.rows:
        yield Fact(f"Sites were missing or refused {len(missing.rows) + more} times:")
        yield missing
    if evidence.study.plan and not any(mapping(row.get("observers")) for row in evidence.record.exchanges):
        yield Fact(
            "All test cases are of sites that took part in training: there is no external validation in this run."
        )
    yield Missing("Known failure cases and clinical limits: a person who knows the use.")
