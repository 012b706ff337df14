"""From a recipe to built parts: the only file that knows the order of wiring."""

from __future__ import annotations

import ctypes
import inspect
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve, field, frozen
from numpy.typing import NDArray
from torch import nn

from reidcore.builtin.modules.transforms import Resize
from reidcore.checkpoint import WEIGHTS, find_init
from reidcore.data import ImageCache, Loader, cache_room, leave_out_unreadable
from reidcore.distributed import average_norms, of_main, synchronise_norms
from reidcore.errors import ContractError, DataError, ImageWarning, ReidError, RunError, first_of, offer
from reidcore.features import KeptFeatures, room_for
from reidcore.kinds import Loss, Sampler, SamplerConfig, TransformConfig
from reidcore.loop import Freezer, Losses, Run
from reidcore.model import FrozenModel, Model
from reidcore.networks import build_model, find_trained, freeze, load_frozen, read_classes, unweighted
from reidcore.options import EvaluationOptions, InputOptions
from reidcore.recipe import Loaded, Recipe, load_recipe, needed
from reidcore.retrieval import Coverage, Problem, coverage
from reidcore.retrieval.evaluation import Result, evaluate
from reidcore.retrieval.extract import Room, extract_batches, extract_whole
from reidcore.retrieval.postprocess import check_chain, choose, chooses
from reidcore.types import ALONE, UNKNOWN, Features, Frozen, Parts, Sample, Splits, Stream, World, no_frozen


@frozen(eq=False)
class Test:
    """One test set, read: its label, its protocol, and what is done to its distances."""

    __test__ = False

    label: str
    splits: Splits
    protocol: str
    postprocess: Sequence[Any]
    source: int
    """Tests of the same source share their features."""
    known_cameras: bool
    """Whether the cameras are those of the training, with the same numbers."""
    query_transform: Sequence[Any] = ()
    """The configs of what is done to the queries."""

    @property
    def needs(self) -> set[str]:
        """Names of the extras that its post-processors read."""
        return {name for part in self.postprocess for name in part.needs}

    def coverage(self) -> Coverage:
        """Return how many queries have a match. Raises DataError when none has one."""
        query, gallery = self.splits.query, self.splits.gallery
        found = coverage(
            [sample.identity for sample in query],
            [sample.camera for sample in query],
            [sample.identity for sample in gallery],
            [sample.camera for sample in gallery],
            self.protocol,
            query_paths=[sample.name for sample in query],
            gallery_paths=[sample.name for sample in gallery],
        )
        if not found.queries:
            raise DataError(f"test set '{self.label}' has no query images")
        if not found.covered:
            raise DataError(f"test set '{self.label}': {found.describe()}")
        return found


@frozen(eq=False)
class Data:
    """All images of an experiment, read and labelled.

    identities: those of the classes, in order; left_out: what is wrong with each image that is not used for it.
    """

    train: Stream
    targets: tuple[Sample, ...]
    identities: list[int]
    tests: tuple[Test, ...]
    holdout: Test | None
    notes: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """The number of training identities."""
        return len(self.identities)


