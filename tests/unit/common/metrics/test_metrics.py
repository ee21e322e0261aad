"""Metrics from aggregated sums equal those of scikit-learn on the pooled predictions."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as sk

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.over_sites import macro_mean, worst
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.table import TABLE

Rng = np.random.Generator
COUNTED = ("accuracy", "balanced_accuracy", "recall", "specificity", "f1", "brier", "ece", "loss")
RANKED = ("auroc", "average_precision")


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def expected_error(chance: np.ndarray, truth: np.ndarray) -> float:
    sure, right = chance.max(axis=1), chance.argmax(axis=1) == truth
    gaps = 0.0
    for low in np.arange(15) / 15:
        inside = (sure >= low) & ((sure < low + 1 / 15) if low < 14 / 15 else True)
        if inside.any():
            gaps += inside.sum() * abs(sure[inside].mean() - right[inside].mean())
    return gaps / len(truth)


def oracle(logits: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """scikit-learn on all predictions at once; classes for which a metric is undefined are left out of means."""
    logits = logits.astype(np.float64)
    classes, chance, guess = logits.shape[1], softmax(logits), logits.argmax(axis=1)
    labels = [1] if classes == 2 else list(range(classes))
    whole = np.eye(classes)[truth]
    values: dict[str, float | None] = {
        "accuracy": sk.accuracy_score(truth, guess),
        "loss": sk.log_loss(truth, np.clip(chance, 1e-300, 1), labels=range(classes)),
        "ece": expected_error(chance, truth),
        "brier": sk.brier_score_loss(truth, chance[:, 1])
        if classes == 2
        else sk.brier_score_loss(truth, chance, labels=range(classes)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values["balanced_accuracy"] = sk.balanced_accuracy_score(truth, guess)
        options = {"average": "macro", "labels": labels, "zero_division": np.nan}
        values["recall"] = sk.recall_score(truth, guess, **options)
        values["f1"] = sk.f1_score(truth, guess, **options)
        rejected = [sk.recall_score(truth != k, guess != k, zero_division=np.nan) for k in labels if (truth != k).any()]
        values["specificity"] = np.mean(rejected) if rejected else np.nan
    both = [k for k in labels if 0 < whole[:, k].sum() < len(truth)]
    values["auroc"] = np.mean([sk.roc_auc_score(whole[:, k], chance[:, k]) for k in both]) if both else None
    values["average_precision"] = (
        np.mean([sk.average_precision_score(whole[:, k], chance[:, k]) for k in both]) if both else None
    )
    return {key: None if value is None or np.isnan(value) else float(value) for key, value in values.items()}


def assert_equal(logits: np.ndarray, truth: np.ndarray, ranked_within: float = 2e-3) -> None:
    got, want = ClassificationSums.of(logits, truth).values(), oracle(logits, truth)
    assert got["n"] == len(truth)
    for key in COUNTED:
        assert got[key] == (None if want[key] is None else pytest.approx(want[key], rel=1e-11, abs=1e-12)), key
    for key in RANKED:
        assert got[key] == (None if want[key] is None else pytest.approx(want[key], abs=ranked_within)), key


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("cases", [2, 7, 60, 3000])
def test_values_equal_sklearn(classes: int, cases: int) -> None:
    rng = np.random.default_rng(cases + classes)
    truth = rng.integers(0, classes, cases)
    logits = rng.normal(0, 2, (cases, classes)) + 1.5 * np.eye(classes)[truth]
    assert_equal(logits.astype(np.float32), truth, ranked_within=1e-6)


def near(centre: float, width: float) -> Callable[[Rng, np.ndarray], np.ndarray]:
    """Probabilities of class 1 within `centre` +- `width`, a little higher for class 1."""
    return lambda rng, truth: centre + width * np.clip(rng.uniform(-1, 0.7, len(truth)) + 0.3 * truth, -1, 1)


SCORES: dict[str, Callable[[Rng, np.ndarray], np.ndarray]] = {
    "all in [.999, 1)": lambda rng, truth: 1 - 1e-3 * rng.uniform(1e-6, 1, len(truth)) ** (1 + truth),
    "all in (0, .001]": lambda rng, truth: 1e-3 * rng.uniform(1e-6, 1, len(truth)) ** (2 - truth),
    "near .33": near(0.33, 1e-3),
    "near .5": near(0.5, 1e-3),
    "very near .5": near(0.5, 1e-5),
    "near .8": near(0.8, 1e-3),
    "very near .97": near(0.97, 1e-5),
    "few distinct": lambda rng, truth: np.clip(np.round(rng.uniform(0, 0.8, len(truth)) + 0.2 * truth, 1), 0.05, 0.95),
    "constant": lambda rng, truth: np.full(len(truth), 0.4),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("cases", "share"), [(2, 0.5), (50, 0.5), (20_000, 0.5), (20_000, 2e-4)])
def test_hard_scores_rank_as_in_sklearn(name: str, cases: int, share: float) -> None:
    rng = np.random.default_rng(cases)
    truth = (np.arange(cases) < max(1, round(share * cases))).astype(np.int64)
    chance = SCORES[name](rng, truth)
    logits = np.stack([np.log1p(-chance), np.log(chance)], axis=1)
    assert_equal(logits, truth)


def test_cases_whose_probability_is_one_are_still_told_apart() -> None:
    logits = np.array([[0, 50.0], [0, 60], [0, 70], [0, 80]])
    assert (softmax(logits)[:, 1] == 1).all()
    assert ClassificationSums.of(logits, np.array([0, 0, 1, 1])).values()["auroc"] == 1
    three = np.column_stack([logits, np.full(4, -3.0)])
    sure = ClassificationSums.of(three, np.array([0, 0, 1, 1]))
    assert sk.auc(*sure.roc(1)) == 1


def test_merged_sites_give_the_pooled_value_not_the_mean_of_sites() -> None:
    rng = np.random.default_rng(1)
    logits, truth = rng.normal(size=(90, 3)), rng.integers(0, 3, 90)
    # This site's scores run higher: pooling changes the ranking, so the mean of AUROCs is another number.
    logits[:20, 1] += 4
    parts = [ClassificationSums.of(logits[s], truth[s]) for s in (slice(0, 20), slice(20, 21), slice(21, 90))]
    whole, aggregated = ClassificationSums.of(logits, truth).values(), sum(parts, ClassificationSums.zero(3)).values()
    assert aggregated == pytest.approx(whole, rel=1e-12)
    assert abs(aggregated["auroc"] - macro_mean([p.values() for p in parts], "auroc")) > 0.02


def test_cases_with_unknown_label_do_not_count() -> None:
    rng = np.random.default_rng(2)
    logits, truth = rng.normal(size=(40, 2)), rng.integers(0, 2, 40)
    hidden = np.where(np.arange(40) % 3 == 0, -1, truth)
    logits[0] = np.nan
    known = hidden >= 0
    assert ClassificationSums.of(logits, hidden).values() == ClassificationSums.of(logits[known], truth[known]).values()


def test_what_is_undefined_is_none() -> None:
    empty = ClassificationSums.of(np.zeros((3, 2)), np.full(3, -1)).values()
    assert empty.pop("n") == 0
    assert set(empty.values()) == {None}
    healthy = ClassificationSums.of(np.array([[1.0, 0], [2, 0]]), np.zeros(2, int)).values()
    assert [healthy[k] for k in ("recall", "f1", "auroc", "average_precision")] == [None] * 4
    assert (healthy["accuracy"], healthy["specificity"]) == (1, 1)


@pytest.mark.parametrize("classes", [2, 4])
def test_roc_equals_sklearn(classes: int) -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, classes, 300)
    logits = np.round(rng.normal(size=(300, classes)) + np.eye(classes)[truth], 1)
    sums = ClassificationSums.of(logits, truth)
    for k in range(classes):
        rest = np.exp(np.delete(logits, k, axis=1)).sum(axis=1)
        want = sk.roc_curve(truth == k, np.round(logits[:, k] - np.log(rest), 9), drop_intermediate=False)
        np.testing.assert_allclose(sums.roc(k), want[:2], atol=1e-12)


def test_roc_of_a_class_without_cases_is_empty() -> None:
    false, true = ClassificationSums.of(np.eye(3), np.array([0, 1, 1])).roc(2)
    assert len(false) == len(true) == 0


def test_reliability_of_an_overconfident_model() -> None:
    chance = np.array([0.95] * 10 + [0.7] * 4)
    logits = np.stack([np.zeros(14), np.log(chance / (1 - chance))], axis=1)
    truth = np.array([1] * 6 + [0] * 4 + [1] * 3 + [0])
    bins = ClassificationSums.of(logits, truth).reliability()
    np.testing.assert_allclose(bins.confidence, [0.7, 0.95])
    np.testing.assert_allclose(bins.accuracy, [0.75, 0.6])
    assert bins.cases.tolist() == [4, 10]


@pytest.mark.parametrize(("classes", "most"), [(2, 450), (4, 1300)])
def test_fifty_cases_cost_a_few_hundred_bytes_per_kept_class(classes: int, most: int) -> None:
    rng = np.random.default_rng(4)
    sums = ClassificationSums.of(rng.normal(size=(50, classes)), rng.integers(0, classes, 50))
    assert sum(array.nbytes for array in sums.arrays().values()) < most


def test_coarse_scores_add_up_and_stay_close() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, 4000)
    logits = np.stack([np.zeros(4000), rng.normal(0, 2, 4000) + 2 * truth], axis=1)
    fine = ClassificationSums.of(logits, truth)
    coarse = fine.coarsen(64)
    assert len(set((coarse.arrays()["score_keys"] >> 1).tolist())) <= 64
    assert coarse.values()["auroc"] == pytest.approx(fine.values()["auroc"], abs=0.005)
    assert coarse.values()["auroc"] != fine.values()["auroc"]
    halves = [ClassificationSums.of(logits[s], truth[s]).coarsen(64) for s in (slice(0, 900), slice(900, None))]
    assert (halves[0] + halves[1]).values() == pytest.approx(coarse.values(), rel=1e-12)
    again = coarse.coarsen(64).arrays()
    assert all(np.array_equal(again[key], value) for key, value in coarse.arrays().items())
    assert fine.coarsen(1).values()["auroc"] == 0.5


def garbage() -> dict[str, Callable[[dict[str, np.ndarray]], object]]:
    def put(key: str, at: int, value: object) -> Callable[[dict[str, np.ndarray]], object]:
        def change(arrays: dict[str, np.ndarray]) -> None:
            arrays[key] = arrays[key].astype(np.float64 if isinstance(value, float) else np.int64)
            arrays[key].flat[at] = value

        return change

    return {
        "missing key": lambda a: a.pop("brier"),
        "unknown key": lambda a: a.update(extra=a["loss"]),
        "wrong shape": lambda a: a.update(confusion=a["confusion"].ravel()),
        "counts as floats": lambda a: a.update(confusion=a["confusion"].astype(np.float64)),
        "text": lambda a: a.update(loss=np.array(["1"])),
        "ragged": lambda a: a.update(confusion=[[1], [1, 2]]),
        "negative count": put("confusion", 0, -1),
        "one more case": put("confusion", 0, 99),
        "huge count": put("confusion", 0, 2**62),
        "loss not a number": put("loss", 0, float("nan")),
        "loss infinite": put("loss", 0, float("inf")),
        "loss that would overflow": put("loss", 0, 1e308),
        "negative loss": put("loss", 0, -1.0),
        "brier above its limit": put("brier", 0, 1e6),
        "confidence outside its bin": put("calibration_confidence", -1, 1e5),
        "more hits than cases": put("calibration_correct", 0, 7),
        "more calibration cases": put("calibration_cases", 0, 7),
        "unordered keys": lambda a: a.update(score_keys=a["score_keys"][::-1].copy()),
        "key too large": put("score_keys", -1, 2**32),
        "empty bin": put("score_counts", 0, 0),
        "another number of scores": put("score_counts", 0, 5),
        "fewer keys": lambda a: a.update(score_keys=a["score_keys"][:-1]),
        "rows do not add up": put("score_rows", 0, 3),
        "truth of a score flipped": lambda a: a.update(score_keys=a["score_keys"] ^ 1),
    }


@pytest.mark.parametrize("name", garbage())
def test_garbage_from_the_wire_is_refused(name: str) -> None:
    rng = np.random.default_rng(6)
    arrays = dict(ClassificationSums.of(rng.normal(size=(30, 3)), rng.integers(0, 3, 30)).arrays())
    ClassificationSums.from_arrays(arrays, 3)
    garbage()[name](arrays)
    with pytest.raises(InputError, match="Metric sums"):
        ClassificationSums.from_arrays(arrays, 3)


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (np.zeros((3, 2)), np.array([0, 1, 2])),
        (np.zeros((3, 2)), np.array([0, 1, -2])),
        (np.zeros((3, 2)), np.zeros(4, int)),
        (np.zeros((3, 1)), np.zeros(3, int)),
        (np.array([[np.nan, 0.0]]), np.array([0])),
        (np.array([[np.inf, 0.0]]), np.array([0])),
    ],
)
def test_predictions_that_make_no_sense_are_refused(logits: np.ndarray, targets: np.ndarray) -> None:
    with pytest.raises(InputError):
        ClassificationSums.of(logits, targets)


def test_sums_of_other_tasks_cannot_be_added() -> None:
    with pytest.raises(InputError, match="2 and 3 classes"):
        ClassificationSums.zero(2) + ClassificationSums.zero(3)
    with pytest.raises(InputError, match="at least two"):
        ClassificationSums.zero(1)


def test_macro_mean_and_worst_site_leave_out_undefined_values() -> None:
    sites = {"north": {"auroc": 0.9}, "south": {"auroc": None}, "east": {"auroc": 0.7}, "west": {}}
    assert macro_mean(list(sites.values()), "auroc") == pytest.approx(0.8)
    assert worst(sites, TABLE["auroc"]) == ("east", 0.7)
    assert worst({"south": {"auroc": None}}, TABLE["auroc"]) is None
    assert macro_mean([], "auroc") is None
