"""Discover installed plugins and make one immutable catalog of the components that they offer."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from difflib import get_close_matches
from email.message import Message
from functools import cache, partial
from importlib.metadata import Distribution, EntryPoint, PackageMetadata, distributions
from pathlib import Path
from types import ModuleType, NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs
import pluggy
from attrs import frozen

from reidcore import hookspecs
from reidcore.component import Component, default_of
from reidcore.errors import ReidDeprecationWarning, ReidError, UnknownComponent
from reidcore.kinds import KINDS, Kind

GROUP = "reidcore"
CORE = "core"
SELECTION = "REIDCORE_PLUGINS"


@frozen
class Plugin:
    """One plugin and what became of it.

    `status` is "ok", "disabled" (left out by `REIDCORE_PLUGINS`) or "failed", with the reason in `error` and the
    stack in `trace`. One that is "ok" has an `error` too where it offers nothing, or a part with the name of another
    plugin's, which recipes cannot choose without saying whose. `origin` is its distribution or file, and `components`
    its offers for each kind.
    """

    name: str
    origin: str
    version: str = ""
    status: Literal["ok", "disabled", "failed"] = "ok"
    error: str = ""
    trace: str = attrs.field(default="", repr=False)
    components: Mapping[str, tuple[Component, ...]] = attrs.field(factory=dict, repr=False)


@frozen
class Catalog:
    """What can be chosen in a recipe, and by whom it is offered."""

    plugins: tuple[Plugin, ...]

    @classmethod
    def of(cls, **offers: Iterable[Component]) -> Catalog:
        """Return the core's catalog plus components given by the plural name of their kind: `losses=[...]`."""
        given = SimpleNamespace()
        for plural, components in offers.items():
            offer = hookspecs.hookimpl(lambda components=tuple(components): components)
            setattr(given, f"reidcore_{plural}", offer)
        return cls((_core(), _load("given", "given", str, lambda: given)))

    @property
    def failed(self) -> tuple[Plugin, ...]:
        """The plugins that did not load."""
        return tuple(plugin for plugin in self.plugins if plugin.status == "failed")

    def components(self, kind: str) -> tuple[Component, ...]:
        """Return the components of one kind, the core's first."""
        return tuple(item for plugin in self.plugins for item in plugin.components.get(kind, ()))

    def find(self, kind: str, name: str) -> Component:
        """Return the component that `name` or `plugin:name` means in a recipe.

        Raises UnknownComponent with the nearest names, or with both full names where two plugins offer it.
        """
        plugin, _, bare = name.rpartition(":")
        offers = [
            item
            for item in self.components(kind)
            if bare in (item.name, *item.old_names) and plugin in ("", item.plugin)
        ]
        core = [item for item in offers if item.plugin == CORE]
        offers = [item for item in offers if item.name == bare] or offers  # what is called so now
        if core or len(offers) == 1:
            return (core or offers)[0]
        if offers:
            choices = " or ".join(f"'{item.full_name}'" for item in offers)
            raise UnknownComponent(f"'{name}' is offered by {len(offers)} plugins; write {choices}")
        raise UnknownComponent(self._unknown(KINDS[kind], name, plugin, bare))

    def names(self, kind: str, component: Component) -> tuple[str, ...]:
        """Return the names by which a recipe can choose a component, the shortest first and old ones last."""

        def finds(name: str) -> bool:
            try:
                return self.find(kind, name) is component
            except UnknownComponent:  # several plugins offer it
                return False

        names = (component.name, *component.old_names)
        return tuple(form for name in names for form in (name, f"{component.plugin}:{name}") if finds(form))

    def build(self, kind: str, name: str, options: Mapping[str, Any] | None = None, *args: Any) -> Any:
        """Build a part from its name and options, outside any recipe; `args` go to the config's `build`."""
        from reidcore.structure import structure

        component = self.find(kind, name)
        if notice := component.notice(name):
            warnings.warn(notice, ReidDeprecationWarning, stacklevel=2)
        return structure(dict(options or {}), component.config, self, where=component.name).build(*args)

    def _unknown(self, kind: Kind, name: str, plugin: str, bare: str) -> str:
        names = {item.name for item in self.components(kind.name)}
        text = f"no {kind.name} is called '{name}'"
        others = [other.one for other in KINDS.values() if bare in {i.name for i in self.components(other.name)}]
        missing = plugin and plugin not in {known.name for known in self.plugins}
        if missing:
            text += f"; no plugin '{plugin}' is installed (its package may be called reid-{plugin})"
        if plugin and bare in names:
            providers = ", ".join(repr(i.full_name) for i in self.components(kind.name) if i.name == bare)
            text += f"; there is {providers}"
        elif others and not missing:
            text += f"; '{bare}' is {others[0]}"
        elif not missing and (near := get_close_matches(bare, sorted(names), 1)):
            text += f"; did you mean '{near[0]}'?"
        elif names and not missing:
            text += f"; there are {', '.join(sorted(names))}"
        elif not names:
            text += "; no installed plugin offers one"
        for broken in self.failed:
            text += f"\n  note: plugin '{broken.name}' ({broken.origin}) did not load: {broken.error}"
        return text


