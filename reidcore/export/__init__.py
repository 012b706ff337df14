"""Writing models for other engines, with a proof that they compute the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reidcore.errors import ContractError
from reidcore.kinds import Artifact, Exporter


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


def export(model: Any, exporter: Exporter, images: NDArray[np.uint8], folder: Path) -> Artifact:
    """Export `model` into `folder` and compare the artifact with it on `images`, (B, H, W, 3) uint8.

    Raises ContractError, leaving no file, when 1 - cosine of any embedding is past the exporter's tolerance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    artifact = exporter.export(model, images, folder)
    device = next(model.parameters()).device
    with torch.inference_mode():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2).to(device)).embedding.float().cpu().numpy()
    found = np.asarray(artifact.run(images)["embedding"], np.float32)
    if found.shape == expected.shape:
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        worst = float(np.max(1 - (found * expected).sum(1) / np.maximum(norms, 1e-12)))
        if worst <= exporter.tolerance:
            return artifact
        reason = f"an embedding differs by {worst:.2g} (1 - cosine); the tolerance is {exporter.tolerance:.2g}"
    else:
        reason = f"its embeddings have the shape {found.shape}; the model's {expected.shape}"
    shutil.rmtree(folder)
    raise ContractError(f"export into {folder}: {reason}; no file was left")
