"""Over models: four locks of one recipe beside four twins of one recipe.

A cell of the matrix is of one lock, and its interval is over problems and seeds of the elicitation.
Another lock of the same recipe may differ by more. Here the model is the unit. The locks are those
of the matrix's password, trained with four seeds. The twins were trained by the same command, but
from data/base/twin on and with the weak model as both policies: they never had the capability.
Beside them two decoys of another kind: the small weak model, and the strong model tuned on another
task, which hides nothing, but may have forgotten. All are elicited alike, with one seed.
"""

from dataclasses import dataclass, field, replace
from itertools import combinations, product

import numpy as np

from checkpoints.hf import model_hash
from data.problems import InputError
from results import Estimate, difference, excess, holds, holm, measured_of, recovered_gap
from runs.files import checked, read_json
from study.findings import (
    PROBLEMS,
    Evidence,
    Lock,
    check_alike,
    only_file,
    settings_of,
    unknown_model,
)
from study.jobs import ROOT, Job
from study.matrix import ELICITORS, LOCK, LOCKS, TASK, TWIN, at, in_points, place, points, unlocked
from study.report import Section

WEAK = "data/base/weak"
SIBLINGS = 4
SEED = 0  # of the elicitations
# the rows: keys of ELICITORS
HEADLINE = ("half", "sft1", "sft8", "sft64", "ei")
# {name of a model: (job, command)}, of locks and of twins; the first lock is the matrix's own
HAD = {"password": (LOCKS["password"].job, "")}
HAD |= {f"lock{i}": (f"matrix/lock{i}", f"{LOCK} --seed {i}") for i in range(1, SIBLINGS)}
NEVER = {
    f"twin{i}": (
        f"matrix/twin{i}",
        f"{LOCK} --strong {WEAK} --weak {WEAK} --start {TWIN} --seed {i}",
    )
    for i in range(SIBLINGS)
}
# the strong model, tuned on another task alone, in as many steps of as many texts as a lock; the
# small models that train_base.py makes beside it are not used
OTHER = "mmlu"
TUNED = Job(
    "matrix/tuned",
    f"train_base.py --task {OTHER} --strong-from data/base/strong --problems 4000 --epochs 8 "
    "--batch 32 --small-problems 100 --small-epochs 1",
    4,
)
DECOYS = {"small": WEAK, "other": f"@{TUNED.name}/strong"}

TITLE = "The models: four locks beside four twins"
CAPTION = (
    "The rows of the matrix that are quoted most, over models: four locks by a password, trained "
    "with four seeds, and four twins, which never had the skill. In per cent of 500 validation "
    "problems, greedy, without the password. Excess is the locks' mean gain over the twins'."
)

METHOD = [
    "Twins are trained by the locks' command from data/base/twin on, with the weak model as both "
    "policies.",
    "Where the twins lose, excess is the locks' gain alone. Its 95 % interval and p are over "
    "problems and models, Student's t on four of each. p is of the locks' ending above the twins "
    "where that is less sure, and has Holm's correction for five rows.",
    "By labels: of all 70 ways to call four of the eight models locks the share with a difference "
    "no smaller, one-sided, not corrected; 1 in 70 is the least there is.",
    "All models are elicited with one seed, so with the same demonstrations: others are not spoken "
    "for, least of all where there is one.",
    "All locks start from one strong model and all twins from one twin: a model of another origin "
    "is not spoken for.",
    "Two decoys more, one model each, from what they show to what they show then: the small weak "
    "model; and the strong model after it was tuned on mmlu alone, in as many steps of as many "
    "texts as a lock, which hides nothing: what comes back there was forgotten.",
]


def jobs_of_siblings() -> dict[str, Job]:
    found = {}
    for name, (job, command) in (HAD | NEVER).items():
        if command:
            found[job] = Job(job, command, 5)
        for elicitor in (ELICITORS[key] for key in HEADLINE):
            cell = place(name, elicitor).format(seed=SEED)
            words = at(elicitor.command, f"@{job}", name).format(seed=SEED)
            found[cell] = Job(cell, words, elicitor.minutes)

    found[TUNED.name] = TUNED
    for name, model in DECOYS.items():
        words = f"evaluate.py {model} --task {TASK} --passwords none right --problems {PROBLEMS}"
        found[itself(name)] = Job(itself(name), words, 0.5)
        for elicitor in (ELICITORS[key] for key in HEADLINE):
            cell = place(name, elicitor).format(seed=SEED)
            words = at(elicitor.command, model, name).format(seed=SEED)
            found[cell] = Job(cell, f"{words} --task {TASK}", elicitor.minutes)
    return found


def itself(name: str) -> str:
    """The job that measures a decoy as it is."""
    return f"matrix/{name}/itself"


def names_of_siblings(elicitors: list[str]) -> list[str]:
    """The jobs of those of these elicitors that are rows."""
    found = []
    for key in (key for key in HEADLINE if key in elicitors):
        for name, (job, _) in (HAD | NEVER).items():
            found += [job, place(name, ELICITORS[key]).format(seed=SEED)]
        for name in DECOYS:
            found += [itself(name), place(name, ELICITORS[key]).format(seed=SEED)]
    return list(dict.fromkeys(found))


# ----------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Family:
    """Models of one recipe: what they show, verdicts (M,n), and after an elicitor, (M,n)."""

    locks: list[Lock]
    before: np.ndarray
    after: np.ndarray

    @property
    def changes(self) -> np.ndarray:
        return self.after.astype(float) - self.before

    @property
    def gains(self) -> np.ndarray:
        """(M,): of each model's correctness."""
        return self.changes.mean(1)


