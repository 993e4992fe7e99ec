"""A titled table as HTML, whose cells are text whatever they quote; and times as people say them."""

import html
from collections.abc import Sequence
from datetime import datetime


def section(
    title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], look: str = "", empty: str = "Nobody yet."
) -> str:
    """Return a table with a heading; `empty` stands where there is no line, `look` names further CSS classes."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if lines else f"<p>{empty}</p>"
    return f'<section class="desk-table {look}"><h2>{html.escape(title)}</h2>{table}</section>'


def ago(then: datetime, now: datetime) -> str:
    """Return how long ago `then` was, in the largest unit that fits; a date after a day."""
    minutes = int((now - then).total_seconds() // 60)
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes} min ago"
    if minutes < 24 * 60:
        return f"{minutes // 60} h ago"
    return f"{then.astimezone(now.tzinfo):%d %b %Y}"
