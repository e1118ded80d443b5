"""Jobs: commands of the stages that need one another, run as processes, some at a time.

A job is done when its record says so; one that was interrupted is started again, and its stage goes
on where it stopped. A job that fails is named, those that need it are left out, all others go on.
One process at a time works on a directory.
"""

import ctypes
import fcntl
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

from checkpoints.origins import LOCKS
from data.problems import InputError
from runs.devices import DTYPES, dtype_of, processor
from runs.directory import named
from runs.files import checked, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """One command of a stage, whose output directory is the job's name below that of all jobs.

    command: the stage and its options, without --out; @name stands for the directory of another
    job, which it needs. minutes: about how long it takes on one core.
    """

    name: str
    command: str
    minutes: float

    @property
    def needs(self) -> list[str]:
        """The jobs whose directories the command names, by their longest name."""
        return re.findall(r"@([\w/+.-]+)", self.command)

    @property
    def stage(self) -> str:
        return self.command.split()[0].removesuffix(".py")


def needed(job: Job, jobs: dict[str, Job]) -> list[str]:
    """Names of the jobs that a job needs. A directory within a job's is that job's."""
    found = []
    for place in job.needs:
        owners = [name for name in jobs if f"{place}/".startswith(f"{name}/")]
        if not owners:
            raise ValueError(f"{job.name} needs {place}, which no job makes")
        found.append(max(owners, key=len))
    return found


def closure(names: list[str], jobs: dict[str, Job]) -> list[Job]:
    """The jobs of these names and all that they need, each after what it needs."""
    found: dict[str, Job] = {}

    def add(name: str) -> None:
        if name in found:
            return
        for other in needed(jobs[name], jobs):
            add(other)
        found[name] = jobs[name]

    for name in names:
        add(name)
    return list(found.values())


# ------------------------------------------------------------------------------------- the records

# exit codes that end a job well: of lock.py and harden.py a lock that is not valid, of elicit_rl.py
# a run that found nothing to train on. Both are results.
ENDED = {"lock": (0, 1), "harden": (0, 1), "elicit_rl": (0, 3)}

# what a finished stage leaves in its directory: what it measured, and what other jobs go on from.
# The weights may be gone afterwards, for room or because only results were kept
RESULTS = {
    "lock": "evaluation.json",
    "harden": "evaluation.json",
    "elicit_sft": "summary.json",
    "elicit_rl": "*/curve.json",
    "elicit_tampering": "summary.json",
    "evaluate": "**/*.json",
}
WEIGHTS = {
    "train_base": "strong/model*.safetensors",
    "lock": "model*.safetensors",
    "harden": "model*.safetensors",
    "elicit_sft": "*/*model*.safetensors",  # unlock vectors
}


