"""Write `docs/kinds/`: one page a kind, from its hook, its protocols and its checks, and the list of them.

python docs/make_kinds.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from reidcore import hookspecs, kinds, types
from reidcore.catalog import Catalog
from reidcore.kinds import KINDS, Kind
from reidcore.testing.checks import CHECKS

FOLDER = Path(__file__).parent / "kinds"

TABLES = {
    "dataset": "`[[train]]` and `[[test]]`",
    "postprocessor": "`postprocess = [{ name = ... }]` in a `[[test]]` table",
    "exporter": "`[[export]]`",
    **{name: f"`[[{name}]]`" for name in ("loss", "metric", "transform", "logger")},
}


def index() -> str:
    """Return the list of kinds, as Markdown."""
    lines = [
        "# Kinds of parts",
        "",
        "What a part of each kind is given, what it has to do, and what `reidcore.testing` checks of it: for those who",
        "write one, as [Plugins](../plugins.md) tells. Which parts there are is listed in the",
        "[reference](../reference/parts/index.md).",
        "",
        "| kind | hook | what it is |",
        "|------|------|------------|",
    ]
    for kind in KINDS.values():
        hook = inspect.getdoc(getattr(hookspecs, kind.hook)) or ""
        lines.append(f"| [{kind.name}]({kind.name}.md) | `{kind.hook}` | {hook.splitlines()[0]} |")
    return "\n".join(lines) + "\n"


def page(kind: Kind) -> str:
    """Return the page of one kind, as Markdown."""
    build = kind.protocol.build  # type: ignore[attr-defined]
    hook = inspect.getdoc(getattr(hookspecs, kind.hook)) or ""
    lines = [
        f"# {kind.name.capitalize()}",
        "",
        f"{hook.splitlines()[0]} In a recipe: {TABLES.get(kind.name, f'`[{kind.name}]`')}.",
        f"`reidcore new-plugin reid-NAME --kind {kind.name}` writes a package with one.",
        "",
        "```python",
        "from attrs import frozen",
        "from reidcore import Component, hookimpl",
        "",
        "",
        "@frozen(kw_only=True)",
        "class Mine:",
        '    """What listings say of it."""',
        "",
        f"    def build({', '.join(inspect.signature(build).parameters)}): ...",
        "",
        "",
        "@hookimpl",
        f"def {kind.hook}():",
        '    yield Component(name="mine", config=Mine)',
        "```",
        "",
        "## The config",
        "",
        *_document(kind.protocol),
        "",
        f"- {_signature('build', build)}  ",
        f"  {_flat(build)}",
    ]
    if kind.reserved:
        keys = ", ".join(f"`{key}`" for key in kind.reserved)
        lines += [f"- What the core reads in the same table, and no option can be called: {keys}."]
    for part in _parts(kind):
        lines += ["", f"## {part.__name__}", "", *_document(part), *_members(part)]
    lines += ["", "## What the checks ask", "", "`reidcore.testing.contract` makes a test of each.", ""]
    lines += [f"- `{check.__name__}`: {_flat(check)}" for check in (*CHECKS["every"], *CHECKS[kind.name])]
    if components := Catalog.of().components(kind.name):
        lines += ["", "## In the core", "", "| name | what it is |", "|------|------------|"]
        lines += [
            f"| [`{item.name}`](../reference/parts/{kind.name}.md#{item.name.replace('.', '')}) | {item.summary} |"
            for item in components
        ]
    return "\n".join(lines) + "\n"


def _parts(kind: Kind) -> list[type]:
    """Return what `build` returns, and in turn the protocols that this returns, and all records that are spoken of."""
    found: list[type] = []

    def visit(text: str, protocols: bool) -> None:
        for name in re.findall(r"[A-Z]\w+", text):
            part = getattr(types, name, None) or (getattr(kinds, name, None) if protocols else None)
            if inspect.isclass(part) and part.__module__ in (types.__name__, kinds.__name__) and part not in found:
                found.append(part)
                for annotation in inspect.get_annotations(part).values():
                    visit(str(annotation), False)
                for member in vars(part).values():
                    if part.__module__ == kinds.__name__ and (
                        inspect.isfunction(member) or isinstance(member, property)
                    ):
                        visit_function(getattr(member, "fget", member))

    def visit_function(function: Any) -> None:
        signature = inspect.signature(function)
        visit(str(signature.return_annotation), True)
        for parameter in signature.parameters.values():
            visit(str(parameter.annotation), False)

    visit_function(kind.protocol.build)  # type: ignore[attr-defined]
    return found


def _members(part: type) -> list[str]:
    """Return a line for each attribute and method of a protocol, or for each field of a record."""
    lines = [
        f"- `{name}: {annotation}`" for name, annotation in inspect.get_annotations(part).items() if name[0] != "_"
    ]
    for name, member in vars(part).items():
        if isinstance(member, property):
            returned = inspect.signature(member.fget).return_annotation  # type: ignore[arg-type]
            lines.append(f"- `{name}: {returned}`  \n  {_flat(member)}")
        elif (
            inspect.isfunction(member)
            and inspect.getdoc(member)
            and (name[0] != "_" or name in ("__call__", "__len__"))
        ):
            lines.append(f"- {_signature(name, member)}  \n  {_flat(member)}")
    return ["", *lines] if lines else []


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    arguments = [
        f"{parameter.name}: {parameter.annotation}"
        + ("" if parameter.default is parameter.empty else f" = {parameter.default!r}")
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    return f"`{name}({', '.join(arguments)}) -> {signature.return_annotation}`"


def _document(item: object) -> list[str]:
    return (inspect.getdoc(item) or "").splitlines()


def _flat(item: object) -> str:
    return " ".join((inspect.getdoc(item) or "").split())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "index.md").write_text(index(), encoding="utf-8")
    for kind in KINDS.values():
        (FOLDER / f"{kind.name}.md").write_text(page(kind), encoding="utf-8")
