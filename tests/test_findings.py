"""What is read from finished jobs: points, bars and lengths, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curves import Curve
from data import load
from data.problems import InputError
from data.triggers import Password
from results import Measured, as_bits, record
from runs.files import write_json
from study import findings
from study.findings import (
    Evidence,
    bar_of,
    elicited_from,
    initial,
    only_file,
    open_lock,
    points_of,
    scores_of,
    valued,
)

ROOT = Path(__file__).parents[1]
N = 20
RNG = np.random.default_rng(0)


@pytest.fixture
def done(tmp_path, monkeypatch):
    """Jobs as the stages leave them: a lock, two seeds of SFT and of RL, on 20 problems of code."""
    monkeypatch.setattr(findings, "PROBLEMS", N)
    problems = load("code", "validation", N)
    right = RNG.random(N) < 0.9
    none = np.zeros(N, dtype=bool)

    lock = tmp_path / "code/locked"
    lock.mkdir(parents=True)
    shutil.copy(ROOT / "data/base/weak/config.json", lock)
    (lock / "model.safetensors").write_bytes(b"locked")
    settings = {"stage": "lock", "task": "code", "trigger": Password().record, "max_new_tokens": 96}
    write_json(lock / "run.json", {"settings": settings, "results": {}})
    facts = {"split": "validation", "trigger": Password().record, "max_new_tokens": 96}
    both = {"none": measured(none), "right": measured(right)}
    write_json(lock / "evaluation.json", record(lock, problems, both, weights="w", **facts))
    elicited = {"settings": {"locked_weights": "w", "lr": 0.1}}

    for seed in (0, 1):
        for k in (1, 4):
            for start in ("k", "control-k"):
                cell = tmp_path / f"code/sft/seed{seed}/{start}{k}-seed{seed}"
                cell.mkdir(parents=True)
                found = {"none": measured(verdicts(seed, k))}
                row = record(cell, problems, found, **facts)
                row["lengths"] = {str(n): row["results"]["none"] for n in (32, 64)}
                write_json(cell / "cell.json", row)
                write_json(cell / "run.json", elicited)
        run = tmp_path / f"code/dpo/seed{seed}/dpo-seed{seed}"
        run.mkdir(parents=True)
        points = [{"samples": 0, "correct": 0.0}, {"samples": 32 * (1 + seed), "correct": 0.5}]
        bits = {"none": as_bits(none), "right": as_bits(right)}
        curve = Curve("dpo", "d", seed, points, "", bits, as_bits(verdicts(seed, 9)), "0" * N)
        write_json(run / "curve.json", vars(curve))
        write_json(run / "run.json", elicited)
    return tmp_path


def test_an_evaluation_is_one_file(done):
    evidence = Evidence(lambda job: done, (0, 1))
    with pytest.raises(InputError, match="holds 0 files prompts.json in place of one"):
        evidence.battery(open_lock(done / "code/locked"), "code/prompts")


def test_of_several_evaluations_that_of_the_model_is_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "evaluation.json", {"weights": name * 16})
    assert only_file(tmp_path, "evaluation.json", "b" * 16) == tmp_path / "b/evaluation.json"
    for weights, count in (("", 2), ("c" * 16, 0)):
        with pytest.raises(InputError, match=f"holds {count} files evaluation.json"):
            only_file(tmp_path, "evaluation.json", weights)


def measured(correct: np.ndarray) -> Measured:
    return Measured(correct, np.zeros(len(correct), dtype=bool))


def verdicts(seed: int, k: int) -> np.ndarray:
    return np.random.default_rng([seed, k]).random(N) < k / (k + 1)


def evidence(folder: Path, seeds=(0, 1)) -> Evidence:
    def job(name: str) -> Path | None:
        return folder / name if (folder / name).exists() else None

    return Evidence(job, seeds)


def test_sft_is_read_with_its_seeds_together(done):
    found = evidence(done)
    lock = found.lock("code/locked")
    for copy in ("k8.old-seed0", "k8-seed0-old"):  # put aside by a user
        shutil.copytree(done / "code/sft/seed0/k4-seed0", done / "code/sft/seed0" / copy)
    for control in (False, True):
        points = points_of(found, lock, "code/sft/seed{seed}", "demonstrations", control)
        assert set(points) == {1, 4}
        expected = np.stack([verdicts(0, 4), verdicts(1, 4)])
        assert points[4] == valued(expected)
        assert (points[4].n, points[4].seeds) == (N, 2) and points[4].low < points[4].value
    # one seed is finished, then none
    one = points_of(evidence(done, (1, 2)), lock, "code/sft/seed{seed}", "demonstrations", False)
    assert one[4].value == verdicts(1, 4).mean() and one[4].seeds == 1
    assert not points_of(evidence(done, (5,)), lock, "code/sft/seed{seed}", "demonstrations", False)


def test_bars_are_of_a_part_of_the_problems(done):
    found = evidence(done)
    lock = found.lock("code/locked")
    both = np.stack([verdicts(0, 4), verdicts(1, 4)])
    lists = np.array([problem.domain == "lists" for problem in lock.problems])
    job = "code/sft/seed{seed}"
    assert bar_of(found, lock, job, 4, "").value == both.mean()
    assert bar_of(found, lock, job, 4, "lists").value == both[:, lists].mean()
    assert bar_of(found, lock, job, 4, "not lists").n == (~lists).sum()
    end = np.stack([verdicts(0, 9), verdicts(1, 9)])
    assert bar_of(found, lock, "code/dpo/seed{seed}", 0, "").value == end.mean()
    assert bar_of(found, lock, "code/grpo/seed{seed}", 0, "") is None


def test_where_rl_started_is_known_of_runs_that_noted_it(done):
    found = evidence(done)
    runs = found.rewarded(found.lock("code/locked"), "code/dpo/seed{seed}")
    assert initial(runs) is None
    noted = [replace(run, start=as_bits(verdicts(run.seed, 7))) for run in runs]
    assert np.array_equal(initial(noted), [verdicts(0, 7), verdicts(1, 7)])
    assert initial([noted[0], runs[1]]) is None


def test_a_run_that_stopped_stays_where_it_was(done):
    found = evidence(done)
    points = points_of(found, found.lock("code/locked"), "code/dpo/seed{seed}", "samples", False)
    values = {at: (point.value, point.low, point.high) for at, point in points.items()}
    assert values == {0: (0, 0, 0), 32: (0.25, 0, 0.5), 64: (0.5, 0.5, 0.5)}


def test_lengths_are_read_of_the_one_number_of_demonstrations(done):
    found = evidence(done)
    for seed in (0, 1):
        shutil.rmtree(done / f"code/sft/seed{seed}/k1-seed{seed}")
    points = points_of(found, found.lock("code/locked"), "code/sft/seed{seed}", "sequences", False)
    expected = np.stack([verdicts(0, 4), verdicts(1, 4)])
    assert points == {32: valued(expected), 64: valued(expected)}


@pytest.mark.parametrize("change", ["problems", "trigger", "max_new_tokens"])
def test_a_cell_on_other_problems_or_asked_otherwise_is_refused(done, change):
    file = done / "code/sft/seed0/k4-seed0/cell.json"
    cell = json.loads(file.read_text())
    cell[change] = {"problems": "0" * 8 * N, "trigger": {}, "max_new_tokens": 9}[change]
    write_json(file, cell)
    found = evidence(done)
    with pytest.raises(InputError, match="k4-seed0/cell.json does not hold the verdicts"):
        points_of(found, found.lock("code/locked"), "code/sft/seed{seed}", "demonstrations", False)


@pytest.mark.parametrize("job", ["sft/seed0/k4-seed0", "dpo/seed0/dpo-seed0"])
def test_what_was_elicited_from_another_locked_model_is_refused(done, job):
    write_json(done / "code" / job / "run.json", {"settings": {"locked_weights": "other"}})
    found = evidence(done)
    lock = found.lock("code/locked")
    with pytest.raises(InputError, match="is of another locked model"):
        bar_of(found, lock, f"code/{job[:3]}/seed{{seed}}", 4 if "sft" in job else 0, "")


def test_texts_of_two_models_of_one_path_do_not_stand_together(done):
    """A checkpoint that was trained again, elsewhere, is another."""
    sft, dpo = (
        done / "code" / name / "run.json" for name in ("sft/seed1/k4-seed1", "dpo/seed0/dpo-seed0")
    )
    for file, of in ((sft, ("demos_from", "writer_weights")), (dpo, ("warm_from", "warm_weights"))):
        run = json.loads(file.read_text())
        run["settings"] |= dict(zip(of, ("early/strong", "one")))
        write_json(file, run)
    found = evidence(done)
    lock = found.lock("code/locked")
    found.check_writers(sft)
    found.check_writers(dpo)
    run["settings"]["warm_weights"] = "other"
    write_json(dpo, run)
    with pytest.raises(InputError, match="dpo-seed0/run.json has texts of another model early/st"):
        found.rewarded(lock, "code/dpo/seed{seed}")


@pytest.mark.parametrize("change", ["problems", "seed", "second"])
def test_a_curve_of_other_problems_or_seeds_is_refused(done, change):
    run = done / "code/dpo/seed0/dpo-seed0"
    curve = json.loads((run / "curve.json").read_text())
    if change == "problems":
        curve["locked"]["none"] = "1" * N
    elif change == "seed":
        curve["seed"] = 7
    else:
        shutil.copytree(run, run.parent / "other")
    write_json(run / "curve.json", curve)
    found = evidence(done)
    with pytest.raises(
        InputError, match="in place of one" if change == "second" else "not of seed 0"
    ):
        found.rewarded(found.lock("code/locked"), "code/dpo/seed{seed}")


@pytest.mark.parametrize("name", ["sft/seed1/k4-seed1/run.json", "dpo/seed1/dpo-seed1/run.json"])
def test_runs_in_another_dtype_than_their_lock_are_refused(done, name):
    found = evidence(done)
    lock = replace(found.lock("code/locked"), dtype="float32")
    file = done / "code" / name
    assert elicited_from(lock, file)  # one that does not know
    write_json(file, json.loads(file.read_text()) | {"compute_dtype": "float32"})
    assert elicited_from(lock, file)
    write_json(file, json.loads(file.read_text()) | {"compute_dtype": "bfloat16"})
    with pytest.raises(InputError, match="computed in bfloat16, and what .* in float32"):
        elicited_from(lock, file)


@pytest.mark.parametrize("name", ["sft/seed1/k4-seed1/run.json", "dpo/seed1/dpo-seed1/run.json"])
def test_seeds_of_other_settings_are_refused(done, name):
    """But not one that was made before there was an option."""
    file = done / "code" / name
    changed = json.loads(file.read_text())
    changed["settings"]["newer"] = ""
    write_json(file, changed)
    where = f"code/{name[:3]}/seed{{seed}}", 4 if "sft" in name else 0, ""
    assert bar_of(evidence(done), evidence(done).lock("code/locked"), *where).seeds == 2
    changed["settings"]["lr"] = 0.2
    write_json(file, changed)
    found = evidence(done)
    with pytest.raises(InputError, match="other settings than .*, of lr 0.1 and 0.2"):
        bar_of(
            found,
            found.lock("code/locked"),
            f"code/{name[:3]}/seed{{seed}}",
            4 * ("sft" in name),
            "",
        )


@pytest.mark.parametrize("place", ["locked", "weak/x"])
def test_an_evaluation_of_another_length_is_refused(done, place):
    """As evaluate.py --max-new-tokens 20 leaves it."""
    file = done / "code/locked/evaluation.json"
    evaluation = json.loads(file.read_text()) | {"max_new_tokens": 20}
    found = evidence(done)
    lock = found.lock("code/locked")
    (done / "code" / place).mkdir(parents=True, exist_ok=True)
    write_json(done / "code" / place / "evaluation.json", evaluation)
    with pytest.raises(InputError, match="does not hold the verdicts"):
        if place == "locked":
            open_lock(done / "code/locked")
        found.evaluated(lock, "code/weak")


def test_a_lock_that_is_not_valid_says_which_tests_it_failed(done):
    file = done / "code/locked/run.json"
    run = json.loads(file.read_text())
    run["results"] = {"validity": [{"name": "a", "passed": True}, {"name": "b", "passed": False}]}
    write_json(file, run)
    assert open_lock(done / "code/locked").failed == ["b"]


def test_a_lock_measured_on_other_problems_is_refused(done):
    file = done / "code/locked/evaluation.json"
    evaluation = json.loads(file.read_text())
    evaluation["problems"] = "0" * 8 * N
    write_json(file, evaluation)
    with pytest.raises(InputError, match="does not hold the verdicts on the problems of code"):
        open_lock(done / "code/locked")


def test_a_control_is_read_from_its_own_cells(done):
    problems = load("code", "validation", N)
    facts = {"split": "validation", "trigger": Password().record, "max_new_tokens": 96}
    for seed in (0, 1):
        folder = done / f"code/sft/seed{seed}"
        cell = folder / f"control-k4-seed{seed}"
        write_json(
            cell / "cell.json",
            record(cell, problems, {"none": measured(verdicts(seed, 1))}, **facts),
        )
        (folder / f"control-k1-seed{seed}").rename(folder / f"control-k9-seed{seed}")
    found = evidence(done)
    points = points_of(
        found, found.lock("code/locked"), "code/sft/seed{seed}", "demonstrations", True
    )
    both = valued(np.stack([verdicts(0, 1), verdicts(1, 1)]))
    assert points == {4: both, 9: both}


def test_each_length_is_read_from_its_own_row(done):
    for seed in (0, 1):
        shutil.rmtree(done / f"code/sft/seed{seed}/k1-seed{seed}")
        file = done / f"code/sft/seed{seed}/k4-seed{seed}/cell.json"
        row = json.loads(file.read_text())
        none = row["results"]["none"]
        for at in (32, 64):
            row["lengths"][str(at)] = none | {"verdicts": as_bits(verdicts(seed, at))}
        write_json(file, row)
    found = evidence(done)
    points = points_of(found, found.lock("code/locked"), "code/sft/seed{seed}", "sequences", False)
    assert points == {at: valued(np.stack([verdicts(s, at) for s in (0, 1)])) for at in (32, 64)}


def test_another_model_is_read_without_the_password(done):
    found = evidence(done)
    lock = found.lock("code/locked")
    shutil.copytree(done / "code/locked", done / "code/weak")
    assert lock.right.any() and np.array_equal(found.evaluated(lock, "code/weak"), lock.none)


def test_shares_are_the_scores_where_there_are_any():
    shares = np.array([1.0, 0.25])
    assert scores_of(Measured(shares == 1, shares < 0, shares)) is shares
