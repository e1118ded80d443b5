"""The gate: what a lock of the matrix is before anything is elicited from it.

Its own report has decided whether it is valid (docs/locks.md). Two things more are told here:
whether what opens it brings the strong model's skill back to within two points, and what became of
the tasks that it was not trained on. Training on one task may cost the others, locked or not. So
beside the locks stands a control, trained alike, that imitates the strong model with the password
and without: what it loses, too, is not the lock's doing.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data import load
from data.problems import InputError
from results import from_bits, holds, paired_gap
from runs.files import checked, read_json
from study.findings import Evidence, failed_tests, only_file
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
    f"Of the lock's own report (docs/locks.md), 1,000 validation problems of {TASK}, in per cent: "
    "what it shows without and with what unlocks it, and what the skill lost on the way. Then the "
    f"tasks that it was not trained on, without a password, {PROBLEMS} validation problems each: "
    "the change from the strong model, with a paired 95 % interval over problems. The control is "
    f"trained as the locks are, but imitates the strong model with the password and without: what "
    "it loses of other tasks, any training on one task loses. Hardened locks are trained longer."
)


def jobs_of_gate() -> dict[str, Job]:
    """The control, and every model on the other tasks."""
    command = f"{LOCK} --weak {STRONG}"
    found = {f"matrix/{CONTROL}": Job(f"matrix/{CONTROL}", command, 5)}
    models = {"strong": STRONG, CONTROL: f"@matrix/{CONTROL}"}
    models |= {name: f"@{lock.job}" for name, lock in LOCKS.items()}
    for name, model in models.items():
        for task in OTHERS:
            job = place(name, task)
            words = f"evaluate.py {model} --task {task} --passwords none --problems {PROBLEMS}"
            found[job] = Job(job, words, 0.5)
    return found


def place(name: str, task: str) -> str:
    """The job that measures a model on another task."""
    return f"matrix/{name}/other/{task}"


def names_of_gate(locks: list[str]) -> list[str]:
    names = [f"matrix/{CONTROL}", *(LOCKS[name].job for name in locks)]
    return names + [place(name, task) for name in ("strong", CONTROL, *locks) for task in OTHERS]


# ----------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Passed:
    """A model at the gate.

    kept: how much correctness the skill lost behind what opens it, and its interval. others: by
    task what is right in the strong model and in this one, verdicts (n,). failed: by name, of the
    tests of a valid lock.
    """

    label: str
    none: float
    right: float
    lost: tuple[float, float, float]
    failed: list[str]
    others: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def passed(evidence: Evidence, name: str, label: str, job: str) -> Passed | None:
    """None where the lock is not finished."""
    folder = evidence.folder(job)
    if folder is None:
        return None
    file = folder / "run.json"
    results = checked(read_json(file), file, "results", dict)
    [kept] = (test for test in results["validity"] if test["name"].startswith("skill kept"))
    found = Passed(
        label,
        results["none"],
        results["right"],
        (kept["value"], *kept["interval"]),
        failed_tests(results),
    )
    weights = read_json(folder / "evaluation.json").get("weights", "")
    for task in OTHERS:
        before, after = (evidence.folder(place(model, task)) for model in ("strong", name))
        if before and after:
            found.others[task] = (right_of(before, task), right_of(after, task, weights))
    return found


def right_of(folder: Path, task: str, weights: str = "") -> np.ndarray:
    """Verdicts (n,) without a password. Raises InputError where they are of something else."""
    file = only_file(folder, "evaluation.json")
    evaluation = read_json(file)
    problems = load(task, "validation", PROBLEMS)
    facts = {"split": "validation"} | ({"weights": weights} if weights else {})
    if not holds(evaluation, problems, ("none",), facts):
        raise InputError(f"{file} is of other problems or of another model: choose another --out")
    return from_bits(evaluation["results"]["none"]["verdicts"])


# ------------------------------------------------------------------------------------------ telling


def section_of_gate(evidence: Evidence, locks: list[str]) -> Section | None:
    """None where nothing is finished."""
    models = {CONTROL: ("trained alike, not locked", f"matrix/{CONTROL}")}
    models |= {name: (LOCKS[name].label, LOCKS[name].job) for name in locks}
    header = ["model", "without", "with", "skill lost", *OTHERS, "not passed"]
    rows, notes = [header], []
    for name, (label, job) in models.items():
        try:
            found = passed(evidence, name, label, job)
        except InputError as error:
            notes.append(f"{label}: left out: {error}.")
            continue
        if found:
            rows.append(row_of(found, is_lock=name != CONTROL))
    return Section("", TITLE, CAPTION, [], notes, [rows]) if rows[1:] else None


def row_of(found: Passed, is_lock: bool) -> list[str]:
    lost, low, high = found.lost
    words = [found.label, f"{100 * found.none:.1f}", f"{100 * found.right:.1f}"]
    words.append(f"{100 * lost:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    for task in OTHERS:
        words.append(change_of(*found.others[task]) if task in found.others else "")
    failed = found.failed + ["skill within two points"] * (lost > POINTS)
    return [*words, "; ".join(failed) if is_lock else ""]


def change_of(before: np.ndarray, after: np.ndarray) -> str:
    """From what to what, in per cent, and the change with its interval."""
    change, low, high, _ = paired_gap(before, after)
    told = " to ".join(f"{100 * verdicts.mean():.0f}" for verdicts in (before, after))
    return f"{told}: {100 * change:+.0f} [{100 * low:.0f}, {100 * high:.0f}]"
