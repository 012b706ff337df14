"""New plugins: for each kind of part a small package that works, copied under another name.

The folder of a kind is a package `reid_example` with a component `example` of the class `Example`; `common` holds what
stands around it.
"""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path

from reidcore import __version__
from reidcore.catalog import CORE, Catalog
from reidcore.errors import ReidError, os_message
from reidcore.kinds import KINDS

_NAME = re.compile(r"reid-[a-z][a-z0-9]*(-[a-z0-9]+)*")

_COMMON = {
    "pyproject.txt": "pyproject.toml",
    "readme.txt": "README.md",
    "gitignore.txt": ".gitignore",
    "workflow.txt": ".github/workflows/test.yml",
    "test_contract.py": "tests/test_contract.py",
    "test_recipe.py": "tests/test_recipe.py",
}

# The recipe by its tables: a kind replaces its own, and those that go with it.
_TABLES = {
    "train": '[[train]]\nname = "synthetic"\nidentities = 12\n',
    "test": '[[test]]\nname = "synthetic"\ntest_identities = 6\n',
    "input": "[input]\nheight = 64\nwidth = 32\n",
    "sampler": '[sampler]\nname = "identity-balanced"\nidentities = 4\ninstances = 4\n',
    "backbone": '[backbone]\nname = "resnet18"\nbase = 16\nweights = "none"\n',
    "training": "[training]\nepochs = 2\n",
}
_OWN = {
    "loss": {"loss": '[[loss]]\nname = "cross-entropy"\n\n[[loss]]\nname = "example"\nweight = 0.5\n'},
    "metric": {"metric": '[[metric]]\nname = "map"\n\n[[metric]]\nname = "example"\n'},
    "postprocessor": {"test": _TABLES["test"] + 'postprocess = [{ name = "example" }]\n'},
    "exporter": {"export": '[[export]]\nname = "example"\n'},
    "dataset": {"train": '[[train]]\nname = "example"\n', "test": '[[test]]\nname = "example"\n'},
    "transform": {"transform": '[[transform]]\nname = "flip"\n\n[[transform]]\nname = "example"\n'},
    "logger": {"logger": '[[logger]]\nname = "example"\n'},
}


def new_plugin(name: str, kind: str, parent: Path) -> Path:
    """Write a package called `name` with a part of this kind into a new folder of that name in `parent`; return it.

    Its plugin and its component are called as the package without "reid-". Raises ReidError for a name that is none or
    that the core has, and for a folder that exists.
    """
    if not _NAME.fullmatch(name):
        raise ReidError(
            f"found '{name}'; expected a package's name that begins with 'reid-', such as reid-{kind}: lower-case "
            "letters and digits, with hyphens"
        )
    plugin = name.removeprefix("reid-")
    class_name = "".join(word.capitalize() for word in plugin.split("-"))
    taken = {item.name for item in Catalog.of().components(kind)} | {CORE}
    if plugin in taken or keyword.iskeyword(class_name):
        raise ReidError(f"'{plugin}' is a name of the core's or of Python's; choose another one than {name}")
    folder = parent / name
    if folder.exists():
        raise ReidError(f"{folder} exists; choose another name, or remove it")
    major, minor, *_ = __version__.split(".")
    words = {
        "$KIND": kind,
        "$A_KIND": KINDS[kind].one[0].upper() + KINDS[kind].one[1:],
        "$VERSION": f"{major}.{minor}",
        "$NEXT": f"{major}.{int(minor) + 1}" if major == "0" else str(int(major) + 1),
        "reid-example": name,
        "reid_example": name.replace("-", "_"),
        "Example": class_name,
        "example": plugin,
    }
    pattern = re.compile("|".join(map(re.escape, words)))

    def renamed(text: str) -> str:
        """Replace all words at once, lest one is found in what another became."""
        return pattern.sub(lambda match: words[match[0]], text)

    here = files("reidcore.scaffold")
    sources = {folder / target: here / "common" / name for name, target in _COMMON.items()}
    sources |= {folder / renamed("reid_example") / name: here / kind / name for name in ("__init__.py", f"{kind}.py")}
    texts = {target: source.read_text(encoding="utf-8") for target, source in sources.items()}
    try:
        for target, text in {**texts, folder / "recipe.toml": _recipe(kind)}.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(text), encoding="utf-8")
    except OSError as error:
        raise ReidError(os_message(error, "write", folder)) from None
    return folder


def _recipe(kind: str) -> str:
    own = _OWN.get(kind, {kind: f'[{kind}]\nname = "example"\n'})
    return "\n".join(['requires = ["reid-example"]\n', *{**_TABLES, **own}.values()])
