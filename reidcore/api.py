"""What Python users call: run a recipe, load what it trained."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tomli
import torch
from attrs import asdict, evolve, frozen
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from reidcore import __version__
from reidcore.assemble import (
    Data,
    Evaluator,
    Progress,
    Test,
    assemble,
    check_build,
    find_device,
    make_evaluator,
    read_data,
    require_images,
)
from reidcore.builtin.modules.transforms import Resize
from reidcore.catalog import Catalog, discover
from reidcore.checkpoint import WEIGHTS, find_init, load_fitting, save_tensors, write_text
from reidcore.data import read_image
from reidcore.distributed import joined, restarted, wait
from reidcore.errors import ContractError, DataError, RecipeError, ReidError, RunError, offer, os_message
from reidcore.export import About, ArtifactModel, Exported, export, open_artifact
from reidcore.features import KeptFeatures
from reidcore.kinds import Logger
from reidcore.loop import Run, checkpoints, fit, prepare
from reidcore.machine import describe
from reidcore.model import Model
from reidcore.networks import RECIPE, load_trained, unweighted
from reidcore.options import EvaluationOptions, InputOptions
from reidcore.recipe import Loaded, fill, load_recipe, needed
from reidcore.report import QUERIES, Opened, write_comparison, write_report
from reidcore.reporting import JsonLines, Terminal, describe_exported, make_console
from reidcore.results import FILE as RESULTS_FILE
from reidcore.results import load_results, save_results
from reidcore.retrieval import Coverage
from reidcore.retrieval.bootstrap import Difference, differences
from reidcore.retrieval.evaluation import Result
from reidcore.retrieval.postprocess import chooses
from reidcore.retrieval.store import EmbeddingWriter
from reidcore.structure import component_of
from reidcore.types import ALONE, Sample, World

_PLACE = re.compile(r"(test\.\d+\.(root|file|pairs)|train\.\d+\.(root|file)|run\.device|input\.(workers|cache))=")
RESULTS, BEFORE = "metrics.json", "metrics-before.json"


@frozen(eq=False)
class Finished:
    """A finished run: its folder, and the figures of each test, before training too where that was asked for.

    queries: how many of each test's queries have a match, and so count; results: what else is known of each test.
    """

    folder: Path
    metrics: Mapping[str, Mapping[str, float]]
    before: Mapping[str, Mapping[str, float]]
    queries: Mapping[str, Coverage]
    results: Mapping[str, Result]


def run(
    recipe: Loaded | str | Path | Mapping[str, Any],
    *,
    resume: bool = False,
    console: Console | None = None,
    quiet: bool = True,
) -> Finished:
    """Train and evaluate a recipe in a new run folder, or go on in the one that is there (`resume`). Recipes that it
    needs are run first.

    The processes that torchrun starts, and that each call this, make one run. One that torchrun started anew goes on.

    Raises ReidError, always with what to do; what was trained so far stays in the run folder. Of several processes one
    raises it, and the others SystemExit.
    """
    with joined() as world:
        return _run(recipe, resume or restarted(), console, quiet, world)


def _run(
    recipe: Loaded | str | Path | Mapping[str, Any], resume: bool, console: Console | None, quiet: bool, world: World
) -> Finished:
    loaded = recipe if isinstance(recipe, Loaded) else load_recipe(recipe)
    if others := missing(loaded):
        foresee([*others, loaded], resume)
    for other in others:
        run(other, resume=resume, console=console, quiet=quiet)
    folder = run_folder(loaded, resume)
    console = (console or make_console(stderr=True)) if world.main else Console(quiet=True)
    terminal = Terminal(console, quiet)
    changes = _changes(folder, loaded)
    finished = (folder / RESULTS).is_file()
    if finished and changes:
        raise RunError(
            f"the run in {folder} is finished, with another recipe ({changes}); choose another name for this one: "
            "--set run.name=NAME"
        )
    data = read_data(loaded, train=not finished)
    tests = data.tests + ((data.holdout,) if data.holdout else ())
    queries = {test.label: test.coverage() for test in tests}
    notes = [f"test set '{label}': {found.describe()}" for label, found in queries.items() if found.describe()]
    for note in (*data.notes, *notes, *([f"changed since the run began: {changes}"] if changes else [])):
        terminal.warn(note)
    if not finished:
        _train(loaded, data, folder, terminal, resume, world)
        wait(world)
    results, before = (_read_metrics(folder / name) for name in (RESULTS, BEFORE))
    kept = load_results(folder) if (folder / RESULTS_FILE).is_file() else {}
    return Finished(folder, results, before, queries, kept)


def _train(loaded: Loaded, data: Data, folder: Path, terminal: Terminal, resume: bool, world: World) -> None:
    """Train, evaluate and export in the run folder, which is not touched before everything is known to fit.

    Of several processes only the main one writes.
    """
    recipe = loaded.recipe
    if world.main:
        require_images(data)
    evaluator = evolve(make_evaluator(recipe, folder, world), progress=terminal)
    holdout_evaluator = evolve(evaluator, metrics=(loaded.catalog.build("metric", "core:map"),))
    done: dict[int, dict[str, Result]] = {}

    def score(model: nn.Module, epoch: int) -> float | None:
        if recipe.evaluation.every:
            done[epoch] = _evaluate(run_, evaluator, model, data.tests, epoch, data.holdout)
        if data.holdout is None:
            return None
        return _evaluate(run_, holdout_evaluator, model, [data.holdout], epoch)[data.holdout.label]["mAP"]

    started_as = evolve(loaded, recipe=unweighted(recipe)) if recipe.run.init else loaded
    run_ = assemble(started_as, data, folder, score, world)
    taken = None
    if recipe.run.init and not (resume and checkpoints(folder)):
        taken = load_fitting(run_.model, find_init(recipe.run.init))
    if data.targets:
        terminal.note(f"{len(data.targets)} images of the target are looked at first")
    prepare(run_, resume)
    exporters = [part.build() for part in recipe.export]
    wait(world)  # all have looked at what is there
    loggers = _make_folder(loaded, folder, terminal) if world.main else []
    run_.loggers = loggers
    unlabelled = f" and {len(data.targets)} of the target" if data.targets else ""
    terminal.note(
        f"{len(data.train.samples)} images of {data.classes} identities{unlabelled} on {run_.device}"
        f"{f' in {world.size} processes' if world.size > 1 else ''}"
        f"{' in bfloat16' if run_.precision == torch.bfloat16 else ''}; run folder {folder}"
    )
    machine = describe(run_.device) | ({"processes": world.size} if world.size > 1 else {})
    run_.log(kind="start", began=datetime.now().astimezone().isoformat(" ", "seconds"), **machine)
    if data.left_out:
        run_.log(kind="left-out", images=data.left_out)
    if taken:
        run_.log(kind="init", run=str(recipe.run.init), **asdict(taken))
        here = taken.loaded + len(taken.only_here) + len(taken.reshaped)
        started = f"started from {recipe.run.init}: {taken.loaded} of {here} tensors fit"
        terminal.note("\n  ".join([started, *taken.misfits()]))
    with _reported(run_, loggers):
        if recipe.evaluation.before and not run_.step and not (folder / BEFORE).is_file():
            before = _evaluate(run_, evaluator, run_.model, data.tests, 0, data.holdout)
            if world.main:
                _write_metrics(folder / BEFORE, before)
        with _interruptible(run_):
            model = fit(run_, resume)
        classes = run_.classes if run_.identities is None else list(run_.identities)
        keeping = evaluator
        if world.main:
            save_tensors(folder / WEIGHTS, model.state_dict(), {"classes": classes})
            keeping = _keeping(evaluator, loaded, folder)
        epoch = run_.best_epoch or run_.epoch
        results = done.get(epoch) or _evaluate(run_, keeping, model, data.tests, epoch, data.holdout)
        if world.main:
            save_results(folder, results)
            _write_metrics(folder / RESULTS, results)
    if not world.main:
        return
    images = _examples(loaded, data.train.samples or data.targets) if exporters else np.empty(0, np.uint8)
    failed = []
    for position, exporter in enumerate(exporters):
        name = component_of(loaded.catalog, loaded.recipe.export[position]).name
        try:
            exported = export(model, exporter, images, folder / "export" / name, _about(model, loaded, folder))
            terminal.note(describe_exported(exported))
        except (ContractError, RunError) as error:
            failed.append(str(error))
    if data.left_out:
        terminal.warn(f"images left out, since they cannot be read: {len(data.left_out)}; log.jsonl lists them")
    if failed:
        failed.append(f"the run is finished; to export it again: reidcore export {folder} --to NAME")
    if recipe.run.report:
        try:
            opened = Opened(evolve(keeping, world=ALONE), model, data.tests, data.holdout)
            page = write_report(folder, opened)
            terminal.note(f"report: {page}")
        except ReidError as error:
            failed += [str(error), f"the run is finished; to write its report: reidcore report {folder}"]
        terminal.close()
    if failed:
        raise RunError("\n".join(failed))


def _make_folder(loaded: Loaded, folder: Path, terminal: Terminal) -> list[Logger]:
    """Make the run folder with its recipe, and return what the run's events go to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(os_message(error, "make the run folder", folder)) from None
    begun = (folder / RECIPE).exists()
    write_text(folder / RECIPE, fill(loaded, versions(loaded)))
    loggers: list[Logger] = [JsonLines(folder / "log.jsonl"), terminal]
    try:
        loggers += [part.build(folder) for part in loaded.recipe.logger]
    except ReidError:
        if not begun:  # nothing stands in the way of trying again
            (folder / RECIPE).unlink()
        raise
    return loggers


