"""Recipes: load, extend, check, fill, write."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, Literal

import attrs
import tomli
from attrs import field, frozen

from reidcore.catalog import Catalog, discover
from reidcore.component import option
from reidcore.errors import RecipeError, ReidDeprecationWarning, ReidError, os_message
from reidcore.kinds import (
    KINDS,
    AggregatorConfig,
    BackboneConfig,
    DatasetConfig,
    ExporterConfig,
    HeadConfig,
    LoggerConfig,
    LossConfig,
    MetricConfig,
    OptimizerConfig,
    PostprocessorConfig,
    SamplerConfig,
    SchedulerConfig,
    TaskConfig,
    TransformConfig,
)
from reidcore.locate import Path as TomlPath
from reidcore.locate import locate
from reidcore.options import EvaluationOptions, InputOptions, RunOptions, TrainingOptions
from reidcore.structure import Problem, Problems, component_of, make_converter

VERSIONS = "versions"


def _part(*names: str, many: bool = False) -> Any:
    """Declare a field that holds a component, and which one it is when the recipe does not say."""
    tables = [{"name": name} for name in names]
    return field(metadata={"default_table": tables if many else tables[0]})


def _inline() -> Any:
    """Declare the field whose component's options stand in the same table as the other fields."""
    return field(metadata={"inline": True})


@frozen(kw_only=True)
class TrainSet:
    """A data set to train on."""

    role: Literal["source", "target"] = option("source", help="'target' sets are unlabelled")
    dataset: DatasetConfig = _inline()


@frozen(kw_only=True)
class TestSet:
    """A data set to evaluate on, and how."""

    __test__ = False  # no test case, whatever its name

    label: str = option("", help="what results call it; the data set's name when empty")
    protocol: Literal[
        "auto",
        "cross-camera",
        "multi-query",
        "single-gallery-shot",
        "all-cameras",
        "in-shop",
        "vehicleid",
        "verification",
    ] = option(
        "auto",
        help="what is compared, what counts as a match and as junk; 'auto' is what the data set is published with, "
        "cross-camera where it says nothing",
    )
    cameras: Literal["use", "ignore"] = option("use", help="'ignore' for a set without cameras")
    query_transform: tuple[TransformConfig, ...] = option(
        (), help="transforms of the queries, in order: what the test is to be harder by, the same at every evaluation"
    )
    postprocess: tuple[PostprocessorConfig, ...] = option((), help="post-processors in order")
    dataset: DatasetConfig = _inline()

    @property
    def compared(self) -> str:
        """The protocol, chosen."""
        own: str = getattr(self.dataset, "protocol", "cross-camera")
        return own if self.protocol == "auto" else self.protocol

    def __attrs_post_init__(self) -> None:
        if self.cameras == "ignore" and self.protocol in ("multi-query", "single-gallery-shot"):
            raise ValueError(f"protocol '{self.protocol}' compares across cameras; expected cameras = \"use\"")
        if self.postprocess and self.compared == "verification":
            raise ValueError("protocol 'verification' compares pairs; there is no ranking to post-process")


@frozen(kw_only=True)
class LossTerm:
    """A loss and its weight in the sum."""

    weight: float = option(1.0, help="factor in the sum of losses", at_least=0)
    loss: LossConfig = _inline()


@frozen(kw_only=True)
class Recipe:
    """Everything that makes an experiment."""

    requires: tuple[str, ...] = option((), help="packages that must be installed: 'reid-resnest>=0.1'")
    run: RunOptions = option(factory=RunOptions, help="the run")
    train: tuple[TrainSet, ...] = option(help="one or several [[train]] tables with the data set's name")
    test: tuple[TestSet, ...] = option((), help="[[test]] tables with the data set's name")
    input: InputOptions = option(factory=InputOptions, help="size of the images")
    transform: tuple[TransformConfig, ...] = option((), help="[[transform]] tables, applied in order")
    sampler: SamplerConfig = _part("core:identity-balanced")
    backbone: BackboneConfig = _part("core:resnet50")
    aggregator: AggregatorConfig = _part("core:gem")
    head: HeadConfig = _part("core:bnneck")
    loss: tuple[LossTerm, ...] = _part("core:cross-entropy", "core:triplet", many=True)
    optimizer: OptimizerConfig = _part("core:adam")
    scheduler: SchedulerConfig = _part("core:warmup-cosine")
    task: TaskConfig = _part("core:train")
    training: TrainingOptions = option(factory=TrainingOptions, help="the loop")
    evaluation: EvaluationOptions = option(factory=EvaluationOptions, help="evaluation")
    metric: tuple[MetricConfig, ...] = _part("core:cmc", "core:map", "core:minp", many=True)
    export: tuple[ExporterConfig, ...] = option((), help="[[export]] tables: files to write at the end")
    logger: tuple[LoggerConfig, ...] = option((), help="[[logger]] tables: where else to report")

    def __attrs_post_init__(self) -> None:
        if not self.train:
            raise ValueError("there is no [[train]] table; expected one or several")
        if not self.loss:
            raise ValueError("there is no [[loss]] table; expected one or several")


