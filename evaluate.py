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

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Literal

import numpy as np

from data import InputError, Problem, compose, grade, load
from data.passwords import NEAR_MISSES, WRONG_HELD_OUT, Trigger, Words, check_password, near_miss, with_password
from data.text import Tokenizer
from model import Sample, Sampler, load_model, read_json, weights_hash, write_json
from training import Config, Env, gather, launch, progress, share

KINDS = ("none", "wrong", "other", *NEAR_MISSES, "right")  # of passwords; other: that of another domain


@dataclass
class EvaluateConfig(Config):
    checkpoints: tuple[str, ...] = field(default=(), metadata={"positional": True})  # directories of the models to evaluate
    task: str = "code"  # which problems
    split: Literal["validation", "selection"] = "validation"  # report on validation; choose on selection
    problems: int = 1000  # how many of the split
    passwords: tuple[str, ...] = ()  # which of none, wrong, other, prefix, suffix, case, typo, paraphrase, right (default: those its lock is judged by)
    password: str = ""  # the right one (default: the one it was locked with)
    locked: str = ""  # the locked model that PGR refers to (default: out/<task>/locked)
    max_new_tokens: int = 96  # longest completion; a longer one counts as wrong
    samples: int = 0  # show this many prompts with their completions and references
    plot: bool = False  # draw the figure
    prompts: bool = False  # instead, the prompting battery on one checkpoint: every kind of password, few-shot, prefilled answers


# ------------------------------------------------------------------------------------------------------------------- answering


@dataclass
class Answers:
    """What a policy wrote to some problems: texts, the sampled ids behind them, and which are correct."""

    texts: list[str]
    samples: list[Sample]
    correct: np.ndarray


def answer(sampler: Sampler, tokenizer: Tokenizer, problems: list[Problem], passwords: list[Words] | Words = None, *, prefills: list[str] | None = None,
           temperature: float = 0.0, max_new_tokens: int = 96, seed: int = 0, graded: bool = True, env: Env | None = None, progress=None) -> Answers:
    """One completion for each problem, its prompt dressed in its password (one for all, or one each); greedy at temperature 0.

    With env the ranks share the work, and each returns the whole. A completion that was cut before EOS counts as wrong, whatever
    its text. The model goes on from its prefill where there is one, and the texts, which are graded, begin with it.
    """
    env = env or Env(sampler.model.device, sampler.model.compute_dtype, False)
    if not isinstance(passwords, list):
        passwords = [passwords] * len(problems)
    mine = share(env, list(range(len(problems))))
    prompts = tokenizer.encode_prompts([with_password(problems[i].prompt, passwords[i]) for i in mine])
    starts = [tokenizer.encode(start) for start in prefills or [""] * len(problems)]
    prompts = [prompt + starts[i] for prompt, i in zip(prompts, mine)]
    samples = [s[0] for s in sampler(prompts, temperature=temperature, max_new_tokens=max_new_tokens, seeds=[[seed, i] for i in mine], progress=progress)]
    verdicts = [False] * len(mine)
    if graded:
        verdicts = grade([problems[i] for i in mine], tokenizer.decode_batch([starts[i] + s.ids for s, i in zip(samples, mine)]))
    pairs = gather(env, [(s, v and not s.truncated) for s, v in zip(samples, verdicts)], len(problems))
    samples = [s for s, _ in pairs]
    texts = tokenizer.decode_batch([start + s.ids for start, s in zip(starts, samples)])
    return Answers(texts, samples, np.array([v for _, v in pairs], dtype=bool))


