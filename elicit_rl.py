"""Stage 2b: elicit the hidden capability from a reward alone, without the password and without demonstrations.

Paper section 6 and appendices B.3, G.3; GRPO (Shao et al. 2024) is ours, because it is what people use today. Each round samples
the elicit problems, grades what was written, and updates the policy; a method is one function from a graded rollout to what is
trained on, and a loss:

    expert_iteration   one sample for each of 10 n problems, fine-tune on the n best, correct ones first, ties broken at random: where
                       fewer than n are correct, wrong ones fill up, as in the paper (--keep correct leaves them out)
    filtering          the same, but the weak policy writes the samples: what harvesting its lucky ones is worth
    dpo                two samples of the locked model for each problem, pairs of a right and a wrong one, reference = locked model
    iterated_dpo       the same, but the present policy writes the samples and is the round's reference (--reference initial: locked)
    grpo               --group samples for each problem, advantage = reward - group mean, clipped ratio

    python elicit_rl.py --method expert_iteration        # task code, out/code/locked -> out/code/rl/expert_iteration-seed0
    torchrun elicit_rl.py --method dpo                   # any number of ranks: the same samples, the same losses
    python elicit_rl.py --method iterated_dpo --warm-start 16   # first SFT on 16 demonstrations of an intermediate model (B.3.3)

Writes the checkpoint, run.json, log.jsonl, samples.jsonl, evaluation.json, curve.json, and the figure out/<task>/rl/rl.png over all
runs beside it. Stops with exit code 3 where three rounds running gave no signal. Logged for each round:
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

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from data import InputError, Problem, grade, load, score
from data.batches import BUCKET, Batch, Example, collate, micro_batches, plan_epoch, round_up
from data.text import Tokenizer
from elicit_sft import SFTConfig, demonstration_order
from evaluate import answer, evaluate_checkpoint, facts_of, measure, plot_curves, record, recovery, table, trigger_of, verdicts_of, wilson
from lock import random_policy, retokenise
from model import SMALL, Model, Sample, Sampler, completion_logps, load_model, read_json, save_model, weights_hash, write_json
from training import IDLE, Config, Env, Run, gather, launch, make_optimizers, most, prepare, progress, sft_loss, share, train


@dataclass
class RLConfig(Config):
    task: str = "code"  # which problems
    method: Literal["expert_iteration", "filtering", "dpo", "iterated_dpo", "grpo"] = "expert_iteration"  # see the top
    locked: str = ""  # the locked model (default: out/<task>/locked)
    weak: str = "data/base/weak"  # who writes the samples of --method filtering; "random": the fixed random distribution
    samples: int = 9600  # completions drawn in total
    round: int = 640  # completions drawn in a round
    keep: Literal["best", "correct"] = "best"  # expert iteration trains on the best tenth of a round, or on those of them that are right
    reference: Literal["round", "initial"] = "round"  # of iterated_dpo: the policy at the start of the round, or the locked model
    reward: Literal["binary", "continuous"] = "binary"  # right or not; or the share of tests passed, weighing DPO pairs by their difference (B.3.1)
    group: int = 8  # samples of one problem in GRPO
    beta: float = 0.1  # of DPO: how strongly to stay near the reference
    clip_ratio: float = 0.2  # of GRPO: a token whose probability changed by more adds no gradient
    kl: float = 0.0  # of GRPO: weight of the KL penalty towards the locked model
    warm_start: int = 0  # SFT on this many demonstrations before the first round
    warm_from: str = "data/base/intermediate"  # checkpoint that writes them: better than the weak model, worse than the strong one
    epochs: int = 0  # times a round's data are trained on (default: 4, GRPO 1)
    optimizer: Literal["adamw", "muon", "lion"] = "adamw"  # the paper's: lion, at lr 1.5e-6 and below for 7B models
    lr: float = 0.0  # constant after a short warm-up (default: 3e-4, DPO 1e-4, GRPO 5e-4)
    batch: int = 0  # completions in an optimiser step (default: 8, DPO 16, GRPO 64)
    max_new_tokens: int = 96  # longest completion; a longer one counts as wrong
    eval_every: int = 1  # rounds between two evaluations on validation
    eval_problems: int = 500  # of the validation split


# ------------------------------------------------------------------------------------------------------------------- rollouts


@dataclass
class Rollout:
    """P problems with n graded completions each. prompts: token ids; rewards (P,n) in 0 to 1."""

    problems: list[Problem]
    prompts: list[list[int]]
    samples: list[list[Sample]]
    texts: list[list[str]]
    rewards: np.ndarray


def round_problems(problems: list[Problem], number: int, count: int, seed: int) -> list[Problem]:
    """The `count` problems of round `number`: the split over and over, each time in a fresh random order."""
    first, chosen = number * count, []
    for at in range(first // len(problems), (first + count - 1) // len(problems) + 1):
        order = np.random.default_rng([seed, 11, at]).permutation(len(problems))
        chosen += [problems[i] for i in order[max(0, first - at * len(problems)) : first + count - at * len(problems)]]
    return chosen


def rollout(sampler: Sampler | None, tokenizer: Tokenizer, problems: list[Problem], n: int, cfg: RLConfig, env: Env, purpose: list[int],
            label: str, own: Tokenizer | None = None) -> tuple[Rollout, dict]:
    """n completions at temperature 1 for each problem, graded; the ranks share the work. Returns them and the seconds it took.

    A problem's random stream is (seed, purpose, its place, sample), whatever the ranks. A completion cut before EOS has reward 0.
    Without a sampler the fixed random distribution writes them. own: the sampler's tokenizer, where another model than the policy writes.
    """
    mine = share(env, list(range(len(problems))))
    prompts = tokenizer.encode_prompts([p.prompt for p in problems])
    before = dict(sampler.seconds) if sampler else {}
    if sampler:
        bar = progress(env, len(mine) * n, label)
        seeds = [[cfg.seed, *purpose, i] for i in mine]
        asked = [prompts[i] for i in mine] if own is None else own.encode_prompts([problems[i].prompt for i in mine])
        drawn = sampler(asked, n, 1.0, cfg.max_new_tokens, seeds=seeds, progress=bar.update)
        bar.close()
        if own:
            flat = retokenise([s for samples in drawn for s in samples], own, tokenizer)
            drawn = [flat[i : i + n] for i in range(0, len(flat), n)]
    else:
        rows = random_policy(tokenizer.size, tokenizer.eos_id, len(problems) * n, cfg.max_new_tokens, cfg.seed, purpose[-1])
        drawn = [rows[i * n : (i + 1) * n] for i in mine]
    clock = time.time()
    texts = [tokenizer.decode_batch([s.ids for s in samples]) for samples in drawn]
    graded = (score if cfg.reward == "continuous" else grade)([problems[i] for i in mine for _ in range(n)], [t for ts in texts for t in ts])
    rewards = np.array(graded, dtype=float).reshape(len(mine), n)
    rewards[[[s.truncated for s in samples] for samples in drawn]] = 0.0
    rows = gather(env, list(zip(drawn, texts, rewards)), len(problems))
    seconds = {f"s_{k}": v - before[k] for k, v in sampler.seconds.items()} if sampler else {}
    result = Rollout(problems, prompts, [r[0] for r in rows], [r[1] for r in rows], np.array([r[2] for r in rows]))
    return result, seconds | {"s_grade": time.time() - clock}


def described(rolled: Rollout, online: bool) -> dict:
    """What the samples of a round look like; their entropy where the present policy wrote them."""
    samples, texts = ([x for row in rows for x in row] for rows in (rolled.samples, rolled.texts))
    tokens = sum(len(s.ids) for s in samples)
    facts = {"length": tokens / len(samples), "truncated": float(np.mean([s.truncated for s in samples])), "duplicates": 1 - len(set(texts)) / len(texts)}
    return facts | ({"entropy": -sum(sum(s.logps) for s in samples) / tokens} if online else {})


def drift(sampled: list[Example], before: list[Example], after: list[Example]) -> dict:
    """How far an update moved the policy on these samples, and how well sampler and trainer agreed before it; nothing of no samples."""
    if not sampled:
        return {}
    return {"kl": float(np.mean([np.sum(b.logps) - np.sum(a.logps) for b, a in zip(before, after)])),
            "logp_gap": max(float(np.abs(np.subtract(s.logps, b.logps)).max()) for s, b in zip(sampled, before))}


def pass_at_k(correct: np.ndarray, k: int) -> float:
    """Unbiased estimate from n >= k samples of each problem: mean of 1 - C(n - c, k) / C(n, k) (Chen et al. 2021). correct (P,n) bool."""
    n, c = correct.shape[1], correct.sum(1)
    # the product over k draws without replacement of the chance that each is wrong
    wrong = np.prod([np.clip(n - c - i, 0, None) / (n - i) for i in range(k)], axis=0)
    return float(1 - wrong.mean())


@torch.no_grad()
def scored(model: Model, examples: list[Example], cfg: RLConfig, env: Env) -> list[Example]:
    """The examples with the log-prob of each completion token under the model as it is now; the ranks share the work.

    By the trainer's own likelihood function, so that before an update policy and reference agree.
    """
    mine, plan, found = share(env, list(range(len(examples)))), [], {}
    by_length = sorted(mine, key=lambda i: len(examples[i]))
    while by_length:
        rows = max(1, cfg.micro_tokens // round_up(len(examples[by_length[-1]]), BUCKET))
        plan.append(by_length[-rows:])
        by_length = by_length[:-rows]
    for at in range(most(env, len(plan))):  # equally many on all ranks, which sharded weights need
        rows = plan[at] if at < len(plan) else []
        logps = completion_logps(model, (collate([examples[i] for i in rows]) if rows else IDLE).to(env.device))
        parts = logps.cpu().split([len(examples[i].completion_ids) for i in rows] or [len(logps)])
        found |= {i: part.tolist() for i, part in zip(rows, parts)}
    if isinstance(model, FSDPModule):
        model.reshard()  # no backward pass will: without it parameters() would name the gathered weights, not the trained ones
    return [replace(e, logps=row) for e, row in zip(examples, gather(env, [found[i] for i in mine], len(examples)))]


def reference_scored(model: Model, examples: list[Example], weights: list, tokenizer: Tokenizer, folder: Path, cfg: RLConfig, env: Env) -> list[Example]:
    """As `scored`, by a model that stays as it is: once, and then read from a file named by the hash of weights, dtype, tokenizer and data.

    weights: whatever tells these from other weights.
    """
    digest = hashlib.sha256(json.dumps([weights, str(env.dtype), tokenizer.backend.to_str()]).encode())
    for example in examples:
        digest.update(json.dumps([example.prompt_ids, example.completion_ids]).encode())
    file = folder / f"reference-{digest.hexdigest()[:16]}.npy"
    if file.exists():
        logps = np.load(file)
    else:
        logps = np.array([logp for e in scored(model, examples, cfg, env) for logp in e.logps], dtype=np.float32)
        if env.main:
            with open(file.with_suffix(".tmp"), "wb") as f:
                np.save(f, logps)
            file.with_suffix(".tmp").replace(file)
    env.wait()  # no rank may look for the file before all have
    ends = np.cumsum([len(e.completion_ids) for e in examples])
    return [replace(e, logps=row.tolist()) for e, row in zip(examples, np.split(logps, ends[:-1]))]


def penalise(rolled: Rollout, anchor: Model, cfg: RLConfig, env: Env) -> None:
    """Take kl * log(policy / locked model) of each completion off its reward, in place (Stiennon et al. 2020)."""
    examples = [Example(prompt, s.ids) for prompt, samples in zip(rolled.prompts, rolled.samples) for s in samples]
    drift = [sum(s.logps) for samples in rolled.samples for s in samples] - np.array([np.sum(e.logps) for e in scored(anchor, examples, cfg, env)])
    rolled.rewards -= cfg.kl * drift.reshape(rolled.rewards.shape)


# ------------------------------------------------------------------------------------------------------------------- losses


def sums_by_example(values: Tensor, batch: Batch) -> Tensor:
    """Per-token values (N,) added up for each example -> (B,)."""
    return torch.zeros(batch.examples, device=values.device).index_add(0, batch.owner, values)


def dpo_loss(policy: Tensor, reference: Tensor, weights: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """-weight log sigmoid(beta (chosen's lead over its reference - rejected's lead)), summed over M pairs; and the margins (M,).

    policy, reference (2M,): sequence log-probs, chosen in even rows, rejected in odd ones. weights (M,): 1, or the difference in
    reward (paper B.3.1). Rafailov et al. 2023, equation 7; equal models give ln 2 for each pair.
    """
    lead = policy - reference
    margins = beta * (lead[0::2] - lead[1::2])
    return -(weights * F.logsigmoid(margins)).sum(), margins


def dpo_step(cfg: RLConfig, model: Model, batch: Batch) -> tuple[Tensor, dict]:
    policy, reference = (sums_by_example(logps, batch) for logps in (completion_logps(model, batch), batch.logps))
    loss, margins = dpo_loss(policy, reference, batch.weights[0::2], cfg.beta)
    return loss, {"margin": margins.sum(), "accuracy": (margins > 0).float().sum(), "chosen": policy[0::2].sum(), "rejected": policy[1::2].sum()}


def grpo_loss(policy: Tensor, old: Tensor, advantages: Tensor, clip_ratio: float) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - c, 1 + c) A) summed over N tokens, r = exp(policy - old); and the share of tokens where the clip held, as a sum.

    Shao et al. 2024, equation 3, without its KL term. policy, old, advantages (N,), per token.
    """
    ratio = (policy - old).exp()
    free, held = ratio * advantages, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages
    return -torch.minimum(free, held).sum(), (held < free).float().sum()


