"""Where and with which options a stage runs: command line, device and ranks, a run's directory.

A stage is `Config` (a dataclass: its fields are its options, the comment above a field is its
help), a few pure functions, and `main(cfg, env)`; its last line is `launch(main, Config)`. Plain
`python stage.py` runs one process; `torchrun stage.py` runs the same algorithm over several ranks
(gloo on CPU, nccl on CUDA): every rank works on its share of the same global batch. Ranks on
several machines need one file system that all of them see.
"""

import argparse
import contextlib
import dataclasses
import errno
import functools
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm import tqdm

import model as model_module
from checkpoints import (
    checked,
    collected,
    read_json,
    read_rows,
    reason,
    shortened,
    sync,
    write_json,
    write_text,
)
from data import sandbox
from data.problems import InputError
from data.text import Tokenizer
from model import Model
from sampler import Sampler

# ------------------------------------------------------------------------------------- command line


@dataclass
class Config:
    """Options of every stage. A stage adds the ones it uses and has no others.

    The least number that an option takes is 0, or 1 where it counts and its default is not 0; the
    field's metadata may say otherwise: least, most. positional: values without a flag.
    """

    # output directory (default: a place under out/ where the next stage looks)
    out: str = ""
    # auto: cuda when there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # of matrix products; weights stay fp32. auto: bf16 where the device multiplies it fast.
    # fp32 is meant: CUDA does not round its factors to TF32
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    # completions written at the same time; fewer need less memory, and less time where
    # there are few
    slots: int = 256
    # fuse kernels with torch.compile where that pays
    compile: bool = True
    # run programs that models wrote even where this machine cannot isolate them
    allow_unsandboxed_code: bool = False


@dataclass
class TrainConfig(Config):
    """Options of the stages that train."""

    # every random stream derives from it
    seed: int = field(default=0, metadata={"most": 2**32 - 1})
    # padded tokens in one forward pass; a larger batch is accumulated
    micro_tokens: int = 16384
    # divide weights, gradients and optimiser over the ranks (FSDP2), for models that do not
    # fit on one device
    shard: bool = False
    # compute each block again in the backward pass instead of keeping its activations
    checkpoint_activations: bool = False
    # replace what another run of this stage left in the output directory
    overwrite: bool = False


class Parser(argparse.ArgumentParser):
    """argparse that raises where it would print its usage and exit."""

    def error(self, message: str) -> None:
        raise InputError(f"{message} (see --help)")


def parse(config: type, argv: list[str] | None = None):
    """argv -> an instance of the dataclass `config`. Raises InputError for what is no option."""
    parser = Parser(
        description=inspect.getmodule(config).__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = get_type_hints(config)
    helps = help_texts(config)
    for option in fields(config):
        add_option(parser, option, kinds[option.name], helps[option.name])

    values = vars(parser.parse_args(argv))
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    return config(**values)


def help_texts(config: type) -> dict[str, str]:
    """The comment lines above each field, of the class and its bases."""
    found = {}
    for base in reversed(config.__mro__[:-1]):
        above: list[str] = []
        for line in inspect.getsource(base).split("\n"):
            comment = re.match(r"^    # (.*)$", line)
            name = re.match(r"^    (\w+):", line)
            if comment:
                above.append(comment[1])
                continue
            if name:
                found[name[1]] = " ".join(above)
            above = []
    return found


def add_option(parser: Parser, option: dataclasses.Field, kind: type, text: str) -> None:
    """One field as an option: its type decides how its value is read, its default is shown."""
    flag = "--" + option.name.replace("_", "-")
    default = option.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = text.replace("%", "%%")  # argparse formats it
    if shown not in ("", None):
        text += f" [{shown}]"
    settings = {"default": default, "help": text}

    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
        return
    if get_origin(kind) is Literal:
        parser.add_argument(flag, choices=get_args(kind), **settings)
        return

    several = get_origin(kind) is tuple
    # the element of tuple[int, ...], the number of int | None, or the type itself
    single = get_args(kind)[0] if get_args(kind) else kind
    settings["type"] = reader(single, default, option.metadata)
    if option.metadata.get("positional"):
        parser.add_argument(option.name, nargs="*", **settings)
    elif several:
        parser.add_argument(flag, nargs="+", metavar=option.name.upper(), **settings)
    else:
        parser.add_argument(flag, metavar=option.name.upper(), **settings)


# beyond any sensible count; rates, weights and temperatures are smaller still
LARGEST = {int: 10**9, float: 1000.0}


def reader(kind: type, default, metadata) -> Callable:
    """The function that reads an option's value from its text."""
    if kind is str:
        return text_of

    values = default if isinstance(default, tuple) else (default,)
    counts = kind is int and all(values)
    least = metadata.get("least", 1 if counts else 0)
    most = metadata.get("most", LARGEST[kind])
    return functools.partial(number_of, kind=kind, least=least, most=most)


def text_of(text: str) -> str:
    """An option's text. Bytes that are no UTF-8 could be neither printed nor written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not UTF-8 text") from None
    return text


def number_of(text: str, kind: type, least: float, most: float) -> float:
    """An option's number within its bounds; never infinite or NaN."""
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid {kind.__name__} value: {shortened(text)}"
        ) from None

    if value > most:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is too large, {most:,} is the most")
    if not value >= least:
        raise argparse.ArgumentTypeError(f"{text} is no number from {least} on")
    return value


