"""Where and with which options a stage runs: command line, device and ranks, a run's directory.

A stage is `Config` (a dataclass: its fields are its options, the comment above a field is its help), a few pure functions, and
`main(cfg, env)`; its last line is `launch(main, Config)`. Plain `python stage.py` runs one process; `torchrun stage.py` runs the
same algorithm over several ranks (gloo on CPU, nccl on CUDA): every rank works on its share of the same global batch.
"""

import argparse
import contextlib
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm import tqdm

import model as model_module
from checkpoints import collected, read_json, write_json
from data import sandbox
from data.problems import InputError
from data.text import Tokenizer
from model import Model
from sampler import Sampler

# ------------------------------------------------------------------------------------- command line


@dataclass
class Config:
    """Options of every stage. A stage adds the ones it uses and has no others."""

    # output directory (default: a place under out/ where the next stage looks)
    out: str = ""
    # auto: cuda when there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # of matrix products; weights stay fp32. auto: bf16 where the device multiplies it fast
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
    seed: int = 0
    # padded tokens in one forward pass; a larger batch is accumulated
    micro_tokens: int = 16384
    # divide weights, gradients and optimiser over the ranks (FSDP2), for models that do not
    # fit on one device
    shard: bool = False
    # compute each block again in the backward pass instead of keeping its activations
    checkpoint_activations: bool = False
    # replace what another run of this stage left in the output directory
    overwrite: bool = False


def _comments(config: type) -> dict[str, str]:
    """Help texts: the comment lines above each field, of the class and its bases."""
    found = {}
    for base in reversed(config.__mro__[:-1]):
        above: list[str] = []
        for line in inspect.getsource(base).split("\n"):
            comment = re.match(r"^    # (.*)$", line)
            field_ = re.match(r"^    (\w+):", line)
            if comment:
                above.append(comment[1])
            elif field_:
                found[field_[1]] = " ".join(above)
                above = []
            else:
                above = []
    return found


def reader(kind: type, default) -> Callable:
    """How an option's value is read: no number of ours is negative or infinite, no count is 0 unless it is so by default."""
    if kind is str:
        return str
    least = int(kind is int and bool(np.all(default)))

    def read(text: str):
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is no number from {least} on")
        return value

    read.__name__ = kind.__name__  # argparse names it where the text is no number at all
    return read


def parse(config: type, argv: list[str] | None = None):
    """argv -> an instance of the dataclass `config`. A wrong flag or value ends the program with one sentence and exit code 2."""
    doc = inspect.getmodule(config).__doc__ or ""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: (_ for _ in ()).throw(InputError(f"{message} (see --help)"))
    types, comments = get_type_hints(config), _comments(config)
    for f in fields(config):
        kind, default = (
            types[f.name],
            f.default if f.default is not MISSING else f.default_factory(),
        )
        flag, shown = (
            "--" + f.name.replace("_", "-"),
            " ".join(map(str, default)) if isinstance(default, tuple) else default,
        )
        options = {
            "default": default,
            "help": comments.get(f.name, "").replace("%", "%%")
            + (f" [{shown}]" if shown not in ("", None) else ""),
        }
        if f.metadata.get("positional"):
            parser.add_argument(f.name, nargs="*", help=options["help"], default=default)
        elif kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif get_origin(kind) is Literal:
            parser.add_argument(flag, choices=get_args(kind), **options)
        elif get_origin(kind) is tuple:
            parser.add_argument(
                flag,
                type=reader(get_args(kind)[0], default),
                nargs="+",
                metavar=f.name.upper(),
                **options,
            )
        else:
            kind = next((t for t in get_args(kind) if t is not type(None)), kind)
            parser.add_argument(flag, type=reader(kind, default), metavar=f.name.upper(), **options)
    values = vars(parser.parse_args(argv))
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def launch(main: Callable, config: type) -> None:
    """Run a stage's main(cfg, env) from the command line. Bad input: one sentence on stderr, exit code 2, no traceback."""
    code = 0
    try:
        cfg = parse(config)
        code = main(cfg, setup(cfg)) or 0
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with --resume continues", file=sys.stderr)
        code = 130
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(code)


# --------------------------------------------------------------------------------- device and ranks


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
        """For all ranks, before any goes on: between what one writes and what the others look at, in either order."""
        if self.world > 1:
            dist.barrier()


def setup(cfg: Config) -> Env:
    """Device, ranks, dtype and compiler from the settings. Call once, first."""
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: this machine has no usable CUDA device; leave the flag out to run on the CPU"
        )
    if getattr(cfg, "shard", False) and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise InputError(
            "--shard divides the model over several ranks: start with torchrun --nproc-per-node 2 or more"
        )
    kind = "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = (
        torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))
        if kind == "cuda"
        else torch.device("cpu")
    )
    if kind == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if world > 1 and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo", device_id=device if kind == "cuda" else None
        )
    # on a CPU bf16 pays where the hardware multiplies it: AMX tiles or AVX512-BF16
    fast_bf16 = (
        kind == "cuda"
        or torch.cpu._is_amx_tile_supported()
        or torch.cpu._is_avx512_bf16_supported()
    )
    dtype = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "auto": torch.bfloat16 if fast_bf16 else torch.float32,
    }[cfg.dtype]
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "c++"))
    env = Env(device, dtype, cfg.compile and compiler, rank, world, cfg.slots)
    if cfg.compile and not compiler:
        env.say("no C++ compiler found: running without torch.compile, slower but the same")
    model_module.compile_kernels = env.compile
    sandbox.allow_unsandboxed = cfg.allow_unsandboxed_code
    env.say(sandbox.describe())
    return env


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
    """The whole list of `total` results on every rank, in the order of the work that `share` divided."""
    if env.world == 1:
        return mine
    parts: list = [None] * env.world
    dist.all_gather_object(parts, mine)
    results: list = [None] * total
    for rank, part in enumerate(parts):
        results[rank :: env.world] = part
    return results


# -------------------------------------------------------------------------------- a run's directory


class Run:
    """A stage's output directory: run.json (settings, versions, parents), log.jsonl, state/ for resuming. Only rank 0 writes.

    facts are settings beside cfg's own, such as the parent's hash; fields whose names start with one of `apart` do not concern this run.
    Opening a directory that holds a run of other settings is an error: results are never overwritten silently. `finished` tells
    that the same run has ended before. inputs: directories that this run reads, none of which may be its own.
    With --overwrite the files of an earlier run of the same stage are removed, those that a stage of ours writes and no others.
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
        self.path, self.env, self.began = Path(out), env, time.time()
        resume = getattr(cfg, "resume", False) if resume is None else resume
        volatile = {
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
        settings = {
            k: v for k, v in asdict(cfg).items() if k not in volatile and not k.startswith(apart)
        } | facts
        settings = json.loads(json.dumps(settings))
        file = self.path / "run.json"
        old = None
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: choose another --out")
        for given in inputs:
            if Path(given).exists() and self.path.resolve() == Path(given).resolve():
                raise InputError(
                    f"{self.path} is read by this run, so it cannot be written, too: choose another --out"
                )
        if file.exists() and cfg.overwrite:
            stage = read_json(file).get("settings", {}).get("stage")
            if stage != facts.get("stage"):
                raise InputError(
                    f"{self.path} holds what {stage}.py wrote, which --overwrite does not replace: choose another --out"
                )
        elif file.exists():
            old = {"settings": {}} | read_json(file)
            defaults = json.loads(
                json.dumps(asdict(type(cfg)()))
            )  # an option that the old run did not have yet
            differing = [
                k for k in settings if old["settings"].get(k, defaults.get(k)) != settings[k]
            ]
            if differing:
                shown = ", ".join(
                    f"{k}: {old['settings'].get(k)} there, {settings[k]} here"
                    for k in differing[:3]
                )
                raise InputError(
                    f"{self.path} holds a run with other settings ({shown}): choose another --out, or --overwrite to replace it"
                )
            if (
                not old.get("finished")
                and not resume
                and any((self.path / name).exists() for name in ("log.jsonl", "state"))
            ):
                raise InputError(
                    f"{self.path} holds an unfinished run of these settings: --resume continues it, --overwrite starts it again"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise InputError(
                f"{self.path} is not empty and holds no run of ours, so nothing is written there: choose another --out"
            )
        self.finished = bool(old and old.get("finished"))
        self.record = old or {}
        env.wait()  # rank 0 changes what the others have just looked at
        if self.env.main and not self.finished:
            if cfg.overwrite and file.exists():
                self.clear()
            self.path.mkdir(parents=True, exist_ok=True)
            self.record = {
                "settings": settings,
                "command": " ".join(sys.argv),
                "finished": False,
                **describe(env),
            }
            write_json(file, self.record)
        env.wait()

    def clear(self) -> None:
        """Remove what an earlier run left here, run.json last: a kill in between leaves a directory that --overwrite clears again."""
        for folder in ("state", ".saving"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for pattern in reversed(self.OUTPUTS):
            for old in self.path.glob(pattern):
                old.unlink()

    def log(self, kind: str, **values) -> None:
        """One JSON line; numbers that are not finite become null with "nonfinite": true."""
        if not self.env.main:
            return
        row = {"t": round(time.time() - self.began, 2), "kind": kind}
        for key, value in values.items():
            value = value.item() if isinstance(value, Tensor) else value
            if isinstance(value, float):
                row |= (
                    {key: float(f"{value:.6g}")}
                    if abs(value) < float("inf")
                    else {key: None, "nonfinite": True}
                )
            else:
                row[key] = value
        with open(self.path / "log.jsonl", "a") as f:
            f.write(json.dumps(row, allow_nan=False) + "\n")

    def finish(self, **results) -> None:
        """Mark the run as ended, with its results; the resume state is no longer needed."""
        if self.env.main:
            self.record |= {
                "finished": True,
                "seconds": round(time.time() - self.began, 1),
                "results": results,
            }
            write_json(self.path / "run.json", self.record)
            shutil.rmtree(self.path / "state", ignore_errors=True)

    def save_state(self, step: int, model: Model, optimizers: list) -> None:
        """Everything needed to continue bitwise: weights, optimiser state, step. state.json, replaced last, names the file that counts."""
        folder, name = self.path / "state", f"step-{step:07}.safetensors"
        tensors = {f"model.{n}": p for n, p in model.named_parameters()}
        for i, optimizer in enumerate(optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{k}": v for k, v in state.items()}
        tensors = collected(tensors, self.env.main)
        if not self.env.main:
            return
        try:
            folder.mkdir(exist_ok=True)
            save_file(tensors, folder / (name + ".tmp"))
            with open(folder / (name + ".tmp"), "rb") as f:
                os.fsync(f.fileno())
            os.replace(folder / (name + ".tmp"), folder / name)
            write_json(folder / "state.json", {"step": step, "file": name})
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"could not write {folder / name} ({error}); the state saved before it is untouched"
            ) from None
        for old in folder.glob("step-*"):
            if old.name != name:
                old.unlink()

    def load_state(self, model: Model, optimizers: list) -> int:
        """Put weights and optimisers back and return the step to go on from: 0 when nothing was saved yet."""
        pointer = self.path / "state" / "state.json"
        if not pointer.exists():
            (self.path / "log.jsonl").unlink(missing_ok=True)
            return 0
        meta = read_json(pointer)
        states: list[dict] = [{} for _ in optimizers]
        owners = [
            [p for group in optimizer.param_groups for p in group["params"]]
            for optimizer in optimizers
        ]  # numbered as in its state

        def placed(tensor: Tensor, like: Tensor) -> Tensor:
            """As the parameter is: sharded if it is, over however many ranks there are now."""
            return (
                distribute_tensor(tensor, like.device_mesh, like.placements)
                if isinstance(like, DTensor) and tensor.shape == like.shape
                else tensor
            )

        try:
            with (
                safe_open(
                    pointer.parent / meta["file"], framework="pt", device=str(model.device)
                ) as f,
                torch.no_grad(),
            ):
                parameters = dict(model.named_parameters())
                for key in f.keys():
                    if key.startswith("model."):
                        parameters[key[6:]].copy_(placed(f.get_tensor(key), parameters[key[6:]]))
                    else:
                        _, i, j, name = key.split(".")
                        states[int(i)].setdefault(int(j), {})[name] = placed(
                            f.get_tensor(key), owners[int(i)][int(j)]
                        )
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(
                f"{pointer.parent / meta['file']} cannot be resumed from ({error}): --overwrite starts again"
            ) from None
        for optimizer, state in zip(optimizers, states):
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        if self.env.main:  # rows logged after the saved step will be logged again
            file = self.path / "log.jsonl"
            rows = file.read_text().splitlines() if file.exists() else []
            file.write_text(
                "".join(r + "\n" for r in rows if json.loads(r).get("step", 0) <= meta["step"])
            )
        self.env.wait()  # elicit_rl goes on to read the log
        return meta["step"]


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
    name = (
        torch.cuda.get_device_name(env.device)
        if env.device.type == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": name,
        "compute_dtype": str(env.dtype).removeprefix("torch."),
        "ranks": env.world,
        "commit": commit,
    }


def progress(env: Env, total: int, label: str) -> tqdm:
    return tqdm(
        total=total,
        desc=label,
        disable=not env.main,
        dynamic_ncols=True,
        leave=False,
        mininterval=0.5,
    )
