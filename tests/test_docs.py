"""What the documentation says is so: its code runs, and its pages are those of the code."""

import doctest
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest

from reidcore.catalog import Catalog
from reidcore.kinds import KINDS
from reidcore.scaffold import new_plugin
from reidcore.testing import run_cli

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(
    r"(?P<fails><!-- fails -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$|^<!-- stand-in\n(?P<code>.*?)^-->$",
    re.DOTALL | re.MULTILINE,
)
PAGES = [page for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))) if BLOCK.search(page.read_text())]
NOT_RUN = {"start.md": 1, "own-images.md": 1, "deployment.md": 1, "from-torchreid.md": 1}
"""How many blocks of each page show what cannot be run here."""


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_kinds():
    return load_script("make_kinds")


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kind_is_that_of_the_code(kind, make_kinds):
    written = (DOCS / "kinds" / f"{kind}.md").read_text()
    assert written == make_kinds.page(KINDS[kind]), "run: python docs/make_kinds.py"


def test_the_list_of_kinds_is_that_of_the_code(make_kinds):
    assert (DOCS / "kinds" / "index.md").read_text() == make_kinds.index(), "run: python docs/make_kinds.py"


def test_the_reference_is_that_of_the_code():
    folder = DOCS / "reference"
    written = {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*.md")}
    assert written == load_script("make_reference").pages(), "run: python docs/make_reference.py"


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


class Reader:
    """Somebody who does what a page says, block after block, in an empty folder beside `examples`.

    What a block is for is told by its language. A file has its name in the first line (`# name`; `# from name` for a
    part of one that is there). `python` is executed, and `pycon` compared with what it prints; `toml` without a name is
    a part of a recipe, and has no mistakes. The commands of `console` end well, but for the last one of a block below
    `<!-- fails -->`, and print the lines that follow them. In these a measured number may be any other one. `text` is
    what cannot be run here. A comment `<!-- stand-in` makes what the reader of a page has, and a test has not.
    """

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.names = {"__name__": "page"}
        self.site = folder / "site"
        (folder / "examples").symlink_to(DOCS.parent / "examples")
        monkeypatch.chdir(folder)
        paths = [str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(paths),
            "PIP_TARGET": str(self.site),
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # which means that there is none
            "PYTEST_ADDOPTS": "-p no:cacheprovider --import-mode=importlib",
            "COLUMNS": "200",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    def read(self, page: Path) -> None:
        for block in BLOCK.finditer(page.read_text()):
            if block["code"] is not None:
                exec(compile(block["code"], str(page), "exec"), self.names)
                continue
            language, text = block["language"], block["text"]
            first, _, rest = text.partition("\n")
            name = first.removeprefix("# ")
            if first.startswith("# from "):
                assert rest in (self.folder / name.removeprefix("from ")).read_text()
            elif first.startswith("# ") and re.fullmatch(r"[\w./-]+\.\w+", name):
                (self.folder / name).write_text(text)
            elif language == "python":
                exec(compile(text, str(page), "exec"), self.names)
            elif language == "pycon":
                self.compare(text, page)
            elif language == "toml":
                train = "" if "[[train]]" in text else '[[train]]\nname = "synthetic"\n'
                (self.folder / "part.toml").write_text(train + text)
                done = run_cli("check", "part.toml")
                assert done.status == 0, done.err
            elif language == "console":
                self.type(text, block["fails"] is not None)
            else:
                assert language == "text", f"{page}: a block of language {language!r}"

    def compare(self, text: str, page: Path) -> None:
        test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
        test.globs = self.names
        report = StringIO()
        failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
            test, out=report.write, clear_globs=False
        )
        assert not failed, report.getvalue()

    def type(self, text: str, fails: bool) -> None:
        steps = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
        for step in steps:
            command, *expected = step.splitlines()
            status, printed = self.run(command)
            assert (status != 0) == (fails and step is steps[-1]), f"{command}: {status}\n{printed}"
            for line in expected:
                assert seen(line) in seen(printed), f"{command}: {line!r} is not in\n{printed}"

    def run(self, command: str) -> tuple[int, str]:
        """Run a command; reidcore in this process, which has imported torch."""
        words = shlex.split(command)
        if words[0] == "reidcore":
            done = run_cli(*words[1:])
            return done.status, done.out + done.err
        if words[0] in ("pip", "pytest"):
            words = [sys.executable, "-m", *words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        if "pip" in words:
            self.monkeypatch.syspath_prepend(self.site)
        return done.returncode, done.stdout + done.stderr


def seen(text: str) -> str:
    """Return what must be the same on every machine: words, and numbers that are no measurements."""
    text = re.sub(r"[━─│┃┏┓┡┩└┘├┤┳╇┴┬┼╈]+", " ", text)  # columns are as wide as what stands in them
    text = re.sub(r"[-+]?\d+\.\d+(e[-+]?\d+)?|\d+(?= images/s| s\b)", "#", text)
    text = re.sub(r"\b(better|worse|undecided)\b", "judged", " ".join(text.split()))
    return re.sub(r"(# )(\d+|-) (\d+|-) \S+/\S+\.\w+", r"\1found", text)  # whom a search found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS.parent).with_suffix("").as_posix())
def test_what_a_page_says_can_be_done(page, tmp_path, monkeypatch):
    Reader(tmp_path, monkeypatch).read(page)


WRONG = {
    "another output": "```console\n$ reidcore --version\nreidcore of yesterday\n```\n",
    "a command that fails": "```console\n$ reidcore check nowhere.toml\n```\n",
    "one that does not": "<!-- fails -->\n```console\n$ reidcore --version\n```\n",
    "another value": "```pycon\n>>> 1 + 1\n3\n```\n",
    "an option that is none": '```toml\n[[loss]]\nname = "triplet"\nmargine = 1.0\n```\n',
    "a file of which it is no part": "```toml\n# from examples/first.toml\nseed = 1\n```\n",
    "an unknown language": "```sh\ntrue\n```\n",
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_page_that_is_not_so_is_noticed(mistake, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(WRONG[mistake])
    with pytest.raises(AssertionError):
        Reader(tmp_path, monkeypatch).read(page)


def test_what_was_measured_may_be_another_number():
    assert seen("│ a │ 93.8% │ 64 of 64 │") == seen("┃ a ┃   4.0% ┃ 64 of 64 ┃") != seen("a 93.8% 63 of 64")


def test_the_pages_are_built_without_a_warning_and_ask_no_other_server_for_anything(tmp_path):
    pytest.importorskip("mkdocs", reason="the dependency group 'docs' is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=DOCS.parent, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    loaded = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(?:https?:)?//[^\" >]+")
    assert [found for page in pages for found in loaded.findall(page.read_text())] == []


def test_few_blocks_are_not_run():
    counts = Counter(
        page.name for page in PAGES for block in BLOCK.finditer(page.read_text()) if block["language"] == "text"
    )
    assert counts == NOT_RUN
