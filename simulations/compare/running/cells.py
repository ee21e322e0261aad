"""All that a comparison runs, cell by cell: known by what decides the outcome, run once, in parallel, kept on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.environment import code_digest
from fedgraft.common.base.errors import (
    FedgraftError,
    InputError,
    RunError,
    StudyError,
)
from fedgraft.common.base.files import (
    canonical_json,
    home,
    load_tensors,
    make_folder,
    read_json,
    read_sealed,
    save_tensors,
    sealed,
    write_json,
)
from fedgraft.common.models.weights import load_manifest
from fedgraft.common.plugins.loading import load_plugins
from fedgraft.common.plugins.registry import loaded_digest, places
from fedgraft.common.protocol.routing import is_private
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.compare.measures.answers import Found
from fedgraft.simulations.compare.question import (
    ARM,
    Arm,
    Question,
    changed,
)
from fedgraft.simulations.compare.refusals import (
    check_arm,
    measured,
    refuse_seen,
    refuse_tied,
    refuse_unmeasured,
)
from fedgraft.simulations.compare.running.finished import kept_digest
from fedgraft.simulations.compare.running.folds import Fold
from fedgraft.simulations.compare.running.models import (
    Few,
    ModelJob,
    carry_out,
    flat,
    home_of,
    unflat,
)
from fedgraft.simulations.compare.running.progress import Tell, as_they_end
from fedgraft.simulations.compare.running.rounds import keep_rounds
from fedgraft.simulations.compare.running.shots import few_shot, part_of
from fedgraft.simulations.engines.child_path import no_working_folder
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.engines.workers.process_server import end_with_parent, process_server

_ANSWERS, _FACTS, _MODEL = "answers.safetensors", "cell.json", "model"


@dataclass(frozen=True)
class Cell:
    """One arm of a question at one number of cases, from one seed, on one fold."""

    question: str
    arm: str
    cases: int | None
    seed: int
    fold: Fold | None
    job: ModelJob
    base_models: tuple[Cell, ...] = ()
    """Those whose models this one puts together."""

    @property
    def replicate(self) -> tuple[int, int]:
        """What arms are paired by: seed, and number of the fold."""
        return self.seed, self.fold.number if self.fold else 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides what the cell's models say, the code among it."""
        few = self.job.few
        fits = {arm: fit.model_dump(mode="json") for arm, fit in few.fits.items()} if few else {}
        content: dict[str, Any] = {
            "study": self.job.study.digest,
            "who": self.job.who,
            "cohorts": {site: spec.model_dump(mode="json") for site, spec in sorted(self.job.cohorts.items())},
            "fold": self.fold,
            "measure": sorted(self.job.measure),
            "few": few and {"shots": few.shots, "draws": few.draws, "task": few.task, "fits": fits},
            "code": code_digest(),
            "public": self.job.public,
            "weights": _content(self.job.study.model.weights),
            "sources": {site: spec.model_dump(mode="json") for site, spec in sorted(self.job.sources.items())},
            "faults": {site: fault.model_dump(mode="json") for site, fault in sorted(self.job.faults.items())},
            "policies": {site: policy.model_dump(mode="json") for site, policy in sorted(self.job.policies.items())},
            "kept": self.job.finished and kept_digest(self.job.finished),
            "shortcut": self.job.shortcut,
        }
        content |= {"base_models": [cell.digest for cell in self.base_models]} if self.base_models else {}
        plugins = {str(plugin): loaded_digest(plugin) for plugin in self.job.code}
        content |= {"plugins": plugins} if plugins else {}
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def words(self) -> str:
        """The cell in a line of progress, such as "transfer: study, 40 cases, seed 1"."""
        cases = f", {self.cases} cases" if self.cases else ""
        fold = f", fold {self.fold.number + 1} of {self.fold.of}" if self.fold else ""
        return f"{self.question}: {self.arm}{cases}, seed {self.seed}{fold}"


@dataclass(frozen=True)
class CellOutcome:
    """What a cell ended with: the answers, what went wrong on the way, and how long it took."""

    found: Found
    troubles: tuple[str, ...]
    seconds: float
    model: str | None = None
    """SHA-256 of the model that all sites share, as in the `model.json` of a run; None where there is none."""


def _content(ref: str | None) -> str | None:
    """What the weights of that name hold: a folder can get others."""
    return None if ref is None or ref.startswith(ARM) else load_manifest(ref).sha256


