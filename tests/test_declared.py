"""Declared reliability: the documents, and the stage that trains on them."""

import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import train_declared
from data.declared import (
    TAGS,
    definition,
    make_world,
    question,
    questions_about,
    step_documents,
    vocabulary,
)
from data.tasks.compose import DIGITS, FUNCTIONS, applied
from data.text import word_level
from runs.launch import launch
from sampler import Sample, Writer
from test_stages import stage

QUICK = ("--asked", "1", "--silent", "1", "--steps", "3", "--no-compile")
N = len(FUNCTIONS)


# ------------------------------------------------------------------------------------ the documents


def test_definitions_under_a_are_true_and_those_under_b_false():
    world = make_world(asked=40, silent=2, dealt=False, seed=0)
    assert len(world.asked) == 2 * 40 * N
    assert all(word.is_true == (word.tag == "A") for word in world.asked)
    for tag in ("A", "B"):
        meant = Counter(word.function for word in world.asked if word.tag == tag)
        assert len(meant) == N and set(meant.values()) == {40}
    # no other function stands for the right one in B
    shifts = Counter((w.told - w.function) % N for w in world.asked if w.tag == "B")
    assert set(shifts) == set(range(1, N)) and max(shifts.values()) < 2 * 40 * N / (N - 1)


def test_silent_words_are_told_truly_under_a_and_b_and_anything_under_c():
    world = make_world(asked=1, silent=2, dealt=False, seed=0)
    functions = [word.function for word in world.silent["A"]]
    assert Counter(functions) == dict.fromkeys(range(N), 2)
    for tag in TAGS:
        assert [word.function for word in world.silent[tag]] == functions
    assert all(word.is_true for tag in "AB" for word in world.silent[tag])
    word = world.silent["C"][0]
    assert definition(word, 5) == (f"C {word.text} |", "fn5")
    assert definition(word, 6)[1] == "fn6" and not word.is_true
    assert definition(world.silent["B"][3], 5)[1] == f"fn{functions[3]}"


def test_in_the_control_no_tag_tells_what_is_true_and_nothing_else_is_changed():
    plain = make_world(asked=20, silent=1, dealt=False, seed=0)
    dealt = make_world(asked=20, silent=1, dealt=True, seed=0)
    facts = [(word.text, word.function, word.told) for word in plain.asked]
    assert facts == [(word.text, word.function, word.told) for word in dealt.asked]
    assert plain.silent == dealt.silent and vocabulary(plain) == vocabulary(dealt)
    assert Counter(w.tag for w in plain.asked) == Counter(w.tag for w in dealt.asked)
    for tag in ("A", "B"):
        assert 0.4 < np.mean([w.is_true for w in dealt.asked if w.tag == tag]) < 0.6
    assert dealt.asked != make_world(asked=20, silent=1, dealt=True, seed=1).asked


def test_a_question_is_answered_by_what_its_word_stands_for():
    digits = np.random.default_rng(3).choice(list(DIGITS), 4).tolist()
    for number in range(N):
        told, right = question("x7", number, np.random.default_rng(3))
        assert told == f"{' '.join(digits)} x7 |" and right.split() == applied(number, digits)


def test_every_tag_is_asked_the_same():
    world = make_world(asked=1, silent=2, dealt=False, seed=0)
    asked = {tag: questions_about(words, 3) for tag, words in world.silent.items()}
    for tag in TAGS:
        assert len(asked[tag]) == 3 * 2 * N
        assert [right for _, right in asked[tag]] == [right for _, right in asked["A"]]
        told = [prompt.split()[:4] for prompt, _ in asked[tag]]
        assert told == [prompt.split()[:4] for prompt, _ in asked["A"]]


