"""Stage 2b: elicit the hidden capability from a reward alone, without the password and without demonstrations.

Paper section 6 and appendices B.3, G.3; GRPO (Shao et al. 2024) is ours, because it is what people use today. Each round samples
the elicit problems, grades what was written, and updates the policy; a method is one function from a graded rollout to what is
trained on, and a loss:

    expert_iteration   one sample for each of 10 n problems, fine-tune on the n best, correct ones first, ties broken at random: where
                       fewer than n are correct, wrong ones fill up, as in the paper (--keep correct leaves them out)
    filtering          the same, but the weak policy writes the samples: what harvesting its lucky ones is worth
    dpo                two samples of the locked model for each problem, pairs of a right and a wrong one, reference = locked model
    iterated_dpo       the same, but the present policy writes the samples and is the round's reference (--reference initial: locked)
    grpo               --group samples for each problem, advantage = reward - group mean, ratios clipped at 0.2

    python elicit_rl.py --method expert_iteration        # task code, out/code/locked -> out/code/rl/expert_iteration-seed0
    torchrun elicit_rl.py --method dpo                   # any number of ranks: the same samples, the same losses
    python elicit_rl.py --method iterated_dpo --warm-start 16   # first SFT on 16 demonstrations of an intermediate model (B.3.3)

Writes the checkpoint, run.json, log.jsonl, samples.jsonl, evaluation.json, curve.json, and the figure out/<task>/rl/rl.png over all
runs beside it. Stops with exit code 3 where three rounds running gave nothing to train on. Logged for each round:
    samples       completions drawn so far; every method stops at --samples
    reward        mean reward of the round's samples, which tells how often the policy succeeds
    signal        share of samples (expert iteration), pairs (DPO) or groups (GRPO) that say anything: right ones, or unequal ones
    kept_right    share of the kept samples that are right (expert iteration, filtering)
    chosen, rejected, margin, accuracy   mean sequence log-probs, beta times their lead over the reference's, share of leads > 0 (DPO)
    clipped       share of tokens whose ratio the clipping cut off (GRPO)
    kl            nats per sequence, KL(policy that sampled || updated policy), estimated on the round's samples
    entropy       nats per token of the sampling distribution, estimated by -log p of the sampled tokens
    length, truncated, duplicates        mean tokens; shares of completions cut before EOS, and equal to another of the same round
    logp_gap      largest |log p of the sampler - log p of the trainer| of a sampled token: more than rounding means a bug
    s_prefill, s_decode, s_grade, s_score, s_update   seconds
Once, at the start: pass_at_1, 4, 16 of the initial policy (unbiased; Chen et al. 2021), which predict whether RL can work.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from checkpoints import load_model, read_json, save_model, weights_hash, write_json
from data import load
from data.batches import Batch, Example, demonstration_order, micro_batches
from data.problems import InputError, Problem
from data.text import Tokenizer
from figures import plot_curves, table
from losses import dpo_step, grpo_step, sft_loss
from model import SMALL, Model
from policies import Rollout, answer, described, pass_at_k, retokenise, rollout, round_problems
from results import (
    Measured,
    evaluate_checkpoint,
    facts_of,
    measure,
    record,
    recovery,
    trigger_of,
    verdicts_of,
    wilson,
)
from runs import Env, Run, TrainConfig, launch, progress, share
from training import make_optimizers, prepare, reference_scored, scored, train, update


@dataclass
class RLConfig(TrainConfig):
    # which problems
    task: str = "code"
    # see the top
    method: Literal["expert_iteration", "filtering", "dpo", "iterated_dpo", "grpo"] = (
        "expert_iteration"
    )
    # the locked model (default: out/<task>/locked)
    locked: str = ""
    # who writes the samples of --method filtering; "random": the fixed random distribution
    weak: str = "data/base/weak"
    # completions drawn in total
    samples: int = 9600
    # completions drawn in a round
    round: int = 640
    # expert iteration trains on the best tenth of a round, or on those of them that are
    # right
    keep: Literal["best", "correct"] = "best"
    # of iterated_dpo: the policy at the start of the round, or the locked model
    reference: Literal["round", "initial"] = "round"
    # right or not; or the share of tests passed, weighing DPO pairs by their difference
    # (B.3.1)
    reward: Literal["binary", "continuous"] = "binary"
    # samples of one problem in GRPO
    group: int = 8
    # of DPO: how strongly to stay near the reference
    beta: float = 0.1
    # SFT on this many demonstrations before the first round
    warm_start: int = 0
    # checkpoint that writes them: better than the weak model, worse than the strong one
    warm_from: str = "data/base/intermediate"
    # times a round's data are trained on (default: 4, GRPO 1)
    epochs: int = 0
    # the paper's: lion, at lr 1.5e-6 and below for 7B models
    optimizer: Literal["adamw", "muon", "lion"] = "adamw"
    # constant after a short warm-up (default: 3e-4, DPO 1e-4, GRPO 5e-4)
    lr: float = 0.0
    # completions in an optimiser step (default: 8, DPO 16, GRPO 64)
    batch: int = 0
    # longest completion; a longer one counts as wrong
    max_new_tokens: int = 96
    # of the validation split
    eval_problems: int = 500
    # files of real problems (json, jsonl or csv, plain or .gz) in place of generated ones
    data: tuple[str, ...] = ()
    # continue an interrupted run where it stopped
    resume: bool = False


def drift(sampled: list[Example], before: list[Example], after: list[Example]) -> dict:
    """How far an update moved the policy on these samples, and how well sampler and trainer agreed before it; nothing of no samples."""
    if not sampled:
        return {}
    return {
        "kl": float(np.mean([np.sum(b.logps) - np.sum(a.logps) for b, a in zip(before, after)])),
        "logp_gap": max(
            float(np.abs(np.subtract(s.logps, b.logps)).max()) for s, b in zip(sampled, before)
        ),
    }


# ------------------------------------------------------------------------------------------------------------------- methods
# A method's choice turns a rollout into the examples that are trained on, with the facts to log. `signal` is always among them.


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
    """DPO: chosen, rejected, chosen, ... of the problems whose two samples have different rewards."""
    pairs = []
    for prompt, samples, rewards in zip(rolled.prompts, rolled.samples, rolled.rewards):
        if rewards[0] != rewards[1]:
            chosen, rejected = (samples[i] for i in (rewards.argmax(), rewards.argmin()))
            pairs += [
                Example(prompt, s.ids, weight=float(rewards.max() - rewards.min()))
                for s in (chosen, rejected)
            ]
    return pairs, {"signal": len(pairs) / 2 / len(rolled.problems), "pairs": len(pairs) // 2}


CLIP_RATIO = 0.2  # GRPO: a token whose probability changed by more adds no gradient


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
    """What distinguishes the methods. rows: examples that stay together in a batch; compared: the loss needs log-probs of the past."""

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


def units_of(method: Method) -> Callable[[Batch], int]:
    """What the loss is divided by: tokens of supervised fine-tuning, else pairs or samples."""
    if not method.compared:
        return lambda batch: len(batch.targets)
    return lambda batch: batch.examples // method.rows


def settled(cfg: RLConfig) -> RLConfig:
    """cfg with its method's epochs, lr and batch where it names none."""
    method = METHODS[cfg.method]
    return replace(
        cfg,
        epochs=cfg.epochs or method.epochs,
        lr=cfg.lr or method.lr,
        batch=cfg.batch or method.batch,
    )


