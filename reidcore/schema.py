"""The JSON Schema of recipes: what an editor completes and checks while a recipe is written.

It uses only what means the same in draft 2020-12 and in draft 7, which is what the TOML editors read. A table that
chooses a component lists the options of all of them in `properties`, where editors look for what to complete; what
holds for one component only is checked by `if` and `then` on the name, so that a mistake is shown at its key and not,
as with `oneOf`, at the whole table.

What a schema cannot say is left to `reidcore check`: rules over several options or tables, arrays that must not be
empty, packages that are required, the recipe that is extended, what is missing in a table within a component's. And to
JSON 3.0 is an integer, while no number is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from reidcore.catalog import Catalog
from reidcore.component import Component, default_of, renamed_options
from reidcore.kinds import KINDS, Kind
from reidcore.recipe import VERSIONS, Recipe

Schema = dict[str, Any]

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
_BOUNDS = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum", "below": "exclusiveMaximum"}
_KINDS: dict[Any, Kind] = {kind.protocol: kind for kind in KINDS.values()}
_NAMED = {"required": ["name"]}


def recipe_schema(catalog: Catalog) -> Schema:
    """Return the schema of the recipes that can be written with the components of `catalog`."""
    return _Writer(catalog).recipe()


def option_schema(field: attrs.Attribute[Any], catalog: Catalog) -> Schema:
    """Return the schema of one option of a config class whose types are resolved."""
    return _Writer(catalog).option(field, whole=True)


class _Writer:
    """Writes schemas, and keeps in `definitions` those of the tables that choose a component.

    `whole` says of a table that it is complete, as in an array. Others may be laid over those of a recipe that is
    extended, and then lack what must be given.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.definitions: dict[str, Schema] = {}

    def recipe(self) -> Schema:
        attrs.resolve_types(Recipe)
        tables = {field.name: field for field in attrs.fields(Recipe) if field.type in _KINDS}
        made_with = [f"{it.name} {it.version}".strip() for it in self.catalog.plugins if it.status == "ok"]
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "reidcore recipe",
            "description": f"Written by `reidcore schema` with the plugins {', '.join(made_with)}.",
            "type": "object",
            "properties": {
                "extends": {
                    "type": "string",
                    "description": "a recipe that this one is laid over; relative to this file",
                },
                **{field.name: self.option(field, whole=False) for field in attrs.fields(Recipe)},
                VERSIONS: {"type": "object", "description": "what was installed when a run wrote the recipe"},
            },
            "additionalProperties": False,
            "if": {"required": ["extends"]},
            "then": {"properties": {name: self.override(_KINDS[field.type]) for name, field in tables.items()}},
            "else": {
                "properties": {name: self.by_default(field) for name, field in tables.items()},
                **_required(Recipe),
            },
            "$defs": self.definitions,
        }

    def option(self, field: attrs.Attribute[Any], whole: bool) -> Schema:
        """Return the schema of a key: type, bounds, help and default."""
        bounds = {_BOUNDS[name]: bound for name, bound in field.metadata.get("bounds", {}).items()}
        schema = self.value(field.type, bounds, whole)
        if help := field.metadata.get("help"):
            schema["description"] = help
        if (value := _plain(default_of(field))) is not None:
            schema["default"] = value
        return schema

    def value(self, cls: Any, bounds: Mapping[str, float], whole: bool) -> Schema:
        """Return the schema of a type that recipes may have (see `reidcore.structure`); of others it says nothing."""
        if cls in _TYPES:
            return {"type": _TYPES[cls], **(bounds if cls in (int, float) else {})}
        if cls in _KINDS:
            return self.reference(_KINDS[cls], None, whole)
        if attrs.has(cls):
            attrs.resolve_types(cls)
            inline = next((field for field in attrs.fields(cls) if field.metadata.get("inline")), None)
            return self.reference(_KINDS[inline.type], cls, whole) if inline else self.table(cls, whole)
        origin = get_origin(cls)
        arguments = [argument for argument in get_args(cls) if argument not in (None, NoneType, Ellipsis)]
        if origin is Literal:
            return {"type": _one_or_all(_TYPES[type(choice)] for choice in arguments), "enum": arguments}
        if origin in (Union, UnionType):
            choices = [self.value(argument, bounds, whole) for argument in arguments]
            return choices[0] if len(choices) == 1 else {"anyOf": choices}
        if origin in (tuple, list):
            items = _one_or_all(self.value(argument, bounds, True) for argument in arguments)
            fixed = origin is tuple and Ellipsis not in get_args(cls)
            size = {"minItems": len(arguments), "maxItems": len(arguments)} if fixed else {}
            return {"type": "array", "items": {"anyOf": items} if isinstance(items, list) else items, **size}
        if origin in (dict, Mapping):
            return {"type": "object", "additionalProperties": self.value(arguments[1], bounds, whole)}
        return {}

    def table(self, cls: type, whole: bool) -> Schema:
        """Return the schema of a table without components."""
        required = _required(cls) if whole else {}
        options = self.options(cls, whole)
        return {"type": "object", "properties": options, "additionalProperties": False, **required, **_conflicts(cls)}

    def options(self, cls: type, whole: bool) -> dict[str, Schema]:
        """Return the schemas of a class's keys, old names among them."""
        attrs.resolve_types(cls)
        options = {
            field.name: self.option(field, whole) for field in attrs.fields(cls) if not field.metadata.get("inline")
        }
        old_names = {
            old: {**options[new], "description": f"an old name; write '{new}'", "deprecated": True}
            for old, new in renamed_options(cls).items()
        }
        return {**options, **old_names}

    def reference(self, kind: Kind, own: type | None, whole: bool) -> Schema:
        """Return a reference to the table that chooses a component of `kind`, with the core's keys in it, `own`."""
        name = (own.__name__ if own else kind.name) + ("-item" if whole else "")
        if name not in self.definitions:
            self.definitions[name] = {}  # a part may hold parts of its own kind
            self.definitions[name] = self.choice(kind, own, whole)
        return {"$ref": f"#/$defs/{name}"}

    def choice(self, kind: Kind, own: type | None, whole: bool) -> Schema:
        """Return the schema of a table that chooses a component of `kind`, with the core's keys in it, `own`."""
        core = self.options(own, whole) if own else {}
        components = self.catalog.components(kind.name)
        choices = [(name, item) for item in components for name in self.catalog.names(kind.name, item)]
        choices.sort(key=lambda choice: ":" in choice[0])
        texts = [". ".join(filter(None, (item.notice(name), item.summary))) for name, item in choices]
        names = {
            "description": f"chooses {kind.one}",
            "enum": [name for name, _ in choices],
            "x-taplo": {"docs": {"enumValues": texts}},
        }
        shared = self.shared(kind, whole)
        tables = [
            {"if": self.named(kind, item), "then": self.chosen(item, shared, tuple(core), whole)} for item in components
        ]
        required = ["name", *_required(own).get("required", ())] if own else ["name"]
        return {
            "type": "object",
            "description": f"chooses {kind.one} by its name",
            "properties": {"name": names, **core, **shared},
            **({"required": required} if whole else {}),
            **(_conflicts(own) if own else {}),
            **({"if": _NAMED, "then": {"allOf": tables}} if tables else {}),
        }

    def named(self, kind: Kind, component: Component) -> Schema:
        """Return the condition that a table chooses `component`."""
        return {"properties": {"name": {"enum": list(self.catalog.names(kind.name, component))}}}

    def shared(self, kind: Kind, whole: bool) -> dict[str, Schema]:
        """Return for each option of any component what its schemas in all of them have in common."""
        found: dict[str, list[tuple[str, Schema]]] = {}
        for component in self.catalog.components(kind.name):
            for key, schema in self.options(component.config, whole).items():
                found.setdefault(key, []).append((component.name, schema))
        return {key: _common(schemas) for key, schemas in found.items()}

    def chosen(self, component: Component, shared: Mapping[str, Schema], core: Sequence[str], whole: bool) -> Schema:
        """Return what holds for a table with this component beside what is shared: its keys, and what differs."""
        own: dict[str, Any] = dict.fromkeys(("name", *core), True)
        for key, schema in self.options(component.config, whole).items():
            own[key] = {word: value for word, value in schema.items() if shared[key].get(word) != value} or True
        return {
            "description": component.summary,
            **({"deprecated": True} if component.deprecated else {}),
            "properties": own,
            "additionalProperties": False,
            **(_required(component.config) if whole else {}),
            **_conflicts(component.config),
        }

    def override(self, kind: Kind) -> Schema:
        """Return what holds for a table of a recipe that extends another: without a name, any component's options."""
        keys = dict.fromkeys(self.shared(kind, whole=False), True)
        return {"if": _NAMED, "else": {"properties": keys, "additionalProperties": False}}

    def by_default(self, field: attrs.Attribute[Any]) -> Schema:
        """Return what holds for a table that stands alone: what is required; without a name the default's options."""
        kind = _KINDS[field.type]
        default = self.catalog.find(kind.name, field.metadata["default_table"]["name"])
        required = [
            {"if": self.named(kind, component), "then": missing}
            for component in self.catalog.components(kind.name)
            if (missing := _required(component.config))
        ]
        return {
            "if": _NAMED,
            **({"then": {"allOf": required}} if required else {}),
            "else": {
                **self.chosen(default, self.shared(kind, whole=False), (), whole=False),
                **_required(default.config),
            },
        }


