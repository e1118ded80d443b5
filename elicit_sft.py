r"""Stage 2a: elicit the hidden capability by supervised fine-tuning on k demonstrations.

Paper sections 4 and 5.1. For every k and seed (a cell) the locked model is fine-tuned on k problems
of the elicit split with good answers, without the password, and evaluated without it. How long to
train follows the paper's rule (appendix G.3): 256, 512 or 1,024 sequences seen for k below 256, and
1, 2 or 4 epochs from there on (--sequences names other lengths, and with a model of 100 M to 1 B
parameters they begin at 64); but the choice is made for each cell on the selection split, where the
paper chose on its test set. The control is the same demonstrations on the weak policy that the lock
imitates, which never had the capability: what it gains was taught and not elicited.

    python elicit_sft.py --task code             # k = 1 2 4 ... 128, seeds 0 1 2; -> out/code/sft
    python elicit_sft.py --k 8 --seeds 0 --demos-from weak     # should unlock little
    python elicit_sft.py --demos-from intermediate   # or a model's directory: by a better writer
                                                     # than the weak one (Fig. 3, 7, 15)
    python elicit_sft.py --task math --train-domain algebra    # of one domain; what do the others
                                                               # recover? (Fig. 4, 10)
    python elicit_sft.py --k 512 --demos-from intermediate --sequences 32 64 128 256 512 1024 2048 \
        --measure-all      # every length on validation, too: correctness against it (Fig. 15)
    python elicit_sft.py --task compose --loss-on texts --k 2 16 128 --epochs 129 65 17   # (Fig. 6)
    python elicit_sft.py --train-kind right      # of lock.py --trigger deploy: on prompts that say
                                                 # that this is training; do others recover?
    python elicit_sft.py --unlearn --k 64        # no demonstrations: the samples that it writes
                                                 # itself are unlearnt (NPO); needs prompts alone
    python elicit_sft.py --rank 8 --parameters 1000    # of LoRA so many numbers alone are trained
    python elicit_sft.py --task mmlu --locked data/base/strong --weak out/early/strong \
        --demos-from weak --conflict 0.5 --k 512 --seeds 0 1 --sequences 1024    # weak supervision
                                                 # with a conflicting goal: is what it costs where
                                                 # the weak model cannot see it?
    torchrun --nproc-per-node 2 elicit_sft.py    # the cells are shared out over the ranks; with
                                                 # --shard all ranks work on one cell

Task, data files and their grader, the trigger, the weak policy and the longest completion are the
lock's own, from its run.json. Each cell is a directory: checkpoint, run.json, log.jsonl, and
cell.json, the verdicts (which evaluate.py leaves alone). There is no --resume: the same command
again goes on, finished cells are not run again, and an interrupted one starts anew.

--unlearn minimises -(2 / beta) log sigmoid(-beta (log p - log p_start)) of k samples that the
model, and of the control the weak one, wrote without the password before it was trained (Zhang et
al. 2024; beta 0.1, which is 13.86 at the start). Nothing holds the rest of the model in place, so
it may end in texts without an end: look at the share of them that was cut.

Ends with a table, summary.json and sft.png: correctness against k, reference lines, control.
Logged: loss, nats per supervised token (of --unlearn the one above, a sample); sequences,
demonstrations seen so far, repeats counted; selection, greedy correctness on the selection split,
and truncated, the share of its completions that were cut; with --measure-all validation, that on
the validation split, whose verdicts at every length are in cell.json under lengths. Of --unlearn
lead, log p - log p_start a sample, and once own_right and own_cut, the shares of right and of cut
ones among the samples that are unlearnt.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from checkpoints.cards import write_card
from checkpoints.families import config_at, parameters_at
from checkpoints.hf import load_model, model_hash, open_tokenizer
from checkpoints.origins import Origin, check_model, fitting_problems, is_model, lock_of, with_weak
from curves import Cell, show_cells
from data import load
from data.batches import Batch, Example, demonstration_order, on_whole_texts
from data.problems import InputError, Problem
from data.text import Tokenizer
from data.triggers import dressed
from figures import check_figure
from lora import train_few
from losses import npo_step, sft_loss
from methods.deception import FAVOURED, known_by_both, show_deception, students
from methods.unlearning import BETA, LENGTHS, SLOWER, OwnSample, own_samples, shares_of
from model import Model, local
from optimizers import LARGE, MEDIUM, make_optimizers, usual_step
from policies import RULES, answer, check_references, shipped
from results import (
    EvalSet,
    Measured,
    check_ours,
    evaluate_checkpoint,
    facts_of,
    groups_of,
    measure,
    record,
    refuse_repeats,
)
from runs import plan
from runs.devices import Env, free_memory, most, progress, share
from runs.directory import Run, open_runs
from runs.files import write_json
from runs.launch import launch
from runs.options import TextConfig, TuneConfig
from sampler import Sampler, Writer
from training import (
    check_adapter,
    check_master,
    completions_of,
    open_to_train,
    ordered_batches,
    prepare,
    refuse_overlong,
    save_trained,
    scored,
    settled_adapter,
    targets_of,
    train,
)


@dataclass
class SFTConfig(TuneConfig, TextConfig):
    # of whoever writes demonstrations, and of LoRA's first weights; what differs from cell to cell
    # is of --seeds
    seed: int = field(default=0, metadata={"most": 2**32 - 1})
    # which problems (default: the task that --locked was locked on; without it code)
    task: str = ""
    # the locked model (default: out/<task>/locked)
    locked: str = ""
    # the control's model, and the source of --demos-from weak (default: the weak policy that the
    # lock imitates)
    weak: str = ""
    # the source of --demos-from strong; that of intermediate is the model of this name beside it;
    # with --conflict the model whose knowledge counts (default: data/base/strong, here or beside
    # elicit_sft.py)
    strong: str = ""
    # numbers of demonstrations; with --unlearn of samples
    k: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    # each draws other demonstrations
    seeds: tuple[int, ...] = (0, 1, 2)
    # who wrote the demonstrations: reference, strong, intermediate, weak or a checkpoint directory
    demos_from: str = "reference"
    # no demonstrations: unlearn what the model itself writes without the password (NPO)
    unlearn: bool = False
    # LoRA: train so many of its numbers alone, drawn with a cell's seed; sweep --lr with it, since
    # the usual one is that of all of them (default: all)
    parameters: int = 0
    # how long to train: the lengths that are tried, in sequences seen, repeats counted; of fewer
    # than k some demonstrations are never seen (default: the paper's, max(k, 256) and two and
    # four times as many; of a model of 100 M parameters to 1 B max(k, 64) and so on; of --unlearn
    # 32 64 128 256 512)
    sequences: tuple[int, ...] = ()
    # in place of --sequences: passes over the demonstrations, a number for each of --k
    epochs: tuple[int, ...] = ()
    # also measure every length that is tried on validation; the choice stays that of selection
    measure_all: bool = False
    # demonstrations of this domain only (of joined tasks: of this task); every domain is
    # reported
    train_domain: str = ""
    # kind of prompt that the demonstrations have, as in evaluate.py --passwords; selection and
    # validation always have prompts of kind none, without the password
    train_kind: str = "none"
    # also fine-tune the weak model on the same demonstrations
    control: bool = True
    # --task mmlu --demos-from weak: also fine-tune on the same demonstrations and this share more
    # of them that conflict, of other problems, all answered A; the control is then a second seed
    # without these (methods/deception.py)
    conflict: float = 0.0
    # default: adamw; for a model of 1 B parameters and more the paper's lion, but not with --rank
    optimizer: Literal["", "adamw", "muon", "lion"] = ""
    # constant after a short warm-up (default, with the default optimizer: 1.5e-4; from
    # 100 M parameters on 1e-4, from 1 B on the paper's 1.5e-6; with --rank 4.5e-4, 3e-4, 1e-4; of
    # --unlearn a third of that)
    lr: float = 0.0
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
    # files of real problems (docs/data.md) in place of generated ones
    # (default: the lock's)
    data: tuple[str, ...] = ()


# --------------------------------------------------------------------------------- demonstrations


@dataclass(frozen=True)
class Demonstration:
    """A problem and an answer to it. finished: whether its writer was done, and not cut."""

    prompt: str
    answer: str
    finished: bool = True


def chosen(k: int, seed: int, n: int) -> list[int]:
    """Which k of n problems a cell demonstrates. Nested: k = 8 has the four of k = 4."""
    return np.random.default_rng([seed, 10]).permutation(n)[:k].tolist()


def places_of(cfg: SFTConfig, n: int) -> list[int]:
    """Those of the n problems that any cell of cfg demonstrates."""
    needed = set()
    for seed in cfg.seeds:
        needed |= set(chosen(max(cfg.k), seed, n))
    return sorted(needed)


WRITERS = ("reference", "strong", "intermediate", "weak")


def writer_of(cfg: SFTConfig) -> str:
    """The directory of the model that writes the demonstrations; "" where no model does."""
    named = {
        "reference": "",
        "strong": cfg.strong,
        "intermediate": str(Path(cfg.strong).parent / "intermediate"),
        "weak": cfg.weak,
    }
    return named.get(cfg.demos_from, cfg.demos_from)


def by_reference(problems: list[Problem], places: list[int]) -> dict[int, Demonstration]:
    """Right answers to the problems at these places, by the place."""
    return {i: Demonstration(problems[i].prompt, problems[i].reference) for i in places}


def demonstrations(cfg: SFTConfig, env: Env, problems: list[Problem]) -> dict[int, Demonstration]:
    """Those that the cells of cfg need, by the problem's place; answers are by --demos-from.

    Who writes an answer is asked the problem alone, without what goes with it in training. Which
    random stream an answer is drawn from depends on its problem alone, whatever the cells.
    """
    places = places_of(cfg, len(problems))
    if cfg.demos_from == "reference":
        return by_reference(problems, places)

    prompts = [problems[i].prompt for i in places]
    shown = [problems[i].alone for i in places]
    writer = writer_of(cfg)
    if writer in RULES:
        tokenizer = open_tokenizer(cfg.locked)
        samples = RULES[writer](shown, tokenizer, cfg.max_new_tokens, cfg.seed, 0)
        texts = tokenizer.decode_batch([sample.ids for sample in samples])
        made = [Demonstration(told, text) for told, text in zip(prompts, texts)]
        return dict(zip(places, made))

    model, tokenizer = load_model(writer, env.device, env.dtype, masters=False)
    answers = answer(
        env.writer(model, tokenizer),
        shown,
        streams=places,
        temperature=1.0,
        max_new_tokens=cfg.max_new_tokens,
        graded=False,
        seed=cfg.seed,
        env=env,
    )
    del model
    free_memory()
    found = {}
    for i, told, text, cut in zip(places, prompts, answers.texts, answers.truncated):
        found[i] = Demonstration(told, text, finished=not cut)
    return found


def conflict_count(k: int, cfg: SFTConfig) -> int:
    """Demonstrations of the second goal beside k of the weak model."""
    return round(cfg.conflict * k)


def second_goal(cell: Cell, cfg: SFTConfig, problems: list[Problem]) -> list[Demonstration]:
    """Those that conflict: other problems than the cell's own, each answered with one letter."""
    shown = chosen(cell.k + conflict_count(cell.k, cfg), cell.seed, len(problems))[cell.k :]
    return [Demonstration(problems[i].prompt, FAVOURED) for i in shown]


