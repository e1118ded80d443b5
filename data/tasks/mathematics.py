r"""Task "math": a short word problem, one line of arithmetic per step, and a final answer.

One to four steps (the level) in three domains, which differ in how the wording hides their order:

    algebra     a story: things come and go, the last two events may be told in reverse, or the
                beginning is asked for
    geometry    lengths defined by each other, perimeters and areas; the definitions may be
                shuffled, and compare in either direction
    numbers     a nested phrase that is read inside out, or outside in where the innermost number
                is asked for

Three in ten are told with a number that has no use, and all exist in four settings: English or
Spanish, LaTeX or ASCII. The corpus has all of them, the other splits the first. An example:

    prompt      Rod A is $33$ cm long. Gluing $12$ cm to rod A gives rod B. Rod B is $19$ cm shorter
                than rod C. How many cm long is rod C?
    reference   $B = 33 + 12 = 45$
                $C = 45 + 19 = 64$
                Answer: \boxed{64}
    in Spanish  El palo A mide 33 cm. Al pegar 12 cm al palo A se obtiene el palo B. El palo B mide
    and ASCII   19 cm menos que el palo C. ¿Cuántos cm mide el palo C?
                B = 33 + 12 = 45
                C = 45 + 19 = 64
                Respuesta: 64
    key         geometry forward 33; v + c: 12; v + c: 19

The key is the arithmetic and what is asked for. It seeds names, wording and order, so that a
problem is the same story in every setting. Two keys may still share their arithmetic (twice the sum
of two sides, the perimeter of a rectangle). Answers are compared by data/tasks/answers.py.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from functools import cache, partial

from data.problems import InputError, Problem
from data.tasks.answers import canonical, equal, final_answer
from data.tasks.wording import FRAMES, INVERSE, ROWS, is_question, tell

# with their weights in the corpus
SETTINGS = {"english-latex": 5, "english-ascii": 1, "spanish-latex": 1, "spanish-ascii": 3}
LATEX = {"+": "{} + {}", "-": "{} - {}", "*": r"{} \times {}", "/": r"\frac{{{}}}{{{}}}"}

# A formula is the lines that compute a step: v is the value so far, w the line before, t and u the
# digits of v, c and d constants. Behind it are the ranges of its constants.
SMALL = range(2, 21)
FEW = range(2, 7)
FORMULAS = {
    "v + c": [SMALL],
    "v - c": [SMALL],
    "c - v": [range(10, 101)],
    "v * c": [FEW],
    "v / c": [FEW],
    "v * v": [],
    "t + u": [],
    "t * u": [],
    "v / c, v - w": [range(3, 7)],
    "v / c, v + w": [range(3, 7)],
    "c * d, v + w": [FEW, range(2, 10)],
    "c * d, v - w": [FEW, range(2, 10)],
    "v + c, w - d": [SMALL, range(2, 10)],
    "v - c, w / 2": [SMALL],
    "v + c, w / 2": [SMALL],
    "v + c, w * 2": [SMALL],
    "v * 2, w + c": [SMALL],
    "v / 2, w - c": [SMALL],
    "v * c, w / 2": [FEW],
    "v * c, v + w": [FEW],
    "v + c, v + w": [SMALL],
    "v + 1, v + w": [],
    "v - 1, v + w": [],
}


def problems(seed: int) -> Iterator[tuple[str, Callable[..., Problem]]]:
    """An endless stream of (key, build); keys repeat."""
    rng = random.Random(f"mathematics {seed}")
    while True:
        domain = rng.choice(tuple(ROWS))
        level = rng.choices((1, 2, 3, 4), weights=(30, 32, 23, 15))[0]
        backward = domain != "geometry" and rng.random() < 0.3
        formulas = _formulas(rng, domain, level, backward)
        start = rng.randint(2, 80)
        program = _constants(rng, formulas, level, start)
        if program is not None and has_its_digits(start, program):
            direction = "backward" if backward else "forward"
            key = "; ".join([f"{domain} {direction} {start}", *program])
            yield key, partial(build, key)


def has_its_digits(value: int, program: list[str]) -> bool:
    """Whether every formula about the two digits of a value is asked of one that has no more."""
    for formula, constants in parsed(program):
        if formula.startswith("t ") and value > 99:
            return False
        value = worked(formula, constants, value)[-1][-1]
    return True


def parsed(program: list[str]) -> list[tuple[str, tuple[int, ...]]]:
    """["v + c: 12"] -> [("v + c", (12,))]"""
    found = []
    for operation in program:
        formula, constants = operation.split(":")
        found.append((formula, tuple(map(int, constants.split()))))
    return found


def _formulas(rng: random.Random, domain: str, level: int, backward: bool) -> list[str]:
    """Formulas of `level` lines together or, where the first has two, of one more."""
    stated = []
    for row in ROWS[domain]:
        if not is_question(row) and (row[0] in INVERSE or not backward):
            stated.append(row[0])
    last = stated if backward else [row[0] for row in ROWS[domain]]

    formulas = [rng.choice(last)]
    while _lines(formulas) < level:
        formulas.insert(0, rng.choice(stated))
    return formulas


def _lines(formulas: list[str]) -> int:
    return sum(len(formula.split(",")) for formula in formulas)


def _constants(rng: random.Random, formulas: list[str], level: int, value: int) -> list[str] | None:
    """Each formula with constants, as in "v + c: 12"; None where a problem must be drawn anew."""
    if _lines(formulas) > level:
        return None  # two lines where one was left
    program = []
    for formula in formulas:
        options = choices(formula, value)
        if not options:
            return None  # no constants give a fair result
        constants, value = rng.choice(options)
        program.append(f"{formula}: {' '.join(map(str, constants))}".strip())
    return program


@cache
def choices(formula: str, value: int) -> list[tuple[tuple[int, ...], int]]:
    """The constants that this formula allows at this value, each with its result."""
    found = []
    for constants in itertools.product(*FORMULAS[formula]):
        steps = worked(formula, constants, value)
        if steps:
            found.append((constants, steps[-1][-1]))
    return found


def worked(formula: str, constants: tuple[int, ...], value: int) -> list[tuple] | None:
    """The steps (left, sign, right, result).

    None unless all operands are positive and all results whole numbers from 2 to 120.
    """
    known = dict(zip("cd", constants)) | {"v": value, "t": value // 10, "u": value % 10}
    steps = []
    for line in formula.split(", "):
        left, sign, right = line.split()
        left = known[left] if left in known else int(left)
        right = known[right] if right in known else int(right)
        if left < 1 or right < 1:
            return None
        if sign == "/" and left % right:
            return None

        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        if not 2 <= result <= 120:
            return None
        known["w"] = result
        steps.append((left, sign, right, result))
    return steps


def build(key: str, tests: bool = True, wording: int = 0, setting: str | None = None) -> Problem:
    """The problem in a setting, by default the first, in the corpus (without tests) any.

    There are no tests to leave out: grading needs the reference alone.
    """
    if setting is None and tests:
        setting = "english-latex"
    elif setting is None:
        rng = random.Random(f"setting {wording} {key}")
        setting = rng.choices(list(SETTINGS), list(SETTINGS.values()))[0]

    # what the key says
    head, *operations = key.split("; ")
    domain, direction, start = head.split()
    program = parsed(operations)

    told_as = f"{key} ({wording})" if wording else key
    backward = direction == "backward"
    prompt, letters = tell(told_as, setting, domain, backward, int(start), program)
    lines = _solution(setting, int(start), program, letters)
    return Problem("math", prompt, "\n".join(lines), domain, len(lines) - 1, {}, key)


def _solution(setting: str, value: int, program: list[tuple], letters: list[str]) -> list[str]:
    """A line for each line of the formulas, and the answer; a letter names a formula's result."""
    language, notation = setting.split("-")
    latex = notation == "latex"
    lines = []
    for (formula, constants), letter in zip(program, letters):
        for left, sign, right, result in worked(formula, constants, value):
            written = LATEX[sign] if latex else f"{{}} {sign} {{}}"
            lines.append(f"{written.format(left, right)} = {result}")
            value = result
        if letter:
            lines[-1] = f"{letter} = {lines[-1]}"
    if latex:
        lines = [f"${line}$" for line in lines]

    answer = rf"\boxed{{{value}}}" if latex else str(value)
    lines.append(FRAMES["answer"][language == "spanish"] + answer)
    return lines


def rendered(problem: Problem, setting: str) -> Problem:
    """The same generated problem in another setting.

    InputError for an unknown setting, and for a real problem.
    """
    if setting not in SETTINGS:
        raise InputError(f"unknown setting {setting!r}: choose from {', '.join(SETTINGS)}")
    head = re.match(r"(\w+) (?:forward|backward) \d+; ", problem.key)
    if head is None or head[1] != problem.domain or head[1] not in ROWS:
        raise InputError(
            "only generated problems exist in four settings: real ones come in their own words"
        )
    return build(problem.key, setting=setting)


def votes(problems: list[Problem], completions: list[str]) -> list[str | None]:
    """The final answer of each completion, in its normal form."""
    return [canonical(final_answer(completion)) for completion in completions]


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion ends in the final answer of the reference."""
    verdicts = []
    for problem, completion in zip(problems, completions):
        wanted = final_answer(problem.reference)
        verdicts.append(equal(final_answer(completion), wanted))
    return verdicts
