"""Writing models for other engines, with a proof that they compute the same, and running what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from reidcore.catalog import Catalog
from reidcore.errors import RunError
from reidcore.export.proof import About, ArtifactModel, Exported, Inference, export
from reidcore.kinds import Artifact


class FileArtifact(Artifact, Protocol):
    """An exported file that was opened."""

    @property
    def about(self) -> About | None:
        """What it says of the model in it, None where it is another program's."""


def open_artifact(file: Path, catalog: Catalog, device: str = "cpu") -> FileArtifact:
    """Open an exported file by the exporter of the catalog that writes such files.

    Raises RunError where there is none, or the file cannot be read.
    """
    known: dict[str, Any] = {
        suffix: component.config
        for component in catalog.components("exporter")
        for suffix in getattr(component.config, "suffixes", ())
    }
    if not file.is_file():
        raise RunError(f"there is no file {file}")
    if file.suffix not in known:
        raise RunError(f"{file} is no file that can be run; there are {', '.join(known)} of `reidcore export`")
    artifact: FileArtifact = known[file.suffix].open(file, device)
    return artifact


__all__ = ["About", "ArtifactModel", "Exported", "Inference", "export", "open_artifact"]