def discover(files: Iterable[Path] = ()) -> Catalog:
    """Load the core's parts, the installed plugins and the one-file plugins in `files`.

    The environment variable `REIDCORE_PLUGINS`, a comma-separated list of plugin names, limits the installed plugins
    to those named; empty means none. A plugin that fails is recorded and stops nobody else.
    """
    collecting = gc.isenabled()
    gc.disable()  # of all that is made here nothing is garbage, and looking for some takes a fifth of the start
    try:
        plugins = [_core(), *_installed()]
        for file in {file.resolve(): file for file in files}.values():
            plugins.append(_load(file.stem, str(file), str, partial(_import_file, file)))
    finally:
        if collecting:
            gc.enable()
    return Catalog(tuple(_with_rivals(_without_clashes(plugins))))


def _core() -> Plugin:
    from reidcore import __version__, builtin

    plugin = _load(CORE, "reidcore", lambda: __version__, lambda: builtin, *builtin.parts())
    if plugin.status == "failed":  # the core is not a plugin that one can do without
        raise AssertionError(plugin.trace)
    return plugin


def _metadata(distribution: Distribution) -> PackageMetadata:
    """Return what a package says of itself: nothing where it is damaged, at which the backport of importlib raises."""
    try:
        return distribution.metadata
    except OSError:
        return Message()  # type: ignore[return-value]


def _installed() -> list[Plugin]:
    wanted = os.environ.get(SELECTION)
    names = None if wanted is None else {name.strip() for name in wanted.split(",")} - {""}
    found: dict[tuple[str, str], tuple[EntryPoint, PackageMetadata]] = {}
    for distribution in distributions():
        for entry in distribution.entry_points:
            if entry.group == GROUP:  # an editable install beside a wheel shows the same entry twice
                metadata = _metadata(distribution)  # each look at it reads the file
                found.setdefault((entry.name, metadata["Name"] or "unknown"), (entry, metadata))
    plugins = []
    for (name, origin), (entry, metadata) in sorted(found.items(), key=lambda item: item[0]):
        if names is not None and name not in names:
            plugins.append(Plugin(name, origin, metadata["Version"] or "", "disabled"))
        else:
            plugins.append(_load(name, origin, partial(_compatible, metadata), entry.load))
    for name in sorted((names or set()) - {plugin.name for plugin in plugins} - {CORE}):
        error = f"{SELECTION} names it, but it is not installed"
        plugins.append(Plugin(name, "not installed", status="failed", error=error))
    return plugins


