"""Two runs over the same patients, which all tests of evidence share: to train them takes longer than the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.memorised import hospitals, study
from helpers.simulated import simulate


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A run that learnt patients by heart, and a private one over the same patients."""
    root = tmp_path_factory.mktemp("audited")
    some = hospitals(root / "data")
    return {private: simulate(study(private=private), some, root / str(private)) for private in (False, True)}
