"""The markup of the report: one page of HTML, and the pieces that it is put together from.

Functions take plain text and escape it, but for parameters named after content or cells, which are markup already. The
markup is well-formed XML too, and asks for nothing from outside.
"""

import base64
import html
import mimetypes
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.terminal import printable

CSS = """
:root { color-scheme: light; --line: #d9dce1; --soft: #f4f6f8; --ink: #1c2127; --faint: #5b6470; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 0 .8rem 3rem; background: #fff; color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.2rem 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .3rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p { margin: .3rem 0 .8rem; max-width: 48rem; }
a { color: #00558a; }
nav { font-size: .9rem; } nav a { margin-right: .9rem; display: inline-block; padding: .2rem 0; }
.lead { font-size: 1.1rem; }
.how, figcaption, small { color: var(--faint); }
.warning { border-left: .3rem solid #D55E00; background: #fff4ec; padding: .5rem .8rem; margin: .6rem 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); gap: 1rem 2rem;
  align-items: start; }
.grid > * { min-width: 0; }
figure { margin: .4rem 0; }
figure > svg { display: block; width: 100%; max-width: 36rem; height: auto; }
figcaption { font-size: .9rem; }
.box { overflow: auto; max-height: 56rem; margin: .4rem 0 1rem; position: relative; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .2rem 0; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td { white-space: nowrap; overflow-wrap: normal; } thead th { overflow-wrap: normal; }
thead th { white-space: normal; min-width: 3rem; vertical-align: bottom; background: var(--soft);
  position: sticky; top: 0; z-index: 1; }
th[scope=row], thead th:first-child { text-align: left; min-width: 8rem; max-width: 15rem; white-space: normal;
  overflow-wrap: break-word; }
th[scope=row] { font-weight: 500; background: #fff; position: sticky; left: 0; }
td.text, td.path, td.command { text-align: left; }
td.path, td.command { white-space: normal; min-width: 9rem; overflow-wrap: anywhere; } td.command { min-width: 15rem; }
td.empty { color: var(--faint); } td.best { font-weight: 700; }
td small { display: block; font-weight: 400; } td small.note { white-space: normal; min-width: 7rem; color: #a34400; }
tr.shown th, tr.shown td { font-weight: 700; }
.track, .bar { display: block; height: .45rem; }
.track { width: 5.5rem; margin: .15rem 0 0 auto; background: #e8ebef; } .bar { background: #0072B2; }
svg.range { width: 9rem; height: 1rem; vertical-align: middle; fill: #0072B2; stroke: #0072B2; }
svg.range .zero { stroke: var(--ink); } svg.range .zero + path { stroke-width: 2; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; margin: .4rem 0; padding: 0;
  font-size: .9rem; }
svg.key { width: 1.9rem; height: 1rem; vertical-align: -.15rem; margin-right: .3rem; }
.strip { display: flex; gap: .8rem; overflow-x: auto; padding-bottom: .5rem; margin-bottom: .8rem; }
.strip figure { flex: 0 0 auto; width: min(17rem, 75vw); }
.strip.large figure { width: min(30rem, 88vw); }
.strip img { display: block; width: 100%; height: auto; }
details { margin: .5rem 0; } summary { cursor: pointer; padding: .2rem 0; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .15rem 1rem; font-size: .9rem; margin: .4rem 0; }
dt { color: var(--faint); overflow-wrap: normal; } dd { margin: 0; min-width: 0; }
@media (min-width: 64rem) { .beside { grid-template-columns: 5fr 7fr; gap: 1.2rem; } }
@media (max-width: 40rem) {
  .wide::before { content: "scroll sideways for more"; position: sticky; left: 0; color: var(--faint); }
  table { font-size: .8rem; } th, td { padding: .3rem; }
  th[scope=row], thead th:first-child { min-width: 7rem; max-width: 10rem; }
}
"""


class Section(NamedTuple):
    """A part of the page; without content it is left out."""

    name: str  # for links to it
    title: str
    how: str  # to read it, in a sentence or two
    content: str


def escape(text: str) -> str:
    """Return text as markup; control characters, which neither HTML nor XML may hold, are written as `\\x1b`."""
    return html.escape(printable(text))