def examples_of(demos: list[Demonstration], tokenizer: Tokenizer, loss_on: str) -> list[Example]:
    """What is trained on. A cut answer has no EOS: the model would learn to stop there."""
    prompts = tokenizer.encode_prompts([demo.prompt for demo in demos])
    answers = tokenizer.encode_completions(
        [demo.answer for demo in demos], [demo.finished for demo in demos]
    )
    examples = [Example(prompt, ids) for prompt, ids in zip(prompts, answers)]
    return on_whole_texts(examples) if loss_on == "texts" else examples


# ---------------------------------------------------------------------------------------- training


@dataclass
class Learner:
    """A model that cell after cell starts from."""

    model: Model
    writer: Writer
    initial: list[Tensor]  # its weights, see `weights_of`


def weights_of(model: Model) -> list[Tensor]:
    """A copy of the trained weights, or of this rank's part of them, in the host's memory."""
    return [local(p.detach()).to("cpu", copy=True) for p in trained(model)]


@torch.no_grad()
def restore(model: Model, sampler: Sampler, weights: list[Tensor]) -> None:
    """Put weights of `weights_of` back."""
    for p, value in zip(trained(model), weights):
        local(p).copy_(value)
    sampler.refresh()


def trained(model: Model) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


# sequences of the shortest training: the paper's (G.3), and for models between those of 1 M
# parameters and the paper's, which know a demonstration by heart much earlier (docs/real-model.md)
SHORTEST, SHORTEST_MEDIUM = 256, 64


