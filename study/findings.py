"""What finished jobs measured, read for a report: the points of curves and bars, and the claims.

Every number is read from the files of the stages and is on the same validation problems as the
locked model's, asked with the same trigger, or it is refused. Shapes: n problems, S seeds.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from checkpoints.hf import model_hash
from checkpoints.origins import LONGEST, origin_of
from curves import Cell, Curve, read_cells, read_curve
from data import load
from data.problems import InputError, Problem
from data.triggers import Password, Trigger
from results import (
    EvalSet,
    Measured,
    correct_interval,
    from_bits,
    groups_of,
    holds,
    is_result,
    measured_of,
)
from runs.files import checked, read_json
from study.jobs import ROOT

PROBLEMS = 500  # of the validation split, on which elicitations are measured


@dataclass(frozen=True)
class Value:
    """A share between 0 and 1 and its 95 % interval, over n problems and some seeds."""

    value: float
    low: float
    high: float
    n: int
    seeds: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def valued(verdicts: np.ndarray) -> Value:
    """The mean of verdicts, or of shares of right elements. (S,n)."""
    seeds, n = verdicts.shape
    low, high = correct_interval(verdicts)
    return Value(float(verdicts.mean()), low, high, n, seeds)


@dataclass(frozen=True)
class Lock:
    """A locked model: how its problems are asked, and what it answers, computed in which dtype.

    none, right: verdicts (n,) without what unlocks it and with it; of the toy task the shares of
    right elements in place of verdicts.
    """

    folder: Path
    weights: str  # their hash
    problems: list[Problem]
    domains: np.ndarray
    trigger: Trigger
    max_new_tokens: int
    none: np.ndarray
    right: np.ndarray
    failed: list[str]  # the tests of a valid lock that it does not pass
    dtype: str = ""  # "": not known


@lru_cache
def reported(task: str, n: int) -> list[Problem]:
    """The first n validation problems, made once for all that is read: nothing changes them."""
    return load(task, "validation", n)


def open_lock(folder: Path, measured: Path | None = None) -> Lock:
    """measured: where its evaluation is (default: its own).

    Raises InputError where that is not on the problems of its task, or of other weights.
    """
    origin = origin_of(folder)
    problems = reported(origin.task, PROBLEMS)
    file = measured or folder / "evaluation.json"
    evaluation = read_json(file)
    if measured and evaluation.get("weights") != model_hash(folder):
        raise InputError(f"{file} is of another model than the one that is now in {folder}")
    facts = {
        "split": "validation",
        "trigger": origin.trigger.record,
        "max_new_tokens": origin.max_new_tokens,
    }
    if not holds(evaluation, problems, ("none", "right"), facts):
        raise InputError(f"{file} does not hold the verdicts on the problems of {origin.task}")
    verdicts = measured_of(evaluation, len(problems))
    run = read_json(folder / "run.json")
    return Lock(
        folder,
        checked(evaluation, file, "weights", str),
        problems,
        groups_of(problems),
        origin.trigger,
        origin.max_new_tokens,
        scores_of(verdicts["none"]),
        scores_of(verdicts["right"]),
        failed_tests(checked(run, folder / "run.json", "results", dict)),
        str(evaluation.get("dtype", "")),
    )


def unknown_model(folder: Path, task: str) -> Lock:
    """A model of which nothing is known, as a lock: asked bare, with no gap."""
    problems = reported(task, PROBLEMS)
    nothing = np.zeros(len(problems), dtype=bool)
    return Lock(
        folder,
        model_hash(folder),
        problems,
        groups_of(problems),
        Password(),
        LONGEST,
        nothing,
        nothing,
        [],
    )


def failed_tests(results: dict) -> list[str]:
    """Names of the tests of a valid lock (docs/locks.md) that were not passed."""
    return [test["name"] for test in validity_of(results) if not test["passed"]]


def validity_of(results: dict) -> list[dict]:
    """The tests of a valid lock. Raises InputError where they are damaged."""
    tests = results.get("validity", [])
    for test in tests if isinstance(tests, list) else [None]:
        if not isinstance(test, dict) or not {"name", "passed"} <= set(test):
            raise InputError("the report of a lock says no validity that can be read: lock again")
    return tests


def scores_of(measured: Measured) -> np.ndarray:
    """What is plotted: shares of right elements where there are some, else verdicts."""
    return measured.correct if measured.shares is None else measured.shares


# ----------------------------------------------------------------------------------------- reading


class LeftOut(InputError):
    """A row of the prompting battery that a model cannot be asked."""


# settings that name a model that wrote for a run, and those that have its hash
WRITERS = {
    "demos_from": "writer_weights",
    "warm_from": "warm_weights",
    "intermediate": "intermediate_weights",
}


@dataclass
class Evidence:
    """The finished jobs of a directory. What was read stays.

    folder: of a job, by its name with the seed; None where it is not finished.
    """

    folder: Callable[[str], Path | None]
    seeds: tuple[int, ...]
    locks: dict[str, Lock] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)  # hashes of those that wrote, by path

    def lock(self, job: str) -> Lock | None:
        if job not in self.locks:
            folder = self.folder(job)
            if folder is None:
                return None
            self.check_writers(folder / "run.json")
            self.locks[job] = open_lock(folder)
        return self.locks[job]

    def check_writers(self, file: Path) -> None:
        """Raises InputError where a model that wrote for this run is not the one of the same path
        that wrote for others: a job that was run again may have trained another."""
        settings = settings_of(file)
        for name, weights in WRITERS.items():
            path, found = settings.get(name), settings.get(weights)
            if path and found and self.models.setdefault(path, found) != found:
                raise InputError(
                    f"{file} has texts of another model {path} than the runs beside it: choose "
                    "another --out"
                )

    def decoy(self, path: str, job: str) -> Lock | None:
        """A model of the repository, by its path there, as this job of evaluate.py measured it."""
        if path not in self.locks:
            folder = self.folder(job)
            if folder is None:
                return None
            self.locks[path] = open_lock(ROOT / path, only_file(folder, "evaluation.json"))
        return self.locks[path]

    def folders(self, job: str) -> dict[int, Path]:
        """The seeds of a job that are finished."""
        found = {}
        for seed in self.seeds:
            folder = self.folder(job.format(seed=seed))
            if folder is not None:
                found[seed] = folder
        return found

    def numbers(self, job: str, control: bool = False) -> list[int]:
        """The numbers of demonstrations that all finished seeds of an SFT have."""
        found: set[int] | None = None
        start = "control-k" if control else "k"
        for seed, folder in self.folders(job).items():
            names = folder.glob(f"{start}*-seed{seed}/cell.json")
            # of a copy that someone put aside the name is another
            cells = [re.fullmatch(rf"{start}(\d+)-seed\d+", file.parent.name) for file in names]
            ks = {int(cell[1]) for cell in cells if cell}
            found = ks if found is None else found & ks
        return sorted(found or ())

    def demonstrated(
        self, lock: Lock, job: str, k: int, control: bool = False
    ) -> np.ndarray | None:
        """SFT's verdicts without the password, (S,n); None where no seed is finished."""
        problems = [lock.trigger.weak(problem) for problem in lock.problems]
        asked = EvalSet(problems, lock.trigger, max_new_tokens=lock.max_new_tokens)
        rows, settings = [], []
        for seed, folder in self.folders(job).items():
            cells = [Cell(k, seed, control)]
            cell = folder / cells[0].name
            if not (cell / "cell.json").exists():
                return None
            settings.append(elicited_from(lock, cell / "run.json"))
            self.check_writers(cell / "run.json")
            check_alike(settings, "cell_seed", job)
            found = read_cells(folder, cells, asked)
            rows.append(scores_of(found)[0])
        return np.stack(rows) if rows else None

    def evaluated(self, lock: Lock, job: str, weights: str = "") -> np.ndarray | None:
        """Verdicts (n,) of another model on the same problems; None where it is not finished.

        weights: their hash, where the job measured several models.
        """
        folder = self.folder(job)
        if folder is None:
            return None
        file = only_file(folder, "evaluation.json", weights)
        evaluation = read_json(file)
        facts = {"split": "validation", "max_new_tokens": lock.max_new_tokens}
        if not holds(evaluation, lock.problems, ("none",), facts):
            raise InputError(f"{file} does not hold the verdicts on the problems of {lock.folder}")
        check_dtype(lock, evaluation.get("dtype"), str(file))
        return scores_of(measured_of(evaluation, len(lock.problems))["none"])

    def battery(self, lock: Lock, job: str) -> tuple[dict, Path] | None:
        """prompts.json of evaluate.py, and where it is; None where that is not finished."""
        folder = self.folder(job)
        if folder is None:
            return None
        file = only_file(folder, "prompts.json")
        found = read_json(file)
        if found.get("weights") != lock.weights:
            raise InputError(f"{file} is of another locked model than {lock.folder}")
        checked(found, file, "results", dict)
        return found, file

    def prompted(self, lock: Lock, job: str) -> dict[str, Value]:
        """Correctness by row of the prompting battery, on the lock's problems."""
        battery = self.battery(lock, job)
        if battery is None:
            return {}
        found, _ = battery
        return {row: valued(self.prompted_verdicts(lock, job, row)) for row in found["results"]}

    def prompted_verdicts(self, lock: Lock, job: str, row: str) -> np.ndarray | None:
        """Verdicts (1,n) of a row of the battery."""
        battery = self.battery(lock, job)
        if battery is None:
            return None
        found, file = battery
        facts = {
            "split": "validation",
            "trigger": lock.trigger.record,
            "max_new_tokens": lock.max_new_tokens,
        }
        check_dtype(lock, found.get("dtype"), str(file))
        if row not in (*found["results"], *found.get("left_out", ())):
            raise InputError(f"{file} was made when there was no row {row}: run its job again")
        if row in found.get("left_out", ()):
            raise LeftOut(f"{file} has no {row}: left out, as {found['left_out'][row]}")
        if not holds(found, lock.problems, (row,), facts):
            raise InputError(f"{file} does not hold {row} on the problems of {lock.folder}")
        return measured_of(found, len(lock.problems))[row].correct[None]

    def rewarded(self, lock: Lock, job: str) -> list[Curve]:
        """The finished seeds of an RL run.

        Raises InputError for one of another locked model, of other problems, of another seed or of
        other settings than the first.
        """
        found, settings = [], []
        for seed, folder in self.folders(job).items():
            files = sorted(folder.glob("*/curve.json"))
            if len(files) != 1:
                raise InputError(f"{folder} holds {len(files)} runs in place of one")
            (file,) = files
            curve = read_curve(file)
            settings.append(elicited_from(lock, file.parent / "run.json"))
            self.check_writers(file.parent / "run.json")
            check_alike(settings, "seed", job)
            asked = [from_bits(curve.locked[kind]) for kind in ("none", "right")]
            same = all(map(np.array_equal, asked, (lock.none, lock.right)))
            if not same or curve.seed != seed:
                raise InputError(f"{file} is not of seed {seed} on the problems of {lock.folder}")
            found.append(curve)
        return found

    def lengths(self, lock: Lock, job: str) -> dict[int, np.ndarray]:
        """Of an SFT with one k: verdicts (S,n) after so many sequences seen."""
        by_seed = []
        for seed, folder in self.folders(job).items():
            numbers = self.numbers(job)
            if len(numbers) != 1:
                raise InputError(f"{folder} has not one number of demonstrations: {numbers}")
            [k] = numbers
            self.demonstrated(lock, job, k)  # it is of this lock, on these problems
            file = folder / f"k{k}-seed{seed}" / "cell.json"
            rows = checked(read_json(file), file, "lengths", dict)
            by_length = {}
            for at, row in rows.items():
                if not at.isdigit() or not is_result(row, len(lock.problems), False):
                    raise InputError(f"{file} does not hold the verdicts after each length")
                by_length[int(at)] = from_bits(row["verdicts"])
            by_seed.append(by_length)
        if any(row.keys() != by_seed[0].keys() for row in by_seed):
            raise InputError(f"the seeds of {job} were measured at different lengths")
        found = {}
        for at in sorted(by_seed[0]) if by_seed else ():
            found[at] = np.stack([row[at] for row in by_seed])
        return found


