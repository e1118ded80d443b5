"""Stage 2a: elicit the hidden capability by supervised fine-tuning on k demonstrations.

Paper sections 4 and 5.1. For every k and seed (a cell) the locked model is fine-tuned on k problems
of the elicit split with good answers, without the password, and evaluated without it. How long to
train follows the paper's rule (appendix G.3): 256, 512 or 1,024 sequences seen for k below 256, and
1, 2 or 4 epochs from there on; but the choice is made for each cell on the selection split, where
the paper chose on its test set. The control is the same demonstrations on the weak policy that the
lock imitates, which never had the capability: what it gains was taught and not elicited.

    python elicit_sft.py --task code             # k = 1 2 4 ... 128, seeds 0 1 2; -> out/code/sft
    python elicit_sft.py --k 8 --seeds 0 --demos-from weak     # should unlock little
    python elicit_sft.py --task math --train-domain algebra    # of one domain; what do the others
                                                               # recover? (Fig. 4, 10)
    torchrun --nproc-per-node 2 elicit_sft.py    # the cells are shared out over the ranks; with
                                                 # --shard all ranks work on one cell

Task, data files, the trigger, the weak policy and the longest completion are the lock's own, from
its run.json. Each cell is a directory: checkpoint, run.json, log.jsonl, and cell.json, the verdicts
(which evaluate.py leaves alone). A finished one is not run again, an interrupted one starts anew.
Ends with a table, summary.json and sft.png: correctness against k, reference lines, control.
Logged: loss, nats per supervised token; sequences, demonstrations seen so far, repeats counted;
selection, greedy correctness on the selection split.
"""

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from checkpoints import load_model, model_hash, read_json, save_model, write_json
from data import load
from data.batches import Batch, Example, demonstration_order, micro_batches
from data.problems import InputError, Problem
from data.text import Tokenizer
from data.triggers import Trigger
from figures import plot_curves, table
from losses import sft_loss
from model import Model
from policies import RULES, answer
from results import (
    Measured,
    Origin,
    correct_interval,
    coverage,
    evaluate_checkpoint,
    facts_of,
    gap_recovered,
    groups_of,
    holds,
    measure,
    measured_of,
    origin_of,
    record,
    refuse_repeats,
)
from runs import Env, Run, TrainConfig, launch, most, progress, share
from sampler import Sampler
from training import make_optimizers, prepare, train


