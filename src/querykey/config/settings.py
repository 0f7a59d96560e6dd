"""Nested frozen dataclasses as settings: one class for Python, TOML, `--set` and run.json.

A field whose type is a dataclass is a table: `settings.head.dim` in Python is `head.dim` in a file, in
`--set` and as a key of a dict. A string in place of a table is its first field: `head = "mlp"` is
`head.kind = "mlp"`. A field with `Options` takes the keys that belong to a kind, such as the arguments of a
loss.
"""

import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from textwrap import TextWrapper
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from querykey.config.old_names import VALUES
from querykey.errors import ConfigError, RangeError

__all__ = [
    "Options",
    "as_tables",
    "changed",
    "check",
    "current",
    "describe_keys",
    "flat",
    "make",
    "require_valid",
    "rows",
    "tables_of",
]

Settings = TypeVar("Settings")
Tables = dict[str, Any]
_PLAIN = (bool, int, float, str)
_RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


@dataclass(frozen=True)
class Options:
    """Keys that depend on a kind; the metadata "options" of a field that is a mapping.

    The keys are in the table of the field, next to `kind`; the mapping contains those that are given.

    Args:
        kinds: Returns kind to (key to its type).
        by: The field of the same table that names the kind; None: all keys belong to every table.
    """

    kinds: Callable[[], Mapping[str, Mapping[str, Any]]]
    by: str | None = "kind"

    def of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of a table; those of all kinds if it names none."""
        kinds = self.kinds()
        kind = None if self.by is None else values.get(self.by)
        chosen = [kinds[kind]] if isinstance(kind, str) and kind in kinds else kinds.values()
        return {key: annotation for options in chosen for key, annotation in options.items()}


@dataclass(frozen=True)
class Issue:
    """An error in one key.

    Args:
        key: The dotted key.
        text: What is required, and what was given.
        is_range: Whether a number is outside its range.
        is_unknown: Whether the key does not exist.
    """

    key: str
    text: str
    is_range: bool = False
    is_unknown: bool = False


def tables_of(cls: type, given: Mapping[str, Any]) -> Tables:
    """Settings as nested tables, from nested tables, dotted keys and bare strings.

    Args:
        cls: The class of the settings.
        given: The settings; later keys win.

    Returns:
        Nested tables, not validated.

    Raises:
        ConfigError: If a dotted key goes into a value that is no table.
    """
    made: Tables = {}
    for dotted, value in given.items():
        *path, last = dotted.split(".")
        table, inside = made, cls
        for part in path:
            inner = _as_table(inside, part, table.get(part, {}))
            if not isinstance(inner, dict):
                raise ConfigError(f"{dotted}: {part} is {inner!r}, so it has no {last}")
            table[part] = dict(inner)
            table, inside = table[part], _table_class(inside, part) or object
        new, before = _as_table(inside, last, value), table.get(last)
        table[last] = {**before, **new} if isinstance(before, dict) and isinstance(new, dict) else new
    return made


def _as_table(cls: type, name: str, value: Any) -> Any:
    """A mapping as a dict of plain tables; a string in place of a table as its first field."""
    inner = _table_class(cls, name)
    if inner is not None and isinstance(value, str):
        first = _first(inner)
        return value if first is None else {first: value}
    if inner is not None and isinstance(value, Mapping):
        return tables_of(inner, value)
    return dict(value) if isinstance(value, Mapping) else value


def check(cls: type, given: Mapping[str, Any], *, name: str) -> Tables:
    """Validate settings that may be incomplete.

    Args:
        cls: Their class.
        given: As for `tables_of`.
        name: Name of the settings, for messages.

    Returns:
        Nested tables of the given settings, with values of the right types.

    Raises:
        ConfigError: With every error: its dotted key and what is required.
    """
    checked, issues = _walk(cls, tables_of(cls, given), root=cls)
    if issues:
        lines = "\n".join(f"  {issue.key}: {issue.text}" for issue in issues)
        raise ConfigError(f"{name}: cannot be run\n{lines}")
    return checked


def require_valid(settings: Any) -> None:
    """Validate settings that were made in Python.

    Args:
        settings: An instance of a settings class.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If a key or a kind does not exist.
    """
    cls = type(settings)
    _, issues = _walk(cls, as_tables(settings), root=cls)
    _raise_issues(issues)


def make(cls: type[Settings], given: Mapping[str, Any], *, ignore_unknown: bool = False) -> Settings:
    """Create settings; those that are not given have the defaults of the class.

    Args:
        cls: Their class.
        given: As for `tables_of`.
        ignore_unknown: Whether to ignore keys that do not exist, such as those of a later version in a file.

    Returns:
        The settings.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If a key or a kind does not exist.
    """
    tables, issues = _walk(cls, tables_of(cls, given), root=cls)
    _raise_issues([issue for issue in issues if not (ignore_unknown and issue.is_unknown)])
    made: Settings = _made(cls, tables)
    return made


def _raise_issues(issues: Sequence[Issue]) -> None:
    if issues:
        kind = RangeError if all(issue.is_range for issue in issues) else ConfigError
        raise kind("; ".join(f"{issue.key}: {issue.text}" for issue in issues))


def changed(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """A copy of settings with changes.

    Args:
        settings: The settings, which are not modified.
        given: The changes, as for `tables_of`, such as {"optimizer.learning_rate": 0.1}.

    Returns:
        The changed settings.
    """
    made: Settings = _changed(settings, tables_of(type(settings), given))
    return made


def as_tables(settings: Any) -> Tables:
    """Settings as nested tables of plain values, for a file.

    Args:
        settings: An instance of a settings class.

    Returns:
        Every field; options are next to the fields of their table.
    """
    made: Tables = {}
    for field in fields(settings):
        value, options = getattr(settings, field.name), _options(field)
        if options is not None:
            made |= dict(value)
        elif is_dataclass(value):
            made[field.name] = as_tables(value)
        else:
            plain = dict(value) if isinstance(value, Mapping) else value
            made[field.name] = list(plain) if isinstance(plain, tuple) else plain
    return made


def flat(tables: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys.

    Args:
        tables: Nested tables.
        above: Prefix of each key.

    Example:
        >>> flat({"head": {"dim": 8}, "seed": 0})
        {'head.dim': 8, 'seed': 0}
    """
    made: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            made |= flat(value, f"{above}{key}.")
        else:
            made[f"{above}{key}"] = value
    return made


