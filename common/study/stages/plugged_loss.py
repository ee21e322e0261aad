"""What a loss of a plug-in says of itself, read off its class before anything is made of it.

An entry point of the group `fedgraft.losses` is a class, made with a stage's `options`. It says, as attributes:
`scope`, "per_sample" (one value for each case, which depends on that case alone) or "per_batch" (one value);
`requires`, any of "labels", "outputs" and "features"; and, unless it is for all, `tasks`, the kinds that it is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedgraft.common.base.errors import InputError
from fedgraft.common.config.suggest import instead
from fedgraft.common.plugins.registry import Kind, load

_SCOPES, _REQUIRES = ("per_sample", "per_batch"), ("labels", "outputs", "features")
_KINDS = ("multiclass", "multilabel", "regression", "segmentation")


@dataclass(frozen=True)
class LossFacts:
    """What ties its cases together, what it must see, and for which kinds of tasks it is."""

    scope: str
    requires: frozenset[str]
    tasks: frozenset[str]

    @property
    def of_tasks(self) -> bool:
        """Whether it looks at what heads say, task by task."""
        return not self.requires.isdisjoint({"labels", "outputs"})


def loss_facts(name: str, known: Iterable[str]) -> LossFacts:
    """What the loss of this name says of itself; `known` are fedgraft's names. InputError if it does not, or oddly."""
    made = load(Kind.LOSSES, name, known)
    facts = LossFacts(
        str(getattr(made, "scope", None)),
        _words(name, made, "requires", _REQUIRES),
        _words(name, made, "tasks", _KINDS) if hasattr(made, "tasks") else frozenset(_KINDS),
    )
    if facts.scope not in _SCOPES:
        raise InputError(
            f"The loss {name!r} does not say what ties its cases together.",
            fix='Set `scope = "per_sample"` if each case has a loss of its own, else `scope = "per_batch"`.',
        )
    if not facts.requires:
        raise InputError(f"The loss {name!r} looks at nothing.", fix=f"Set `requires` to some of {_REQUIRES}.")
    return facts


def _words(name: str, made: Any, attribute: str, known: tuple[str, ...]) -> frozenset[str]:
    found = getattr(made, attribute, ())
    words = [found] if isinstance(found, str) else list(found)
    for word in words:
        if word not in known:
            raise InputError(f"The loss {name!r}: `{attribute}` has {word!r}{instead(str(word), known)}.")
    return frozenset(words)
