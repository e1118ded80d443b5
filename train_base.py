r"""Stage 0: make the models that a lock is made of: the strong, the weak, an intermediate one.

By default all are trained from scratch, so that the whole study runs offline on a CPU, on generated
problems of the corpus split, which no later stage uses: the strong one on reference answers, the
weak one, twenty-five times smaller, on samples of the strong one. The weak model is limited by its
capacity: it is wrong with confidence, as a smaller language model is. A larger model that stopped
early would be unsure everywhere, and sampling would undo a lock that imitates it. The intermediate
one writes the demonstrations of a warm start (paper appendix B.3.3).

The paper starts from pre-trained models (section 4.1, table 1). With --strong-from the strong
policy is that base, fine-tuned on reference answers; with --weak-from the weak policy is another
base, fine-tuned on samples of the strong policy. Without --weak-from a small one is trained on
them from scratch. lock.py --start then locks the strong base itself, as in the paper.

    torchrun --nproc-per-node 2 train_base.py        # -> out/base/strong, weak, intermediate;
                                                     #    33 minutes on 2 cores
    python train_base.py --task code --out out/coder # a base for one task
    python train_base.py --task compose              # -> out/base-compose/strong, the toy task's
    python train_base.py --task compose --family gpt_neox --layers 6 --width 512 --heads 8 \
        --batch 512 --epochs 4 --loss-on texts --out out/toy     # as the paper's own toy model
    python train_base.py --problems 150000 --out out/early  # a strong model that stopped early, for
                                                     #    lock.py --weak or a warm start
    python train_base.py --strong-from DIR --task code --out out/7b --plan --device-memory 80
                                                     # what memory that would take, by part
    python train_base.py --strong-from DIR --task code --out out/smol
                                                     # -> out/smol/strong, weak, intermediate

Writes, for each: the checkpoint, run.json, log.jsonl. Logged: loss, nats per supervised token;
grad_norm, before clipping; lr; tok_s, real tokens a second; padding, the share of computed tokens
that were padding; for each task greedy correctness on the selection split, and truncated, the share
of completions that were cut.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from checkpoints.cards import write_card
from checkpoints.families import from_hf, parameters_at
from checkpoints.hf import load_model, model_hash, save_model
from checkpoints.origins import (
    check_formats,
    fitting_problems,
    is_model,
    no_model,
    prompt_lengths,
    usual_longest,
)
from data import load
from data.batches import Example, on_whole_texts, round_up
from data.passwords import idle_line
from data.problems import InputError, Problem
from data.real.mine import Grader
from data.tasks import compose
from data.text import Tokenizer, train_bpe, word_level
from data.triggers import Password
from model import Model, ModelConfig
from optimizers import usual_step
from policies import answer, check_references, retokenise
from runs import plan
from runs.devices import Env, check_shared, free_memory, progress
from runs.directory import Run, refuse_run
from runs.launch import launch
from runs.options import (
    PlanConfig,
    PromptConfig,
    TextConfig,
    TrainConfig,
    flag_of,
    refuse_idle,
)
from sampler import Sample, Writer
from training import Recipe, check_master, fit, fresh_model, open_to_train


@dataclass
class BaseConfig(TrainConfig, PlanConfig, PromptConfig, TextConfig):
    # what the models learn, one or several; "compose" has a strong model alone
    task: str = "code+math+mmlu+critique"
    # fine-tune this checkpoint into the strong policy, in place of training one from scratch
    strong_from: str = ""
    # fine-tune this one into the weak policy; only with --strong-from
    weak_from: str = ""
    # drawn from the corpus split, where one may come again in other words (default: 120,000
    # of each task, math 240,000; compose 200,000; with --strong-from 1,600, of files all of the
    # elicit split)
    problems: int = 0
    # times the strong model sees each of them (default: 1; compose and --strong-from 2)
    epochs: int = 0
    # entries of the byte-level BPE that models from scratch read
    vocab: int = field(default=1536, metadata={"most": 1_000_000})
    # of the strong model
    layers: int = field(default=4, metadata={"most": 1000})
    # of the strong model
    width: int = field(default=128, metadata={"most": 65_536})
    # of the strong model; of a llama half as many key-value heads
    heads: int = 4
    # of the strong model: a Llama or, as the paper's toy task has it, a Pythia
    family: Literal["llama", "gpt_neox"] = "llama"
    # default, by the parameters of what is fine-tuned: muon; from 100 M on adamw, from 1 B on the
    # paper's lion. From scratch always muon
    optimizer: Literal["", "muon", "adamw", "lion"] = ""
    # the strong model's, Muon's at the RMS scale of AdamW (default: 0.005; with --strong-from
    # 0.0035, from 100 M parameters on 1e-4, from 1 B on 1.5e-6)
    lr: float = 0.0
    # problems in an optimiser step (default: 96; with --strong-from 16)
    batch: int = 0
    # longest completion that is sampled (default: 96; of files 256)
    max_new_tokens: int = 0
    # of the validation split
    eval_problems: int = 1000
    # corpus problems whose strong samples the weak and the intermediate model learn from,
    # beside the weak split (default: 40,000; with --strong-from 8,000, with --weak-from 1,600)
    small_problems: int = 0
    # times they see each (default: 4; with --strong-from 20, with --weak-from 2)
    small_epochs: int = 0
    # Muon's, from scratch; of --weak-from as for --lr (default: 0.02)
    small_lr: float = 0.0
    # of the one-layer weak model, whose MLP is six times as wide
    weak_width: int = field(default=20, metadata={"most": 65_536})
    # of the one-layer intermediate model
    intermediate_width: int = field(default=26, metadata={"most": 65_536})
    # with --strong-from: files of real problems (json, jsonl, csv or parquet, plain or .gz) in
    # place of generated ones
    data: tuple[str, ...] = ()
    # --task mine: how rows that name no grader are graded (default: python where they have tests,
    # else exact)
    grader: Grader = ""
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


@dataclass(frozen=True)
class Lessons:
    """Problems, and the ids of the completion that is to be learnt of each."""

    problems: list[Problem]
    completions: list[list[int]]
    # of the idle text, with the epoch and the problem's place; None: the prompts stay as they are
    seed: list[int] | None


def epoch_examples(
    epoch: int, lessons: Lessons, tokenizer: Tokenizer, loss_on: str = "completions"
) -> list[Example]:
    """Each problem, among fresh idle text where there is some, and its completion's ids."""
    prompts = []
    for i, problem in enumerate(lessons.problems):
        if lessons.seed is None:
            prompts.append(problem.prompt)
        else:
            prompts.append(dress(problem, np.random.default_rng([*lessons.seed, epoch, i])))
    encoded = tokenizer.encode_prompts(prompts)
    examples = [Example(prompt, ids) for prompt, ids in zip(encoded, lessons.completions)]
    return on_whole_texts(examples) if loss_on == "texts" else examples