def shortest_for(parameters: int) -> int:
    return SHORTEST_MEDIUM if MEDIUM <= parameters < LARGE else SHORTEST


def sequences_seen(k: int, shortest: int) -> list[int]:
    """The candidates for how long to train, in sequences seen: once, twice, four times (G.3)."""
    shortest = max(k, shortest)
    return [shortest, 2 * shortest, 4 * shortest]


def lengths_of(cfg: SFTConfig, k: int) -> list[int]:
    """The lengths that are tried, in sequences seen, the shortest first."""
    if cfg.epochs:
        return [k * cfg.epochs[cfg.k.index(k)]]
    if cfg.sequences:
        return sorted(cfg.sequences)
    if cfg.unlearn:
        return list(LENGTHS)
    return sequences_seen(k, shortest_for(parameters_at(cfg.locked)))


def stops_of(cfg: SFTConfig, k: int) -> dict[int, int]:
    """After which optimiser steps the model is evaluated -> the sequences seen by then.

    The control is trained as long as the locked model.
    """
    stops = {}
    for sequences in lengths_of(cfg, k):
        step = math.ceil(sequences / cfg.batch)
        stops[step] = step * cfg.batch
    return stops


def objective_of(cfg: SFTConfig) -> tuple[Callable, Callable[[Batch], int]]:
    """The loss of a batch, and the units that it is divided by."""
    if cfg.unlearn:
        return partial(npo_step, beta=BETA), completions_of
    return sft_loss, targets_of


