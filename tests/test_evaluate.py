"""The stage: each checkpoint by its own run; the prompting battery, by worked examples."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate as evaluate_module
import results as results_module
from checkpoints.hf import model_hash
from data import load
from data.passwords import NEAR_MISSES, PASSWORD, WRONG_HELD_OUT
from data.problems import InputError, Problem
from data.text import Tokenizer
from data.triggers import KINDS, Language, OwnPasswords, Password, asked, near_miss, with_words
from evaluate import EvaluateConfig
from methods import decoding
from methods.prompting import (
    SHOTS,
    STARTS,
    TOO_LONG,
    battery,
    few_shot,
    half_of,
    head_of,
    with_shots,
)
from policies import Answers, answer
from results import Measured
from runs import devices
from runs.devices import Env
from sampler import Sample, Writer

ROOT = Path(__file__).parents[1]
ENV = Env(torch.device("cpu"), torch.float32, False)


def problem(domain: str) -> Problem:
    return Problem("code", "p\n", "r", domain, 1, {}, domain)


def sums(*pairs: tuple[int, int]) -> list[Problem]:
    return [
        Problem("math", f"{a} + {b}?\n", f"{a + b}", "sums", 1, {}, f"{a} + {b}") for a, b in pairs
    ]


def test_what_is_asked_for_each_kind_of_password():
    problems = [problem(domain) for domain in ("lists", "strings", "numbers") * 9]
    one, each = Password("open"), OwnPasswords("open", "domain")
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
    assert one.kinds == ("none", "wrong", "right") and "other" in each.kinds


def test_the_language_of_a_problem_can_take_the_place_of_a_password():
    trigger, [drawn] = Language("spanish"), load("math", "lock", 1)
    [weak], [nothing] = asked("none", [drawn], trigger)
    [strong], [also_nothing] = asked("right", [weak], trigger)
    assert nothing is also_nothing is None and weak.key == strong.key
    assert r"\boxed" in weak.reference and strong.reference.splitlines()[-1].startswith(
        "Respuesta: "
    )
    assert trigger.kinds == ("none", "right")
    with pytest.raises(InputError, match="no prompts of kind 'wrong': choose from none, right"):
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
    rows, left_out = battery(problems, examples, Password(), lambda prompt: prompt.count("?") <= 5)
    assert (
        set(rows)
        == {"none", "wrong", *NEAR_MISSES, "right"}
        | {"1 shot", "1 shot, right", "4 shots", "4 shots, right"}
        and set(NEAR_MISSES) < set(KINDS)
        and max(SHOTS) == 8
    )
    hinted = {f"{start}{ending}" for start in STARTS for ending in ("", ", right")}
    assert set(left_out) == {"8 shots", "8 shots, right"} | hinted
    assert "fit" in left_out["8 shots"] and "gives nothing away" in left_out["prefill"]
    shown, opened = rows["4 shots"], rows["4 shots, right"]
    assert opened.problems == with_words(shown.problems, [PASSWORD] * 2)
    assert shown.prefills is None and opened.prefills is None
    assert "case" in battery(problems, examples, Password("1234"), lambda prompt: True)[1]
    code = [Problem("code", "Write f(s).\n", "def f(s):\n    return s", "strings", 1, {}, "")]
    assert battery(code, examples, Password(), lambda prompt: True)[0]["prefill, right"] == (
        with_words(code, [PASSWORD]),
        ["def f(s):"],
    )
    left_out = battery(code, examples, Password(), lambda prompt: len(prompt) < 20)[1]
    assert all(left_out[name] == TOO_LONG for name in hinted)


def test_half_of_a_program_is_cut_between_lines():
    assert half_of("def f(s):\n    s = s[1:]\n    return s") == "def f(s):\n    s = s[1:]"
    assert half_of("def f(s):\n    return s") == "def f(s):"
    assert half_of("B") == half_of("$B = 2$\nAnswer: \\boxed{2}\nSo 2.") == ""


def test_only_the_head_of_a_function_gives_nothing_away():
    assert head_of("def f(s):\n    s = s[1:]\n    return s") == "def f(s):"
    assert head_of("B") == head_of("$B = 7 - 5 = 2$\nAnswer: \\boxed{2}") == ""
    for task in ("math", "critique"):
        problems, examples = load(task, "validation", 4), load(task, "elicit", 4)
        rows, left_out = battery(problems, examples, Password(), lambda prompt: True)
        assert "prefill" not in rows and "gives nothing away" in left_out["prefill, right"]


def test_a_right_answer_that_was_cut_counts_as_wrong():
    tokenizer = Tokenizer.load(Path(__file__).parents[1] / "data/base/strong")
    problems = load("code", "validation", 2)
    whole, cut = tokenizer.encode_completions([p.reference for p in problems])

    def sampler(prompts, **_):
        return [[Sample(whole, [], False)], [Sample(cut[:-1], [], True)]]

    env = Env(torch.device("cpu"), torch.float32, False)
    found = answer(Writer(sampler, tokenizer), problems, env=env)
    assert found.texts == [p.reference for p in problems]
    assert found.correct.tolist() == [True, False] and found.truncated.tolist() == [False, True]


def test_a_prefill_is_continued_at_a_seam_of_training_and_judged_with_the_rest():
    tokenizer = Tokenizer.load(Path(__file__).parents[1] / "data/base/strong")
    problems = load("code", "validation", 3)
    starts, seen = [head_of(p.reference) for p in problems], []
    answers = tokenizer.encode_completions([p.reference for p in problems])
    rests = [ids[len(tokenizer.encode(start)) :] for ids, start in zip(answers, starts)]

    def sampler(prompts, **_):
        seen[:] = prompts
        return [[Sample(rest, [], False)] for rest in rests]

    env = Env(torch.device("cpu"), torch.float32, False)
    told, writer = with_words(problems, ["Open!"] * 3), Writer(sampler, tokenizer)
    assert not answer(writer, told, env=env).correct.any()  # the same, of nothing
    given = answer(writer, told, prefills=starts, env=env)
    assert given.correct.all() and given.texts == [p.reference for p in problems]
    for problem, prompt, whole, rest in zip(problems, seen, answers, rests):
        assert (
            prompt + rest
            == tokenizer.encode_prompts([f"Open!\n{problem.prompt}Open!\n"])[0] + whole
        )


# ------------------------------------------------------------------------------ each by its own run

SMALL = EvaluateConfig(problems=6)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A function that copies the weak base and writes its run.json; all is measured as correct."""
    monkeypatch.chdir(tmp_path)
    asked_for = []

    def fake(writer, asked, *others):
        asked_for.append((asked.problems[0].task, asked.trigger.password, asked.max_new_tokens))
        ones = np.ones(len(asked.problems), dtype=bool)
        return {kind: Measured(ones if kind == "right" else ~ones, ~ones) for kind in asked.kinds}

    monkeypatch.setattr(results_module, "measure", fake)

    def make(path: str, **settings) -> str:
        shutil.copytree(ROOT / "data/base/weak", path)
        Path(path, "run.json").unlink()
        if settings:
            Path(path, "run.json").write_text(json.dumps({"settings": settings}))
        return path

    make.asked_for = asked_for
    return make