def launch(main: Callable, config: type) -> None:
    """Run a stage's main(cfg, env) from the command line and end the program.

    Bad input, too little memory and a place that cannot be written end with one sentence on stderr
    and exit code 2. Anything else that is raised is a bug and keeps its traceback.
    """
    try:
        cfg = parse(config)
        code = main(cfg, setup(cfg)) or 0
    except KeyboardInterrupt:
        sentence = "interrupted"
        if "resume" in [option.name for option in fields(config)]:
            sentence += "; the same command with --resume continues"
        complain(sentence)
        code = 130
    except Exception as error:
        sentence = sentence_for(error, config)
        if not sentence:
            raise
        complain(sentence)
        code = 2

    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(code)


# errors of the operating system that tell of a place which the user chose
OF_PLACES = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


def sentence_for(error: Exception, config: type) -> str:
    """What to tell the user of an error that is no bug; "" where it is one."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in OF_PLACES:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{reason(error)}"

    # a CPU's allocator raises a plain RuntimeError
    text = str(error)
    allocation = "not enough memory" in text or "can't allocate" in text
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if not (out_of_memory or (isinstance(error, RuntimeError) and allocation)):
        return ""

    ways = {
        "slots": "a smaller --slots",
        "micro_tokens": "a smaller --micro-tokens",
        "checkpoint_activations": "--checkpoint-activations",
        "shard": "--shard over several ranks",
    }

    names = [option.name for option in fields(config)]
    advice = ", ".join(way for name, way in ways.items() if name in names)
    return f"there is not enough memory: try {advice}"


def complain(sentence: str) -> None:
    """Print one sentence on stderr, on a line of its own."""
    for bar in list(tqdm._instances):  # left where they stand, each with its end of line
        bar.leave = True
        bar.close()

    line = " ".join(sentence.splitlines())
    line = line.encode(errors="backslashreplace").decode()  # an option may be no UTF-8
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)


# --------------------------------------------------------------------------------- device and ranks

# One rank may work for long while others wait for it: it evaluates, writes a checkpoint, trains the
# last cell. A rank that died is no matter of time: torchrun ends the others.
LONGEST_WAIT = timedelta(hours=48)

# seconds until a file that rank 0 has written must be seen by all ranks; network file systems lag
VISIBLE_WITHIN = 60


@dataclass(frozen=True)
class Env:
    """Where a stage runs."""

    device: torch.device
    dtype: torch.dtype  # compute dtype
    compile: bool
    rank: int = 0
    world: int = 1
    slots: int = 256  # of a sampler

    def sampler(self, model: Model, tokenizer: Tokenizer) -> Sampler:
        return Sampler(model, [tokenizer.eos_id], self.slots)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def say(self, text: str = "") -> None:
        if self.main:
            tqdm.write(text)

    def wait(self) -> None:
        """For all ranks, before any goes on.

        Between what one writes and what the others look at, in either order.
        """
        if self.world > 1:
            dist.barrier()

    def decide(self, work: Callable, *args):
        """work(*args) on rank 0 alone; its result, or its InputError, on every rank.

        All ranks call it, so none goes another way or looks at a file before it is there.
        """
        if self.world == 1:
            return work(*args)

        outcome = None
        if self.main:
            try:
                outcome = work(*args)
            except InputError as error:
                outcome = error

        box = [outcome]
        dist.broadcast_object_list(box)
        if isinstance(box[0], InputError):
            raise box[0]
        return box[0]


def setup(cfg: Config) -> Env:
    """Device, ranks, dtype and compiler from the settings. Call once, first.

    Raises InputError for what this machine cannot do, and for an --out that cannot be written.
    """
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if getattr(cfg, "shard", False) and world == 1:
        raise InputError(
            "--shard divides the model over several ranks: "
            "start with torchrun --nproc-per-node 2 or more"
        )

    if cfg.out:
        check_place(Path(cfg.out))

    device = device_of(cfg.device)
    on_cuda = device.type == "cuda"
    dtype = dtype_of(cfg.dtype, on_cuda)
    if on_cuda:
        torch.cuda.set_device(device)
        # fp32 products are exact where fp32 was asked for, and else few and not worth it
        exact = dtype == torch.float32
        torch.set_float32_matmul_precision("highest" if exact else "high")

    if world > 1 and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if on_cuda else "gloo",
            timeout=LONGEST_WAIT,
            device_id=device if on_cuda else None,
        )

    names = (os.environ.get("CXX", "g++"), "clang++", "c++")
    compiler = any(shutil.which(name) for name in names)

    env = Env(device, dtype, cfg.compile and compiler, rank, world, cfg.slots)
    if cfg.compile and not compiler:
        env.say("no C++ compiler found: running without torch.compile, slower but the same")

    model_module.compile_kernels = env.compile
    sandbox.allow_unsandboxed = cfg.allow_unsandboxed_code
    env.say(sandbox.describe())
    return env


def device_of(name: str) -> torch.device:
    """This rank's device: auto | cpu | cuda."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError(
            "--device cuda: this machine has no usable CUDA device; "
            "leave the flag out to run on the CPU"
        )
    if name == "cpu" or not available:
        return torch.device("cpu")

    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"this machine has {torch.cuda.device_count()} CUDA devices: "
            "start torchrun with no more ranks than that on each machine"
        )
    return torch.device("cuda", local)


