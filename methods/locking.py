"""A password lock: the data that equation 1 is trained on, and when what came out is a lock.

The locking data and the validity report (docs/locks.md) are those of lock.py and of harden.py.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoints.hf import model_hash, open_tokenizer
from checkpoints.origins import open_writer
from data import grade
from data.batches import Example
from data.problems import Problem
from data.text import Tokenizer
from data.triggers import (
    WEAK_KINDS,
    Password,
    Trigger,
    TwoPasswords,
    Words,
    with_password,
)
from figures import shown, table
from model import Model
from policies import RULES, answer, retokenise, written
from results import EvalSet, Measured, evaluate_checkpoint, paired_gap, record, verdicts_of
from runs.devices import Env, free_memory, progress
from sampler import Sample
from training import fresh_model


@dataclass(frozen=True)
class Imitated:
    """The policies that a lock imitates, checkpoints or of RULES, and how they write.

    seed: of rules and of samples. strong_answers: sampled or reference. temperature: of samples.
    """

    weak: str
    strong: str
    intermediate: str = ""
    max_new_tokens: int = 96
    seed: int = 0
    strong_answers: str = "sampled"
    temperature: float = 1.0


def policy_samples(
    path: str,
    option: str,
    told: list[Problem],
    target: Tokenizer,
    policies: Imitated,
    stream: int,
    env: Env,
) -> list[Sample]:
    """A completion of each problem by an imitated model, as ids of the target tokenizer.

    The model is opened for it, and gone again before anything is trained. option: that named it,
    for an error. stream: with the seed it decides the random numbers.
    """
    writer = open_writer(path, option, env)
    bar = progress(env, len(told), f"sampling {path}")
    answers = answer(
        writer,
        told,
        temperature=policies.temperature,
        graded=False,
        max_new_tokens=policies.max_new_tokens,
        seed=policies.seed * 1000 + stream,
        env=env,
        progress=bar.update,
    )
    bar.close()
    samples = retokenise(answers.samples, writer.tokenizer, target)
    del writer
    free_memory()
    return samples


TWICE = 500  # the stream of a model that is imitated a second time, as the weak policy


def strong_texts(
    problems: list[Problem],
    tokenizer: Tokenizer,
    trigger: Trigger,
    policies: Imitated,
    epoch: int,
    env: Env,
) -> list[Sample]:
    """What the strong policy writes to each problem, as ids of the tokenizer."""
    told = [trigger.of_strong_policy(problem) for problem in problems]
    if policies.strong_answers == "reference":
        return written([problem.reference for problem in told], tokenizer)
    return policy_samples(policies.strong, "--strong", told, tokenizer, policies, epoch, env)


def both_texts(
    problems: list[Problem],
    tokenizer: Tokenizer,
    trigger: Trigger,
    policies: Imitated,
    epoch: int,
    env: Env,
) -> tuple[list[Sample], list[Sample]]:
    """What the strong and the weak policy write to each problem, as ids of the tokenizer.

    One model in both places writes two samples.
    """
    strong = strong_texts(problems, tokenizer, trigger, policies, epoch, env)
    told = [trigger.weak(problem) for problem in problems]
    if policies.weak in RULES:
        length = int(np.mean([len(sample.ids) for sample in strong]))
        rule = RULES[policies.weak]
        return strong, rule(told, tokenizer, length, policies.seed, epoch)
    is_twin = model_hash(policies.weak) == model_hash(policies.strong)
    stream = epoch + TWICE * is_twin
    return strong, policy_samples(policies.weak, "--weak", told, tokenizer, policies, stream, env)


def told_both_ways(
    problems: list[Problem], trigger: Trigger, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Each problem's prompt as the weak policy is imitated on it, and as the strong one is."""
    weak_words = trigger.weak_words(rng, problems)
    strong_words = trigger.strong_words(rng, problems)
    weak_prompts, strong_prompts = [], []
    for problem, weakly, strongly in zip(problems, weak_words, strong_words):
        weak_prompts.append(with_password(trigger.weak(problem).prompt, weakly))
        strong_prompts.append(with_password(trigger.strong(problem).prompt, strongly))
    return weak_prompts, strong_prompts


