"""The recipes that come with the project."""

from importlib.util import find_spec
from pathlib import Path

import attrs
import pytest
import tomli
import torch

from reidcore.assemble import assemble, read_data
from reidcore.errors import RunError
from reidcore.loop import fit, prepare
from reidcore.recipe import load_recipe

FOLDER = Path(__file__).parent.parent / "examples"
FILES = ("*.toml", "ablation/*.toml", "mlt/*.toml", "zoo/*.toml")
EXAMPLES = [file for pattern in FILES for file in sorted(FOLDER.glob(pattern))]


def require_plugins(recipe):
    """Skip an example for people who have what it requires, where that is not installed."""
    for requirement in tomli.loads(recipe.read_text()).get("requires", ()):
        name = requirement.partition(">")[0]
        if not find_spec(name.replace("-", "_")):
            pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("recipe", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_has_no_mistakes(recipe, reidcore):
    require_plugins(recipe)
    status, out, err = reidcore("check", recipe, "--build")
    assert (status, out, err) == (0, f"{recipe}: no mistakes found\n", "")


def test_the_quickstart_runs(tmp_path, reidcore):
    recipe = next(file for file in EXAMPLES if file.name == "quickstart.toml")
    small = ["training.epochs=1", "test.0.identities=32", "train.0.identities=32", "test.0.test_identities=4"]
    small += ["input.height=32", "input.width=16", "train.0.images=2", "test.0.images=2", "input.workers=0"]
    sets = [word for item in small for word in ("--set", item)]
    status, out, err = reidcore("run", recipe, "--output", tmp_path, *sets)
    assert status == 0, err
    assert "synthetic, before training" in out
    assert "synthetic, after training" in out


class StopAtStep2:
    """A logger that interrupts its run."""

    def __init__(self, run):
        self.run, self.losses = run, []

    def log(self, event):
        if event["kind"] == "step":
            self.losses.append(event["loss"])
            self.run.interrupted = event["step"] == 2


QUICK = ["bagtricks", "agw", "sbs", "mgn", "partial-market1501", "kd-market1501-teacher"]
QUICK += ["zoo/veri776-sbs-r50-ibn", "zoo/veri-wild-bot-r50-ibn", "zoo/market1501-bot-s50"]
ZOO = [f"zoo/{file.stem}" for file in sorted(FOLDER.glob("zoo/*.toml"))]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in ZOO if n not in QUICK)])
def test_a_published_recipe_takes_two_steps_on_small_data(name, toy_folder, tmp_path):
    require_plugins(FOLDER / f"{name}.toml")
    height, width = (128, 128) if name.startswith("partial") else (64, 32)  # its windows want a map of 8x8
    tests = [f"test.{position}" for position in range(len(load_recipe(FOLDER / f"{name}.toml").recipe.test))]
    sets = [f"{table}.{key}" for table in ("train.0", *tests) for key in ("name=folder", f"root={toy_folder}")]
    sets += [f"{test}.label={test}" for test in tests]
    sets += [f"input.height={height}", f"input.width={width}", "input.workers=0", "backbone.weights=none"]
    sets += ["run.device=cpu"]
    sets += ["sampler.identities=3", "sampler.instances=2"]
    loaded = load_recipe(FOLDER / f"{name}.toml", overrides=sets)
    run = assemble(loaded, read_data(loaded), tmp_path, lambda model, epoch: None)
    prepare(run)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.loggers = [logger := StopAtStep2(run)]
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match="stopped at step 2"):
        fit(run)
    assert len(logger.losses) == 2
    changed = {
        key.split(".")[0] for key, value in run.model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert "heads" in changed
    assert ("backbone" in changed) == ("backbone" not in loaded.recipe.training.freeze)


def leaves(value, path=()):
    """Yield (path, value) of all that a recipe says, with the class of each part."""
    if attrs.has(type(value)):
        yield (*path, "class"), type(value)
        for field in attrs.fields(type(value)):
            yield from leaves(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, tuple):
        yield (*path, "length"), len(value)
        for position, item in enumerate(value):
            yield from leaves(item, (*path, position))
    else:
        yield path, value


def test_the_recipes_of_the_ablation_change_one_part_each_and_the_last_one_all_of_them():
    def options(file):
        recipe = attrs.evolve(load_recipe(file).recipe, run=None)
        return dict(leaves(recipe))

    files = {file.stem: options(file) for file in EXAMPLES if file.parent.name == "ablation"}
    base = files.pop("bag-of-tricks").items()
    changes = {row: dict(found.items() - base) for row, found in files.items()}
    everything = changes.pop("all")
    assert everything == {path: value for change in changes.values() for path, value in change.items()}
    tables = {row: {path[0] for path in change} for row, change in changes.items()}
    assert tables.pop("circle-loss") == {"head", "loss"}  # its rows are the head's
    assert all(len(table) == 1 for table in tables.values())
