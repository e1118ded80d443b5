"""The report: one page that needs nothing else (index.html), and the same as results.md.

What it says is decided elsewhere: here claims, figures and tables become text.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from data.problems import InputError
from figures import Drawn, Grid, panel_svg
from runs.files import read_text_if_any, write_text


@dataclass(frozen=True)
class Row:
    """A claim of the paper, and what came of it here. ours: each a line of numbers."""

    claim: str
    figure: str
    numbers: str
    said: str
    ours: list[str]
    why: list[str]


def figure_name(number: str) -> str:
    """Fig. 3, or Prompts, which in the paper has no number."""
    return f"Fig. {number}" if number[0].isdigit() else number.capitalize()


def anchor_of(name: str) -> str:
    return "-".join(re.findall(r"\w+", name.lower()))


@dataclass(frozen=True)
class Section:
    """A figure: its panels, and what its caption says of them. notes: what is missing or wrong.

    number: "" of what is no figure of the paper, whose title begins with its name and a colon.
    tables: more of them, the header of each first. method: how its numbers came about.
    """

    number: str
    title: str
    caption: str
    panels: list[Drawn | Grid]
    notes: list[str]
    tables: list[list[list[str]]] = field(default_factory=list)
    method: list[str] = field(default_factory=list)

    @property
    def heading(self) -> str:
        return f"{figure_name(self.number)}: {self.title}" if self.number else self.title

    @property
    def name(self) -> str:
        """What a link to it says: "Fig. 3", "Matrix"."""
        if self.number:
            return figure_name(self.number)
        return self.title.split(":")[0].removeprefix("The ").capitalize()

    @property
    def anchor(self) -> str:
        return anchor_of(self.name)


@dataclass
class Report:
    """Everything that is told.

    judged: how claims are. drawn: what holds of all figures. facts: about what was run, where and
    when.
    """

    title: str
    intro: str
    claims: list[Row]
    judged: list[str]
    drawn: str
    sections: list[Section]
    texts: dict[str, str] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)


METHOD = "how this is measured"  # what opens a section's method
MARK = "made by reproduce.py"  # stands in everything that is written here


# ------------------------------------------------------------------------------------- the page

STYLE = """
:root { color-scheme: light dark; --faint: #8884; --good: light-dark(#00694d, #00c08b);
  --part: light-dark(#805500, #e69f00); --bad: light-dark(#a84300, #ff7f2a) }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
nav a { margin-right: .6em; white-space: nowrap }
.panels { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 23rem)) }
.panels svg { width: 100%; height: auto }
.panels .whole { grid-column: 1 / -1; overflow-x: auto } .panels .whole svg { min-width: 48rem }
svg text { font-family: system-ui, sans-serif !important }
table { border-collapse: collapse; font-size: .9rem } .wide { overflow-x: auto }
td, th { border-bottom: 1px solid var(--faint); padding: .35em .6em; text-align: left;
  vertical-align: top }