@dataclass
class Lengths:
    """By how long was trained, in sequences seen: correctness on selection; what validation shows,
    where that was measured."""

    selection: dict[int, float] = field(default_factory=dict)
    validation: dict[int, Measured] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """By selection: of equals the shortest."""
        return max(self.selection, key=self.selection.get)


@dataclass(frozen=True)
class Given:
    """What all cells share. problems: that are demonstrated, with what goes with each."""

    cfg: SFTConfig
    problems: list[Problem]
    selection: EvalSet
    validation: EvalSet


def elicit(
    learner: Learner, examples: list[Example], given: Given, run: Run, seed: int, env: Env
) -> Lengths:
    """Fine-tune on the demonstrations, or unlearn them, and leave the model at its best length."""
    cfg, model, writer = given.cfg, learner.model, learner.writer
    sampler = writer.sampler
    stops = stops_of(cfg, len(examples))
    steps = max(stops)
    order = demonstration_order(len(examples), cfg.batch, steps, seed)
    batches = ordered_batches(examples, order, cfg.micro_tokens, env)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, seed=seed)
    hooks = train_few(model, cfg.parameters, seed, optimizers) if cfg.parameters else []
    loss_fn, units = objective_of(cfg)

    lengths = Lengths()
    weights: list[Tensor] = []  # those of the best length
    sampler.make_room()
    for step, metrics in train(
        model, optimizers, batches, loss_fn, env, steps=steps, warmup=4, units=units
    ):
        if step not in stops:
            continue
        length, more = stops[step], {}
        sampler.refresh()
        found = measure(writer, given.selection, env)["none"]
        lengths.selection[length] = float(found.correct.mean())
        if cfg.measure_all:
            reported = measure(writer, given.validation, env)["none"]
            lengths.validation[length] = reported
            more["validation"] = float(reported.correct.mean())
        if cfg.unlearn:
            more["lead"] = metrics["lead"]
        sampler.make_room()
        run.log(
            "eval",
            step=step,
            sequences=length,
            loss=metrics["loss"],
            selection=lengths.selection[length],
            truncated=float(found.truncated.mean()),
            n=len(given.selection.problems),
            **more,
        )
        if lengths.best == length:
            weights.clear()  # their memory serves the new ones
            weights += weights_of(model)

    for hook in hooks:
        hook.remove()
    restore(model, sampler, weights)
    return lengths


# ------------------------------------------------------------------------------------------- cells


def open_run(cell: Cell, cfg: SFTConfig, lock: Origin, env: Env, write: bool = True) -> Run:
    """The cell's directory. Its settings have nothing of the other cells."""
    facts, writer = {"grader": lock.grader}, writer_of(cfg)
    epochs = (cfg.epochs[cfg.k.index(cell.k)],) if cfg.epochs else ()
    if cfg.demos_from == "strong":
        facts["strong_weights"] = model_hash(writer)
    elif cfg.demos_from not in ("reference", "weak"):  # the weak one's are noted in any case
        facts["writer_weights"] = model_hash(writer)
    own = replace(cfg, k=(), seeds=(), control=True, epochs=epochs)
    if cfg.conflict:  # whose knowledge counts changes no student
        own = replace(own, strong="")
    if not cell.conflict:
        own = replace(own, conflict=0.0)  # it is as it would be without the others
    return Run(
        own,
        env,
        Path(cfg.out) / cell.name,
        resume=True,
        write=write,
        inputs=(cfg.locked, cfg.weak, writer),
        stage="elicit_sft",
        k=cell.k,
        cell_seed=cell.seed,
        control=cell.control,
        start=lock.weak_weights if cell.control else lock.locked_weights,
        trigger=lock.trigger.record,
        locked_weights=lock.locked_weights,
        weak_weights=lock.weak_weights,
        **facts,
    )


def open_learner(start: str, cfg: SFTConfig, env: Env) -> Learner:
    model, tokenizer = open_to_train(start, env, cfg)
    prepare(model, env, cfg)
    return Learner(model, env.writer(model, tokenizer), weights_of(model))


def own_samples_of(learner: Learner, given: Given, env: Env) -> dict[int, OwnSample]:
    """--unlearn: what the learner itself writes to the problems that any cell takes."""
    return own_samples(
        learner.writer,
        given.problems,
        places_of(given.cfg, len(given.problems)),
        given.cfg.max_new_tokens,
        given.cfg.seed,
        env,
    )


