"""The JSON Schema of recipes says what loading them says."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import pytest
import tomli
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from reidcore.catalog import Catalog, discover
from reidcore.component import Component, default_of, option
from reidcore.errors import RecipeError
from reidcore.kinds import KINDS, LossConfig
from reidcore.recipe import Recipe, fill, load_recipe
from reidcore.scaffold import new_plugin
from reidcore.schema import recipe_schema
from reidcore.structure import Problems, make_converter

jsonschema = pytest.importorskip("jsonschema")

CATALOG = Catalog.of()  # the core's, whatever is installed
SCHEMA = recipe_schema(CATALOG)
READERS = {"2020-12": jsonschema.Draft202012Validator, "draft 7, as taplo": jsonschema.Draft7Validator}
FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = [
    file
    for file in (*sorted(FOLDER.glob("*.toml")), *sorted((FOLDER / "ablation").glob("*.toml")))
    if "requires" not in tomli.loads(file.read_text())  # the schema is that of the core alone
]
TRAIN = '[[train]]\nname = "folder"\nroot = "x"\n'


def mistakes(table: Any, schema: dict[str, Any] = SCHEMA) -> list[str]:
    """Return what the schema says of a recipe, which is the same in both drafts."""
    first, second = ([f"{e.json_path}: {e.message}" for e in it(schema).iter_errors(table)] for it in READERS.values())
    assert first == second
    return first


@pytest.mark.parametrize("recipe", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_and_what_it_is_when_filled_are_valid(recipe):
    assert mistakes(tomli.loads(recipe.read_text())) == []
    assert mistakes(tomli.loads(fill(load_recipe(recipe), {"reidcore": "0.1.0"}))) == []


AGREED = {
    "defaults": ("", True),
    "no data": (None, False),
    "a name of the core": ('[backbone]\nname = "core:resnet50"', True),
    "an unknown component": ('[backbone]\nname = "resnet5O"', False),
    "a component of another kind": ('[backbone]\nname = "gem"', False),
    "a component of no plugin": ('[backbone]\nname = "other:resnet50"', False),
    "a name that is no text": ("[head]\nname = 3", False),
    "no name where there is no default": ("[[transform]]\nprobability = 0.1", False),
    "no name: the default's options": ("[optimizer]\nlr = 0.1", True),
    "no name: another's options": ("[optimizer]\nmomentum = 0.5", False),
    "no name: a value out of bounds": ("[optimizer]\nlr = 0", False),
    "no name in a loss": ("[[loss]]\nweight = 1.0", False),
    "another component's option": ('[aggregator]\nname = "avg"\nalpha = 2.0', False),
    "the same option of another type": ('[[transform]]\nname = "pad-crop"\nfill = "mean"', False),
    "the same option of its type": ('[[transform]]\nname = "random-erasing"\nfill = "mean"', True),
    "an unknown table": ("[optimiser]", False),
    "an unknown key": ("[training]\nepoch = 3", False),
    "an unknown key of a component": ('[aggregator]\nname = "gem"\nalhpa = 2.0', False),
    "an unknown key beside a component": ('[[loss]]\nname = "triplet"\nwieght = 2.0', False),
    "a key of the core beside a component": ('[[loss]]\nname = "triplet"\nweight = 2.0', True),
    "a key of the core that is wrong": ('[[loss]]\nname = "triplet"\nweight = -1', False),
    "keys of a test": (
        '[[test]]\nname = "folder"\nroot = "x"\nlabel = "a"\npostprocess = [{ name = "k-reciprocal", k1 = 3 }]',
        True,
    ),
    "a key of tests in train": ('[[train]]\nname = "folder"\nroot = "x"\nlabel = "a"', False),
    "a misspelt protocol": ('[[test]]\nname = "folder"\nroot = "x"\nprotocol = "cross"', False),
    "a post-processor's unknown key": (
        '[[test]]\nname = "folder"\nroot = "x"\npostprocess = [{ name = "k-reciprocal", k = 3 }]',
        False,
    ),
    "a required option is missing": ('[[test]]\nname = "folder"', False),
    "a required option of a single table is missing": ('[sampler]\nname = "weighted-sets"', False),
    "a required option of a single table": ('[sampler]\nname = "weighted-sets"\nweights = [1]', True),
    "an item out of bounds": ('[sampler]\nname = "weighted-sets"\nweights = [1, 0]', False),
    "a pair of one": ('[[transform]]\nname = "random-erasing"\narea = [0.1]', False),
    "a pair of three": ('[[transform]]\nname = "random-erasing"\narea = [0.1, 0.2, 0.3]', False),
    "a misspelt choice": ('[training]\nprecision = "bfloat"', False),
    "a table within a component's": ("[optimizer]\ndecay_factors = { norm = 0 }", True),
    "a table within a component's, misspelt": ("[optimizer]\ndecay_factors = { norms = 0 }", False),
    "a table within another component's": ('[optimizer]\nname = "adamw"\ndecay_factors.norms = 0', False),
    "one or the other type": ('[[loss]]\nname = "triplet"\non = ["b1", ["b21", "b22"]]', True),
    "neither type": ('[[loss]]\nname = "triplet"\non = [1]', False),
    "a table that should be several": ('[test]\nname = "folder"', False),
    "several tables that should be one": ('[[head]]\nname = "bnneck"', False),
    "a name that is like no other": ('[[export]]\nname = "nowhere"', False),
    "requirements": ('requires = ["attrs"]', True),
    "requirements that are no list": ('requires = "attrs"', False),
    "versions": ('[versions]\ntorch = "2.6"\nnumber = 3', True),
    "versions that are no table": ("versions = 3", False),
}


@pytest.mark.parametrize("case", AGREED)
def test_it_agrees_with_loading(case, write):
    text, valid = AGREED[case]
    key_first = "" if text is None else f"{text}\n{TRAIN}"  # keys of the recipe itself stand above its tables
    file = write("r.toml", key_first)
    assert (mistakes(tomli.loads(key_first)) == []) is valid
    if valid:
        load_recipe(file)
    else:
        with pytest.raises(RecipeError):
            load_recipe(file)


EXTENDED = {
    "no data": ("[input]\nheight = 64", True),
    "an option of what the base chose": ("[optimizer]\nmomentum = 0.5", True),
    "an option that no component has": ("[optimizer]\nmomentun = 0.5", False),
    "another name, and an option of the base's": ('[optimizer]\nname = "adam"\nmomentum = 0.5', False),
    "the same name without what the base says": ('[sampler]\nname = "weighted-sets"\ninstances = 2', True),
    "arrays are whole": ('[[loss]]\nname = "triplet"', True),
    "items of arrays need a name": ("[[loss]]\nweight = 2.0", False),
    "items of arrays need what is required": ('[[train]]\nname = "folder"', False),
    "a value out of bounds": ("[optimizer]\nlr = 0", False),
}


@pytest.mark.parametrize("case", EXTENDED)
def test_it_agrees_with_loading_a_recipe_that_extends_another(case, write):
    text, valid = EXTENDED[case]
    write("base.toml", f'{TRAIN}[optimizer]\nname = "sgd"\n[sampler]\nname = "weighted-sets"\nweights = [1]')
    file = write("top.toml", f'extends = "base.toml"\n{text}')
    assert (mistakes(tomli.loads(file.read_text())) == []) is valid
    if valid:
        load_recipe(file)
    else:
        with pytest.raises(RecipeError):
            load_recipe(file)


ONLY_LOADING = {
    "a rule over several options": '[[loss]]\nname = "triplet"\nsoft = true\nmargin = 0.3',
    "a rule over an array's items": '[[transform]]\nname = "random-erasing"\narea = [0.2, 0.1]',
    "two tests of one label": '[[test]]\nname = "folder"\nroot = "a"\n[[test]]\nname = "folder"\nroot = "b"',
    "a run outside its folder": '[run]\nname = "../elsewhere"',
    "an empty array": "loss = []",
    "a package that is not there": 'requires = ["reid-none"]',
    "a base that is not there": 'extends = "none.toml"',
    "a whole number that is no integer": "[input]\nheight = 64.0",
}


@pytest.mark.parametrize("case", ONLY_LOADING)
def test_what_only_loading_finds(case, write):
    text = f"{ONLY_LOADING[case]}\n{TRAIN}"
    assert mistakes(tomli.loads(text)) == []
    with pytest.raises(RecipeError):
        load_recipe(write("r.toml", text))


OPTIONS = [
    (kind.name, component, field)
    for kind in KINDS.values()
    for component in CATALOG.components(kind.name)
    if attrs.resolve_types(component.config)
    for field in attrs.fields(component.config)
]
KEYS = {"dataset": "train", "exporter": "export"}
FIELDS = {field.name: field for field in attrs.fields(Recipe)}
FITTING = {"root": "x", "file": "x", "pairs": "x", "weights": [1.0]}  # what is required in the core
VALUES = st.recursive(
    st.booleans()
    | st.integers(-2, 300)
    | st.floats(-2, 20, allow_nan=False).filter(lambda value: not value.is_integer())
    | st.sampled_from(["", "x", "none", "mean", "before", "cosine", "Mean", "linear"]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.sampled_from(["norm", "x"]), values, max_size=2),
    max_leaves=5,
)


def recipe_with(kind: str, component: Component, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe that chooses `component`, with what it requires."""
    required = {it.name: FITTING[it.name] for it in attrs.fields(component.config) if default_of(it) is attrs.NOTHING}
    part = {"name": component.full_name, **required, **options}
    train = [{"name": "core:synthetic"}]
    if kind == "postprocessor":
        return {"train": train, "test": [{"name": "synthetic", "postprocess": [part]}]}
    key = KEYS.get(kind, kind)
    single = FIELDS[key].type is KINDS[kind].protocol
    return {"train": train, key: part if single else [part]}


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(OPTIONS), VALUES)
def test_it_agrees_with_the_converter_on_any_value_of_any_option(choice, value):
    kind, component, field = choice
    table = recipe_with(kind, component, {field.name: value})
    try:
        make_converter(CATALOG).structure(table, Recipe)
        refused = False
    except Problems as problems:  # those of the table as a whole are rules over several options
        refused = any(field.name in problem.path for problem in problems.items)
    assert bool(mistakes(table)) is refused


