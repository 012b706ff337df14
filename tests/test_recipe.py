"""Loading, extending, overriding, filling and writing recipes."""

import attrs
import pytest
import tomli

from reidcore.errors import RecipeError
from reidcore.recipe import fill, load_recipe

BASE = """
[[train]]
name = "folder"
root = "base-data"

[input]
height = 64
width = 32

[aggregator]
name = "gem"
alpha = 4.0
learn = false

[[loss]]
name = "triplet"
margin = 0.5

[run]
seed = 7
name = "base"
"""


def test_tables_merge_by_key(write):
    write("base.toml", BASE)
    recipe = load_recipe(write("top.toml", 'extends = "base.toml"\n[input]\nwidth = 48\n')).recipe
    assert (recipe.input.height, recipe.input.width) == (64, 48)


def test_an_option_of_the_same_component_is_added(write):
    write("base.toml", BASE)
    recipe = load_recipe(write("top.toml", 'extends = "base.toml"\n[aggregator]\nlearn = true\n')).recipe
    assert (recipe.aggregator.alpha, recipe.aggregator.learn) == (4.0, True)


def test_another_name_drops_the_options_of_the_base(write):
    write("base.toml", BASE)
    recipe = load_recipe(write("top.toml", 'extends = "base.toml"\n[aggregator]\nname = "avg"\n')).recipe
    assert type(recipe.aggregator).__name__ == "Average"


def test_the_name_of_the_run_is_no_component(write):
    write("base.toml", BASE)
    recipe = load_recipe(write("top.toml", 'extends = "base.toml"\n[run]\nname = "top"\n')).recipe
    assert (recipe.run.name, recipe.run.seed) == ("top", 7)


def test_arrays_are_replaced_whole(write):
    write("base.toml", BASE)
    recipe = load_recipe(write("top.toml", 'extends = "base.toml"\n[[loss]]\nname = "cross-entropy"\n')).recipe
    assert [type(term.loss).__name__ for term in recipe.loss] == ["CrossEntropy"]


def test_a_recipe_can_extend_one_that_extends_another(write):
    write("base.toml", BASE)
    write("middle.toml", 'extends = "base.toml"\n[input]\nheight = 96\n')
    recipe = load_recipe(write("top.toml", 'extends = "middle.toml"\n[input]\nwidth = 48\n')).recipe
    assert (recipe.input.height, recipe.input.width, recipe.run.seed) == (96, 48, 7)


def test_a_run_is_called_as_its_file_when_it_has_no_name(write):
    assert load_recipe(write("market.toml", '[[train]]\nname = "folder"\nroot = "x"')).recipe.run.name == "market"


def test_a_table_without_a_name_of_the_run_is_refused():
    with pytest.raises(RecipeError, match=r"run\.name: missing"):
        load_recipe({"train": [{"name": "folder", "root": "x"}]})


def test_options_without_a_name_are_the_default_components(write):
    recipe = load_recipe(write("r.toml", '[optimizer]\nlr = 0.5\n[[train]]\nname = "folder"\nroot = "x"')).recipe
    assert (type(recipe.optimizer).__name__, recipe.optimizer.lr) == ("Adam", 0.5)


def test_toml_1_1_inline_tables_over_several_lines(write):
    file = write("r.toml", 'train = [\n  {\n    name = "folder",\n    root = "x",\n  },\n]\n')
    assert len(load_recipe(file).recipe.train) == 1


OVERRIDES = [
    ("input.height=80", lambda recipe: recipe.input.height, 80),
    ("train.0.root=../elsewhere", lambda recipe: str(recipe.train[0].dataset.root), "../elsewhere"),
    ('run.name="x"', lambda recipe: recipe.run.name, "x"),
    ("run.name=x y", lambda recipe: (recipe.run.name, recipe.run.seed), ("x y", 7)),
    ("aggregator.name=max", lambda recipe: type(recipe.aggregator).__name__, "Max"),
    ("aggregator.name=gem", lambda recipe: recipe.aggregator.alpha, 4.0),
    (
        "training={freeze=['backbone'], freeze_iterations=1}",
        lambda recipe: recipe.training.freeze,
        ("backbone",),
    ),
    ("loss=[{name='cross-entropy'}]", lambda recipe: len(recipe.loss), 1),
    ("loss.0.weight=2", lambda recipe: recipe.loss[0].weight, 2.0),
    ("loss.1.name=cross-entropy", lambda recipe: len(recipe.loss), 2),
    ("transform.0.name=flip", lambda recipe: len(recipe.transform), 1),
]


@pytest.mark.parametrize(("override", "look", "expected"), OVERRIDES, ids=[item[0] for item in OVERRIDES])
def test_override(override, look, expected, write):
    assert look(load_recipe(write("base.toml", BASE), overrides=[override]).recipe) == expected


def test_another_component_keeps_what_is_the_cores_and_what_is_set_with_it(write):
    base = write("base.toml", BASE + "[[test]]\nname = 'folder'\nroot = 'x'\nlabel = 'own'\n")
    overrides = ["test.0.identities=5", "test.0.name=synthetic", "aggregator.name=core:gem"]
    recipe = load_recipe(base, overrides=overrides).recipe
    assert (recipe.test[0].label, recipe.test[0].dataset.identities) == ("own", 5)
    assert recipe.aggregator.alpha == 4.0


def test_a_value_that_looks_like_a_date_is_a_text(write):
    assert load_recipe(write("b.toml", BASE), overrides=["run.name=2024-01-01"]).recipe.run.name == "2024-01-01"


def test_a_recipe_may_begin_with_a_byte_order_mark(write):
    assert load_recipe(write("b.toml", "\ufeff" + BASE)).recipe.run.seed == 7


def test_later_overrides_win(write):
    loaded = load_recipe(write("base.toml", BASE), overrides=["input.height=1", "input.height=2"])
    assert loaded.recipe.input.height == 2


def test_a_filled_recipe_means_the_same(write):
    loaded = load_recipe(write("base.toml", BASE))
    again = load_recipe(write("filled.toml", fill(loaded, {"torch": "2.0"})))
    assert again.recipe == loaded.recipe
    assert fill(again) == fill(loaded)


def test_a_filled_recipe_writes_out_every_option_and_full_names(write):
    table = tomli.loads(fill(load_recipe(write("base.toml", BASE))))
    assert table["backbone"]["name"] == "core:resnet50"
    assert {term["name"] for term in table["loss"]} == {"core:triplet"}
    for config in (table["backbone"], table["optimizer"], table["scheduler"]):
        kind = next(key for key, value in table.items() if value is config)
        options = attrs.asdict(getattr(load_recipe(table).recipe, kind), recurse=False)
        assert set(config) == {"name", *(name for name, value in options.items() if value is not None)}


def test_every_default_part_is_written_by_the_name_that_chooses_it(write):
    loaded = load_recipe(write("r.toml", '[[train]]\nname = "folder"\nroot = "x"'))
    for kind in ("sampler", "backbone", "aggregator", "head", "optimizer", "scheduler", "task"):
        name = tomli.loads(fill(loaded))[kind]["name"]
        assert loaded.catalog.find(kind, name).config is type(getattr(loaded.recipe, kind))