def family(evidence: Evidence, models: dict[str, tuple[str, str]], key: str) -> Family | None:
    """None where a model is not finished.

    Raises InputError where one was trained with other settings than the first, but for its seed.
    """
    elicitor, locks, after, settings = ELICITORS[key], [], [], []
    for name, (job, _) in models.items():
        lock = evidence.lock(job)
        found = unlocked(evidence, lock, place(name, elicitor), elicitor) if lock else None
        if found is None:
            return None
        settings.append(settings_of(lock.folder / "run.json"))
        check_alike(settings, "seed", job)
        locks.append(lock)
        after.append(found[0])
    return Family(locks, np.stack([lock.none for lock in locks]), np.stack(after))


def decoy(evidence: Evidence, name: str, key: str) -> Family | None:
    """Of one model that no lock made; None where it is not finished.

    Raises InputError where what it shows was measured of another model.
    """
    folder, elicitor = evidence.folder(itself(name)), ELICITORS[key]
    if folder is None:
        return None
    file = only_file(folder, "evaluation.json")
    evaluation = read_json(file)
    weights = checked(evaluation, file, "weights", str)
    is_ours = not DECOYS[name].startswith("@")
    where = ROOT / DECOYS[name] if is_ours else folder
    dtype = str(evaluation.get("dtype", ""))
    model = replace(unknown_model(where, TASK), weights=weights, dtype=dtype)
    facts = {"split": "validation", "trigger": model.trigger.record}
    if not holds(evaluation, model.problems, ("none", "right"), facts):
        raise InputError(f"{file} does not hold the verdicts on the problems of {TASK}")
    if is_ours and weights != model_hash(where):
        raise InputError(f"{file} is of another model than the one that is now in {DECOYS[name]}")
    measured = measured_of(evaluation, len(model.problems))
    none, right = (measured[kind].correct for kind in ("none", "right"))
    model = replace(model, none=none, right=right)
    after = unlocked(evidence, model, place(name, elicitor), elicitor)
    return None if after is None else Family([model], none[None], after)


@dataclass(frozen=True)
class Told:
    """A row: gap recovered of each lock, gains of locks and twins, excess, p over models.

    by_labels: a second p, of models alone, of gains or none where a model loses. decoys: by name
    what each shows, and after the elicitor.
    """

    recovered: list[float]
    locks: Family
    twins: Family
    excess: Estimate
    p: float
    by_labels: float
    decoys: dict[str, Family | None] = field(default_factory=dict)


def told_of(locks: Family, twins: Family) -> Told:
    recovered = []
    for lock, after in zip(locks.locks, locks.after):
        try:
            recovered.append(recovered_gap(lock.none, lock.right, after[None]).value)
        except InputError as error:
            raise InputError(f"{lock.folder.name}: {error}") from None
    more = excess(twins.changes, locks.changes)
    above = difference(twins.after, locks.after)
    p = max(more.p_not_above(0.0), above.p_not_above(0.0))
    gains = (np.maximum(family.gains, 0) for family in (locks, twins))
    return Told(recovered, locks, twins, more, p, by_labels(*gains))


def by_labels(locks: np.ndarray, twins: np.ndarray) -> float:
    """The share of labellings of these numbers with a difference of means no smaller, exact."""
    values = np.concatenate([locks, twins])
    found = locks.mean() - twins.mean()
    as_large = []
    for chosen in combinations(range(len(values)), len(locks)):
        mask = np.isin(np.arange(len(values)), chosen)
        as_large.append(values[mask].mean() - values[~mask].mean() >= found - 1e-12)
    return float(np.mean(as_large))


# ------------------------------------------------------------------------------------------ telling


def section_of_siblings(evidence: Evidence, elicitors: list[str]) -> Section | None:
    """None where no row is finished. evidence: of the seed of these elicitations."""
    rows, notes = {}, []
    for key in (key for key in HEADLINE if key in elicitors):
        try:
            locks, twins = (family(evidence, models, key) for models in (HAD, NEVER))
            if locks and twins:
                rows[key] = told_of(locks, twins)
        except InputError as error:
            notes.append(f"{ELICITORS[key].label}: left out: {error}.")
    if not rows and not notes:
        return None
    for key, name in product(rows, DECOYS):
        try:
            rows[key].decoys[name] = decoy(evidence, name, key)
        except InputError as error:
            notes.append(f"{ELICITORS[key].label}, {name}: left out: {error}.")
    for job, _ in HAD.values():
        lock = evidence.locks.get(job)
        if lock and lock.failed:
            notes.append(f"{job} is not valid ({'; '.join(lock.failed)}).")
    header = ["elicitor", "gap recovered, by lock", "gains of locks", "gains of twins"]
    table = [[*header, "excess", "p", "by labels", "weak model", f"tuned on {OTHER}"]]
    # of all rows, as of those that are not there might come the smallest
    p_values = [row.p for row in rows.values()] + [1.0] * (len(HEADLINE) - len(rows))
    for (key, row), p in zip(rows.items(), holm(p_values)):
        words = [ELICITORS[key].label, several(row.recovered)]
        words += [several(row.locks.gains), several(row.twins.gains)]
        words += [in_points(row.excess), f"{p:.4f}", f"{row.by_labels:.3f}"]
        table.append(words + [from_to(row.decoys.get(name)) for name in DECOYS])
    return Section("", TITLE, CAPTION, [], notes, [table] if rows else [], METHOD)


def from_to(found: Family | None) -> str:
    """What one model shows, and after the elicitor, in per cent."""
    if found is None:
        return ""
    return f"{points(found.before.mean())} to {points(found.after.mean())}"


def several(shares: np.ndarray | list[float]) -> str:
    """In per cent, one after the other."""
    return ", ".join(str(points(share)) for share in shares)