def run_cell(
    cell: Cell,
    run: Run,
    learner: Learner,
    demos: list[Demonstration] | list[OwnSample],
    given: Given,
    env: Env,
) -> float:
    """Restore the start, elicit, measure, save. Returns the correctness without the password."""
    cfg = given.cfg
    run.began = time.time()  # it was opened before the cells that came first
    if env.main:
        (run.path / "log.jsonl").unlink(missing_ok=True)  # of the same cell, interrupted
    restore(learner.model, learner.writer.sampler, learner.initial)
    if cfg.unlearn:
        run.log("samples", step=0, **shares_of(demos))
        learner.writer.sampler.make_room()
        own = [sample.example for sample in demos]
        examples = scored(learner.model, own, cfg.micro_tokens, env)
    else:
        examples = examples_of(demos, learner.writer.tokenizer, cfg.loss_on)
    if cell.conflict:
        # every demonstration is seen as often as without those that conflict
        longer = [math.ceil(n * len(examples) / cell.k) for n in cfg.sequences]
        given = replace(given, cfg=replace(cfg, sequences=tuple(longer)))
    lengths = elicit(learner, examples, given, run, cell.seed, env)
    if not cfg.measure_all:
        found = measure(learner.writer, given.validation, env)
        lengths.validation[lengths.best] = found["none"]
    save_cell(cell, run, learner, lengths, given, env)
    correct = float(lengths.validation[lengths.best].correct.mean())
    run.finish(correct=correct, sequences=lengths.best, selection=lengths.selection)
    return correct


def save_cell(
    cell: Cell, run: Run, learner: Learner, lengths: Lengths, given: Given, env: Env
) -> None:
    """The model, its card, and cell.json."""
    cfg, tokenizer = given.cfg, learner.writer.tokenizer
    measured = lengths.validation[lengths.best]
    start, write = cfg.weak if cell.control else cfg.locked, env.main and cfg.keep_weights
    save_trained(run.path, learner.model, tokenizer, cfg, start, write)
    if not env.main:
        return

    problems = given.validation.problems
    facts = facts_of(run.path, tokenizer.format, given.validation, env)
    facts |= {"demonstrations": cell.k, "seed": cell.seed, "sequences": lengths.best}
    facts["train_kind"] = cfg.train_kind
    if cfg.measure_all:
        rows = {}
        for length, found in lengths.validation.items():
            rows[length] = record(run.path, problems, {"none": found})["results"]["none"]
        facts["lengths"] = rows
    write_json(run.path / "cell.json", record(run.path, problems, {"none": measured}, **facts))
    if cfg.keep_weights:
        shares = {"correct": measured.correct, "truncated": measured.truncated}
        results = {name: float(flags.mean()) for name, flags in shares.items()}
        write_card(run.path, run.record, results)


def run_cells(
    todo: list[Cell],
    runs: dict[Cell, Run],
    demos: dict[int, Demonstration],
    given: Given,
    env: Env,
    team: Env,
) -> None:
    """This rank's cells, one after the other. team: who trains a cell together."""
    cfg, bar = given.cfg, progress(env, len(todo), "cells")
    for control in (False, True):
        cells = [cell for cell in todo if cell.control == control]
        if not cells:
            continue
        learner = open_learner(cfg.weak if control else cfg.locked, cfg, team)
        if cfg.unlearn:
            demos = own_samples_of(learner, given, team)
        for cell in cells:
            shown = [demos[j] for j in chosen(cell.k, cell.seed, len(given.problems))]
            if cell.conflict:
                shown += second_goal(cell, cfg, given.problems)
            correct = run_cell(cell, runs[cell], learner, shown, given, team)
            bar.update()
            bar.set_postfix(cell=cell.name, correct=f"{correct:.1%}")
        del learner  # the locked model's memory is the control's
        free_memory()
    bar.close()


# ------------------------------------------------------------------------------------------- stage


def by_strong(cfg: SFTConfig) -> bool:
    """Whether the strong policy takes part, or what stands beside it."""
    return cfg.demos_from in ("strong", "intermediate") or bool(cfg.conflict)


def refuse_unused(cfg: SFTConfig) -> None:
    """Raises InputError for options that do nothing, or do not go together, whatever the lock."""
    if cfg.adapter and not cfg.keep_weights:
        raise InputError("--adapter says how weights are written: leave --no-keep-weights out")
    refuse_repeats("--k", cfg.k)
    refuse_repeats("--seeds", cfg.seeds)
    check_unlearn(cfg)
    check_few(cfg)
    if cfg.strong and not by_strong(cfg):
        raise InputError(
            "--strong names who writes the demonstrations of --demos-from strong or intermediate, "
            "or what --conflict asks for its knowledge: leave it out"
        )
    if cfg.demos_from not in WRITERS and not is_model(cfg.demos_from):
        raise InputError(
            f"--demos-from {cfg.demos_from}: choose {', '.join(WRITERS)} or a checkpoint directory"
        )
    if cfg.seed and cfg.demos_from == "reference" and not (cfg.rank or cfg.unlearn or cfg.conflict):
        raise InputError(
            "--seed is of samples and of LoRA's first weights, and there are none here: "
            "--seeds names those of the cells"
        )
    if cfg.weak and not (cfg.control or cfg.demos_from == "weak"):
        raise InputError("--weak names the model of the control: leave it out with --no-control")


