"""Charts as SVG: Vega renders a specification without a browser, and superfluous attributes are removed."""

import re
from functools import cache
from typing import Any
from xml.sax.saxutils import quoteattr

from querykey.errors import MissingExtraError
from querykey.reports.charts.spec import Chart, Points
from querykey.reports.charts.vega import FONT, vega_lite

__all__ = ["LIGHT", "as_svg"]

FILE_WIDTH = 640
ESCAPED = {'"': "&quot;"}

LIGHT = {
    "ink": "#1f2328", "muted": "#59636e", "soft": "#b3bcc6", "grid": "#e3e6ea", "paper": "#ffffff",
    "c0": "#0067a5", "c1": "#c45100", "c2": "#007a58", "c3": "#a1498b", "c4": "#3f8fc4", "c5": "#a87400",
    "c6": "#5c5c66",
}  # fmt: skip
"""The colours of a file, on white; on a page they are CSS properties."""

_EMPTY = re.compile(
    r'<path class="(?:foreground|background)"[^>]*?(?: display="none"| d="M0,0h0v0h0Z")[^>]*/>|<g></g>'
    r'|<rect [^>]*fill="transparent"/>'
)
_BARE = re.compile(
    r' (?:pointer-events="none"|opacity="1"|role="graphics-(?:symbol|object)"|aria-roledescription="[^"]*"'
    r'|aria-hidden="true"|class="[^"]*"|xmlns:xlink="[^"]*"|version="1.1"|font-family="[^"]*")'
)
_SHAPE = re.compile(r' (?:d|transform|width|height|x2|y2)="[^"]*"')
_LONG = re.compile(r"-?\d+\.\d{3,}")
_HEAD = re.compile(r'<svg [^>]*?width="([\d.]+)" height="([\d.]+)" viewBox="([^"]*)">')
_PLACE = re.compile(r'aria-label="(-?\d+) ')


def as_svg(chart: Chart, *, width: int = FILE_WIDTH, is_file: bool = False, kind: str = "") -> str:
    """Draw a chart.

    Args:
        chart: Its content.
        width: In pixels, with axes and legend.
        is_file: Whether it is a file, with title, background and colours; on a page the page has them.
        kind: Class of the element, or "".

    Returns:
        An svg element of role img, with the title as its label. The same chart gives the same text with the
        same version of vl-convert. Each mark has an aria-label with its numbers; on a map with pictures also
        a data-place, the place of the picture in the sprite.

    Raises:
        MissingExtraError: If vl-convert is not installed.

    Example:
        >>> from querykey.reports.charts.spec import Line, Lines
        >>> line = Line("loss", [1.0, 2.0], [2.0, 1.0])
        >>> drawing = as_svg(Lines(title="t", x="step", y="nats", lines=[line]))
        >>> drawing.startswith("<svg"), "loss: 2 at step 1" in drawing
        (True, True)
    """
    drawing = _vega().vegalite_to_svg(vega_lite(chart, width=width, with_title=is_file))
    found = _HEAD.match(drawing)
    assert found is not None
    body = _BARE.sub("", _EMPTY.sub("", drawing[found.end() :]))
    body = _SHAPE.sub(lambda shape: _LONG.sub(lambda number: f"{float(number[0]):.2f}", shape[0]), body)
    if isinstance(chart, Points) and chart.pictures:
        body = _PLACE.sub(r'data-place="\1" aria-label="', body)
    if is_file:
        body = re.sub(r"var\(--(\w+)\)", lambda name: LIGHT[name[1]], body) + "\n"
    across, down, box = found.groups()
    head = {
        "class": kind, "role": "img", "aria-label": chart.title, "width": across, "height": down,
        "viewBox": box, "font-family": FONT,
    }  # fmt: skip
    written = " ".join(f"{name}={quoteattr(value, ESCAPED)}" for name, value in head.items() if value)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {written}>{body}'


@cache
def _vega() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise MissingExtraError("vl-convert-python", extra="report", purpose="a chart") from error
    return vl_convert