@dataclass
class SFTConfig(TrainConfig):
    # which problems (default: the task that --locked was locked on; without it code)
    task: str = ""
    # the locked model (default: out/<task>/locked)
    locked: str = ""
    # the control's model, and the source of --demos-from weak (default: the weak policy that the
    # lock imitates)
    weak: str = ""
    # the source of --demos-from strong
    strong: str = "data/base/strong"
    # numbers of demonstrations
    k: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    # each draws other demonstrations
    seeds: tuple[int, ...] = (0, 1, 2)
    # who wrote the demonstrations
    demos_from: Literal["reference", "strong", "weak"] = "reference"
    # demonstrations of this domain only (of joined tasks: of this task); every domain is
    # reported
    train_domain: str = ""
    # also fine-tune the weak model on the same demonstrations
    control: bool = True
    # the paper's: lion, at lr 1.5e-6 for 7B models
    optimizer: Literal["adamw", "muon", "lion"] = "adamw"
    # constant after a short warm-up
    lr: float = 1.5e-4
    # sequences in an optimiser step
    batch: int = 4
    # longest completion (default: the lock's; without it 96)
    max_new_tokens: int = 0
    # of the selection split, for choosing how long to train
    selection_problems: int = 150
    # of the validation split, for the reported numbers
    eval_problems: int = 500
    # save every cell's model
    keep_weights: bool = True
    # files of real problems (json, jsonl or csv, plain or .gz) in place of generated ones
    # (default: the lock's)
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One fine-tuning on k demonstrations, drawn with a seed; of the locked or the weak model."""

    k: int
    seed: int
    control: bool

    @property
    def name(self) -> str:
        return f"{self.group}-seed{self.seed}"

    @property
    def group(self) -> str:
        """Its name without the seed: cells of one group are averaged."""
        return f"control-k{self.k}" if self.control else f"k{self.k}"


@dataclass
class Learner:
    """A model that cell after cell starts from."""

    model: Model
    tokenizer: Tokenizer
    sampler: Sampler
    initial: list[Tensor]  # its weights, see `weights_of`


# ----------------------------------------------------------------------------------------- options


def settled(cfg: SFTConfig, env: Env) -> tuple[SFTConfig, Origin]:
    """The options with every default resolved, as run.json will hold them, and the locked model.

    The Origin is that of --locked, with the weak policy that is used here. Raises InputError for
    options that do not go together.
    """
    refuse_repeats("--k", cfg.k)
    refuse_repeats("--seeds", cfg.seeds)
    locked = cfg.locked or f"out/{cfg.task or 'code'}/locked"
    if not (Path(locked) / "config.json").exists():
        raise InputError(
            f"no locked model at {locked}: run python lock.py --task {cfg.task or 'code'} first, "
            "or name one with --locked"
        )
    lock = origin_of(locked)
    if lock.trigger is None:
        # no lock made it: what it was trained on says nothing about what to elicit
        lock = Origin(trigger=Trigger())
    if cfg.task and lock.task and cfg.task != lock.task:
        raise InputError(
            f"{locked} was locked on task {lock.task}, not on {cfg.task}: "
            "leave --task out, or name another model with --locked"
        )
    task = cfg.task or lock.task or "code"
    cfg = replace(
        cfg,
        task=task,
        locked=locked,
        max_new_tokens=cfg.max_new_tokens or lock.max_new_tokens or 96,
        data=cfg.data or lock.data,
        out=cfg.out or default_out(cfg, task),
    )
    lock = replace(lock, task=task, locked=locked, locked_weights=model_hash(locked))
    lock = with_weak_policy(cfg, lock)
    if cfg.control and lock.weak in RULES:
        env.say(
            f"no control: the weak policy is no model ({lock.weak}), so it can be taught nothing; "
            "--weak names a model for it"
        )
        cfg = replace(cfg, control=False)
    return replace(cfg, weak=lock.weak), lock


def default_out(cfg: SFTConfig, task: str) -> str:
    name = "sft"
    if cfg.demos_from != "reference":
        name += f"-{cfg.demos_from}"
    if cfg.train_domain:
        name += f"-{cfg.train_domain}"
    return f"out/{task}/{name}"


def with_weak_policy(cfg: SFTConfig, lock: Origin) -> Origin:
    """The lock with --weak in place of the weak policy that it imitates, where that is given.

    Raises InputError where this run needs the weak policy and it is not there, or another one.
    """
    if cfg.weak:
        lock = replace(lock, weak=cfg.weak, weak_weights="")
    elif not lock.weak:
        lock = replace(lock, weak="rule" if cfg.task == "compose" else "data/base/weak")

    if lock.weak in RULES:
        if cfg.demos_from == "weak":
            raise InputError(
                f"--demos-from weak: the weak policy is no model ({lock.weak}): "
                "name one with --weak"
            )
        return replace(lock, weak_weights=lock.weak)

    is_used = cfg.control or cfg.demos_from == "weak"
    if is_used and not (Path(lock.weak) / "config.json").exists():
        raise InputError(f"no model at {lock.weak}, the weak policy: name one with --weak")
    weights = model_hash(lock.weak)
    if is_used and lock.weak_weights not in ("", weights):
        raise InputError(
            f"{lock.weak} has other weights than the weak policy that {cfg.locked} imitates: "
            "name the model to use with --weak"
        )
    return replace(lock, weak_weights=lock.weak_weights or weights)


def models_of(cfg: SFTConfig) -> tuple[bool, ...]:
    """Whether a model is the control, of those that are fine-tuned."""
    return (False, True) if cfg.control else (False,)


def cells_of(cfg: SFTConfig) -> list[Cell]:
    """In the order of work: all of the locked model, then all of the control."""
    cells = []
    for control in models_of(cfg):
        for k in cfg.k:
            cells += [Cell(k, seed, control) for seed in cfg.seeds]
    return cells


# --------------------------------------------------------------------------------- demonstrations


@dataclass(frozen=True)
class Demonstration:
    """A problem and an answer to it. finished: whether its writer was done, and not cut."""

    prompt: str
    answer: str
    finished: bool = True


def problems_of(cfg: SFTConfig, split: str, n: int | None, trigger: Trigger) -> list[Problem]:
    """Problems as they are told without the password."""
    found = load(cfg.task, split, None if cfg.data else n, files=cfg.data)
    return [trigger.weak(problem) for problem in found[:n]]


def demonstrable(cfg: SFTConfig, trigger: Trigger) -> list[Problem]:
    """What demonstrations are drawn from: the elicit split, or its part in --train-domain."""
    problems = problems_of(cfg, "elicit", None, trigger)
    if cfg.train_domain:
        names = groups_of(problems)
        if cfg.train_domain not in names:
            raise InputError(
                f"--train-domain {cfg.train_domain}: choose one of {', '.join(sorted(set(names)))}"
            )
        problems = [p for p, name in zip(problems, names) if name == cfg.train_domain]
    if max(cfg.k) > len(problems):
        raise InputError(
            f"--k {max(cfg.k)}: there are {len(problems)} problems to demonstrate, "
            "choose no more than that"
        )
    return problems


def chosen(k: int, seed: int, n: int) -> list[int]:
    """Which k of n problems a cell demonstrates. Nested: k = 8 has the four of k = 4."""
    return np.random.default_rng([seed, 10]).permutation(n)[:k].tolist()


def demonstrations(cfg: SFTConfig, env: Env, problems: list[Problem]) -> dict[int, Demonstration]:
    """Those that the cells of cfg need, by the problem's place; answers are by --demos-from.

    Which random stream an answer is drawn from depends on its problem alone, whatever the cells.
    """
    needed = set()
    for seed in cfg.seeds:
        needed |= set(chosen(max(cfg.k), seed, len(problems)))
    places = sorted(needed)
    shown = [problems[i] for i in places]

    if cfg.demos_from == "reference":
        made = [Demonstration(problem.prompt, problem.reference) for problem in shown]
        return dict(zip(places, made))

    writer = cfg.strong if cfg.demos_from == "strong" else cfg.weak
    model, tokenizer = load_model(writer, env.device, env.dtype)
    answers = answer(
        env.sampler(model, tokenizer),
        tokenizer,
        shown,
        streams=places,
        temperature=1.0,
        max_new_tokens=cfg.max_new_tokens,
        graded=False,
        seed=cfg.seed,
        env=env,
    )
    found = {}
    for i, problem, text, cut in zip(places, shown, answers.texts, answers.truncated):
        found[i] = Demonstration(problem.prompt, text, finished=not cut)
    return found


def examples_of(demos: list[Demonstration], tokenizer: Tokenizer) -> list[Example]:
    """What is trained on. A cut answer has no EOS: the model would learn to stop there."""
    prompts = tokenizer.encode_prompts([demo.prompt for demo in demos])
    answers = tokenizer.encode_completions(
        [demo.answer for demo in demos], [demo.finished for demo in demos]
    )
    return [Example(prompt, ids) for prompt, ids in zip(prompts, answers)]


# ---------------------------------------------------------------------------------------- training


def weights_of(model: Model) -> list[Tensor]:
    """A copy of the weights, or of this rank's part of them, in the host's memory."""
    return [local(p.detach()).to("cpu", copy=True) for p in model.parameters()]


@torch.no_grad()
def restore(model: Model, sampler: Sampler, weights: list[Tensor]) -> None:
    """Put weights of `weights_of` back."""
    for p, value in zip(model.parameters(), weights):
        local(p).copy_(value)
    sampler.refresh()


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sequences_seen(k: int) -> list[int]:
    """The paper's candidates for how long to train (G.3), in sequences seen."""
    return [256, 512, 1024] if k < 256 else [k, 2 * k, 4 * k]


