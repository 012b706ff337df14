"""Exported files compute what the model does, say what they are, and are proven before anybody sees them."""

import copy
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from attrs import evolve, frozen
from PIL import Image

from reidcore import load_model
from reidcore.api import evaluate_run
from reidcore.catalog import Catalog
from reidcore.checkpoint import WEIGHTS
from reidcore.component import Component
from reidcore.errors import ContractError, RunError
from reidcore.export import About, export, open_artifact
from reidcore.export.graph import _fold_normalization, quantize, to_float16, trace
from reidcore.export.onnx import OnnxArtifact, OnnxExporter, normalized
from reidcore.export.openvino import OpenVinoExporter
from reidcore.networks import build_model
from reidcore.recipe import load_recipe
from reidcore.testing import run_cli, seem_trained, tiny_recipe
from reidcore.types import Extra, Views

ROOT = Path(__file__).parent.parent
SIZE = (48, 32)


def pictures(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return smooth random images, (N, H, W, 3) uint8."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 6, 4, 3)).astype(np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)) for image in coarse]
    )


@pytest.fixture(scope="module")
def model():
    recipe = load_recipe(
        {
            "run": {"name": "x"},
            "train": [{"name": "synthetic"}],
            "backbone": {"name": "resnet18", "base": 16, "stages": 3, "ibn": "a", "weights": "none"},
            "input": {"height": SIZE[0], "width": SIZE[1]},
        }
    ).recipe
    return seem_trained(build_model(recipe, 5))


@pytest.fixture(scope="module")
def graph(model):
    return trace(model, About.of(model, *SIZE))


def embeddings(model, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(images).permute(0, 3, 1, 2)).embedding.numpy()


def runs(graph, images: np.ndarray, tmp_path: Path) -> np.ndarray:
    onnx.save(graph, tmp_path / "graph.onnx")
    return OnnxArtifact(tmp_path / "graph.onnx").run(images)["embedding"]


# the graph


@pytest.mark.parametrize("count", [1, 2, 3, 7, 32])
def test_any_number_of_images_gives_the_embeddings_of_the_model(model, graph, count, tmp_path):
    images = pictures(count)
    np.testing.assert_allclose(runs(graph, images, tmp_path), embeddings(model, images), rtol=1e-4, atol=1e-5)


def test_the_input_is_what_is_asked_for(model, tmp_path):
    about, images = About.of(model, *SIZE), pictures(3)
    graph = trace(model, about, fold=False, unit_length=True)
    given = graph.graph.input[0].type.tensor_type
    assert (given.elem_type, [d.dim_param or d.dim_value for d in given.shape.dim]) == (1, ["batch", 3, *SIZE])
    expected = embeddings(model, images)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(runs(graph, images, tmp_path), expected, rtol=1e-4, atol=1e-6)
    means = images.mean((0, 1, 2)) / 255
    direct = normalized(images, about).mean((0, 2, 3))
    np.testing.assert_allclose(direct, (means - about.mean) / about.std, rtol=1e-4)


def test_instance_norms_are_those_of_evaluation_whatever_mode_the_model_is_in(model, graph):
    model.train()
    try:
        again = trace(model, About.of(model, *SIZE))
        assert model.training
    finally:
        model.eval()
    assert again.SerializeToString() == graph.SerializeToString()


def test_nodes_are_called_after_modules_and_nothing_is_said_of_this_machine(graph):
    names = [node.name for node in graph.graph.node]
    assert len(set(names)) == len(names)
    assert "backbone.layer1.0.bn1.IN.InstanceNormalization" in names and "aggregator.pool.Pow" in names
    data = graph.SerializeToString()
    assert str(ROOT).encode() not in data and b"site-packages" not in data and b"stack_trace" not in data


