"""How weights move: the one training loop, supervised fine-tuning, rounds of RL.

Read in this order: `train` (the one optimisation loop, from batches to steps), `fit` (supervised
fine-tuning over epochs), `update` (one round of reinforcement learning).
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from checkpoints.families import config_at
from checkpoints.hf import load_model, save_adapter, save_model
from data.batches import BUCKET, Batch, Example, collate, micro_batches, plan_epoch, round_up
from data.problems import InputError
from data.text import Tokenizer
from lora import ALPHA, attach, is_adapter, reset, scalar_count
from losses import document_loss, sft_loss
from model import Model, ModelConfig, compile_model, completion_logps, whole
from optimizers import make_optimizers, schedule, set_lr
from runs.devices import Env, check_shared, gather, most, progress, share
from runs.directory import Run
from runs.files import reason
from runs.options import TrainConfig, TuneConfig


def save_trained(
    path: Path, model: Model, tokenizer: Tokenizer, cfg: TuneConfig, start: str, write: bool
) -> None:
    """The model, or with --adapter the adapter alone, of the model at `start`.

    All ranks call it, those with `write` write.
    """
    if cfg.adapter:
        save_adapter(path, model, tokenizer, start, write)
    else:
        save_model(path, model, tokenizer, write)


def written_last(cfg: TuneConfig) -> str:
    """The file of a trained model without which it does not open."""
    return "adapter_config.json" if cfg.adapter else "config.json"


def fresh_model(config: ModelConfig, tokenizer: Tokenizer, seed: int, env: Env) -> Model:
    """Random weights in the shape of a model, a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    model = Model(config, env.dtype).init_weights(generator).to(env.device)
    model.live_vocab = tokenizer.size
    return model


def open_to_train(path: str, env: Env, cfg: TrainConfig) -> tuple[Model, Tokenizer]:
    """The checkpoint that training starts from, in fp32 or as --master says.

    With --shard divided before a weight is read, so that no rank ever holds the whole of it. But an
    adapter that gets another one beside it is merged in fp32 first, and divided by `prepare`.
    """
    rank = getattr(cfg, "rank", 0)
    if not cfg.shard or (rank and is_adapter(path)):
        return load_model(path, env.device, env.dtype, cfg.master == "fp32")

    divide = partial(prepare, env=env, cfg=cfg)
    model, tokenizer = load_model(path, env.device, env.dtype, cfg.master == "fp32", divide)
    if rank:
        reset(model, cfg.seed)
    return model, tokenizer


def open_beside(path: str, env: Env, cfg: TrainConfig) -> Model:
    """A model that training compares its own with: in the compute dtype, never trained.

    With --shard divided before a weight is read. All ranks must call it as often then.
    """
    divide = partial(shard, env=env, cfg=cfg) if cfg.shard else None
    model, _ = load_model(path, env.device, env.dtype, masters=False, divide=divide)
    return model.requires_grad_(False)


def prepare(model: Model, env: Env, cfg: TrainConfig) -> Model:
    """Make a model ready to be trained, in place, as cfg asks; once.

    Adapted by LoRA, compiled on CUDA, its activations checkpointed, its weights divided over the
    ranks.
    """
    if isinstance(model.lm_head.weight, DTensor):
        return model
    if cfg.master == "bf16":
        model.to(torch.bfloat16).rebuild()  # its rotary tables stay fp32
    if isinstance(cfg, TuneConfig) and cfg.rank:
        attach(model, cfg.rank, cfg.alpha, cfg.targets, cfg.seed)
    model.checkpointing = cfg.checkpoint_activations
    # on a CPU compilation takes longer than it returns at these sizes (docs/NOTES.md)
    if env.compile and env.device.type == "cuda":
        compile_model(model, by_block=cfg.shard)
    if cfg.shard:
        shard(model, env, cfg)
    return model


