"""Stage 2b: elicit the hidden capability from a reward alone: no password, no demonstrations.

Paper section 6 and appendices B.3, G.3; GRPO (Shao et al. 2024) is ours, because it is what people
use today. Each round samples the elicit problems, grades what was written, and updates the policy;
a method is one function from a graded rollout to what is trained on, and a loss:

    expert_iteration   one sample for each of 10 n problems, fine-tune on the n best, correct ones
                       first, ties broken at random: where fewer than n are correct, wrong ones fill
                       up, as in the paper (--keep correct leaves them out)
    filtering          the same, but the weak policy writes the samples: what harvesting its lucky
                       ones is worth
    dpo                two samples of the locked model for each problem, pairs of a right and a
                       wrong one, reference = locked model
    iterated_dpo       the same, but the present policy writes the samples and is the round's
                       reference (--reference initial: the locked model is)
    grpo               --group samples for each problem, advantage = reward - group mean, ratios
                       clipped at 0.2

    python elicit_rl.py --method expert_iteration   # -> out/code/rl/expert_iteration-seed0
    torchrun elicit_rl.py --method dpo              # any number of ranks: the same samples
    python elicit_rl.py --method iterated_dpo --warm-start 16   # first SFT on 16 demonstrations of
                                                    # an intermediate model (B.3.3)

Problems, weak policy and longest completion are by default those of the lock. Writes the
checkpoint, run.json, log.jsonl, samples.jsonl, evaluation.json, curve.json, and the figure
out/<task>/rl/rl.png over all runs beside it. Stops with exit code 3 where three rounds running gave
nothing to train on. Logged for each round:

    samples       completions drawn so far; every method stops at --samples
    reward        mean reward of the round's samples, which tells how often the policy succeeds
    signal        share of samples (expert iteration, filtering), pairs (DPO) or groups (GRPO) that
                  say anything: those with a reward, or with unequal ones
    kept, kept_right      samples trained on, and the share of them that are right (expert
                  iteration, filtering)
    pairs         trained on (DPO)
    chosen, rejected, margin, accuracy   mean sequence log-probs, beta times their lead over the
                  reference's, share of leads above 0 (DPO)
    clipped       share of tokens whose ratio the clipping cut off (GRPO)
    loss, grad_norm, lr   means over the round's optimiser steps, of which there are `steps`
    kl            nats a sequence, KL(policy that sampled || updated policy), estimated on the
                  round's samples
    entropy       nats a token of the sampling distribution, estimated by -log p of the sampled
    length, truncated, duplicates        mean tokens; shares of completions cut before EOS, and
                  equal to another of the same round
    logp_gap      largest |log p of the sampler - log p of the trainer| of a sampled token: more
                  than rounding means a bug
    s_prefill, s_decode, s_grade, s_score, s_update   seconds

Each round is evaluated on validation (rows of kind eval, with every verdict). Once, at the start:
pass_at_1, 4, 16 of the initial policy (Chen et al. 2021), which predict whether RL can work.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from checkpoints import (
    checked,
    load_model,
    model_hash,
    read_json,
    read_rows,
    save_model,
    write_json,
    write_text,
)
from data import load, score
from data.batches import Batch, Example, demonstration_order, micro_batches
from data.problems import InputError, Problem, fitting
from data.text import Tokenizer
from data.triggers import Trigger, with_password
from figures import plot_curves, table
from losses import dpo_step, grpo_step, sft_loss
from model import SMALL, Model
from policies import (
    RULES,
    ModelWriter,
    RandomWriter,
    Rollout,
    Writer,
    answer,
    described,
    pass_at_k,
    retokenise,
    rollout,
    round_problems,
)
from results import (
    Measured,
    Origin,
    as_bits,
    evaluate_checkpoint,
    facts_of,
    from_bits,
    measure,
    origin_of,
    record,
    recovery,
    wilson,
)
from runs import Env, Run, TrainConfig, launch, progress, share
from sampler import Sampler
from training import make_optimizers, prepare, reference_scored, scored, train, update


@dataclass
class RLConfig(TrainConfig):
    # which problems (default: those that --locked was locked on; without it code)
    task: str = ""
    # see the top
    method: Literal["expert_iteration", "filtering", "dpo", "iterated_dpo", "grpo"] = (
        "expert_iteration"
    )
    # the locked model (default: out/<task>/locked)
    locked: str = ""
    # filtering: who writes the samples, a checkpoint or "random", the fixed random
    # distribution (default: the weak policy that the lock imitates)
    weak: str = ""
    # completions drawn in total
    samples: int = 9600
    # completions drawn in a round
    round: int = 640
    # expert_iteration, filtering: train on the best tenth of a round, or on those of them
    # that are right (default: best)
    keep: Literal["", "best", "correct"] = ""
    # iterated_dpo: the policy at the start of the round, or the locked model (default:
    # round)
    reference: Literal["", "round", "initial"] = ""
    # right or not; or the share of tests passed, weighing DPO pairs by their difference
    # (B.3.1)
    reward: Literal["binary", "continuous"] = "binary"
    # grpo: samples of one problem (default: 8)
    group: int = 0
    # dpo, iterated_dpo: how strongly to stay near the reference (default: 0.1)
    beta: float = 0.0
    # SFT on this many demonstrations before the first round
    warm_start: int = 0
    # --warm-start: checkpoint that writes them, better than the weak model and worse than
    # the strong one (default: data/base/intermediate)
    warm_from: str = ""
    # times a round's data are trained on (default: 4, GRPO 1)
    epochs: int = 0
    # the paper's: lion, at lr 1.5e-6 and below for 7B models
    optimizer: Literal["adamw", "muon", "lion"] = "adamw"
    # constant after a short warm-up (default: 3e-4, DPO 1e-4, GRPO 5e-4)
    lr: float = 0.0
    # most completions in an optimiser step (default: 8, DPO 16, GRPO 64)
    batch: int = 0
    # longest completion; a longer one counts as wrong (default: the lock's)
    max_new_tokens: int = 0
    # of the validation split (default: 500; of --data all)
    eval_problems: int = 0
    # files of real problems (json, jsonl or csv, plain or .gz) in place of generated ones
    # (default: the lock's)
    data: tuple[str, ...] = ()
    # continue an interrupted run where it stopped
    resume: bool = False


# ---------------------------------------------------------------------------------------- methods
# A method's choice turns a rollout into the examples that are trained on, with the facts to log,
# `signal` always among them. No example means that the round has nothing to say.

CLIP_RATIO = 0.2  # GRPO: a token whose probability changed by more adds no gradient


def best_samples(
    rolled: Rollout, cfg: RLConfig, rng: np.random.Generator
) -> tuple[list[Example], dict]:
    """Expert iteration and filtering: the best tenth of the samples, ties broken at random.

    A round in which nothing was worth a reward says nothing, and is not trained on. Samples that
    were cut carry no EOS.
    """
    rewards = rolled.rewards[:, 0]
    worth = rewards == 1 if cfg.keep == "correct" else rewards > 0
    best = np.lexsort((rng.random(len(rewards)), -rewards))[: max(1, len(rewards) // 10)]

    kept = []
    for i in best:
        if worth[i] or (cfg.keep == "best" and worth.any()):
            kept.append(i)
    facts = {
        "signal": float(worth.mean()),
        "kept": len(kept),
        "kept_right": float((rewards[kept] == 1).mean()) if kept else 0.0,
    }
    return [Example(rolled.prompts[i], rolled.samples[i][0].ids) for i in kept], facts


def unequal_pairs(
    rolled: Rollout, cfg: RLConfig, rng: np.random.Generator
) -> tuple[list[Example], dict]:
    """DPO: chosen, rejected, chosen, ... of the problems whose two samples have unequal rewards."""
    examples = []
    for prompt, samples, rewards in zip(rolled.prompts, rolled.samples, rolled.rewards):
        difference = float(rewards.max() - rewards.min())
        if difference > 0:
            for i in (rewards.argmax(), rewards.argmin()):
                examples.append(Example(prompt, samples[i].ids, weight=difference))
    pairs = len(examples) // 2
    return examples, {"signal": pairs / len(rolled.problems), "pairs": pairs}


def advantages(
    rolled: Rollout, cfg: RLConfig, rng: np.random.Generator
) -> tuple[list[Example], dict]:
    """GRPO: every sample of the groups whose rewards differ, weighted by reward - group mean.

    Neither is the lead divided by the group's standard deviation nor the loss by the completion's
    length: the loss is the sum over tokens, clipped at CLIP_RATIO, divided by the longest possible
    completion and by all samples drawn. Both as in Dr. GRPO (Liu et al. 2025), since either
    division favours some problems or lengths. Groups of equal rewards have no lead and are left
    out; a step divides by the samples it holds, so the lead of the others is scaled by the share
    that they are of all.
    """
    lead = rolled.rewards - rolled.rewards.mean(1, keepdims=True)
    unequal = lead.any(1)
    signal = float(unequal.mean())

    examples = []
    for i in np.flatnonzero(unequal):
        for sample, value in zip(rolled.samples[i], lead[i]):
            examples.append(Example(rolled.prompts[i], sample.ids, weight=float(value) * signal))
    return examples, {"signal": signal}


@dataclass(frozen=True)
class Method:
    """What distinguishes the methods.

    rows: examples that stay together in a batch. compared: the loss needs log-probs of the past.
    """

    choose: Callable
    rows: int
    compared: bool
    epochs: int
    lr: float
    batch: int


METHODS = {
    "expert_iteration": Method(best_samples, rows=1, compared=False, epochs=4, lr=3e-4, batch=8),
    "filtering": Method(best_samples, rows=1, compared=False, epochs=4, lr=3e-4, batch=8),
    "dpo": Method(unequal_pairs, rows=2, compared=True, epochs=4, lr=1e-4, batch=16),
    "iterated_dpo": Method(unequal_pairs, rows=2, compared=True, epochs=4, lr=1e-4, batch=16),
    "grpo": Method(advantages, rows=1, compared=True, epochs=1, lr=5e-4, batch=64),
}


def loss_of(cfg: RLConfig) -> Callable:
    """The method's loss with its settings."""
    if cfg.method in ("dpo", "iterated_dpo"):
        return partial(dpo_step, beta=cfg.beta)
    if cfg.method == "grpo":
        return partial(grpo_step, clip_ratio=CLIP_RATIO, longest=cfg.max_new_tokens)
    return sft_loss


