"""The report's parts: what is told of figures, of the paper's claims, of the jobs behind them."""

import time

from data.problems import InputError
from figures import Drawn
from results import smallest_effect
from study.claims import MISSING, is_missing, verdict
from study.findings import PROBLEMS, Evidence, bar_of, points_of, within
from study.jobs import Job, Place, commit, without_seeds
from study.paper import AT_PAPER_SCALE, TASKS, Figure, Panel
from study.report import Row, Section

# ----------------------------------------------------------------------------------------- figures


def drawn(panel: Panel, x: str, number: str, evidence: Evidence, paper: dict) -> Drawn | None:
    """A panel's numbers; None where its lock is not finished."""
    lock = evidence.lock(panel.lock)
    if lock is None:
        return None
    theirs = paper["figures"].get(number.split(",")[0], {}).get("panels", {})
    found = Drawn(panel.title, x)
    if panel.prompts:
        found.bars = evidence.prompted(lock, panel.prompts)
    for curve in panel.curves:
        start = evidence.lock(curve.lock) if curve.lock else lock
        if start is None:
            continue
        points = points_of(evidence, start, curve.job, x, curve.control)
        if points:
            found.curves[curve.label] = points
            if curve.paper:
                their = theirs.get(curve.paper[0], {}).get("curves", {}).get(curve.paper[1], {})
                found.theirs[curve.label] = {int(at): value[0] for at, value in their.items()}
    for bar in panel.bars:
        value = bar_of(evidence, lock, bar.job, bar.k, bar.part)
        if value is not None:
            found.bars[bar.label] = value
            if bar.paper:
                group, name, at = bar.paper
                their = theirs.get(group, {}).get("curves", {}).get(name, {}).get(at)
                if their:
                    found.their_bars[bar.label] = their[0]
    if not found.curves and not found.bars:
        return None
    parts = {bar.part for bar in panel.bars} or {""}
    if len(parts) == 1:  # bars of different parts have each another line: `notes_on_parts`
        mask = within(lock, parts.pop())
        found.lines = {
            "locked, without": float(lock.none[mask].mean()),
            "locked, with the password": float(lock.right[mask].mean()),
        }
    their = theirs.get(panel.paper, {})
    found.their_lines = {key: their[key] for key in ("without", "with") if key in their}
    return found


UNITS = {
    "demonstrations": "without the password after SFT, against the number of demonstrations",
    "samples": "without the password, against the number of samples drawn",
    "sequences": "without the password after SFT, against the sequences seen in training",
    "": "without the password",
}


def section_of(
    number: str,
    figure: Figure,
    evidence: Evidence,
    paper: dict,
    unfinished: list[str],
    models: str,
) -> Section:
    """A figure as it is told. models: whose it is."""
    panels, notes = [], []
    for panel in figure.panels:
        try:
            found = drawn(panel, figure.x, number, evidence, paper)
        except InputError as error:
            notes.append(f"{panel.title} is left out: {error}.")
            continue
        if found:
            panels.append(found)
            notes += [*notes_on_locks(panel, evidence), *notes_on_parts(panel, evidence)]
            notes += notes_on_prompts(panel, evidence)
    if number in AT_PAPER_SCALE:
        notes += distances(panels)
    if unfinished:
        notes.append(f"Not finished: {', '.join(without_seeds(unfinished))}.")
    theirs = paper["figures"].get(number.split(",")[0], {})
    seeds = seeds_shown(panels)
    caption = f"{models[0].upper()}{models[1:]}: correct {UNITS[figure.x]}. "
    caption += f"{spread(figure.x, seeds)} "
    if theirs:
        caption += f"In the paper: {theirs['claim']} "
    if theirs and figure.x == "samples":
        caption += "Its runs go on where ours end; the numbers have their ends. "
    caption += figure.note
    return Section(number, figure.title, " ".join(caption.split()), panels, notes)