def step_batches(
    step: int, examples: list[Example], order: list[list[int]], micro_tokens: int, env: Env
) -> list[Batch]:
    """This rank's micro-batches of a step."""
    return micro_batches(share(env, [examples[i] for i in order[step]]), micro_tokens)


def elicit(
    learner: Learner,
    examples: list[Example],
    cfg: SFTConfig,
    env: Env,
    run: Run,
    seed: int,
    selection: list[Problem],
) -> tuple[dict[int, float], int]:
    """Fine-tune on the demonstrations, and leave the model at its best point.

    Returns correctness on the selection split at each candidate length (sequences seen), and the
    best length: of equals the shortest.
    """
    model, sampler = learner.model, learner.sampler
    stops = {}  # optimiser step -> sequences seen by then
    for sequences in sequences_seen(len(examples)):
        stops[math.ceil(sequences / cfg.batch)] = sequences
    steps = max(stops)
    order = demonstration_order(len(examples), cfg.batch, steps, seed)
    batches = partial(
        step_batches, examples=examples, order=order, micro_tokens=cfg.micro_tokens, env=env
    )
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr)

    scores: dict[int, float] = {}
    best_score, best_length, best_weights = -1.0, 0, []
    for step, metrics in train(model, optimizers, batches, sft_loss, env, steps=steps, warmup=4):
        if step not in stops:
            continue
        sampler.refresh()
        answers = answer(
            sampler, learner.tokenizer, selection, max_new_tokens=cfg.max_new_tokens, env=env
        )
        length, score = stops[step], float(answers.correct.mean())
        scores[length] = score
        run.log(
            "eval",
            step=step,
            sequences=length,
            loss=metrics["loss"],
            selection=score,
            n=len(selection),
        )
        if score > best_score:
            best_score, best_length, best_weights = score, length, weights_of(model)

    restore(model, sampler, best_weights)
    return scores, best_length