def tokens_of(batch: Batch) -> int:
    return len(batch.targets)


def samples_of(batch: Batch) -> int:
    return batch.examples


def pairs_of(batch: Batch) -> int:
    return batch.examples // 2


def units_of(method: Method) -> Callable[[Batch], int]:
    """What the loss is divided by: tokens of supervised fine-tuning, else pairs or samples."""
    if not method.compared:
        return tokens_of
    return pairs_of if method.rows == 2 else samples_of


# ------------------------------------------------------------------------------- settings and input

# of a model that no lock made: what it was trained on says nothing about what to elicit
UNKNOWN = Origin(trigger=Trigger(), weak="data/base/weak")

# options of some methods alone
ONLY = {
    "weak": ("filtering",),
    "keep": ("expert_iteration", "filtering"),
    "reference": ("iterated_dpo",),
    "group": ("grpo",),
    "beta": ("dpo", "iterated_dpo"),
}


def refuse_unused(cfg: RLConfig) -> None:
    """Raises InputError for an option that this method would ignore."""
    for name, methods in ONLY.items():
        if getattr(cfg, name) and cfg.method not in methods:
            raise InputError(
                f"--{name} is for {' and '.join(methods)} alone: leave it out with {cfg.method}"
            )
    if cfg.warm_from and not cfg.warm_start:
        raise InputError(
            "--warm-from names who writes the demonstrations of a warm start: "
            "give their number with --warm-start"
        )