@dataclass
class Place:
    """The directory of all jobs. inputs: a hash of the models that they start from.

    named: {path: hash} of models that are inputs of those jobs alone whose commands name them.
    secret: which jobs there are is not told while they run.
    """

    path: Path
    inputs: str = ""
    named: dict[str, str] = field(default_factory=dict)
    secret: bool = False
    lock: TextIO | None = field(default=None, repr=False)

    def claim(self) -> None:
        """Keep others out until this process and its jobs have ended.

        Raises InputError where another is at work. The jobs inherit the open file, and so the lock.
        """
        (self.path / "jobs").mkdir(parents=True, exist_ok=True)
        self.lock = open(self.path / "jobs" / ".lock", "a")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another reproduce.py is at work in {self.path}: wait for it, or choose another "
                "--out"
            ) from None

    def folder(self, name: str) -> Path:
        return self.path / name

    def file(self, job: Job, suffix: str) -> Path:
        return self.path / "jobs" / (job.name.replace("/", "--") + suffix)

    def words(self, job: Job) -> list[str]:
        """The command line: the stage, its options, its place.

        What lies below the repository is named from there, so that no run.json says where that is.
        """
        base = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        found = []
        for word in shlex.split(job.command):
            if word.startswith("@"):
                word = str(base / word[1:])
            found.append(word)
        found += ["--out", str(base / job.name)]
        if job.stage in ("train_base", "lock", "harden", "elicit_rl"):
            found.append("--resume")
        if job.stage != "elicit_tampering":  # always fp32
            found += self.dtype_of_models(job)
        return found

    def dtype_of_models(self, job: Job) -> list[str]:
        """--dtype of the models that a job goes on from, where auto would be another here."""
        noted = set()
        for word in shlex.split(job.command):
            file = self.path / word[1:] / "run.json"
            if word.startswith("@") and file.exists():
                noted.add(read_json(file).get("compute_dtype"))
        noted &= set(DTYPES) - {named(dtype_of("auto", torch.cuda.is_available()))}
        return ["--dtype", DTYPES[noted.pop()]] if len(noted) == 1 else []

    def record(self, job: Job) -> dict | None:
        """What is noted of a finished job; None where it is not finished, or as another command."""
        found = self.noted(job)
        if not found or self.stale(job, found) or not self.has_results(job):
            return None
        return found

    def noted(self, job: Job) -> dict | None:
        """The record of a job, whatever it says."""
        file = self.file(job, ".json")
        if not os.path.lexists(file):
            return None
        found = read_json(file)
        for name in ("command", "inputs"):
            checked(found, file, name, str)
        checked(found, file, "seconds", float, least=0)
        return found

    def stale(self, job: Job, noted: dict) -> str:
        """Why a record is not of this job as it would be run now; "" where it is."""
        if noted["command"] != job.command:
            return f"it was made by another command, `{noted['command']}`"
        if noted["inputs"] != self.inputs_of(job):
            return "it was made from other models"
        return ""

    def inputs_of(self, job: Job) -> str:
        words = job.command.split()
        return "-".join([self.inputs, *(self.named[path] for path in self.named if path in words)])

    def has_results(self, job: Job) -> bool:
        """Whether what a job measured is there. A lock's run.json says that it is finished."""
        folder = self.folder(job.name)
        if job.stage == "train_base":
            return True  # it measures nothing that is told
        if job.stage in LOCKS and not is_finished(folder / "run.json"):
            return False
        return any(folder.glob(RESULTS.get(job.stage, "*")))

    def has_weights(self, job: Job) -> bool:
        """Whether others can go on from what a job made."""
        pattern = WEIGHTS.get(job.stage, "*")
        if "--no-keep-weights" in job.command:
            pattern = "*"
        return any(self.folder(job.name).glob(pattern))

    def finished(self, jobs: dict[str, Job]) -> Callable[[str], Path | None]:
        """The folder of a job by its name, None where it is not finished."""

        def folder(name: str) -> Path | None:
            is_done = name in jobs and self.record(jobs[name])
            return self.folder(name) if is_done else None

        return folder


def is_finished(file: Path) -> bool:
    return os.path.lexists(file) and read_json(file).get("finished") is True


# --------------------------------------------------------------------------------------- running


@dataclass
class Running:
    """A job that is at work."""

    job: Job
    process: subprocess.Popen
    began: float
    place: int  # among those that run at a time
    commit: str  # of the code that it runs