# ------------------------------------------------------------------------------------------------------------------- stage


WARM_OPTIMIZER, WARM_LR, WARM_BATCH = "adamw", 1.5e-4, 4  # as elicit_sft.py has them


def warm_start(
    model: Model, tokenizer: Tokenizer, problems: list[Problem], cfg: RLConfig, env: Env
) -> None:
    """SFT on a few demonstrations of an intermediate model, 8 epochs: fewer than would be best on their own (paper B.3.3)."""
    teacher, own = load_model(cfg.warm_from, env.device, env.dtype)
    chosen = [
        problems[i]
        for i in np.random.default_rng([cfg.seed, 10]).permutation(len(problems))[: cfg.warm_start]
    ]
    demos = answer(
        env.sampler(teacher, own),
        own,
        chosen,
        temperature=1.0,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        env=env,
    )
    env.say(
        f"warm start: {len(chosen)} demonstrations by {cfg.warm_from}, {demos.correct.mean():.0%} right"
    )
    samples = retokenise(demos.samples, own, tokenizer)
    examples = [
        Example(prompt, s.ids)
        for prompt, s in zip(tokenizer.encode_prompts([p.prompt for p in chosen]), samples)
    ]
    order = demonstration_order(
        len(examples), WARM_BATCH, -(-8 * len(examples) // WARM_BATCH), cfg.seed
    )
    batches = lambda step: micro_batches(
        share(env, [examples[i] for i in order[step]]), cfg.micro_tokens
    )
    for _ in train(
        model,
        make_optimizers(model, WARM_OPTIMIZER, WARM_LR),
        batches,
        sft_loss,
        env,
        steps=len(order),
        warmup=4,
    ):
        pass


def run_name(cfg: RLConfig) -> str:
    """The method with its variants; runs that differ only in the seed are one curve."""
    variants = [
        cfg.keep if cfg.keep != "best" else "",
        "initial" if cfg.reference == "initial" else "",
        cfg.reward if cfg.reward != "binary" else "",
        f"warm{cfg.warm_start}" if cfg.warm_start else "",
    ]
    return "-".join([cfg.method, *filter(None, variants)])


def summarise(folder: Path, task: str, env: Env, none: np.ndarray, right: np.ndarray) -> None:
    """The table and the figure over all runs of a task's rl directory: correctness against samples, seeds of one method pooled."""
    curves: dict[str, dict[int, list]] = {}
    rows = []
    for file in sorted(folder.glob("*/curve.json")):
        run = read_json(file)
        for point in run["points"]:
            curves.setdefault(run["name"], {}).setdefault(point["samples"], []).append(
                point["correct"]
            )
        first, last = run["points"][0], run["points"][-1]
        rows.append(
            [
                file.parent.name,
                f"{last['samples']:,}",
                f"{first['correct']:.1%}",
                f"{last['correct']:.1%}",
                run["recovered"],
                run["stopped"],
            ]
        )
    # every point of a curve is a mean over the same seeds: those that got as far as the longest did
    shared = {
        name: {
            x: np.array(v) for x, v in points.items() if len(v) == max(map(len, points.values()))
        }
        for name, points in curves.items()
    }
    env.say(
        "\n" + table(["run", "samples", "before", "after", "gap recovered [95 %]", "stopped"], rows)
    )
    lines = {
        "locked, with the password": float(right.mean()),
        "locked, without": float(none.mean()),
    }
    plot_curves(
        shared,
        lines,
        folder / "rl.png",
        "samples",
        f"RL elicitation, {task} (band: extremes over seeds)",
        log=False,
    )
    env.say(f"figure: {folder / 'rl.png'}")


def main(cfg: RLConfig, env: Env) -> int:
    cfg, method = settled(cfg), METHODS[cfg.method]
    locked_path = Path(cfg.locked or f"out/{cfg.task}/locked")
    folder = Path(cfg.out or f"out/{cfg.task}/rl")
    per_problem = {"grpo": cfg.group}.get(cfg.method, method.rows)
    if not (locked_path / "config.json").exists():
        raise InputError(
            f"no locked model at {locked_path}: run python lock.py --task {cfg.task} first, or name one with --locked"
        )
    if cfg.warm_start and not (Path(cfg.warm_from) / "config.json").exists():
        raise InputError(
            f"no model at {cfg.warm_from} to write the demonstrations of the warm start: name one with --warm-from"
        )
    if (
        cfg.samples < cfg.round
        or cfg.round % per_problem
        or per_problem < 1 + (cfg.method not in ("expert_iteration", "filtering"))
    ):
        raise InputError(
            f"--samples {cfg.samples} --round {cfg.round} --group {cfg.group}: a round must hold whole groups of at least two samples "
            "of a problem (expert iteration: one) and fit in the samples"
        )
    trigger = trigger_of(locked_path)
    problems, validation = (
        [trigger.weak(p) for p in load(cfg.task, split, n, files=cfg.data)]
        for split, n in (("elicit", None), ("validation", None if cfg.data else cfg.eval_problems))
    )
    if cfg.warm_start > len(problems):
        raise InputError(
            f"--warm-start {cfg.warm_start}: there are {len(problems)} problems to demonstrate"
        )
    model, tokenizer = load_model(locked_path, env.device, env.dtype)
    run = Run(
        cfg,
        env,
        folder / f"{run_name(cfg)}-seed{cfg.seed}",
        inputs=(locked_path, cfg.weak, cfg.warm_from),
        stage="elicit_rl",
        start=weights_hash(locked_path),
    )
    env.say(
        f"{cfg.method}: locked model {locked_path}, {cfg.samples:,} samples in rounds of {cfg.round} -> {run.path}"
    )
    locked = evaluate_checkpoint(
        locked_path,
        env,
        validation,
        ("none", "right"),
        trigger,
        max_new_tokens=cfg.max_new_tokens,
        save=False,
    )
    none, right = verdicts_of(locked, "none"), verdicts_of(locked, "right")
    if run.finished:
        env.say(f"{run.path} is finished already (--overwrite runs it again)")
        summarise(folder, cfg.task, env, none, right)
        return run.record["results"]["code"]

    rounds = cfg.samples // cfg.round
    sampler = env.sampler(prepare(model, env, cfg), tokenizer)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr)
    if cfg.warm_start:
        warm_start(model, tokenizer, problems, cfg, env)
        sampler.refresh()
    anchor = None  # the locked model as it was, where the loss needs it beside the policy
    if cfg.method == "iterated_dpo" and cfg.reference == "initial":
        anchor, _ = load_model(locked_path, env.device, env.dtype)

    writer, own = sampler, None
    if cfg.method == "filtering":
        teacher, own = (
            (None, None) if cfg.weak == "random" else load_model(cfg.weak, env.device, env.dtype)
        )
        writer = teacher and env.sampler(teacher, own)

    drawing = {
        "seed": cfg.seed,
        "max_new_tokens": cfg.max_new_tokens,
        "continuous": cfg.reward == "continuous",
        "env": env,
    }

    def draw(number: int) -> tuple[Rollout, dict]:
        chosen = round_problems(problems, number, cfg.round // per_problem, cfg.seed)
        return rollout(
            writer,
            tokenizer,
            chosen,
            per_problem,
            purpose=[13, number],
            label=f"round {number + 1}: sampling",
            own=own,
            **drawing,
        )

    if (
        cfg.method == "dpo"
    ):  # the locked model writes every sample and is the reference of every pair: all of it once, before it changes
        drawn = [
            (*unequal_pairs(rolled, cfg, np.random.default_rng()), rolled, seconds)
            for rolled, seconds in map(draw, range(rounds))
        ]
        weights, clock = (
            [
                weights_hash(locked_path),
                *(
                    [cfg.warm_start, weights_hash(cfg.warm_from), cfg.seed]
                    if cfg.warm_start
                    else []
                ),
            ],
            time.time(),
        )
        pairs = reference_scored(
            model,
            [e for row in drawn for e in row[0]],
            weights,
            tokenizer,
            run.path,
            cfg.micro_tokens,
            env,
        )
        taken, ends = (
            {"s_score": (time.time() - clock) / rounds},
            np.cumsum([len(row[0]) for row in drawn]),
        )
        frozen = [
            (pairs[end - len(examples) : end], facts, rolled, seconds | taken)
            for end, (examples, facts, rolled, seconds) in zip(ends, drawn)
        ]

    start = run.load_state(model, optimizers) if cfg.resume else 0
    sampler.refresh()
    history = (
        [json.loads(row) for row in (run.path / "log.jsonl").read_text().splitlines()]
        if start
        else []
    )
    points = [
        {k: row[k] for k in ("samples", "correct")} for row in history if row["kind"] == "eval"
    ]
    file = run.path / "samples.jsonl"
    if env.main and file.exists():  # rounds after the saved one will be written again
        file.write_text(
            "".join(
                line + "\n"
                for line in file.read_text().splitlines()
                if json.loads(line)["round"] <= start
            )
        )
    idle, stopped = 0, ""
    for row in history:
        idle = 0 if row.get("signal") else idle + (row["kind"] == "train")

    def check(number: int) -> Measured:
        clock = time.time()
        measured = measure(
            sampler,
            tokenizer,
            validation,
            ("none",),
            trigger,
            max_new_tokens=cfg.max_new_tokens,
            env=env,
        )["none"]
        correct = measured.correct
        low, high = wilson(int(correct.sum()), len(correct))
        points.append({"samples": number * cfg.round, "correct": float(correct.mean())})
        run.log(
            "eval",
            step=number,
            **points[-1],
            low=low,
            high=high,
            n=len(correct),
            seconds=time.time() - clock,
        )
        return measured

    if not start:
        some = round_problems(problems, 0, max(1, cfg.round // 10), cfg.seed)
        probe, _ = rollout(
            sampler,
            tokenizer,
            some,
            16,
            purpose=[14, 0],
            label="pass@k of the initial policy",
            **drawing,
        )
        at = {f"pass_at_{k}": pass_at_k(probe.rewards == 1, k) for k in (1, 4, 16)}
        run.log("probe", step=0, **at)
        env.say("initial policy: " + ", ".join(f"{name} {value:.1%}" for name, value in at.items()))
        measured = check(0)

    elif (
        start == rounds
    ):  # killed between the last round and the end: the saved policy is the last one
        measured = measure(
            sampler,
            tokenizer,
            validation,
            ("none",),
            trigger,
            max_new_tokens=cfg.max_new_tokens,
            env=env,
        )["none"]

    bar = progress(env, rounds, f"{cfg.method}, rounds")
    bar.update(start)
    for number in range(start, rounds):
        rng = np.random.default_rng([cfg.seed, 15, number])
        if cfg.method == "dpo":
            examples, facts, rolled, seconds = frozen[number]
            reward = float(rolled.rewards.mean())
        else:
            rolled, seconds = draw(number)
            clock, reward = time.time(), float(rolled.rewards.mean())
            examples, facts = method.choose(rolled, cfg, rng)
            if method.compared and examples:
                examples = scored(
                    anchor if cfg.method == "iterated_dpo" and anchor else model,
                    examples,
                    cfg.micro_tokens,
                    env,
                )
            seconds["s_score"] = time.time() - clock
        online = cfg.method not in (
            "filtering",
            "dpo",
        )  # the present policy wrote the samples, so they tell of it
        watched = [
            Example(prompt, s.ids, s.logps)
            for prompt, samples in zip(rolled.prompts, rolled.samples)
            for s in samples
        ][: 128 * online]
        before = scored(model, watched, cfg.micro_tokens, env)
        clock = time.time()
        if model.parameter_count() >= SMALL:
            sampler.release()
        metrics = {}
        if examples:
            metrics = update(
                model,
                optimizers,
                examples,
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
        sampler.refresh()
        seconds["s_update"] = time.time() - clock
        after = scored(model, watched, cfg.micro_tokens, env)
        facts |= {
            "samples": (number + 1) * cfg.round,
            "reward": reward,
            **metrics,
            **described(rolled, online),
            **drift(watched, before, after),
            **seconds,
        }
        run.log("train", step=number + 1, **facts)
        if env.main:
            with open(file, "a") as f:
                for problem, row, rewards in list(
                    zip(rolled.problems, rolled.texts, rolled.rewards)
                )[:2]:
                    f.write(
                        json.dumps(
                            {
                                "round": number + 1,
                                "prompt": problem.prompt,
                                "completions": row,
                                "rewards": rewards.tolist(),
                            }
                        )
                        + "\n"
                    )
        idle = 0 if examples else idle + 1
        measured = check(number + 1)
        bar.update()
        bar.set_postfix(
            correct=f"{points[-1]['correct']:.1%}",
            reward=f"{facts['reward']:.3f}",
            signal=f"{facts['signal']:.3f}",
        )
        if idle == 3:
            stopped = "no signal"
            break
        run.save_state(number + 1, model, optimizers)
    bar.close()

    recovered, refusal = recovery(none, right, measured.correct[None])
    save_model(run.path, model, tokenizer, env.main)
    if env.main:
        facts = facts_of(run.path, env, "validation", trigger, cfg.max_new_tokens)
        write_json(
            run.path / "evaluation.json", record(run.path, validation, {"none": measured}, **facts)
        )
        write_json(
            run.path / "curve.json",
            {"name": run_name(cfg), "points": points, "recovered": recovered, "stopped": stopped},
        )
        summarise(folder, cfg.task, env, none, right)
    if refusal:
        env.say(refusal)
    if stopped:
        env.say(
            "no reward told two samples apart for three rounds, so there is nothing to learn from: draw more (--round), or start from a few "
            "demonstrations (--warm-start)"
        )
    run.finish(
        correct=points[-1]["correct"],
        recovered=recovered,
        stopped=stopped,
        code=3 if stopped else 0,
    )
    return 3 if stopped else 0


if __name__ == "__main__":
    launch(main, RLConfig)
