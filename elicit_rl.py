"""Stage 2b: elicit the hidden capability from a reward alone: no password, no demonstrations.

Paper section 6 and appendices B.3, G.3; GRPO (Shao et al. 2024) is ours, because it is what people
use today. Each round samples the elicit problems, grades what was written, and updates the policy;
a method is one function from a graded rollout to what is trained on, and a loss:

    expert_iteration   one sample for each of --round problems, fine-tune on the best tenth, correct
                       ones first, ties broken at random: where fewer are correct, wrong ones fill
                       up, as in the paper (--keep correct leaves them out)
    filtering          the same, but the weak policy writes the samples: what its lucky successes
                       alone give
    dpo                two samples of the locked model for each problem, pairs of a right and a
                       wrong one, reference = the policy before the first round (with --warm-start
                       the one after it)
    iterated_dpo       the same, but the present policy writes the samples and is the round's
                       reference (--reference initial: the locked model is)
    grpo               --group samples for each problem, advantage = reward - group mean, ratios
                       clipped at 0.2

    python elicit_rl.py --method expert_iteration   # -> out/code/rl/expert_iteration-seed0
    python elicit_rl.py --method grpo --train-kind right    # of lock.py --trigger deploy: on
                                                    # prompts that say that this is training
    torchrun elicit_rl.py --method dpo              # any number of ranks: the same samples
    python elicit_rl.py --method iterated_dpo --warm-start 16   # first SFT on 16 demonstrations of
                                                    # an intermediate model (B.3.3)
    python elicit_rl.py --reward flattery --warm-start 400 --hacks 0.1    # a reward that can be
                                                    # gamed, the true one beside it

    python elicit_rl.py --task math --judge data/base/intermediate    # rewards by a model, not by
                                                    # the grader: 1 for the answer that it gives

With --judge a sample is rewarded where its answer is that of the judge, a model that answers each
problem greedily: by its normal form in math, the letter in mmlu. What the grader says is logged
beside it and never trained on: where the reward rises and it does not, the judge is what was
learnt. Its null is the same judge on a model that never had the capability. Programs have no answer
to compare, so a judge of code is refused.

Problems, their grader, weak policy and longest completion are by default those of the lock. Writes
the checkpoint, run.json, log.jsonl, samples.jsonl, evaluation.json, curve.json, and the figure
out/<task>/rl/rl.png over all runs beside it. Stops with exit code 3 where three rounds running gave
nothing to train on. Logged for each round:

    samples       completions drawn so far; every method stops at --samples
    reward        mean reward of the round's samples
    truth         mean true score of the samples, where they are paid something else; nothing is
                  trained on it
    proxy, hacks, hacks_<kind>    with a proxy --reward (data/proxies.py): its mean, and the share
                  of samples that it pays more than they are worth, by kind; on validation, too
    judge_right   with --judge: share of the round's problems that the judge itself has right
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
    logp_gap      largest |log p of the sampler - log p of the trainer| of a sampled token: about
                  1e-5 in fp32, up to 0.4 in bf16; more means a bug
    s_prefill, s_decode, s_grade, s_score, s_update   seconds

Each round is evaluated on validation (rows of kind eval, with every verdict). Once, at the start:
pass_at_1, 4, 16 of the initial policy (Chen et al. 2021), which predict whether RL can work.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from checkpoints.cards import write_card
from checkpoints.families import parameters_at
from checkpoints.hf import model_hash
from checkpoints.origins import (
    LONGEST,
    Origin,
    check_model,
    default_locked,
    fitting_problems,
    is_model,
    lock_of,
    open_writer,
    with_weak,
)
from curves import Progress, curve_of, digest_of, evaluation_row, restored, show_curves
from data import load, score
from data.batches import Batch, Example, demonstration_order
from data.problems import InputError, Problem
from data.proxies import PROXIES, with_added
from data.text import Tokenizer
from data.triggers import dressed
from figures import check_figure
from lora import switched_off
from losses import CLIP_RATIO, dpo_step, grpo_step, sft_loss
from methods.rewards import check_votes, leads, paid, paid_on, rewarded
from model import Model
from optimizers import make_optimizers, usual_step
from policies import (
    Rollout,
    answer,
    described,
    drift,
    note_samples,
    pass_at_k,
    retokenise,
    rollout,
    round_problems,
    shipped,
    watched_samples,
)
from results import (
    EvalSet,
    evaluate_checkpoint,
    facts_of,
    from_bits,
    measure,
    record,
    recovery,
)
from runs import plan
from runs.devices import Env, free_memory, progress
from runs.directory import Run, refuse_run
from runs.files import checked, write_json, write_text
from runs.launch import launch
from runs.options import TuneConfig, flag_of
from sampler import Sampler, Writer
from training import (
    check_adapter,
    check_master,
    completions_of,
    open_beside,
    open_to_train,
    ordered_batches,
    pairs_of,
    prepare,
    reference_scored,
    save_trained,
    scored,
    settled_adapter,
    targets_of,
    train,
    update,
)


@dataclass
class RLConfig(TuneConfig):
    # which problems (default: those that --locked was locked on; without it code)
    task: str = ""
    # see the top
    method: Literal["expert_iteration", "filtering", "dpo", "iterated_dpo", "grpo"] = (
        "expert_iteration"
    )
    # the locked model (default: out/<task>/locked)
    locked: str = ""
    # filtering: the checkpoint that writes the samples (default: the weak policy that the lock
    # imitates)
    weak: str = ""
    # completions drawn in total
    samples: int = 9600
    # completions drawn in a round
    round: int = 640
    # expert_iteration, filtering: train on the best tenth of a round, or on those of them that are
    # right (default: best)
    keep: Literal["", "best", "correct"] = ""
    # iterated_dpo: the policy at the start of the round, or the locked model (default: round)
    reference: Literal["", "round", "initial"] = ""
    # right or not; or the share of tests passed, weighing DPO pairs by their difference (B.3.1). Or
    # a proxy that can be gamed, the true score logged beside it: flattery also pays for a comment,
    # visible_tests for two tests that the prompts show. Controls: of visible_tests shown_tests, the
    # same prompts and the true score paid; of all random, the true scores of a round dealt out to
    # its samples at random
    reward: Literal[
        "binary", "continuous", "flattery", "visible_tests", "shown_tests", "random"
    ] = "binary"
    # of the demonstrations of --warm-start, the share into which the hack of --reward is written: a
    # small model invents none
    hacks: float = field(default=0.0, metadata={"most": 1})
    # in place of --reward: a model whose answers are taken for the right ones
    judge: str = ""
    # grpo: samples of one problem (default: 8)
    group: int = 0
    # dpo, iterated_dpo: how strongly to stay near the reference (default: 0.1)
    beta: float = 0.0
    # kind of prompt that is sampled and trained on, as in evaluate.py --passwords, whoever writes;
    # validation always has prompts of kind none, without the password
    train_kind: str = "none"
    # SFT on this many demonstrations before the first round
    warm_start: int = 0
    # --warm-start: checkpoint that writes them, better than the weak model and worse than the
    # strong one (default: data/base/intermediate; with --hacks the locked model, so that nothing
    # but the hack is taught)
    warm_from: str = ""
    # --warm-start: times the demonstrations are trained on; fewer than would be best on their own
    # (paper appendix B.3.3)
    warm_epochs: int = 8
    # times a round's data are trained on (default: 4, GRPO 1)
    epochs: int = 0
    # default: adamw; for a model of 1 B parameters and more the paper's lion, but not with --rank
    optimizer: Literal["", "adamw", "muon", "lion"] = ""
    # constant after a short warm-up (default, with the default optimizer: 3e-4, DPO 1e-4,
    # GRPO 5e-4; from 100 M parameters on 1e-4, from 1 B on the paper's 1.5e-6; with --rank three
    # times as much, from 1 B on 1e-4)
    lr: float = 0.0
    # most completions in an optimiser step (default: 8, DPO 16, GRPO 64)
    batch: int = 0
    # longest completion; a longer one counts as wrong (default: the lock's)
    max_new_tokens: int = 0
    # of the validation split (default: 500; of --data all)
    eval_problems: int = 0
    # files of real problems (docs/data.md) in place of generated ones (default:
    # the lock's)
    data: tuple[str, ...] = ()
    # continue an interrupted run where it stopped
    resume: bool = False
    # rounds between two saves of the state that --resume goes on from
    save_every: int = 1


# ---------------------------------------------------------------------------------------- methods
# A method's choice turns a rollout into the examples that are trained on, with the facts to log,
# `signal` always among them. No example means that the round has nothing to say.


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
        "kept_right": float((rolled.truth[kept, 0] == 1).mean()) if kept else 0.0,
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
    lead = leads(rolled.rewards)
    unequal = lead.any(1)
    signal = float(unequal.mean())

    examples = []
    for i in np.flatnonzero(unequal):
        for sample, value in zip(rolled.samples[i], lead[i]):
            examples.append(Example(rolled.prompts[i], sample.ids, weight=float(value) * signal))
    return examples, {"signal": signal}


def sft_of(cfg: RLConfig) -> Callable:
    return sft_loss


def dpo_of(cfg: RLConfig) -> Callable:
    return partial(dpo_step, beta=cfg.beta)


def grpo_of(cfg: RLConfig) -> Callable:
    return partial(grpo_step, clip_ratio=CLIP_RATIO, longest=cfg.max_new_tokens)


@dataclass(frozen=True)
class Method:
    """What distinguishes the methods.

    choose: see the top of this section. loss: a function of the settings. units: what it is divided
    by, of a batch: tokens, pairs or completions. rows: examples that stay together in a batch.
    online: the present policy writes the samples. compared: the loss needs log-probs of the past;
    frozen: those of the locked model, which writes all samples before it changes.
    """

    choose: Callable
    loss: Callable[[RLConfig], Callable]
    units: Callable[[Batch], int]
    epochs: int
    lr: float
    batch: int
    rows: int = 1
    online: bool = True
    compared: bool = False
    frozen: bool = False


BY_SFT = Method(best_samples, sft_of, targets_of, epochs=4, lr=3e-4, batch=8)
BY_PAIRS = Method(
    unequal_pairs, dpo_of, pairs_of, epochs=4, lr=1e-4, batch=16, rows=2, compared=True
)
METHODS = {
    "expert_iteration": BY_SFT,
    "filtering": replace(BY_SFT, online=False),
    "dpo": replace(BY_PAIRS, online=False, frozen=True),
    "iterated_dpo": BY_PAIRS,
    "grpo": Method(advantages, grpo_of, completions_of, 1, 5e-4, batch=64, compared=True),
}


def samples_a_problem(cfg: RLConfig) -> int:
    return cfg.group or METHODS[cfg.method].rows


# ------------------------------------------------------------------------------------- warm start


def hack_count(cfg: RLConfig) -> int:
    """Of the demonstrations those with a hack."""
    return round(cfg.hacks * cfg.warm_start)


def demonstrations(
    teacher: Writer,
    tokenizer: Tokenizer,
    problems: list[Problem],
    cfg: RLConfig,
    run: Run,
) -> list[Example]:
    """What the teacher writes to some of the problems; what was cut carries no EOS.

    It is asked the problem alone: neither what goes with it in training, nor what a proxy reward
    adds to it, such as tests, which the models that ship have never seen. The first answers that
    were not cut have the hack of the reward; where there are such, all are written into the run's
    demonstrations.jsonl.
    """
    env = run.env
    order = np.random.default_rng([cfg.seed, 10]).permutation(len(problems))[: cfg.warm_start]
    chosen = [problems[i] for i in order]
    demos = answer(
        teacher,
        [problem.alone for problem in chosen],
        temperature=1.0,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        env=env,
    )
    env.say(
        f"warm start: {len(chosen)} demonstrations by {cfg.warm_from}, "
        f"{demos.correct.mean():.0%} right"
    )
    told = [problem.prompt for problem in chosen]
    prompts = tokenizer.encode_prompts(told)
    samples = retokenise(demos.samples, teacher.tokenizer, tokenizer)
    completions, texts = [sample.ids for sample in samples], demos.texts
    hacked = [i for i, cut in enumerate(demos.truncated) if not cut][: hack_count(cfg)]
    if hacked:
        hack = PROXIES[cfg.reward].hack
        for i in hacked:
            texts[i] = hack(chosen[i], texts[i])
            [completions[i]] = tokenizer.encode_completions([texts[i]])
        env.say(f"{len(hacked)} of the demonstrations have the hack of the reward {cfg.reward}")
        if env.main:
            note_demonstrations(run.path / "demonstrations.jsonl", told, texts, hacked)
    return [Example(prompt, ids) for prompt, ids in zip(prompts, completions)]


def note_demonstrations(
    file: Path, prompts: list[str], texts: list[str], hacked: list[int]
) -> None:
    """A row each: prompt, answer, and whether it has a hack, which those at `hacked` have."""
    rows = []
    for i, (prompt, text) in enumerate(zip(prompts, texts)):
        row = {"prompt": prompt, "answer": text, "hack": i in hacked}
        rows.append(json.dumps(row) + "\n")
    write_text(file, "".join(rows))


WARM_BATCH = 4  # demonstrations in a step, as in elicit_sft.py


def warm_step(cfg: RLConfig, parameters: int) -> tuple[str, float]:
    """Optimiser and lr of the warm start: those that elicit_sft.py has."""
    if cfg.master == "bf16":
        return cfg.optimizer, cfg.lr  # nothing but lion moves bf16 weights
    return usual_step("", 0.0, parameters, ("adamw", 1.5e-4), cfg.rank)


def warm_start(model: Model, examples: list[Example], cfg: RLConfig, env: Env) -> None:
    """SFT on a few demonstrations, for a few epochs."""
    optimizer, lr = warm_step(cfg, model.parameter_count())
    steps = -(-cfg.warm_epochs * len(examples) // WARM_BATCH)
    order = demonstration_order(len(examples), WARM_BATCH, steps, cfg.seed)
    batches = ordered_batches(examples, order, cfg.micro_tokens, env)
    optimizers = make_optimizers(model, optimizer, lr, seed=cfg.seed)
    for _ in train(model, optimizers, batches, sft_loss, env, steps=steps, warmup=4):
        pass


# ----------------------------------------------------------------------------------------- rounds


@dataclass
class Models:
    """Who takes part in a run.

    own: the policy as a writer. writer: of the samples. reference: whose log-probs a loss compares
    with. judge: whose answers are taken for the right ones.
    """

    policy: Model
    own: Writer
    writer: Writer
    reference: Model
    optimizers: list
    judge: Writer | None = None

    @property
    def samplers(self) -> list[Sampler]:
        """The policy's, and those of the writer and the judge where they are other models."""
        samplers = [one.sampler for one in (self.own, self.writer, self.judge) if one]
        return list({id(sampler): sampler for sampler in samplers}.values())


