"""Discovery of plugins: real entry points, written by hand into a folder on sys.path."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attrs import fields, frozen

import reidcore as package
from reidcore.catalog import Catalog, discover
from reidcore.component import Component
from reidcore.errors import UnknownComponent
from reidcore.kinds import KINDS
from reidcore.recipe import LossTerm, TestSet, TrainSet

LOSS = """
from attrs import fields, frozen
from reidcore import Component, hookimpl

@frozen(kw_only=True)
class Own:
    '''A loss.'''
    scale: float = 1.0
    def build(self, parts): ...

@hookimpl
def reidcore_losses():
    yield Component(name="{name}", config=Own)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes a distribution with one entry point visible, as an installer would."""
    monkeypatch.syspath_prepend(tmp_path)

    def install_plugin(distribution: str, code: str, plugin: str | None = None, requires: str = "reidcore") -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-0.3.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.3\nRequires-Dist: {requires}\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[reidcore]\n{plugin or distribution} = {module}\n")
        sys.modules.pop(module, None)

    return install_plugin


def plugin(catalog, name):
    """Return the records of the plugins of this name."""
    return [record for record in catalog.plugins if record.name == name]


def test_an_installed_plugin_is_found_with_its_distribution_and_version(install):
    install("reid-own", LOSS.format(name="own"), plugin="own")
    catalog = discover()
    (record,) = plugin(catalog, "own")
    assert (record.status, record.origin, record.version) == ("ok", "reid-own", "0.3")
    assert catalog.find("loss", "own").full_name == "own:own"


BROKEN = {
    "an import that fails": ("import nonexistent_dependency", "ModuleNotFoundError: No module named"),
    "a hook that fails": (
        "from reidcore import hookimpl\n@hookimpl\ndef reidcore_losses():\n    raise ValueError('no')",
        "ValueError: no",
    ),
    "a hook that yields something else": (
        "from reidcore import hookimpl\n@hookimpl\ndef reidcore_losses():\n    yield 3",
        "reidcore_losses must yield Component(name=..., config=...), it yielded 3",
    ),
    "a hook that does not exist": (
        "from reidcore import hookimpl\n@hookimpl\ndef reidcore_looses():\n    yield 3",
        "no hook is called reidcore_looses; did you mean reidcore_losses?",
    ),
    "a hook without its mark": (
        "def reidcore_losses():\n    yield 3",
        "reidcore_losses is not marked as a hook; write @hookimpl above it",
    ),
    "an import that ends the program": ("raise SystemExit('goodbye')", "SystemExit: goodbye"),
    "a hook that yields nothing at all": (
        "from reidcore import hookimpl\n@hookimpl\ndef reidcore_losses():\n    pass",
        "reidcore_losses must yield Component(name=..., config=...), it returned something else",
    ),
    "an option of a type that is not there": (
        LOSS.format(name="own").replace("scale: float", "scale: 'Flaot'"),
        "loss 'own' has an option whose type is unknown: name 'Flaot' is not defined",
    ),
    "an option that TOML has no form for": (
        LOSS.format(name="own").replace("scale: float = 1.0", "scale: set[str] = frozenset()"),
        "loss 'own' has an option 'scale' of type set[str]; expected bool, int,",
    ),
    "a default that cannot be made": (
        LOSS.format(name="own").replace("= 1.0", "= __import__('attrs').field(factory=lambda: 1 / 0)"),
        "ZeroDivisionError: division by zero",
    ),
    "a name that is none": (LOSS.format(name="Own Loss"), "a component's name is lower-case letters"),
    "a config without build": (
        LOSS.format(name="own").replace("def build", "def make"),
        "a component's config is an attrs class with a build() method",
    ),
    "an offer made twice": (
        LOSS.format(name="own") + "    yield Component(name='own', config=Own)",
        "it offers two losses called 'own'",
    ),
    "an option that the core reads": (
        LOSS.format(name="own").replace("scale", "weight"),
        "loss 'own' has an option 'weight', a key that the core reads",
    ),
    "a config shared by two": (
        LOSS.format(name="own") + "    yield Component(name='other', config=Own)",
        "loss 'other' shares its config class with another",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_plugin_that_fails_is_recorded_and_stops_nobody(case, install, reidcore):
    code, error = BROKEN[case]
    install("reid-broken", code)
    install("reid-sound", LOSS.format(name="own"), plugin="sound")
    catalog = discover()
    (record,) = plugin(catalog, "reid-broken")
    assert record.status == "failed"
    assert error in record.error
    assert "Traceback" in record.trace
    assert catalog.find("loss", "own").plugin == "sound"
    assert catalog.find("loss", "triplet").plugin == "core"
    listed = reidcore("plugins", "--strict")
    assert listed.status == 1
    assert any("failed: " in line and error in line for line in listed.out.splitlines())
    assert reidcore("plugins").status == 0
    assert "Traceback" in reidcore("plugins", "-v").out


def test_a_failed_plugin_is_quoted_when_a_part_is_missing(install):
    install("reid-broken", "import nonexistent_dependency")
    with pytest.raises(UnknownComponent) as caught:
        discover().find("loss", "wanted")
    assert "note: plugin 'reid-broken' (reid-broken) did not load: ModuleNotFoundError" in str(caught.value)


def test_a_plugin_that_needs_another_core_is_not_loaded(install, reidcore):
    install("reid-old", "raise KeyboardInterrupt", requires="reidcore<0.0.1")
    (record,) = plugin(discover(), "reid-old")
    assert record.status == "failed"
    assert record.error.startswith("needs reidcore<0.0.1, but this is reidcore ")
    assert reidcore("plugins", "--strict").status == 1


def test_a_plugin_that_offers_nothing_is_told_so(install, reidcore):
    install("reid-empty", "def reidcor_losses(): ...")
    status, out, _ = reidcore("plugins", "--strict")
    assert status == 1 and "ok: it offers nothing: none of its functions is a hook" in out


@pytest.mark.parametrize(
    ("requires", "error"),
    [
        ("ReidCore>=99", "needs ReidCore>=99, but this is reidcore "),
        ("reidcore>=0.1.*", "InvalidRequirement: "),
        ("reidcore>=99; extra == 'later'", ""),
    ],
)
def test_what_a_plugin_requires_is_read_as_installers_read_it(requires, error, install):
    install("reid-own", LOSS.format(name="own"), requires=requires)
    (record,) = plugin(discover(), "reid-own")
    assert record.error.startswith(error) if error else record.status == "ok"


def test_metadata_that_is_damaged_stops_nobody(install, tmp_path, reidcore):
    install("reid-own", LOSS.format(name="own"))
    (tmp_path / "reid_own-0.3.dist-info" / "METADATA").unlink()
    assert reidcore("plugins").status == 0


def test_what_a_plugin_prints_is_no_part_of_a_listing(install, reidcore):
    install("reid-own", "print('hello')\n" + LOSS.format(name="own"))
    assert json.loads(reidcore("plugins", "--json").out)


def test_what_is_called_so_now_comes_before_what_was(install):
    install("reid-one", LOSS.format(name="new").replace("config=Own", "config=Own, old_names=('old',)"), plugin="one")
    install("reid-two", LOSS.format(name="old"), plugin="two")
    assert discover().find("loss", "old").plugin == "two"


def test_a_plugin_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(UnknownComponent, match="no plugin 'resnest0' is installed"):
        discover().find("backbone", "resnest0:resnest50")


def test_a_file_that_is_named_twice_is_loaded_once(write):
    file = write("idea.py", LOSS.format(name="own"))
    assert discover([file, file.parent / "." / "idea.py"]).find("loss", "own").full_name == "idea:own"


def test_a_requirement_on_a_package_of_a_similar_name_is_not_one_on_the_core(install):
    install("reid-own", LOSS.format(name="own"), requires="reidcore-extras<0.0.1")
    assert plugin(discover(), "reid-own")[0].status == "ok"


def test_two_plugins_of_one_name_fail_both(install, reidcore):
    install("reid-one", LOSS.format(name="own"), plugin="same")
    install("reid-two", LOSS.format(name="other"), plugin="same")
    records = plugin(discover(), "same")
    assert [record.status for record in records] == ["failed", "failed"]
    assert records[0].error == "several plugins are called 'same': reid-one, reid-two"
    status, out, _ = reidcore("plugins", "--strict")
    assert status == 1 and out.count("failed: several plugins are called 'same': reid-one, reid-two") == 2


def test_nobody_can_take_the_name_of_the_core(install):
    install("reid-fake", LOSS.format(name="triplet"), plugin="core")
    catalog = discover()
    assert [record.status for record in plugin(catalog, "core")] == ["ok", "failed"]
    assert catalog.find("loss", "triplet").config.__module__.startswith("reidcore.")


def test_a_bare_name_is_the_cores_part_and_the_full_name_anothers(install):
    install("reid-own", LOSS.format(name="triplet"), plugin="own")
    catalog = discover()
    assert catalog.find("loss", "triplet").plugin == "core"
    assert catalog.find("loss", "own:triplet").plugin == "own"
    assert plugin(catalog, "own")[0].error == "loss 'triplet' means the core's; recipes must write 'own:triplet'"


def test_a_name_of_two_plugins_is_an_error_only_when_chosen(install, reidcore):
    install("reid-one", LOSS.format(name="own"), plugin="one")
    install("reid-two", LOSS.format(name="own"), plugin="two")
    catalog = discover()
    assert catalog.find("loss", "two:own").plugin == "two"
    with pytest.raises(UnknownComponent, match="'own' is offered by 2 plugins; write 'one:own' or 'two:own'"):
        catalog.find("loss", "own")
    status, out, _ = reidcore("plugins", "--strict")
    assert status == 1
    assert "ok: loss 'own' is offered by two too; recipes must write 'one:own'" in out
    assert "ok: loss 'own' is offered by one too; recipes must write 'two:own'" in out


@pytest.mark.parametrize(("selection", "status"), [("", "disabled"), ("other", "disabled"), (" own , x", "ok")])
def test_the_environment_selects_plugins(selection, status, install, monkeypatch):
    install("reid-own", LOSS.format(name="own"), plugin="own")
    monkeypatch.setenv("REIDCORE_PLUGINS", selection)
    assert plugin(discover(), "own")[0].status == status


def test_a_selected_plugin_that_is_not_installed_is_listed(monkeypatch):
    monkeypatch.setenv("REIDCORE_PLUGINS", "absent")
    (record,) = plugin(discover(), "absent")
    assert (record.status, record.error) == ("failed", "REIDCORE_PLUGINS names it, but it is not installed")


def test_a_plugin_in_one_file(write):
    file = write("idea.py", LOSS.format(name="own"))
    assert discover([file]).find("loss", "own").full_name == "idea:own"


def test_a_plugin_file_that_is_not_there(tmp_path, write, reidcore):
    file = tmp_path / "no.py"
    status, out, _ = reidcore("plugins", "--plugin", file, "--strict")
    assert status == 1
    assert f"failed: there is no file {file}" in out
    recipe = write("r.toml", '[[train]]\nname = "folder"\nroot = "x"')
    status, _, err = reidcore("check", recipe, "--plugin", file)
    assert (status, err) == (2, f"the plugin {file} did not load: there is no file {file}\n")


def test_the_reserved_keys_are_those_that_the_core_reads():
    def own(*classes):
        return {field.name for cls in classes for field in fields(cls) if not field.metadata.get("inline")}

    assert own(TrainSet, TestSet) == set(KINDS["dataset"].reserved)
    assert own(LossTerm) == set(KINDS["loss"].reserved)


def test_a_catalog_for_tests_in_one_line():
    @frozen
    class Own:
        """A loss."""

        def build(self, parts): ...

    catalog = Catalog.of(losses=[Component(name="own", config=Own)])
    assert catalog.find("loss", "own").config is Own
    assert catalog.find("loss", "triplet").plugin == "core"


def test_plugins_are_listed_as_json(install, reidcore):
    install("reid-own", LOSS.format(name="own"), plugin="own")
    status, out, _ = reidcore("plugins", "--json")
    record = next(record for record in json.loads(out) if record["name"] == "own")
    assert status == 0
    assert record == {
        "name": "own",
        "origin": "reid-own",
        "version": "0.3",
        "status": "ok",
        "error": "",
        "components": {"loss": ["own"]},
    }


def test_the_command_line_starts_in_half_a_second_with_50_plugins(install, tmp_path):
    for number in range(50):
        install(f"reid-own{number}", LOSS.format(name=f"own{number}"), plugin=f"own{number}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(package.__file__).parent.parent)]),
    }
    command = [sys.executable, "-m", "reidcore", "components", "loss"]

    libraries = [sys.executable, "-c", "import attrs, cattrs, pluggy, tomli, importlib.metadata"]

    def seconds(command: list[str], owns: int) -> float:
        """Return the processor's time, which other programs do not change as much as that of the clock."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and done.stdout.count("own") >= owns
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for _ in range(30):  # as long as another program slows the processor down
        # half a second, or on a slow machine a few times what the libraries take there
        if seconds(command, 100) < max(0.5, 4 * seconds(libraries, 0)):
            return
        time.sleep(1)
    pytest.fail("it always took longer")
