"""HTML that cannot be broken by a name: whatever is not `Markup` is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from cahqp.reports.style import CSS

_VOID = ("br", "meta", "image", "use", "rect", "line", "polyline", "circle")

# Nothing from elsewhere and no script, even if a name should ever get past the escaping.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str | float) -> Markup:
    """Return an HTML or SVG element.

    Args:
        name: Its name.
        *children: Texts, escaped unless they are `Markup`.
        **attributes: Escaped; `class_` and `stroke_width` become `class` and `stroke-width`.
    """
    given = "".join(f' {_attribute(key)}="{html.escape(str(value))}"' for key, value in attributes.items())
    if name in _VOID and not children:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Markup:
    """Return the children one after the other, escaped unless they are `Markup`."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Markup:
    """Return a table whose first column names the rows and whose other columns are figures."""
    header = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    title = [element("caption", caption)] if caption else []
    whole = element("table", *title, element("thead", header), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex="0")


def section(title: str, *children: str) -> Markup:
    """Return a part of the page; nothing where there is nothing to show."""
    return element("section", element("h2", title), *children) if any(children) else Markup("")


def folded(summary: str, *children: str) -> Markup:
    """Return something to open on demand."""
    return element("details", element("summary", summary), *children)


def document(title: str, *children: str) -> Markup:
    """Return a whole page that needs nothing but itself."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>'),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(CSS)),
    )
    return Markup("<!doctype html>\n" + element("html", head, element("body", element("main", *children)), lang="en"))


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
