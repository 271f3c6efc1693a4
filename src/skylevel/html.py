"""Small tables as HTML, for what notebooks show of results and settings. Any text may be in them: it is escaped."""

from collections.abc import Sequence
from html import escape


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as HTML, its cells aligned to the left.

    Parameters
    ----------
    title : str
        A line above it.
    head : sequence of str
        Names of the columns.
    rows : sequence of sequence
        Cells, shown as `str` shows them.
    """
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return f"<p>{escape(title)}</p><table>{''.join(lines)}</table>"


def _row(tag: str, cells: Sequence[object]) -> str:
    shown = (f'<{tag} style="text-align: left">{escape(str(cell))}</{tag}>' for cell in cells)
    return f"<tr>{''.join(shown)}</tr>"