def read_data(loaded: Loaded, train: bool = True) -> Data:
    """Read the lists of the recipe's data sets; without `train` only those of the tests.

    Raises DataError when something is missing; warns of images that are left out (`[input] on_bad_image`).
    """
    recipe = loaded.recipe
    skip = recipe.input.on_bad_image == "skip"
    configs: list[Any] = []
    built: list[Splits] = []
    left_out: dict[str, None] = {}

    def number(dataset: Any, paired: bool = False) -> int:
        key = dataset, skip and paired
        if key not in configs:
            splits = dataset.build()
            if skip:
                splits, faults = leave_out_unreadable(splits, paired)
                left_out.update(dict.fromkeys(faults))
            built.append(splits)
            configs.append(key)
        return configs.index(key)

    def read(dataset: Any, paired: bool = False) -> Splits:
        return built[number(dataset, paired)]

    samples: list[Sample] = []
    targets: tuple[Sample, ...] = ()
    if train:
        tables = [
            (entry.role, [evolve(s, source=position) for s in read(entry.dataset).train])
            for position, entry in enumerate(recipe.train)
        ]
        targets = tuple(s for role, table in tables if role == "target" for s in table)
        samples = _combine([[s for s in table if s.identity != UNKNOWN] for role, table in tables if role == "source"])
        if not samples and not targets:
            raise DataError("the [[train]] data sets hold no labelled training images")
    tests = tuple(
        Test(
            label=loaded.label(position),
            splits=read(test.dataset, test.compared == "verification"),
            protocol="all-cameras" if (test.cameras, test.compared) == ("ignore", "cross-camera") else test.compared,
            postprocess=tuple(part.build() for part in test.postprocess),
            source=number(test.dataset, test.compared == "verification"),
            known_cameras=[entry.dataset for entry in recipe.train] == [test.dataset],  # joined sets are renumbered
            query_transform=test.query_transform,
        )
        for position, test in enumerate(recipe.test)
    )
    holdout = None
    if train and recipe.evaluation.holdout:
        if not samples:
            raise DataError("evaluation.holdout keeps labelled training images out, and there are none")
        samples, holdout = _hold_out(samples, recipe.evaluation.holdout, recipe.run.seed)
    for test in tests:
        build_query_transforms(test.query_transform, recipe.input, test.label)
        if train:
            _check_chosen(recipe, test.label, test.postprocess)
    if left_out:
        text = f"images left out, since they cannot be read: {len(left_out)}\n{first_of(list(left_out))}"
        warnings.warn(text, ImageWarning, stacklevel=2)
    identities, labels = np.unique([sample.identity for sample in samples], return_inverse=True)
    notes = tuple(note for splits in built for note in splits.notes)
    return Data(Stream(samples, labels), targets, identities.tolist(), tests, holdout, notes, tuple(left_out))


def require_images(data: Data) -> None:
    """Raise DataError that names the image files which are not there, before hours of training find them."""
    parts = [
        data.train.samples,
        data.targets,
        *(part for t in data.tests for part in (t.splits.query, t.splits.gallery)),
    ]
    files = dict.fromkeys(sample.image for part in parts for sample in part if isinstance(sample.image, Path))
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"{len(missing)} of {len(files)} images are missing: {', '.join(missing[:3])}{more}")


