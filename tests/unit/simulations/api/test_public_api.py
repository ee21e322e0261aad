"""What `import fedgraft` promises: names and signatures, which change only on purpose."""

from __future__ import annotations

import inspect

import fedgraft as fg

SIGNATURES = {
    "simulate": (
        "(study, scenario=None, *, out=None, engine='inprocess', workers=None, threads=1, ray_address=None, track=(), "
        "progress=None, release=None)"
    ),
    "resume": "(run, *, engine='inprocess', workers=None, threads=1, ray_address=None, track=(), progress=None)",
    "compare": (
        "(study, scenario=None, *, arms=(), seeds=None, only=(), quick=False, out=None, workers=2, threads=1, "
        "track=(), progress=None)"
    ),
    "explain": "(study)",
    "price": "(study, patients=1000, *, metrics_epsilon=None)",
    "load_run": "(path)",
    "load_comparison": "(path)",
    "load_plugin": "(place)",
    "register_backbone": "(name, factory=None)",
    "register_loss": "(name, made=None)",
    "register_method": "(name, method=None)",
    "register_metric": "(name, made=None)",
    "register_reader": "(name, kind)",
}
MEMBERS = {
    "Run": "export headline history metrics model path privacy report result sites status study",
    "Comparison": "path report result rows to_pandas",
    "Explanation": "sentences stages study tasks",
    "Predictions": "answers classes names problems to_pandas",
    "Price": "delta epsilon lines patients",
}


def test_the_names_are_pinned_and_all_can_be_had() -> None:
    assert sorted(fg.__all__) == sorted([*SIGNATURES, *MEMBERS, "FedgraftError", "Scenario", "Study", "TrainedModel"])
    for name in fg.__all__:
        assert getattr(fg, name).__doc__, f"{name} says nothing of itself"
        assert name in dir(fg)


def test_the_signatures_are_pinned() -> None:
    for name, wanted in SIGNATURES.items():
        signature = inspect.signature(getattr(fg, name))
        plain = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
        found = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
        assert found == wanted, name


def test_the_members_are_pinned() -> None:
    for name, wanted in MEMBERS.items():
        kind = getattr(fg, name)
        public = {one for one in {*vars(kind), *getattr(kind, "__dataclass_fields__", ())} if not one.startswith("_")}
        assert public == set(wanted.split()), name
    for method in ("predict", "prepare", "forward", "classes", "input"):
        assert vars(fg.TrainedModel)[method].__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(fg, "simulation")