def test_the_file_says_what_it_is(model, tmp_path):
    about = evolve(About.of(model, *SIZE), flip=True, recipe='[run]\nname = "é"\n', fingerprint="abc")
    exported = export(model, OnnxExporter("float16"), pictures(4), tmp_path / "onnx", about)
    assert OnnxArtifact(exported.files[0]).about == evolve(about, precision="float16")
    texts = {p.key: p.value for p in onnx.load(exported.files[0]).metadata_props}
    assert json.loads(texts["reidcore.height"]) == SIZE[0] and json.loads(texts["reidcore.recipe"]) == about.recipe
    assert About.read({}) is None and About.read({"reidcore.height": "3"}) is None
    assert About.read({**about.texts(), "reidcore.of_a_later_version": "3"}) == about


@pytest.mark.parametrize("opset", [18, *(pytest.param(o, marks=pytest.mark.slow) for o in (19, 20, 21, 22)), 23])
def test_every_version_of_the_operations_that_is_offered_is_written(model, opset, tmp_path):
    exported = export(model, OnnxExporter(opset=opset), pictures(3), tmp_path / "onnx")
    assert onnx.load(exported.files[0]).opset_import[0].version == opset


# precisions


def test_float16_keeps_input_and_output_and_what_is_too_coarse_in_it(graph):
    halved = to_float16(graph)
    types = {tensor.name: tensor.data_type for tensor in halved.graph.initializer}
    kinds = {node.op_type: {types.get(name) for name in node.input} for node in halved.graph.node}
    half = onnx.TensorProto.FLOAT16
    assert half in kinds["Conv"]
    assert not any(half in kinds[name] for name in ("Sub", "Pow", "InstanceNormalization", "BatchNormalization"))
    assert halved.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert halved.graph.input == graph.graph.input


def test_int8_convolves_the_pixel_values_themselves(model, graph):
    quantized = quantize(graph, pictures(32))
    nodes = list(quantized.graph.node)
    assert [node.op_type for node in nodes[:3]] != ["Transpose", "Cast", "Sub"]
    first = next(node for node in nodes if node.op_type == "Conv")
    (source,) = [node for node in nodes if first.input[0] in node.output]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    scale, zero = (weights[name] for name in source.input[1:3])
    assert source.op_type == "DequantizeLinear" and scale == 1 and zero.dtype == np.uint8
    assert zero == round(255 * np.mean(model.normalize.mean.numpy() / 255))
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    assert all(set(node.input[:2]) <= dequantized for node in convolutions)
    used = {name for node in nodes for name in node.input}
    assert all(tensor.name in used for tensor in quantized.graph.initializer)


def test_folding_the_normalisation_changes_the_border_only(model):
    """Away from the border W((x - m) s) = (W s)(x - z) + W s (z - m) exactly."""
    graph = trace(model, About.of(model, *SIZE))
    first = next(node for node in graph.graph.node if node.op_type == "Conv").output[0]
    plain = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(graph)).extract_model(["images"], [first])
    folded = onnx.ModelProto()
    folded.CopyFrom(plain)
    assert _fold_normalization(folded)
    images = pictures(2)
    maps = [
        onnxruntime.InferenceSession(g.SerializeToString()).run(None, {"images": images})[0] for g in (plain, folded)
    ]
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(maps[0][inner], maps[1][inner], atol=1e-4)
    assert np.abs(maps[0] - maps[1]).max() < 0.2 * np.abs(maps[0]).max()


