"""Elements of a page, escaped as they are made, and the templates that they go into."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["element", "render"]


def element(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element: text among the children is escaped, so are the values of attributes.

    Attributes that are None are left out; an underscore in a name stands for a hyphen, one at its end for
    nothing (``class_``).

    Examples
    --------
    >>> str(element("i", "a < b", class_="x", aria_hidden=True))
    '<i class="x" aria-hidden="true">a &lt; b</i>'
    """
    from markupsafe import Markup, escape

    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape("true" if value is True else value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{said}>{Markup().join(children)}</{name}>")


def render(template: str, **context: Any) -> str:
    """Return a template of this folder filled in; every text is escaped unless it is markup already."""
    return _templates().get_template(template).render(**context)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from rewriter.report.text import figure, milliseconds, share, times

    made = Environment(
        loader=PackageLoader("rewriter.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(figure=figure, milliseconds=milliseconds, share=share, times=times)
    return made
