"""A component: a name that recipes use, and the config class behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
from attrs import NOTHING, frozen

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "at_least": (lambda value, bound: value >= bound, "at least"),
    "above": (lambda value, bound: value > bound, "above"),
    "at_most": (lambda value, bound: value <= bound, "at most"),
    "below": (lambda value, bound: value < bound, "below"),
}


def option(
    default: Any = NOTHING,
    *,
    help: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare an option of a config class: `attrs.field` with a help text and bounds.

    Bounds hold for each item of an array. Without `default` or `factory` the option must be given.
    """
    given = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    bounds = {name: bound for name, bound in given.items() if bound is not None}
    metadata = {"help": help, "bounds": bounds}
    validator = _check_bounds if bounds else None
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata, validator=validator)
    return attrs.field(default=default, metadata=metadata, validator=validator)


def describe_bounds(bounds: dict[str, float]) -> str:
    """Return the bounds as words: "at least 0 and below 1"."""
    return " and ".join(f"{_BOUNDS[name][1]} {bound}" for name, bound in bounds.items())


def _check_bounds(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    bounds = attribute.metadata["bounds"]
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if item is not None and not all(_BOUNDS[name][0](item, bound) for name, bound in bounds.items()):
            raise ValueError(f"found {item}; expected {describe_bounds(bounds)}")


def _check_name(_: Any, __: Any, value: Any) -> None:
    if not (isinstance(value, str) and _NAME.fullmatch(value)):
        raise ValueError(f"a component's name is lower-case letters, digits and '._-', found {value!r}")


def _check_config(_: Any, __: Any, value: Any) -> None:
    if not (isinstance(value, type) and attrs.has(value) and hasattr(value, "build")):
        raise ValueError(f"a component's config is an attrs class with a build() method, found {value!r}")


@frozen(kw_only=True)
class Component:
    """A choice that a recipe can make: `name` picks it, `config` declares its options and builds it.

    The first line of `config`'s docstring is the summary, its fields are the options, and its `build(...)` makes
    the part (`reidcore.kinds` has one signature a kind). `plugin` is filled in by the catalog.
    """

    name: str = attrs.field(validator=_check_name)
    config: type = attrs.field(validator=_check_config)
    plugin: str = ""

    @property
    def full_name(self) -> str:
        """`plugin:name`, which is never ambiguous."""
        return f"{self.plugin}:{self.name}"

    @property
    def summary(self) -> str:
        """The first line of the config's docstring."""
        lines = (self.config.__doc__ or "").strip().splitlines()
        return lines[0] if lines else ""