@frozen
class Loaded:
    """A recipe with the catalog that it was structured with."""

    recipe: Recipe
    catalog: Catalog
    plugin_files: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.run.output / self.recipe.run.name

    def label(self, position: int) -> str:
        """Return what results call the test set at `position`."""
        test = self.recipe.test[position]
        return test.label or component_of(self.catalog, test.dataset).name


@frozen
class _Document:
    """A table and where each of its keys stands ("recipe.toml:12" or "--set run.seed=2")."""

    table: dict[str, Any]
    origins: dict[TomlPath, str]

    def origin(self, path: TomlPath) -> str:
        """Return where the nearest key at or above `path` stands."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, "")


def load_recipe(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Iterable[str] = (),
    plugin_files: Iterable[str | Path] = (),
    catalog: Catalog | None = None,
) -> Loaded:
    """Load a recipe from a TOML file or a table, with `KEY=VALUE` overrides.

    Raises RecipeError with every mistake at once, each as `FILE:LINE: key: what was found; what was expected`. A name
    that is old or deprecated is a ReidDeprecationWarning of the same form.
    """
    files = tuple(Path(file) for file in plugin_files)
    if isinstance(source, Mapping):
        document = _Document(dict(source), {(): "recipe"})
        default_name = ""
    else:
        document = _read(Path(source), ())
        default_name = Path(source).stem
    # names first: another component drops the options of the one before, but not those that are set with it
    for text in sorted(overrides, key=lambda text: not text.partition("=")[0].endswith(".name")):
        document = _override(document, text)
    _check_requirements(document)
    catalog = catalog or discover(files)
    require_loaded(catalog, files)
    table = {key: value for key, value in document.table.items() if key != VERSIONS}
    versions = document.table.get(VERSIONS, {})
    if not isinstance(versions, Mapping):
        message = f"found {versions!r}; expected a table, as a run writes it"
        raise RecipeError(_lines(document, [Problem((VERSIONS,), message)]))
    problems: list[Problem] = []
    converter = make_converter(catalog)
    try:
        recipe: Recipe = converter.structure(table, Recipe)
        problems += _cross_check(recipe, catalog)
    except Problems as found:
        problems += found.items
    if problems:
        raise RecipeError([*_lines(document, problems), *_missing(versions, files)])
    for line in _lines(document, converter.notices):
        warnings.warn(line, ReidDeprecationWarning, stacklevel=2)
    if not recipe.run.name:
        if not default_name:
            raise RecipeError(["run.name: missing; a recipe that is not a file must name its run"])
        recipe = attrs.evolve(recipe, run=attrs.evolve(recipe.run, name=default_name))
    needs = tuple(file.resolve() for file in recipe.run.needs)  # a saved recipe is read from somewhere else
    return Loaded(attrs.evolve(recipe, run=attrs.evolve(recipe.run, needs=needs)), catalog, files)


def needed(loaded: Loaded, done: Callable[[Loaded], bool] = lambda other: False) -> list[Loaded]:
    """Load the recipes that are to be run before this one, in order: `[run] needs`, and what these need in turn, but
    for those that are `done`.

    Raises RecipeError with the mistakes of all of them, and for a recipe that needs itself.
    """
    found: list[Loaded] = []
    seen: set[Path] = set()
    problems: list[str] = []

    def visit(item: Loaded, above: tuple[Path, ...]) -> None:
        for file in item.recipe.run.needs:
            if file in above:
                problems.append(f"{above[-1]}: run.needs: {file} needs this recipe in turn")
            elif file not in seen:
                seen.add(file)
                try:
                    other = load_recipe(file, plugin_files=loaded.plugin_files, catalog=loaded.catalog)
                except RecipeError as error:
                    problems.extend(error.problems)
                    continue
                if not done(other):
                    visit(other, (*above, file))
                    found.append(other)

    visit(loaded, ())
    if problems:
        raise RecipeError(problems)
    return found


def require_loaded(catalog: Catalog, plugin_files: Iterable[Path]) -> None:
    """Raise ReidError if one of the plugin files, which somebody asked for, did not load."""
    for plugin in catalog.failed:
        if plugin.origin in map(str, plugin_files):
            raise ReidError(f"the plugin {plugin.origin} did not load: {plugin.error}")


def fill(loaded: Loaded, versions: Mapping[str, str] | None = None) -> str:
    """Return the recipe as TOML with every option written out and every component by its full name."""
    import tomli_w

    table = as_table(loaded.recipe, loaded.catalog)
    if versions:
        table[VERSIONS] = dict(versions)
    return tomli_w.dumps(table)


def _read(file: Path, seen: tuple[Path, ...]) -> _Document:
    try:
        text = file.read_text(encoding="utf-8-sig")
        table = tomli.loads(text)
    except OSError as error:
        raise RecipeError([os_message(error, "read the recipe", file)]) from None
    except UnicodeDecodeError:
        raise RecipeError([f"{file}: it is not a UTF-8 text"]) from None
    except RecursionError:
        raise RecipeError([f"{file}: it is nested too deeply"]) from None
    except tomli.TOMLDecodeError as error:
        message = str(error)
        lineno = getattr(error, "lineno", None)
        message = getattr(error, "msg", message)
        raise RecipeError([f"{file}:{lineno}: not valid TOML: {message}"]) from None
    run = table.get("run")
    if isinstance(run, dict) and isinstance(needs := run.get("needs"), list):
        run["needs"] = [str(file.parent / need) if isinstance(need, str) else need for need in needs]
    document = _Document(table, {path: f"{file}:{line}" for path, line in locate(text).items()} | {(): f"{file}:1"})
    base = table.pop("extends", None)
    if base is None:
        return document
    where = document.origin(("extends",))
    if not isinstance(base, str):
        raise RecipeError([f"{where}: extends: found {base!r}; expected the path of a recipe"])
    parent = file.parent / base
    if parent.resolve() in {path.resolve() for path in (*seen, file)}:
        raise RecipeError([f"{where}: extends: '{base}' extends this recipe in turn"])
    if not parent.is_file():
        raise RecipeError([f"{where}: extends: there is no file {parent}"])
    return _merge(_read(parent, (*seen, file)), document)


def _merge(base: _Document, top: _Document) -> _Document:
    """Lay one document over another: tables merge by key, a new `name` drops the base's options, arrays replace."""
    origins = dict(base.origins)

    def lay(below: dict[str, Any], above: Mapping[str, Any], path: TomlPath) -> dict[str, Any]:
        name = above.get("name")
        if _changes_component(path, below.get("name"), name):
            for key in set(below) - _reserved(path):
                drop((*path, key))
            below = {key: value for key, value in below.items() if key in _reserved(path)}
        result = dict(below)
        for key, value in above.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(result.get(key), dict):
                result[key] = lay(result[key], value, here)
            else:
                drop(here)
                result[key] = value
        return result

    def drop(path: TomlPath) -> None:
        for known in [known for known in origins if known[: len(path)] == path]:
            del origins[known]

    table = lay(base.table, top.table, ())
    return _Document(table, origins | top.origins)


