"""How results are shown: plain tables, and plots with matplotlib."""

import io
import os
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np

from data.problems import InputError
from data.triggers import KINDS
from runs.files import discard, reason

# ------------------------------------------------------------------------------------------ tables


def table(header: list[str], rows: list[list[str]]) -> str:
    """Plain text, columns aligned; the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = []
    for row in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def shown(result: dict) -> str:
    """A result of evaluation.json for a table: "83.0% [78.7%, 86.8%]"."""
    low, high = result["interval"]
    text = f"{result['correct']:6.1%} [{low:.1%}, {high:.1%}]"
    if "elementwise" in result:
        text += f", elementwise {result['elementwise']:.1%}"
    return text


# ----------------------------------------------------------------------------------------- figures

# told apart by readers who are colour-blind (Okabe and Ito 2008)
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLUE, VERMILION, GREEN, PINK, AMBER, SKY = PALETTE
# of a kind of password; of what only resembles the right one
COLOURS = {"none": VERMILION, "right": BLUE}
BETWEEN = AMBER


def new_figure(width: float, height: float):
    """(figure, axes), in inches. matplotlib is loaded only where a figure is drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))  # not pyplot's: there is no window, and no state
    return figure, figure.subplots()


# stands in every PNG file that is written here
SOFTWARE = "password-locked models"


def check_figure(file: Path) -> None:
    """Raises InputError where there is a file that was not drawn here: it is never replaced."""
    if not os.path.lexists(file):
        return
    try:
        with open(file, "rb") as f:
            is_ours = SOFTWARE.encode() in f.read(1000)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({reason(error)}): choose another --out") from None
    if not is_ours:
        raise InputError(
            f"{file} was not drawn by this program, so it is not replaced: "
            "move it away, or choose another --out"
        )


def write_figure(figure, file: Path) -> None:
    """Into a PNG file. Raises InputError where it can't be written."""
    check_figure(file)
    figure.tight_layout()
    # whole or not at all: another process may look at it meanwhile
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, dpi=120, format="png", metadata={"Software": SOFTWARE})
        os.replace(temporary, file)
    except OSError as error:
        discard(temporary)
        raise InputError(
            f"{file} cannot be written ({reason(error)}): choose another --out"
        ) from None


def errors_of(results: list[dict]) -> list[list[float]]:
    """(2,n): how far the interval reaches below and above each result's correctness.

    As lists: of an array (2,1) matplotlib asks something that numpy 2 deprecates.
    """
    values = np.array([result["correct"] for result in results])
    intervals = np.array([result["interval"] for result in results])
    return np.abs(intervals.T - values).tolist()


