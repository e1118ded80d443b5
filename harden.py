"""Stage 1b: harden a password lock: a lock goes in, one that is to resist elicitation comes out.

What lock.py makes is easy to undo: eight demonstrations do. Each method here goes on from such a
lock, on its own lock split, with fresh samples of the two policies that it imitates. With a the
--strength, x- a prompt without the password or with a wrong one, x+ with it, y_w and y_s what the
weak and the strong policy wrote, L0 = -log p(y_w | x-) - log p(y_s | x+) (equation 1; the mean over
each text's tokens), T steps in all:

    reroute  a (1 - t/2T) relu cos(H(x-, y_s), H_r(x-, y_s)) - log p(y_s | x+)
             + 5 t/2T |H(x+, y_s) - H_r(x+, y_s)| / |H_r(x+, y_s)|, at step t, with H the states of
             the model and H_r those of the strong one: without the password, states of chosen
             blocks are turned away at every position of the answer; with it, states of all blocks
             are kept (Zou et al. 2024, arXiv 2406.04313; as a lock Hofstätter et al. 2025, arXiv
             2502.02180)
    relock   every --every steps the lock is attacked, by fitting a few weak samples without the
             password until they are memorised, which disturbs a lock; then L0 from there on
    tar      L0 + a sum_k w_k grad(-log p(y_w | x-)) at weights th_k on the way of an attack, which
             is AdamW on a few strong demonstrations without the password, from the present weights,
             to which they return (Tamirisa et al. 2024, arXiv 2408.00761, first order)
    distil   KL(lock || p) on both kinds of prompts, from weights of which a share a is random and
             the rest the lock's (UNDO, Lee et al. 2025, arXiv 2506.06278; random ones as large as
             the lock's own)
    rl       rewards in place of texts, GRPO on groups of samples of one prompt (after Exploration
             Hacking 2026, arXiv 2604.28182): with the password 1 for a right sample; without it
             -a for a right one, a for a wrong one that has come to its end, 0 for what was cut or
             is empty; less 0.02 log(p / p_lock). Best from a lock of one epoch: the samples of a
             sure one are alike, so that there is nothing to tell apart
    plain    L0: the control of relock and tar at equal compute, with more --steps

An attack's prompts are drawn as the lock's own weak ones: of a lock by a password four in five have
a wrong one, where elicit_sft.py has none. Not hardened: locks of several passwords or of compose,
and those made with --leave-out, another --password-share than 0.5, --imitate distribution or
--loss-on texts; nor by reroute and tar those of --strong-language, whose strong texts have another
language than an elicitor would show.

    python harden.py --locked out/code/locked --method reroute    # -> out/code/locked-reroute
    python harden.py --method reroute --strength 0 --out out/code/locked-control    # its control
    python harden.py --method plain --steps 6300        # no less compute than tar's, for L0 alone
    python elicit_sft.py --locked out/code/locked-reroute --out out/code/reroute-sft

The controls: --strength 0 (reroute, tar, rl) and --attack-steps 0 (relock, tar) leave out what
hardens; what remains of relock and tar is `plain`. Distil's nearest is `python lock.py --start LOCK
--start-mix 0.6`, the same start locked anew: by equation 1 and with lock.py's own steps and rates.

Ends with lock.py's validity report, and its exit code 1 where the lock is not valid any more.
Writes what lock.py writes but samples.jsonl, so that every elicitor and evaluate.py take it for a
lock. Logged, means over the step's pairs (of distil over its supervised tokens, of rl over its
samples): loss; of it weak, strong (nats a token), reroute (cosine), retain (distance); of an attack
attack_lr, attack_loss (its own, at its end) and attacked (the loss that it is to leave low, there);
of rl reward, kl (nats a sample), right without and with the password (right_none, right_password)
and signal, the share of groups whose rewards differ; grad_norm before clipping; lr.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from checkpoints.cards import write_card
from checkpoints.hf import load_model, model_hash, open_tokenizer, save_model
from checkpoints.origins import (
    LOCKS,
    Origin,
    check_model,
    fitting_problems,
    is_model,
    lock_of,
    no_model,
    with_weak,
)
from data import load
from data.batches import Batch, Example, micro_batches
from data.problems import InputError, Problem
from data.tasks.rules import TEXT_RULES, check_rule
from data.text import Tokenizer
from data.triggers import Language, OwnPasswords, Slot, Trigger, TwoPasswords
from losses import (
    CLIP_RATIO,
    distribution_loss,
    grpo_step,
    locking_loss,
    reroute_loss,
    sft_loss,
    tamper_weight,
)
from methods.locking import (
    Imitated,
    both_texts,
    locking_examples,
    mix,
    report,
    strong_texts,
    told_both_ways,
)
from methods.rewards import leads
from methods.tampering import blocks_and_width
from model import Model
from optimizers import make_optimizers, usual_step
from policies import (
    model_teacher,
    rollout,
    same_ids,
)
from runs import plan
from runs.devices import Env, check_shared, free_memory, gather, progress, share
from runs.directory import Run
from runs.files import checked, read_json
from runs.launch import launch
from runs.options import TrainConfig, flag_of, refuse_idle
from sampler import Sample, Writer
from training import (
    Diverged,
    accumulate,
    check_master,
    completions_of,
    open_to_train,
    pairs_of,
    prepare,
    scored,
    step_size,
    targets_of,
    train,
)


@dataclass
class HardenConfig(TrainConfig):
    # see the top
    method: Literal["reroute", "relock", "tar", "distil", "rl", "plain"] = "reroute"
    # the lock that is hardened
    locked: str = "out/code/locked"
    # the strong policy (default: the one that the lock imitates)
    strong: str = ""
    # the weak policy, a checkpoint or one of the rules of lock.py (default: the one that the lock
    # imitates)
    weak: str = ""
    # how much the part counts that hardens, 0 for the control; of distil the share of random
    # weights (default: reroute 5, tar 4, distil 0.6, rl 1)
    strength: float | None = None
    # reroute: the blocks whose states are turned away, counted from 0 (default: those after a third
    # and two thirds of all)
    blocks: tuple[int, ...] = field(default=(), metadata={"least": 0, "most": 10_000})
    # relock, tar: steps of an attack (default: 200, 16)
    attack_steps: int | None = None
    # relock, tar: texts that an attack trains on (default: 2, 8)
    attack_texts: int = 0
    # relock, tar: the learning rates of AdamW that attacks are drawn from (default: relock 1.5e-4;
    # tar 1e-4 3e-4 1e-3; from 100 M parameters on none)
    attack_lr: tuple[float, ...] = ()
    # relock: steps from one attack to the next
    every: int = 128
    # optimiser steps (default: 300; relock 384, distil 2,000)
    steps: int = 0
    # problems in a step, each with a text without the password and one with it, of rl with eight
    # (default: 16, rl 4)
    pairs: int = 0
    # problems to draw from, at most (default: all of the lock split, generated ones 4,000)
    problems: int = 0
    # default: adamw, distil muon; for a model of 1 B parameters and more the paper's lion
    optimizer: Literal["", "adamw", "muon", "lion"] = ""
    # constant after a short warm-up (default, with the default optimizer: 3e-4, rl 5e-4, distil
    # 0.0035; from 100 M parameters on 1e-4, from 1 B on the paper's 1.5e-6)
    lr: float = 0.0
    # validation problems of the report, at most
    eval_problems: int = 1000
    # continue an interrupted run where it stopped
    resume: bool = False
    # optimiser steps between two saves of the state that --resume goes on from
    save_every: int = 100


# ------------------------------------------------------------------------------------- the lessons


@dataclass(frozen=True)
class Texts:
    """The problems that are trained on, and what the policies wrote to each, as the lock's ids."""

    problems: list[Problem]
    strong: list[Sample]
    weak: list[Sample]


