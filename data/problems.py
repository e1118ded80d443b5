"""A problem, and the error for what the user gave wrong: what every other module knows."""

from dataclasses import dataclass


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that says what, and what to do. Stages print it and exit with code 2."""


@dataclass(frozen=True)
class Problem:
    task: str  # a key of TASKS
    prompt: str  # plain words, ends with "\n"; no password
    reference: (
        str  # the answer, without trailing white space; tokenisation adds the end-of-sequence token
    )
    domain: str  # for code: "lists", "strings" or "numbers"
    level: int  # number of operations chained, 1 to 3
    grading: (
        dict  # what the task's grader needs, JSON-able; empty in the corpus, which is never graded
    )
    key: str  # the meaning of the problem, whatever its wording
