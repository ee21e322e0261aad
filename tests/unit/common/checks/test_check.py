import pytest

from fedgraft.common.base.errors import StudyError
from fedgraft.common.checks.check import check
from fedgraft.common.protocol.routing import changed, sent, stays
from fedgraft.common.study.plan import Role, Tag
from fedgraft.common.study.study import Study, parse_study

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


FEDAVG = {"local": GRADIENT, "share": "all", "aggregate": {"kind": "mean"}}
FEDBN = {"local": GRADIENT, "share": "all_but_norm", "keep": "norm", "aggregate": {"kind": "mean"}}
PROBE = {"local": {"kind": "statistics"}, "share": "heads", "aggregate": {"kind": "ridge"}}
ADAPT = {"local": {"kind": "recalibrate"}, "keep": "norm_stats"}


def test_what_works_is_let_through():
    assert check(study(PROBE, FEDAVG, ADAPT), TAGS) == []
    assert check(study(FEDBN), TAGS) == []


def test_masked_sums_have_one_precision():
    single = PROBE | {"local": {"kind": "statistics", "precision": "single"}}
    assert check(study(single), TAGS) == []
    assert any("local.precision" in fault for fault in check(study(single, secure_aggregation=True), TAGS))


TOLD = {"by": "name", "sites": {"one": ["a", "b"], "two": ["c"]}}
SUMS = {"by": "sums", "stage": "s0"}
LOSS = {"by": "loss", "count": 2}
GROUPS = {"groups": {"one": ["a", "b", "c"], "two": ["d", "e", "f"]}}
OOD = [
    {"local": {"kind": "statistics"}, "aggregate": {"kind": "moments"}},
    {"local": {"kind": "statistics", "of": "distances"}, "aggregate": {"kind": "threshold"}},
]


def test_clusters_that_work_are_let_through() -> None:
    assert check(study(FEDAVG, ADAPT, clusters=TOLD), TAGS) == []
    assert check(study(PROBE, FEDAVG, ADAPT, clusters=SUMS), TAGS) == []
    assert check(study(PROBE, FEDAVG, clusters=TOLD | {"begin": "s1", "own": "heads"}), TAGS) == []
    assert check(study(FEDAVG, ADAPT, clusters=LOSS), TAGS) == []
    assert check(study(PROBE, FEDAVG, clusters=LOSS | {"stage": "s0"}), TAGS) == []
    assert check(study(PROBE, FEDAVG, clusters=SUMS | GROUPS, secure_aggregation=True), TAGS) == []


