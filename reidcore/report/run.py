"""The report of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli
import torch
from numpy.typing import NDArray
from PIL import Image

from reidcore.assemble import Evaluator, Test
from reidcore.builtin.modules.metrics import CumulativeMatching, MeanAveragePrecision
from reidcore.builtin.modules.roc import ReceiverOperatingCharacteristic
from reidcore.builtin.modules.transforms import Resize
from reidcore.data import read_image
from reidcore.errors import DataError
from reidcore.model import Model
from reidcore.report.attention import overlay, similarity_maps
from reidcore.report.curves import read_log, training_plots
from reidcore.report.landscape import chosen_images, places
from reidcore.report.page import write_page
from reidcore.report.pictures import Pictures, data_url
from reidcore.report.plots import Plot, cumulative, draw, overlaid
from reidcore.report.ranked import Opened, Ranked, figures, hard_pairs
from reidcore.reporting import describe_chosen, duration
from reidcore.results import FILE as RESULTS
from reidcore.results import load_results
from reidcore.retrieval.evaluation import Result, evaluate
from reidcore.retrieval.protocol import MULTI_QUERY, REPEATS, SINGLE_SHOT, VEHICLEID, VERIFICATION
from reidcore.types import Features

REPORT = "report.html"

QUERIES = 200
"""Queries whose rank lists are shown, unless there are fewer."""

RANKS = 50
"""Ranks of the curve of cumulative matches."""

_PAIRS = 40
_LOOKS = 12  # pairs of images of which it is shown where the network looks
_AT_ONCE = 4
_TILE = 144  # pixels of a picture's longer side


def write_report(
    folder: Path,
    run: Opened,
    *,
    labels: Sequence[str] | None = None,
    queries: int = QUERIES,
    notes: Sequence[str] = (),
) -> Path:
    """Write `report.html` and `report/figures/` into a run folder, and return the page.

    Figures are those that the run kept, if its queries and gallery are the same ones. labels: of the tests to show, by
    default all. queries: how many rank lists each test shows: three quarters are those of the least average precision,
    the others are spread over the rest. notes: shown on top. Without tests the page has what the run kept. Raises
    ReidError when a file cannot be written.
    """
    kept = load_results(folder) if (folder / RESULTS).is_file() else {}
    if labels is not None:
        kept = {label: result for label, result in kept.items() if label in labels}
    evaluator, model = run.evaluator, run.model
    tests = [test for test in run.tests if labels is None or test.label in labels]
    notes = list(notes)
    events = read_log(folder)
    pictures = make_pictures(evaluator)
    training = training_plots(events)
    drawn: dict[str, Sequence[Plot]] = {"training": training}
    sections = []
    for test, query, gallery, chosen in run.features(tests):
        curves = judged(test, query, gallery, evaluator)
        result = kept.get(test.label, curves)
        if result.question != curves.question:
            notes.append(f"{test.label}: the images are not those that the run was evaluated on; its figures are new.")
            result = curves
        drawn[test.label] = curves_of({test.label: curves})
        section = _section(test.label, result, drawn[test.label])
        section["chosen"] = describe_chosen(chosen).removeprefix("; ")
        if test.protocol == VERIFICATION:
            section["pairs"] = hard_pairs(test, query, gallery, evaluator, pictures, _PAIRS)
        else:
            section |= _ranked(test, query, gallery, evaluator, model, pictures, queries)
        section["map"] = _map(test, gallery, evaluator, pictures)
        sections.append(section)
        del query, gallery  # before others are extracted
    for label, result in kept.items() if not tests else ():
        drawn[label] = curves_of({label: result})
        sections.append(_section(label, result, drawn[label]))
    before = json.loads(file.read_text("utf-8")) if (file := folder / "metrics-before.json").is_file() else {}
    images = encode(pictures, evaluator)
    page = {
        "kind": "run",
        "title": folder.resolve().name,
        "shape": pictures.tile,
        "notes": [*notes, *unreadable(images)],
        "facts": _facts(folder, events, model, evaluator),
        "tests": [section | {"before": before.get(section["label"])} for section in sections],
        "training": [plot.plotly() for plot in training],
        "recipe": (folder / "recipe.toml").read_text("utf-8"),
        "images": images,
        "names": pictures.names,
    }
    evaluator.progress("figures", 0, 0)
    for label, plots in drawn.items():
        draw(plots, folder / "report" / "figures", label)
    return write_page(folder / REPORT, page)


def make_pictures(evaluator: Evaluator) -> Pictures:
    """Return what makes pictures of the shape of the model's images."""
    height, width = evaluator.input.height, evaluator.input.width
    scale = _TILE / max(height, width)
    return Pictures((round(scale * height), round(scale * width)))


