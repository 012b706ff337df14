"""Turn plain tables into typed config objects, strictly, and report every problem at once.

cattrs dispatches on types; its lenient defaults (3.7 becomes 3, "abc" a list of letters) are replaced.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
from attrs import frozen
from cattrs import Converter

from reidcore.catalog import Catalog
from reidcore.component import Component, renamed_options
from reidcore.errors import RecipeError, ReidDeprecationWarning, UnknownComponent
from reidcore.kinds import KINDS, Kind
from reidcore.locate import Path as TomlPath

T = TypeVar("T")

_SCALARS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    Path: ((str,), "a path"),
}


@frozen
class Problem:
    """One mistake, or one old name: where in the document, and what to say of it."""

    path: TomlPath
    message: str


class Problems(Exception):
    """All the mistakes found below one point of the document."""

    def __init__(self, items: Sequence[Problem]) -> None:
        self.items = tuple(items)
        super().__init__("; ".join(item.message for item in items))

    @classmethod
    def one(cls, message: str) -> Problems:
        """Return a single problem at this very point."""
        return cls([Problem((), message)])


class StrictConverter(Converter):
    """A converter that keeps in `notices` what was accepted but should be written otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.notices: list[Problem] = []

    def below(self, prefix: TomlPath, value: Any, cls: Any) -> Any:
        """Structure what stands at `prefix`, which the paths of its problems and notices then begin with."""
        before = len(self.notices)
        try:
            result = self.structure(value, cls)
        except Problems as found:
            del self.notices[before:]
            raise Problems([Problem((*prefix, *item.path), item.message) for item in found.items]) from None
        self.notices[before:] = [Problem((*prefix, *item.path), item.message) for item in self.notices[before:]]
        return result


def make_converter(catalog: Catalog) -> StrictConverter:
    """Return a strict converter in which the type of a kind's config means: choose by name, then structure."""
    converter = StrictConverter()
    for scalar in _SCALARS:
        converter.register_structure_hook(scalar, _scalar)
    converter.register_structure_hook_factory(attrs.has, lambda cls: partial(_attrs, converter))
    converter.register_structure_hook_func(_is_origin(Literal), _literal)
    converter.register_structure_hook_func(_is_origin(tuple, list), partial(_sequence, converter))
    converter.register_structure_hook_func(_is_origin(Mapping, dict), partial(_mapping, converter))
    converter.register_structure_hook_func(_is_origin(Union, UnionType), partial(_union, converter))
    for kind in KINDS.values():
        hook = partial(_choose, catalog, converter, kind)
        converter.register_structure_hook_func(partial(_is, kind.protocol), hook)
    return converter


def structure(table: Any, cls: type[T], catalog: Catalog, where: str = "") -> T:
    """Return `table` as a `cls`, or raise RecipeError with one line a problem, each beginning with `where`."""
    converter = make_converter(catalog)
    prefix = (where,) if where else ()
    try:
        result: T = converter.below(prefix, table, cls)
    except Problems as problems:
        raise RecipeError(f"{'.'.join(map(str, item.path))}: {item.message}" for item in problems.items) from None
    for item in converter.notices:
        text = f"{'.'.join(map(str, item.path))}: {item.message}"
        warnings.warn(text, ReidDeprecationWarning, stacklevel=2)
    return result


def describe_type(cls: Any) -> str:
    """Return what a value of this type looks like in a recipe: "an integer", "'a' or 'b'"."""
    if cls in _SCALARS:
        return _SCALARS[cls][1]
    arguments = [argument for argument in get_args(cls) if argument is not NoneType]
    if get_origin(cls) is Literal:
        return " or ".join(_show(argument) for argument in arguments)
    if get_origin(cls) in (Union, UnionType):
        return " or ".join(describe_type(argument) for argument in arguments)
    if get_origin(cls) is list or (get_origin(cls) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis):
        return f"an array, each item {describe_type(arguments[0])}"
    if get_origin(cls) is tuple:
        return f"an array of {len(arguments)}, each item {describe_type(arguments[0])}"
    return "a table"


def component_of(catalog: Catalog, config: object) -> Component:
    """Return the component that a config object was structured for."""
    for kind in KINDS:
        for component in catalog.components(kind):
            if component.config is type(config):
                return component
    raise UnknownComponent(f"no installed plugin offers {type(config).__name__}")


def _is(cls: type, candidate: Any) -> bool:
    return candidate is cls


def _is_origin(*origins: Any) -> Callable[[Any], bool]:
    return lambda cls: get_origin(cls) in origins


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    return repr(value)


def _scalar(value: Any, cls: type) -> Any:
    accepted, expected = _SCALARS[cls]
    if not isinstance(value, accepted) or (isinstance(value, bool) and cls is not bool):
        raise Problems.one(f"found {_show(value)}; expected {expected}")
    return cls(value)


def _literal(value: Any, cls: Any) -> Any:
    for choice in get_args(cls):
        if type(choice) is type(value) and choice == value:
            return choice
    near = get_close_matches(str(value), [str(choice) for choice in get_args(cls)], 1)
    hint = f"; did you mean '{near[0]}'?" if near and isinstance(value, str) else ""
    raise Problems.one(f"found {_show(value)}; expected {describe_type(cls)}{hint}")


def _union(converter: StrictConverter, value: Any, cls: Any) -> Any:
    members = [member for member in get_args(cls) if member is not NoneType]
    if len(members) == 1:
        return converter.structure(value, members[0])
    for member in members:
        try:
            return converter.below((), value, member)
        except Problems:
            continue
    raise Problems.one(f"found {_show(value)}; expected {describe_type(cls)}")


