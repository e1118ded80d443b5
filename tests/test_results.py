"""The statistics, against tables and hand computations; what is written and read back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import results as results_module
from checkpoints.hf import model_hash
from checkpoints.origins import Origin, origin_of, trigger_of
from data import load
from data.problems import InputError, Problem
from data.tasks import compose
from data.text import word_level
from data.triggers import OwnPasswords, Password, Slot
from figures import shown
from results import (
    DRAWS,
    EvalSet,
    Measured,
    Spread,
    correct_interval,
    coverage,
    covers,
    difference,
    evaluate_checkpoint,
    excess,
    is_report,
    measure,
    measured_of,
    noise_of,
    outlying,
    paired_gap,
    pooled,
    record,
    recovered_gap,
    refuse_repeats,
    seed_noise,
    student_t,
    verdicts_of,
    wilson,
)
from runs import devices
from runs.devices import Env
from runs.files import write_json
from sampler import Sample, Writer

ROOT = Path(__file__).parents[1]


def verdicts(*runs: tuple[int, int]) -> np.ndarray:
    """verdicts((3, 1), (2, 0)) -> 1 1 1 0 0"""
    return np.concatenate([np.full(n, bool(value)) for n, value in runs])


@pytest.mark.parametrize(
    "correct, n, low, high",
    [
        (0, 10, 0.0, 0.27754),  # z^2 / (n + z^2) = 3.84146 / 13.84146
        (10, 10, 0.72246, 1.0),
        (5, 10, 0.23659, 0.76341),  # 1/2 +- z/2 / sqrt(n + z^2)
        (1, 1, 0.20655, 1.0),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),  # Newcombe 1998, table I, method 3
    ],
)
def test_wilson(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_is_symmetric_and_holds_the_estimate():
    for n in (1, 7, 100):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1
            assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(
    "gains, losses, p",
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (1, 0, 0.5),  # 2 * (1/2) * P(X = 0) with X ~ Bin(1, 1/2)
        (5, 1, 0.125),  # 2 * (P(0) + P(1) / 2) = 2 * (1 + 3) / 64
        (10, 2, 2 * (1 + 12 + 66 / 2) / 4096),
    ],
)
def test_paired_gap_against_mcnemars_mid_p(gains, losses, p):
    without, with_ = (
        verdicts((gains, 0), (losses, 1), (20, 1), (10, 0)),
        verdicts((gains, 1), (losses, 0), (20, 1), (10, 0)),
    )
    gap, low, high, found = paired_gap(without, with_)
    assert gap == pytest.approx(
        (gains - losses) / (30 + gains + losses)
    ) and found == pytest.approx(p)
    assert low <= gap <= high
    back = paired_gap(with_, without)
    assert back[0] == -gap and back[3] == pytest.approx(p)
    assert (-back[2], -back[1]) == pytest.approx((low, high), abs=0.05)


def test_paired_gap_bootstrap_matches_the_normal_interval():
    without, with_ = verdicts((300, 0), (100, 1), (600, 1)), verdicts((300, 1), (100, 0), (600, 1))
    gap, low, high, _ = paired_gap(without, with_)
    half = 1.96 * ((0.4 - 0.2**2) / 1000) ** 0.5
    assert (gap, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=0.003)


@pytest.mark.parametrize("n, measurable", [(1, False), (3, False), (20, True), (200, True)])
def test_an_interval_where_all_problems_agree_has_a_width_and_covers(n, measurable):
    """n problems of n are gained: a true gap of 1 - 1/n would give this in a third of all cases."""
    nothing, everything = verdicts((n, 0)), verdicts((n, 1))
    _, low, high, _ = paired_gap(nothing, everything)
    assert low <= 1 - 1 / n and high == 1.0
    assert (low > 0) == measurable
    low, high = correct_interval(np.stack([everything] * 3))
    assert low <= 1 - 1 / n and high == 1.0
    if measurable:
        found = recovered_gap(nothing, everything, everything[None])
        value, (low, high) = found.value, found.interval
        assert low <= 1 - 1 / n and value == 1.0 <= high


def test_paired_gap_of_thousands_of_discordant_problems():
    half = verdicts((1500, 0), (1500, 1))
    assert paired_gap(half, ~half)[3] == pytest.approx(1.0, abs=0.02)
    assert paired_gap(verdicts((3000, 0)), verdicts((3000, 1)))[3] == 0.0


def test_gap_recovered():
    locked, right = verdicts((10, 1), (90, 0)), verdicts((70, 1), (30, 0))
    assert recovered_gap(locked, right, np.stack([right, right])).value == pytest.approx(1.0)
    assert recovered_gap(locked, right, locked[None]).value == pytest.approx(0.0)
    both = np.stack([verdicts((40, 1), (60, 0)), verdicts((46, 1), (54, 0))])
    found = recovered_gap(locked, right, both)
    low, high = found.interval
    assert found.value == pytest.approx((0.43 - 0.1) / 0.6) and low < found.value < high
    assert recovered_gap(locked, right, verdicts((5, 1), (95, 0))[None]).value < 0


@pytest.mark.parametrize(
    "right", [verdicts((50, 1), (50, 0)), verdicts((40, 1), (60, 0)), verdicts((51, 1), (49, 0))]
)
def test_gap_recovered_is_refused_without_a_gap(right):
    with pytest.raises(InputError, match="no measurable gap"):
        recovered_gap(verdicts((50, 1), (50, 0)), right, right[None])


def problem(domain: str) -> Problem:
    return Problem("code", "p\n", "r", domain, 1, {}, domain)


def test_record_round_trip():
    problems = [problem(d) for d in ("lists", "numbers", "lists", "strings")]
    cut = np.array([False, True, False, False])
    given = {
        "none": Measured(np.array([True, False, False, True]), cut),
        "right": Measured(np.array([True] * 4), ~cut & False),
    }
    evaluation = json.loads(
        json.dumps(record(Path("out/x"), problems, given, split="validation"), allow_nan=False)
    )
    for kind, found in given.items():
        assert verdicts_of(evaluation, kind).tolist() == found.correct.tolist()
        again = measured_of(evaluation, 3)[kind]
        assert again.correct.tolist() == found.correct[:3].tolist()
        assert again.truncated.tolist() == found.truncated[:3].tolist()
    assert evaluation["results"]["none"]["truncated"] == 0.25
    none = evaluation["results"]["none"]
    assert (none["correct"], none["n"]) == (0.5, 4) and none["interval"] == pytest.approx(
        wilson(2, 4)
    )
    assert none["domains"] == {
        "lists": {"correct": 0.5, "n": 2},
        "numbers": {"correct": 0.0, "n": 1},
        "strings": {"correct": 1.0, "n": 1},
    }
    assert evaluation["split"] == "validation" and evaluation["task"] == "code"


def test_compose_is_measured_by_the_element_too():
    problems, tokenizer, trigger = (
        load("compose", "validation", 3),
        word_level(compose.vocabulary()),
        Slot(),
    )

    def sampler(prompts, **_):  # without the password its weak rule, with it the strong one
        return [
            [
                Sample(
                    tokenizer.encode_completions([compose.answer(problems[i % 3].key, weak=i < 3)])[
                        0
                    ],
                    [],
                    False,
                )
            ]
            for i in range(len(prompts))
        ]

    found = measure(
        Writer(sampler, tokenizer),
        EvalSet(problems, trigger, ("none", "right")),
        Env(torch.device("cpu"), torch.float32, False),
    )
    assert not found["none"].correct.any() and found["right"].correct.all()
    assert found["none"].shares.mean() < 1 == found["right"].shares.mean()
    result = record(Path("x"), problems, found)["results"]
    assert result["right"]["elementwise"] == 1 and "elementwise 100.0%" in shown(result["right"])


@pytest.mark.parametrize(
    "kinds, n, more, is_covered",
    [
        (("none", "right"), 4, {}, True),
        (("none",), 4, {}, False),
        (("none", "right", "wrong"), 6, {}, True),
        (("none", "right"), 2, {}, False),
        (("none", "right"), 4, {"max_new_tokens": 8}, False),
        (("none", "right"), 4, {"dtype": "bfloat16"}, False),
        (("none", "right"), 4, {"weights": "of another"}, False),
        (("none", "right"), 4, {"format": {"stop": ["return"]}}, False),
    ],
)
def test_a_runs_own_report_is_replaced_by_what_covers_it_alone(
    tmp_path, kinds, n, more, is_covered
):
    problems = load("code", "validation", 6)
    measured = Measured(np.ones(4, dtype=bool), np.zeros(4, dtype=bool))
    facts = {"split": "validation", "max_new_tokens": 96, "trigger": Password().record}
    facts |= {"dtype": "float32", "weights": "its own", "format": {"stop": []}}
    both = {"none": measured, "right": measured}
    told = record("x", problems[:4], both, **facts)
    write_json(tmp_path / "evaluation.json", told)
    file, asked = tmp_path / "evaluation.json", facts | more
    assert covers(file, problems[:n], kinds, asked) == is_covered
    assert covers(tmp_path / "none.json", problems, ("none",), facts)

    assert not is_report(tmp_path)
    for stage, finished in (("lock", True), ("lock", False), ("evaluate", True)):
        settings = {"settings": {"stage": stage}, "finished": finished}
        write_json(tmp_path / "run.json", settings)
        assert is_report(tmp_path) == (stage == "lock" and finished)


def test_the_trigger_of_a_locked_model_is_in_its_run(tmp_path):
    trigger = OwnPasswords("open", "domain")
    assert trigger_of(tmp_path) == Password()
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"trigger": trigger.record}}))
    assert trigger_of(tmp_path) == trigger


def all_right(asked: EvalSet) -> dict[str, Measured]:
    ones = np.ones(len(asked.problems), dtype=bool)
    return {kind: Measured(ones, ~ones) for kind in asked.kinds}


def test_an_evaluation_is_read_back_for_the_same_problems_and_settings_alone(tmp_path, monkeypatch):
    path = tmp_path / "weak"
    shutil.copytree(Path(__file__).parents[1] / "data/base/weak", path)
    measured = []

    def fake(writer, asked, *others):
        measured.append(asked)
        return all_right(asked)

    monkeypatch.setattr(results_module, "measure", fake)
    env, trigger = Env(torch.device("cpu"), torch.float32, False), Password()
    code, math = load("code", "validation", 12), load("math", "validation", 12)

    def again(problems, env=env, kinds=("none",), **settings):
        before = len(measured)
        found = evaluate_checkpoint(path, EvalSet(problems, trigger, kinds, **settings), env)
        assert found["n"] == len(problems) and found["task"] == problems[0].task
        return len(measured) > before

    assert again(code)
    assert not again(code) and not again(code[:5])  # the same problems, and the first of them
    assert again(math) and again(code)  # another task
    regraded = [replace(p, grading=p.grading | {"outputs": [0] * 8}) for p in code]
    assert again(regraded) and again(code)  # the same prompts, graded otherwise
    assert again(code[1:]) and again(code)
    assert again(code, env=replace(env, dtype=torch.bfloat16)) and again(code)
    assert (
        again(code, max_new_tokens=7)
        and again(code, split="selection")
        and again(code, kinds=("none", "right"))
    )


def test_elementwise_is_read_back_too(tmp_path, monkeypatch):
    path = tmp_path / "weak"
    shutil.copytree(Path(__file__).parents[1] / "data/base/weak", path)
    problems = load("compose", "validation", 4)
    correct = np.array([True, False, False, True])
    given = {"none": Measured(correct, ~correct, np.array([1.0, 0.25, 0.5, 1.0]))}
    monkeypatch.setattr(results_module, "measure", lambda *args, **settings: given)
    env = Env(torch.device("cpu"), torch.float32, False)
    straight = evaluate_checkpoint(path, EvalSet(problems, Password()), env)
    monkeypatch.delattr(results_module, "measure")
    assert evaluate_checkpoint(path, EvalSet(problems, Password()), env) == straight
    first = evaluate_checkpoint(path, EvalSet(problems[:2], Password()), env)
    assert first["results"]["none"]["elementwise"] == 0.625


def test_an_interval_of_several_seeds_covers_the_seeds_too():
    problems = verdicts((60, 1), (40, 0))
    assert correct_interval(problems[None]) == wilson(60, 100)
    low, high = correct_interval(np.stack([problems, problems, problems]))
    assert (low, high) == pytest.approx(wilson(60, 100), abs=0.01)  # equal seeds add nothing

    # seeds that differ by more than problems explain
    apart = np.stack([verdicts((30, 1), (70, 0)), problems, verdicts((90, 1), (10, 0))])
    wider = correct_interval(apart)
    assert wider[0] < low and wider[1] > high
    assert "problems alone" in coverage(1) and "3 seeds" in coverage(3)


def test_a_value_given_twice_is_refused():
    refuse_repeats("--k", (1, 2, 4))
    with pytest.raises(InputError, match="--k has 2 twice"):
        refuse_repeats("--k", (1, 2, 4, 2))


# ------------------------------------------------------------------------------ files of all shapes


@pytest.fixture
def weak(tmp_path, monkeypatch) -> Path:
    """A copy of the weak base, on which nothing is measured in earnest: all is correct."""
    path = tmp_path / "weak"
    shutil.copytree(ROOT / "data/base/weak", path)

    monkeypatch.setattr(results_module, "measure", lambda _, asked, *__: all_right(asked))
    return path


ENV = Env(torch.device("cpu"), torch.float32, False)


def test_other_passwords_are_read_back_for_the_same_problems_alone(weak, monkeypatch):
    """Which passwords are those of other domains depends on all the problems together."""
    problems, trigger = load("code", "validation", 12), OwnPasswords(each="domain")
    kinds = ("none", "other")
    evaluate_checkpoint(weak, EvalSet(problems, trigger, kinds), ENV)
    monkeypatch.delattr(results_module, "measure")
    evaluate_checkpoint(weak, EvalSet(problems, trigger, kinds), ENV)
    evaluate_checkpoint(weak, EvalSet(problems[:6], trigger), ENV)
    with pytest.raises(NameError, match="measure"):
        evaluate_checkpoint(weak, EvalSet(problems[:6], trigger, kinds), ENV)


@pytest.mark.parametrize(
    "changes",
    [
        {"results": None},
        {"results": [1, 2]},
        {"results": {"none": 5}},
        {"results": {"none": {"correct": 0.5}}},  # an older one, of before cut completions
        {"results": {"none": {"verdicts": "000", "cut": "000"}}},  # fewer than there are problems
        {"results": {"none": {"verdicts": "0x00", "cut": "0000"}}},
        {"results": {"none": {"verdicts": "0000", "cut": "0000"}, "right": {}}},
        {"results": {"none": {"verdicts": "0000", "cut": "0000", "shares": [1.0] * 4}}},
        {"problems": None},
        {"problems": 7},
        {"trigger": "open"},
    ],
)
def test_an_evaluation_of_another_shape_is_not_read(weak, changes):
    problems = load("code", "validation", 4)
    fresh = evaluate_checkpoint(weak, EvalSet(problems, Password()), ENV)
    wrong = json.loads(json.dumps(fresh)) | changes
    (weak / "evaluation.json").write_text(json.dumps(wrong))
    assert evaluate_checkpoint(weak, EvalSet(problems, Password()), ENV) == fresh


def test_an_evaluation_that_is_no_object_is_one_sentence(weak):
    problems = load("code", "validation", 4)
    for text in ("[1]", "{", "7"):
        (weak / "evaluation.json").write_text(text)
        with pytest.raises(InputError, match="evaluation.json"):
            evaluate_checkpoint(weak, EvalSet(problems, Password()), ENV)


def test_a_place_that_takes_no_file_is_found_before_anything_is_measured(weak, monkeypatch):
    problems = load("code", "validation", 4)
    monkeypatch.delattr(results_module, "measure")
    monkeypatch.delattr(results_module, "load_model")
    place = weak / "config.json/below a file"
    with pytest.raises(InputError, match="nothing can be written in .*--out"):
        evaluate_checkpoint(weak, EvalSet(problems, Password()), ENV, folder=place)

    def read_only(**settings):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(devices.tempfile, "TemporaryFile", read_only)
    with pytest.raises(InputError, match="Read-only file system.*--out"):
        evaluate_checkpoint(weak, EvalSet(problems, Password()), ENV)


def test_an_evaluation_goes_where_it_is_told_and_is_read_from_there(weak, tmp_path, monkeypatch):
    problems, place = load("code", "validation", 4), tmp_path / "elsewhere/weak"
    found = evaluate_checkpoint(weak, EvalSet(problems, Password()), ENV, folder=place)
    assert json.loads((place / "evaluation.json").read_text())["n"] == 4
    assert not (weak / "evaluation.json").exists()
    assert [file.name for file in place.iterdir()] == ["evaluation.json"]

    monkeypatch.delattr(results_module, "measure")
    again = evaluate_checkpoint(weak, EvalSet(problems, Password()), ENV, folder=place)
    assert again == found


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"settings": 5},
        {"settings": {"trigger": "open"}},
        {"settings": {"trigger": {"password": "open", "told": "klingon"}}},
        {"settings": {"trigger": {"password": "open", "bogus": 1}}},
        {"settings": {"trigger": None}},
        {"settings": {"task": ["code"]}},
        {"settings": {"data": "rows.jsonl"}},
        {"settings": {"data": [5]}},
        {"settings": {"max_new_tokens": "96"}},
        {"settings": {"max_new_tokens": -1}},
        {"settings": {"locked": 5}},
        {"settings": {"weak_weights": {}}},
    ],
)
def test_a_run_of_another_shape_is_one_sentence(tmp_path, run):
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="run.json") as refused:
        origin_of(tmp_path)
    assert "\n" not in str(refused.value)


def test_where_a_model_came_from(tmp_path):
    shutil.copytree(ROOT / "data/base/weak", tmp_path / "lock")
    settings = {
        "stage": "lock",
        "task": "code",
        "data": ["a.csv"],
        "trigger": Password("open").record,
        "max_new_tokens": 50,
        "weak": "random",
        "weak_weights": "random",
    }
    file = tmp_path / "lock/run.json"
    file.write_text(json.dumps({"settings": settings}))
    lock = origin_of(tmp_path / "lock")
    assert (lock.task, lock.data, lock.max_new_tokens) == ("code", ("a.csv",), 50)
    assert lock.trigger == Password("open") and lock.weak == "random"
    assert lock.locked == str(tmp_path / "lock")  # a lock is its own reference
    assert lock.locked_weights == model_hash(ROOT / "data/base/weak")

    file.write_text(
        json.dumps(
            {"settings": settings | {"stage": "elicit_sft", "locked": "x", "locked_weights": "f"}}
        )
    )
    cell = origin_of(tmp_path / "lock")
    assert (cell.locked, cell.locked_weights) == ("x", "f")
    assert origin_of(tmp_path) == Origin()


def test_what_exceeds_a_null_is_asked_in_every_draw():
    """100 problems, of which 30 are gained; a null that loses far counts as none, one about 0 is
    unsure whether it does."""
    gained = np.repeat([1.0, 0.0], [30, 70])[None]
    nothing = np.zeros((1, 100))
    found = excess(nothing, gained)
    assert found.value == 0.3 and found.interval[0] > 0.15
    assert excess(nothing - 0.5, gained).interval == found.interval
    unsure = np.repeat([1.0, -1.0], [10, 10])
    unsure = np.concatenate([np.zeros(80), unsure])[None]
    wider = excess(unsure, gained)
    assert wider.value == 0.3 and wider.interval[0] < found.interval[0] - 0.02
    # one that gained as much leaves nothing, as in `difference`
    same = excess(gained, gained)
    assert same.value == 0
    # about 0 a null's noise takes from the lower end and not from the upper
    assert excess(unsure, gained).interval[1] == found.interval[1]
    assert same.interval == pytest.approx(difference(gained, gained).interval)


@pytest.mark.parametrize("freedom, end", [(1, 12.706), (2, 4.303), (3, 3.182), (30, 2.042)])
def test_draws_of_students_t_have_its_ends(freedom, end):
    draws = student_t(freedom)
    assert len(draws) == DRAWS and (np.diff(draws) > 0).all()
    np.testing.assert_allclose(draws, -draws[::-1], rtol=1e-6)
    assert np.quantile(draws, [0.025, 0.975]) == pytest.approx([-end, end], rel=3e-3)


def seeds_right(*shares: float) -> np.ndarray:
    """Verdicts of a seed for each share, that of the first of 100 problems right."""
    return np.arange(100) < 100 * np.array(shares)[:, None]


def test_seeds_of_a_kind_tell_more_of_their_spread_together():
    """Two pairs that spread alike, squares of 0.02 each: two degrees of freedom."""
    runs = seeds_right
    groups = [runs(0.1, 0.3), runs(0.5, 0.7), runs(0.7)]
    spread = pooled(groups)
    same = pytest.approx(0.02**0.5)
    assert spread == Spread(same, pytest.approx(2), same)
    # runs that agree on every problem, or of one seed, tell nothing of those that do not
    assert pooled([*groups, runs(0.0, 0.0)]) == spread
    assert pooled([runs(0.7), runs(0.0, 0.0)]) is None
    # two that are as often right, but not on the same problems, do
    tied = np.stack([runs(0.5)[0], ~runs(0.5)[0]])
    assert pooled([*groups, tied]) == Spread(
        pytest.approx((0.04 / 3) ** 0.5), pytest.approx(2), same
    )
    # squares of .02 and .0002: hardly more than the first alone
    unequal = pooled([groups[0], runs(0.50, 0.52)])
    assert unequal.freedom == pytest.approx((0.0202) ** 2 / (0.02**2 + 0.0002**2))

    def draws(values: list[float]) -> np.ndarray:
        return seed_noise(np.array(values), np.random.default_rng(0), spread)

    expected = np.random.default_rng(0).permutation(student_t(2.0)) / 2**0.5
    np.testing.assert_allclose(draws([0.5, 0.5]), 0.02**0.5 * expected)
    # further apart than any of the kind: it stands for itself
    alone = np.random.default_rng(0).permutation(student_t(1.0)) / 2**0.5
    np.testing.assert_allclose(draws([0.0, 1.0]), 0.5**0.5 * alone)
    assert not draws([0.5]).any()
    # runs that agree on every problem do not spread, whatever others of their kind do
    agreeing, other = np.array([[1, 0], [1, 0]]), np.array([[1, 0], [0, 1]])
    assert not noise_of(agreeing, np.random.default_rng(0), spread).any()
    assert noise_of(other, np.random.default_rng(0), spread).std() > 0.05


def test_one_pair_that_lies_far_apart_tells_nothing_of_the_others():
    alike = [seeds_right(0.50, 0.52), seeds_right(0.90, 0.92), seeds_right(0.30, 0.32)] * 4
    far = seeds_right(0.20, 0.90)
    assert pooled([*alike, far]) == pooled(alike)
    assert pooled(alike).freedom == pytest.approx(12)


@pytest.mark.parametrize("groups, critical", [(5, 0.928), (12, 0.653), (20, 0.480)])
def test_outliers_are_those_of_cochrans_table(groups, critical):
    """ISO 5725-2, table 4: 1 %, two results in each of so many laboratories."""

    def largest(share: float) -> np.ndarray:
        return np.array([share] + [(1 - share) / (groups - 1)] * (groups - 1))

    ones = np.ones(groups, dtype=int)
    assert outlying(largest(critical + 0.02), ones).tolist() == [True] + [False] * (groups - 1)
    assert not outlying(largest(critical - 0.02), ones).any()
