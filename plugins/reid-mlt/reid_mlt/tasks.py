"""The tasks: what is trained on in a round, and how.

B batch, N images of the target, G granularities, K clusters of one, D the dimension of a head's output; of several
views it is that of all of them joined.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from reid_mlt.clustering import Clustering, Labels
from reid_mlt.relabelling import Relabelling, centres, collapse
from reid_mlt.transport import sinkhorn
from reidcore.types import Batch, Mixture, Output, Step, Stream

if TYPE_CHECKING:
    import numpy as np

    from reidcore.loop import Run
    from reidcore.model import Model

KEPT = 32
"""Classes of a mixture label that are kept, those with the largest shares."""


class ClusterAndTrain(Relabelling):
    """Each round clusters the target's images and takes the clusters for identities (Fan et al. 2018).

    The model's classifiers are replaced by the clusters' centres. Images of the source are not used.
    """

    def __init__(
        self, clustering: Clustering, every: int, *, adapt_norm: bool = True, centre_cameras: bool = True
    ) -> None:
        self.clustering, self.every = clustering, every
        self.adapt_norm, self.centre_cameras = adapt_norm, centre_cameras
        self.labels: Labels | None = None
        self.made = -1  # the epoch that the labels were made before

    def prepare(self, run: Run) -> None:
        """Keep the run. Raises RunError for one without target images, ContractError for losses that do not fit."""
        self.take(run, "cluster-and-train")

    def round(self, epoch: int, run: Run) -> Mapping[str, Stream] | None:
        """Return the target's images with their clusters. Raises RunError where there are none at first."""
        if self.labels is None or (epoch % self.every == 0 and self.made != epoch):
            self._cluster(epoch)
        elif run.streams:
            return None
        assert self.labels is not None
        return {"target": Stream(run.targets, self.labels)}

    def _cluster(self, epoch: int) -> None:
        x, compared = self.features(self.labels is None)
        (labels,) = self.clustering(compared, self.run.seed + epoch, self.run.device)
        before, self.made = self.labels, epoch
        if problem := self.fits(labels):
            if before is None:
                raise self.useless(problem)
            self.report([before], before, f"; kept, since of the new ones {problem}")
            return
        self.labels = labels
        rows = torch.from_numpy(centres(x, labels, self.dims())).split(self.dims(), 1)
        self.run.resize(int(labels.max()) + 1, dict(zip(self.run.model.heads, rows, strict=True)))
        self.report([labels], before, self.clustering.empty([labels]))

    def losses(self, batches: Mapping[str, Batch], step: Step) -> Mapping[str, Tensor]:
        """Return the recipe's losses of the clusters."""
        batch = batches["target"]
        with self.run.autocast():
            output: Output = self.run.model(batch.images, self.run.losses.maps)
        losses: dict[str, Tensor] = self.run.losses(output, batch, step)
        return losses

    def deploy(self) -> Model:
        """Return the trained model."""
        return self.run.model

    def state_dict(self) -> dict[str, Any]:
        """Return the labels, the epoch that they were made before, and what tells whether the images are the same."""
        labels = None if self.labels is None else torch.from_numpy(self.labels)
        return {"labels": labels, "made": self.made, "images": self.images()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the labels of a run that is resumed. Raises RunError when the target's images are others."""
        self.require_images(state["images"])
        self.labels, self.made = None if state["labels"] is None else state["labels"].numpy(), state["made"]


class Granularity(nn.Module):
    """One clustering of the target, its classifier, and what transport makes of it.

    rows: (K, D), the classifier; averaged: their moving average; clusters: (N,) as they were found; labels: (N,) the
    refined ones; classes, shares: (N, S) the mixture labels. Images without a cluster are `UNKNOWN`, with shares of 0.
    """

    def __init__(self, rows: Tensor, clusters: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.clone())
        kept = min(KEPT, len(rows))
        self.averaged: Tensor
        self.clusters: Tensor
        self.labels: Tensor
        self.classes: Tensor
        self.shares: Tensor
        self.register_buffer("averaged", rows.clone())
        self.register_buffer("clusters", clusters)
        self.register_buffer("labels", clusters.clone())
        self.register_buffer("classes", clusters.new_zeros(len(clusters), kept))
        self.register_buffer("shares", rows.new_zeros(len(clusters), kept))

    @torch.no_grad()
    def refine(
        self, x: Tensor, *, sharpness: float, uniform: float, cluster_share: float, transport_share: float
    ) -> float:
        """Mix the labels anew, by (N, D) features of length 1; return how far the transport was from its marginal.

        For scores s, the cosines of features and averaged rows, the label of an image is cluster_share times its
        cluster, transport_share times its row of the plan, and for what is left softmax(sharpness s).
        """
        known = self.clusters >= 0
        clusters = self.clusters[known]
        count, classes = len(clusters), len(self.averaged)
        scores = x[known] @ F.normalize(self.averaged).T
        sizes = torch.bincount(clusters, minlength=classes) / count
        mixture = (sharpness * scores).softmax(1).mul_(1 - cluster_share - transport_share)
        error = 0.0
        if transport_share:
            plan = sinkhorn(scores, uniform / classes + (1 - uniform) * sizes, sharpness=sharpness)
            mixture += transport_share * plan.shares
            error = plan.error
        mixture[torch.arange(count, device=x.device), clusters] += cluster_share
        shares, self.classes[known] = mixture.topk(self.classes.shape[1], dim=1)
        self.shares[known] = shares / shares.sum(1, keepdim=True)
        self.labels[known] = self.classes[known, 0]
        return error

    def follow(self, decay: float) -> None:
        """Move the average towards the rows."""
        self.averaged.lerp_(self.rows.detach(), 1 - decay)


class MixtureLabelTransport(Relabelling, nn.Module):
    """Clusters at several granularities, whose labels optimal transport refines before every epoch (paper, Figure 7).

    Each granularity has a classifier of its own over the same embedding. Labels are mixtures of the cluster, of the
    label that transport assigns, with classes of the marginal's sizes, and of the averaged model's prediction. Losses
    over class scores are averaged over granularities; those over pairs take pairs as positive or negative that all
    granularities agree about. Images of the source, if there are any, are trained on with their own labels.

    See `Granularity.refine` for the shares; source_weight: weight of the source's losses; domain_norm: whether the
    source's images have batch norms of their own.
    """

    def __init__(
        self,
        clustering: Clustering,
        *,
        every: int,
        adapt_norm: bool = True,
        centre_cameras: bool = True,
        sharpness: float = 15.0,
        uniform: float = 0.0,
        cluster_share: float = 0.3,
        transport_share: float = 0.5,
        source_weight: float = 0.3,
        domain_norm: bool = True,
    ) -> None:
        super().__init__()
        self.clustering, self.every = clustering, every
        self.adapt_norm, self.centre_cameras = adapt_norm, centre_cameras
        self.mixing = {
            "sharpness": sharpness,
            "uniform": uniform,
            "cluster_share": cluster_share,
            "transport_share": transport_share,
        }
        self.source_weight, self.domain_norm = source_weight, domain_norm
        self.heads: Any = nn.ModuleList()
        self.norms: Any = nn.ModuleList()
        self.norm_names: list[str] = []
        self.refined: Tensor
        self.of_images: Tensor
        self.register_buffer("refined", torch.tensor(-1))  # the epoch that the labels were made before
        self.register_buffer("of_images", torch.tensor(0))

    def prepare(self, run: Run) -> None:
        """Keep the run, and copy the norm layers for the source.

        Raises RunError for one without target images, ContractError for losses that do not fit.
        """
        self.take(run, "mlt")
        self.of_images.fill_(self.images())
        if not run.train.samples:
            self.source_weight = 0.0
        if self.source_weight and self.domain_norm:
            named = [(name, module) for name, module in run.model.named_modules() if isinstance(module, _BatchNorm)]
            self.norm_names = [name for name, _ in named]
            self.norms.extend(copy.deepcopy(module) for _, module in named)

    def round(self, epoch: int, run: Run) -> Mapping[str, Stream] | None:
        """Return the target's images with their labels, and the source's. Raises RunError without clusters at first."""
        if self.refined != epoch:
            before = self._labels() if self.heads else None
            x, compared = self.features(not before)
            note = self._cluster(epoch, x, compared) if not before or epoch % self.every == 0 else ""
            features = torch.from_numpy(compared).to(run.device)
            errors = [granularity.refine(features, **self.mixing) for granularity in self.heads]
            if max(errors) > 0.05:
                note += f"; transport stopped {max(errors):.0%} off its marginal"
            main = self.heads[len(self.heads) // 2]
            if problem := self.fits(main.labels.cpu().numpy()):
                main.labels.copy_(main.clusters)
                note += f"; sampled by its clusters, since of refined labels {problem}"
            self.refined.fill_(epoch)
            self.report(self._labels(), before[len(before) // 2] if before else None, note)
        elif run.streams:
            return None
        labels = self._labels()
        streams = {"target": Stream(run.targets, labels[len(labels) // 2])}
        return streams | ({"source": run.train} if self.source_weight else {})

    def _cluster(self, epoch: int, x: NDArray[np.float32], compared: NDArray[np.float32]) -> str:
        """Replace the granularities by those that did not collapse, if any; return what is to be said of it."""
        found = self.clustering(compared, self.run.seed + epoch, self.run.device)
        kept = [labels for labels in found if not collapse(labels)]
        if problem := self.fits(kept[len(kept) // 2]) if kept else collapse(found[0]):
            if not self.heads:
                raise self.useless(problem)
            return f"; clusters are the former ones, since of the new ones {problem}"
        device = self.run.device
        self.heads = nn.ModuleList(
            Granularity(
                torch.from_numpy(centres(x, labels, self.dims())).to(device), torch.from_numpy(labels).to(device)
            )
            for labels in kept
        )
        note = self.clustering.empty(found)
        if problem := next(filter(None, map(collapse, found)), ""):
            note += f"; {len(found) - len(kept)} of {len(found)} granularities left out: {problem}"
        return note

    def _labels(self) -> list[Labels]:
        return [granularity.labels.cpu().numpy() for granularity in self.heads]

    def losses(self, batches: Mapping[str, Batch], step: Step) -> Mapping[str, Tensor]:
        """Return the recipe's losses, averaged over granularities, and those of the source."""
        batch, index = batches["target"], batches["target"].indices.to(self.run.device)
        groupings = torch.stack([granularity.labels[index] for granularity in self.heads], 1)
        seen = []  # held, since what a step computes once is known by its batch
        losses: dict[str, Tensor] = {}
        with self.run.autocast():
            output: Output = self.run.model(batch.images, self.run.losses.maps)
        for granularity in self.heads:
            with self.run.autocast():
                logits = self._logits(output, granularity.rows)
            seen.append(
                evolve(
                    batch,
                    labels=granularity.labels[index],
                    mixture=Mixture(granularity.classes[index], granularity.shares[index]),
                    groupings=groupings,
                )
            )
            for name, value in self.run.losses(evolve(output, logits=logits), seen[-1], step).items():
                losses[name] = losses.get(name, 0) + value / len(self.heads)
        if self.source_weight:
            source = batches["source"]
            for name, value in self.run.losses(self._of_source(source), source, step).items():
                losses[f"source-{name}"] = self.source_weight * value
        return losses

    def _logits(self, output: Output, rows: Tensor) -> dict[str, Tensor]:
        logits = {}
        for (view, head), part in zip(self.run.model.heads.items(), rows.split(self.dims(), 1), strict=True):
            x = output.after[view]
            if head.logits == "cosine":
                with torch.autocast(x.device.type, enabled=False):
                    logits[view] = F.linear(F.normalize(x.float()), F.normalize(part))
            else:
                logits[view] = F.linear(x, part)
        return logits

    def _of_source(self, batch: Batch) -> Output:
        """Return the model's output for the source's images, by the source's norms."""
        tensors = {
            f"{name}.{key}": value
            for name, norm in zip(self.norm_names, self.norms, strict=True)
            for key, value in (*norm.named_parameters(), *norm.named_buffers())
        }
        with self.run.autocast():
            arguments = (batch.images, self.run.losses.maps, batch.cameras)
            output: Output = functional_call(self.run.model, tensors, arguments)
        return output

    def after_step(self, run: Run) -> None:
        """Let the averages of the classifiers follow."""
        for granularity in self.heads:
            granularity.follow(run.decay)

    def deploy(self) -> Model:
        """Return the trained model, whose classifiers are the source's."""
        return self.run.model

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take up the granularities of a run that is resumed, however many clusters they have.

        Raises RunError when the target's images are others.
        """
        self.require_images(int(state["of_images"]))
        count = len({name.split(".")[1] for name in state if name.startswith("heads.")})
        saved = [(state[f"heads.{g}.rows"], state[f"heads.{g}.clusters"]) for g in range(count)]
        self.heads = nn.ModuleList(Granularity(*(x.to(self.run.device) for x in tensors)) for tensors in saved)
        return super().load_state_dict(state, strict, assign)
