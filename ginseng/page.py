"""Parts of a page of HTML that needs no other file, no script and no network: text is escaped by construction."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from ginseng.utils.files import require_writable_path

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # a browser then fetches nothing
_N_BINS, _WIDTH, _HEIGHT = 20, 360, 130
_DPI, _PIXELS_PER_INCH = 150, 90  # of pictures as they are kept, and shown


def require_page(path: str | Path) -> None:
    """Raise a ValueError unless a path is one at which a page can be written, and names one.

    Examples
    --------
    >>> require_page("report.pdf")
    Traceback (most recent call last):
        ...
    ValueError: report.pdf must end in .html: the page is written for a browser, which can print it as PDF.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path} must end in .html: the page is written for a browser, which can print it as PDF.")
    require_writable_path(path)


def tag(name: str, *children: Element | str | None, **attributes: str) -> Element:
    """An element with text and elements in it; ``class_`` stands for ``class``, and None for nothing.

    Examples
    --------
    >>> ElementTree.tostring(tag("p", "1 < 2 ", tag("b", "&"), class_="x"), encoding="unicode", method="html")
    '<p class="x">1 &lt; 2 <b>&amp;</b></p>'
    """
    element = Element(name, {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child is not None and len(element):
            element[-1].tail = (element[-1].tail or "") + child
        elif child is not None:
            element.text = (element.text or "") + child
    return element


def page(title: str, *parts: Element | None) -> str:
    """The whole page.

    Examples
    --------
    >>> page("Cells", tag("p", "There are none.")).startswith("<!DOCTYPE html>")
    True
    """
    style = files("ginseng").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Element("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", style),
    )
    whole = tag("html", head, tag("body", tag("main", *parts)), lang="en")
    return "<!DOCTYPE html>\n" + ElementTree.tostring(whole, encoding="unicode", method="html") + "\n"


def section(title: str, *parts: Element | str | None) -> Element:
    """A part of the page under a heading."""
    return tag("section", tag("h2", title), *parts)


def tiles(numbers: Mapping[str, str]) -> Element:
    """Numbers to be seen first, by what they are."""
    found = [tag("div", tag("dd", value), tag("dt", name)) for name, value in numbers.items()]
    return tag("dl", *found, class_="tiles")


def table(columns: Sequence[str], rows: Sequence[Sequence[Element | str]]) -> Element:
    """A table whose first column names the rows; text in others is taken for numbers, and elements stay as they are."""
    head = tag("tr", *(tag("th", name, scope="col") for name in columns))
    body = [tag("tr", tag("th", first, scope="row"), *(tag("td", value) for value in rest)) for first, *rest in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide")


def bar(parts: Mapping[str, float]) -> Element:
    """A bar of parts that are shares of its width, coloured by their names."""
    drawn = [
        tag("i", class_=name, style=f"width:{share:.2%}", title=f"{name} {share:.1%}")
        for name, share in parts.items()
        if share > 0
    ]
    return tag("div", *drawn, class_="bar")


def facts(values: Mapping[str, Any]) -> Element:
    """Names and values, which may be mappings or sequences of values themselves, or elements."""
    found = []
    for name, value in values.items():
        if isinstance(value, Element):
            inner = value
        elif isinstance(value, Mapping):
            inner = facts(value)
        else:
            is_many = isinstance(value, np.ndarray | list | tuple) and getattr(value, "ndim", 1) > 0
            inner = ", ".join(map(str, value)) if is_many else str(value)
        inner = "none" if isinstance(inner, str) and not inner else inner
        found += [tag("dt", str(name).replace("_", " ")), tag("dd", inner)]
    return tag("dl", *found, class_="facts")


def histogram(values: np.ndarray, name: str) -> Element:
    """A histogram of values in [0, 1]."""
    heights, edges = np.histogram(values, bins=_N_BINS, range=(0, 1))
    step, tallest = _WIDTH / _N_BINS, max(int(heights.max()), 1)
    bars = [
        tag(
            "rect",
            tag("title", f"{low:.2f} to {high:.2f}: {height:,} cells"),
            x=f"{nth * step + 1:.1f}",
            y=f"{_HEIGHT * (1 - height / tallest):.1f}",
            width=f"{step - 2:.1f}",
            height=f"{_HEIGHT * height / tallest:.1f}",
        )
        for nth, (height, low, high) in enumerate(zip(heights, edges[:-1], edges[1:], strict=True))
    ]
    ticks = [
        tag("text", f"{place:g}", x=f"{place * _WIDTH:.0f}", y=f"{_HEIGHT + 16}", text_anchor=anchor)
        for place, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    ]
    axis = tag("line", x1="0", x2=f"{_WIDTH}", y1=f"{_HEIGHT}", y2=f"{_HEIGHT}")
    what = f"{name} of {len(values):,} cells"
    drawn = tag("svg", *bars, axis, *ticks, viewBox=f"0 0 {_WIDTH} {_HEIGHT + 20}", role="img", aria_label=what)
    return tag("figure", drawn, tag("figcaption", f"{what}; the tallest bar: {tallest:,}."))


def picture(figure: Any, text: str) -> Element:
    """A figure of matplotlib, kept in the page, and what it shows."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    width = f"{_PIXELS_PER_INCH * figure.get_size_inches()[0]:.0f}"
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return tag(
        "figure", tag("div", tag("img", src=source, alt=text, width=width), class_="paper"), tag("figcaption", text)
    )
