"""From images to features with a model. N images, B batch, D embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reidcore.types import ALONE, Features, Sample, World


@torch.inference_mode()
def extract_batches(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    size: tuple[int, int],
    batch: int = 64,
    flip: bool = True,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    cameras: bool = False,
) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
    """Yield the (B, D) embeddings and the (B, ...) extras of `samples`, resized to `size` (height, width), in order.

    `flip` averages the embeddings of each image and its mirror image. `cameras` tells the model each image's camera,
    which has to have the number that it had in training. What is yielded is float32 in main memory.
    The model is put into evaluation mode, and back into the mode that it was in. Raises DataError for a bad image.
    """
    from reidcore.builtin.modules.transforms import Resize
    from reidcore.data import test_batches

    device = torch.device(device)
    training = model.training
    model.eval()
    batches = test_batches(samples, [Resize(*size)], size=size, batch=batch, workers=workers, device=device)
    try:
        for number, images in enumerate(batches):
            told = {}
            if cameras:
                numbers = [sample.camera for sample in samples[number * batch : (number + 1) * batch]]
                told["cameras"] = torch.tensor(numbers, device=device)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                output = model(images, **told)
                embedding = output.embedding.float()
                if flip:
                    embedding = (embedding + model(images.flip(3), **told).embedding.float()) / 2
            yield embedding.cpu(), {name: value.float().cpu() for name, value in output.extras.items()}
    finally:
        model.train(training)


def extract(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    world: World = ALONE,
    done: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> Features:
    """Return the features of `samples`, in their order; the other options are those of `extract_batches`.

    Of several processes each returns those of its share: `world.size` consecutive parts of `samples`.
    `done` is told how many images were added. Raises DataError for a bad image.
    """
    samples = samples[len(samples) * world.rank // world.size : len(samples) * (world.rank + 1) // world.size]
    embeddings: list[Tensor] = []
    extras: dict[str, list[Tensor]] = {}
    for embedding, more in extract_batches(model, samples, **options):
        embeddings.append(embedding)
        for name, value in more.items():
            extras.setdefault(name, []).append(value)
        done(len(embedding))
    return Features(
        embeddings=torch.cat(embeddings).numpy() if embeddings else np.zeros((0, 0), np.float32),
        identities=np.array([sample.identity for sample in samples], dtype=np.int64),
        cameras=np.array([sample.camera for sample in samples], dtype=np.int64),
        paths=tuple(sample.name for sample in samples),
        extras={name: torch.cat(values).numpy() for name, values in extras.items()},
    )
