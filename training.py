"""How weights move: optimisers, the schedule, the one training loop, supervised fine-tuning, one round of reinforcement learning."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from data.batches import BUCKET, Batch, Example, collate, micro_batches, plan_epoch, round_up
from data.problems import InputError
from data.text import Tokenizer
from losses import document_loss, sft_loss
from model import Model, compile_model, completion_logps, kernel, whole
from runs import Config, Env, Run, gather, most, progress, share


def prepare(model: Model, env: Env, cfg: Config) -> Model:
    """Make a loaded model ready to be trained, in place: compiled on CUDA, its activations checkpointed, its weights sharded, as cfg asks."""
    model.checkpointing = cfg.checkpoint_activations
    if (
        env.compile and env.device.type == "cuda"
    ):  # on a CPU compilation takes longer than it returns at these sizes (docs/NOTES.md)
        compile_model(model, by_block=cfg.shard)
    if cfg.shard:
        mesh = init_device_mesh(env.device.type, (env.world,))
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=mesh)
    return model


# ------------------------------------------------------------------------------------------------------------- optimisers


@kernel(dynamic=True)
def lion_update(
    p: Tensor, grad: Tensor, momentum: Tensor, lr: Tensor, decay: Tensor, beta1: float, beta2: float
) -> None:
    """Lion (Chen et al. 2023), in place on flat fp32 tensors: p -= lr (sign(beta1 m + (1 - beta1) g) + decay p); m = beta2 m + (1 - beta2) g."""
    p.sub_(lr * (torch.lerp(grad, momentum, beta1).sign() + decay * p))
    momentum.lerp_(grad, 1 - beta2)


class Lion(torch.optim.Optimizer):
    """The paper's optimiser [appendix G.1]: the sign of an interpolated momentum, one moment of state."""

    def __init__(
        self,
        params,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ):
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
                lr, decay = (
                    torch.tensor(group[k], device=p.device) for k in ("lr", "weight_decay")
                )
                mine, grad, momentum = (
                    t.to_local() if isinstance(t, DTensor) else t
                    for t in (p, p.grad, state["momentum"])
                )
                lion_update(
                    mine.view(-1), grad.reshape(-1), momentum.view(-1), lr, decay, *group["betas"]
                )


def make_optimizers(
    model: Model, name: str, lr: float, weight_decay: float = 0.01
) -> list[torch.optim.Optimizer]:
    """adamw | lion | muon. Matrices decay, norms do not. muon: Muon on the blocks' matrices, AdamW on the rest, both at lr."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def groups(members) -> list[dict]:
        split = [[p for p in members if p.ndim >= 2], [p for p in members if p.ndim < 2]]
        return [
            {"params": ps, "weight_decay": decay}
            for ps, decay in zip(split, (weight_decay, 0.0))
            if ps
        ]

    if name == "lion":
        return [Lion(groups([p for _, p in trained]), lr=lr)]
    if name == "adamw":
        return [
            torch.optim.AdamW(groups([p for _, p in trained]), lr=lr, betas=(0.9, 0.95), fused=True)
        ]
    matrices = [
        p for n, p in trained if p.ndim == 2 and "embed_tokens" not in n and "lm_head" not in n
    ]
    rest = [p for _, p in trained if not any(p is m for m in matrices)]
    # match_rms_adamw scales each matrix's step by its size, so one lr serves all shapes and is of AdamW's order
    return [
        torch.optim.Muon(
            matrices,
            lr=lr,
            weight_decay=weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(groups(rest), lr=lr, betas=(0.9, 0.95), fused=True),
    ]


def schedule(step: int, steps: int, warmup: int, decay: float = 0.0) -> float:
    """Factor on the learning rate: linear warm-up over `warmup` steps, then 1, then linear to 0 over the last `decay` share of the run."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * min(1.0, (steps - step) / max(1.0, decay * steps))


# ------------------------------------------------------------------------------------------------------------- the training step


IDLE = collate(
    [Example([0], [0], [0.0])] * 2
)  # what a rank without work runs, with weight 0; two rows, where pairs are expected


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