def evaluate_run(
    folder: str | Path,
    overrides: Sequence[str] = (),
    plugin_files: Sequence[str | Path] = (),
    artifact: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Result]:
    """Evaluate a finished run's model again, on the tests of its recipe with `KEY=VALUE` overrides.

    Features that the run folder has are not extracted again. The results are kept for `compare` if the overrides say
    nothing but where data and device are. With `artifact`, an exported file, this is what computes the embeddings, and
    nothing is kept. `progress` is told what is being done, how much of it is done, and of how much (0: not known).
    """
    folder = Path(folder)
    model, loaded, data = _open(folder, overrides, plugin_files)
    if not data.tests:
        raise RunError(f"the recipe of {folder} has no [[test]] table; add --set test.0.name=NAME and its options")
    evaluator = make_evaluator(loaded.recipe, folder)
    evaluator = evolve(evaluator, progress=progress)
    if artifact is not None:
        opened = open_artifact(Path(artifact), loaded.catalog, str(evaluator.device))
        if about := opened.about:
            if about.fingerprint and about.fingerprint != _fingerprint(folder):
                raise RunError(f"{artifact} was exported from another run than {folder}")
            evaluator = evolve(evaluator, input=evolve(evaluator.input, height=about.height, width=about.width))
        return evaluator(ArtifactModel(opened), data.tests, data.holdout)
    evaluator = _keeping(evaluator, loaded, folder)
    results = evaluator(model.to(evaluator.device), data.tests, data.holdout)
    if all(_PLACE.match(override) for override in overrides):
        save_results(folder, results)
        _write_metrics(folder / RESULTS, results)
    return results


