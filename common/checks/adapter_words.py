"""What the coordinator takes the mean of where low-rank adapters travel, in words."""

from __future__ import annotations

from fedgraft.common.study.plan import ADAPTERS, Gradient, Role, Stage
from fedgraft.common.study.stages.aggregates import AdaptersProduct


def mean_of_adapters(stage: Stage) -> str:
    """Which mean of low-rank adapters is taken: those of A and of B do not give that of B A. "" without any."""
    trained = stage.local.train.roles & ADAPTERS if isinstance(stage.local, Gradient) else frozenset()
    shared = trained & stage.share.roles
    if not shared:
        return ""
    if isinstance(stage.aggregate, AdaptersProduct):
        return ", of adapters what they add, B A, split again into two of their rank"
    if trained == {Role.ADAPTER_B}:
        return "; of adapters A stays as it was drawn, so that the mean of B is that of what they add (FFA-LoRA)"
    if shared == {Role.ADAPTER_A}:
        return "; of adapters A alone, each site has its own B (FedSA-LoRA)"
    if shared == {Role.ADAPTER_B}:
        return "; of adapters B alone, each site has its own A"
    return "; of adapters A and B each for itself (FedIT), which is not the mean of what they add, B A"