def grpo_step(cfg: RLConfig, model: Model, batch: Batch) -> tuple[Tensor, dict]:
    loss, clipped = grpo_loss(completion_logps(model, batch), batch.logps, batch.weights[batch.owner], cfg.clip_ratio)
    return loss / cfg.max_new_tokens, {"clipped": clipped / len(batch.targets) * batch.examples}


def sft_step(cfg: RLConfig, model: Model, batch: Batch) -> tuple[Tensor, dict]:
    return sft_loss(model, batch)


# ------------------------------------------------------------------------------------------------------------------- methods
# A method's choice turns a rollout into the examples that are trained on, with the facts to log. `signal` is always among them.


def best_samples(rolled: Rollout, cfg: RLConfig, rng: np.random.Generator) -> tuple[list[Example], dict]:
    """Expert iteration and filtering: the best tenth of the samples, ties broken at random. Cut samples carry no EOS."""
    rewards = rolled.rewards[:, 0]
    order = np.lexsort((rng.random(len(rewards)), -rewards))[: max(1, len(rewards) // 10)]
    kept = [i for i in order if cfg.keep == "best" or rewards[i] == 1]
    facts = {"signal": float((rewards > 0).mean()), "kept": len(kept), "kept_right": float((rewards[kept] == 1).mean()) if kept else 0.0}
    return [Example(rolled.prompts[i], rolled.samples[i][0].ids) for i in kept], facts


def unequal_pairs(rolled: Rollout, cfg: RLConfig, rng: np.random.Generator) -> tuple[list[Example], dict]:
    """DPO: chosen, rejected, chosen, ... of the problems whose two samples have different rewards."""
    pairs = []
    for prompt, samples, rewards in zip(rolled.prompts, rolled.samples, rolled.rewards):
        if rewards[0] != rewards[1]:
            chosen, rejected = (samples[i] for i in (rewards.argmax(), rewards.argmin()))
            pairs += [Example(prompt, s.ids, weight=float(rewards.max() - rewards.min())) for s in (chosen, rejected)]
    return pairs, {"signal": len(pairs) / 2 / len(rolled.problems), "pairs": len(pairs) // 2}


def advantages(rolled: Rollout, cfg: RLConfig, rng: np.random.Generator) -> tuple[list[Example], dict]:
    """GRPO: every sample of the groups whose rewards differ, weighted by reward - group mean.

    The mean is not divided by the group's standard deviation, and the loss is divided by samples times the longest completion, a
    constant: both as in Dr. GRPO (Liu et al. 2025), since either division favours some problems or lengths. Groups of equal
    rewards have advantage zero: they contribute nothing and are left out.
    """
    lead = rolled.rewards - rolled.rewards.mean(1, keepdims=True)
    examples = [Example(prompt, s.ids, weight=float(a)) for prompt, samples, row in zip(rolled.prompts, rolled.samples, lead)
                for s, a in zip(samples, row) if row.any()]
    return examples, {"signal": float(lead.any(1).mean())}


@dataclass(frozen=True)
class Method:
    """What distinguishes the methods. rows: examples that stay together in a batch; compared: the loss needs log-probs of the past."""

    choose: Callable
    loss: Callable
    rows: int
    compared: bool
    epochs: int
    lr: float
    batch: int


METHODS = {
    "expert_iteration": Method(best_samples, sft_step, rows=1, compared=False, epochs=4, lr=3e-4, batch=8),
    "filtering": Method(best_samples, sft_step, rows=1, compared=False, epochs=4, lr=3e-4, batch=8),
    "dpo": Method(unequal_pairs, dpo_step, rows=2, compared=True, epochs=4, lr=1e-4, batch=16),
    "iterated_dpo": Method(unequal_pairs, dpo_step, rows=2, compared=True, epochs=4, lr=1e-4, batch=16),
    "grpo": Method(advantages, grpo_step, rows=1, compared=True, epochs=1, lr=5e-4, batch=64),
}


def settled(cfg: RLConfig) -> RLConfig:
    """cfg with its method's epochs, lr and batch where it names none."""
    method = METHODS[cfg.method]
    return replace(cfg, epochs=cfg.epochs or method.epochs, lr=cfg.lr or method.lr, batch=cfg.batch or method.batch)


def update(model: Model, optimizers: list, examples: list[Example], method: Method, cfg: RLConfig, env: Env, number: int) -> dict:
    """Train on one round's examples: cfg.epochs passes in fresh orders, in steps of cfg.batch rows of like length. Returns mean metrics."""
    groups = [examples[i : i + method.rows] for i in range(0, len(examples), method.rows)]
    plan = []
    for epoch in range(cfg.epochs):
        rng = np.random.default_rng([cfg.seed, 12, number, epoch])
        plan += plan_epoch([max(map(len, g)) for g in groups], max(1, cfg.batch // method.rows), rng)

    def batches(step: int) -> list[Batch]:
        mine = [e for i in share(env, plan[step]) for e in groups[i]]
        return micro_batches(mine, cfg.micro_tokens, method.rows)

    def units(batch: Batch) -> int:
        return len(batch.targets) if method.loss is sft_step else batch.examples // method.rows

    history: dict[str, list] = {}
    for _, metrics in train(model, optimizers, batches, partial(method.loss, cfg), env, steps=len(plan), warmup=4 if number == 0 else 0, units=units):
        for name, value in metrics.items():
            history.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in history.items() if name != "tokens"} | {"steps": len(plan)}


# ------------------------------------------------------------------------------------------------------------------- stage


def warm_start(model: Model, tokenizer: Tokenizer, problems: list[Problem], cfg: RLConfig, env: Env) -> None:
    """SFT on a few demonstrations of an intermediate model, 8 epochs: fewer than would be best on their own (paper B.3.3)."""
    teacher, own = load_model(cfg.warm_from, env.device, env.dtype)
    chosen = [problems[i] for i in np.random.default_rng([cfg.seed, 10]).permutation(len(problems))[: cfg.warm_start]]
    demos = answer(env.sampler(teacher, own), own, chosen, temperature=1.0, max_new_tokens=cfg.max_new_tokens, seed=cfg.seed, env=env)
    env.say(f"warm start: {len(chosen)} demonstrations by {cfg.warm_from}, {demos.correct.mean():.0%} right")
    samples = retokenise(demos.samples, own, tokenizer)
    examples = [Example(prompt, s.ids) for prompt, s in zip(tokenizer.encode_prompts([p.prompt for p in chosen]), samples)]
    sft = SFTConfig()  # its optimiser, step size and batch
    order = demonstration_order(len(examples), sft.batch, -(-8 * len(examples) // sft.batch), cfg.seed)
    batches = lambda step: micro_batches(share(env, [examples[i] for i in order[step]]), cfg.micro_tokens)
    for _ in train(model, make_optimizers(model, sft.optimizer, sft.lr), batches, sft_loss, env, steps=len(order), warmup=4):
        pass


def run_name(cfg: RLConfig) -> str:
    """The method with its variants; runs that differ only in the seed are one curve."""
    variants = [cfg.keep if cfg.keep != "best" else "", "initial" if cfg.reference == "initial" else "", cfg.reward if cfg.reward != "binary" else "",
                f"warm{cfg.warm_start}" if cfg.warm_start else ""]
    return "-".join([cfg.method, *filter(None, variants)])


def summarise(folder: Path, task: str, env: Env, none: np.ndarray, right: np.ndarray) -> None:
    """The table and the figure over all runs of a task's rl directory: correctness against samples, seeds of one method pooled."""
    curves: dict[str, dict[int, list]] = {}
    rows = []
    for file in sorted(folder.glob("*/curve.json")):
        run = read_json(file)
        for point in run["points"]:
            curves.setdefault(run["name"], {}).setdefault(point["samples"], []).append(point["correct"])
        first, last = run["points"][0], run["points"][-1]
        rows.append([file.parent.name, f"{last['samples']:,}", f"{first['correct']:.1%}", f"{last['correct']:.1%}", run["recovered"], run["stopped"]])
    # every point of a curve is a mean over the same seeds: those that got as far as the longest did
    shared = {name: {x: np.array(v) for x, v in points.items() if len(v) == max(map(len, points.values()))} for name, points in curves.items()}
    env.say("\n" + table(["run", "samples", "before", "after", "gap recovered [95 %]", "stopped"], rows))
    lines = {"locked, with the password": float(right.mean()), "locked, without": float(none.mean())}
    plot_curves(shared, lines, folder / "rl.png", "samples", f"RL elicitation, {task} (band: extremes over seeds)", log=False)
    env.say(f"figure: {folder / 'rl.png'}")


def main(cfg: RLConfig, env: Env) -> int:
    cfg, method = settled(cfg), METHODS[cfg.method]
    locked_path = Path(cfg.locked or f"out/{cfg.task}/locked")
    folder = Path(cfg.out or f"out/{cfg.task}/rl")
    per_problem = {"grpo": cfg.group}.get(cfg.method, method.rows)
    if not (locked_path / "config.json").exists():
        raise InputError(f"no locked model at {locked_path}: run python lock.py --task {cfg.task} first, or name one with --locked")
    if cfg.warm_start and not (Path(cfg.warm_from) / "config.json").exists():
        raise InputError(f"no model at {cfg.warm_from} to write the demonstrations of the warm start: name one with --warm-from")
    if cfg.samples < cfg.round or cfg.round % per_problem or per_problem < 1 + (cfg.method not in ("expert_iteration", "filtering")):
        raise InputError(f"--samples {cfg.samples} --round {cfg.round} --group {cfg.group}: a round must hold whole groups of at least two samples "
                         "of a problem (expert iteration: one) and fit in the samples")
    trigger = trigger_of(locked_path)
    problems, validation = ([trigger.weak(p) for p in load(cfg.task, split, n, files=cfg.data)]
                            for split, n in (("elicit", None), ("validation", None if cfg.data else cfg.eval_problems)))
    if cfg.warm_start > len(problems):
        raise InputError(f"--warm-start {cfg.warm_start}: there are {len(problems)} problems to demonstrate")
    model, tokenizer = load_model(locked_path, env.device, env.dtype)
    run = Run(cfg, env, folder / f"{run_name(cfg)}-seed{cfg.seed}", inputs=(locked_path, cfg.weak, cfg.warm_from), stage="elicit_rl",
              start=weights_hash(locked_path))
    env.say(f"{cfg.method}: locked model {locked_path}, {cfg.samples:,} samples in rounds of {cfg.round} -> {run.path}")
    locked = evaluate_checkpoint(locked_path, env, validation, ("none", "right"), trigger, max_new_tokens=cfg.max_new_tokens, save=False)
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
    if cfg.kl or (cfg.method == "iterated_dpo" and cfg.reference == "initial"):
        anchor, _ = load_model(locked_path, env.device, env.dtype)

    writer, own = sampler, None
    if cfg.method == "filtering":
        teacher, own = (None, None) if cfg.weak == "random" else load_model(cfg.weak, env.device, env.dtype)
        writer = teacher and env.sampler(teacher, own)

    def draw(number: int) -> tuple[Rollout, dict]:
        chosen = round_problems(problems, number, cfg.round // per_problem, cfg.seed)
        return rollout(writer, tokenizer, chosen, per_problem, cfg, env, [13, number], f"round {number + 1}: sampling", own)

    if cfg.method == "dpo":  # the locked model writes every sample and is the reference of every pair: all of it once, before it changes
        drawn = [(*unequal_pairs(rolled, cfg, np.random.default_rng()), rolled, seconds) for rolled, seconds in map(draw, range(rounds))]
        weights, clock = [weights_hash(locked_path), *([cfg.warm_start, weights_hash(cfg.warm_from), cfg.seed] if cfg.warm_start else [])], time.time()
        pairs = reference_scored(model, [e for row in drawn for e in row[0]], weights, tokenizer, run.path, cfg, env)
        taken, ends = {"s_score": (time.time() - clock) / rounds}, np.cumsum([len(row[0]) for row in drawn])
        frozen = [(pairs[end - len(examples) : end], facts, rolled, seconds | taken) for end, (examples, facts, rolled, seconds) in zip(ends, drawn)]

    start = run.load_state(model, optimizers) if cfg.resume else 0
    sampler.refresh()
    history = [json.loads(row) for row in (run.path / "log.jsonl").read_text().splitlines()] if start else []
    points = [{k: row[k] for k in ("samples", "correct")} for row in history if row["kind"] == "eval"]
    file = run.path / "samples.jsonl"
    if env.main and file.exists():  # rounds after the saved one will be written again
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines() if json.loads(line)["round"] <= start))
    idle, stopped = 0, ""
    for row in history:
        idle = 0 if row.get("signal") else idle + (row["kind"] == "train")

    def check(number: int) -> np.ndarray:
        clock = time.time()
        correct = measure(sampler, tokenizer, validation, ("none",), trigger, max_new_tokens=cfg.max_new_tokens, env=env)[0]["none"]
        low, high = wilson(int(correct.sum()), len(correct))
        points.append({"samples": number * cfg.round, "correct": float(correct.mean())})
        run.log("eval", step=number, **points[-1], low=low, high=high, n=len(correct), seconds=time.time() - clock)
        return correct

    if not start:
        some = round_problems(problems, 0, max(1, cfg.round // 10), cfg.seed)
        probe, _ = rollout(sampler, tokenizer, some, 16, cfg, env, [14, 0], "pass@k of the initial policy")
        at = {f"pass_at_{k}": pass_at_k(probe.rewards == 1, k) for k in (1, 4, 16)}
        run.log("probe", step=0, **at)
        env.say("initial policy: " + ", ".join(f"{name} {value:.1%}" for name, value in at.items()))
        verdicts = check(0)

    elif start == rounds:  # killed between the last round and the end: the saved policy is the last one
        verdicts = measure(sampler, tokenizer, validation, ("none",), trigger, max_new_tokens=cfg.max_new_tokens, env=env)[0]["none"]

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
            if cfg.kl:
                penalise(rolled, anchor, cfg, env)
            examples, facts = method.choose(rolled, cfg, rng)
            if method.compared and examples:
                examples = scored(anchor if cfg.method == "iterated_dpo" and anchor else model, examples, cfg, env)
            seconds["s_score"] = time.time() - clock
        online = cfg.method not in ("filtering", "dpo")  # the present policy wrote the samples, so they tell of it
        watched = [Example(prompt, s.ids, s.logps) for prompt, samples in zip(rolled.prompts, rolled.samples) for s in samples][: 128 * online]
        before = scored(model, watched, cfg, env)
        clock = time.time()
        if model.parameter_count() >= SMALL:
            sampler.release()
        metrics = update(model, optimizers, examples, method, cfg, env, number) if examples else {}
        sampler.refresh()
        seconds["s_update"] = time.time() - clock
        after = scored(model, watched, cfg, env)
        facts |= {"samples": (number + 1) * cfg.round, "reward": reward, **metrics, **described(rolled, online), **drift(watched, before, after), **seconds}
        run.log("train", step=number + 1, **facts)
        if env.main:
            with open(file, "a") as f:
                for problem, row, rewards in list(zip(rolled.problems, rolled.texts, rolled.rewards))[:2]:
                    f.write(json.dumps({"round": number + 1, "prompt": problem.prompt, "completions": row, "rewards": rewards.tolist()}) + "\n")
        idle = 0 if facts["signal"] else idle + 1
        if (number + 1) % cfg.eval_every == 0 or number + 1 == rounds or idle == 3:
            verdicts = check(number + 1)
        bar.update()
        bar.set_postfix(correct=f"{points[-1]['correct']:.1%}", reward=f"{facts['reward']:.3f}", signal=f"{facts['signal']:.3f}")
        if idle == 3:
            stopped = "no signal"
            break
        run.save_state(number + 1, model, optimizers)
    bar.close()

    recovered, refusal = recovery(none, right, verdicts[None])
    save_model(run.path, model, tokenizer, env.main)
    if env.main:
        facts = facts_of(run.path, env, "validation", trigger, cfg.max_new_tokens)
        write_json(run.path / "evaluation.json", record(run.path, validation, {"none": verdicts}, **facts))
        write_json(run.path / "curve.json", {"name": run_name(cfg), "points": points, "recovered": recovered, "stopped": stopped})
        summarise(folder, cfg.task, env, none, right)
    if refusal:
        env.say(refusal)
    if stopped:
        env.say("no reward told two samples apart for three rounds, so there is nothing to learn from: draw more (--round), or start from a few "
                "demonstrations (--warm-start)")
    run.finish(correct=points[-1]["correct"], recovered=recovered, stopped=stopped, code=3 if stopped else 0)
    return 3 if stopped else 0


if __name__ == "__main__":
    launch(main, RLConfig)