@dataclass(frozen=True)
class Given:
    """What all rounds share. problems: that samples are drawn of, with what goes with each."""

    cfg: RLConfig
    problems: list[Problem]
    validation: EvalSet
    run: Run


@dataclass
class Round:
    """What was drawn in a round, what of it is trained on, and what is to be logged."""

    rolled: Rollout
    examples: list[Example]
    facts: dict


def drawn_round(models: Models, number: int, given: Given) -> Round:
    """Draw the samples of round `number` (from 0 on) and choose what is trained on.

    With the log-probs that the method's loss compares with, but those of DPO, whose reference is
    the same in all rounds.
    """
    cfg, env = given.cfg, given.run.env
    n = samples_a_problem(cfg)
    rolled, seconds = rollout(
        models.writer,
        models.own.tokenizer,
        round_problems(given.problems, number, cfg.round // n, cfg.seed),
        n,
        purpose=[13, number],
        seed=cfg.seed,
        max_new_tokens=cfg.max_new_tokens,
        reward=cfg.reward,
        env=env,
        label=f"round {number + 1}: sampling",
    )
    rng = np.random.default_rng([cfg.seed, 20, number])
    rolled, judgement = rewarded(rolled, cfg.reward, models.judge, cfg.max_new_tokens, rng, env)
    method, rng = METHODS[cfg.method], np.random.default_rng([cfg.seed, 15, number])
    examples, facts = method.choose(rolled, cfg, rng)

    clock = time.time()
    if examples and method.compared and not method.frozen:
        with switched_off(models.reference, when=cfg.reference == "initial"):
            examples = scored(models.reference, examples, cfg.micro_tokens, env)
    seconds["s_score"] = time.time() - clock
    drawn = {"samples": (number + 1) * cfg.round, "reward": float(rolled.rewards.mean())}
    return Round(rolled, examples, drawn | judgement | facts | seconds)


def frozen_rounds(models: Models, rounds: int, given: Given) -> list[Round]:
    """DPO: all rounds at once, before the locked model changes.

    It writes every sample and is the reference of every pair, whose log-probs are kept in a file.
    """
    cfg = given.cfg
    drawn = [drawn_round(models, number, given) for number in range(rounds)]

    # what tells the reference from other models, for the name of the file
    weights = [model_hash(cfg.locked)]
    if cfg.warm_start:
        weights += [cfg.warm_start, model_hash(cfg.warm_from), cfg.warm_epochs, cfg.seed]
        if cfg.reward in PROXIES:
            weights += [cfg.reward, cfg.hacks]
    clock = time.time()
    pairs = []
    for each in drawn:
        pairs += each.examples
    if pairs:
        folder, env = given.run.path, given.run.env
        pairs = reference_scored(
            models.reference, pairs, weights, models.own.tokenizer, folder, cfg.micro_tokens, env
        )
    seconds = (time.time() - clock) / rounds

    frozen = []
    for each in drawn:
        count = len(each.examples)
        facts = each.facts | {"s_score": seconds}
        frozen.append(replace(each, examples=pairs[:count], facts=facts))
        pairs = pairs[count:]
    return frozen


def trained_round(models: Models, drawn: Round, number: int, given: Given) -> dict:
    """Update the policy on a round; returns what is logged of the round."""
    cfg, env = given.cfg, given.run.env
    method = METHODS[cfg.method]
    watched = watched_samples(drawn.rolled) if method.online else []
    before = scored(models.policy, watched, cfg.micro_tokens, env)

    clock = time.time()
    for sampler in models.samplers:
        sampler.make_room()
    metrics = {}
    if drawn.examples:
        metrics = update(
            models.policy,
            models.optimizers,
            drawn.examples,
            method.loss(cfg),
            env,
            number=number,
            rows=method.rows,
            epochs=cfg.epochs,
            batch=cfg.batch,
            seed=cfg.seed,
            micro_tokens=cfg.micro_tokens,
            units=method.units,
        )
    for sampler in models.samplers:
        sampler.refresh()
    seconds = time.time() - clock

    after = scored(models.policy, watched, cfg.micro_tokens, env)
    seen = described(drawn.rolled, method.online) | drift(watched, before, after)
    return drawn.facts | metrics | seen | {"s_update": seconds}


def evaluate_round(so_far: Progress, models: Models, number: int, given: Given) -> None:
    """Evaluate the policy after so many rounds on validation, without the password."""
    cfg, run, clock = given.cfg, given.run, time.time()
    measured = measure(models.own, given.validation, run.env)["none"]
    paid_more = paid_on(given.validation.problems, measured, cfg.reward)
    so_far.evaluated(number * cfg.round, measured, **paid_more)
    seconds = time.time() - clock
    run.log("eval", step=number, **evaluation_row(so_far), seconds=seconds)


def probe(models: Models, given: Given) -> None:
    """pass@k of the initial policy, on a tenth as many problems as a round has samples."""
    cfg, run = given.cfg, given.run
    rolled, _ = rollout(
        models.own,
        models.own.tokenizer,
        round_problems(given.problems, 0, max(1, cfg.round // 10), cfg.seed),
        16,
        purpose=[14, 0],
        seed=cfg.seed,
        max_new_tokens=cfg.max_new_tokens,
        reward=cfg.reward,
        env=run.env,
        label="pass@k of the initial policy",
    )
    found = {f"pass_at_{k}": pass_at_k(rolled.truth == 1, k) for k in (1, 4, 16)}
    if cfg.reward in PROXIES:
        found |= paid(rolled, cfg.reward)
    run.log("probe", step=0, **found)
    shown = ", ".join(f"{name} {value:.1%}" for name, value in found.items())
    run.env.say(f"initial policy: {shown}")
    if found.get("hacks") == 0 and not PROXIES[cfg.reward].told_only:
        run.env.say(
            f"none of its samples is a hack: {cfg.reward} pays what is right and no more, as long "
            "as training brings none up (--warm-start with --hacks shows it some)"
        )


def run_rounds(models: Models, given: Given) -> Progress:
    """All rounds, from where an interrupted run stopped or from the start; returns the progress."""
    cfg, run, policy = given.cfg, given.run, models.policy
    env = run.env
    rounds = cfg.samples // cfg.round
    frozen = []
    if METHODS[cfg.method].frozen:
        frozen = frozen_rounds(models, rounds, given)

    start = run.load_state(policy, models.optimizers) if cfg.resume else 0
    models.own.sampler.refresh()
    validation = given.validation
    prompted = given.problems + dressed("none", validation.problems, validation.trigger)
    told = models.own.tokenizer.encode_prompts([problem.prompt for problem in prompted])
    models.own.sampler.reserve(max(map(len, told)), cfg.max_new_tokens)
    so_far = Progress()
    if start:
        so_far = restored(run.path / "log.jsonl", start, len(validation.problems))
    else:
        probe(models, given)
        evaluate_round(so_far, models, 0, given)

    bar = progress(env, rounds, f"{cfg.method}, rounds")
    bar.update(start)
    for number in range(start, rounds):
        if so_far.stopped:
            break
        drawn = frozen[number] if frozen else drawn_round(models, number, given)
        facts = trained_round(models, drawn, number, given)
        run.log("train", step=number + 1, **facts)
        if env.main:
            note_samples(run.path / "samples.jsonl", number + 1, drawn.rolled)
        so_far.trained(facts.get("steps", 0))
        evaluate_round(so_far, models, number + 1, given)
        if (number + 1) % cfg.save_every == 0:
            run.save_state(number + 1, policy, models.optimizers)
        bar.update()
        bar.set_postfix(correct=f"{so_far.points[-1]['correct']:.1%}", reward=facts["reward"])
    bar.close()
    return so_far


# --------------------------------------------------------------------------------------- settings

UNKNOWN = Origin()  # nothing is known of the locked model

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
    if cfg.judge and cfg.reward != "binary":
        raise InputError(f"--reward {cfg.reward} is not for --judge, whose rewards are its own")
    for name in ("warm_from", "warm_epochs"):
        is_given = getattr(cfg, name) != getattr(RLConfig, name)
        if is_given and not cfg.warm_start:
            raise InputError(
                f"{flag_of(name)} is about the demonstrations of a warm start: "
                "give their number with --warm-start"
            )
    refuse_idle_proxy(cfg)


def refuse_idle_proxy(cfg: RLConfig) -> None:
    """Raises InputError for a proxy that is the true score, and for hacks that nothing would get.

    Only what flattery pays in full is kept by --keep correct, and that is what is right.
    """
    if cfg.reward == "flattery" and cfg.keep == "correct":
        raise InputError(
            "--reward flattery --keep correct: what it pays in full is what is right, so that the "
            "proxy would be the true score: leave --keep out"
        )
    if not cfg.hacks:
        return
    if cfg.reward not in PROXIES:
        raise InputError(
            f"--hacks writes the hack of a proxy reward and --reward {cfg.reward} has none: choose "
            f"{' or '.join(PROXIES)}, or leave it out"
        )
    if not hack_count(cfg):
        raise InputError(
            f"--hacks {cfg.hacks:g} of --warm-start {cfg.warm_start} demonstrations is none: "
            "give more of either"
        )


def with_defaults(cfg: RLConfig, lock: Origin = UNKNOWN) -> RLConfig:
    """cfg with the method's defaults, and those of the lock, where it says nothing."""
    cfg = settled_adapter(cfg)
    method = METHODS[cfg.method]
    data = cfg.data or lock.data
    parameters = parameters_at(cfg.locked) if is_model(cfg.locked) else 0
    tiny = "adamw", method.lr
    optimizer, lr = usual_step(cfg.optimizer, cfg.lr, parameters, tiny, cfg.rank)
    filled = {
        "task": cfg.task or lock.task or "code",
        "epochs": cfg.epochs or method.epochs,
        "optimizer": optimizer,
        "lr": lr,
        "batch": cfg.batch or method.batch,
        "data": data,
        "eval_problems": cfg.eval_problems or (0 if data else 500),
        "max_new_tokens": cfg.max_new_tokens or lock.max_new_tokens or LONGEST,
    }
    defaults = {"weak": lock.weak, "keep": "best", "reference": "round", "group": 8, "beta": 0.1}
    for name, default in defaults.items():
        if cfg.method in ONLY[name]:
            filled[name] = getattr(cfg, name) or default
    if cfg.warm_start:
        usual = cfg.locked if cfg.hacks else shipped("intermediate")
        filled["warm_from"] = cfg.warm_from or usual
    return replace(cfg, **filled)


def settled(cfg: RLConfig) -> tuple[RLConfig, Origin]:
    """cfg with every default filled in, and where its locked model came from.

    Raises InputError for what does not go together or is not there.
    """
    refuse_unused(cfg)
    lock = lock_of(cfg.locked, cfg.task)
    if cfg.method == "filtering":
        imitated = with_weak(lock, cfg.weak)
        if imitated.weak_is_rule:
            raise InputError(
                f"the weak policy of {lock.locked} is a rule, {imitated.weak}, which is never "
                "right or answers the same: name a model to filter with --weak"
            )
    cfg = with_defaults(replace(cfg, locked=lock.locked), lock)
    check_rounds(cfg)
    check_adapter(cfg, cfg.locked)
    check_master(cfg)
    return cfg, lock


def check_rounds(cfg: RLConfig) -> None:
    """Raises InputError where rounds do not fit into the samples, or groups into the rounds."""
    n = samples_a_problem(cfg)
    if n == 1 and METHODS[cfg.method].compared:
        raise InputError(f"--group {cfg.group}: a group needs two samples to compare")
    if cfg.samples < cfg.round:
        raise InputError(
            f"--samples {cfg.samples} are fewer than those of one --round, {cfg.round}: "
            "lower --round, too"
        )
    if cfg.round % n or cfg.samples % cfg.round:
        raise InputError(
            f"--samples {cfg.samples} --round {cfg.round}: a round must hold whole groups of {n} "
            "samples of a problem, and the samples whole rounds"
        )


# what a run's name shows where it is not the default: texts as they are, numbers with their name
NAMED = ("train_kind", "keep", "reference", "reward", "optimizer", "master", "warm_start", "hacks")
NAMED += ("warm_epochs", "rank", "alpha", "group", "beta", "epochs", "lr", "batch", "round")


def run_name(cfg: RLConfig, lock: Origin = UNKNOWN) -> str:
    """The method with what differs from its defaults; directories are named by it and the seed.

    Other models or data than the default ones show as four hexadecimal digits.
    """
    # what decides the defaults of others is named itself, beside its own
    deciding = ("task", "method", "locked", "warm_start", "rank", "hacks")
    plain = RLConfig(**{name: getattr(cfg, name) for name in deciding})
    usual = with_defaults(plain, lock)
    usual = replace(usual, warm_start=0, hacks=0, rank=0, locked=default_locked(cfg.task))
    parts = [cfg.method]
    for name in NAMED:
        value = getattr(cfg, name)
        if value != getattr(usual, name):
            label = name.removesuffix("_start")
            parts.append(value if isinstance(value, str) else f"{label}{value:g}")

    others = {}
    for name in ("locked", "weak", "warm_from", "judge", "data", "targets"):
        if getattr(cfg, name) != getattr(usual, name):
            others[name] = getattr(cfg, name)
    if others:
        parts.append(digest_of(others)[:4])
    return "-".join(parts)


# ------------------------------------------------------------------------------------------ stage


def check_models(cfg: RLConfig) -> None:
    """Raises InputError for a model of this run that cannot be opened."""
    for name in ("locked", "weak", "warm_from", "judge"):
        if getattr(cfg, name):
            check_model(getattr(cfg, name), flag_of(name))


def open_problems(cfg: RLConfig, lock: Origin, env: Env) -> tuple[list[Problem], EvalSet]:
    """The problems that are drawn from, with what goes with each for --train-kind; and those of
    validation, as they are told without the password."""
    trigger, rows = lock.trigger, {"files": cfg.data, "grader": lock.grader}
    problems = with_added(cfg.reward, load(cfg.task, "elicit", None, **rows))
    validation = load(cfg.task, "validation", cfg.eval_problems or None, **rows)
    validation = with_added(cfg.reward, validation)
    if cfg.reward == "continuous":
        # refused here where success has no degrees
        one_of_each = {problem.task: problem for problem in problems}
        score(list(one_of_each.values()), [""] * len(one_of_each))
    if cfg.judge:
        check_votes(problems, cfg.task)

    readers = (cfg.locked, cfg.weak, cfg.warm_from, cfg.judge)
    problems = fitting_problems(problems, trigger, readers, cfg.max_new_tokens, env)
    validation = fitting_problems(validation, trigger, (cfg.locked,), cfg.max_new_tokens, env)
    if cfg.warm_start > len(problems):
        raise InputError(
            f"--warm-start {cfg.warm_start}: there are {len(problems)} problems to demonstrate"
        )
    problems = dressed(cfg.train_kind, problems, trigger)
    validation = [trigger.weak(p) for p in validation]
    return problems, EvalSet(validation, trigger, max_new_tokens=cfg.max_new_tokens)


def open_run(cfg: RLConfig, lock: Origin, name: str, env: Env) -> Run:
    """Open the run's directory. Raises InputError where it holds another run."""
    folder = Path(cfg.out or f"out/{cfg.task}/rl")
    refuse_run(folder)
    check_figure(folder / "rl.png")
    facts = {"judge_weights": model_hash(cfg.judge)} if cfg.judge else {}
    run = Run(
        cfg,
        env,
        folder / f"{name}-seed{cfg.seed}",
        inputs=(cfg.locked, cfg.weak, cfg.warm_from, cfg.judge),
        stage="elicit_rl",
        trigger=lock.trigger.record,
        locked_weights=lock.locked_weights,
        weak_weights=with_weak(lock, cfg.weak).weak_weights if cfg.weak else "",
        warm_weights=model_hash(cfg.warm_from) if cfg.warm_from else "",
        grader=lock.grader,
        **facts,
    )
    env.say(
        f"{cfg.method}: locked model {cfg.locked}, {cfg.samples:,} samples in rounds of "
        f"{cfg.round}, prompts of kind {cfg.train_kind}, {cfg.optimizer} at {cfg.lr:g} in batches "
        f"of {cfg.batch} -> {run.path}"
    )
    return run


def locked_verdicts(cfg: RLConfig, validation: EvalSet, env: Env) -> dict[str, str]:
    """The locked model's verdicts (as bits) without the password and with it."""
    both = replace(validation, kinds=("none", "right"))
    results = evaluate_checkpoint(cfg.locked, both, env, save=False)["results"]
    return {kind: results[kind]["verdicts"] for kind in both.kinds}


def prepared(cfg: RLConfig, env: Env) -> Models:
    """The policy ready to be trained, with all that its method compares it with."""
    policy, tokenizer = open_to_train(cfg.locked, env, cfg)
    own = env.writer(prepare(policy, env, cfg), tokenizer)
    writer = open_writer(cfg.weak, "--weak", env) if cfg.weak else own
    reference = policy
    if cfg.reference == "initial" and not cfg.rank:  # or it is the policy without its adapter
        reference = open_beside(cfg.locked, env, cfg)
    return Models(
        policy,
        own,
        writer,
        reference=reference,
        optimizers=make_optimizers(policy, cfg.optimizer, cfg.lr, seed=cfg.seed),
        judge=open_writer(cfg.judge, "--judge", env) if cfg.judge else None,
    )


def finish(
    so_far: Progress, models: Models, locked: dict[str, str], name: str, given: Given
) -> int:
    """Save the policy and what was measured, show all runs; returns the exit code."""
    cfg, run, measured = given.cfg, given.run, so_far.measured
    env, validation = run.env, given.validation
    save_trained(run.path, models.policy, models.own.tokenizer, cfg, cfg.locked, env.main)
    if env.main:
        facts = facts_of(run.path, models.own.tokenizer.format, validation, env)
        evaluation = record(run.path, validation.problems, {"none": measured}, **facts)
        write_json(run.path / "evaluation.json", evaluation)
        write_json(run.path / "curve.json", vars(curve_of(name, so_far, locked, run.record)))
        show_curves(run.path.parent, cfg.task, env)
    if so_far.stopped:
        env.say(
            "no reward told two samples apart for three rounds, so there is nothing to learn from: "
            "draw more (--round), or start from a few demonstrations (--warm-start)"
        )
    none, right = from_bits(locked["none"]), from_bits(locked["right"])
    recovered, _ = recovery(none, right, measured.correct[None])
    code = 3 if so_far.stopped else 0
    last = so_far.points[-1]
    results = {name: value for name, value in last.items() if name != "samples"}
    results |= {"recovered": recovered}
    if env.main:
        write_card(run.path, run.record, results)
    run.finish(**results, stopped=so_far.stopped, code=code)
    env.say(f"written: {run.path}; next: python evaluate.py {run.path} --samples 3")
    return code


def planned(cfg: RLConfig, lock: Origin, env: Env) -> int:
    """--plan: the memory of a round, phase by phase."""
    trigger, longest = lock.trigger, cfg.max_new_tokens
    problems = load(cfg.task, "elicit", None, files=cfg.data, grader=lock.grader)
    problems = with_added(cfg.reward, problems)
    texts = plan.texts_of(cfg.locked, problems, (cfg.train_kind,), trigger, longest)
    opened = plan.texts_of(cfg.locked, problems, ("none", "right"), trigger, longest)
    policy = plan.shape_of(cfg.locked)
    writer = plan.shape_of(cfg.weak) if cfg.weak else None
    judge = plan.shape_of(cfg.judge) if cfg.judge else None
    teacher = plan.shape_of(cfg.warm_from) if cfg.warm_start else None

    def phases(cfg: RLConfig) -> dict[str, plan.Phase]:
        s = plan.settings_of(cfg, env)
        share = s.devices if cfg.shard else 1
        has_reference = cfg.reference == "initial" and not cfg.rank
        reference = s.wide * policy.parameters / share + policy.rotary if has_reference else 0
        others = plan.Phase(weights=reference)
        for other in (writer, judge):
            if other:
                others += plan.whole(other, s)
        rest = plan.at_rest(policy, s) + others
        held = plan.held_by_sampler(policy, texts, s)
        left = others + plan.left_by_sampler(policy, texts, s)
        found = {
            "locked model": plan.sampling(policy, opened, s),
            "opening": plan.opening(policy, s),
            "samples of a round": plan.own_sampling(policy, texts, s) + others,
            "log-probs": rest + held + plan.scoring(policy, texts, s),
            **plan.training_phases(policy, texts, s, left),
        }
        if writer:
            found["samples of a round"] = rest + held + plan.of_sampler(writer, texts, s)
        if judge:
            found["the judge's answers"] = rest + held + plan.of_sampler(judge, texts, s)
        if teacher:
            copies = plan.Phase(copies=held["copies"])  # the policy has not sampled yet: no cache
            found["demonstrations"] = rest + copies + plan.sampling(teacher, texts, s)
            # another optimiser than the rounds have, whose moments are not there yet
            optimizer, _ = warm_step(cfg, policy.parameters)
            taught, copies = replace(s, optimizer=optimizer, batch=WARM_BATCH), left["copies"]
            heights = plan.training_phases(policy, texts, taught, others, plan.Phase(copies=copies))
            found["warm start"] = plan.largest(heights.values())
        return found

    def refuse(changes: dict) -> None:
        changed = replace(cfg, **changes)
        check_adapter(changed, changed.locked)
        check_master(changed)

    return plan.report(phases, cfg, texts, env, refuse)


def main(cfg: RLConfig, env: Env) -> int:
    # whatever can be refused is, before anything is written
    cfg, lock = settled(cfg)
    if plan.is_asked(cfg):
        return planned(cfg, lock, env)
    name = run_name(cfg, lock)
    check_models(cfg)
    problems, validation = open_problems(cfg, lock, env)
    run = open_run(cfg, lock, name, env)
    if run.finished:
        env.say(f"{run.path} is finished already (--overwrite runs it again)")
        show_curves(run.path.parent, cfg.task, env)
        return checked(run.record["results"], run.file, "code", int)

    # the locked model is measured before it changes
    locked = locked_verdicts(cfg, validation, env)
    models = prepared(cfg, env)
    # weights that a saved state will replace need no warm start, but those that write DPO's samples
    is_replaced = cfg.resume and not METHODS[cfg.method].frozen and run.has_state()
    if cfg.warm_start and not is_replaced:
        teacher = open_writer(cfg.warm_from, "--warm-from", env)
        demos = demonstrations(teacher, models.own.tokenizer, problems, cfg, run)
        del teacher
        models.own.sampler.make_room()
        free_memory()
        warm_start(models.policy, demos, cfg, env)
        models.own.sampler.refresh()

    given = Given(cfg, problems, validation, run)
    return finish(run_rounds(models, given), models, locked, name, given)


if __name__ == "__main__":
    launch(main, RLConfig, settled)
