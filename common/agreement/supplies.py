"""What an answer comes to for a study's own classes: patients by class, and words that are none of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from fedgraft.common.config.suggest import plain_word
from fedgraft.common.protocol.answers import Band, SiteAnswer, TaskSupply
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Task

_NEAR = 0.6
"""From which likeness on, of 1, two words may mean the same."""

_HIDDEN: Band = (0, 9)
"""What a site that answers in bands has of a word that it does not tell."""


@dataclass(frozen=True)
class ClassSupply:
    """One task at one site: patients by class, and by word that is no class."""

    classes: dict[str, Band]
    strange: dict[str, Band]
    rest: Band = (0, 0)
    """Patients with words that are not told, since each has too few."""
    others: str = ""
    """The class for which the site takes every word that is none."""

    @property
    def known(self) -> tuple[str, ...]:
        """The classes of which it is certain that there are some."""
        return tuple(name for name, band in self.classes.items() if band[0] > 0)

    @property
    def lacks_all(self) -> bool:
        """Whether the site has nobody of whom it tells an answer, or so few that it does not say."""
        return not self.known and not self.rest[0]

    @property
    def possible(self) -> tuple[str, ...]:
        """The classes of which there may be some."""
        return tuple(name for name, band in self.classes.items() if band[1] > 0)


def names_asked(task: AnyTask) -> tuple[str, ...]:
    """What patients are counted by: classes, labels, or whether a value or mask is known."""
    return task.names if isinstance(task, Task | Multilabel) else ("known",)


def supply_of(task: AnyTask, answer: SiteAnswer) -> ClassSupply | None:
    """What a site could supply of a task; None if it says nothing of it."""
    told = answer.tasks.get(task.name)
    if told is None or told.silent:
        return None
    names = names_asked(task)
    by_form = {plain_word(name): name for name in names}
    # Words that fewer have are not told one by one.
    none = (0, 0) if answer.exact else _HIDDEN
    classes = dict.fromkeys(names, none)
    strange: dict[str, Band] = {}
    for word, band in told.words.items():
        name = word if word in names else by_form.get(plain_word(word))
        if name is None:
            strange[word] = band
        else:
            classes[name] = band
    others = _others(told, names, by_form)
    if others:
        classes[others] = _sum((classes[others], told.rest, *strange.values()))
    return ClassSupply(classes, strange, told.rest, others)


def _others(told: TaskSupply, names: Iterable[str], by_form: dict[str, str]) -> str:
    return told.others if told.others in names else by_form.get(plain_word(told.others), "")


def _sum(bands: Iterable[Band]) -> Band:
    """A patient may have several words: so at least as many as the largest, and at most as many as all together."""
    found = list(bands)
    return max(least for least, _ in found), sum(most for _, most in found)


def near(word: str, names: Iterable[str]) -> str:
    """The name that a word may mean, which is spelt otherwise; "" if none is near."""
    forms = {plain_word(name): name for name in names}
    found = difflib.get_close_matches(plain_word(word), forms, n=1, cutoff=_NEAR)
    inside = [name for form, name in forms.items() if min(len(form), len(word)) > 2 and _holds(form, plain_word(word))]
    return forms[found[0]] if found else (inside[0] if len(inside) == 1 else "")


def _holds(one: str, other: str) -> bool:
    return one in other.split() or other in one.split()


def band_in_words(band: Band) -> str:
    """`12`, `50 to 69`, or `fewer than 10`."""
    least, most = band
    if least == most:
        return f"{least:,}"
    return f"{least:,} to {most:,}" if least else f"fewer than {most + 1:,}"


def learning(study: Study, answers: Iterable[SiteAnswer]) -> list[SiteAnswer]:
    """The sites that would train: observers only evaluate. All, if the study trains nothing."""
    found = list(answers)
    return [answer for answer in found if not answer.observer] if study.plan else found
