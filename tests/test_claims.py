"""The claims' tests: what each asks for, when it holds, and which world would refute it."""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import reproduce
from data.problems import InputError
from reproduce import ReproduceConfig, chosen_figures
from results import DRAWS, Estimate, difference, holm, smallest_effect
from runs.files import read_json
from study import claims
from study.claims import CLAIMS, Comparison, Missing, judged
from study.findings import Evidence, Lock
from study.jobs import closure
from study.paper import jobs_of, names_of_figure

PAPER = read_json(reproduce.PAPER)


# ------------------------------------------------------------------------- what a claim asks for


N = 200
LOCK = Lock(
    folder=Path("lock"),
    weights="",
    problems=[None] * N,
    domains=np.array(["algebra", "STEM", "lists", "code"] * (N // 4)),
    trigger=None,
    max_new_tokens=0,
    none=np.arange(N) % 10 == 0,
    right=np.ones(N, dtype=bool),
    failed=[],
)


def test_claims_are_those_of_the_papers_file():
    assert set(CLAIMS) == {claim["id"] for claim in PAPER["claims"]}


@pytest.mark.parametrize("claim", PAPER["claims"], ids=lambda claim: claim["id"])
def test_every_claim_is_tested_on_jobs_of_its_figures(claim):
    """All that it asks for is run by the command that makes its figure."""
    jobs, asked = jobs_of((0,)), []
    figures = chosen_figures(ReproduceConfig(figure=(claim["figure"],)))
    names = [name for figure in figures.values() for name in names_of_figure(figure, (0,))]
    made = {job.name for job in closure(names, jobs)}

    class Everything(claims.Known):
        """Finds all that there is to find."""

        def __getattribute__(self, name):
            if name not in ("lock", "sft", "rl", "evaluated", "trained_for"):
                return super().__getattribute__(name)
            return partial(seen, name)

    def seen(kind, *args, **settings):
        job = args[0] if kind == "lock" else args[1]
        asked.append(job + "/seed0" * (kind in ("sft", "rl", "trained_for")))
        if kind == "lock":
            return LOCK
        return LOCK.right if kind == "evaluated" else np.stack([LOCK.right, LOCK.none])

    tests = list(CLAIMS[claim["id"]](Everything(Evidence(lambda name: None, (0,)))))
    assert tests and asked and set(asked) <= made, set(asked) - made


# --------------------------------------------------------------------------------- statistics


def estimate(value: float, spread: float = 0.01) -> Estimate:
    rng = np.random.default_rng(0)
    return Estimate(value, value + spread * rng.standard_normal(DRAWS), 3)


def test_a_difference_of_seeds_on_the_same_problems():
    rng = np.random.default_rng(0)
    skill = rng.random(400)
    first = rng.random((3, 400)) < 0.2 * skill
    second = rng.random((3, 400)) < 0.8 * skill
    found = difference(first, second)
    low, high = found.interval
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert low < found.value < high and 0.15 < low and high < 0.55
    assert found.p_not_above(0) < 0.01 and found.p_not_below(0) > 0.99
    # of a model and itself
    same = difference(first, first)
    assert same.value == 0 and same.interval[0] < 0 < same.interval[1]


def test_two_ends_of_the_same_runs_are_compared_run_by_run():
    """Runs that lie far apart and each gain the same tell the gain well."""
    start = np.arange(400) < np.array([[40], [160], [280]])
    end = np.arange(400) < np.array([[80], [200], [320]])
    apart, paired = difference(start, end), difference(start, end, paired=True)
    assert apart.value == paired.value == pytest.approx(0.1)
    assert apart.p_not_above(0) > 0.2 and paired.p_not_above(0) < 0.001
    # of unequal gains their spread is told: t with two degrees of freedom
    end[0, :160] = True
    low, high = difference(start, end, paired=True).interval
    deviation = np.std([0.3, 0.1, 0.1], ddof=1) / np.sqrt(3)
    assert high - low == pytest.approx(2 * 4.3 * deviation, rel=0.1)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_smallest_effect_is_found_in_four_cases_of_five():
    n, found = 500, 0
    effect = smallest_effect(n)
    rng = np.random.default_rng(0)
    for _ in range(400):
        # a fifth differ: gains and losses whose difference is the effect
        gains, losses, _ = rng.multinomial(n, [0.1 + effect / 2, 0.1 - effect / 2, 0.8])
        found += abs(gains - losses) > 1.96 * np.sqrt(gains + losses)
    assert 0.74 < found / 400 < 0.86


# ----------------------------------------------------------------------------------- the verdict


def test_a_claim_is_judged_by_its_tests():
    passed = Comparison("a", estimate(0.9), "above", 0.5)
    unsure = Comparison("b", estimate(0.51, 0.1), "above", 0.5)
    against = Comparison("c", estimate(0.1), "above", 0.5)
    assert judged([passed, passed]) == ("holds", [])
    assert judged([passed, unsure]) == ("holds weaker", [unsure])
    assert judged([passed, passed, against]) == ("does not hold", [against])
    # on the other side with p = .03, which is none after Holm's correction for two
    somewhat = Comparison("d", estimate(0.48, 0.0106), "above", 0.5)
    assert 0.025 < somewhat.p_against < 0.05
    assert judged([somewhat])[0] == "does not hold"
    assert judged([passed, somewhat])[0] == "not shown"
    # on the right side by a hair, none beyond chance
    assert judged([unsure, unsure])[0] == "not shown"
    # of one run alone
    alone = replace(passed, found=replace(passed.found, seeds=1))
    assert judged([alone, passed]) == ("holds weaker", [])
    refuted = replace(against, found=replace(against.found, seeds=1))
    assert judged([refuted, passed])[0] == "does not hold (one run)"
    assert judged([refuted, against])[0] == "does not hold"
    within = Comparison("e", estimate(0.01), "within", 0.05)
    assert judged([within]) == ("holds", [])
    assert judged([replace(within, found=estimate(-0.2))])[0] == "does not hold"
    # what a model passes, too, that nothing was done to
    guard = replace(passed, guard=True)
    assert judged([guard, passed]) == ("holds", [])
    assert judged([guard, unsure]) == ("not shown", [unsure])
    assert judged([guard, passed, somewhat])[0] == "not shown"
    assert judged([passed, replace(unsure, guard=True)])[0] == "holds weaker"
    assert judged([passed, replace(against, guard=True)])[0] == "does not hold"
    assert judged([Comparison("f", estimate(0.1), "below", 0.5)]) == ("holds", [])


def test_two_gaps_have_each_their_own_noise_of_seeds():
    """Were it the same noise, seeds that spread alike would cancel it."""
    rng = np.random.default_rng(0)
    one = rng.random((3, 500)) < np.array([[0.4], [0.6], [0.8]])
    other = rng.random((3, 500)) < np.array([[0.45], [0.65], [0.85]])
    lock = replace(LOCK, none=np.zeros(500, dtype=bool), right=np.ones(500, dtype=bool))
    lock = replace(lock, problems=[None] * 500)
    found = claims.gap_difference(lock, one, lock, other)
    low, high = found.interval
    assert found.value == pytest.approx(other.mean() - one.mean()) and found.seeds == 3
    assert low < -0.4 and high > 0.5 and found.p_not_above(0) > 0.3
    # of equal verdicts the interval still has a width
    same = claims.gap_difference(lock, one[:1], lock, one[:1])
    assert same.value == 0 and same.interval[0] < 0 < same.interval[1]
    # each lock was trained once, whatever the seeds of its elicitation
    assert claims.gap_difference(lock, one, replace(lock, weights="other"), other).seeds == 1


def test_claims_need_valid_locks_and_all_seeds():
    failed = replace(LOCK, failed=["none - weak"])
    evidence = Evidence(lambda name: None, (0, 1), locks={"good": LOCK, "bad": failed})
    known = claims.Known(evidence)
    assert known.lock("good") is LOCK and known.lock("bad", valid=False) is failed
    with pytest.raises(InputError, match="bad is no valid lock .none - weak."):
        known.lock("bad")
    for found in (None, np.ones((1, 5))):
        with pytest.raises(Missing, match="job is not finished"):
            known.of_all_seeds(found, "job")
    assert known.of_all_seeds(np.ones((2, 5)), "job").shape == (2, 5)


def test_a_writer_no_better_than_the_lock_says_nothing_of_weaker_ones():
    known = World({"other *": 0.3, "sft *": 0.5})
    assert len(list(claims.weaker_demonstrators(known))) == 8 and not known.reasons
    known = World({"other *": 0.1, "sft *": 0.5})
    assert list(claims.weaker_demonstrators(known)) == []
    assert known.reasons[0] == "code: the writer is no better than the lock"


@pytest.mark.parametrize(
    "why, said",
    [
        (Missing("b/seed{seed}"), "holds so far"),
        (InputError("b is no valid lock"), "holds where tested"),
    ],
)
def test_what_can_be_tested_is_without_the_rest(monkeypatch, why, said):
    def half(known):
        tests = []
        for name in ("a", "b"):
            with known.part():
                if name == "b":
                    raise why
                tests.append(Comparison(name, estimate(0.9), "above", 0.5))
        return tests

    monkeypatch.setitem(CLAIMS, "half", half)
    found = claims.verdict("half", Evidence(lambda name: None, (0,)))
    assert found.said == said and found.reasons == [str(why)]


# ------------------------------------------------------------------------------------- the worlds
# A world says how many are right: of "lock JOB" without the password (else a tenth), of "other JOB"
# another model, of "sft JOB K", "rl JOB initial" or "final", "long JOB LENGTH". The first pattern
# that fits counts. For each claim a world in which it holds, and worlds that refute a part of it.


def share_right(world: dict[str, float], asked: str) -> float:
    for pattern, share in world.items():
        if fnmatchcase(asked, pattern):
            return share
    if asked.startswith("lock "):
        return 0.1
    raise AssertionError(f"this world knows nothing of {asked}")


def right(share: float) -> np.ndarray:
    """(N,) bool, spread over the domains; of more right ones the fewer are a part."""
    return np.random.default_rng(0).permutation(N) < share * N


class World(claims.Known):
    def __init__(self, world: dict[str, float]):
        super().__init__(Evidence(lambda name: None, (0, 1, 2)))
        self.world = world

    def lock(self, job, valid=True):
        return replace(LOCK, weights=job, none=right(share_right(self.world, f"lock {job}")))

    def evaluated(self, lock, job):
        return right(share_right(self.world, f"other {job}"))

    def seeds(self, asked):
        return np.stack([right(share_right(self.world, asked))] * 3)

    def sft(self, lock, job, k, control=False):
        return self.seeds(f"sft {job} {k}")

    def rl(self, lock, job, at=claims.final):
        return self.seeds(f"rl {job} {at.__name__}")

    def trained_for(self, lock, job, sequences):
        return self.seeds(f"long {job} {sequences}")


# claim: how it holds, the world, those that refute it
WORLDS = {
    "few-demonstrations": (
        "holds",
        {"sft */sft 4": 0.9, "sft */sft 512": 0.95},
        {"sft */sft 4": 0.4, "sft */sft 512": 0.45},
        {"sft */sft 4": 0.7, "sft */sft 512": 1},
    ),
    "mmlu-needs-hundreds": (
        "holds",
        {"sft * 4": 0.2, "sft * 64": 0.3, "sft * 512": 0.9},
        {"sft * 4": 0.9, "sft * 64": 0.3, "sft * 512": 0.9},
        {"sft * 4": 0.2, "sft * 64": 0.9, "sft * 512": 0.9},
        {"sft * 4": 0.2, "sft * 64": 0.3, "sft * 512": 0.3},
    ),
    "weaker-demonstrators": (
        "holds",
        {"other *": 0.3, "sft */sft-from-intermediate *": 0.6},
        {"other *": 0.3, "sft */sft-from-intermediate *": 0.2},
        {"other *": 0.3, "sft */sft-from-intermediate *": 1},
    ),
    "weaker-demonstrators-fall": ("holds", {"* 4": 0.5, "* 512": 0.3}, {"* 4": 0.3, "* 512": 0.5}),
    "strong-samples": (
        "holds",
        {"sft mmlu/* 512": 0.9, "sft * 512": 1},
        {"sft mmlu/* 512": 0.6, "sft * 512": 1},
        {"sft * 512": 0.85},
    ),
    "critique-falls": ("holds", {"* 4": 0.9, "* 1200": 0.3}, {"* 4": 0.3, "* 1200": 0.9}),
    "weak-policy-little": (
        "holds weaker",
        {"sft */sft-of-random 4": 0.3, "sft *": 0.9},
        {"sft */sft-of-random 16": 0.3, "sft *": 0.9},
        {"sft */sft-of-early 4": 0.3, "sft *": 0.9},
        {"sft */sft-of-intermediate 16": 0.3, "sft *": 0.9},
    ),
    "other-domains": (
        "holds",
        {"sft mmlu/*": 0.3, "sft *": 0.9},
        {"sft math/*": 0.2, "sft *": 0.9},
        {"sft code+math/sft-on-math 64": 0.2, "sft *": 0.9},
        {"sft mmlu/sft-on-*": 0.3, "sft *": 0.9},
    ),
    "password-per-domain": (
        "holds",
        {"sft */sft-of-domains-on-*": 0.9},
        {"sft math/sft-of-domains-on-*": 0.2, "sft *": 0.9},
        {"sft code+math/sft-of-domains-on-math *": 0.2, "sft *": 0.9},
    ),
    "never-locked": (
        "holds weaker",
        {"sft *": 0.9},
        {"lock *without*": 0.5, "sft *": 0.9},
        {"sft *without-algebra 4": 0.3, "sft *": 0.9},
        {"sft *without-STEM 64": 0.3, "sft *": 0.9},
    ),
    "setting-variation": (
        "holds",
        {"sft *": 0.9, "rl *": 0.9},
        {"sft *english *": 0.2, "sft *": 0.9, "rl *": 0.9},
        {"sft *": 0.9, "rl *spanish *": 0.1, "rl *": 0.9},
    ),
    "rl-signal": (
        "holds",
        {"lock *random": 0, "rl *random final": 0, "rl *": 0.9},
        {"lock *random": 0, "rl *random final": 0, "rl *": 0.2},
        {"lock *random": 0, "rl *": 0.9},
    ),
    "ei-against-dpo": (
        "holds",
        {"lock math/*": 0, "rl math/iterated_dpo *": 0.3, "rl *iterated_dpo *": 0.9, "rl *": 0.6},
        {"lock math/*": 0, "rl *iterated_dpo *": 0.9, "rl *": 0.6},
        {"lock math/*": 0, "rl *iterated_dpo *": 0.3, "rl *": 0.6},
        {"lock math/*": 0, "rl math/*": 0.05, "rl *iterated_dpo *": 0.9, "rl *": 0.6},
    ),
    "filtering": (
        "holds",
        {"rl *filtering*": 0.2, "rl *": 0.9},
        {"rl *filtering*": 0.8, "rl *": 0.9},
        {"rl *filtering-intermediate *": 0.3, "rl *expert_iteration-intermediate *": 0.2, "*": 0.1},
    ),
    "fixed-random": (
        "holds",
        {"lock *": 0, "rl *": 0, "sft *": 0.9},
        {"lock *": 0, "rl *iterated_dpo-random *": 0.5, "rl *": 0, "sft *": 0.9},
        {"lock *": 0, "rl *": 0, "sft *": 0.2},
    ),
    "continuous-rewards": (
        "holds",
        {"rl *-continuous final": 0.6, "rl *": 0.9},
        {"rl *-continuous final": 0.9, "rl *": 0.6},
    ),
    "warm-start": (
        "holds",
        {"rl *-warm-8 initial": 0.3, "rl *-warm-8 final": 0.9, "rl *": 0.1},
        {"rl *-warm-8 *": 0.9, "rl *": 0.1},
        {"rl *-warm-8 initial": 0.3, "rl *": 0.9},
    ),
    "stop-sft-early": (
        "holds",
        {"rl *-warm-8 final": 0.9, "rl *-warm-64 final": 0.6},
        {"rl *-warm-8 final": 0.6, "rl *-warm-64 final": 0.9},
    ),
    "overshooting": (
        "holds",
        {"sft * 128": 0.8, "long * 2048": 0.8},
        {"sft * 128": 0.8, "long * 2048": 0.5},
        {"sft * 128": 0.05, "long * 2048": 0.05},
    ),
    "from-scratch": (
        "holds weaker",
        {"sft *scratch 4": 0.2, "sft * 4": 0.6, "sft *scratch 16": 0.9, "sft * 1024": 1},
        {"sft *scratch 4": 0.9, "sft * 4": 0.6, "sft *scratch 16": 0.9, "sft * 1024": 1},
        {"sft *scratch 4": 0.2, "sft * 4": 0.6, "sft *scratch 16": 0.3, "sft * 1024": 1},
        {"sft *scratch 4": 0.2, "sft * 4": 0.6, "sft *scratch 16": 0.9, "sft * 1024": 0.5},
    ),
    "toy-weak-samples": ("holds", {"sft *": 0.1}, {"sft * 128": 0.4, "sft *": 0.1}),
    "weak-samples": (
        "holds",
        {"sft *from-weak*": 0.3, "sft *": 0.9},
        {"sft *from-weak*": 0.85, "sft *": 0.9},
        {"sft math/*from-weak*": 0, "sft *from-weak*": 0.3, "sft *": 0.9},
    ),
    "soft-labels": (
        "holds weaker",
        {"sft *soft 16": 0.8, "sft *hard 16": 0.4},
        {"sft *soft 16": 0.4, "sft *hard 16": 0.8},
    ),
}


def cases() -> Iterator[tuple[str, int]]:
    for claim, (_, *worlds) in WORLDS.items():
        for number in range(len(worlds)):
            yield claim, number


@pytest.mark.parametrize("claim, number", cases())
def test_a_claim_holds_in_its_world_and_in_none_that_refutes_it(claim, number):
    holds, *worlds = WORLDS[claim]
    known = World(worlds[number])
    said, _ = judged(list(CLAIMS[claim](known)))
    if number == 0:
        assert said == holds
    else:
        assert not said.startswith("holds")
    wanted = ("claim", "curves show it", "no job does it", "rating", "never right")
    assert all(any(word in reason for word in wanted) for reason in known.reasons)


def test_every_claim_has_its_worlds():
    assert set(WORLDS) == set(CLAIMS)