.numbers td, .numbers th { text-align: right; white-space: nowrap }
.numbers td:first-child, .numbers th:first-child { text-align: left }
.said { font-weight: 600; white-space: nowrap } .holds { color: var(--good) }
.weaker { color: var(--part) } .not { color: var(--bad) }
pre { background: var(--faint); overflow-x: auto; padding: .8em }
small, .caption { opacity: .8 }
@media (max-width: 45rem) {
  .claims thead { display: none } .claims td { border: 0; display: block; padding: .1em 0 }
  .claims tr { border-bottom: 1px solid var(--faint); display: block; padding: .6em 0 }
}
@media print {
  details::details-content { block-size: auto; content-visibility: visible }
  nav { display: none } h2 { break-after: avoid } .panels svg { break-inside: avoid }
}
"""

# what is said of a claim (study/claims.py), in the order in which it is told, and its colour
VERDICTS = {"holds": "holds", "holds weaker": "weaker", "not shown": "", "does not hold": "not"}
VERDICTS |= {"does not hold (one run)": "not", "not measured": ""}
# and what is added where it is of parts of the claim
PARTLY = (" where tested", " so far")


def page(report: Report) -> str:
    """The whole page."""
    title = escape(report.title)
    links = []
    for section in report.sections:
        links.append(f'<a href="#{section.anchor}">{escape(section.name)}</a>')
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="generator" content="{MARK}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{escape(report.intro)}</p>",
    ]
    if report.claims:
        links.insert(0, '<a href="#claims">Claims</a>')
    parts.append(f"<nav>{' '.join(links)}</nav>")
    if report.claims:
        parts.append('<h2 id="claims">The claims of the paper</h2>')
        parts.append(f"<p>{escape(tally(report.claims))}</p>")
        parts.append(claims_html(by_verdict(report.claims)))
        parts.append(points_html("how claims are judged", report.judged))
    if report.drawn:
        parts.append(f"<p>{escape(report.drawn)}</p>")
    parts += [section_html(section) for section in report.sections]
    for name, text in report.texts.items():
        parts.append(f"<h2>{escape(name)}</h2><pre>{escape(text)}</pre>")
    parts.append("<h2>What was run</h2>")
    parts += [f"<p><small>{escape(fact)}</small></p>" for fact in report.facts]
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def tally(claims: list[Row]) -> str:
    """How many of them hold, and how many do not."""
    counts = Counter(whole_verdict(row.said) for row in claims)
    told = [f"{said} {counts[said]}" for said in VERDICTS if counts[said]]
    parts = []
    for of_parts in PARTLY:
        count = sum(row.said.endswith(of_parts) for row in claims)
        parts += [f"{count}{of_parts}"] * bool(count)
    of_these = f" Of these {', '.join(parts)}." if parts else ""
    return f"Of {len(claims)} claims: {', '.join(told)}.{of_these}"


def by_verdict(claims: list[Row]) -> list[Row]:
    """What holds first, so that what agrees is seen at once."""
    order = list(VERDICTS)
    return sorted(claims, key=lambda row: order.index(whole_verdict(row.said)))


def whole_verdict(said: str) -> str:
    """Without whether it is of parts of the claim."""
    for of_parts in PARTLY:
        said = said.removesuffix(of_parts)
    return said


def claims_html(claims: list[Row]) -> str:
    rows = []
    for row in claims:
        ours = "<br>".join(escape(line) for line in row.ours)
        why = "<br>".join(escape(line) for line in row.why)
        several = f"{len(row.ours)} number{'s' * (len(row.ours) > 1)}"
        details = f"<details><summary>{several}</summary>{ours}</details>"
        colour = VERDICTS[whole_verdict(row.said)]
        name = figure_name(row.figure)
        rows.append(
            f'<tr><td>{escape(row.claim)} <a href="#{anchor_of(name)}">{name}</a></td>'
            f"<td>{escape(row.numbers)}</td>"
            f'<td class="said {colour}">{escape(row.said)}</td>'
            f"<td>{details if row.ours else ''}{why}</td></tr>"
        )
    head = "<th>claim</th><th>the paper's numbers</th><th>here</th><th>ours, and why</th>"
    return f'<table class="claims"><thead><tr>{head}</tr></thead>{"".join(rows)}</table>'


def section_html(section: Section) -> str:
    parts = [
        f'<h2 id="{section.anchor}">{escape(section.heading)}</h2>',
        f'<p class="caption">{escape(section.caption)}</p>',
    ]
    if section.method:
        parts.append(points_html(METHOD, section.method))
    parts += [f"<p>{escape(note)}</p>" for note in section.notes]
    svgs = []
    for panel in section.panels:
        kind = ' class="whole"' if isinstance(panel, Grid) else ""
        svgs.append(f"<div{kind}>{panel_svg(panel, alone=False)}</div>")
    tables = [rows_of(panel) for panel in section.panels] + section.tables
    numbers = "".join(table_html(rows) for rows in tables)
    if svgs:
        parts.append(f'<div class="panels">{"".join(svgs)}</div>')
        numbers = f"<details><summary>numbers</summary>{numbers}</details>"
    parts.append(numbers)
    return "\n".join(parts)


def points_html(summary: str, points: list[str]) -> str:
    """What unfolds where its summary is clicked."""
    items = "".join(f"<li>{escape(point)}</li>" for point in points)
    return f"<details><summary>{summary}</summary><ul>{items}</ul></details>"


def rows_of(panel: Drawn | Grid) -> list[list[str]]:
    """A panel as a table, its header first; in per cent with 95 % intervals."""
    if isinstance(panel, Grid):
        return rows_of_grid(panel)
    rows = []
    if panel.bars:
        rows.append([panel.title, "here", "paper"])
        for label, value in panel.bars.items():
            theirs = panel.their_bars.get(label)
            rows.append([label, str(value), "" if theirs is None else f"{100 * theirs:.1f}"])
    else:
        columns = sorted({x for points in panel.curves.values() for x in points})
        columns = thinned(columns)
        rows.append([panel.title, *[f"{x:,}" for x in columns]])
        for label, points in panel.curves.items():
            rows.append([label, *[str(points.get(x, "")) for x in columns]])
        for label, points in panel.theirs.items():
            near = [f"{100 * points[x]:.1f}" if x in points else "" for x in columns]
            name = f"paper: {label}"
            if panel.x == "samples" and points and max(points) > columns[-1]:
                name += f" ({100 * points[max(points)]:.1f} after {max(points):,})"
            elif not any(near):
                continue  # the picture alone shows them
            rows.append([name, *near])
    for label, share in panel.lines.items():
        rows.append([label, f"{100 * share:.1f}", *[""] * (len(rows[0]) - 2)])
    return rows


def rows_of_grid(grid: Grid) -> list[list[str]]:
    rows = [[grid.title, *grid.columns]]
    for i, label in enumerate(grid.rows):
        rows.append([label, *[grid.texts.get((i, j), "") for j in range(len(grid.columns))]])
    return rows


def thinned(columns: list[int]) -> list[int]:
    """At most a dozen of them, the last among them."""
    step = 1 + len(columns) // 12
    return columns[::-step][::-1]


def table_html(rows: list[list[str]]) -> str:
    head, *body = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = []
    for row in body:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table class="numbers"><tr>{head}</tr>{"".join(lines)}</table></div>'


# ----------------------------------------------------------------------------------- the same text


def markdown(report: Report) -> str:
    """results.md; its pictures are in figures/ beside it."""
    parts = [f"# {report.title}", f"<!-- {MARK} -->", report.intro]
    links = [f"[{section.name}](#{section.anchor})" for section in report.sections]
    parts.append(" · ".join(links))
    if report.claims:
        parts += ["## The claims of the paper", tally(report.claims)]
        parts.append(claims_markdown(by_verdict(report.claims)))
        parts.append(points_markdown("how claims are judged", report.judged))
    if report.drawn:
        parts.append(report.drawn)

    for section in report.sections:
        parts.append(f'<a id="{section.anchor}"></a>\n\n## {section.heading}')
        parts.append(section.caption)
        if section.method:
            parts.append(points_markdown(METHOD, section.method))
        parts += section.notes
        images = []
        for place, panel in enumerate(section.panels):
            width = "100%" if isinstance(panel, Grid) else "32%"
            source = picture(section, place)
            images.append(f'<img src="{source}" alt="{panel.title}" width="{width}">')
        if images:
            parts.append("\n".join(images))
        parts += [table_markdown(rows_of(panel)) for panel in section.panels]
        parts += [table_markdown(rows) for rows in section.tables]
    for name, text in report.texts.items():
        parts.append(f"## {name}\n\n```\n{text}\n```")
    parts.append("## What was run")
    parts += report.facts
    return "\n\n".join(parts) + "\n"


def claims_markdown(claims: list[Row]) -> str:
    rows = ["| claim | the paper's numbers | here | ours, and why |", "|---|---|---|---|"]
    for row in claims:
        ours = "<br>".join([*row.ours, *row.why])
        name = figure_name(row.figure)
        claim = f"{row.claim} ([{name}](#{anchor_of(name)}))"
        cells = [cell.replace("|", "\\|") for cell in (claim, row.numbers, f"**{row.said}**", ours)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def points_markdown(summary: str, points: list[str]) -> str:
    items = "\n".join(f"- {point}" for point in points)
    return f"<details><summary>{summary}</summary>\n\n{items}\n\n</details>"


def picture(section: Section, place: int) -> str:
    return f"figures/{section.anchor}-{place + 1}.svg"


def table_markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in body]
    return "\n".join(lines)


def write_report(report: Report, folder: Path) -> None:
    """index.html, results.md and figures/. Raises InputError where another's file is in the way."""
    files = {"index.html": page(report), "results.md": markdown(report)}
    for section in report.sections:
        for place, panel in enumerate(section.panels):
            text = panel_svg(panel, alone=True)
            files[picture(section, place)] = f"<!-- {MARK} -->\n{text}"
    for name in files:
        check_own(folder / name)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)


def check_own(file: Path) -> None:
    """Raises InputError for a file that was not written here: it is never replaced."""
    text = read_text_if_any(file)
    if text is not None and MARK not in text[:2000]:
        raise InputError(
            f"{file} was not written by this program, so it is not replaced: "
            "move it away, or choose another --out"
        )