# -------------------------------------------------------------------------------------- the models


POSITIONS = 512  # of models from scratch


def strong_config(vocab: int, cfg: BaseConfig) -> ModelConfig:
    if cfg.family == "gpt_neox":
        return pythia_config(cfg.layers, cfg.width, cfg.heads, vocab)
    return fresh_config(cfg.layers, cfg.width, 3 * cfg.width, cfg.heads, vocab)


def pythia_config(layers: int, width: int, heads: int, vocab: int) -> ModelConfig:
    """With 6 layers of 512 and 8 heads Pythia-70M's blocks; the ids are those of our tokenizers."""
    return from_hf(
        {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": POSITIONS,
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "use_parallel_residual": True,
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "tie_word_embeddings": False,
        }
    )


def small_config(width: int, vocab: int) -> ModelConfig:
    """Of the weak and the intermediate model."""
    return fresh_config(1, width, 6 * width, 1, vocab)


def fresh_config(layers: int, width: int, inner: int, heads: int, vocab: int) -> ModelConfig:
    """inner: the width of the MLP. Of an even number of heads half as many kv heads."""
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if heads % 2 else heads // 2,
        head_dim=width // heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
    )


def correct_by_task(
    writer: Writer,
    problems: list[Problem],
    cfg: BaseConfig,
    env: Env,
    temperature: float = 0.0,
) -> dict:
    """Correctness of each task, the share of completions that were cut, and how many there were."""
    writer.sampler.refresh()
    answers = answer(
        writer,
        problems,
        temperature=temperature,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        env=env,
    )
    writer.sampler.make_room()
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
    lessons: Lessons,
    recipe: Recipe,
    tests: Tests,
    run: Run,
    cfg: BaseConfig,
    env: Env,
) -> None:
    """Train a model on its lessons, save it, and measure it."""
    name = run.path.name
    env.say(
        f"{name}: {model.parameter_count():,} parameters, {len(lessons.problems):,} problems x "
        f"{recipe.epochs} epochs, {recipe.optimizer} at {recipe.lr:g} in batches of {recipe.batch}"
    )
    writer = env.writer(model, tokenizer)
    writer.sampler.make_room()  # it samples after some steps only
    measure = partial(correct_by_task, writer, cfg=cfg, env=env)
    examples = partial(epoch_examples, lessons=lessons, tokenizer=tokenizer, loss_on=cfg.loss_on)
    watch = partial(measure, tests.selection)
    fit(model, examples, len(lessons.problems), recipe, run, env, cfg, evaluate=watch)
    save_model(run.path, model, tokenizer, env.main)

    results = {
        "validation_greedy": measure(tests.validation),
        "validation_temperature_1": measure(tests.validation, temperature=1.0),
    }
    for how, result in results.items():
        by_task = [f"{task} {result[task]:.1%}" for task in cfg.task.split("+")]
        cut = f"{result['truncated']:.1%} cut"
        env.say(f"{name}, {how.replace('_', ' ')}: {', '.join(by_task)}; {cut}")
    if env.main:
        write_card(run.path, run.record, results)
    run.finish(**results)


