"""`reidcore components`: list what recipes can choose from, and the options of each."""

from __future__ import annotations

import json
import linecache
import math
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import attrs
import tomli

from reidcore.catalog import Catalog, discover
from reidcore.cli.listing import print_columns
from reidcore.component import Component, default_of, describe_bounds, renamed_options
from reidcore.errors import RecipeError, ReidError
from reidcore.kinds import KINDS, Kind
from reidcore.recipe import require_loaded
from reidcore.schema import Schema, option_schema
from reidcore.structure import describe_type, structure


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("kind", nargs="?", metavar="KIND", help="one kind: backbone, loss, ...")
    parser.add_argument("name", nargs="?", metavar="NAME", help="one component, with its options")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plugin", metavar="FILE.py", type=Path, action="append", default=[], help="a plugin in one file"
    )


def main(options: Namespace) -> int:
    """Print the list, or one component's page."""
    catalog = discover(options.plugin)
    require_loaded(catalog, options.plugin)
    kind = None if options.kind is None else _kind(options.kind, catalog)
    if options.name is not None and kind is not None:
        component = catalog.find(kind.name, options.name)
        if options.json:
            print(json.dumps(_record(catalog, kind, component), indent=2))
        else:
            _print_page(catalog, kind, component)
        return 0
    found = list(_all(catalog, kind))
    if options.json:
        print(json.dumps([_record(catalog, kind, component) for kind, component in found], indent=2))
    else:
        head = ("KIND", "NAME", "PLUGIN", "WHAT IT IS")
        print_columns([head, *((kind.name, item.name, item.plugin, _described(item)) for kind, item in found)])
    return 0


def _kind(text: str, catalog: Catalog) -> Kind:
    for kind in KINDS.values():
        if text in (kind.name, kind.plural):
            return kind
    having = [kind for kind in KINDS.values() if text in {item.name for item in catalog.components(kind.name)}]
    near = get_close_matches(text, KINDS, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(KINDS)}"
    if having:
        hint = f"'{text}' is {having[0].one}: reidcore components {having[0].name} {text}"
    raise ReidError(f"no kind is called '{text}'; {hint}")


def _all(catalog: Catalog, only: Kind | None) -> Iterator[tuple[Kind, Component]]:
    for kind in KINDS.values():
        if only in (None, kind):
            for component in catalog.components(kind.name):
                yield kind, component


def _described(component: Component) -> str:
    return f"Deprecated; {component.deprecated}. {component.summary}" if component.deprecated else component.summary


def _record(catalog: Catalog, kind: Kind, component: Component) -> dict[str, Any]:
    """Return all there is to say of a component, as it is printed for programs."""
    (plugin,) = (plugin for plugin in catalog.plugins if plugin.name == component.plugin and plugin.status == "ok")
    file, line = _source(component.config)
    return {
        "kind": kind.name,
        "name": component.name,
        "plugin": component.plugin,
        "summary": component.summary,
        "deprecated": component.deprecated,
        "old_names": component.old_names,
        "origin": plugin.origin,
        "version": plugin.version,
        "module": component.config.__module__,
        "file": file,
        "line": line,
        "options": option_records(component.config, catalog),
    }


def option_records(config: type, catalog: Catalog) -> list[dict[str, Any]]:
    """Return for each option of a config class its name, type, bounds, default and help, as they are printed."""
    return [_option_record(name, field, old, catalog) for name, field, old in _options(config)]


def _options(config: type, table: str = "") -> Iterator[tuple[str, attrs.Attribute[Any], list[str]]]:
    """Yield the name of each option ("table.key" within a table), its field, and the names that it had."""
    attrs.resolve_types(config)
    for field in attrs.fields(config):
        if field.metadata.get("inline"):  # the options of the part that a table chooses
            continue
        if attrs.has(field.type):
            yield from _options(field.type, f"{table}{field.name}.")
        else:
            old_names = [old for old, new in renamed_options(config).items() if new == field.name]
            yield f"{table}{field.name}", field, old_names