def shard(model: Model, env: Env, cfg: TrainConfig) -> None:
    """Divide a model over the ranks, in place (FSDP2).

    Blocks are gathered in the compute dtype, in which they are used anyway. Embedding and head stay
    as they are stored: the gradient of a head is fp32. So do blocks with LoRA, whose adapters are
    computed in fp32. All gradients are added in fp32.
    """
    mesh = init_device_mesh(env.device.type, (env.world,))
    policy = stored = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    if not getattr(cfg, "rank", 0):
        # the rotary tables that a block is given stay fp32
        policy = MixedPrecisionPolicy(env.dtype, torch.float32, cast_forward_inputs=False)
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=stored)


def settled_adapter(cfg: TuneConfig) -> TuneConfig:
    """cfg with LoRA's defaults. Raises InputError for an option of it without --rank."""
    if cfg.rank:
        return replace(cfg, alpha=cfg.alpha or ALPHA)
    for name in ("alpha", "targets", "adapter"):
        if getattr(cfg, name):
            raise InputError(f"--{name} is of LoRA and does nothing without its --rank")
    return cfg


def check_adapter(cfg: TuneConfig, start: str) -> int:
    """How many numbers the adapter of the model at `start` has; 0 where cfg asks for none.

    Raises InputError where the adapter does not fit that model.
    """
    if not cfg.rank:
        return 0
    if cfg.adapter and is_adapter(start):
        raise InputError(
            f"--adapter: {start} is an adapter itself, and one of an adapter would open nowhere "
            "else: leave --adapter out, and the merged model is written"
        )
    config = config_at(start)
    if cfg.adapter and config.published.get("model_type") == "gpt_neox":
        raise InputError(
            f"--adapter: {start} is a gpt_neox model, whose queries, keys and values are one "
            "matrix in its files and three here: leave --adapter out to write the merged model"
        )
    with torch.device("meta"):
        model = Model(config)
    return scalar_count(model, cfg.rank, cfg.targets)


def check_master(cfg: TrainConfig) -> None:
    """Raises InputError where --master bf16 does not go with the settled cfg."""
    if cfg.master == "fp32":
        return
    if cfg.dtype == "fp32":
        raise InputError("--master bf16 computes in bf16, too: leave out --dtype fp32")
    if isinstance(cfg, TuneConfig) and cfg.rank:
        raise InputError(
            "--master bf16 is of training all weights, and with --rank the frozen ones are kept in "
            "the compute dtype anyway: leave it out"
        )
    if cfg.optimizer != "lion":
        raise InputError(
            f"--master bf16 is for lion alone, whose steps it rounds at random, and not for "
            f"{cfg.optimizer}: add --optimizer lion with its --lr, or leave it out"
        )


# ------------------------------------------------------------------------------- the training step


# what a rank without work runs, with weight 0; two rows, where pairs are expected
IDLE = collate([Example([0], [0], [0.0])] * 2)


class Diverged(InputError):
    """The loss or its gradient stopped being finite."""


def targets_of(batch: Batch) -> int:
    """Units of a loss that is a sum over supervised tokens."""
    return len(batch.targets)


def completions_of(batch: Batch) -> int:
    """Units of a loss that is a sum over completions."""
    return batch.examples


def pairs_of(batch: Batch) -> int:
    """Units of a loss that is a sum over pairs, whose examples follow each other."""
    return batch.examples // 2


def step_size(micro: list[Batch], units: Callable, env: Env) -> tuple[float, float, int]:
    """Of a step, over all ranks: units and real tokens, and the most micro-batches of one rank."""
    unit_count = sum(units(batch) for batch in micro)
    token_count = sum(batch.real_tokens for batch in micro)
    if env.world == 1:
        return unit_count, token_count, len(micro)

    mine = torch.tensor([unit_count, token_count, len(micro)], dtype=torch.float64)
    mine = mine.to(env.device)
    everyone = [torch.zeros_like(mine) for _ in range(env.world)]
    dist.all_gather(everyone, mine)
    unit_counts, token_counts, passes = torch.stack(everyone).T.tolist()
    return sum(unit_counts), sum(token_counts), int(max(passes))


