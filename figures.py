"""How results are shown: plain tables, and plots with matplotlib."""

import os
from itertools import cycle
from pathlib import Path

import numpy as np

from data.problems import InputError
from data.triggers import KINDS
from files import reason

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

# of a kind of password; of what only resembles the right one
COLOURS = {"none": "tab:red", "right": "tab:green"}
BETWEEN = "tab:orange"


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
    try:
        figure.savefig(file, dpi=120, metadata={"Software": SOFTWARE})
    except OSError as error:
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
    names = [Path(evaluation["checkpoint"]).name for evaluation in evaluations]
    axes.set_xticks(places + width * (len(kinds) - 1) / 2, names, rotation=20)
    axes.set(ylim=(0, 1), ylabel="correct (greedy; 95 % over problems)")
    # above the bars: a lock's reach the top
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    axes.legend(fontsize=8, ncol=min(3, len(kinds)), frameon=False, **place)
    write_figure(figure, file)


def colour_of(row: str) -> str:
    """Of a row of the prompting battery: green with the right password, red without any."""
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


CURVES = ("tab:blue", "tab:gray", "tab:purple", "tab:olive", "tab:cyan", "tab:pink", "black")
LINES = ("tab:green", "tab:red", "tab:orange")


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
    for (name, value), colour in zip(lines.items(), LINES):
        axes.axhline(value, ls="--", color=colour, label=name)

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
