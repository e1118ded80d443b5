"""A run's directory: what may stand there, what a stage leaves in it, what it goes on from."""

import contextlib
import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.hf import LAYOUTS
from data.problems import InputError
from data.real.rows import content_hash
from data.text import COPIED
from model import Model
from runs import states
from runs.devices import DTYPES, Env, check_shared
from runs.files import (
    checked,
    is_partial,
    read_json,
    read_rows,
    reason,
    shortened,
    write_json,
    write_text,
)
from runs.options import Config

# directories in which a run of this process is at work: the open files that keep others out
CLAIMED: dict[str, int] = {}


# -------------------------------------------------------------------------------- a run's directory

# options that change how fast a run is and what it needs, not what comes out
NOT_SETTINGS = {
    "out",
    "device",
    "micro_tokens",
    "slots",
    "save_every",
    "shard",
    "checkpoint_activations",
    "compile",
    "allow_unsandboxed_code",
    "resume",
    "overwrite",
    "plan",
    "devices",
    "device_memory",
}


class Run:
    """A stage's output directory: run.json, log.jsonl, and state/ for resuming.

    run.json has settings, versions and results. What may be found at `out`, and what happens:

        new             there is nothing yet, or nothing but run.json: the run starts
        unfinished      a run of these settings that has logged: --resume continues it
        finished        the same, ended: `finished` is True, the caller only shows its results
        other settings  refused, or replaced with --overwrite where it is of the same stage
        foreign         anything else, even with --overwrite: refused, never touched

    Rank 0 alone looks, decides and writes. facts: settings beside cfg's own, such as the parent's
    hash. apart: fields whose names start with one of these do not concern this run. inputs:
    directories that this run reads, none of which may be its own. resume: in place of cfg.resume.
    write: False only refuses what is to be refused.
    Raises InputError for what is refused and for a place that cannot be written.
    """

    # what a stage writes into its directory; other files and directories are never touched
    OUTPUTS = (
        "run.json",
        "README.md",
        "log.jsonl",
        "samples.jsonl",
        "demonstrations.jsonl",
        "evaluation.json",
        "prompts.json",
        "decoding.json",
        "cell.json",
        "summary.json",
        "curve.json",
        "reference-*.npy",
        "config.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        *COPIED,
        *LAYOUTS,
    )
    # directories that only exist while it runs, and what it writes into them; safetensors writes
    # into a file of the last name first, which a kill leaves behind
    PASSING = {
        "state": ("state.json*", "step-*.safetensors*", ".tmp??????"),
        ".saving": (*OUTPUTS, ".tmp??????"),
    }

    def __init__(
        self,
        cfg: Config,
        env: Env,
        out: str | Path,
        apart: tuple[str, ...] = (),
        inputs: tuple[str | Path, ...] = (),
        resume: bool | None = None,
        write: bool = True,
        **facts,
    ):
        self.path = Path(out)
        self.file = self.path / "run.json"
        self.env = env
        self.began = time.time()

        settings = {}
        for name, value in asdict(cfg).items():
            if name not in NOT_SETTINGS and not name.startswith(apart):
                settings[name] = value
        settings |= facts
        if settings.get("data"):
            # the same names may hold other rows by now
            settings["data_hash"] = content_hash(settings["data"])
        self.settings = json.loads(json.dumps(settings))

        # stands in for an option that an older run did not have yet
        self.defaults = json.loads(json.dumps(asdict(type(cfg)())))

        if resume is None:
            resume = getattr(cfg, "resume", False)
        self.refuse_inputs(inputs)
        env.wait()  # what one rank alone refuses, it has: nothing is written before
        self.record = env.decide(self.open, resume, cfg.overwrite, write)
        self.finished = self.record["finished"]
        if write:
            check_shared(env, self.file)

    def refuse_inputs(self, inputs: tuple[str | Path, ...]) -> None:
        """A run never writes into what it reads."""
        mine = os.path.realpath(self.path)
        for given in inputs:
            if os.path.exists(given) and os.path.realpath(given) == mine:
                raise InputError(
                    f"{self.path} is read by this run, so it cannot be written, too: "
                    "choose another --out"
                )

    def open(self, resume: bool, overwrite: bool, write: bool) -> dict:
        """Refuse what is at the path, or start or continue there. Returns run.json's content."""
        try:
            situation, old = self.look()
            if overwrite and old:
                self.refuse_other_stage(old)
                if not write:
                    self.refuse_running()
                    return old
                self.claim()
                self.clear()
                return self.start()

            self.refuse(situation, old, resume)
            if not write:
                return {"finished": False} | old
            if situation == "finished":
                self.remove_passing()  # it may have been killed before it did
                return old
            return self.start()
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({reason(error)}): choose another --out"
            ) from None

    def look(self) -> tuple[str, dict]:
        """What is at the path (see the class), and run.json's content where there is one."""
        if not os.path.lexists(self.path):
            return "new", {}
        if not self.path.is_dir():
            return "foreign", {}

        names = {file.name for file in self.path.iterdir()}
        if "run.json" not in names:
            # killed while run.json was first written, it left its temporary file
            is_new = all(is_partial(name, "run.json") for name in names)
            return ("new" if is_new else "foreign"), {}

        old = {"settings": {}, "finished": False} | read_json(self.file)
        checked(old, self.file, "settings", dict)
        checked(old, self.file, "finished", bool)

        if self.differing(old):
            return "other settings", old
        if old["finished"]:
            checked(old, self.file, "results", dict)
            return "finished", old
        has_logged = bool(names & {"log.jsonl", "state"})
        return ("unfinished" if has_logged else "new"), old

    def differing(self, old: dict) -> list[str]:
        """Names of the settings that another run.json has otherwise.

        --dtype counts by what it came to: auto is bf16 on one machine and fp32 on another.
        """
        theirs = self.defaults | old["settings"]
        if old.get("compute_dtype") == named(self.env.dtype):
            theirs["dtype"] = self.settings.get("dtype")
        return [name for name, value in self.settings.items() if theirs.get(name) != value]

    def refuse_other_stage(self, old: dict) -> None:
        """--overwrite replaces a run of this stage and no other."""
        stage = old["settings"].get("stage")
        if stage != self.settings.get("stage"):
            raise InputError(
                f"{self.path} holds what {stage}.py wrote, which --overwrite does not replace: "
                "choose another --out"
            )

    def refuse(self, situation: str, old: dict, resume: bool) -> None:
        """One sentence where the run can neither start nor continue."""
        if situation == "foreign" and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: choose another --out")
        if situation == "foreign":
            raise InputError(
                f"{self.path} is not empty and holds no run of ours, so nothing is written there: "
                "choose another --out"
            )

        if situation == "other settings":
            shown = []
            theirs = self.defaults | old["settings"]
            for name in self.differing(old)[:3]:
                there, here = shortened(theirs.get(name)), shortened(self.settings[name])
                shown.append(f"{name}: {there} there, {here} here")
            raise InputError(
                f"{self.path} holds a run with other settings ({', '.join(shown)}): "
                "choose another --out, or --overwrite to replace it"
            )

        if situation == "unfinished" and not resume:
            raise InputError(
                f"{self.path} holds an unfinished run of these settings: "
                "--resume continues it, --overwrite starts it again"
            )

        # only a saved state is gone on from: without one all is made again
        there, here = old.get("compute_dtype"), named(self.env.dtype)
        has_state = (self.path / "state" / "state.json").exists()
        counts = situation == "finished" or (situation == "unfinished" and has_state)
        if counts and there not in (None, here):
            option = DTYPES.get(there, there)
            raise InputError(
                f"{self.path} was begun in {there}, and here it would be {here}: "
                f"add --dtype {option}, or --overwrite to start it again"
            )

    def start(self) -> dict:
        """Write run.json, for a new run or one that goes on."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.claim()
        for file in list(self.path.iterdir()):
            if is_partial(file.name, "run.json"):
                file.unlink()
        # the command that makes the same again, however this run was interrupted
        given = [word for word in sys.argv if word not in ("--resume", "--overwrite")]
        record = {"settings": self.settings, "command": shlex.join(given), "finished": False}
        record |= describe(self.env)
        write_json(self.file, record)
        return record

    def claim(self) -> None:
        """Keep other processes out until this one has ended or the run is finished.

        By a lock on the directory itself, which leaves no file. Raises InputError where another is
        at work in it.
        """
        place = os.path.realpath(self.path)
        if place not in CLAIMED:
            CLAIMED[place] = self.opened(fcntl.LOCK_EX)

    def refuse_running(self) -> None:
        """Raises InputError where another process is at work here; ranks may ask at once."""
        if os.path.realpath(self.path) not in CLAIMED:
            os.close(self.opened(fcntl.LOCK_SH))

    def opened(self, lock: int) -> int:
        """The directory as an open file with a lock, which its closing ends.

        Raises InputError where another process has one that does not admit this.
        """
        opened = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(opened, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            raise InputError(
                f"another run is at work in {self.path}: wait for it, or choose another --out"
            ) from None
        except OSError:
            pass  # a file system without locks keeps nobody out
        return opened

    def clear(self) -> None:
        """Remove what an earlier run left here, run.json last.

        A kill in between leaves a directory that --overwrite clears again.
        """
        self.remove_passing()
        for pattern in reversed(self.OUTPUTS):
            for old in self.path.glob(pattern):
                old.unlink()

    def remove_passing(self) -> None:
        for name, patterns in self.PASSING.items():
            folder = self.path / name
            for pattern in patterns:
                for file in folder.glob(pattern):
                    file.unlink()
            with contextlib.suppress(OSError):  # it is not there, or holds what is not ours
                folder.rmdir()

    def log(self, kind: str, **values) -> None:
        """One JSON line; numbers that are not finite become null with "nonfinite": true."""
        if not self.env.main:
            return

        row = {"t": round(time.time() - self.began, 2), "kind": kind}
        for key, value in values.items():
            if isinstance(value, Tensor):
                value = value.item()
            if not isinstance(value, float):
                row[key] = value
            elif abs(value) < float("inf"):
                row[key] = float(f"{value:.6g}")
            else:
                row[key] = None
                row["nonfinite"] = True

        with open(self.path / "log.jsonl", "a") as f:
            f.write(json.dumps(row, allow_nan=False) + "\n")

    def finish(self, **results) -> None:
        """Mark the run as ended, with its results; the resume state is no longer needed."""
        if not self.env.main:
            return
        seconds = round(time.time() - self.began, 1)
        self.record |= {"finished": True, "seconds": seconds, "results": results}
        write_json(self.file, self.record)
        self.remove_passing()
        claimed = CLAIMED.pop(os.path.realpath(self.path), None)
        if claimed is not None:
            os.close(claimed)

    def save_state(self, step: int, model: Model, optimizers: list) -> None:
        """Save all that is needed to continue after `step`. All ranks call it."""
        states.save(self.path / "state", step, model, optimizers, self.env)

    def has_state(self) -> bool:
        """Whether a state was saved to go on from: the same on all ranks, which all call this."""
        return self.env.decide(states.saved, self.path / "state")[0] > 0

    def load_state(self, model: Model, optimizers: list) -> int:
        """Put weights and optimisers back; returns the step to go on from, 0 where none was saved.

        All ranks call it. Raises InputError for a state that is damaged or of another model.
        """
        step = states.load(self.path / "state", model, optimizers, self.env)
        self.env.decide(self.trim_log, step)
        return step

    def trim_log(self, step: int) -> None:
        """Rows logged after the saved step will be logged again; time goes on after the others."""
        file = self.path / "log.jsonl"
        kept, spent = [], 0.0
        for row in read_rows(file):
            if step and checked(row, file, "step", int, default=0) <= step:
                kept.append(json.dumps(row) + "\n")
                spent = max(spent, checked(row, file, "t", float, default=0.0))
        self.began -= spent

        if kept:
            write_text(file, "".join(kept))
        else:
            file.unlink(missing_ok=True)


def refuse_run(folder: Path) -> None:
    """Raises InputError where a folder that is to hold several runs is itself one's."""
    if (folder / "run.json").exists():
        raise InputError(
            f"{folder} holds a run, so no others are put into it: choose another --out"
        )


def open_runs(
    folder: Path, cells: list, mine: list, opened: Callable[..., Run], env: Env
) -> dict[Any, Run]:
    """This rank's cells with their directories within the folder. cells: those of all ranks.

    opened(cell) gives a cell's Run; with write=False it only refuses. Raises InputError, on every
    rank, where any cell is refused, before one is written: --overwrite would have cleared others.
    """

    def refuse() -> None:
        refuse_run(folder)
        for cell in cells:
            opened(cell, write=False)

    env.together(refuse)
    return env.together(lambda: {cell: opened(cell) for cell in mine})


def named(dtype: torch.dtype) -> str:
    """float32, bfloat16"""
    return str(dtype).removeprefix("torch.")


def describe(env: Env) -> dict:
    """What made a result: versions, device, commit."""
    commit = ""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        ).stdout.strip()

    if env.device.type == "cuda":
        device = torch.cuda.get_device_name(env.device)
    else:
        device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "compute_dtype": named(env.dtype),
        "ranks": env.world,
        "commit": commit,
    }
