"""A pytest plugin: a run in which a promised test was skipped fails. `FEDGRAFT_NO_SKIPS=1` asks for it; CI does.

Without it a machine that lacks nginx or a browser reports green, and nobody notices what has not run for weeks.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import PurePath

import pytest

MAY_SKIP = {
    "tests/gpu/test_gpu.py": "there is no CUDA device",
    "tests/gpu/test_gpu_methods.py": "there is no CUDA device",
    "tests/security/client/preflight/test_way_out.py": "this machine has no IPv6",
    "tests/security/client/privacy/test_last_digits.py": "this machine's library sums any number of rows in one order",
    "tests/unit/common/models/test_efficientnet_lite.py": "$FEDGRAFT_REAL_DATA is not set",
    "tests/simulation/test_documentation.py": "$FEDGRAFT_REAL_DATA is not set",
    "tests/simulation/simulations/real_data/test_heart.py": "$FEDGRAFT_REAL_DATA is not set",
    "tests/simulation/simulations/real_data/test_cxr.py": "$FEDGRAFT_REAL_DATA is not set",
    "tests/unit/simulations/real_data/test_convert.py": "$FEDGRAFT_REAL_DATA is not set",
    "tests/simulation/simulations/api/test_notebooks.py": "$FEDGRAFT_REAL_DATA is not set",
    "tests/simulation/simulations/engines/test_ray_cluster.py": "this machine gives no namespaces for two machines",
    "tests/deployment/test_bad_days.py": "this machine gives no namespaces to make a small disk in",
}
"""Which file may skip its tests in CI, and the one reason for which it may."""


class NoSkips:
    """Gathers what was skipped without leave, and turns a green end into a red one."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        allowed = MAY_SKIP.get(PurePath(report.nodeid.partition("::")[0]).as_posix())
        if allowed is None or reason.removeprefix("Skipped: ") != allowed:
            self.skipped.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        if self.skipped and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        yield

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.skipped:
            terminalreporter.write_line(f"SKIPPED WITHOUT LEAVE {line}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(NoSkips(), "no-skips")