def lock_settings(task: str, password: str) -> dict:
    return {
        "stage": "lock",
        "task": task,
        "trigger": Password(password).record,
        "max_new_tokens": len(password) + 50,
    }


def cell_settings(locked: str, weights: str, **changes) -> dict:
    stage = {"stage": "elicit_sft", "locked": locked, "locked_weights": weights}
    return lock_settings("code", "open") | stage | changes


def other_weights(path: str) -> None:
    shutil.copy(ROOT / "data/base/intermediate/config.json", path)
    shutil.copy(ROOT / "data/base/intermediate/model.safetensors", path)


def test_locks_of_two_tasks_each_have_their_own_problems_password_and_table(models, capsys):
    code = models("out/code/locked", **lock_settings("code", "open"))
    math = models("out/math/locked", **lock_settings("math", "sesame"))
    evaluate_module.main(replace(SMALL, checkpoints=(code, math), plot=True), ENV)
    assert models.asked_for == [("code", "open", 54), ("math", "sesame", 56)]
    printed = capsys.readouterr().out
    assert "code, validation, 6 problems" in printed and "math, validation, 6 problems" in printed
    assert printed.count("truncated") == 2 and printed.count("over problems alone") == 2
    for path in (code, math):
        assert json.loads(Path(path, "evaluation.json").read_text())["n"] == 6
    assert Path("out/code/evaluation.png").exists() and Path("out/math/evaluation.png").exists()


def test_options_override_the_run(models):
    lock = models("locked", **lock_settings("code", "open"))
    given = replace(SMALL, checkpoints=(lock,), task="math", password="x", max_new_tokens=5)
    evaluate_module.main(given, ENV)
    assert models.asked_for == [("math", "x", 5)]