def accumulate(
    model: Model, micro: list[Batch], loss_fn: Callable, count: Tensor, passes: int, scale: int
) -> dict[str, Tensor]:
    """Gradients of this rank's micro-batches, times scale, and metrics; both divided by count.

    Every rank runs equally many passes: sharded weights are gathered by all ranks or none, and the
    metrics have the same names everywhere.
    """
    metrics: dict[str, Tensor] = {}
    for i in range(passes):
        if i < len(micro):
            batch, weight = micro[i], 1.0
        else:
            batch, weight = IDLE.to(count.device), 0.0
        loss, extra = loss_fn(model, batch)
        (loss * weight * scale / count).backward()
        for name, value in {"loss": loss, **extra}.items():
            metrics[name] = metrics.get(name, 0.0) + value.detach() * weight / count
    return metrics


def synchronise(parameters: list[Tensor], metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum gradients and metrics over the ranks. Sharded gradients are summed already."""
    if not isinstance(parameters[0], DTensor):
        sync_gradients(parameters)
    values = torch.stack([value.float() for value in metrics.values()])
    dist.all_reduce(values)
    return dict(zip(metrics, values))


SUMMED = 1 << 25  # numbers of a bucket of gradients


def sync_gradients(parameters: list[Tensor], bucket: int = SUMMED) -> None:
    """Sum gradients over ranks, in flat buckets of `bucket` elements or one gradient more.

    Losses are divided by global counts, so a sum is right.
    """
    group, size = [], 0
    for i, p in enumerate(parameters):
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        group.append(p.grad)
        size += p.numel()
        is_last = i == len(parameters) - 1
        if size < bucket and not is_last:
            continue

        # one collective for many small gradients; those of bf16 weights are added in fp32
        flat = torch.cat([grad.view(-1) for grad in group]).float()
        dist.all_reduce(flat)
        parts = flat.split([grad.numel() for grad in group])
        for grad, part in zip(group, parts):
            grad.copy_(part.view_as(grad))
        group, size = [], 0


def on_host(metrics: dict[str, Tensor]) -> dict[str, float]:
    """One transfer for all of them: each would wait for the device by itself."""
    values = torch.stack([value.float() for value in metrics.values()])
    return dict(zip(metrics, values.tolist()))


def check_finite(metrics: dict[str, float], step: int) -> None:
    """Raises Diverged, naming the step (counted from 1), where loss or gradient is not finite."""
    if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
        return
    if step == 1:
        raise Diverged(
            "the loss or its gradient is not finite at step 1, before any weight has moved: "
            "look at the weights that training starts from, and at its data"
        )
    raise Diverged(
        f"the loss or its gradient is not finite at step {step}: lower --lr; "
        "the last checkpoint is untouched"
    )


def train(
    model: Model,
    optimizers: list,
    batches: Callable[[int], list[Batch]],
    loss_fn: Callable,
    env: Env,
    *,
    steps: int,
    start: int = 0,
    stop: int | None = None,
    warmup: int = 0,
    decay: float = 0.0,
    clip: float = 1.0,
    units: Callable = targets_of,
) -> Iterator[tuple[int, dict[str, float]]]:
    """The one optimisation loop: `for step, metrics in train(...)`.

    Accumulates, synchronises, clips, steps, and yields the number of steps taken and the metrics
    of the last: those of the loss, grad_norm (before clipping), lr, tokens (real ones, all ranks).

    batches(step): this rank's micro-batches of that step. loss_fn(model, batch) -> (loss summed
    over units, {name: summed metric}). Loss and metrics are divided by the units (tokens, pairs)
    of the whole step, over all micro-batches and ranks. steps: of the whole schedule, of which
    this call takes those from start up to stop (default: to the end).
    Raises Diverged, naming the step, before a gradient that is not finite touches the weights.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # fully_shard averages gradients over the ranks; they are divided by a count of all ranks, so
    # their sum is right
    scale = env.world if isinstance(parameters[0], DTensor) else 1

    for step in range(start, steps if stop is None else stop):
        micro = [batch.to(env.device) for batch in batches(step)]
        unit_count, token_count, passes = step_size(micro, units, env)
        # a step without a unit must not divide by 0
        count = torch.full((), max(1.0, float(unit_count)), device=env.device)

        # gradients and metrics of the whole step
        found = accumulate(model, micro, loss_fn, count, passes, scale)
        if env.world > 1:
            found = synchronise(parameters, found)
        found["grad_norm"] = whole(torch.nn.utils.clip_grad_norm_(parameters, clip))
        metrics = on_host(found)
        check_finite(metrics, step + 1)

        # the weights move
        set_lr(optimizers, schedule(step, steps, warmup, decay))
        metrics["lr"] = optimizers[0].param_groups[0]["lr"]
        metrics["tokens"] = token_count
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield step + 1, metrics


