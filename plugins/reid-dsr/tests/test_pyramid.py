import numpy as np
import pytest
import torch

from reid_dsr import DSR
from reid_dsr.pyramid import Pyramid
from reidcore.errors import ContractError, RecipeError
from reidcore.recipe import load_recipe
from reidcore.types import MapShape


class Maps:
    """A backbone of one map."""

    def __init__(self, channels, height, width):
        self.shapes = {"early": MapShape(3, 99, 99), "late": MapShape(channels, height, width)}


def by_loops(x, windows, stride, weight, bias):
    """(C, H, W) -> foreground view, cells and weights in float64, position by position."""
    groups = []
    for window in windows:
        groups.append(
            [
                x[:, row : row + window, column : column + window].max((1, 2))
                for row in range(0, x.shape[1] - window + 1, stride)
                for column in range(0, x.shape[2] - window + 1, stride)
            ]
        )
    shares = [np.array([1 / (1 + np.exp(-(cell @ weight + bias))) for cell in group]) for group in groups]
    first = shares[0] / shares[0].sum()
    foreground = sum(share * cell for share, cell in zip(first, groups[0], strict=True))
    cells = np.array([cell / np.linalg.norm(cell) for group in groups for cell in group])
    together = np.concatenate(shares)
    return foreground, cells, together / together.sum()


@pytest.mark.parametrize(
    ("size", "windows", "stride", "count"),
    [
        ((24, 8), (2, 4, 6, 8), 2, 110),
        ((16, 8), (2, 4, 6, 8), 2, 70),
        ((5, 4), (2, 3), 1, 12 + 6),
        ((5, 4), (1,), 2, 6),
    ],
)
def test_cells_views_and_weights_equal_loops(size, windows, stride, count):
    torch.manual_seed(0)
    backbone = Maps(6, *size)
    pyramid = DSR(windows=windows, stride=stride).build(backbone).eval()
    assert pyramid.needs == ("late",)
    assert pyramid.views == {"global": 6, "foreground": 6}
    assert pyramid.extras["cells"].shape == (count, 6)
    assert pyramid.extras["weights"].shape == (count,)
    x = torch.rand(2, 6, *size)
    with torch.no_grad():
        views = pyramid({"late": x})
    weight, bias = pyramid.foreground.weight[0].detach().double().numpy(), pyramid.foreground.bias.item()
    for image in range(2):
        foreground, cells, weights = by_loops(x[image].double().numpy(), windows, stride, weight, bias)
        np.testing.assert_allclose(views.vectors["foreground"][image], foreground, rtol=1e-5)
        np.testing.assert_allclose(views.vectors["global"][image], x[image].mean((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(views.extras["cells"][image], cells, atol=1e-3)  # half precision
        np.testing.assert_allclose(views.extras["weights"][image], weights, rtol=1e-5)
    assert views.extras["cells"].dtype == torch.float16
    assert views.extras["weights"].dtype == torch.float32


def test_extras_are_left_out_in_training():
    views = Pyramid("late", MapShape(4, 8, 8), (2,), 2).train()({"late": torch.rand(2, 4, 8, 8)})
    assert views.extras == {}
    assert views.vectors.keys() == {"global", "foreground"}


def test_windows_that_do_not_fit_are_refused_with_those_that_do():
    with pytest.raises(ContractError, match=r"has 8x4 positions, and dsr's windows reach 8; write windows = \[2, 4\]"):
        DSR().build(Maps(4, 8, 4))
    with pytest.raises(ContractError, match=r"write windows = \[1\]"):
        DSR(windows=(3,)).build(Maps(4, 2, 2))


def test_recipes_name_their_mistakes(tmp_path):
    recipe = {
        "run": {"name": "x"},
        "train": [{"name": "synthetic"}],
        "test": [
            {"name": "synthetic", "postprocess": [{"name": "dsr", "blend": "holdout"}, {"name": "dsr", "blend": 2}]}
        ],
        "aggregator": {"name": "dsr", "windows": []},
        "transform": [{"name": "partial-crop", "kept": [0.7, 0.3]}, {"name": "occlusion", "sides": []}],
    }
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe)
    assert str(error.value).splitlines() == [
        "recipe: test.0.postprocess.1.blend: found 2.0; expected at least 0 and at most 1",
        "recipe: transform.0: kept: found 0.7 above 0.3; expected the smaller one first",
        "recipe: transform.1: sides: found none; expected one or several of top, bottom, left, right",
        "recipe: aggregator: windows: found none; expected one or several",
    ]


def test_cells_are_in_the_exported_file(tmp_path) -> None:
    """ONNX Runtime gives the embedding and the cells that are compared, for any number of images."""
    from reidcore.export import About, export
    from reidcore.export.onnx import OnnxArtifact, OnnxExporter
    from reidcore.networks import build_model
    from reidcore.recipe import load_recipe
    from reidcore.testing import seem_trained

    recipe = load_recipe(
        {
            "run": {"name": "x"},
            "train": [{"name": "synthetic"}],
            "input": {"height": 128, "width": 128},
            "backbone": {"name": "resnet18", "base": 16, "stages": 3, "last_stride": 1, "weights": "none"},
            "aggregator": {"name": "dsr"},
        }
    ).recipe
    model = seem_trained(build_model(recipe, 3))
    images = np.random.default_rng(0).integers(0, 256, (5, 128, 128, 3)).astype(np.uint8)
    (file,) = export(model, OnnxExporter(), images, tmp_path / "onnx", About.of(model, 128, 128)).files
    found = OnnxArtifact(file).run(images)
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert set(found) == {"embedding", *expected.extras} and expected.extras
    for name, values in {"embedding": expected.embedding, **expected.extras}.items():
        np.testing.assert_allclose(found[name], values.float().numpy(), rtol=1e-3, atol=1e-3)
