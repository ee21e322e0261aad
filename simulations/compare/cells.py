"""All that a comparison runs, cell by cell: known by what decides the outcome, run once, in parallel, kept on disk."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from client.data.spec import CohortSpec
from common.environment import code_digest
from common.errors import FedgraftError, InputError, RunError
from common.explain import check_study
from common.files import canonical_json, load_tensors, read_json, save_tensors, write_json
from common.study import Study
from simulations.compare.folds import Fold
from simulations.compare.models import Few, Found, Job, carry_out, flat, unflat
from simulations.compare.question import Arm, Question, changed
from simulations.compare.shots import few_shot, part_of

_ANSWERS, _FACTS = "answers.safetensors", "cell.json"


@dataclass(frozen=True)
class Cell:
    """One arm of a question at one number of cases, from one seed, on one fold."""

    question: str
    arm: str
    cases: int | None
    seed: int
    fold: Fold | None
    job: Job

    @property
    def replicate(self) -> tuple[int, int]:
        """What arms are paired by: seed, and number of the fold."""
        return self.seed, self.fold.number if self.fold else 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides what the cell's models say, the code among it."""
        few = self.job.few
        fits = {arm: fit.model_dump(mode="json") for arm, fit in few.fits.items()} if few else {}
        content = {
            "study": self.job.study.digest,
            "who": self.job.who,
            "cohorts": {site: spec.model_dump(mode="json") for site, spec in sorted(self.job.cohorts.items())},
            "fold": self.fold,
            "measure": sorted(self.job.measure),
            "few": few and {"shots": few.shots, "draws": few.draws, "task": few.task, "fits": fits},
            "code": code_digest(),
        }
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def words(self) -> str:
        """The cell in a line of progress."""
        cases = f", {self.cases} cases" if self.cases else ""
        fold = f", fold {self.fold.number + 1} of {self.fold.of}" if self.fold else ""
        return f"{self.question}: {self.arm}{cases}, seed {self.seed}{fold}"


@dataclass(frozen=True)
class Outcome:
    """What a cell ended with: the answers, what went wrong on the way, and how long it took."""

    found: Found
    troubles: tuple[str, ...]
    seconds: float


def cells(study: Study, question: Question, cohorts: Mapping[str, CohortSpec], seeds: int, source: str) -> list[Cell]:
    """All cells of a question. StudyError if an arm cannot work, InputError if it names sites that do not exist."""
    if unknown := sorted({*question.hide, *question.measure} - set(cohorts)):
        there = ", ".join(cohorts)
        raise InputError(f"{source}, question {question.name}: no site is called {', '.join(unknown)} ({there}).")
    asked = changed(study.model_dump(mode="json"), question.keys, f"{source}, question {question.name}")
    found = []
    studies = {arm.name: arm.apply(asked, f"{source}, question {question.name}") for arm in question.arms}
    for arm in question.arms:
        own = studies[arm.name]
        check_study(own, f"{source}, question {question.name}, arm {arm.name}")
        few = _few(question, arm, studies)
        for cases in question.sizes:
            limit = None if few else cases
            specs = {site: _as_asked(spec, site, limit, arm, question) for site, spec in cohorts.items()}
            for seed in range(question.seeds or seeds):
                seeded = own.model_copy(update={"seed": own.seed + seed})
                for fold in _folds(question):
                    job = Job(seeded, arm.who, specs, fold, question.measure, few)
                    found.append(Cell(question.name, arm.name, cases, seeded.seed, fold, job))
    return found


def run(todo: Sequence[Cell], out: Path, workers: int, threads: int) -> Iterator[tuple[Cell, int, int]]:
    """Run what is not yet in `out`; each cell when it is done, with how many are, of how many.

    RunError names the first cell that failed; the others go on first. What is done stays, and is not run again.
    """
    different = {cell.digest: cell for cell in todo}
    missing = [cell for digest, cell in different.items() if not (out / digest[:16] / _FACTS).is_file()]
    done = len(different) - len(missing)
    failures: list[tuple[Cell, Exception]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(1, len(missing))), context, _one_thread, (threads,)) as pool:
        futures = {pool.submit(_run, cell, out / cell.digest[:16]): cell for cell in missing}
        for future in as_completed(futures):
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


def outcome(cell: Cell, out: Path) -> Outcome:
    """What a cell that was run ended with."""
    folder = out / cell.digest[:16]
    facts = read_json(folder / _FACTS)
    found, troubles = unflat(load_tensors(folder / _ANSWERS)), tuple(facts["troubles"])
    if cell.job.few is not None and cell.cases is not None:
        found, troubles = part_of(found, list(troubles), cell.arm, cell.cases)
    return Outcome(found, troubles, float(facts["seconds"]))


def _run(cell: Cell, folder: Path) -> None:
    started = time.monotonic()
    found, troubles = (few_shot if cell.job.few else carry_out)(cell.job, folder / "runs")
    save_tensors(folder / _ANSWERS, dict(flat(found)))
    facts = {"troubles": troubles, "seconds": round(time.monotonic() - started, 3), "words": cell.words()}
    # Its presence says that the cell is done, so it comes last; what the models were made of is not kept.
    write_json(folder / _FACTS, facts | {"study": cell.job.study.digest, "who": cell.job.who})
    shutil.rmtree(folder / "runs")


def _few(question: Question, arm: Arm, studies: Mapping[str, Study]) -> Few | None:
    """What a question asks of few shots: all arms that wait with the same model are one piece of work."""
    if not question.shots:
        return None
    own = (studies[arm.name], arm.who, arm.labels)
    alike = [other for other in question.arms if (studies[other.name], other.who, other.labels) == own]
    return Few(question.shots, question.draws, {other.name: other.fit for other in alike}, question.task)


def _as_asked(spec: CohortSpec, site: str, cases: int | None, arm: Arm, question: Question) -> CohortSpec:
    labels = "hidden" if site in question.hide else arm.labels
    return spec.model_copy(update={"train_cases": cases or spec.train_cases, "train_labels": labels})


def _folds(question: Question) -> list[Fold | None]:
    return [Fold(number, question.folds) for number in range(question.folds)] if question.folds else [None]


def _one_thread(threads: int) -> None:
    torch.set_num_threads(threads)
