"""Whoever writes studies can make two whose digests begin alike: nothing that a site keeps may take one for the other.

64 bits in common cost some 2^32 tries. Here they cost nothing, since the digests are made to begin alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedgraft.client.governance.approval import approve
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime import app
from fedgraft.common.protocol.instructions import Update
from fedgraft.common.study import study as studies
from fedgraft.common.study.study import Study
from fedgraft.simulations.audit.home.hospital import PRIVATE, SILENT, Hospital, home_study

ALIKE = "0" * 16
BODY = {"roles": ["body"]}
PERSONAL = SILENT | {"local": SILENT["local"] | {"train": BODY}, "keep": BODY, "rounds": 2}
POLICY = SitePolicy(
    min_patients=1, epsilon_per_study=20.0, epsilon_lifetime=50.0, metrics="suppressed", metrics_studies=5
)


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def sha256(content: bytes) -> SimpleNamespace:
        digits = hashlib.sha256(content).hexdigest()
        return SimpleNamespace(hexdigest=lambda: ALIKE + digits[len(ALIKE) :])

    monkeypatch.setattr(studies, "hashlib", SimpleNamespace(sha256=sha256))


@pytest.fixture
def both(alike: None, tmp_path: Path) -> Iterator[tuple[Hospital, Study]]:
    """A site that has done all of one study, which kept entries there; another one begins."""
    model = {"backbone": "table_mlp", "weights": None}
    first = home_study(4, PERSONAL, model=model)
    second = home_study(4, PRIVATE | {"rounds": 4}, model=model)
    assert first.digest != second.digest
    assert first.digest[:16] == second.digest[:16]
    site = Hospital(tmp_path / "site", first, range(66), POLICY)
    site.greet()
    assert all(isinstance(site.ask(exchange), Update) for exchange in (1, 2, 3))
    approve(site.home, second.digest)
    yield site, second
    site.restart()


def test_private_work_takes_no_entries_of_another_study(both: tuple[Hospital, Study]) -> None:
    """They were computed without noise, and would carry a patient into the gradients of all others."""
    site, second = both
    site.study = second
    site.greet()
    found = app._sessions.at(site.home / "site.json").known(second.digest)
    assert found is not None
    assert found._local_state.before(4) == {}
    assert found._progress.last == 0


def test_all_that_is_kept_of_a_study_has_its_whole_digest(both: tuple[Hospital, Study]) -> None:
    site, second = both
    for one in (site.study, second):
        site.study = one
        site.greet()
        site.ask(1)
    names = {part for path in (site.home / "state").rglob("*") for part in path.relative_to(site.home).parts}
    kept = {name for name in names if name.startswith(ALIKE)}
    assert len(kept) >= 4
    assert all(
        name.startswith((site.study.digest, second.digest)) or len(name.partition(".")[0]) == 64 for name in kept
    )


def test_figures_of_one_study_are_no_answer_to_the_other(both: tuple[Hospital, Study]) -> None:
    """Nor is what was kept of its rounds; the price of each is its own."""
    site, second = both
    site.study = second
    site.greet()
    answers = [site.ask(exchange) for exchange in range(1, 6)]
    assert all(isinstance(answer, Update) for answer in answers)
    kept = sorted(path.parent.name for path in (site.home / "state" / "replies").glob("*/*.safetensors"))
    assert set(kept) == {second.digest}
    released = {path.parent.name for path in (site.home / "state" / "releases").glob("*/*.safetensors")}
    assert len(released) == 2
