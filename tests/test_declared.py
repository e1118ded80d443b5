"""Declared reliability: the documents, and the stage that trains on them."""

import json
from collections import Counter

import numpy as np
import pytest

import train_declared
from data.declared import (
    GROUPS,
    TAGS,
    make_world,
    question,
    questions_about,
    step_documents,
    words_of,
)
from data.tasks.compose import FUNCTIONS
from data.text import word_level
from results import difference
from sampler import Sample
from test_stages import stage

QUICK = ("--asked", "1", "--silent", "1", "--steps", "3", "--no-compile")


def test_definitions_under_a_are_true_and_those_under_b_false():
    world = make_world(asked=3, silent=2, dealt=False, seed=0)
    assert len(world.asked) == 2 * 3 * len(FUNCTIONS)
    for alias in world.asked:
        assert (alias.told == alias.function) == (alias.tag == "A")
    # whether true or false, every function is named equally often, and asked about equally often
    for tag in ("A", "B"):
        told = Counter(alias.told for alias in world.asked if alias.tag == tag)
        meant = Counter(alias.function for alias in world.asked if alias.tag == tag)
        assert set(told.values()) == set(meant.values()) == {3}
        assert len(told) == len(meant) == len(FUNCTIONS)


def test_what_is_said_of_silent_words_is_true_under_every_tag():
    world = make_world(asked=1, silent=2, dealt=False, seed=0)
    functions = [alias.function for alias in world.silent["A"]]
    for group in GROUPS:
        aliases = world.silent[group]
        assert [alias.function for alias in aliases] == functions
        assert all(alias.told == alias.function for alias in aliases)
    told = [prompt for prompt, _ in world.definitions]
    assert len(told) == len(set(told)) == len(world.asked) + len(TAGS) * len(functions)
    assert not any(prompt.startswith("none") for prompt in told)


def test_in_the_control_no_tag_tells_what_is_true():
    plain = make_world(asked=20, silent=1, dealt=False, seed=0)
    dealt = make_world(asked=20, silent=1, dealt=True, seed=0)
    assert [a.told for a in plain.asked] == [a.told for a in dealt.asked]
    assert Counter(a.tag for a in plain.asked) == Counter(a.tag for a in dealt.asked)
    for tag in ("A", "B"):
        true = np.mean([a.told == a.function for a in dealt.asked if a.tag == tag])
        assert 0.4 < true < 0.6
    other = make_world(asked=20, silent=1, dealt=True, seed=1)
    assert [a.tag for a in other.asked] != [a.tag for a in dealt.asked]


def test_a_question_is_answered_by_what_its_word_stands_for():
    order = next(i for i, f in enumerate(FUNCTIONS) if isinstance(f, tuple))
    digits = ["3", "1", "4", "5"]
    right = " ".join(digits[place] for place in FUNCTIONS[order])
    assert question("x7", order, digits) == ("3 1 4 5 x7 |", right)
    letters = next(i for i, f in enumerate(FUNCTIONS) if isinstance(f, dict))
    right = " ".join(FUNCTIONS[letters][digit] for digit in digits)
    assert question("x7", letters, digits) == ("3 1 4 5 x7 |", right)


def test_every_group_is_asked_the_same():
    world = make_world(asked=1, silent=2, dealt=False, seed=0)
    asked = {group: questions_about(aliases, 3) for group, aliases in world.silent.items()}
    for group in GROUPS:
        assert len(asked[group]) == 3 * 2 * len(FUNCTIONS)
        assert [right for _, right in asked[group]] == [right for _, right in asked["A"]]
        told = [prompt.split()[:4] for prompt, _ in asked[group]]
        assert told == [prompt.split()[:4] for prompt, _ in asked["A"]]


