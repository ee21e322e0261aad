"""The model that is attacked draws nothing but what the mechanism draws."""

from __future__ import annotations

from fedgraft.client.attacks.attack_target import AttackTarget
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import parse_study


def test_no_layer_of_torchvisions_networks_drops_anything() -> None:
    """Its blocks drop whole branches; torchvision is loaded by the network, and by nothing before it."""
    study = parse_study(
        {
            "name": "dropping",
            "tasks": [{"name": "cls", "classes": ["no", "yes"]}],
            "input": {"kind": "image", "size": 32},
            "model": {"backbone": "efficientnet_b0", "weights": None},
            "method": {"name": "fedavg", "rounds": 1, "local": {"steps": 1, "batch_size": 4, "lr": 0.01}},
        },
        "dropping",
    )
    stage = study.plan[0]
    assert isinstance(stage.local, Gradient)
    parts = AttackTarget(study, stage.name, stage.local, ()).local_model().model.modules()
    found = {type(part).__name__: part.p for part in parts if isinstance(getattr(part, "p", None), float)}
    assert found == {"StochasticDepth": 0.0, "Dropout": 0.0}
