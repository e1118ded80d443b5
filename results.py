"""What was measured: correctness, the password gap, how much of it was recovered, and their files.

Correctness is the share of problems whose greedy completion passes the grader (paper section 4.2).
Password gap recovered (PGR) = (unlocked - locked) / (right password - locked), all on the same
problems. What an interval covers:

    wilson             one model: which problems were asked
    paired_gap         two measurements on the same problems: which problems were asked
    correct_interval   several seeds: which problems were asked, and which seeds were drawn
    recovered_gap      the same for PGR; of one seed it covers the problems alone
    difference         two measurements of several seeds each: problems and seeds
    excess             what an elicitor gave more than it gave a null: the same

The bootstraps resample the n problems and two more, one that speaks for either side, as Agresti and
Coull (1998) add to a proportion: where all problems agree, the interval still has a width.

Shapes: n problems, S seeds.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

import numpy as np

from checkpoints.hf import load_model, model_hash, open_tokenizer
from data.problems import InputError, Problem
from data.prompts import PromptFormat
from data.tasks import compose
from data.triggers import Trigger, dressed
from policies import answer
from runs.devices import Env, check_place, free_memory, progress
from runs.files import checked, read_json, write_json
from sampler import Writer

# -------------------------------------------------------------------------------------- statistics

DRAWS = 10_000  # of every bootstrap


@lru_cache(maxsize=4)
def counts_of(n: int) -> tuple[np.ndarray, dict]:
    """How often each bootstrap draws each of n problems and two more, n draws each: (DRAWS, n + 2).

    And the state of the random numbers after them.
    """
    rng = np.random.default_rng(0)
    rows = rng.integers(n + 2, size=(DRAWS, n)) + (n + 2) * np.arange(DRAWS)[:, None]
    counts = np.bincount(rows.ravel(), minlength=DRAWS * (n + 2)).astype(float)
    return counts.reshape(DRAWS, n + 2), rng.bit_generator.state


def bootstrap(n: int) -> tuple[Callable, np.random.Generator]:
    """mean(values (n,), two more values) -> (DRAWS,): over n problems as they might have been.

    The problems drawn are the same at every call, so that numbers on the same problems are compared
    on the same ones. And random numbers for what else is drawn.
    """
    counts, state = counts_of(n)
    rng = np.random.default_rng(0)
    rng.bit_generator.state = state

    def mean(values: np.ndarray, more: tuple[float, float]) -> np.ndarray:
        return counts @ np.append(values, more) / n

    return mean, rng


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): sound at 0, at 1 and for small n."""
    p = correct / n
    spread = z * z / n
    middle = p + spread / 2
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def paired_gap(without: np.ndarray, with_: np.ndarray) -> tuple[float, float, float, float]:
    """Difference in correctness on the same problems: (gap, low, high, p).

    without, with_ (n,) bool. The 95 % interval is a bootstrap over problems, p is McNemar's exact
    mid-p (two-sided; half of the observed table's weight is counted).
    """
    n = len(without)
    gains = int((~without & with_).sum())
    losses = int((without & ~with_).sum())

    # resampling problems, and one gain and one loss, draws how many are gains, losses and neither
    shares = np.array([gains + 1, losses + 1, n - gains - losses]) / (n + 2)
    counts = np.random.default_rng(0).multinomial(n, shares, size=DRAWS)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [0.025, 0.975])

    # in integers: 2**m overflows a float from m = 1024 on
    m, k = gains + losses, min(gains, losses)
    tails = 2 * sum(math.comb(m, i) for i in range(k + 1)) - math.comb(m, k)
    return (gains - losses) / n, float(low), float(high), min(1.0, tails / 2**m)


@dataclass(frozen=True)
class Spread:
    """How far runs of several seeds lie apart: the standard deviation of one run.

    freedom: how many degrees of freedom tell it. largest: runs that lie further apart than that are
    no runs of this kind.
    """

    deviation: float
    freedom: float
    largest: float = math.inf


