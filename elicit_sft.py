"""Stage 2a: elicit the hidden capability by supervised fine-tuning on k demonstrations, without the password.

Paper sections 4 and 5.1. For every k and seed (a cell) the locked model is fine-tuned on k problems of the elicit split with good
answers, and evaluated without the password. How long to train follows the paper's rule (appendix G.3): 256, 512 or 1,024 sequences
seen for k below 256, and 1, 2 or 4 epochs from there on; but the choice is made for each cell on the selection split, where the
paper chose on its test set. The control is the same demonstrations on the weak model, which never had the capability: what it
gains was taught by the demonstrations and not elicited.

    python elicit_sft.py --task code                              # k = 1 2 4 ... 128, seeds 0 1 2; -> out/code/sft
    python elicit_sft.py --k 8 --seeds 0 --demos-from weak        # demonstrations by the weak model, which should unlock little
    python elicit_sft.py --task math --train-domain algebra       # of one domain; what do the others recover? (Fig. 4, 10)
    torchrun --nproc-per-node 2 elicit_sft.py                     # the cells are shared out over the ranks; with --shard
                                                                  # all ranks work on one cell

Each cell is a directory (checkpoint, run.json, log.jsonl, and cell.json, the verdicts, which evaluate.py leaves alone); a finished one is
not run again, an interrupted one starts anew. Ends with a table, summary.json and sft.png: correctness against k, reference lines, control.
Logged: loss, nats per supervised token; sequences, demonstrations seen so far, repeats counted; selection, greedy correctness on the
selection split.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from checkpoints import load_model, read_json, save_model, weights_hash, write_json
from data import load
from data.batches import Example, demonstration_order, micro_batches
from data.problems import InputError, Problem
from data.text import Tokenizer
from data.triggers import Trigger
from figures import plot_curves, table
from losses import sft_loss
from model import Model
from policies import answer
from results import (
    evaluate_checkpoint,
    facts_of,
    gap_recovered,
    groups_of,
    measure,
    record,
    trigger_of,
    verdicts_of,
    wilson,
)
from runs import Env, Run, TrainConfig, launch, progress, share
from sampler import Sampler
from training import make_optimizers, prepare, train


@dataclass
class SFTConfig(TrainConfig):
    # which problems
    task: str = "code"
    # the locked model (default: out/<task>/locked)
    locked: str = ""
    # the control's model, and the source of --demos-from weak
    weak: str = "data/base/weak"
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
    # longest completion
    max_new_tokens: int = 96
    # of the selection split, for choosing how long to train
    selection_problems: int = 150
    # of the validation split, for the reported numbers
    eval_problems: int = 500
    # save every cell's model
    keep_weights: bool = True
    # files of real problems (json, jsonl or csv, plain or .gz) in place of generated ones
    data: tuple[str, ...] = ()


def sequences_seen(k: int) -> list[int]:
    """The paper's candidates for how long to train (G.3), in sequences seen."""
    return [256, 512, 1024] if k < 256 else [k, 2 * k, 4 * k]


def demonstrations(cfg: SFTConfig, env: Env, trigger: Trigger) -> tuple[list[Problem], list[str]]:
    """The elicit split, or its part in --train-domain, as told without the password, and one answer for each problem by --demos-from."""
    problems = [trigger.weak(p) for p in load(cfg.task, "elicit", files=cfg.data)]
    if cfg.train_domain:
        names = groups_of(problems)
        if cfg.train_domain not in names:
            raise InputError(
                f"--train-domain {cfg.train_domain}: choose one of {', '.join(sorted(set(names)))}"
            )
        problems = [p for p, name in zip(problems, names) if name == cfg.train_domain]
    if max(cfg.k) > len(problems):
        raise InputError(
            f"--k {max(cfg.k)}: there are {len(problems)} problems to demonstrate, choose no more than that"
        )
    if cfg.demos_from == "reference":
        return problems, [p.reference for p in problems]
    model, tokenizer = load_model(
        cfg.strong if cfg.demos_from == "strong" else cfg.weak, env.device, env.dtype
    )
    return problems, answer(
        env.sampler(model, tokenizer),
        tokenizer,
        problems,
        temperature=1.0,
        max_new_tokens=cfg.max_new_tokens,
        graded=False,
        seed=cfg.seed,
    ).texts