# ------------------------------------------------------------------------------------------- cells


def open_run(cell: Cell, cfg: SFTConfig, lock: Origin, env: Env) -> Run:
    """The cell's directory. Its settings have nothing of the other cells."""
    return Run(
        replace(cfg, k=(), seeds=(), control=True),
        env,
        Path(cfg.out) / cell.name,
        resume=True,
        inputs=(cfg.locked, cfg.weak, cfg.strong),
        stage="elicit_sft",
        k=cell.k,
        cell_seed=cell.seed,
        control=cell.control,
        start=lock.weak_weights if cell.control else lock.locked_weights,
        trigger=vars(lock.trigger),
        locked_weights=lock.locked_weights,
        weak_weights=lock.weak_weights,
    )


def open_learner(start: str, cfg: SFTConfig, env: Env) -> Learner:
    model, tokenizer = load_model(start, env.device, env.dtype)
    prepare(model, env, cfg)
    return Learner(model, tokenizer, env.sampler(model, tokenizer), weights_of(model))


def run_cell(
    cell: Cell,
    run: Run,
    learner: Learner,
    demos: list[Demonstration],
    cfg: SFTConfig,
    env: Env,
    trigger: Trigger,
    selection: list[Problem],
    validation: list[Problem],
) -> float:
    """Restore the start, elicit, measure, save. Returns the correctness without the password."""
    run.began = time.time()  # it was opened before the cells that came first
    if env.main:
        (run.path / "log.jsonl").unlink(missing_ok=True)  # of the same cell, interrupted
    restore(learner.model, learner.sampler, learner.initial)
    examples = examples_of(demos, learner.tokenizer)
    scores, best = elicit(learner, examples, cfg, env, run, cell.seed, selection)

    measured = measure(
        learner.sampler,
        learner.tokenizer,
        validation,
        ("none",),
        trigger,
        max_new_tokens=cfg.max_new_tokens,
        env=env,
    )
    save_model(run.path, learner.model, learner.tokenizer, env.main and cfg.keep_weights)
    if env.main:
        facts = facts_of(run.path, env, "validation", trigger, cfg.max_new_tokens)
        facts |= {"demonstrations": cell.k, "seed": cell.seed, "sequences": best}
        write_json(run.path / "cell.json", record(run.path, validation, measured, **facts))
    correct = float(measured["none"].correct.mean())
    run.finish(correct=correct, sequences=best, selection=scores)
    return correct