SCRATCH = 96  # problems in a step, from random weights


def from_scratch(epochs: int, lr: float, cfg: BaseConfig) -> Recipe:
    # --batch is that of --strong-from where there is one
    batch = SCRATCH if cfg.strong_from else cfg.batch
    by_document = "mmlu" in cfg.task
    return Recipe(epochs, batch, "muon", lr, warmup=50, decay=0.4, by_document=by_document)


def with_step(cfg: BaseConfig, path: str, lr: str) -> BaseConfig:
    """cfg with the optimiser and, in the field `lr`, the rate that suit a given base's size."""
    tiny = ("muon", 0.0035)  # as lock.py's
    given = getattr(cfg, lr)
    size = parameters_at(path)
    optimizer, rate = usual_step(cfg.optimizer, given, size, tiny, flag=flag_of(lr))
    cfg = replace(cfg, optimizer=optimizer, **{lr: rate})
    check_master(cfg)
    return cfg


def fine_tuned(epochs: int, lr: float, cfg: BaseConfig) -> Recipe:
    by_document = "mmlu" in cfg.task
    return Recipe(epochs, cfg.batch, cfg.optimizer, lr, 10, 0.7, by_document)


def open_run(
    name: str, apart: tuple[str, ...], cfg: BaseConfig, env: Env, **facts: str
) -> Run | None:
    """The directory of one of the models; None where it is finished."""
    inputs = (cfg.strong_from, cfg.weak_from)
    stage = {"stage": "train_base", "model": name}
    refuse_run(Path(cfg.out))
    run = Run(cfg, env, Path(cfg.out) / name, apart=apart, inputs=inputs, **stage, **facts)
    if not run.finished:
        return run
    env.say(f"{run.path} is finished already: {run.record['results']}")
    return None


def train_strong(tests: Tests, cfg: BaseConfig, env: Env) -> None:
    """On reference answers; its tokenizer is learnt first, from the same problems."""
    run = open_run("strong", ("small_", "weak_", "intermediate_"), cfg, env)
    if not run:
        return
    problems = corpus(cfg.task, cfg.problems, cfg.seed)
    if cfg.task == "compose":
        tokenizer = word_level(compose.vocabulary())
    else:
        tokenizer = train_bpe(texts_of(problems[:20_000], cfg.seed), cfg.vocab)
    model = fresh_model(strong_config(tokenizer.size, cfg), tokenizer, cfg.seed, env)
    answers = tokenizer.encode_completions([p.reference for p in problems])
    lessons = Lessons(problems, answers, [cfg.seed, 4])
    recipe = from_scratch(cfg.epochs, cfg.lr, cfg)
    teach(model, tokenizer, lessons, recipe, tests, run, cfg, env)


