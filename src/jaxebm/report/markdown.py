"""Markdown: tables, made by tabulate, and escaped text."""

import re
from collections.abc import Iterable, Sequence

from jaxebm import checks

__all__ = ["escape_markdown", "markdown_table"]

_SPECIAL = re.compile(r"([\\`*_\[\]<>#])")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table; a bar inside a cell is written as a character reference.

    Args:
      header: The names of the columns.
      rows: The cells, as text.

    Returns:
      The lines, beginning with the header.

    Example:
      >>> print(*markdown_table(["", "max p(y|x)"], [["mean", "0.93"]]), sep="\\n")
      |  | max p(y&#124;x) |
      |------|-------------------|
      | mean | 0.93 |
    """
    from tabulate import tabulate

    checks.sequence("header", header, str, "text")
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise TypeError(f"rows={rows!r}: rows must be several rows of text.")
    rows = list(rows)
    checks.sequence("rows", rows, (tuple, list), "rows")

    def escaped(cells: Sequence[str]) -> list[str]:
        return [cell.replace("|", "&#124;") for cell in cells]

    # Without alignment, which would pad every cell to the widest of its column. With numparse, tabulate would
    # parse cells such as 1.0000 as numbers and format them again.
    text = tabulate(
        [escaped(row) for row in rows],
        headers=escaped(header),
        tablefmt="github",
        stralign=None,
        disable_numparse=True,
    )
    return text.splitlines()


def escape_markdown(text: str) -> str:
    """Returns text with its Markdown markup escaped, for names given by users.

    Example:
      >>> escape_markdown("my_set *new*")
      'my\\\\_set \\\\*new\\\\*'
    """
    return _SPECIAL.sub(r"\\\1", text)
