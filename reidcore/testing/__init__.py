"""The contract checks that authors of plugins run.

The whole test file of a plugin called `maxpool`:

    from reidcore.testing import contract

    test_contract = contract("maxpool")

This makes one test for each component and check, such as `aggregator-maxpool-is_deterministic_under_a_seed`.
For tests of your own there are toy data, a recipe of seconds, and the command line in this process; `Catalog.of` makes
a catalog of parts that are not installed. This module needs pytest, and nothing imports it but your tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from reidcore.catalog import Catalog, discover
from reidcore.kinds import KINDS
from reidcore.testing.kit import Kit
from reidcore.testing.toys import Done, run_cli, seem_trained, tiny_recipe, toy_data


def contract(
    plugin: str,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    extras: Mapping[str, tuple[int, ...]] | None = None,
    catalog: Catalog | None = None,
) -> Callable[..., None]:
    """Return a test function with one case for each component of `plugin` and check of its kind.

    `options`: `{component: {option: value}}`, as a recipe would say, for components that need some; small networks
    make the checks fast, and of a backbone with an option `weights` the checks use "none". `expected_failures`:
    `{"component-check": reason}`, cases that must fail. In both, `kind-component` tells apart what is called alike.
    `extras`: `{extra: shape of one image's}`, of those that post-processors need; they are given random numbers.
    Raises ReidError when the plugin is not installed, did not load or offers nothing.
    """
    from reidcore.testing.checks import CHECKS

    found = catalog or discover()
    components = _components(found, plugin)
    chosen, excused = options or {}, expected_failures or {}
    cases = []
    used: set[str] = set()
    for kind, component in components:
        names = (component.name, f"{kind}-{component.name}")
        used.update(names)
        options_of = {key: value for name in names for key, value in chosen.get(name, {}).items()}
        kit = Kit(found, kind, component, options_of, extras or {})
        for check in CHECKS["every"] + CHECKS[kind]:
            ids = [f"{name}-{check.__name__}" for name in names]
            used.update(ids)
            reasons = [excused[one] for one in ids if one in excused]
            marks = [pytest.mark.xfail(reason=reasons[0], strict=True)] if reasons else []
            cases.append(pytest.param(check, kit, id=ids[1], marks=marks))
    if unknown := chosen.keys() - used:
        raise ValueError(f"options: plugin '{plugin}' has no component {', '.join(sorted(unknown))}")
    if unknown := excused.keys() - used:
        raise ValueError(f"expected_failures: there is no case {', '.join(sorted(unknown))}")

    @pytest.mark.parametrize(("check", "kit"), cases)
    def test_contract(check: Callable[[Kit], None], kit: Kit) -> None:
        check(kit)

    return test_contract


def _components(catalog: Catalog, plugin: str) -> list[tuple[str, Any]]:
    from reidcore.errors import ReidError

    for known in catalog.plugins:
        if known.name == plugin:
            if known.status != "ok":
                raise ReidError(f"plugin '{plugin}' is {known.status}: {known.error}\n{known.trace}")
            if not known.components:
                raise ReidError(f"plugin '{plugin}' offers nothing")
            return [(kind, component) for kind in KINDS for component in known.components.get(kind, ())]
    names = ", ".join(known.name for known in catalog.plugins)
    raise ReidError(f"no plugin is called '{plugin}'; there are {names}")


__all__ = ["Catalog", "Done", "Kit", "contract", "run_cli", "seem_trained", "tiny_recipe", "toy_data"]