def _is_position(part: str) -> bool:
    return part.isascii() and part.isdigit()


def _changes_component(path: TomlPath, before: Any, after: Any) -> bool:
    """Whether a new `name` in the table at `path` chooses another component: it does but at the top and in [run]."""
    if path in ((), ("run",)) or after is None or before == after:
        return False
    plugins, names = zip(*(str(name or "").rpartition(":")[::2] for name in (before, after)), strict=True)
    return names[0] != names[1] or "" not in plugins


def _reserved(path: TomlPath) -> set[str]:
    """Return the keys of the table at `path` that are the core's, whatever component it chooses."""
    kind = {"train": "dataset", "test": "dataset", "loss": "loss"}.get(str(path[0]))
    return set(KINDS[kind].reserved) if kind else set()


def _override(document: _Document, text: str) -> _Document:
    """Apply one `KEY=VALUE`: dotted keys with list positions; the value is read as TOML, else as text."""
    origin = f"--set {text}"
    key, equals, raw = text.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError([f"{origin}: expected KEY=VALUE, such as training.epochs=10"])
    try:
        value = tomli.loads(f"value = {raw}")["value"]
    except tomli.TOMLDecodeError:
        value = raw
    if isinstance(value, (date, time)):
        value = raw

    parts = key.split(".")
    path: TomlPath = tuple(int(part) if _is_position(part) else part for part in parts)

    def put(node: Any, parts: Sequence[str]) -> Any:
        head, rest = parts[0], parts[1:]
        above = path[: len(path) - len(parts)]
        if isinstance(node, list):
            if not _is_position(head) or int(head) > len(node):
                raise RecipeError([f"{origin}: '{head}' is not a position in {key}; it has {len(node)} items"])
            items = [*node, {}] if int(head) == len(node) else list(node)
            items[int(head)] = put(items[int(head)], rest) if rest else value
            return items
        if not isinstance(node, dict):
            raise RecipeError([f"{origin}: '{head}' is below a value that is not a table"])
        child = node.get(head, [] if rest and _is_position(rest[0]) else {})
        updated = {**node, head: put(child, rest) if rest else value}
        if not rest and head == "name" and _changes_component(above, node.get("name"), value):
            updated = {"name": value, **{key: node[key] for key in _reserved(above) & set(node)}}
        return updated

    origins = {known: place for known, place in document.origins.items() if known[: len(path)] != path}
    return _Document(put(document.table, parts), origins | {path: origin})


