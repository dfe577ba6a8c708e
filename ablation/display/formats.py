"""Tables of text, as Markdown or LaTeX (booktabs)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ablation.display.sentences import NEGATIVE, with_minus
from engine.terminal import printable


@dataclass
class Table:
    """A table of text. bold: (row, column) of bold cells, from 0. notes: sentences below the table."""

    title: str
    header: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def lines(self, text: Callable[[str], str], bold: str) -> list[list[str]]:
        """Return the rows, with `text` applied to each cell and the format string `bold` applied to bold cells."""
        return [
            [bold.format(text(value)) if (i, j) in self.bold else text(value) for j, value in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]


def to_markdown(table: Table) -> str:
    """Return a table as GitHub Markdown, with its title above and its notes below."""

    def text(value: str) -> str:
        return printable(with_minus(value)).replace("|", "\\|")

    rows = [[printable(name).replace("|", "\\|") for name in table.header], ["---"] * len(table.header)]
    rows += table.lines(text, "**{}**")
    lines = [f"### {table.title}", "", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += [""] * bool(table.notes) + [f"- {printable(note)}" for note in table.notes]
    return "\n".join(lines) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
    "[": "{[}",  # after \\ at the end of a row, [ would start an option
}  # fmt: skip
PREAMBLE = r"\usepackage{booktabs,graphicx}"
MAX_COLUMNS = 7  # a wider table is scaled down to the width of the text


def to_latex(table: Table) -> str:
    """Return a table as a LaTeX table environment for the packages of PREAMBLE."""

    def text(value: str) -> str:
        escaped = "".join(LATEX.get(character, character) for character in printable(value))
        return NEGATIVE.sub("$-$", escaped).replace(" x ", r" $\times$ ")

    header, *rows = [
        " & ".join(row) + r" \\" for row in [map(text, table.header), *table.lines(text, r"\textbf{{{}}}")]
    ]
    caption = ". ".join([table.title, *(note.removesuffix(".") for note in table.notes)])
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{text(caption)}}}"]
    tabular = [rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule", header, r"\midrule", *rows]
    tabular += [r"\bottomrule", r"\end{tabular}"]
    if len(table.header) > MAX_COLUMNS:
        tabular = [r"\resizebox{\textwidth}{!}{%", *tabular, "}"]
    lines += [*tabular, r"\end{table}"]
    return "\n".join(lines) + "\n"
