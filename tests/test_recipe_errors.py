"""What the command line says of mistakes in recipes, word for word."""

import pytest

GOOD = """
[[train]]
name = "folder"
root = "data"
"""

ONE_MISTAKE = {
    "a text is no integer": ('[input]\nheight = "tall"', "6: input.height: found 'tall'; expected an integer"),
    "a float is no integer": ("[input]\nheight = 3.7", "6: input.height: found 3.7; expected an integer"),
    "a boolean is no integer": ("[input]\nheight = true", "6: input.height: found true; expected an integer"),
    "a text is no boolean": (
        '[aggregator]\nname = "gem"\nlearn = "no"',
        "7: aggregator.learn: found 'no'; expected true or false",
    ),
    "an integer is no boolean": (
        '[aggregator]\nname = "gem"\nlearn = 0',
        "7: aggregator.learn: found 0; expected true or false",
    ),
    "a text is no number": ('[training]\nema = "high"', "6: training.ema: found 'high'; expected a number"),
    "a text is no array": (
        '[training]\nfreeze = "backbone"',
        "6: training.freeze: found 'backbone'; expected an array, each item a text; write ['backbone']",
    ),
    "an item of the wrong type": (
        '[training]\nfreeze = [\n  "backbone",\n  3,\n]',
        "8: training.freeze.1: found 3; expected a text",
    ),
    "a table is no array of tables": (
        '[test]\nname = "folder"',
        "5: test: found a table; expected an array, each item a table; "
        "write the table's name in double brackets: [[...]]",
    ),
    "a value below its bound": ("[input]\nheight = 0", "6: input.height: found 0; expected at least 1"),
    "a value past its bound": ("[training]\nema = 1", "6: training.ema: found 1.0; expected at least 0 and below 1"),
    "a pair of one": (
        '[[transform]]\nname = "random-erasing"\narea = [0.1]',
        "7: transform.0.area: found an array of 1; expected an array of 2, each item a number",
    ),
    "a rule over a pair": (
        '[[transform]]\nname = "random-erasing"\narea = [0.2, 0.1]',
        "5: transform.0: area: found 0.2 above 0.1; expected the smaller one first",
    ),
    "a choice that is none": (
        '[training]\nprecision = "bfloat"',
        "6: training.precision: found 'bfloat'; expected 'auto' or 'float32' or 'bfloat16'; did you mean 'bfloat16'?",
    ),
    "an unknown key suggests the nearest": (
        "[training]\nepoch = 3",
        "6: training.epoch: unknown key; did you mean 'epochs'?",
    ),
    "an unknown table suggests the nearest": ("[optimiser]", "5: optimiser: unknown key; did you mean 'optimizer'?"),
    "an unknown key of a component": (
        '[aggregator]\nname = "gem"\nalhpa = 2.0',
        "7: aggregator.alhpa: unknown key; did you mean 'alpha'?",
    ),
    "an unknown key beside a component": (
        '[[loss]]\nname = "triplet"\nwieght = 2.0',
        "7: loss.0.wieght: unknown key; did you mean 'weight'?",
    ),
    "a component without options": (
        '[task]\nname = "train"\nq = 1',
        "7: task.q: unknown key; expected no options",
    ),
    "an unknown name suggests the nearest": (
        '[backbone]\nname = "resnet5O"',
        "6: backbone.name: no backbone is called 'resnet5O'; did you mean 'resnet50'?",
    ),
    "a name of another kind": (
        '[backbone]\nname = "gem"',
        "6: backbone.name: no backbone is called 'gem'; 'gem' is an aggregator",
    ),
    "a name with another plugin's prefix": (
        '[backbone]\nname = "nowhere:resnet50"',
        "6: backbone.name: no backbone is called 'nowhere:resnet50'; no plugin 'nowhere' is installed "
        "(its package may be called reid-nowhere); there is 'core:resnet50'",
    ),
    "a name that is like no other": (
        '[[metric]]\nname = "nowhere"',
        "6: metric.0.name: no metric is called 'nowhere'; there are cmc, map, minp, recall, roc",
    ),
    "a missing name": (
        "[[metric]]\nranks = [1]",
        "5: metric.0: the key 'name' is missing; it chooses a metric: cmc, map, minp, recall, roc",
    ),
    "a name that is no text": ("[head]\nname = 3", "6: head.name: found 3; expected the name of a head"),
    "a value where a component belongs": (
        'head = "bnneck"\n[run]',
        "5: train.0.head: unknown key; expected root or role",
    ),
    "a missing option": (
        '[[test]]\nname = "folder"',
        "5: test.0.root: missing; expected a path (folder that holds train/, query/ and gallery/)",
    ),
    "two tests of one name": (
        '[[test]]\nname = "folder"\nroot = "a"\n[[test]]\nname = "folder"\nroot = "b"',
        "8: test.1: two tests are called 'folder'; give one of them a label",
    ),
    "a run name outside the output": (
        '[run]\nname = "../elsewhere"',
        "6: run.name: found '../elsewhere'; expected the name of a folder",
    ),
    "an inline table over several lines": (
        '[[test]]\nname = "folder"\nroot = "a"\npostprocess = [\n  {\n    name = "gem",\n  },\n]',
        "10: test.0.postprocess.0.name: no postprocessor is called 'gem'; 'gem' is an aggregator",
    ),
    "views to join that are none": (
        '[[loss]]\nname = "triplet"\non = ["b1", []]',
        "5: loss.0: found an empty array in 'on'; expected names of views to join",
    ),
    "two margins": (
        '[[loss]]\nname = "triplet"\nmargin = 0.3\nsoft = true',
        "5: loss.0: found soft = true and margin = 0.3; expected one of them",
    ),
    "a dotted key": ("training.epochs = 1.5", "5: train.0.training: unknown key; expected root or role"),
}