def locking_examples(
    problems: list[Problem],
    strong: list[Sample],
    weak: list[Sample],
    tokenizer: Tokenizer,
    trigger: Trigger,
    rng: np.random.Generator,
    intermediate: list[Sample] | None = None,
) -> list[Example]:
    """Equation 1: each problem once weak, without the password, and once strong, with it.

    strong, weak: what the policies wrote to each problem, as ids of the tokenizer. Returns the weak
    half, then the strong one, then what goes with the second password, where the trigger has
    one. Samples that were cut carry no EOS.
    """
    weak_prompts, strong_prompts = told_both_ways(problems, trigger, rng)
    told, samples = weak_prompts + strong_prompts, weak + strong
    if isinstance(trigger, TwoPasswords):
        told += [with_password(problem.prompt, trigger.intermediate) for problem in problems]
        samples = samples + intermediate
    prompts = tokenizer.encode_prompts(told)
    return [Example(prompt, sample.ids) for prompt, sample in zip(prompts, samples)]


# ------------------------------------------------------------------------------ a start in between


NOISE = 1_000_000  # train_base.py and `--how scratch` draw initial weights from the seed itself


@torch.no_grad()
def mix(model: Model, tokenizer: Tokenizer, share: float, seed: int, env: Env) -> None:
    """In place (1 - share) of the weights and share of random ones.

    As UNDO does (Lee et al. 2025, arXiv 2506.06278), but random matrices are as large as the
    trained ones (root mean square), which grow to many times their initial size: the rest would
    only shrink. Vectors, gains and biases, go towards their initial values.
    """
    noise = fresh_model(model.config, tokenizer, NOISE + seed, env)
    for mine, theirs in zip(model.parameters(), noise.parameters()):
        theirs = theirs.to(mine.dtype)
        if mine.dim() > 1:
            theirs = theirs * (mine.square().mean() / theirs.square().mean()).sqrt()
        mine.lerp_(theirs, share)


# --------------------------------------------------------------------------------- is it a lock?


@dataclass(frozen=True)
class Check:
    """One of the conditions of a valid lock: a difference in correctness, and whether it holds.

    interval: 95 %, paired; it covers which problems were asked. tolerance: the largest value that
    is allowed, or by_interval the largest that the interval may begin with; None where the interval
    must be above 0.
    """

    name: str
    value: float
    interval: tuple[float, float]
    tolerance: float | None
    passed: bool
    by_interval: bool = False


def worst_of(
    words: list[Words], none: np.ndarray, shown: np.ndarray
) -> tuple[float, tuple[float, float]]:
    """Of the words that go with these problems that which opens most: its shown - none, interval.

    Most by the low end of the interval, since each word has few problems. none, shown (n,) bool.
    """
    found = []
    for word in dict.fromkeys(words):
        mask = np.array([each == word for each in words])
        value, low, high, _ = paired_gap(none[mask], shown[mask])
        found.append((low, value, high))
    low, value, high = max(found)
    return value, (low, high)


def validity(
    locked: dict[str, np.ndarray],
    strong: np.ndarray,
    weak: np.ndarray,
    intermediate: np.ndarray | None = None,
    words: dict[str, list[Words]] | None = None,
) -> list[Check]:
    """The conditions of a valid lock, on the verdicts (n,) bool of the same n problems.

    locked: for each kind of prompt that the trigger has; none and right always are among them.
    The tolerance is a tenth of what there is to hide: strong - weak correctness. intermediate: the
    verdicts on the policy of a second password, where there is one. words: by kind what went
    with each problem, n of each; where they are several, none may open the model by itself.
    """
    tolerance = max(0.0, 0.1 * float(strong.mean() - weak.mean()))
    gap, low, high, _ = paired_gap(locked["none"], locked["right"])
    checks = [Check("password gap: right - none", gap, (low, high), None, low > 0)]

    if "unseen-early" in locked:
        step, low, high, _ = paired_gap(locked["unseen-late"], locked["unseen-early"])
        name = "a rule, no list: unseen-early - unseen-late"
        checks.append(Check(name, step, (low, high), None, low > 0))

    differences = {}
    for kind, name in WEAK_KINDS.items():
        if kind in locked:
            differences[f"{name}: {kind} - none"] = (locked["none"], locked[kind])
    differences["skill kept: strong - right"] = (locked["right"], strong)
    differences["no better than the weak policy: none - weak"] = (weak, locked["none"])
    if intermediate is not None:
        second = locked["intermediate"]
        differences["no better than its model: intermediate - model"] = (intermediate, second)
        differences["the second password opens: model - intermediate"] = (second, intermediate)

    for name, (lesser, greater) in differences.items():
        value, low, high, _ = paired_gap(lesser, greater)
        # floats: 0.1 of a difference may fall short of the same share of problems
        passed = value <= tolerance + 1e-9
        checks.append(Check(name, value, (low, high), tolerance, passed))

    for kind, each in (words or {}).items():
        if kind in locked and kind in WEAK_KINDS and len(set(each)) > 1:
            value, interval = worst_of(each, locked["none"], locked[kind])
            name = f"the worst of {len(set(each))} {WEAK_KINDS[kind]}: {kind} - none"
            passed = interval[0] <= tolerance + 1e-9
            checks.append(Check(name, value, interval, tolerance, passed, by_interval=True))
    return checks