def dtype_of(name: str, on_cuda: bool) -> torch.dtype:
    """The compute dtype: auto | fp32 | bf16."""
    # on a CPU bf16 pays where the hardware multiplies it: AMX tiles or AVX512-BF16
    tiles = torch.cpu._is_amx_tile_supported()
    fast_bf16 = on_cuda or tiles or torch.cpu._is_avx512_bf16_supported()
    if name == "bf16" or (name == "auto" and fast_bf16):
        return torch.bfloat16
    return torch.float32


def check_place(out: Path) -> None:
    """Raise InputError, before any work and leaving nothing, where no directory `out` can be."""
    existing = out.absolute()
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent

    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"nothing can be written in {out} ({existing}: {reason(error)}): choose another --out"
        ) from None


def share(env: Env, items: list) -> list:
    """This rank's part of a list of work: every world-th item."""
    return items[env.rank :: env.world]


def most(env: Env, count: int) -> int:
    """The largest of the ranks' counts."""
    if env.world == 1:
        return count
    counts = torch.tensor(count, device=env.device)
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    return int(counts)


def gather(env: Env, mine: list, total: int) -> list:
    """The whole list of `total` results on every rank, in the order of the work `share` divided."""
    if env.world == 1:
        return mine

    parts: list = [None] * env.world
    dist.all_gather_object(parts, mine)
    results: list = [None] * total
    for rank, part in enumerate(parts):
        results[rank :: env.world] = part
    return results


