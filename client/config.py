"""A site's own configuration file: where its data are, where it keeps its state, which device it uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.data.spec import CohortSpec
from client.policy import SitePolicy
from client.privacy.masks import MaskSettings
from common.errors import StudyError
from common.files import write_atomic
from common.study import describe, read_mapping


class SiteConfig(BaseModel):
    """One hospital. The file never leaves it.

    `secret` keys the hashes that stand for patients (hex, at least 16 bytes). `state` holds what must last between
    rounds, `cache` the decoded cohort. `threads` = 0 leaves torch's own choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$")]
    cohort: CohortSpec
    state: Path
    cache: Path
    secret: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){16,}$", repr=False)]
    policy: SitePolicy = SitePolicy()
    observer: bool = False
    """Hold public data for evaluation only, and take no part in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    masks: MaskSettings | None = None
    """What the site needs to take part in masked studies; it refuses them without."""
    threads: Annotated[int, Field(ge=0)] = 0

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner alone."""
        write_atomic(path, json.dumps(self.model_dump(mode="json"), indent=1).encode(), private=True)


def read_config(path: Path) -> SiteConfig:
    """The configuration in a YAML or JSON file; StudyError lists every fault."""
    try:
        return SiteConfig.model_validate(read_mapping(path))
    except ValidationError as error:
        raise StudyError(str(path), describe(error)) from None
