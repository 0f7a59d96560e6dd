"""What is wrong with a setting, in words: its dotted key and what would be right."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

__all__ = ["Grammar"]


@dataclass(frozen=True)
class Grammar:
    """The keys there are.

    Args:
        root: The model of a whole run.
        unions: Key to kind to model: tables that come in kinds.
        tables: Key to model: tables of one kind.
    """

    root: type[BaseModel]
    unions: Mapping[str, Mapping[str, type[BaseModel]]]
    tables: Mapping[str, type[BaseModel]]

    def describe(self, error: Mapping[str, Any]) -> str:
        """Say one fault of pydantic.

        Args:
            error: As `ValidationError.errors` gives it.

        Returns:
            One line: dotted key, what is wrong and what would be right.
        """
        location = [str(part) for part in error["loc"]]
        table = location[0] if location else ""
        kinds = self.unions.get(table, {})
        model = self.tables.get(table, self.root)
        if len(location) > 1 and location[1] in kinds:
            model = kinds[location.pop(1)]
        key, given = ".".join(location), error.get("input")
        match error["type"]:
            case "extra_forbidden":
                return f"{key}: no such key{self._meant(location, model)}"
            case "union_tag_invalid":
                kind = str(error["ctx"]["tag"])
                return f"{key}.kind: no such kind {kind!r}{_nearest(kind, list(kinds))}"
            case "value_error":
                return str(error["ctx"]["error"])
            case "model_type" | "model_attributes_type":
                wanted = 'must be a table, such as { kind = "..." }' if kinds else "must be a table"
            case _:
                wanted = error["msg"].replace("Input should be", "must be")
        return f"{key}: {wanted}" + (f", got {given!r}" if isinstance(given, str | int | float) else "")

    def rows(self) -> Iterator[tuple[str, str]]:
        """Every key there is.

        Yields:
            (dotted key, the kinds it belongs to and what it may be).
        """
        for name, field in self.root.model_fields.items():
            if name in self.unions:
                yield f"{name}.kind", " | ".join(self.unions[name])
                for kind, model in self.unions[name].items():
                    for inner, part in model.model_fields.items():
                        if inner != "kind":
                            yield f"{name}.{inner}", f"{_type_words(part.annotation)}  ({kind})"
            elif name in self.tables:
                for inner, part in self.tables[name].model_fields.items():
                    yield f"{name}.{inner}", _type_words(part.annotation)
            else:
                yield name, _type_words(field.annotation)

    def _meant(self, location: Sequence[str], model: type[BaseModel]) -> str:
        """The nearest right spelling: in the same table, or else of a key in another."""
        wrong, own = location[-1], list(model.model_fields)
        owners = [k for k, part in self.unions.get(location[0], {}).items() if wrong in part.model_fields]
        if len(location) > 1 and owners:
            return f" of this kind; set {location[0]}.kind to {' or '.join(owners)}"
        if get_close_matches(wrong, own, n=1):
            return _nearest(wrong, own)
        elsewhere = {key.rpartition(".")[2]: key for key, _ in reversed(list(self.rows()))}
        near = get_close_matches(wrong, elsewhere, n=1)
        return f"; did you mean {elsewhere[near[0]]}?" if near else f"; there are {', '.join(own)}"


def _nearest(wrong: str, right: Sequence[str]) -> str:
    near = get_close_matches(wrong, right, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(right)}"


def _type_words(annotation: Any) -> str:
    """What a value may be, as a person writes it in TOML."""
    if annotation is None or annotation is type(None):
        return ""
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if isinstance(annotation, type):
        names = {"int": "whole number", "float": "number", "str": "text", "bool": "true | false"}
        return names.get(annotation.__name__, annotation.__name__)
    return " | ".join(dict.fromkeys(words for words in map(_type_words, _union_of(annotation)) if words))


def _union_of(annotation: Any) -> tuple[Any, ...]:
    parts = get_args(annotation)
    # Annotated[int, bound] holds the type first and what bounds it after
    return parts[:1] if hasattr(annotation, "__metadata__") else parts