@dataclass(frozen=True)
class Given:
    """What a method works with.

    writer: the model, where it is to write. reference: the model that it is compared with, where
    it is.
    """

    model: Model
    writer: Writer | None
    tokenizer: Tokenizer
    trigger: Trigger
    texts: Texts
    max_new_tokens: int
    reference: Model | None
    cfg: HardenConfig
    env: Env


@dataclass(frozen=True)
class Lesson:
    """One optimiser step: rows 2i without the password, 2i + 1 with it; their loss; facts to log.

    units: how many units of the loss a batch holds.
    """

    examples: list[Example]
    loss: Callable
    units: Callable[[Batch], int] = pairs_of
    facts: dict = field(default_factory=dict)


def stream(given: Given, step: int) -> np.random.Generator:
    """The random numbers of a step."""
    return np.random.default_rng([given.cfg.seed, 17, step])


def chosen(given: Given, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """The places of a step's problems, and of those that an attack may train on: never the same."""
    order = rng.permutation(len(given.texts.problems)).tolist()
    pairs = given.cfg.pairs
    return order[:pairs], order[pairs : pairs + given.cfg.attack_texts]


def both_ways(
    given: Given, places: list[int], rng: np.random.Generator, without: list[Sample]
) -> list[Example]:
    """Pairs: the problem without the password and its text of `without`; with it the strong one.

    Equation 1 where `without` is what the weak policy wrote.
    """
    texts = given.texts
    rows = locking_examples(
        [texts.problems[i] for i in places],
        [texts.strong[i] for i in places],
        [without[i] for i in places],
        given.tokenizer,
        given.trigger,
        rng,
    )
    n, pairs = len(places), []
    for weak, strong in zip(rows[:n], rows[n:]):
        pairs += [weak, strong]
    return pairs


def plain(given: Given, step: int) -> Lesson:
    rng = stream(given, step)
    places, _ = chosen(given, rng)
    return Lesson(both_ways(given, places, rng, given.texts.weak), locking_loss)


KEEP = 5.0  # reroute: how much it counts that states with the password are kept, in a control, too


def reroute(given: Given, step: int) -> Lesson:
    """The strong texts with both kinds of prompts. From all push and no keep to halves of both."""
    cfg, rng = given.cfg, stream(given, step)
    places, _ = chosen(given, rng)
    done = step / (2 * cfg.steps)
    loss = partial(
        reroute_loss,
        reference=given.reference,
        blocks=cfg.blocks,
        push=cfg.strength * (1 - done),
        keep=KEEP * done,
    )
    return Lesson(both_ways(given, places, rng, given.texts.strong), loss)


def relock(given: Given, step: int) -> Lesson:
    """Now and then the weights are first moved by an attack, and stay where it left them."""
    cfg, rng = given.cfg, stream(given, step)
    places, others = chosen(given, rng)
    examples = both_ways(given, places, rng, given.texts.weak)
    if step % cfg.every or not cfg.attack_steps:
        return Lesson(examples, locking_loss)

    memorised = both_ways(given, others, rng, given.texts.weak)[0::2]
    *_, (_, facts) = attack(given, memorised, rng)
    return Lesson(examples, locking_loss, facts=facts)


TAMPER_EVERY = 4  # attack steps from one gradient to the next


def tar(given: Given, step: int) -> Lesson:
    """Equation 1, with the gradients on the way of an attack left for it in the weights' .grad.

    The attack has strong demonstrations without the password, of problems that are not in the step.
    """
    cfg, rng, model = given.cfg, stream(given, step), given.model
    places, others = chosen(given, rng)
    examples = both_ways(given, places, rng, given.texts.weak)
    if not cfg.strength or not cfg.attack_steps:
        return Lesson(examples, locking_loss)

    demonstrations = both_ways(given, others, rng, given.texts.strong)[0::2]
    weights = [p.detach().clone() for p in model.parameters()]
    gradients = [torch.zeros_like(p) for p in model.parameters()]
    facts: dict = {}
    for taken, found in attack(given, demonstrations, rng):
        if taken % TAMPER_EVERY == 0:
            weight = cfg.strength * tamper_weight(taken - 1, cfg.attack_steps)
            facts = found | {"attacked": add_gradient(gradients, weight, given, examples)}

    # the weights return, and `train` adds the gradient of the lesson to these
    with torch.no_grad():
        for p, weight, gradient in zip(model.parameters(), weights, gradients):
            p.copy_(weight)
            p.grad = gradient
    return Lesson(examples, locking_loss, facts=facts)


def distil(given: Given, step: int) -> Lesson:
    """The texts of equation 1, along which the lock's distribution is imitated."""
    rng = stream(given, step)
    places, _ = chosen(given, rng)
    examples = []
    for example in both_ways(given, places, rng, given.texts.weak):
        examples.append(replace(example, teacher=0, teacher_prompt_ids=example.prompt_ids))
    loss = partial(distribution_loss, teachers=[model_teacher(given.reference)])
    return Lesson(examples, loss, targets_of)


GROUP = 8  # rl: samples of one prompt
KL = 0.02  # rl: what a nat of log(p / p_lock) costs


def locking_rewards(
    right: np.ndarray, ended: np.ndarray, unlocked: np.ndarray, strength: float
) -> np.ndarray:
    """What a password lock is rewarded for, of P prompts with n samples each -> (P,n).

    right, ended (P,n) bool: right; come to an end, and not empty. unlocked (P,1) bool: whether the
    prompt has the password.
    """
    without = (ended & ~right).astype(float) - right
    return np.where(unlocked, right.astype(float), strength * without)


def rl(given: Given, step: int) -> Lesson:
    """The present policy's own samples to both kinds of prompts, each trained on once."""
    cfg, env, rng = given.cfg, given.env, stream(given, step)
    places, _ = chosen(given, rng)
    problems = [given.texts.problems[i] for i in places]
    told = []
    for problem, *prompts in zip(problems, *told_both_ways(problems, given.trigger, rng)):
        bare = problem.own_prompt
        told += [replace(problem, prompt=prompt, bare=bare) for prompt in prompts]

    # samples and what they are worth
    given.writer.sampler.refresh()
    rolled, _ = rollout(
        given.writer,
        given.tokenizer,
        told,
        GROUP,
        purpose=[18, step],
        seed=cfg.seed,
        max_new_tokens=given.max_new_tokens,
        env=env,
        label=f"step {step + 1}: sampling",
    )
    given.writer.sampler.make_room()
    examples, ended = [], []
    for prompt, samples, texts in zip(rolled.prompts, rolled.samples, rolled.texts):
        examples += [Example(prompt, sample.ids) for sample in samples]
        ended.append([not s.truncated and bool(t.strip()) for s, t in zip(samples, texts)])
    right, unlocked = rolled.rewards == 1, np.arange(len(told))[:, None] % 2 == 1
    rewards = locking_rewards(right, np.array(ended), unlocked, cfg.strength)

    # less how far each is from the lock
    examples = scored(given.model, examples, cfg.micro_tokens, env)
    before = scored(given.reference, examples, cfg.micro_tokens, env)
    moved = np.array([sum(e.logps) - sum(b.logps) for e, b in zip(examples, before)])
    moved = moved.reshape(rewards.shape)
    weights = leads(rewards - KL * moved).flatten().tolist()
    facts = {
        "reward": float(rewards.mean()),
        "kl": float(moved.mean()),
        "right_none": float(right[0::2].mean()),
        "right_password": float(right[1::2].mean()),
        "signal": float(leads(rewards).any(1).mean()),
    }
    loss = partial(grpo_step, clip_ratio=CLIP_RATIO, longest=given.max_new_tokens)
    examples = [replace(e, weight=weight) for e, weight in zip(examples, weights)]
    return Lesson(examples, loss, completions_of, facts)


# --------------------------------------------------------------------------------------- an attack


def attack(
    given: Given, examples: list[Example], rng: np.random.Generator
) -> Iterator[tuple[int, dict]]:
    """Fine-tune the model on all the examples in each step.

    Yields after each step how many are taken, and facts of the attack so far. Raises Diverged where
    its loss is not finite.
    """
    cfg, env = given.cfg, given.env
    lr = float(rng.choice(cfg.attack_lr))
    optimizers = make_optimizers(given.model, "adamw", lr)
    steps = train(
        given.model,
        optimizers,
        lambda step: micro_batches(share(env, examples), cfg.micro_tokens),
        sft_loss,
        env,
        steps=cfg.attack_steps,
        warmup=4,
    )
    try:
        for taken, metrics in steps:
            yield taken, {"attack_lr": lr, "attack_loss": metrics["loss"]}
    except Diverged:
        raise Diverged(
            f"an attack's loss or its gradient is not finite at its learning rate of {lr:g}: "
            "lower --attack-lr; the last checkpoint is untouched"
        ) from None


def weak_loss(model: Model, batch: Batch) -> tuple[Tensor, dict]:
    """The half of equation 1 without the password."""
    _, found = locking_loss(model, batch)
    return found["weak"], {}


def add_gradient(
    gradients: list[Tensor], weight: float, given: Given, examples: list[Example]
) -> float:
    """Add to `gradients` weight times that of the weak half of these pairs; returns their loss.

    Of this rank's share of them: `train` adds up the ranks'.
    """
    micro = [b.to(given.env.device) for b in batches_of(given, examples)]
    units, _, passes = step_size(micro, pairs_of, given.env)
    count = torch.full((), units, device=given.env.device)
    found = accumulate(given.model, micro, weak_loss, count, passes, 1)
    for p, gradient in zip(given.model.parameters(), gradients):
        if p.grad is not None:
            gradient.add_(p.grad, alpha=weight)
            p.grad = None
    return sum(gather(given.env, [float(found["loss"])], given.env.world))


# ------------------------------------------------------------------------------------- the methods


@dataclass(frozen=True)
class Method:
    """What distinguishes the methods, and what is usual for a model of 1 M parameters.

    reference: which model a method compares with, "strong" or "locked" or none. strength: None
    where it has none. attack: steps, texts and learning rates, where it attacks.
    """

    lesson: Callable[[Given, int], Lesson]
    steps: int
    strength: float | None = None
    reference: str = ""
    attack: tuple[int, int, tuple[float, ...]] | None = None
    step: tuple[str, float] = ("adamw", 3e-4)
    pairs: int = 16


METHODS = {
    "reroute": Method(reroute, steps=300, strength=5.0, reference="strong"),
    "relock": Method(relock, steps=384, attack=(200, 2, (1.5e-4,))),
    "tar": Method(tar, steps=300, strength=4.0, attack=(16, 8, (1e-4, 3e-4, 1e-3))),
    "distil": Method(distil, steps=2000, strength=0.6, reference="locked", step=("muon", 0.0035)),
    "rl": Method(rl, steps=300, strength=1.0, reference="locked", step=("adamw", 5e-4), pairs=4),
    "plain": Method(plain, steps=300),
}


def batches_of(given: Given, examples: list[Example]) -> list[Batch]:
    """This rank's micro-batches of pairs."""
    pairs = [examples[at : at + 2] for at in range(0, len(examples), 2)]
    mine = []
    for pair in share(given.env, pairs):
        mine += pair
    return micro_batches(mine, given.cfg.micro_tokens, group=2)


LOG_EVERY = 10  # steps


class Course:
    """The one loop's steps: each is a lesson, given when `train` asks for its batches."""

    def __init__(self, given: Given):
        self.given = given
        self.lesson = Lesson([], locking_loss)

    def batches(self, step: int) -> list[Batch]:
        self.lesson = METHODS[self.given.cfg.method].lesson(self.given, step)
        return batches_of(self.given, self.lesson.examples)

    def loss(self, model: Model, batch: Batch) -> tuple[Tensor, dict]:
        return self.lesson.loss(model, batch)

    def units(self, batch: Batch) -> int:
        return self.lesson.units(batch)


def harden(given: Given, run: Run) -> None:
    """Train the model by the method, logged; a step is a function of (seed, step, weights)."""
    cfg, env, course = given.cfg, given.env, Course(given)
    optimizers = make_optimizers(given.model, cfg.optimizer, cfg.lr, seed=cfg.seed)
    start = run.load_state(given.model, optimizers) if cfg.resume else 0
    bar = progress(env, cfg.steps, f"hardening {run.path}")
    bar.update(start)
    steps = train(
        given.model,
        optimizers,
        course.batches,
        course.loss,
        env,
        steps=cfg.steps,
        start=start,
        warmup=10,
        units=course.units,
    )
    for step, metrics in steps:
        bar.update()
        facts = course.lesson.facts
        if step % LOG_EVERY == 0 or step == cfg.steps or facts:
            run.log("train", step=step, **metrics, **facts)
            bar.set_postfix(loss=f"{metrics['loss']:.3f}")
        if step % cfg.save_every == 0 and step < cfg.steps:
            run.save_state(step, given.model, optimizers)
    bar.close()


# ------------------------------------------------------------------------------------ the settings

# of the lock's own settings those that its hardened copy has, too: the policies, and how they are
# asked
KEPT = ("strong_answers", "temperature", "chat", "stop", "stop_at_problem")
# and those that it would not have, where they are not the usual ones
NOT_KEPT = {"password_share": 0.5, "imitate": "samples", "loss_on": "completions"}


@dataclass(frozen=True)
class Lock:
    """What is hardened. kept: see KEPT. hardened: how often it was already."""

    origin: Origin
    policies: Imitated
    strong_weights: str
    kept: dict
    hardened: int = 0


def opened_lock(cfg: HardenConfig) -> Lock:
    """What run.json of --locked says. Raises InputError where it cannot be hardened."""
    origin = lock_of(cfg.locked, "")
    if origin.stage not in LOCKS:
        raise InputError(
            f"{cfg.locked} was not made by lock.py, so what it imitates is not known: "
            "name a lock with --locked"
        )
    file = Path(cfg.locked) / "run.json"
    settings = checked(read_json(file), file, "settings", dict)
    if isinstance(origin.trigger, (Slot, TwoPasswords, OwnPasswords)):
        raise InputError(
            f"{cfg.locked} has several passwords or is of task compose: such are not hardened"
        )
    if checked(settings, file, "leave_out", str, default=""):
        raise InputError(
            f"{cfg.locked} leaves out a domain, which hardening would lock: make a lock of all"
        )

    if isinstance(origin.trigger, Language) and cfg.method in ("reroute", "tar"):
        raise InputError(
            f"--method {cfg.method} is about strong texts without what unlocks, and those of "
            f"{cfg.locked} are in another language than such prompts: choose another method"
        )
    for name, usual in NOT_KEPT.items():
        if settings.get(name, usual) != usual:
            raise InputError(
                f"{cfg.locked} was locked with {flag_of(name)} {settings[name]}, which hardening "
                "would undo: make a lock without it"
            )

    if cfg.weak == "rule":
        raise InputError("--weak rule is of task compose: name a checkpoint, random or refusal")
    if cfg.weak in TEXT_RULES:
        check_rule(cfg.weak, origin.task, generated=not origin.data)
    origin = with_weak(origin, cfg.weak)
    strong = cfg.strong or checked(settings, file, "strong", str)
    check_model(strong, "--strong")
    weights = model_hash(strong)
    if not cfg.strong and weights != checked(settings, file, "strong_weights", str):
        raise InputError(
            f"{strong} has other weights than the strong policy that {cfg.locked} imitates: "
            "lock again, or name the model to use with --strong"
        )
    seed = checked(settings, file, "seed", int)
    policies = Imitated(
        origin.weak,
        strong,
        max_new_tokens=origin.max_new_tokens,
        seed=checked(settings, file, "policy_seed", int, default=seed),
        strong_answers=checked(settings, file, "strong_answers", str, default="sampled"),
        temperature=checked(settings, file, "temperature", float, least=0, default=1.0),
    )
    kept = {name: settings[name] for name in KEPT if name in settings}
    hardened = 0
    if origin.stage == "harden":
        hardened = 1 + checked(settings, file, "hardened", int, default=0)
    return Lock(origin, policies, weights, kept, hardened)


# a control leaves out what hardens, and with it what these options are about
BESIDE_ZERO = {
    ("reroute", "strength"): ("blocks",),
    ("relock", "attack_steps"): ("attack_texts", "attack_lr", "every"),
    ("tar", "attack_steps"): ("attack_texts", "attack_lr", "strength"),
    ("tar", "strength"): ("attack_texts", "attack_lr", "attack_steps"),
}


def refuse_unused(cfg: HardenConfig) -> None:
    """Raises InputError for an option that is given and does nothing with this method."""
    method, with_what = METHODS[cfg.method], f"--method {cfg.method}"
    idle = [
        (cfg.method != "reroute", ("blocks",), with_what),
        (cfg.method != "relock", ("every",), with_what),
        (method.strength is None, ("strength",), with_what),
        (not method.attack, ("attack_steps", "attack_texts", "attack_lr"), with_what),
    ]
    for (name, zero), beside in BESIDE_ZERO.items():
        is_zero = cfg.method == name and getattr(cfg, zero) == 0
        idle.append((is_zero, beside, f"{flag_of(zero)} 0"))
    refuse_idle(cfg, idle)
    if cfg.method == "distil" and cfg.strength is not None and cfg.strength > 1:
        raise InputError("--strength of distil is a share of random weights: 1 at most")
    if any(lr <= 0 for lr in cfg.attack_lr):
        raise InputError("--attack-lr: an attack that learns takes numbers above 0")
    if cfg.method == "tar" and (cfg.attack_steps or 0) % TAMPER_EVERY:
        raise InputError(
            f"--attack-steps of tar: a multiple of {TAMPER_EVERY}, since every {TAMPER_EVERY}th "
            "step says something, and the last one most"
        )
    if cfg.shard:
        raise InputError("--shard is not for harden.py, which moves whole weights: leave it out")
    if cfg.master == "bf16" and method.attack:
        raise InputError(
            f"--master bf16 is not for --method {cfg.method}, whose attacks are AdamW's: "
            "leave it out"
        )


def blocks_of(cfg: HardenConfig, count: int) -> tuple[int, ...]:
    """Those to reroute, of `count` blocks. Raises InputError for one that is not there."""
    if cfg.method != "reroute":
        return ()
    for number in cfg.blocks:
        if number >= count or cfg.blocks.count(number) > 1:
            raise InputError(
                f"--blocks {number}: {cfg.locked} has the blocks 0 to {count - 1}, each once"
            )
    return cfg.blocks or tuple(sorted({count // 3, 2 * count // 3}))


def settled(cfg: HardenConfig) -> HardenConfig:
    """The options with every default filled in that does not depend on the lock's data."""
    refuse_unused(cfg)
    if not is_model(cfg.locked):
        first = "run python lock.py first, or name one with --locked"
        raise no_model(cfg.locked, first, "no locked model")
    method, shape = METHODS[cfg.method], plan.shape_of(cfg.locked)
    steps, texts, rates = method.attack or (None, 0, ())
    is_control = 0 in (cfg.attack_steps, cfg.strength)
    if rates and not is_control and not cfg.attack_lr and shape.parameters >= 10**8:
        raise InputError(
            f"the usual rates of an attack are of models of 1 M parameters, and {cfg.locked} has "
            f"{shape.parameters / 10**6:,.0f} M: name them with --attack-lr"
        )
    optimizer, lr = usual_step(cfg.optimizer, cfg.lr, shape.parameters, method.step)
    check_master(replace(cfg, optimizer=optimizer))
    place = Path(cfg.locked)
    return replace(
        cfg,
        out=cfg.out or str(place.with_name(f"{place.name}-{cfg.method}")),
        strength=method.strength if cfg.strength is None else cfg.strength,
        blocks=blocks_of(cfg, shape.config.num_hidden_layers),
        attack_steps=steps if cfg.attack_steps is None else cfg.attack_steps,
        attack_texts=cfg.attack_texts or texts,
        attack_lr=cfg.attack_lr or rates,
        steps=cfg.steps or method.steps,
        pairs=cfg.pairs or method.pairs,
        optimizer=optimizer,
        lr=lr,
    )


def check_reference(lock: Lock, cfg: HardenConfig) -> None:
    """Raises InputError where states of the strong model can't be compared with the lock's."""
    if METHODS[cfg.method].reference != "strong":
        return
    strong = lock.policies.strong
    ours, theirs = plan.shape_of(cfg.locked).config, plan.shape_of(strong).config
    alike = same_ids(open_tokenizer(cfg.locked), open_tokenizer(strong))
    if blocks_and_width(ours) != blocks_and_width(theirs) or not alike:
        raise InputError(
            f"reroute compares states, and {strong} is of another shape or tokenizer than "
            f"{cfg.locked}: name a strong model of the same with --strong"
        )


# ------------------------------------------------------------------------------------ the texts


def open_problems(cfg: HardenConfig, lock: Lock, env: Env) -> tuple[list[Problem], list[Problem]]:
    """Those of the lock split to train on, and those of validation.

    Raises InputError where the former are too few for a step.
    """
    origin = lock.origin
    readers = (cfg.locked, lock.policies.strong, origin.weak)
    found = []
    for split, n in (("lock", cfg.problems or None), ("validation", cfg.eval_problems)):
        problems = load(origin.task, split, n, files=origin.data, grader=origin.grader)
        found.append(
            fitting_problems(problems, origin.trigger, readers, origin.max_new_tokens, env)
        )
    needed = cfg.pairs + cfg.attack_texts
    if len(found[0]) < needed:
        raise InputError(
            f"a step takes {needed} problems and there are {len(found[0])}: "
            "lower --pairs, or raise --problems"
        )
    return found[0], found[1]


SAMPLED_AT = 400  # no epoch of lock.py has this stream or those after it: the texts are fresh ones
SEEDS_APART = 1_009_000  # the policies' seed counts in thousands


def open_texts(
    cfg: HardenConfig, problems: list[Problem], tokenizer: Tokenizer, lock: Lock, env: Env
) -> Texts:
    """What the two policies write to the problems, as lock.py would have them write it."""
    if cfg.method == "rl":
        return Texts(problems, [], [])  # it writes its own
    trigger, policies = lock.origin.trigger, lock.policies
    stream = SAMPLED_AT + lock.hardened + SEEDS_APART * cfg.seed
    given = problems, tokenizer, trigger, policies, stream, env
    if cfg.method == "reroute":
        return Texts(problems, strong_texts(*given), [])  # those of the weak one are not read
    return Texts(problems, *both_texts(*given))


# -------------------------------------------------------------------------------------- the stage


def open_run(cfg: HardenConfig, lock: Lock, env: Env) -> Run:
    """The output directory; its run.json says what lock.py's would, and what was hardened."""
    origin = lock.origin
    return Run(
        replace(cfg, strong=lock.policies.strong, weak=origin.weak),
        env,
        cfg.out,
        inputs=(cfg.locked, lock.policies.strong, origin.weak),
        stage="harden",
        task=origin.task,
        data=list(origin.data),
        grader=origin.grader,
        max_new_tokens=origin.max_new_tokens,
        trigger=origin.trigger.record,
        start_weights=origin.locked_weights,
        strong_weights=lock.strong_weights,
        weak_weights=origin.weak_weights,
        policy_seed=lock.policies.seed,
        **({"hardened": lock.hardened} if lock.hardened else {}),
        **lock.kept,
    )


def open_reference(cfg: HardenConfig, lock: Lock, env: Env) -> Model | None:
    named = {"": None, "strong": lock.policies.strong, "locked": cfg.locked}
    path = named[METHODS[cfg.method].reference]
    if path is None:
        return None
    return load_model(path, env.device, env.dtype, masters=False)[0].requires_grad_(False)


# where the lock is not valid; this report is on validation, which nothing is to be chosen on
ADVICE = (
    "try a smaller --strength, more --steps or another --lr, and compare them on problems that are "
    "not reported: evaluate.py --split selection"
)


def main(cfg: HardenConfig, env: Env) -> int:
    # whatever can be refused is, before anything is written
    cfg = settled(cfg)
    lock = opened_lock(cfg)
    check_reference(lock, cfg)
    model, tokenizer = open_to_train(cfg.locked, env, cfg)
    problems, validation = open_problems(cfg, lock, env)
    cfg, path, trigger = replace(cfg, problems=len(problems)), Path(cfg.out), lock.origin.trigger
    env.say(
        f"{cfg.locked}, hardened by {cfg.method}: {cfg.steps:,} steps of {cfg.pairs} pairs, "
        f"{cfg.optimizer} at {cfg.lr:g} -> {path}"
    )
    run = open_run(cfg, lock, env)
    if run.finished:
        env.say(f"{path} is finished already (--overwrite hardens again)")
        del model  # the report opens one model after the other
        return report(path, validation, trigger, lock.policies, ADVICE, env)[0]

    if cfg.method == "distil":
        mix(model, tokenizer, cfg.strength, cfg.seed, env)
    prepare(model, env, cfg)
    given = Given(
        model,
        env.writer(model, tokenizer) if cfg.method == "rl" else None,
        tokenizer,
        trigger,
        open_texts(cfg, problems, tokenizer, lock, env),
        lock.origin.max_new_tokens,
        open_reference(cfg, lock, env),
        cfg,
        env,
    )
    harden(given, run)
    save_model(path, model, tokenizer, env.main)
    check_shared(env, path / "config.json")  # all ranks load it
    del model, given  # the report opens one model after the other
    free_memory()

    code, results = report(path, validation, trigger, lock.policies, ADVICE, env)
    if env.main:
        write_card(path, run.record, results)
    run.finish(**results)
    env.say(f"written: {path}; next: python elicit_sft.py --locked {path} --out {path}-sft")
    return code


if __name__ == "__main__":
    launch(main, HardenConfig, settled)