def _sequence(converter: StrictConverter, value: Any, cls: Any) -> tuple[Any, ...] | list[Any]:
    arguments = get_args(cls)
    variable = get_origin(cls) is list or (len(arguments) == 2 and arguments[1] is Ellipsis)
    if not isinstance(value, (list, tuple)):
        hint = f"; write [{_show(value)}]" if variable and isinstance(value, str) else ""
        hint = "; write the table's name in double brackets: [[...]]" if isinstance(value, Mapping) else hint
        raise Problems.one(f"found {_show(value)}; expected {describe_type(cls)}{hint}")
    if not variable and len(value) != len(arguments):
        raise Problems.one(f"found an array of {len(value)}; expected {describe_type(cls)}")
    types = [arguments[0]] * len(value) if variable else list(arguments)
    items: list[Any] = []
    problems: list[Problem] = []
    for index, (item, item_type) in enumerate(zip(value, types, strict=True)):
        try:
            items.append(converter.below((index,), item, item_type))
        except Problems as found:
            problems += found.items
    if problems:
        raise Problems(problems)
    return items if get_origin(cls) is list else tuple(items)


def _mapping(converter: StrictConverter, value: Any, cls: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Problems.one(f"found {_show(value)}; expected a table")
    result: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, item in value.items():
        try:
            result[key] = converter.below((key,), item, get_args(cls)[1])
        except Problems as found:
            problems += found.items
    if problems:
        raise Problems(problems)
    return result


def _choose(catalog: Catalog, converter: StrictConverter, kind: Kind, table: Any, _: Any) -> Any:
    """Structure a table with the config class of the component that its key `name` chooses."""
    if not isinstance(table, Mapping):
        raise Problems.one(f"found {_show(table)}; expected a table with the name of {kind.one}")
    name = table.get("name")
    if name is None:
        names = ", ".join(sorted(component.name for component in catalog.components(kind.name)))
        raise Problems.one(f"the key 'name' is missing; it chooses {kind.one}: {names or 'none is installed'}")
    if not isinstance(name, str):
        raise Problems([Problem(("name",), f"found {_show(name)}; expected the name of {kind.one}")])
    try:
        component = catalog.find(kind.name, name)
    except UnknownComponent as error:
        raise Problems([Problem(("name",), str(error))]) from None
    if notice := component.notice(name):
        converter.notices.append(Problem(("name",), notice))
    options = _Rest({key: value for key, value in table.items() if key != "name"})
    options.siblings = getattr(table, "siblings", ())
    return _attrs(converter, options, component.config)


class _Rest(dict[str, Any]):
    """The keys of a table that are left for the component, with the names of those already taken."""

    siblings: tuple[str, ...] = ()


def _attrs(converter: StrictConverter, table: Any, cls: Any) -> Any:
    """Structure a table as an attrs class; keys that the class does not have go to its `inline` field, if any."""
    if not isinstance(table, Mapping):
        raise Problems.one(f"found {_show(table)}; expected a table")
    attrs.resolve_types(cls)
    fields = {field.name: field for field in attrs.fields(cls)}
    inline = next((name for name, field in fields.items() if field.metadata.get("inline")), None)
    given = {key: value for key, value in table.items() if key in fields and key != inline}
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    renamed = renamed_options(cls)
    written = {}  # the key in the table, where it is an old name
    for old, new in renamed.items():
        if old in table and new in given:
            problems.append(Problem((old,), f"an old name of '{new}', which is given already; leave it out"))
        elif old in table:
            converter.notices.append(Problem((old,), f"an old name; write '{new}'"))
            given[new] = table[old]
            written[new] = old
    rest = _Rest({key: value for key, value in table.items() if key not in given and key not in renamed})
    rest.siblings = tuple(name for name in fields if name != inline)
    for name, field in fields.items():
        prefix: TomlPath = () if name == inline else (written.get(name, name),)
        if name == inline:
            source: Any = rest
        elif name in given or "default_table" in field.metadata:
            default = field.metadata.get("default_table")
            source = given.get(name, default)
            if isinstance(default, Mapping) and isinstance(source, Mapping):
                source = {**default, **source}  # options without a name are the default component's
        else:
            if field.default is attrs.NOTHING:
                problems.append(Problem((name,), f"missing; expected {_expected(field)}"))
            continue
        try:
            values[name] = converter.below(prefix, source, field.type)
            if field.validator is not None:
                field.validator(None, field, values[name])
        except Problems as found:
            problems += found.items
        except ValueError as error:
            problems.append(Problem(prefix, str(error)))
    if inline is None:
        problems += [Problem((key,), _unknown_key(key, [*fields, *getattr(table, "siblings", ())])) for key in rest]
    if not problems:
        try:
            return cls(**values)
        except ValueError as error:  # a rule over several options, from __attrs_post_init__
            problems.append(Problem((), str(error)))
    raise Problems(problems)


def _expected(field: attrs.Attribute[Any]) -> str:
    help = field.metadata.get("help")
    return describe_type(field.type) + (f" ({help})" if help else "")


def _unknown_key(key: str, names: Sequence[str]) -> str:
    if near := get_close_matches(key, names, 1):
        return f"unknown key; did you mean '{near[0]}'?"
    return f"unknown key; expected {' or '.join(names)}" if names else "unknown key; expected no options"