def _compatible(metadata: PackageMetadata) -> str:
    """Return the version of a distribution. Raises ReidError if what it requires of the core is not met: an upgrade of
    the core can break it."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    from reidcore import __version__

    for requirement in map(Requirement, metadata.get_all("Requires-Dist") or ()):
        if canonicalize_name(requirement.name) != GROUP:
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and not requirement.specifier.contains(__version__, prereleases=True):
            raise ReidError(f"needs {requirement}, but this is reidcore {__version__}")
    return str(metadata["Version"] or "")


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise ReidError(f"there is no file {file}")
    name = f"reidcore_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ReidError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that what it defines pickles and attrs finds its annotations
    spec.loader.exec_module(module)
    return module


def _load(name: str, origin: str, check: Callable[[], str], load: Callable[[], object], *more: object) -> Plugin:
    """Load one plugin, alone with the hooks: nothing it does can disturb the others. `check` returns its version."""
    manager = _hooks()
    parts: list[object] = []
    version = ""
    try:
        version = check()
        with redirect_stdout(sys.stderr):  # what it prints is no part of a listing
            for part in (load(), *more):
                manager.register(part)
                parts.append(part)
                _refuse_unknown_hooks(part)
            components = {kind.name: _offers(manager, kind, name) for kind in KINDS.values()}
    except (Exception, SystemExit) as caught:
        text = str(caught) if isinstance(caught, ReidError) else f"{type(caught).__name__}: {caught}"
        return Plugin(name, origin, version, "failed", text, traceback.format_exc())
    finally:
        for part in parts:
            manager.unregister(part)
    offered = {kind: found for kind, found in components.items() if found}
    error = "" if offered else "it offers nothing: none of its functions is a hook, marked with @hookimpl"
    return Plugin(name, origin, version, error=error, components=offered)


@cache
def _hooks() -> pluggy.PluginManager:
    """Return the manager that knows the hooks; no plugin stays in it."""
    manager = pluggy.PluginManager("reidcore")
    manager.add_hookspecs(hookspecs)
    return manager


def _refuse_unknown_hooks(part: object) -> None:
    """Raise ReidError for hooks that would be passed over: misspelt ones, and those without their mark."""
    hooks = {kind.hook for kind in KINDS.values()}
    for attribute in sorted(name for name in dir(part) if name.startswith("reidcore_")):
        marked = hasattr(getattr(part, attribute), "reidcore_impl")
        if marked and attribute not in hooks:
            near = get_close_matches(attribute, hooks, 1)
            raise ReidError(f"no hook is called {attribute}" + (f"; did you mean {near[0]}?" if near else ""))
        if attribute in hooks and not marked:
            raise ReidError(f"{attribute} is not marked as a hook; write @hookimpl above it")


def _offers(manager: pluggy.PluginManager, kind: Kind, plugin: str) -> tuple[Component, ...]:
    found: dict[str, Component] = {}
    names: set[str] = set()
    implementations = getattr(manager.hook, kind.hook).get_hookimpls()
    offered = [implementation.function() for implementation in implementations]
    if any(not isinstance(items, Iterable) for items in offered):
        raise ReidError(f"{kind.hook} must yield Component(name=..., config=...), it returned something else")
    for item in (item for items in offered for item in items):
        if not isinstance(item, Component):
            raise ReidError(f"{kind.hook} must yield Component(name=..., config=...), it yielded {item!r}")
        for name in (item.name, *item.old_names):
            if name in names:
                raise ReidError(f"it offers two {kind.plural} called '{name}'")
            names.add(name)
        if any(other.config is item.config for other in found.values()):  # a filled recipe could not tell them apart
            raise ReidError(f"{kind.name} '{item.name}' shares its config class with another; make a subclass")
        for field in attrs.fields(item.config):
            if field.name in ("name", *kind.reserved):
                raise ReidError(f"{kind.name} '{item.name}' has an option '{field.name}', a key that the core reads")
        if plugin != CORE:  # whose tests do this, so that a start need not
            _check_options(item.config, f"{kind.name} '{item.name}'")
        found[item.name] = attrs.evolve(item, plugin=plugin)
    return tuple(found.values())


def _check_options(config: type, what: str) -> None:
    """Raise ReidError for an option that no recipe could write, and whatever the factory of a default raises."""
    try:
        attrs.resolve_types(config)
    except NameError as error:
        raise ReidError(f"{what} has an option whose type is unknown: {error}") from None
    for field in attrs.fields(config):
        if not _can_be_written(field.type):
            raise ReidError(
                f"{what} has an option '{field.name}' of type {field.type}; expected bool, int, float, str, Path, "
                "Literal of these, a config class, or tuples, lists, mappings and unions of them"
            )
        default_of(field)


def _can_be_written(of: Any) -> bool:
    """Whether the values of a type have a form in TOML."""
    if get_origin(of) is Literal:
        return all(type(choice) in (bool, int, float, str) for choice in get_args(of))
    if get_origin(of) in (Union, UnionType, tuple, list, dict, Mapping):
        return all(argument in (Ellipsis, NoneType) or _can_be_written(argument) for argument in get_args(of))
    if attrs.has(of):
        _check_options(of, of.__name__)
        return True
    return of in (bool, int, float, str, Path, Any) or of in {kind.protocol for kind in KINDS.values()}


def _without_clashes(plugins: list[Plugin]) -> list[Plugin]:
    """Fail every plugin whose name another one has too: their `plugin:name` would be ambiguous."""
    origins: dict[str, list[str]] = {}
    for plugin in plugins:
        origins.setdefault(plugin.name, []).append(plugin.origin)
    checked = []
    for plugin in plugins:
        if len(origins[plugin.name]) > 1 and plugin is not plugins[0]:
            error = f"several plugins are called '{plugin.name}': {', '.join(origins[plugin.name])}"
            plugin = attrs.evolve(plugin, status="failed", error=error, components={})
        checked.append(plugin)
    return checked


def _with_rivals(plugins: list[Plugin]) -> list[Plugin]:
    """Say of every plugin which of its parts have the name of another plugin's, and so need theirs in recipes."""
    catalog = Catalog(tuple(plugins))
    noted = []
    for plugin in plugins:
        notes = []
        for kind, components in plugin.components.items() if plugin.name != CORE else ():
            for item in components:
                others = [o.plugin for o in catalog.components(kind) if o.name == item.name and o.plugin != plugin.name]
                if CORE in others:
                    notes.append(f"{kind} '{item.name}' means the core's; recipes must write '{item.full_name}'")
                elif others:
                    notes.append(
                        f"{kind} '{item.name}' is offered by {', '.join(others)} too; "
                        f"recipes must write '{item.full_name}'"
                    )
        noted.append(attrs.evolve(plugin, error="; ".join(notes)) if notes else plugin)
    return noted
