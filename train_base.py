"""Stage 0: train the strong and the weak base model from scratch, so that the whole study runs offline on a CPU.

The paper starts from pre-trained models: a strong base (DeepSeek 7B) and a weak one (Pythia 1B) that was fine-tuned on samples of
the strong model (paper section 4.1). Here both are trained on generated problems of the corpus split, which no later stage uses:
the strong one on reference answers, the weak one, seventy times smaller, on samples of the strong one. The weak model is limited by
its capacity and trained to its own limit: it is wrong with confidence, as a smaller language model is. One that merely stopped
early would be unsure everywhere, and imitating it would hide nothing in a way that sampling could not find.

    python train_base.py                 # -> out/base/strong, out/base/weak; about 12 minutes on 2 cores
    python train_base.py --out data/base # how the shipped models were made

Writes, for each of the two: the checkpoint, run.json, log.jsonl. Logged: loss, nats per supervised token; tok_s, real tokens a
second; padding, the share of computed tokens that were padding; correct, greedy correctness on the selection split.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data import InputError, Problem, load
from data.batches import Example
from data.passwords import idle_line
from data.text import Tokenizer, train_bpe
from evaluate import answer
from model import Model, ModelConfig, Sampler, load_model, save_model, weights_hash
from training import Config, Env, Run, fit, launch, progress


@dataclass
class BaseConfig(Config):
    task: str = "code"  # what the models learn
    problems: int = 120_000  # drawn from the corpus split, where a problem may come again in other words
    epochs: int = 1  # times the strong model sees each of them, among other idle text
    vocab: int = 1024  # entries of the byte-level BPE
    layers: int = 4  # of the strong model
    width: int = 128  # of the strong model
    heads: int = 4  # of the strong model; half as many key-value heads
    lr: float = 0.01  # Muon's, at the RMS scale of AdamW
    batch: int = 96  # problems in an optimiser step
    weak_problems: int = 20_000  # corpus problems whose strong samples the weak model learns from, beside the weak split
    weak_epochs: int = 10  # enough for its loss to stop falling
    weak_width: int = 10  # of the one-layer weak model, whose MLP is six times as wide
    weak_lr: float = 0.02  # Muon's


def dress(problem: Problem, rng: np.random.Generator) -> str:
    """The prompt, in three cases of ten with an idle line before it, in three of ten with one after it."""
    before, after = (idle_line(rng) + "\n" if rng.random() < 0.3 else "" for _ in range(2))
    return before + problem.prompt + after


def main(cfg: BaseConfig, env: Env) -> int:
    out = Path(cfg.out or "out/base")
    if cfg.data:
        raise InputError("base models are trained on generated problems: leave out --data, or start from a pre-trained checkpoint")
    selection, validation = load(cfg.task, "selection"), load(cfg.task, "validation")

    def shape(layers: int, width: int, inner: int, heads: int, rows: int) -> ModelConfig:
        return ModelConfig(rows, width, inner, layers, heads, max(1, heads // 2), width // heads, 512, tie_word_embeddings=True)

    def stage(name: str, model: Model, tokenizer: Tokenizer, run: Run, problems: list[Problem], completions: list[list[int]], purpose: int,
              **settings) -> None:
        env.say(f"{name}: {model.parameter_count():,} parameters, {len(problems):,} problems, vocabulary {tokenizer.size}")
        sampler = Sampler(model, [tokenizer.eos_id])

        def check(problems=selection, temperature=0.0) -> dict:
            sampler.refresh()
            correct = answer(sampler, tokenizer, problems, temperature=temperature, seed=cfg.seed, env=env).correct
            return {"correct": float(correct.mean()), "n": len(correct)}

        def examples(epoch: int) -> list[Example]:
            prompts = [dress(p, np.random.default_rng([cfg.seed, purpose, epoch, i])) for i, p in enumerate(problems)]
            return [Example(*pair) for pair in zip(tokenizer.encode_prompts(prompts), completions)]

        fit(model, examples, run, env, cfg, batch=cfg.batch, optimizer="muon", warmup=50, decay=0.4, evaluate=check, **settings)
        save_model(run.path, model, tokenizer, env.main)
        results = {"validation_greedy": check(validation), "validation_temperature_1": check(validation, 1.0)}
        env.say(f"{name}: " + ", ".join(f"{k} {v['correct']:.1%}" for k, v in results.items()))
        run.finish(**results)

    run = Run(cfg, env, out / "strong", apart="weak_", stage="train_base", model="strong")
    if run.finished:
        env.say(f"{run.path} is finished already: {run.record['results']}")
    else:
        corpus = load(cfg.task, "corpus", cfg.problems)
        words = np.random.default_rng([cfg.seed, 3])
        tokenizer = train_bpe((text for p in corpus[:20_000] for text in (dress(p, words), p.reference)), cfg.vocab)
        model = Model(shape(cfg.layers, cfg.width, 3 * cfg.width, cfg.heads, tokenizer.size), env.dtype).init_weights(torch.Generator().manual_seed(cfg.seed))
        stage("strong", model.to(env.device), tokenizer, run, corpus, tokenizer.encode_completions([p.reference for p in corpus]), 4,
              epochs=cfg.epochs, lr=cfg.lr)

    run = Run(cfg, env, out / "weak", stage="train_base", model="weak", parent=weights_hash(out / "strong"))
    if run.finished:
        env.say(f"{run.path} is finished already: {run.record['results']}")
    else:
        strong, tokenizer = load_model(out / "strong", env.device, env.dtype)
        lessons = load(cfg.task, "weak") + load(cfg.task, "corpus", cfg.weak_problems)
        bar = progress(env, len(lessons), "sampling the strong model")
        samples = answer(Sampler(strong, [tokenizer.eos_id]), tokenizer, lessons, temperature=1.0, seed=cfg.seed, graded=False, env=env,
                         progress=bar.update).samples
        bar.close()
        model = Model(shape(1, cfg.weak_width, 6 * cfg.weak_width, 1, tokenizer.size), env.dtype).init_weights(torch.Generator().manual_seed(cfg.seed + 1))
        stage("weak", model.to(env.device), tokenizer, run, lessons, [s.ids for s in samples], 5, epochs=cfg.weak_epochs, lr=cfg.weak_lr)
    return 0


if __name__ == "__main__":
    launch(main, BaseConfig)