@frozen(kw_only=True)
class Nested:
    """A loss that holds others; its options have every type."""

    renamed: ClassVar[Mapping[str, str]] = {"old": "scale", "older": "scale", "size": "width"}
    width: int = option(help="how wide", at_least=1)
    scale: float = option(math.inf, help="how sharply", above=0)
    terms: tuple[LossConfig, ...] = option((), help="losses")
    inner: LossConfig | None = option(None, help="a loss")
    mode: Literal["a", 2] = option("a", help="a choice")
    sizes: Mapping[str, int] = option(factory=dict, help="numbers by name")
    pair: tuple[int, str] = option((1, "x"), help="a number and a text")
    anything: Any = option(None, help="what the schema knows nothing of")

    def build(self, parts): ...


@frozen(kw_only=True)
class Same:
    """Another's triplet."""

    def build(self, parts): ...


@frozen(kw_only=True)
class Needy:
    """A sampler whose required option had another name."""

    renamed: ClassVar[Mapping[str, str]] = {"p": "people"}
    people: int = option(help="how many", at_least=1)

    def build(self, labels, cameras, seed): ...


OTHERS = Catalog.of(
    losses=[
        Component(name="nested", config=Nested, old_names=("nest",)),
        Component(name="triplet", config=Same, deprecated="use 'nested'"),
    ],
    samplers=[Component(name="needy", config=Needy)],
)
OTHERS_SCHEMA = recipe_schema(OTHERS)
THIRD_PARTY = {
    "its option": ('[[loss]]\nname = "nested"\nwidth = 3', True),
    "its full name": ('[[loss]]\nname = "given:nested"\nwidth = 3', True),
    "its old name": ('[[loss]]\nname = "nest"\nwidth = 3', True),
    "its old full name": ('[[loss]]\nname = "given:nest"\nwidth = 3', True),
    "its unknown option": ('[[loss]]\nname = "nested"\nwidht = 3', False),
    "the core's part of the same name": ('[[loss]]\nname = "triplet"\nmargin = 0.1', True),
    "its part of the same name": ('[[loss]]\nname = "given:triplet"', True),
    "the core's option in its part": ('[[loss]]\nname = "given:triplet"\nmargin = 0.1', False),
    "what is required by an old name": ('[[loss]]\nname = "nested"\nsize = 3', True),
    "what is required by no name": ('[[loss]]\nname = "nested"', False),
    "an old option": ('[[loss]]\nname = "nested"\nwidth = 3\nold = 0.5', True),
    "an old option out of bounds": ('[[loss]]\nname = "nested"\nwidth = 3\nold = 0', False),
    "an option by two names": ('[[loss]]\nname = "nested"\nwidth = 3\nold = 0.5\nscale = 0.5', False),
    "an option by two old names": ('[[loss]]\nname = "nested"\nwidth = 3\nold = 0.5\nolder = 0.5', False),
    "parts in parts": (
        '[[loss]]\nname = "nested"\nwidth = 3\ninner = { name = "triplet" }\nterms = [{ name = "nested", size = 1 }]',
        True,
    ),
    "a mistake in a part in a part": (
        '[[loss]]\nname = "nested"\nwidth = 3\n[[loss.terms]]\nname = "nested"\nwidth = 0',
        False,
    ),
    "a part in a part without a name": ('[[loss]]\nname = "nested"\nwidth = 3\n[[loss.terms]]\nwidth = 1', False),
    "a key of the core in a part in a part": (
        '[[loss]]\nname = "nested"\nwidth = 3\ninner = { name = "triplet", weight = 2 }',
        False,
    ),
    "numbers by name": ('[[loss]]\nname = "nested"\nwidth = 3\nsizes = { a = 1 }', True),
    "texts by name": ('[[loss]]\nname = "nested"\nwidth = 3\nsizes = { a = "x" }', False),
    "a choice that is a number": ('[[loss]]\nname = "nested"\nwidth = 3\nmode = 2', True),
    "a pair of two types": ('[[loss]]\nname = "nested"\nwidth = 3\npair = [2, "y"]', True),
    "a pair of a third type": ('[[loss]]\nname = "nested"\nwidth = 3\npair = [2, true]', False),
    "a single table by its old name": ('[sampler]\nname = "needy"\np = 3', True),
    "a single table by no name": ('[sampler]\nname = "needy"', False),
}


