"""Writing a model for another engine, with a proof that it computes the same. B batch, H W image, D embedding."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import asdict, fields, frozen
from numpy.typing import NDArray
from torch import Tensor, nn

from reidcore import __version__
from reidcore.errors import ContractError, RunError, os_message
from reidcore.kinds import Artifact, Exporter
from reidcore.types import Output

BATCHES = (1, 3, 32)
"""Sizes of the batches that a proof compares."""

_PREFIX = "reidcore."


class Inference(nn.Module):
    """What a model computes for retrieval, and no more: what exporters write.

    It shares the model's parts. Its names are positions, since exported programs are Python texts, in which a view
    called "global" would not parse.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.normalize, self.backbone, self.aggregator = model.normalize, model.backbone, model.aggregator
        self.embed = tuple(model.aggregator.embed)
        self.heads = nn.ModuleList(model.heads[view] for view in self.embed)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) pixel values in 0..255 -> {"embedding": (B, D), extra: (B, ...)}."""
        views = self.aggregator(self.backbone(self.normalize(images), tuple(self.aggregator.needs)))
        heads = zip(self.embed, self.heads, strict=True)
        return {
            "embedding": torch.cat([head(views.vectors[view]).embedding for view, head in heads], 1),
            **views.extras,
        }


@frozen(kw_only=True)
class About:
    """What an exported file says of the model in it, as far as it is known.

    height, width: of its images; dim: D; mean, std: of pixel values in 0..1, RGB; flip: whether an embedding is the
    mean of an image's and its mirror image's (`evaluation.flip`); distance: by which they are compared; precision: what
    it computes in; unit_length: whether its embeddings have length 1; fingerprint: of the embeddings of the run;
    recipe: that of the run, a TOML text; version: of reidcore.
    """

    height: int
    width: int
    dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool = False
    distance: str = "cosine"
    precision: str = "float32"
    unit_length: bool = False
    fingerprint: str = ""
    recipe: str = ""
    version: str = __version__

    @classmethod
    def of(cls, model: Any, height: int, width: int) -> About:
        """Return what a model says itself."""
        backbone = model.backbone
        return cls(height=height, width=width, dim=model.dim, mean=tuple(backbone.mean), std=tuple(backbone.std))

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the properties."""
        return [f"{_PREFIX}{field.name}" for field in fields(cls)]

    def texts(self) -> dict[str, str]:
        """Return it as named texts, for the properties of a file."""
        return {f"{_PREFIX}{name}": json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def read(cls, texts: Mapping[str, str]) -> About | None:
        """Return what the properties of a file say, None where it is another program's."""
        values = {name.removeprefix(_PREFIX): json.loads(texts[name]) for name in cls.names() if name in texts}
        if not {"height", "width", "dim", "mean", "std"} <= values.keys():
            return None
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


@frozen
class Exported:
    """An exported model whose proof held.

    files: what was written; difference: the largest 1 - cosine between an embedding and the model's; images, batches:
    how many images were compared, and in batches of which sizes.
    """

    files: Sequence[Path]
    difference: float
    images: int
    batches: Sequence[int] = BATCHES


def export(
    model: Any, exporter: Exporter, images: NDArray[np.uint8], folder: Path, about: About | None = None
) -> Exported:
    """Export `model` into `folder` and compare the artifact with it on `images`, (N, H, W, 3) uint8, real ones.

    They are compared in batches of 1, 3 and 32, for which up to 32 of the images are taken, evenly. `about` is for
    exporters whose files say what they are. Raises ContractError, leaving `folder` as it was, when 1 - cosine of any
    embedding is past the exporter's tolerance, or when the exporter does.
    """
    about = about or About.of(model, *images.shape[1:3])
    training = model.training
    model.eval()
    try:
        with _aside(folder) as aside:
            told = (about,) if "about" in inspect.signature(exporter.export).parameters else ()
            artifact = exporter.export(model, images, aside, *told)
            chosen = images[np.linspace(0, len(images) - 1, max(BATCHES)).round().astype(int)]
            try:
                difference = _compare(model, artifact, chosen)
                if not difference <= exporter.tolerance:
                    wanted = f"the tolerance is {exporter.tolerance:.2g}"
                    raise ContractError(f"an embedding differs by {difference:.2g} (1 - cosine); {wanted}")
            except ContractError as error:
                raise ContractError(f"export into {folder}: {error}; no file was left") from None
            names = [Path(file).relative_to(aside) for file in artifact.files]
            del artifact  # which may hold the files
    finally:
        model.train(training)
    return Exported([folder / name for name in names], difference, len(np.unique(chosen, axis=0)))


def _compare(model: Any, artifact: Artifact, images: NDArray[np.uint8]) -> float:
    """Return the largest 1 - cosine of embeddings. Raises ContractError for another shape."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2).to(device)).embedding.float().cpu().numpy()
    worst = 0.0
    for count in BATCHES:
        found = np.asarray(artifact.run(images[:count])["embedding"], np.float32)
        if found.shape != expected[:count].shape:
            raise ContractError(
                f"its embeddings of {count} images have the shape {found.shape}; the model's {expected[:count].shape}"
            )
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected[:count], axis=1)
        differences = 1 - (found * expected[:count]).sum(1) / np.maximum(norms, 1e-12)
        worst = max(worst, float(np.max(differences)), key=lambda value: (value != value, value))  # NaN is worst
    return worst


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder`, whose files replace those of `folder` unless there is an error."""
    aside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        folder.mkdir(exist_ok=True)
        for file in aside.iterdir():
            file.replace(folder / file.name)
    except OSError as error:
        raise RunError(os_message(error, "write", folder)) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class ArtifactModel(nn.Module):
    """An exported model in the place of the one that it was made from: for evaluation. It knows no cameras."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__()
        self.artifact = artifact

    def forward(self, images: Tensor, want: Sequence[str] = (), cameras: Tensor | None = None) -> Output:
        """(B, 3, H, W) pixel values in 0..255 -> Output with the embedding and the extras, and no more."""
        pixels = images.permute(0, 2, 3, 1)
        if run := getattr(self.artifact, "run_tensors", None):
            found = run(pixels)
        else:
            arrays = self.artifact.run(pixels.cpu().numpy())
            found = {name: torch.from_numpy(np.asarray(array)).to(images.device) for name, array in arrays.items()}
        return Output(found["embedding"], {}, {}, {}, {}, {k: v for k, v in found.items() if k != "embedding"})
