"""Who may import whom, what is imported when, and how much text a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import reidcore as package

ROOT = Path(package.__file__).parent
PUBLIC = {"hookspecs", "kinds", "types", "component", "errors", "events", "retrieval", "export", "testing"}
PUBLIC |= {"layers", "weights"}
ORDER = ["errors", "types", "kinds", "component", "hookspecs", "catalog", "structure", "recipe", "schema", "cli"]
PLUGINS = [file.parent for file in sorted(Path(__file__).parent.parent.glob("plugins/*/reid_*/__init__.py"))]


def imports(file: Path) -> set[str]:
    """Return the modules of reidcore that a file imports at any level, without those for type checking only."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    checking = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in checking:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "reidcore"}


def test_the_core_imports_no_plugin():
    for file in (file for file in ROOT.rglob("*.py") if "scaffold" not in file.parts):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        modules |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        assert not [module for module in modules if module.startswith("reid_")], file


@pytest.mark.parametrize("earlier", ORDER)
def test_the_light_half_is_layered(earlier):
    later = {f"reidcore.{name}" for name in ORDER[ORDER.index(earlier) + 1 :]}
    # a catalog can build a part from its options on request, inside a function
    allowed = {"reidcore.structure"} if earlier == "catalog" else set()
    files = [ROOT / f"{earlier}.py"] if (ROOT / f"{earlier}.py").is_file() else []
    for file in files:
        above = {name for name in imports(file) if any(name == top or name.startswith(f"{top}.") for top in later)}
        assert {".".join(name.split(".")[:2]) for name in above} <= allowed, file


def test_the_loop_knows_no_recipes_names_or_plugins():
    for name in ("loop", "model", "checkpoint"):
        forbidden = {"reidcore.recipe", "reidcore.catalog", "reidcore.structure", "reidcore.component", "reidcore.cli"}
        assert not imports(ROOT / f"{name}.py") & forbidden, name


def test_retrieval_knows_no_recipes():
    for file in (ROOT / "retrieval").glob("*.py"):
        assert not {name for name in imports(file) if name.startswith(("reidcore.recipe", "reidcore.loop"))}, file


def test_parts_import_public_modules_only():
    public = PUBLIC | {"builtin", "Component", "hookimpl", "option"}
    outside = {
        name
        for folder in (ROOT / "builtin", *(ROOT / "scaffold").glob("*/"), *PLUGINS)
        for file in folder.rglob("*.py")
        for name in imports(file)
        if "." in name and name.split(".")[1] not in public
    }
    assert not outside


VERBS = [["components"], ["components", "loss", "triplet"], ["schema"], ["plugins"], ["--version"]]


@pytest.mark.parametrize("verb", [*VERBS, ["check"], ["fill"]], ids=" ".join)
def test_listing_and_checking_do_not_import_torch(verb, write):
    if verb[0] in ("check", "fill"):
        verb = [*verb, str(write("r.toml", '[[train]]\nname = "folder"\nroot = "x"'))]
    code = f"""
import sys
from reidcore.cli import main
try:
    status = main({verb!r})
except SystemExit as end:
    status = end.code
assert not status, status
heavy = sorted({{"torch", "torchvision", "PIL", "rich", "faiss"}} & set(sys.modules))
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_retrieval_can_be_imported_without_torch():
    code = "import sys, reidcore.retrieval.index; assert not {'torch', 'faiss'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
