"""The page of a run: what it shows is what the run kept, and what it marks is so."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

from reidcore.api import load_recipe, report_run, run
from reidcore.assemble import Evaluator, Test
from reidcore.networks import build_model
from reidcore.options import EvaluationOptions, InputOptions
from reidcore.report.attention import overlay, similarity_maps, similarity_shares
from reidcore.report.curves import POINTS, read_log, training_plots
from reidcore.report.landscape import chosen_images, places
from reidcore.report.pictures import Pictures
from reidcore.report.plots import Line, Plot, cumulative, histogram, overlaid
from reidcore.report.run import curves_of, judged
from reidcore.retrieval.evaluation import evaluate
from reidcore.retrieval.roc import Curve
from reidcore.testing import run_cli, seem_trained, tiny_recipe, toy_data
from reidcore.types import Features, Sample, Splits

TESTS = ("folder", "without-cameras", "re-ranked")


def shown(page: Path) -> dict:
    """Return the data of a page."""
    text = page.read_text("utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    gallery = toy_data(folder / "toy") / "gallery"
    for number in (0, 1):  # some are called what they are not, so that there are mistakes to show
        one, other = (gallery / f"000{identity}_c1_gallery{number}.png" for identity in (6, 7))
        one.rename(gallery / "kept.png"), other.rename(one), (gallery / "kept.png").rename(other)
    root = str(folder / "toy")
    tests = [{"name": "folder", "root": root}]
    tests.append({"label": "without cameras", "name": "folder", "root": root, "cameras": "ignore"})
    chain = [{"name": "k-reciprocal", "k1": 3, "k2": 2}]
    tests.append({"label": "re-ranked", "name": "folder", "root": root, "postprocess": chain})
    evaluation = {"every": 1, "before": True}
    recipe = tiny_recipe(folder, test=tests, evaluation=evaluation)
    return run(load_recipe(recipe, overrides=["run.report=true", "training.epochs=1"]))


def test_a_run_ends_with_a_report_whose_figures_are_those_of_its_metrics(finished):
    data = shown(finished.folder / "report.html")
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    before = json.loads((finished.folder / "metrics-before.json").read_text())
    assert [test["label"] for test in data["tests"]] == list(metrics) == ["folder", "without cameras", "re-ranked"]
    for test in data["tests"]:
        assert {figure["name"]: figure["value"] for figure in test["figures"]} == metrics[test["label"]]
        assert test["before"] == before[test["label"]]
        for figure in test["figures"]:
            assert figure["low"] <= figure["value"] <= figure["high"]
        precisions = [found["AP"] for found in test["lists"]]
        assert len(precisions) == test["covered"] == 6
        assert np.mean(precisions) == pytest.approx(metrics[test["label"]]["mAP"], abs=1e-9)
        first = np.mean([found["found"][0]["right"] for found in test["lists"]])
        assert first == pytest.approx(metrics[test["label"]]["rank1"], abs=1e-9)
        assert min(precisions) < 1 == max(precisions) and precisions == sorted(precisions)
        wrong = [found for found in test["lists"] if not found["found"][0]["right"]]
        assert sum(confusion["count"] for confusion in test["confusions"]) == len(wrong) > 0
    assert data["recipe"] == (finished.folder / "recipe.toml").read_text()
    facts = dict(data["facts"])
    assert facts["network"].startswith("resnet18, ") and facts["images"] == "32x16 pixels"
    assert "core" in facts["machine"] and facts["device"] == "CPU" and "reidcore" in facts["versions"]


def test_what_is_marked_as_right_has_the_querys_identity_and_another_camera(finished):
    data = shown(finished.folder / "report.html")
    for test in data["tests"]:
        for found in test["lists"]:
            name = Path(data["names"][found["picture"]]).name
            assert re.match(r"\d+_c\d_query", name) and int(name[:4]) == found["identity"]
            for item in (*found["found"], *found["missed"]):
                path = Path(data["names"][item["picture"]])
                identity, camera = re.match(r"(\d+)_c(\d)_gallery", path.name).groups()
                assert (int(identity), int(camera)) == (item["identity"], item["camera"])
                same = item["identity"] == found["identity"]
                assert item["right"] == same
                if test["label"] != "without cameras" and same:
                    assert item["camera"] != found["camera"]
            distances = [item["distance"] for item in (*found["found"], *found["missed"])]
            assert distances == sorted(distances)
            assert [item["place"] for item in found["found"]] == list(range(1, 1 + len(found["found"])))
    assert all(image.startswith("data:image/webp;base64,") for image in data["images"])
    assert len(data["images"]) == len(data["names"]) == 18


def test_the_map_and_the_looks_show_images_of_the_test(finished):
    data = shown(finished.folder / "report.html")
    test = data["tests"][0]
    assert len(test["map"]["x"]) == test["map"]["of"] == 12 and max(map(abs, test["map"]["x"])) <= 1
    identities = [int(Path(data["names"][picture]).name[:4]) for picture in test["map"]["pictures"]]
    assert identities == test["map"]["identities"]
    assert len(test["looks"]) == 6
    for look in test["looks"]:
        query, found = look["pair"]
        assert look["right"] == (query["identity"] == found["identity"])
        assert {side["heat"][:15] for side in look["pair"]} == {"data:image/webp"}


def test_figures_for_papers_are_written(finished):
    names = {file.name for file in (finished.folder / "report" / "figures").iterdir()}
    assert names == {
        *(f"training-{name}.png" for name in ("loss", "learning-rate", "speed", "progress")),
        *(f"{test}-{name}.png" for test in TESTS for name in ("cmc", "roc", "distances")),
    }
    for name in names:
        with Image.open(finished.folder / "report" / "figures" / name) as picture:
            assert picture.size == (1350, 960) and picture.convert("L").getextrema() == (pytest.approx(0, abs=90), 255)


def test_the_report_can_be_made_again_with_fewer_queries_and_tests(finished):
    done = run_cli("report", finished.folder, "--test", "re-ranked", "--queries", "2", "-q")
    assert (done.status, done.err) == (0, "")
    assert re.fullmatch(re.escape(f"{finished.folder / 'report.html'}") + r" \(\d+\.\d MB\)\n", done.out)
    (test,) = shown(finished.folder / "report.html")["tests"]
    assert test["label"] == "re-ranked" and len(test["lists"]) == 2
    done = run_cli("report", finished.folder, "--test", "reranked")
    assert (done.status, done.err) == (2, f"{finished.folder} has no test 'reranked'; did you mean 're-ranked'?\n")
    done = run_cli("report", finished.folder, "--queries", "0")
    assert done.status == 2 and "found '0'; expected a number of at least 1" in done.err


def test_without_its_images_a_report_has_what_the_run_kept(finished, tmp_path):
    missing = [f"test.{position}.root={json.dumps(str(tmp_path))}" for position in range(3)]
    page = report_run(finished.folder, overrides=missing)
    data = shown(page)
    assert data["notes"][0].startswith("There are no rank lists, since not all images are there: ")
    assert [test["label"] for test in data["tests"]] == ["folder", "without cameras", "re-ranked"]
    assert data["training"] and data["images"] == [] and "lists" not in data["tests"][0]
    assert [plot["name"] for plot in data["tests"][0]["plots"]] == ["cmc"]  # no metric kept a ROC


def test_a_run_without_tests_has_a_report(tmp_path):
    recipe = tiny_recipe(tmp_path, test=[])
    data = shown(run(load_recipe(recipe, overrides=["run.report=true", "training.epochs=1"])).folder / "report.html")
    assert data["tests"] == [] and [plot["name"] for plot in data["training"]] == ["loss", "learning-rate", "speed"]


def test_names_of_files_are_data(tmp_path):
    root = toy_data(tmp_path / "toy")
    odd = "0006_c1_<script>alert(1)<\u2028@data@.png"
    (root / "query" / "0006_c1_query0.png").rename(root / "query" / odd)
    recipe = load_recipe(tiny_recipe(tmp_path), overrides=["run.report=true", "training.epochs=1"])
    page = run(recipe).folder / "report.html"
    text = page.read_text("utf-8")
    assert "<script>alert" not in text and text.count("</script>") == 3
    assert any(name.endswith(odd) for name in shown(page)["names"])


def test_verification_shows_the_hardest_pairs(tmp_path):
    root = toy_data(tmp_path / "toy")
    for identity in (6, 7, 8):
        for number, file in enumerate(sorted((root / "gallery").glob(f"{identity:04d}_*")), start=1):
            place = tmp_path / "faces" / f"p{identity}" / f"p{identity}_{number:04d}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).save(place)
    same = [f"p{identity} {a} {b}" for identity in (6, 7, 8) for a in (1, 2, 3) for b in range(a + 1, 5)]
    other = [f"p{a} {n} p{b} {n}" for a, b in ((6, 7), (6, 8), (7, 8)) for n in (1, 2, 3, 4)]
    (tmp_path / "pairs.txt").write_text("\n".join([*same, *other]))
    test = {"name": "lfw", "root": str(tmp_path / "faces"), "pairs": str(tmp_path / "pairs.txt")}
    recipe = load_recipe(tiny_recipe(tmp_path, test=[test]), overrides=["run.report=true", "training.epochs=1"])
    (found,) = shown(run(recipe).folder / "report.html")["tests"]
    genuine, impostor = found["pairs"]["genuine"], found["pairs"]["impostor"]
    assert len(genuine) == len(same) and len(impostor) == len(other) and "lists" not in found
    assert all(a == b for a, b in (pair["identities"] for pair in genuine))
    assert all(a != b for a, b in (pair["identities"] for pair in impostor))
    assert [pair["distance"] for pair in genuine] == sorted((pair["distance"] for pair in genuine), reverse=True)
    assert [pair["distance"] for pair in impostor] == sorted(pair["distance"] for pair in impostor)


def test_pictures_stay_within_their_budget(tmp_path):
    random = np.random.default_rng(0)
    for number in range(40):
        noise = random.integers(0, 256, (144, 72, 3)).astype(np.uint8)  # which compresses worst
        Image.fromarray(noise).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "40.png").write_bytes(b"no picture")
    samples = [Sample(file) for file in sorted(tmp_path.iterdir())]

    def encoded(budget: int) -> list[str]:
        pictures = Pictures((144, 72), budget)
        assert [pictures.number(sample) for sample in samples] == list(range(41))
        assert pictures.number(Sample(samples[7].image)) == 7
        return pictures.encode()

    whole, small = encoded(10**7), encoded(200_000)
    assert whole[40] == small[40] == ""
    assert sum(map(len, whole)) > 200_000 >= sum(map(len, small)) > 100_000


def test_a_cumulative_curve_counts_queries_with_a_match():
    places = np.array([1, 3, 3, np.nan, 60])
    found = cumulative(places, 5)
    np.testing.assert_allclose(found, [0.25, 0.25, 0.75, 0.75, 0.75])


@pytest.mark.parametrize("protocol", ["cross-camera", "all-cameras", "multi-query", "single-gallery-shot", "vehicleid"])
def test_the_curve_of_matches_goes_through_the_figures(protocol):
    random = np.random.default_rng(0)
    identities, cameras = np.repeat(np.arange(12), 6), np.tile(np.arange(3), 24)
    embeddings = (np.eye(12)[identities] + random.normal(0, 0.9, (72, 12))).astype(np.float32)
    names = [f"{number}.png" for number in range(72)]

    def side(start: int) -> Features:
        some = slice(start, 72, 2)
        return Features(embeddings[some], identities[some], cameras[some], names[some])

    expected = evaluate(side(0), side(1), protocol=protocol, metrics=[("cmc", {"ranks": [1, 2, 5, 50]})])
    evaluator = Evaluator(InputOptions(), EvaluationOptions(), (), torch.device("cpu"), torch.float32)
    found = judged(Test("t", Splits(), protocol, (), 0, True), side(0), side(1), evaluator)
    cmc = curves_of({"t": found})[0]
    assert cmc.name == "cmc" and len(cmc.items[0].y) == 50 and expected["rank1"] < 1
    for rank in (1, 2, 5, 50):
        assert cmc.items[0].y[rank - 1] == pytest.approx(expected[f"rank{rank}"], abs=1e-12)


def test_a_report_shows_a_run_as_it_was_evaluated(finished):
    done = run_cli("report", finished.folder, "--set", "evaluation.distance=euclidean")
    assert done.status == 2 and "only places of images, run.device and input.workers can be set" in done.err
    done = run_cli("report", finished.folder, "--set", "test.0.root=/nowhere", "--test", "re-ranked", "-q")
    (test,) = shown(finished.folder / "report.html")["tests"]
    assert done.status == 0 and test["label"] == "re-ranked"


def test_a_gallery_of_one_identity_has_a_report_without_a_curve_of_pairs(tmp_path):
    root = toy_data(tmp_path / "toy")
    for file in [*(root / "gallery").iterdir(), *(root / "query").iterdir()]:
        if not file.name.startswith("0006"):
            file.unlink()
    recipe = load_recipe(tiny_recipe(tmp_path), overrides=["run.report=true", "training.epochs=1"])
    (test,) = shown(run(recipe).folder / "report.html")["tests"]
    assert [plot["name"] for plot in test["plots"]] == ["cmc"] and len(test["lists"]) == 2


def test_plotly_takes_the_figures_and_matplotlib_draws_them(tmp_path):
    curve = Curve.of(np.array([0.1, 0.2, 0.4], np.float32), np.array([0.3, 0.5, 0.6, 0.9], np.float32)).plots()
    plots = overlaid({"a": {"roc": curve}, "b": {"roc": curve}}, {"a": np.linspace(0.5, 1, 9), "b": np.ones(9)})
    assert [plot.name for plot in plots] == ["cmc", "roc", "distances"]
    for plot in plots:
        drawn = plot.plotly()
        figure = go.Figure({"data": drawn["data"], "layout": drawn["layout"]})  # which checks all names and values
        assert len(figure.data) == len(plot.items)
        plot.draw(tmp_path / f"{plot.name}.png")
        assert Image.open(tmp_path / f"{plot.name}.png").size == (1350, 960)
    assert json.loads(json.dumps(plots[1].plotly(), allow_nan=False))["data"][0]["x"][0] == 0.0


def test_a_histogram_is_drawn_in_steps():
    bars = histogram("b", np.array([0.0, 1, 3]), np.array([0.25, 0.75]), "solid", 0)
    trace = Plot("h", "h", "x", "y", [bars]).plotly()["data"][0]
    assert trace["x"] == [0, 0, 1, 1, 3, 3] and trace["y"] == [0, 0.25, 0.25, 0.375, 0.375, 0]
    line = Plot("l", "l", "x", "y", [Line("c", np.array([1.0, 2]), np.array([np.nan, 1 / 3]))]).plotly()["data"][0]
    assert line["y"] == [None, 0.333333]


def test_training_curves_are_those_of_the_log(tmp_path):
    lines = [
        {"kind": "step", "step": n, "loss": n + 0.5, "losses": {"a": n, "b": 0.5}, "lr": 0.1, "images_per_second": 9}
        for n in range(1, 2 * POINTS + 1)
    ]
    lines += [{"kind": "evaluation", "epoch": e, "test": "t", "metrics": {"mAP": e / 10}} for e in (1, 2, 2)]
    text = "\n".join(map(json.dumps, lines)) + '\n{"kind": "st'
    (tmp_path / "log.jsonl").write_text(text)
    events = read_log(tmp_path)
    assert events == lines
    loss, rate, speed, progress = training_plots(events)
    assert [line.name for line in loss.items] == ["all", "a", "b"] and "averaged" in loss.caption
    assert len(loss.items[0].x) == POINTS
    np.testing.assert_allclose(loss.items[0].y[:2], [2.0, 4.0])  # means of steps 1 and 2, 3 and 4
    np.testing.assert_allclose(rate.items[0].y, 0.1)
    assert speed.items[0].y[0] == 9 and progress.items[0].y.tolist() == [0.1, 0.2]
    assert training_plots([]) == [] and read_log(tmp_path / "nowhere") == []


def test_neighbours_are_neighbours_on_the_map():
    random = np.random.default_rng(0)
    centres = np.eye(8)[:4]
    embeddings = np.repeat(centres, 20, 0) + random.normal(0, 0.02, (80, 8))
    flat = places(embeddings * random.uniform(1, 9, (80, 1)), "cosine")
    assert flat.shape == (80, 2) and np.abs(flat).max() == 1
    far = np.linalg.norm(flat[:, None] - flat[None], axis=2) + 9 * np.eye(80)
    assert (far.argmin(1) // 20 == np.arange(80) // 20).mean() == 1
    assert places(np.ones((9, 3)), "cosine").tolist() == [[0, 0]] * 9
    assert places(np.eye(3), "euclidean").shape == (3, 2) and places(np.ones((1, 3)), "cosine").tolist() == [[0, 0]]


def test_a_map_takes_whole_identities_as_far_as_there_is_room():
    identities = np.array([0, 0, 1, 1, 1, -1, 2, 2])
    assert chosen_images(identities, 8).tolist() == [0, 1, 2, 3, 4, 6, 7]
    for seed in range(5):
        some = chosen_images(identities, 5, seed)
        assert len(some) == 5 and -1 not in identities[some]
    assert chosen_images(np.full(3, -1)).tolist() == []


def model_of(**tables):
    recipe = {
        "run": {"name": "x"},
        "train": [{"name": "synthetic"}],
        "input": {"height": 64, "width": 32},
        "backbone": {"name": "resnet18", "base": 16, "weights": "none"},
        "aggregator": {"name": "avg"},
        "head": {"name": "linear"},
        **tables,
    }
    return seem_trained(build_model(load_recipe(recipe).recipe, 3))


def images(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, 3, 64, 32)).astype(np.uint8))


def test_shares_of_an_averaging_model_add_up_to_the_cosine():
    model = model_of()
    first, second = images(0), images(1)
    shares = similarity_shares(model, first, second)
    with torch.no_grad():
        cosines = torch.cosine_similarity(model(first).embedding, model(second).embedding)
    torch.testing.assert_close(shares.sum((1, 2)), torch.cat([cosines, cosines]), rtol=1e-4, atol=1e-5)
    maps = similarity_maps(model, first, second)
    assert [side.shape for side in maps] == [(3, 4, 2)] * 2 and {side.max() for side in maps} == {1.0}
    assert model.training is False and all(parameter.grad is None for parameter in model.parameters())


def test_of_a_model_with_one_position_the_pixels_are_looked_at():
    model = model_of(backbone={"name": "vit-tiny", "weights": "none"}, aggregator={"name": "identity"})
    maps = similarity_maps(model, images(0), images(1))
    assert [side.shape for side in maps] == [(3, 4, 2)] * 2 and all(side.max() == 1 for side in maps)


def test_heat_is_laid_over_the_image():
    grey = np.full((40, 20, 3), 100, np.uint8)
    heat = np.zeros((4, 2), np.float32)
    heat[0] = 1
    text = overlay(grey, heat)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGB")).astype(int)
    assert picture.shape == (40, 20, 3)
    assert picture[2, :, 0].min() > 180 > 110 > picture[30:, :, 0].max()  # bright above, the image's grey below
    assert np.ptp(picture[35], axis=1).max() < 12