def _combine(sets: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Join training sets: the same number in two sets is two identities, and two cameras."""
    if len(sets) == 1:
        return list(sets[0])
    joined: list[Sample] = []
    identities = cameras = 0
    for samples in sets:
        joined += [
            evolve(
                sample,
                identity=sample.identity + identities,
                camera=UNKNOWN if sample.camera == UNKNOWN else sample.camera + cameras,
            )
            for sample in samples
        ]
        identities = 1 + max((sample.identity for sample in joined), default=-1)
        cameras = 1 + max((sample.camera for sample in joined), default=-1)
    return joined


def _check_chosen(recipe: Recipe, label: str, postprocess: Sequence[Any]) -> None:
    """Raise ContractError for post-processors that choose on held-out identities if there are none."""
    if chooses(postprocess) and not recipe.evaluation.holdout:
        raise ContractError(
            f"test '{label}': its post-processors choose on held-out training identities, and none are held out; "
            "write holdout = 0.1 in [evaluation], or fix the option"
        )


def build_query_transforms(
    transforms: Sequence[TransformConfig], size: InputOptions, label: str
) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Build what is done to a test's queries. Raises ContractError for a transform that needs other images."""
    built = [transform.build(size.height, size.width) for transform in transforms]
    if any(getattr(transform, "mixes", False) for transform in built):
        raise ContractError(
            f"test '{label}': query_transform: a transform that mixes images of a batch is for training only; "
            "queries are transformed one by one"
        )
    return built  # type: ignore[return-value]


def _hold_out(samples: list[Sample], share: float, seed: int) -> tuple[list[Sample], Test]:
    """Take a share of the identities out of the training images, as a test to choose the best epoch by.

    Every held-out image is in the gallery, and the first of each identity and camera is a query too.
    """
    identities = sorted({sample.identity for sample in samples})
    count = max(1, round(share * len(identities)))
    held = set(np.random.default_rng(seed).choice(identities, count, replace=False).tolist())
    kept = [sample for sample in samples if sample.identity not in held]
    gallery = [sample for sample in samples if sample.identity in held]
    query = {(sample.identity, sample.camera): sample for sample in reversed(gallery)}
    cameras = {sample.camera for sample in gallery}
    protocol = "cross-camera" if len(cameras) > 1 else "all-cameras"
    test = Test("holdout", Splits((), tuple(query.values())[::-1], gallery), protocol, (), -1, True)
    if not kept:
        raise DataError(f"evaluation.holdout = {share} leaves no identity of {len(identities)} to train on")
    try:
        test.coverage()
    except DataError as error:
        raise DataError(f"evaluation.holdout = {share} cannot be evaluated: {error}") from None
    return kept, test


def build_losses(
    recipe: Recipe,
    model: Model,
    classes: int,
    world: World = ALONE,
    *,
    identities: Sequence[int] | None = None,
    frozen: Callable[[Path, Path | None], Frozen] = no_frozen,
) -> Losses:
    """Build the objective. Raises ContractError when a loss needs what the model does not offer.

    identities, frozen: see `reidcore.types.Parts`.
    """
    terms: list[tuple[float, Loss]] = []
    once = cache(frozen)  # however its place is written

    def lend(run: Path, weights: Path | None = None) -> Frozen:
        return once(run.resolve(), weights and weights.resolve())

    parts = Parts(model, classes, identities, recipe.training.ema > 0, lend)
    for position, term in enumerate(recipe.loss):
        where = f"loss.{position}"
        try:
            loss = term.loss.build(parts)
        except KeyError as error:  # of a view that it looks up
            if (name := error.args[0]) in model.heads:
                raise
            raise ContractError(f"{where}: there is no view '{name}'; {offer(str(name), list(model.heads))}") from None
        except ContractError as error:
            raise ContractError(f"{where}: {error}") from None
        needs = loss.needs
        for what, names, offered in (
            ("view", needs.views, list(model.heads)),
            ("map", needs.maps, list(model.backbone.shapes)),
        ):
            for name in names:
                if name not in offered:
                    raise ContractError(f"{where}: there is no {what} '{name}'; {offer(name, offered)}")
        kinds = {str(model.heads[view].logits) for view in needs.views}
        if needs.logits and kinds != {needs.logits}:
            raise ContractError(
                f"{where}: it needs {needs.logits} logits; the head gives {', '.join(kinds)} ones; "
                f'write classifier = "{needs.logits}" in [head]'
            )
        terms.append((term.weight, loss))
    return Losses(terms, world)


def _check_cameras(model: Model, samples: Sequence[Sample]) -> None:
    known, last = getattr(model.backbone, "cameras", 0), max((sample.camera for sample in samples), default=UNKNOWN)
    if 0 < known <= last:
        raise ContractError(
            f"backbone.cameras: found {known}, which are 0 to {known - 1}, but the training images come from cameras "
            f"up to {last}; write {last + 1}"
        )


def build_sampler(config: SamplerConfig, stream: Stream, seed: int) -> Sampler:
    """Build the sampler of a stream, and tell it the images' data sets where it wants to know them."""
    cameras = np.array([sample.camera for sample in stream.samples])
    more: dict[str, Any] = {}
    if "sources" in inspect.signature(config.build).parameters:
        more["sources"] = np.array([sample.source for sample in stream.samples])
    return config.build(np.asarray(stream.labels), cameras, seed, **more)


def check_build(loaded: Loaded, identities: Mapping[Path, Sequence[int]] | None = None) -> None:
    """Build the model, the losses and the rest without data and without memory, and so for the recipes that it needs.

    identities: those of the classes by run folder, where they are known. Raises ContractError, ReidError.
    """
    items = [*needed(loaded), loaded]
    planned = {item.folder.resolve(): item.recipe for item in items}
    for item in items:
        _check_parts(item, planned, identities or {})


def _check_parts(loaded: Loaded, planned: Mapping[Path, Recipe], identities: Mapping[Path, Sequence[int]]) -> None:
    recipe = loaded.recipe
    if recipe.run.init and recipe.run.init.resolve() not in planned:
        find_init(recipe.run.init)

    def untrained(run: Path, weights: Path | None) -> FrozenModel:
        if run in planned and not weights and not (run / WEIGHTS).is_file():
            its, known = planned[run], identities.get(run)
        else:
            file, trained = find_trained(run, weights)
            its, known = load_recipe(file, plugin_files=loaded.plugin_files).recipe, read_classes(trained)[1]
        return freeze(build_model(unweighted(its), classes=2), its, known)

    with torch.device("meta"):
        model = build_model(recipe, classes=2)
        own = identities.get(loaded.folder.resolve())
        build_losses(recipe, model, classes=2, identities=own, frozen=untrained)
    for transform in recipe.transform:
        transform.build(recipe.input.height, recipe.input.width)
    for position, test in enumerate(recipe.test):
        chain = [part.build() for part in test.postprocess]
        check_chain(chain, model.aggregator.extras.keys(), test.protocol)
        _check_chosen(recipe, loaded.label(position), chain)
        build_query_transforms(test.query_transform, recipe.input, loaded.label(position))
    for metric in recipe.metric:
        metric.build()
    recipe.task.build()
    recipe.optimizer.build(list(model.named_parameters()))
    Freezer(model, recipe.training.freeze, recipe.training.freeze_iterations)


def find_device(name: str, world: World = ALONE) -> torch.device:
    """Return the device that `[run] device` means, of several processes a GPU for each.

    Raises RunError when the machine does not have it.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise RunError(f"run.device: found '{name}'; expected 'auto', 'cpu', 'cuda' or 'cuda:1'") from None
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"run.device: found '{name}'; expected 'auto', 'cpu', 'cuda' or 'cuda:1'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise RunError(f"run.device: found '{name}', but torch sees {there} CUDA devices here; write device = \"auto\"")
    if world.size > 1 and device.type == "cuda":
        if device.index is not None:
            raise RunError(
                f"run.device: found '{name}', but every process has a GPU of its own; write device = \"cuda\""
            )
        if world.local >= (there := torch.cuda.device_count()):
            raise RunError(
                f"more than {there} processes on this machine, and torch sees {there} CUDA devices here: every process "
                'needs one of its own; start fewer, or write device = "cpu"'
            )
        return torch.device("cuda", world.local)
    return device


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type that networks compute in: with "auto" bfloat16 where the hardware multiplies in it."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            able = torch.cpu.get_capabilities()
            fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, or activations go back to the kernel and come as zeroed pages at every step.

    With resnet50 at 256x128 this takes a quarter of the time of a step on a CPU. Other C libraries are left alone.
    """
    mmap_max, trim_threshold = -4, -1  # <malloc.h>
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


@frozen
class _Side:
    """Images of which features are wanted: the queries or the gallery of a test. Equal ones have equal features.

    transformed_by: the configs of `transforms` as a text.
    """

    source: int
    samples: Sequence[Sample] = field(eq=id)
    known_cameras: bool
    transformed_by: str
    transforms: Sequence[Callable[[torch.Tensor], torch.Tensor]] = field(eq=False)


Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much (0: not known)."""


@frozen(eq=False)
class Evaluator:
    """Evaluates a model on test sets; features are extracted once a data set."""

    input: InputOptions
    options: EvaluationOptions
    metrics: Sequence[Any]
    device: torch.device
    precision: torch.dtype
    folder: Path | None = None
    """Where features are that are more than `options.memory`."""
    kept: KeptFeatures | None = None
    world: World = ALONE
    progress: Progress = lambda what, done, total: None
    """See `reporting.Bar`."""

    def __call__(self, model: nn.Module, tests: Sequence[Test], holdout: Test | None = None) -> dict[str, Result]:
        """Return each test's result, in order; of several processes each makes features, and the main one compares.

        What post-processors have to choose they choose on `holdout`, whose queries are transformed as the test's.
        """
        results: dict[str, Result] = {}
        for test, query, gallery, chosen in self.features(model, tests, holdout):
            result = evaluate(
                query, gallery, metrics=self.metrics, intervals=True, **self.terms(test, "ranked queries", query)
            )
            results[test.label] = evolve(result, chosen=chosen)
            del query, gallery  # before others are extracted
        return of_main(results, self.world)

    def terms(self, test: Test, what: str, query: Features) -> dict[str, Any]:
        """Return how a test's queries are ranked, and who is told how far it is: arguments of `evaluate` and others."""
        return {
            "distance": self.options.distance,
            "postprocess": test.postprocess,
            "protocol": test.protocol,
            "device": self.device,
            "done": self.counting(f"{test.label}: {what}", len(query)),
        }

    def counting(self, what: str, total: int) -> Callable[[int], None]:
        """Return what passes on to `progress` how much of some work is done."""
        return lambda done: self.progress(what, done, total)

    def features(
        self, model: nn.Module, tests: Sequence[Test], holdout: Test | None = None
    ) -> Iterator[tuple[Test, Features, Features, Mapping[str, float]]]:
        """Yield each test with the features of its queries and of its gallery, and what its post-processors chose.

        Of several processes only the main one is given any.
        """
        asked = [(test, *self._sides(test, holdout)) for test in tests]
        room = room_for(self.options.memory * 2**30, self.folder)
        features: dict[_Side, Features | None] = {}
        for position, (test, sides, held_out) in enumerate(asked):
            wanted = []
            for side in (*sides, *held_out):
                if side not in features:
                    users = [other for other, *groups in asked[position:] if any(side in group for group in groups)]
                    what = f"{test.label}: features"
                    needs = set().union(*(user.needs for user in users))
                    features[side] = self._features(model, side, needs, room, what)
                if (found := features[side]) is not None:
                    wanted.append(evolve(found, extras={name: found.extras[name] for name in test.needs}))
            if wanted:
                chosen: dict[str, float] = {}
                if holdout and held_out:
                    held = Problem(wanted[2], wanted[3], holdout.protocol, self.options.distance, self.device)
                    chosen = choose(held, test.postprocess)
                query, gallery = wanted[:2]
                del found, wanted
                yield test, query, gallery, chosen
                del query, gallery  # before others are extracted
            needed = {side for _, *groups in asked[position + 1 :] for group in groups for side in group}
            features = {side: found for side, found in features.items() if side in needed}

    def _sides(self, test: Test, holdout: Test | None) -> tuple[Sequence[_Side], Sequence[_Side]]:
        """Return queries and gallery of a test, and the held-out ones that its post-processors choose on."""

        def sides(of: Test) -> tuple[_Side, _Side]:
            transforms = build_query_transforms(test.query_transform, self.input, test.label)
            return (
                _Side(of.source, of.splits.query, of.known_cameras, repr(test.query_transform), transforms),
                _Side(of.source, of.splits.gallery, of.known_cameras, "", ()),
            )

        return sides(test), sides(holdout) if holdout and chooses(test.postprocess) else ()

    def _features(
        self, model: nn.Module, side: _Side, extras: Collection[str], room: Room, what: str
    ) -> Features | None:
        """Return the features of a side in the main process; the others help, if any have to be made."""
        count = 0
        begun = False

        def done(more: int) -> None:
            nonlocal count
            count += more * self.world.size
            self.progress(what, min(count, len(side.samples)), len(side.samples))

        def extracted(extras: Collection[str], room: Room) -> Any:
            nonlocal begun
            begun = True
            return extract_whole(
                model,
                side.samples,
                cameras=side.known_cameras,
                transforms=side.transforms,
                extras=of_main(extras, self.world) if self.world.main else extras,
                room=room,
                world=self.world,
                done=done,
                **self._reading(),
            )

        if not self.world.main:
            asked = of_main(None, self.world)
            return None if asked is None else extracted(asked, room)
        if self.kept:
            found = self.kept.get(side.samples, (side.known_cameras, side.transformed_by), extras, extracted)
        else:
            found = extracted(extras, room)
        if not begun:  # they were kept
            of_main(None, self.world)
        return found

    def extract(self, model: nn.Module, samples: Sequence[Sample]) -> Features:
        """Return the features that a model makes of samples, whose cameras it is not told.

        Batch norms that take statistics meanwhile have those of all processes afterwards.
        """
        whole = extract_whole(model, samples, extras=(), world=self.world, **self._reading())
        average_norms([model], self.world)
        return of_main(whole, self.world)  # type: ignore[return-value]

    def stream(self, model: nn.Module, samples: Sequence[Sample]) -> Iterator[NDArray[np.float32]]:
        """Yield the (B, D) embeddings of samples in order, a batch at a time."""
        for embeddings, _ in extract_batches(model, samples, **self._reading()):
            yield embeddings.numpy()

    def _reading(self) -> dict[str, Any]:
        return {
            "size": (self.input.height, self.input.width),
            "batch": self.options.batch,
            "flip": self.options.flip,
            "workers": self.input.workers,
            "device": self.device,
            "precision": self.precision,
        }


def make_evaluator(recipe: Recipe, folder: Path | None = None, world: World = ALONE) -> Evaluator:
    """Return what evaluates models as the recipe says; a run's folder is where large features are meanwhile."""
    device = find_device(recipe.run.device, world)
    return Evaluator(
        input=recipe.input,
        options=recipe.evaluation,
        metrics=tuple(metric.build() for metric in recipe.metric),
        device=device,
        precision=find_precision(recipe.training.precision, device),
        folder=folder,
        world=world,
    )


def assemble(
    loaded: Loaded,
    data: Data,
    folder: Path,
    score: Callable[[nn.Module, int], float | None],
    world: World = ALONE,
) -> Run:
    """Wire the recipe's parts into a run that `loop.fit` can train."""
    recipe = loaded.recipe
    size = (recipe.input.height, recipe.input.width)
    device = find_device(recipe.run.device, world)
    if device.index is not None:
        torch.cuda.set_device(device)
    if recipe.run.deterministic:  # read when cuBLAS starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(recipe.run.seed)
    torch.use_deterministic_algorithms(recipe.run.deterministic)
    transforms = [transform.build(*size) for transform in recipe.transform]
    if not any(transform.resizes for transform in transforms):
        transforms.insert(0, Resize(*size))
    model = build_model(recipe, data.classes).to(device)
    _check_cameras(model, data.train.samples)
    for test in data.tests:
        check_chain(test.postprocess, model.aggregator.extras.keys(), test.protocol)
    precision = find_precision(recipe.training.precision, device)

    frozen = partial(
        load_frozen, device=device, precision=precision, train=recipe.train, plugin_files=loaded.plugin_files
    )
    losses = build_losses(recipe, model, data.classes, world, identities=data.identities, frozen=frozen).to(device)
    if recipe.training.sync_batch_norm:
        for module in (model, losses):
            synchronise_norms(module, world, device)
    if world.rank:  # chance, dropout's for one, is another in each process
        torch.manual_seed(
            int(np.random.SeedSequence([recipe.run.seed, world.rank]).generate_state(1, np.uint64)[0] >> 1)
        )

    room = cache_room(recipe.input.cache, int(os.environ.get("LOCAL_WORLD_SIZE", world.size)))
    kept = ImageCache((*data.train.samples, *data.targets), room) if room else None

    def make_loader(stream: Stream) -> Loader:
        sampler = build_sampler(recipe.sampler, stream, recipe.run.seed)
        return Loader(
            stream,
            sampler,
            transforms,
            size=size,
            seed=recipe.run.seed,
            workers=recipe.input.workers,
            device=device,
            world=world,
            cache=kept,
        )

    return Run(
        model=model,
        losses=losses,
        task=recipe.task.build(),
        train=data.train,
        targets=data.targets,
        classes=data.classes,
        identities=data.identities,
        make_loader=make_loader,
        make_optimizer=recipe.optimizer.build,
        make_schedule=recipe.scheduler.build,
        evaluate=score,
        extract=make_evaluator(recipe, world=world).extract,
        options=recipe.training,
        evaluate_every=recipe.evaluation.every or int(data.holdout is not None),
        folder=folder,
        device=device,
        precision=precision,
        world=world,
        seed=recipe.run.seed,
    )


__all__ = ["Data", "Evaluator", "ReidError", "Test", "assemble", "build_model", "check_build", "read_data"]