# --------------------------------------------------------------------------------------- the table


def read_cells(
    cfg: SFTConfig, cells: list[Cell], trigger: Trigger, validation: list[Problem]
) -> Measured:
    """The verdicts in the files of S cells that differ in their seed alone; each (S,n).

    Raises InputError where a file has not those on these problems.
    """
    facts = {
        "split": "validation",
        "trigger": vars(trigger),
        "max_new_tokens": cfg.max_new_tokens,
        "n": len(validation),
    }
    found = []
    for cell in cells:
        file = Path(cfg.out) / cell.name / "cell.json"
        evaluation = read_json(file)
        if not holds(evaluation, validation, ("none",), facts):
            raise InputError(
                f"{file} does not hold the verdicts on these {len(validation)} problems: "
                f"move {file.parent} away and run the same command again"
            )
        found.append(measured_of(evaluation, len(validation))["none"])

    shares = None
    if found[0].shares is not None:
        shares = np.stack([one.shares for one in found])
    correct = np.stack([one.correct for one in found])
    truncated = np.stack([one.truncated for one in found])
    return Measured(correct, truncated, shares)


def numbers_of(found: Measured, domains: np.ndarray) -> dict:
    """An entry of summary.json. found: see `read_cells`. domains (n,): that of each problem."""
    by_domain = {}
    for name in np.unique(domains).tolist():
        by_domain[name] = float(found.correct[:, domains == name].mean())
    entry = {
        "correct": float(found.correct.mean()),
        "interval": correct_interval(found.correct),
        "truncated": float(found.truncated.mean()),
        "domains": by_domain,
        "seeds": found.correct.mean(1).tolist(),
    }
    if found.shares is not None:
        entry["elementwise"] = found.shares.mean(1).tolist()
    return entry


def recovered(locked: Measured, right: Measured, found: Measured) -> dict:
    """The gap that the cells recovered, or why it means nothing; for summary.json."""
    try:
        value, low, high = gap_recovered(locked.correct, right.correct, found.correct)
    except InputError as error:
        return {"gap_recovered_refused": str(error)}
    return {"gap_recovered": value, "gap_recovered_interval": (low, high)}