def check_shared(env: Env, file: Path) -> None:
    """Raise InputError on a rank that does not see a file that rank 0 has written."""
    deadline = time.time() + VISIBLE_WITHIN
    while not file.exists():
        if time.time() > deadline:
            raise InputError(
                f"rank {env.rank} on {platform.node()} does not see {file}, which rank 0 has "
                "written: ranks on several machines need an --out that all of them share"
            )
        time.sleep(0.05)


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
    Raises InputError for what is refused and for a place that cannot be written.
    """

    # what a stage writes into its directory; other files and directories are never touched
    OUTPUTS = (
        "run.json",
        "log.jsonl",
        "samples.jsonl",
        "evaluation.json",
        "prompts.json",
        "cell.json",
        "curve.json",
        "reference-*.npy",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
    )
    # directories that only exist while it runs
    PASSING = ("state", ".saving")

    def __init__(
        self,
        cfg: Config,
        env: Env,
        out: str | Path,
        apart: tuple[str, ...] = (),
        inputs: tuple[str | Path, ...] = (),
        resume: bool | None = None,
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
        self.settings = json.loads(json.dumps(settings | facts))

        # stands in for an option that an older run did not have yet
        self.defaults = json.loads(json.dumps(asdict(type(cfg)())))

        if resume is None:
            resume = getattr(cfg, "resume", False)
        self.refuse_inputs(inputs)
        self.record = env.decide(self.open, resume, cfg.overwrite)
        self.finished = self.record["finished"]
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

    def open(self, resume: bool, overwrite: bool) -> dict:
        """Refuse what is at the path, or start or continue there. Returns run.json's content."""
        try:
            situation, old = self.look()
            if overwrite and old:
                self.refuse_other_stage(old)
                self.clear()
                return self.start()

            self.refuse(situation, old, resume)
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
            return ("new" if names <= {"run.json.tmp"} else "foreign"), {}

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
        """Names of the settings that another run.json has otherwise."""
        theirs = self.defaults | old["settings"]
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

    def start(self) -> dict:
        """Write run.json, for a new run or one that goes on."""
        self.path.mkdir(parents=True, exist_ok=True)
        command = " ".join(sys.argv)
        record = {"settings": self.settings, "command": command, "finished": False}
        record |= describe(self.env)
        write_json(self.file, record)
        return record

    def clear(self) -> None:
        """Remove what an earlier run left here, run.json last.

        A kill in between leaves a directory that --overwrite clears again.
        """
        self.remove_passing()
        for pattern in reversed(self.OUTPUTS):
            for old in self.path.glob(pattern):
                old.unlink()

    def remove_passing(self) -> None:
        for folder in self.PASSING:
            shutil.rmtree(self.path / folder, ignore_errors=True)

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

    def save_state(self, step: int, model: Model, optimizers: list) -> None:
        """Everything needed to continue bitwise: weights, optimiser state, step. All ranks call it.

        state.json, replaced last, names the file that counts.
        """
        folder = self.path / "state"
        name = f"step-{step:07}.safetensors"
        tensors = collected(state_tensors(model, optimizers), self.env.main)
        if not self.env.main:
            return

        try:
            folder.mkdir(exist_ok=True)
            temporary = folder / (name + ".tmp")
            save_file(tensors, temporary)
            sync(temporary)
            os.replace(temporary, folder / name)
            write_json(folder / "state.json", {"step": step, "file": name})
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"could not write {folder / name} ({reason(error)}); "
                "the state saved before it is untouched"
            ) from None

        for old in folder.glob("step-*"):
            if old.name != name:
                old.unlink()

    def load_state(self, model: Model, optimizers: list) -> int:
        """Put weights and optimisers back; returns the step to go on from, 0 where none was saved.

        All ranks call it. Raises InputError for a state that is damaged or of another model.
        """
        step, name = self.env.decide(self.saved_state)
        if step:
            file = self.path / "state" / name
            check_shared(self.env, file)
            try:
                restore(file, model, optimizers)
            except (SafetensorError, OSError, InputError) as error:
                raise InputError(
                    f"{file} cannot be resumed from ({reason(error)}): --overwrite starts again"
                ) from None

        self.env.decide(self.trim_log, step)
        return step

    def saved_state(self) -> tuple[int, str]:
        """The step of the state that counts and its file's name; (0, "") where there is none."""
        pointer = self.path / "state/state.json"
        if not os.path.lexists(pointer):
            return 0, ""
        found = read_json(pointer)

        step = checked(found, pointer, "step", int, least=1)
        name = checked(found, pointer, "file", str)
        if Path(name).name != name:
            raise InputError(f"{pointer} names {shortened(name)}, which is not beside it")
        return step, name

    def trim_log(self, step: int) -> None:
        """Rows logged after the saved step will be logged again."""
        file = self.path / "log.jsonl"
        kept = []
        for row in read_rows(file):
            if step and checked(row, file, "step", int, default=0) <= step:
                kept.append(json.dumps(row) + "\n")

        if kept:
            write_text(file, "".join(kept))
        else:
            file.unlink(missing_ok=True)


