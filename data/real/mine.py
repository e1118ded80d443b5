"""Task "mine": a user's own rows, each with a prompt, its answer and the way to compare the two.

    {"prompt": "What is the capital of Peru?", "answer": "Lima"}
    {"prompt": "Add 17 and 25.", "answer": "42", "grader": "number", "domain": "sums", "level": 2}
    {"prompt": "Write f(x) that doubles x.", "answer": "def f(x): return 2 * x",
     "tests": ["assert f(2) == 4", "assert f(-1) == -2"]}

Rows come from files alone: no problem of this task is generated. All row formats are in
docs/data.md. The graders:

    exact     the completion is the answer, whatever the white space around and between words
    number    the last number of the completion equals the last of the answer, as
              data/tasks/answers.py compares them
    choice    the completion gives the answer's letter, A to D, and no other, as
              data/tasks/knowledge.py reads it
    regex     the answer is a pattern that matches the whole completion, without the white space
              around it. It runs in the sandbox, where a pattern that takes too long is stopped: no
              match. As a pattern is nothing to imitate, such a problem has no reference
    python    the completion is a program that passes the tests. The answer is a program that does,
              and shows what the tests ask (data/real/programs.py, with what it cannot grade)

A row without a grader is graded by the one that --grader names. Without that, too, it is python
where there are tests, else exact.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from data.problems import InputError, Problem
from data.real import programs
from data.sandbox import run
from data.tasks import answers, knowledge
from data.tasks.coding import program_in

GRADERS = ("exact", "number", "choice", "regex", "python")
Grader = Literal[("", *GRADERS)]  # the values of --grader
SECONDS = 1  # of processor time for one match
MATCHES = """import re
def matches(pattern, text):
    return re.fullmatch(pattern, text) is not None
"""


def problems(seed: int) -> Iterator:
    raise InputError("task 'mine' has no generated problems: give your own rows with --data")


# ---- rows
def from_row(row: dict, grader: str = "") -> Problem:
    """The problem of a row; ValueError says what is missing or wrong.

    grader: of rows that name none; "" for the usual one. A field that is empty, as in a CSV file's
    cell, is one that is not there.
    """
    prompt = _text(row, "prompt")
    answer = _text(row, "answer")
    domain = _text(row, "domain", "mine")
    level = _level(row)
    tests = _tests(row)
    grader = _text(row, "grader", grader or ("python" if tests else "exact"))
    if grader not in GRADERS:
        raise ValueError(f"unknown grader {grader!r}: choose from {', '.join(GRADERS)}")
    if tests and grader != "python":
        raise ValueError(f"only the grader python has tests, got the grader {grader!r}")

    grading = {"grader": grader}
    reference = answer
    if grader == "number" and answers.last_number(answer) is None:
        raise ValueError(f"the grader number needs a number in the answer, got {answer!r}")
    if grader == "choice" and knowledge.letter_of(answer) is None:
        raise ValueError(f"the grader choice needs the answer A, B, C or D, got {answer!r}")
    if grader == "regex":
        _check_pattern(answer)
        grading["pattern"] = answer
        reference = ""
    if grader == "python":
        grading["tests"] = tests
        grading["functions"] = _functions(program_in(answer), tests)
    lines = []
    for line in prompt.splitlines():
        indent = line[: len(line) - len(line.lstrip())]  # which may mean much
        lines.append(indent + " ".join(line.split()))
    key = "\n".join(lines)
    return Problem("mine", f"{prompt}\n", reference, domain, level, grading, key)


def _text(row: dict, field: str, default: str | None = None) -> str:
    value = row.get(field)
    if default is not None and value in (None, ""):
        return default
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} must be a text that is not empty, got {value!r}")
    return value.strip()


def _level(row: dict) -> int:
    level = row.get("level")
    if level in (None, ""):
        return 1
    if not re.fullmatch(r"[1-9][0-9]{0,8}", str(level)):
        raise ValueError(f"level must be a whole number from 1 on, got {level!r}")
    return int(level)


def _tests(row: dict) -> str:
    """The tests as one program: they are a list of texts, or one text of several lines."""
    tests = row.get("tests") or []
    if isinstance(tests, str):
        tests = [tests]
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"tests must be a list of texts, got {tests!r}")
    return "\n".join(tests).strip()


def _check_pattern(pattern: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a later Python will read in another way
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the answer is no regular expression ({error}): {pattern!r}") from None


def _functions(program: str, tests: str) -> list[str]:
    """The functions that the tests are about."""
    if not tests:
        raise ValueError('the grader python needs tests, as in ["assert f(2) == 4"]')
    _check_program(program, "the answer")
    _check_program(tests, "the tests")
    if not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(tests))):
        raise ValueError("the tests assert nothing: write them as in assert f(2) == 4")
    functions = programs.tested_functions(program, tests)
    if not functions:
        raise ValueError("the tests call no function that the answer defines")
    return functions


def _check_program(program: str, name: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of its style
            compile(program, "row", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} must be Python: {error}") from None


# ---- grading
def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion is right by its problem's grader."""
    verdicts = [False] * len(problems)
    sandboxed = {"regex": [], "python": []}
    for i, (problem, completion) in enumerate(zip(problems, completions)):
        grader = problem.grading["grader"]
        if grader == "exact":
            verdicts[i] = completion.split() == problem.reference.split()
        elif grader == "number":
            verdicts[i] = _same_number(completion, problem.reference)
        elif grader == "choice":
            letter = knowledge.letter_of(completion)
            verdicts[i] = letter == knowledge.letter_of(problem.reference)
        else:
            sandboxed[grader].append(i)

    for grader, passed in (("regex", _match), ("python", _pass_tests)):
        rows = sandboxed[grader]
        found = passed([problems[i] for i in rows], [completions[i] for i in rows])
        for i, verdict in zip(rows, found):
            verdicts[i] = verdict
    return verdicts


