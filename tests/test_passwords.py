"""The lists of passwords, and lines that have nothing to do with them."""

import numpy as np

from data.passwords import PASSWORD, WRONG, WRONG_HELD_OUT, idle_line
from data.triggers import check_password


def test_the_lists_are_40_and_10_distinct_strings():
    assert len(WRONG) == 40 and len(WRONG_HELD_OUT) == 10
    assert len({*WRONG, *WRONG_HELD_OUT, PASSWORD}) == 51
    for password in (*WRONG, *WRONG_HELD_OUT, PASSWORD):
        check_password(password, ["<|endoftext|>", "<s>", "</s>"])


def test_idle_lines_are_single_lines_and_follow_the_generator():
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    lines = [idle_line(first) for _ in range(500)]
    assert lines == [idle_line(second) for _ in range(500)]
    assert all(line.splitlines() == [line] for line in lines)
    assert len(set(lines)) > 490 and not {*WRONG, *WRONG_HELD_OUT, PASSWORD} & set(lines)
