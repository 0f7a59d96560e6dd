"""Nested frozen dataclasses as settings: one class for Python, TOML, `--set` and run.json.

A field whose type is a dataclass is a table: `settings.head.dim` in Python is `head.dim` in a file, in
`--set` and as a key of a dict. A word in the place of a table is its first field: `head = "mlp"` is
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

    The keys stand in the table of the field, beside `kind`; the mapping holds those that are given.

    Args:
        kinds: Gives kind to (key to its type).
        by: The field of the same table that names the kind; None: all keys belong to every table.
    """

    kinds: Callable[[], Mapping[str, Mapping[str, Any]]]
    by: str | None = "kind"

    def of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The keys that a table takes; those of all kinds if it names none."""
        kinds = self.kinds()
        kind = None if self.by is None else values.get(self.by)
        chosen = [kinds[kind]] if isinstance(kind, str) and kind in kinds else kinds.values()
        return {key: annotation for options in chosen for key, annotation in options.items()}


@dataclass(frozen=True)
class Fault:
    """What is wrong with one key.

    Args:
        key: Dotted.
        text: What is needed, and what was given.
        is_range: Whether it is a number outside its range.
        is_unknown: Whether there is no such key.
    """

    key: str
    text: str
    is_range: bool = False
    is_unknown: bool = False


def tables_of(cls: type, given: Mapping[str, Any]) -> Tables:
    """Settings as nested tables, from nested tables, dotted keys and bare words.

    Args:
        cls: The class of the settings.
        given: The later key wins.

    Returns:
        Tables; nothing is checked but that a dotted key goes into tables.

    Raises:
        ConfigError: If a dotted key goes into a value.
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
    """A mapping as a dict of plain tables; a word in the place of a table as its first field."""
    inner = _table_class(cls, name)
    if inner is not None and isinstance(value, str):
        first = _first(inner)
        return value if first is None else {first: value}
    if inner is not None and isinstance(value, Mapping):
        return tables_of(inner, value)
    return dict(value) if isinstance(value, Mapping) else value


def check(cls: type, given: Mapping[str, Any], *, name: str) -> Tables:
    """Check settings that may be incomplete.

    Args:
        cls: Their class.
        given: As `tables_of` takes it.
        name: What to call them in a message.

    Returns:
        Nested tables of what was given, with values of the right types.

    Raises:
        ConfigError: With every fault: its dotted key and what would be right.
    """
    checked, faults = _walk(cls, tables_of(cls, given), root=cls)
    if faults:
        lines = "\n".join(f"  {fault.key}: {fault.text}" for fault in faults)
        raise ConfigError(f"{name}: cannot be run\n{lines}")
    return checked


def require_valid(settings: Any) -> None:
    """Check settings that were made in Python.

    Args:
        settings: An instance of a settings class.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If a key or a word does not exist.
    """
    cls = type(settings)
    _, faults = _walk(cls, as_tables(settings), root=cls)
    _refuse(faults)


def make(cls: type[Settings], given: Mapping[str, Any], *, ignore_unknown: bool = False) -> Settings:
    """Settings from what was given; the rest has the defaults of the class.

    Args:
        cls: Their class.
        given: As `tables_of` takes it.
        ignore_unknown: Whether keys that do not exist are left out: those of a later version, in a file.

    Returns:
        The settings.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If a key or a word does not exist.
    """
    tables, faults = _walk(cls, tables_of(cls, given), root=cls)
    _refuse([fault for fault in faults if not (ignore_unknown and fault.is_unknown)])
    made: Settings = _made(cls, tables)
    return made


def _refuse(faults: Sequence[Fault]) -> None:
    if faults:
        kind = RangeError if all(fault.is_range for fault in faults) else ConfigError
        raise kind("; ".join(f"{fault.key}: {fault.text}" for fault in faults))