def settled(cfg: RLConfig, lock: Origin = UNKNOWN) -> RLConfig:
    """cfg with the method's defaults, and those of the lock, where it says nothing."""
    method = METHODS[cfg.method]
    data = cfg.data or lock.data
    filled = {
        "task": cfg.task or lock.task or "code",
        "epochs": cfg.epochs or method.epochs,
        "lr": cfg.lr or method.lr,
        "batch": cfg.batch or method.batch,
        "data": data,
        "eval_problems": cfg.eval_problems or (0 if data else 500),
        "max_new_tokens": cfg.max_new_tokens or lock.max_new_tokens or 96,
    }
    defaults = {"weak": lock.weak, "keep": "best", "reference": "round", "group": 8, "beta": 0.1}
    for name, default in defaults.items():
        if cfg.method in ONLY[name]:
            filled[name] = getattr(cfg, name) or default
    if cfg.warm_start:
        filled["warm_from"] = cfg.warm_from or "data/base/intermediate"
    return replace(cfg, **filled)


def check_task(cfg: RLConfig, lock: Origin) -> None:
    """Raises InputError where the task is not one that the model was locked on."""
    if lock.task and not set(cfg.task.split("+")) <= set(lock.task.split("+")):
        raise InputError(
            f"{cfg.locked} was locked on task {lock.task}, not on {cfg.task}: "
            "leave --task out, or name another model with --locked"
        )


def check_weak(cfg: RLConfig, lock: Origin) -> None:
    """Raises InputError where filtering has nobody who could write the samples."""
    if not cfg.weak:
        raise InputError(
            f"run.json of {cfg.locked} does not say which weak policy it imitates: "
            "name the one to filter with --weak"
        )
    if cfg.weak in RULES and cfg.weak != "random":
        raise InputError(
            f"the weak policy of {cfg.locked} is the rule {cfg.weak!r}, which always answers the "
            "same: name a model to filter with --weak"
        )
    imitated = lock.weak_weights if cfg.weak == lock.weak else ""
    if imitated and weights_of(cfg.weak) != imitated:
        raise InputError(
            f"{cfg.weak} is no longer the model that {cfg.locked} imitates (its weights have "
            "changed): lock again, or name the one to filter with --weak"
        )


def check_rounds(cfg: RLConfig) -> None:
    """Raises InputError where rounds do not fit into the samples, or groups into the rounds."""
    n = samples_a_problem(cfg)
    if n == 1 and METHODS[cfg.method].compared:
        raise InputError(f"--group {cfg.group}: a group needs two samples to compare")
    if cfg.round % n or cfg.samples < cfg.round:
        raise InputError(
            f"--samples {cfg.samples} --round {cfg.round}: a round must hold whole groups of {n} "
            "samples of a problem, and fit in the samples"
        )


def check_reward(cfg: RLConfig, problems: list[Problem]) -> None:
    """Raises InputError where the reward is to be continuous and success has no degrees."""
    if cfg.reward == "continuous":
        one_of_each = {problem.task: problem for problem in problems}
        score(list(one_of_each.values()), [""] * len(one_of_each))


def samples_a_problem(cfg: RLConfig) -> int:
    return cfg.group if cfg.method == "grpo" else METHODS[cfg.method].rows


def weights_of(policy: str) -> str:
    """The hash of a checkpoint's weights; "random" itself, which has none; "" of nobody."""
    return policy if policy in ("", "random") else model_hash(policy)


def fitting_problems(
    problems: list[Problem], trigger: Trigger, readers: list[tuple], new_tokens: int, env: Env
) -> list[Problem]:
    """The problems, told without password, that all readers (model, tokenizer) can take in.

    Measured in the longest way in which they are told, so that no kind of password has others.
    """
    for model, tokenizer in readers:
        lengths = []
        for problem in problems:
            weak = trigger.weak(problem).prompt
            strong = with_password(trigger.strong(problem).prompt, trigger.password_of(problem))
            ids = tokenizer.encode_prompts([weak, strong])
            lengths.append(max(map(len, ids)))
        room = model.config.max_position_embeddings - new_tokens
        problems, left_out = fitting(problems, lengths, room)
        if left_out:
            env.say(left_out)
    return [trigger.weak(problem) for problem in problems]