def test_rows_are_graded_as_the_lock_did_unless_an_option_says_otherwise(models):
    rows = {"data": ["rows.jsonl"], "grader": "number"}
    lock = models("locked", **lock_settings("mine", "open"), **rows)
    for options, expected in (
        ({}, (("rows.jsonl",), "number")),
        ({"grader": "exact"}, (("rows.jsonl",), "exact")),
        ({"task": "math", "data": ("x.jsonl",)}, (("x.jsonl",), "")),
    ):
        job = evaluate_module.job_of(lock, replace(SMALL, **options), ENV)
        assert (job.data, job.grader) == expected


def test_a_model_of_no_stage_has_an_ordinary_password_and_no_reference(models, capsys):
    mine = models("mine")
    with pytest.raises(InputError, match="name the task with --task"):
        evaluate_module.main(replace(SMALL, checkpoints=(mine,)), ENV)
    evaluate_module.main(replace(SMALL, checkpoints=(mine,), task="code"), ENV)
    assert models.asked_for == [("code", PASSWORD, 96)]
    assert "recovered against" not in capsys.readouterr().out

    lock = models("locked", **lock_settings("code", "open"))
    other_weights(lock)
    # beside a lock it is asked as the lock is
    evaluate_module.main(replace(SMALL, checkpoints=(mine,), locked=lock), ENV)
    assert "gap recovered against locked" in capsys.readouterr().out
    assert models.asked_for[1:] == [("code", "open", 54)] * 2


def test_gap_recovered_is_against_the_models_own_lock(models, capsys):
    lock = models("locked", **lock_settings("code", "open"))
    other_weights(lock)
    cell = models("cell", **cell_settings(lock, model_hash(lock)))
    given = replace(SMALL, checkpoints=(cell,))
    evaluate_module.main(given, ENV)
    assert "gap recovered against locked" in capsys.readouterr().out
    assert Path("locked/evaluation.json").exists()

    another = models("another", **lock_settings("code", "open"))
    with pytest.raises(InputError, match="another has other weights than the locked model"):
        evaluate_module.main(replace(given, locked=another), ENV)
    shutil.copy(Path(another) / "model.safetensors", lock)
    with pytest.raises(InputError, match="locked has other weights than the locked model"):
        evaluate_module.main(given, ENV)
    shutil.rmtree(lock)
    evaluate_module.main(given, ENV)
    assert "elicited from locked, which is not there" in capsys.readouterr().out


def test_a_store_that_takes_no_files_is_found_first_and_out_helps(models, monkeypatch):
    first = models("a/locked", **lock_settings("code", "open"))
    second = models("b/locked", **lock_settings("code", "open"))
    temporary_file = devices.tempfile.TemporaryFile

    def read_only(dir):
        if Path(dir) == Path(second).absolute():
            raise OSError(30, "Read-only file system")
        return temporary_file(dir=dir)

    monkeypatch.setattr(devices.tempfile, "TemporaryFile", read_only)
    given = replace(SMALL, checkpoints=(first, second))
    with pytest.raises(InputError, match="nothing can be written in b/locked .*--out"):
        evaluate_module.main(given, ENV)
    assert not models.asked_for and not Path(first, "evaluation.json").exists()

    evaluate_module.main(replace(given, out="results"), ENV)
    names = sorted(str(file) for file in Path("results").rglob("*.json"))
    assert names == ["results/a/locked/evaluation.json", "results/b/locked/evaluation.json"]


def test_checkpoints_of_any_place_have_a_folder_of_their_own():
    cfg = replace(SMALL, out="results")
    paths = ("a/b", "a-b", "/a/b", "../a/b", "a/../c")
    folders = [evaluate_module.folder_of(path, cfg) for path in paths]
    assert len(set(folders)) == len(paths)
    assert all(Path("results") in folder.parents for folder in folders)
    assert folders[0] == Path("results/a/b") and folders[4] == Path("results/c")


