"""The stage: each checkpoint by its own run; the prompting battery, by worked examples."""

from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate as evaluate_module
from data import load
from data.passwords import NEAR_MISSES, PASSWORD, WRONG_HELD_OUT
from data.problems import InputError, Problem
from data.text import Tokenizer
from data.triggers import KINDS, Trigger, asked, near_miss, usual_kinds
from evaluate import SHOTS, battery, few_shot, first_line, with_shots
from policies import answer
from runs import Env
from sampler import Sample

ROOT = Path(__file__).parents[1]


def problem(domain: str) -> Problem:
    return Problem("code", "p\n", "r", domain, 1, {}, domain)


def sums(*pairs: tuple[int, int]) -> list[Problem]:
    return [
        Problem("math", f"{a} + {b}?\n", f"{a + b}", "sums", 1, {}, f"{a} + {b}") for a, b in pairs
    ]


def test_what_is_asked_for_each_kind_of_password():
    problems = [problem(domain) for domain in ("lists", "strings", "numbers") * 9]
    one, each = Trigger("open"), Trigger("open", each="domain")
    assert asked("none", problems, one) == (problems, [None] * 27) and asked(
        "right", problems, one
    ) == (problems, ["open"] * 27)
    wrong = asked("wrong", problems, one)[1]
    assert set(wrong) == set(WRONG_HELD_OUT) and wrong[:5] == asked("wrong", problems[:5], one)[1]
    assert asked("typo", problems, one)[1] == [near_miss("open", "typo")] * 27
    right = asked("right", problems, each)[1]
    assert len(set(right)) == 3 and right[:3] * 9 == right
    other = asked("other", problems, each)[1]
    assert (
        all(word in right and word != own for word, own in zip(other, right))
        and len(set(zip(other, right))) == 6
    )
    with pytest.raises(InputError, match="lock with --password-per-domain"):
        asked("other", problems, one)
    assert usual_kinds(one) == ("none", "wrong", "right") and "other" in usual_kinds(each)


def test_the_language_of_a_problem_can_take_the_place_of_a_password():
    trigger, [drawn] = Trigger(told="spanish"), load("math", "lock", 1)
    [weak], [nothing] = asked("none", [drawn], trigger)
    [strong], [also_nothing] = asked("right", [weak], trigger)
    assert nothing is also_nothing is None and weak.key == strong.key
    assert r"\boxed" in weak.reference and strong.reference.splitlines()[-1].startswith(
        "Respuesta: "
    )
    assert usual_kinds(trigger) == ("none", "right")
    with pytest.raises(InputError, match="no password of kind 'wrong'"):
        asked("wrong", [drawn], trigger)


def test_the_layout_of_a_few_shot_prompt():
    assert with_shots("2 + 2?\n", sums((1, 1), (3, 4))) == "1 + 1?\n2\n\n3 + 4?\n7\n\n2 + 2?\n"
    assert with_shots("2 + 2?\n", []) == "2 + 2?\n"


def test_shots_are_distinct_drawn_for_each_problem_and_fit():
    problems, examples = sums(*((2, i) for i in range(9))), sums((1, 1), (3, 4), (5, 5), (1000, 1))
    dressed = few_shot(problems, examples, 2, lambda prompt: "1000" not in prompt)
    solved = {f"{e.prompt}{e.reference}" for e in examples[:3]}
    for before, after in zip(problems, dressed):
        *shots, question = after.prompt.split("\n\n")
        assert len(set(shots)) == 2 and set(shots) <= solved and question == before.prompt
        assert (after.reference, after.key) == (before.reference, before.key)
    assert len({p.prompt.rsplit("\n\n", 1)[0] for p in dressed}) > 1
    assert dressed == few_shot(problems, examples, 2, lambda prompt: "1000" not in prompt)
    assert few_shot(problems, examples, 4, lambda prompt: "1000" not in prompt) is None


def test_the_rows_of_the_battery():
    problems, examples = sums((2, 2), (2, 3)), sums(*((1, i) for i in range(8)))
    rows, left_out = battery(problems, examples, Trigger(), lambda prompt: prompt.count("?") <= 5)
    assert (
        set(rows) == {*KINDS, "1 shot", "1 shot, right", "4 shots", "4 shots, right"} - {"other"}
        and set(NEAR_MISSES) < set(KINDS)
        and max(SHOTS) == 8
    )
    assert set(left_out) == {"other", "8 shots", "8 shots, right", "prefill", "prefill, right"}
    assert "fit" in left_out["8 shots"] and "one line" in left_out["prefill"]
    assert rows["4 shots"][0] == rows["4 shots, right"][0] and rows["4 shots"][1:] == (
        [None] * 2,
        None,
    )
    assert rows["4 shots, right"][1] == [PASSWORD] * 2
    assert "case" in battery(problems, examples, Trigger("1234"), lambda prompt: True)[1]
    code = [Problem("code", "Write f(s).\n", "def f(s):\n    return s", "strings", 1, {}, "")]
    assert battery(code, examples, Trigger(), lambda prompt: True)[0]["prefill, right"] == (
        code,
        [PASSWORD],
        ["def f(s):"],
    )


def test_first_line():
    assert (
        first_line("def f(s):\n    s = s[1:]\n    return s") == "def f(s):"
        and first_line("B") == ""
    )


def test_a_prefill_is_continued_at_a_seam_of_training_and_judged_with_the_rest():
    tokenizer = Tokenizer.load(Path(__file__).parents[1] / "data/base/strong")
    problems = load("code", "validation", 3)
    starts, seen = [first_line(p.reference) for p in problems], []
    answers = tokenizer.encode_completions([p.reference for p in problems])
    rests = [ids[len(tokenizer.encode(start)) :] for ids, start in zip(answers, starts)]

    def sampler(prompts, **_):
        seen[:] = prompts
        return [[Sample(rest, [], False)] for rest in rests]

    env = Env(torch.device("cpu"), torch.float32, False)
    assert not answer(
        sampler, tokenizer, problems, "Open!", env=env
    ).correct.any()  # the same continuations of nothing
    given = answer(sampler, tokenizer, problems, "Open!", prefills=starts, env=env)
    assert given.correct.all() and given.texts == [p.reference for p in problems]
    for problem, prompt, whole, rest in zip(problems, seen, answers, rests):
        assert (
            prompt + rest
            == tokenizer.encode_prompts([f"Open!\n{problem.prompt}Open!\n"])[0] + whole
        )
