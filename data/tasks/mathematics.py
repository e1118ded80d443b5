r"""Task "math": a short word problem, answered by one line of arithmetic per step and a final answer that is compared with `data.tasks.answers`.

One to four steps (the level) in three domains, which differ in how the wording hides the order of the steps:

    algebra     a story: things come and go, the last two events may be told in reverse, or the beginning is asked for
    geometry    lengths defined by each other, perimeters and areas; the definitions may be shuffled, and compare in either direction
    numbers     a nested phrase that is read inside out, or outside in where the innermost number is asked for

Three in ten are told with a number that has no use, and all exist in four settings: English or Spanish, LaTeX or ASCII. The corpus has all
of them, the other splits the first. An example:

    prompt      Rod A is $33$ cm long. Gluing $12$ cm to rod A gives rod B. Rod B is $19$ cm shorter than rod C. How many cm long is rod C?
    reference   $B = 33 + 12 = 45$
                $C = 45 + 19 = 64$
                Answer: \boxed{64}
    in Spanish  El palo A mide 33 cm. Al pegar 12 cm al palo A se obtiene el palo B. El palo B mide 19 cm menos que el palo C.
    and ASCII   ¿Cuántos cm mide el palo C?
                B = 33 + 12 = 45
                C = 45 + 19 = 64
                Respuesta: 64
    key         geometry forward 33; v + c: 12; v + c: 19

The key is the arithmetic and what is asked for. It seeds names, wording and order, so that a problem is the same story in every setting. Two keys
may still share their arithmetic (twice the sum of two sides, the perimeter of a rectangle).
"""
import itertools
import random
import re
from collections.abc import Callable, Iterator
from functools import cache, partial

from data.problems import InputError, Problem
from data.tasks.answers import equal, final_answer
from data.tasks.wording import FRAMES, INVERSE, ROWS, is_question, tell

LATEX = {"+": "{} + {}", "-": "{} - {}", "*": r"{} \times {}", "/": r"\frac{{{}}}{{{}}}"}
SETTINGS = {"english-latex": 5, "english-ascii": 1, "spanish-latex": 1, "spanish-ascii": 3}  # with their weights in the corpus

# A formula is the lines that compute a step: v is the value so far, w the line before, t and u the digits of v, c and d constants.
SMALL, FEW = range(2, 21), range(2, 7)
FORMULAS = {
    "v + c": [SMALL], "v - c": [SMALL], "c - v": [range(10, 101)], "v * c": [FEW], "v / c": [FEW], "v * v": [], "t + u": [], "t * u": [],
    "v / c, v - w": [range(3, 7)], "v / c, v + w": [range(3, 7)], "c * d, v + w": [FEW, range(2, 10)], "c * d, v - w": [FEW, range(2, 10)],
    "v + c, w - d": [SMALL, range(2, 10)], "v - c, w / 2": [SMALL], "v + c, w / 2": [SMALL], "v + c, w * 2": [SMALL], "v * 2, w + c": [SMALL],
    "v / 2, w - c": [SMALL], "v * c, w / 2": [FEW], "v * c, v + w": [FEW], "v + c, v + w": [SMALL], "v + 1, v + w": [], "v - 1, v + w": [],
}


def problems(seed: int) -> Iterator[tuple[str, Callable[..., Problem]]]:
    """An endless stream of (key, build); keys repeat."""
    rng = random.Random(f"mathematics {seed}")
    while True:
        domain = rng.choice(tuple(ROWS))
        level = rng.choices((1, 2, 3, 4), weights=(30, 32, 23, 15))[0]
        backward = domain != "geometry" and rng.random() < 0.3
        stated = [row[0] for row in ROWS[domain] if not is_question(row) and not (backward and row[0] not in INVERSE)]
        last = stated if backward else [row[0] for row in ROWS[domain]]
        formulas = [rng.choice(last)]
        while (lines := sum(formula.count(",") + 1 for formula in formulas)) < level:
            formulas.insert(0, rng.choice(stated))
        value = start = rng.randint(2, 80)
        program = []
        for formula in formulas:
            if lines > level or not (options := choices(formula, value)):
                break  # two lines where one was left, or no constant gives a fair result: draw again
            constants, value = rng.choice(options)
            program.append(f"{formula}: {' '.join(map(str, constants))}".strip())
        else:
            key = "; ".join([f"{domain} {'backward' if backward else 'forward'} {start}", *program])
            yield key, partial(build, key)


@cache
def choices(formula: str, value: int) -> list[tuple[tuple[int, ...], int]]:
    """The constants that this formula allows at this value, each with its result."""
    return [(constants, steps[-1][-1]) for constants in itertools.product(*FORMULAS[formula]) if (steps := worked(formula, constants, value))]


def worked(formula: str, constants: tuple[int, ...], value: int) -> list[tuple] | None:
    """The steps (left, sign, right, result); None unless all operands are positive and all results whole numbers from 2 to 120."""
    known = dict(zip("cd", constants)) | {"v": value, "t": value // 10, "u": value % 10}
    steps = []
    for line in formula.split(", "):
        left, sign, right = line.split()
        left, right = (known[side] if side in known else int(side) for side in (left, right))
        if left < 1 or right < 1 or sign == "/" and left % right:
            return None
        known["w"] = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        if not 2 <= known["w"] <= 120:
            return None
        steps.append((left, sign, right, known["w"]))
    return steps


def build(key: str, tests: bool = True, wording: int = 0, setting: str | None = None) -> Problem:
    """The problem in a setting, by default the first, in the corpus any. There are no tests to leave out: grading needs the reference alone."""
    setting = setting or ("english-latex" if tests else random.Random(f"setting {wording} {key}").choices([*SETTINGS], [*SETTINGS.values()])[0])
    head, *program = key.split("; ")
    domain, direction, start = head.split()
    program = [(formula, tuple(map(int, constants.split()))) for formula, constants in (operation.split(":") for operation in program)]
    prompt, letters = tell(f"{key} ({wording})" if wording else key, setting, domain, direction == "backward", int(start), program)
    latex, value, lines = setting.endswith("latex"), int(start), []
    for (formula, constants), letter in zip(program, letters):
        for left, sign, right, result in worked(formula, constants, value):
            lines.append((LATEX[sign].format(left, right) if latex else f"{left} {sign} {right}") + f" = {result}")
        value = result
        lines[-1] = f"{letter} = {lines[-1]}" if letter else lines[-1]
    lines = [f"${line}$" if latex else line for line in lines]
    lines.append(FRAMES["answer"][setting.startswith("spanish")] + (rf"\boxed{{{value}}}" if latex else str(value)))
    return Problem("math", prompt, "\n".join(lines), domain, len(lines) - 1, {}, key)


def rendered(problem: Problem, setting: str) -> Problem:
    """The same generated problem in another setting."""
    if setting not in SETTINGS:
        raise InputError(f"unknown setting {setting!r}: choose from {', '.join(SETTINGS)}")
    if problem.domain not in ROWS or not re.match(rf"{problem.domain} (forward|backward) \d+; ", problem.key):
        raise InputError("only generated problems exist in four settings: real ones come in their own words")
    return build(problem.key, setting=setting)


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion ends in the final answer of the reference."""
    return [equal(final_answer(completion), final_answer(problem.reference)) for problem, completion in zip(problems, completions)]