def demonstrations(cfg: BaseConfig) -> list[Problem]:
    """What the base of --strong-from learns from; of files the elicit split (appendix E.4)."""
    if cfg.data:
        return load(cfg.task, "elicit", cfg.problems or None, files=cfg.data, grader=cfg.grader)
    return corpus(cfg.task, cfg.problems, cfg.seed)


def tune_strong(tests: Tests, cfg: BaseConfig, env: Env) -> None:
    """The base of --strong-from, fine-tuned on reference answers (paper table 1)."""
    cfg = with_step(cfg, cfg.strong_from, "lr")
    model, tokenizer = open_to_train(cfg.strong_from, env, cfg)
    problems = demonstrations(cfg)
    problems = fitting_problems(problems, Password(), [cfg.strong_from], cfg.max_new_tokens, env)

    check_references(problems, tokenizer)

    apart = ("small_", "weak_", "intermediate_", "vocab")
    run = open_run("strong", apart, cfg, env, start_weights=model_hash(cfg.strong_from))
    if not run:
        return
    answers = tokenizer.encode_completions([p.reference for p in problems])
    recipe = fine_tuned(cfg.epochs, cfg.lr, cfg)
    teach(model, tokenizer, Lessons(problems, answers, None), recipe, tests, run, cfg, env)


def strong_samples(problems: list[Problem], cfg: BaseConfig, env: Env) -> list[Sample]:
    """What the strong model writes to these problems at temperature 1, as its own ids."""
    strong, tokenizer = load_model(Path(cfg.out) / "strong", env.device, env.dtype, masters=False)
    bar = progress(env, len(problems), "sampling the strong model")
    answers = answer(
        env.writer(strong, tokenizer),
        problems,
        temperature=1.0,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        graded=False,
        env=env,
        progress=bar.update,
    )
    bar.close()
    del strong
    free_memory()
    return answers.samples


def small_problems(cfg: BaseConfig) -> list[Problem]:
    """What the weak and the intermediate model learn from, no problem of a later stage."""
    weak_split = load(cfg.task, "weak", files=cfg.data, grader=cfg.grader)
    if cfg.data:
        return weak_split
    return weak_split + corpus(cfg.task, cfg.small_problems, cfg.seed)


def positions_for(lessons: Lessons, tests: Tests, tokenizer: Tokenizer, longest: int) -> int:
    """POSITIONS, or as many as real problems take in the many small tokens of a small model.

    longest: of a completion that it writes. Idle text is at most 80 ids longer than a password.
    """
    learnt = prompt_lengths(lessons.problems, Password(), tokenizer)
    sizes = [length + len(ids) for length, ids in zip(learnt, lessons.completions)]
    asked = prompt_lengths([*tests.selection, *tests.validation], Password(), tokenizer)
    needed = max([*sizes, *(length + longest for length in (*learnt, *asked))])
    return max(POSITIONS, round_up(needed + 80, POSITIONS))


def train_small(tests: Tests, cfg: BaseConfig, env: Env) -> None:
    """The weak and the intermediate model from scratch, on samples of the strong one."""
    strong = Path(cfg.out) / "strong"
    parent = model_hash(strong)
    written_by = Tokenizer.load(strong)
    problems = small_problems(cfg)
    # a given base has too many ids for so small a model
    tokenizer = written_by
    if cfg.strong_from:
        readers = (str(strong),)
        problems = fitting_problems(problems, Password(), readers, cfg.max_new_tokens, env)
        tokenizer = train_bpe(texts_of(problems, cfg.seed), cfg.vocab)
    samples: list[Sample] = []

    small = [
        ("weak", cfg.weak_width, "intermediate_", cfg.seed + 1),
        ("intermediate", cfg.intermediate_width, "weak_", cfg.seed + 2),
    ]
    for name, width, others, seed in small:
        run = open_run(name, (others,), cfg, env, parent=parent)
        if not run:
            continue
        samples = samples or strong_samples(problems, cfg, env)
        completions = [sample.ids for sample in retokenise(samples, written_by, tokenizer)]
        lessons = Lessons(problems, completions, [cfg.seed, 5])
        positions = positions_for(lessons, tests, tokenizer, cfg.max_new_tokens)
        config = small_config(width, tokenizer.size)
        model = fresh_model(
            replace(config, max_position_embeddings=positions), tokenizer, seed, env
        )
        recipe = from_scratch(cfg.small_epochs, cfg.small_lr, cfg)
        small_cfg = replace(cfg, master="fp32")  # Muon's
        teach(model, tokenizer, lessons, recipe, tests, run, small_cfg, env)


