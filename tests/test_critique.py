"""Critique: one line is wrong, the request alone says which, and only its repair counts."""

import itertools
import re
from collections import Counter
from dataclasses import replace

import pytest

from data import load
from data.problems import Problem
from data.tasks import coding, critique
from data.tasks.coding import outputs_of
from data.tasks.critique import GROUPS, LINES, grade, score

PROBLEMS = load("critique", "validation", 150)
PROGRAM = ["n = n + 10", "n = n * 2", "return n"]
BUG = "n = n + 1"


def made(lines: list[str], i: int, bug: str, **options):
    return critique._build(lines, i, bug, f"{'; '.join(lines)} | line {i + 2}: {bug}", **options)


def planted(key: str) -> tuple[list[str], int]:
    """The lines of the wrong program but for its first, and the index of the wrong one."""
    program, number, bug = re.fullmatch(r"(.*) \| line (\d): (.*)", key).groups()
    lines = program.split("; ")
    lines[int(number) - 2] = bug
    return lines, int(number) - 2


def without_words(problem: Problem) -> Problem:
    return replace(problem, prompt="", reference="")


def test_the_example_of_the_docstring():
    lines = ['s = s.replace("a", "")', "s = s[::-1]", "return s"]
    problem = made(lines, 1, 's = "".join(sorted(s))')
    assert problem.key in critique.__doc__
    first, second, *others = [line[15:] for line in critique.__doc__.split("\n")[2:12]]
    text = "\n".join([f"{first} {second}", *others])
    assert text == f"{problem.prompt}{problem.reference}"


def test_every_line_of_a_program_has_one_meaning():
    rows = 0
    for _, _, operations, reducers in coding.DOMAINS.values():
        rows += len(operations) + len(reducers)
    assert len(LINES) == rows
    assert all(len(group) > 1 and line in group for line, group in GROUPS.items())


def test_the_program_is_the_reference_but_for_the_named_line():
    for problem in PROBLEMS:
        lines, i = planted(problem.key)
        right = problem.key.split(" | ")[0].split("; ")
        differs = [number for number, pair in enumerate(zip(lines, right)) if pair[0] != pair[1]]
        assert differs == [i]
        assert lines[i] in GROUPS[right[i]]

        request, header, *numbered, question = problem.prompt.removesuffix("\n").split("\n")
        assert request.startswith(f"Write {header[4:].split(':')[0]}")
        assert header.endswith("):  # 1")
        assert numbered == [f"    {line}  # {number}" for number, line in enumerate(lines, 2)]
        assert question == "Which line is wrong?"

        *passed, first, repair = problem.reference.split("\n")
        assert passed == [f"Line {number} is right." for number in range(2, i + 2)]
        assert repair == f"    {right[i]}"
        assert problem.reference == problem.reference.rstrip()
        duty = re.fullmatch(rf"Line {i + 2} should (?:return )?(.*):", first)[1]
        assert duty.lower() in request.lower()  # in the request's own words
        assert problem.level == len(lines) - 1
        assert problem.domain in coding.DOMAINS


def test_hidden_tests_show_the_bug_and_nothing_else():
    for problem in PROBLEMS:
        grading = problem.grading
        program = "\n".join(grading["lines"])
        shown = problem.prompt.split("\n", 1)[1].split("Which")[0].rstrip()
        assert program == re.sub(r"  # \d$", "", shown, flags=re.M)
        assert outputs_of(program, grading["inputs"]) != grading["outputs"]
        body = problem.key.split(" | ")[0].split("; ")
        reference = "\n    ".join([grading["lines"][0], *body])
        assert outputs_of(reference, grading["inputs"]) == grading["outputs"]

    silent = ["s = s[::-1]", "return len(s)"]  # no length shows how the string was turned
    assert made(silent, 0, 's = "".join(sorted(s))') is None
    assert made(silent, 0, 's = "".join(sorted(s))', tests=False) is not None


def test_a_wording_changes_the_words_only():
    first = made(PROGRAM, 0, BUG)
    second = made(PROGRAM, 0, BUG, wording=3)
    assert first.prompt != second.prompt
    assert without_words(first) == without_words(second)
    assert made(PROGRAM, 0, BUG, tests=False) == replace(first, grading={})


