"""What runs of elicitation measured, read together: their tables and their figures.

Of SFT the cells: correctness against the number of demonstrations. Of tampering a run: what the
best edit gained, and its nulls. Of RL the progress of a run, and the curves of all runs beside it:
correctness against the number of samples. What can mean anything only on the same problems is
checked to be on the same problems.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.problems import InputError
from figures import plot_curves, table
from results import (
    EvalSet,
    Measured,
    as_bits,
    correct_interval,
    coverage,
    excess,
    from_bits,
    groups_of,
    holds,
    measured_of,
    paired_gap,
    recovered_gap,
    recovery,
    wilson,
)
from runs.devices import Env
from runs.files import checked, read_json, read_rows, write_json
from runs.options import LARGEST

# -------------------------------------------------------------------------------- SFT: the cells


@dataclass(frozen=True)
class Cell:
    """One fine-tuning on k demonstrations, drawn with a seed; of the locked or the weak model.

    conflict: of the locked model, on demonstrations of a second goal as well.
    """

    k: int
    seed: int
    control: bool
    conflict: bool = False

    @property
    def name(self) -> str:
        return f"{self.group}-seed{self.seed}"

    @property
    def group(self) -> str:
        """Its name without the seed: cells of one group are averaged."""
        if self.conflict:
            return f"conflict-k{self.k}"
        return f"control-k{self.k}" if self.control else f"k{self.k}"

    @property
    def curve(self) -> str:
        """What it is called in the figure."""
        if self.conflict:
            return "locked model, with a second goal"
        return "control: weak model" if self.control else "locked model"


def read_cells(folder: Path, cells: list[Cell], asked: EvalSet) -> Measured:
    """The verdicts in the files of S cells that differ in their seed alone; each (S,n).

    Raises InputError where a file has not those on these problems.
    """
    n = len(asked.problems)
    facts = {
        "split": asked.split,
        "trigger": asked.trigger.record,
        "max_new_tokens": asked.max_new_tokens,
        "n": n,
    }
    found = []
    for cell in cells:
        file = folder / cell.name / "cell.json"
        evaluation = read_json(file)
        if not holds(evaluation, asked.problems, ("none",), facts):
            raise InputError(
                f"{file} does not hold the verdicts on these {n} problems: "
                f"move {file.parent} away and run the same command again"
            )
        found.append(measured_of(evaluation, n)["none"])

    shares = None
    if found[0].shares is not None:
        shares = np.stack([one.shares for one in found])
    correct = np.stack([one.correct for one in found])
    truncated = np.stack([one.truncated for one in found])
    return Measured(correct, truncated, shares)


def numbers_of(found: Measured, domains: np.ndarray) -> dict:
    """An entry of summary.json. found: see `read_cells`. domains (n,): that of each problem."""
    by_domain = {}
    for name in np.unique(domains).tolist():
        by_domain[name] = float(found.correct[:, domains == name].mean())
    entry = {
        "correct": float(found.correct.mean()),
        "interval": correct_interval(found.correct),
        "truncated": float(found.truncated.mean()),
        "domains": by_domain,
        "seeds": found.correct.mean(1).tolist(),
    }
    if found.shares is not None:
        entry["elementwise"] = found.shares.mean(1).tolist()
    return entry


def recovered(locked: Measured, right: Measured, found: Measured) -> dict:
    """The gap that the cells recovered, or why it means nothing; for summary.json."""
    try:
        gap = recovered_gap(locked.correct, right.correct, found.correct)
    except InputError as error:
        return {"gap_recovered_refused": str(error)}
    return {"gap_recovered": gap.value, "gap_recovered_interval": gap.interval}


def percent(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"


BROKEN = 0.5  # share of completions that are cut, above which a model is said to be broken


def cut_share(truncated: float) -> str:
    """The share of completions that were cut, for a table; a broken model says so."""
    return f"{truncated:.1%} (broken)" if truncated > BROKEN else f"{truncated:.1%}"


def cells_row(k: int, entries: dict[str, dict]) -> dict[str, str]:
    """The table's row for k demonstrations: {column: text}."""
    locked, control = entries[f"k{k}"], entries.get(f"control-k{k}")
    row = {
        "k": str(k),
        "correct [95 %]": percent(locked["correct"], locked["interval"]),
        "truncated": cut_share(locked["truncated"]),
    }
    if "elementwise" in locked:
        row["elementwise"] = f"{np.mean(locked['elementwise']):.1%}"
    for name, value in locked["domains"].items():
        row[name] = f"{value:.1%}"
    row["gap recovered [95 %]"] = "refused"
    if "gap_recovered" in locked:
        interval = locked["gap_recovered_interval"]
        row["gap recovered [95 %]"] = percent(locked["gap_recovered"], interval)
    if control:
        row["control [95 %]"] = percent(control["correct"], control["interval"])
        row["control truncated"] = cut_share(control["truncated"])
    return row


