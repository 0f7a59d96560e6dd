"""Files that were damaged, or are a stranger's: bytes changed, and any JSON in the place of any other."""

import copy
import json
from contextlib import contextmanager

from hypothesis import strategies as st

__all__ = ["damaged_bytes", "damaged_json", "in_place"]

NUMBERS = st.one_of(
    st.integers(), st.integers(-3, 3), st.sampled_from([2**31, 2**63, 10**30, -(10**30)]),
    st.floats(allow_nan=True, allow_infinity=True),
)  # fmt: skip
WORDS = st.text("a.é/\\0\n", max_size=6)
ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged_bytes(draw, content):
    """The content with some bytes flipped, cut off, taken out, put in or replaced; or other bytes at all."""
    place = draw(st.integers(0, len(content)))
    other = draw(st.binary(min_size=1, max_size=8))
    match draw(st.sampled_from(("flip", "cut", "out", "in", "replace", "deep", "other"))):
        case "flip":
            place = min(place, len(content) - 1)
            return (
                content[:place]
                + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))])
                + content[place + 1 :]
            )
        case "cut":
            return content[:place]
        case "out":
            return content[:place] + content[place + draw(st.integers(1, 64)) :]
        case "in":
            return content[:place] + other + content[place:]
        case "replace":
            return content[:place] + other + content[place + len(other) :]
        case "deep":
            return content[:place] + draw(st.sampled_from((b"[", b'{"a":'))) * 20_000 + content[place:]
        case _:
            return draw(st.binary(max_size=64))


@st.composite
def damaged_json(draw, content):
    """The same JSON with one part of it replaced, taken out or renamed; or other JSON at all."""
    said = copy.deepcopy(json.loads(content))
    holders = list(_holders(said))
    if not holders or draw(st.integers(0, 9)) == 0:
        return json.dumps(draw(ANY_JSON)).encode()
    holder, key = draw(st.sampled_from(holders))
    match draw(st.sampled_from(("replace", "replace", "out", "rename"))):
        case "replace":
            holder[key] = draw(ANY_JSON)
        case "rename" if isinstance(holder, dict):
            holder[draw(WORDS)] = holder.pop(key)
        case _:
            del holder[key]
    return json.dumps(said).encode()


def _holders(value):
    """(container, key) of every part of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(parts):
        yield value, key
        yield from _holders(inner)


@contextmanager
def in_place(file, content):
    """While this lasts a file holds other bytes."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)
