"""The evaluation card: an evaluation of an energy or a classifier in numbers, pictures and an HTML page.

    card = report.evaluate(logits, params, dataset, folder=folder)
    print(report.write_card(folder, card))

Each question of the evaluation has its own file (`Question`: its computation, its rows of the summary, its
sections and pictures); `QUESTIONS` lists those of the card. docs/card.md explains each entry. matplotlib,
scikit-learn, Pillow, tabulate and markdown-it-py come with the ``experiments`` extra, and are imported when
they are used.
"""

from jaxebm.report.card import (
    CARD_FILES,
    DEFAULT_KERNEL,
    QUESTIONS,
    card_text,
    evaluate,
    summary_text,
    write_card,
)
from jaxebm.report.environment import describe_environment
from jaxebm.report.markdown import markdown_table
from jaxebm.report.out_of_distribution import find_outliers
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow, Table
from jaxebm.report.settings import ReportSettings
from jaxebm.report.subject import Evaluation, LevelPath, ModelUnderTest

__all__ = [
    "CARD_FILES",
    "DEFAULT_KERNEL",
    "QUESTIONS",
    "Card",
    "Evaluation",
    "LevelPath",
    "ModelUnderTest",
    "Picture",
    "Question",
    "ReportSettings",
    "Section",
    "SummaryRow",
    "Table",
    "card_text",
    "describe_environment",
    "evaluate",
    "find_outliers",
    "markdown_table",
    "summary_text",
    "write_card",
]
