"""docs/how_to/logs_and_metrics.md names what is written: fields of the logs, fields of the egress log, figures."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import fields
from pathlib import Path

from fedgraft.client.governance.egress import EgressEntry
from fedgraft.common.base.exposition import PREFIX
from fedgraft.common.base.logs import start_logs

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PAGE = (ROOT / "docs" / "how_to" / "logs_and_metrics.md").read_text(encoding="utf-8")


def test_a_line_of_the_log_has_the_fields_of_the_page(tmp_path: Path) -> None:
    shown = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
    root, before = logging.getLogger(), (logging.getLogger().handlers[:], logging.getLogger().level)
    try:
        start_logs(tmp_path / "logs" / "site.log", as_json=True)
        logging.getLogger("fedgraft.site").warning("one line")
    finally:
        root.handlers[:], root.level = before
    line = json.loads((tmp_path / "logs" / "site.log").read_text())
    assert list(line) == list(shown)
    assert re.sub(r"\d", "0", line["time"][:19]) == re.sub(r"\d", "0", shown["time"][:19])


def test_a_line_of_the_egress_log_has_the_fields_of_the_page() -> None:
    told = PAGE.partition("A line of the egress log has ")[2].partition(":")[0]
    assert re.findall(r"`(\w+)`", told) == [field.name for field in fields(EgressEntry)]


def test_every_figure_of_a_site_is_on_the_page() -> None:
    source = (ROOT / "client" / "runtime" / "exposition.py").read_text(encoding="utf-8")
    figures = {PREFIX + name for name in re.findall(r'Figure\(\s*"(\w+)"', source)}
    table = PAGE.partition("| figure | what it says |")[2].partition("\n\n")[0]
    assert set(re.findall(rf"`({PREFIX}\w+)`", table)) == figures
    assert set(re.findall(rf"{PREFIX}\w+", PAGE)) == figures
