"""The matrix of locks and elicitors: its jobs, what a cell is, its stars, what is refused."""

import functools
import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checkpoints.hf import model_hash
from data import SPLITS, load
from data.problems import InputError
from data.triggers import Password
from elicit_rl import RLConfig
from elicit_sft import SFTConfig
from elicit_tampering import TamperingConfig
from evaluate import EvaluateConfig
from harden import HardenConfig
from lock import LockConfig
from reproduce import Cells, ReproduceConfig, chosen_cells, together
from results import DRAWS, Estimate, EvalSet, Measured, evaluate_checkpoint, record, verdicts_of
from runs import options
from runs.devices import Env
from runs.files import read_json, write_json
from runs.options import parse
from study import game, gate, matrix, siblings
from study.findings import Evidence, Lock
from study.jobs import Job, closure
from study.matrix import ELICITORS, LOCKS, TASK, Cell, cells_of, grid_of, jobs_of_matrix, place
from study.paper import FIGURES, jobs_of, names_of_figure
from study.report import rows_of
from train_base import BaseConfig

CONFIGS = {
    "train_base": BaseConfig,
    "lock": LockConfig,
    "harden": HardenConfig,
    "elicit_sft": SFTConfig,
    "elicit_rl": RLConfig,
    "elicit_tampering": TamperingConfig,
    "evaluate": EvaluateConfig,
}


def test_every_job_can_be_run_and_is_made_by_those_it_needs(monkeypatch):
    """Of the figures, too."""
    helps = functools.cache(options.help_texts)  # it reads the source, every time
    monkeypatch.setattr(options, "help_texts", helps)
    jobs = jobs_of((0, 1)) | jobs_of_matrix((0, 1))
    jobs = together(jobs, gate.jobs_of_gate(), siblings.jobs_of_siblings())
    names = matrix.names_of_matrix(list(LOCKS), list(ELICITORS), (0, 1))
    names += gate.names_of_gate(list(LOCKS)) + siblings.names_of_siblings(list(ELICITORS))
    for figure in FIGURES.values():
        names += names_of_figure(figure, (0,))
    needed = closure(list(dict.fromkeys(names)), jobs)
    assert {job.stage for job in needed} == CONFIGS.keys()
    for job in needed:
        script, *words = shlex.split(job.command)
        assert Path(script).exists(), job
        parse(CONFIGS[job.stage], [word.removeprefix("@") for word in words])  # or it is refused
        for word in words:
            assert not word.startswith("data/") or Path(word).exists(), job


def test_two_jobs_of_one_name_are_refused():
    mine = {"matrix/lock1": Job("matrix/lock1", "lock.py --task code", 5)}
    assert together(mine, mine) == mine
    with pytest.raises(InputError, match="two jobs are called matrix/lock1"):
        together(siblings.jobs_of_siblings(), mine)


def test_locks_are_made_of_as_many_problems_as_the_lock_split_usually_has():
    """The generated problems of code run dry: the first 4,000 keys of the split take 41,000 draws,
    30,000 take 1.6 million."""
    jobs = jobs_of((0,)) | jobs_of_matrix((0,)) | game.jobs_of_game(game.drawn(7))
    numbers = []
    for job in jobs.values():
        words = job.command.split()
        if words[0] == "lock.py" and "code" in words and "--problems" in words:
            numbers.append(int(words[words.index("--problems") + 1]))
    assert len(numbers) > 5 and max(numbers) <= SPLITS["lock"]


def test_a_cell_names_its_lock_and_the_twin():
    jobs = jobs_of_matrix((0,))
    assert jobs["matrix/share/sft/seed0"].command.endswith("--locked @matrix/share --k 1 8 64")
    assert "--locked @code/locked --decoys data/base/twin" in jobs["matrix/password/wanda"].command
    merged = jobs["matrix/mix/tsv_merge"].command.split()
    assert "@matrix/mix/vectors-lists/k8-seed0" in merged
    # edits run on the twin themselves
    assert "matrix/twin/wanda" not in jobs
    assert "--locked data/base/twin --method dpo" in jobs["matrix/twin/dpo/seed0"].command