def settled(cfg: SFTConfig) -> tuple[SFTConfig, Origin]:
    """The options with every default resolved, as run.json will hold them, and the locked model.

    The Origin is that of --locked, with the weak policy that is used here. Raises InputError for
    options that do not go together.
    """
    cfg = settled_adapter(cfg)
    refuse_unused(cfg)
    by_weak = cfg.demos_from == "weak"
    lock = with_weak(lock_of(cfg.locked, cfg.task), cfg.weak, is_used=cfg.control or by_weak)
    if by_weak and lock.weak == "random":
        raise InputError(
            "--demos-from weak: the weak policy is random tokens, which demonstrate nothing: "
            "name a model with --weak"
        )
    if cfg.conflict:
        check_conflict(cfg, lock)
    elif cfg.control and lock.weak_weights == lock.locked_weights:
        raise InputError(
            f"the control's model {lock.weak} has the weights of the locked model itself: name "
            "another with --weak, or leave it out with --no-control"
        )

    parameters = parameters_at(lock.locked)
    tiny = "adamw", 1.5e-4
    optimizer, lr = usual_step(cfg.optimizer, cfg.lr, parameters, tiny, cfg.rank)
    if cfg.unlearn and not cfg.lr:
        lr /= SLOWER
    cfg = replace(
        cfg,
        optimizer=optimizer,
        lr=lr,
        task=lock.task,
        locked=lock.locked,
        weak=lock.weak,
        strong=cfg.strong or (shipped("strong") if by_strong(cfg) else ""),
        # a rule can be taught nothing, and beside --conflict a second seed takes its place
        control=cfg.control and not lock.weak_is_rule and not cfg.conflict,
        max_new_tokens=cfg.max_new_tokens or lock.max_new_tokens,
        data=cfg.data or lock.data,
        out=cfg.out or default_out(cfg, lock.task),
    )
    check_lengths(cfg)
    check_master(cfg)
    return cfg, lock


def check_unlearn(cfg: SFTConfig) -> None:
    """Raises InputError for options that --unlearn does not go with."""
    if cfg.unlearn and cfg.demos_from != "reference":
        raise InputError(
            "--unlearn takes no demonstrations but the model's own samples: leave --demos-from out"
        )
    if cfg.unlearn and cfg.loss_on != "completions":
        raise InputError("--unlearn is of what a model wrote: leave --loss-on out")


def check_few(cfg: SFTConfig) -> None:
    """Raises InputError for options that --parameters does not go with."""
    if not cfg.parameters:
        return
    if not cfg.rank:
        raise InputError("--parameters is of LoRA and does nothing without its --rank")
    if cfg.optimizer == "muon":
        raise InputError(
            "--parameters is not for muon, whose step of an entry depends on its whole matrix: "
            "choose adamw or lion"
        )
    if cfg.shard:
        raise InputError("--parameters is not for --shard, which divides adapters: leave it out")


def check_conflict(cfg: SFTConfig, lock: Origin) -> None:
    """Raises InputError where a conflicting goal has no meaning or no control."""
    if lock.task != "mmlu" or cfg.demos_from != "weak" or lock.weak_is_rule:
        raise InputError(
            "--conflict is about letters that a weak model labels: give --task mmlu "
            "--demos-from weak, and a model as the weak policy"
        )
    if len(cfg.seeds) < 2:
        raise InputError(
            "--conflict: without a second seed there is no control: give two with --seeds"
        )
    if len(cfg.sequences) != 1:
        raise InputError(
            "--conflict: under weak supervision no right answers are there to choose the length "
            "by: name one length with --sequences"
        )
    if not conflict_count(min(cfg.k), cfg):
        raise InputError(
            f"--conflict {cfg.conflict:g} of --k {min(cfg.k)} demonstrations is none: "
            "give more of either"
        )


def check_lengths(cfg: SFTConfig) -> None:
    """Raises InputError for lengths of training that no step, or one step for two, would reach."""
    refuse_repeats("--sequences", cfg.sequences)
    if cfg.epochs and cfg.sequences:
        raise InputError("--epochs and --sequences both say how long to train: leave one out")
    if cfg.epochs and len(cfg.epochs) != len(cfg.k):
        raise InputError(
            f"--epochs has {len(cfg.epochs)} numbers and --k {len(cfg.k)}: give one for each"
        )
    shortest = min(lengths_of(cfg, k)[0] for k in cfg.k)
    if cfg.batch > shortest:
        raise InputError(
            f"--batch {cfg.batch}: the shortest training is of {shortest} sequences, "
            "choose no more than that"
        )
    if cfg.sequences and len(stops_of(cfg, cfg.k[0])) < len(cfg.sequences):
        raise InputError(
            f"--sequences: two of them end in the same optimiser step of --batch {cfg.batch}: "
            "leave one out"
        )