def current(values: Mapping[str, Any], names: Mapping[str, str], *, warn: bool = True) -> dict[str, Any]:
    """Settings under their current names.

    Args:
        values: Nested tables or dotted keys, with names of version 0.1 or current names.
        names: Old names to current names; if both are given, the current name wins.
        warn: Whether each old name warns, for settings that a person wrote.

    Returns:
        Dotted keys.

    Example:
        >>> current({"head_dim": 8, "head": "mlp"}, {"head_dim": "head.dim"}, warn=False)
        {'head.dim': 8, 'head': 'mlp'}
    """
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for key, value in flat(values).items():
        name, _, rest = key.partition(".")
        renamed = names.get(key) or (f"{names[name]}.{rest}" if rest and name in names else key)
        names_of_values = VALUES.get(renamed, {})
        now = names_of_values.get(value, value) if isinstance(value, str) else value
        (new if renamed == key else old)[renamed] = now
        if warn and renamed != key:
            _warn(f"the setting {key} is named {renamed}")
        if warn and now is not value:
            _warn(f"{renamed} {value!r} is named {now!r}")
    return old | new


def _warn(what: str) -> None:
    warnings.warn(f"{what} now; the old name goes with the next version", FutureWarning, stacklevel=5)


def describe_keys(cls: type) -> str:
    """Every key of a settings class and its values, for a help text.

    Args:
        cls: The class.

    Returns:
        One entry per key, wrapped at 80 characters.
    """
    width = max(len(key) for key, _ in rows(cls)) + 1
    plain = TextWrapper(80, subsequent_indent=width * " ", break_on_hyphens=False)
    return "\n".join(plain.fill(f"{key:<{width}}{value}") for key, value in rows(cls))


