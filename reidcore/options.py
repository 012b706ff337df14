"""The core's own options: the tables of a recipe that configure no component."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import frozen

from reidcore.component import option


@frozen(kw_only=True)
class RunOptions:
    """Options of the run as a whole."""

    name: str = option("", help="name of the run folder; the recipe's file name when empty")
    seed: int = option(1, help="seeds everything random", at_least=0, at_most=2**63 - 1)
    needs: tuple[Path, ...] = option(
        (), help="recipes, by their place from this one, that are run first if they were not: a teacher's"
    )
    init: Path | None = option(
        None, help="run folder to start from: weights of the same name and shape, instead of the backbone's 'weights'"
    )
    device: str = option("auto", help="'auto', 'cpu', 'cuda' or 'cuda:1'")
    deterministic: bool = option(False, help="refuse operations whose result depends on timing")
    output: Path = option(Path("runs"), help="folder of run folders")
    report: bool = option(True, help="write report.html and its figures at the end")


@frozen(kw_only=True)
class InputOptions:
    """Size of the images that the model sees, and how they are read."""

    height: int = option(256, help="pixels", at_least=1)
    width: int = option(128, help="pixels", at_least=1)
    workers: int | None = option(None, help="loader processes; as many as cores (at most 8) when absent", at_least=0)
    cache: float | Literal["auto"] = option(
        "auto",
        help="GiB of decoded training images to keep in memory, 0 is none; 'auto': at most a third of what is free",
        at_least=0,
    )
    on_bad_image: Literal["error", "skip"] = option(
        "error", help="'skip': look at every image first, and leave out and list those that cannot be read"
    )


@frozen(kw_only=True)
class TrainingOptions:
    """Options of the training loop."""

    epochs: int = option(60, help="number of epochs", at_least=0)
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", help="'auto': bfloat16 where the machine computes in it, else float32"
    )
    freeze: tuple[str, ...] = option((), help="modules that do not learn at first, by path, as 'backbone.layer1'")
    freeze_iterations: int = option(0, help="for how many iterations they do not", at_least=0)
    ema: float = option(0.0, help="decay of the weights' moving average; 0 is off", at_least=0, below=1)
    clip_norm: float = option(0.0, help="largest norm of the gradient; 0 is off", at_least=0)
    accumulate: int = option(1, help="batches whose gradients are averaged into one step", at_least=1)
    sync_batch_norm: bool = option(
        False, help="batch norm over the images of all processes, instead of each process's own"
    )
    checkpoint_every: int = option(1, help="epochs; after 5 minutes in any case", at_least=1)

    def __attrs_post_init__(self) -> None:
        if bool(self.freeze) != bool(self.freeze_iterations):
            raise ValueError("expected both freeze and freeze_iterations, or neither")


@frozen(kw_only=True)
class EvaluationOptions:
    """Options of evaluation during and after training."""

    distance: Literal["cosine", "euclidean"] = option("cosine", help="distance between embeddings")
    every: int = option(0, help="epochs between evaluations; 0 is at the end only", at_least=0)
    before: bool = option(False, help="also evaluate before training")
    intervals: bool = option(False, help="show 95% intervals, by bootstrap over query identities")
    keep_features: bool = option(True, help="keep the tests' features in the run folder, for other post-processing")
    memory: float = option(
        2.0, help="GiB of features (of queries or gallery) to hold in memory; more are in a temporary file", at_least=0
    )
    flip: bool = option(True, help="average the embeddings of an image and its mirror image")
    holdout: float = option(
        0.0,
        help="share of the training identities kept out: to choose the best epoch by, every epoch unless 'every' is "
        "set, and for what post-processors choose",
        at_least=0,
        below=1,
    )
    batch: int = option(64, help="images a step", at_least=1)