# -------------------------------------------------------------------------- supervised fine-tuning


ALIKE = 32  # documents of like length in a row, of those in a step


class Meter:
    """Real tokens a second, and the share of padding, since the last reading."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.real = 0  # tokens of all ranks
        self.computed = 0  # tokens of this rank, with padding
        self.since = time.time()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time within does not count: it goes to sampling, evaluating, saving."""
        began = time.time()
        yield
        self.since += time.time() - began

    def read(self, world: int) -> dict[str, float]:
        """tok_s and padding; the counts begin anew."""
        found = {
            "tok_s": round(self.real / (time.time() - self.since)),
            "padding": 1 - self.real / max(1, self.computed * world),
        }
        self.reset()
        return found


def refuse_overlong(examples: list[Example], config: ModelConfig) -> None:
    """Raises InputError, with their number and the longest, for examples that no row can hold."""
    lengths = [len(example) for example in examples]
    overlong = [length for length in lengths if length > config.max_position_embeddings]
    if overlong:
        raise InputError(
            f"{len(overlong)} of {len(examples)} examples are longer than the model's "
            f"{config.positions}; the longest, number {lengths.index(max(lengths)) + 1}, has "
            f"{max(lengths)} tokens: leave them out, or take a model with more positions"
        )


def ordered_batches(
    examples: list[Example], order: list[list[int]], micro_tokens: int, env: Env
) -> Callable[[int], list[Batch]]:
    """For `train`: this rank's micro-batches of a step, whose examples `order` says."""

    def batches(step: int) -> list[Batch]:
        return micro_batches(share(env, [examples[i] for i in order[step]]), micro_tokens)

    return batches