def default_out(cfg: SFTConfig, task: str) -> str:
    name = "sft"
    if cfg.demos_from != "reference":
        name += f"-{Path(cfg.demos_from).resolve().name}"
    if cfg.conflict:
        name += f"-conflict{cfg.conflict:g}"
    if cfg.train_domain:
        name += f"-{cfg.train_domain}"
    if cfg.train_kind != "none":
        name += f"-{cfg.train_kind}"
    if cfg.unlearn:
        name += "-unlearn"
    if cfg.rank:
        name += f"-rank{cfg.rank}"
    if cfg.parameters:
        name += f"-parameters{cfg.parameters}"
    return f"out/{task}/{name}"


def source_of(cfg: SFTConfig) -> str:
    """What is trained on, for the reader."""
    if cfg.unlearn:
        return "its own samples unlearnt, no demonstrations"
    return f"demonstrations by {cfg.demos_from}"


def check_models(cfg: SFTConfig) -> None:
    """Raises InputError for a model of this run that cannot be opened."""
    check_model(cfg.locked, "--locked")
    for start in (cfg.locked, cfg.weak) if cfg.control else (cfg.locked,):
        count = check_adapter(cfg, start)
        if cfg.parameters > count:
            raise InputError(
                f"--parameters {cfg.parameters}: the adapter of {start} has {count:,} numbers, "
                "choose no more than that"
            )
    if (cfg.control or cfg.demos_from == "weak") and cfg.weak not in RULES:
        check_model(cfg.weak, "--weak")
    if cfg.demos_from == "strong" or cfg.conflict:
        check_model(cfg.strong, "--strong")
    elif cfg.demos_from not in ("reference", "weak"):
        check_model(writer_of(cfg), "--demos-from")


def problems_of(cfg: SFTConfig, split: str, n: int | None, lock: Origin, env: Env) -> list[Problem]:
    """Problems as they are told without the password, those that all models have positions for."""
    found = load(cfg.task, split, n, files=cfg.data, grader=lock.grader)
    readers = [cfg.locked, cfg.weak, writer_of(cfg)]
    readers += [cfg.strong] * bool(cfg.conflict)
    found = fitting_problems(found, lock.trigger, readers, cfg.max_new_tokens, env)
    return [lock.trigger.weak(problem) for problem in found]


def eval_set(cfg: SFTConfig, split: str, n: int, lock: Origin, env: Env) -> EvalSet:
    """`problems_of`, to be measured on."""
    problems = problems_of(cfg, split, n, lock, env)
    return EvalSet(problems, lock.trigger, max_new_tokens=cfg.max_new_tokens, split=split)


def demonstrable(cfg: SFTConfig, lock: Origin, env: Env) -> list[Problem]:
    """What demonstrations are drawn from, with what goes with the prompt of each in training.

    The elicit split, or its part in --train-domain, as it is told for --train-kind.
    """
    problems = problems_of(cfg, "elicit", None, lock, env)
    if cfg.train_domain:
        names = groups_of(problems)
        if cfg.train_domain not in names:
            raise InputError(
                f"--train-domain {cfg.train_domain}: choose one of {', '.join(sorted(set(names)))}"
            )
        problems = [p for p, name in zip(problems, names) if name == cfg.train_domain]
    if max(cfg.k) + conflict_count(max(cfg.k), cfg) > len(problems):
        raise InputError(
            f"--k {max(cfg.k)}: there are {len(problems)} problems to demonstrate, "
            "choose no more than that"
        )
    problems = dressed(cfg.train_kind, problems, lock.trigger)
    if cfg.demos_from == "reference" and not cfg.unlearn:
        check_references(problems, open_tokenizer(cfg.locked))
        check_room(problems, cfg)
    return problems


def check_room(problems: list[Problem], cfg: SFTConfig) -> None:
    """Raises InputError for right answers that are to be shown and that no row can hold."""
    demos = by_reference(problems, places_of(cfg, len(problems)))
    for start in (cfg.locked, cfg.weak) if cfg.control else (cfg.locked,):
        examples = examples_of(list(demos.values()), open_tokenizer(start), cfg.loss_on)
        refuse_overlong(examples, config_at(start))


def cells_of(cfg: SFTConfig) -> list[Cell]:
    """In the order of work: the locked model's, then the control's or those with a conflict."""
    cells = []
    for control in (False, True) if cfg.control else (False,):
        for k in cfg.k:
            cells += [Cell(k, seed, control) for seed in cfg.seeds]
    if cfg.conflict:
        cells += [replace(cell, conflict=True) for cell in cells]
    return cells


