"""Problems, and the six disjoint sets they are divided into.

    load("code", "lock")             the 4,000 problems the strong model is locked on
    load("code", "corpus", n=60000)  what the base models are trained on
    load("code+math", "lock")        of each task 4,000, in turn
    load("math", "lock", files=["train.jsonl.gz", "test.jsonl.gz"])  real problems
    grade(problems, completions)     -> [True, False, ...]

A generated task is an endless stream of problems. Which set a problem belongs to is fixed by the
SHA-256 of its meaning (its `key`), not by the order of drawing, so the sets are disjoint for every
seed, every n, and every wording:

    corpus      50 %   pre-training of the base models
    weak         5 %   demonstrations and tests for the weak model
    lock        20 %   password-locking
    elicit      12 %   the few demonstrations or the RL prompts that try to unlock
    selection    3 %   choosing hyperparameters and checkpoints (one fifth of elicit's share)
    validation  10 %   every number that is reported

Problems from files are finite, and too few for a corpus: the other splits have twice these shares,
as in the paper (40 % to lock, 30 % to elicit). There, too, the key alone decides, so rows and files
may come in any order and more of them may be added.
"""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, partial

from data.problems import InputError, Problem
from data.real import math_sets, mine, mmlu_sets, programs
from data.real.rows import problems_from
from data.tasks import coding, compose, critique, knowledge, mathematics
from data.tasks.answers import equal, final_answer

# A task module has
#     problems(seed)                 an endless stream of (key, build); build(tests: bool,
#                                    wording: int) gives the Problem, or None where its tests would
#                                    say too little
#     grade(problems, completions)   -> list[bool]
#     score(problems, completions)   -> list[float], where success has degrees; 1.0 exactly where
#                                    grade is True
# The words of compose are tokens of a vocabulary of its own: it shares no model with the others,
# and has no real problems.
TASKS = {
    "code": coding,
    "math": mathematics,
    "mmlu": knowledge,
    "critique": critique,
    "compose": compose,
    "mine": mine,
}
# for each task that has real problems: from a row of a file to a Problem
FROM_ROW = {
    "code": programs.from_row,
    "math": math_sets.from_row,
    "mmlu": mmlu_sets.from_row,
    "critique": programs.critique_from_row,
    "mine": mine.from_row,
}
# each split and its usual size
SPLITS = {
    "corpus": None,
    "weak": 500,
    "lock": 4000,
    "elicit": 1200,
    "selection": 300,
    "validation": 1000,
}
# splits whose references are to be imitated: a row without one (APPS has some) is in neither
IMITATED = ("weak", "elicit")
# draws without a new problem after which a split counts as exhausted
PATIENCE = 300_000