def test_symmetric_int8_has_no_zero_points(graph):
    quantized = quantize(graph, pictures(32), symmetric=True)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    rounding = [node for node in quantized.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert rounding
    for node in rounding:
        zero = weights[node.input[2]]
        assert not zero.any() and zero.dtype in (np.int8, np.int32)


@pytest.mark.parametrize(("precision", "worst"), [("float16", 1e-4), ("int8", 0.02)])
def test_coarser_precisions_stay_close(model, precision, worst, tmp_path):
    exported = export(model, OnnxExporter(precision), pictures(40), tmp_path / "onnx")
    assert 0 < exported.difference < worst
    assert exported.files[0].name == f"model-{precision}.onnx" and exported.images == 32


# the proof


class Wrong:
    """An exporter whose artifact is the model, but for a mistake of the field's converters."""

    tolerance = 1e-4

    def __init__(self, mistake):
        self.mistake = mistake

    def export(self, model, images, folder):
        (folder / "new.bin").write_bytes(b"new")
        mistake = self.mistake

        class Artifact:
            files = (folder / "new.bin",)

            def run(self, images):
                return {"embedding": mistake(model, images)} if mistake else {"other": images}

        return Artifact()


def twice_normalised(model, images):
    inner = model.normalize(torch.from_numpy(images).permute(0, 3, 1, 2))
    with torch.no_grad():
        return model(inner).embedding.numpy()


def fixed_batch(model, images):
    return embeddings(model, images[[0] * len(images)])


def wrong_past_a_size(model, images):
    return embeddings(model, images) if len(images) < 4 else np.zeros((len(images), model.dim), np.float32)


def wrong_type(model, images):
    return np.full((len(images), model.dim), np.nan, np.float32)


MISTAKES = {
    "double normalisation": (
        twice_normalised,
        r"an output differs by 0\.\d+ \(1 - cosine\); the tolerance is 0.0001",
    ),
    "blue for red": (lambda model, images: embeddings(model, images[..., ::-1].copy()), "an output differs by"),
    "every image is the first": (fixed_batch, "an output differs by"),
    "large batches": (wrong_past_a_size, r"an output differs by 1 \(1 - cosine\)"),
    "not a number": (wrong_type, "an output differs by nan"),
    "another dimension": (
        lambda model, images: embeddings(model, images)[:, :5],
        r"of 1 images has the shape \(1, 5\)",
    ),
    "no embedding": (None, "it has no output 'embedding', but other"),
    "one row for all": (
        lambda model, images: embeddings(model, images)[:1],
        r"of 3 images has the shape \(1, \d+\)",
    ),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_file_that_computes_something_else_is_not_left(model, mistake, message, tmp_path):
    folder = tmp_path / "export"
    with pytest.raises(ContractError, match=message):
        export(model, Wrong(mistake), pictures(8), folder)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    (folder / "old.bin").write_bytes(b"old")
    with pytest.raises(ContractError, match="no file was left"):
        export(model, Wrong(mistake), pictures(8), folder)
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("old.bin", b"old")]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_holds_replaces_its_own_file_and_no_other(model, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("old.bin", "new.bin"):
        (folder / name).write_bytes(b"old")
    done = export(model, Wrong(embeddings), pictures(3), folder)
    assert (done.files, done.difference < 1e-6, done.images) == ([folder / "new.bin"], True, 3)
    assert done.notes == ["3 images are few to prove it on, and to measure the ranges of int8 on"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"old.bin": b"old", "new.bin": b"new"}


class Extras(torch.nn.Module):
    """An aggregator whose extras come in another order than it says, one of them zero in places."""

    def __init__(self, aggregator):
        super().__init__()
        self.aggregator, self.needs, self.embed = aggregator, aggregator.needs, aggregator.embed
        self.views = aggregator.views
        self.extras = {"rows": Extra((64, 3)), "columns": Extra((64, 2))}

    def forward(self, maps):
        x = maps["stage3"]
        return Views(self.aggregator(maps).vectors, {"columns": x.mean(2) - 1, "rows": x.amax(3) * 0})


@pytest.fixture(scope="module")
def with_extras(model):
    changed = copy.deepcopy(model)
    changed.aggregator = Extras(changed.aggregator)
    return changed.eval()


@pytest.mark.parametrize("exporter", [OnnxExporter(), OpenVinoExporter()], ids=["onnx", "openvino"])
def test_extras_have_their_names_and_are_proven_too(with_extras, exporter, tmp_path, monkeypatch):
    (file, *_) = export(with_extras, exporter, pictures(3), tmp_path / "out").files
    found = open_artifact(file, Catalog.of()).run(pictures(5))
    with torch.no_grad():
        expected = with_extras(torch.from_numpy(pictures(5)).permute(0, 3, 1, 2))
    for name, values in {"embedding": expected.embedding, **expected.extras}.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=1e-3, atol=1e-4)
    run = type(open_artifact(file, Catalog.of())).run
    monkeypatch.setattr(
        type(open_artifact(file, Catalog.of())),
        "run",
        lambda self, images: {k: v + 3 * (k == "columns") for k, v in run(self, images).items()},
    )
    with pytest.raises(ContractError, match="an output differs by"):
        export(with_extras, exporter, pictures(3), tmp_path / "out")


@pytest.mark.parametrize(("precision", "worst"), [("float16", 1e-3), ("int8", 0.02)])
def test_openvino_has_the_same_precisions(model, precision, worst, tmp_path):
    exported = export(model, OpenVinoExporter(precision), pictures(40), tmp_path / "openvino")
    assert 0 < exported.difference < worst
    assert [file.name for file in exported.files] == [f"model-{precision}.xml", f"model-{precision}.bin"]
    about = open_artifact(exported.files[0], Catalog.of()).about
    assert about == evolve(About.of(model, *SIZE), precision=precision)


def test_a_file_of_each_interface_has_a_name_of_its_own(model, tmp_path):
    for options in ({}, {"fold": False}, {"unit_length": True}, {"precision": "int8", "fold": False}):
        export(model, OnnxExporter(**options), pictures(32), tmp_path / "onnx")
    names = {"model.onnx", "model-normalized.onnx", "model-unit.onnx", "model-int8-normalized.onnx"}
    assert {file.name for file in (tmp_path / "onnx").iterdir()} == names


def test_a_model_that_knows_cameras_says_that_its_file_does_not(model, tmp_path):
    knowing = copy.deepcopy(model)
    knowing.backbone.cameras = 3
    notes = export(knowing, Wrong(embeddings), pictures(32), tmp_path / "out").notes
    assert notes == ["it is not told the cameras of images, which count as from the unknown one"]


def test_a_model_that_cannot_be_traced_is_refused_with_the_reason(model):
    class Looks(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    broken = copy.deepcopy(model)
    broken.aggregator.pool = Looks()
    with pytest.raises(ContractError, match=rf"the model cannot be written as ONNX: {__file__}:\d+: .*data-dependent"):
        trace(broken, About.of(broken, *SIZE))


def test_an_operation_that_onnx_has_not_is_told_with_its_layer(model, capfd):
    class Median(torch.nn.Module):
        def forward(self, x):
            return x.flatten(2).median(2).values

    broken = copy.deepcopy(model)
    broken.aggregator.pool = Median()
    with pytest.raises(ContractError, match=r"layer 'aggregator\.pool': No ONNX function found for .*aten\.median"):
        trace(broken, About.of(broken, *SIZE))
    assert capfd.readouterr() == ("", "")


def test_a_model_that_counts_its_images_is_told_how_to(model):
    class Counts(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * torch.ones(len(x), 1)

    broken = copy.deepcopy(model)
    broken.aggregator.pool = Counts()
    with pytest.raises(ContractError, match=r"takes the number of images for a constant, .*write x\.shape\[0\]"):
        trace(broken, About.of(broken, *SIZE))


# files that are there


def test_files_are_opened_by_their_ends(tmp_path):
    with pytest.raises(RunError, match="there is no file"):
        open_artifact(tmp_path / "model.onnx", Catalog.of())
    (tmp_path / "model.tflite").write_bytes(b"x")
    with pytest.raises(RunError, match=r"is no file that can be run; there are \.onnx, \.prototxt, \.xml"):
        open_artifact(tmp_path / "model.tflite", Catalog.of())
    for suffix, program in ((".onnx", "ONNX Runtime"), (".xml", "OpenVINO")):
        file = (tmp_path / "bad").with_suffix(suffix)
        file.write_bytes(b"no such thing")
        with pytest.raises(RunError, match=f"{program} cannot read {file}"):
            open_artifact(file, Catalog.of())


def test_a_plugins_files_are_opened_by_the_plugin(tmp_path):
    class Own:
        """Own files."""

        suffixes = (".own",)

        def build(self): ...

        @staticmethod
        def open(file, device):
            return file.read_text(), device

    catalog = Catalog.of(exporters=[Component(name="own", config=frozen(kw_only=True)(Own))])
    (tmp_path / "model.own").write_text("mine")
    assert open_artifact(tmp_path / "model.own", catalog, "cuda") == ("mine", "cuda")


# as a user


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(folder, export=[{"name": "onnx"}])
    done = run_cli("run", recipe)
    assert done.status == 0, done.err
    assert "export/onnx/model.onnx" in done.err and "(1 - cosine)" in done.err
    return folder / "runs" / "toy"


def test_a_run_exports_what_its_recipe_says(run_folder):
    about = OnnxArtifact(run_folder / "export" / "onnx" / "model.onnx").about
    assert (about.height, about.width, about.flip) == (32, 16, True)
    assert about.recipe == (run_folder / "recipe.toml").read_text()


def test_a_run_is_exported_again_with_options(run_folder, reidcore):
    status, out, err = reidcore("export", run_folder, "--to", "onnx", "--option", "precision=int8")
    assert (status, err) == (0, "")
    assert str(run_folder / "export" / "onnx" / "model-int8.onnx") in out and "in batches of 1, 3 and 32" in out
    assert (run_folder / "export" / "onnx" / "model.onnx").is_file()


def test_images_stand_in_for_data_that_is_gone(run_folder, reidcore, tmp_path):
    images, moved = run_folder.parent.parent / "toy", tmp_path / "gone"
    images.rename(moved)
    try:
        status, _, err = reidcore("export", run_folder, "--to", "onnx")
        assert status == 2 and err.startswith("there is no folder") and "--images DIR" in err
        status, out, err = reidcore("export", run_folder, "--to", "onnx", "--images", moved / "gallery")
        assert (status, err) == (0, "") and "on 12 images" in out and "12 images are few" in out
    finally:
        moved.rename(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onxx"], "no exporter is called 'onxx'; did you mean 'onnx'?"),
        (["--to", "onnx", "--option", "precison=int8"], "--option precison=int8: precison: unknown key"),
        (["--to", "onnx", "--option", "opset=12"], "expected at least 18 and at most 23"),
        (["--to", "onnx", "--images", "nowhere"], "there is no image or folder nowhere"),
    ],
)
def test_mistakes_are_told(run_folder, reidcore, arguments, message):
    status, _, err = reidcore("export", run_folder, *arguments)
    assert status == 2 and message in err


def test_metrics_are_computed_with_the_file(run_folder, reidcore):
    file = run_folder / "export" / "onnx" / "model.onnx"
    before = (run_folder / "metrics.json").read_bytes()
    plain, exported = (reidcore("evaluate", run_folder, *more).out for more in ((), ("--artifact", file)))
    assert plain == exported
    assert (run_folder / "metrics.json").read_bytes() == before
    broken = onnx.load(file)
    onnx.helper.set_model_props(broken, {"reidcore.version": "0"})  # a stranger's
    mean = next(t for t in broken.graph.initializer if t.name == "model.normalize.mean")
    mean.CopyFrom(onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), 1e6, np.float32), mean.name))
    other = run_folder.parent / "blind.onnx"
    onnx.save(broken, other)
    assert reidcore("evaluate", run_folder, "--artifact", other).out != plain
    broken.graph.output[0].name = "feature"
    next(node for node in broken.graph.node if "embedding" in node.output).output[0] = "feature"
    onnx.save(broken, other)
    status, _, err = reidcore("evaluate", run_folder, "--artifact", other)
    assert (status, err) == (2, f"{other} has no output 'embedding', but feature\n")