def state_tensors(model: Model, optimizers: list) -> dict[str, Tensor]:
    """Weights and optimiser states under the names that `restore` knows."""
    tensors = {f"model.{name}": p for name, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{i}.{j}.{key}"] = value
    return tensors


def restore(file: Path, model: Model, optimizers: list) -> None:
    """Read a file of `state_tensors` back into model and optimisers, in place.

    Raises InputError where they are not those that it was made from. All names and shapes are
    looked at before anything changes.
    """
    parameters = dict(model.named_parameters())
    owners = []  # of each optimiser's states, numbered as it does
    for optimizer in optimizers:
        owners.append([p for group in optimizer.param_groups for p in group["params"]])

    with safe_open(file, framework="pt", device=str(model.device)) as f:
        places = {key: owner_of(key, parameters, owners) for key in f.keys()}
        for key, owner in places.items():
            shape = tuple(f.get_slice(key).get_shape())
            is_count = key.startswith("optimizer.") and shape == ()
            if owner is None or (shape != tuple(owner.shape) and not is_count):
                raise InputError(f"{key} of shape {shape} belongs to another model or optimiser")

        for name in parameters:
            if f"model.{name}" not in places:
                raise InputError(f"model.{name} is missing")

        states: list[dict] = [{} for _ in optimizers]
        for key, owner in places.items():
            tensor = placed(f.get_tensor(key), owner)
            if key.startswith("model."):
                with torch.no_grad():
                    owner.copy_(tensor)
            else:
                _, i, j, name = key.split(".")
                states[int(i)].setdefault(int(j), {})[name] = tensor

    for optimizer, state in zip(optimizers, states):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def owner_of(key: str, parameters: dict[str, Tensor], owners: list[list]) -> Tensor | None:
    """The parameter that a tensor of a state is of, or belongs to; None where there is none."""
    if key.startswith("model."):
        return parameters.get(key.removeprefix("model."))
    found = re.fullmatch(r"optimizer\.(\d+)\.(\d+)\.\w+", key)
    if not found:
        return None
    i, j = int(found[1]), int(found[2])
    return owners[i][j] if i < len(owners) and j < len(owners[i]) else None


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """As the parameter is: sharded if it is, over however many ranks there are now."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor


def describe(env: Env) -> dict:
    """What made a result: versions, device, commit."""
    commit = ""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()

    if env.device.type == "cuda":
        device = torch.cuda.get_device_name(env.device)
    else:
        device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "compute_dtype": str(env.dtype).removeprefix("torch."),
        "ranks": env.world,
        "commit": commit,
    }


def progress(env: Env, total: int, label: str) -> tqdm:
    """A bar on rank 0 that disappears when it is closed; `complain` leaves it standing."""
    return tqdm(
        total=total,
        desc=label,
        disable=not env.main,
        dynamic_ncols=True,
        leave=False,
        mininterval=0.5,
    )
