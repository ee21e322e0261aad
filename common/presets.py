"""Methods by their usual names: each expands to the stages of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from common.plan import (
    Discriminant,
    Gradient,
    Krum,
    Mean,
    Median,
    Merge,
    NearestMean,
    Recalibrate,
    Ridge,
    Select,
    ServerOptimiser,
    Stage,
    Standardise,
    Statistics,
    TrimmedMean,
    named,
)
from common.private_sums import PrivateSums
from common.value import Value

_RIDGE = Ridge()


class Method(Value):
    """A preset by name with the few settings that all presets understand.

    `rounds` are those of the gradient stage; `local` is its local work.
    """

    name: str
    rounds: int = 10
    local: Gradient = Gradient(epochs=1)
    sums: PrivateSums | None = None
    """Noise on the sums of a closed-form head."""


_MEAN = Mean()


def _rounds(method: Method, share: str, keep: str = "none", train: str = "all", merge: Merge = _MEAN) -> Stage:
    local = method.local.model_copy(update={"train": named(train)}) if train != "all" else method.local
    return Stage(
        name="train",
        where="labelled",
        local=local,
        share=named(share),
        keep=named(keep),
        merge=merge,
        rounds=method.rounds,
    )


def _probe(method: Method, merge: Ridge | NearestMean | Discriminant = _RIDGE) -> Stage:
    return Stage(
        name="probe",
        where="labelled",
        local=Statistics(private=method.sums),
        share=Select(roles=named("heads").roles),
        merge=merge,
    )


def _adapt() -> Stage:
    return Stage(name="adapt", local=Recalibrate(), keep=named("norm_stats"))


def standardise() -> Stage:
    """The stage that a table needs before any other: columns on one scale, agreed by all sites."""
    return Stage(name="standardise", local=Statistics(of="columns"), merge=Standardise())


PRESETS: Mapping[str, tuple[str, Callable[[Method], tuple[Stage, ...]]]] = {
    "fedavg": ("all entries trained and averaged (McMahan et al. 2017)", lambda m: (_rounds(m, "all"),)),
    "fedbn": (
        "all but norm layers averaged, those stay at the site (Li et al. 2021)",
        lambda m: (_rounds(m, "all_but_norm", keep="norm"),),
    ),
    "silobn": (
        "all but norm statistics averaged, those stay at the site (Andreux et al. 2020)",
        lambda m: (_rounds(m, "all_but_norm_stats", keep="norm_stats"),),
    ),
    "fedper": (
        "backbone averaged, heads stay at the site (Arivazhagan et al. 2019)",
        lambda m: (_rounds(m, "all_but_heads", keep="heads"),),
    ),
    "fedavgm": (
        "FedAvg with momentum at the coordinator (Hsu et al. 2019)",
        lambda m: (_rounds(m, "all", merge=ServerOptimiser(rule="sgd", momentum=0.9)),),
    ),
    "fedadam": (
        "Adam at the coordinator over the mean change (Reddi et al. 2021)",
        lambda m: (_rounds(m, "all", merge=ServerOptimiser(rule="adam", lr=0.01, momentum=0.9)),),
    ),
    "fedyogi": (
        "Yogi at the coordinator over the mean change (Reddi et al. 2021)",
        lambda m: (_rounds(m, "all", merge=ServerOptimiser(rule="yogi", lr=0.01, momentum=0.9)),),
    ),
    "fedadagrad": (
        "Adagrad at the coordinator over the mean change (Reddi et al. 2021)",
        lambda m: (_rounds(m, "all", merge=ServerOptimiser(rule="adagrad", lr=0.03)),),
    ),
    "median": (
        "median over the sites of each number (Yin et al. 2018)",
        lambda m: (_rounds(m, "all", merge=Median()),),
    ),
    "trimmed_mean": (
        "mean without the largest and smallest values of each number (Yin et al. 2018)",
        lambda m: (_rounds(m, "all", merge=TrimmedMean()),),
    ),
    "krum": (
        "the update closest to most others (Blanchard et al. 2017)",
        lambda m: (_rounds(m, "all", merge=Krum()),),
    ),
    "linear_probe": (
        "backbone frozen, heads trained by gradient and averaged",
        lambda m: (_rounds(m, "heads", train="heads"),),
    ),
    "ridge_probe": (
        "backbone frozen, heads solved in one exchange from the sites' sums (Fani et al. 2024)",
        lambda m: (_probe(m),),
    ),
    "ncm_probe": (
        "backbone frozen, classes by the nearest mean feature, in one exchange from the sites' sums",
        lambda m: (_probe(m, NearestMean()),),
    ),
    "lda_probe": (
        "backbone frozen, linear discriminant analysis, in one exchange from the sites' sums",
        lambda m: (_probe(m, Discriminant()),),
    ),
    "graft": (
        "ridge probe, then fine-tuning of all entries, then each site adapts its norm statistics (AdaBN)",
        lambda m: (_probe(m), _rounds(m, "all"), _adapt()),
    ),
}


def expand(method: Method, *, table: bool) -> tuple[Stage, ...]:
    """Stages of a preset; ValueError with the list of names for an unknown one."""
    if method.name not in PRESETS:
        raise ValueError(f"no method is called {method.name!r}; there are: {', '.join(PRESETS)}")
    stages = PRESETS[method.name][1](method)
    return (standardise(), *stages) if table else stages