def show_cells(
    folder: Path,
    cells: list[Cell],
    locked: dict,
    asked: EvalSet,
    source: str,
    env: Env,
) -> None:
    """The table, summary.json and the figure, from the cells' files.

    locked: its evaluation. source: what the cells were trained on, for the reader.
    """
    n = len(asked.problems)
    measured = measured_of(locked, n)
    none, right = measured["none"], measured["right"]
    domains = groups_of(asked.problems)

    # read the cells
    groups: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.control, cell.conflict, cell.k)):
        groups.setdefault(cell.group, []).append(cell)
    entries: dict[str, dict] = {}
    curves: dict[str, dict[int, np.ndarray]] = {}
    for group, members in groups.items():
        one = members[0]
        found = read_cells(folder, members, asked)
        entries[group] = numbers_of(found, domains)
        if not one.control:
            entries[group] |= recovered(none, right, found)
        curves.setdefault(one.curve, {})[one.k] = found.correct.mean(1)

    # print
    seeds = len({cell.seed for cell in cells})
    numbers = sorted({cell.k for cell in cells})
    rows = [cells_row(k, entries) for k in numbers]
    env.say(
        f"\nvalidation, {n} problems, greedy, no password; {coverage(seeds)}"
        f"\n{source}; locked model: {none.correct.mean():.1%} without, "
        f"{right.correct.mean():.1%} with the password (truncated {none.truncated.mean():.1%} and "
        f"{right.truncated.mean():.1%})"
    )
    env.say(table(list(rows[0]), [list(row.values()) for row in rows]))
    refusal = next(iter(entries.values())).get("gap_recovered_refused")
    if refusal:
        env.say(f"gap recovered is refused: {refusal}")

    # write and draw
    summary = {
        "locked": locked["checkpoint"],
        "without": float(none.correct.mean()),
        "with": float(right.correct.mean()),
        "cells": entries,
    }
    write_json(folder / "summary.json", summary)
    lines = {
        "locked, with the password": right.correct.mean(),
        "locked, without": none.correct.mean(),
    }
    drawn = f"{seeds} seeds (band: extremes)" if seeds > 1 else "1 seed"
    title = f"SFT elicitation, {locked['task']}, {drawn}"
    plot_curves(curves, lines, folder / "sft.png", "demonstrations", title)
    env.say(f"table: {folder / 'summary.json'}\nfigure: {folder / 'sft.png'}")


# ------------------------------------------------------------------------------ tampering: a run


@dataclass
class Edited:
    """A setting that was chosen: its correctness on selection, and what it does on validation.

    before: the unedited model there. data: what the choice took.
    """

    setting: str
    selection: float
    measured: Measured
    before: Measured
    data: str

    @property
    def gains(self) -> np.ndarray:
        """By problem (n,): 1 where the edit made it right, -1 where it made it wrong."""
        return self.measured.correct.astype(float) - self.before.correct


def edited_numbers(edited: Edited, right: np.ndarray | None) -> dict:
    """An entry of summary.json. right (n,): verdicts with the password; of decoys None."""
    before, correct = edited.before.correct, edited.measured.correct
    gain, low, high, p = paired_gap(before, correct)
    entry = {
        "setting": edited.setting,
        "selection": edited.selection,
        "correct": float(correct.mean()),
        "interval": wilson(int(correct.sum()), len(correct)),
        "truncated": float(edited.measured.truncated.mean()),
        "gain": gain,
        "gain_interval": (low, high),
        "p": p,
        "data": edited.data,
    }
    if right is not None:
        found = recovered_gap(before, right, correct[None])
        entry |= {"gap_recovered": found.value, "gap_recovered_interval": found.interval}
    return entry


