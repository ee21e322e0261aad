"""Headings of the EU's technical documentation, with what the run can put under them.

AI Act: Regulation (EU) 2024/1689, Annex IV. Medical devices: Regulation (EU) 2017/745 (MDR), Annex II.
"""

from __future__ import annotations

from fedgraft.server.dossier.document import Block, Chapter, Fact, Missing, Section
from fedgraft.server.dossier.evidence import Evidence
from fedgraft.server.report import tables
from fedgraft.server.report.history import mapping, text

_CARD = "See the model card: "


def ai_act(evidence: Evidence) -> Chapter:
    """Annex IV of the AI Act, heading by heading."""
    there = {
        "figures": evidence.record.tasks,
        "operating point": any(mapping(evidence.result.get("operating_points")).values()),
        "conformal sets": evidence.result.get("conformal"),
        "subgroups": evidence.result.get("subgroups"),
    }
    shown = ", ".join(part for part, found in there.items() if found)
    figures: Block = Fact(f"{_CARD}{shown}.") if shown else Missing("The run has no figures.")
    return Chapter(
        "Technical documentation, AI Act Annex IV",
        "The headings of Annex IV. A run fills few of them.",
        (
            Section(
                "1. General description of the AI system",
                (
                    Fact(f"{_CARD}model. Version: SHA-256 {evidence.manifest.sha256}."),
                    tables.environment(evidence.record),
                    Missing("Intended purpose, provider, form of delivery, user interface, instructions for use."),
                ),
            ),
            Section(
                "2. Elements of the system and its development",
                (
                    Fact(f"{_CARD}model, data. Methods: stages in the data-flow sheet, and the run's study.yaml."),
                    figures,
                    Missing(
                        "Design choices and their reasons, data provenance and labelling, human oversight (Art. 14)."
                    ),
                    Missing("Changes that are planned in advance, and cybersecurity measures of the system in use."),
                ),
            ),
            Section(
                "3. Monitoring, functioning and control",
                (
                    Fact(f"{_CARD}limits."),
                    Missing("Foreseeable unintended outcomes, oversight measures, input specifications."),
                ),
            ),
            Section("4. Appropriateness of the performance metrics", (Missing("Why these metrics suit the purpose."),)),
            Section("5. Risk management system (Art. 9)", (Missing("All of it."),)),
            Section(
                "6. Changes through the lifecycle", (Missing("This run is one version; what came before and after."),)
            ),
            Section(
                "7. Harmonised standards applied", (Missing("The list, or how the requirements are met instead."),)
            ),
            Section("8. EU declaration of conformity", (Missing("A copy."),)),
            Section("9. Post-market monitoring (Art. 72)", (Missing("The plan."),)),
        ),
    )


def medical_device(evidence: Evidence) -> Chapter:
    """Annex II of the MDR, heading by heading."""
    data = Fact(f"{_CARD}figures with their support. Status of the run: {text(evidence.result.get('status'))}.")
    return Chapter(
        "Technical documentation, MDR Annex II",
        "The headings of Annex II. The run is no clinical evaluation, and the model no medical device by itself.",
        (
            Section(
                "1. Device description and specification",
                (
                    Fact(f"{_CARD}model."),
                    Missing("Intended purpose, patients, classification, accessories, similar devices."),
                ),
            ),
            Section("2. Information supplied by the manufacturer", (Missing("Labels and instructions for use."),)),
            Section(
                "3. Design and manufacturing information",
                (
                    Fact("Stages, sites and software: data-flow sheet, and environment under Annex IV, 1."),
                    Missing("Processes."),
                ),
            ),
            Section("4. General safety and performance requirements", (Missing("The checklist."),)),
            Section("5. Benefit-risk analysis and risk management", (Missing("All of it."),)),
            Section(
                "6. Verification and validation",
                (data, Missing("Software verification of the device, usability, clinical evaluation (Art. 61).")),
            ),
        ),
    )
