"""Losses of others: what they are shown, what is made of what they say, and what is refused before a round begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fedgraft as fg
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import ForwardOutput
from fedgraft.client.training.losses.plugged import Plugged
from fedgraft.client.training.model.loader import Batch, Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.checks.check_plugins import pinned
from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.stages.losses import PluggedLoss
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Multilabel, Regression, Segmentation, Task
from helpers.plugins import fresh
from helpers.work import CPU, NOW, cohort, images

assert fresh
pytestmark = pytest.mark.usefixtures("fresh")
MakeStudy = Callable[..., Study]
CLASSES = Task(name="cls", classes=("a", "b", "c"), weight=2.0)
LABELS = Multilabel(name="signs", kind="multilabel", labels=("x", "y"))
VALUE = Regression(name="size", kind="regression", unit="mm", mean=10.0, std=2.0)
MASK = Segmentation(name="lesion", kind="segmentation")


class Entropy:
    """The supervised loss once more."""

    scope = "per_sample"
    requires = ("labels",)
    tasks = ("multiclass",)

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def __call__(self, *, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.smoothing)


def plugged(made: Any, tasks: tuple[Any, ...] = (CLASSES,), **options: Any) -> Plugged:
    fg.register_loss("mine", made)
    return Plugged(PluggedLoss(kind="mine", options=options), {task.name: task for task in tasks}, 4)


def seen(outputs: dict[str, Tensor], targets: dict[str, Tensor], features: Tensor | None = None) -> ForwardOutput:
    count = len(next(iter(outputs.values())))
    return ForwardOutput(Batch(torch.zeros(count, 1), targets, torch.arange(count)), outputs, features)


def test_the_mean_is_over_the_cases_whose_label_is_known_times_the_tasks_weight() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, -1, 2, -1, 1])
    value = plugged(Entropy, smoothing=0.1).mean(seen({"cls": logits}, {"cls": targets}))
    known = [0, 2, 4]
    assert torch.allclose(value, 2 * F.cross_entropy(logits[known], targets[known], label_smoothing=0.1))
    nobody = torch.full((5,), -1)
    assert float(plugged(Entropy).mean(seen({"cls": logits.requires_grad_()}, {"cls": nobody})).detach()) == 0


def test_each_kind_of_task_is_shown_in_its_own_form() -> None:
    shown: list[dict[str, Tensor]] = []

    class Looks:
        scope = "per_sample"
        requires = ("labels", "features")

        def __call__(self, **given: Tensor) -> Tensor:
            shown.append(given)
            return given["outputs"].flatten(1).sum(dim=1) if given["outputs"].ndim > 1 else given["outputs"]

    nan = torch.nan
    outputs = {
        "cls": torch.randn(3, 3),
        "signs": torch.randn(3, 2),
        "size": torch.randn(3, 1),
        "lesion": torch.randn(3, 4, 4),
    }
    masks = torch.ones(3, 4, 4, dtype=torch.int8)
    masks[1] = -1
    targets = {
        "cls": torch.tensor([1, -1, 2]),
        "signs": torch.tensor([[1.0, nan], [nan, nan], [0.0, 1.0]]),
        "size": torch.tensor([12.0, nan, 8.0]),
        "lesion": masks,
    }
    loss = plugged(Looks, (CLASSES, LABELS, VALUE, MASK))
    shown.clear()
    features = torch.randn(3, 4)
    loss.mean(seen(outputs, targets, features))
    assert all(torch.equal(given["features"], features[[0, 2]]) for given in shown)
    classes, signs, size, lesion = shown
    assert (classes["targets"].tolist(), tuple(classes["outputs"].shape)) == ([1, 2], (2, 3))
    assert torch.allclose(signs["targets"], torch.tensor([[1.0, nan], [0.0, 1.0]]), equal_nan=True)
    assert (size["targets"].tolist(), tuple(size["outputs"].shape)) == ([1.0, -1.0], (2,))
    assert tuple(lesion["outputs"].shape) == tuple(lesion["targets"].shape) == (2, 4, 4)


def test_a_loss_of_features_is_asked_once_a_batch_and_one_of_outputs_sees_all_cases() -> None:
    class Spread:
        scope = "per_batch"
        requires = ("features",)

        def __call__(self, *, features: Tensor) -> Tensor:
            return features.var()

    class Sure:
        scope = "per_sample"
        requires = ("outputs",)

        def __call__(self, *, outputs: Tensor) -> Tensor:
            return -outputs.softmax(1).amax(1)

    logits, features = torch.randn(4, 3), torch.randn(4, 4)
    given = seen({"cls": logits}, {"cls": torch.tensor([0, -1, -1, -1])}, features)
    assert torch.equal(plugged(Spread).mean(given), features.var())
    assert torch.allclose(plugged(Sure).mean(given), -2 * logits.softmax(1).amax(1).mean())


class Wrong(Entropy):
    """Something of it is not as it says."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong

    def __call__(self, *, outputs: Tensor, targets: Tensor) -> Tensor:
        each = super().__call__(outputs=outputs, targets=targets)
        match self.wrong:
            case "mean":
                return each.mean()
            case "ties":
                return each / each.mean()
            case "raises":
                raise ZeroDivisionError("of nothing")
        return each


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("mean", r"The loss 'mine' is per_sample and gives \(\), not \(3,\)"),
        ("ties", 'says that it is per_sample, and a case\'s loss depends on the others. Set `scope = "per_batch"`'),
        ("raises", "fails: ZeroDivisionError: of nothing"),
    ],
)
def test_what_is_not_as_it_says_is_refused_before_anything_is_trained(wrong: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        plugged(Wrong, wrong=wrong)


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"requires": ("labels",)}, 'does not say what ties its cases together. Set `scope = "per_sample"`'),
        ({"scope": "per_sample"}, "looks at nothing"),
        ({"scope": "per_sample", "requires": ("label",)}, "`requires` has 'label'; did you mean labels?"),
        ({"scope": "per_sample", "requires": "labels", "tasks": ("classes",)}, "`tasks` has 'classes'"),
    ],
)
def test_what_does_not_say_what_it_is_is_refused(attributes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        plugged(type("Quiet", (), attributes))
    assert says in str(caught.value)


def test_options_are_the_classs_own() -> None:
    with pytest.raises(InputError, match=r"'mine' cannot be made: TypeError: .*'gama'"):
        plugged(Entropy, gama=2.0)


def study_of(make_study: MakeStudy, loss: dict[str, Any], **changes: Any) -> Study:
    local = {"steps": 2, "batch_size": 8, "losses": [{"kind": "supervised"}, loss], "fixed_norm_stats": True}
    method = {"name": "fedavg", "rounds": 1, "local": local | changes.pop("local", {})}
    return pinned(make_study(method=method, **changes))


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (Wrong, r"losses\.1: The loss 'mine' is per_sample and gives \(\), not \(3,\)"),
        (Entropy, r"losses\.1: The loss 'mine' cannot be made: TypeError: .*'wrong'"),
    ],
)
def test_what_is_not_as_it_says_is_a_fault_of_the_study(loss: Any, says: str, make_study: MakeStudy) -> None:
    fg.register_loss("mine", loss)
    with pytest.raises(StudyError, match=says):
        check_study(study_of(make_study, {"kind": "mine", "options": {"wrong": "mean"}}), "study")