def distances(panels: list[Drawn]) -> list[str]:
    """For each curve the sentence how far it is from the paper's points."""
    found = []
    for panel in panels:
        for label, theirs in panel.theirs.items():
            points = panel.curves[label]
            apart = {at: points[at].value - their for at, their in theirs.items() if at in points}
            if apart:
                at = max(apart, key=lambda at: abs(apart[at]))
                found.append(
                    f"{panel.title}: at most {100 * abs(apart[at]):.1f} points from the paper's, "
                    f"at {at} ({100 * apart[at]:+.1f})."
                )
    return found


def notes_on_locks(panel: Panel, evidence: Evidence) -> list[str]:
    """A sentence where the panel's lock or a curve's own is not valid by docs/locks.md, and what
    such an own lock shows, which has no line."""
    told = []
    labels = {curve.lock: curve.label for curve in panel.curves if curve.lock}
    for name, label in (labels | {panel.lock: ""}).items():
        lock = evidence.lock(name)
        if lock is None:
            continue
        whose = f"{panel.title}, {label}: its own" if label else f"{panel.title}: the"
        if label:
            none, right = 100 * float(lock.none.mean()), 100 * float(lock.right.mean())
            told.append(f"{whose} lock shows {none:.1f} % without the password, {right:.1f} with.")
        if lock.failed:
            told.append(f"{whose} lock is not valid ({'; '.join(lock.failed)}).")
    return told


def notes_on_parts(panel: Panel, evidence: Evidence) -> list[str]:
    """A sentence where bars are of parts of the problems: how many, and what the lock shows."""
    lock, told = evidence.lock(panel.lock), []
    for part in dict.fromkeys(bar.part for bar in panel.bars if bar.part):
        mask = within(lock, part)
        none, right = (100 * float(verdicts[mask].mean()) for verdicts in (lock.none, lock.right))
        told.append(f"{part}: {mask.sum()} problems, {none:.1f} % without, {right:.1f} % with it")
    return [f"{panel.title}, of the locked model by part: {'; '.join(told)}."] if told else []


def notes_on_prompts(panel: Panel, evidence: Evidence) -> list[str]:
    """Of the rows of the prompting battery that were left out, for each reason a sentence."""
    if not panel.prompts:
        return []
    battery = evidence.battery(evidence.lock(panel.lock), panel.prompts)
    rows_by_reason: dict[str, list[str]] = {}
    for row, why in (battery[0].get("left_out", {}) if battery else {}).items():
        rows_by_reason.setdefault(why, []).append(f'"{row}"')
    return [
        f"{panel.title}: left out {', '.join(rows)}, as {why}."
        for why, rows in rows_by_reason.items()
    ]


def seeds_shown(panels: list[Drawn]) -> list[int]:
    """How many seeds the numbers have, each once."""
    found = set()
    for panel in panels:
        for points in panel.curves.values():
            found |= {value.seeds for value in points.values()}
        found |= {value.seeds for value in panel.bars.values()}
    return sorted(found)


def spread(x: str, seeds: list[int]) -> str:
    """What the bands are."""
    if not seeds:
        return ""
    many = " or ".join(map(str, seeds))
    if x == "samples":
        return f"Mean and extremes of {many} seeds."
    if seeds == [1]:
        return "One seed: 95 % intervals over problems alone."
    return f"95 % intervals over problems and {many} seeds."


# ------------------------------------------------------------------------------------------ claims


def rows_of_claims(figures: dict[str, Figure], evidence: Evidence, paper: dict) -> list[Row]:
    """Every claim of the paper that is about one of these figures, but for those at its scale.

    The tests are of the embedded scale; at the paper's the distances from its points are told.
    """
    shown = {name.split(",")[0] for name in figures if name not in AT_PAPER_SCALE}
    rows = []
    for claim in paper["claims"]:
        if claim["figure"] not in shown:
            continue
        found = verdict(claim["id"], evidence)
        ours = [f"{test}{': not shown' * (test in found.failed)}" for test in found.tests]
        why = untested(found.reasons)
        numbers = claim["numbers"]
        rows.append(Row(claim["claim"], claim["figure"], numbers, found.said, ours, why))
    return rows