def rows(cls: type, above: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a settings class.

    Args:
        cls: The class.
        above: Prefix of each key.

    Yields:
        (dotted key, its values, with the kinds that it belongs to).
    """
    hints = _hints(cls)
    named = [found for field in fields(cls) if (found := _options(field)) is not None]
    for field in fields(cls):
        options, inner = _options(field), _table_class(cls, field.name)
        if inner is not None:
            yield from rows(inner, f"{above}{field.name}.")
        elif options is not None:
            kinds: dict[tuple[str, str], list[str]] = {}
            for kind, keys in options.kinds().items():
                for key, annotation in keys.items():
                    kinds.setdefault((key, _allowed_values(annotation)), []).append(kind)
            for (key, allowed), of_key in kinds.items():
                yield f"{above}{key}", allowed if options.by is None else f"{allowed}  ({', '.join(of_key)})"
        else:
            of_kinds = [" | ".join(one.kinds()) for one in named if one.by == field.name]
            yield f"{above}{field.name}", of_kinds[0] if of_kinds else _allowed_values(hints[field.name])


def _walk(cls: type, tables: Mapping[str, Any], *, root: type, above: str = "") -> tuple[Tables, list[Issue]]:
    """The given settings, converted, and all issues: in the order of the fields, unknown keys last."""
    made: Tables = {}
    issues: list[Issue] = []
    known = _keys(cls, tables)
    order = {name: place for place, name in enumerate(known)}
    for name in sorted(tables, key=lambda name: order.get(name, len(order))):
        key, value, inner = f"{above}{name}", tables[name], _table_class(cls, name)
        if name not in known:
            issues.append(
                Issue(key, _correction(cls, name, list(known), root=root, above=above), is_unknown=True)
            )
        elif inner is not None and isinstance(value, Mapping):
            made[name], found = _walk(inner, value, root=root, above=f"{key}.")
            issues += found
        elif inner is not None:
            first = _first(inner)
            such = "" if first is None else f', such as {{ {first} = "..." }}'
            issues.append(Issue(key, f"must be a table{such}, got {value!r}"))
        else:
            wrong_kind = _wrong_kind(cls, name, value)
            leaf = (value, Issue(key, wrong_kind)) if wrong_kind else _leaf(key, known[name], value)
            made[name], issue = leaf
            issues += [] if issue is None else [issue]
    return made, issues


def _keys(cls: type, tables: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a table, to their types."""
    hints = _hints(cls)
    keys = {field.name: hints[field.name] for field in fields(cls) if _options(field) is None}
    for field in fields(cls):
        if (options := _options(field)) is not None:
            keys |= {name: kind for name, kind in options.of(tables).items() if name not in keys}
    return keys


def _wrong_kind(cls: type, name: str, value: Any) -> str | None:
    """The issue of a value that names a kind with options; None if there is none."""
    for options in filter(None, map(_options, fields(cls))):
        if options.by == name and isinstance(value, str) and value not in (kinds := options.kinds()):
            return f"no such kind {value!r}{_suggestion(value, list(kinds))}"
    return None


def _leaf(key: str, annotation: Any, value: Any) -> tuple[Any, Issue | None]:
    """A value of the right type, or its issue."""
    from pydantic import ValidationError

    if value is None and _allows_none(annotation):
        return None, None
    # NumPy's scalars are numbers too
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    try:
        return _adapter(annotation).validate_python(tuple(plain) if isinstance(plain, list) else plain), None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    limits = first.get("ctx", {})
    match first["type"]:
        case "greater_than_equal":
            text = f"must be at least {limits['ge']}"
        case "less_than_equal":
            text = f"must be at most {limits['le']}"
        case _:
            text = first["msg"].replace("Input should be", "must be")
    shown = f", got {value!r}" if isinstance(value, str | int | float) else ""
    return value, Issue(key, f"{text}{shown}", first["type"] in _RANGES)


@cache
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(_plain(annotation), config=ConfigDict(strict=True, allow_inf_nan=False))


def _plain(annotation: Any) -> Any:
    """The types of values that a file can contain: without None, and without tensors."""
    if get_origin(annotation) is Annotated or not _is_union(annotation):
        return annotation
    kept = [part for part in get_args(annotation) if part is not type(None) and _is_plain(part)]
    return Union[tuple(kept)]  # noqa: UP007 -- the types are known only at run time


def _is_plain(annotation: Any) -> bool:
    return annotation in _PLAIN or get_origin(annotation) in (Annotated, Literal, tuple)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _allows_none(annotation: Any) -> bool:
    return _is_union(annotation) and type(None) in get_args(annotation)


def _correction(cls: type, wrong: str, known: Sequence[str], *, root: type, above: str) -> str:
    """The nearest existing key: of another kind, in the same table, or in another table."""
    for options in filter(None, map(_options, fields(cls))):
        of_key = [kind for kind, keys in options.kinds().items() if wrong in keys]
        if of_key and options.by is not None:
            return f"no such key of this kind; set {above}{options.by} to {' or '.join(of_key)}"
    if get_close_matches(wrong, known, n=1):
        return f"no such key{_suggestion(wrong, known)}"
    elsewhere = {key.rpartition(".")[2]: key for key, _ in reversed(list(rows(root)))}
    near = get_close_matches(wrong, elsewhere, n=1)
    return f"no such key{f'; did you mean {elsewhere[near[0]]}?' if near else _suggestion(wrong, known)}"


def _suggestion(wrong: str, right: Sequence[str]) -> str:
    near = get_close_matches(wrong, right, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(right)}"


def _made(cls: type[Any], tables: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {}
    for field in fields(cls):
        inner = _table_class(cls, field.name)
        if _options(field) is not None:
            values[field.name] = _rest(cls, tables)
        elif field.name in tables:
            values[field.name] = tables[field.name] if inner is None else _made(inner, tables[field.name])
    return cls(**values)


def _changed(settings: Any, tables: Mapping[str, Any]) -> Any:
    cls, values = type(settings), dict[str, Any]()
    for field in fields(cls):
        before, inner = getattr(settings, field.name), _table_class(cls, field.name)
        if _options(field) is not None:
            values[field.name] = {**before, **_rest(cls, tables)}
        elif field.name in tables:
            values[field.name] = tables[field.name] if inner is None else _changed(before, tables[field.name])
    return replace(settings, **values)


def _rest(cls: type, tables: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a table: its keys that are no fields."""
    names = {field.name for field in fields(cls)}
    return {key: value for key, value in tables.items() if key not in names}


def _options(field: "Field[Any]") -> Options | None:
    found: Options | None = field.metadata.get("options")
    return found


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _table_class(cls: type, name: str) -> type | None:
    """The class of a field that is a table."""
    found = _hints(cls).get(name) if is_dataclass(cls) else None
    return found if isinstance(found, type) and is_dataclass(found) else None


def _first(cls: type) -> str | None:
    """The field that a string in place of a table stands for; None if the first field is no string."""
    field = fields(cls)[0]
    named = _options(field) is None and _is_word(_hints(cls)[field.name])
    return field.name if named else None


def _is_word(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(value, str) for value in get_args(annotation))
    return annotation is str or (_is_union(annotation) and any(map(_is_word, get_args(annotation))))


def _allowed_values(annotation: Any) -> str:
    """The values of a type, as written in TOML."""
    if annotation in (None, type(None), ...):
        return "..." if annotation is ... else ""
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if isinstance(annotation, type):
        names = {"int": "whole number", "float": "number", "str": "text", "bool": "true | false"}
        return names.get(annotation.__name__, "")
    parts = get_args(annotation)
    if get_origin(annotation) is tuple:
        return f"[{', '.join(map(_allowed_values, parts))}]"
    # the first argument of Annotated[int, bound] is the type
    parts = parts[:1] if hasattr(annotation, "__metadata__") else parts
    return " | ".join(dict.fromkeys(filter(None, map(_allowed_values, parts))))
