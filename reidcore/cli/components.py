"""`reidcore components`: list what recipes can choose from, and the options of each."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import attrs

from reidcore.catalog import Catalog, discover
from reidcore.cli.listing import print_columns
from reidcore.component import Component, describe_bounds
from reidcore.errors import ReidError
from reidcore.kinds import KINDS, Kind
from reidcore.structure import describe_type


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("kind", nargs="?", metavar="KIND", help="one kind: backbone, loss, ...")
    parser.add_argument("name", nargs="?", metavar="NAME", help="one component, with its options")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Print the list, or one component's options."""
    catalog = discover(Path(file) for file in options.plugin)
    kind = None if options.kind is None else _kind(options.kind)
    if options.name is not None and kind is not None:
        component = catalog.find(kind.name, options.name)
        if options.json:
            print(json.dumps(_record(kind, component), indent=2))
        else:
            _print_options(kind, component)
        return 0
    found = list(_all(catalog, kind))
    if options.json:
        print(json.dumps([_record(kind, component) for kind, component in found], indent=2))
    else:
        head = ("KIND", "NAME", "PLUGIN", "WHAT IT IS")
        print_columns([head, *((kind.name, item.name, item.plugin, item.summary) for kind, item in found)])
    return 0


def _kind(text: str) -> Kind:
    for kind in KINDS.values():
        if text in (kind.name, kind.plural):
            return kind
    near = get_close_matches(text, KINDS, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(KINDS)}"
    raise ReidError(f"no kind is called '{text}'; {hint}")


def _all(catalog: Catalog, only: Kind | None) -> Iterator[tuple[Kind, Component]]:
    for kind in KINDS.values():
        if only in (None, kind):
            for component in catalog.components(kind.name):
                yield kind, component


def _options(config: type, table: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Yield name ("table.key" within a table), accepted values, default (NOTHING when required) and help of each."""
    attrs.resolve_types(config)
    for field in attrs.fields(config):
        if attrs.has(field.type):
            yield from _options(field.type, f"{table}{field.name}.")
            continue
        accepted = describe_type(field.type)
        if bounds := field.metadata.get("bounds"):
            accepted += f", {describe_bounds(bounds)}"
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        yield f"{table}{field.name}", accepted, default, field.metadata.get("help", "")


def _record(kind: Kind, component: Component) -> dict[str, Any]:
    return {
        "kind": kind.name,
        "name": component.name,
        "plugin": component.plugin,
        "summary": component.summary,
        "options": [
            {"name": name, "accepts": accepted, "help": help, "required": default is attrs.NOTHING}
            | ({} if default is attrs.NOTHING else {"default": str(default) if isinstance(default, Path) else default})
            for name, accepted, default, help in _options(component.config)
        ],
    }


def _print_options(kind: Kind, component: Component) -> None:
    print(f"{component.full_name} ({kind.name}): {component.summary}\n")
    rows = [("OPTION", "ACCEPTS", "DEFAULT", "WHAT IT IS")]
    for name, accepted, default, help in _options(component.config):
        rows.append((name, accepted, "required" if default is attrs.NOTHING else _toml(default), help))
    print_columns(rows if len(rows) > 1 else [("it has no options",)])
    print(f"\n{_example(kind, component)}")


def _example(kind: Kind, component: Component) -> str:
    """Return a table to paste into a recipe."""
    header = {"dataset": "[[train]]", "postprocessor": "# in a [[test]] table"}.get(kind.name)
    many = kind.name in ("loss", "metric", "transform", "exporter", "logger")
    name = {"exporter": "export"}.get(kind.name, kind.name)
    header = header or (f"[[{name}]]" if many else f"[{name}]")
    lines = [
        f"{key} = {_toml(default)}"
        for key, _, default, _ in _options(component.config)
        if default not in (None, attrs.NOTHING)
    ]
    required = [
        f"{key} = ...  # {accepted}"
        for key, accepted, default, _ in _options(component.config)
        if default is attrs.NOTHING
    ]
    if kind.name == "postprocessor":
        inside = ", ".join([f'name = "{component.name}"', *lines])
        return f"{header}\npostprocess = [{{ {inside} }}]"
    return "\n".join([header, f'name = "{component.name}"', *required, *lines])


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, Path)):
        return json.dumps(str(value))
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return "absent" if value is None else str(value)
