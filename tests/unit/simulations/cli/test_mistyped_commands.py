"""A command that does not exist: what was meant is said, and once."""

from __future__ import annotations

import pytest

from conftest import Command


@pytest.mark.parametrize(("words", "meant"), [(("simulat",), "simulate"), (("study", "chek"), "check")])
def test_what_was_meant_is_said_once(words: tuple[str, ...], meant: str, command: Command) -> None:
    code, _, err = command(*words)
    assert code == 2
    assert err.count(f"Did you mean '{meant}'?") == 1