def _open(folder: Path, overrides: Sequence[str], plugin_files: Sequence[str | Path]) -> tuple[Model, Loaded, Data]:
    """Return the model of a finished run, its recipe with overrides, and the images of its tests."""
    model, loaded, trained_on = load_trained(folder, overrides=overrides, plugin_files=plugin_files)
    choosing = any(chooses([part.build() for part in test.postprocess]) for test in loaded.recipe.test)
    data = read_data(loaded, train=choosing)
    _check_holdout(folder, data.holdout, trained_on)
    for test in data.tests:
        test.coverage()
    return model, loaded, data


def _check_holdout(folder: Path, holdout: Test | None, trained_on: Sequence[int] | None) -> None:
    """Raise RunError if identities that are to be chosen on are among those that a run was trained on."""
    held = {sample.identity for sample in holdout.splits.gallery} if holdout else set()
    seen = held if trained_on is None else held & set(trained_on)
    if seen:
        raise RunError(
            f"post-processors choose on training identities that are held out, but the run in {folder} was trained on "
            f"{len(seen)} of these {len(held)}: run.seed, evaluation.holdout or the images are not what they were. Put "
            "them back, or write what is to be chosen"
        )


def _keeping(evaluator: Evaluator, loaded: Loaded, folder: Path) -> Evaluator:
    """Return an evaluator that keeps the features of a run's model in its folder, if the recipe says so."""
    recipe = loaded.recipe
    if not recipe.evaluation.keep_features:
        return evaluator
    with (folder / WEIGHTS).open("rb") as stream:
        weights = hashlib.file_digest(stream, "sha256").hexdigest()
    options = (recipe.input.height, recipe.input.width, recipe.evaluation.flip, str(evaluator.precision))
    made_by = repr((weights, recipe.backbone, recipe.aggregator, recipe.head, options, versions(loaded)))
    return evolve(evaluator, kept=KeptFeatures(folder / "features", made_by))


