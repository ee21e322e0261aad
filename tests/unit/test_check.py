import pytest

from common.check import check
from common.plan import Role, Tag
from common.study import Study, parse_study
from common.travel import changed, sent, stays

TAGS = {
    "backbone.stem.weight": Tag(Role.STEM, 0),
    "backbone.bn.weight": Tag(Role.NORM_AFFINE, 1),
    "backbone.bn.running_mean": Tag(Role.NORM_STATS, 1),
    "backbone.conv.weight": Tag(Role.BODY, 1),
    "heads.cls.weight": Tag(Role.HEAD, 2, "cls"),
}
NO_NORM = {key: tag for key, tag in TAGS.items() if "bn" not in key}
TASKS = [{"name": "cls", "classes": ["a", "b"]}]
GRADIENT = {"kind": "gradient", "epochs": 1}


def study(*plan: dict, **more: object) -> Study:
    stages = [{"name": f"s{number}", **stage} for number, stage in enumerate(plan)]
    return parse_study({"name": "x", "tasks": TASKS, "plan": stages, **more}, "here")


FEDAVG = {"local": GRADIENT, "share": "all", "merge": {"kind": "mean"}}
FEDBN = {"local": GRADIENT, "share": "all_but_norm", "keep": "norm", "merge": {"kind": "mean"}}
PROBE = {"local": {"kind": "statistics"}, "share": "heads", "merge": {"kind": "ridge"}}
ADAPT = {"local": {"kind": "recalibrate"}, "keep": "norm_stats"}


def test_what_works_is_let_through():
    assert check(study(PROBE, FEDAVG, ADAPT), TAGS) == []
    assert check(study(FEDBN), TAGS) == []


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ([FEDAVG | {"share": "all_but_norm"}], "neither shared nor declared"),
        ([FEDAVG | {"share": "none", "keep": "all"}], "nothing that is trained travels"),
        ([FEDAVG | {"merge": {"kind": "nothing"}}], "what is shared must be merged"),
        ([FEDAVG | {"merge": {"kind": "ridge"}}], "merges sums"),
        ([FEDAVG | {"where": "unlabelled"}], "needs labels"),
        ([FEDAVG | {"local": GRADIENT | {"train": "none"}}], "nothing that gradients could train"),
        ([FEDAVG | {"local": GRADIENT | {"train": "norm_stats"}}], "nothing that gradients could train"),
        ([PROBE | {"merge": {"kind": "mean"}}], "merged by ridge"),
        ([PROBE | {"rounds": 2}], "one is enough"),
        ([PROBE | {"share": "none"}], "must reach the sites"),
        (
            [PROBE | {"local": {"kind": "statistics", "of": "columns"}, "merge": {"kind": "standardise"}}],
            "those of a table",
        ),
        ([FEDBN, PROBE], "same backbone at all sites"),
        ([ADAPT | {"share": "all"}], "the site's own"),
        ([ADAPT | {"keep": "none"}], "keeps its norm statistics"),
        ([ADAPT | {"merge": {"kind": "mean"}}], "shares nothing"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(plan: list[dict], words: str):
    faults = check(study(*plan), TAGS)
    assert any(words in fault for fault in faults), faults
    assert all(fault.startswith("plan.") for fault in faults)


def test_recalibration_without_norm_layers_is_refused():
    assert any("no norm layers" in fault for fault in check(study(FEDAVG, ADAPT), NO_NORM))


def test_all_reasons_come_at_once():
    faults = check(study(FEDAVG | {"share": "all_but_norm"}, PROBE | {"rounds": 3}, ADAPT | {"share": "all"}), TAGS)
    assert {fault.split(".")[1][0] for fault in faults} == {"0", "1", "2"}


def test_a_split_that_is_used_must_exist():
    assert any("split.val" in f for f in check(study(FEDAVG, split={"train": 0.7, "val": 0, "test": 0.3}), TAGS))
    assert any("split.test" in f for f in check(study(FEDAVG, split={"train": 0.7, "val": 0.3, "test": 0}), TAGS))


def test_a_table_needs_its_columns_standardised_first():
    table = {"kind": "table", "numeric": ["age"]}
    assert any("standardises" in fault for fault in check(study(FEDAVG, input=table), TAGS))
    first = {"local": {"kind": "statistics", "of": "columns"}, "merge": {"kind": "standardise"}}
    assert check(study(first, FEDAVG, input=table), TAGS) == []


def test_fedbn_sends_no_norm_entry_and_keeps_them_all():
    stage = study(FEDBN).plan[0]
    assert sent(stage, TAGS) == ("backbone.stem.weight", "backbone.conv.weight", "heads.cls.weight")
    assert stays(stage, TAGS) == ("backbone.bn.weight", "backbone.bn.running_mean")


def test_fixed_norm_statistics_do_not_move():
    fixed = study(FEDAVG | {"local": GRADIENT | {"fixed_norm_stats": True}}).plan[0]
    assert "backbone.bn.running_mean" not in changed(fixed, TAGS)
    assert "backbone.bn.weight" in changed(fixed, TAGS)


def test_a_linear_probe_moves_and_sends_its_head_alone():
    probe = study(FEDAVG | {"local": GRADIENT | {"train": "heads"}}).plan[0]
    assert sent(probe, TAGS) == ("heads.cls.weight",)