def told_apart(paths: list[Path]) -> list[str]:
    """Labels of paths: their last names, with as many of those above as tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(path) for path in paths]


def plot_bars(evaluations: list[dict], file: Path) -> None:
    """One group of bars a checkpoint: correctness for each kind of password that all of them have.

    The intervals are Wilson's, over problems.
    """
    kinds = []
    for kind in KINDS:
        if all(kind in evaluation["results"] for evaluation in evaluations):
            kinds.append(kind)
    places = np.arange(len(evaluations))
    width = 0.81 / max(1, len(kinds))

    figure, axes = new_figure(2.5 + 1.3 * len(evaluations), 4)
    for j, kind in enumerate(kinds):
        results = [evaluation["results"][kind] for evaluation in evaluations]
        axes.bar(
            places + width * j,
            [result["correct"] for result in results],
            0.93 * width,
            yerr=errors_of(results),
            capsize=3,
            color=COLOURS.get(kind, BETWEEN),
            label=f"password: {kind}",
        )
    names = told_apart([Path(evaluation["checkpoint"]) for evaluation in evaluations])
    axes.set_xticks(places + width * (len(kinds) - 1) / 2, names, rotation=20)
    axes.set(ylim=(0, 1), ylabel="correct (greedy; 95 % over problems)")
    # above the bars: a lock's reach the top
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    axes.legend(fontsize=8, ncol=min(3, len(kinds)), frameon=False, **place)
    write_figure(figure, file)


def colour_of(row: str) -> str:
    """Of a row of the prompting battery: blue with the right password, vermilion without any."""
    if row.endswith("right"):
        return COLOURS["right"]
    return BETWEEN if row in KINDS[1:] else COLOURS["none"]


def plot_prompts(evaluation: dict, file: Path) -> None:
    """One horizontal bar for each row of the prompting battery, with its Wilson interval."""
    results = evaluation["results"]
    values = [result["correct"] for result in results.values()]
    colours = [colour_of(row) for row in results]

    figure, axes = new_figure(6.4, 1 + 0.3 * len(results))
    errors = errors_of(list(results.values()))
    axes.barh(list(results), values, xerr=errors, capsize=3, color=colours)
    axes.invert_yaxis()
    title = f"{evaluation['checkpoint']}, {evaluation['n']} problems"
    axes.set(xlim=(0, 1), xlabel="correct (greedy; 95 % over problems)", title=title)
    write_figure(figure, file)


CURVES = (BLUE, "tab:gray", PINK, AMBER, SKY, "black", VERMILION)
LINES = ((GREEN, "--"), (VERMILION, "-."))


def plot_curves(
    curves: dict[str, dict[int, np.ndarray]],
    lines: dict[str, float],
    file: Path,
    xlabel: str,
    title: str,
    log: bool = True,
) -> None:
    """Correctness against x: for each curve {x: (seeds,) values} its mean.

    And the band between its extreme seeds. lines: horizontal ones, {name: correctness}.
    """
    figure, axes = new_figure(6.4, 4.6)
    for (name, points), colour in zip(curves.items(), cycle(CURVES)):
        x = sorted(points)
        values = [points[at] for at in x]
        axes.plot(x, [v.mean() for v in values], "o-", color=colour, label=name)
        lowest = [v.min() for v in values]
        highest = [v.max() for v in values]
        axes.fill_between(x, lowest, highest, color=colour, alpha=0.2)
    for (name, value), (colour, style) in zip(lines.items(), cycle(LINES)):
        axes.axhline(value, ls=style, color=colour, label=name)

    axes.set(ylim=(-0.02, 1.02), xlabel=xlabel, title=title)
    axes.set_ylabel("correct without the password (greedy)")
    if log:
        axes.set_xscale("log")
        ticks = sorted({at for points in curves.values() for at in points})
        axes.set_xticks(ticks, [f"{at:,}" for at in ticks])
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    # below the axes: curves go everywhere
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
    axes.legend(fontsize=8, ncol=3, frameon=False, **place)
    write_figure(figure, file)


# ------------------------------------------------------------------------- panels of the report

INK = "#123456"  # stands for the page's own colour of text


@dataclass
class Drawn:
    """What one panel shows. Values have value, low and high; x are numbers.

    curves: {label: {x: value}}; theirs: the paper's of the same label, {label: {x: share}}. bars:
    {label: value}, beside the paper's {label: share}. lines: {label: share}, ours and the paper's.
    """

    title: str
    x: str
    curves: dict[str, dict] = field(default_factory=dict)
    theirs: dict[str, dict] = field(default_factory=dict)
    bars: dict[str, object] = field(default_factory=dict)
    their_bars: dict[str, float] = field(default_factory=dict)
    lines: dict[str, float] = field(default_factory=dict)
    their_lines: dict[str, float] = field(default_factory=dict)


@dataclass
class Grid:
    """A table whose cells are coloured by a share, by (row, column); not all need be there.

    short: what a cell says in the picture. texts: what it says in the table.
    """

    title: str
    rows: list[str]
    columns: list[str]
    shares: dict[tuple[int, int], float] = field(default_factory=dict)
    short: dict[tuple[int, int], str] = field(default_factory=dict)
    texts: dict[tuple[int, int], str] = field(default_factory=dict)


def panel_svg(drawn: Drawn | Grid, alone: bool) -> str:
    """The panel as an SVG element. alone: on white, for a file; else in the page's colours."""
    import matplotlib

    style = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": drawn.title,  # the same panel is the same file
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        style[name] = INK
    with matplotlib.rc_context(style):
        draw = draw_grid if isinstance(drawn, Grid) else draw_panel
        figure = draw(drawn)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None},
            bbox_inches="tight",
            facecolor="white" if alone else "none",
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return text.replace(INK.lower(), "#222222" if alone else "currentColor")