@frozen(eq=False)
class Comparison:
    """How several runs did in one test, or one run in several: the result of each, and how each but the first differs
    from the first.
    """

    results: Mapping[str, Result]
    differences: Mapping[str, Mapping[str, Difference]]

    @classmethod
    def of(cls, results: Mapping[str, Result]) -> Comparison:
        """Compare results with the first one."""
        (_, first), *others = results.items()
        return cls(
            results,
            {name: differences(first, other, first.resampled, other.resampled, first.drawn) for name, other in others},
        )


def compare(folders: Sequence[str | Path]) -> dict[str, Comparison]:
    """Compare finished runs in each test that all of them have: `{label: comparison}`.

    Of a single run, tests with the same identities and cameras are compared: `{label of the first: comparison}`.
    Raises RunError for a run without results, for runs without a common test, and for a test whose queries differ.
    """
    names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise RunError("expected run folders that are all different")
    results = {}
    for name in names:
        if not (Path(name) / RESULTS).is_file():
            raise RunError(f"{name} is not a finished run: it has no {RESULTS}")
        if not (Path(name) / RESULTS_FILE).is_file():
            raise RunError(f"{name} holds no results to compare; make them: reidcore evaluate {name}")
        results[name] = load_results(Path(name))
    if len(names) == 1:
        return _compare_tests(names[0], results[names[0]])
    labels = [label for label in results[names[0]] if all(label in found for found in results.values())]
    if not labels:
        tests = "; ".join(f"{name}: {', '.join(found) or 'none'}" for name, found in results.items())
        raise RunError(f"the runs have no test in common ({tests})")
    for label in labels:
        for name in names[1:]:
            if results[name][label].question != results[names[0]][label].question:
                raise RunError(
                    f"test '{label}': {names[0]} and {name} were evaluated by another protocol, or on other queries or "
                    "another gallery, so nothing can be said query by query"
                )
    return {label: Comparison.of({name: results[name][label] for name in names}) for label in labels}


def _compare_tests(name: str, results: Mapping[str, Result]) -> dict[str, Comparison]:
    groups: dict[str, dict[str, Result]] = {}
    for label, result in results.items():
        groups.setdefault(result.question, {})[label] = result
    compared = {next(iter(group)): Comparison.of(group) for group in groups.values() if len(group) > 1}
    if not compared:
        raise RunError(
            f"{name} has no two tests of the same queries and gallery to compare; name another run to compare it with"
        )
    return compared


def report_run(
    folder: str | Path,
    tests: Sequence[str] = (),
    queries: int = QUERIES,
    overrides: Sequence[str] = (),
    plugin_files: Sequence[str | Path] = (),
    progress: Progress = lambda what, done, total: None,
) -> Path:
    """Write the report of a finished run, see `reidcore.report.write_report`, and return its page.

    tests: labels of those to show, by default all. Where their images are gone it has what the run kept, and says so.
    """
    folder = Path(folder)
    if wrong := [override for override in overrides if not _PLACE.match(override)]:
        raise RunError(
            f"found {wrong[0]}; a report shows a run as it was evaluated, so that only places of images, run.device "
            "and input.workers can be set"
        )
    notes = []
    try:
        model, loaded, data = _open(folder, overrides, plugin_files)
        found, holdout = data.tests, data.holdout
    except DataError as error:
        model, loaded, _ = load_trained(folder, overrides=overrides, plugin_files=plugin_files)
        found, holdout = (), None
        notes = [f"There are no rank lists, since not all images are there: {error}"]
    labels = [loaded.label(position) for position in range(len(loaded.recipe.test))]
    if unknown := [label for label in tests if label not in labels]:
        raise RunError(f"{folder} has no test '{unknown[0]}'; {offer(unknown[0], labels)}")
    evaluator = evolve(_keeping(make_evaluator(loaded.recipe, folder), loaded, folder), progress=progress)
    opened = Opened(evaluator, model.to(evaluator.device), found, holdout)
    return write_report(folder, opened, labels=tests or labels, queries=queries, notes=notes)


