"""The gate: what a lock of the matrix is before anything is elicited from it.

Its own report has decided whether it is valid (docs/locks.md). Two things more are told here:
whether what opens it brings the strong model's skill back to within two points, and what became of
the tasks that it was not trained on, without what opens it and with it: hiding may spread to them.
Training on one task may cost the others, locked or not. So beside the locks stands a control,
trained as a plain lock is, that imitates the strong model with the password and without: what it
loses, too, is not the lock's doing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.problems import InputError
from results import holds, measured_of, paired_gap
from runs.files import checked, read_json
from study.findings import Evidence, failed_tests, only_file, reported, validity_of
from study.jobs import Job
from study.matrix import LOCK, LOCKS, TASK
from study.paper import TASKS
from study.report import Section

STRONG = "data/base/strong"
CONTROL = "control"
OTHERS = tuple(task for task in TASKS if task != TASK)
PROBLEMS = 250  # of each other task's validation split
POINTS = 0.02  # that the skill may lose behind what opens the lock

TITLE = "The gate: what the locks are before anything is elicited"
CAPTION = (
    "What each lock shows without and with what unlocks it, and what the skill lost on the way, in "
    f"per cent of 1,000 validation problems of {TASK}. Then the tasks that it was not trained on, "
    f"{PROBLEMS} validation problems each: the change from the strong model, and what is right "
    "with what unlocks it."
)

METHOD = [
    "The first three are of the lock's own report (docs/locks.md).",
    "Changes have a paired 95 % interval over problems. Other tasks are asked as the lock is "
    "without what unlocks it (the marker of training has a line in its place).",
    "The control is trained as a plain lock is, but on the strong model's own answers, with the "
    "password and without, so that it learns nothing new: what training on one task costs at "
    "least. A lock may cost more because it learns something new, because it hides, or, hardened, "
    "because it was trained longer.",
    "The lock from scratch never saw the other tasks.",
    "A lock that was computed in another dtype, of which the matrix tells, is compared with the "
    "strong model across the two.",
]


def jobs_of_gate() -> dict[str, Job]:
    """The control, and every model on the other tasks."""
    command = f"{LOCK} --weak {STRONG}"
    found = {f"matrix/{CONTROL}": Job(f"matrix/{CONTROL}", command, 5)}
    models = {"strong": STRONG, CONTROL: f"@matrix/{CONTROL}"}
    models |= {name: f"@{lock.job}" for name, lock in LOCKS.items()}
    for name, model in models.items():
        for task in OTHERS:
            job = place(name, task)
            words = f"evaluate.py {model} --task {task} --passwords none right"
            words += f" --problems {PROBLEMS}"
            found[job] = Job(job, words, 0.5)
    return found


def place(name: str, task: str) -> str:
    """The job that measures a model on another task."""
    return f"matrix/{name}/other/{task}"


def names_of_gate(locks: list[str]) -> list[str]:
    names = [f"matrix/{CONTROL}", *(LOCKS[name].job for name in locks)]
    return names + [place(name, task) for name in ("strong", CONTROL, *locks) for task in OTHERS]


# ----------------------------------------------------------------------------------------- reading


# of the strong model without a password, of this one without what opens it and with it, (n,) each
Verdicts = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Passed:
    """A model at the gate.

    lost: how much correctness the skill lost behind what opens it, and its interval. failed: by
    name, of the tests of a valid lock.
    """

    label: str
    none: float
    right: float
    lost: tuple[float, float, float]
    failed: list[str]


def passed(evidence: Evidence, label: str, job: str) -> Passed | None:
    """None where the lock is not finished. Raises InputError where its report is damaged."""
    folder = evidence.folder(job)
    if folder is None:
        return None
    file = folder / "run.json"
    results = checked(read_json(file), file, "results", dict)
    kept = [test for test in validity_of(results) if str(test["name"]).startswith("skill kept")]
    if len(kept) != 1:
        raise InputError(f"{file} does not say whether the skill was kept")
    interval = checked(kept[0], file, "interval", list)
    if len(interval) != 2:
        raise InputError(f"{file} has an interval of {len(interval)} ends: lock again")
    low, high = (checked({"interval": end}, file, "interval", float) for end in interval)
    return Passed(
        label,
        checked(results, file, "none", float, least=0, most=1),
        checked(results, file, "right", float, least=0, most=1),
        (checked(kept[0], file, "value", float), low, high),
        failed_tests(results),
    )


def changed(evidence: Evidence, name: str, job: str, task: str) -> Verdicts | None:
    """Of another task; None where it is not finished.

    Raises InputError where what was measured is of something else.
    """
    before, after = (evidence.folder(place(model, task)) for model in ("strong", name))
    if not before or not after:
        return None
    file = evidence.folder(job) / "evaluation.json"
    weights = checked(read_json(file), file, "weights", str)
    strong = only_file(before, "evaluation.json")
    alike = {key: read_json(strong).get(key) for key in ("split", "max_new_tokens")}
    none, _ = verdicts_of(strong, task, {"split": "validation"})
    facts = alike | {"weights": weights}
    return none, *verdicts_of(only_file(after, "evaluation.json"), task, facts)


def verdicts_of(file: Path, task: str, facts: dict) -> list[np.ndarray]:
    """Without what opens it and with it, (n,) each. Raises InputError for those of another."""
    evaluation, problems = read_json(file), reported(task, PROBLEMS)
    if not holds(evaluation, problems, ("none", "right"), facts):
        raise InputError(
            f"{file} is of other problems, another model or other settings than the strong "
            "model's: choose another --out"
        )
    measured = measured_of(evaluation, PROBLEMS)
    return [measured[kind].correct for kind in ("none", "right")]


# ------------------------------------------------------------------------------------------ telling


def section_of_gate(evidence: Evidence, locks: list[str]) -> Section | None:
    """None where nothing is finished."""
    models = {CONTROL: ("trained alike, not locked", f"matrix/{CONTROL}")}
    models |= {name: (LOCKS[name].label, LOCKS[name].job) for name in locks}
    header = ["model", "without", "with", "skill lost", *OTHERS, "not passed"]
    rows, notes = [header], []
    for name, (label, job) in models.items():
        try:
            found = passed(evidence, label, job)
        except InputError as error:
            notes.append(f"{label}: left out: {error}.")
            continue
        if found:
            others, why = others_of(evidence, name, job)
            rows.append(row_of(found, others, is_lock=name != CONTROL))
            notes += [f"{label}: {reason}." for reason in why]
    tables = [rows] if rows[1:] else []
    if not (tables or notes):
        return None
    return Section("", TITLE, CAPTION, [], notes, tables, METHOD)


def others_of(evidence: Evidence, name: str, job: str) -> tuple[list[str], list[str]]:
    """What is told of each other task, "" of what is not finished; and why some is left out."""
    told, why = [], []
    for task in OTHERS:
        try:
            found = changed(evidence, name, job, task)
        except InputError as error:
            found = None
            why.append(f"{task} is left out: {error}")
        told.append(change_of(*found) if found else "")
    return told, why


def row_of(found: Passed, others: list[str], is_lock: bool) -> list[str]:
    lost, low, high = (rounded(value, 1) for value in found.lost)
    words = [found.label, rounded(found.none, 1), rounded(found.right, 1)]
    failed = found.failed + ["skill within two points"] * (found.lost[0] > POINTS)
    return [*words, f"{lost} [{low}, {high}]", *others, "; ".join(failed) if is_lock else ""]


def rounded(share: float, digits: int = 0) -> str:
    """In per cent, and never -0."""
    return f"{round(100 * share, digits) + 0.0:.{digits}f}"


def change_of(before: np.ndarray, none: np.ndarray, right: np.ndarray) -> str:
    """From what to what, in per cent, the change with its interval, and what the password shows."""
    change, low, high, _ = paired_gap(before, none)
    told = " to ".join(rounded(verdicts.mean()) for verdicts in (before, none))
    told += f": {rounded(change)} [{rounded(low)}, {rounded(high)}]"
    return f"{told}; with {rounded(right.mean())}"