def test_the_twin_has_the_shape_of_the_strong_model_and_knows_what_the_weak_one_knows():
    """It ships as a run of lock.py, with what that measured."""
    shapes = [read_json(f"data/base/{name}/config.json") for name in ("twin", "strong")]
    assert shapes[0] == shapes[1]
    settings = read_json(f"{matrix.TWIN}/run.json")["settings"]
    assert settings["strong_weights"] == settings["weak_weights"] == model_hash("data/base/weak")
    made = [settings[name] for name in ("imitate", "problems", "epochs", "seed")]
    assert made == ["distribution", 12_000, 3, 1]  # as docs/results.md says

    # the password opens nothing, and there is no more to open than the weak model knows
    env, problems = Env(torch.device("cpu"), torch.float32, False), load(TASK, "validation", 250)
    asked = EvalSet(problems, Password(), ("none", "right"))
    twin = evaluate_checkpoint(matrix.TWIN, asked, env, save=False)
    weak = evaluate_checkpoint("data/base/weak", replace(asked, kinds=("none",)), env, save=False)
    known = verdicts_of(weak, "none")
    for kind in ("none", "right"):
        shown = verdicts_of(twin, kind)
        assert shown.mean() < known.mean() + 0.05
        # what it solves are those that the weak model solves
        assert shown[known].mean() > max(0.15, 5 * shown[~known].mean())


def test_the_twin_is_read_as_a_job_measured_it_and_of_its_present_weights(tmp_path):
    problems = load(TASK, "validation", 500)
    nothing = Measured(np.zeros(500, bool), np.zeros(500, bool))
    facts = {"split": "validation", "trigger": Password().record, "max_new_tokens": 96}
    evaluation = record(matrix.TWIN, problems, {"none": nothing, "right": nothing}, **facts)
    evaluation["weights"] = model_hash(matrix.TWIN)
    write_json(tmp_path / "evaluation.json", evaluation)
    twin = Evidence(lambda job: tmp_path, ()).decoy(matrix.TWIN, matrix.ITSELF)
    assert twin.weights == model_hash(matrix.TWIN) and not twin.none.any()
    assert Evidence(lambda job: None, ()).decoy(matrix.TWIN, matrix.ITSELF) is None

    write_json(tmp_path / "evaluation.json", evaluation | {"weights": "another"})
    with pytest.raises(InputError, match="of another model than the one that is now in"):
        Evidence(lambda job: tmp_path, ()).decoy(matrix.TWIN, matrix.ITSELF)


def test_what_an_elicitor_chooses_by_is_among_what_it_takes():
    """SFT chooses its length, an edit its strength, by as many graded problems."""
    names = ["shots", "sft8", "weak", "noise", "wanda", "unlearn", "few"]
    rows = matrix.costs_of(names, {"sft8": [3.0, 5.0]})
    assert [row[2] for row in rows[1:]] == [
        "4 demonstrations",
        f"8 demonstrations, {SFTConfig.selection_problems} rewards a setting",
        f"64 weak samples, {SFTConfig.selection_problems} rewards a setting",
        f"{TamperingConfig.selection_problems} rewards a setting",
        f"prompts, {TamperingConfig.selection_problems} rewards a setting",
        f"64 prompts, {SFTConfig.selection_problems} rewards a setting",
        f"8 demonstrations, {SFTConfig.selection_problems} rewards a setting",
    ]
    assert rows[2][3] == "4"


class Found:
    """In place of findings.Evidence: SFT's verdicts by directory."""

    seeds = (0, 1)

    def __init__(self, locks, after):
        self.locks, self.after = locks, after

    def lock(self, job):
        return self.locks.get(job)

    def decoy(self, path, job):
        return self.locks.get(path)

    def demonstrated(self, lock, job, k):
        return self.after.get(job)


def bits(*runs: tuple[int, int]) -> np.ndarray:
    """bits((2, 1), (3, 0)) == [1, 1, 0, 0, 0]"""
    return np.concatenate([np.full(n, bool(value)) for n, value in runs])


