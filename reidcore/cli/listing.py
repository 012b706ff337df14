"""Columns of text: plain for pipes and files, folded to the width of a terminal."""

import sys
from collections.abc import Sequence


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, of which the first is the head, in columns as wide as their widest cell.

    In a terminal cells that are too wide are folded.
    """
    if sys.stdout.isatty():
        _print_folded(rows)
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_folded(rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # takes as long to import as the rest of a listing
    from rich.table import Column, Table
    from rich.text import Text

    head, *others = rows
    table = Table(*(Column(cell, overflow="fold") for cell in head), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in others:
        table.add_row(*map(Text, row))  # brackets are no markup
    Console().print(table)
