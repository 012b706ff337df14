"""Every part of the core keeps the contract of its kind, and a broken part is found out."""

import runpy
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from attrs import frozen
from PIL import Image

from reidcore.catalog import Catalog
from reidcore.component import Component, option
from reidcore.errors import ReidError
from reidcore.testing import Kit, checks, contract, run_cli, tiny_recipe
from reidcore.types import Splits

DATA = tempfile.TemporaryDirectory()


def image(path: str) -> None:
    file = Path(DATA.name) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 12, 3), np.uint8)).save(file)


for split in ("train", "query", "gallery"):
    image(f"folder/{split}/{1 if split == 'train' else 2:04d}_c{1 + (split == 'query')}_a.png")
(Path(DATA.name) / "table.csv").write_text(
    "path,identity,camera,split\n"
    + "".join(f"folder/{s}/{n}_a.png,{n[:4]},1,{s}\n" for s, n in (("train", "0001_c1"), ("query", "0002_c2")))
)

PUBLISHED = runpy.run_path(str(Path(__file__).parent / "miniatures.py"))["MAKE"]
for name, make in PUBLISHED.items():
    make(Path(DATA.name) / name)

image("faces/Ann/Ann_0001.jpg")
image("faces/Ann/Ann_0002.jpg")
(Path(DATA.name) / "pairs.txt").write_text("Ann 1 2\n")

test_core = contract(
    "core",
    options={
        "folder": {"root": f"{DATA.name}/folder"},
        **{name: {"root": f"{DATA.name}/{name}"} for name in PUBLISHED},
        "csv": {"file": f"{DATA.name}/table.csv"},
        "lfw": {"root": f"{DATA.name}/faces", "pairs": f"{DATA.name}/pairs.txt"},
        "resnet18": {"base": 16, "se": True, "non_local": [0, 1, 1, 0]},
        "resnet34": {"base": 16, "ibn": "a", "stem_pool": "ceil"},
        "resnet50": {"base": 8, "ibn": "b", "non_local": [0, 2, 3, 0]},
        "resnet101": {"base": 8, "last_stride": 2},
        "resnet152": {"base": 8, "stages": 3},
        "resnext50-32x4d": {"base": 16},
        "resnext101-32x4d": {"base": 16},
        "resnext101-32x8d": {"base": 16},
        "weighted-sets": {"weights": [2, 1]},
    },
)


def kit(kind: str, build, **fields) -> Kit:
    """Return the kit of a component whose config builds what `build` returns."""
    name = type("Part", (), {"__doc__": "A part.", "__annotations__": {}, **fields, "build": build})
    component = Component(name="part", config=frozen(kw_only=True)(name))
    plural = {"loss": "losses"}.get(kind, f"{kind}s")
    (found,) = [c for c in Catalog.of(**{plural: [component]}).components(kind) if c.name == "part"]
    return Kit(Catalog.of(), kind, found, {})


def broken_transform(self, height, width):
    class Noise:
        resizes = False

        def __call__(self, image):
            return (image + np.random.randint(0, 9)).byte()

    return Noise()


def changing_transform(self, height, width):
    class InPlace:
        resizes = False

        def __call__(self, image):
            return image.fill_(0)

    return InPlace()


def lying_sampler(self, labels, cameras, seed):
    class Endless:
        def __len__(self):
            return 3

        def batches(self, epoch):
            yield [0, 1]

    return Endless()


def partial_optimizer(self, parameters):
    import torch

    return torch.optim.SGD([parameter for name, parameter in parameters if name.startswith("backbone")], lr=0.1)


def upside_down_metric(self):
    class Misses:
        """The share of queries whose first image is wrong: best where it should be worst."""

        per_query: ClassVar = {}

        def __init__(self):
            self.wrong = []

        def update(self, block):
            self.wrong += [len(ranks) == 0 or ranks[0] > 0 for ranks in block.ranks]  # those without a match as well

        def merge(self, other):
            pass

        def result(self):
            return {"wrong": float(np.mean(self.wrong))}

    class Metric:
        def start(self, problem):
            return Misses()

    return Metric()