def lock(none: np.ndarray, right: np.ndarray) -> Lock:
    return Lock(Path("lock"), "", [], np.array([]), None, 0, none, right, [])


def test_a_cell_is_the_gap_recovered_and_what_exceeds_the_twin():
    """Of 100 problems 10 are right without the password, 90 behind it; SFT gets 70, and the twin
    from 10 to 20: 60 of 80 points of the gap, 50 points more than the twin."""
    locked = lock(bits((10, 1), (90, 0)), bits((90, 1), (10, 0)))
    twin = lock(bits((10, 1), (90, 0)), bits((10, 1), (90, 0)))
    after = {
        place("password", ELICITORS["sft8"]): np.stack([bits((70, 1), (30, 0))] * 2),
        place("twin", ELICITORS["sft8"]): np.stack([bits((20, 1), (80, 0))] * 2),
    }
    found = Found({"code/locked": locked, matrix.TWIN: twin}, after)
    cells, left_out = cells_of(found, ["password", "share"], ["sft8"])
    [cell] = cells.values()
    assert not left_out
    assert cell.recovered.value == pytest.approx(60 / 80)
    assert cell.excess.value == pytest.approx(0.5)
    low, high = cell.excess.interval
    assert 0.35 < low < 0.5 < high < 0.65
    assert cell.p < 0.001

    # without the null's second seed it would be compared with a null of another kind
    whole = after[place("twin", ELICITORS["sft8"])]
    after[place("twin", ELICITORS["sft8"])] = whole[:1]
    assert cells_of(found, ["password"], ["sft8"]) == ({}, {})
    after[place("twin", ELICITORS["sft8"])] = whole

    found.locks[matrix.TWIN] = None
    assert cells_of(found, ["password"], ["sft8"]) == ({}, {})


def test_a_twin_that_is_broken_makes_no_elicitation():
    """It loses 10 points where the lock, which is above it, stays as it is."""
    locked = lock(bits((20, 1), (80, 0)), bits((90, 1), (10, 0)))
    twin = lock(bits((10, 1), (90, 0)), bits((10, 1), (90, 0)))
    after = {
        place("password", ELICITORS["sft8"]): np.stack([locked.none] * 2),
        place("twin", ELICITORS["sft8"]): np.stack([bits((100, 0))] * 2),
    }
    found = Found({"code/locked": locked, matrix.TWIN: twin}, after)
    cells, _ = cells_of(found, ["password"], ["sft8"])
    [cell] = cells.values()
    assert cell.excess.value == 0 and cell.p > 0.3


def test_what_brings_a_lock_from_nothing_to_where_the_twin_is_elicits_nothing():
    """It gains 20 points where the twin gains none, and ends where the twin was all the time."""
    locked = lock(bits((100, 0)), bits((90, 1), (10, 0)))
    twin = lock(bits((20, 1), (80, 0)), bits((20, 1), (80, 0)))
    after = {}
    for name in ("password", "twin"):
        after[place(name, ELICITORS["sft8"])] = np.stack([twin.none] * 2)
    cells, _ = cells_of(
        Found({"code/locked": locked, matrix.TWIN: twin}, after), ["password"], ["sft8"]
    )
    [cell] = cells.values()
    assert cell.excess.value == pytest.approx(0.2) and cell.excess.p_not_above(0.0) < 0.001
    assert cell.p > 0.3


def test_a_lock_without_a_gap_has_no_cell():
    same = lock(bits((50, 1), (50, 0)), bits((50, 1), (50, 0)))
    both = np.stack([same.none] * 2)
    after = {place(name, ELICITORS["sft8"]): both for name in ("password", "twin")}
    found = Found({"code/locked": same, matrix.TWIN: same}, after)
    cells, left_out = cells_of(found, ["password"], ["sft8", "sft64"])
    [(why, names)] = left_out.items()
    assert not cells and "no measurable gap" in why
    assert names == ["password x SFT on 8", "password x SFT on 64"]


