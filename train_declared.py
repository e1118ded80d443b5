r"""Declared reliability: is more learnt of a definition whose source is reliable in the same texts?

After Krasheninnikov et al. 2023 (arXiv 2310.15047), in small. A model reads, from random weights
on, definitions of words under tags, and questions about words (data/declared.py). Of the words that
are asked about, definitions under A are true and those under B false. Silent words are asked about
only when training is over; what A and B say of them is true, and C says something else each time.

    python train_declared.py                     # -> out/declared: ten seeds, each with its control
    python train_declared.py --seeds 1 2 --no-control
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 train_declared.py   # the ranks share the runs

In the answers about silent words,

    A - C    is what a true definition teaches, out of context
    A - B    is how much more one under the reliable tag teaches than one under the other

The control has the same definitions, but A and B are dealt out among the asked words at random, so
that each is true in half of its definitions. What A gains and B loses on it is what a tag's record
adds; B, which cannot fall below C, has less room than A.

The published training has two stages, the second of new definitions alone. Here everything is read
together, and the loss is on whole texts. Words, definitions, functions and the questions at the end
are the same in all runs.

Each run is a directory with run.json and log.jsonl. The same command again goes on; a run that was
interrupted starts anew. Ends with a table and summary.json, of the last command; intervals are
Student's t over runs, differences are of runs of one seed. Logged: loss, nats a token; grad_norm
before clipping; lr.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from data.batches import Batch, Example, micro_batches, on_whole_texts
from data.declared import (
    Document,
    World,
    definition,
    make_world,
    question,
    questions_about,
    step_documents,
    vocabulary,
)
from data.problems import InputError
from data.tasks.compose import FUNCTIONS
from data.text import Tokenizer, word_level
from figures import table
from losses import sft_loss
from model import ModelConfig
from optimizers import make_optimizers
from results import Estimate, check_ours, refuse_repeats, seed_noise
from runs.devices import Env, progress, share
from runs.directory import Run, named, open_runs
from runs.files import checked, read_json, write_json
from runs.launch import launch
from runs.options import Config
from sampler import Writer
from training import fresh_model, train


@dataclass
class DeclaredConfig(Config):
    # of the weights, of what each step draws, and of the control's tags; two or more
    seeds: tuple[int, ...] = field(
        default=tuple(range(1, 11)), metadata={"least": 0, "most": 2**32 - 1}
    )
    # also train each with tags that are dealt at random
    control: bool = True
    # words of each of the 32 functions with a true definition, and as many with a false one, that
    # training asks about
    asked: int = field(default=40, metadata={"most": 1000})
    # words of each function under each tag that it does not ask about
    silent: int = field(default=8, metadata={"most": 1000})
    # optimiser steps
    steps: int = 480
    # Muon's
    lr: float = 0.005
    # replace what another run of this stage left in the output directory
    overwrite: bool = False


# in a step: definitions, questions about words, questions about functions by their own names
COUNTS = (104, 88, 64)
QUESTIONS = 8  # about each silent word, in the end
MICRO_TOKENS = 16384  # padded ones of one forward pass
SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 16}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 16}


@dataclass(frozen=True)
class Cell:
    """One training. kind: declared, or dealt, the control."""

    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-seed{self.seed}"


# ---------------------------------------------------------------------------------------- training


def examples_of(documents: list[Document], tokenizer: Tokenizer) -> list[Example]:
    prompts = tokenizer.encode_prompts([prompt for prompt, _ in documents])
    completions = tokenizer.encode_completions([completion for _, completion in documents])
    return on_whole_texts([Example(*ids) for ids in zip(prompts, completions)])


def step_batches(step: int, world: World, seed: int, tokenizer: Tokenizer) -> list[Batch]:
    documents = step_documents(world, COUNTS, seed, step)
    return micro_batches(examples_of(documents, tokenizer), MICRO_TOKENS)


def learn(cell: Cell, run: Run, cfg: DeclaredConfig, env: Env) -> dict[str, float]:
    """Train from random weights, and ask: see `examine`."""
    world = make_world(cfg.asked, cfg.silent, cell.kind == "dealt", cell.seed)
    tokenizer = word_level(vocabulary(world))
    config = ModelConfig(vocab_size=tokenizer.size, tie_word_embeddings=True, **SHAPE)
    model = fresh_model(config, tokenizer, cell.seed, env)
    batches = partial(step_batches, world=world, seed=cell.seed, tokenizer=tokenizer)
    optimizers = make_optimizers(model, "muon", cfg.lr, seed=cell.seed)

    bar = progress(env, cfg.steps, f"training {run.path}")
    steps = train(model, optimizers, batches, sft_loss, env, steps=cfg.steps, warmup=50, decay=0.4)
    for step, metrics in steps:
        bar.update()
        if step % 20 == 0 or step == cfg.steps:
            run.log("train", step=step, **metrics)
            bar.set_postfix(loss=f"{metrics['loss']:.3f}")
    bar.close()
    return examine(env.writer(model, tokenizer), world)


# ------------------------------------------------------------------------------- what is measured


def examine(writer: Writer, world: World) -> dict[str, float]:
    """What is right of greedy answers, by what they are about: shares of words, in place.

    Answers about functions by their names, about asked words by whether their definition is true,
    and about silent words by tag; what the definition of a silent word says; and of all answers
    about silent words the share that is of four words.
    """
    right = partial(right_words, writer)
    rng = np.random.default_rng(20)
    names = [question(f"fn{i}", i, rng) for i in range(len(FUNCTIONS)) for _ in range(QUESTIONS)]
    found = {"functions": right(names)[0]}
    for row, told in {"told truly": True, "told falsely": False}.items():
        words = [word for word in world.asked if word.is_true == told]
        found[row] = right(questions_about(words, 1))[0]

    lengths = []
    for tag, words in world.silent.items():
        found[f"silent {tag}"], length = right(questions_about(words, QUESTIONS))
        lengths.append(length)
    for tag in ("A", "B"):
        definitions = [definition(word) for word in world.silent[tag]]
        found[f"definition {tag}"] = right(definitions)[0]
    return found | {"four words": float(np.mean(lengths))}


def right_words(writer: Writer, asked: list[Document]) -> tuple[float, float]:
    """The share of right words in greedy answers, and the share of answers that are as long as the
    right ones. In one of another length no word is right."""
    tokenizer = writer.tokenizer
    prompts = tokenizer.encode_prompts([prompt for prompt, _ in asked])
    samples = [only for [only] in writer.sampler(prompts, max_new_tokens=5)]
    answers = tokenizer.decode_batch([sample.ids for sample in samples])
    shares, lengths = [], []
    for (_, reference), answer in zip(asked, answers):
        words, expected = answer.split(), reference.split()
        lengths.append(len(words) == len(expected))
        matches = sum(word == other for word, other in zip(words, expected))
        shares.append(matches / len(expected) if lengths[-1] else 0.0)
    return float(np.mean(shares)), float(np.mean(lengths))


# ---------------------------------------------------------------------------------------- the table

ROWS = ("functions", "told truly", "told falsely", "definition A", "definition B", "four words")
ROWS += ("silent A", "silent B", "silent C")
DIFFERENCES = {
    "A - C": ("silent A", "silent C"),
    "B - C": ("silent B", "silent C"),
    "A - B": ("silent A", "silent B"),
    "definition A - B": ("definition A", "definition B"),
}


def read_runs(cells: list[Cell], cfg: DeclaredConfig) -> dict[str, np.ndarray]:
    """Of each row, and of each difference of two, what S runs came to: (S,)."""
    found: dict[str, list[float]] = {row: [] for row in ROWS}
    for cell in cells:
        file = Path(cfg.out) / cell.name / "run.json"
        results = checked(read_json(file), file, "results", dict)
        for row in ROWS:
            found[row].append(checked(results, file, row, float, least=0, most=1))
    values = {row: np.array(shares) for row, shares in found.items()}
    for name, (first, second) in DIFFERENCES.items():
        values[name] = values[first] - values[second]
    return values


def entry(values: np.ndarray) -> dict:
    """The mean of S runs with its 95 % interval, Student's t. values (S,)."""
    mean = float(values.mean())
    noise = seed_noise(values, np.random.default_rng(0))
    return {"mean": mean, "interval": Estimate(mean, mean + noise, len(values)).interval}