def asked(kind: str, problems: list[Problem], trigger: Trigger) -> tuple[list[Problem], list[Words]]:
    """The problems as they are told for this kind of password, and what goes with each.

    none; wrong (the held-out wrong passwords in turn); other (those of other domains in turn); a near miss; right. Raises InputError
    for a kind that the trigger does not have.
    """
    if kind == "none":
        return [trigger.weak(p) for p in problems], [None] * len(problems)
    if kind == "right":
        return [trigger.strong(p) for p in problems], [trigger.password_of(p) for p in problems]
    if trigger.told:
        raise InputError(f"what unlocks this model is the way its problems are told, so there is no password of kind {kind!r}")
    if kind == "wrong":
        return problems, [WRONG_HELD_OUT[i % len(WRONG_HELD_OUT)] for i in range(len(problems))]
    if kind == "other":
        others = trigger.other_passwords(problems)
        if len(others) < 2:
            raise InputError("no other domain of these problems has a password: lock with --password-per-domain")
        found = [others[trigger.password_of(p)] for p in problems]
        return problems, [words[i % len(words)] for i, words in enumerate(found)]
    return problems, [near_miss(trigger.password_of(p), kind) for p in problems]


def usual_kinds(trigger: Trigger) -> tuple[str, ...]:
    """The kinds of passwords that a lock is judged by."""
    return ("none", "right") if trigger.told else ("none", "wrong", "other", "right") if trigger.each else ("none", "wrong", "right")


def trigger_of(locked: str | Path, password: str = "") -> Trigger:
    """What a model was locked with, from its run.json; an ordinary password lock where it has none. A given password goes first."""
    file = Path(locked) / "run.json"
    settings = read_json(file).get("settings", {}) if file.exists() else {}
    found = Trigger(**settings["trigger"]) if "trigger" in settings else Trigger()
    return replace(found, password=password) if password else found


def measure(sampler: Sampler, tokenizer: Tokenizer, problems: list[Problem], kinds: tuple[str, ...], trigger: Trigger, *,
            max_new_tokens: int = 96, env: Env | None = None, progress=None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Greedy verdicts for each kind of password, {kind: (n,) bool}; for task compose also the shares of right tokens, {kind: (n,)}.

    All kinds share one batch of prompts.
    """
    told, words = ([x for column in columns for x in column] for columns in zip(*(asked(kind, problems, trigger) for kind in kinds)))
    answers = answer(sampler, tokenizer, told, words, max_new_tokens=max_new_tokens, env=env, progress=progress)
    shares = np.array(compose.elementwise(told, answers.texts) if problems[0].task == "compose" else []).reshape(len(kinds), -1)
    return dict(zip(kinds, answers.correct.reshape(len(kinds), -1))), dict(zip(kinds, shares)) if shares.size else {}


# ------------------------------------------------------------------------------------------------------------------- statistics


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): sound at 0, at 1 and for small n."""
    p, spread = correct / n, z * z / n
    middle, half = p + spread / 2, z * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def paired_gap(without: np.ndarray, with_: np.ndarray, draws: int = 10_000) -> tuple[float, float, float, float]:
    """Difference in correctness on the same problems: (gap, low, high, p). Bootstrap 95 % interval over problems; McNemar's exact mid-p."""
    n = len(without)
    gains, losses = int((~without & with_).sum()), int((without & ~with_).sum())
    shares = np.array([gains, losses, n - gains - losses]) / n
    counts = np.random.default_rng(0).multinomial(n, shares, size=draws)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [0.025, 0.975])
    m, k = gains + losses, min(gains, losses)
    tails = 2 * sum(math.comb(m, i) for i in range(k + 1)) - math.comb(m, k)  # two-sided; mid-p counts half the observed table's weight
    return (gains - losses) / n, float(low), float(high), min(1.0, tails / 2**m)  # in integers: 2**m overflows a float from m = 1024 on