def name_of(text: str) -> str:
    """A name such as ResNet50Backbone_B, which may be broken where a word in it ends, but for one that is short."""
    breaks = r"(?<=_)(?=\w\w)|(?<=\w{5})(?:(?<=[a-z0-9])|(?<=[a-z][A-Z]))(?=[A-Z][a-z]{3})"
    return re.sub(breaks, "<wbr/>", escape(text))


def page(title: str, lead: str, content: str, sections: Sequence[Section]) -> str:
    """The whole file: heading, `lead` as its first paragraph, `content`, then the sections with links to them."""
    sections = [section for section in sections if section.content]
    links = " ".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections)
    body = "".join(
        f'<section id="{section.name}">\n<h2>{escape(section.title)}</h2>\n<p class="how">{escape(section.how)}</p>\n'
        f"{section.content}</section>\n"
        for section in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n<link rel="icon" href="data:,"/>\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<header>\n<h1>{escape(title)}</h1>\n"
        f'<p class="lead">{escape(lead)}</p>\n{content}<nav aria-label="Sections">{links}</nav>\n</header>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def warning(text: str) -> str:
    return f'<p class="warning" role="note"><strong>Warning:</strong> {escape(text)}</p>\n'


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>\n"


def note(text: str) -> str:
    return f'<p class="how">{escape(text)}</p>\n'


def facts(pairs: dict[str, str]) -> str:
    """Names and what they stand for."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items())
    return f"<dl>{items}</dl>\n"


def grid(content: str) -> str:
    """Columns beside each other where there is room for several."""
    return f'<div class="grid">{content}</div>\n'


def beside(plot_content: str, table_content: str) -> str:
    """A plot and, where there is room, its numbers to the right of it."""
    return f'<div class="grid beside">{plot_content}<div>{table_content}</div></div>\n'


def box(content: str, label: str, kind: str = "box") -> str:
    """What may be wider or taller than its place: it scrolls by itself, the page does not. kind: CSS classes."""
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>\n'


def details(summary: str, content: str, is_open: bool = False) -> str:
    """Folded away under its summary until someone wants it."""
    state = ' open=""' if is_open else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{content}</details>\n"


def figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>\n"


def legend(content: Sequence[tuple[str, str]]) -> str:
    """Drawn keys with the names they stand for."""
    return f'<ul class="legend">{"".join(f"<li>{drawing}{escape(name)}</li>" for drawing, name in content)}</ul>\n'


def strip(content: str, label: str, kind: str = "strip") -> str:
    """Figures in a row that scrolls sideways. kind: CSS classes."""
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>\n'


def picture(path: Path, description: str) -> str:
    """A JPEG or PNG file as part of the page."""
    kind, _ = mimetypes.guess_type(path)
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img src="data:{kind};base64,{data}" alt="{escape(description)}"/>'


def table(
    label: str,
    header: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    bold: Collection[int] = (),
) -> str:
    """A table in a box. rows: name of the row and its cells; those whose number is in `bold` are emphasised."""
    head = "".join(f'<th scope="col">{name_of(name)}</th>' for name in header)
    lines = "".join(
        f'<tr class="{("plain", "shown")[number in bold]}"><th scope="row">{name_of(name)}</th>{"".join(cells)}</tr>\n'
        for number, (name, cells) in enumerate(rows)
    )
    kind = "box wide" if len(header) > 3 else "box"
    return box(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table>", label, kind)


def cell(text: str, content: str = "", kind: str = "number") -> str:
    """One cell of a table: text, and markup below it. kind: a CSS class."""
    return f'<td class="{kind}">{escape(text)}{content}</td>'


def small(text: str, kind: str = "fact") -> str:
    """A line in small print. kind: a CSS class."""
    return f'<small class="{kind}">{escape(text)}</small>'


def bar(share: float) -> str:
    """A bar that fills `share` (0 to 1) of its track."""
    return f'<span class="track"><span class="bar" style="width:{100 * share:.1f}%"></span></span>'


def span(estimate: float, low: float, high: float, reach: float) -> str:
    """A dot, its interval and zero as a small drawing from -reach to reach; what is nan is left out."""
    if estimate != estimate:
        return ""
    line = f'<path d="M{100 * low / reach:.1f} 0H{100 * high / reach:.1f}"/>' if low == low else ""
    return (
        f'<svg class="range" viewBox="-104 -8 208 16" aria-hidden="true"><path class="zero" d="M0 -8V8"/>{line}'
        f'<circle cx="{100 * estimate / reach:.1f}" r="4"/></svg>'
    )