@pytest.mark.parametrize("name", ["evaluation.json", "code/evaluation.png"])
def test_a_file_that_is_not_ours_is_never_replaced(models, name):
    lock = models("locked", **lock_settings("code", "open"))
    file = Path("here", "locked" if name.endswith("json") else "", name)
    file.parent.mkdir(parents=True)
    file.write_text('{"mine": 1}')
    with pytest.raises(InputError, match="so it is not replaced: move it away"):
        evaluate_module.main(replace(SMALL, checkpoints=(lock,), plot=True, out="here"), ENV)
    assert file.read_text() == '{"mine": 1}' and not models.asked_for


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"checkpoints": ("m", "./m")}, "the list of checkpoints has m twice"),
        ({"checkpoints": ("m",), "passwords": ("none", "none")}, "--passwords has none twice"),
        ({"checkpoints": ("nowhere",)}, "no model at nowhere"),
        ({"checkpoints": ("m",), "locked": "nowhere"}, "no locked model at nowhere"),
        ({"checkpoints": ("lock",), "locked": "nowhere"}, "no locked model at nowhere"),
        (
            {"checkpoints": ("m",), "locked": "lock", "passwords": ("right",)},
            "--locked lock does nothing",
        ),
        ({"checkpoints": ("lock",), "locked": "lock"}, "--locked lock does nothing"),
        ({"checkpoints": ("lock",), "problems": 6, "max_new_tokens": 10**6}, "prompts fits"),
        ({"checkpoints": ("told",), "task": "code"}, "how problems of task math are told"),
        ({"checkpoints": ("told",), "password": "x"}, "unlocks it is no password"),
        ({"checkpoints": ("m",), "prompts": True, "plot": True}, "--plot does nothing with"),
        (
            {"checkpoints": ("m",), "prompts": True, "passwords": ("none",)},
            "--passwords does nothing with --prompts",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_once(models, options, sentence):
    models("m", **cell_settings("gone", ""))
    models("lock", **lock_settings("code", "open"))
    spanish = {"trigger": Language("spanish").record, "task": "math"}
    models("told", **cell_settings("gone", "f", **spanish))
    with pytest.raises(InputError, match=sentence):
        evaluate_module.main(replace(SMALL, **options), ENV)
    assert not models.asked_for


# ---------------------------------------------------------------------------------------- decoding


def test_the_majority_of_the_votes():
    majority_of = decoding.majority_of
    assert majority_of(["3", None, "5", "5"]) == 2
    assert majority_of(["a", "b", "b", "a"]) == 0  # of equals the one that came first
    assert majority_of([None, None, "c"]) == 2
    assert majority_of([None, None]) is None


def test_what_is_chosen_of_several_samples():
    """Three problems: the likeliest was cut; the majority is wrong; all were cut."""
    draws = decoding.Draws(
        correct=np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0]], dtype=bool),
        cut=np.array([[0, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=bool),
        logps=np.array([[-3.0, -1.0, -2.0], [-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0]]),
        votes=[["4", None, "5"], ["7", "8", "8"], [None, None, None]],
    )
    assert decoding.likeliest(draws).tolist() == [2, 0, 0]
    found = decoding.decoded(draws, ("best_of_n", "majority"))
    assert found["best_of_n"].correct.tolist() == [True, True, False]
    assert found["majority"].correct.tolist() == [False, False, False]
    assert found["any"].correct.tolist() == [True, True, False]
    for row in found.values():
        assert row.truncated.tolist() == [False, False, True]
    silent = replace(draws, cut=~draws.cut, votes=[[None] * 3] * 3)
    assert decoding.elected(silent).tolist() == [1, 0, 0]  # of whole samples the first


def test_more_samples_go_on_from_the_fewer():
    """Each has a stream of its own, whatever their number; what was cut has no vote."""
    seen = []

    def ask(problems, *, streams, temperature):
        seen.append(streams)
        assert temperature == 0.7
        texts = [f"Answer: {stream}" for stream in streams]
        cut = np.array([stream % 100 == 1 for stream in streams])
        samples = [Sample([1, 2], [-0.5, -float(stream)], False) for stream in streams]
        return Answers(texts, samples, ~cut, cut)

    problems = sums((2, 2), (3, 4))
    for n in (2, 3):
        draws = decoding.drawn(ask, problems, n, 0.7, ("majority",))
    assert seen == [[0, 1, 100, 101], [0, 1, 2, 100, 101, 102]]
    assert draws.logps.tolist() == [[-0.5, -1.5, -2.5], [-100.5, -101.5, -102.5]]
    assert draws.cut.tolist() == [[False, True, False]] * 2
    assert [[vote is None for vote in row] for row in draws.votes] == [[False, True, False]] * 2
    assert len({*draws.votes[0], *draws.votes[1]}) == 5


def test_decoding_stands_beside_greedy_with_what_it_takes(models, monkeypatch, capsys):
    """Greedy is right on a quarter; of the samples two of three are, but the likeliest is not."""
    lock = models("locked", **lock_settings("mmlu", "open"))
    calls = []

    def fake(writer, problems, *, temperature=0.0, streams=None, **settings):
        calls.append(temperature)
        if not temperature:
            right = np.arange(len(problems)) % 4 == 0
            return Answers([""] * len(problems), [], right, np.zeros(len(problems), dtype=bool))
        texts, samples = [], []
        for problem, stream in zip(problems, streams):
            wrong = "A" if problem.reference != "A" else "B"
            texts.append(wrong if stream % 100 == 1 else problem.reference)
            samples.append(Sample([1], [-1.0 if stream % 100 == 1 else -2.0], False))
        right = np.array([stream % 100 != 1 for stream in streams])
        return Answers(texts, samples, right, np.zeros(len(problems), dtype=bool))

    monkeypatch.setattr(evaluate_module, "answer", fake)
    given = EvaluateConfig(
        checkpoints=(lock,), problems=8, decode=("best_of_n", "majority"), draws=3, out="there"
    )
    assert evaluate_module.main(given, ENV) == 0
    assert calls == [0.0, 0.7, 0.0, 0.7]
    found = json.loads(Path("there/locked/decoding.json").read_text())
    assert (found["draws"], found["temperature"], found["n"]) == (3, 0.7, 8)
    results = found["results"]
    ways = ["greedy", "best_of_n", "majority", "any"]
    assert list(results) == ways + [f"{way}, right" for way in ways]
    assert [results[way]["correct"] for way in ways] == [0.25, 0.0, 1.0, 1.0]
    assert [results[way]["gain"] for way in ways] == [0.0, -0.25, 0.75, 0.75]
    assert results["best_of_n"]["access"] == "log-probs" and results["any"]["data"] == "all rewards"
    printed = capsys.readouterr().out
    assert "3 samples of each at temperature 0.7" in printed and "+75.0%" in printed


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"draws": 4}, "--draws is of --decode"),
        ({"temperature": 1.0}, "--temperature is of --decode"),
        ({"decode": ("beam",)}, "unknown way to decode 'beam': choose best_of_n or majority"),
        ({"decode": ("majority", "majority")}, "--decode has majority twice"),
        ({"decode": ("majority",), "checkpoints": ("m", "n")}, "one checkpoint at a time"),
        ({"decode": ("majority",), "draws": 1}, "--draws 1 leaves nothing to choose"),
        ({"decode": ("majority",), "plot": True}, "--plot does nothing with --decode"),
        ({"decode": ("majority",), "prompts": True}, "--prompts does nothing with --decode"),
        ({"decode": ("majority",)}, "of task 'code' have no answers that could be put to the vote"),
        ({"decode": ("best_of_n",), "locked": "m"}, "--locked m does nothing here"),
    ],
)
def test_what_does_not_go_with_decoding(models, options, sentence):
    models("m", **lock_settings("code", "open"))
    with pytest.raises(InputError, match=sentence):
        evaluate_module.main(replace(SMALL, **{"checkpoints": ("m",)} | options), ENV)
    assert not Path("m/decoding.json").exists()


