"""Write `docs/reference/`: what recipes and the command line take, from the classes and parsers that read them.

python docs/make_reference.py
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import attrs

from reidcore.catalog import Catalog
from reidcore.cli import VERBS, make_parser
from reidcore.cli.components import as_toml, option_records
from reidcore.kinds import KINDS, Kind
from reidcore.recipe import Recipe

FOLDER = Path(__file__).parent / "reference"

TITLES = {"dataset": "Data sets", "loss": "Losses", "postprocessor": "Post-processors"}
"""The titles of pages of kinds whose plural is not simply written with a capital."""

TABLES = {"dataset": "train", "exporter": "export"}
"""The tables of recipes that are not called as the kind of part that they choose."""

GUIDES = {
    "run": "[Start in five minutes](../start.md)",
    "check": "[Recipes](../recipes.md)",
    "fill": "[Recipes](../recipes.md)",
    "components": "[Parts](parts/index.md)",
    "schema": "[Recipes](../recipes.md#in-an-editor)",
    "plugins": "[Plugins](../plugins.md)",
    "new-plugin": "[Plugins](../plugins.md#a-package)",
    "data": "[Train on your own folder](../own-images.md)",
    "evaluate": "[Evaluation](../evaluation.md)",
    "report": "[Look at a run](../reports.md)",
    "export": "[Deployment](../deployment.md)",
    "import": "[Coming from FastReID](../from-fastreid.md)",
    "compare": "[Evaluation](../evaluation.md#is-the-difference-more-than-chance)",
    "embed": "[Train on your own folder](../own-images.md#search)",
    "index": "[Train on your own folder](../own-images.md#search)",
    "search": "[Train on your own folder](../own-images.md#search)",
}
"""Where a verb is shown at work."""


EXTENDS = {
    "name": "extends",
    "accepts": "a path",
    "required": False,
    "default": None,
    "help": "a recipe that this one is laid over; relative to this file",
}
"""The key that is read before there is a recipe."""

PROTOCOLS: dict[Any, Kind] = {kind.protocol: kind for kind in KINDS.values()}


def pages() -> dict[str, str]:
    """Return the text of each generated page by its place below `docs/reference/`."""
    catalog = Catalog.of()
    return {
        "recipe.md": recipe_page(catalog),
        "cli.md": command_line_page(),
        "parts/index.md": parts_page(catalog),
        **{f"parts/{kind.name}.md": kind_page(kind, catalog) for kind in KINDS.values()},
    }


def recipe_page(catalog: Catalog) -> str:
    """Return the page of all tables of a recipe."""
    lines = [
        "# Tables of a recipe",
        "",
        "Every table and key that a recipe may have, in the order in which filled recipes have them. How recipes work",
        "is told in [Recipes](../recipes.md); the options of parts are on the page of their [kind](parts/index.md).",
        "",
        "Keys at the top, before any table:",
        "",
        *options_table([EXTENDS, *(it for it in option_records(Recipe, catalog) if it["name"] == "requires")]),
    ]
    for field in attrs.fields(Recipe):
        of, many = _held(field.type)
        if of in PROTOCOLS:
            text = [f"Chooses {_link(PROTOCOLS[of])}."]
        elif attrs.has(of):
            attrs.resolve_types(of)
            chosen = [PROTOCOLS[item.type] for item in attrs.fields(of) if item.metadata.get("inline")]
            more = [f"Chooses {_link(kind)}, whose options stand in the same table, beside these:" for kind in chosen]
            text = [_sentence(of), *more, "", *options_table(option_records(of, catalog))]
        else:
            continue
        lines += ["", f"## [[{field.name}]]" if many else f"## [{field.name}]", "", *text]
        if (default := field.metadata.get("default_table")) is not None:
            lines += ["", f"Default: {_defaults(default)}."]
        elif field.default is attrs.NOTHING:
            lines += ["", "Required."]
    return "\n".join(lines) + "\n"


def _held(annotation: Any) -> tuple[Any, bool]:
    """Return the class of a recipe's field, and whether it is an array of them."""
    arguments = get_args(annotation)
    return (arguments[0], True) if arguments else (annotation, False)


def _sentence(of: type) -> str:
    return (inspect.getdoc(of) or "").splitlines()[0]


def _link(kind: Kind) -> str:
    return f"[{kind.one}](parts/{kind.name}.md)"


def _defaults(default: Any) -> str:
    tables = default if isinstance(default, list) else [default]
    return ", ".join(f"`{table['name'].removeprefix('core:')}`" for table in tables)