@pytest.mark.parametrize("reader", READERS)
def test_it_is_a_schema(reader):
    READERS[reader].check_schema(OTHERS_SCHEMA)  # the core's parts, and some that have everything
    json.dumps(OTHERS_SCHEMA, allow_nan=False)


@pytest.mark.parametrize("case", THIRD_PARTY)
@pytest.mark.filterwarnings("ignore::reidcore.errors.ReidDeprecationWarning")
def test_it_agrees_on_parts_of_others(case):
    text, valid = THIRD_PARTY[case]
    table = tomli.loads(f"{text}\n{TRAIN}[run]\nname = 'r'")
    assert (mistakes(table, OTHERS_SCHEMA) == []) is valid
    if valid:
        load_recipe(table, catalog=OTHERS)
    else:
        with pytest.raises(RecipeError):
            load_recipe(table, catalog=OTHERS)


def test_a_mistake_is_said_once_and_at_its_key():
    table = tomli.loads(f'[[loss]]\nname = "triplet"\nmining = "hardest"\nmargn = 1\n{TRAIN}')
    assert mistakes(table) == [
        "$.loss[0].mining: 'hardest' is not one of ['hard', 'weighted', 'all']",
        "$.loss[0]: Additional properties are not allowed ('margn' was unexpected)",
    ]


