"""Code of others at a site: what is installed here, and what the site's policy allows of it.

A study names distributions and versions; the policy lists distributions with the digest of what is installed. Nothing
of a plug-in is imported before both agree; nor is a reader, which the site's own file names. Code is installed by the
people at the site, and never comes by the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.data.kinds import reader_plugin
from fedgraft.client.enrolment.config import SiteConfig, read_site
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import InputError, PolicyError
from fedgraft.common.checks.check_plugins import plugins_of
from fedgraft.common.plugins.installed import digest_of, version_of
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.plugins.registry import guarded, loaded_digest, providers, version_here
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.study.study import Study

_LIST = "See `fedgraft site plugins`, and list in the policy what your people have looked at."


@dataclass(frozen=True)
class InstalledPlugin:
    """A distribution with plug-ins that is installed here.

    `digest` is that of its files, "" if `odd` says why there is none; `listed` is the policy's, None for none.
    """

    distribution: str
    version: str
    brings: tuple[str, ...]
    digest: str
    listed: str | None
    odd: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the policy lists it as it is."""
        return bool(self.digest) and self.digest == self.listed


def installed_plugins(home: Path) -> list[InstalledPlugin]:
    """All distributions here that bring plug-ins. None of their code is run."""
    policy = read_site(home).policy
    return [_described(name, brings, policy) for name, brings in sorted(providers().items())]


def only_listed(policy: SitePolicy) -> AbstractContextManager[None]:
    """No code that sees the site's data is imported meanwhile unless the policy lists it as it is: else raises Refused.

    Also what is imported while a study is read, before anybody has asked what it names.
    """
    return guarded(lambda plugin: _demand_listed(policy, plugin))


def demand_named(policy: SitePolicy, named: Sequence[Plugin]) -> None:
    """Raises Refused unless the policy lists all that a study names, and that is what is here."""
    for plugin in named:
        if plugin.key in policy.plugins and (here := version_here(plugin)) != plugin.version:
            raise Refused(Code.PLUGIN_VERSION, f"the study names {plugin}, and here is {here or 'none'}")
        _demand_listed(policy, plugin)


def demand_plugins(policy: SitePolicy, study: Study) -> None:
    """Before anything of it is imported: raises Refused unless the policy lists all code that the study uses."""
    demand_named(policy, study.plugins)
    try:
        used = plugins_of(study)
    except InputError as error:  # two have one name
        raise Refused(Code.PLUGIN_NOT_LISTED, str(error)) from None
    for plugin in used:
        if plugin not in study.plugins:
            raise Refused(Code.PLUGIN_NOT_LISTED, f"the study uses {plugin} without naming it")


def demand_readers(config: SiteConfig) -> None:
    """Before anything of it is imported: raises Refused unless the policy lists what reads the site's data."""
    for spec in filter(None, (config.cohort, config.source)):
        if (plugin := reader_plugin(spec.kind)) is not None:
            _demand_listed(config.policy, plugin)


def _demand_listed(policy: SitePolicy, plugin: Plugin) -> None:
    if (wanted := policy.plugins.get(plugin.key)) is None:
        raise Refused(Code.PLUGIN_NOT_LISTED, f"{plugin} is none of `plugins` in the policy. {_LIST}")
    try:
        found = loaded_digest(plugin)
    except InputError as error:
        raise Refused(Code.PLUGIN_DIGEST, str(error)) from None
    if found != wanted:
        raise Refused(Code.PLUGIN_DIGEST, f"{plugin} is {found} here, and {wanted} in the policy. {_LIST}")


@contextmanager
def allowed_to_look(policy: SitePolicy) -> Iterator[None]:
    """As `only_listed`, for people who review a study or look at their data: PolicyError with what they can do."""
    try:
        with only_listed(policy):
            yield
    except Refused as refused:
        raise PolicyError(f"This site's policy refuses it: {refused.why}") from None


def _described(name: str, brings: Sequence[tuple[str, str]], policy: SitePolicy) -> InstalledPlugin:
    words = tuple(f"{kind}: {one}" for kind, one in sorted(brings))
    listed = policy.plugins.get(name)
    try:
        return InstalledPlugin(name, version_of(name) or "", words, digest_of(name), listed)
    except InputError as error:
        return InstalledPlugin(name, version_of(name) or "", words, "", listed, str(error))