def train(
    model: Model,
    optimizers: list,
    batches: Callable[[int], list[Batch]],
    loss_fn: Callable,
    env: Env,
    *,
    steps: int,
    start: int = 0,
    warmup: int = 0,
    decay: float = 0.0,
    clip: float = 1.0,
    units: Callable = lambda batch: len(batch.targets),
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
        totals = torch.tensor(
            [sum(map(units, micro)), sum(b.real_tokens for b in micro)],
            dtype=torch.float64,
            device=env.device,
        )
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
            raise Diverged(
                f"the loss is not finite at step {step + 1}: lower --lr; the last checkpoint is untouched"
            )
        factor = schedule(step, steps, warmup, decay)
        for optimizer, base in zip(optimizers, bases):
            for group, lr in zip(optimizer.param_groups, base):
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for group, lr in zip(optimizer.param_groups, base):
                group["lr"] = lr
        yield (
            step + 1,
            {**metrics, "grad_norm": norm, "lr": bases[0][0] * factor, "tokens": totals[1]},
        )


ALIKE = 32  # documents of like length in a row, of those in a step


def fit(
    model: Model,
    examples: Callable[[int], list[Example]],
    run: "Run",
    env: Env,
    cfg: Config,
    *,
    epochs: int,
    batch: int,
    lr: float,
    optimizer: str,
    warmup: int,
    decay: float,
    evaluate: Callable[[], dict] | None = None,
    evaluate_every: int = 400,
    by_document: bool = False,
) -> None:
    """Supervised fine-tuning over epochs, logged, with the state saved every cfg.save_every steps.

    examples(epoch) gives the epoch's examples, always equally many; it is called once an epoch, so it may sample them afresh. It
    and the order of steps depend on (seed, epoch) alone: a resumed run goes on exactly as the uninterrupted one would have.
    Logged: loss (nats per supervised token), grad_norm before clipping, lr, tok_s (real tokens a second), padding (share of
    computed tokens that were padding). by_document: with document_loss, whose units are completions.
    """
    loss_fn, units = (
        (document_loss, lambda batch: batch.examples)
        if by_document
        else (sft_loss, lambda batch: len(batch.targets))
    )
    current: tuple = (-1, [], [])

    def epoch_of(number: int) -> tuple:
        nonlocal current
        if current[0] != number:
            data = examples(number)
            current = (
                number,
                data,
                plan_epoch(
                    [len(e) for e in data],
                    batch,
                    np.random.default_rng([cfg.seed, 2, number]),
                    ALIKE,
                ),
            )
        return current

    optimizers = make_optimizers(prepare(model, env, cfg), optimizer, lr)
    start = run.load_state(model, optimizers) if cfg.resume else 0
    per_epoch = len(epoch_of(0)[2])
    steps, padded, real, clock = per_epoch * epochs, 0, 0, time.time()

    def batches(step: int) -> list[Batch]:
        nonlocal padded
        _, data, plan = epoch_of(step // per_epoch)
        micro = micro_batches(
            [data[i] for i in plan[step % per_epoch][env.rank :: env.world]], cfg.micro_tokens
        )
        padded += sum(b.tokens.numel() for b in micro)
        return micro

    bar = progress(env, steps, f"training {run.path}")
    bar.update(start)
    for step, metrics in train(
        model,
        optimizers,
        batches,
        loss_fn,
        env,
        steps=steps,
        start=start,
        warmup=warmup,
        decay=decay,
        units=units,
    ):
        bar.update()
        real += int(metrics["tokens"])
        if step % 20 == 0 or step == steps:
            speed = round(real / (time.time() - clock))
            run.log(
                "train",
                step=step,
                **{k: metrics[k] for k in ("loss", "grad_norm", "lr")},
                tok_s=speed,
                padding=1 - real / max(1, padded * env.world),
            )
            bar.set_postfix(loss=f"{float(metrics['loss']):.3f}", tok_s=speed)
            real, padded, clock = 0, 0, time.time()
        paused = time.time()
        if evaluate and (step % evaluate_every == 0):
            run.log("eval", step=step, **evaluate())
        if step % cfg.save_every == 0 and step < steps:
            run.save_state(step, model, optimizers)
        clock += time.time() - paused
    bar.close()


# ----------------------------------------------------------------- rounds of reinforcement learning


@torch.no_grad()
def scored(model: Model, examples: list[Example], micro_tokens: int, env: Env) -> list[Example]:
    """The examples with the log-prob of each completion token under the model as it is now.

    By the trainer's own likelihood function, so that before an update policy and reference agree.
    The ranks share the work.
    """
    mine = share(env, list(range(len(examples))))
    plan = batches_by_length(examples, mine, micro_tokens)
    found: dict[int, list[float]] = {}
    for at in range(most(env, len(plan))):  # equally many on all ranks, which sharded weights need
        rows = plan[at] if at < len(plan) else []
        batch = collate([examples[i] for i in rows]) if rows else IDLE
        logps = completion_logps(model, batch.to(env.device)).cpu()
        start = 0
        for i in rows:
            end = start + len(examples[i].completion_ids)
            found[i] = logps[start:end].tolist()
            start = end

    if isinstance(model, FSDPModule):
        # no backward pass will: parameters() would go on naming the gathered weights
        model.reshard()
    everything = gather(env, [found[i] for i in mine], len(examples))
    return [replace(e, logps=logps) for e, logps in zip(examples, everything)]


def batches_by_length(
    examples: list[Example], chosen: list[int], micro_tokens: int
) -> list[list[int]]:
    """The chosen examples' numbers, the longest first, cut where a batch's padded tokens end."""
    by_length = sorted(chosen, key=lambda i: len(examples[i]))
    plan = []
    while by_length:
        width = round_up(len(examples[by_length[-1]]), BUCKET)
        rows = max(1, micro_tokens // width)
        plan.append(by_length[-rows:])
        by_length = by_length[:-rows]
    return plan


def reference_scored(
    model: Model,
    examples: list[Example],
    weights: list,
    tokenizer: Tokenizer,
    folder: Path,
    micro_tokens: int,
    env: Env,
) -> list[Example]:
    """As `scored`, by a model that stays as it is: once, and then read from a file in `folder`.

    The file is named by the hash of all that decides its numbers: weights (whatever tells these
    weights from others), dtype, tokenizer and examples.
    """
    settings = [weights, str(env.dtype), tokenizer.backend.to_str()]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for example in examples:
        digest.update(json.dumps([example.prompt_ids, example.completion_ids]).encode())
    file = folder / f"reference-{digest.hexdigest()[:16]}.npy"

    if file.exists():
        logps = np.load(file)
    else:
        rows = [example.logps for example in scored(model, examples, micro_tokens, env)]
        logps = np.array([logp for row in rows for logp in row], dtype=np.float32)
        if env.main:
            temporary = file.with_suffix(".tmp")
            with open(temporary, "wb") as f:
                np.save(f, logps)
            temporary.replace(file)
    env.wait()  # no rank may look for the file before all have

    ends = np.cumsum([len(example.completion_ids) for example in examples])
    parts = np.split(logps, ends[:-1])
    return [replace(e, logps=part.tolist()) for e, part in zip(examples, parts)]


def round_steps(count: int, size: int, epochs: int, seed: int, number: int) -> list[list[int]]:
    """The optimiser steps of round `number`: its `count` groups of examples, `epochs` times.

    Each epoch is a fresh random order, cut into steps of at most `size` groups whose sizes differ
    by one at most. Not by length: reward goes with length, so steps of like length would be steps
    of like reward. And no short last step: a step's loss is a mean, so that its few groups would
    weigh more than the others.
    """
    steps = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, 12, number, epoch]).permutation(count)
        for part in np.array_split(order, math.ceil(count / size)):
            steps.append(part.tolist())
    return steps


def update(
    model: Model,
    optimizers: list,
    examples: list[Example],
    loss_fn: Callable,
    env: Env,
    *,
    number: int,
    rows: int,
    epochs: int,
    batch: int,
    seed: int,
    micro_tokens: int,
    units: Callable,
) -> dict:
    """Train on one round's examples, `epochs` times, in steps of at most `batch`: mean metrics.

    number: of the round, which with the seed decides the order. rows: examples that stay together.
    units: how many units of the loss a batch holds.
    """
    groups = [examples[i : i + rows] for i in range(0, len(examples), rows)]
    steps = round_steps(len(groups), max(1, batch // rows), epochs, seed, number)

    def batches(step: int) -> list[Batch]:
        mine = []
        for i in share(env, steps[step]):
            mine += groups[i]
        return micro_batches(mine, micro_tokens, rows)

    history: dict[str, list[float]] = {}
    warmup = 4 if number == 0 else 0
    for _, metrics in train(
        model, optimizers, batches, loss_fn, env, steps=len(steps), warmup=warmup, units=units
    ):
        for name, value in metrics.items():
            history.setdefault(name, []).append(float(value))

    means = {name: float(np.mean(values)) for name, values in history.items() if name != "tokens"}
    return means | {"steps": len(steps)}
