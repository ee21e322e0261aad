"""A site's own configuration, as a person writes it: where its data are, which device it uses, where the server is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.privacy.masking.used_masks import SecureAggregationSettings
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.base.files import home, is_there, write_atomic
from fedgraft.common.config.config_files import describe, read_mapping

SITE_FILE, _SIMULATED = "site.yaml", "site.json"
_NAMES = (SITE_FILE, _SIMULATED)
"""The configuration's name in a site's home folder, and in the folder of a simulated one."""


class ServerAddress(BaseModel):
    """Where the coordinator's server is reached: `address` is name:port, `ca` the certificate that vouches for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")]
    ca: Path

    @field_validator("address")
    @classmethod
    def _has_a_port(cls, value: str) -> str:
        if not 1 <= int(value.rpartition(":")[2]) <= 65535:
            raise ValueError("the port must be from 1 to 65535")
        return value

    @property
    def host(self) -> str:
        """The server's name, or its number without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of `address`, which is HOST:PORT."""
        return int(self.address.rpartition(":")[2])


class SiteConfig(BaseModel):
    """One hospital. The file never leaves it, and holds no secret.

    `state` holds what must last between rounds, among it the key of the hashes that stand for patients; `witness` what
    shows that `state` was restored from a backup, beside `state` if not given; `cache` the decoded cohort. `threads` of
    0 leave torch's own choice. `many_studies` gives each study its own splits and entries, in a folder below `state`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$")]
    """The site's name in the consortium."""
    cohort: CohortSpec
    """The site's data."""
    state: Path = Path("state")
    witness: Path | None = None
    cache: Path = Path("cache")
    policy: SitePolicy = SitePolicy()
    """What the site allows."""
    source: CohortSpec | None = None
    """Labelled data of a source that lie at the site as well, for studies that learn from both."""
    public_source: bool = False
    """The site's own cohort is public source data: it works in stages that are for the source, and in no others."""
    observer: bool = False
    """Hold public data for evaluation only, and take no part in training."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = "auto"
    """A GPU if there is one, or the CPU; or only the CPU, only a GPU, only the GPU with this number."""
    compile: bool = False
    """Train by code that is compiled for the model and the machine."""
    secure_aggregation: SecureAggregationSettings | None = None
    """What the site needs to take part in studies with secure aggregation; it refuses them without."""
    threads: Annotated[int, Field(ge=0)] = 0
    server: ServerAddress | None = None
    """Where the coordinator is; the site cannot start without."""
    sync: bool = True
    """Wait for the disk before a message leaves, so that the site's records outlive a loss of power as well."""
    many_studies: bool = False

    def folder(self, digest: str) -> Path:
        """Where what lasts of the study with this digest is kept."""
        return self.state / digest if self.many_studies else self.state

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner alone."""
        write_atomic(path, json.dumps(self.model_dump(mode="json"), indent=1).encode(), private=True, sync=self.sync)

    def below(self, folder: Path) -> SiteConfig:
        """The same with relative paths counted from `folder`, and `~` meaning the person's own."""
        server = self.server and self.server.model_copy(update={"ca": _anchored(self.server.ca, folder)})
        keys = (
            {name: _anchored(getattr(self.secure_aggregation, name), folder) for name in ("key", "roster")}
            if self.secure_aggregation
            else {}
        )
        changes = {
            "state": _anchored(self.state, folder),
            "witness": self.witness and _anchored(self.witness, folder),
            "cache": _anchored(self.cache, folder),
            "cohort": self.cohort.below(folder),
            "source": self.source and self.source.below(folder),
            "secure_aggregation": self.secure_aggregation and self.secure_aggregation.model_copy(update=keys),
            "server": server,
        }
        return self.model_copy(update=changes)


def read_config(path: Path) -> SiteConfig:
    """The configuration in a YAML or JSON file; relative paths count from its folder. StudyError lists every fault."""
    try:
        return SiteConfig.model_validate(read_mapping(path)).below(path.parent.resolve())
    except ValidationError as error:
        raise StudyError(str(path), describe(error)) from None


def site_home(folder: Path | None) -> Path:
    """A site's home: the folder given, else `site` in fedgraft's own."""
    return (folder or home() / "site").expanduser().resolve()


def is_site(folder: Path) -> bool:
    """Whether a folder has a site's configuration."""
    return any(is_there(folder / name) for name in _NAMES)


def read_site(folder: Path) -> SiteConfig:
    """The configuration in a site's folder. InputError if there is none, StudyError with every fault of it."""
    for name in _NAMES:
        if is_there(folder / name):
            return read_config(folder / name)
    raise InputError(
        f"{folder}: is no site's folder, since it has no {SITE_FILE}.",
        fix="Copy configs/sites/hospital.yaml to it and say where your data are, or give another folder.",
    )


def _anchored(path: Path, folder: Path) -> Path:
    return folder / path.expanduser()
