"""By what a simulation is carried out, and with how much of it."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from fedgraft.common.base.value import Value

_WORKERS = 2

EngineName = Literal["inprocess", "pool", "ray"]


class Engine(Value):
    """How a simulation is carried out; it changes how long a run takes, never what it gives.

    `workers` are the sites at work at a time: 2 if not said, or on a cluster as many as fit. `threads` are torch's per
    site; another number may change the last digits. `ray_address` is that of a Ray cluster, for the engine ray.
    """

    name: EngineName = "inprocess"
    workers: PositiveInt | None = None
    threads: PositiveInt = 1
    ray_address: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _only_ray_has_clusters(self) -> Engine:
        if self.ray_address is not None and self.name != "ray":
            raise ValueError("an address of a Ray cluster is for the engine ray")
        return self

    @property
    def processes(self) -> int:
        """The sites at work at a time on one machine."""
        return self.workers or _WORKERS

    @property
    def cluster(self) -> str | None:
        """Where the Ray cluster is: as was said, else as Ray's own RAY_ADDRESS says; None for this machine alone."""
        said = self.ray_address or os.environ.get("RAY_ADDRESS") or "local"
        return said if self.name == "ray" and said != "local" else None
