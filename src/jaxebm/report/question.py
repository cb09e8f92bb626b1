"""What a question of the evaluation is made of: its judge, its summary, its sections and their parts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from jaxebm.report.subject import Evaluation

__all__ = ["Card", "Picture", "Question", "Section", "SummaryRow", "Table", "as_text", "table_row"]

Card: TypeAlias = Mapping[str, Any]
"""The entries of docs/card.md: names, numbers, lists and mappings, as JSON holds them."""
SummaryRow: TypeAlias = tuple[str, str, str]
"""A name, its value, and what stands beside it for comparison."""


class Table(NamedTuple):
    """Cells as text, the first column being names."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG beside the card, without its ending, and what it shows."""

    name: str
    caption: str


class Section(NamedTuple):
    """What the card says on one question, in Markdown.

    Attributes:
      title: The question's name.
      meaning: How to read the answer.
      notes: What this card says beside numbers, a paragraph each.
      tables: The numbers.
      pictures: The pictures.
    """

    title: str
    meaning: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


class Question(NamedTuple):
    """One question that an evaluation answers; `jaxebm.report.QUESTIONS` lists those of the card.

    Attributes:
      name: What the question is called.
      judge: ``(evaluation) -> entries`` of the card. It writes its pictures through `Evaluation.draw`.
      summary: ``(card) -> rows``, the few figures that say most; empty where the card has no answer.
      sections: ``(card) -> sections``; empty where the card has no answer.
      files: The names of all files and folders that the judge may write.
    """

    name: str
    judge: Callable[[Evaluation], Mapping[str, Any]]
    summary: Callable[[Card], Sequence[SummaryRow]]
    sections: Callable[[Card], Sequence[Section]]
    files: tuple[str, ...] = ()


def as_text(value: float | str | None) -> str:
    """Returns a cell of a table: four significant digits of a number, a dash for None.

    Example:
      >>> as_text(0.123456), as_text(None), as_text("10")
      ('0.1235', '-', '10')
    """
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


def table_row(name: str, *values: float | str | None) -> list[str]:
    """Returns the cells of one row of a `Table`.

    Example:
      >>> table_row("accuracy", 0.9666666, None)
      ['accuracy', '0.9667', '-']
    """
    return [name, *(as_text(value) for value in values)]
