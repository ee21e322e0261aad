"""Whose code a study uses: all of it must be named, at the version that is here, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedgraft.common.base.errors import InputError
from fedgraft.common.config.suggest import instead
from fedgraft.common.metrics.table import TABLE
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.plugins.registry import Kind, PluginSource, providers, source, version_here
from fedgraft.common.study.plan import Gradient, plugged_losses
from fedgraft.common.study.stages.losses import OWN_LOSSES
from fedgraft.common.study.stages.methods import METHODS
from fedgraft.common.study.study import Study, find_study


@dataclass(frozen=True)
class Use:
    """A name in a study that is not fedgraft's own, with its key there, and where it comes from."""

    kind: Kind
    key: str
    source: PluginSource


def uses(study: Study) -> Iterator[Use]:
    """All names of plug-ins in a study that somebody here has. InputError for one that two have. Nothing is loaded."""
    for kind, key, name, is_own in _names(study):
        if (found := source(kind, name)) is not None and not is_own(name):
            yield Use(kind, key, found)


def plugins_of(study: Study) -> tuple[Plugin, ...]:
    """Whose code that is, each once."""
    return tuple(dict.fromkeys(use.source.plugin for use in uses(study)))


def pinned(study: Study) -> Study:
    """The study with the files and modules named that were loaded in this process and that it uses.

    A person who tries something out need not write down what it is at each change; what was run is written all the
    same. Distributions are named by whoever writes the study.
    """
    named = {plugin.key for plugin in study.plugins}
    new = tuple(plugin for plugin in plugins_of(study) if plugin.is_local and plugin.key not in named)
    return study.model_copy(update={"plugins": (*study.plugins, *new)}) if new else study


def renamed_code(study: Study, before: Study) -> Study:
    """A changed study that names the code that it uses: of what `before` used and it does not, no longer."""
    gone = set(plugins_of(before)) - set(plugins_of(study))
    return pinned(study.model_copy(update={"plugins": tuple(one for one in study.plugins if one not in gone)}))


def read_pinned(path: Path, overrides: tuple[str, ...] = ()) -> tuple[Study, str | None]:
    """As `find_study`, for a simulation: `pinned`."""
    study, scenario = find_study(path, overrides)
    return pinned(study), scenario


def check_plugins(study: Study) -> Iterator[str]:
    """Every reason why what the study names is not what would run, each with its key."""
    try:
        used = list(uses(study))
    except InputError as error:
        yield f"plugins: {error}"
        return
    named = {plugin.key: plugin for plugin in study.plugins}
    for use in used:
        plugin = use.source.plugin
        if plugin.key not in named:
            yield (
                f"{use.key}: the {use.kind.word} {use.source.name!r} is of {plugin}, which the study must name; add "
                f"`plugins: [{plugin}]`"
            )
    for at, plugin in enumerate(study.plugins):
        here = version_here(plugin)
        if here is None:
            how = "it is a file, for simulations with --plugin alone" if plugin.is_local else "install it"
            yield f"plugins.{at}: {plugin} is not here{instead(plugin.distribution, providers())}; {how}"
        elif here != plugin.version:
            yield f"plugins.{at}: is {plugin}, but here is {plugin.distribution}=={here}"
        elif plugin.key not in {use.source.plugin.key for use in used}:
            yield f"plugins.{at}: nothing in the study is of {plugin}; leave it out (names of fedgraft are its own)"


def loss_faults(study: Study) -> Iterator[str]:
    """Every reason why a plug-in's loss is not what it says, each with its key; they are made and tried here."""
    losses, tasks = list(plugged_losses(study.plan)), {task.name: task for task in study.tasks}
    if losses:
        from fedgraft.common.study.stages.tried_loss import TriedLoss  # torch takes a second

        for key, loss in losses:
            try:
                TriedLoss(loss, tasks, None)
            except InputError as error:
                yield f"{key}: {error}"


def _names(study: Study) -> Iterator[tuple[Kind, str, str, Callable[[str], bool]]]:
    """What of a study may name a plug-in: its kind, key and name, and whether a name is fedgraft's own.

    A kind that studies name is one more line.
    """
    yield from ((Kind.BACKBONES, "model.backbone", name, _is_own_backbone) for name in study.architectures)
    for at, stage in enumerate(study.plan):
        for method in stage.local.methods if isinstance(stage.local, Gradient) else ():
            yield Kind.METHODS, f"plan.{at} ({stage.name}).local.methods", method.kind, METHODS.__contains__
    for at, name in enumerate(study.evaluate.metrics):
        yield Kind.METRICS, f"evaluate.metrics.{at}", name, TABLE.__contains__
    yield from ((Kind.LOSSES, key, loss.kind, OWN_LOSSES.__contains__) for key, loss in plugged_losses(study.plan))


def _is_own_backbone(name: str) -> bool:
    from fedgraft.common.models.backbones.named import ships  # torch takes a second, and most studies do without

    return ships(name)
