"""From a run's folder to tables, plots and one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path


def build_report(run: Path) -> Path:
    """Write `report.html` into a run's folder and return its path.

    InputError if the folder is no run's, or a file in it is damaged; what is merely absent is left out of the page.
    """
    # Plotting takes half a second to load, and whoever runs a study imports this module long before it is over.
    from fedgraft.server.report.page import write_page

    return write_page(run)


def build_audit_page(folder: Path) -> Path:
    """Write `audit.html` beside an `audit.json` that belongs to no run, and return its path.

    InputError if `audit.json` is absent or damaged.
    """
    from fedgraft.server.report.page import write_audit_page

    return write_audit_page(folder)


def build_comparison_page(folder: Path) -> Path:
    """Write `compare.html` beside a `compare.json`, and return its path.

    InputError if `compare.json` is absent or damaged.
    """
    from fedgraft.server.report.comparison import write_comparison_page

    return write_comparison_page(folder)
