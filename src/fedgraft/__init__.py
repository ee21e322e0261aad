"""Federated transfer learning for medical imaging across hospitals.

    import fedgraft as fg

    run = fg.simulate("quickstart", out="runs/first")
    run.metrics["cls"]["macro"]

The same work as the commands', as calls that give values: `Study` and `Scenario` say what is asked of whom, `explain`
and `price` what that means, `simulate`, `resume` and `compare` carry it out, `load_run` opens what was carried out.
Whatever a person can mend is a `FedgraftError` that says what to do.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING

if not (_Path(__file__).parent / "common" / "__init__.py").is_file():
    raise ImportError(
        f"{_Path(__file__).parent / 'common'} is no link to common/: this copy was made without symbolic links. "
        "Run `python hatch_build.py` in the project's folder to make them."
    )

if TYPE_CHECKING:
    from fedgraft.common.base.errors import FedgraftError
    from fedgraft.common.study.study import Study
    from fedgraft.simulations.api.comparison import Comparison, compare, load_comparison
    from fedgraft.simulations.api.plugins import (
        load_plugin,
        register_backbone,
        register_loss,
        register_method,
        register_metric,
        register_reader,
    )
    from fedgraft.simulations.api.runs import Run, load_run
    from fedgraft.simulations.api.simulate import resume, simulate
    from fedgraft.simulations.api.studies import Explanation, explain, price
    from fedgraft.simulations.api.trained_model import Predictions, TrainedModel
    from fedgraft.simulations.phantoms.scenario import Scenario
    from fedgraft.simulations.planning.pricing import Price

_PLACES = {
    "Comparison": "simulations.api.comparison",
    "Explanation": "simulations.api.studies",
    "FedgraftError": "common.base.errors",
    "Predictions": "simulations.api.trained_model",
    "Price": "simulations.planning.pricing",
    "Run": "simulations.api.runs",
    "Scenario": "simulations.phantoms.scenario",
    "Study": "common.study.study",
    "TrainedModel": "simulations.api.trained_model",
    "compare": "simulations.api.comparison",
    "explain": "simulations.api.studies",
    "load_comparison": "simulations.api.comparison",
    "load_plugin": "simulations.api.plugins",
    "load_run": "simulations.api.runs",
    "price": "simulations.api.studies",
    "register_backbone": "simulations.api.plugins",
    "register_loss": "simulations.api.plugins",
    "register_method": "simulations.api.plugins",
    "register_metric": "simulations.api.plugins",
    "register_reader": "simulations.api.plugins",
    "resume": "simulations.api.simulate",
    "simulate": "simulations.api.simulate",
}

__all__ = [  # noqa: RUF022 - the order in which they are used
    "Study",
    "Scenario",
    "explain",
    "price",
    "simulate",
    "resume",
    "compare",
    "load_run",
    "load_comparison",
    "load_plugin",
    "register_backbone",
    "register_loss",
    "register_method",
    "register_metric",
    "register_reader",
    "Run",
    "Comparison",
    "Explanation",
    "Price",
    "TrainedModel",
    "Predictions",
    "FedgraftError",
]


def __getattr__(name: str) -> object:
    """What is asked for is imported when it is asked for: torch and Flower take seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module 'fedgraft' has no attribute {name!r}")
    from fedgraft.common.base.switches import set_switches

    set_switches()
    found = getattr(_import_module(f"fedgraft.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