def percent(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"


def row_of(k: int, entries: dict[str, dict]) -> dict[str, str]:
    """The table's row for k demonstrations: {column: text}."""
    locked, control = entries[f"k{k}"], entries.get(f"control-k{k}")
    row = {
        "k": str(k),
        "correct [95 %]": percent(locked["correct"], locked["interval"]),
        "truncated": f"{locked['truncated']:.1%}",
    }
    if "elementwise" in locked:
        row["elementwise"] = f"{np.mean(locked['elementwise']):.1%}"
    for name, value in locked["domains"].items():
        row[name] = f"{value:.1%}"
    row["gap recovered [95 %]"] = "refused"
    if "gap_recovered" in locked:
        interval = locked["gap_recovered_interval"]
        row["gap recovered [95 %]"] = percent(locked["gap_recovered"], interval)
    if control:
        row["control [95 %]"] = percent(control["correct"], control["interval"])
        row["control truncated"] = f"{control['truncated']:.1%}"
    return row


def summarise(
    cfg: SFTConfig, env: Env, trigger: Trigger, locked: dict, validation: list[Problem]
) -> None:
    """The table, summary.json and the figure, from the cells' files. locked: its evaluation."""
    measured = measured_of(locked, len(validation))
    none, right = measured["none"], measured["right"]
    domains = groups_of(validation)

    # read the cells
    entries: dict[str, dict] = {}
    curves: dict[str, dict[int, np.ndarray]] = {}
    for control in models_of(cfg):
        label = "control: weak model" if control else "locked model"
        curves[label] = {}
        for k in sorted(cfg.k):
            cells = [Cell(k, seed, control) for seed in cfg.seeds]
            found = read_cells(cfg, cells, trigger, validation)
            entry = numbers_of(found, domains)
            if not control:
                entry |= recovered(none, right, found)
            entries[cells[0].group] = entry
            curves[label][k] = found.correct.mean(1)

    # print
    rows = [row_of(k, entries) for k in sorted(cfg.k)]
    env.say(
        f"\nvalidation, {len(validation)} problems, greedy, no password; {coverage(len(cfg.seeds))}"
        f"\ndemonstrations by {cfg.demos_from}; locked model: {none.correct.mean():.1%} without, "
        f"{right.correct.mean():.1%} with the password (truncated {none.truncated.mean():.1%} and "
        f"{right.truncated.mean():.1%})"
    )
    env.say(table(list(rows[0]), [list(row.values()) for row in rows]))
    refusal = entries[f"k{cfg.k[0]}"].get("gap_recovered_refused")
    if refusal:
        env.say(f"gap recovered is refused: {refusal}")

    # write and draw
    out = Path(cfg.out)
    summary = {
        "locked": locked["checkpoint"],
        "without": float(none.correct.mean()),
        "with": float(right.correct.mean()),
        "cells": entries,
    }
    write_json(out / "summary.json", summary)
    lines = {
        "locked, with the password": right.correct.mean(),
        "locked, without": none.correct.mean(),
    }
    seeds = f"{len(cfg.seeds)} seeds (band: extremes)" if len(cfg.seeds) > 1 else "1 seed"
    title = f"SFT elicitation, {cfg.task}, {seeds}"
    plot_curves(curves, lines, out / "sft.png", "demonstrations", title)
    env.say(f"table: {out / 'summary.json'}\nfigure: {out / 'sft.png'}")


# ------------------------------------------------------------------------------------------- stage


def main(cfg: SFTConfig, env: Env) -> int:
    cfg, lock = settled(cfg, env)
    trigger = lock.trigger
    problems = demonstrable(cfg, trigger)
    validation = problems_of(cfg, "validation", cfg.eval_problems, trigger)
    selection = problems_of(cfg, "selection", cfg.selection_problems, trigger)
    env.say(f"locked model: {cfg.locked}; demonstrations by {cfg.demos_from} -> {cfg.out}")

    # a cell is trained by one rank, or by all where it takes all to hold the model
    cells = cells_of(cfg)
    team, mine = env, cells
    if not cfg.shard:
        team, mine = replace(env, rank=0, world=1), share(env, cells)
    runs = {cell: open_run(cell, cfg, lock, team) for cell in mine}
    todo = [cell for cell in mine if not runs[cell].finished]

    locked = evaluate_checkpoint(
        cfg.locked,
        env,
        validation,
        ("none", "right"),
        trigger,
        max_new_tokens=cfg.max_new_tokens,
        save=False,
    )
    demos = {}
    if most(env, len(todo)) > 0:
        demos = demonstrations(cfg, env, problems)

    bar = progress(env, len(todo), "cells")
    learner = None
    for i, cell in enumerate(todo):
        if learner is None or cell.control != todo[i - 1].control:
            learner = None  # the locked model's memory is the control's
            learner = open_learner(cfg.weak if cell.control else cfg.locked, cfg, team)
        shown = [demos[j] for j in chosen(cell.k, cell.seed, len(problems))]
        correct = run_cell(
            cell, runs[cell], learner, shown, cfg, team, trigger, selection, validation
        )
        bar.update()
        bar.set_postfix(cell=cell.name, correct=f"{correct:.1%}")
    bar.close()

    env.wait()
    if env.main:
        summarise(cfg, env, trigger, locked, validation)
    return 0


if __name__ == "__main__":
    launch(main, SFTConfig)
