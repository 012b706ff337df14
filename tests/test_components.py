"""What `reidcore components` and `reidcore plugins` print, for people, pipes and programs."""

import json
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import tomli

import reidcore as package
from reidcore.catalog import discover
from reidcore.kinds import KINDS
from reidcore.recipe import load_recipe

CATALOG = discover()
CORE = [
    (kind, component.name) for kind in KINDS for component in CATALOG.components(kind) if component.plugin == "core"
]
TRAIN = '[[train]]\nname = "synthetic"\n'
TEST = '[[test]]\nname = "synthetic"\n'

EVERYTHING = """
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from attrs import frozen
from reidcore import Component, hookimpl, option

@frozen(kw_only=True)
class Inner:
    count: int = option(help="a number of things", at_least=3)

@frozen(kw_only=True)
class Everything:
    '''A loss in which everything is required.'''
    flag: bool = option(help="yes or no")
    share: float = option(help="a share", above=0, below=1)
    size: int = option(help="a size", at_least=16)
    debt: float = option(help="below zero", below=0)
    file: Path = option(help="a file")
    text: str = option(help="a text")
    mode: Literal["one", "two"] = option(help="a mode")
    pair: tuple[int, int] = option(help="a pair", at_least=2)
    many: tuple[str, ...] = option(help="many")
    either: tuple[str, ...] | int = option(help="one or many")
    by_name: Mapping[str, int] = option(help="by name")
    inner: Inner = option(help="a table")
    unlimited: float = option(float("inf"), help="a limit")
    accent: str = option('é "quoted"', help="a text")

    def build(self, parts): ...

@frozen(kw_only=True)
class Triplet:
    '''Triplets again, [bold]as brackets[/bold].'''
    def build(self, parts): ...

@hookimpl
def reidcore_losses():
    yield Component(name="everything", config=Everything)
    yield Component(name="triplet", config=Triplet)
"""


def block(page: str) -> str:
    """Return the table to paste from a component's page."""
    return page[page.index("\n[") :]


@pytest.mark.parametrize(("kind", "name"), CORE, ids=lambda value: str(value))
def test_the_block_of_every_part_can_be_pasted_as_it_is(kind, name, write, reidcore):
    status, page, _ = reidcore("components", kind, name)
    assert status == 0
    pasted = block(page)
    recipe = write("pasted.toml", (TRAIN if kind != "dataset" else "") + TEST + pasted)
    loaded = load_recipe(recipe)
    component = CATALOG.find(kind, name)
    table = tomli.loads(TEST + pasted)
    key = {"dataset": "train", "postprocessor": "test", "exporter": "export"}.get(kind, kind)
    part = table[key][0] if isinstance(table[key], list) else table[key]
    part = part["postprocess"][0] if kind == "postprocessor" else part
    assert part["name"] == name
    options = {field.name: field.default for field in attrs.fields(component.config)}
    assert set(part) - {"name"} == {key for key, default in options.items() if default is not None}
    assert pasted.count("# change this: ") == sum(default is attrs.NOTHING for default in options.values())
    assert type(found(loaded.recipe, kind)) is component.config


def found(recipe, kind):
    """Return the config that a recipe has of a kind, the first of several."""
    if kind == "postprocessor":
        return recipe.test[0].postprocess[0]
    value = getattr(recipe, {"dataset": "train", "exporter": "export"}.get(kind, kind))
    value = value[0] if isinstance(value, tuple) else value
    return getattr(value, kind, value)


def test_what_is_required_is_filled_with_what_loads_and_is_to_be_changed(write, reidcore):
    plugin = write("own.py", EVERYTHING)
    _, page, _ = reidcore("components", "loss", "everything", "--plugin", plugin)
    pasted = block(page)
    (config,) = [term.loss for term in load_recipe(write("r.toml", TRAIN + pasted), plugin_files=[plugin]).recipe.loss]
    assert (config.share, config.size, config.debt, config.pair, config.inner.count) == (0.5, 16, -1, (2, 2), 3)
    assert (str(config.file), config.text, config.mode) == ("path/to/file", "change-this", "one")
    assert config.unlimited == math.inf
    assert config.accent == 'é "quoted"'
    assert "share = 0.5  # change this: a share\n" in pasted
    assert "inner.count = 3  # change this: a number of things\n" in pasted
    assert pasted.count("# change this: ") == 12


def test_the_block_has_the_full_name_where_the_bare_one_is_another_part(write, reidcore):
    plugin = write("own.py", EVERYTHING)
    assert 'name = "own:triplet"' in reidcore("components", "loss", "own:triplet", "--plugin", plugin)[1]
    assert 'name = "triplet"' in reidcore("components", "loss", "triplet", "--plugin", plugin)[1]