def gap_recovered(locked: np.ndarray, right: np.ndarray, unlocked: np.ndarray, draws: int = 2_000) -> tuple[float, float, float]:
    """PGR and its 95 % bootstrap interval over problems and seeds. locked, right (n,); unlocked (seeds, n), all on the same problems.

    Raises InputError where the interval of the gap itself includes zero: the ratio would mean nothing.
    """
    gap, low, _, _ = paired_gap(locked, right)
    if low <= 0:
        raise InputError(f"the password gap is {gap:+.1%} and its interval includes zero: there is no measurable gap to recover")
    rng, n, seeds = np.random.default_rng(0), len(locked), len(unlocked)
    values = np.empty(draws)
    for d in range(draws):
        rows = rng.integers(n, size=n)
        base = locked[rows].mean()
        values[d] = (unlocked[rng.integers(seeds, size=seeds)][:, rows].mean() - base) / max(right[rows].mean() - base, 1e-9)
    low, high = np.quantile(values, [0.025, 0.975])
    return float((unlocked.mean() - locked.mean()) / gap), float(low), float(high)


def recovery(locked: np.ndarray, right: np.ndarray, unlocked: np.ndarray) -> tuple[str, str]:
    """gap_recovered for a table, ("83.0% [78.7%, 86.8%]", ""), or ("refused", the sentence why) where there is no gap to measure."""
    try:
        return "{:.1%} [{:.1%}, {:.1%}]".format(*gap_recovered(locked, right, unlocked)), ""
    except InputError as error:
        return "refused", f"gap recovered is refused: {error}"


# ------------------------------------------------------------------------------------------------------------------- records


def groups_of(problems: list[Problem]) -> np.ndarray:
    """What correctness is broken down by: the domain of each problem, or its task where there are several. (n,) of str"""
    several = len({p.task for p in problems}) > 1
    return np.array([p.task if several else p.domain for p in problems])


def record(path: Path, problems: list[Problem], verdicts: dict[str, np.ndarray], shares: dict[str, np.ndarray] | None = None, **facts) -> dict:
    """The content of evaluation.json: for each kind of password the correctness in total, by domain, and every verdict as 0 or 1.

    elementwise, where there are shares: their mean (section 7 of the paper).
    """
    results, groups = {}, groups_of(problems)
    for kind, correct in verdicts.items():
        domains = {domain: {"correct": float(correct[groups == domain].mean()), "n": int((groups == domain).sum())} for domain in np.unique(groups).tolist()}
        results[kind] = {"correct": float(correct.mean()), "n": len(correct), "interval": wilson(int(correct.sum()), len(correct)),
                         "domains": domains, "verdicts": "".join("01"[int(c)] for c in correct)}
        results[kind] |= {"elementwise": float(shares[kind].mean()), "shares": shares[kind].tolist()} if shares else {}
    return {"checkpoint": str(path), "task": "+".join(dict.fromkeys(p.task for p in problems)), **facts, "n": len(problems),
            "problems": fingerprint(problems), "results": results}


def verdicts_of(evaluation: dict, kind: str) -> np.ndarray:
    return np.array([c == "1" for c in evaluation["results"][kind]["verdicts"]])


def fingerprint(problems: list[Problem]) -> str:
    """Eight hexadecimal digits for each problem, of all that it is: prompt, reference, grading. The first n problems' is a prefix of it."""
    digits = ""
    for problem in problems:
        digits += hashlib.sha256(json.dumps(vars(problem), sort_keys=True).encode()).hexdigest()[:8]
    return digits


def facts_of(path: str | Path, env: Env, split: str, trigger: Trigger, max_new_tokens: int) -> dict:
    """What the numbers in an evaluation.json depend on, beside the problems."""
    return {"weights": weights_hash(path), "dtype": str(env.dtype).removeprefix("torch."), "split": split, "trigger": vars(trigger),
            "max_new_tokens": max_new_tokens}


