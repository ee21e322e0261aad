"""Methods by their usual names: each expands to the stages of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedgraft.common.config.suggest import instead
from fedgraft.common.plugins.registry import Kind, names
from fedgraft.common.study.methods.ensembles import ENSEMBLES
from fedgraft.common.study.methods.recipes import (
    NamedMethod,
    adapt,
    adapted,
    fixbn,
    harmonised,
    logistic_probe,
    lp_ft,
    maml,
    moment_alignment,
    personal,
    personalised,
    probe,
    probe_finetune,
    rounds_of,
    self_taught,
    standardise,
    three_step,
    unfreezing,
    with_losses,
    with_ood_detection,
)
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.aggregates import (
    AdaptersProduct,
    ClippedMean,
    Discriminant,
    Krum,
    Median,
    NearestMean,
    ServerOptimiser,
    TrimmedMean,
)
from fedgraft.common.study.stages.losses import (
    Adversarial,
    Discrepancy,
    InfoMax,
    Proximal,
    PseudoLabel,
    Supervised,
)
from fedgraft.common.study.stages.methods import METHODS, method_class
from fedgraft.common.study.stages.stopping import EarlyStopping, WeightAveraging

Preset = tuple[str, Callable[[NamedMethod], tuple[Stage, ...]]]
"""One line of what it does, with the paper, and its stages."""

PLANS: Mapping[str, Preset] = {
    "fedavg": ("all entries trained and averaged (McMahan et al. 2017)", lambda m: (rounds_of(m, "all"),)),
    "fedbn": (
        "all but norm layers averaged, those stay at the site (Li et al. 2021)",
        lambda m: (rounds_of(m, "all_but_norm", keep="norm"),),
    ),
    "silobn": (
        "all but norm statistics averaged, those stay at the site (Andreux et al. 2020)",
        lambda m: (rounds_of(m, "all_but_norm_stats", keep="norm_stats"),),
    ),
    "fedper": (
        "backbone averaged, heads stay at the site (Arivazhagan et al. 2019)",
        lambda m: (rounds_of(m, "all_but_heads", keep="heads"),),
    ),
    "fedavgm": (
        "FedAvg with momentum at the coordinator (Hsu et al. 2019)",
        lambda m: (rounds_of(m, "all", aggregate=ServerOptimiser(rule="sgd", momentum=0.9)),),
    ),
    "fedadam": (
        "Adam at the coordinator over the mean change (Reddi et al. 2021)",
        lambda m: (rounds_of(m, "all", aggregate=ServerOptimiser(rule="adam", lr=0.01, momentum=0.9)),),
    ),
    "fedyogi": (
        "Yogi at the coordinator over the mean change (Reddi et al. 2021)",
        lambda m: (rounds_of(m, "all", aggregate=ServerOptimiser(rule="yogi", lr=0.01, momentum=0.9)),),
    ),
    "fedadagrad": (
        "Adagrad at the coordinator over the mean change (Reddi et al. 2021)",
        lambda m: (rounds_of(m, "all", aggregate=ServerOptimiser(rule="adagrad", lr=0.03)),),
    ),
    "median": (
        "median over the sites of each number (Yin et al. 2018)",
        lambda m: (rounds_of(m, "all", aggregate=Median()),),
    ),
    "trimmed_mean": (
        "mean without the largest and smallest values of each number (Yin et al. 2018)",
        lambda m: (rounds_of(m, "all", aggregate=TrimmedMean()),),
    ),
    "norm_clipping": (
        "the mean by cases of changes no longer than most, no site counting half (Sun et al. 2019)",
        lambda m: (rounds_of(m, "all", aggregate=ClippedMean(weight="examples")),),
    ),
    "krum": (
        "the update closest to most others (Blanchard et al. 2017)",
        lambda m: (rounds_of(m, "all", aggregate=Krum()),),
    ),
    "linear_probe": (
        "backbone frozen, heads trained by gradient and averaged",
        lambda m: (rounds_of(m, "heads", train="heads"),),
    ),
    "ridge_probe": (
        "backbone frozen, heads solved in one exchange from the sites' sums (Fani et al. 2024)",
        lambda m: (probe(m),),
    ),
    "logistic_probe": (
        "backbone frozen, heads by Newton's method from the sites' sums: the pooled logistic regression",
        lambda _: (logistic_probe(),),
    ),
    "ncm_probe": (
        "backbone frozen, classes by the nearest mean feature, in one exchange from the sites' sums",
        lambda m: (probe(m, NearestMean()),),
    ),
    "lda_probe": (
        "backbone frozen, linear discriminant analysis, in one exchange from the sites' sums",
        lambda m: (probe(m, Discriminant()),),
    ),
    "fedprox": (
        "FedAvg, each site pulled to where the round began (Li et al. 2020)",
        lambda m: (rounds_of(with_losses(m, Proximal(to="round")), "all"),),
    ),
    "l2sp": (
        "FedAvg, all but heads pulled to the pretrained entries (Li et al. 2018)",
        lambda m: (rounds_of(with_losses(m, Proximal(to="pretrained")), "all"),),
    ),
    "ditto": (
        "FedAvg, then each site's own model, kept there and pulled to the common one (Li et al. 2021)",
        lambda m: (rounds_of(m, "all"), personal(m, Proximal(to="global", weight=0.1))),
    ),
    "gradual_unfreezing": (
        "heads first, then one more block every few rounds, at last all entries (Howard and Ruder 2018)",
        unfreezing,
    ),
    "lp_ft": ("linear probe, then fine-tuning of all entries (Kumar et al. 2022)", lp_ft),
    "probe_finetune": (
        "ridge probe, then fine-tuning of all entries with norm statistics fixed: for weights from far, as ImageNet's",
        probe_finetune,
    ),
    "norm_and_head": (
        "norm layers and heads trained and averaged, all else frozen",
        lambda m: (rounds_of(m, "norm_and_heads", train="norm_and_heads"),),
    ),
    "lora": (
        "low-rank adapters (model.adapters) and heads trained, each matrix averaged (FedIT, Zhang et al. 2024)",
        lambda m: (rounds_of(m, "adapters_and_heads", train="adapters_and_heads"),),
    ),
    "lora_product": (
        "the same, but averaging what adapters add, split again into their rank (FlexLoRA, Bai et al. 2024)",
        lambda m: (rounds_of(m, "adapters_and_heads", train="adapters_and_heads", aggregate=AdaptersProduct()),),
    ),
    "fedsa_lora": (
        "adapters and heads trained, B stays at the site (FedSA-LoRA, Guo et al. 2025)",
        lambda m: (rounds_of(m, "adapters_a_and_heads", keep="adapters_b", train="adapters_and_heads"),),
    ),
    "ffa_lora": (
        "the adapters' B and heads trained and averaged, A as it was drawn (FFA-LoRA, Sun et al. 2024)",
        lambda m: (rounds_of(m, "adapters_b_and_heads", train="adapters_b_and_heads"),),
    ),
    "fixbn": ("FedAvg, whose norm statistics stay fixed after a warm-up (Zhong et al. 2023)", fixbn),
    "layer_decay": (
        "FedAvg with a rate that falls from block to block below the heads",
        lambda m: (rounds_of(with_losses(m, layer_decay=0.75), "all"),),
    ),
    "swa": (
        "FedAvg that ends with the mean of its last rounds' models (Izmailov et al. 2018)",
        lambda m: (rounds_of(m, "all").model_copy(update={"weight_averaging": WeightAveraging(rule="swa")}),),
    ),
    "ema": (
        "FedAvg that ends with a running mean of its rounds' models",
        lambda m: (rounds_of(m, "all").model_copy(update={"weight_averaging": WeightAveraging(rule="ema")}),),
    ),
    "early_stopping": (
        "FedAvg that stops when the sites' validation no longer improves",
        lambda m: (rounds_of(m, "all").model_copy(update={"early_stopping": EarlyStopping()}),),
    ),
    "fedrep": (
        "heads kept at the site and trained first, then the body, which is averaged (Collins et al. 2021)",
        lambda m: (rounds_of(with_losses(m, heads_first=m.local.heads_first or 10), "all_but_heads", keep="heads"),),
    ),
    "lg_fedavg": (
        "heads averaged, all else stays at the site (Liang et al. 2020)",
        lambda m: (rounds_of(m, "heads", keep="all_but_heads"),),
    ),
    "reptile": (
        "half a step towards the sites' mean, for a model that adapts quickly (Nichol et al. 2018)",
        lambda m: (rounds_of(m, "all", aggregate=ServerOptimiser(rule="sgd", lr=0.5, weight="equal")),),
    ),
    "fomaml": (
        "gradients taken after a step ahead on other cases: first-order MAML (Fallah et al. 2020)",
        maml,
    ),
    "dann": (
        "features that a domain discriminator cannot tell from those of a source at the site (Ganin et al. 2016)",
        lambda m: (adapted(m, Supervised(of="source"), Adversarial()),),
    ),
    "cdan": (
        "the same with a domain discriminator of features by class (Long et al. 2018)",
        lambda m: (adapted(m, Supervised(of="source"), Adversarial(conditional=True)),),
    ),
    "coral": (
        "covariances of features as those of a source at the site (Sun and Saenko 2016)",
        lambda m: (adapted(m, Supervised(of="source"), Discrepancy(measure="coral")),),
    ),
    "mmd": (
        "features distributed as those of a source at the site (Long et al. 2015)",
        lambda m: (adapted(m, Supervised(of="source"), Discrepancy(measure="mmd")),),
    ),
    "moment_alignment": (
        "mean and covariance of features as those that a source released; no source data at the sites",
        moment_alignment,
    ),
    "shot_im": (
        "heads fixed, features that make each site's own answers sure and diverse (Liang et al. 2020)",
        lambda m: self_taught(m, InfoMax()),
    ),
    "pseudo_label": (
        "each site's own model, taught its own sure answers where labels are missing (Lee 2013)",
        lambda m: self_taught(m, PseudoLabel()),
    ),
    "joint_at_sites": (
        "L_target + L_source, the source in a folder at each site",
        lambda m: (rounds_of(with_losses(m, Supervised(of="source")), "all"),),
    ),
    "joint": (
        "L_source + L_target, the source at the coordinator as one more site",
        lambda m: (rounds_of(m, "all").model_copy(update={"joint_lambda": 1.0}),),
    ),
    "three_step": (
        "train on the source, fine-tune on the sites, adapt norm statistics to each",
        three_step,
    ),
    "local_finetuning": (
        "FedAvg, then each site goes on with its own copy, which stays there",
        lambda m: (rounds_of(m, "all"), personal(m)),
    ),
    "graft": (
        "ridge probe, then fine-tuning of all entries, then each site adapts its norm statistics (AdaBN)",
        lambda m: (probe(m), rounds_of(m, "all"), adapt()),
    ),
    **ENSEMBLES,
}


def presets() -> dict[str, Preset]:
    """All methods that have a name: plans of the usual values, and those that have a file of their own."""
    own = {kind: method_class(kind) for kind in METHODS}
    return {**PLANS, **{kind: (found.summary, found.stages) for kind, found in own.items()}}


def expand(method: NamedMethod, *, table: bool, harmonise: bool = False) -> tuple[Stage, ...]:
    """Stages of a preset, after the sums that a `table` needs, and those before them that `harmonise` it.

    ValueError with the list of names for an unknown preset.
    """
    known, plugged = presets(), names(Kind.METHODS)
    if method.name not in [*known, *plugged]:
        raise ValueError(f"no method is called {method.name!r}{instead(method.name, [*known, *plugged])}")
    stages = known[method.name][1](method) if method.name in known else method_class(method.name).stages(method)
    stages = with_ood_detection(stages) if method.ood_detection else stages
    stages = personalised(method, stages) if method.personalise == "best" else stages
    stages = (standardise(method.columns), *stages) if table else stages
    return (*harmonised(), *stages) if harmonise else stages