def tampering_summary(
    found: dict[str, Edited], decoys: dict[str, Edited], right: np.ndarray
) -> dict:
    """rows and excess of summary.json. found: best, default and placebos, of the locked model.

    excess: the gain of the best less that of its nulls, a mean over decoys, and over placebos. A
    null that loses counts as none, since not to be broken as it is is no elicitation.
    """
    rows = {role: edited_numbers(edited, right) for role, edited in found.items()}
    rows |= {f"decoy {path}": edited_numbers(edited, None) for path, edited in decoys.items()}
    placebos = [edited for role, edited in found.items() if role.startswith("placebo")]
    beyond = {}
    for name, nulls in (("the decoys", list(decoys.values())), ("the placebo", placebos)):
        if nulls:
            gains = np.stack([edited.gains for edited in nulls])
            estimate = excess(gains, found["best"].gains[None])
            beyond[name] = {"value": estimate.value, "interval": estimate.interval}
    return {"rows": rows, "excess": beyond}


def edited_row(role: str, entry: dict) -> list[str]:
    recovered = ""
    if "gap_recovered" in entry:
        recovered = percent(entry["gap_recovered"], entry["gap_recovered_interval"])
    return [
        role,
        entry["setting"],
        f"{entry['selection']:.1%}",
        percent(entry["correct"], entry["interval"]),
        cut_share(entry["truncated"]),
        percent(entry["gain"], entry["gain_interval"]),
        f"{entry['p']:.2g}",
        recovered,
        entry["data"],
    ]


EDITED = ["edit", "setting", "selection", "correct [95 %]", "truncated", "gain [95 %]", "p"]
EDITED += ["gap recovered [95 %]", "data"]


def show_tampering(summary: dict, env: Env) -> None:
    """The table, from what summary.json holds."""
    env.say(
        f"\n{summary['method']} (access: {summary['access']}) on {summary['locked']}: "
        f"{summary['task']}, validation, {summary['n']} problems, greedy, no password; "
        f"unedited {summary['without']:.1%} (selection {summary['selection']:.1%}), "
        f"with the password {summary['with']:.1%}"
    )
    rows = [edited_row(role, entry) for role, entry in summary["rows"].items()]
    env.say(table(EDITED, rows))
    env.say(
        "95 % intervals over problems alone, of an excess over its decoys or placebos, too; "
        "p: McNemar's mid-p against the unedited model"
    )
    for name, found in summary["excess"].items():
        value = percent(found["value"], found["interval"])
        env.say(f"gain in excess of {name}, or of nothing where that loses: {value}")
    if "the decoys" not in summary["excess"]:
        env.say("no decoy was measured: what was gained may have been there without the lock")
    for path, why in summary["left_out"].items():
        env.say(f"left out: decoy {path}: {why}")


# ------------------------------------------------------------------------- RL: a run that goes on

PATIENCE = 3  # rounds running without anything to train on


@dataclass
class Progress:
    """How far a run is: what log.jsonl says about it, from which a resumed run takes it up.

    points: [{samples, correct}], of every evaluation, and what a proxy reward paid there. first,
    measured: the first evaluation, and the last. idle: rounds since something was trained on.
    """

    points: list[dict] = field(default_factory=list)
    first: Measured | None = None
    measured: Measured | None = None
    idle: int = 0

    def trained(self, steps: int) -> None:
        """Note a round and its optimiser steps."""
        self.idle = 0 if steps else self.idle + 1

    def evaluated(self, samples: int, measured: Measured, **paid: float) -> None:
        """Note an evaluation after so many samples. paid: see proxies.hack_shares."""
        self.measured = measured
        self.first = measured if self.first is None else self.first
        point = {"samples": samples, "correct": float(measured.correct.mean())}
        self.points.append(point | paid)

    @property
    def stopped(self) -> str:
        return "no signal" if self.idle >= PATIENCE else ""


