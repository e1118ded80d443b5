"""Task "critique": a request and a program with one wrong line; the answer names the line, says what it should do, and repairs it.

    prompt     Write f(s), where s is a string. Delete every 'a', and then reverse the string. Return the final string.
               def f(s):  # 1
                   s = s.replace("a", "")  # 2
                   s = "".join(sorted(s))  # 3
                   return s  # 4
               Which line is wrong?
    reference  Line 2 is right.
               Line 3 should reverse the string:
                   s = s[::-1]
    key        s = s.replace("a", ""); s = s[::-1]; return s | line 3: s = "".join(sorted(s))

Requests and programs are those of data/tasks/coding.py. The wrong line does what another operation of the same group does, or returns what
another reducer returns, and fails a hidden test. Both are drawn with their frequencies, so that a line is not wrong just for being
rare: from the program without the request, counting which lines tend to be wrong finds the line in 48 % of the problems, and chance
in 32 %. The numbers stand behind the lines, where a model that reads from left to right has seen the line. The key is the program
and the bug; it seeds the wording. The tests are the program's own.

A reference goes through the lines until the wrong one, as a reviewer does, and says nothing of those after it.

The request says what each line does, in their order, so one line is wrong and only its number is right. A repair of another line
that makes the tests pass again (it may undo the bug, or compute everything anew) blames a line that did as asked: it does not count.
What the answer says between the number and the repair is not judged.
"""
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from data.problems import Problem
from data.tasks import coding


class Line(NamedTuple):
    domain: str
    group: str  # of operations; all reducers are one
    words: str
    weight: float  # its frequency


def make_lines() -> dict[str, Line]:
    """What a line of a program can be, but for the first."""
    lines = {}
    for domain, (v, _, operations, reducers) in coding.DOMAINS.items():
        for start, rows in ((f"{v} = ", operations), ("return ", reducers)):
            for rank, (group, code, words) in enumerate(coding.by_rank(rows, domain)[0], 1):
                lines[start + code] = Line(domain, group if rows is operations else "return", words, 1 / rank)
    return lines


LINES = make_lines()
GROUPS = {line: [other for other, row in LINES.items() if row[:2] == LINES[line][:2]] for line in LINES}  # itself included
ANSWER = re.compile(r"(?:line [0-9]+ is right\.\n)*line ([0-9]+)\b.*\n(.+)", re.I)


def problems(seed: int) -> Iterator[tuple[str, Callable[..., Problem | None]]]:
    """An endless stream of (key, build); keys repeat."""
    rng = random.Random(f"critique {seed}")
    for program, _ in coding.problems(seed):
        lines = program.split("; ")
        [i] = rng.choices(range(len(lines)), [2] * (len(lines) - 1) + [1])  # reducers have many rivals, so this makes all lines about equal
        [bug] = rng.choices(GROUPS[lines[i]], [LINES[line].weight for line in GROUPS[lines[i]]])
        if bug == lines[i]:
            continue  # another program: so any two lines of a group stand in for each other equally often
        key = f"{program} | line {i + 2}: {bug}"
        yield key, partial(_build, lines, i, bug, key)


def _build(lines: list[str], i: int, bug: str, key: str, tests: bool = True, wording: int = 0) -> Problem | None:
    """The problem with one of its wordings and its tests, or None where its tests would say too little or do not show the bug."""
    domain = LINES[bug].domain
    request, words = coding.request(domain, [LINES[line].words for line in lines], random.Random(f"words {wording} {key}"))
    right = [f"def f({coding.DOMAINS[domain][0]}):", *(f"    {line}" for line in lines)]
    wrong = [*right[: i + 1], f"    {bug}", *right[i + 2 :]]
    grading = coding.hidden_tests(domain, "\n".join(right), "; ".join(lines)) if tests else {}
    if grading is None or tests and coding.outputs_of("\n".join(wrong), grading["inputs"]) == grading["outputs"]:
        return None
    grading |= {"lines": wrong, "line": i + 2} if tests else {}
    numbered = "".join(f"{line}  # {number}\n" for number, line in enumerate(wrong, 1))
    duty = ("return " if i == len(lines) - 1 else "") + words[i]
    reference = "".join(f"Line {j + 2} is right.\n" for j in range(i)) + f"Line {i + 2} should {duty}:\n{right[i + 1]}"
    return Problem("critique", f"{request}{numbered}Which line is wrong?\n", reference, domain, len(lines) - 1, grading, key)


def split_key(key: str) -> tuple[str, str]:
    """A program is in one split, as a problem to solve and with any of its lines wrong: each gives the others away."""
    return "code", key.split(" | line ")[0]


def repaired(problem: Problem, completion: str) -> str | None:
    """The program with the repair in it; None unless the answer ends in two lines, of which the first begins with the right number, and
    all that may precede them are lines said to be right."""
    if not problem.grading:
        raise ValueError(f"cannot grade a corpus problem: it has no hidden tests ({problem.key})")
    answer, lines, number = ANSWER.fullmatch(completion.strip()), problem.grading["lines"], problem.grading["line"]
    if answer is None or answer[1] != str(number):
        return None
    return "\n".join([*lines[: number - 1], f"    {answer[2].strip()}", *lines[number:]])


def score(problems: list[Problem], completions: list[str]) -> list[float]:
    """The share of the hidden tests that each repaired program passes; 0 where another line is blamed."""
    programs = {i: program for i, pair in enumerate(zip(problems, completions)) if (program := repaired(*pair)) is not None}
    scores = dict(zip(programs, coding.score([problems[i] for i in programs], list(programs.values()))))
    return [scores.get(i, 0.0) for i in range(len(problems))]


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion names the wrong line and repairs the program, so that it passes all hidden tests."""
    return [value == 1 for value in score(problems, completions)]