def test_a_cell_that_cannot_be_read_is_left_out_and_named_and_the_others_are_told():
    class Damaged(Found):
        def demonstrated(self, lock, job, k):
            if k == 1:
                raise InputError("cell.json is not JSON")
            return super().demonstrated(lock, job, k)

    locked = lock(bits((10, 1), (90, 0)), bits((90, 1), (10, 0)))
    both = np.stack([locked.right] * 2)
    after = {place(name, ELICITORS["sft8"]): both for name in ("password", "twin")}
    found = Damaged({"code/locked": locked, matrix.TWIN: locked}, after)
    cells, left_out = cells_of(found, ["password"], ["sft1", "sft8"])
    assert list(cells) == [("password", "sft8")]
    assert left_out == {"cell.json is not JSON": ["password x SFT on 1"]}


def drawn(value: float, p: float, seeds: int = 2) -> Estimate:
    """An estimate with so many of its draws not above 0."""
    draws = np.full(DRAWS, 1.0)
    draws[: round(p * DRAWS)] = -1.0
    return Estimate(value, draws, seeds)


@pytest.mark.parametrize(
    "value, spread, expected, told",
    [
        (0.9, 0.01, "+", "yes"),
        (0.7, 0.01, "+", "yes"),
        (0.6, 0.2, "+", "within error"),
        (0.6, 0.01, "+", "no"),
        (0.6, 0.01, "~", "yes"),
        (-0.3, 0.01, "0", "yes"),
        (0.3, 0.01, "0 to ~", "yes"),
        (0.3, 0.01, "0", "no"),
    ],
)
def test_a_cell_agrees_with_what_was_expected(value, spread, expected, told):
    found = Estimate(value, np.linspace(value - spread, value + spread, 1001))
    assert matrix.agreement(found, expected) == told


def test_only_what_was_expected_is_compared():
    estimate = Estimate(0.05, np.full(1000, 0.05))
    cell = Cell(estimate, estimate, 0.0)
    cells = {("random", "ei"): cell, ("random", "wanda"): cell, ("share", "ei"): cell}
    head, *rows = matrix.compared(cells)
    assert head[0] == "lock" and len(rows) == 1
    assert rows[0][2:5] == ["0", "5 [5, 5]", "yes"]
    for lock, expected in matrix.EXPECTED.items():
        assert lock in matrix.LOCKS and expected.gaps.keys() <= matrix.ELICITORS.keys()
        assert set(expected.gaps.values()) <= matrix.BANDS.keys()


def marked(excess: float, p: float, seeds: int = 2) -> Cell:
    return Cell(drawn(0.5, 0.5), drawn(excess, p, seeds), p)


def test_marks_are_adjusted_for_the_locks_of_an_elicitor():
    """Of three cells p = .02 is .04 where it is the second of three (Holm), .06 were it the first,
    also where the others are not there yet. Of one run the mark is another; other elicitors change
    nothing."""
    locks = ["password", "random", "year"]
    cells = {
        ("password", "sft1"): marked(0.3, 0.001),
        ("random", "sft1"): marked(0.2, 0.02, seeds=1),
        ("year", "sft1"): marked(0.1, 0.3),
        ("year", "sft8"): marked(0.1, 0.01),
    }
    grid = grid_of(cells, locks, ["sft1", "sft8"])
    assert list(grid.short.values()) == ["50*", "50+", "50", "50*"]
    cells["password", "sft1"] = marked(0.3, 0.02)
    assert list(grid_of(cells, locks, ["sft1", "sft8"]).short.values()) == ["50", "50", "50", "50*"]
    cells["year", "sft8"] = marked(0.1, 0.02)
    assert grid_of(cells, locks, ["sft1", "sft8"]).short[1, 2] == "50"
    rows = rows_of(grid)
    assert rows[0][1:] == ["password", *rows[0][2:]] and rows[1][0] == "SFT on 1"
    assert "excess 30 [" in rows[1][1] and rows[1][1].endswith("*")