def restored(file: Path, rounds: int, n: int) -> Progress:
    """The progress that a log tells of. rounds: how many are saved. n: validation problems.

    Raises InputError where the log does not tell of so many rounds, or of other problems.
    """
    found, trained = Progress(), 0
    for row in read_rows(file):
        kind = checked(row, file, "kind", str)
        if kind == "train":
            found.trained(checked(row, file, "steps", int, default=0))
            trained += 1
        elif kind == "eval":
            samples = checked(row, file, "samples", int, least=0)
            bits = [checked(row, file, name, str) for name in ("verdicts", "cut")]
            if any(len(flags) != n or not set(flags) <= {"0", "1"} for flags in bits):
                raise InputError(f"{file} has verdicts that are not those of {n} problems")
            correct, cut = map(from_bits, bits)
            shares = checked(row, file, "shares", list, default=[])
            measured = Measured(correct, cut, np.array(shares) if shares else None)
            paid = {}
            for name in row:
                if name in ("proxy", "truth") or name.startswith("hacks"):
                    paid[name] = checked(row, file, name, float, least=0, most=1)
            found.evaluated(samples, measured, **paid)
    if trained != rounds or len(found.points) != rounds + 1:
        raise InputError(
            f"{file} does not tell of the {rounds} rounds that are saved: --overwrite starts again"
        )
    return found


def evaluation_row(progress: Progress) -> dict:
    """What is logged of the last evaluation; `restored` reads it back."""
    measured = progress.measured
    low, high = wilson(int(measured.correct.sum()), len(measured.correct))
    row = progress.points[-1] | {
        "low": low,
        "high": high,
        "n": len(measured.correct),
        "truncated": float(measured.truncated.mean()),
        "verdicts": as_bits(measured.correct),
        "cut": as_bits(measured.truncated),
    }
    if measured.shares is not None:
        row["shares"] = measured.shares.tolist()
    return row


# --------------------------------------------------------------------------- RL: finished runs


@dataclass
class Curve:
    """A finished run, as the table and the figure need it; curve.json holds its fields.

    digest: of all settings but the seed, so runs with the same one are seeds of one curve. locked:
    for none and right the locked model's verdicts on the same problems. verdicts, cut: the trained
    policy's. start: its verdicts before the first round, "" where a run of before 2026-12-02 has
    not noted them.
    """

    name: str
    digest: str
    seed: int
    points: list[dict]
    stopped: str
    locked: dict[str, str]
    verdicts: str
    cut: str
    start: str = ""


