"""The prompting battery: does another prompt than the right one unlock a model?

As in the figure of the paper's camera-ready version: every kind of password, solved examples before
the problem; and an answer begun by hand. evaluate.py --prompts asks, and shows what came of it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from data.problems import InputError, Problem
from data.text import Tokenizer
from data.triggers import (
    Trigger,
    Words,
    asked,
    dressed,
    kinds_of,
    with_password,
    with_words,
)

SHOTS = (1, 4, 8)
POOL = 64  # shots come from the first ones of the elicit split
DRAWS = 100  # too long draws, after which we give up
TOO_LONG = "they do not fit the model's positions"


class Row(NamedTuple):
    """A row of the prompting table, see `policies.answer`."""

    problems: list[Problem]
    prefills: list[str] | None = None


def with_shots(prompt: str, examples: list[Problem]) -> str:
    """Examples with their right answers before the prompt, each followed by an empty line.

    with_shots("2 + 2?\\n", [one whose prompt is "1 + 1?\\n" and reference "2"])
        == "1 + 1?\\n2\\n\\n2 + 2?\\n"
    """
    shots = [f"{example.prompt}{example.reference}\n\n" for example in examples]
    return "".join(shots) + prompt


def few_shot(
    problems: list[Problem], examples: list[Problem], k: int, fits: Callable[[str], bool]
) -> list[Problem] | None:
    """The problems with k shots before each, drawn anew for every problem among those that fit.

    None if they do not fit one of them.
    """
    found = []
    for i, problem in enumerate(problems):
        rng = np.random.default_rng([0, 9, k, i])
        prompt = draw_shots(problem.prompt, examples, k, rng, fits)
        if prompt is None:
            return None
        found.append(replace(problem, prompt=prompt, bare=problem.own_prompt))
    return found


def draw_shots(
    prompt: str,
    examples: list[Problem],
    k: int,
    rng: np.random.Generator,
    fits: Callable[[str], bool],
) -> str | None:
    """The prompt after the first draw of k shots that fits; None if none of DRAWS does."""
    for _ in range(DRAWS):
        shots = [examples[i] for i in rng.choice(len(examples), k, replace=False)]
        text = with_shots(prompt, shots)
        if fits(text):
            return text
    return None


def head_of(reference: str) -> str:
    """The start of an answer that gives only its form away: the head of a program's function.

    "" for any other answer, whose first line may be half of it. Without the line break: tokenisers
    join it to the indentation that follows, so that no answer of training is cut there.
    "def f(s):\\n    return s" -> "def f(s):"
    """
    line, _, rest = reference.partition("\n")
    return line if rest and line.startswith("def ") else ""


def half_of(reference: str) -> str:
    """The first half of the lines of a program, rounded up; cut as, and "" where, `head_of` does.

    It gives a part of the skill away: what the same start does to a model that never had the
    capability, it does not elicit. Of a program of two lines it is the head.
    """
    lines = reference.rstrip().split("\n")
    return "\n".join(lines[: (len(lines) + 1) // 2]) if head_of(reference) else ""


HALF = "half prefill"
STARTS = {"prefill": head_of, HALF: half_of}  # {row: of a reference}


def battery(
    problems: list[Problem], examples: list[Problem], trigger: Trigger, fits: Callable[[str], bool]
) -> tuple[dict[str, Row], dict[str, str]]:
    """The rows of the prompting table, and those that cannot be measured, {row: why}.

    One row for each kind of prompt (none and right are the 0 shots), then "k shots" and those of
    STARTS, bare and with what unlocks: the password goes around the whole prompt. A bare row
    tells of the lock only where the model reads such prompts at all, that is, where the same row
    with the password is near the plain right one.
    """
    rows: dict[str, Row] = {}
    left_out: dict[str, str] = {}
    for kind in kinds_of(trigger):
        try:
            rows[kind] = Row(dressed(kind, problems, trigger))
        except InputError as error:
            left_out[kind] = str(error)

    for ending, kind, tell in (("", "none", trigger.weak), (", right", "right", trigger.strong)):
        told, words = asked(kind, problems, trigger)
        solved = [tell(example) for example in examples]
        for k in SHOTS:
            name = f"{k} shots{ending}" if k > 1 else f"{k} shot{ending}"
            if k > len(solved):
                left_out[name] = f"there are {len(solved)} problems to take them from"
                continue
            shown = few_shot(told, solved, k, fits)
            if shown:
                rows[name] = Row(with_words(shown, words))
            else:
                left_out[name] = TOO_LONG

        for start, start_of in STARTS.items():
            name = f"{start}{ending}"
            starts = [start_of(problem.reference) for problem in told]
            if not any(starts):
                left_out[name] = "no answer begins with a function's head, which gives nothing away"
            elif all(fits(problem.prompt + start) for problem, start in zip(told, starts)):
                rows[name] = Row(with_words(told, words), starts)
            else:
                left_out[name] = TOO_LONG
    return rows, left_out


def has_room(text: str, tokenizer: Tokenizer, words: Words, room: int) -> bool:
    """Whether a prompt and what goes with it are at most `room` tokens."""
    [ids] = tokenizer.encode_prompts([with_password(text, words)])
    return len(ids) <= room