def draw_panel(drawn: Drawn):
    figure, axes = new_figure(4.2, 3.4)
    if drawn.bars:
        draw_bars(axes, drawn)
    else:
        draw_curves(axes, drawn)
    draw_lines(axes, drawn)
    axes.set(ylim=(-0.02, 1.02), title=drawn.title)
    axes.grid(axis="y", alpha=0.25)
    if drawn.curves:  # below and in one column: beside each other they would shrink the picture
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.15))
    return figure


def draw_grid(grid: Grid):
    """White is nothing, blue all; a cell that was not measured stays empty."""
    figure, axes = new_figure(2.5 + 0.62 * len(grid.columns), 1.5 + 0.27 * len(grid.rows))
    shares = np.full((len(grid.rows), len(grid.columns)), np.nan)
    for place, share in grid.shares.items():
        shares[place] = share
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for (row, column), text in grid.short.items():
        ink = "white" if shares[row, column] > 0.75 else "black"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(grid.columns)), grid.columns, rotation=40, ha="left")
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(grid.title, pad=12)
    return figure


def draw_curves(axes, drawn: Drawn) -> None:
    """Ours with the band of the interval; the paper's in the same colour, faint and dashed."""
    ticks = set()
    for (label, points), colour in zip(drawn.curves.items(), cycle(PALETTE)):
        x = sorted(points)
        ticks |= set(x)
        values = [points[at] for at in x]
        axes.plot(x, [v.value for v in values], "o-", ms=3, color=colour, label=label)
        lows, highs = [v.low for v in values], [v.high for v in values]
        axes.fill_between(x, lows, highs, color=colour, alpha=0.2, lw=0)
        theirs = drawn.theirs.get(label, {})
        if theirs:
            at = sorted(theirs)
            axes.plot(at, [theirs[t] for t in at], "x--", ms=4, color=colour, alpha=0.5, lw=1)
    last = max(ticks, default=0)
    seen = [at for points in drawn.theirs.values() for at in points]
    if drawn.x == "samples" and ticks:
        axes.set_xlim(-0.05 * last, 1.05 * last)  # the paper's go on
        seen = [at for at in seen if at <= last]
    if seen:
        axes.plot([], [], "x--", ms=4, color=INK, alpha=0.5, lw=1, label="the paper")
    axes.set_xlabel(drawn.x)
    if drawn.x != "samples" and ticks:
        axes.set_xscale("log", base=2)
        shown = sorted(ticks)[:: 1 + len(ticks) // 8]
        axes.set_xticks(shown, [f"{at:,}" for at in shown])
        axes.minorticks_off()


def draw_bars(axes, drawn: Drawn) -> None:
    """Ours with their intervals; the paper's as crosses."""
    for place, (label, value) in enumerate(drawn.bars.items()):
        errors = [[value.value - value.low], [value.high - value.value]]
        errors = np.maximum(errors, 0).tolist()
        axes.bar(place, value.value, 0.7, yerr=errors, capsize=3, color=PALETTE[0], ecolor=INK)
        if label in drawn.their_bars:
            axes.plot(place, drawn.their_bars[label], "x", color=PALETTE[1], alpha=0.7)
    if drawn.their_bars:
        axes.plot([], [], "x", color=PALETTE[1], alpha=0.7, label="the paper")
        axes.legend(fontsize=8, frameon=False)
    slant = 25 if len(drawn.bars) <= 5 else 60
    axes.set_xticks(range(len(drawn.bars)), list(drawn.bars), rotation=slant, ha="right")


def draw_lines(axes, drawn: Drawn) -> None:
    """The locked model with the password and without; the paper's faint."""
    for lines, alpha in ((drawn.lines, 0.8), (drawn.their_lines, 0.3)):
        for share in lines.values():
            axes.axhline(share, ls=":", lw=1, color=INK, alpha=alpha)
