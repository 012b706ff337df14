"""`reidcore plugins`: list the installed plugins and what became of them."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.catalog import Plugin, discover
from reidcore.cli.listing import print_columns
from reidcore.kinds import KINDS


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if anything is wrong with a plugin")
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Print one line a plugin."""
    catalog = discover(Path(file) for file in options.plugin)
    if options.json:
        print(json.dumps([_record(plugin) for plugin in catalog.plugins], indent=2))
    else:
        rows = [("PLUGIN", "FROM", "VERSION", "STATUS", "OFFERS")]
        for plugin in catalog.plugins:
            status = f"{plugin.status}: {plugin.error}" if plugin.error else plugin.status
            rows.append((plugin.name, plugin.origin, plugin.version, status, _offers(plugin)))
        print_columns(rows)
        if options.verbose:
            for plugin in catalog.failed:
                print(f"\n{plugin.name}:\n{plugin.trace}")
    return 1 if options.strict and any(plugin.error for plugin in catalog.plugins) else 0


def _offers(plugin: Plugin) -> str:
    counts = ((kind, len(plugin.components.get(name, ()))) for name, kind in KINDS.items())
    return ", ".join(f"{count} {kind.name if count == 1 else kind.plural}" for kind, count in counts if count)


def _record(plugin: Plugin) -> dict[str, object]:
    return {
        "name": plugin.name,
        "origin": plugin.origin,
        "version": plugin.version,
        "status": plugin.status,
        "error": plugin.error,
        "components": {kind: [item.name for item in items] for kind, items in plugin.components.items()},
    }