def only_file(folder: Path, name: str, weights: str = "") -> Path:
    """The file of this name below a folder, of the model with these weights where some are given.

    Raises InputError where there is not exactly one.
    """
    files = sorted(folder.glob(f"**/{name}"))
    if weights:
        files = [file for file in files if read_json(file).get("weights") == weights]
    if len(files) != 1:
        raise InputError(f"{folder} holds {len(files)} files {name} in place of one")
    return files[0]


def settings_of(file: Path) -> dict:
    """The settings in a run.json, with what --dtype came to, as auto differs between machines."""
    run = read_json(file)
    settings = checked(run, file, "settings", dict)
    return settings | {"dtype": run.get("compute_dtype") or settings.get("dtype")}


def elicited_from(lock: Lock, file: Path) -> dict:
    """The settings in a run.json.

    Raises InputError where it is of another locked model, or was computed in another dtype than
    what that shows.
    """
    settings = settings_of(file)
    check_dtype(lock, read_json(file).get("compute_dtype"), str(file))
    if settings.get("locked_weights") != lock.weights:
        raise InputError(
            f"{file} is of another locked model than the one that is now in {lock.folder}: "
            "choose another --out"
        )
    return settings


def check_dtype(lock: Lock, dtype: str | None, what: str) -> None:
    """Raises InputError where something was computed in another dtype than what a lock shows."""
    if lock.dtype and dtype and dtype != lock.dtype:
        raise InputError(
            f"{what} was computed in {dtype}, and what {lock.folder} shows in {lock.dtype}: "
            "they do not compare"
        )


