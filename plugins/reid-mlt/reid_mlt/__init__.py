"""Cross-domain re-identification: adapt to a target without labels (FastReID, section 7.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from reidcore import Component, hookimpl
from reidcore.component import option

if TYPE_CHECKING:
    from reid_mlt import tasks
    from reid_mlt.clustering import Clustering


@frozen(kw_only=True)
class _Relabelling:
    clustering: Literal["kmeans", "dbscan", "hdbscan"] = option(
        "hdbscan", help="'kmeans' wants the number of clusters, the others find it by densities"
    )
    adapt_norm: bool = option(
        True, help="cluster first by a model whose norm layers have the statistics of the target's images"
    )
    centre_cameras: bool = option(True, help="compare features less the mean of those by the same camera")
    every: int = option(2, help="epochs in a round: the target is clustered anew at its start", at_least=1)
    min_samples: int = option(4, help="images within the radius that make a core, itself included", at_least=1)
    k1: int = option(20, help="neighbours in the Jaccard distance that densities are measured with", at_least=1)
    k2: int = option(6, help="images whose neighbourhoods are averaged in it", at_least=1)

    def clusters_by(self, sizes: Mapping[str, Sequence[float]]) -> Clustering:
        from reid_mlt.clustering import Clustering

        return Clustering(self.clustering, sizes[self.clustering], self.min_samples, self.k1, self.k2)


@frozen(kw_only=True)
class MLT(_Relabelling):
    """Mixture label transport: pseudo labels at several granularities, refined by optimal transport."""

    clusters: tuple[int, ...] = option((), help="of k-means, one number a granularity", at_least=2)
    radii: tuple[float, ...] = option((0.45, 0.5, 0.55), help="of DBSCAN, one a granularity", above=0, below=1)
    smallest: tuple[int, ...] = option((4, 6, 8), help="images in a cluster of HDBSCAN, one a granularity", at_least=2)
    sharpness: float = option(15.0, help="factor on cosines in transport and predictions", above=0)
    uniform: float = option(
        0.0, help="what transport makes of the clusters' sizes: 1 makes them equal, 0 keeps them", at_least=0, at_most=1
    )
    cluster_share: float = option(0.3, help="of the clusters themselves in a mixture label", at_least=0, at_most=1)
    transport_share: float = option(
        0.5, help="of the transported label in it; what is left is the teacher's prediction", at_least=0, at_most=1
    )
    source_weight: float = option(0.3, help="of the losses on labelled images; 0: the target alone", at_least=0)
    domain_norm: bool = option(True, help="norm layers of their own for the source's images")

    def __attrs_post_init__(self) -> None:
        if self.cluster_share + self.transport_share > 1 + 1e-9:
            raise ValueError(
                f"cluster_share and transport_share: found {self.cluster_share} and {self.transport_share}, which are "
                "more than 1 together"
            )
        name = {"kmeans": "clusters", "dbscan": "radii", "hdbscan": "smallest"}[self.clustering]
        if not getattr(self, name):
            raise ValueError(f"{name}: found none; clustering = '{self.clustering}' needs one for each granularity")

    def build(self) -> tasks.MixtureLabelTransport:
        from reid_mlt.tasks import MixtureLabelTransport

        return MixtureLabelTransport(
            self.clusters_by({"kmeans": self.clusters, "dbscan": self.radii, "hdbscan": self.smallest}),
            every=self.every,
            adapt_norm=self.adapt_norm,
            centre_cameras=self.centre_cameras,
            sharpness=self.sharpness,
            uniform=self.uniform,
            cluster_share=self.cluster_share,
            transport_share=self.transport_share,
            source_weight=self.source_weight,
            domain_norm=self.domain_norm,
        )


@frozen(kw_only=True)
class ClusterAndTrain(_Relabelling):
    """Train on the target's clusters as if they were identities, and cluster again."""

    clusters: int | None = option(None, help="number of clusters of k-means", at_least=2)
    radius: float = option(0.5, help="of DBSCAN", above=0, below=1)
    smallest: int = option(6, help="images in a cluster of HDBSCAN", at_least=2)

    def __attrs_post_init__(self) -> None:
        if self.clustering == "kmeans" and self.clusters is None:
            raise ValueError("clusters: found none; clustering = 'kmeans' needs their number")

    def build(self) -> tasks.ClusterAndTrain:
        from reid_mlt.tasks import ClusterAndTrain

        sizes = {"kmeans": [self.clusters or 0], "dbscan": [self.radius], "hdbscan": [self.smallest]}
        return ClusterAndTrain(
            self.clusters_by(sizes), self.every, adapt_norm=self.adapt_norm, centre_cameras=self.centre_cameras
        )


@hookimpl
def reidcore_tasks() -> Iterator[Component]:
    """Offer two ways to learn from a target without labels."""
    yield Component(name="mlt", config=MLT)
    yield Component(name="cluster-and-train", config=ClusterAndTrain)
