"""Runs, or tests of one run, side by side on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reidcore.report.page import write_page
from reidcore.report.pictures import Pictures
from reidcore.report.plots import draw
from reidcore.report.ranked import Opened, Ranked, figures
from reidcore.report.run import curves_of, encode, judged, make_pictures, unreadable
from reidcore.retrieval.evaluation import Result
from reidcore.retrieval.protocol import VERIFICATION

if TYPE_CHECKING:
    from reidcore.api import Comparison

_CHANGED = 60


def write_comparison(
    file: Path,
    comparisons: Mapping[str, Comparison],
    opened: Mapping[str, Opened],
    notes: Sequence[str] = (),
) -> Path:
    """Write a page with `{label: comparison}` of runs, or of the tests of a single one, and return it.

    opened: the runs by their names; without them there are no rank lists, and of curves those that were kept. Figures
    that draw several in one are written beside the page as well, as NAME-figures/. Raises ReidError when a file cannot
    be written.
    """
    found: dict[str, dict[str, tuple[Result, Ranked | None]]] = {label: {} for label in comparisons}
    short = _short_names([name for comparison in comparisons.values() for name in comparison.results])
    for run, item in opened.items():
        places = {}
        for label, comparison in comparisons.items():
            if len(opened) > 1:
                places[label] = label, run
            else:
                places |= {test: (label, test) for test in comparison.results}
        wanted = [test for test in item.tests if test.label in places]
        for test, query, gallery, _ in item.features(wanted):
            label, name = places[test.label]
            ranked = None if test.protocol == VERIFICATION else Ranked.of(test, query, gallery, item.evaluator)
            found[label][name] = judged(test, query, gallery, item.evaluator), ranked
            del query, gallery
    evaluator = next(iter(opened.values())).evaluator if opened else None
    pictures = make_pictures(evaluator) if evaluator else Pictures((1, 1))
    sections = []
    for label, comparison in comparisons.items():
        first, *others = comparison.results
        results = {name: result for name, (result, _) in found[label].items()} or comparison.results
        plots = curves_of({short[name]: result for name, result in results.items()})
        draw(plots, file.with_name(f"{file.stem}-figures"), label)
        before = found[label][first][1] if found[label] else None
        sections.append(
            {
                "label": label,
                "rows": [_row(name, short[name], comparison) for name in comparison.results],
                "plots": [plot.plotly() for plot in plots],
                "changed": [
                    {"run": short[name], "first": short[first], "lists": _changed(before, after, pictures)}
                    for name in others
                    if before and (after := found[label][name][1])
                ],
            }
        )
    images = encode(pictures, evaluator) if evaluator else []
    page = {
        "kind": "comparison",
        "title": (f"{next(iter(opened))}: " if len(opened) == 1 else "") + " and ".join(dict.fromkeys(short.values())),
        "shape": pictures.tile,
        "notes": [*notes, *unreadable(images)],
        "tests": sections,
        "images": images,
        "names": pictures.names,
    }
    return write_page(file, page)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last parts of run folders where these tell them apart, else the names."""
    short = {name: Path(name).name for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _row(name: str, short: str, comparison: Comparison) -> dict[str, Any]:
    differences = {
        figure: {
            "value": one.value,
            "low": one.low if np.isfinite(one.low) else None,
            "high": one.high if np.isfinite(one.high) else None,
            "verdict": one.verdict,
        }
        for figure, one in comparison.differences.get(name, {}).items()
    }
    return {"run": short, "figures": figures(comparison.results[name]), "differences": differences}


def _changed(before: Ranked, after: Ranked, pictures: Pictures) -> list[dict[str, Any]]:
    """Return the rank lists of the queries whose average precision differs most."""
    if len(after.rankings.query) != len(before.rankings.query):  # images of one of them are others by now
        return []
    gains = after.rankings.average_precision - before.rankings.average_precision
    order = np.argsort(-np.abs(np.nan_to_num(gains)), kind="stable")[:_CHANGED]
    chosen = order[np.nan_to_num(gains[order]) != 0]
    both = zip(before.lists(chosen, pictures), after.lists(chosen, pictures), strict=True)
    return [{"before": old, "after": new} for old, new in both]
