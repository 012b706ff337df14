"""Build wheels of the core and of each plugin, and test every one in a fresh environment without the source tree.

An environment borrows, through symbolic links to what is installed beside this interpreter (torch above all), what its
packages declare that they need, and the tools of their development groups: so it takes seconds, and an import that is
not declared fails. `make test-packages` runs it.

    python tests/packages.py [--only NAME ...]      plugins or the name of one, new-plugins, core
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory

import tomli
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reidcore.kinds import KINDS

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml"))
PYTEST = (
    "-m",
    "pytest",
    "-q",
    "--import-mode=importlib",
    "-p",
    "no:cacheprovider",
    "-o",
    "markers=slow",
    "-m",
    "not slow",
    "-n",
    "2",
    "--dist",
    "loadfile",
)


class Environment:
    """A fresh environment with some wheels, and an empty folder to work in."""

    def __init__(self, folder: Path, wheels: Sequence[Path], projects: Sequence[Path]) -> None:
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        venv.create(folder / "env")
        self.bin = folder / "env" / "bin"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = folder / "env" / "lib" / version / "site-packages"
        self.install(wheels)
        needed = [text for installed in distributions(path=[str(site)]) for text in installed.requires or ()]
        for project in projects:
            needed += tomli.loads((project / "pyproject.toml").read_text())["dependency-groups"]["dev"]
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for entry in sorted(set().union(*map(entries, closure(needed)))):
            (borrowed / entry.name).symlink_to(entry)
        (site / "borrowed.pth").write_text(f"{borrowed}\n")

    def install(self, packages: Sequence[Path]) -> None:
        """Install wheels, or what they are made of, and nothing that they need."""
        options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        pip = ["pip", "--python", str(self.bin / "python"), "install", *options]
        subprocess.run([sys.executable, "-m", *pip, *map(str, packages)], check=True)

    def python(self, *arguments: str) -> None:
        """Run Python in the empty folder. Raises subprocess.CalledProcessError when it fails."""
        subprocess.run([self.bin / "python", *arguments], check=True, cwd=self.work, env=self._variables)

    def refused(self, recipe: str) -> str:
        """Return what `reidcore check` says of a recipe that it refuses."""
        (self.work / "recipe.toml").write_text(recipe)
        command = [self.bin / "reidcore", "check", "recipe.toml"]
        done = subprocess.run(command, cwd=self.work, env=self._variables, capture_output=True, text=True)
        assert done.returncode == 2, done
        return done.stderr

    @property
    def _variables(self) -> dict[str, str]:
        paths = os.pathsep.join([str(self.bin), str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, "PATH": paths}


def test_core(environment: Environment) -> None:
    """The core passes its own tests, and says how to install each plugin that a recipe needs."""
    for plugin in PLUGINS:
        recipe = f'requires = ["{plugin.name}"]\n[[train]]\nname = "synthetic"\n'
        said = environment.refused(recipe)
        assert f"to install: pip install '{plugin.name}'" in said, said
    for name in ("tests", "examples", "docs", "README.md"):
        copy(ROOT / name, environment.work / name)
    environment.python(*PYTEST, "tests")


def test_new_plugins(environment: Environment) -> None:
    """What `reidcore new-plugin` writes passes its own tests as it is, for every kind."""
    packages = [f"reid-my-{kind}" for kind in KINDS]
    for kind, package in zip(KINDS, packages, strict=True):
        environment.python("-m", "reidcore", "new-plugin", package, "--kind", kind)
    environment.install([environment.work / package for package in packages])
    environment.python("-m", "reidcore", "plugins", "--strict")
    environment.python(*PYTEST, *(f"{package}/tests" for package in packages))


def test_plugin(environment: Environment, plugin: Path) -> None:
    """The plugin loads, and its tests pass from an empty folder."""
    environment.python("-m", "reidcore", "plugins", "--strict")
    for name in ("tests", "recipes", "README.md"):
        if (plugin / name).exists():
            copy(plugin / name, environment.work / name)
    environment.python(*PYTEST, "tests")


def closure(requirements: Iterable[str]) -> list[Distribution]:
    """Return the installed distributions that meet the requirements, and theirs in turn, but none of ours."""
    found: dict[str, Distribution] = {}
    left = [(Requirement(text), {""}) for text in requirements]
    while left:
        requirement, extras = left.pop()
        name, marker = canonicalize_name(requirement.name), requirement.marker
        if name in found or name.startswith("reid") or not applies(marker, extras):
            continue
        found[name] = distribution(name)
        left += [(Requirement(text), {"", *requirement.extras}) for text in found[name].requires or ()]
    return list(found.values())


def applies(marker: Marker | None, extras: Iterable[str]) -> bool:
    """Whether a requirement with this marker is one, on this machine and with one of these extras."""
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def entries(installed: Distribution) -> set[Path]:
    """Return what a distribution has put into its folder: packages, modules and its metadata."""
    tops = {file.parts[0] for file in installed.files or () if file.parts[0] not in ("..", "__pycache__")}
    return {Path(str(installed.locate_file(top))) for top in tops}


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="plugins or the name of one, new-plugins, core")
    only = parser.parse_args().only or ["plugins", "new-plugins", "core"]
    wanted = [plugin for plugin in PLUGINS if {"plugins", plugin.name} & set(only)]
    failed = []
    with TemporaryDirectory(prefix="reidcore-packages-") as name:
        folder = Path(name)
        wheels = folder / "wheels"
        build = ["pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
        subprocess.run([sys.executable, "-m", *build, str(ROOT), *map(str, wanted)], check=True)
        (core,) = wheels.glob("reidcore-*.whl")
        checks: list[tuple[str, list[Path], list[Path], Callable[[Environment], None]]] = []
        for plugin in wanted:
            own = list(wheels.glob(f"{plugin.name.replace('-', '_')}-*.whl"))
            checks.append((plugin.name, [core, *own], [ROOT, plugin], partial(test_plugin, plugin=plugin)))
        if "new-plugins" in only:
            checks.append(("new-plugins", [core], [ROOT], test_new_plugins))
        if "core" in only:
            checks.append(("core", [core], [ROOT], test_core))
        for label, needed, projects, check in checks:
            started = time.perf_counter()
            print(f"== {label}", flush=True)
            try:
                check(Environment(folder / label, needed, projects))
            except (subprocess.CalledProcessError, AssertionError) as error:
                failed.append(label)
                print(error, file=sys.stderr)
            print(f"== {label}: {'failed' if label in failed else 'passed'} in {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