@pytest.mark.parametrize(
    ("kind", "build", "check"),
    [
        ("metric", upside_down_metric, checks.nothing_beats_a_perfect_ranking),
        ("metric", upside_down_metric, checks.queries_without_a_match_do_not_count),
        ("metric", upside_down_metric, checks.tallies_can_be_merged),
        ("optimizer", partial_optimizer, checks.lowers_a_simple_loss),
        ("dataset", lambda self: Splits(), checks.images_can_be_read),
        ("transform", changing_transform, checks.images_stay_images),
        ("sampler", lying_sampler, checks.epochs_are_finite_and_as_long_as_said),
        ("sampler", lying_sampler, checks.batches_are_a_function_of_the_epoch_and_the_seed),
        ("scheduler", lambda self, steps, epochs: lambda step: -1.0, checks.factors_are_finite_at_every_step),
        ("task", lambda self: object(), checks.has_what_the_loop_calls),
    ],
)
def test_a_broken_part_is_found_out(kind, build, check) -> None:
    with pytest.raises(AssertionError):
        check(kit(kind, build))


def test_chance_from_elsewhere_is_found_out(monkeypatch) -> None:
    # the check pickles what it is given, as loader processes do; the class here is local
    monkeypatch.setattr(checks.pickle, "loads", lambda data: data)
    monkeypatch.setattr(checks.pickle, "dumps", lambda part: part)
    with pytest.raises(AssertionError):
        checks.chance_comes_from_torch_alone(kit("transform", broken_transform))


def test_an_option_without_help_and_a_config_that_can_change_are_found_out() -> None:
    silent = kit("task", lambda self: object(), depth=option(1, help=""), __annotations__={"depth": int})
    with pytest.raises(AssertionError, match="depth"):
        checks.has_a_summary_and_help_for_every_option(silent)


def test_a_plugin_that_offers_nothing_has_no_contract() -> None:
    with pytest.raises(ReidError, match="plugin 'given' offers nothing"):
        contract("given", catalog=Catalog.of())


def test_a_plugin_that_is_not_installed_is_named() -> None:
    with pytest.raises(ReidError, match="no plugin is called 'nowhere'; there are core"):
        contract("nowhere", catalog=Catalog.of())


def test_options_and_expected_failures_must_be_of_something() -> None:
    with pytest.raises(ValueError, match="has no component gemm"):
        contract("core", options={"gemm": {}})
    with pytest.raises(ValueError, match="there is no case gem-nothing"):
        contract("core", expected_failures={"gem-nothing": "why"})


def test_a_tail_that_is_the_backbone_itself_is_found_out() -> None:
    from torch import nn

    from reidcore.types import MapShape

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.shapes = {"a": MapShape(4, 64, 32, True), "b": MapShape(4, 64, 32, True)}

        def forward(self, images, want, cameras=None):
            a = self.first(images)
            return {"a": a, "b": self.second(a)}

        def tail(self, after):
            return self.second if after == "a" else nn.Sequential()

    with pytest.raises(AssertionError, match="the tail after a shares parameters"):
        checks.tails_are_copies_that_end_in_the_last_map(kit("backbone", lambda self, height, width: Network()))


def test_the_kit_has_toys_and_a_command_line(tmp_path) -> None:
    recipe = tiny_recipe(tmp_path, aggregator={"name": "max"})
    done = run_cli("run", recipe, "-q", "--set", "training.epochs=1")
    assert (done.status, done.err) == (0, "") and "mAP" in done.out
    assert run_cli("--no-such-option").status == 2


def test_parts_that_are_called_alike_are_told_apart_by_their_kind() -> None:
    @frozen(kw_only=True)
    class Logger:
        """A part."""

        file: str = option("x", help="a file")

        def build(self, folder): ...

    @frozen(kw_only=True)
    class Scheduler:
        """A part."""

        flat: float = option(0.5, help="a share")

        def build(self, steps_per_epoch, epochs): ...

    catalog = Catalog.of(
        loggers=[Component(name="own", config=Logger)], schedulers=[Component(name="own", config=Scheduler)]
    )
    test = contract("given", catalog=catalog, options={"logger-own": {"file": "y"}, "scheduler-own": {"flat": 0.1}})
    (mark,) = test.pytestmark
    assert {case.values[1].config() for case in mark.args[1]} == {Logger(file="y"), Scheduler(flat=0.1)}