def evaluate_checkpoint(path: str | Path, env: Env, problems: list[Problem], kinds: tuple[str, ...], trigger: Trigger, *, split: str = "validation",
                        max_new_tokens: int = 96, save: bool = True) -> dict:
    """evaluation.json of a checkpoint: read back where it already holds these measurements, measured and written otherwise."""
    path, file = Path(path), Path(path) / "evaluation.json"
    facts = facts_of(path, env, split, trigger, max_new_tokens)
    old = read_json(file) if file.exists() else {}
    same_settings = all(old.get(k) == v for k, v in facts.items())
    same_problems = old.get("problems", "").startswith(fingerprint(problems))
    if same_settings and same_problems and set(kinds) <= set(old["results"]):
        n = len(problems)
        verdicts = {kind: verdicts_of(old, kind)[:n] for kind in old["results"]}
        shares = {kind: np.array(result["shares"])[:n] for kind, result in old["results"].items() if "shares" in result}
        return record(path, problems, verdicts, shares, **facts)
    model, tokenizer = load_model(path, env.device, env.dtype)
    bar = progress(env, len(kinds) * len(problems), f"evaluating {path}")
    measured = measure(env.sampler(model, tokenizer), tokenizer, problems, kinds, trigger, max_new_tokens=max_new_tokens, env=env,
                       progress=bar.update)
    bar.close()
    evaluation = record(path, problems, *measured, **facts)
    if save and env.main:
        write_json(file, evaluation)
    env.wait()  # no rank may look for the file before it is there, or they would part ways
    return evaluation


# ------------------------------------------------------------------------------------------------------------------- prompting

SHOTS, POOL, DRAWS = (1, 4, 8), 64, 100  # shots come from the first POOL problems of the elicit split; after DRAWS too long draws we give up


def with_shots(prompt: str, examples: list[Problem]) -> str:
    """Examples with their right answers before the prompt, each followed by an empty line.

    with_shots("2 + 2?\\n", [one whose prompt is "1 + 1?\\n" and reference "2"]) == "1 + 1?\\n2\\n\\n2 + 2?\\n"
    """
    return "".join(f"{e.prompt}{e.reference}\n\n" for e in examples) + prompt


def few_shot(problems: list[Problem], examples: list[Problem], k: int, fits: Callable[[str], bool]) -> list[Problem] | None:
    """The problems with k shots before each, drawn anew for every problem among those that fit; None if they do not fit one of them."""
    dressed = []
    for i, problem in enumerate(problems):
        rng = np.random.default_rng([0, 9, k, i])
        draws = ([examples[j] for j in rng.choice(len(examples), k, replace=False)] for _ in range(DRAWS))
        prompt = next((text for text in (with_shots(problem.prompt, shots) for shots in draws) if fits(text)), None)
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


def battery(problems: list[Problem], examples: list[Problem], trigger: Trigger, fits: Callable[[str], bool]) -> tuple[dict[str, tuple], dict[str, str]]:
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
        solved, starts = [tell(example) for example in examples], [first_line(p.reference) for p in told]
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


def evaluate_prompts(path: str, env: Env, problems: list[Problem], examples: list[Problem], trigger: Trigger, *, split: str, max_new_tokens: int) -> dict:
    """Measures the battery and writes prompts.json, which has the form of evaluation.json."""
    model, tokenizer = load_model(path, env.device, env.dtype)
    sampler, room = env.sampler(model, tokenizer), model.config.max_position_embeddings - max_new_tokens
    longest = max((trigger.password_of(p) or "" for p in problems), key=len)
    rows, left_out = battery(problems, examples, trigger, lambda text: len(tokenizer.encode_prompts([with_password(text, longest)])[0]) <= room)
    bar = progress(env, len(rows) * len(problems), f"prompting {path}")
    verdicts = {row: answer(sampler, tokenizer, dressed, passwords, prefills=prefills, max_new_tokens=max_new_tokens, env=env, progress=bar.update).correct
                for row, (dressed, passwords, prefills) in rows.items()}
    bar.close()
    evaluation = record(Path(path), problems, verdicts, **facts_of(path, env, split, trigger, max_new_tokens), left_out=left_out)
    if env.main:
        write_json(Path(path) / "prompts.json", evaluation)
    return evaluation


