"""A hospital's side of a study: cohort, device and the entries it keeps. `visit` answers one order."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.data.cohort import Cohort
from client.kept import Kept
from client.local.evaluate import evaluate
from client.local.feed import Feed
from client.local.gradient import Diverged, Moment, TooFewCases, train
from client.local.recalibrate import recalibrate
from client.local.statistics import column_sums, feature_sums
from client.log import site_log
from client.workbench import Workbench
from common.errors import FedgraftError
from common.orders import TRUNK, Arrays, Code, Greeting, Order, Refusal, Split, Update
from common.plan import Gradient, Recalibrate, Stage
from common.seeds import derive
from common.study import Study
from common.travel import changed, own, sent, stays


@dataclass(frozen=True)
class Work:
    """What a visit did: tensors for the coordinator, the site's own entries afterwards, training figures."""

    tensors: Arrays
    own: Arrays
    figures: dict[str, float]


class Site:
    """One hospital in one study. The workbench may be shared with other sites of the same process."""

    def __init__(self, study: Study, cohort: Cohort, bench: Workbench, folder: Path, *, observer: bool = False) -> None:
        self.name = cohort.name
        self._study = study
        self._observer = observer
        self._bench = bench
        self._cohort = cohort
        self._feed = Feed(cohort, study.input, bench.device)
        self._kept = Kept(folder / "kept")
        self._log = site_log(folder)
        self._received: dict[str, np.ndarray] = {}
        indices = self._feed.labelled("train")
        known = {task.name: self._feed.targets(task.name, indices) >= 0 for task in study.tasks}
        self._labelled = {task: float(cases.sum()) for task, cases in known.items()} | {TRUNK: float(len(indices))}

    def greet(self) -> Greeting:
        """Who this site is and what it has, as counts."""
        indices = self._cohort.splits["train"]
        labels = {}
        for task in self._study.tasks:
            known = Counter(self._cohort.targets[task.name][indices].tolist())
            labels[task.name] = {name: known[index] for index, name in enumerate(task.classes)}
        problems: Counter[str] = Counter()
        for problem in self._cohort.problems:
            problems[problem.reason] += problem.count
        cases = {split: len(indices) for split, indices in self._cohort.splits.items()}
        return Greeting(self.name, cases, labels, dict(problems), self._observer)

    def visit(self, order: Order) -> Update | Refusal:
        """Evaluate what the order brings, do its stage's work, and answer. Never raises: trouble is a constant code."""
        try:
            return self._visit(order)
        except _Refused as refused:
            code = refused.code
        except (MemoryError, torch.OutOfMemoryError):
            code = Code.OUT_OF_MEMORY
        except TooFewCases:
            code = Code.TOO_FEW_CASES
        except Diverged:
            code = Code.DIVERGED
        except OSError as error:
            code = Code.DISK if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else Code.FAILED
            self._log.exception("exchange %d failed", order.exchange)
        except FedgraftError:
            code = Code.BAD_DATA
            self._log.exception("exchange %d failed", order.exchange)
        except Exception:  # the wall between a hospital and the network: no text may pass it
            code = Code.FAILED
            self._log.exception("exchange %d failed", order.exchange)
        self._log.warning("exchange %d: refused, %s", order.exchange, code)
        # What the model holds is not known after a failure.
        self._bench.touched(self._bench.tags)
        return Refusal(order.exchange, code)

    def _visit(self, order: Order) -> Update | Refusal:
        if order.study != self._study.digest or order.stage >= len(self._study.plan):
            raise _Refused(Code.UNKNOWN_STUDY)
        self._receive(order)
        before = self._kept.before(order.exchange)
        metrics: dict[str, Arrays] = {}
        if order.evaluate is not None:
            self._load(self._evaluated_stage(order), before)
            metrics = self._evaluate(order.evaluate)
        if not order.work:
            return Update(order.exchange, {}, {}, {}, metrics)
        stage = self._study.plan[order.stage]
        self._load(stage, before)
        work = self._work(stage, order)
        if work.own:
            self._kept.save(order.exchange, before | dict(work.own))
        return Update(order.exchange, work.tensors, self._weights(stage), work.figures, metrics)

    def _receive(self, order: Order) -> None:
        if not self._bench.fits(order.tensors):
            raise _Refused(Code.BAD_TENSORS)
        held = {key: array for key, array in self._received.items() if key not in order.tensors}
        if set(held) | set(order.tensors) != set(self._bench.tags):
            raise _Refused(Code.MISSING_TENSORS)
        if self._bench.digests.of(held) != order.held:
            raise _Refused(Code.MISSING_TENSORS)
        self._received |= order.tensors

    def _evaluated_stage(self, order: Order) -> Stage | None:
        """The stage whose result came with this order; None before the first."""
        if order.round > 1 or not order.work:
            return self._study.plan[order.stage]
        return self._study.plan[order.stage - 1] if order.stage else None

    def _load(self, stage: Stage | None, kept: Arrays) -> None:
        """Put the model together: what the coordinator sent, and in its place what this site keeps for itself."""
        tags = self._bench.tags
        mine = {key: array for key, array in kept.items() if stage is not None and own(stage, tags, key)}
        self._bench.load(self._received | mine)

    def _evaluate(self, split: Split) -> dict[str, Arrays]:
        return {task: sums.arrays() for task, sums in evaluate(self._bench, self._feed, split).items()}

    def _work(self, stage: Stage, order: Order) -> Work:
        local, tags = stage.local, self._bench.tags
        if not isinstance(local, Gradient | Recalibrate):
            columns = local.of == "columns"
            sums = column_sums(self._study, self._feed) if columns else feature_sums(self._bench, self._feed)
            return Work(sums, {}, {"examples": len(self._feed.labelled("train"))})
        moves = changed(stage, tags)
        self._bench.touched(moves)
        if isinstance(local, Recalibrate):
            figures = recalibrate(self._bench, self._feed, local)
        else:
            seed = derive(self._study.seed, self.name, stage.name, order.round)
            figures = train(self._bench, self._feed, local, moves, Moment(seed, order.round, stage.rounds))
        return Work(self._bench.read(sent(stage, tags)), self._bench.read(stays(stage, tags)), figures)

    def _weights(self, stage: Stage) -> dict[str, float]:
        if not isinstance(stage.local, Gradient):
            return {}
        return self._labelled


class _Refused(Exception):
    def __init__(self, code: Code) -> None:
        self.code = code
