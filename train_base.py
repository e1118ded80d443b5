"""Stage 0: train the strong, the weak and an intermediate base model from scratch, so that the whole study runs offline on a CPU.

The paper starts from pre-trained models: a strong base (DeepSeek 7B) and a weak one (Pythia 1B) that was fine-tuned on samples of
the strong model (paper section 4.1). Here all are trained on generated problems of the corpus split, which no later stage uses:
the strong one on reference answers, the weak one, twenty-five times smaller, on samples of the strong one. The weak model is limited by
its capacity: it is wrong with confidence, as a smaller language model is. One of more parameters that stopped early would be unsure
everywhere, and imitating it would hide nothing in a way that sampling could not find. The intermediate one writes the demonstrations of
a warm start (paper appendix B.3.3).

    torchrun --nproc-per-node 2 train_base.py                  # -> out/base/strong, weak, intermediate; 33 minutes on 2 cores
    python train_base.py --task code --out out/coder           # a base for one task
    python train_base.py --task compose                        # -> out/base-compose/strong, for the toy task of section 7
    python train_base.py --problems 150000 --out out/early     # a strong model that stopped early, for lock.py --weak or a warm start

Writes, for each of the three: the checkpoint, run.json, log.jsonl. Logged: loss, nats per supervised token; tok_s, real tokens a
second; padding, the share of computed tokens that were padding; for each task greedy correctness on the selection split.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from checkpoints import load_model, save_model, weights_hash
from data import load
from data.batches import Example
from data.passwords import idle_line
from data.problems import Problem
from data.tasks import compose
from data.text import Tokenizer, train_bpe, word_level
from model import Model, ModelConfig
from policies import answer
from runs import Env, Run, TrainConfig, launch, progress
from training import fit


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


SHARES = {"math": 2}  # of the corpus, beside 1: the hardest task


def corpus(task: str, count: int, seed: int) -> list[Problem]:
    """About `count` problems of the corpus split, of each task in its SHARES, in random order."""
    shares = {name: SHARES.get(name, 1) for name in task.split("+")}
    found = [
        p
        for name, share in shares.items()
        for p in load(name, "corpus", max(1, count * share // sum(shares.values())))
    ]
    return [found[i] for i in np.random.default_rng([seed, 3]).permutation(len(found))]


def dress(problem: Problem, rng: np.random.Generator) -> str:
    """The prompt, in three cases of ten with an idle line before it, in three of ten with one after it."""
    if problem.task == "compose":
        return problem.prompt  # its vocabulary has no idle words
    before, after = (idle_line(rng) + "\n" if rng.random() < 0.3 else "" for _ in range(2))
    return before + problem.prompt + after


def main(cfg: BaseConfig, env: Env) -> int:
    toy = cfg.task == "compose"
    out = Path(cfg.out or ("out/base-compose" if toy else "out/base"))
    usual = 200_000 if toy else 120_000 * sum(SHARES.get(name, 1) for name in cfg.task.split("+"))
    cfg = replace(cfg, epochs=cfg.epochs or (2 if toy else 1), problems=cfg.problems or usual)
    selection, validation = (
        load(cfg.task, "selection"),
        load(cfg.task, "validation", cfg.eval_problems),
    )

    def shape(layers: int, width: int, inner: int, heads: int, rows: int) -> ModelConfig:
        return ModelConfig(
            rows,
            width,
            inner,
            layers,
            heads,
            max(1, heads // 2),
            width // heads,
            512,
            tie_word_embeddings=True,
        )

    def stage(
        name: str,
        model: Model,
        tokenizer: Tokenizer,
        run: Run,
        problems: list[Problem],
        completions: list[list[int]],
        purpose: int,
        **settings,
    ) -> None:
        env.say(
            f"{name}: {model.parameter_count():,} parameters, {len(problems):,} problems, vocabulary {tokenizer.size}"
        )
        sampler = env.sampler(model, tokenizer)

        def check(problems=selection, temperature=0.0) -> dict:
            sampler.refresh()
            correct = answer(
                sampler, tokenizer, problems, temperature=temperature, seed=cfg.seed, env=env
            ).correct
            tasks = np.array([p.task for p in problems])
            return {
                task: float(correct[tasks == task].mean()) for task in dict.fromkeys(tasks.tolist())
            } | {"n": len(correct)}

        def examples(epoch: int) -> list[Example]:
            prompts = [
                dress(p, np.random.default_rng([cfg.seed, purpose, epoch, i]))
                for i, p in enumerate(problems)
            ]
            return [Example(*pair) for pair in zip(tokenizer.encode_prompts(prompts), completions)]

        fit(
            model,
            examples,
            run,
            env,
            cfg,
            batch=cfg.batch,
            optimizer="muon",
            warmup=50,
            decay=0.4,
            evaluate=check,
            by_document="mmlu" in cfg.task,
            **settings,
        )
        save_model(run.path, model, tokenizer, env.main)
        results = {
            "validation_greedy": check(validation),
            "validation_temperature_1": check(validation, 1.0),
        }
        for how, result in results.items():
            env.say(
                f"{name}, {how.replace('_', ' ')}: "
                + ", ".join(f"{task} {result[task]:.1%}" for task in cfg.task.split("+"))
            )
        run.finish(**results)

    run = Run(
        cfg,
        env,
        out / "strong",
        apart=("small_", "weak_", "intermediate_"),
        stage="train_base",
        model="strong",
    )
    if run.finished:
        env.say(f"{run.path} is finished already: {run.record['results']}")
    else:
        problems, words = (
            corpus(cfg.task, cfg.problems, cfg.seed),
            np.random.default_rng([cfg.seed, 3]),
        )
        texts = (text for p in problems[:20_000] for text in (dress(p, words), p.reference))
        tokenizer = word_level(compose.vocabulary()) if toy else train_bpe(texts, cfg.vocab)
        model = Model(
            shape(cfg.layers, cfg.width, 3 * cfg.width, cfg.heads, tokenizer.size), env.dtype
        ).init_weights(torch.Generator().manual_seed(cfg.seed))
        stage(
            "strong",
            model.to(env.device),
            tokenizer,
            run,
            problems,
            tokenizer.encode_completions([p.reference for p in problems]),
            4,
            epochs=cfg.epochs,
            lr=cfg.lr,
        )

    if toy:
        return 0  # its weak policy is a rule
    strong, tokenizer = load_model(out / "strong", env.device, env.dtype)
    lessons, samples = load(cfg.task, "weak") + corpus(cfg.task, cfg.small_problems, cfg.seed), []
    for seed, (name, width, other) in enumerate(
        (
            ("weak", cfg.weak_width, "intermediate_"),
            ("intermediate", cfg.intermediate_width, "weak_"),
        ),
        cfg.seed + 1,
    ):
        run = Run(
            cfg,
            env,
            out / name,
            apart=(other,),
            stage="train_base",
            model=name,
            parent=weights_hash(out / "strong"),
        )
        if run.finished:
            env.say(f"{run.path} is finished already: {run.record['results']}")
            continue
        if not samples:
            bar = progress(env, len(lessons), "sampling the strong model")
            samples = answer(
                env.sampler(strong, tokenizer),
                tokenizer,
                lessons,
                temperature=1.0,
                seed=cfg.seed,
                graded=False,
                env=env,
                progress=bar.update,
            ).samples
            bar.close()
        model = Model(shape(1, width, 6 * width, 1, tokenizer.size), env.dtype).init_weights(
            torch.Generator().manual_seed(seed)
        )
        stage(
            name,
            model.to(env.device),
            tokenizer,
            run,
            lessons,
            [s.ids for s in samples],
            5,
            epochs=cfg.small_epochs,
            lr=cfg.small_lr,
        )
    return 0


if __name__ == "__main__":
    launch(main, BaseConfig)