def test_a_page_says_where_the_part_is_written(write, reidcore):
    plugin = write("own.py", EVERYTHING)
    line = EVERYTHING[: EVERYTHING.index("class Everything")].count("\n") + 1
    _, page, _ = reidcore("components", "loss", "everything", "--plugin", plugin)
    assert page.splitlines()[:3] == [
        "own:everything (loss): A loss in which everything is required.",
        f"from {plugin}: reidcore_plugin_own",
        f"{plugin}:{line}",
    ]


@pytest.mark.parametrize(("kind", "name"), CORE, ids=lambda value: str(value))
def test_programs_get_the_same_facts(kind, name, reidcore):
    record = json.loads(reidcore("components", kind, name, "--json")[1])
    component = CATALOG.find(kind, name)
    assert (record["plugin"], record["origin"], record["version"]) == ("core", "reidcore", package.__version__)
    assert record["module"] == component.config.__module__
    written = Path(record["file"]).read_text().splitlines()[record["line"] - 1]
    assert any(written.startswith(f"class {cls.__name__}") for cls in component.config.__mro__)
    assert all({"name", "type", "accepts", "help", "required"} <= set(option) for option in record["options"])


def test_an_option_is_described_for_programs(reidcore):
    options = {it["name"]: it for it in json.loads(reidcore("components", "loss", "triplet", "--json")[1])["options"]}
    assert options["distance"] == {
        "name": "distance",
        "type": "string",
        "accepts": "'euclidean' or 'cosine'",
        "help": "between embeddings",
        "required": False,
        "default": "euclidean",
        "choices": ["euclidean", "cosine"],
    }
    assert options["margin"] == {
        "name": "margin",
        "type": "number",
        "accepts": "a number, at least 0",
        "help": "margin between the distances; 0.3 when absent",
        "required": False,
        "default": None,
        "bounds": {"at_least": 0},
    }
    (root,) = json.loads(reidcore("components", "dataset", "folder", "--json")[1])["options"]
    assert (root["required"], "default" in root) == (True, False)


def in_a_terminal(*arguments: object, columns: int = 60) -> str:
    """Run the command line in a terminal of this width and return what it shows."""
    inner, outer = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-m", "reidcore", *map(str, arguments)]
    with subprocess.Popen(command, stdout=outer, stderr=outer, env=environment) as process:
        os.close(outer)
        shown = b""
        while True:
            try:
                shown += os.read(inner, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(inner)
    assert process.returncode == 0, shown
    return re.sub(r"\x1b\[[0-9;]*m|\r", "", shown.decode())


def test_a_terminal_gets_folded_columns_and_a_pipe_whole_lines(write, reidcore):
    plugin = write("own.py", EVERYTHING)
    shown = in_a_terminal("components", "loss", "--plugin", plugin).splitlines()
    assert max(map(len, shown)) <= 60
    assert "[bold]as" in "\n".join(shown)
    rows = [line for line in shown if "arcface" in line]
    assert rows and rows[0].split()[:4] == ["loss", "arcface", "core", "Softmax"]
    _, out, _ = reidcore("components", "loss", "--plugin", plugin)
    summary = CATALOG.find("loss", "arcface").summary
    assert any(line.endswith(summary) for line in out.splitlines())


def test_a_terminal_shows_why_a_plugin_failed_in_its_width(write):
    plugin = write("own.py", "raise ValueError('for a reason that takes many words ' * 5)")
    shown = in_a_terminal("plugins", "--plugin", plugin, columns=100)
    assert max(map(len, shown.splitlines())) <= 100
    assert "failed:" in shown


def test_strict_exits_with_1_when_a_plugin_failed(write, reidcore):
    good = write("good.py", EVERYTHING.replace('    yield Component(name="triplet", config=Triplet)', ""))
    bad = write("bad.py", "1 / 0")
    assert reidcore("plugins", "--strict", "--plugin", good)[0] == 0
    assert reidcore("plugins", "--strict", "--plugin", bad)[0] == 1
    assert reidcore("plugins", "--strict", "--json", "--plugin", bad)[0] == 1
    assert reidcore("plugins", "--plugin", bad)[0] == 0


def test_components_of_a_plugin_that_did_not_load_are_not_passed_over(write, reidcore):
    bad = write("bad.py", "1 / 0")
    status, _, err = reidcore("components", "--plugin", bad)
    assert (status, err) == (2, f"the plugin {bad} did not load: ZeroDivisionError: division by zero\n")


def test_who_forgets_the_kind_is_told_it(reidcore):
    status, _, err = reidcore("components", "triplet")
    assert (status, err) == (2, "no kind is called 'triplet'; 'triplet' is a loss: reidcore components loss triplet\n")