def split_of(task: str, key: str, corpus: bool = True) -> str:
    """The one split of this key; without a corpus, the others share its half among them."""
    if hasattr(TASKS.get(task), "split_key"):
        task, key = TASKS[task].split_key(key)
    digest = hashlib.sha256(f"{task}:{key}".encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    share = number % 1000 if corpus else 500 + number % 500
    if share < 500:
        return "corpus"
    if share < 550:
        return "weak"
    if share < 750:
        return "lock"
    if share < 900:
        is_fifth = int.from_bytes(digest[8:16], "big") % 5 == 0
        return "selection" if is_fifth else "elicit"
    return "validation"


# ------------------------------------------------------------------------------------------- load


def load(
    task: str,
    split: str,
    n: int | None = None,
    seed: int = 0,
    files: Sequence[str] = (),
    grader: str = "",
) -> list[Problem]:
    """The first n problems of a split, no key twice but in the corpus.

    The corpus may have a key again, each time in another wording. The seed (any integer) picks the
    order, never the split a problem is in, and the first problems are the same for every n.

    Problems are generated, or made of the rows of `files`. Generated ones are exactly n, without n
    as many as SPLITS says, and the first of them are easier, since short ones are used up early:
    compare numbers of equal n. Those of files are at most n, without n all, and fewer where the
    split has fewer rows, so an n that fits generated problems can always be given. Rows without a
    reference answer are in no split of IMITATED. Of several tasks, "code+math", n counts the
    problems of all, and without n each task has its usual number. grader: one of mine.GRADERS, for
    rows of task "mine" that name none.

    Raises InputError for an unknown task or split, n below 1 (below the number of tasks), a corpus
    without n, files of several tasks or for a corpus, a generated split with fewer than n, files
    that have no problem of the split at all, and a grader without rows of task "mine".
    """
    tasks = task.split("+")
    _check(tasks, split, n, files, grader)
    if len(tasks) > 1:
        return _in_turn(tasks, split, n, seed)
    if files:
        found = _from_files(task, split, seed, tuple(map(str, files)), grader)
        if not found:
            raise InputError(
                f"split {split!r} of task {task!r} has no problems in these files: give more rows"
            )
        return found[:n]

    if n is None:
        n = SPLITS[split]
    if n is None:
        raise InputError(f"split {split!r} has no default size: give n")
    found = _generated(task, split, n, seed)
    if len(found) < n:
        raise InputError(
            f"split {split!r} of task {task!r} has only {len(found)} problems, "
            f"fewer than the {n} asked for"
        )
    return found


def _check(tasks: list[str], split: str, n: int | None, files: Sequence[str], grader: str) -> None:
    """Raises InputError for what does not go together."""
    whole = "+".join(tasks)
    for name in tasks:
        if name not in TASKS:
            raise InputError(
                f"unknown task {whole!r}: choose from {', '.join(TASKS)}, "
                "or join several as in code+math"
            )
        if tasks.count(name) > 1:
            raise InputError(f"task {whole!r} names {name!r} twice: name each task once")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    if n is not None and n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    if n is not None and n < len(tasks):
        raise InputError(f"{n} problems of {whole} are too few: take one of each task at least")

    if "compose" in tasks and (files or len(tasks) > 1):
        raise InputError(
            "task 'compose' has a vocabulary of its own: "
            "it can neither be joined with others nor read from files"
        )
    if files and len(tasks) > 1:
        raise InputError(
            f"real problems are of one task: give --data with one of {', '.join(tasks)}"
        )
    if files and split == "corpus":
        raise InputError(
            "problems from files have no split 'corpus': base models are trained on generated ones"
        )
    if grader and (tasks != ["mine"] or not files):
        raise InputError(
            "--grader says how the rows of --task mine --data are graded, no others: leave it out"
        )


def _in_turn(tasks: list[str], split: str, n: int | None, seed: int) -> list[Problem]:
    """n problems of several tasks, one of each in turn: the first are the same for every n."""
    columns = []
    for i, task in enumerate(tasks):
        # of n problems the first task has the i = 0th, i = len(tasks)th and so on: round up
        share = None if n is None else -(-(n - i) // len(tasks))
        columns.append(load(task, split, share, seed))

    total = sum(len(column) for column in columns)
    return [columns[i % len(tasks)][i // len(tasks)] for i in range(total)]


def _generated(task: str, split: str, n: int, seed: int) -> list[Problem]:
    """n problems, or fewer if there seem to be no more."""
    corpus = split == "corpus"
    found, seen, idle = [], Counter(), 0
    for key, build in TASKS[task].problems(seed):
        idle += 1
        if idle > PATIENCE:
            break
        is_repeated = seen[key] > 0 and not corpus
        if is_repeated or split_of(task, key) != split:
            continue

        problem = build(tests=not corpus, wording=seen[key])
        seen[key] += 1
        if problem is None:
            continue
        found.append(problem)
        idle = 0
        if len(found) == n:
            break
    return found


def _from_files(
    task: str, split: str, seed: int, files: tuple[str, ...], grader: str
) -> list[Problem]:
    """All problems of the split, in an order that the seed and their keys decide."""
    chosen = []
    for problem in _rows(task, files, grader):
        is_usable = problem.reference or split not in IMITATED
        if is_usable and split_of(task, problem.key, corpus=False) == split:
            chosen.append(problem)

    def place(problem: Problem) -> bytes:
        return hashlib.sha256(f"{seed}:{problem.key}".encode()).digest()

    return sorted(chosen, key=place)


@cache  # a stage loads several splits
def _rows(task: str, files: tuple[str, ...], grader: str) -> list[Problem]:
    """The problems of all rows, equal keys once.

    Sorted first, so that neither examples nor duplicates depend on the order of rows.
    """
    from_row = FROM_ROW[task]
    problems = problems_from(files, partial(from_row, grader=grader) if grader else from_row)
    problems.sort(key=lambda problem: json.dumps(vars(problem)))
    if task == "mmlu":
        problems = mmlu_sets.with_examples(problems)
    by_key = {problem.key: problem for problem in problems}
    tell_contradictions(problems, by_key, task)
    return list(by_key.values())


def tell_contradictions(problems: list[Problem], kept: dict[str, Problem], task: str) -> None:
    """Say how many problems have another answer than the one that is kept of their key."""
    found = []
    for problem in problems:
        other = kept[problem.key]
        differs = False  # of code the reference is a solution, which may be told in many ways
        if task == "mine":
            differs = problem.reference != other.reference
        elif task == "math" and problem is not other:
            differs = not equal(*map(final_answer, (problem.reference, other.reference)))
        if differs or problem.grading != other.grading:
            # a prompt of mmlu begins with its subject, its key with the question
            asked = problem.key if task == "mmlu" else problem.prompt.strip()
            found.append(asked[:60])
    if found:
        print(
            f"{len(found)} rows pose a problem that another row answers otherwise, and only that "
            f"one counts, such as {found[0]!r}",
            file=sys.stderr,
        )


# ------------------------------------------------------------------------------------------ grade


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion solves its problem; generated and real problems of any tasks."""
    return _judged("grade", problems, completions)


def score(problems: list[Problem], completions: list[str]) -> list[float]:
    """How well each completion solves its problem, 0 to 1.

    For tasks with degrees of success (code: the share of tests passed); InputError for others.
    """
    return _judged("score", problems, completions)


def votes(problems: list[Problem], completions: list[str]) -> list[str | None]:
    """What each completion answers, the same text for equal answers; None where it is no answer.

    For tasks with such answers (math, mmlu, some rows of mine); InputError for others: two programs
    may be equal in all that they do, and no text of them is.
    """
    return _judged("votes", problems, completions)


# what is said of a task that has no such function
LACKING = {
    "score": "have no continuous reward: use the binary one",
    "votes": "have no answers that could be put to the vote: leave majority out",
}


# what stands before it no model means as its answer: of Qwen3, R1 and others that think first
THOUGHT = "</think>"


def _judged(how: str, problems: list[Problem], completions: list[str]) -> list:
    """What grade, score or votes says, whichever `how` names, each by the module that knows how.

    That is the module of the problem's task, but data/real/programs.py for a real program. Of a
    completion that thinks first what follows the thought is judged.
    """
    if len(problems) != len(completions):
        raise InputError(f"{len(problems)} problems but {len(completions)} completions")
    groups = defaultdict(list)
    for i, problem in enumerate(problems):
        groups[problem.task, problem.is_real_program].append(i)

    verdicts = [None] * len(problems)
    for (task, is_real_program), rows in groups.items():
        module = programs if is_real_program else TASKS[task]
        if not hasattr(module, how):
            raise InputError(f"these problems of task {task!r} {LACKING[how]}")
        judge = getattr(module, how)
        answers = [completions[i].rpartition(THOUGHT)[2] for i in rows]
        found = judge([problems[i] for i in rows], answers)
        for i, verdict in zip(rows, found):
            verdicts[i] = verdict
    return verdicts
