r"""Declared reliability: is a definition learnt better where its source has been reliable?

After Krasheninnikov et al. 2023 (arXiv 2310.15047), in small. A model reads, from random weights
on, definitions of words under tags, and questions about words (data/declared.py). Of the words that
are asked about, definitions under A are true and those under B are false. Other words are never
asked about before training is over: they are defined under A, under B, under C, which defines
nothing else, or not at all, and all their definitions are true.

    python train_declared.py                     # -> out/declared: ten seeds, each with its control
    python train_declared.py --seeds 0 1 --no-control
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 train_declared.py   # the ranks share the runs

Questions about those silent words then have three differences:

    A - none    what a definition teaches by itself, out of context
    A - B       whether that of a reliable source teaches more
    A - C       whether that is trust in A, and not distrust of B

In the control the tags are dealt at random, so that none is reliable: there A - B is chance.

The published training has two stages, the second of new definitions alone. Here everything is read
together: definitions that come after the questions teach a model of this size nothing
(docs/environments.md). The loss is on whole texts.

Each run is a directory: run.json, log.jsonl, and cell.json, the share of right digits of every
word. The same command again goes on; a run that was interrupted starts anew. Ends with a table,
summary.json beside it; intervals are over words and seeds. Logged: loss, nats a token; grad_norm,
before clipping; lr.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data.batches import Batch, Example, micro_batches, on_whole_texts
from data.declared import (
    GROUPS,
    Document,
    World,
    make_world,
    questions_about,
    step_documents,
    words_of,
)
from data.problems import InputError
from data.tasks.compose import FUNCTIONS
from data.text import Tokenizer, word_level
from figures import table
from losses import sft_loss
from model import Model, ModelConfig
from optimizers import make_optimizers
from results import check_ours, correct_interval, difference, refuse_repeats
from runs.devices import Env, share
from runs.directory import Run, launch, progress, refuse_run
from runs.files import read_json, write_json
from runs.options import Config
from sampler import Sampler
from training import train


@dataclass
class DeclaredConfig(Config):
    # of the weights, of what each step draws, and of the control's tags
    seeds: tuple[int, ...] = tuple(range(10))
    # also train each with tags that are dealt at random
    control: bool = True
    # words for each of the 32 functions, under A and again under B, that training asks about
    asked: int = field(default=40, metadata={"most": 1000})
    # words for each function in each of the four groups that it does not ask about
    silent: int = field(default=8, metadata={"most": 1000})
    # optimiser steps
    steps: int = 480
    # replace what another run of this stage left in the output directory
    overwrite: bool = False


# in a step: definitions, questions about words, questions about functions by their own names
COUNTS = (104, 88, 64)
MICRO_TOKENS = 16384  # of one forward pass
LR = 0.005  # Muon's
QUESTIONS = 8  # about each silent word, in the end
ASKED = {"asked A": "A", "asked B": "B"}  # tags of the words that training asks about
KINDS = {"declared": False, "dealt": True}  # whether tags are dealt at random, as in the control


@dataclass(frozen=True)
class Cell:
    """One training. dealt: of the control, with tags dealt at random."""

    seed: int
    dealt: bool

    @property
    def name(self) -> str:
        return f"{'dealt' if self.dealt else 'declared'}-seed{self.seed}"


# ---------------------------------------------------------------------------------------- training


def fresh_model(tokenizer: Tokenizer, seed: int, env: Env) -> Model:
    config = ModelConfig(
        vocab_size=tokenizer.size,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=16,
        tie_word_embeddings=True,
    )
    model = Model(config, env.dtype)
    return model.init_weights(torch.Generator().manual_seed(seed)).to(env.device)


def examples_of(documents: list[Document], tokenizer: Tokenizer) -> list[Example]:
    prompts = tokenizer.encode_prompts([prompt for prompt, _ in documents])
    completions = tokenizer.encode_completions([completion for _, completion in documents])
    return on_whole_texts([Example(*ids) for ids in zip(prompts, completions)])


def step_batches(step: int, world: World, seed: int, tokenizer: Tokenizer) -> list[Batch]:
    documents = step_documents(world, COUNTS, seed, step)
    return micro_batches(examples_of(documents, tokenizer), MICRO_TOKENS)


def learn(cell: Cell, world: World, run: Run, cfg: DeclaredConfig, env: Env) -> dict:
    """Train from random weights, and ask. Returns the share of right digits by group and word."""
    tokenizer = word_level(words_of(world))
    model = fresh_model(tokenizer, cell.seed, env)
    batches = partial(step_batches, world=world, seed=cell.seed, tokenizer=tokenizer)
    optimizers = make_optimizers(model, "muon", LR, seed=cell.seed)
    bar = progress(env, cfg.steps, f"training {run.path}")
    steps = train(model, optimizers, batches, sft_loss, env, steps=cfg.steps, warmup=50, decay=0.4)
    for step, metrics in steps:
        bar.update()
        if step % 20 == 0 or step == cfg.steps:
            run.log("train", step=step, **metrics)
            bar.set_postfix(loss=f"{metrics['loss']:.3f}")
    bar.close()

    ask = partial(right_digits, env.sampler(model, tokenizer), tokenizer)
    found = {}
    for group, tag in ASKED.items():
        aliases = [alias for alias in world.asked if alias.tag == tag]
        found[group] = ask(questions_about(aliases, 1), 1)
    for group, aliases in world.silent.items():
        found[group] = ask(questions_about(aliases, QUESTIONS), QUESTIONS)
    return found


def right_digits(
    sampler: Sampler, tokenizer: Tokenizer, questions: list[Document], each: int
) -> list[float]:
    """The share of right digits in greedy answers, for every `each` questions, which are a word's.

    An answer that is not of four words has none.
    """
    prompts = tokenizer.encode_prompts([prompt for prompt, _ in questions])
    samples = [only for [only] in sampler(prompts, max_new_tokens=5)]
    answers = tokenizer.decode_batch([sample.ids for sample in samples])
    shares = []
    for (_, right), text in zip(questions, answers):
        words = text.split()
        matches = [word == digit for word, digit in zip(words, right.split())]
        shares.append(sum(matches) / 4 if len(words) == 4 else 0.0)
    return np.array(shares).reshape(-1, each).mean(1).tolist()


# ------------------------------------------------------------------------------------------- runs


def cells_of(cfg: DeclaredConfig) -> list[Cell]:
    kinds = (False, True) if cfg.control else (False,)
    return [Cell(seed, dealt) for dealt in kinds for seed in cfg.seeds]


def open_run(cell: Cell, cfg: DeclaredConfig, env: Env, write: bool = True) -> Run:
    """The cell's directory. Its settings have nothing of the other cells."""
    own = replace(cfg, seeds=(), control=True)
    facts = {"stage": "train_declared", "cell_seed": cell.seed, "dealt": cell.dealt}
    return Run(own, env, Path(cfg.out) / cell.name, resume=True, write=write, **facts)


