"""Old and deprecated names still work, with one line that says what to write."""

import warnings
from collections.abc import Mapping
from typing import ClassVar

import pytest
import tomli
from attrs import evolve, frozen

from reidcore.catalog import Catalog, discover
from reidcore.component import Component, option
from reidcore.errors import RecipeError, ReidDeprecationWarning
from reidcore.recipe import fill, load_recipe
from reidcore.testing import Kit, checks

PLUGIN = """
from collections.abc import Mapping
from typing import ClassVar
from attrs import frozen
from reidcore import Component, hookimpl, option

@frozen(kw_only=True)
class Spread:
    '''Push embeddings apart.'''
    renamed: ClassVar[Mapping[str, str]] = {"sharpness": "scale", "temperature": "scale", "size": "radius"}
    scale: float = option(1.0, help="how sharply", above=0)
    radius: float = option(help="how far")
    def build(self, parts): ...

@frozen(kw_only=True)
class Push:
    '''Push harder.'''
    def build(self, parts): ...

@hookimpl
def reidcore_losses():
    yield Component(name="spread", config=Spread, old_names=("push-apart",))
    yield Component(name="push", config=Push, deprecated="use 'spread'")
"""
TRAIN = '[[train]]\nname = "folder"\nroot = "x"\n'


@pytest.fixture
def check(write, reidcore):
    """Return a function that checks a recipe with these [[loss]] tables, and returns what it says of each."""
    plugin = write("own.py", PLUGIN)

    def run(losses: str, verb: str = "check"):
        recipe = write("r.toml", TRAIN + losses)
        status, out, err = reidcore(verb, recipe, "--plugin", plugin)
        return status, out, err.replace(f"{recipe}:", "").splitlines()

    return run


NOTICED = {
    "a deprecated component": ('name = "push"', "5: loss.0.name: 'push' is deprecated; use 'spread'"),
    "its full name": ('name = "own:push"', "5: loss.0.name: 'own:push' is deprecated; use 'spread'"),
    "an old name": ('name = "push-apart"\nradius = 1', "5: loss.0.name: 'push-apart' is an old name; write 'spread'"),
    "an old full name": (
        'name = "own:push-apart"\nradius = 1',
        "5: loss.0.name: 'own:push-apart' is an old name; write 'own:spread'",
    ),
    "an old option": (
        'name = "spread"\nradius = 1\nsharpness = 2.0',
        "7: loss.0.sharpness: an old name; write 'scale'",
    ),
    "an old required option": ('name = "spread"\nsize = 1', "6: loss.0.size: an old name; write 'radius'"),
}


@pytest.mark.parametrize("case", NOTICED)
def test_what_is_old_is_accepted_with_one_line_that_says_what_to_write(case, check):
    table, line = NOTICED[case]
    assert check(f"[[loss]]\n{table}\n")[0::2] == (0, [line])