def test_the_file_of_another_run_is_refused(run_folder, reidcore, tmp_path):
    assert reidcore("run", tiny_recipe(tmp_path), "-q", "--set", "training.epochs=0").status == 0
    file = run_folder / "export" / "onnx" / "model.onnx"
    status, _, err = reidcore("evaluate", tmp_path / "runs" / "toy", "--artifact", file)
    assert status == 2 and err.startswith(f"{file} was exported from another run than ")


def test_a_changed_model_is_not_the_runs(run_folder, reidcore):
    changed = ("--set", "evaluation.flip=false", "--set", "input.workers=0", "--option", "unit_length=true")
    assert reidcore("export", run_folder, "--to", "onnx", *changed).status == 0
    about = OnnxArtifact(run_folder / "export" / "onnx" / "model-unit.onnx").about
    assert (about.flip, about.fingerprint) == (False, "") and "flip = false" in about.recipe


def test_images_are_embedded_by_the_file_and_searched_by_either(run_folder, reidcore, tmp_path):
    images = run_folder.parent.parent / "toy" / "gallery"
    files = sorted(images.iterdir())
    file = run_folder / "export" / "onnx" / "model.onnx"
    by_model, by_file = load_model(run_folder), load_model(file)
    np.testing.assert_allclose(by_file.embed(files), by_model.embed(files), rtol=1e-3, atol=1e-4)
    assert by_file.dim == by_model.dim
    assert reidcore("embed", file, images, "-o", tmp_path / "e.reid", "-q").status == 0
    assert reidcore("index", tmp_path / "e.reid", "-o", tmp_path / "index", "-q").status == 0
    for model in (run_folder, file):
        assert reidcore("search", tmp_path / "index", "--run", model, files[0], "-k", "1").status == 0
    reidcore("export", run_folder, "--to", "onnx", "--option", "precision=int8")
    refused = reidcore("search", tmp_path / "index", "--run", file.with_name("model-int8.onnx"), files[0])
    assert refused.status == 2 and "are of another model" in refused.err


