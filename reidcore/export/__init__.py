"""Writing models for other engines, with a proof that they compute the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reidcore.errors import ContractError
from reidcore.kinds import Artifact, Exporter


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