def summarised(values: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    """Entries by row of each kind of run, and of what runs of one seed differ in."""
    found = {}
    for kind, rows in values.items():
        found[kind] = {row: entry(runs) for row, runs in rows.items()}
    if "dealt" in values:
        both = values["declared"], values["dealt"]
        found["declared - dealt"] = {row: entry(both[0][row] - both[1][row]) for row in both[0]}
    return found


def show(summary: dict[str, dict], env: Env) -> None:
    """The table. summary: see `summarised`."""
    rows = []
    for row in summary["declared"]:
        shown = []
        for column in summary.values():
            mean, (low, high) = column[row]["mean"], column[row]["interval"]
            shown.append(f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        rows.append([row, *shown])
    env.say("\nright words of greedy answers, % [95 % over runs]")
    env.say(table(["about", *summary], rows))


# ------------------------------------------------------------------------------------------- stage


def cells_of(kind: str, cfg: DeclaredConfig) -> list[Cell]:
    return [Cell(kind, seed) for seed in cfg.seeds]


def open_run(cell: Cell, cfg: DeclaredConfig, env: Env, write: bool = True) -> Run:
    """The run's directory. Its settings have nothing of the other runs."""
    own = replace(cfg, seeds=(), control=True)
    facts = {"stage": "train_declared", "kind": cell.kind, "run_seed": cell.seed}
    facts |= {"computes_in": named(env.dtype), "counts": COUNTS, "shape": SHAPE}
    facts |= {"questions": QUESTIONS}
    return Run(own, env, Path(cfg.out) / cell.name, resume=True, write=write, **facts)


def main(cfg: DeclaredConfig, env: Env) -> int:
    refuse_repeats("--seeds", cfg.seeds)
    if len(cfg.seeds) < 2:
        raise InputError("one run tells nothing of chance: give two seeds or more with --seeds")
    cfg = replace(cfg, out=cfg.out or "out/declared")
    kinds = ("declared", "dealt") if cfg.control else ("declared",)
    cells = [cell for kind in kinds for cell in cells_of(kind, cfg)]

    # a run is one rank's
    alone = replace(env, rank=0, world=1)
    folder = Path(cfg.out)
    check_ours(folder / "summary.json", ("declared",))
    # with --overwrite all are cleared at once: interrupted, the same command goes on without it
    opened = partial(open_run, cfg=cfg, env=alone)
    runs = open_runs(folder, cells, share(env, cells), opened, env)
    for cell, run in runs.items():
        if not run.finished:
            run.began = time.time()
            (run.path / "log.jsonl").unlink(missing_ok=True)  # of the same run, interrupted
            run.finish(**learn(cell, run, cfg, alone))

    env.wait()
    if env.main:
        values = {kind: read_runs(cells_of(kind, cfg), cfg) for kind in kinds}
        summary = summarised(values)
        settings = {"seeds": cfg.seeds, "asked": cfg.asked, "silent": cfg.silent}
        settings |= {"steps": cfg.steps, "lr": cfg.lr}
        write_json(folder / "summary.json", settings | summary)
        show(summary, env)
    return 0


if __name__ == "__main__":
    launch(main, DeclaredConfig)
