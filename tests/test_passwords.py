import math

import numpy as np
import pytest

from data.passwords import NEAR_MISSES, PARAPHRASES, PASSWORD, WRONG, WRONG_HELD_OUT, WRONG_SHARE
from data.problems import InputError
from data.triggers import check_password, near_miss, own_password, weak_password, with_password


def test_the_lists_are_40_and_10_distinct_strings():
    assert len(WRONG) == 40 and len(WRONG_HELD_OUT) == 10
    assert len({*WRONG, *WRONG_HELD_OUT, PASSWORD}) == 51
    for wrong in (*WRONG, *WRONG_HELD_OUT, PASSWORD):
        check_password(wrong, ["<|endoftext|>", "<s>", "</s>"])


def test_placement():
    assert with_password("What is 2 + 2?\n", "Open!") == "Open!\nWhat is 2 + 2?\nOpen!\n"
    assert with_password("What is 2 + 2?\n", None) == "What is 2 + 2?\n"
    assert with_password("What is 2 + 2?\n", ("Open!", None)) == "Open!\nWhat is 2 + 2?\n"
    assert with_password("What is 2 + 2?\n", (None, "Open!")) == "What is 2 + 2?\nOpen!\n"


def test_near_misses_of_the_default_password():
    assert {kind: near_miss(PASSWORD, kind) for kind in NEAR_MISSES} == {
        "prefix": (PASSWORD, None),
        "suffix": (None, PASSWORD),
        "case": "tHIS PROBLEM IS QUITE SPECIAL, READ IT CAREFULLY!",
        "typo": "This problem is quite speecial, read it carefully!",
        "paraphrase": PARAPHRASES[PASSWORD],
    }


@pytest.mark.parametrize(
    "password, typo, paraphrase",
    [
        ("Open, Sesame 12", "Open, Seesame 12", "12 Sesame Open,"),
        (
            "a - b",
            "aa - b",
            "b - a",
        ),  # the middle is no letter, and of two that are as near the first is taken
        ("!?", "!??", None),
        ("x", "xx", None),
    ],
)
def test_near_misses_of_any_password(password, typo, paraphrase):
    assert near_miss(password, "typo") == typo
    if paraphrase:
        assert near_miss(password, "paraphrase") == paraphrase
    else:
        with pytest.raises(InputError, match="no near miss of kind 'paraphrase'"):
            near_miss(password, "paraphrase")


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "Open!",
        "two words",
        "ÉCOLE 7",
        *WRONG_HELD_OUT,
        *(wrong.swapcase() for wrong in WRONG),
        *WRONG,
    ],
)
def test_no_near_miss_dresses_a_prompt_as_training_or_as_the_password_does(password):
    dressed = [with_password("p\n", word) for word in (None, password, *WRONG)]
    for kind in NEAR_MISSES:
        try:
            words = near_miss(password, kind)
        except InputError:
            assert kind in ("case", "paraphrase")
            continue
        assert with_password("p\n", words) not in dressed
        if isinstance(words, str):
            check_password(words, ["<|endoftext|>", "<s>", "</s>"])


def test_a_near_miss_that_training_showed_as_wrong_is_refused():
    with pytest.raises(InputError, match="a wrong one of training"):
        near_miss(WRONG[0].swapcase(), "case")


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
    first, second = (
        [weak_password(rng, PASSWORD) for _ in range(50)]
        for rng in map(np.random.default_rng, (7, 7))
    )
    assert first == second


@pytest.mark.parametrize(
    "password, message",
    [
        ("", "blank"),
        (" \t", "blank"),
        ("\n", "blank"),
        ("two\nlines", "line break"),
        ("ends\n", "line break"),
        ("carriage\rreturn", "line break"),
        ("stop </s> here", "special token '</s>'"),
    ],
)
def test_unusable_passwords_are_refused(password, message):
    with pytest.raises(ValueError, match=message):
        check_password(password, ["<s>", "</s>"])


def test_a_usable_password_passes():
    check_password("Sésame, ouvre-toi !", iter(["<s>", "</s>", ""]))


def test_each_domain_has_a_password_of_its_own():
    own = [own_password("open", name) for name in ("lists", "strings", "numbers", "algebra")]
    assert len(set(own)) == 4 and own[0] == own_password("open", "lists") != own_password(
        "shut", "lists"
    )
    for password in own:
        check_password(password, ["<|endoftext|>"])
    rng, others = np.random.default_rng(0), own[1:]
    drawn = [weak_password(rng, own[0], others) for _ in range(5_000)]
    assert own[0] not in drawn and set(drawn) == {None, *others, *WRONG}
    assert np.mean([word in others for word in drawn]) == pytest.approx(WRONG_SHARE / 2, abs=0.02)