@pytest.mark.parametrize("mistake", ONE_MISTAKE)
def test_one_mistake_gives_one_message(mistake, write, reidcore):
    text, expected = ONE_MISTAKE[mistake]
    file = write("recipe.toml", GOOD + text)
    status, out, err = reidcore("check", file)
    assert (status, out, err) == (2, "", f"{file}:{expected}\n")


def test_ten_mistakes_give_ten_messages_in_the_order_of_lines(write, reidcore):
    file = write(
        "ten.toml",
        """
[run]
seed = "one"

[[train]]
name = "foldr"

[[test]]
name = "folder"

[input]
heigth = 256
width = 12.5

[backbone]
name = "gem"

[aggregator]
name = "gem"
alpha = -1
learn = "no"

[[loss]]
name = "triplet"
margin = "soft"

[training]
freeze = "backbone"
""",
    )
    status, out, err = reidcore("check", file)
    assert (status, out) == (2, "")
    assert err.replace(f"{file}:", "").splitlines() == [
        "3: run.seed: found 'one'; expected an integer",
        "6: train.0.name: no dataset is called 'foldr'; did you mean 'folder'?",
        "8: test.0.root: missing; expected a path (folder that holds train/, query/ and gallery/)",
        "12: input.heigth: unknown key; did you mean 'height'?",
        "13: input.width: found 12.5; expected an integer",
        "16: backbone.name: no backbone is called 'gem'; 'gem' is an aggregator",
        "20: aggregator.alpha: found -1.0; expected above 0",
        "21: aggregator.learn: found 'no'; expected true or false",
        "25: loss.0.margin: found 'soft'; expected a number",
        "28: training.freeze: found 'backbone'; expected an array, each item a text; write ['backbone']",
    ]