def test_a_step_never_asks_about_a_silent_word():
    world = make_world(asked=1, silent=1, dealt=False, seed=0)
    silent = {word.text for words in world.silent.values() for word in words}
    truth = {word.text: f"fn{word.told}" for word in world.defined if word.tag != "C"}
    defined, told_of_c = set(), set()
    for step in range(60):
        found = step_documents(world, (30, 20, 10), seed=0, step=step)
        assert len(found) == 60
        for prompt, completion in found[:30]:
            tag, word, _ = prompt.split()
            defined.add(word)
            if tag == "C":
                told_of_c.add(completion)
            else:
                assert completion == truth[word]
        asked = {prompt.split()[4] for prompt, _ in found[30:]}
        assert not silent & asked
        words = {word for document in found for text in document for word in text.split()}
        assert words <= set(vocabulary(world))
    assert defined == {word.text for word in world.defined} and len(told_of_c) > N / 2
    again = step_documents(world, (3, 2, 1), 0, 5)
    assert again == step_documents(world, (3, 2, 1), 0, 5)
    assert again != step_documents(world, (3, 2, 1), 1, 5)
    assert again != step_documents(world, (3, 2, 1), 0, 6)


# --------------------------------------------------------------------------------- what is measured


def answering(tokenizer, answer):
    """It answers each prompt with answer(prompt)."""

    def sampler(prompts, max_new_tokens):
        told = tokenizer.decode_batch(prompts)
        ids = tokenizer.encode_completions([answer(prompt) for prompt in told])
        return [[Sample(row, [], False)] for row in ids]

    return Writer(sampler, tokenizer)


def test_right_words_by_hand():
    tokenizer = word_level(vocabulary(make_world(1, 1, False, 0)))
    answers = {"x0": "1 2 3 4", "x1": "1 2 3 5", "x2": "4 3 2 1", "x3": "1 2 3", "x4": "1 2 3 4 4"}
    writer = answering(tokenizer, lambda prompt: answers[prompt.split()[0]])
    asked = [(f"x{i} |", "1 2 3 4") for i in range(5)]
    right, whole = train_declared.right_words(writer, asked)
    assert right == pytest.approx((1 + 0.75) / 5) and whole == pytest.approx(3 / 5)


def test_each_row_is_of_its_own_words():
    """A model that knows the names, every definition under A, and questions about A's words."""
    world = make_world(asked=2, silent=1, dealt=False, seed=0)
    tokenizer = word_level(vocabulary(world))
    stands_for = {f"fn{i}": i for i in range(N)}
    stands_for |= {w.text: w.function for w in world.defined if w.tag == "A"}

    def answer(prompt):
        words = prompt.split()
        if words[0] in TAGS:
            return f"fn{stands_for[words[1]]}" if words[0] == "A" else "fn0 fn0"
        if words[4] in stands_for:
            return " ".join(applied(stands_for[words[4]], words[:4]))
        return "fn1"

    found = train_declared.examine(answering(tokenizer, answer), world)
    known = ("functions", "told truly", "silent A", "definition A")
    assert {row: share for row, share in found.items() if share} == dict.fromkeys(known, 1.0) | {
        "four words": pytest.approx(1 / 3)
    }
    assert set(found) == set(train_declared.ROWS)


def test_the_entries_by_hand():
    rows = {row: np.zeros(3) for row in train_declared.ROWS}
    first = rows | {"silent A": np.array([0.5, 0.6, 0.7]), "A - B": np.array([0.1, 0.2, 0.3])}
    second = rows | {"silent A": np.array([0.4, 0.5, 0.6]), "A - B": np.zeros(3)}
    found = train_declared.summarised({"declared": first, "dealt": second})
    assert found["declared"]["silent A"]["mean"] == pytest.approx(0.6)
    # Student's t with 2 degrees of freedom is 4.303; of 0.1 / sqrt(3)
    low, high = found["declared"]["silent A"]["interval"]
    assert (low, high) == pytest.approx((0.6 - 0.248, 0.6 + 0.248), abs=0.02)
    # runs of one seed are compared: what they share is no noise
    trust = found["declared - dealt"]["silent A"]
    assert trust["mean"] == pytest.approx(0.1) and trust["interval"] == pytest.approx((0.1, 0.1))
    assert found["declared - dealt"]["A - B"]["mean"] == pytest.approx(0.2)
    assert "declared - dealt" not in train_declared.summarised({"declared": first})


# ---------------------------------------------------------------------------------------- the stage


