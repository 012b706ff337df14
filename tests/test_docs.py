"""What the documentation says is so: its code runs, and its pages are those of the code."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reidcore.catalog import Catalog
from reidcore.kinds import KINDS
from reidcore.scaffold import new_plugin

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def make_kinds():
    spec = importlib.util.spec_from_file_location("make_kinds", DOCS / "make_kinds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kind_is_that_of_the_code(kind, make_kinds):
    written = (DOCS / "kinds" / f"{kind}.md").read_text()
    assert written == make_kinds.page(KINDS[kind]), "run: python docs/make_kinds.py"


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_parts_are_built_with_is_what_the_page_says(kind, tmp_path):
    page = (DOCS / "kinds" / f"{kind}.md").read_text()
    (arguments,) = re.findall(r"^- `build\((.*)\) -> ", page, re.MULTILINE)
    documented = re.findall(r"(\w+): ", arguments)
    for component in Catalog.of().components(kind):
        found = parameters(component.config.build)
        assert found in (documented, [*documented, "sources"]), component.name  # a sampler may ask for the sources
    written = (new_plugin("reid-own", kind, tmp_path) / "reid_own" / "__init__.py").read_text()
    (own,) = re.findall(r"def build\(self(?:, )?(.*)\):", written)
    assert [name for name in own.split(", ") if name] == documented


def test_every_block_of_the_plugin_guide_runs(tmp_path):
    """Files are written, commands run in their order, and what they are said to print is there."""
    site = tmp_path / "site"
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(paths),
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # which means that there is none
        "PYTEST_ADDOPTS": "-p no:cacheprovider --import-mode=importlib",
        "COLUMNS": "200",
    }
    blocks = BLOCK.findall((DOCS / "plugins.md").read_text())
    assert len(blocks) >= 10
    for language, text in blocks:
        if language == "console":
            for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, *expected = step.splitlines()
                words = command.split()
                if words[0] in ("reidcore", "pytest", "pip"):
                    words = [sys.executable, "-m", *words]
                done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
                printed = done.stdout + done.stderr
                words_printed = " ".join(printed.split())  # columns are as wide as what is installed makes them
                assert (done.returncode == 0) == (" check " not in command), printed
                for line in expected:
                    assert " ".join(line.split()) in words_printed, f"{command}: {line!r} is not in\n{printed}"
            continue
        first, _, rest = text.partition("\n")
        comment, _, name = first.partition(" ")
        assert comment == "#", text
        if name.startswith("from "):
            assert rest in (tmp_path / name.removeprefix("from ")).read_text()
        else:
            (tmp_path / name).write_text(rest)
