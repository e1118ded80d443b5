"""What unlocks a model: the words around a prompt, the way it is told, and what is near either."""

import json
import math

import numpy as np
import pytest

from data import load
from data.passwords import NEAR_MISSES, PARAPHRASES, PASSWORD, WRONG, WRONG_HELD_OUT, WRONG_SHARE
from data.problems import InputError
from data.triggers import (
    TELLINGS,
    Trigger,
    TwoPasswords,
    asked,
    check_password,
    near_miss,
    own_password,
    trigger_from,
    usual_kinds,
    weak_password,
    with_password,
)


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
        # the middle is no letter, and of two that are as near the first is taken
        ("a - b", "aa - b", "b - a"),
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
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(50):
        assert weak_password(first, PASSWORD) == weak_password(second, PASSWORD)


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
        ("caf\udce9", r"'\\udce9', which is no Unicode character"),  # Latin-1 on a command line
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


def test_each_way_of_telling_has_its_weak_and_its_strong_problem():
    [problem] = load("math", "lock", 1)
    english, spanish = Trigger(told="english"), Trigger(told="spanish")
    assert english.strong(problem) == spanish.weak(problem) != english.weak(problem)
    assert english.weak(problem) == spanish.strong(problem)
    assert english.password_of(problem) is None
    # a problem that is told one way can be told the other
    assert english.strong(english.weak(problem)) == english.strong(problem)

    [block] = load("compose", "lock", 1)
    slot = Trigger(told="slot")
    assert slot.weak(block) == block and "pwd0" in slot.strong(block).prompt

    plain = Trigger("open")
    assert plain.weak(problem) == plain.strong(problem) == problem
    assert plain.password_of(problem) == "open"


@pytest.mark.parametrize("told", TELLINGS)
@pytest.mark.parametrize("each", ["", "domain", "task"])
def test_a_trigger_is_read_back_as_it_was_written(each, told):
    if each and told:
        return
    trigger = Trigger("Sésame!", each, told)
    assert trigger_from(json.loads(json.dumps(vars(trigger))), "run.json") == trigger


def test_a_second_password_is_asked_for_and_read_back():
    trigger = TwoPasswords("open", intermediate="half open")
    written = json.loads(json.dumps(vars(trigger)))
    assert trigger_from(written, "run.json") == trigger != Trigger("open")
    assert usual_kinds(trigger) == ("none", "wrong", "intermediate", "right")
    problems = load("code", "lock", 2)
    assert asked("intermediate", problems, trigger) == (problems, ["half open"] * 2)
    assert asked("right", problems, trigger) == (problems, ["open"] * 2)
    with pytest.raises(InputError, match="no second password belongs to this lock"):
        asked("intermediate", problems, Trigger("open"))


def test_a_trigger_of_an_older_run_has_the_defaults():
    assert trigger_from({"password": "open"}, "run.json") == Trigger("open")


@pytest.mark.parametrize(
    "value, fault",
    [
        (None, "None in the place of an object"),
        (["open"], "in the place of an object"),
        ("open", "in the place of an object"),
        ({}, "its password is None"),
        ({"password": 7}, "its password is 7"),
        ({"password": None}, "its password is None"),
        ({"password": ["open"]}, "in the place of a text"),
        ({"password": ""}, "empty or blank"),
        ({"password": "two\nlines"}, "line break"),
        ({"password": "\ud800"}, "no Unicode character"),
        ({"password": "open", "bogus": 1}, "unknown key 'bogus'"),
        ({"password": "open", "told": "klingon"}, "its told is 'klingon'"),
        ({"password": "open", "told": None}, "its told is None"),
        ({"password": "open", "told": ["english"]}, "its told is"),
        ({"password": "open", "each": True}, "its each is True"),
        ({"password": "open", "each": "domain", "told": "english"}, "it has both"),
        ({"password": "open", "intermediate": 7}, "its intermediate is 7"),
        ({"password": "open", "intermediate": "two\nlines"}, "line break"),
        ({"password": "open", "intermediate": "b", "each": "task"}, "it has a second password"),
    ],
)
def test_a_trigger_that_no_lock_wrote_is_refused_in_one_sentence(value, fault):
    with pytest.raises(InputError, match=fault) as caught:
        trigger_from(value, "out/locked/run.json")
    message = str(caught.value)
    assert message.startswith("out/locked/run.json: ") and "\n" not in message
    message.encode()  # can be printed anywhere