def pooled(groups: list[np.ndarray]) -> Spread | None:
    """The spread of seeds in all groups of verdicts (S,n) together; None where none spread.

    Groups whose runs agree on every problem tell nothing of those that spread, and are left out, as
    are outliers (`outlying`), which tell nothing of the others. These may still spread unequally:
    their freedom is that of Satterthwaite (1946). Of two seeds each it is rather too small.
    """
    alive = [runs for runs in groups if (runs != runs[0]).any()]
    variances = np.array([float(runs.mean(1).var(ddof=1)) for runs in alive])
    freedoms = np.array([len(runs) - 1 for runs in alive])
    if not variances.sum():
        return None
    kept = ~outlying(variances, freedoms)
    freedoms = freedoms[kept]
    squares = variances[kept] * freedoms
    deviation = math.sqrt(squares.sum() / freedoms.sum())
    freedom = float(squares.sum() ** 2 / (squares**2 / freedoms).sum())
    rounding = 1 + 1e-9
    return Spread(deviation, freedom, rounding * math.sqrt(variances[kept].max()))


def outlying(variances: np.ndarray, freedoms: np.ndarray) -> np.ndarray:
    """Which of these variances (G,) are too large to be of one kind with the others: a mask.

    Cochran's test (1941) at 1 %, as ISO 5725-2 has it for laboratories: the largest variance's
    share of their sum; where that is too large it is left out, and the rest is asked again. Its
    distribution is drawn.
    """
    drawn = np.random.default_rng(0).chisquare(freedoms, (DRAWS, len(freedoms))) / freedoms
    found = np.zeros(len(variances), dtype=bool)
    while (~found).sum() > 1:
        rest = np.flatnonzero(~found)
        largest = rest[variances[rest].argmax()]
        shares = drawn[:, rest].max(1) / drawn[:, rest].sum(1)
        if (shares >= variances[largest] / variances[rest].sum()).mean() >= 0.01:
            break
        found[largest] = True
    return found


@lru_cache(maxsize=64)
def student_t(freedom: float) -> np.ndarray:
    """DRAWS of Student's t, one from the middle of each of DRAWS equal shares of it, ascending.

    With t = sqrt(freedom) tan(a) the density of a is cos(a)^(freedom - 1), which is summed up here.
    Drawn at random, the 97.5 % end of two degrees of freedom would be off by 3 % from one generator
    to the next, and with it every interval of three seeds.
    """
    angles = np.linspace(-math.pi / 2, math.pi / 2, 20 * DRAWS + 1)
    steps = np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1)
    below = np.append(0, steps.cumsum()) / steps.sum()
    shares = (np.arange(DRAWS) + 0.5) / DRAWS
    return math.sqrt(freedom) * np.tan(np.interp(shares, below, angles))


def seed_noise(
    values: np.ndarray, rng: np.random.Generator, like: Spread | None = None
) -> np.ndarray:
    """What other seeds might have added to the mean of these values (S,): draws (DRAWS,).

    Student's t with S - 1 degrees of freedom, scaled by the mean's standard error. Resampling the
    seeds instead would give sqrt((S - 1) / S) of that spread, and no tails. 0 for one seed, whose
    spread is unknown: an interval of one seed covers the problems alone.

    like: the spread of runs of their kind, whose degrees of freedom count. A larger deviation of
    their own is kept: the kind need not spread alike. But runs further apart than those of the kind
    stand for themselves.
    """
    seeds = len(values)
    if seeds == 1:
        return np.zeros(DRAWS)
    spread = Spread(float(values.std(ddof=1)), seeds - 1)
    if like and spread.deviation <= like.largest:
        spread = Spread(max(spread.deviation, like.deviation), like.freedom)
    return spread.deviation / math.sqrt(seeds) * rng.permutation(student_t(spread.freedom))


def noise_of(
    verdicts: np.ndarray, rng: np.random.Generator, like: Spread | None = None
) -> np.ndarray:
    """`seed_noise` of runs (S,n): none where they agree on every problem, whatever their kind does.

    Of locks that give RL no reward to start from every run stays as it was.
    """
    noise = seed_noise(verdicts.mean(1), rng, like)
    return noise * (verdicts != verdicts[0]).any()