def _check_requirements(document: _Document) -> None:
    """Check `requires` before anything else: without the packages every other message would mislead."""
    texts = document.table.get("requires")
    if not texts or not isinstance(texts, list):
        return  # what is no list is reported with the other mistakes
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import InvalidRequirement, Requirement

    problems, missing = [], []
    for index, text in enumerate(texts):
        try:
            requirement = Requirement(str(text))
            if not requirement.specifier.contains(found := version(requirement.name), prereleases=True):
                problems.append(Problem(("requires", index), f"found {requirement.name} {found}; expected {text}"))
                missing.append(text)
        except InvalidRequirement:
            problems.append(Problem(("requires", index), f"found {text!r}; expected a form like 'reid-dsr>=0.1'"))
        except PackageNotFoundError:
            problems.append(Problem(("requires", index), f"{text} is not installed"))
            missing.append(text)
    if problems:
        advice = [f"  to install: pip install {' '.join(repr(text) for text in missing)}"] if missing else []
        raise RecipeError([*_lines(document, problems), *advice])


def _missing(versions: Mapping[str, Any], files: Iterable[Path]) -> list[str]:
    """Return a note for each plugin that the run had which saved this recipe, and that is not here."""
    from importlib.metadata import PackageNotFoundError, version

    given = {file.resolve() for file in files}
    notes = []
    for name, text in versions.items():
        if "sha256:" in str(text):
            if Path(name) not in given:
                notes.append(f"  note: the recipe was saved by a run with --plugin {name}")
        elif name != "python":
            try:
                version(name)
            except PackageNotFoundError:
                notes.append(
                    f"  note: the recipe was saved with {name} {text}, which is not installed; "
                    f"to install: pip install '{name}=={text}'"
                )
    return notes


def _cross_check(recipe: Recipe, catalog: Catalog) -> list[Problem]:
    """Check what involves several tables and needs no part to be built."""
    problems = []
    labels: dict[str, int] = {}
    for position in range(len(recipe.test)):
        label = Loaded(recipe, catalog).label(position)
        if label == "holdout":
            problems.append(
                Problem(("test", position), "'holdout' is what held-out identities are called; choose another")
            )
        if label in labels:
            message = f"two tests are called '{label}'; give one of them a label"
            problems.append(Problem(("test", position), message))
        labels[label] = position
    name = Path(recipe.run.name)
    if name.is_absolute() or ".." in name.parts:
        problems.append(Problem(("run", "name"), f"found '{recipe.run.name}'; expected the name of a folder"))
    return problems


def _lines(document: _Document, problems: Iterable[Problem]) -> list[str]:
    def place(problem: Problem) -> tuple[str, int]:
        file, _, line = document.origin(problem.path).rpartition(":")
        return (file, int(line)) if line.isdigit() else (document.origin(problem.path), 0)

    lines = []
    for problem in sorted(problems, key=place):
        key = ".".join(map(str, problem.path))
        where = document.origin(problem.path)
        lines.append(": ".join(part for part in (where, key, problem.message) if part))
    return lines


def as_table(value: Any, catalog: Catalog) -> Any:
    """Return a config as tables, arrays and scalars; absent options stay absent."""
    if attrs.has(type(value)):
        table = {}
        inline = {}
        for item in attrs.fields(type(value)):
            content = getattr(value, item.name)
            if item.metadata.get("inline"):
                inline = as_table(content, catalog)
            elif content is not None:
                table[item.name] = as_table(content, catalog)
        named = {"name": component_of(catalog, value).full_name} if hasattr(value, "build") else {}
        return {**named, **inline, **table}
    if isinstance(value, Mapping):
        return {key: as_table(item, catalog) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_table(item, catalog) for item in value]
    return str(value) if isinstance(value, Path) else value


__all__ = ["Loaded", "Recipe", "ReidError", "fill", "load_recipe"]
