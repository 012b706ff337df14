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

    files: what was written; difference: the largest 1 - cosine between an embedding, or an extra, and the model's;
    images: how many were compared; notes: what its user should know.
    """

    files: Sequence[Path]
    difference: float
    images: int
    notes: Sequence[str] = ()


def export(
    model: Any, exporter: Exporter, images: NDArray[np.uint8], folder: Path, about: About | None = None
) -> Exported:
    """Export `model` into `folder` and compare the artifact with it on `images`, (N, H, W, 3) uint8, real ones.

    They are compared in batches of 1, 3 and 32, for which up to 32 of the images are taken, evenly. `about` is for
    exporters whose files say what they are. Raises ContractError, leaving `folder` as it was, when 1 - cosine of any
    embedding, or of any image's extra, is past the exporter's tolerance, or when the exporter does.
    """
    about = about or About.of(model, *images.shape[1:3])
    training = model.training
    model.eval()
    try:
        with _aside(folder) as aside:
            told = (about,) if "about" in inspect.signature(exporter.export).parameters else ()
            artifact = exporter.export(model, images, aside, *told)
            wanted, there = max(BATCHES), len(images)
            places = np.linspace(0, there - 1, wanted).astype(int) if there > wanted else np.arange(wanted) % there
            chosen = images[places]
            try:
                difference = _compare(model, artifact, chosen)
                if not difference <= exporter.tolerance:
                    limit = f"the tolerance is {exporter.tolerance:.2g}"
                    raise ContractError(f"an output differs by {difference:.2g} (1 - cosine); {limit}")
            except ContractError as error:
                raise ContractError(f"export into {folder}: {error}; no file was left") from None
            names = [Path(file).relative_to(aside) for file in artifact.files]
            del artifact  # which may hold the files
    finally:
        model.train(training)
    notes = []
    if getattr(model.backbone, "cameras", 0):
        notes.append("it is not told the cameras of images, which count as from the unknown one")
    if len(images) < max(BATCHES):
        notes.append(f"{len(images)} images are few to prove it on, and to measure the ranges of int8 on")
    return Exported([folder / name for name in names], difference, len(np.unique(places)), notes)


def _compare(model: Any, artifact: Artifact, images: NDArray[np.uint8]) -> float:
    """Return the largest 1 - cosine of an image's outputs. Raises ContractError for one that is not as the model's."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        output = model(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
    expected = {"embedding": output.embedding, **output.extras}
    worst = 0.0
    for count in BATCHES:
        found = artifact.run(images[:count])
        if missing := [name for name in expected if name not in found]:
            raise ContractError(f"it has no output '{missing[0]}', but {', '.join(found)}")
        for name, tensor in expected.items():
            theirs, ours = np.asarray(found[name], np.float32), tensor[:count].float().cpu().numpy()
            if theirs.shape != ours.shape:
                raise ContractError(
                    f"its '{name}' of {count} images has the shape {theirs.shape}; the model's {ours.shape}"
                )
            difference = _distance(theirs.reshape(count, -1), ours.reshape(count, -1))
            worst = max(worst, difference, key=lambda value: (value != value, value))  # NaN is worst
    return worst


def _distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest 1 - cosine of rows; two rows of zeros are equal."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    differences = 1 - (found * expected).sum(1) / np.maximum(norms, 1e-12)
    both = ~found.any(1) & ~expected.any(1)
    return float(np.where(both, 0, differences).max())


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
        extras = dict(found)
        try:
            return Output(extras.pop("embedding"), {}, {}, {}, {}, extras)
        except KeyError:
            raise RunError(f"{self.artifact.files[0]} has no output 'embedding', but {', '.join(found)}") from None