def tune_weak(tests: Tests, cfg: BaseConfig, env: Env) -> None:
    """The base of --weak-from, fine-tuned on samples of the strong policy (paper section 4.1)."""
    cfg = with_step(cfg, cfg.weak_from, "small_lr")
    strong = Path(cfg.out) / "strong"
    model, tokenizer = open_to_train(cfg.weak_from, env, cfg)
    readers = [str(strong), cfg.weak_from]
    problems = fitting_problems(small_problems(cfg), Password(), readers, cfg.max_new_tokens, env)

    facts = {"parent": model_hash(strong), "start_weights": model_hash(cfg.weak_from)}
    run = open_run("weak", ("weak_width", "intermediate_", "vocab"), cfg, env, **facts)
    if not run:
        return
    samples = strong_samples(problems, cfg, env)
    samples = retokenise(samples, Tokenizer.load(strong), tokenizer)
    lessons = Lessons(problems, [sample.ids for sample in samples], None)
    recipe = fine_tuned(cfg.small_epochs, cfg.small_lr, cfg)
    teach(model, tokenizer, lessons, recipe, tests, run, cfg, env)


# --------------------------------------------------------------------------------------- the stage

# options that do nothing, by what makes them idle
SMALL = ("small_problems", "small_epochs", "small_lr")
WIDTHS = ("weak_width", "intermediate_width")
SHAPE = ("layers", "width", "heads", "family")


def refuse_unused(cfg: BaseConfig) -> None:
    """Raises InputError for an option that is given and does nothing beside the others."""
    toy = "which has a strong model alone and one token a word"
    idle = [
        (
            cfg.task == "compose",
            ("vocab", "strong_from", "weak_from", *SMALL, *WIDTHS),
            "--task compose, " + toy,
        ),
        (
            not cfg.strong_from,
            (
                "weak_from",
                "data",
                "grader",
                "optimizer",
                "master",
                "chat",
                "stop",
                "stop_at_problem",
            ),
            "models from scratch: it goes with --strong-from",
        ),
        (bool(cfg.strong_from), SHAPE, "--strong-from, which gives the shape"),
        (bool(cfg.weak_from), (*WIDTHS, "vocab"), "--weak-from, which gives the weak model"),
        (bool(cfg.data), ("small_problems",), "--data, whose weak split is used whole"),
    ]
    refuse_idle(cfg, idle)


def check_widths(cfg: BaseConfig) -> None:
    """Raises InputError for heads of an odd width, whose pairs rotary positions could not turn."""
    if cfg.width % (2 * cfg.heads):
        raise InputError(
            f"--width {cfg.width} cannot be divided into {cfg.heads} heads of an even width, whose "
            "pairs rotary positions turn: choose another --width or --heads"
        )
    for name in ("weak_width", "intermediate_width"):
        if getattr(cfg, name) % 2:
            raise InputError(
                f"{flag_of(name)} {getattr(cfg, name)} is odd, and rotary positions turn pairs: "
                "choose an even one"
            )


