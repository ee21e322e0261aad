"""The models of a run with clusters of sites: a folder of weights for each, and which sites it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedgraft.common.base.errors import WeightsError
from fedgraft.common.base.files import read_sealed, sealed, write_json

FOLDER = "models"
_INDEX = "clusters.json"


def folder_of(run: Path, cluster: str) -> Path:
    """Where the model of a cluster lies; that of a run without clusters (\"\") lies in the run's own folder."""
    return run / FOLDER / cluster if cluster else run


def write_clusters(run: Path, clusters: Mapping[str, Sequence[str]]) -> None:
    """Note which sites each model is for."""
    write_json(run / FOLDER / _INDEX, sealed({name: sorted(sites) for name, sites in clusters.items()}))


def clusters_of(run: Path) -> dict[str, list[str]]:
    """By name of the cluster its sites; none where the run has one model. InputError if the note is damaged."""
    path = run / FOLDER / _INDEX
    return {str(name): list(sites) for name, sites in read_sealed(path).items()} if path.is_file() else {}


def model_for(run: Path, site: str) -> Path:
    """The folder of the model that is for this site. WeightsError if the run has clusters, and the site is in none."""
    clusters = clusters_of(run)
    name = next((name for name, sites in clusters.items() if site in sites), "")
    if clusters and not name:
        raise WeightsError(f"{run}: no cluster has a site {site!r}: {in_words(clusters)}.", fix=choose(run))
    return folder_of(run, name)


def in_words(clusters: Mapping[str, Sequence[str]]) -> str:
    """Such as "nih (nih_a, nih_b); guangzhou (guangzhou_a, guangzhou_b)"."""
    return "; ".join(f"{name} ({', '.join(sites)})" for name, sites in clusters.items())


def choose(run: Path) -> str:
    """What whoever wants one of the models does."""
    return (
        f"Name the folder of one of them, such as {run / FOLDER / next(iter(clusters_of(run)), 'NAME')}. A hospital "
        "that is new takes that of the sites whose patients and scanners are like its own, and tries it first."
    )