def encode(pictures: Pictures, evaluator: Evaluator) -> list[str]:
    """Return the pictures, and tell how far it is."""
    return pictures.encode(evaluator.counting("pictures", len(pictures.samples)))


def unreadable(images: Sequence[str]) -> list[str]:
    """Return what is to be said of pictures that are not there."""
    missing = sum(not image for image in images)
    return [f"{missing} of {len(images)} pictures could not be read."] if missing else []


def judged(test: Test, query: Features, gallery: Features, evaluator: Evaluator) -> Result:
    """Return a test's figures, those by rank up to `RANKS`, and what the curves are made of."""

    def result(*metrics: Any) -> Result:
        metrics = (CumulativeMatching(range(1, RANKS + 1)), *metrics)
        return evaluate(query, gallery, metrics=metrics, **evaluator.terms(test, "ranked queries", query))

    try:
        return result(MeanAveragePrecision(), ReceiverOperatingCharacteristic())
    except DataError:  # a gallery of one identity has no curve of pairs
        return result(MeanAveragePrecision())


def curves_of(results: Mapping[str, Result]) -> list[Plot]:
    """Return the figures of tests, or of runs, by their names, as far as the results have what they are made of."""
    cmc = {}
    for name, result in results.items():
        if f"rank{RANKS}" in result:  # the mean over the draws of a protocol that draws at random
            cmc[name] = np.array([result[f"rank{rank}"] for rank in range(1, RANKS + 1)])
        elif "first_rank" in result.per_query and "rank1" not in result.spread:
            cmc[name] = cumulative(result.per_query["first_rank"], RANKS)
    return overlaid({name: result.curves for name, result in results.items()}, cmc)


def _section(label: str, result: Result, plots: Sequence[Plot]) -> dict[str, Any]:
    return {
        "label": label,
        "figures": figures(result),
        "queries": result.queries,
        "covered": result.covered,
        "plots": [plot.plotly() for plot in plots],
    }


def _ranked(
    test: Test,
    query: Features,
    gallery: Features,
    evaluator: Evaluator,
    model: Model,
    pictures: Pictures,
    queries: int,
) -> dict[str, Any]:
    """Return the rank lists of a test, its confusions, and where the network looks."""
    ranked = Ranked.of(test, query, gallery, evaluator)
    chosen = ranked.choose(queries)
    remarks = []
    if test.protocol in (VEHICLEID, SINGLE_SHOT):
        remarks.append(f"Lists, confusions and curves of pairs are of the first of {REPEATS} draws.")
    if test.protocol == MULTI_QUERY:
        remarks.append("A query is several images, of which the first is shown.")
    if test.query_transform:
        remarks.append("Queries are shown as they are before the test's query_transform.")
    whole = not test.query_transform and test.protocol != MULTI_QUERY  # what is shown is what the model was given
    return {
        "remarks": " ".join(remarks),
        "ranked": int(np.sum(~np.isnan(ranked.rankings.average_precision))),
        "lists": ranked.lists(chosen, pictures),
        "confusions": ranked.confusions(pictures),
        "looks": _looks(ranked, chosen, evaluator, model, test.known_cameras) if whole else [],
    }