def _required(cls: type) -> Schema:
    """Return which keys must be given, by one of their names."""
    names = [
        field.name
        for field in attrs.fields(cls)
        if field.default is attrs.NOTHING and not field.metadata.keys() & {"inline", "default_table"}
    ]
    old_names = {new: [old for old, now in renamed_options(cls).items() if now == new] for new in names}
    plain = [name for name in names if not old_names[name]]
    either = [{"anyOf": [{"required": [it]} for it in (new, *old)]} for new, old in old_names.items() if old]
    return {**({"required": plain} if plain else {}), **({"allOf": either} if either else {})}


def _conflicts(cls: type) -> Schema:
    """Return that an option is given by one of its names only."""
    groups: dict[str, list[str]] = {}
    for old, new in renamed_options(cls).items():
        groups.setdefault(new, [new]).append(old)
    pairs = [{"required": list(pair)} for names in groups.values() for pair in combinations(names, 2)]
    return {"not": {"anyOf": pairs}} if pairs else {}


def _common(found: Sequence[tuple[str, Schema]]) -> Schema:
    """Return what the schemas of an option agree on, with the help of each component where they differ."""
    schemas = [schema for _, schema in found]
    common = {key: value for key, value in schemas[0].items() if all(it.get(key) == value for it in schemas)}
    if "properties" not in common:
        common.pop("additionalProperties", None)  # which means: other than those
    if "type" not in common and all("type" in schema for schema in schemas):
        common["type"] = sorted({name for schema in schemas for name in _listed(schema["type"])})
    if "description" not in common:
        texts: dict[str, list[str]] = {}
        for component, schema in found:
            texts.setdefault(schema.get("description", ""), []).append(component)
        common["description"] = "\n\n".join(f"{', '.join(names)}: {text}" for text, names in texts.items() if text)
    return common


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _one_or_all(values: Iterable[Any]) -> Any:
    """Return the different ones of `values`, without a list where there is one."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different


def _plain(value: Any) -> Any:
    """Return a default as JSON has it, or None if there is none that JSON has."""
    if isinstance(value, (tuple, list)):
        items = [_plain(item) for item in value]
        return None if None in items else items
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value if isinstance(value, (bool, int, float, str)) else None
