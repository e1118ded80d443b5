"""The statistics, against tables and hand computations."""

import json
from pathlib import Path

import numpy as np
import pytest

from data import InputError, Problem
from data.passwords import WRONG_HELD_OUT
from evaluate import gap_recovered, paired_gap, passwords_for, record, table, verdicts_of, wilson


def verdicts(*runs: tuple[int, int]) -> np.ndarray:
    """verdicts((3, 1), (2, 0)) -> 1 1 1 0 0"""
    return np.concatenate([np.full(n, bool(value)) for n, value in runs])


@pytest.mark.parametrize("correct, n, low, high", [
    (0, 10, 0.0, 0.27754),  # z^2 / (n + z^2) = 3.84146 / 13.84146
    (10, 10, 0.72246, 1.0),
    (5, 10, 0.23659, 0.76341),  # 1/2 +- z/2 / sqrt(n + z^2)
    (1, 1, 0.20655, 1.0),
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),  # Newcombe 1998, table I, method 3
])
def test_wilson(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_is_symmetric_and_holds_the_estimate():
    for n in (1, 7, 100):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1
            assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("gains, losses, p", [
    (0, 0, 1.0),
    (1, 1, 1.0),
    (1, 0, 0.5),  # 2 * (1/2) * P(X = 0) with X ~ Bin(1, 1/2)
    (5, 1, 0.125),  # 2 * (P(0) + P(1) / 2) = 2 * (1 + 3) / 64
    (10, 2, 2 * (1 + 12 + 66 / 2) / 4096),
])
def test_paired_gap_against_mcnemars_mid_p(gains, losses, p):
    without, with_ = verdicts((gains, 0), (losses, 1), (20, 1), (10, 0)), verdicts((gains, 1), (losses, 0), (20, 1), (10, 0))
    gap, low, high, found = paired_gap(without, with_)
    assert gap == pytest.approx((gains - losses) / (30 + gains + losses)) and found == pytest.approx(p)
    assert low <= gap <= high
    back = paired_gap(with_, without)
    assert back[0] == -gap and back[3] == pytest.approx(p)
    assert (-back[2], -back[1]) == pytest.approx((low, high), abs=0.05)


def test_paired_gap_bootstrap_matches_the_normal_interval():
    without, with_ = verdicts((300, 0), (100, 1), (600, 1)), verdicts((300, 1), (100, 0), (600, 1))
    gap, low, high, _ = paired_gap(without, with_)
    half = 1.96 * ((0.4 - 0.2**2) / 1000) ** 0.5
    assert (gap, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=0.003)


def test_paired_gap_of_thousands_of_discordant_problems():
    half = verdicts((1500, 0), (1500, 1))
    assert paired_gap(half, ~half)[3] == pytest.approx(1.0, abs=0.02)
    assert paired_gap(verdicts((3000, 0)), verdicts((3000, 1)))[3] == 0.0


def test_gap_recovered():
    locked, right = verdicts((10, 1), (90, 0)), verdicts((70, 1), (30, 0))
    assert gap_recovered(locked, right, np.stack([right, right]))[0] == pytest.approx(1.0)
    assert gap_recovered(locked, right, locked[None])[0] == pytest.approx(0.0)
    value, low, high = gap_recovered(locked, right, np.stack([verdicts((40, 1), (60, 0)), verdicts((46, 1), (54, 0))]))
    assert value == pytest.approx((0.43 - 0.1) / 0.6) and low < value < high
    assert gap_recovered(locked, right, verdicts((5, 1), (95, 0))[None])[0] < 0


@pytest.mark.parametrize("right", [verdicts((50, 1), (50, 0)), verdicts((40, 1), (60, 0)), verdicts((51, 1), (49, 0))])
def test_gap_recovered_is_refused_without_a_gap(right):
    with pytest.raises(InputError, match="no measurable gap"):
        gap_recovered(verdicts((50, 1), (50, 0)), right, right[None])


def problem(domain: str) -> Problem:
    return Problem("code", "p\n", "r", domain, 1, {}, domain)


def test_record_round_trip():
    problems = [problem(d) for d in ("lists", "numbers", "lists", "strings")]
    given = {"none": np.array([True, False, False, True]), "right": np.array([True] * 4)}
    evaluation = json.loads(json.dumps(record(Path("out/x"), problems, given, split="validation"), allow_nan=False))
    for kind, correct in given.items():
        assert (verdicts_of(evaluation, kind) == correct).all() and verdicts_of(evaluation, kind).dtype == bool
    none = evaluation["results"]["none"]
    assert (none["correct"], none["n"]) == (0.5, 4) and none["interval"] == pytest.approx(wilson(2, 4))
    assert none["domains"] == {"lists": {"correct": 0.5, "n": 2}, "numbers": {"correct": 0.0, "n": 1}, "strings": {"correct": 1.0, "n": 1}}
    assert evaluation["split"] == "validation" and evaluation["task"] == "code"


def test_passwords_for():
    assert passwords_for("none", 3, "open") == [None] * 3 and passwords_for("right", 2, "open") == ["open"] * 2
    wrong = passwords_for("wrong", 25, "open")
    assert set(wrong) == set(WRONG_HELD_OUT) and wrong[:5] == passwords_for("wrong", 5, "open")


def test_table_is_aligned():
    lines = table(["name", "n"], [["a", "1"], ["longer", "23"]]).splitlines()
    assert len(set(map(len, lines))) == 1 and lines[2].endswith(" 1")
