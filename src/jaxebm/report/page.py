"""The card as one HTML file: its Markdown, rendered by markdown-it-py, with embedded pictures."""

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

__all__ = ["render_page"]


def render_page(text: str, folder: Path) -> str:
    """Returns a card's Markdown as an HTML page that needs no other file.

    Each second-level heading begins a section, and has an entry in the table of contents. The table below the
    title becomes a row of tiles. A code block whose language is followed by a title is collapsed under it.

    Args:
      text: The Markdown.
      folder: The folder of its pictures; missing ones are left out.
    """
    markdown = _renderer(folder)
    groups: list[list[Token]] = [[]]
    for token in _with_figures(markdown.parse(text)):
        if token.type == "heading_open" and token.tag == "h2":
            groups.append([])
        groups[-1].append(token)
    header, *sections = groups
    titles = [_heading(section) for section in sections]
    links = [("Summary", "top"), *((title, _anchor(title)) for title in titles)]
    return _resource("page.html").substitute(
        title=escape(_heading(header)),
        style=files("jaxebm.report").joinpath("report.css").read_text(encoding="utf-8"),
        links="\n".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for title, anchor in links),
        header=_render(markdown, header),
        sections="\n".join(
            f'<section id="{_anchor(title)}">\n{_render(markdown, section)}</section>'
            for title, section in zip(titles, sections, strict=True)
        ),
    )


def _resource(name: str) -> Template:
    return Template(files("jaxebm.report").joinpath(name).read_text(encoding="utf-8"))


def _renderer(folder: Path) -> "MarkdownIt":
    from markdown_it import MarkdownIt

    def image(renderer: Any, tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
        del renderer, options, env
        path = folder / str(tokens[index].attrs["src"])
        if not path.is_file():
            return ""
        caption = escape(tokens[index].content)
        source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
        return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>\n'

    def fence(renderer: Any, tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
        del renderer, options, env
        code = escape(tokens[index].content)
        _, _, title = tokens[index].info.partition(" ")
        if not title:
            return f'<pre class="command">{code}</pre>\n'
        return f"<details><summary>{escape(title)}</summary><pre>{code}</pre></details>\n"

    def table_open(renderer: Any, tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
        return f'<div class="wide">{renderer.renderToken(tokens, index, options, env)}'

    def table_close(renderer: Any, tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
        return f"{renderer.renderToken(tokens, index, options, env)}</div>\n"

    # Without raw HTML, because names of classes and data sets come from the user.
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    for name, rule in {
        "image": image,
        "fence": fence,
        "table_open": table_open,
        "table_close": table_close,
    }.items():
        markdown.add_render_rule(name, rule)
    return markdown


def _with_figures(tokens: list["Token"]) -> list["Token"]:
    """Moves single images out of their paragraphs, because HTML allows no figures in paragraphs."""
    for index, token in enumerate(tokens):
        children = token.children or []
        if token.type == "inline" and [child.type for child in children] == ["image"]:
            tokens[index - 1].hidden = tokens[index + 1].hidden = True
    return tokens


def _heading(tokens: Sequence["Token"]) -> str:
    """The text of the first heading, without markup."""
    inline = next(token for token in tokens if token.type == "inline")
    return "".join(child.content for child in inline.children or [])


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _render(markdown: "MarkdownIt", tokens: Sequence["Token"]) -> str:
    return markdown.renderer.render(list(tokens), markdown.options, {})
