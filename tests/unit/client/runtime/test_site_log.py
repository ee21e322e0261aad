"""A site's own log does not grow for ever, and stays its owner's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgraft.client.runtime.log import close, site_log
from fedgraft.common.base import logs


def test_a_site_s_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FILE_BYTES", 5_000)
    for number in range(1_000):
        site_log(tmp_path).warning("exchange %d: refused, deadline", number)
    close(tmp_path)
    files = sorted(tmp_path.glob("site.log*"))
    assert [path.name for path in files] == ["site.log", "site.log.1", "site.log.2", "site.log.3"]
    assert all(path.stat().st_size <= 5_000 for path in files)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert "exchange 999" in files[0].read_text()
