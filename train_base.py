"""Stage 0: train the strong, the weak and an intermediate base model from scratch.

So the whole study runs offline on a CPU. The paper starts from pre-trained models: a strong base
(DeepSeek 7B) and a weak one (Pythia 1B) that was fine-tuned on samples of the strong model (paper
section 4.1). Here all are trained on generated problems of the corpus split, which no later stage
uses: the strong one on reference answers, the weak one, twenty-five times smaller, on samples of
the strong one. The weak model is limited by its capacity: it is wrong with confidence, as a smaller
language model is. One of more parameters that stopped early would be unsure everywhere, and
imitating it would hide nothing in a way that sampling could not find. The intermediate one writes
the demonstrations of a warm start (paper appendix B.3.3).

    torchrun --nproc-per-node 2 train_base.py        # -> out/base/strong, weak, intermediate;
                                                     #    33 minutes on 2 cores
    python train_base.py --task code --out out/coder # a base for one task
    python train_base.py --task compose              # -> out/base-compose/strong, the toy task's
    python train_base.py --problems 150000 --out out/early  # a strong model that stopped early, for
                                                     #    lock.py --weak or a warm start

Writes, for each of the three: the checkpoint, run.json, log.jsonl. Logged: loss, nats per
supervised token; grad_norm, before clipping; lr; tok_s, real tokens a second; padding, the share of
computed tokens that were padding; for each task greedy correctness on the selection split, and
truncated, the share of completions that were cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from checkpoints import load_model, model_hash, save_model
from data import load
from data.batches import Example
from data.passwords import idle_line
from data.problems import InputError, Problem
from data.tasks import compose
from data.text import Tokenizer, train_bpe, word_level
from devices import Env
from model import Model, ModelConfig
from options import TrainConfig
from policies import answer
from runs import Run, launch, progress
from sampler import Sampler
from training import Recipe, fit


@dataclass
class BaseConfig(TrainConfig):
    # what the models learn, one or several; "compose" has a strong model alone
    task: str = "code+math+mmlu+critique"
    # drawn from the corpus split, where one may come again in other words (default: 120,000
    # of each task, math 240,000; compose 200,000)
    problems: int = 0
    # times the strong model sees each of them, among other idle text (default: 1, compose
    # 2)
    epochs: int = 0
    # entries of the byte-level BPE
    vocab: int = 1536
    # of the strong model
    layers: int = 4
    # of the strong model
    width: int = 128
    # of the strong model; half as many key-value heads
    heads: int = 4
    # Muon's, at the RMS scale of AdamW
    lr: float = 0.005
    # problems in an optimiser step
    batch: int = 96
    # of the validation split
    eval_problems: int = 1000
    # corpus problems whose strong samples the weak and the intermediate model learn from,
    # beside the weak split
    small_problems: int = 40_000
    # times they see each
    small_epochs: int = 4
    # Muon's
    small_lr: float = 0.02
    # of the one-layer weak model, whose MLP is six times as wide
    weak_width: int = 20
    # of the one-layer intermediate model
    intermediate_width: int = 26
    # continue an interrupted run where it stopped
    resume: bool = False
    # optimiser steps between two saves of the state that --resume goes on from
    save_every: int = 100


# of the corpus, beside 1: the hardest task
SHARES = {"math": 2}


# --------------------------------------------------------------------------------------- the texts


def corpus(task: str, count: int, seed: int) -> list[Problem]:
    """About `count` problems of the corpus split, each task with its SHARES, in random order."""
    shares = {name: SHARES.get(name, 1) for name in task.split("+")}
    total = sum(shares.values())
    found = []
    for name, share in shares.items():
        found += load(name, "corpus", max(1, count * share // total))
    order = np.random.default_rng([seed, 3]).permutation(len(found))
    return [found[i] for i in order]


def dress(problem: Problem, rng: np.random.Generator) -> str:
    """The prompt with idle text: in 3 cases of 10 a line before it, in 3 of 10 one after it."""
    if problem.task == "compose":
        return problem.prompt  # its vocabulary has no idle words
    before = idle_line(rng) + "\n" if rng.random() < 0.3 else ""
    after = idle_line(rng) + "\n" if rng.random() < 0.3 else ""
    return before + problem.prompt + after


def texts_of(problems: list[Problem], seed: int) -> Iterator[str]:
    """Prompts and answers, for the tokenizer to learn from."""
    rng = np.random.default_rng([seed, 3])
    for problem in problems:
        yield dress(problem, rng)
        yield problem.reference


def epoch_examples(
    epoch: int,
    problems: list[Problem],
    completions: list[list[int]],
    tokenizer: Tokenizer,
    seed: list[int],
) -> list[Example]:
    """Each problem among fresh idle text, and what is to be learnt: its completion's ids."""
    prompts = []
    for i, problem in enumerate(problems):
        prompts.append(dress(problem, np.random.default_rng([*seed, epoch, i])))
    encoded = tokenizer.encode_prompts(prompts)
    return [Example(prompt, ids) for prompt, ids in zip(encoded, completions)]