def step_batches(
    plan: list[list[int]],
    examples: list[Example],
    micro_tokens: int,
    env: Env,
    meter: Meter,
    step: int,
) -> list[Batch]:
    """This rank's micro-batches of a step; its number counts on from epoch to epoch."""
    mine = share(env, plan[step % len(plan)])
    micro = micro_batches([examples[i] for i in mine], micro_tokens)
    meter.computed += sum(batch.tokens.numel() for batch in micro)
    return micro


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned: for how long, in which steps, by which loss."""

    epochs: int
    batch: int  # examples in a step
    optimizer: str
    lr: float
    warmup: int = 0  # steps
    decay: float = 0.0  # share of all steps, at the end
    by_document: bool = False  # document_loss, whose units are completions
    loss_fn: Callable = sft_loss  # else this one, whose units are supervised tokens


def fit(
    model: Model,
    examples: Callable[[int], list[Example]],
    size: int,
    recipe: Recipe,
    run: Run,
    env: Env,
    cfg: TrainConfig,
    evaluate: Callable[[], dict] | None = None,
    evaluate_every: int = 400,
) -> None:
    """Supervised fine-tuning over epochs, logged; the state is saved every cfg.save_every steps.

    examples(epoch) gives the `size` examples of an epoch, and may sample them afresh: it is called
    once for each epoch that is trained on. It and the order of steps depend on (seed, epoch) alone,
    so a resumed run goes on exactly as the uninterrupted one would have.
    Raises InputError for examples that are longer than the model's positions.
    """
    loss_fn, units = recipe.loss_fn, targets_of
    if recipe.by_document:
        loss_fn, units = document_loss, completions_of
    # sharding replaces the parameters, so the optimisers come after it
    optimizers = make_optimizers(
        prepare(model, env, cfg), recipe.optimizer, recipe.lr, seed=cfg.seed
    )
    start = run.load_state(model, optimizers) if cfg.resume else 0
    per_epoch = math.ceil(size / recipe.batch)
    steps = per_epoch * recipe.epochs

    bar = progress(env, steps, f"training {run.path}")
    bar.update(start)
    meter = Meter()
    for epoch in range(start // per_epoch, recipe.epochs):
        # the epoch's examples, and which of them each step takes
        with meter.paused():
            data = examples(epoch)
        assert len(data) == size, f"epoch {epoch} has {len(data)} examples, not {size}"
        refuse_overlong(data, model.config)
        rng = np.random.default_rng([cfg.seed, 2, epoch])
        plan = plan_epoch([len(example) for example in data], recipe.batch, rng, ALIKE)

        steps_of_epoch = train(
            model,
            optimizers,
            partial(step_batches, plan, data, cfg.micro_tokens, env, meter),
            loss_fn,
            env,
            steps=steps,
            start=max(start, epoch * per_epoch),
            stop=(epoch + 1) * per_epoch,
            warmup=recipe.warmup,
            decay=recipe.decay,
            units=units,
        )
        for step, metrics in steps_of_epoch:
            bar.update()
            meter.real += metrics["tokens"]
            if step % 20 == 0 or step == steps:
                log_step(run, step, metrics, meter, bar)
            with meter.paused():
                if evaluate and step % evaluate_every == 0:
                    run.log("eval", step=step, **evaluate())
                if step % cfg.save_every == 0 and step < steps:
                    run.save_state(step, model, optimizers)
    bar.close()


def log_step(run: Run, step: int, metrics: dict[str, float], meter: Meter, bar: tqdm) -> None:
    """Log and show how the training goes.

    loss (nats per supervised token), grad_norm before clipping, lr, tok_s (real tokens a second of
    training), padding (share of computed tokens that were padding).
    """
    speed = meter.read(run.env.world)
    shown = {name: metrics[name] for name in ("loss", "grad_norm", "lr")}
    run.log("train", step=step, **shown, **speed)
    bar.set_postfix(loss=f"{metrics['loss']:.3f}", tok_s=speed["tok_s"])


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


def read_logps(file: Path, count: int) -> np.ndarray:
    """The log-probs of `count` tokens. Raises InputError where the file holds anything else."""
    try:
        logps = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} is damaged ({reason(error)}): remove it") from None
    if logps.dtype != np.float32 or logps.shape != (count,) or not np.isfinite(logps).all():
        raise InputError(f"{file} does not hold the log-probs of {count} tokens: remove it")
    return logps


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

    count = sum(len(example.completion_ids) for example in examples)
    # of a file that is still on its way to some ranks, they would go different ways
    if env.decide(file.exists):
        check_shared(env, file)
        logps = read_logps(file, count)
    else:
        rows = [example.logps for example in scored(model, examples, micro_tokens, env)]
        logps = np.array([logp for row in rows for logp in row], dtype=np.float32)
        if env.main:
            temporary = file.with_suffix(".tmp.npy")
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
    has_moved = any(optimizer.state for optimizer in optimizers)
    warmup = 0 if has_moved else 4
    for _, metrics in train(
        model, optimizers, batches, loss_fn, env, steps=len(steps), warmup=warmup, units=units
    ):
        for name, value in metrics.items():
            history.setdefault(name, []).append(float(value))

    means = {name: float(np.mean(values)) for name, values in history.items() if name != "tokens"}
    return means | {"steps": len(steps)}
