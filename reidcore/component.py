"""A component: a name that recipes use, and the config class behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs import NOTHING, frozen, validators

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

    Bounds hold for each number, of an array too. Without `default` or `factory` the option must be given.
    """
    given = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    bounds = {name: bound for name, bound in given.items() if bound is not None}
    metadata = {"help": help, "bounds": bounds}
    validator = _check_bounds if bounds else None
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata, validator=validator)
    return attrs.field(default=default, metadata=metadata, validator=validator)


def default_of(field: attrs.Attribute[Any]) -> Any:
    """Return an option's default, NOTHING if it must be given."""
    default: Any = field.default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]


def renamed_options(config: type) -> Mapping[str, str]:
    """Return what the options of a config class were called before, `{"old": "new"}`, as far as it can be."""
    renamed = getattr(config, "renamed", None)
    names = {field.name for field in attrs.fields(config)}
    pairs = renamed.items() if isinstance(renamed, Mapping) else ()
    return {old: new for old, new in pairs if new in names and old not in names}


def describe_bounds(bounds: dict[str, float]) -> str:
    """Return the bounds as words: "at least 0 and below 1"."""
    return " and ".join(f"{_BOUNDS[name][1]} {bound}" for name, bound in bounds.items())


def _check_bounds(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    bounds = attribute.metadata["bounds"]
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if not isinstance(item, str | None) and not all(
            _BOUNDS[name][0](item, bound) for name, bound in bounds.items()
        ):
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

    What recipes say is not broken but deprecated. A component that got another name keeps what it was called in
    `old_names`. One that will be taken out has in `deprecated` what to do instead: "use 'gem'". An option that got
    another name is in the config's class attribute `renamed: ClassVar[Mapping[str, str]] = {"old": "new"}`. Each still
    works, with a warning that says what to write.
    """

    name: str = attrs.field(validator=_check_name)
    config: type = attrs.field(validator=_check_config)
    old_names: tuple[str, ...] = attrs.field(
        default=(), validator=validators.deep_iterable(_check_name, validators.instance_of(tuple))
    )
    deprecated: str = attrs.field(default="", validator=validators.instance_of(str))
    plugin: str = ""

    @property
    def full_name(self) -> str:
        """`plugin:name`, which is never ambiguous."""
        return f"{self.plugin}:{self.name}"

    def notice(self, name: str) -> str:
        """What to tell who chooses it by `name`, which may be old or deprecated; empty when it is neither."""
        plugin, colon, bare = name.rpartition(":")
        if self.deprecated:
            return f"'{name}' is deprecated; {self.deprecated}"
        return "" if bare == self.name else f"'{name}' is an old name; write '{plugin}{colon}{self.name}'"

    @property
    def summary(self) -> str:
        """The first line of the config's docstring."""
        lines = (self.config.__doc__ or "").strip().splitlines()
        return lines[0] if lines else ""