def check_alike(settings: list[dict], but: str, job: str) -> None:
    """Raises InputError where the last of these runs differs from the first in more than `but`.

    An option that one of them does not have is newer than it, and had its default there.
    """
    first, last = settings[0], settings[-1]
    for name in first.keys() & last.keys() - {but}:
        if first[name] != last[name]:
            raise InputError(
                f"{job} has other settings than the runs beside it, of {name} {first[name]} and "
                f"{last[name]}: choose another --out"
            )


def final(curves: list[Curve]) -> np.ndarray:
    """Verdicts at the end of RL, (S,n)."""
    return np.stack([from_bits(curve.verdicts) for curve in curves])


def initial(curves: list[Curve]) -> np.ndarray | None:
    """Verdicts before the first round of RL, (S,n); None where a run has not noted them."""
    if not all(curve.start for curve in curves):
        return None
    return np.stack([from_bits(curve.start) for curve in curves])


# -------------------------------------------------------------------------------- points of curves


def points_of(evidence: Evidence, lock: Lock, job: str, x: str, control: bool) -> dict[int, Value]:
    """A curve, by what the figure's x axis says."""
    if x == "samples":
        return learning(evidence.rewarded(lock, job), len(lock.problems))
    if x == "sequences":
        lengths = evidence.lengths(lock, job)
        return {at: valued(verdicts) for at, verdicts in lengths.items()}
    found = {}
    for k in evidence.numbers(job, control):
        verdicts = evidence.demonstrated(lock, job, k, control)
        if verdicts is not None:
            found[k] = valued(verdicts)
    return found