def parts_page(catalog: Catalog) -> str:
    """Return the list of all parts of the core."""
    lines = [
        "# Parts",
        "",
        "What the core offers, with all options on the page of each kind. Plugins offer more. `reidcore components`",
        "lists what is installed, `reidcore components loss triplet` prints the options of one part and a table to",
        "paste into a recipe. How to write a part of your own is told in [Plugins](../../plugins.md).",
        "",
        "| kind | table | parts |",
        "|------|-------|-------|",
    ]
    for kind in KINDS.values():
        found = catalog.components(kind.name)
        names = ", ".join(f"[{item.name}]({kind.name}.md#{_anchor(item.name)})" for item in found)
        lines.append(f"| [{kind.name}]({kind.name}.md) | {_table(kind)} | {names or 'by plugins only'} |")
    return "\n".join(lines) + "\n"


def _anchor(name: str) -> str:
    """Return the anchor that Markdown makes of a component's name."""
    return name.replace(".", "")


def _table(kind: Kind) -> str:
    if kind.name == "postprocessor":
        return "`postprocess` in `[[test]]`"
    name = TABLES.get(kind.name, kind.name)
    many = kind.name in ("dataset", "exporter", "loss", "metric", "transform", "logger")
    tables = ["train", "test"] if kind.name == "dataset" else [name]
    return ", ".join(f"`[[{each}]]`" if many else f"`[{each}]`" for each in tables)


def kind_page(kind: Kind, catalog: Catalog) -> str:
    """Return the page of the core's parts of one kind, with their options."""
    title = TITLES.get(kind.name, kind.plural.capitalize())
    lines = [
        f"# {title}",
        "",
        f"In a recipe: {_table(kind)}. What {kind.one} is given and has to do is on",
        f"[a page of its own](../../kinds/{kind.name}.md), for those who write one.",
    ]
    if not catalog.components(kind.name):
        lines += ["", "The core offers none; plugins may."]
    for item in catalog.components(kind.name):
        lines += ["", f"## {item.name}", "", *(inspect.getdoc(item.config) or "").splitlines()]
        records = option_records(item.config, catalog)
        lines += ["", *(options_table(records) if records else ["It has no options."])]
    return "\n".join(lines) + "\n"


def options_table(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a table with a row an option."""
    rows = [(f"`{it['name']}`", _default(it), f"{it['help']}<br>*{it['accepts']}*") for it in records]
    return _rows(("key", "default", "what it is, and *what it accepts*"), rows)


def _default(record: Mapping[str, Any]) -> str:
    if record["required"]:
        return "required"
    return "" if record["default"] in (None, "") else f"`{as_toml(record['default'])}`"


def command_line_page() -> str:
    """Return the page of all verbs, from their parsers."""
    parser = make_parser()
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = [
        "# Command line",
        "",
        "Every command ends with status 0 when all went well, and with 2 and a message for what you can mend. A",
        "traceback is a mistake in the program. `--help` after any verb prints what is here.",
        "",
        *_rows(("verb", "what it does"), [(f"[`{verb}`](#reidcore-{verb})", help) for verb, help in VERBS.items()]),
    ]
    for verb, help in VERBS.items():
        actions = [it for it in verbs.choices[verb]._actions if not isinstance(it, argparse._HelpAction)]
        words = " ".join(f"`{word}`" for word in (f"reidcore {verb}", *map(_usage, actions)))
        lines += ["", f"## reidcore {verb}", "", words, "", f"{help.capitalize()}.{_guide(verb)}", ""]
        lines += _rows(("argument", "what it is"), [(_names(action), _help(action)) for action in actions])
    return "\n".join(lines) + "\n"


def _guide(verb: str) -> str:
    return f" See {GUIDES[verb]}." if verb in GUIDES else ""


def _value(action: argparse.Action) -> str:
    """Return how an argument's value is called."""
    if action.metavar:
        return str(action.metavar)
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()


def _usage(action: argparse.Action) -> str:
    value = _value(action) if action.nargs != 0 else ""
    if not action.option_strings:
        return {"?": f"[{value}]", "+": f"{value}..."}.get(str(action.nargs), value)
    flag = action.option_strings[-1]
    text = f"{flag} {value}".rstrip() + ("..." if action.nargs == "+" else "")
    text = text if action.required else f"[{text}]"
    return f"{text}..." if isinstance(action, argparse._AppendAction) else text


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_value(action)}`"
    value = "" if action.nargs == 0 else f" {_value(action)}"
    return ", ".join(f"`{name}`" for name in [*action.option_strings[:-1], f"{action.option_strings[-1]}{value}"])


def _help(action: argparse.Action) -> str:
    text = action.help or ""
    if action.choices and action.metavar is None:
        text = f"{text}; {_one_of(action.choices)}" if action.option_strings else text
    return text


def _one_of(choices: Iterable[Any]) -> str:
    return "one of " + ", ".join(f"`{choice}`" for choice in choices)


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a table in Markdown."""
    cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, *rows)]
    return [f"| {cells[0]} |", "|" + "---|" * len(head), *(f"| {row} |" for row in cells[1:])]


if __name__ == "__main__":
    for place, text in pages().items():
        (FOLDER / place).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / place).write_text(text, encoding="utf-8")