REFUSED = {
    "both names": (
        'name = "spread"\nradius = 1\nscale = 1.0\nsharpness = 2.0',
        ["8: loss.0.sharpness: an old name of 'scale', which is given already; leave it out"],
    ),
    "two old names": (
        'name = "spread"\nradius = 1\ntemperature = 1.0\nsharpness = 2.0',
        ["7: loss.0.temperature: an old name of 'scale', which is given already; leave it out"],
    ),
    "a wrong value": (
        'name = "spread"\nradius = 1\nsharpness = 0',
        ["7: loss.0.sharpness: found 0.0; expected above 0"],
    ),
    "a wrong type": (
        'name = "push-apart"\nsize = "far"',
        ["6: loss.0.size: found 'far'; expected a number"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_old_option_is_checked_like_the_new_one_and_shown_where_it_stands(case, check):
    table, lines = REFUSED[case]
    assert check(f"[[loss]]\n{table}\n")[0::2] == (2, lines)


def test_each_place_is_named_once(check):
    losses = '[[loss]]\nname = "push"\n[[loss]]\nname = "push"\n'
    expected = [f"{line}: loss.{n}.name: 'push' is deprecated; use 'spread'" for n, line in ((0, 5), (1, 7))]
    assert check(losses)[2] == expected


def test_a_filled_recipe_has_the_new_names(check):
    status, out, _ = check('[[loss]]\nname = "push-apart"\nsize = 2\nsharpness = 3.0\n', "fill")
    assert status == 0
    assert tomli.loads(out)["loss"] == [{"name": "own:spread", "weight": 1.0, "scale": 3.0, "radius": 2.0}]


@frozen(kw_only=True)
class Inner:
    renamed: ClassVar[Mapping[str, str]] = {"old": "new"}
    new: int = option(1, help="a number")


@frozen(kw_only=True)
class Outer:
    """A loss with a table, or something else."""

    renamed: ClassVar[Mapping[str, str]] = {"gone": "missing"}
    table: Inner = option(factory=Inner, help="a table")
    either: int | Inner = option(1, help="a number or a table")

    def build(self, parts):
        return self


CATALOG = Catalog.of(losses=[Component(name="outer", config=Outer, old_names=("was",))])


def load(loss):
    table = {"run": {"name": "r"}, "train": [{"name": "folder", "root": "x"}], "loss": [{"name": "outer", **loss}]}
    return load_recipe(table, catalog=CATALOG)


def test_python_is_warned_at_the_caller_and_of_tables_within_tables():
    with pytest.warns(ReidDeprecationWarning) as caught:
        loaded = load({"table": {"old": 2}, "either": {"old": 3}})
    assert sorted(str(item.message) for item in caught) == [
        "recipe: loss.0.either.old: an old name; write 'new'",
        "recipe: loss.0.table.old: an old name; write 'new'",
    ]
    assert {item.filename for item in caught} == {__file__}
    assert tomli.loads(fill(loaded))["loss"][0]["table"] == {"new": 2}


def test_a_choice_that_failed_leaves_no_line():
    with warnings.catch_warnings(), pytest.raises(RecipeError, match="either"):
        warnings.simplefilter("error")
        load({"either": {"old": "x"}})


def test_an_old_name_that_leads_nowhere_is_an_unknown_key():
    with pytest.raises(RecipeError, match=r"loss\.0\.gone: unknown key"):
        load({"gone": 1})


def test_a_part_built_outside_a_recipe_warns_too():
    with pytest.warns(ReidDeprecationWarning, match="'was' is an old name; write 'outer'"):
        CATALOG.build("loss", "was", {}, None)
    with pytest.warns(ReidDeprecationWarning, match=r"outer\.table\.old: an old name; write 'new'"):
        CATALOG.build("loss", "outer", {"table": {"old": 1}}, None)


def test_other_warnings_stay_as_they_are(write, reidcore):
    file = write("loud.py", PLUGIN + "\nimport warnings\nwarnings.warn('too loud')")
    recipe = write("r.toml", TRAIN)
    with pytest.warns(UserWarning, match="too loud"):
        reidcore("check", recipe, "--plugin", file)


def test_a_plugin_cannot_offer_an_old_name_twice(write):
    (plugin,) = discover([write("own.py", PLUGIN.replace('("push-apart",)', '("push",)'))]).failed
    assert plugin.error == "it offers two losses called 'push'"
    (plugin,) = discover([write("own.py", PLUGIN.replace('("push-apart",)', '("Push Apart",)'))]).failed
    assert "a component's name is lower-case letters" in plugin.error


def test_an_old_name_of_the_core_is_the_cores():
    @frozen(kw_only=True)
    class Other:
        """Another's loss."""

        def build(self, parts): ...

    core, given = Catalog.of(losses=[Component(name="was", config=Other)]).plugins
    outer = Component(name="outer", config=Outer, old_names=("was",), plugin="core")
    both = Catalog((evolve(core, components={"loss": (outer,)}), given))
    assert both.find("loss", "was").config is Outer
    assert both.find("loss", "given:was").config is Other
    assert both.names("loss", both.find("loss", "outer")) == ("outer", "core:outer", "was", "core:was")
    assert both.names("loss", both.find("loss", "given:was")) == ("given:was",)


def test_components_show_what_is_deprecated(write, reidcore):
    plugin = write("own.py", PLUGIN)
    _, listed, _ = reidcore("components", "loss", "--plugin", plugin)
    assert "Deprecated; use 'spread'. Push harder." in listed
    _, page, _ = reidcore("components", "loss", "push-apart", "--plugin", plugin)
    assert "old names: push-apart" in page
    assert "how sharply (old name: sharpness, temperature)" in page


class Bad:
    """A task."""

    def build(self): ...


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"old": "nothing"}, "leads from 'old' to 'nothing', which is no option"),
        ({"depth": "height"}, "has 'depth' for an old name, but that is a key still"),
        ({"name": "depth"}, "has 'name' for an old name, but that is a key still"),
    ],
)
def test_the_contract_finds_old_names_that_lead_nowhere(renamed, message):
    @frozen(kw_only=True)
    class Config(Bad):
        depth: int = option(1, help="a number")
        height: int = option(1, help="a number")

    Config.renamed = renamed
    with pytest.raises(AssertionError, match=message):
        checks.old_names_of_options_lead_to_options(Kit(CATALOG, "task", Component(name="bad", config=Config), {}))
    Config.renamed = {"old": "depth"}
    checks.old_names_of_options_lead_to_options(Kit(CATALOG, "task", Component(name="bad", config=Config), {}))


def test_the_contract_wants_to_know_what_to_use_instead():
    config = frozen(kw_only=True)(Bad)
    for text, good in (("", True), ("use 'train'", True), ("do not use", False)):
        kit = Kit(CATALOG, "task", Component(name="bad", config=config, deprecated=text), {})
        if good:
            checks.a_deprecation_says_what_to_use(kit)
        else:
            with pytest.raises(AssertionError, match="use 'its replacement'"):
                checks.a_deprecation_says_what_to_use(kit)