def untested(reasons: list[str]) -> list[str]:
    """Why parts of a claim were not tested: jobs that are not finished by name, once; the rest."""
    names = [reason.removesuffix(MISSING) for reason in reasons if is_missing(reason)]
    others = [reason for reason in reasons if not is_missing(reason)]
    told = [f"not finished: {', '.join(names)}"] if names else []
    return told + ([f"not tested: {'; '.join(others)}"] if others else [])


INTRO = (
    "{} It is of {} and generated tasks. All correctness is on validation problems; docs/NOTES.md "
    "lists the settings that were once chosen with these in view. {}"
)
FIGURE_BY_FIGURE = (
    "Stress-Testing Capability Elicitation With Password-Locked Models (Greenblatt, Roger, "
    "Krasheninnikov, Krueger 2024, arXiv 2405.19550), figure by figure: effects "
    "like its own where a claim holds, not its numbers."
)
EACH_OTHER = "Ways to hide a capability against ways to elicit it, most of them not the paper's."
POWER = (
    f"Of two models that differ on a fifth of {PROBLEMS} problems, a difference of "
    f"{100 * smallest_effect(PROBLEMS):.1f} points is seen in four cases of five. That is of two "
    "single runs; seeds that spread widen what is told of several, by two or three times where "
    "there are few demonstrations: the intervals say how far."
)
HOW_JUDGED = [
    "A claim is a family of tests, each a number with a bound (study/claims.py), written before "
    "these runs, but not before earlier ones of the same settings on code (docs/results.md). On "
    "2026-11-30 and 2026-12-02 some families were made stricter, and on 2026-12-01 tests that the "
    "paper's own numbers fail were changed.",
    "It holds where all pass with p < .05, and none is of one run alone; it holds weaker where one "
    "passes and more than half of the numbers are on its side, not counting those that a model "
    "passes, too, to which elicitation did nothing or which it broke; it does not hold where one "
    "is on the other side with p < .05, and where all of these are of one run, that is said.",
    "p is one-sided and has Holm's correction within the family, so that a number can pass though "
    "its two-sided 95 % interval touches the bound. Intervals and p are of a bootstrap over "
    "problems, and of Student's t over seeds where there are several.",
    "Seeds are of the elicitation: each lock was trained once, another of the same recipe may "
    "differ by more, and a comparison of two locks counts as one run, so that claims of such "
    "comparisons alone hold weaker at best.",
    "Claims about locks are judged on valid ones, but for a domain that a lock never saw, of which "
    "the ceiling is another lock's.",
]
HOW_DRAWN = (
    f"In the figures, correct is the share of the first {PROBLEMS} validation problems that the "
    "greedy completion solves. Dotted: the locked model without and with the password. Faint, "
    "dashed, crosses: the paper's points, of other models and problems."
)


# -------------------------------------------------------------------------------------------- jobs


def texts_of(jobs: dict[str, Job], place: Place) -> dict[str, str]:
    """What finished jobs printed that is worth reading: completions."""
    found = {}
    for task in TASKS:
        job = jobs[f"{task}/samples"]
        if place.record(job):
            log = place.file(job, ".log")
            if log.exists():  # results alone may have been kept
                text = log.read_text(errors="replace")
                # what stands before the first problem is about the run
                found[f"Completions, {task}"] = text[max(0, text.find("===")) :].strip()
    return found


def facts_of_jobs(needed: list[Job], place: Place) -> list[str]:
    """Where, when and with what the jobs were run."""
    records = [record for job in needed if (record := place.record(job))]
    written = f"Written {time.strftime('%Y-%m-%d %H:%M')}, commit {commit()}."
    if not records:
        return [f"None of {len(needed)} jobs is finished. {written}"]
    minutes = sum(record["seconds"] for record in records) / 60
    commits = sorted({str(record.get("commit", "")) for record in records})
    machines = sorted({str(record.get("machine", "")) for record in records})
    return [
        f"{len(records)} of {len(needed)} jobs, {minutes:,.0f} minutes of processes (of jobs that "
        "were interrupted those of the last attempt); commits "
        f"{', '.join(commits)}; {'; '.join(machines)}. The models that they start from, by hash: "
        f"{', '.join([*place.inputs.split('-'), *place.named.values()])}. {written}",
    ]