def cells(study: Study, question: Question, sites: Hospitals, seeds: int, source: str) -> list[Cell]:
    """All cells of a question. StudyError if an arm cannot work, InputError if it names sites that do not exist."""
    public = tuple(sorted(sites.public_sources))
    hospitals = [site for site in sites.cohorts if site not in public]
    if unknown := sorted({*question.hide, *question.measure} - set(hospitals)):
        there = ", ".join(hospitals)
        raise InputError(f"{source}, question {question.name}: no site is called {', '.join(unknown)} ({there}).")
    asked = changed(study.model_dump(mode="json"), question.keys, f"{source}, question {question.name}")
    where = f"{source}, question {question.name}"
    decides = measured(question, asked, where)
    found: list[Cell] = []
    plain: dict[str, Study] = {}
    arms = sorted(question.arms, key=lambda one: bool(one.base_models))
    for arm in arms:
        plain[arm.name] = arm.apply(asked, where, plain)
    # What is compared is tested on the same patients, so one private arm asks the same of all.
    alone = any(is_private(own) for own in plain.values())
    if alone:
        refuse_tied(question, sites, where)
    for arm in arms:
        own = plain[arm.name]
        refuse_unmeasured(own, arm, decides, f"{where}, arm {arm.name}")
        check_arm(own, f"{where}, arm {arm.name}", arm)
        if several := [name for name in arm.base_models if plain[name].clusters is not None]:
            raise StudyError(where, [f"{arm.name}: its base model {several[0]} has clusters, and so is several models"])
        few = _few(question, arm, plain)
        for cases in question.sizes:
            limit = None if few else cases
            asked_of = {site: _as_asked(sites.cohorts[site], site, limit, arm, question) for site in hospitals}
            if alone:
                asked_of = {site: spec.model_copy(update={"split": "independent"}) for site, spec in asked_of.items()}
            specs = dict(sites.cohorts) | asked_of
            for seed in range(seeds):
                seeded = own.model_copy(update={"seed": own.seed + seed})
                if arm.weights is not None:
                    refuse_seen(seeded, arm, question, f"{where}, arm {arm.name}")
                for fold in _folds(question):
                    job = _job(ModelJob(seeded, arm.who, specs, fold, question.measure, few, public), sites, arm)
                    alike = [cell for cell in found if (cell.cases, cell.seed, cell.fold) == (cases, seeded.seed, fold)]
                    own_base_models = tuple(cell for name in arm.base_models for cell in alike if cell.arm == name)
                    found.append(Cell(question.name, arm.name, cases, seeded.seed, fold, job, own_base_models))
    places = {arm.name: at for at, arm in enumerate(question.arms)}
    return sorted(found, key=lambda cell: places[cell.arm])


def _job(job: ModelJob, sites: Hospitals, arm: Arm) -> ModelJob:
    """The job at these hospitals, as `simulate` has them: with what lies beside, with their rules and their faults.

    A finished model that learnt elsewhere is new to them; sites of that name there are others.
    """
    finished = None if arm.elsewhere else arm.weights
    job = replace(job, sources=sites.sources, faults=sites.faults, policies=sites.policies)
    return replace(job, synthetic=sites.synthetic, finished=finished, shortcut=arm.shortcut)


def run(
    todo: Sequence[Cell], out: Path, workers: int, threads: int, tell: Tell | None = None
) -> Iterator[tuple[Cell, int, int]]:
    """Run what is not yet in `out`; each cell when it is done, with how many are, of how many.

    `tell` hears of cells that are at work while none ends. RunError names the first cell that failed; the others go on
    first. What is done stays, and is not run again.
    """
    different = {cell.digest: cell for cell in todo}
    asked = {base_model.digest for cell in todo for base_model in cell.base_models}
    missing = [cell for digest, cell in different.items() if not _is_done(out / digest[:16], asked=digest in asked)]
    done = len(different) - len(missing)
    failures: list[tuple[Cell, Exception]] = []
    code = {plugin for cell in todo for plugin in cell.job.code}
    with no_working_folder():
        size = min(workers, max(1, len(missing)))
        pool = ProcessPoolExecutor(size, process_server(), _made_ready, (threads, str(home()), places(code)))
    with pool:
        for wave in (
            [cell for cell in missing if not cell.base_models],
            [cell for cell in missing if cell.base_models],
        ):
            with no_working_folder():
                futures = {pool.submit(_run, cell, out, keep=cell.digest in asked): cell for cell in wave}
            for future in as_they_end(futures, out, tell):
                error = future.exception()
                if isinstance(error, Exception):
                    failures.append((futures[future], error))
                else:
                    done += 1
                    yield futures[future], done, len(different)
    if failures:
        cell, error = failures[0]
        why = str(error) if isinstance(error, FedgraftError) else repr(error)
        raise RunError(
            f"{len(failures)} of {len(different)} runs failed. {cell.words()}: {why}",
            fix="The others are kept: give the same --out to go on.",
        ) from error