def report_comparison(
    folders: Sequence[str | Path],
    file: str | Path,
    plugin_files: Sequence[str | Path] = (),
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Comparison]:
    """Compare runs (see `compare`), and write a page of it, see `reidcore.report.write_comparison`."""
    comparisons = compare(folders)
    opened: dict[str, Opened] = {}
    notes: list[str] = []
    for folder in folders:
        try:
            model, loaded, data = _open(Path(folder), (), plugin_files)
        except DataError as error:
            notes = [f"There are no rank lists, since not all images are there: {error}"]
            opened = {}
            break
        evaluator = _keeping(make_evaluator(loaded.recipe, Path(folder)), loaded, Path(folder))
        evaluator = evolve(evaluator, progress=progress)
        opened[str(folder)] = Opened(evaluator, model.to(evaluator.device), data.tests, data.holdout)
    write_comparison(Path(file), comparisons, opened, notes)
    return comparisons


def load_model(folder: str | Path, device: str = "cpu", plugin_files: Sequence[str | Path] = ()) -> Embedder:
    """Load the model of a run folder, or a file that was exported. Raises RunError when there is none."""
    folder = Path(folder)
    if folder.is_file():
        return _load_artifact(folder, device, discover(map(Path, plugin_files)))
    model, loaded, _ = load_trained(folder, overrides=(f"run.device={device}",), plugin_files=plugin_files)
    evaluator = make_evaluator(loaded.recipe)
    return Embedder(model.to(evaluator.device).eval(), evaluator, model.dim, _fingerprint(folder))


def _load_artifact(file: Path, device: str, catalog: Catalog) -> Embedder:
    artifact = open_artifact(file, catalog, device)
    about = artifact.about
    if about is None:
        raise RunError(f"{file} does not say how it takes images: it was not written by `reidcore export`")
    evaluator = Evaluator(
        input=InputOptions(height=about.height, width=about.width),
        options=EvaluationOptions(flip=about.flip, distance=about.distance),  # type: ignore[arg-type]
        metrics=(),
        device=find_device(device),
        precision=torch.float32,
    )
    # in float32 it has been proven to have the embeddings of the run, and its index can be searched by either
    same = about.precision == "float32" and not about.unit_length and about.fingerprint
    fingerprint = same or hashlib.sha256(b"".join(path.read_bytes() for path in artifact.files)).hexdigest()
    return Embedder(ArtifactModel(artifact).eval(), evaluator, about.dim, fingerprint)


class Embedder:
    """A trained model that turns images into embeddings.

    dim: the embedding's dimension, D; fingerprint: a text that is the same for equal embeddings only, of the weights
    and what else makes them.
    """

    def __init__(self, model: nn.Module, evaluator: Evaluator, dim: int, fingerprint: str) -> None:
        self.model, self.evaluator, self.dim, self.fingerprint = model, evaluator, dim, fingerprint

    def embed(self, images: Sequence[Any], done: Callable[[int], None] = lambda count: None) -> NDArray[np.float32]:
        """Return (N, D) float32 embeddings of paths, PIL images or (H, W, 3) uint8 arrays. Raises DataError.

        `done` is told how many are.
        """
        if isinstance(images, (str, Path)):  # one path, not its letters
            images = [images]
        samples = [Sample(Path(image)) if isinstance(image, (str, Path)) else Sample(_Given(image)) for image in images]
        embeddings = np.empty((len(samples), self.dim), np.float32)
        count = 0
        for batch in self.evaluator.stream(self.model, samples):
            embeddings[count : count + len(batch)] = batch
            count += len(batch)
            done(count)
        return embeddings

    def write(
        self, samples: Sequence[Sample], file: str | Path, done: Callable[[int], None] = lambda count: None
    ) -> None:
        """Write the embeddings of samples, however many, to a file for `reidcore index`; see retrieval.store.

        `done` is told how many are. Raises ReidError for a file that exists, DataError for a bad image.
        """
        writer = EmbeddingWriter(
            file,
            [sample.identity for sample in samples],
            [sample.camera for sample in samples],
            [sample.name for sample in samples],
            self.dim,
            fingerprint=self.fingerprint,
            distance=self.evaluator.options.distance,
        )
        with writer:
            for embeddings in self.evaluator.stream(self.model, samples):
                writer.add(embeddings)
                done(writer.written)