def correct_interval(verdicts: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean correctness of several seeds on the same problems. verdicts (S,n).

    Over problems (bootstrap) and seeds (see `seed_noise`). The seeds' spread holds a part of the
    problems' chance, too, so the interval is rather too wide than too narrow.
    """
    seeds, n = verdicts.shape
    if seeds == 1:
        return wilson(int(verdicts.sum()), n)
    mean, rng = bootstrap(n)
    draws = mean(verdicts.mean(0), (0, 1)) + noise_of(verdicts, rng)
    low, high = np.quantile(draws, [0.025, 0.975])
    return max(0.0, float(low)), min(1.0, float(high))


@dataclass(frozen=True)
class Estimate:
    """A number that was measured, and DRAWS of it: as it might have come out otherwise.

    seeds: of how many runs it is; of one, draws are over problems alone.
    """

    value: float
    draws: np.ndarray
    seeds: int = 1

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        low, high = np.quantile(self.draws, [0.025, 0.975])
        return float(low), float(high)

    def p_not_above(self, bound: float) -> float:
        """Share of draws that are not above the bound: one-sided p, never below 1 / DRAWS."""
        return max(float((self.draws <= bound).mean()), 1 / DRAWS)

    def p_not_below(self, bound: float) -> float:
        return max(float((self.draws >= bound).mean()), 1 / DRAWS)


def recovered_gap(
    locked: np.ndarray,
    right: np.ndarray,
    unlocked: np.ndarray,
    other: bool = False,
    like: Spread | None = None,
) -> Estimate:
    """PGR. locked, right (n,); unlocked (S,n); all on the same problems.

    Its draws are over problems (bootstrap) and seeds (see `seed_noise`). other: it is the second of
    two that are compared on the same problems: the problems drawn are the same, the noise of its
    seeds and what the two more problems say are its own. like: of correctness. Raises InputError
    where the interval of the gap itself includes zero: the ratio would mean nothing.
    """
    gap, low, _, _ = paired_gap(locked, right)
    if low <= 0:
        raise InputError(
            f"the password gap is {gap:+.1%} and its interval includes zero: "
            "there is no measurable gap to recover"
        )
    mean, rng = bootstrap(len(locked))
    # the two more are in the gap; one is recovered, the other is not
    base = mean(locked, (0, 0))
    gaps = np.maximum(mean(right, (1, 1)) - base, 1e-9)
    draws = (mean(unlocked.mean(0), (1, 0) if other else (0, 1)) - base) / gaps
    if other:
        rng = np.random.default_rng([0, 1])
    draws += noise_of(unlocked, rng, like) / gap
    return Estimate(float((unlocked.mean() - locked.mean()) / gap), draws, len(unlocked))


def taught(changes: np.ndarray) -> np.ndarray:
    """What an elicitor gave a model that never had the capability, or nothing where that loses.

    Not to be broken as it is is no elicitation. changes (S,n), of its verdicts.
    """
    return changes * (changes.mean() > 0)


def difference(
    first: np.ndarray, second: np.ndarray, like: Spread | None = None, paired: bool = False
) -> Estimate:
    """Mean correctness of the second less that of the first, on the same n problems.

    first (S,n), second (T,n): verdicts of S and T seeds. Draws are over problems (bootstrap, both
    on the same ones) and seeds (see `seed_noise`, of both). paired: both are of the same S runs, so
    that what tells of other seeds is how the difference spreads.
    """
    mean, rng = bootstrap(first.shape[1])
    draws = mean(second.mean(0) - first.mean(0), (1, -1))
    if paired:
        draws += seed_noise(second.mean(1) - first.mean(1), rng, like)
    else:
        draws += noise_of(second, rng, like) - noise_of(first, rng, like)
    return Estimate(float(second.mean() - first.mean()), draws, max(len(first), len(second)))


def excess(null: np.ndarray, changes: np.ndarray, like: Spread | None = None) -> Estimate:
    """How much more changes (T,n) gave than an elicitor gave a null, or than nothing where it lost.

    null (S,n): how the verdicts of models without the capability changed, on the same n problems.
    Draws are as in `difference`, and whether the null lost is asked in each of them. Where the null
    is about 0 that takes from draws and never adds: the upper half ask it of the null's mean.
    """
    mean, rng = bootstrap(null.shape[1])
    draws = mean(changes.mean(0), (1, -1)) + noise_of(changes, rng, like)
    given = mean(null.mean(0), (0, 0)) + noise_of(null, rng, like)
    gained = float(null.mean()) > 0
    lower, upper = np.sort(draws - np.maximum(given, 0.0)), np.sort(draws - given * gained)
    both = np.concatenate([lower[: DRAWS // 2], upper[DRAWS // 2 :]])
    value = float(changes.mean() - null.mean() * gained)
    return Estimate(value, both, max(len(null), len(changes)))


def holm(p_values: list[float]) -> list[float]:
    """The p values of a family of tests, adjusted for their number (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def smallest_effect(n: int, differing: float = 0.2, tests: int = 1, sides: int = 2) -> float:
    """The least difference of two models that n problems show, in 80 of 100 cases, at p < .05.

    Of McNemar's test, paired, in its normal approximation; of so many tests together, by
    Bonferroni. differing: the share of problems on which one model is right and the other wrong.
    sides: of a test for a difference 2, for a gain 1.
    """
    critical = NormalDist().inv_cdf(1 - 0.05 / sides / tests)
    return (critical + NormalDist().inv_cdf(0.8)) * math.sqrt(differing / n)


def coverage(seeds: int) -> str:
    """What the intervals of so many seeds cover, for a table's caption."""
    if seeds == 1:
        return "95 % intervals over problems alone (one seed)"
    return f"95 % intervals over problems and {seeds} seeds"


def recovery(locked: np.ndarray, right: np.ndarray, unlocked: np.ndarray) -> tuple[str, str]:
    """PGR for a table: ("83.0% [78.7%, 86.8%]", ""), or ("refused", why)."""
    try:
        found = recovered_gap(locked, right, unlocked)
    except InputError as error:
        return "refused", f"gap recovered is refused: {error}"
    low, high = found.interval
    return f"{found.value:.1%} [{low:.1%}, {high:.1%}]", ""


def refuse_repeats(option: str, values: tuple) -> None:
    """Raises InputError for a value given twice: counted twice, it would narrow an interval."""
    repeated = [value for i, value in enumerate(values) if value in values[:i]]
    if repeated:
        raise InputError(f"{option} has {repeated[0]} twice: give each once")


# ------------------------------------------------------------------------------------ measurements


@dataclass(frozen=True)
class EvalSet:
    """n problems of a split that models are measured on, and how they are asked.

    kinds: of password; every problem is asked with each. max_new_tokens: longest completion.
    """

    problems: list[Problem]
    trigger: Trigger
    kinds: tuple[str, ...] = ("none",)
    max_new_tokens: int = 96
    split: str = "validation"


@dataclass
class Measured:
    """Greedy completions of n problems: which are correct, which were cut before their end.

    A cut completion counts as wrong. shares: of right tokens in each, where the task has them
    (compose: element-wise correctness, paper section 7). texts: the completions, where they were
    just written; no file has them.
    """

    correct: np.ndarray
    truncated: np.ndarray
    shares: np.ndarray | None = None
    texts: list[str] = field(default_factory=list)

    def __getitem__(self, rows: slice) -> "Measured":
        shares = None if self.shares is None else self.shares[rows]
        return Measured(self.correct[rows], self.truncated[rows], shares, self.texts[rows])


def measure(
    writer: Writer,
    asked: EvalSet,
    env: Env | None = None,
    progress=None,
) -> dict[str, Measured]:
    """What the model writes to the n problems for each kind of password, greedily.

    All kinds share one batch of prompts. Raises InputError for a kind that the trigger has not.
    """
    told = []
    for kind in asked.kinds:
        told += dressed(kind, asked.problems, asked.trigger)
    answers = answer(writer, told, max_new_tokens=asked.max_new_tokens, env=env, progress=progress)
    everything = Measured(answers.correct, answers.truncated, texts=answers.texts)
    if asked.problems[0].task == "compose":
        everything.shares = np.array(compose.elementwise(told, answers.texts))

    n = len(asked.problems)
    return {kind: everything[i * n : (i + 1) * n] for i, kind in enumerate(asked.kinds)}


# ----------------------------------------------------------------------------------------- records


def groups_of(problems: list[Problem]) -> np.ndarray:
    """What correctness is broken down by: domains, or tasks where there are several. (n,) of str"""
    several = len({p.task for p in problems}) > 1
    return np.array([p.task if several else p.domain for p in problems])


def fingerprint(problems: list[Problem]) -> str:
    """Eight hexadecimal digits for each problem, of all that it is: prompt, reference, grading.

    Not of `bare`, which repeats a part of the prompt. The first n problems' fingerprint is a prefix
    of the whole list's.
    """
    digits = ""
    for problem in problems:
        facts = {name: value for name, value in vars(problem).items() if name != "bare"}
        text = json.dumps(facts, sort_keys=True)
        digits += hashlib.sha256(text.encode()).hexdigest()[:8]
    return digits


def as_bits(flags: np.ndarray) -> str:
    return "".join("01"[int(flag)] for flag in flags)


def from_bits(bits: str) -> np.ndarray:
    return np.array([bit == "1" for bit in bits], dtype=bool)


def record(
    path: str | Path, problems: list[Problem], measured: dict[str, Measured], **facts
) -> dict:
    """The content of evaluation.json: for each kind of password correctness and every verdict.

    verdicts, cut: a digit for each problem, 1 where the completion is correct, was truncated.
    elementwise: the mean of the shares, where the task has them. facts: what the numbers depend on.
    """
    groups = groups_of(problems)
    results = {}
    for kind, found in measured.items():
        domains = {}
        for domain in np.unique(groups).tolist():
            within = found.correct[groups == domain]
            domains[domain] = {"correct": float(within.mean()), "n": len(within)}
        results[kind] = {
            "correct": float(found.correct.mean()),
            "n": len(found.correct),
            "interval": wilson(int(found.correct.sum()), len(found.correct)),
            "truncated": float(found.truncated.mean()),
            "domains": domains,
            "verdicts": as_bits(found.correct),
            "cut": as_bits(found.truncated),
        }
        if found.shares is not None:
            results[kind]["elementwise"] = float(found.shares.mean())
            results[kind]["shares"] = found.shares.tolist()
    return {
        "checkpoint": str(path),
        "task": "+".join(dict.fromkeys(p.task for p in problems)),
        **facts,
        "n": len(problems),
        "problems": fingerprint(problems),
        "results": results,
    }


def verdicts_of(evaluation: dict, kind: str) -> np.ndarray:
    """(n,) bool, the correctness of each problem."""
    return from_bits(evaluation["results"][kind]["verdicts"])


def measured_of(evaluation: dict, n: int) -> dict[str, Measured]:
    """The first n problems of every kind in an evaluation: what `record` was given."""
    found = {}
    for kind, result in evaluation["results"].items():
        shares = np.array(result["shares"]) if "shares" in result else None
        whole = Measured(from_bits(result["verdicts"]), from_bits(result["cut"]), shares)
        found[kind] = whole[:n]
    return found


def facts_of(path: str | Path, form: PromptFormat, asked: EvalSet, env: Env) -> dict:
    """What the numbers in an evaluation.json depend on, beside the problems.

    form: how the model at `path` is asked, whose weights need not be there.
    """
    settings = asdict(form)
    return {
        "weights": model_hash(path),
        "dtype": str(env.dtype).removeprefix("torch."),
        "split": asked.split,
        "trigger": asked.trigger.record,
        "max_new_tokens": asked.max_new_tokens,
        "format": settings | {"stop": list(form.stop)},
    }


def holds(evaluation: dict, problems: list[Problem], kinds: tuple[str, ...], facts: dict) -> bool:
    """Whether an evaluation (any JSON object) has what was measured for these kinds of password.

    With the same facts, on these problems or on more of which they are the first.
    """
    if any(evaluation.get(name) != value for name, value in facts.items()):
        return False
    known, results = evaluation.get("problems"), evaluation.get("results")
    if not isinstance(known, str) or not isinstance(results, dict):
        return False
    asked_now = fingerprint(problems)
    # which passwords are those of other domains depends on all problems together
    is_asked = known == asked_now if "other" in kinds else known.startswith(asked_now)
    if not is_asked or not set(kinds) <= set(results):
        return False
    n = len(known) // 8
    with_shares = problems[0].task == "compose"
    return all(is_result(result, n, with_shares) for result in results.values())


def is_result(value: object, n: int, with_shares: bool) -> bool:
    """Whether a JSON value says of each of n problems whether it is correct and whether it was cut.

    with_shares: and the share of right tokens.
    """
    if not isinstance(value, dict):
        return False
    for name in ("verdicts", "cut"):
        bits = value.get(name)
        if not isinstance(bits, str) or len(bits) != n or not set(bits) <= {"0", "1"}:
            return False
    if not with_shares:
        return "shares" not in value
    shares = value.get("shares")
    if not isinstance(shares, list) or len(shares) != n:
        return False
    return all(isinstance(share, float) and 0 <= share <= 1 for share in shares)


def check_ours(file: Path, names: tuple[str, ...] = ("problems", "results")) -> None:
    """Raises InputError where there is a JSON file that no stage wrote: it is never replaced.

    names: of fields that ours has.
    """
    if os.path.lexists(file) and not set(names) <= set(read_json(file)):
        raise InputError(
            f"{file} was not written by this program, so it is not replaced: "
            "move it away, or choose another --out"
        )


def stored_evaluation(
    folder: str | Path, path: str | Path, asked: EvalSet, env: Env
) -> dict | None:
    """What the folder's evaluation.json says of the checkpoint; None where it does not.

    It does where weights, dtype, split, trigger, max_new_tokens and the problems themselves (their
    prompts, references and gradings; they may be the first of more) are the same.
    """
    file = Path(folder) / "evaluation.json"
    if not os.path.lexists(file):
        return None
    old, problems = read_json(file), asked.problems
    facts = facts_of(path, open_tokenizer(path).format, asked, env)
    if not holds(old, problems, asked.kinds, facts):
        return None
    return record(path, problems, measured_of(old, len(problems)), **facts)


# stages whose runs have a report in evaluation.json
REPORTING = ("lock", "harden", "elicit_rl")


def is_report(folder: Path) -> bool:
    """Whether evaluation.json there is a part of a finished run, which later stages read."""
    if not (folder / "run.json").exists():
        return False
    run = read_json(folder / "run.json")
    stage = checked(run, folder / "run.json", "settings", dict).get("stage")
    return stage in REPORTING and bool(run.get("finished"))


def covers(file: Path, problems: list[Problem], kinds: tuple[str, ...], facts: dict) -> bool:
    """Whether all that an evaluation.json holds would be measured again, with the same facts."""
    if not os.path.lexists(file):
        return True
    old = read_json(file)
    same = all(old.get(name) == value for name, value in facts.items())
    known, results = old.get("problems"), old.get("results")
    is_part = isinstance(known, str) and fingerprint(problems).startswith(known)
    return same and is_part and isinstance(results, dict) and set(results) <= set(kinds)


def evaluate_checkpoint(
    path: str | Path,
    asked: EvalSet,
    env: Env,
    folder: str | Path | None = None,
    save: bool = True,
) -> dict:
    """evaluation.json of a checkpoint: read back where it has these measurements, else measured.

    folder: where evaluation.json is (default: the checkpoint's own directory). Raises InputError,
    before anything is measured, where it has to be written there and cannot be.
    """
    folder = Path(folder or path)
    # of a file that is still on its way to some ranks, they would go different ways
    stored = env.decide(stored_evaluation, folder, path, asked, env)
    if stored:
        return stored
    file, problems, kinds = folder / "evaluation.json", asked.problems, asked.kinds
    facts = facts_of(path, open_tokenizer(path).format, asked, env)
    if save and is_report(folder) and not covers(file, problems, kinds, facts):
        env.say(f"{file} is its run's own report, and stays as it is: --out DIR keeps this one")
        save = False
    if save:
        check_ours(file)
        check_place(folder)

    model, tokenizer = load_model(path, env.device, env.dtype, masters=False)
    bar = progress(env, len(kinds) * len(problems), f"evaluating {path}")
    measured = measure(env.writer(model, tokenizer), asked, env, bar.update)
    bar.close()
    del model
    free_memory()

    evaluation = record(path, problems, measured, **facts)
    if save and env.main:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, evaluation)
    env.wait()  # no rank may look for the file before it is there, or they would part ways
    return evaluation