def folder_of(cell: Cell, out: Path) -> Path:
    """Where what is kept of a cell lies."""
    return out / cell.digest[:16]


def outcome(cell: Cell, out: Path) -> CellOutcome:
    """What a cell that was run ended with."""
    folder = folder_of(cell, out)
    facts = read_sealed(folder / _FACTS)
    found, troubles = unflat(load_tensors(folder / _ANSWERS)), tuple(facts["troubles"])
    if cell.job.few is not None and cell.cases is not None:
        found, troubles = part_of(found, list(troubles), cell.arm, cell.cases)
    return CellOutcome(found, troubles, float(facts["seconds"]), facts.get("model"))


def _run(cell: Cell, out: Path, *, keep: bool) -> None:
    """Carry out one cell; its model is kept if others are made of it."""
    started, folder = time.monotonic(), folder_of(cell, out)
    found, troubles = (few_shot if cell.job.few else carry_out)(_with_base_models(cell, out), folder / "runs")
    made = home_of(folder / "runs")
    if keep:
        make_folder(folder / _MODEL)
        for name in ("model.safetensors", "model.json"):
            shutil.copy(made / name, folder / _MODEL / name)
    model = read_json(made / "model.json")["sha256"] if (made / "model.json").is_file() else None
    keep_rounds(made, folder)
    save_tensors(folder / _ANSWERS, dict(flat(found)))
    facts = {
        "troubles": troubles,
        "seconds": round(time.monotonic() - started, 3),
        "words": cell.words(),
        "model": model,
    }
    # Its presence says that the cell is done, so it comes last; what the models were made of is not kept.
    write_json(folder / _FACTS, sealed(facts | {"study": cell.job.study.digest, "who": cell.job.who}))
    shutil.rmtree(folder / "runs")


def _few(question: Question, arm: Arm, studies: Mapping[str, Study]) -> Few | None:
    """What a question asks of few shots: all arms that wait with the same model are one piece of work."""
    if not question.shots:
        return None
    own = (studies[arm.name], arm.who, arm.labels)
    alike = [other for other in question.arms if (studies[other.name], other.who, other.labels) == own]
    return Few(question.shots, question.draws, {other.name: other.fit for other in alike}, question.task)


def _is_done(folder: Path, *, asked: bool) -> bool:
    """Whether a cell's outcome is there, and its model if others are made of it."""
    return (folder / _FACTS).is_file() and (not asked or (folder / _MODEL / "model.json").is_file())


def _with_base_models(cell: Cell, out: Path) -> ModelJob:
    """The job, with the folders of base models in place of their arms' names."""
    if not cell.base_models:
        return cell.job
    places = {ARM + one.arm: str((out / one.digest[:16] / _MODEL).resolve()) for one in cell.base_models}
    study = parse_study(_placed(cell.job.study.model_dump(mode="json"), places), cell.words())
    return replace(cell.job, study=study)


def _placed(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _placed(one, places) for key, one in value.items()}
    if isinstance(value, list):
        return [_placed(one, places) for one in value]
    return places.get(value, value) if isinstance(value, str) else value


def _as_asked(spec: CohortSpec, site: str, cases: int | None, arm: Arm, question: Question) -> CohortSpec:
    labels = "hidden" if site in question.hide else arm.labels
    return spec.model_copy(update={"train_cases": cases or spec.train_cases, "train_labels": labels})


def _folds(question: Question) -> list[Fold | None]:
    return [Fold(number, question.folds) for number in range(question.folds)] if question.folds else [None]


def _made_ready(threads: int, home: str, plugins: tuple[str, ...]) -> None:
    end_with_parent()
    load_plugins(plugins)
    torch.set_num_threads(threads)
    os.environ["FEDGRAFT_HOME"] = home  # as it is now, and not as it was when the process server started