@frozen(eq=False)
class _Given:
    """A picture that is in memory already."""

    image: Any
    name: str = "given image"

    def open(self) -> Any:
        """Return it."""
        return self.image


def versions(loaded: Loaded) -> dict[str, str]:
    """Return the versions of all that a run's result depends on."""
    found = {"python": platform.python_version(), "reidcore": __version__}
    found |= {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")}
    found |= {p.origin: p.version for p in loaded.catalog.plugins if p.status == "ok" and p.version}
    for file in loaded.plugin_files:
        found[str(file.resolve())] = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    return found


def missing(loaded: Loaded) -> list[Loaded]:
    """Return the recipes that are to be run before this one, in order: none if it has been run to its end."""

    def done(item: Loaded) -> bool:
        return (item.folder / RESULTS).is_file()

    return [] if done(loaded) else needed(loaded, done)


def foresee(recipes: Sequence[Loaded], resume: bool) -> None:
    """Find what cannot work in recipes that are to be run one after the other, before the first one trains for hours.

    Raises ReidError, which begins with the run's name.
    """
    identities: dict[Path, Sequence[int]] = {}
    for item in recipes:
        try:
            if item.folder.resolve() in identities:
                raise RunError(f"two recipes have the run folder {item.folder}; give one of them another run.name")
            run_folder(item, resume)
            data = read_data(item)
            for test in data.tests:
                test.coverage()
            require_images(data)
            identities[item.folder.resolve()] = data.identities
            check_build(item, identities)
        except (ContractError, DataError, RunError) as error:
            raise type(error)(f"{item.recipe.run.name}: {error}") from None


def run_folder(loaded: Loaded, resume: bool) -> Path:
    """Return the folder of a recipe's run. Raises RunError when it exists and is not to be resumed."""
    folder = loaded.folder
    if (folder / RECIPE).exists() and not resume:
        raise RunError(
            f"the run folder {folder} exists; go on with it (--resume), choose another place (--output DIR or "
            f"--set run.name=NAME), or remove it"
        )
    return folder


def _fingerprint(folder: Path) -> str:
    """Return a sha256 of the weights of a run, and of the parts of its saved recipe that embeddings depend on.

    The saved recipe, not the filled one, so that a later version's new options do not change it.
    """
    recipe = tomli.loads((folder / RECIPE).read_text("utf-8"))
    size = [recipe.get("input", {}).get(side) for side in ("height", "width")]
    parts = [recipe.get(part) for part in ("backbone", "aggregator", "head")]
    with (folder / WEIGHTS).open("rb") as stream:
        weights = hashlib.file_digest(stream, "sha256").hexdigest()
    text = json.dumps([weights, size, parts, recipe.get("evaluation", {}).get("flip")], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _changes(folder: Path, loaded: Loaded) -> str:
    """Return what a recipe changes against the one saved in its run folder, as a short text."""
    if not (folder / RECIPE).is_file():
        return ""
    before, after = (_flat(tomli.loads(text)) for text in ((folder / RECIPE).read_text("utf-8"), fill(loaded)))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key) and "run.needs" not in key]
    shown = [f"{key} was {before.get(key, 'absent')!r} and is {after.get(key, 'absent')!r}" for key in keys[:5]]
    return ", ".join([*shown, *([f"and {len(keys) - 5} more"] if len(keys) > 5 else [])])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return `{dotted key: scalar}` of a recipe's tables; the versions play no role."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    items = ((key, item) for key, item in value.items() if prefix or key != "versions")
    return {path: leaf for key, item in items for path, leaf in _flat(item, f"{prefix}{key}.").items()}