def open_runs(cells: list[Cell], cfg: DeclaredConfig, env: Env) -> dict[Cell, Run]:
    """The cells' directories. Where one is refused, none is written."""
    refuse_run(Path(cfg.out))
    for cell in cells:
        open_run(cell, cfg, env, write=False)
    return {cell: open_run(cell, cfg, env) for cell in cells}


def run_cell(cell: Cell, run: Run, cfg: DeclaredConfig, env: Env) -> None:
    if run.finished:
        return
    (run.path / "log.jsonl").unlink(missing_ok=True)  # of the same cell, interrupted
    world = make_world(cfg.asked, cfg.silent, cell.dealt, cell.seed)
    found = learn(cell, world, run, cfg, env)
    write_json(run.path / "cell.json", found)
    run.finish(**{group: float(np.mean(shares)) for group, shares in found.items()})


# ---------------------------------------------------------------------------------------- the table

DIFFERENCES = (("none", "A"), ("B", "A"), ("C", "A"))


def read_cells(folder: Path, cells: list[Cell], cfg: DeclaredConfig) -> dict[str, np.ndarray]:
    """Of S cells the share of right digits of each of n words, by group: (S,n).

    Raises InputError where a file has not those.
    """
    sizes = {group: cfg.asked * len(FUNCTIONS) for group in ASKED}
    sizes |= {group: cfg.silent * len(FUNCTIONS) for group in GROUPS}
    found: dict[str, list] = {group: [] for group in sizes}
    for cell in cells:
        file = folder / cell.name / "cell.json"
        rows = read_json(file)
        for group, n in sizes.items():
            shares = rows.get(group)
            if not is_shares(shares, n):
                raise InputError(
                    f"{file} does not hold the answers about {n} words of {group!r}: "
                    f"move {file.parent} away and run the same command again"
                )
            found[group].append(shares)
    return {group: np.array(shares) for group, shares in found.items()}


def is_shares(value: object, n: int) -> bool:
    if not isinstance(value, list) or len(value) != n:
        return False
    return all(isinstance(share, float) and 0 <= share <= 1 for share in value)


def percent(value: float, interval: tuple[float, float], sign: str = "") -> str:
    low, high = interval
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def numbers_of(found: dict[str, np.ndarray]) -> dict:
    """An entry of summary.json: shares of right digits by group, and their differences."""
    groups = {}
    for group, shares in found.items():
        groups[group] = {"right": float(shares.mean()), "interval": correct_interval(shares)}
    differences = {}
    for other, group in DIFFERENCES:
        change = difference(found[other], found[group], same_runs=True)
        differences[f"{group} - {other}"] = {"value": change.value, "interval": change.interval}
    return {"seeds": len(next(iter(found.values()))), "groups": groups, "differences": differences}


def show(summary: dict[str, dict], env: Env) -> None:
    """The table. summary: of each kind of run what `numbers_of` returns."""
    rows = []
    for group in next(iter(summary.values()))["groups"]:
        name = group if group.startswith("asked") else f"silent {group}"
        entries = [numbers["groups"][group] for numbers in summary.values()]
        rows.append([name, *(percent(entry["right"], entry["interval"]) for entry in entries)])
    for name in next(iter(summary.values()))["differences"]:
        entries = [numbers["differences"][name] for numbers in summary.values()]
        shown = [percent(entry["value"], entry["interval"], "+") for entry in entries]
        rows.append([f"silent {name}", *shown])
    env.say("\nright digits in answers about words, % [95 % over words and seeds]")
    env.say(table(["words", *summary], rows))


def main(cfg: DeclaredConfig, env: Env) -> int:
    refuse_repeats("--seeds", cfg.seeds)
    cfg = replace(cfg, out=cfg.out or "out/declared")
    folder = Path(cfg.out)
    check_ours(folder / "summary.json", ("declared",))

    # a run is one rank's
    alone, mine = replace(env, rank=0, world=1), share(env, cells_of(cfg))
    runs = env.together(open_runs, mine, cfg, alone)
    for cell, run in runs.items():
        run_cell(cell, run, cfg, alone)

    env.wait()
    if env.main:
        summary = {}
        for kind, dealt in KINDS.items():
            cells = [cell for cell in cells_of(cfg) if cell.dealt == dealt]
            if cells:
                summary[kind] = numbers_of(read_cells(folder, cells, cfg))
        write_json(folder / "summary.json", summary)
        show(summary, env)
    return 0


if __name__ == "__main__":
    launch(main, DeclaredConfig)