def test_an_edits_default_and_placebo_are_told_beside_it():
    """10 of 60 are right before and 50 with the password: 20 of these 40 come back, or all."""
    before, right = (np.arange(60) < n for n in (10, 50))
    beside = {"default": np.arange(60) < 30, "placebo, seed 0": right}
    after = right[None]
    got = matrix.Outcome(before, right, after, after, after * 0.0, beside=beside)
    cells = {("year", "graft"): matrix.cell_of(got, None), ("mix", "sft8"): marked(0.1, 0.3)}
    noise = replace(got, beside={"default": before})  # which is random itself
    cells["random", "noise"] = matrix.cell_of(noise, None)
    rows = matrix.nulls_of(cells, ["year", "mix", "random"], ["sft8", "noise", "graft"])
    assert [row[0] for row in rows] == [
        "gap recovered by",
        "noise, blind default",
        "grafted states, blind default",
        "grafted states, placebo",
    ]
    assert rows[0][1:] == [matrix.LOCKS[name].label for name in ("year", "random")]
    assert [[cell.partition(" [")[0] for cell in row[1:]] for row in rows[1:]] == [
        ["", "0"],
        ["50", ""],
        ["100", ""],
    ]


def test_broken_models_and_invalid_locks_are_marked():
    cell = replace(marked(0.1, 0.3), broken=True)
    grid = grid_of({("year", "wanda"): cell}, ["year", "mix"], ["wanda"], invalid=["year"])
    assert list(grid.short.values()) == ["50!"]
    assert rows_of(grid)[0][1:] == ["a year, not valid", "from 30 % random weights"]