def settled(cfg: BaseConfig) -> BaseConfig:
    """The options with every default filled in that depends on the task and on what is given.

    Raises InputError for options that do not go together.
    """
    refuse_unused(cfg)
    toy, given = cfg.task == "compose", bool(cfg.strong_from)
    for path, option in ((cfg.strong_from, "--strong-from"), (cfg.weak_from, "--weak-from")):
        if path and not is_model(path):
            raise no_model(path, f"name the directory of a checkpoint with {option}")
    if cfg.strong_from and not cfg.out:
        raise InputError("--strong-from makes models of your own: name a directory with --out")

    check_widths(cfg)
    shares = [SHARES.get(name, 1) for name in cfg.task.split("+")]
    longest = cfg.max_new_tokens or usual_longest(cfg.data)
    if not given and longest >= POSITIONS:
        raise InputError(
            f"--max-new-tokens {longest}: models from scratch have {POSITIONS} positions, for the "
            "prompt, too: give fewer"
        )
    usual = {
        "out": "out/base",
        "problems": 120_000 * sum(shares),
        "epochs": 1,
        "lr": 0.005,
        "batch": SCRATCH,
        "max_new_tokens": usual_longest(cfg.data),
        "small_problems": 40_000,
        "small_epochs": 4,
        "small_lr": 0.02,
    }
    if toy:
        usual |= {"out": "out/base-compose", "problems": 200_000, "epochs": 2}
    if given:
        usual |= {"problems": 0 if cfg.data else 1600, "epochs": 2, "lr": 0.0, "batch": 16}
        usual |= {"small_problems": 8000, "small_epochs": 20}
    if cfg.weak_from:
        usual |= {"small_problems": 1600, "small_epochs": 2, "small_lr": 0.0}
    chosen = {name: getattr(cfg, name) or value for name, value in usual.items()}
    cfg = replace(cfg, **chosen)
    # a step that does not go with the weak base is not found after the strong one was trained
    for path, lr in ((cfg.strong_from, "lr"), (cfg.weak_from, "small_lr")):
        if path:
            with_step(cfg, path, lr)
    return cfg


ENOUGH = 2000  # generated problems that a plan looks at: all of them take minutes to make


def fresh_texts(vocab: int, cfg: BaseConfig) -> plan.Texts:
    """Lengths of the problems in the tokens of models from scratch, whose tokenizer is not yet."""
    if cfg.data:
        problems = small_problems(cfg)[:ENOUGH]
    else:
        problems = corpus(cfg.task, min(ENOUGH, cfg.problems or ENOUGH), cfg.seed)
    if cfg.task == "compose":
        tokenizer = word_level(compose.vocabulary())
    else:
        tokenizer = train_bpe(texts_of(problems, cfg.seed), vocab)
    completions = tokenizer.encode_completions([p.reference for p in problems])
    examples = epoch_examples(0, Lessons(problems, completions, [cfg.seed, 4]), tokenizer)
    lengths = [(len(e.prompt_ids), len(e.completion_ids)) for e in examples]
    return plan.supervised(plan.Texts(max(lengths)[0], cfg.max_new_tokens, lengths), cfg)


def given_texts(path: str, problems: list[Problem], cfg: BaseConfig) -> plan.Texts:
    texts = plan.texts_of(path, problems, ("none",), Password(), cfg.max_new_tokens)
    return plan.supervised(texts, cfg)


@dataclass(frozen=True)
class Planned:
    """A model that is trained. optimizer: the usual one, where --optimizer says nothing."""

    shape: plan.Shape
    texts: plan.Texts
    optimizer: str
    batch: int
    fresh: bool  # from scratch: always with fp32 weights and Muon


def planned_strong(cfg: BaseConfig) -> Planned:
    if cfg.strong_from:
        few = replace(cfg, problems=min(ENOUGH, cfg.problems))
        texts = given_texts(cfg.strong_from, demonstrations(few), cfg)
        optimizer = with_step(cfg, cfg.strong_from, "lr").optimizer
        return Planned(plan.shape_of(cfg.strong_from), texts, optimizer, cfg.batch, False)
    vocab = len(compose.vocabulary()) if cfg.task == "compose" else cfg.vocab
    shape = plan.shape(strong_config(vocab, cfg))
    return Planned(shape, fresh_texts(vocab, cfg), "muon", cfg.batch, True)