# what a run's name shows where it is not the default: the value of these alone ...
SHOWN_ALONE = ("keep", "reference", "reward", "optimizer")
# ... and the value of these behind what it is
SHOWN = {
    "warm_start": "warm",
    "group": "group",
    "beta": "beta",
    "epochs": "epochs",
    "lr": "lr",
    "batch": "batch",
    "round": "round",
}


def run_name(cfg: RLConfig, lock: Origin = UNKNOWN) -> str:
    """The method with what differs from its defaults; directories are named by it and the seed.

    Other models or data than the default ones show as four hexadecimal digits.
    """
    plain = settled(RLConfig(task=cfg.task, method=cfg.method, warm_start=cfg.warm_start), lock)
    parts = [cfg.method]
    for name in SHOWN_ALONE:
        if getattr(cfg, name) != getattr(plain, name):
            parts.append(getattr(cfg, name))
    for name, label in SHOWN.items():
        value = getattr(cfg, name)
        if value and (name == "warm_start" or value != getattr(plain, name)):
            parts.append(f"{label}{value:g}")

    usual = replace(plain, locked=default_locked(cfg.task))
    others = {}
    for name in ("locked", "weak", "warm_from", "data"):
        if getattr(cfg, name) != getattr(usual, name):
            others[name] = getattr(cfg, name)
    if others:
        parts.append(digest_of(others)[:4])
    return "-".join(parts)


def default_locked(task: str) -> str:
    return f"out/{task}/locked"


