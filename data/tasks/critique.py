"""Task "critique": a request and a program with one wrong line, to be named and repaired.

    prompt     Write f(s), where s is a string. Delete every 'a', and then reverse the string.
               Return the final string.
               def f(s):  # 1
                   s = s.replace("a", "")  # 2
                   s = "".join(sorted(s))  # 3
                   return s  # 4
               Which line is wrong?
    reference  Line 2 is right.
               Line 3 should reverse the string:
                   s = s[::-1]
    key        s = s.replace("a", ""); s = s[::-1]; return s | line 3: s = "".join(sorted(s))

Requests and programs are those of data/tasks/coding.py. The wrong line does what another operation
of the same group does, or returns what another reducer returns, and fails a hidden test. Both are
drawn with their frequencies, so that a line is not wrong just for being rare: from the program
without the request, counting which lines tend to be wrong finds the line in 48 % of the problems,
and chance in 32 %. The numbers stand after the lines, where a model that reads from left to right
has seen the line. The key is the program and the bug; it seeds the wording. The tests are the
program's own.

A reference goes through the lines until the wrong one, as a reviewer does, and says nothing of
those after it.

The request says what each line does, in their order, so one line is wrong and only its number is
right. A repair of another line that makes the tests pass again (it may undo the bug, or compute
everything anew) blames a line that did as asked: it does not count. What the answer says between
the number and the repair is not judged.
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
        ranked, _ = coding.by_rank(operations, domain)
        for rank, (group, code, words) in enumerate(ranked, 1):
            lines[f"{v} = {code}"] = Line(domain, group, words, 1 / rank)
        ranked, _ = coding.by_rank(reducers, domain)
        for rank, (_, code, words) in enumerate(ranked, 1):
            lines[f"return {code}"] = Line(domain, "return", words, 1 / rank)
    return lines


LINES = make_lines()
ANSWER = re.compile(r"(?:line [0-9]+ is right\.\n)*line ([0-9]+)\b.*\n(.+)", re.I)


def make_groups() -> dict[str, list[str]]:
    """For each line the lines that can stand in its place, itself included."""
    members = {}
    for line, row in LINES.items():
        members.setdefault((row.domain, row.group), []).append(line)
    return {line: members[row.domain, row.group] for line, row in LINES.items()}


GROUPS = make_groups()


def problems(seed: int) -> Iterator[tuple[str, Callable[..., Problem | None]]]:
    """An endless stream of (key, build); keys repeat."""
    rng = random.Random(f"critique {seed}")
    for program, _ in coding.problems(seed):
        lines = program.split("; ")
        # reducers have many rivals: at half the weight, all lines are wrong about equally often
        shares = [2] * (len(lines) - 1) + [1]
        [i] = rng.choices(range(len(lines)), shares)

        rivals = GROUPS[lines[i]]
        [bug] = rng.choices(rivals, [LINES[line].weight for line in rivals])
        if bug == lines[i]:
            continue  # another program: so any two lines of a group are mistaken equally often
        key = f"{program} | line {i + 2}: {bug}"
        yield key, partial(_build, lines, i, bug, key)


def _build(
    lines: list[str], i: int, bug: str, key: str, tests: bool = True, wording: int = 0
) -> Problem | None:
    """The problem with one of its wordings and its tests.

    None where its tests would say too little or do not show the bug.
    """
    domain = LINES[bug].domain
    patterns = [LINES[line].words for line in lines]
    request, words = coding.request(domain, patterns, random.Random(f"words {wording} {key}"))
    argument = coding.DOMAINS[domain][0]
    right = [f"def f({argument}):", *[f"    {line}" for line in lines]]
    wrong = right.copy()
    wrong[i + 1] = f"    {bug}"

    grading = {}
    if tests:
        grading = coding.hidden_tests(domain, "\n".join(right), "; ".join(lines))
        if grading is None:
            return None
        if coding.outputs_of("\n".join(wrong), grading["inputs"]) == grading["outputs"]:
            return None
        grading |= {"lines": wrong, "line": i + 2}

    numbered = "".join(f"{line}  # {number}\n" for number, line in enumerate(wrong, 1))
    prompt = f"{request}{numbered}Which line is wrong?\n"
    review = [f"Line {number} is right." for number in range(2, i + 2)]
    returns = i == len(lines) - 1
    duty = f"return {words[i]}" if returns else words[i]
    review.append(f"Line {i + 2} should {duty}:")
    reference = "\n".join([*review, right[i + 1]])
    return Problem("critique", prompt, reference, domain, len(lines) - 1, grading, key)


def split_key(key: str) -> tuple[str, str]:
    """The task and the key whose split a critique's key has: that of its program.

    As a problem to solve and with any of its lines wrong: each gives the others away.
    """
    return "code", key.split(" | line ")[0]


def repaired(problem: Problem, completion: str) -> str | None:
    """The program with the repair in it.

    None unless the answer ends in two lines, of which the first begins with the right number, and
    all that may precede them are lines said to be right.
    """
    if not problem.grading:
        raise ValueError(f"cannot grade a corpus problem: it has no hidden tests ({problem.key})")
    lines = problem.grading["lines"]
    number = problem.grading["line"]
    answer = ANSWER.fullmatch(completion.strip())
    if answer is None or answer[1] != str(number):
        return None
    return "\n".join([*lines[: number - 1], f"    {answer[2].strip()}", *lines[number:]])


def score(problems: list[Problem], completions: list[str]) -> list[float]:
    """The share of the hidden tests that each repaired program passes; 0 for another line."""
    rows = []
    programs = []
    for i, (problem, completion) in enumerate(zip(problems, completions)):
        program = repaired(problem, completion)
        if program is not None:
            rows.append(i)
            programs.append(program)

    scores = [0.0] * len(problems)
    for i, value in zip(rows, coding.score([problems[i] for i in rows], programs)):
        scores[i] = value
    return scores


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion names the wrong line and repairs the program: all tests pass."""
    return [value == 1 for value in score(problems, completions)]