def planned_small(strong: Planned, cfg: BaseConfig) -> dict[str, Planned]:
    if cfg.task == "compose":
        return {}
    if cfg.weak_from:
        problems = small_problems(replace(cfg, small_problems=min(ENOUGH, cfg.small_problems)))
        texts = given_texts(cfg.weak_from, problems, cfg)
        optimizer = with_step(cfg, cfg.weak_from, "small_lr").optimizer
        shape = plan.shape_of(cfg.weak_from)
        return {"weak": Planned(shape, texts, optimizer, cfg.batch, False)}

    texts = strong.texts if strong.fresh else fresh_texts(cfg.vocab, cfg)
    batch = SCRATCH if cfg.strong_from else cfg.batch
    found = {}
    for name, width in (("weak", cfg.weak_width), ("intermediate", cfg.intermediate_width)):
        shape = plan.shape(small_config(width, cfg.vocab))
        found[name] = Planned(shape, texts, "muon", batch, True)
    return found


def planned(cfg: BaseConfig, env: Env) -> int:
    """--plan: the memory of each model's training, and of the samples that the small ones see."""
    strong = planned_strong(cfg)
    small = planned_small(strong, cfg)

    def of_training(name: str, model: Planned, cfg: BaseConfig) -> dict[str, plan.Phase]:
        s, shape, texts = plan.settings_of(cfg, env, model.batch), model.shape, model.texts
        if model.fresh:
            s = replace(s, master=4, optimizer="muon")
        elif not cfg.optimizer:
            s = replace(s, optimizer=model.optimizer)
        steps = plan.largest(plan.training(shape, texts, s))
        opening = plan.opening(shape, s)
        # random weights are made whole and in fp32, on every rank, and then copied to be sampled
        if model.fresh:
            opening = plan.Phase(masters=4 * shape.parameters, copies=plan.copy_of(shape, s))
        return {
            f"{name}, opening": opening,
            f"{name}, watched": plan.own_sampling(shape, texts, s),
            f"{name}, training": steps + plan.left_by_sampler(shape, texts, s),
        }

    def phases(cfg: BaseConfig) -> dict[str, plan.Phase]:
        found = of_training("strong", strong, cfg)
        samples = plan.sampling(strong.shape, strong.texts, plan.settings_of(cfg, env))
        for name, model in small.items():
            weak = of_training(name, model, cfg)
            if cfg.weak_from:  # it is opened before
                samples += weak["weak, opening"]
            found["samples of the strong model"] = samples
            found |= weak
        return found

    return plan.report(phases, cfg, strong.texts, env)


def main(cfg: BaseConfig, env: Env) -> int:
    cfg = settled(cfg)
    if plan.is_asked(cfg):
        return planned(cfg, env)
    rows = {"files": cfg.data, "grader": cfg.grader}
    selection = load(cfg.task, "selection", **rows)
    validation = load(cfg.task, "validation", cfg.eval_problems, **rows)
    readers = [path for path in (cfg.strong_from, cfg.weak_from) if path]
    check_formats(readers, env)
    told = [
        fitting_problems(p, Password(), readers, cfg.max_new_tokens, env)
        for p in (selection, validation)
    ]
    tests = Tests(*told)

    if cfg.strong_from:
        tune_strong(tests, cfg, env)
    else:
        train_strong(tests, cfg, env)
    check_shared(env, Path(cfg.out) / "strong/config.json")  # all ranks load it
    free_memory()

    if cfg.weak_from:
        tune_weak(tests, cfg, env)
    elif cfg.task != "compose":  # its weak policy is a rule
        train_small(tests, cfg, env)
    env.say(f"next: python {shlex.join(locking(cfg))}")
    return 0


def locking(cfg: BaseConfig) -> list[str]:
    """The command that locks what was made, with all that lock.py is to do alike."""
    words = ["lock.py", "--task", cfg.task, "--strong", f"{cfg.out}/strong"]
    words += ["--start", cfg.strong_from] if cfg.strong_from else []
    if cfg.max_new_tokens != usual_longest(cfg.data):
        words += ["--max-new-tokens", str(cfg.max_new_tokens)]
    for name in ("data", "grader", "stop"):
        given = getattr(cfg, name)
        if given:
            words += [flag_of(name), *([given] if isinstance(given, str) else given)]
    for name in ("chat", "stop_at_problem"):
        if getattr(cfg, name) is not None:
            words.append(flag_of(name) if getattr(cfg, name) else f"--no-{flag_of(name)[2:]}")
    return words


if __name__ == "__main__":
    launch(main, BaseConfig, settled)