def changed(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings with some changed.

    Args:
        settings: Stay as they are.
        given: As `tables_of` takes it, such as {"optimizer.learning_rate": 0.1}.

    Returns:
        Other settings.
    """
    made: Settings = _changed(settings, tables_of(type(settings), given))
    return made


def as_tables(settings: Any) -> Tables:
    """Settings as nested tables of plain values, for a file.

    Args:
        settings: An instance of a settings class.

    Returns:
        Every field; options stand beside the fields of their table.
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
    """Nested tables as one, with dotted keys.

    Args:
        tables: Nested.
        above: Put before each key.

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
    """Settings under their names of today.

    Args:
        values: Nested tables or dotted keys, with names of 0.1 or of today.
        names: Old names to those of today; where both are given, today's wins.
        warn: Whether each old name warns: where a person wrote it.

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
        words = VALUES.get(renamed, {})
        word = words.get(value, value) if isinstance(value, str) else value
        (new if renamed == key else old)[renamed] = word
        if warn and renamed != key:
            _warn(f"the setting {key} is named {renamed}")
        if warn and word is not value:
            _warn(f"{renamed} {value!r} is named {word!r}")
    return old | new


def _warn(what: str) -> None:
    warnings.warn(f"{what} now; the old name goes with the next version", FutureWarning, stacklevel=5)


def describe_keys(cls: type) -> str:
    """Every key that a settings class has and what it may be, for a help text.

    Args:
        cls: The class.

    Returns:
        A line a key, of at most 80 characters; what is longer goes on below.
    """
    width = max(len(key) for key, _ in rows(cls)) + 1
    plain = TextWrapper(80, subsequent_indent=width * " ", break_on_hyphens=False)
    return "\n".join(plain.fill(f"{key:<{width}}{words}") for key, words in rows(cls))


def rows(cls: type, above: str = "") -> Iterator[tuple[str, str]]:
    """Every key that a settings class has.

    Args:
        cls: The class.
        above: Put before each key.

    Yields:
        (dotted key, what it may be, and the kinds it belongs to).
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
                    kinds.setdefault((key, _in_words(annotation)), []).append(kind)
            for (key, words), having in kinds.items():
                yield f"{above}{key}", words if options.by is None else f"{words}  ({', '.join(having)})"
        else:
            of_kinds = [" | ".join(one.kinds()) for one in named if one.by == field.name]
            yield f"{above}{field.name}", of_kinds[0] if of_kinds else _in_words(hints[field.name])


def _walk(cls: type, tables: Mapping[str, Any], *, root: type, above: str = "") -> tuple[Tables, list[Fault]]:
    """What was given, converted, and all faults: in the order of the fields, unknown keys last."""
    made: Tables = {}
    faults: list[Fault] = []
    known = _keys(cls, tables)
    order = {name: place for place, name in enumerate(known)}
    for name in sorted(tables, key=lambda name: order.get(name, len(order))):
        key, value, inner = f"{above}{name}", tables[name], _table_class(cls, name)
        if name not in known:
            faults.append(Fault(key, _meant(cls, name, list(known), root=root, above=above), is_unknown=True))
        elif inner is not None and isinstance(value, Mapping):
            made[name], found = _walk(inner, value, root=root, above=f"{key}.")
            faults += found
        elif inner is not None:
            first = _first(inner)
            such = "" if first is None else f', such as {{ {first} = "..." }}'
            faults.append(Fault(key, f"must be a table{such}, got {value!r}"))
        else:
            wrong_kind = _wrong_kind(cls, name, value)
            made[name], fault = (
                (value, Fault(key, wrong_kind)) if wrong_kind else _leaf(key, known[name], value)
            )
            faults += [] if fault is None else [fault]
    return made, faults


def _keys(cls: type, tables: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a table takes, to their types."""
    hints = _hints(cls)
    keys = {field.name: hints[field.name] for field in fields(cls) if _options(field) is None}
    for field in fields(cls):
        if (options := _options(field)) is not None:
            keys |= {name: kind for name, kind in options.of(tables).items() if name not in keys}
    return keys


def _wrong_kind(cls: type, name: str, value: Any) -> str | None:
    """What is wrong with a word that names a kind with options; None: nothing."""
    for options in filter(None, map(_options, fields(cls))):
        if options.by == name and isinstance(value, str) and value not in (kinds := options.kinds()):
            return f"no such kind {value!r}{_nearest(value, list(kinds))}"
    return None


def _leaf(key: str, annotation: Any, value: Any) -> tuple[Any, Fault | None]:
    """A value of the right type, or what is wrong with it."""
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
    return value, Fault(key, f"{text}{shown}", first["type"] in _RANGES)


@cache
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(_plain(annotation), config=ConfigDict(strict=True, allow_inf_nan=False))


def _plain(annotation: Any) -> Any:
    """The types of values that a file can hold: without None, and without tensors."""
    if get_origin(annotation) is Annotated or not _is_union(annotation):
        return annotation
    kept = [part for part in get_args(annotation) if part is not type(None) and _is_plain(part)]
    return Union[tuple(kept)]  # noqa: UP007 -- of types that are known only now


def _is_plain(annotation: Any) -> bool:
    return annotation in _PLAIN or get_origin(annotation) in (Annotated, Literal, tuple)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _allows_none(annotation: Any) -> bool:
    return _is_union(annotation) and type(None) in get_args(annotation)


def _meant(cls: type, wrong: str, known: Sequence[str], *, root: type, above: str) -> str:
    """The nearest right spelling: of another kind, in the same table, or of a key in another."""
    for options in filter(None, map(_options, fields(cls))):
        having = [kind for kind, keys in options.kinds().items() if wrong in keys]
        if having and options.by is not None:
            return f"no such key of this kind; set {above}{options.by} to {' or '.join(having)}"
    if get_close_matches(wrong, known, n=1):
        return f"no such key{_nearest(wrong, known)}"
    elsewhere = {key.rpartition(".")[2]: key for key, _ in reversed(list(rows(root)))}
    near = get_close_matches(wrong, elsewhere, n=1)
    return (
        f"no such key; did you mean {elsewhere[near[0]]}?" if near else f"no such key{_nearest(wrong, known)}"
    )


def _nearest(wrong: str, right: Sequence[str]) -> str:
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
    """The options of a table: what is no field of it."""
    own = {field.name for field in fields(cls)}
    return {key: value for key, value in tables.items() if key not in own}


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
    """The field that a word in the place of a table stands for; None if the first field is no word."""
    field = fields(cls)[0]
    named = _options(field) is None and _is_word(_hints(cls)[field.name])
    return field.name if named else None


def _is_word(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(value, str) for value in get_args(annotation))
    return annotation is str or (_is_union(annotation) and any(map(_is_word, get_args(annotation))))


def _in_words(annotation: Any) -> str:
    """What a value may be, as a person writes it in TOML."""
    if annotation in (None, type(None), ...):
        return "..." if annotation is ... else ""
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if isinstance(annotation, type):
        names = {"int": "whole number", "float": "number", "str": "text", "bool": "true | false"}
        return names.get(annotation.__name__, "")
    parts = get_args(annotation)
    if get_origin(annotation) is tuple:
        return f"[{', '.join(map(_in_words, parts))}]"
    # Annotated[int, bound] holds the type first and its bounds after it
    parts = parts[:1] if hasattr(annotation, "__metadata__") else parts
    return " | ".join(dict.fromkeys(words for words in map(_in_words, parts) if words))
