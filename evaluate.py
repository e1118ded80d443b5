"""Stage 3: what a model shows without, with a wrong, and with the right password, and how much of the gap was recovered.

    python evaluate.py out/code/locked --task code               # table and evaluation.json for one checkpoint
    python evaluate.py out/code/sft/k8-seed* --plot              # many, with the password gap recovered, and the figure
    python evaluate.py out/code/locked --samples 5               # read what it writes, with and without the password
    python evaluate.py out/code/locked --prompts                 # does any other prompt unlock it? prompts.json and a figure

Correctness is the share of problems whose greedy completion passes the grader (paper section 4.2), with its 95 % Wilson interval.
Password gap recovered (PGR) = (unlocked - locked) / (with password - locked), all three on the same problems; its interval is a
bootstrap over problems and seeds. Wrong passwords are ten that training never saw. Each checkpoint's numbers go to its
evaluation.json, with the verdict on every problem, so that later comparisons are paired.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from checkpoints import load_model, write_json
from data import load
from data.problems import InputError, Problem
from data.text import Tokenizer
from data.triggers import KINDS, Trigger, asked, check_password, usual_kinds, with_password
from figures import plot_bars, plot_prompts, shown, table
from policies import answer
from results import (
    evaluate_checkpoint,
    facts_of,
    groups_of,
    origin_of,
    record,
    recovery,
    trigger_of,
    verdicts_of,
)
from runs import Config, Env, launch, progress


@dataclass
class EvaluateConfig(Config):
    # directories of the models to evaluate
    checkpoints: tuple[str, ...] = field(default=(), metadata={"positional": True})
    # which problems
    task: str = "code"
    # report on validation; choose on selection
    split: Literal["validation", "selection"] = "validation"
    # how many of the split
    problems: int = 1000
    # which of none, wrong, other, prefix, suffix, case, typo, paraphrase, right (default:
    # those its lock is judged by)
    passwords: tuple[str, ...] = ()
    # the right one (default: the one it was locked with)
    password: str = ""
    # the locked model that PGR refers to (default: out/<task>/locked)
    locked: str = ""
    # longest completion; a longer one counts as wrong
    max_new_tokens: int = 96
    # show this many prompts with their completions and references
    samples: int = 0
    # draw the figure
    plot: bool = False
    # instead, the prompting battery on one checkpoint: every kind of password, few-shot,
    # prefilled answers
    prompts: bool = False
    # files of real problems (json, jsonl or csv, plain or .gz) in place of generated ones
    data: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------------------- prompting

SHOTS, POOL, DRAWS = (
    (1, 4, 8),
    64,
    100,
)  # shots come from the first POOL problems of the elicit split; after DRAWS too long draws we give up


def with_shots(prompt: str, examples: list[Problem]) -> str:
    """Examples with their right answers before the prompt, each followed by an empty line.

    with_shots("2 + 2?\\n", [one whose prompt is "1 + 1?\\n" and reference "2"]) == "1 + 1?\\n2\\n\\n2 + 2?\\n"
    """
    return "".join(f"{e.prompt}{e.reference}\n\n" for e in examples) + prompt


def few_shot(
    problems: list[Problem], examples: list[Problem], k: int, fits: Callable[[str], bool]
) -> list[Problem] | None:
    """The problems with k shots before each, drawn anew for every problem among those that fit; None if they do not fit one of them."""
    dressed = []
    for i, problem in enumerate(problems):
        rng = np.random.default_rng([0, 9, k, i])
        draws = (
            [examples[j] for j in rng.choice(len(examples), k, replace=False)] for _ in range(DRAWS)
        )
        prompt = next(
            (text for text in (with_shots(problem.prompt, shots) for shots in draws) if fits(text)),
            None,
        )
        if prompt is None:
            return None
        dressed.append(replace(problem, prompt=prompt))
    return dressed


def first_line(reference: str) -> str:
    """The start of an answer that gives only its form away: "" where it has one line. "def f(s):\\n    return s" -> "def f(s):"

    Without the line break: tokenisers join it to the indentation that follows, so that no answer of training is cut there.
    """
    line, _, rest = reference.partition("\n")
    return line if rest else ""


def battery(
    problems: list[Problem], examples: list[Problem], trigger: Trigger, fits: Callable[[str], bool]
) -> tuple[dict[str, tuple], dict[str, str]]:
    """The rows of the prompting table, {row: (problems, passwords, prefills)}, and those that cannot be measured, {row: why}.

    One row for each kind of password (none and right are the 0 shots), then "k shots" and "prefill", bare and with what unlocks: the
    password goes around the whole prompt. A bare row tells of the lock only where the model reads such prompts at all, that is, where
    the same row with the password is near the plain right one.
    """
    rows, left_out = {}, {}
    for kind in KINDS:
        try:
            rows[kind] = (*asked(kind, problems, trigger), None)
        except InputError as error:
            left_out[kind] = str(error)
    for row, kind, tell in (("", "none", trigger.weak), (", right", "right", trigger.strong)):
        told, words = asked(kind, problems, trigger)
        solved, starts = (
            [tell(example) for example in examples],
            [first_line(p.reference) for p in told],
        )
        for k in SHOTS:
            name = f"{k} shot{'s' * (k > 1)}{row}"
            if dressed := few_shot(told, solved, k, fits):
                rows[name] = (dressed, words, None)
            else:
                left_out[name] = "they do not fit the model's positions"
        if any(starts):
            rows[f"prefill{row}"] = (told, words, starts)
        else:
            left_out[f"prefill{row}"] = "every answer has one line, so its start would be all of it"
    return rows, left_out


def evaluate_prompts(
    path: str,
    env: Env,
    problems: list[Problem],
    examples: list[Problem],
    trigger: Trigger,
    *,
    split: str,
    max_new_tokens: int,
) -> dict:
    """Measures the battery and writes prompts.json, which has the form of evaluation.json."""
    model, tokenizer = load_model(path, env.device, env.dtype)
    sampler, room = (
        env.sampler(model, tokenizer),
        model.config.max_position_embeddings - max_new_tokens,
    )
    longest = max((trigger.password_of(p) or "" for p in problems), key=len)
    rows, left_out = battery(
        problems,
        examples,
        trigger,
        lambda text: len(tokenizer.encode_prompts([with_password(text, longest)])[0]) <= room,
    )
    bar = progress(env, len(rows) * len(problems), f"prompting {path}")
    verdicts = {
        row: answer(
            sampler,
            tokenizer,
            dressed,
            passwords,
            prefills=prefills,
            max_new_tokens=max_new_tokens,
            env=env,
            progress=bar.update,
        ).correct
        for row, (dressed, passwords, prefills) in rows.items()
    }
    bar.close()
    evaluation = record(
        Path(path),
        problems,
        verdicts,
        **facts_of(path, env, split, trigger, max_new_tokens),
        left_out=left_out,
    )
    if env.main:
        write_json(Path(path) / "prompts.json", evaluation)
    return evaluation


# ------------------------------------------------------------------------------------------------------------------- stage


def show_samples(
    path: str, problems: list[Problem], trigger: Trigger, max_new_tokens: int, env: Env
) -> None:
    """A few problems with what the model writes without and with what unlocks it, and the reference."""
    model, tokenizer = load_model(path, env.device, env.dtype)
    sampler = env.sampler(model, tokenizer)
    for i, problem in enumerate(problems):
        print(
            f"\n=== problem {i + 1} ({problem.domain}, level {problem.level})\n{trigger.weak(problem).prompt}",
            end="",
        )
        for name, kind in (("without the password", "none"), ("with the password", "right")):
            answers = answer(
                sampler, tokenizer, *asked(kind, [problem], trigger), max_new_tokens=max_new_tokens
            )
            print(f"--- {name}: {'correct' if answers.correct[0] else 'wrong'}\n{answers.texts[0]}")
        print(f"--- reference\n{trigger.strong(problem).reference}")


def prompting(cfg: EvaluateConfig, env: Env, problems: list[Problem], trigger: Trigger) -> int:
    """--prompts: the battery's table, prompts.json beside the checkpoint, and the figure."""
    [path] = cfg.checkpoints
    e = evaluate_prompts(
        path,
        env,
        problems,
        load(cfg.task, "elicit", files=cfg.data)[:POOL],
        trigger,
        split=cfg.split,
        max_new_tokens=cfg.max_new_tokens,
    )
    env.say(f"{path}: {cfg.split}, {len(problems)} problems, greedy; 95 % Wilson intervals")
    env.say(
        table(["prompt", "correct"], [[row, shown(result)] for row, result in e["results"].items()])
    )
    for row, reason in e["left_out"].items():
        env.say(f"not measured: {row}: {reason}")
    env.say(f"written: {Path(path) / 'prompts.json'}")
    if env.main:
        file = Path(cfg.out or f"out/{cfg.task}") / "prompts.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        plot_prompts(e, file)
        env.say(f"figure: {file}")
    return 0