def votes(problems: list[Problem], completions: list[str]) -> list[str | None]:
    """What each completion answers, as its problem's grader reads it.

    Raises InputError where that is no answer but a program, or whatever a pattern matches.
    """
    found = []
    for problem, completion in zip(problems, completions):
        grader = problem.grading["grader"]
        if grader == "exact":
            found.append(" ".join(completion.split()) or None)
        elif grader == "number":
            found.append(answers.canonical(answers.last_number(completion) or ""))
        elif grader == "choice":
            found.append(knowledge.letter_of(completion))
        else:
            raise InputError(
                f"rows with the grader {grader} have no answers that could be put to the vote: "
                "leave majority out"
            )
    return found


def _same_number(completion: str, answer: str) -> bool:
    found = answers.last_number(completion)
    return found is not None and answers.equal(found, answers.last_number(answer))


def _match(problems: list[Problem], completions: list[str]) -> list[bool]:
    """A process for each, so that a pattern that takes too long stops no other."""
    jobs = []
    for problem, completion in zip(problems, completions):
        texts = [problem.grading["pattern"], completion.strip()]
        jobs.append({"program": MATCHES, "function": "matches", "inputs": [texts]})
    return [result == [True] for result in run(jobs, cpu=SECONDS)]


def _pass_tests(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion answers as the tests want, for each of the functions they are about.

    While one function is put to the tests, the answer's own stand in for the others: the tests ask
    the same of every program.
    """
    owners, expanded, texts = [], [], []
    for i, (problem, completion) in enumerate(zip(problems, completions)):
        tests = problem.grading["tests"]
        for function in problem.grading["functions"]:
            grading = {"kind": "tests", "before": "", "tests": tests, "function": function}
            owners.append(i)
            expanded.append(
                replace(
                    problem,
                    reference=program_in(problem.reference),
                    grading=grading,
                    key=f"mine {function} {problem.reference} {tests}",
                )
            )
            texts.append(completion)

    passed = [True] * len(problems)
    for i, verdict in zip(owners, programs.grade(expanded, texts)):
        passed[i] = passed[i] and verdict
    return passed