def test_references_are_right_and_near_misses_wrong():
    assert all(grade(PROBLEMS, [problem.reference for problem in PROBLEMS]))
    heads, repairs = zip(*[problem.reference.rsplit("\n", 1) for problem in PROBLEMS])
    for digits in ("2345", "3456"), ("2345", "1234"):  # the line before or behind
        other = str.maketrans(*digits)
        texts = [f"{head.translate(other)}\n{repair}" for head, repair in zip(heads, repairs)]
        assert not any(grade(PROBLEMS, texts))

    kept = []
    for problem, head in zip(PROBLEMS, heads):
        bug = problem.grading["lines"][problem.grading["line"] - 1]
        kept.append(f"{head}\n{bug}")
    assert not any(grade(PROBLEMS, kept))
    assert 0 < sum(score(PROBLEMS, kept)) / len(PROBLEMS) < 0.7  # some tests do not show the bug

    others = repairs[1:] + repairs[:1]
    texts = [f"{head}\n{repair}" for head, repair in zip(heads, others)]
    assert sum(grade(PROBLEMS, texts)) < 0.1 * len(PROBLEMS)


@pytest.mark.parametrize(
    "text, value",
    [
        ("Line 2 should add 10:\n    n = n + 10", 1),
        ("line 2: it adds 1\nn = 10 + n", 1),
        ("\nLINE 2\n        n += 10\n", 1),
        ("Line 3 is right.\nLine 2 should add 10:\n    n = n + 10", 1),
        ("It is line 2:\nLine 2 should add 10:\n    n = n + 10", 0),
        # gives the right numbers, by a line that was as asked
        ("Line 3 should double it:\n    n = (n + 9) * 2", 0),
        ("Line 4 should return it:\n    return n + 18", 0),
        ("Line 22 should add 10:\n    n = n + 10", 0),
        ("Line 02:\n    n = n + 10", 0),
        ("Line 2 should add 10:", 0),
        ("Line 2 should add 10:\n", 0),
        ("n = n + 10", 0),
        ("2\nn = n + 10", 0),
        ("Line 2: n = n + 10", 0),
        ("", 0),
        ("Line 2 should add 10:\n    n = n + 1\n    n = n + 10", 0),
        ("Line 2 should add 10:\n```\nn = n + 10\n```", 0),
        ("Line 2 should add 10:\n    n = n +", 0),
        ("Line 2 should add 10:\n    import os; os._exit(0)", 0),
    ],
)
def test_only_the_wrong_line_and_a_repair_that_works_count(text, value):
    problem = made(PROGRAM, 0, BUG)
    assert score([problem], [text]) == [value]
    assert grade([problem], [text]) == [value == 1]


def test_a_repair_elsewhere_would_pass_the_tests():
    """That it is refused above is a choice, not for lack of passing."""
    problem = made(PROGRAM, 0, BUG)
    program = "def f(n):\n    n = n + 1\n    n = (n + 9) * 2\n    return n"
    assert coding.grade([problem], [program]) == [True]


def test_the_corpus_cannot_be_graded():
    with pytest.raises(ValueError, match="no hidden tests"):
        grade(load("critique", "corpus", 1), ["Line 2"])


def test_the_program_alone_hardly_says_which_line_is_wrong():
    programs = [planted(key) for key, _ in itertools.islice(critique.problems(1), 20_000)]
    places = Counter((len(lines), i) for lines, i in programs)
    for (length, _), count in places.items():
        of_this_length = sum(places[length, i] for i in range(length))
        assert 0.5 < count * length / of_this_length < 1.6

    seen, wrong = Counter(), Counter()
    for lines, i in programs[:15_000]:
        seen.update(lines)
        wrong[lines[i]] += 1
    guessed = 0
    for lines, i in programs[15_000:]:
        suspicion = [wrong[line] / max(1, seen[line]) for line in lines]
        guessed += suspicion.index(max(suspicion)) == i
    # 0.63 when the wrong line is drawn without regard to frequencies; chance is 0.32
    assert guessed < 0.52 * 5_000


def test_there_are_many_problems():
    keys = {key for key, _ in itertools.islice(critique.problems(0), 10_000)}
    assert len(keys) > 8_000
    assert len({key.rsplit(" | ")[0] for key in keys}) > 5_000