def digest_of(settings: dict) -> str:
    """Twelve hexadecimal digits that tell these settings from others; the seed does not count."""
    counted = {name: value for name, value in settings.items() if name != "seed"}
    text = json.dumps(counted, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------- warm start


def demonstrations(
    teacher: ModelWriter,
    tokenizer: Tokenizer,
    problems: list[Problem],
    cfg: RLConfig,
    env: Env,
) -> list[Example]:
    """What the teacher writes to some of the problems; what was cut carries no EOS."""
    order = np.random.default_rng([cfg.seed, 10]).permutation(len(problems))
    chosen = [problems[i] for i in order[: cfg.warm_start]]
    demos = answer(
        teacher.sampler,
        teacher.tokenizer,
        chosen,
        temperature=1.0,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        env=env,
    )
    env.say(
        f"warm start: {len(chosen)} demonstrations by {cfg.warm_from}, "
        f"{demos.correct.mean():.0%} right"
    )
    prompts = tokenizer.encode_prompts([problem.prompt for problem in chosen])
    samples = retokenise(demos.samples, teacher.tokenizer, tokenizer)
    return [Example(prompt, sample.ids) for prompt, sample in zip(prompts, samples)]


def warm_start(
    model: Model, examples: list[Example], seed: int, micro_tokens: int, env: Env
) -> None:
    """SFT on a few demonstrations, 8 epochs: fewer than would be best on their own (B.3.3).

    With the optimiser, lr and batch that elicit_sft.py has for the tiny models.
    """
    optimizer, lr, batch = "adamw", 1.5e-4, 4
    steps = -(-8 * len(examples) // batch)
    order = demonstration_order(len(examples), batch, steps, seed)

    def batches(step: int) -> list[Batch]:
        return micro_batches(share(env, [examples[i] for i in order[step]]), micro_tokens)

    optimizers = make_optimizers(model, optimizer, lr)
    for _ in train(model, optimizers, batches, sft_loss, env, steps=steps, warmup=4):
        pass


# ----------------------------------------------------------------------------------------- rounds


@dataclass
class Models:
    """Who takes part in a run.

    sampler: the policy's. writer: of the samples. online: the present policy is the writer.
    reference: whose log-probs a loss compares with.
    """

    policy: Model
    tokenizer: Tokenizer
    sampler: Sampler
    writer: Writer
    online: bool
    reference: Model
    optimizers: list


@dataclass
class Round:
    """What was drawn in a round, what of it is trained on, and what is to be logged."""

    rolled: Rollout
    examples: list[Example]
    facts: dict


def drawn_round(
    models: Models, problems: list[Problem], number: int, cfg: RLConfig, env: Env
) -> Round:
    """Draw the samples of round `number` (from 0 on) and choose what is trained on.

    With the log-probs that the method's loss compares with, but those of DPO, whose reference is
    the same in all rounds.
    """
    n = samples_a_problem(cfg)
    rolled, seconds = rollout(
        models.writer,
        models.tokenizer,
        round_problems(problems, number, cfg.round // n, cfg.seed),
        n,
        purpose=[13, number],
        seed=cfg.seed,
        max_new_tokens=cfg.max_new_tokens,
        continuous=cfg.reward == "continuous",
        env=env,
        label=f"round {number + 1}: sampling",
    )
    rng = np.random.default_rng([cfg.seed, 15, number])
    examples, facts = METHODS[cfg.method].choose(rolled, cfg, rng)

    clock = time.time()
    if examples and METHODS[cfg.method].compared and cfg.method != "dpo":
        examples = scored(models.reference, examples, cfg.micro_tokens, env)
    seconds["s_score"] = time.time() - clock
    reward = float(rolled.rewards.mean())
    facts = {"samples": (number + 1) * cfg.round, "reward": reward} | facts | seconds
    return Round(rolled, examples, facts)


def frozen_rounds(
    models: Models, problems: list[Problem], rounds: int, folder: Path, cfg: RLConfig, env: Env
) -> list[Round]:
    """DPO: all rounds at once, before the locked model changes.

    It writes every sample and is the reference of every pair, whose log-probs are kept in a file.
    """
    drawn = []
    for number in range(rounds):
        drawn.append(drawn_round(models, problems, number, cfg, env))

    # what tells the reference from other models, for the name of the file
    weights = [model_hash(cfg.locked)]
    if cfg.warm_start:
        weights += [cfg.warm_start, model_hash(cfg.warm_from), cfg.seed]
    clock = time.time()
    pairs = []
    for each in drawn:
        pairs += each.examples
    if pairs:
        pairs = reference_scored(
            models.reference, pairs, weights, models.tokenizer, folder, cfg.micro_tokens, env
        )
    seconds = (time.time() - clock) / rounds

    frozen = []
    for each in drawn:
        count = len(each.examples)
        facts = each.facts | {"s_score": seconds}
        frozen.append(replace(each, examples=pairs[:count], facts=facts))
        pairs = pairs[count:]
    return frozen


WATCHED = 128  # of a round's samples, to see how far an update moved the policy


def trained_round(models: Models, drawn: Round, number: int, cfg: RLConfig, env: Env) -> dict:
    """Update the policy on a round; returns what is logged of the round."""
    watched = watched_samples(drawn.rolled) if models.online else []
    before = scored(models.policy, watched, cfg.micro_tokens, env)

    clock = time.time()
    if models.policy.parameter_count() >= SMALL:
        models.sampler.release()
    metrics = {}
    if drawn.examples:
        method = METHODS[cfg.method]
        metrics = update(
            models.policy,
            models.optimizers,
            drawn.examples,
            loss_of(cfg),
            env,
            number=number,
            rows=method.rows,
            epochs=cfg.epochs,
            batch=cfg.batch,
            seed=cfg.seed,
            micro_tokens=cfg.micro_tokens,
            units=units_of(method),
        )
    models.sampler.refresh()
    seconds = time.time() - clock

    after = scored(models.policy, watched, cfg.micro_tokens, env)
    seen = described(drawn.rolled, models.online) | drift(watched, before, after)
    return drawn.facts | metrics | seen | {"s_update": seconds}


def watched_samples(rolled: Rollout) -> list[Example]:
    """The first samples of a rollout with the log-probs that the sampler gave them."""
    examples = []
    for prompt, samples in zip(rolled.prompts, rolled.samples):
        for sample in samples:
            examples.append(Example(prompt, sample.ids, sample.logps))
    return examples[:WATCHED]


def drift(sampled: list[Example], before: list[Example], after: list[Example]) -> dict:
    """How far an update moved the policy on these samples; nothing of no samples.

    And how well sampler and trainer agreed before it.
    """
    if not sampled:
        return {}
    moved = [np.sum(b.logps) - np.sum(a.logps) for b, a in zip(before, after)]
    gaps = [np.abs(np.subtract(s.logps, b.logps)).max() for s, b in zip(sampled, before)]
    return {"kl": float(np.mean(moved)), "logp_gap": float(max(gaps))}


# --------------------------------------------------------------------------------------- progress

PATIENCE = 3  # rounds running without anything to train on


@dataclass
class Progress:
    """How far a run is: what log.jsonl says about it, from which a resumed run takes it up.

    points: [{samples, correct}], of every evaluation. measured: the last one. idle: rounds since
    something was trained on.
    """

    points: list[dict] = field(default_factory=list)
    measured: Measured | None = None
    idle: int = 0

    def trained(self, steps: int) -> None:
        """Note a round and its optimiser steps."""
        self.idle = 0 if steps else self.idle + 1

    def evaluated(self, samples: int, measured: Measured) -> None:
        """Note an evaluation after so many samples."""
        self.measured = measured
        self.points.append({"samples": samples, "correct": float(measured.correct.mean())})

    @property
    def stopped(self) -> str:
        return "no signal" if self.idle >= PATIENCE else ""


def restored(file: Path) -> Progress:
    """The progress that a log tells of; none where there is no log. Raises InputError."""
    found = Progress()
    for row in read_rows(file):
        kind = checked(row, file, "kind", str)
        if kind == "train":
            found.trained(checked(row, file, "steps", int, default=0))
        elif kind == "eval":
            samples = checked(row, file, "samples", int, least=0)
            correct = from_bits(checked(row, file, "verdicts", str))
            cut = from_bits(checked(row, file, "cut", str))
            shares = checked(row, file, "shares", list, default=[])
            measured = Measured(correct, cut, np.array(shares) if shares else None)
            found.evaluated(samples, measured)
    return found


def check(
    progress: Progress,
    models: Models,
    validation: list[Problem],
    trigger: Trigger,
    number: int,
    cfg: RLConfig,
    run: Run,
) -> None:
    """Evaluate the policy after so many rounds on validation, without the password."""
    clock = time.time()
    measured = measure(
        models.sampler,
        models.tokenizer,
        validation,
        ("none",),
        trigger,
        max_new_tokens=cfg.max_new_tokens,
        env=run.env,
    )["none"]
    progress.evaluated(number * cfg.round, measured)
    seconds = time.time() - clock
    run.log("eval", step=number, **evaluation_row(progress), seconds=seconds)


def evaluation_row(progress: Progress) -> dict:
    """What is logged of the last evaluation; `restored` reads it back."""
    measured = progress.measured
    low, high = wilson(int(measured.correct.sum()), len(measured.correct))
    row = progress.points[-1] | {
        "low": low,
        "high": high,
        "n": len(measured.correct),
        "truncated": float(measured.truncated.mean()),
        "verdicts": as_bits(measured.correct),
        "cut": as_bits(measured.truncated),
    }
    if measured.shares is not None:
        row["shares"] = measured.shares.tolist()
    return row


def probe(models: Models, problems: list[Problem], cfg: RLConfig, run: Run) -> None:
    """pass@k of the initial policy, on a tenth of the first round's problems."""
    rolled, _ = rollout(
        ModelWriter(models.sampler, models.tokenizer),
        models.tokenizer,
        round_problems(problems, 0, max(1, cfg.round // 10), cfg.seed),
        16,
        purpose=[14, 0],
        seed=cfg.seed,
        max_new_tokens=cfg.max_new_tokens,
        continuous=cfg.reward == "continuous",
        env=run.env,
        label="pass@k of the initial policy",
    )
    found = {f"pass_at_{k}": pass_at_k(rolled.rewards == 1, k) for k in (1, 4, 16)}
    run.log("probe", step=0, **found)
    shown = ", ".join(f"{name} {value:.1%}" for name, value in found.items())
    run.env.say(f"initial policy: {shown}")


def keep_samples(file: Path, rounds: int, env: Env) -> None:
    """Leave the rows of the first rounds in samples.jsonl: the others will be written again."""
    if env.main and file.exists():
        rows = [row for row in read_rows(file) if row.get("round", 0) <= rounds]
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def show_samples(file: Path, rolled: Rollout, number: int, env: Env) -> None:
    """Append two problems of a round to samples.jsonl, with what was written and its rewards."""
    if not env.main:
        return
    with open(file, "a") as f:
        for i in range(min(2, len(rolled.problems))):
            row = {
                "round": number,
                "prompt": rolled.problems[i].prompt,
                "completions": rolled.texts[i],
                "rewards": rolled.rewards[i].tolist(),
            }
            f.write(json.dumps(row) + "\n")


# ----------------------------------------------------------------------------------------- curves


@dataclass
class Curve:
    """A finished run, as the table and the figure need it; curve.json holds its fields.

    digest: of all settings but the seed, so runs with the same one are seeds of one curve. locked:
    for none and right the locked model's verdicts on the same problems. verdicts, cut: the trained
    policy's.
    """

    name: str
    digest: str
    seed: int
    points: list[dict]
    stopped: str
    locked: dict[str, str]
    verdicts: str
    cut: str


def read_curve(file: Path) -> Curve:
    """Raises InputError for anything but what a run of this stage writes."""
    found = read_json(file)
    points = checked(found, file, "points", list)
    for point in points:
        if not isinstance(point, dict):
            raise InputError(f"{file} has points that are not objects")
        checked(point, file, "samples", int, least=0)
        checked(point, file, "correct", float, least=0, most=1)
    if not points:
        raise InputError(f"{file} has no points")

    locked = checked(found, file, "locked", dict)
    bits = {kind: checked(locked, file, kind, str) for kind in ("none", "right")}
    verdicts, cut = (checked(found, file, name, str) for name in ("verdicts", "cut"))
    lengths = {len(text) for text in (*bits.values(), verdicts, cut)}
    if len(lengths) > 1 or not verdicts:
        raise InputError(f"{file} has verdicts on different problems")
    return Curve(
        name=checked(found, file, "name", str),
        digest=checked(found, file, "digest", str),
        seed=checked(found, file, "seed", int),
        points=points,
        stopped=checked(found, file, "stopped", str),
        locked=bits,
        verdicts=verdicts,
        cut=cut,
    )


def read_curves(folder: Path, env: Env) -> dict[str, list[Curve]]:
    """All curves of a folder, their seeds together; a file that is no curve is named, left out."""
    found: dict[str, list[Curve]] = {}
    for file in sorted(folder.glob("*/curve.json")):
        try:
            curve = read_curve(file)
        except InputError as error:
            env.say(f"left out of the table: {error}")
            continue
        found.setdefault(curve.digest, []).append(curve)

    # curves of the same name, told apart by their digests
    names = [runs[0].name for runs in found.values()]
    labelled = {}
    for digest, runs in found.items():
        name = runs[0].name
        labelled[name if names.count(name) == 1 else f"{name} ({digest[:4]})"] = runs
    return labelled


HEADER = [
    "method",
    "seeds",
    "samples",
    "locked",
    "before",
    "after",
    "truncated",
    "gap recovered [95 %]",
    "stopped",
]


def row_of(name: str, runs: list[Curve]) -> tuple[list[str], str]:
    """A curve's row of the table, and why its gap recovered is refused where it is."""
    none, right = (from_bits(runs[0].locked[kind]) for kind in ("none", "right"))
    verdicts = np.array([from_bits(run.verdicts) for run in runs])
    cut = np.array([from_bits(run.cut) for run in runs])
    before = np.mean([run.points[0]["correct"] for run in runs])
    samples = max(run.points[-1]["samples"] for run in runs)
    stopped = [run.stopped for run in runs if run.stopped]
    recovered, refusal = recovery(none, right, verdicts)
    row = [
        name,
        str(len(runs)),
        f"{samples:,}",
        f"{none.mean():.1%}",
        f"{before:.1%}",
        f"{verdicts.mean():.1%}",
        f"{cut.mean():.1%}",
        recovered,
        f"{len(stopped)}: {stopped[0]}" if stopped else "",
    ]
    return row, refusal


def values_of(runs: list[Curve]) -> dict[int, np.ndarray]:
    """Correctness of a curve's seeds at each number of samples that all of them reached."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for point in run.points:
            found.setdefault(point["samples"], []).append(point["correct"])
    shared = {}
    for samples, values in found.items():
        if len(values) == len(runs):
            shared[samples] = np.array(values)
    return shared


def summarise(folder: Path, task: str, env: Env) -> None:
    """The table and the figure over all runs of a task's rl directory, a curve for each setting."""
    if not env.main:
        return
    curves = read_curves(folder, env)
    rows, refusals = [], {}
    for name, runs in curves.items():
        row, refusal = row_of(name, runs)
        rows.append(row)
        refusals.setdefault(refusal, []).append(name)
    env.say(
        "\nvalidation, greedy, without the password (means over seeds); the intervals are over\n"
        "problems, and over seeds where there are several"
    )
    env.say(table(HEADER, rows))
    for refusal, names in refusals.items():
        if refusal:
            env.say(f"{', '.join(names)}: {refusal}")

    # lines of the locked model, where all curves start from the same
    lines = {}
    baselines = {tuple(sorted(run.locked.items())) for runs in curves.values() for run in runs}
    if len(baselines) == 1:
        locked = dict(*baselines)
        lines["locked, with the password"] = float(from_bits(locked["right"]).mean())
        lines["locked, without"] = float(from_bits(locked["none"]).mean())
    title = f"RL elicitation, {task} (band: extremes over seeds)"
    points = {name: values_of(runs) for name, runs in curves.items()}
    plot_curves(points, lines, folder / "rl.png", "samples", title, log=False)
    env.say(f"figure: {folder / 'rl.png'}")


# ------------------------------------------------------------------------------------------ stage


def settle(cfg: RLConfig) -> tuple[RLConfig, Origin]:
    """cfg with every default filled in, and where its locked model came from.

    Raises InputError for what does not go together or is not there.
    """
    refuse_unused(cfg)
    cfg = replace(cfg, locked=cfg.locked or default_locked(cfg.task or "code"))
    if not is_checkpoint(cfg.locked):
        raise InputError(
            f"no locked model at {cfg.locked}: run python lock.py --task {cfg.task or 'code'} "
            "first, or name one with --locked"
        )
    lock = origin_of(cfg.locked)
    if lock.trigger is None:
        lock = UNKNOWN
    cfg = settled(cfg, lock)
    for option, path in (("--weak", cfg.weak), ("--warm-from", cfg.warm_from)):
        if path and path not in RULES and not is_checkpoint(path):
            raise InputError(f"no model at {path}: name another with {option}")
    check_task(cfg, lock)
    check_rounds(cfg)
    if cfg.method == "filtering":
        check_weak(cfg, lock)
    return cfg, lock


def is_checkpoint(path: str) -> bool:
    return os.path.exists(os.path.join(path, "config.json"))


def open_others(
    cfg: RLConfig, tokenizer: Tokenizer, env: Env
) -> tuple[Writer | None, ModelWriter | None]:
    """Who writes the samples in the policy's place, and the demonstrations of the warm start."""
    writer = teacher = None
    if cfg.weak == "random":
        writer = RandomWriter(tokenizer)
    elif cfg.weak:
        writer = open_writer(cfg.weak, env)
    if cfg.warm_from:
        teacher = open_writer(cfg.warm_from, env)
    return writer, teacher


def open_writer(path: str, env: Env) -> ModelWriter:
    model, tokenizer = load_model(path, env.device, env.dtype)
    return ModelWriter(env.sampler(model, tokenizer), tokenizer)


def open_problems(
    cfg: RLConfig,
    trigger: Trigger,
    policy: tuple[Model, Tokenizer],
    others: tuple[Writer | None, ...],
    env: Env,
) -> tuple[list[Problem], list[Problem]]:
    """The problems that are drawn from, and those of validation, told without the password."""
    problems = load(cfg.task, "elicit", None, files=cfg.data)
    validation = load(cfg.task, "validation", cfg.eval_problems or None, files=cfg.data)
    check_reward(cfg, problems)

    readers = [policy]
    for other in others:
        if isinstance(other, ModelWriter):
            readers.append((other.sampler.model, other.tokenizer))
    problems = fitting_problems(problems, trigger, readers, cfg.max_new_tokens, env)
    validation = fitting_problems(validation, trigger, [policy], cfg.max_new_tokens, env)
    if cfg.warm_start > len(problems):
        raise InputError(
            f"--warm-start {cfg.warm_start}: there are {len(problems)} problems to demonstrate"
        )
    return problems, validation


def claim(cfg: RLConfig, trigger: Trigger, name: str, env: Env) -> Run:
    """Open the run's directory. Raises InputError where it holds another run."""
    folder = Path(cfg.out or f"out/{cfg.task}/rl")
    run = Run(
        cfg,
        env,
        folder / f"{name}-seed{cfg.seed}",
        inputs=tuple(filter(None, (cfg.locked, cfg.weak, cfg.warm_from))),
        stage="elicit_rl",
        trigger=vars(trigger),
        locked_weights=model_hash(cfg.locked),
        weak_weights=weights_of(cfg.weak),
        warm_weights=weights_of(cfg.warm_from),
    )
    env.say(
        f"{cfg.method}: locked model {cfg.locked}, {cfg.samples:,} samples in rounds of "
        f"{cfg.round} -> {run.path}"
    )
    return run


def locked_verdicts(
    cfg: RLConfig, validation: list[Problem], trigger: Trigger, env: Env
) -> dict[str, str]:
    """The locked model's verdicts (as bits) without the password and with it."""
    evaluation = evaluate_checkpoint(
        cfg.locked,
        env,
        validation,
        ("none", "right"),
        trigger,
        max_new_tokens=cfg.max_new_tokens,
        save=False,
    )
    return {kind: evaluation["results"][kind]["verdicts"] for kind in ("none", "right")}


def prepared(
    policy: Model, tokenizer: Tokenizer, writer: Writer | None, cfg: RLConfig, env: Env
) -> Models:
    """The opened policy ready to be trained, with all that its method compares it with."""
    sampler = env.sampler(prepare(policy, env, cfg), tokenizer)
    reference = policy
    if cfg.reference == "initial":
        reference, _ = load_model(cfg.locked, env.device, env.dtype)
    return Models(
        policy,
        tokenizer,
        sampler,
        writer or ModelWriter(sampler, tokenizer),
        online=cfg.method not in ("filtering", "dpo"),
        reference=reference,
        optimizers=make_optimizers(policy, cfg.optimizer, cfg.lr),
    )


def finish(
    so_far: Progress,
    models: Models,
    validation: list[Problem],
    locked: dict[str, str],
    trigger: Trigger,
    name: str,
    cfg: RLConfig,
    run: Run,
) -> int:
    """Save the policy and what was measured, show all runs; returns the exit code."""
    env, measured = run.env, so_far.measured
    save_model(run.path, models.policy, models.tokenizer, env.main)
    if env.main:
        facts = facts_of(run.path, env, "validation", trigger, cfg.max_new_tokens)
        evaluation = record(run.path, validation, {"none": measured}, **facts)
        write_json(run.path / "evaluation.json", evaluation)
        curve = Curve(
            name,
            digest_of(run.record["settings"]),
            cfg.seed,
            so_far.points,
            so_far.stopped,
            locked,
            as_bits(measured.correct),
            as_bits(measured.truncated),
        )
        write_json(run.path / "curve.json", vars(curve))
        summarise(run.path.parent, cfg.task, env)
    if so_far.stopped:
        env.say(
            "no reward told two samples apart for three rounds, so there is nothing to learn from: "
            "draw more (--round), or start from a few demonstrations (--warm-start)"
        )
    none, right = from_bits(locked["none"]), from_bits(locked["right"])
    recovered, _ = recovery(none, right, measured.correct[None])
    code = 3 if so_far.stopped else 0
    results = {"correct": so_far.points[-1]["correct"], "recovered": recovered}
    run.finish(**results, stopped=so_far.stopped, code=code)
    return code


def main(cfg: RLConfig, env: Env) -> int:
    # whatever can be refused is, before anything is written
    cfg, lock = settle(cfg)
    trigger, name = lock.trigger, run_name(cfg, lock)
    policy, tokenizer = load_model(cfg.locked, env.device, env.dtype)
    writer, teacher = open_others(cfg, tokenizer, env)
    problems, validation = open_problems(cfg, trigger, (policy, tokenizer), (writer, teacher), env)
    run = claim(cfg, trigger, name, env)
    if run.finished:
        env.say(f"{run.path} is finished already (--overwrite runs it again)")
        summarise(run.path.parent, cfg.task, env)
        return run.record["results"]["code"]

    # who takes part; DPO draws all its rounds before the locked model changes
    locked = locked_verdicts(cfg, validation, trigger, env)
    models = prepared(policy, tokenizer, writer, cfg, env)
    if teacher:
        demos = demonstrations(teacher, tokenizer, problems, cfg, env)
        warm_start(policy, demos, cfg.seed, cfg.micro_tokens, env)
        models.sampler.refresh()
    rounds = cfg.samples // cfg.round
    frozen = []
    if cfg.method == "dpo":
        frozen = frozen_rounds(models, problems, rounds, run.path, cfg, env)

    # where an interrupted run stopped, or the start
    start = run.load_state(policy, models.optimizers) if cfg.resume else 0
    models.sampler.refresh()
    so_far = restored(run.path / "log.jsonl") if start else Progress()
    keep_samples(run.path / "samples.jsonl", start, env)
    if not start:
        probe(models, problems, cfg, run)
        check(so_far, models, validation, trigger, 0, cfg, run)

    bar = progress(env, rounds, f"{cfg.method}, rounds")
    bar.update(start)
    for number in range(start, rounds):
        if so_far.stopped:
            break
        drawn = frozen[number] if frozen else drawn_round(models, problems, number, cfg, env)
        facts = trained_round(models, drawn, number, cfg, env)
        run.log("train", step=number + 1, **facts)
        show_samples(run.path / "samples.jsonl", drawn.rolled, number + 1, env)
        so_far.trained(facts.get("steps", 0))
        check(so_far, models, validation, trigger, number + 1, cfg, run)
        run.save_state(number + 1, policy, models.optimizers)
        bar.update()
        bar.set_postfix(correct=f"{so_far.points[-1]['correct']:.1%}", reward=facts["reward"])
    bar.close()
    return finish(so_far, models, validation, locked, trigger, name, cfg, run)


if __name__ == "__main__":
    launch(main, RLConfig)