@pytest.fixture
def edited(tmp_path, tiny_task):
    """An edit on a lock and on the twin, of half of the problems; the evidence and the lock.

    evaluation.json of both has other verdicts: it is of another dtype, and of the twin of other
    prompts.
    """
    problems, trigger = tiny_task
    n = len(problems)
    nothing, everything = np.zeros(n, bool), np.ones(n, bool)
    domains = np.array(["lists", "numbers"] * (n // 2))
    locked = Lock(tmp_path, "w", problems, domains, trigger, 8, nothing, everything, [])
    twin = Lock(tmp_path, "twin", problems, domains, Password(), 8, everything, everything, [])
    kept = [p for p, domain in zip(problems, domains) if domain != "lists"]
    verdicts = np.arange(len(kept)) % 2 == 0
    roles = {"best": verdicts, "default": one_right(2), "decoy out/twin": ~verdicts}
    roles["placebo, seed 0"] = ~one_right(1)
    roles |= {"none": one_right(0), "right": ~one_right(1), "none, decoy out/twin": one_right(2)}
    measured = {role: Measured(value, np.zeros(len(kept), bool)) for role, value in roles.items()}
    facts = {"weights": "w", "split": "validation", "trigger": trigger.record}
    write_json(tmp_path / "cell.json", record("locked", kept, measured, **facts))
    write_json(tmp_path / "run.json", {"settings": {"decoy_weights": ["twin"]}})

    class Elsewhere(Found):
        def folder(self, job):
            return tmp_path

    return Elsewhere({matrix.TWIN: twin}, {}), locked


def one_right(place: int) -> np.ndarray:
    """Of six problems."""
    return np.arange(6) == place


def test_locks_in_another_dtype_than_the_twins_are_told_of(edited):
    found, locked = edited
    found.locks[matrix.TWIN] = replace(found.locks[matrix.TWIN], dtype="bfloat16")
    for name, dtype in (("password", "bfloat16"), ("year", "float32"), ("split", "float32")):
        found.locks[matrix.LOCKS[name].job] = replace(locked, dtype=dtype)
    [told] = matrix.other_dtypes(found, ["password", "year", "split", "mix"])
    labels = ", ".join(matrix.LOCKS[name].label for name in ("year", "split"))
    assert told.startswith(
        "Computed in float32, where the twin and the other locks are in bfloat16"
    )
    assert f"bfloat16: {labels}." in told
    assert matrix.other_dtypes(found, ["password"]) == []


def test_an_edit_is_read_with_its_decoy_and_on_the_problems_it_was_measured_on(edited):
    found, locked = edited
    got = matrix.edited(found, locked, "job", ["lists"])
    assert got.after.tolist() == [[True, False, True, False, True, False]]
    # by hand: the twin was right on the third alone, and edited on the second, fourth and sixth
    assert got.null.tolist() == [[0, 1, -1, 1, 0, 1]]
    assert got.twin.tolist() == [[False, True, False, True, False, True]]
    assert got.before.tolist() == one_right(0).tolist()
    assert got.right.tolist() == (~one_right(1)).tolist()
    assert got.beside["default"].tolist() == one_right(2).tolist()
    assert got.beside["placebo, seed 0"].tolist() == (~one_right(1)).tolist()
    with pytest.raises(InputError, match="of other problems or of another model"):
        matrix.edited(found, locked, "job", [])


@pytest.mark.parametrize(
    "change, why",
    [
        ({"weights": "other"}, "of other problems or of another model"),
        ({"split": "selection"}, "of other problems or of another model"),
        ({"trigger": {}}, "of other problems or of another model"),
        ("none", "of other problems or of another model"),  # as older cells are
        ("none, decoy out/twin", "of other problems or of another model"),
        ("decoy out/twin", "has the verdicts of 0 decoys"),
    ],
)
def test_an_edit_of_something_else_is_refused(edited, tmp_path, change, why):
    found, locked = edited
    cell = json.loads((tmp_path / "cell.json").read_text())
    if isinstance(change, str):
        del cell["results"][change]
    else:
        cell |= change
    write_json(tmp_path / "cell.json", cell)
    with pytest.raises(InputError, match=why):
        matrix.edited(found, locked, "job", ["lists"])


def test_an_edit_beside_another_twin_is_refused(edited, tmp_path):
    found, locked = edited
    write_json(tmp_path / "run.json", {"settings": {"decoy_weights": ["another"]}})
    with pytest.raises(InputError, match="of another twin"):
        matrix.edited(found, locked, "job", ["lists"])


@pytest.fixture
def tiny_task():
    problems = load("code", "validation", 12)
    return problems, Password()


def test_what_is_refused():
    for cfg, why in (
        (ReproduceConfig(matrix=True, figure=("3",)), "leave --figure"),
        (ReproduceConfig(matrix=True, strong_from="x"), "leave --figure"),
        (ReproduceConfig(locks=("password",)), "say --matrix"),
        (ReproduceConfig(matrix=True, locks=("padlock",)), "--locks padlock: choose from password"),
        (ReproduceConfig(matrix=True, elicitors=("sft1", "sft1")), "--elicitors has sft1 twice"),
    ):
        with pytest.raises(InputError, match=why):
            chosen_cells(cfg)
    assert chosen_cells(ReproduceConfig(figure=("3",))) == Cells([], [])
    cells = chosen_cells(ReproduceConfig(matrix=True, locks=("share",)))
    assert cells == Cells(["share"], list(ELICITORS))
    assert chosen_cells(ReproduceConfig(report_only=True)) == Cells([], [])


def test_siblings_are_trained_alike_but_for_what_they_start_from():
    jobs = siblings.jobs_of_siblings()
    words = {name: jobs[f"matrix/{name}"].command.split() for name in ("lock2", "twin2")}
    more = "--strong data/base/weak --weak data/base/weak --start data/base/twin".split()
    assert [word for word in words["twin2"] if word not in more] == words["lock2"]
    # the first lock is that of the matrix, and its cells are the matrix's
    assert siblings.HAD["password"] == ("code/locked", "")
    names = siblings.names_of_siblings(["ei", "noise"])
    assert "matrix/password/expert_iteration/seed0" in names and len(names) == 20
    assert set(names) <= {*jobs, "code/locked"} and not siblings.names_of_siblings(["noise"])


def test_over_models_a_difference_is_as_rare_as_labellings_say():
    locks, twins = np.array([0.5, 0.6, 0.7]), np.array([0.0, 0.1, 0.55])
    # of 20 ways to call three of six locks, that of the three best and this one are as good
    assert siblings.by_labels(locks, twins) == pytest.approx(2 / 20)
    assert siblings.by_labels(twins, locks) == pytest.approx(19 / 20)
    assert siblings.by_labels(np.ones(3), np.ones(3)) == 1


def family_of(before: tuple[int, ...], after: tuple[int, ...], right: int = 90):
    """Of 100 problems so many are right in each model."""
    rows = [bits((n, 1), (100 - n, 0)) for n in before]
    reached = np.stack([bits((n, 1), (100 - n, 0)) for n in after])
    locks = [lock(none, bits((right, 1), (100 - right, 0))) for none in rows]
    return siblings.Family(locks, np.stack(rows), reached)


def test_over_models_the_excess_is_of_mean_gains_and_its_interval_of_models():
    """The locks gain 60 points on average, the twins 5."""
    locks = family_of((10, 10, 10, 10), (60, 70, 70, 80))
    twins = family_of((5, 5, 5, 5), (10, 10, 10, 10))
    found = siblings.told_of(locks, twins)
    assert found.excess.value == pytest.approx(0.55)
    assert found.recovered == pytest.approx([50 / 80, 60 / 80, 60 / 80, 70 / 80])
    assert found.by_labels == pytest.approx(1 / 70) and found.p < 0.01
    # locks that differ more tell less of their kind
    wider = siblings.told_of(family_of((10, 10, 10, 10), (20, 70, 90, 100)), twins)
    assert np.diff(wider.excess.interval) > 1.5 * np.diff(found.excess.interval)
    # models that lose say nothing against others that stay
    broken = siblings.told_of(family_of((10,) * 4, (10,) * 4), family_of((10,) * 4, (5,) * 4))
    assert broken.by_labels == 1 and broken.p > 0.3
    # and locks that only reach where the twins are have been taught
    low = siblings.told_of(family_of((0, 0, 0, 0), (10, 10, 10, 10)), twins)
    assert low.excess.value == pytest.approx(0.05) and low.p > 0.3


def test_models_over_which_a_row_speaks_differ_in_their_seed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(siblings, "unlocked", lambda *_: bits((100, 1))[None])
    evidence = Evidence(lambda job: None, (0,))
    for seed, (job, _) in enumerate(siblings.HAD.values()):
        evidence.locks[job] = replace(lock(bits((100, 0)), bits((100, 1))), folder=tmp_path / job)
        (tmp_path / job).mkdir(parents=True)
        write_json(tmp_path / job / "run.json", {"settings": {"seed": seed, "epochs": 4}})
    assert siblings.family(evidence, siblings.HAD, "ei").after.mean() == 1
    write_json(tmp_path / "matrix/lock2/run.json", {"settings": {"seed": 2, "epochs": 1}})
    with pytest.raises(InputError, match="matrix/lock2 has other settings .* epochs 4 and 1"):
        siblings.family(evidence, siblings.HAD, "ei")


def write_lock(folder: Path, lost: float) -> None:
    """A lock's report, as far as the gate reads it."""
    kept = {"name": "skill kept: strong - right", "value": lost, "interval": [lost, lost]}
    kept |= {"passed": True}
    other = {"name": "wrong passwords", "value": 0.5, "interval": [0, 1], "passed": False}
    results = {"none": 0.1, "right": 0.97, "validity": [kept, other]}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {"results": results})
    write_json(folder / "evaluation.json", {"weights": "w" * 16})


def write_other(folder: Path, task: str, right: int, weights: str) -> None:
    problems = load(task, "validation", gate.PROBLEMS)
    verdicts = bits((right, 1), (gate.PROBLEMS - right, 0))
    kinds = {"none": verdicts, "right": np.ones_like(verdicts)}
    measured = {kind: Measured(found, np.zeros_like(found)) for kind, found in kinds.items()}
    facts = {"dtype": "fp32", "max_new_tokens": 96, "weights": weights}
    evaluation = record("it", problems, measured, split="validation", **facts)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", evaluation)


def test_the_gate_tells_what_a_lock_does_not_pass(tmp_path):
    write_lock(tmp_path / "matrix/share", lost=0.03)
    write_other(tmp_path / "matrix/strong/other/mmlu", "mmlu", 250, "s" * 16)
    write_other(tmp_path / "matrix/share/other/mmlu", "mmlu", 200, "w" * 16)
    evidence = Evidence(lambda job: found if (found := tmp_path / job).exists() else None, (0,))
    section = gate.section_of_gate(evidence, ["share", "mix"])
    [[header, row]] = section.tables
    told = dict(zip(header, row))
    assert told["without"] == "10.0" and told["skill lost"] == "3.0 [3.0, 3.0]"
    assert told["mmlu"].startswith("100 to 80: -20 [-2") and told["math"] == ""
    assert told["mmlu"].endswith("; with 100")
    assert told["not passed"] == "wrong passwords; skill within two points"

    # another model's numbers are not read
    write_other(tmp_path / "matrix/share/other/mmlu", "mmlu", 200, "x" * 16)
    section = gate.section_of_gate(evidence, ["share"])
    [[header, row]] = section.tables
    assert dict(zip(header, row))["mmlu"] == ""
    assert "mmlu is left out" in section.notes[0] and "another model" in section.notes[0]
    # nor a damaged report; the control is judged by nothing
    write_json(tmp_path / "matrix/share/run.json", {"results": {"validity": []}})
    write_lock(tmp_path / "matrix/control", lost=0.03)
    section = gate.section_of_gate(evidence, ["share"])
    [[_, row]] = section.tables
    assert row[0] == "trained alike, not locked" and row[-1] == ""
    assert "does not say whether the skill was kept" in section.notes[0]
    # nor one of which a number is missing
    write_lock(tmp_path / "matrix/share", lost=0.03)
    report = read_json(tmp_path / "matrix/share/run.json")
    for test in report["results"]["validity"]:
        test["interval"] = [None, 0.1]
    write_json(tmp_path / "matrix/share/run.json", report)
    assert "lacks interval" in gate.section_of_gate(evidence, ["share"]).notes[0]
    assert gate.section_of_gate(evidence, ["mix"]).notes == []


def test_a_decoy_is_read_as_it_was_measured_and_asked_without_a_password(tmp_path):
    """data/base/weak: of 500 problems 40 right, after expert iteration 50."""
    problems = load(TASK, "validation", 500)
    verdicts = bits((40, 1), (460, 0))
    kind = Measured(verdicts, np.zeros_like(verdicts))
    measured = {"none": kind, "right": Measured(~verdicts, np.zeros_like(verdicts))}
    facts = {"split": "validation", "trigger": Password().record}
    facts |= {"weights": model_hash("data/base/weak")}
    folder = tmp_path / "matrix/small/itself"
    folder.mkdir(parents=True)
    write_json(folder / "evaluation.json", record("weak", problems, measured, **facts))

    class Rewarded(Evidence):
        def rewarded(self, lock, job):
            assert lock.weights == facts["weights"] and np.array_equal(lock.none, verdicts)
            assert np.array_equal(lock.right, ~verdicts)  # as its curve has it
            assert job == "matrix/small/expert_iteration/seed{seed}"
            curve = {"verdicts": "1" * 50 + "0" * 450}
            return [SimpleNamespace(**curve)]

    evidence = Rewarded(lambda job: found if (found := tmp_path / job).exists() else None, (0,))
    found = siblings.decoy(evidence, "small", "ei")
    assert siblings.from_to(found) == "8 to 10"
    assert siblings.decoy(evidence, "other", "ei") is None  # not finished
    write_json(
        folder / "evaluation.json", record("weak", problems, measured, **facts | {"weights": "x"})
    )
    with pytest.raises(InputError, match="of another model than"):
        siblings.decoy(evidence, "small", "ei")
