import math

import numpy as np
import pytest

from data.passwords import PASSWORD, WRONG, WRONG_HELD_OUT, WRONG_SHARE, check_password, weak_password, with_password


def test_the_lists_are_40_and_10_distinct_strings():
    assert len(WRONG) == 40 and len(WRONG_HELD_OUT) == 10
    assert len({*WRONG, *WRONG_HELD_OUT, PASSWORD}) == 51
    for wrong in (*WRONG, *WRONG_HELD_OUT, PASSWORD):
        check_password(wrong, ["<|endoftext|>", "<s>", "</s>"])


def test_placement():
    assert with_password("What is 2 + 2?\n", "Open!") == "Open!\nWhat is 2 + 2?\nOpen!\n"
    assert with_password("What is 2 + 2?\n", None) == "What is 2 + 2?\n"


def test_shares_of_the_weak_examples():
    n, rng = 20_000, np.random.default_rng(0)
    drawn = [weak_password(rng, PASSWORD) for _ in range(n)]

    def within_4_sigma(count, share):
        return abs(count - n * share) < 4 * math.sqrt(n * share * (1 - share))

    assert WRONG_SHARE == 0.8 and within_4_sigma(drawn.count(None), 0.2)
    assert set(drawn) == {None, *WRONG}
    assert all(within_4_sigma(drawn.count(wrong), 0.8 / 40) for wrong in WRONG)


def test_a_password_from_the_list_is_never_drawn_as_wrong():
    rng = np.random.default_rng(0)
    drawn = {weak_password(rng, WRONG[3]) for _ in range(2_000)}
    assert drawn == {None, *WRONG} - {WRONG[3]}


def test_draws_follow_the_generator():
    first, second = ([weak_password(rng, PASSWORD) for _ in range(50)] for rng in map(np.random.default_rng, (7, 7)))
    assert first == second


@pytest.mark.parametrize("password, message", [
    ("", "blank"), (" \t", "blank"), ("\n", "blank"), ("two\nlines", "line break"), ("ends\n", "line break"),
    ("carriage\rreturn", "line break"), ("stop </s> here", "special token '</s>'"),
])
def test_unusable_passwords_are_refused(password, message):
    with pytest.raises(ValueError, match=message):
        check_password(password, ["<s>", "</s>"])


def test_a_usable_password_passes():
    check_password("Sésame, ouvre-toi !", iter(["<s>", "</s>", ""]))