def test_editors_find_options_defaults_bounds_help_and_summaries():
    table = SCHEMA["$defs"]["LossTerm-item"]["properties"]
    assert table["mining"] == {
        "type": "string",
        "enum": ["hard", "weighted", "all"],
        "description": "the hardest pairs of each anchor, means weighted towards them, or every triplet",
        "default": "hard",
    }
    assert table["weight"] == {
        "type": "number",
        "minimum": 0,
        "description": "factor in the sum of losses",
        "default": 1.0,
    }
    names = table["name"]
    summaries = dict(zip(names["enum"], names["x-taplo"]["docs"]["enumValues"], strict=True))
    assert summaries["triplet"] == summaries["core:triplet"] == CATALOG.find("loss", "triplet").summary
    fill = SCHEMA["$defs"]["transform-item"]["properties"]["fill"]
    assert fill["type"] == ["integer", "string"]
    assert fill["description"].splitlines() == [
        "pad-crop: value of the padding",
        "",
        "affine, auto-augment, augmix: value of what comes in from outside",
        "",
        "random-erasing: ImageNet's mean colour, noise or black",
    ]


def test_what_is_old_or_deprecated_is_marked():
    table = OTHERS_SCHEMA["$defs"]["LossTerm-item"]
    assert table["properties"]["old"]["deprecated"] is True
    assert table["properties"]["old"]["description"] == "an old name; write 'scale'"
    marked = [it["if"]["properties"]["name"]["enum"] for it in table["then"]["allOf"] if "deprecated" in it["then"]]
    assert marked == [["given:triplet"]]
    names = table["properties"]["name"]
    summaries = dict(zip(names["enum"], names["x-taplo"]["docs"]["enumValues"], strict=True))
    assert summaries["given:triplet"] == "'given:triplet' is deprecated; use 'nested'. Another's triplet."
    assert summaries["nest"].startswith("'nest' is an old name; write 'nested'. ")