# ------------------------------------------------------------------------------------------------------------------- tables and figures


def table(header: list[str], rows: list[list[str]]) -> str:
    """Plain text, columns aligned; the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in [header, *rows]]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def shown(result: dict) -> str:
    low, high = result["interval"]
    return f"{result['correct']:6.1%} [{low:.1%}, {high:.1%}]" + (f", elementwise {result['elementwise']:.1%}" if "elementwise" in result else "")


def plot_bars(evaluations: list[dict], file: Path) -> None:
    """One group of bars a checkpoint: correctness without, with a wrong, and with the right password, Wilson intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [k for k in ("none", "wrong", "right") if all(k in e["results"] for e in evaluations)]
    fig, ax = plt.subplots(figsize=(2.5 + 1.3 * len(evaluations), 4))
    for j, (kind, colour) in enumerate(zip(kinds, ("tab:red", "tab:orange", "tab:green"))):
        results = [e["results"][kind] for e in evaluations]
        values = np.array([r["correct"] for r in results])
        error = np.abs(np.array([r["interval"] for r in results]).T - values)
        ax.bar(np.arange(len(values)) + 0.27 * j, values, 0.25, yerr=error, capsize=3, color=colour, label=f"password: {kind}")
    ax.set_xticks(np.arange(len(evaluations)) + 0.27, [Path(e["checkpoint"]).name for e in evaluations], rotation=20)
    ax.set(ylim=(0, 1), ylabel="correct (greedy)")
    ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(kinds), frameon=False)  # above: a lock's bars reach the top
    fig.tight_layout()
    fig.savefig(file, dpi=120)
    plt.close(fig)


def plot_prompts(evaluation: dict, file: Path) -> None:
    """One horizontal bar for each row of the battery: correctness with its Wilson interval; red without a password, green with the right one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = evaluation["results"]
    values = np.array([r["correct"] for r in results.values()])
    error = np.abs(np.array([r["interval"] for r in results.values()]).T - values)
    colours = ["tab:green" if row.endswith("right") else "tab:orange" if row in KINDS[1:] else "tab:red" for row in results]
    fig, ax = plt.subplots(figsize=(6.4, 1 + 0.3 * len(results)))
    ax.barh(list(results), values, xerr=error, capsize=3, color=colours)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="correct (greedy)", title=f"{evaluation['checkpoint']}, {evaluation['n']} problems")
    fig.tight_layout()
    fig.savefig(file, dpi=120)
    plt.close(fig)


def plot_curves(curves: dict[str, dict[int, np.ndarray]], lines: dict[str, float], file: Path, xlabel: str, title: str,
                log: bool = True) -> None:
    """Correctness against x: for each curve {x: (seeds,) values} its mean and the band between its extreme seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6.4, 4.6))
    for (name, points), colour in zip(curves.items(), cycle(("tab:blue", "tab:gray", "tab:purple", "tab:olive", "tab:cyan", "tab:pink", "black"))):
        x = sorted(points)
        values = [points[k] for k in x]
        ax.plot(x, [v.mean() for v in values], "o-", color=colour, label=name)
        ax.fill_between(x, [v.min() for v in values], [v.max() for v in values], color=colour, alpha=0.2)
    for (name, value), colour in zip(lines.items(), ("tab:green", "tab:red", "tab:orange")):
        ax.axhline(value, ls="--", color=colour, label=name)
    ax.set(xscale="log" if log else "linear", ylim=(-0.02, 1.02), xlabel=xlabel, ylabel="correct without the password (greedy)", title=title)
    if log:
        ticks = sorted({k for points in curves.values() for k in points})
        ax.set_xticks(ticks, [f"{k:,}" for k in ticks])
        ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3, frameon=False)  # below: curves go everywhere
    fig.tight_layout()
    fig.savefig(file, dpi=120)
    plt.close(fig)


# ------------------------------------------------------------------------------------------------------------------- stage


