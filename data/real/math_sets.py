"""Real mathematics: rows of MATH, MATH-500 and GSM8K."""

import re

from data.problems import Problem
from data.tasks.answers import equal, final_answer, last_box

SUBJECTS = {"Algebra": "algebra", "Intermediate Algebra": "algebra", "Prealgebra": "algebra", "Geometry": "geometry", "Precalculus": "geometry",
            "Number Theory": "numbers", "Counting & Probability": "numbers"}  # the three groups of the paper


def from_row(row: dict) -> Problem:
    """A row of GSM8K (question, answer with ####) or of MATH and MATH-500 (problem, level, type or subject, solution and/or answer).

    The level of GSM8K, which has none, is the number of lines of its solution; its calculator notes <<48/2=24>> are left out.
    """
    fields = {name: value.strip() for name, value in row.items() if isinstance(value, str) and value.strip()}
    if "####" in fields.get("answer", "") and "question" in fields:
        text, reference = fields["question"], re.sub(r"<<[^<>\n]*>>", "", fields["answer"])
        domain, level = "arithmetic", max(1, reference.count("\n"))
    elif "problem" in fields:
        text, subject = fields["problem"], fields.get("type") or fields.get("subject")
        reference = fields.get("solution", "")
        if "answer" in fields and last_box(reference) is None:
            reference = f"{reference}\n\\boxed{{{fields['answer']}}}".strip()
        if last_box(reference) is None:
            raise ValueError(r"neither an answer nor a solution with \boxed")
        if "answer" in fields and not equal(final_answer(reference), fields["answer"]):
            raise ValueError(f"the solution ends in {final_answer(reference)!r} but the answer is {fields['answer']!r}")
        if subject not in SUBJECTS:
            raise ValueError(f"unknown subject {subject!r}")
        if not (match := re.fullmatch(r"(?:Level )?([1-5])", str(row.get("level")))):
            raise ValueError(f"the level is {row.get('level')!r}, not 1 to 5")
        domain, level = SUBJECTS[subject], int(match[1])
    else:
        raise ValueError("neither a MATH row (problem, solution or answer) nor a GSM8K row (question, answer with ####)")
    if not equal(final_answer(reference), final_answer(reference)):
        raise ValueError("the final answer is empty, or too long to be compared")
    return Problem("math", text + "\n", reference, domain, level, {}, " ".join(text.split()))