def test_a_run_whose_export_fails_is_finished(tmp_path, reidcore):
    recipe = tiny_recipe(tmp_path, export=[{"name": "caffe"}], aggregator={"name": "attention"})
    status, _, err = reidcore("run", recipe, "--set", "training.epochs=0")
    assert status == 2
    assert "Caffe has no layer for 'aggregator.pool'" in err and "the run is finished" in err
    assert (tmp_path / "runs" / "toy" / WEIGHTS).is_file()
    assert reidcore("run", recipe, "--set", "training.epochs=0", "--resume").status == 0


@pytest.mark.slow
def test_8_bits_lose_little_on_a_trained_model(tmp_path, reidcore):
    """At most a point of mAP, on drawn people that training has not seen."""
    recipe = ROOT / "examples" / "quickstart.toml"
    done = reidcore(
        "run", recipe, "-q", "--output", tmp_path, "--set", "training.epochs=10", "--set", "input.workers=0"
    )
    assert done.status == 0, done.err
    run = tmp_path / "quickstart"
    assert reidcore("export", run, "--to", "onnx", "--option", "precision=int8").status == 0
    plain = evaluate_run(run)["synthetic"]["mAP"]
    assert plain > 0.5
    assert evaluate_run(run, artifact=run / "export" / "onnx" / "model-int8.onnx")["synthetic"]["mAP"] > plain - 0.01


def test_the_file_runs_where_there_is_nothing_but_onnxruntime(run_folder, tmp_path):
    """The script of the examples, in a Python that finds ONNX Runtime, numpy and Pillow, and none of our packages."""
    packages = runpy.run_path(str(ROOT / "tests" / "packages.py"))
    (tmp_path / "site").mkdir()
    for installed in packages["closure"](["onnxruntime", "numpy", "pillow"]):
        for entry in packages["entries"](installed):
            (tmp_path / "site" / entry.name).symlink_to(entry)
    script = ROOT / "examples" / "embed_onnx.py"
    assert len(script.read_text().splitlines()) < 40
    images = sorted((run_folder.parent.parent / "toy" / "gallery").iterdir())
    file = run_folder / "export" / "onnx" / "model.onnx"

    def alone(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", *map(str, arguments)]
        environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    assert "No module named 'torch'" in alone("-c", "import torch").stderr
    assert "No module named 'reidcore'" in alone("-c", "import reidcore").stderr
    done = alone(script, file, *images, "-o", tmp_path / "found.npy")
    assert done.returncode == 0, done.stderr
    expected = load_model(run_folder).embed(images)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = np.load(tmp_path / "found.npy")
    assert (1 - (found * expected).sum(1)).max() < 1e-4