def test_a_study_is_checked_before_round_1(make_study: MakeStudy) -> None:
    class Spread:
        scope = "per_batch"
        requires = ("features",)

        def __call__(self, *, features: Tensor) -> Tensor:
            return features.var()

    fg.register_loss("entropy", Entropy)
    fg.register_loss("spread", Spread)
    private = {"private": {"epsilon": 3.0, "sample_rate": 0.25}}
    check_study(study_of(make_study, {"kind": "entropy"}, local=private), "study")
    check_study(study_of(make_study, {"kind": "spread"}), "study")
    values = [{"name": "size", "kind": "regression", "unit": "mm", "mean": 1.0, "std": 1.0}]
    for changes, says in (
        ({"loss": {"kind": "spread"}, "local": private}, r"losses\.1 \(spread\): it compares the cases of a batch"),
        (
            {"loss": {"kind": "entropy"}, "tasks": values},
            r"\(entropy\): is for multiclass, and the study asks for",
        ),
        (
            {"loss": {"kind": "entropi"}},
            r"losses\.1: there is no loss 'entropi'; did you mean entropy\? There are: ",
        ),
    ):
        with pytest.raises(StudyError, match=says):
            check_study(study_of(make_study, **changes), "study")
    for name in ("supervised", "proximal"):
        with pytest.raises(InputError, match=f"fedgraft has a loss '{name}' itself"):
            fg.register_loss(name, Entropy)


def test_in_place_of_the_supervised_loss_it_trains_to_the_same_entries(make_study: MakeStudy) -> None:
    fg.register_loss("entropy", Entropy)
    inputs, labels = images(20)
    labels[3] = -1
    trained = []
    for losses in ([{"kind": "supervised"}], [{"kind": "entropy"}]):
        study = pinned(make_study(method={"name": "fedavg", "rounds": 1, "local": {"steps": 3, "losses": losses}}))
        local_model = LocalModel(study, CPU)
        spec = study.plan[0].local
        assert isinstance(spec, Gradient)
        train(local_model, Loader(cohort(inputs, {"cls": labels}), study.input, CPU), spec, list(local_model.tags), NOW)
        trained.append(local_model.read(local_model.tags))
    assert all(abs(trained[0][key] - trained[1][key]).max() < 1e-5 for key in trained[0])
    start = LocalModel(make_study(), CPU).read(trained[0])
    assert any(abs(trained[0][key] - start[key]).max() > 1e-3 for key in trained[0])