def die_with_parent() -> None:
    """In the child, on Linux: end when the parent does, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def start(job: Job, place: Place, threads: int, at: int, devices: int) -> Running:
    """Begin a job. What it prints goes into its .log, its complaints and bars into its .err.

    at: its place among those that run at a time, which take the CUDA devices in turn.
    """
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="passive")
    if devices:
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = given.split(",") if given else range(devices)
        environment["CUDA_VISIBLE_DEVICES"] = str(names[at % devices])
    with open(place.file(job, ".log"), "w") as log, open(place.file(job, ".err"), "w") as errors:
        process = subprocess.Popen(
            [sys.executable, *place.words(job)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=errors,
            pass_fds=(place.lock.fileno(),),
            preexec_fn=die_with_parent,
        )
    return Running(job, process, time.time(), at, commit())


def last_words(place: Place, job: Job) -> str:
    """The last line that a job printed: where it failed, its sentence."""
    for suffix in (".err", ".log"):
        text = place.file(job, suffix).read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return "it printed nothing"


@dataclass
class Outcome:
    """failed: {name of a job: why}. left_out: jobs that need one of them."""

    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def run_jobs(jobs: list[Job], place: Place, workers: int, threads: int, devices: int) -> Outcome:
    """Run what is not done, `workers` at a time. jobs: each after what it needs. devices: CUDA's.

    Model by model: `in_order`. Raises what interrupts it, after its jobs have been ended.
    """
    by_name = {job.name: job for job in jobs}
    waiting = left_to_run(jobs, place)
    done = by_name.keys() - {job.name for job in waiting}
    waiting = in_order(waiting, jobs)

    outcome, running = Outcome(), []
    for job in list(waiting):
        why = in_the_way(job, place)
        if why:
            away = f"move {place.folder(job.name)} and {place.file(job, '.json')} away"
            outcome.failed[job.name] = f"{why}: {away}, or choose another --out"
            waiting.remove(job)
    needs = {job.name: needed(job, by_name) for job in jobs}
    waiting = kept(waiting, needs, outcome)
    free = list(range(min(workers, len(jobs))))
    bar = Bar(waiting, workers, place.secret)
    try:
        while waiting or running:
            if free:
                for job in ready(waiting, done, needs)[: len(free)]:
                    waiting.remove(job)
                    running.append(start(job, place, threads, free.pop(0), devices))
            ended = [one for one in running if one.process.poll() is not None]
            for one in ended:
                running.remove(one)
                free.append(one.place)
                finish(one, place, done, outcome)
                bar.ended(one.job, time.time() - one.began)
            if ended:
                waiting = kept(waiting, needs, outcome)
            bar.show(running)
            time.sleep(0.2)
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()
        bar.close()
    return outcome


def without_seeds(names: list[str]) -> list[str]:
    """Names of jobs, those that differ in their seed alone once."""
    return list(dict.fromkeys(re.sub(r"/seed\d+", "", name) for name in names))


def left_to_run(jobs: list[Job], place: Place) -> list[Job]:
    """Those that are not done, and those whose weights they need and are gone."""
    by_name = {job.name: job for job in jobs}
    left = {job.name for job in jobs if not place.record(job)}
    for job in reversed(jobs):
        if job.name in left:
            left |= {name for name in needed(job, by_name) if not place.has_weights(by_name[name])}
    return [job for job in jobs if job.name in left]


def in_the_way(job: Job, place: Place) -> str:
    """Why a job cannot be run where an earlier one of its name left something; "" where it can."""
    noted = place.noted(job)
    why = place.stale(job, noted) if noted else ""
    is_measured = job.stage in (*LOCKS, "elicit_sft") and place.has_results(job)
    if not why and noted and is_measured:
        return "its weights are gone, others need them, and what they were measured to do is there"
    return why


def in_order(waiting: list[Job], jobs: list[Job]) -> list[Job]:
    """Model by model: what goes on from one stands together, the longest chains first.

    So a run that is stopped leaves models of which everything is measured, whose weights nobody
    needs again. jobs: all of them, each after what it needs.
    """
    by_name = {job.name: job for job in jobs}
    places = {job.name: i for i, job in enumerate(jobs)}
    minutes = chains(jobs, by_name)

    def key(job: Job) -> tuple[int, float]:
        origins = needed(job, by_name) or [job.name]
        return max(places[name] for name in origins), -minutes[job.name]

    return sorted(waiting, key=key)


def chains(jobs: list[Job], by_name: dict[str, Job]) -> dict[str, float]:
    """For each job the minutes of the longest chain that begins with it."""
    weights = {job.name: job.minutes for job in jobs}
    for job in reversed(jobs):
        for name in needed(job, by_name):
            weights[name] = max(weights[name], by_name[name].minutes + weights[job.name])
    return weights


Needs = dict[str, list[str]]  # by the name of a job the jobs that it needs


def ready(waiting: list[Job], done: set[str], needs: Needs) -> list[Job]:
    return [job for job in waiting if done.issuperset(needs[job.name])]


def kept(waiting: list[Job], needs: Needs, outcome: Outcome) -> list[Job]:
    """Without those that need what failed, or what is left out itself; they are noted."""
    lost = {*outcome.failed, *outcome.left_out}
    left_out = [job.name for job in waiting if not lost.isdisjoint(needs[job.name])]
    if not left_out:
        return waiting
    outcome.left_out += left_out
    return kept([job for job in waiting if job.name not in left_out], needs, outcome)


def finish(one: Running, place: Place, done: set[str], outcome: Outcome) -> None:
    """Note how a job ended."""
    job, code = one.job, one.process.returncode
    is_whole = place.has_results(job) and place.has_weights(job)
    if code not in ENDED.get(job.stage, (0,)) or not is_whole:
        why = f"killed by signal {-code}" if code < 0 else last_words(place, job)
        outcome.failed[job.name] = why
        if not place.secret:
            tqdm.write(f"failed: {job.name}: {why}; all it said: {place.file(job, '.err')}")
        return
    seconds = round(time.time() - one.began, 1)
    write_json(
        place.file(job, ".json"),
        {
            "command": job.command,
            "inputs": place.inputs_of(job),
            "seconds": seconds,
            "exit": code,
            "commit": one.commit,
            "machine": machine(),
        },
    )
    done.add(job.name)


def commit() -> str:
    """The repository's present commit, with + where files differ from it; "" without git."""
    words = ["git", "describe", "--always", "--dirty=+", "--exclude", "*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except OSError:
        return ""


def machine() -> str:
    """What a job ran on: the first CUDA device, or the kind of processor, and versions."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{processor_name()} CPU"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"


def processor_name() -> str:
    """As the system names it: "AMD EPYC 9R14"; where it does not, the kind of machine."""
    names = re.findall(r"^model name\s*: (.+)$", processor(), re.MULTILINE)
    return names[0] if names else platform.machine()


class Bar:
    """Minutes done and left. What jobs took so far corrects what the others are said to take.

    secret: neither names nor numbers are shown, which tell one job from another.
    """

    def __init__(self, waiting: list[Job], workers: int, secret: bool = False):
        self.secret = secret
        shown = "{elapsed} so far" if secret else "{n}/{total} jobs{desc}"
        self.left = {job.name: job.minutes for job in waiting}
        self.workers = workers
        self.expected = self.taken = 0.0
        total = len(waiting)
        self.bar = tqdm(total=total, dynamic_ncols=True, bar_format=shown)
        self.said = ""

    def ended(self, job: Job, seconds: float) -> None:
        self.expected += self.left.pop(job.name)
        self.taken += seconds / 60
        self.bar.update()

    def minutes_left(self, spent: dict[Job, float]) -> float:
        """spent: minutes so far, of each job that runs."""
        factor = self.factor(spent)
        minutes = factor * sum(self.left.values())
        for job, so_far in spent.items():
            minutes -= min(so_far, factor * job.minutes)
        return minutes / self.workers

    def factor(self, spent: dict[Job, float]) -> float:
        """How many times their estimate jobs take: those that ended, and of those that run the
        ones that already take longer than these say."""
        so_far = self.taken / self.expected if self.expected else 1.0
        overdue = {job: took for job, took in spent.items() if took > so_far * job.minutes}
        expected = self.expected + sum(job.minutes for job in overdue)
        taken = self.taken + sum(overdue.values())
        return taken / expected if expected else so_far

    def show(self, running: list[Running]) -> None:
        if self.secret:
            self.bar.refresh()
            return
        minutes = self.minutes_left({one.job: (time.time() - one.began) / 60 for one in running})
        names = ", ".join(one.job.name for one in running)
        text = f", about {minutes:.0f} minutes left; running {names}"
        if text != self.said:  # a log that it goes to is for reading, too
            self.said = text
            self.bar.set_description_str(text)

    def close(self) -> None:
        self.bar.close()