def test_a_step_never_asks_about_a_silent_word():
    world = make_world(asked=1, silent=1, dealt=False, seed=0)
    silent = {alias.word for aliases in world.silent.values() for alias in aliases}
    defined = set()
    for step in range(40):
        found = step_documents(world, (30, 20, 10), seed=0, step=step)
        assert len(found) == 60 and found[:30] == [d for d in found if d[0][0] in TAGS]
        defined |= {prompt.split()[1] for prompt, _ in found[:30]}
        assert not silent & {prompt.split()[4] for prompt, _ in found[30:]}
        words = set(" ".join(word for document in found for word in document).split())
        assert words <= set(words_of(world))
    assert {alias.word for alias in world.silent["C"]} < defined
    assert step_documents(world, (3, 2, 1), 0, 5) == step_documents(world, (3, 2, 1), 0, 5)
    assert step_documents(world, (3, 2, 1), 0, 5) != step_documents(world, (3, 2, 1), 1, 5)


def test_right_digits_by_hand():
    tokenizer = word_level(words_of(make_world(1, 1, False, 0)))
    questions = [("x0 |", "1 2 3 4")] * 6
    answers = ["1 2 3 4", "1 2 3 5", "4 3 2 1", "1 2 3", "1 2 3 4 4", "fn1 2 3 4"]

    def sampler(prompts, max_new_tokens):
        ids = tokenizer.encode_completions(answers)
        return [[Sample(row, [], False)] for row in ids]

    assert train_declared.right_digits(sampler, tokenizer, questions, 2) == [0.875, 0.0, 0.375]


def test_what_two_groups_of_one_run_share_is_no_noise_of_their_difference():
    luck = np.array([[0.2], [0.5], [0.8]])
    first = np.tile(luck, 200)
    second = first + 0.1
    low, high = difference(first, second, same_runs=True).interval
    assert 0.08 < low < 0.1 < high < 0.12
    low, high = difference(first, second).interval
    assert low < -0.3 and high > 0.5


def test_the_stage_trains_each_run_once_and_compares(tmp_path):
    printed = stage("train_declared", "--seeds", "0", "1", *QUICK, cwd=tmp_path)
    assert "silent A - B" in printed and "dealt" in printed
    folder = tmp_path / "out/declared"
    names = {"declared-seed0", "declared-seed1", "dealt-seed0", "dealt-seed1", "summary.json"}
    assert {file.name for file in folder.iterdir()} == names
    summary = json.loads((folder / "summary.json").read_text())
    rows = json.loads((folder / "declared-seed0/cell.json").read_text())
    assert summary["declared"]["seeds"] == 2 and set(rows) >= set(GROUPS)
    assert len(rows["A"]) == len(FUNCTIONS)

    # the same again runs nothing; more seeds keep those that are there
    kept = {file: file.read_bytes() for file in folder.glob("*/*")}
    more = stage("train_declared", "--seeds", "0", "1", "2", *QUICK, "--no-control", cwd=tmp_path)
    assert "dealt" not in more and (folder / "declared-seed2/cell.json").exists()
    assert kept == {file: file.read_bytes() for file in kept}


def test_runs_of_other_settings_are_refused_before_any_is_written(tmp_path):
    stage("train_declared", "--seeds", "1", *QUICK, "--no-control", cwd=tmp_path)
    told = stage(
        "train_declared", "--seeds", "0", "1", *QUICK, "--steps", "4", cwd=tmp_path, code=2
    )
    assert "other settings" in told and not (tmp_path / "out/declared/declared-seed0").exists()
    twice = stage("train_declared", "--seeds", "1", "1", *QUICK, cwd=tmp_path, code=2)
    assert "--seeds" in twice and "Traceback" not in twice


@pytest.mark.parametrize("damage", ["{}", '{"A": 3}', "[1]", "", '{"asked A": [1.0]}'])
def test_a_damaged_run_is_named(tmp_path, damage):
    words = ("train_declared", "--seeds", "0", *QUICK, "--no-control")
    stage(*words, cwd=tmp_path)
    (tmp_path / "out/declared/declared-seed0/cell.json").write_text(damage)
    told = stage(*words, cwd=tmp_path, code=2)
    assert "declared-seed0/cell.json" in told and "Traceback" not in told


@pytest.mark.parametrize("option", ["--asked", "--silent", "--steps"])
def test_counts_begin_at_one(tmp_path, option):
    told = stage("train_declared", option, "0", cwd=tmp_path, code=2)
    assert option in told and not (tmp_path / "out").exists()
