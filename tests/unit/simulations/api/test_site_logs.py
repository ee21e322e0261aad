"""A simulated site that fails says in the error what was raised, whosever code it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgraft.client.runtime.log import close, site_log
from fedgraft.common.base.errors import DataError, RunError
from fedgraft.simulations.api.site_logs import SiteLogs


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            DataError("The loss 'mine' cannot be made.", fix="Do."),
            "exchange 1 failed: The loss 'mine' cannot be made. Do.",
        ),
        (KeyError("own"), "exchange 1 failed: KeyError: 'own'"),
        (RuntimeError("of two\n  lines: and more"), "exchange 1 failed: RuntimeError: of two"),
        (ZeroDivisionError(), "exchange 1 failed: ZeroDivisionError"),
    ],
)
def test_the_error_says_what_was_raised(raised: Exception, says: str, tmp_path: Path) -> None:
    site = tmp_path / "sites" / "north"
    logs, log = SiteLogs(tmp_path), site_log(site)
    log.info("exchange 1: train")
    try:
        raise raised
    except Exception as error:
        log.error("exchange 1 failed", exc_info=error)
    log.warning("exchange 1: refused, %s", "failed")
    log.info("gone")
    close(site)
    assert str(logs.explained(RunError("0 of 1 sites"))) == f"0 of 1 sites\n  north: {says} ({site / 'site.log'})"
