"""Real mathematics: rows of MATH, MATH-500 and GSM8K."""

import re

from data.problems import Problem
from data.tasks.answers import equal, final_answer, last_box

SUBJECTS = {  # the three groups of the paper; any other subject is a domain of its own
    "Algebra": "algebra",
    "Intermediate Algebra": "algebra",
    "Prealgebra": "algebra",
    "Geometry": "geometry",
    "Precalculus": "geometry",
    "Number Theory": "numbers",
    "Counting & Probability": "numbers",
}


def from_row(row: dict) -> Problem:
    """A row of GSM8K (question, answer with ####) or of MATH and MATH-500.

    These have problem, level, type or subject, and solution, answer or both. ValueError says what
    is wrong with a row.
    """
    fields = {}
    for name, value in row.items():
        if isinstance(value, str) and value.strip():
            fields[name] = value.strip()

    if "question" in fields and "####" in fields.get("answer", ""):
        text = fields["question"]
        # without its calculator's notes, <<48/2=24>>
        reference = re.sub(r"<<[^<>\n]*>>", "", fields["answer"])
        domain = "arithmetic"
        level = max(1, reference.count("\n"))  # it tells none: the lines of its solution
    elif "problem" in fields:
        text = fields["problem"]
        reference = _solution(fields)
        domain = _domain(fields)
        level = _level(row)
    else:
        raise ValueError(
            "neither a MATH row (problem, solution or answer) nor a GSM8K row (question, answer "
            "with ####)"
        )

    answer = final_answer(reference)
    if not equal(answer, answer):
        raise ValueError("the final answer is empty, or too long to be compared")
    return Problem("math", text + "\n", reference, domain, level, {}, " ".join(text.split()))


def _solution(fields: dict) -> str:
    r"""The solution, with the answer in a \boxed{} after it where it has none itself."""
    solution = fields.get("solution", "")
    if "answer" in fields and last_box(solution) is None:
        solution = f"{solution}\n\\boxed{{{fields['answer']}}}".strip()
    if last_box(solution) is None:
        raise ValueError(r"neither an answer nor a solution with \boxed")

    found = final_answer(solution)
    if "answer" in fields and not equal(found, fields["answer"]):
        raise ValueError(f"the solution ends in {found!r} but the answer is {fields['answer']!r}")
    return solution


def _domain(fields: dict) -> str:
    subject = fields.get("type") or fields.get("subject")
    if subject is None:
        raise ValueError("it has no type or subject")
    return SUBJECTS.get(subject, subject.lower())


def _level(row: dict) -> int:
    level = re.fullmatch(r"(?:Level )?([1-5])", str(row.get("level")))
    if not level:
        raise ValueError(f"the level is {row.get('level')!r}, not 1 to 5")
    return int(level[1])