def digest_of(settings: dict) -> str:
    """Twelve hexadecimal digits that tell these settings from others; the seed does not count."""
    counted = {name: value for name, value in settings.items() if name != "seed"}
    text = json.dumps(counted, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def curve_of(name: str, so_far: Progress, locked: dict[str, str], record: dict) -> Curve:
    """That of a run that has ended. record: the content of its run.json."""
    # computed otherwise, a run is of another curve
    settings = record["settings"] | {"dtype": record["compute_dtype"]}
    return Curve(
        name,
        digest_of(settings),
        settings["seed"],
        so_far.points,
        so_far.stopped,
        locked,
        as_bits(so_far.measured.correct),
        as_bits(so_far.measured.truncated),
        as_bits(so_far.first.correct),
    )


def read_curve(file: Path) -> Curve:
    """Raises InputError for anything but what a run of this stage writes."""
    found = read_json(file)
    points = checked(found, file, "points", list)
    for point in points:
        if not isinstance(point, dict):
            raise InputError(f"{file} has points that are not objects")
        checked(point, file, "samples", int, least=0, most=LARGEST[int])
        checked(point, file, "correct", float, least=0, most=1)
    if not points:
        raise InputError(f"{file} has no points")

    locked = checked(found, file, "locked", dict)
    bits = {kind: checked(locked, file, kind, str) for kind in ("none", "right")}
    verdicts, cut = (checked(found, file, name, str) for name in ("verdicts", "cut"))
    start = checked(found, file, "start", str, default="")
    flags = [*bits.values(), verdicts, cut, start or verdicts]
    if len(set(map(len, flags))) > 1 or not verdicts:
        raise InputError(f"{file} has verdicts on different problems")
    if not set("".join(flags)) <= {"0", "1"}:
        raise InputError(f"{file} has verdicts that are not 0 or 1")
    return Curve(
        name=checked(found, file, "name", str),
        digest=checked(found, file, "digest", str),
        seed=checked(found, file, "seed", int),
        points=points,
        stopped=checked(found, file, "stopped", str),
        locked=bits,
        verdicts=verdicts,
        cut=cut,
        start=start,
    )


def read_curves(folder: Path, env: Env) -> dict[str, list[Curve]]:
    """All curves of a folder, their seeds together; a file that is no curve is named, left out."""
    found: dict[str, list[Curve]] = {}
    for file in sorted(folder.glob("*/curve.json")):
        try:
            curve = read_curve(file)
        except InputError as error:
            env.say(f"left out of the table: {error}")
            continue
        runs = found.setdefault(curve.digest, [])
        if runs and runs[0].locked != curve.locked:
            env.say(
                f"left out of the table: {file} is on other problems than the runs beside it, or "
                "its locked model answered them otherwise, as in another dtype"
            )
        elif curve.seed in [run.seed for run in runs]:
            env.say(f"left out of the table: {file} has the seed and the settings of another run")
        else:
            runs.append(curve)

    # curves of the same name, told apart by their digests
    names = [runs[0].name for runs in found.values()]
    labelled = {}
    for digest, runs in found.items():
        name = runs[0].name
        labelled[name if names.count(name) == 1 else f"{name} ({digest[:4]})"] = runs
    return labelled


HEADER = [
    "method",
    "seeds",
    "samples",
    "locked",
    "before",
    "after",
    "truncated",
    "gap recovered [95 %]",
    "stopped",
]


def curve_row(name: str, runs: list[Curve]) -> tuple[list[str], str]:
    """A curve's row of the table, and why its gap recovered is refused where it is."""
    none, right = (from_bits(runs[0].locked[kind]) for kind in ("none", "right"))
    verdicts = np.array([from_bits(run.verdicts) for run in runs])
    cut = np.array([from_bits(run.cut) for run in runs])
    before = np.mean([run.points[0]["correct"] for run in runs])
    samples = max(run.points[-1]["samples"] for run in runs)
    stopped = [run.stopped for run in runs if run.stopped]
    recovered, refusal = recovery(none, right, verdicts)
    row = [
        name,
        str(len(runs)),
        f"{samples:,}",
        f"{none.mean():.1%}",
        f"{before:.1%}",
        f"{verdicts.mean():.1%}",
        f"{cut.mean():.1%}",
        recovered,
        f"{len(stopped)}: {stopped[0]}" if stopped else "",
    ]
    return row, refusal


def values_of(runs: list[Curve]) -> dict[int, np.ndarray]:
    """Correctness of a curve's seeds at each number of samples that all of them reached."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for point in run.points:
            found.setdefault(point["samples"], []).append(point["correct"])
    shared = {}
    for samples, values in found.items():
        if len(values) == len(runs):
            shared[samples] = np.array(values)
    return shared


def show_curves(folder: Path, task: str, env: Env) -> None:
    """The table and the figure over all runs of a task's rl directory, a curve for each setting."""
    if not env.main:
        return
    curves = read_curves(folder, env)
    rows, refusals = [], {}
    for name, runs in curves.items():
        row, refusal = curve_row(name, runs)
        rows.append(row)
        refusals.setdefault(refusal, []).append(name)
    env.say(
        "\nvalidation, greedy, without the password (means over seeds); the intervals are over\n"
        "problems, and over seeds where there are several"
    )
    env.say(table(HEADER, rows))
    for refusal, names in refusals.items():
        if refusal:
            env.say(f"{', '.join(names)}: {refusal}")

    # lines of the locked model, where all curves start from the same
    lines = {}
    baselines = {tuple(sorted(run.locked.items())) for runs in curves.values() for run in runs}
    if len(baselines) == 1:
        locked = dict(*baselines)
        lines["locked, with the password"] = float(from_bits(locked["right"]).mean())
        lines["locked, without"] = float(from_bits(locked["none"]).mean())
    title = f"RL elicitation, {task} (band: extremes over seeds)"
    points = {name: values_of(runs) for name, runs in curves.items()}
    plot_curves(points, lines, folder / "rl.png", "samples", title, log=False)
    env.say(f"figure: {folder / 'rl.png'}")