def _looks(
    ranked: Ranked, chosen: NDArray[np.int64], evaluator: Evaluator, model: Model, cameras: bool
) -> list[dict[str, Any]]:
    """Return pairs of a query and what it found first, three quarters of them wrong, and what makes them similar."""
    wrong = [number for number in chosen.tolist() if ranked.rankings.first_wrong[number] >= 0]
    right = [number for number in chosen.tolist() if ranked.rankings.first_wrong[number] < 0]
    numbers = wrong[: max(_LOOKS - len(right), _LOOKS * 3 // 4)]
    numbers += right[: _LOOKS - len(numbers)]
    found = [int(item.images[0]) for item in ranked.rankings.lists(numbers, 1)]
    resize = Resize(evaluator.input.height, evaluator.input.width)
    shown = []
    for start in range(0, len(numbers), _AT_ONCE):
        evaluator.progress("where the network looks", start, len(numbers))
        some = slice(start, start + _AT_ONCE)
        samples = [ranked.query(number) for number in numbers[some]], [ranked.image(number) for number in found[some]]
        try:
            sides = [torch.stack([resize(read_image(sample)) for sample in side]) for side in samples]
        except DataError:  # which the page says of the picture
            continue
        told = torch.tensor([sample.camera for side in samples for sample in side], device=evaluator.device)
        heats = similarity_maps(
            model, sides[0].to(evaluator.device), sides[1].to(evaluator.device), told if cameras else None
        )
        for place, number in enumerate(numbers[some]):
            pair = []
            for of_side, images, heat in zip(samples, sides, heats, strict=True):
                image = images[place].permute(1, 2, 0).numpy()
                labels = {"identity": of_side[place].identity, "camera": of_side[place].camera}
                pair.append(labels | {"plain": data_url(Image.fromarray(image)), "heat": overlay(image, heat[place])})
            shown.append({"right": number in right, "pair": pair})
    return shown


def _map(test: Test, gallery: Features, evaluator: Evaluator, pictures: Pictures) -> dict[str, Any]:
    """Return images of the gallery and where on a plane they are."""
    names = [sample.name for sample in test.splits.gallery]
    once = np.unique(names, return_index=True)[1]  # of pairs an image may be in several
    chosen = np.sort(once)[chosen_images(np.asarray(gallery.identities)[np.sort(once)])]
    evaluator.progress(f"{test.label}: map of the embeddings", 0, 0)
    flat = places(gallery.embeddings[chosen], evaluator.options.distance)
    samples = [test.splits.gallery[number] for number in chosen.tolist()]
    return {
        "x": [round(float(value), 4) for value in flat[:, 0]],
        "y": [round(float(value), 4) for value in flat[:, 1]],
        "identities": [sample.identity for sample in samples],
        "cameras": [sample.camera for sample in samples],
        "pictures": [pictures.number(sample) for sample in samples],
        "of": len(once),
    }


def _facts(
    folder: Path, events: Sequence[Mapping[str, Any]], model: Model, evaluator: Evaluator
) -> list[tuple[str, str]]:
    """Return what else is known of a run, by name."""
    recipe = tomli.loads((folder / "recipe.toml").read_text("utf-8"))
    size = evaluator.input
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = [
        ("network", f"{recipe['backbone']['name'].removeprefix('core:')}, {parameters / 1e6:.1f} million parameters"),
        ("images", f"{size.height}x{size.width} pixels"),
        ("embedding", f"{model.dim} numbers, compared by {evaluator.options.distance} distance"),
    ]
    epochs = [event for event in events if event["kind"] == "epoch"]
    if epochs:
        seconds = sum(event["seconds"] for event in epochs)
        facts.append(("training", f"{duration(seconds)} for {epochs[-1]['epoch']} epochs, {epochs[-1]['step']} steps"))
    for start in [event for event in events if event["kind"] == "start"][:1]:
        facts += [(name, str(start[name])) for name in ("began", "machine", "device", "system") if name in start]
    versions = recipe.get("versions", {})
    if versions:
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts
