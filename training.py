"""What every stage needs to run: command line, device and ranks, optimisers, the train() generator, log, atomic state.

A stage is `Config` (a dataclass: its fields are its options, the comment behind a field is its help), a few pure functions, and
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
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm import tqdm

import model as model_module
from data import InputError, sandbox
from data.batches import Batch, Example, collate, micro_batches, plan_epoch
from data.text import Tokenizer
from model import Model, Sampler, collected, compile_model, completion_logps, kernel, read_json, whole, write_json

# ------------------------------------------------------------------------------------------------------------- command line


@dataclass
class Config:
    """Options of every stage."""

    out: str = ""  # output directory (default: a place under out/ where the next stage looks)
    data: tuple[str, ...] = ()  # files of real problems (json, jsonl or csv, plain or .gz) in place of generated ones, all of each split
    seed: int = 0  # every random stream derives from it
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda when there is one
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of matrix products; weights stay fp32. auto: bf16 where the device multiplies it fast
    micro_tokens: int = 16384  # padded tokens in one forward pass; a larger batch is accumulated
    slots: int = 256  # completions written at the same time; fewer need less memory, and less time where there are few
    save_every: int = 100  # optimiser steps between two saves of the state that --resume goes on from
    shard: bool = False  # divide weights, gradients and optimiser over the ranks (FSDP2), for models that do not fit on one device
    checkpoint_activations: bool = False  # compute each block again in the backward pass instead of keeping its activations
    compile: bool = True  # fuse kernels with torch.compile where that pays
    allow_unsandboxed_code: bool = False  # run programs that models wrote even where this machine cannot isolate them
    resume: bool = False  # continue an interrupted run where it stopped
    overwrite: bool = False  # replace what another run left in the output directory


def _comments(config: type) -> dict[str, str]:
    """Help texts: the comment behind each field, of the class and its bases."""
    found = {}
    for base in reversed(config.__mro__[:-1]):
        found |= dict(re.findall(r"^    (\w+):.*?  # (.*)$", inspect.getsource(base), re.MULTILINE))
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
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.error = lambda message: (_ for _ in ()).throw(InputError(f"{message} (see --help)"))
    types, comments = get_type_hints(config), _comments(config)
    for f in fields(config):
        kind, default = types[f.name], f.default if f.default is not MISSING else f.default_factory()
        flag, shown = "--" + f.name.replace("_", "-"), " ".join(map(str, default)) if isinstance(default, tuple) else default
        options = {"default": default, "help": comments.get(f.name, "").replace("%", "%%") + (f" [{shown}]" if shown not in ("", None) else "")}
        if f.metadata.get("positional"):
            parser.add_argument(f.name, nargs="*", help=options["help"], default=default)
        elif kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif get_origin(kind) is Literal:
            parser.add_argument(flag, choices=get_args(kind), **options)
        elif get_origin(kind) is tuple:
            parser.add_argument(flag, type=reader(get_args(kind)[0], default), nargs="+", metavar=f.name.upper(), **options)
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


# ------------------------------------------------------------------------------------------------------------- device and ranks


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
        raise InputError("--device cuda: this machine has no usable CUDA device; leave the flag out to run on the CPU")
    if cfg.shard and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise InputError("--shard divides the model over several ranks: start with torchrun --nproc-per-node 2 or more")
    kind = "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", device_id=device if kind == "cuda" else None)
    # on a CPU bf16 pays where the hardware multiplies it: AMX tiles or AVX512-BF16
    fast_bf16 = kind == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": torch.bfloat16 if fast_bf16 else torch.float32}[cfg.dtype]
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "c++"))
    env = Env(device, dtype, cfg.compile and compiler, rank, world, cfg.slots)
    if cfg.compile and not compiler:
        env.say("no C++ compiler found: running without torch.compile, slower but the same")
    model_module.compile_kernels = env.compile
    sandbox.allow_unsandboxed = cfg.allow_unsandboxed_code
    env.say(sandbox.describe())
    return env


def prepare(model: Model, env: Env, cfg: Config) -> Model:
    """Make a loaded model ready to be trained, in place: compiled on CUDA, its activations checkpointed, its weights sharded, as cfg asks."""
    model.checkpointing = cfg.checkpoint_activations
    if env.compile and env.device.type == "cuda":  # on a CPU compilation takes longer than it returns at these sizes (docs/NOTES.md)
        compile_model(model, by_block=cfg.shard)
    if cfg.shard:
        mesh = init_device_mesh(env.device.type, (env.world,))
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=mesh)
    return model


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


# ------------------------------------------------------------------------------------------------------------- optimisers


@kernel(dynamic=True)
def lion_update(p: Tensor, grad: Tensor, momentum: Tensor, lr: Tensor, decay: Tensor, beta1: float, beta2: float) -> None:
    """Lion (Chen et al. 2023), in place on flat fp32 tensors: p -= lr (sign(beta1 m + (1 - beta1) g) + decay p); m = beta2 m + (1 - beta2) g."""
    p.sub_(lr * (torch.lerp(grad, momentum, beta1).sign() + decay * p))
    momentum.lerp_(grad, 1 - beta2)


class Lion(torch.optim.Optimizer):
    """The paper's optimiser [appendix G.1]: the sign of an interpolated momentum, one moment of state."""

    def __init__(self, params, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                # lr as a tensor: a changing Python float would recompile
                lr, decay = (torch.tensor(group[k], device=p.device) for k in ("lr", "weight_decay"))
                mine, grad, momentum = (t.to_local() if isinstance(t, DTensor) else t for t in (p, p.grad, state["momentum"]))
                lion_update(mine.view(-1), grad.reshape(-1), momentum.view(-1), lr, decay, *group["betas"])


def make_optimizers(model: Model, name: str, lr: float, weight_decay: float = 0.01) -> list[torch.optim.Optimizer]:
    """adamw | lion | muon. Matrices decay, norms do not. muon: Muon on the blocks' matrices, AdamW on the rest, both at lr."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def groups(members) -> list[dict]:
        split = [[p for p in members if p.ndim >= 2], [p for p in members if p.ndim < 2]]
        return [{"params": ps, "weight_decay": decay} for ps, decay in zip(split, (weight_decay, 0.0)) if ps]

    if name == "lion":
        return [Lion(groups([p for _, p in trained]), lr=lr)]
    if name == "adamw":
        return [torch.optim.AdamW(groups([p for _, p in trained]), lr=lr, betas=(0.9, 0.95), fused=True)]
    matrices = [p for n, p in trained if p.ndim == 2 and "embed_tokens" not in n and "lm_head" not in n]
    rest = [p for _, p in trained if not any(p is m for m in matrices)]
    # match_rms_adamw scales each matrix's step by its size, so one lr serves all shapes and is of AdamW's order
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups(rest), lr=lr, betas=(0.9, 0.95), fused=True)]


def schedule(step: int, steps: int, warmup: int, decay: float = 0.0) -> float:
    """Factor on the learning rate: linear warm-up over `warmup` steps, then 1, then linear to 0 over the last `decay` share of the run."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * min(1.0, (steps - step) / max(1.0, decay * steps))


# ------------------------------------------------------------------------------------------------------------- the training step


IDLE = collate([Example([0], [0], [0.0])] * 2)  # what a rank without work runs, with weight 0; two rows, where pairs are expected


class Diverged(InputError):
    """The loss or its gradient stopped being finite."""


def sync_gradients(parameters: list[Tensor], bucket: int = 1 << 25) -> None:
    """Sum gradients over ranks, in flat buckets of up to `bucket` elements. Losses are divided by global counts, so a sum is right."""
    group, size = [], 0
    for i, p in enumerate(parameters):
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        group.append(p.grad)
        size += p.numel()
        if size >= bucket or i == len(parameters) - 1:
            flat = torch.cat([g.view(-1) for g in group])
            dist.all_reduce(flat)
            for g, part in zip(group, flat.split([g.numel() for g in group])):
                g.copy_(part.view_as(g))
            group, size = [], 0


def train(model: Model, optimizers: list, batches: Callable[[int], list[Batch]], loss_fn: Callable, env: Env, *, steps: int,
          start: int = 0, warmup: int = 0, decay: float = 0.0, clip: float = 1.0, units: Callable = lambda batch: len(batch.targets),
          ) -> Iterator[tuple[int, dict[str, Tensor | float]]]:
    """The one optimisation loop: `for step, metrics in train(...)` accumulates, synchronises, clips, steps and yields.

    batches(step): this rank's micro-batches of that step. loss_fn(model, batch) -> (loss summed over units, {name: summed metric}).
    Loss and metrics are divided by the units (tokens, pairs) of the whole step, over all micro-batches and ranks. The yielded
    metrics are those of the step just taken (step counts from 1): loss, grad_norm, lr, tokens (real ones, all ranks).
    Raises Diverged, naming the step, before a non-finite gradient touches the weights.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    sharded = isinstance(parameters[0], DTensor)
    bases = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for step in range(start, steps):
        micro = [batch.to(env.device) for batch in batches(step)]
        totals = torch.tensor([sum(map(units, micro)), sum(b.real_tokens for b in micro)], dtype=torch.float64, device=env.device)
        if env.world > 1:
            dist.all_reduce(totals)
        count = totals[0].float().clamp(min=1)
        metrics: dict[str, Tensor] = {}
        # every rank runs equally many micro-batches: sharded weights are gathered by all ranks or none, and metrics have the same names
        for i in range(most(env, len(micro))):
            batch, weight = (micro[i], 1.0) if i < len(micro) else (IDLE.to(env.device), 0.0)
            loss, extra = loss_fn(model, batch)
            # fully_shard averages gradients over the ranks, where a sum is right: losses are divided by global counts
            (loss * weight * (env.world if sharded else 1) / count).backward()
            for name, value in {"loss": loss, **extra}.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach() * weight / count
        if env.world > 1:
            if not sharded:
                sync_gradients(parameters)
            values = torch.stack([v.float() for v in metrics.values()])
            dist.all_reduce(values)
            metrics = dict(zip(metrics, values))
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, clip))
        if not torch.isfinite(norm + metrics["loss"]):
            raise Diverged(f"the loss is not finite at step {step + 1}: lower --lr; the last checkpoint is untouched")
        factor = schedule(step, steps, warmup, decay)
        for optimizer, base in zip(optimizers, bases):
            for group, lr in zip(optimizer.param_groups, base):
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for group, lr in zip(optimizer.param_groups, base):
                group["lr"] = lr
        yield step + 1, {**metrics, "grad_norm": norm, "lr": bases[0][0] * factor, "tokens": totals[1]}


def sft_loss(model: Model, batch: Batch) -> tuple[Tensor, dict]:
    """Cross-entropy of the completion tokens given what precedes them, summed over tokens (paper appendix C.1: no loss on prompts)."""
    return -completion_logps(model, batch).sum(), {}


def document_loss(model: Model, batch: Batch) -> tuple[Tensor, dict]:
    """As sft_loss, but the mean over each completion's tokens, summed over completions: a one-letter answer weighs as much as a program."""
    lengths = torch.bincount(batch.owner, minlength=batch.examples)
    return -(completion_logps(model, batch) / lengths[batch.owner]).sum(), {}


ALIKE = 32  # documents of like length in a row, of those in a step


def fit(model: Model, examples: Callable[[int], list[Example]], run: "Run", env: Env, cfg: Config, *, epochs: int, batch: int, lr: float,
        optimizer: str, warmup: int, decay: float, evaluate: Callable[[], dict] | None = None, evaluate_every: int = 400, by_document: bool = False) -> None:
    """Supervised fine-tuning over epochs, logged, with the state saved every cfg.save_every steps.

    examples(epoch) gives the epoch's examples, always equally many; it is called once an epoch, so it may sample them afresh. It
    and the order of steps depend on (seed, epoch) alone: a resumed run goes on exactly as the uninterrupted one would have.
    Logged: loss (nats per supervised token), grad_norm before clipping, lr, tok_s (real tokens a second), padding (share of
    computed tokens that were padding). by_document: with document_loss, whose units are completions.
    """
    loss_fn, units = (document_loss, lambda batch: batch.examples) if by_document else (sft_loss, lambda batch: len(batch.targets))
    current: tuple = (-1, [], [])

    def epoch_of(number: int) -> tuple:
        nonlocal current
        if current[0] != number:
            data = examples(number)
            current = number, data, plan_epoch([len(e) for e in data], batch, np.random.default_rng([cfg.seed, 2, number]), ALIKE)
        return current

    optimizers = make_optimizers(prepare(model, env, cfg), optimizer, lr)
    start = run.load_state(model, optimizers) if cfg.resume else 0
    per_epoch = len(epoch_of(0)[2])
    steps, padded, real, clock = per_epoch * epochs, 0, 0, time.time()

    def batches(step: int) -> list[Batch]:
        nonlocal padded
        _, data, plan = epoch_of(step // per_epoch)
        micro = micro_batches([data[i] for i in plan[step % per_epoch][env.rank :: env.world]], cfg.micro_tokens)
        padded += sum(b.tokens.numel() for b in micro)
        return micro

    bar = progress(env, steps, f"training {run.path}")
    bar.update(start)
    for step, metrics in train(model, optimizers, batches, loss_fn, env, steps=steps, start=start, warmup=warmup, decay=decay, units=units):
        bar.update()
        real += int(metrics["tokens"])
        if step % 20 == 0 or step == steps:
            speed = round(real / (time.time() - clock))
            run.log("train", step=step, **{k: metrics[k] for k in ("loss", "grad_norm", "lr")}, tok_s=speed, padding=1 - real / max(1, padded * env.world))
            bar.set_postfix(loss=f"{float(metrics['loss']):.3f}", tok_s=speed)
            real, padded, clock = 0, 0, time.time()
        paused = time.time()
        if evaluate and (step % evaluate_every == 0):
            run.log("eval", step=step, **evaluate())
        if step % cfg.save_every == 0 and step < steps:
            run.save_state(step, model, optimizers)
        clock += time.time() - paused
    bar.close()


# ------------------------------------------------------------------------------------------------------------- runs on disk


class Run:
    """A stage's output directory: run.json (settings, versions, parents), log.jsonl, state/ for resuming. Only rank 0 writes.

    facts are settings beside cfg's own, such as the parent's hash; fields whose names start with one of `apart` do not concern this run.
    Opening a directory that holds a run of other settings is an error: results are never overwritten silently. `finished` tells
    that the same run has ended before. inputs: directories that this run reads, none of which may be its own.
    With --overwrite the files of an earlier run of the same stage are removed, those that a stage of ours writes and no others.
    """

    # what a stage writes into its directory; other files and directories are never touched
    OUTPUTS = ("run.json", "log.jsonl", "samples.jsonl", "evaluation.json", "prompts.json", "cell.json", "curve.json", "reference-*.npy", "config.json",
               "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model*.safetensors", "model.safetensors.index.json")

    def __init__(self, cfg: Config, env: Env, out: str | Path, apart: tuple[str, ...] = (), inputs: tuple[str | Path, ...] = (), **facts):
        self.path, self.env, self.began = Path(out), env, time.time()
        volatile = {"out", "device", "micro_tokens", "slots", "save_every", "shard", "checkpoint_activations", "compile", "allow_unsandboxed_code", "resume",
                    "overwrite"}
        settings = {k: v for k, v in asdict(cfg).items() if k not in volatile and not k.startswith(apart)} | facts
        settings = json.loads(json.dumps(settings))
        file = self.path / "run.json"
        old = None
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: choose another --out")
        for given in inputs:
            if Path(given).exists() and self.path.resolve() == Path(given).resolve():
                raise InputError(f"{self.path} is read by this run, so it cannot be written, too: choose another --out")
        if file.exists() and cfg.overwrite:
            stage = read_json(file).get("settings", {}).get("stage")
            if stage != facts.get("stage"):
                raise InputError(f"{self.path} holds what {stage}.py wrote, which --overwrite does not replace: choose another --out")
        elif file.exists():
            old = {"settings": {}} | read_json(file)
            defaults = json.loads(json.dumps(asdict(type(cfg)())))  # an option that the old run did not have yet
            differing = [k for k in settings if old["settings"].get(k, defaults.get(k)) != settings[k]]
            if differing:
                shown = ", ".join(f"{k}: {old['settings'].get(k)} there, {settings[k]} here" for k in differing[:3])
                raise InputError(f"{self.path} holds a run with other settings ({shown}): choose another --out, or --overwrite to replace it")
            if not old.get("finished") and not cfg.resume and any((self.path / name).exists() for name in ("log.jsonl", "state")):
                raise InputError(f"{self.path} holds an unfinished run of these settings: --resume continues it, --overwrite starts it again")
        elif self.path.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path} is not empty and holds no run of ours, so nothing is written there: choose another --out")
        self.finished = bool(old and old.get("finished"))
        self.record = old or {}
        env.wait()  # rank 0 changes what the others have just looked at
        if self.env.main and not self.finished:
            if cfg.overwrite and file.exists():
                self.clear()
            self.path.mkdir(parents=True, exist_ok=True)
            self.record = {"settings": settings, "command": " ".join(sys.argv), "finished": False, **describe(env)}
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
                row |= {key: float(f"{value:.6g}")} if abs(value) < float("inf") else {key: None, "nonfinite": True}
            else:
                row[key] = value
        with open(self.path / "log.jsonl", "a") as f:
            f.write(json.dumps(row, allow_nan=False) + "\n")

    def finish(self, **results) -> None:
        """Mark the run as ended, with its results; the resume state is no longer needed."""
        if self.env.main:
            self.record |= {"finished": True, "seconds": round(time.time() - self.began, 1), "results": results}
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
            raise InputError(f"could not write {folder / name} ({error}); the state saved before it is untouched") from None
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
        owners = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]  # numbered as in its state

        def placed(tensor: Tensor, like: Tensor) -> Tensor:
            """As the parameter is: sharded if it is, over however many ranks there are now."""
            return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) and tensor.shape == like.shape else tensor

        try:
            with safe_open(pointer.parent / meta["file"], framework="pt", device=str(model.device)) as f, torch.no_grad():
                parameters = dict(model.named_parameters())
                for key in f.keys():
                    if key.startswith("model."):
                        parameters[key[6:]].copy_(placed(f.get_tensor(key), parameters[key[6:]]))
                    else:
                        _, i, j, name = key.split(".")
                        states[int(i)].setdefault(int(j), {})[name] = placed(f.get_tensor(key), owners[int(i)][int(j)])
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(f"{pointer.parent / meta['file']} cannot be resumed from ({error}): --overwrite starts again") from None
        for optimizer, state in zip(optimizers, states):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.env.main:  # rows logged after the saved step will be logged again
            file = self.path / "log.jsonl"
            rows = file.read_text().splitlines() if file.exists() else []
            file.write_text("".join(r + "\n" for r in rows if json.loads(r).get("step", 0) <= meta["step"]))
        self.env.wait()  # elicit_rl goes on to read the log
        return meta["step"]


def describe(env: Env) -> dict:
    """What made a result: versions, device, commit."""
    commit = ""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True,
                                cwd=Path(__file__).parent).stdout.strip()
    name = torch.cuda.get_device_name(env.device) if env.device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {"torch": torch.__version__, "python": platform.python_version(), "device": name, "compute_dtype": str(env.dtype).removeprefix("torch."),
            "ranks": env.world, "commit": commit}


def progress(env: Env, total: int, label: str) -> tqdm:
    return tqdm(total=total, desc=label, disable=not env.main, dynamic_ncols=True, leave=False, mininterval=0.5)