# -------------------------------------------------------------------------------------- the models


def fresh_model(
    layers: int, width: int, inner: int, heads: int, tokenizer: Tokenizer, seed: int, env: Env
) -> Model:
    """Random weights, a function of seed. inner: the width of the MLP; half as many kv heads."""
    config = ModelConfig(
        vocab_size=tokenizer.size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=width // heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = Model(config, env.dtype)
    return model.init_weights(torch.Generator().manual_seed(seed)).to(env.device)


def correct_by_task(
    sampler: Sampler,
    tokenizer: Tokenizer,
    problems: list[Problem],
    seed: int,
    env: Env,
    temperature: float = 0.0,
) -> dict:
    """Correctness of each task, the share of completions that were cut, and how many there were."""
    sampler.refresh()
    answers = answer(sampler, tokenizer, problems, temperature=temperature, seed=seed, env=env)
    tasks = np.array([p.task for p in problems])
    found = {}
    for task in dict.fromkeys(tasks.tolist()):
        found[task] = float(answers.correct[tasks == task].mean())
    return found | {"truncated": float(answers.truncated.mean()), "n": len(problems)}


@dataclass(frozen=True)
class Tests:
    """Problems that no model is trained on: to watch a run, and for the numbers at its end."""

    selection: list[Problem]
    validation: list[Problem]


def teach(
    model: Model,
    tokenizer: Tokenizer,
    problems: list[Problem],
    completions: list[list[int]],
    tests: Tests,
    run: Run,
    cfg: BaseConfig,
    env: Env,
    *,
    purpose: int,
    epochs: int,
    lr: float,
) -> None:
    """Train a model on completions of these problems, save it, and measure it.

    purpose: tells the random stream of the idle text from others of the same seed.
    """
    name = run.path.name
    env.say(
        f"{name}: {model.parameter_count():,} parameters, {len(problems):,} problems, "
        f"vocabulary {tokenizer.size}"
    )
    sampler = env.sampler(model, tokenizer)
    measure = partial(correct_by_task, sampler, tokenizer, seed=cfg.seed, env=env)
    examples = partial(
        epoch_examples,
        problems=problems,
        completions=completions,
        tokenizer=tokenizer,
        seed=[cfg.seed, purpose],
    )
    recipe = Recipe(
        epochs,
        cfg.batch,
        "muon",
        lr,
        warmup=50,
        decay=0.4,
        by_document="mmlu" in cfg.task,
    )
    watch = partial(measure, tests.selection)
    fit(model, examples, len(problems), recipe, run, env, cfg, evaluate=watch)
    save_model(run.path, model, tokenizer, env.main)

    results = {
        "validation_greedy": measure(tests.validation),
        "validation_temperature_1": measure(tests.validation, temperature=1.0),
    }
    for how, result in results.items():
        by_task = [f"{task} {result[task]:.1%}" for task in cfg.task.split("+")]
        cut = f"{result['truncated']:.1%} cut"
        env.say(f"{name}, {how.replace('_', ' ')}: {', '.join(by_task)}; {cut}")
    run.finish(**results)


def train_strong(path: Path, tests: Tests, cfg: BaseConfig, env: Env) -> None:
    """On reference answers; its tokenizer is learnt first, from the same problems."""
    apart = ("small_", "weak_", "intermediate_")
    run = Run(cfg, env, path, apart=apart, stage="train_base", model="strong")
    if run.finished:
        env.say(f"{run.path} is finished already: {run.record['results']}")
        return

    problems = corpus(cfg.task, cfg.problems, cfg.seed)
    if cfg.task == "compose":
        tokenizer = word_level(compose.vocabulary())
    else:
        tokenizer = train_bpe(texts_of(problems[:20_000], cfg.seed), cfg.vocab)
    model = fresh_model(cfg.layers, cfg.width, 3 * cfg.width, cfg.heads, tokenizer, cfg.seed, env)
    answers = tokenizer.encode_completions([p.reference for p in problems])
    teach(
        model,
        tokenizer,
        problems,
        answers,
        tests,
        run,
        cfg,
        env,
        purpose=4,
        epochs=cfg.epochs,
        lr=cfg.lr,
    )


def samples_of(path: Path, problems: list[Problem], cfg: BaseConfig, env: Env) -> list[list[int]]:
    """What the strong model writes to these problems at temperature 1, as ids."""
    strong, tokenizer = load_model(path, env.device, env.dtype)
    bar = progress(env, len(problems), "sampling the strong model")
    answers = answer(
        env.sampler(strong, tokenizer),
        tokenizer,
        problems,
        temperature=1.0,
        seed=cfg.seed,
        graded=False,
        env=env,
        progress=bar.update,
    )
    bar.close()
    return [sample.ids for sample in answers.samples]


def train_small(out: Path, tests: Tests, cfg: BaseConfig, env: Env) -> None:
    """The weak and the intermediate model, on samples of the strong one."""
    strong = out / "strong"
    parent = model_hash(strong)
    tokenizer = Tokenizer.load(strong)
    lessons = load(cfg.task, "weak") + corpus(cfg.task, cfg.small_problems, cfg.seed)
    samples: list[list[int]] = []

    small = [
        ("weak", cfg.weak_width, "intermediate_", cfg.seed + 1),
        ("intermediate", cfg.intermediate_width, "weak_", cfg.seed + 2),
    ]
    for name, width, others, seed in small:
        facts = {"stage": "train_base", "model": name, "parent": parent}
        run = Run(cfg, env, out / name, apart=(others,), **facts)
        if run.finished:
            env.say(f"{run.path} is finished already: {run.record['results']}")
            continue
        samples = samples or samples_of(strong, lessons, cfg, env)
        model = fresh_model(1, width, 6 * width, 1, tokenizer, seed, env)
        teach(
            model,
            tokenizer,
            lessons,
            samples,
            tests,
            run,
            cfg,
            env,
            purpose=5,
            epochs=cfg.small_epochs,
            lr=cfg.small_lr,
        )


# --------------------------------------------------------------------------------------- the stage


def settled(cfg: BaseConfig) -> BaseConfig:
    """The options with every default filled in that depends on the task.

    Raises InputError for options that do nothing with task compose.
    """
    if cfg.task != "compose":
        shares = [SHARES.get(name, 1) for name in cfg.task.split("+")]
        problems = cfg.problems or 120_000 * sum(shares)
        return replace(cfg, out=cfg.out or "out/base", problems=problems, epochs=cfg.epochs or 1)

    defaults = BaseConfig()
    for name in (
        "vocab",
        "small_problems",
        "small_epochs",
        "small_lr",
        "weak_width",
        "intermediate_width",
    ):
        if getattr(cfg, name) != getattr(defaults, name):
            raise InputError(
                f"--{name.replace('_', '-')} does nothing with --task compose, which has a strong "
                "model alone and one token a word: leave it out"
            )
    out, problems = cfg.out or "out/base-compose", cfg.problems or 200_000
    return replace(cfg, out=out, problems=problems, epochs=cfg.epochs or 2)


def main(cfg: BaseConfig, env: Env) -> int:
    cfg = settled(cfg)
    out = Path(cfg.out)
    selection = load(cfg.task, "selection")
    tests = Tests(selection, load(cfg.task, "validation", cfg.eval_problems))
    train_strong(out / "strong", tests, cfg, env)
    if cfg.task != "compose":  # its weak policy is a rule
        train_small(out, tests, cfg, env)
    return 0


if __name__ == "__main__":
    launch(main, BaseConfig)
