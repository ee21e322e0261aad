"""A site's own log: why it refused or failed, for the people at the site. Nothing of it ever leaves."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fedgraft.common.base.files import make_folder

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def site_log(state: Path) -> logging.Logger:
    """The log in `site.log` of a site's folder, readable by its owner alone; one per folder and process."""
    logger = logging.getLogger(f"fedgraft.site.{state}")
    if not logger.handlers:
        make_folder(state)
        path = state / "site.log"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def close(state: Path) -> None:
    """Close the log's file, so that the folder can be moved or deleted."""
    logger = logging.getLogger(f"fedgraft.site.{state}")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
