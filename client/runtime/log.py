"""A site's own log: why it refused or failed, for the people at the site. Nothing of it ever leaves."""

from __future__ import annotations

import logging
from pathlib import Path

from fedgraft.common.base.files import make_folder
from fedgraft.common.base.logs import RotatedFile

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def site_log(state: Path) -> logging.Logger:
    """The log in `site.log` of a site's folder, rotated and readable by its owner alone; one per process."""
    logger = logging.getLogger(f"fedgraft.site.{state}")
    if not logger.handlers:
        make_folder(state)
        handler = RotatedFile(state / "site.log")
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
