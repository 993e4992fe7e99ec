"""A titled table as HTML; whatever its cells quote is text."""

import html
from collections.abc import Sequence


def section(
    title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], look: str = "", empty: str = "Nobody yet."
) -> str:
    """Return a table with a heading; `empty` stands where there is no line, `look` names further CSS classes."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if lines else f"<p>{empty}</p>"
    return f'<section class="desk-table {look}"><h2>{html.escape(title)}</h2>{table}</section>'