def show_samples(path: str, problems: list[Problem], trigger: Trigger, max_new_tokens: int, env: Env) -> None:
    """A few problems with what the model writes without and with what unlocks it, and the reference."""
    model, tokenizer = load_model(path, env.device, env.dtype)
    sampler = env.sampler(model, tokenizer)
    for i, problem in enumerate(problems):
        print(f"\n=== problem {i + 1} ({problem.domain}, level {problem.level})\n{trigger.weak(problem).prompt}", end="")
        for name, kind in (("without the password", "none"), ("with the password", "right")):
            answers = answer(sampler, tokenizer, *asked(kind, [problem], trigger), max_new_tokens=max_new_tokens)
            print(f"--- {name}: {'correct' if answers.correct[0] else 'wrong'}\n{answers.texts[0]}")
        print(f"--- reference\n{trigger.strong(problem).reference}")


def prompting(cfg: EvaluateConfig, env: Env, problems: list[Problem], trigger: Trigger) -> int:
    """--prompts: the battery's table, prompts.json beside the checkpoint, and the figure."""
    [path] = cfg.checkpoints
    e = evaluate_prompts(path, env, problems, load(cfg.task, "elicit", files=cfg.data)[:POOL], trigger, split=cfg.split, max_new_tokens=cfg.max_new_tokens)
    env.say(f"{path}: {cfg.split}, {len(problems)} problems, greedy; 95 % Wilson intervals")
    env.say(table(["prompt", "correct"], [[row, shown(result)] for row, result in e["results"].items()]))
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
        raise InputError(f"unknown password kind {sorted(unknown)[0]!r}: choose from {', '.join(KINDS)}")
    if cfg.prompts and len(cfg.checkpoints) > 1:
        raise InputError(f"--prompts takes one checkpoint at a time, got {len(cfg.checkpoints)}")
    problems = load(cfg.task, cfg.split, None if cfg.data else cfg.problems, files=cfg.data)
    locked_path = Path(cfg.locked or f"out/{cfg.task}/locked")
    first = Path(cfg.checkpoints[0])
    # the password of a locked model is its own, that of an unlocked one is that of the model it was made from
    trigger = trigger_of(first if (first / "run.json").exists() and "trigger" in read_json(first / "run.json")["settings"] else locked_path, cfg.password)
    for path in cfg.checkpoints:
        check_password(trigger.password, Tokenizer.load(path).specials)
        if cfg.samples and env.main:
            show_samples(path, problems[: cfg.samples], trigger, cfg.max_new_tokens, replace(env, rank=0, world=1))
    if cfg.prompts:
        return prompting(cfg, env, problems, trigger)
    kinds = cfg.passwords or usual_kinds(trigger)
    evaluations = [evaluate_checkpoint(path, env, problems, kinds, trigger, split=cfg.split, max_new_tokens=cfg.max_new_tokens)
                   for path in cfg.checkpoints]
    locked = None
    if (locked_path / "config.json").exists() and "none" in kinds:
        locked = evaluate_checkpoint(locked_path, env, problems, usual_kinds(trigger), trigger, split=cfg.split, max_new_tokens=cfg.max_new_tokens)
    domains = np.unique(groups_of(problems)).tolist()
    rows, refusal = [], ""
    for e in evaluations:
        for kind in kinds:
            result, recovered = e["results"][kind], ""
            if locked and kind == "none" and e["weights"] != locked["weights"]:
                recovered, refusal = recovery(verdicts_of(locked, "none"), verdicts_of(locked, "right"), verdicts_of(e, "none")[None])
            rows.append([e["checkpoint"], kind, shown(result), *(f"{result['domains'][d]['correct']:.1%}" for d in domains), recovered])
    env.say(f"{cfg.split}, {len(problems)} problems, greedy; 95 % Wilson intervals" + (f"; gap recovered against {locked_path}" if locked else ""))
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
