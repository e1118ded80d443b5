"""Problems, and the five disjoint sets they are divided into.

    load("code", "lock")             the 4,000 problems the strong model is locked on
    load("code", "corpus", n=60000)  what the base models are trained on
    grade(problems, completions)     -> [True, False, ...]

A task is an endless stream of problems. Which set a problem belongs to is fixed by the SHA-256 of its meaning (its
`key`), not by the order of drawing, so the sets are disjoint for every seed, every n, and every wording:

    corpus      50 %   pre-training of the base models
    weak         5 %   demonstrations and tests for the weak model
    lock        20 %   password-locking
    elicit      12 %   the few demonstrations or the RL prompts that try to unlock
    selection    3 %   choosing hyperparameters and checkpoints of elicitation (one fifth of elicit's share)
    validation  10 %   every number that is reported
"""
import hashlib
from collections import Counter
from dataclasses import dataclass


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that says what, and what to do. Stages print it and exit with code 2."""


@dataclass(frozen=True)
class Problem:
    task: str  # "code"
    prompt: str  # plain words, ends with "\n"; no password
    reference: str  # the answer, without trailing white space; tokenisation adds the end-of-sequence token
    domain: str  # for code: "lists", "strings" or "numbers"
    level: int  # number of operations chained, 1 to 3
    grading: dict  # what the task's grader needs, JSON-able; empty in the corpus, which is never graded
    key: str  # the meaning of the problem, whatever its wording


from data import coding, critique, knowledge, mathematics  # noqa: E402  (below Problem, which the task modules import)

# A task module has problems(seed), an endless stream of (key, build) where build(tests: bool, wording: int) gives the Problem,
# or None where its tests would say too little; and grade(problems, completions) -> list[bool];
# where success has degrees also score(problems, completions) -> list[float], 1.0 exactly where grade is True.
TASKS = {"code": coding, "math": mathematics, "mmlu": knowledge, "critique": critique}
SPLITS = {"corpus": None, "weak": 500, "lock": 4000, "elicit": 1200, "selection": 300, "validation": 1000}
PATIENCE = 300_000  # draws without a new problem after which a split counts as exhausted


def split_of(task: str, key: str) -> str:
    """The one split that this key belongs to."""
    digest = hashlib.sha256(f"{task}:{key}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") % 1000
    if share < 500:
        return "corpus"
    if share < 550:
        return "weak"
    if share < 750:
        return "lock"
    if share < 900:
        return "selection" if int.from_bytes(digest[8:16], "big") % 5 == 0 else "elicit"
    return "validation"


def load(task: str, split: str, n: int | None = None, seed: int = 0) -> list[Problem]:
    """The first n problems of a split, no key twice but in the corpus, where it comes in another wording each time.

    The seed picks the order, never the split a problem is in.
    """
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}: choose from {', '.join(TASKS)}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    n = SPLITS[split] if n is None else n
    if n is None:
        raise InputError(f"split {split!r} has no default size: give n")
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")

    corpus = split == "corpus"
    found, seen, idle = [], Counter(), 0
    for key, build in TASKS[task].problems(seed):
        idle += 1
        if idle > PATIENCE:
            break
        if seen[key] and not corpus or split_of(task, key) != split:
            continue
        problem = build(tests=not corpus, wording=seen[key])
        seen[key] += 1
        if problem is None:
            continue
        found.append(problem)
        idle = 0
        if len(found) == n:
            return found
    raise InputError(f"split {split!r} of task {task!r} has only {len(found)} problems, fewer than the {n} asked for")


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion solves its problem; all problems are of one task."""
    module = _module_of(problems, completions)
    return module.grade(problems, completions) if problems else []


def score(problems: list[Problem], completions: list[str]) -> list[float]:
    """How well each completion solves its problem, 0 to 1, for tasks with degrees of success (code: the share of tests passed)."""
    module = _module_of(problems, completions)
    if problems and not hasattr(module, "score"):
        raise InputError(f"task {problems[0].task!r} has no continuous reward: use the binary one")
    return module.score(problems, completions) if problems else []


def _module_of(problems: list[Problem], completions: list[str]):
    if len(problems) != len(completions):
        raise InputError(f"{len(problems)} problems but {len(completions)} completions")
    tasks = {problem.task for problem in problems}
    if len(tasks) > 1:
        raise InputError(f"grade one task at a time, got {', '.join(sorted(tasks))}")
    return TASKS[tasks.pop()] if tasks else None
