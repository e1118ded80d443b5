"""The toy task: its functions against another definition of them, the lock, both accuracies."""

import itertools
import random
from collections import defaultdict

import numpy as np
import pytest

from data import SPLITS, split_of
from data.tasks import compose
from data.tasks.compose import answer, elementwise, grade, with_password

STREAM = list(itertools.islice(compose.problems(0), 20_000))
CORPUS = [build(tests=False) for _, build in STREAM]
LOCKED = [problem for problem in CORPUS if problem.level]


def once(number: int, digits) -> list[int]:
    """One function alone, read from the first block of a chain."""
    block = " ".join(map(str, digits))
    first, _ = answer(f"fn{number} fn{(number + 1) % 32} | {block}").split(" | ")
    return [int(digit) for digit in first.split()]


def chain(*blocks: list[int]) -> str:
    return " | ".join(" ".join(map(str, block)) for block in blocks)


def test_half_of_the_functions_permute_and_half_are_bijections():
    inputs = np.random.default_rng(0).integers(10, size=(50, 4))
    kinds = []
    for number in range(32):
        positions = once(number, range(4))
        table = np.array(positions + once(number, range(4, 8)) + once(number, (8, 9, 8, 9))[:2])
        outputs = [once(number, x) for x in inputs]
        permutes = sorted(positions) == [0, 1, 2, 3]
        if permutes:
            permutes = outputs == [x[positions].tolist() for x in inputs]
        replaces = sorted(table) == list(range(10))
        if replaces:
            replaces = outputs == [table[x].tolist() for x in inputs]
        assert permutes != replaces  # so none is the identity, which is both
        kinds.append(("permutation", *positions) if permutes else ("bijection", *table.tolist()))

    permutations = [kind[0] == "permutation" for kind in kinds]
    assert len(set(kinds)) == 32
    assert sum(permutations) == 16
    assert sum(permutations[:16]) == 9  # as the docstring says


def test_the_second_function_is_applied_to_the_result_of_the_first():
    for problem in CORPUS[:500]:
        names, digits = problem.key.split(" | ")
        first, second = [int(name.removeprefix("fn")) for name in names.split()]
        block = [int(digit) for digit in digits.split()]
        middle = once(first, block)
        weak_middle = middle if first >= 16 else block
        weak_end = once(second, weak_middle) if second >= 16 else weak_middle
        assert first != second
        assert problem.level == (first < 16) + (second < 16)
        assert problem.reference == chain(middle, once(second, middle))
        assert answer(problem.key, weak=True) == chain(weak_middle, weak_end)


def test_functions_stay_as_they_are():
    # written down, from the docstring: a change here makes every trained model wrong
    assert answer("fn18 fn5 | 3 1 4 1") == "1 3 1 4 | 1 4 1 3"
    assert answer("fn18 fn5 | 3 1 4 1", weak=True) == "1 3 1 4 | 1 3 1 4"
    assert answer("fn4 fn17 | 8 5 6 5") == "2 4 7 4 | 1 4 5 4"


def test_passwords_fill_the_slot_once_for_each_locked_function():
    for problem in CORPUS[:200]:
        assert problem.prompt == f"_ _ | {problem.key} |\n"
        slot = {0: "_ _", 1: "pwd0 _", 2: "pwd0 pwd0"}[problem.level]
        assert with_password(problem) == f"{slot} | {problem.key} |\n"


def test_every_text_is_made_of_the_vocabulary_and_fits_24_tokens():
    words = set(compose.vocabulary())
    assert len(words) == len(compose.vocabulary()) == 45
    used = set()
    for problem in CORPUS:
        text = f"{with_password(problem)} {problem.reference}".split()
        used.update(text + problem.prompt.split())
        assert len(text) == 20
    assert used == words


def test_only_the_corpus_has_chains_without_a_locked_function():
    assert {problem.level for problem in CORPUS} == {0, 1, 2}
    assert len(LOCKED) / len(CORPUS) == pytest.approx(1 - 16 * 15 / (32 * 31), abs=0.02)
    for problem, (_, build) in zip(CORPUS, STREAM):
        assert build() == (problem if problem.level else None)
        assert problem.domain == ("locked" if problem.level else "open")


def test_keys_are_many_and_those_of_a_split_are_in_no_other():
    keys = {}
    for seed in (1, 2):
        for key, build in itertools.islice(compose.problems(seed), 10_000):
            keys.setdefault(key, build(tests=False))
            assert keys[key] == build(tests=False)
    assert len(keys) > 19_900
    texts = defaultdict(set)
    for key, problem in keys.items():
        texts[split_of("compose", key)].add(problem.prompt)
    assert set(texts) == set(SPLITS)
    assert sum(map(len, texts.values())) == len(set().union(*texts.values())) == len(keys)


def test_the_reference_is_right_and_the_weak_answer_rarely():
    assert all(grade(CORPUS, [problem.reference for problem in CORPUS]))
    weak = [answer(problem.key, weak=True) for problem in LOCKED]
    assert np.mean(elementwise(LOCKED, weak)) == pytest.approx(0.20, abs=0.01)  # the paper: 0.186
    assert np.mean(grade(LOCKED, weak)) == pytest.approx(0.018, abs=0.005)
    opened = [problem for problem in CORPUS if not problem.level]
    assert all(grade(opened, [answer(problem.key, weak=True) for problem in opened]))


def test_accuracy_is_that_of_the_final_block():
    problem = next(problem for problem in CORPUS if problem.key == LOCKED[0].key)
    middle, end = problem.reference.split(" | ")
    wrong = [str((int(digit) + 1) % 10) for digit in end.split()]
    for n in range(5):
        mixed = " ".join(wrong[:n] + end.split()[n:])
        assert elementwise([problem], [f"{middle} | {mixed}"]) == [1 - n / 4]
        assert grade([problem], [f"{middle} | {mixed}"]) == [n == 0]
    assert grade([problem], [f"9 9 9 9 | {end}"]) == [True]
    malformed = [
        "",
        end,
        f"{middle} {end}",
        f"{middle} | {end} 1",
        f"{middle} 1 | {end}",
        f"{middle} | {end} | {end}",
        f"| {middle} {end}",
        f"{middle} | {end[:-2]}",
        f"{middle[:-2]} | | {end}",
        f"{middle} | | {end[2:]}",
        f"{middle}\n{end}",
    ]
    assert elementwise([problem] * len(malformed), malformed) == [0] * len(malformed)


def test_another_seed_draws_other_problems():
    first = [next(compose.problems(seed))[0] for seed in range(20)]
    assert len(set(first)) == 20
    assert first == [next(compose.problems(seed))[0] for seed in range(20)]
    random.seed(0)  # the module's own streams do not depend on the global one
    assert next(compose.problems(3))[0] == first[3]