OVERRIDES = {
    "training.epochs=x": "training.epochs: found 'x'; expected an integer",
    "foo": "expected KEY=VALUE, such as training.epochs=10",
    ".=1": "expected KEY=VALUE, such as training.epochs=10",
    "train.3.root=a": "'3' is not a position in train.3.root; it has 1 items",
    "train.²=1": "'²' is not a position in train.²; it has 1 items",
    "run.seed=18446744073709551616": (
        "run.seed: found 18446744073709551616; expected at least 0 and at most 9223372036854775807"
    ),
    "sampler={identities=1, instances=1}": (
        "sampler: found a batch of one image; expected at least 2, which batch norm needs"
    ),
    "training={freeze=['backbone']}": "training: expected both freeze and freeze_iterations, or neither",
    "train.0.root.x=1": "'x' is below a value that is not a table",
    "backbone.name=resnet1O1": "backbone.name: no backbone is called 'resnet1O1'; did you mean 'resnet101'?",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_mistake_in_an_override_is_shown_as_such(override, write, reidcore):
    status, _, err = reidcore("check", write("recipe.toml", GOOD), "--set", override)
    assert (status, err) == (2, f"--set {override}: {OVERRIDES[override]}\n")


def test_all_missing_packages_are_named_at_once_and_first(write, reidcore):
    file = write("recipe.toml", 'requires = ["reid-none>=0.1", "reid-nil", "attrs<1", "a b"]\n[input]\nheight = "x"')
    status, _, err = reidcore("check", file)
    from importlib.metadata import version

    assert status == 2
    assert err.replace(f"{file}:", "").splitlines() == [
        "1: requires.0: reid-none>=0.1 is not installed",
        "1: requires.1: reid-nil is not installed",
        f"1: requires.2: found attrs {version('attrs')}; expected attrs<1",
        "1: requires.3: found 'a b'; expected a form like 'reid-dsr>=0.1'",
        "  to install: pip install 'reid-none>=0.1' 'reid-nil' 'attrs<1'",
    ]


def test_a_mistake_is_shown_in_the_file_in_which_its_key_stands(write, reidcore):
    base = write("base.toml", GOOD + "[input]\nheight = 'x'\nwidth = 'y'\n")
    file = write("sub/top.toml", 'extends = "../base.toml"\n[input]\nwidth = 1.5\n[training]\nepoch = 3\n')
    status, _, err = reidcore("check", file)
    assert status == 2
    assert sorted(err.splitlines()) == sorted(
        [
            f"{file.parent}/../base.toml:6: input.height: found 'x'; expected an integer",
            f"{file}:3: input.width: found 1.5; expected an integer",
            f"{file}:5: training.epoch: unknown key; did you mean 'epochs'?",
        ]
    )
    assert base.is_file()


UNREADABLE = {
    "no toml": ("a = \n", "{file}:1: not valid TOML: Invalid value"),
    "no base": ('extends = "no.toml"', "{file}:1: extends: there is no file {folder}/no.toml"),
    "itself": ('extends = "recipe.toml"', "{file}:1: extends: 'recipe.toml' extends this recipe in turn"),
    "a base that is no text": ("extends = 3", "{file}:1: extends: found 3; expected the path of a recipe"),
    "no train": (
        "[run]",
        "{file}:1: train: missing; expected an array, each item a table (one or several [[train]] "
        "tables with the data set's name)",
    ),
    "too deep a nesting": ("a = " + "[" * 3000 + "]" * 3000, "{file}: it is nested too deeply"),
    "a test called as held-out identities": (
        GOOD + '[[test]]\nname = "folder"\nroot = "x"\nlabel = "holdout"',
        "{file}:5: test.0: 'holdout' is what held-out identities are called; choose another",
    ),
    "an empty train": ("train = []", "{file}:1: there is no [[train]] table; expected one or several"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_a_recipe_is_refused(case, write, reidcore):
    text, expected = UNREADABLE[case]
    file = write("recipe.toml", text)
    status, _, err = reidcore("check", file)
    assert (status, err) == (2, expected.format(file=file, folder=file.parent) + "\n")


def test_a_recipe_that_is_not_there(tmp_path, reidcore):
    status, _, err = reidcore("check", tmp_path / "no.toml")
    assert (status, err) == (2, f"cannot read the recipe {tmp_path / 'no.toml'}: No such file or directory\n")


def test_a_saved_recipe_says_which_plugin_is_missing(write, reidcore):
    text = '[[train]]\nname = "synthetic"\n[backbone]\nname = "nowhere:net"\n[versions]\nreid-nowhere = "1.2"'
    status, _, err = reidcore("check", write("r.toml", text))
    assert status == 2
    assert "no backbone is called 'nowhere:net'" in err
    assert "saved with reid-nowhere 1.2, which is not installed; to install: pip install 'reid-nowhere==1.2'" in err