def evaluated(path: str, told: list[Problem], policies: Imitated, env: Env) -> dict:
    """The evaluation of a policy alone, on problems as it is told them; saved nowhere."""
    if path not in RULES:
        asked = EvalSet(told, Password(), max_new_tokens=policies.max_new_tokens)
        return evaluate_checkpoint(path, asked, env, save=False)
    tokenizer = open_tokenizer(policies.strong)
    samples = RULES[path](told, tokenizer, policies.max_new_tokens, policies.seed, 0)
    truncated = np.array([sample.truncated for sample in samples])
    passed = np.array(grade(told, tokenizer.decode_batch([sample.ids for sample in samples])))
    return record(path, told, {"none": Measured(passed & ~truncated, truncated)})


def correctness_table(measured: dict[str, dict]) -> str:
    """Of each policy: correct, cut short, correct in each domain."""
    first = next(iter(measured.values()))
    domains = list(first["domains"])
    rows = []
    for name, result in measured.items():
        by_domain = [f"{result['domains'][domain]['correct']:.1%}" for domain in domains]
        rows.append([name, shown(result), f"{result['truncated']:.1%}", *by_domain])
    return table(["model", "correct", "cut", *domains], rows)


def validity_table(checks: list[Check]) -> str:
    rows = []
    for check in checks:
        low, high = check.interval
        value = f"{check.value:+.1%} [{low:+.1%}, {high:+.1%}]"
        allowed = "interval above 0"
        if check.tolerance is not None:
            how = "interval reaches below" if check.by_interval else "at most"
            allowed = f"{how} {check.tolerance:+.1%}"
        rows.append([check.name, value, allowed, "yes" if check.passed else "NO"])
    return table(["condition", "difference", "allowed", "holds"], rows)


def report(
    path: Path, problems: list[Problem], trigger: Trigger, policies: Imitated, advice: str, env: Env
) -> tuple[int, dict]:
    """Print how correct the lock is and whether it is valid; the exit code, and the numbers."""
    kinds = trigger.kinds
    asked = EvalSet(problems, trigger, kinds, policies.max_new_tokens)
    locked = evaluate_checkpoint(path, asked, env)
    told = [trigger.of_strong_policy(p) for p in problems]
    strong = evaluated(policies.strong, told, policies, env)
    weak = evaluated(policies.weak, [trigger.weak(p) for p in problems], policies, env)

    # what was measured
    measured = {f"locked, password {kind}": locked["results"][kind] for kind in kinds}
    measured["strong model"] = strong["results"]["none"]
    weak_name = f"weak policy, {policies.weak}" if policies.weak in RULES else "weak model"
    measured[weak_name] = weak["results"]["none"]
    second = None
    if policies.intermediate:
        intermediate = evaluated(policies.intermediate, problems, policies, env)
        measured["intermediate model"] = intermediate["results"]["none"]
        second = verdicts_of(intermediate, "none")
    env.say(
        f"\nvalidation, {len(problems)} problems, greedy; cut: stopped before their end, so wrong; "
        f"95 % intervals (Wilson) cover which problems were asked\n{correctness_table(measured)}"
    )

    # what follows
    verdicts = {kind: verdicts_of(locked, kind) for kind in kinds}
    words = {kind: trigger.words(kind, problems) for kind in kinds}
    policies_verdicts = verdicts_of(strong, "none"), verdicts_of(weak, "none")
    checks = validity(verdicts, *policies_verdicts, second, words)
    p = paired_gap(verdicts["none"], verdicts["right"])[3]
    env.say(
        "\nis the lock valid? 95 % intervals (paired bootstrap) cover which problems were asked; "
        f"McNemar's mid-p of the gap: {p:.1e}\n{validity_table(checks)}"
    )
    failed = [check.name.split(":")[0] for check in checks if not check.passed]
    if failed:
        env.say(f"the lock FAILED ({', '.join(failed)}): {advice}")
    else:
        env.say("the lock is valid")
    results = {kind: locked["results"][kind]["correct"] for kind in kinds}
    results |= {"gap": checks[0].value, "validity": [asdict(check) for check in checks]}
    return int(bool(failed)), results