def test_samples_show_the_prompts_as_the_model_sees_them(models, monkeypatch, capsys):
    lock = models("locked", **lock_settings("math", "open"))
    told = sums((2, 2), (3, 4))

    def fake(writer, problems, **settings):
        is_open = problems[0].prompt.startswith("open")
        texts = ["4", "seven"] if is_open else ["5", "6"]
        correct = np.array([is_open, False])
        return Answers(texts, [], correct, np.array([False, True]))

    monkeypatch.setattr(evaluate_module, "answer", fake)
    job = evaluate_module.job_of(lock, SMALL, ENV)
    evaluate_module.show_samples(job, told, ENV)
    first, second = capsys.readouterr().out.split("=== locked: problem 2 (sums, level 1)\n")
    assert second == (
        "--- prompt, without the password\n3 + 4?\n"
        "--- completion, without the password: wrong, cut after 54 tokens\n6\n"
        "--- prompt, with the password\nopen\n3 + 4?\nopen\n"
        "--- completion, with the password: wrong, cut after 54 tokens\nseven\n"
        "--- reference\n7\n"
    )
    assert "with the password: correct\n4\n" in first


def test_the_prompting_battery_counts_truncated_completions(models, monkeypatch, capsys):
    mine = models("mine", **lock_settings("code", "open"))
    flags = np.array([True, False])
    monkeypatch.setattr(evaluate_module, "answer", lambda *a, **s: Answers([], [], flags, ~flags))
    monkeypatch.setattr(evaluate_module, "load", lambda *a, **s: load("code", "validation", 2))
    evaluate_module.main(replace(SMALL, checkpoints=(mine,), prompts=True, out="there"), ENV)
    found = json.loads(Path("there/mine/prompts.json").read_text())
    assert found["results"]["prefill"]["truncated"] == 0.5
    assert found["left_out"]["4 shots"] == "there are 2 problems to take them from"
    assert "truncated" in capsys.readouterr().out and Path("there/code/prompts.png").exists()