def _option_record(name: str, field: attrs.Attribute[Any], old_names: list[str], catalog: Catalog) -> dict[str, Any]:
    schema = option_schema(field, catalog)
    bounds = field.metadata.get("bounds")
    default = default_of(field)
    record = {
        "name": name,
        "type": schema.get("type", "any"),
        "accepts": describe_type(field.type) + (f", {describe_bounds(bounds)}" if bounds else ""),
        "help": field.metadata.get("help", ""),
        "required": default is attrs.NOTHING,
    }
    if default is not attrs.NOTHING:
        record["default"] = schema.get("default", None if default is None else as_toml(default))
    more = {"choices": schema.get("enum"), "bounds": bounds, "old_names": old_names}
    return record | {key: value for key, value in more.items() if value}


def _source(config: type) -> tuple[str, int]:
    """Return file and line of a config class, or of what it is made from if it is written nowhere itself."""
    for cls in config.__mro__:
        file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
        for number, line in enumerate(linecache.getlines(file), 1):
            if re.match(rf"\s*class {cls.__name__}\b", line):
                return file, number
    return getattr(sys.modules.get(config.__module__), "__file__", None) or "", 1


def _print_page(catalog: Catalog, kind: Kind, component: Component) -> None:
    record = _record(catalog, kind, component)
    print(f"{component.full_name} ({kind.name}): {_described(component)}")
    if component.old_names:
        print(f"old names: {', '.join(component.old_names)}")
    print(f"from {record['origin']} {record['version']}".rstrip() + f": {record['module']}")
    print(f"{record['file']}:{record['line']}\n")
    rows = [("OPTION", "ACCEPTS", "DEFAULT", "WHAT IT IS")]
    for option in record["options"]:
        help = option["help"] + (f" (old name: {', '.join(option['old_names'])})" if "old_names" in option else "")
        default = "required" if option["required"] else as_toml(option["default"])
        rows.append((option["name"], option["accepts"], default, help))
    print_columns(rows if len(rows) > 1 else [("it has no options",)])
    print(f"\n{_example(catalog, kind, component)}")


def _example(catalog: Catalog, kind: Kind, component: Component) -> str:
    """Return a table to paste into a recipe, with every option; what must be changed says so."""
    given, required = {}, {}
    for name, field, _ in _options(component.config):
        default = default_of(field)
        if default is attrs.NOTHING:
            path = f"datasets/{component.name}" if name == "root" else f"path/to/{name}"
            value = _placeholder(option_schema(field, catalog), path if field.type is Path else "change-this")
            required[name] = f"{name} = {as_toml(value)}  # change this: {field.metadata.get('help', '')}"
        elif default is None:
            given[name] = f"# {name} = ...  # {describe_type(field.type)}; {field.metadata.get('help', '')}"
        else:
            given[name] = f"{name} = {as_toml(default)}"
    if "weights" in given and not _loads(catalog, component, required):  # such as a network without published ones
        given["weights"] = 'weights = "none"  # its default does not go with the other ones'
    name = catalog.names(kind.name, component)[0]
    return "\n".join([_header(kind), f'name = "{name}"', *required.values(), *given.values()])


def _header(kind: Kind) -> str:
    if kind.name == "postprocessor":
        return "[[test.postprocess]]  # of the [[test]] table above"
    name = {"dataset": "train", "exporter": "export"}.get(kind.name, kind.name)
    many = kind.name in ("dataset", "loss", "metric", "transform", "exporter", "logger")
    return f"[[{name}]]" if many else f"[{name}]"


def _loads(catalog: Catalog, component: Component, lines: Mapping[str, str]) -> bool:
    try:
        structure(tomli.loads("\n".join(lines.values())), component.config, catalog)
    except RecipeError:
        return False
    return True


def _placeholder(schema: Schema, text: str) -> Any:
    """Return a value that an option accepts, `text` where it takes any."""
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _placeholder(schema["anyOf"][0], text)
    match schema.get("type"):
        case "boolean":
            return False
        case "integer" | "number":
            return _number(schema)
        case "array":
            return [_placeholder(schema["items"], text)] * schema.get("minItems", 1)
        case "object":
            return {}
    return text


def _number(schema: Schema) -> float:
    """Return 1, or the simplest number that is within the bounds."""
    at_least, at_most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    low, high = max(at_least, above), min(at_most, below)
    numbers = (1, low, low + 1, high, high - 1, (low + high) / 2)
    return next((it for it in numbers if at_least <= it <= at_most and above < it < below), 1)


def as_toml(value: Any) -> str:
    """Return a value as a recipe has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(as_toml(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{as_toml(key)} = {as_toml(item)}' for key, item in value.items())} }}"
    return "absent" if value is None else str(value)