@pytest.mark.parametrize(
    ("plan", "more", "words"),
    [
        ([FEDAVG, FEDAVG], {"clusters": SUMS}, "sends no sums of features"),
        ([OOD[0], FEDAVG], {"clusters": SUMS, "secure_aggregation": True}, "masks hide each site's sums"),
        (
            [PROBE, FEDAVG],
            {"clusters": SUMS | {"groups": {"one": ["a", "b", "c"], "two": ["d"]}}, "secure_aggregation": True},
            "clusters.groups.two: has 1 sites, and a masked sum needs 3",
        ),
        ([FEDAVG], {"clusters": LOSS, "secure_aggregation": True}, "could be of a single site"),
        ([PROBE, FEDAVG], {"clusters": LOSS}, "begin with the same heads"),
        (
            [FEDAVG],
            {"clusters": LOSS | {"own": "all_but_heads"}, "model": {"weights": "w"}},
            "begin with the same heads",
        ),
        ([FEDAVG, FEDAVG], {"clusters": LOSS | {"stage": "s0"}}, "sends no sums of features"),
        (
            [FEDAVG | {"local": {"kind": "gradient", "steps": 4, "private": {"epsilon": 8.0, "sample_rate": 0.25}}}],
            {"clusters": LOSS},
            "tells of its patients, and no noise hides it",
        ),
        ([FEDAVG | {"where": "unlabelled"}], {"clusters": LOSS}, "cannot choose by loss"),
        ([FEDAVG | {"compress": {"kind": "int8"}}], {"clusters": LOSS}, "of the same model, and a site may choose"),
        (
            [FEDAVG | {"local": GRADIENT | {"methods": [{"kind": "scaffold"}]}}],
            {"clusters": LOSS},
            "what scaffold remembers is of one model",
        ),
        ([FEDAVG], {"clusters": TOLD, "secure_aggregation": True}, "two: has 1 sites, and a masked sum needs 3"),
        (
            [PROBE, FEDAVG],
            {"clusters": TOLD | {"begin": "s1"}, "secure_aggregation": True},
            "masks with one group alone",
        ),
        ([FEDAVG, *OOD], {"clusters": TOLD}, "moments describes the sites of one model"),
        ([FEDAVG | {"joint_lambda": 1.0}], {"clusters": TOLD}, "a source is in no cluster"),
        ([PROBE], {"clusters": TOLD | {"own": "norm"}}, "all would have one model"),
        (
            [FEDAVG],
            {"clusters": TOLD, "evaluate": {"operating_point": {"sensitivity": 0.9}}},
            "would need one of its own",
        ),
        (
            [FEDAVG | {"local": GRADIENT | {"optimiser": "sgd", "momentum": 0.0, "methods": [{"kind": "scaffold"}]}}],
            {"clusters": TOLD | {"own": "heads"}},
            "would be of one cluster",
        ),
        (
            [PROBE | {"local": {"kind": "statistics", "private": {"epsilon": 3}}}, FEDAVG],
            {"clusters": SUMS},
            "what is noise would be taken for a difference",
        ),
        (
            [PROBE | {"local": {"kind": "statistics", "retain_statistics": True}}],
            {"clusters": TOLD},
            "sites leave and join one model",
        ),
    ],
)
def test_what_clusters_cannot_do_is_refused_with_the_reason(plan: list[dict], more: dict, words: str) -> None:
    faults = check(study(*plan, **more), TAGS)
    assert any(words in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("clusters", "words"),
    [
        ({"by": "name", "sites": {"one": ["a", "b"], "two": ["b"]}}, "b: can be in one cluster alone"),
        (TOLD | {"begin": "s7"}, "clusters.begin: no stage is called s7"),
        ({"by": "sums", "stage": "s0"}, "no stage is left"),
        ({"by": "name", "sites": {"one": ["a"]}}, "clusters"),
        (SUMS | {"groups": {"one": ["a"], "two": ["a"]}}, "a: can be in one group alone"),
        (LOSS, "no stage is left"),
        (LOSS | {"count": 1}, "clusters"),
    ],
)
def test_clusters_that_say_nothing_are_refused_when_they_are_read(clusters: dict, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        study(PROBE, clusters=clusters)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ([FEDAVG | {"share": "all_but_norm"}], "neither shared nor declared"),
        ([FEDAVG | {"share": "none", "keep": "all"}], "nothing that is trained travels"),
        ([FEDAVG | {"aggregate": {"kind": "nothing"}}], "what is shared must be aggregated"),
        ([FEDAVG | {"aggregate": {"kind": "ridge"}}], "aggregates sums"),
        ([FEDAVG | {"where": "unlabelled"}], "needs labels"),
        ([FEDAVG | {"local": GRADIENT | {"train": "none"}}], "nothing that gradients could train"),
        ([FEDAVG | {"local": GRADIENT | {"train": "norm_stats"}}], "nothing that gradients could train"),
        ([PROBE | {"aggregate": {"kind": "mean"}}], "aggregated by ridge"),
        ([PROBE | {"rounds": 2}], "one is enough"),
        ([PROBE | {"share": "none"}], "must reach the sites"),
        (
            [PROBE | {"local": {"kind": "statistics", "of": "columns"}, "aggregate": {"kind": "standardise"}}],
            "those of a table",
        ),
        (
            [
                {
                    "local": {"kind": "statistics", "of": "columns", "precision": "single"},
                    "aggregate": {"kind": "standardise"},
                }
            ],
            "local.precision: is for sums of features without masks",
        ),
        ([FEDBN, PROBE], "same backbone at all sites"),
        ([ADAPT | {"share": "all"}], "the site's own"),
        ([ADAPT | {"keep": "none"}], "keeps its norm statistics"),
        ([ADAPT | {"aggregate": {"kind": "mean"}}], "shares nothing"),
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
    first = {"local": {"kind": "statistics", "of": "columns"}, "aggregate": {"kind": "standardise"}}
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


PRIVATE = {
    "kind": "gradient",
    "steps": 5,
    "fixed_norm_stats": True,
    "private": {"noise_multiplier": 1.0, "sample_rate": 0.1},
}


def test_private_work_that_can_be_private_is_let_through():
    assert check(study(FEDAVG | {"local": PRIVATE}), TAGS) == []
    heads = PRIVATE | {"train": "heads", "fixed_norm_stats": False}
    assert check(study(FEDAVG | {"local": heads}, model={"backbone": "vit_b_16"}), TAGS) == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"fixed_norm_stats": False}, "local.fixed_norm_stats: running statistics are not noised"),
        ({"class_weights": "balanced"}, "local.class_weights: "),
        ({"steps": None, "epochs": 1}, "local.epochs: "),
        ({"clip_norm": 1.0}, "local.clip_norm: "),
    ],
)
def test_private_work_that_would_not_be_private_is_refused(changes: dict, key: str):
    (fault,) = check(study(FEDAVG | {"local": PRIVATE | changes}), TAGS)
    assert fault.startswith(f"plan.0 (s0).{key}")


@pytest.mark.parametrize("backbone", ["vit_b_16", "convnext_tiny"])
def test_a_body_without_per_sample_gradients_is_refused(backbone: str):
    (fault,) = check(study(FEDAVG | {"local": PRIVATE}, model={"backbone": backbone}), TAGS)
    assert f"local.train: {backbone} " in fault


@pytest.mark.parametrize(
    "bad",
    [
        {"noise_multiplier": 0},
        {"noise_multiplier": -1},
        {"max_grad_norm": 0},
        {"sample_rate": 0},
        {"sample_rate": 1.1},
        {"augmentation_multiplicity": 0},
    ],
)
def test_terms_that_promise_nothing_cannot_be_written(bad: dict):
    with pytest.raises(StudyError, match=next(iter(bad))):
        study(FEDAVG | {"local": PRIVATE | {"private": {"noise_multiplier": 1.0, "sample_rate": 0.1} | bad}})


def test_a_masked_study_cannot_look_at_single_sites():
    (fault,) = check(study(FEDAVG, secure_aggregation=True, rounds={"max_change": 3.0}), TAGS)
    assert fault.startswith("rounds.max_change: bounds the change of each site, which masks hide")
    assert check(study(PROBE, FEDAVG, ADAPT, secure_aggregation=True), TAGS) == []
    assert check(study(FEDAVG, rounds={"max_change": 3.0}), TAGS) == []


@pytest.mark.parametrize("kind", ["median", "trimmed_mean", "krum", "clipped_mean"])
def test_a_merge_that_compares_sites_cannot_be_masked(kind: str):
    plan = (PROBE, FEDAVG | {"aggregate": {"kind": kind}})
    (fault,) = check(study(*plan, secure_aggregation=True), TAGS)
    assert fault.startswith(f"plan.1 (s1).aggregate: {kind} looks at the sites one by one")
    assert check(study(*plan), TAGS) == []