def test_a_name_of_two_plugins_is_offered_in_full(write, tmp_path):
    code = (new_plugin("reid-own", "loss", tmp_path) / "reid_own" / "__init__.py").read_text()
    files = [write("one.py", code), write("two.py", code)]
    names = recipe_schema(discover(files))["$defs"]["LossTerm-item"]["properties"]["name"]["enum"]
    assert {"one:own", "two:own"} <= set(names)
    assert "own" not in names


def test_the_verb_prints_it_or_writes_it(write, tmp_path, reidcore):
    plugin = write("idea.py", (new_plugin("reid-own", "loss", tmp_path) / "reid_own" / "__init__.py").read_text())
    status, out, err = reidcore("schema", "--plugin", plugin)
    assert (status, err) == (0, "")
    assert mistakes(tomli.loads(f'[[loss]]\nname = "idea:own"\nmargin = 0.2\n{TRAIN}'), json.loads(out)) == []
    file = tmp_path / "recipe.schema.json"
    status, said, _ = reidcore("schema", "--plugin", plugin, "-o", file)
    assert (status, file.read_text()) == (0, out)
    assert said.startswith(f"{file}: recipes with the components of core")


def test_the_verb_says_what_is_missing(write, tmp_path, reidcore, monkeypatch):
    monkeypatch.setenv("REIDCORE_PLUGINS", "absent")
    _, out, err = reidcore("schema")
    assert json.loads(out)["title"] == "reidcore recipe"
    assert err == (
        "without plugin 'absent' (not installed), which did not load: "
        "REIDCORE_PLUGINS names it, but it is not installed\n"
    )
    plugin = write("idea.py", "1 / 0")
    status, _, err = reidcore("schema", "--plugin", plugin)
    assert (status, err) == (2, f"the plugin {plugin} did not load: ZeroDivisionError: division by zero\n")
    status, _, err = reidcore("schema", "-o", tmp_path / "none" / "x.json")
    assert (status, err.splitlines()[-1]) == (2, f"cannot write {tmp_path}/none/x.json: No such file or directory")
