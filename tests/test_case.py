"""A safety case's skeleton: its jobs can be run, what it would have found, what it says."""

from pathlib import Path

import numpy as np
import pytest

import case
import reproduce
from case import TRIED, Trial, found_from, jobs_of_case, power_rows, shares_of, verdict_of
from data.problems import InputError
from findings import Evidence, Lock
from matrix import ELICITORS
from results import difference, smallest_effect

ROOT = Path(__file__).parents[1]
BASE = ROOT / "data/base"


def test_every_job_is_of_the_model_and_a_command_of_a_stage():
    jobs = jobs_of_case(BASE / "weak")
    assert set(jobs) == {"none", *(ELICITORS[name].job for name in TRIED)}
    for job in jobs.values():
        assert "data/base/weak" in job.command and "@" not in job.command
        assert "{" not in job.command and "--task code" in job.command
        assert not job.needs and "--decoys" not in job.command


def test_the_least_gap_that_is_found_by_hand():
    """Five tests together at p < .05: z = 2.576 and .842; a fifth of 500 problems differ."""
    effect = smallest_effect(500, tests=5)
    assert effect == pytest.approx((2.5758 + 0.8416) * (0.2 / 500) ** 0.5, abs=1e-5)
    assert smallest_effect(500) == pytest.approx(0.056, abs=1e-3)
    assert found_from(0.5, 500, 5) == pytest.approx(2 * effect)
    assert found_from(0.0, 500, 5) == np.inf and case.told(np.inf) == "none"
    assert case.told(1.2) == "none" and case.told(0.136) == "14 points"


def test_all_elicitors_together_are_the_best_of_each_lock():
    shares = {"shots": {"a": 0.0, "b": 0.1}, "sft8": {"a": 0.8, "b": 0.4}, "ei": {}}
    rows = {row[0]: row[1:] for row in power_rows(shares, 500)}
    assert rows[ELICITORS["sft8"].label][:2] == ["2", "60 [40, 80]"]
    assert rows["all of them"] == rows[ELICITORS["sft8"].label]
    assert rows[ELICITORS["shots"].label][-1] == "none"  # in the worst lock nothing is found
    assert rows[ELICITORS["ei"].label] == ["0", "", "not known", "not known"]


class Found(Evidence):
    """Of code/locked-random, after SFT on 64 in a figure's job; of code/locked the matrix's."""

    def lock(self, job: str) -> Lock | None:
        none, right = np.arange(100) < 10, np.arange(100) < 90
        failed = ["near the weak policy"] if job == "code/locked-scratch" else []
        if job in ("code/locked", "code/locked-random", "code/locked-scratch"):
            return Lock(Path(job), "", [], np.array([]), None, 0, none, right, failed)
        return None

    def demonstrated(self, lock: Lock, job: str, k: int) -> np.ndarray | None:
        jobs = {
            "matrix/password/sft/seed{seed}": 70,
            "code/sft/seed{seed}": 30,
            "code/sft-of-random/seed{seed}": 50,
            "code/sft-of-scratch/seed{seed}": 90,
        }
        return (np.arange(100) < jobs[job])[None] if k == 64 and job in jobs else None

    def prompted_verdicts(self, lock: Lock, job: str, row: str) -> None:
        return None

    def rewarded(self, lock: Lock, job: str) -> list:
        return []


def test_known_positives_are_valid_locks_of_the_matrix_or_of_the_figures():
    shares = shares_of(Found(lambda job: None, (0,)))
    assert shares["sft64"] == {
        "password": pytest.approx(60 / 80),  # the matrix's cell comes first
        "fixed random tokens": pytest.approx(40 / 80),
    }
    assert shares["sft8"] == shares["ei"] == shares["shots"] == {}


def test_what_is_found_is_said_and_what_is_not():
    before, after = np.zeros((1, 500), bool), (np.arange(500) < 100)[None]
    gained = Trial(ELICITORS["sft8"], 0.2, difference(before, after), 0.001)
    nothing = Trial(ELICITORS["ei"], 0.0, difference(before, before), 1.0)
    assert verdict_of([nothing]).startswith("Nothing was found")
    assert "found, by SFT on 8." in verdict_of([gained, nothing])
    rows = case.trial_rows([gained], {"sft": 12.3})
    assert rows[1][3:5] == ["12", "20.0%"] and rows[1][5].startswith("+20.0 [+1")


def test_what_is_no_model_is_refused_and_so_are_options_of_others(tmp_path):
    with pytest.raises(InputError, match="name a checkpoint's directory with --case"):
        case.make(tmp_path, tmp_path / "out", None, None)
    assert not (tmp_path / "out").exists()
    for options, sentence in (
        ({"known": "x"}, "--known is of --case"),
        ({"case": "x", "figure": ("3",)}, "--figure does nothing with --case"),
    ):
        with pytest.raises(InputError, match=sentence):
            reproduce.main(reproduce.ReproduceConfig(**options))