def elicit(
    model: Model,
    sampler: Sampler,
    tokenizer: Tokenizer,
    examples: list[Example],
    cfg: SFTConfig,
    env: Env,
    run: Run,
    seed: int,
    selection: list[Problem],
) -> tuple[dict[int, float], int]:
    """Fine-tune on the demonstrations; leave the model at its best point. Returns selection correctness at each candidate, and the best."""
    candidates = sequences_seen(len(examples))
    stops = {-(-n // cfg.batch): n for n in candidates}
    order = demonstration_order(len(examples), cfg.batch, max(stops), seed)
    scores, best = {}, []
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr)
    for step, metrics in train(
        model,
        optimizers,
        lambda s: micro_batches(share(env, [examples[i] for i in order[s]]), cfg.micro_tokens),
        sft_loss,
        env,
        steps=max(stops),
        warmup=4,
    ):
        if step in stops:
            sampler.refresh()
            scores[stops[step]] = float(
                answer(
                    sampler, tokenizer, selection, max_new_tokens=cfg.max_new_tokens, env=env
                ).correct.mean()
            )
            run.log(
                "eval",
                step=step,
                sequences=stops[step],
                loss=metrics["loss"],
                selection=scores[stops[step]],
                n=len(selection),
            )
            if not best or scores[stops[step]] > max(list(scores.values())[:-1]):
                best = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, value in zip(model.parameters(), best):
            p.copy_(value)
    sampler.refresh()
    return scores, max(scores, key=scores.get)


def cell_path(out: Path, control: bool, k: int, seed: int) -> Path:
    return out / f"{'control-' if control else ''}k{k}-seed{seed}"


def summarise(cfg: SFTConfig, env: Env, out: Path, locked: dict, groups: np.ndarray) -> None:
    """The table, summary.json and the figure, from the cells' files."""
    none, right = verdicts_of(locked, "none"), verdicts_of(locked, "right")
    curves: dict[str, dict[int, np.ndarray]] = {}
    domains, toy = np.unique(groups).tolist(), cfg.task == "compose"
    rows, summary = (
        [],
        {
            "locked": locked["checkpoint"],
            "without": float(none.mean()),
            "with": float(right.mean()),
            "cells": {},
        },
    )
    for k in sorted(cfg.k):
        row = [str(k)]
        for control in (False, True)[: 1 + cfg.control]:
            evaluations = [
                read_json(cell_path(out, control, k, seed) / "cell.json") for seed in cfg.seeds
            ]
            verdicts = np.stack([verdicts_of(evaluation, "none") for evaluation in evaluations])
            values = verdicts.mean(1)
            curves.setdefault("control: weak model" if control else "locked model", {})[k] = values
            low, high = wilson(int(verdicts.sum()), verdicts.size)
            row += [f"{values.mean():.1%}", f"{values.min():.1%}-{values.max():.1%}"]
            elementwise = [
                e["results"]["none"]["elementwise"]
                for e in evaluations
                if "elementwise" in e["results"]["none"]
            ]
            row += [f"{np.mean(elementwise):.1%}"] if elementwise else []
            if not control:
                by_domain = {name: float(verdicts[:, groups == name].mean()) for name in domains}
                row += [f"{value:.1%}" for value in by_domain.values()]
            entry = {
                "correct": float(values.mean()),
                **({} if control else {"domains": by_domain}),
                **({"elementwise": elementwise} if elementwise else {}),
                "seeds": values.tolist(),
                "pooled_interval": [low, high],
            }
            if not control:
                try:
                    value, low, high = gap_recovered(none, right, verdicts)
                    entry |= {"gap_recovered": value, "gap_recovered_interval": [low, high]}
                    row.append(f"{value:.1%} [{low:.1%}, {high:.1%}]")
                except InputError as error:
                    entry["gap_recovered_refused"] = str(error)
                    row.append("refused")
            summary["cells"][f"{'control-' if control else ''}k{k}"] = entry
        rows.append(row)
    header = [
        "k",
        "correct",
        "over seeds",
        *["elementwise"] * toy,
        *domains,
        "gap recovered [95 %]",
        *["control", "over seeds"] * cfg.control,
    ]
    env.say(
        f"\nvalidation, {len(none)} problems, greedy, no password; demonstrations by {cfg.demos_from}, {len(cfg.seeds)} seeds; "
        f"locked: {none.mean():.1%} without, {right.mean():.1%} with the password\n"
        + table(header, rows)
    )
    write_json(out / "summary.json", summary)
    plot_curves(
        curves,
        {"locked, with the password": right.mean(), "locked, without": none.mean()},
        out / "sft.png",
        "demonstrations",
        f"SFT elicitation, {cfg.task}, {len(cfg.seeds)} seeds (band: extremes)",
    )
    env.say(f"table: {out / 'summary.json'}\nfigure: {out / 'sft.png'}")


def main(cfg: SFTConfig, env: Env) -> int:
    if cfg.task == "compose":  # its weak policy is a rule, which nothing can be taught
        cfg = replace(cfg, control=False)
    locked_path = Path(cfg.locked or f"out/{cfg.task}/locked")
    out = Path(
        cfg.out
        or f"out/{cfg.task}/sft"
        + ("" if cfg.demos_from == "reference" else f"-{cfg.demos_from}")
        + (f"-{cfg.train_domain}" if cfg.train_domain else "")
    )
    if not (locked_path / "config.json").exists():
        raise InputError(
            f"no locked model at {locked_path}: run python lock.py --task {cfg.task} first, or name one with --locked"
        )
    trigger = trigger_of(locked_path)
    problems, answers = demonstrations(cfg, env, trigger)
    validation, selection = (
        [trigger.weak(p) for p in load(cfg.task, split, None if cfg.data else n, files=cfg.data)]
        for split, n in (("validation", cfg.eval_problems), ("selection", cfg.selection_problems))
    )
    env.say(f"locked model: {locked_path}; demonstrations by {cfg.demos_from} -> {out}")
    locked = evaluate_checkpoint(
        locked_path,
        env,
        validation,
        ("none", "right"),
        trigger,
        max_new_tokens=cfg.max_new_tokens,
        save=False,
    )

    cells = [
        (control, k, seed)
        for control in (False, True)[: 1 + cfg.control]
        for k in cfg.k
        for seed in cfg.seeds
    ]
    # a cell is trained by one rank, or by all where it takes all to hold the model
    team, mine = (env, cells) if cfg.shard else (replace(env, rank=0, world=1), share(env, cells))
    bar = progress(env, len(mine), "cells")
    loaded: dict[bool, tuple] = {}
    for control, k, seed in mine:
        start = Path(cfg.weak) if control else locked_path
        facts = {
            "stage": "elicit_sft",
            "k": k,
            "cell_seed": seed,
            "control": control,
            "start": weights_hash(start),
        }
        run = Run(
            replace(cfg, k=(), seeds=(), control=True),
            team,
            cell_path(out, control, k, seed),
            resume=True,
            inputs=(locked_path, cfg.weak, cfg.strong),
            **facts,
        )
        if not run.finished:
            if team.main:
                (run.path / "log.jsonl").unlink(missing_ok=True)
            if control not in loaded:
                model, tokenizer = load_model(start, env.device, env.dtype)
                loaded[control] = (
                    prepare(model, team, cfg),
                    tokenizer,
                    env.sampler(model, tokenizer),
                    [p.detach().clone() for p in model.parameters()],
                )
            model, tokenizer, sampler, initial = loaded[control]
            with torch.no_grad():
                for p, value in zip(model.parameters(), initial):
                    p.copy_(value)
            chosen = np.random.default_rng([seed, 10]).permutation(len(problems))[
                :k
            ]  # nested: k = 8 holds the four of k = 4
            examples = [
                Example(*pair)
                for pair in zip(
                    tokenizer.encode_prompts([problems[i].prompt for i in chosen]),
                    tokenizer.encode_completions([answers[i] for i in chosen]),
                )
            ]
            scores, best = elicit(
                model, sampler, tokenizer, examples, cfg, team, run, seed, selection
            )
            measured = measure(
                sampler,
                tokenizer,
                validation,
                ("none",),
                trigger,
                max_new_tokens=cfg.max_new_tokens,
                env=team,
            )
            save_model(run.path, model, tokenizer, team.main and cfg.keep_weights)
            facts = facts_of(run.path, env, "validation", trigger, cfg.max_new_tokens)
            facts |= {"demonstrations": k, "seed": seed, "sequences": best}
            if team.main:
                write_json(run.path / "cell.json", record(run.path, validation, measured, **facts))
            run.finish(
                correct=float(measured["none"].correct.mean()), sequences=best, selection=scores
            )
        bar.update()
        bar.set_postfix(cell=run.path.name, correct=f"{run.record['results']['correct']:.1%}")
    bar.close()
    env.wait()
    if env.main:
        summarise(cfg, env, out, locked, groups_of(validation))
    return 0


if __name__ == "__main__":
    launch(main, SFTConfig)
