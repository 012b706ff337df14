"""What the tasks share: features of the target, what can be trained on, and what is said of a round.

N images of the target, K clusters, D the dimension of a head's output; of several views it is that of all of them
joined.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import evolve
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reid_mlt.clustering import Clustering, Labels, agreement, changed, quality
from reidcore.errors import ContractError, DataError, RunError
from reidcore.types import Output, Stream

if TYPE_CHECKING:
    from reidcore.loop import Run
    from reidcore.model import Model

COLLAPSED = 0.9
"""Share of the images in one cluster from which on nothing is told apart."""

FEW = 16
"""Images of a camera that have a mean of their own."""


class AfterNorm(nn.Module):
    """The model, whose embedding is what its heads put out after their norms."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)  # the mode that it is put back into

    def forward(self, images: Tensor) -> Output:
        output: Output = self.model(images)
        return evolve(output, embedding=torch.cat([output.after[view] for view in self.model.heads], 1), extras={})


class Adapting(nn.Module):
    """A model whose batch norms take the statistics of all that it is shown, in evaluation mode too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self.norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches

    def forward(self, images: Tensor) -> Output:
        for norm in self.norms:
            norm.train(len(images) > 1)
        output: Output = self.model(images)
        return output


class Relabelling:
    """What tasks share that give the target's images labels, round by round."""

    run: Run
    clustering: Clustering
    adapt_norm: bool
    centre_cameras: bool

    def take(self, run: Run, name: str) -> None:
        """Keep the run. Raises RunError for one without target images or with too few, ContractError for losses that
        do not fit."""
        if not run.targets:
            raise RunError(
                f'the task "{name}" learns from images without labels; write role = "target" in their [[train]]'
            )
        for position, loss in enumerate(run.losses.terms):
            if loss.needs.classes:
                raise ContractError(
                    f"loss.{position}: it depends on what each class is, and clusters are others in every round; the "
                    f'task "{name}" cannot use it'
                )
        if self.adapt_norm and run.options.sync_batch_norm:
            raise ContractError(
                f'the task "{name}" adapts norm layers in each process by itself; write adapt_norm = false in [task], '
                "or sync_batch_norm = false in [training]"
            )
        self.clustering.require(len(run.targets))
        self.run = run

    def images(self) -> int:
        """Return a number that is another one for other target images."""
        return zlib.crc32("\n".join(Path(sample.name).name for sample in self.run.targets).encode())

    def require_images(self, images: int) -> None:
        """Raise RunError if labels were given to other images."""
        if images != self.images():
            raise RunError(
                "the target's images are not those that the run began with, whose labels are in its checkpoint; put "
                "them back, or start a new run"
            )

    def dims(self) -> list[int]:
        """Return the dimension of each view."""
        return [int(head.dim) for head in self.run.model.heads.values()]  # type: ignore[arg-type]

    def features(self, first: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the target's features by the averaged model, (N, D) of length 1, and what is compared of them.

        The `first` ones are by a model whose norm layers have statistics of the target (Li et al. 2016), if the task
        adapts norms.
        """
        model: nn.Module = AfterNorm(self.run.deployed)
        if first and self.adapt_norm:
            model = copy.deepcopy(model)
            order = np.random.default_rng(0).permutation(len(self.run.targets))  # batches of all identities
            self.run.extract(Adapting(model), [self.run.targets[place] for place in order])
        x = self._unit(np.asarray(self.run.extract(model, self.run.targets).embeddings, np.float32))
        cameras = np.array([sample.camera for sample in self.run.targets])
        return x, self._unit(without_cameras(x, cameras)) if self.centre_cameras else x

    def _unit(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        views = np.split(x, np.cumsum(self.dims())[:-1], axis=1)
        joined: NDArray[np.float32] = np.concatenate([_unit(view) for view in views], axis=1)
        joined /= len(views) ** 0.5
        return joined

    def fits(self, labels: Labels) -> str:
        """Return why batches cannot be made of images with these labels, or nothing."""
        if problem := collapse(labels):
            return problem
        try:
            self.run.make_loader(Stream(self.run.targets, labels))
        except DataError as error:
            return str(error)
        return ""

    def useless(self, problem: str) -> RunError:
        """Return the error of a run whose first clusters cannot be trained on."""
        sizes = ", ".join(map(str, self.clustering.sizes))
        return RunError(
            f"the target's images have no clusters to begin with ({self.clustering.method} with {sizes}): {problem}; "
            "choose other sizes in [task], or start from a model that was trained on a source (run.init)"
        )

    def report(self, groupings: Sequence[Labels], before: Labels | None, note: str) -> None:
        """Log what the round's labels are, and how much they differ from those before."""
        main = groupings[len(groupings) // 2]
        found: dict[str, Any] = {
            "clusters": [len(np.unique(labels[labels >= 0])) for labels in groupings],
            "outliers": float(np.mean(main < 0)),
            "changed": None if before is None else changed(before, main),
            "agreement": agreement(groupings),
        }
        found |= quality(main, np.array([sample.identity for sample in self.run.targets]))
        text = f"labels of epoch {self.run.epoch + 1}: {', '.join(map(str, found['clusters']))} clusters"
        text += f", {found['outliers']:.1%} outliers"
        text += "" if before is None else f", {found['changed']:.1%} changed"
        text += f", agreement {found['agreement']:.2f}" if len(groupings) > 1 else ""
        text += f" (in truth: AMI {found['ami']:.2f}, purity {found['purity']:.2f})" if "ami" in found else ""
        # those of the first step that learns from them, so that a resumed run does not say it twice
        self.run.log(kind="round", epoch=self.run.epoch + 1, step=self.run.step + 1, text=text + note, **found)


def collapse(labels: Labels) -> str:
    """Return what is wrong with a clustering that tells hardly anything apart, or nothing."""
    sizes = np.bincount(labels[labels >= 0])
    if not len(sizes):
        return "no image is in a cluster"
    return "they collapsed into one cluster" if sizes.max() > COLLAPSED * sizes.sum() else ""


def without_cameras(x: NDArray[np.float32], cameras: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (N, D) features less the mean of those by the same camera, or of all where it took fewer than 16."""
    centred = x - x.mean(axis=0)
    for camera in np.unique(cameras):
        if (taken := cameras == camera).sum() >= FEW:
            centred[taken] -= centred[taken].mean(axis=0)
    return centred


def centres(x: NDArray[np.float32], labels: Labels, dims: Sequence[int]) -> NDArray[np.float32]:
    """Return the means of the (N, D) features of each cluster, (K, D), each view of length 1."""
    sums = np.zeros((int(labels.max()) + 1, x.shape[1]), np.float32)
    np.add.at(sums, labels[labels >= 0], x[labels >= 0])
    return np.concatenate([_unit(view) for view in np.split(sums, np.cumsum(dims)[:-1], axis=1)], axis=1)


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