def _evaluate(
    run: Run, evaluator: Evaluator, model: nn.Module, tests: Sequence[Test], epoch: int, holdout: Test | None = None
) -> dict[str, Result]:
    results = evaluator(model, tests, holdout)
    for label, result in results.items():
        run.log(
            kind="evaluation",
            epoch=epoch,
            step=run.step,
            test=label,
            metrics=dict(result),
            queries=result.queries,
            covered=result.covered,
            chosen=dict(result.chosen),
        )
    return results


def export_run(
    folder: str | Path,
    name: str,
    options: Sequence[str] = (),
    images: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    plugin_files: Sequence[str | Path] = (),
) -> Exported:
    """Export a finished run's model to its folder `export/NAME` by the exporter `name`, with options as `KEY=VALUE`.

    It is proven, and calibrated, on `images`, by default on training images of the run's recipe with overrides.
    Raises ReidError, leaving no file, where the exporter cannot, or its file computes something else.
    """
    folder = Path(folder)
    discover(map(Path, plugin_files)).find("exporter", name)
    chosen = [f"export=[{{name={json.dumps(name)}}}]", *(f"export.0.{option}" for option in options)]
    try:
        model, loaded, _ = load_trained(folder, overrides=[*overrides, *chosen], plugin_files=plugin_files)
    except RecipeError as error:
        raise RecipeError(
            text.replace("--set export.0.", "--option ").replace(" export.0.", " ") for text in error.problems
        ) from None
    exporter = loaded.recipe.export[0].build()
    if images:
        samples: Sequence[Sample] = [Sample(image) for image in images]
    else:
        try:
            data = read_data(loaded)
        except DataError as error:
            raise DataError(f"{error}; or name images to prove it on: --images DIR") from None
        samples = data.train.samples or data.targets
    target = folder / "export" / component_of(loaded.catalog, loaded.recipe.export[0]).name
    model = model.to(find_device(loaded.recipe.run.device))
    about = _about(model, loaded, folder)
    if not all(_PLACE.match(override) for override in overrides):  # it is not the run's model any more
        about = evolve(about, fingerprint="", recipe=fill(loaded))
    return export(model, exporter, _examples(loaded, samples), target, about)


def _examples(loaded: Loaded, samples: Sequence[Sample]) -> NDArray[np.uint8]:
    """Return up to 256 images, evenly chosen, as (N, H, W, 3)."""
    resize = Resize(loaded.recipe.input.height, loaded.recipe.input.width)
    chosen = [samples[index] for index in np.linspace(0, len(samples) - 1, min(256, len(samples)), dtype=int)]
    return np.stack([resize(read_image(sample)).permute(1, 2, 0).numpy() for sample in chosen])


def _about(model: Model, loaded: Loaded, folder: Path) -> About:
    """Return what exported files say of a run's model."""
    options = loaded.recipe.evaluation
    return evolve(
        About.of(model, loaded.recipe.input.height, loaded.recipe.input.width),
        flip=options.flip,
        distance=options.distance,
        fingerprint=_fingerprint(folder),
        recipe=(folder / RECIPE).read_text("utf-8"),
    )


def _read_metrics(file: Path) -> dict[str, dict[str, float]]:
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}  # type: ignore[no-any-return]


def _write_metrics(file: Path, results: Mapping[str, Result]) -> None:
    write_text(file, json.dumps({label: dict(result) for label, result in results.items()}, indent=2) + "\n")


@contextmanager
def _reported(run: Run, loggers: Sequence[Logger]) -> Iterator[None]:
    """Tell the loggers how the run ends, and close them."""
    end = {"status": "finished"}
    try:
        yield
    except BaseException as error:
        stopped = run.interrupted or isinstance(error, KeyboardInterrupt)
        end = {"status": "interrupted" if stopped else "failed", "text": str(error) or type(error).__name__}
        raise
    finally:
        for logger in loggers:
            with suppress(ReidError):  # the run has ended, whether that can be written or not
                logger.log({"kind": "end", "epoch": run.epoch, "step": run.step, **end})
            logger.close()


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Let the first Ctrl-C end the run after the step in progress, with a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        run.interrupted = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


__all__ = [
    "DataError",
    "Embedder",
    "Finished",
    "ReidError",
    "evaluate_run",
    "export_run",
    "load_model",
    "load_recipe",
    "report_comparison",
    "report_run",
    "run",
]