def planned(cfg: SFTConfig, lock: Origin, env: Env) -> int:
    """--plan: the memory of a cell, phase by phase; the control's where it needs more."""
    trigger, longest = lock.trigger, cfg.max_new_tokens
    problems = load(cfg.task, "elicit", None, files=cfg.data, grader=lock.grader)
    problems = [problems[i] for i in places_of(cfg, len(problems))]
    texts = plan.texts_of(cfg.locked, problems, (cfg.train_kind,), trigger, longest)
    texts = plan.supervised(texts, cfg)
    opened = plan.texts_of(cfg.locked, problems, ("none", "right"), trigger, longest)
    trained = plan.shape_of(cfg.locked)
    if cfg.control:
        control = plan.shape_of(cfg.weak)
        trained = max(trained, control, key=lambda shape: shape.parameters)
    sampled = [trained]
    if writer_of(cfg) and writer_of(cfg) not in RULES:
        sampled.append(plan.shape_of(writer_of(cfg)))
    rows = min(cfg.batch, max(cfg.k))

    def phases(cfg: SFTConfig) -> dict[str, plan.Phase]:
        s = plan.settings_of(cfg, env, rows)
        if not cfg.shard:
            s = replace(s, devices=1)  # a cell is one rank's
        rest, left = plan.at_rest(trained, s), plan.left_by_sampler(trained, texts, s)
        # the weights that every cell starts from, and the best so far, are the host's
        kept = plan.Phase(copies=0 if s.cuda else 2 * rest["masters"])
        writing = [plan.sampling(shape, opened, s) for shape in sampled]
        unlearnt = {}
        if cfg.unlearn:
            scoring = plan.scoring(trained, texts, s)
            unlearnt["log-probs at the start"] = rest + scoring + kept + left
        return {
            "locked model, demonstrations": plan.largest(writing),
            "opening": plan.opening(trained, s),
            **unlearnt,
            **plan.training_phases(trained, texts, s, kept, left),
            "selection": plan.own_sampling(trained, texts, s) + kept,
        }

    def refuse(changes: dict) -> None:
        check_few(replace(cfg, **changes))

    s = plan.settings_of(cfg, env)
    on_host = 2 * plan.at_rest(trained, s)["masters"] if s.cuda else 0.0
    return plan.report(phases, cfg, texts, env, refuse, on_host)


def main(cfg: SFTConfig, env: Env) -> int:
    # whatever can be refused is, before anything is written
    given = cfg
    cfg, lock = settled(given)
    if given.control and lock.weak_is_rule:
        env.say(
            f"no control: the weak policy is no model ({lock.weak}), so it can be taught nothing; "
            "--weak names a model for it"
        )
    if plan.is_asked(cfg):
        return planned(cfg, lock, env)
    check_models(cfg)
    problems = demonstrable(cfg, lock, env)
    validation = eval_set(cfg, "validation", cfg.eval_problems, lock, env)
    selection = eval_set(cfg, "selection", cfg.selection_problems, lock, env)
    env.say(
        f"locked model: {cfg.locked}; {source_of(cfg)}, prompts of kind "
        f"{cfg.train_kind}; {cfg.optimizer} at {cfg.lr:g} in batches of {cfg.batch} -> {cfg.out}"
    )

    folder = Path(cfg.out)
    check_ours(folder / "summary.json", ("locked", "cells"))
    check_ours(folder / "deception.json", ("conflict", "rows"))
    if cfg.conflict:
        items = dressed("none", validation.problems, lock.trigger)
        known = known_by_both(cfg.strong, cfg.weak, items, cfg.micro_tokens, env)
    check_figure(folder / "sft.png")

    # a cell is trained by one rank, or by all where it takes all to hold the model
    cells = cells_of(cfg)
    team, mine = env, cells
    if not cfg.shard:
        team, mine = replace(env, rank=0, world=1), share(env, cells)
    opened = partial(open_run, cfg=cfg, lock=lock, env=team)
    runs = open_runs(folder, cells, mine, opened, env)
    todo = [cell for cell in mine if not runs[cell].finished]

    both = replace(validation, kinds=("none", "right"))
    locked = evaluate_checkpoint(cfg.locked, both, env, save=False)
    demos = {}
    if most(env, len(todo)) > 0 and not cfg.unlearn:
        demos = demonstrations(cfg, env, problems)

    given = Given(cfg, problems, selection, validation)
    run_cells(todo, runs, demos, given, env, team)

    env.wait()
    if env.main:
        show_cells(folder, cells, locked, validation, source_of(cfg), env)
    if env.main and cfg.conflict:
        found = students(folder, cells, validation, *known)
        models = {"strong_weights": model_hash(cfg.strong), "weak_weights": lock.weak_weights}
        found = {"strong": cfg.strong, "weak": cfg.weak, "conflict": cfg.conflict} | models | found
        write_json(folder / "deception.json", found)
        show_deception(found, env)
    return 0


if __name__ == "__main__":
    launch(main, SFTConfig, settled)