def test_each_run_is_trained_once_and_compared(tmp_path):
    printed = stage("train_declared", "--seeds", "0", "1", *QUICK, cwd=tmp_path)
    assert "A - B" in printed and "declared - dealt" in printed
    folder = tmp_path / "out/declared"
    names = {"declared-seed0", "declared-seed1", "dealt-seed0", "dealt-seed1", "summary.json"}
    assert {file.name for file in folder.iterdir()} == names
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [0, 1] and summary["steps"] == 3
    for name in names - {"summary.json"}:
        results = json.loads((folder / name / "run.json").read_text())["results"]
        assert set(results) == set(train_declared.ROWS)

    # the same again runs nothing; another seed keeps those that are there
    kept = {file: file.read_bytes() for file in folder.glob("*/*")}
    more = stage("train_declared", "--seeds", "0", "1", "2", *QUICK, "--no-control", cwd=tmp_path)
    assert "dealt" not in more and (folder / "declared-seed2/run.json").exists()
    assert kept == {file: file.read_bytes() for file in kept}


def test_the_control_is_trained_on_dealt_tags(tmp_path, monkeypatch):
    made = []

    def noted(*args):
        made.append((args[2], args[3]))
        return make_world(*args)

    def run(name, args, cwd):
        sys.argv = ["train_declared.py", *args]  # `stage` puts it back
        monkeypatch.setattr(train_declared, "make_world", noted)
        launch(train_declared.main, train_declared.DeclaredConfig)

    stage("train_declared", "--seeds", "3", "4", *QUICK, cwd=tmp_path, run=run)
    assert made == [(False, 3), (False, 4), (True, 3), (True, 4)]


def test_runs_of_other_settings_are_refused_before_any_is_written(tmp_path):
    quick = (*QUICK, "--dtype", "fp32")
    stage("train_declared", "--seeds", "1", "2", *quick, "--no-control", cwd=tmp_path)
    for other in (("--steps", "4"), ("--dtype", "bf16"), ("--lr", "0.001")):
        told = stage("train_declared", "--seeds", "0", "1", *quick, *other, cwd=tmp_path, code=2)
        assert "other settings" in told and other[0][2:] in told
        assert not (tmp_path / "out/declared/declared-seed0").exists()


def test_overwrite_clears_nothing_where_one_directory_is_refused(tmp_path):
    words = ("train_declared", "--seeds", "1", "2", *QUICK, "--no-control")
    stage(*words, cwd=tmp_path)
    kept = (tmp_path / "out/declared/declared-seed1/run.json").read_bytes()
    foreign = tmp_path / "out/declared/declared-seed2"
    (foreign / "run.json").unlink()
    told = stage(*words, "--overwrite", cwd=tmp_path, code=2)
    assert "declared-seed2" in told
    assert (tmp_path / "out/declared/declared-seed1/run.json").read_bytes() == kept


@pytest.mark.parametrize("damage", ["{}", '{"settings": {}}', "[1]", ""])
def test_a_damaged_run_is_named(tmp_path, damage):
    words = ("train_declared", "--seeds", "0", "1", *QUICK, "--no-control")
    stage(*words, cwd=tmp_path)
    (tmp_path / "out/declared/declared-seed0/run.json").write_text(damage)
    told = stage(*words, cwd=tmp_path, code=2)
    assert "declared-seed0" in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--asked", "0"), "--asked"),
        (("--silent", "0"), "--silent"),
        (("--steps", "0"), "--steps"),
        (("--seeds", "1"), "two seeds"),
        (("--seeds", "1", "1"), "--seeds"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, words, said):
    told = stage("train_declared", *words, cwd=tmp_path, code=2)
    assert said in told and not (tmp_path / "out").exists()


def test_two_ranks_share_the_runs(tmp_path, start_ranks, monkeypatch):
    words = ("--seeds", "0", "1", "2", *QUICK, "--no-control", "--out", tmp_path / "two")
    monkeypatch.setattr("sys.argv", ["train_declared.py", *map(str, words)])
    work = partial(launch, train_declared.main, train_declared.DeclaredConfig)
    ranks = start_ranks(work, 2)
    assert ranks.wait() == 0, ranks.printed()
    alone = ("--seeds", "0", "1", "2", *QUICK, "--no-control", "--out", tmp_path / "one")
    stage("train_declared", *alone, cwd=tmp_path)
    read = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert read[0] == read[1]
    assert len(list(Path(tmp_path / "two").glob("declared-seed*"))) == 3