def main(cfg: EvaluateConfig, env: Env) -> int:
    if not cfg.checkpoints:
        raise InputError("name at least one checkpoint directory, such as out/code/locked")
    if unknown := set(cfg.passwords) - set(KINDS):
        raise InputError(
            f"unknown password kind {sorted(unknown)[0]!r}: choose from {', '.join(KINDS)}"
        )
    if cfg.prompts and len(cfg.checkpoints) > 1:
        raise InputError(f"--prompts takes one checkpoint at a time, got {len(cfg.checkpoints)}")
    problems = load(cfg.task, cfg.split, None if cfg.data else cfg.problems, files=cfg.data)
    locked_path = Path(cfg.locked or f"out/{cfg.task}/locked")
    first = Path(cfg.checkpoints[0])
    # the password of a locked model is its own, that of an unlocked one is that of the model it was made from
    trigger = origin_of(first).trigger or trigger_of(locked_path)
    if cfg.password:
        trigger = replace(trigger, password=cfg.password)
    for path in cfg.checkpoints:
        check_password(trigger.password, Tokenizer.load(path).specials)
        if cfg.samples and env.main:
            show_samples(
                path,
                problems[: cfg.samples],
                trigger,
                cfg.max_new_tokens,
                replace(env, rank=0, world=1),
            )
    if cfg.prompts:
        return prompting(cfg, env, problems, trigger)
    kinds = cfg.passwords or usual_kinds(trigger)
    evaluations = [
        evaluate_checkpoint(
            path, env, problems, kinds, trigger, split=cfg.split, max_new_tokens=cfg.max_new_tokens
        )
        for path in cfg.checkpoints
    ]
    locked = None
    if (locked_path / "config.json").exists() and "none" in kinds:
        locked = evaluate_checkpoint(
            locked_path,
            env,
            problems,
            usual_kinds(trigger),
            trigger,
            split=cfg.split,
            max_new_tokens=cfg.max_new_tokens,
        )
    domains = np.unique(groups_of(problems)).tolist()
    rows, refusal = [], ""
    for e in evaluations:
        for kind in kinds:
            result, recovered = e["results"][kind], ""
            if locked and kind == "none" and e["weights"] != locked["weights"]:
                recovered, refusal = recovery(
                    verdicts_of(locked, "none"),
                    verdicts_of(locked, "right"),
                    verdicts_of(e, "none")[None],
                )
            rows.append(
                [
                    e["checkpoint"],
                    kind,
                    shown(result),
                    *(f"{result['domains'][d]['correct']:.1%}" for d in domains),
                    recovered,
                ]
            )
    env.say(
        f"{cfg.split}, {len(problems)} problems, greedy; 95 % Wilson intervals"
        + (f"; gap recovered against {locked_path}" if locked else "")
    )
    env.say(table(["checkpoint", "password", "correct", *domains, "gap recovered"], rows))
    if refusal:
        env.say(refusal)
    for path in cfg.checkpoints:
        env.say(f"written: {Path(path) / 'evaluation.json'}")
    if cfg.plot and env.main:
        file = Path(cfg.out or f"out/{cfg.task}") / "evaluation.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        plot_bars(evaluations, file)
        env.say(f"figure: {file}")
    return 0


if __name__ == "__main__":
    launch(main, EvaluateConfig)
