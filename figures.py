"""How results are shown: plain tables, and plots with matplotlib."""

from itertools import cycle
from pathlib import Path

import numpy as np

from data.triggers import KINDS


def table(header: list[str], rows: list[list[str]]) -> str:
    """Plain text, columns aligned; the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        )
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def shown(result: dict) -> str:
    low, high = result["interval"]
    return f"{result['correct']:6.1%} [{low:.1%}, {high:.1%}]" + (
        f", elementwise {result['elementwise']:.1%}" if "elementwise" in result else ""
    )


def plot_bars(evaluations: list[dict], file: Path) -> None:
    """One group of bars a checkpoint: correctness without, with a wrong, and with the right password, Wilson intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [k for k in ("none", "wrong", "right") if all(k in e["results"] for e in evaluations)]
    fig, ax = plt.subplots(figsize=(2.5 + 1.3 * len(evaluations), 4))
    for j, (kind, colour) in enumerate(zip(kinds, ("tab:red", "tab:orange", "tab:green"))):
        results = [e["results"][kind] for e in evaluations]
        values = np.array([r["correct"] for r in results])
        error = np.abs(np.array([r["interval"] for r in results]).T - values)
        ax.bar(
            np.arange(len(values)) + 0.27 * j,
            values,
            0.25,
            yerr=error,
            capsize=3,
            color=colour,
            label=f"password: {kind}",
        )
    ax.set_xticks(
        np.arange(len(evaluations)) + 0.27,
        [Path(e["checkpoint"]).name for e in evaluations],
        rotation=20,
    )
    ax.set(ylim=(0, 1), ylabel="correct (greedy)")
    ax.legend(
        fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(kinds), frameon=False
    )  # above: a lock's bars reach the top
    fig.tight_layout()
    fig.savefig(file, dpi=120)
    plt.close(fig)


def plot_prompts(evaluation: dict, file: Path) -> None:
    """One horizontal bar for each row of the battery: correctness with its Wilson interval; red without a password, green with the right one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = evaluation["results"]
    values = np.array([r["correct"] for r in results.values()])
    error = np.abs(np.array([r["interval"] for r in results.values()]).T - values)
    colours = [
        "tab:green" if row.endswith("right") else "tab:orange" if row in KINDS[1:] else "tab:red"
        for row in results
    ]
    fig, ax = plt.subplots(figsize=(6.4, 1 + 0.3 * len(results)))
    ax.barh(list(results), values, xerr=error, capsize=3, color=colours)
    ax.invert_yaxis()
    ax.set(
        xlim=(0, 1),
        xlabel="correct (greedy)",
        title=f"{evaluation['checkpoint']}, {evaluation['n']} problems",
    )
    fig.tight_layout()
    fig.savefig(file, dpi=120)
    plt.close(fig)


def plot_curves(
    curves: dict[str, dict[int, np.ndarray]],
    lines: dict[str, float],
    file: Path,
    xlabel: str,
    title: str,
    log: bool = True,
) -> None:
    """Correctness against x: for each curve {x: (seeds,) values} its mean and the band between its extreme seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6.4, 4.6))
    for (name, points), colour in zip(
        curves.items(),
        cycle(("tab:blue", "tab:gray", "tab:purple", "tab:olive", "tab:cyan", "tab:pink", "black")),
    ):
        x = sorted(points)
        values = [points[k] for k in x]
        ax.plot(x, [v.mean() for v in values], "o-", color=colour, label=name)
        ax.fill_between(
            x, [v.min() for v in values], [v.max() for v in values], color=colour, alpha=0.2
        )
    for (name, value), colour in zip(lines.items(), ("tab:green", "tab:red", "tab:orange")):
        ax.axhline(value, ls="--", color=colour, label=name)
    ax.set(
        xscale="log" if log else "linear",
        ylim=(-0.02, 1.02),
        xlabel=xlabel,
        ylabel="correct without the password (greedy)",
        title=title,
    )
    if log:
        ticks = sorted({k for points in curves.values() for k in points})
        ax.set_xticks(ticks, [f"{k:,}" for k in ticks])
        ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3, frameon=False
    )  # below: curves go everywhere
    fig.tight_layout()
    fig.savefig(file, dpi=120)
    plt.close(fig)