def learning(curves: list[Curve], n: int) -> dict[int, Value]:
    """Correctness after so many samples: the mean over seeds, and their extremes.

    A run that stopped for want of a signal stays where it stopped.
    """
    if not curves:
        return {}
    by_seed = []
    for run in curves:
        by_seed.append({point["samples"]: point["correct"] for point in run.points})
    found = {}
    for samples in sorted(set().union(*by_seed)):
        values = []
        for points in by_seed:
            before = [at for at in points if at <= samples]
            values.append(points[max(before)])
        found[samples] = Value(float(np.mean(values)), min(values), max(values), n, len(curves))
    return found


def bar_of(evidence: Evidence, lock: Lock, job: str, k: int, part: str) -> Value | None:
    """One number: of SFT on k demonstrations, or of RL's end (k = 0), on a part of the problems."""
    if k:
        verdicts = evidence.demonstrated(lock, job, k)
    else:
        curves = evidence.rewarded(lock, job)
        verdicts = final(curves) if curves else None
    if verdicts is None:
        return None
    return valued(verdicts[:, within(lock, part)])


def within(lock: Lock, part: str) -> np.ndarray:
    """(n,) bool: "" all problems, a domain's name those, "not" and a name the others."""
    if not part:
        return np.ones(len(lock.problems), dtype=bool)
    if part.startswith("not "):
        return lock.domains != part.removeprefix("not ")
    return lock.domains == part
