"""The paper's claims, and how each is tested on our measurements.

A claim of docs/paper.json is a family of tests: a number that was measured, a bound, and the side
of it on which the claim wants the number. Tests were written before the runs that they judge;
earlier runs of the same settings on code were known by then (docs/results.md). On 2026-11-30, when
most of code was measured, five families were made stricter, as they did not ask for all that the
claim says: mmlu's 64, weak policies' 4, all weak policies of filtering, the best length in place of
256, and the undamaged ceiling of a domain that was left out. On 2026-12-01 six tests that the
paper's own numbers fail were changed: those of mmlu, of which nothing was measured yet, to as many
demonstrations as it takes there; and, of what was measured on code and compose before, 4
demonstrations to a lock of random tokens are asked for nothing, and a lock from scratch has to need
more than the 4 of a fine-tuned one in place of 8 at least. On 2026-12-02, after a reading beside
the paper, these were changed. Of what was measured: demonstrations of a weaker model are asked for
only where the model is better than the lock, which they have to lift above it; mmlu is no part of
the weak policies' claim; filtering may bring back 35 % in place of 25, and has to bring less than
expert iteration; weak samples are tested with 4, trained on longer, in place of 8. Of what was not:
warm starts by what RL adds to the demonstrations; a peak has to rise before it can fall; a domain
that was left out is compared with one that was not. Later that day, after another reading, when
most was measured: guards, below, count no more for a claim that holds weaker; expert iteration has
to bring back 25 % where the claim is that it alone recovers much; two lengths of one training, and
both ends of one run of RL, are compared seed by seed. Four claims that held weaker by their guards
alone were judged anew.

    holds              every test is passed with p < .05, and none is of one run alone
    holds weaker       a test is passed so, more than half of the numbers are on the claim's side,
                       and none is on the other with p < .05; guards do not count here
    not shown          no number is on the other side with p < .05, but too few are on the claim's
    does not hold      a number is on the other side with p < .05; where all such numbers are of one
                       run alone, it says so
    not measured       jobs of it are not finished, or it cannot be tested here

A guard is a test that a model passes, too, to which elicitation did nothing, or which it broke: "by
less than good demonstrations". Without it a claim does not hold, but by guards alone none holds.
p is one-sided and adjusted for the number of tests (Holm) on either side.
"so far" is added where jobs of a claim are not finished, "where tested" where parts of it cannot be
tested here.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from data.problems import InputError
from results import Estimate, difference, holm, recovered_gap
from study.findings import Evidence, Lock, check_dtype, final, initial, within
from study.paper import DOMAINS, GENERATION, IMITATED, METHODS, TASKS, job_on


@dataclass(frozen=True)
class Comparison:
    """One number and the bound that it is held against. side: above, below, or within (of 0).

    guard: see the top.
    """

    name: str
    found: Estimate
    side: str
    bound: float
    guard: bool = False

    @property
    def passes(self) -> bool:
        value = self.found.value
        if self.side == "within":
            return abs(value) < self.bound
        return value > self.bound if self.side == "above" else value < self.bound

    @property
    def p(self) -> float:
        """That the number is on the claim's side by chance; of two bounds the larger."""
        above, below = self.found.p_not_above, self.found.p_not_below
        if self.side == "within":
            return max(above(-self.bound), below(self.bound))
        return above(self.bound) if self.side == "above" else below(self.bound)

    @property
    def p_against(self) -> float:
        """That the number is on the other side by chance."""
        above, below = self.found.p_not_above, self.found.p_not_below
        if self.side == "within":
            return min(above(self.bound), below(-self.bound))
        return below(self.bound) if self.side == "above" else above(self.bound)

    def __str__(self) -> str:
        low, high = (100 * end for end in self.found.interval)
        bound = {"above": ">", "below": "<", "within": "within ±"}[self.side]
        value = f"{100 * self.found.value:.1f} [{low:.1f}, {high:.1f}]"
        runs = f"{self.found.seeds} seeds" if self.found.seeds > 1 else "one run"
        return f"{self.name}: {value}, {runs}, claimed {bound} {100 * self.bound:g}"


@dataclass(frozen=True)
class Verdict:
    """What came of a claim. reasons: why parts of it could not be tested."""

    said: str
    tests: list[Comparison]
    failed: list[Comparison]
    reasons: list[str]


MISSING = " is not finished"


class Missing(Exception):
    """A job that a test needs is not finished."""

    def __init__(self, job: str):
        super().__init__(job.format(seed="*") + MISSING)


def is_missing(reason: str) -> bool:
    """Whether a reason is that of `Missing`."""
    return reason.endswith(MISSING)


def judged(tests: list[Comparison]) -> tuple[str, list[Comparison]]:
    """The verdict on a family of tests, and those that were not passed."""
    adjusted = holm([test.p for test in tests])
    shown = [p < 0.05 and test.passes for test, p in zip(tests, adjusted)]
    failed = [test for test, is_shown in zip(tests, shown) if not is_shown]
    if not failed and all(test.found.seeds > 1 for test in tests):
        return "holds", []
    against = holm([test.p_against for test in tests])
    refuting = [test.found.seeds for test, p in zip(tests, against) if p < 0.05]
    if refuting:
        return "does not hold" + " (one run)" * (max(refuting) == 1), failed
    telling = [i for i, test in enumerate(tests) if not test.guard]
    passing = sum(tests[i].passes for i in telling)
    if any(shown[i] for i in telling) and 2 * passing > len(telling):
        return "holds weaker", failed
    return "not shown", failed


# ------------------------------------------------------------------------------------ measurements


@dataclass
class Known:
    """Measurements by name, for tests. What is not finished raises Missing.

    reasons: why parts of a claim were not tested.
    """

    evidence: Evidence
    reasons: list[str] = field(default_factory=list)

    @contextmanager
    def part(self):
        """A part of a claim that is left out, with the reason, where it cannot be tested."""
        try:
            yield
        except (Missing, InputError) as error:
            self.reasons.append(str(error))

    def lock(self, job: str, valid: bool = True) -> Lock:
        """Raises InputError for one that is not valid, of which a claim about locks says nothing.

        valid=False: for a claim about one that is meant not to be.
        """
        found = self.evidence.lock(job)
        if found is None:
            raise Missing(job)
        if valid and found.failed:
            raise InputError(f"{job} is no valid lock ({'; '.join(found.failed)})")
        return found

    def of_all_seeds(self, found: np.ndarray | None, job: str) -> np.ndarray:
        if found is None or len(found) < len(self.evidence.seeds):
            raise Missing(job)
        return found

    def sft(self, lock: Lock, job: str, k: int, control: bool = False) -> np.ndarray:
        """(S,n)"""
        job += "/seed{seed}"
        found = self.evidence.demonstrated(lock, job, k, control)
        return self.of_all_seeds(found, f"{job} with {k} demonstrations")

    def evaluated(self, lock: Lock, job: str) -> np.ndarray:
        """(n,), of another model."""
        found = self.evidence.evaluated(lock, job)
        if found is None:
            raise Missing(job)
        return found

    def rl(self, lock: Lock, job: str, at: Callable = final) -> np.ndarray:
        """(S,n), at its end, or `initial`, at its start."""
        job += "/seed{seed}"
        curves = self.evidence.rewarded(lock, job)
        return self.of_all_seeds(at(curves) if curves else None, job)

    def trained_for(self, lock: Lock, job: str, sequences: int) -> np.ndarray:
        """(S,n), of SFT of that length."""
        job += "/seed{seed}"
        return self.of_all_seeds(self.evidence.lengths(lock, job).get(sequences), job)


def gap(lock: Lock, verdicts: np.ndarray, part: str = "", other: bool = False) -> Estimate:
    """The gap recovered on a part of the problems. other: see `recovered_gap`."""
    mask = within(lock, part)
    return recovered_gap(lock.none[mask], lock.right[mask], verdicts[:, mask], other)


def gap_difference(one: Lock, by_one: np.ndarray, other: Lock, by_other: np.ndarray) -> Estimate:
    """The gap recovered of the other lock less that of the one, on the same problems.

    Raises InputError where the locks were measured in different dtypes.
    """
    first, second = gap(one, by_one), gap(other, by_other, other=True)
    seeds = min(first.seeds, second.seeds)
    found = Estimate(second.value - first.value, second.draws - first.draws, seeds)
    return found if one.weights == other.weights else between_locks(one, other, found)


def between_locks(one: Lock, other: Lock, found: Estimate) -> Estimate:
    """A difference of two locks' models, as of one run.

    Each lock was trained once, and another might differ by more than the seeds of its elicitation
    do. Raises InputError where they were measured in different dtypes.
    """
    check_dtype(one, other.dtype, str(other.folder))
    return replace(found, seeds=1)


def gain(lock: Lock, verdicts: np.ndarray) -> Estimate:
    return difference(lock.none[None], verdicts)


# -------------------------------------------------------------------------------------- the claims


def few_demonstrations(known: Known) -> Iterator[Comparison]:
    for task in GENERATION:
        with known.part():
            lock = known.lock(f"{task}/locked")
            few, many = (known.sft(lock, f"{task}/sft", k) for k in (4, 512))
            yield Comparison(f"{task}, 4: gap recovered", gap(lock, few), "above", 0.5)
            more = gap_difference(lock, few, lock, many)
            yield Comparison(f"{task}, 512 less 4: gap recovered", more, "below", 0.15)


def mmlu_needs_hundreds(known: Known) -> list[Comparison]:
    lock = known.lock("mmlu/locked")
    found = {k: gap(lock, known.sft(lock, "mmlu/sft", k)) for k in (4, 64, 512)}
    return [
        Comparison("4: gap recovered", found[4], "below", 0.5),
        Comparison("64: gap recovered", found[64], "below", 0.5),
        Comparison("512: gap recovered", found[512], "above", 0.5),
    ]


def weaker_demonstrators(known: Known) -> Iterator[Comparison]:
    """Where the writer is better than the lock: from one that is not, nothing is to be had."""
    for task in TASKS:
        with known.part():
            lock = known.lock(f"{task}/locked")
            writer = known.evaluated(lock, f"{task}/intermediate")
            if writer.mean() <= lock.none.mean():
                raise InputError(f"{task}: the writer is no better than the lock")
            k = 512 if task == "mmlu" else 16
            found = known.sft(lock, f"{task}/sft-from-intermediate", k)
            over = difference(writer[None], found)
            yield Comparison(f"{task}, {k}: more than the writer", over, "above", 0.0)
            part = gap(lock, found)
            yield Comparison(f"{task}, {k}: gap recovered", part, "below", 0.9, guard=True)


def weaker_demonstrators_fall(known: Known) -> Iterator[Comparison]:
    for task in GENERATION:
        with known.part():
            lock = known.lock(f"{task}/locked")
            few, many = (known.sft(lock, f"{task}/sft-from-intermediate", k) for k in (4, 512))
            yield Comparison(f"{task}, 512 less 4", difference(few, many), "below", 0.0)


def strong_samples(known: Known) -> Iterator[Comparison]:
    """Of mmlu the paper's 512 reach 85 %."""
    for task in TASKS:
        with known.part():
            lock = known.lock(f"{task}/locked")
            found = gap(lock, known.sft(lock, f"{task}/sft-strong", 512))
            bound = 0.75 if task == "mmlu" else 0.9
            yield Comparison(f"{task}, 512: gap recovered", found, "above", bound)


def critique_falls(known: Known) -> list[Comparison]:
    lock = known.lock("critique/locked")
    few = known.sft(lock, "critique/sft", 4)
    everything = known.sft(lock, "critique/sft-all", 1200)
    return [Comparison("1,200 less 4", difference(few, everything), "below", 0.0)]


def weak_policy_little(known: Known) -> Iterator[Comparison]:
    """Random tokens from 16 on: with 4 the paper's lock of code is 34 points behind.

    Not on mmlu, where its lock with another weak policy is at .592 after 4, that of the same at
    .363.
    """
    for task, weak in product(GENERATION, IMITATED):
        if weak:
            with known.part():
                lock, other = known.lock(f"{task}/locked"), known.lock(f"{task}/locked{weak}")
                for k in (16,) if weak == "-random" else (4, 16):
                    usual = known.sft(lock, f"{task}/sft", k)
                    found = known.sft(other, f"{task}/sft-of{weak}", k)
                    change = gap_difference(lock, usual, other, found)
                    name = f"{task}, {k}, {IMITATED[weak][0]} less weak model: gap recovered"
                    yield Comparison(name, change, "within", 0.2)


def other_domains(known: Known, each: str = "") -> Iterator[Comparison]:
    """Of mmlu, which takes hundreds of any domain, as much as with as many of all domains."""
    for task in ("math", "mmlu", "code+math"):
        if task == "mmlu" and each:
            continue  # nothing was done with demonstrations of all domains
        with known.part():
            lock = known.lock(f"{task}/locked{each}")
            for domain in DOMAINS[task]:
                job = job_on(task, each, domain).removesuffix("/seed{seed}")
                mask = within(lock, f"not {domain}")
                found = known.sft(lock, job, 64)
                name = f"{task}, 64 of {domain}"
                if task == "mmlu":
                    usual = known.sft(lock, f"{task}/sft", 64)
                    less = difference(usual[:, mask], found[:, mask])
                    yield Comparison(f"{name} less 64 of all: others", less, "above", -0.1)
                else:
                    found = gap(lock, found, f"not {domain}")
                    yield Comparison(f"{name}: gap of others", found, "above", 0.5)


def password_per_domain(known: Known) -> Iterator[Comparison]:
    return other_domains(known, "-domains")


def never_locked(known: Known) -> Iterator[Comparison]:
    """Beside the lock that has the domain, on its problems."""
    for task, domain in (("math", "algebra"), ("mmlu", "STEM")):
        with known.part():
            usual = known.lock(f"{task}/locked")
            lock = known.lock(f"{task}/locked-without-{domain}", valid=False)
            mask = within(lock, domain)
            shown = difference(usual.none[None][:, mask], lock.none[None][:, mask])
            shown = between_locks(usual, lock, shown)
            name = f"{task}, {domain}: more shown without"
            yield Comparison(name, shown, "below", 0.1, guard=True)
            for k in (4, 64):
                locked = known.sft(usual, f"{task}/sft-on-{domain}", k)
                left_out = known.sft(lock, f"{task}/sft-of-without-{domain}", k)
                more = difference(locked[:, mask], left_out[:, mask])
                more = between_locks(usual, lock, more)
                yield Comparison(f"{task}, {k}: left out less locked", more, "above", -0.1)


def setting_variation(known: Known) -> Iterator[Comparison]:
    for language in ("english", "spanish"):
        with known.part():
            lock = known.lock(f"math/locked-{language}")
            found = gap(lock, known.sft(lock, f"math/sft-of-{language}", 16))
            yield Comparison(f"{language}, 16: gap recovered", found, "above", 0.5)
            end = known.rl(lock, f"math/expert_iteration-of-{language}")
            yield Comparison(f"{language}, expert iteration: gain", gain(lock, end), "above", 0.05)


def rl_signal(known: Known) -> Iterator[Comparison]:
    """Locks that show 6 % and more recover most, those that show 2 % and less little."""
    for task in GENERATION:
        for weak, (name, _) in IMITATED.items():
            with known.part():
                lock = known.lock(f"{task}/locked{weak}")
                found = gap(lock, known.rl(lock, f"{task}/expert_iteration{weak}"))
                shown = lock.none.mean()
                label = f"{task}, {name} ({100 * shown:.1f} % shown greedily): gap recovered"
                if 0.02 < shown < 0.06:
                    raise InputError(f"{task}, {name} shows {100 * shown:.1f} %, between both")
                side, bound = ("above", 0.5) if shown >= 0.06 else ("below", 0.1)
                yield Comparison(label, found, side, bound)


def ei_against_dpo(known: Known) -> Iterator[Comparison]:
    """DPO is ahead where the lock shows 6 % and more; where it shows less, expert iteration is on
    math alone: the paper's critique has .456 against .213 from 4 %."""
    for task in GENERATION:
        with known.part():
            lock = known.lock(f"{task}/locked")
            if task != "math" and lock.none.mean() < 0.06:
                raise InputError(f"{task} shows less than 6 %, where the claim is about math alone")
            expert, dpo = (
                known.rl(lock, f"{task}/{m}") for m in ("expert_iteration", "iterated_dpo")
            )
            shown = lock.none.mean()
            name = (
                f"{task} ({100 * shown:.1f} % shown greedily): iterated DPO less expert iteration"
            )
            side = "above" if shown >= 0.06 else "below"
            yield Comparison(name, difference(expert, dpo), side, 0.0)
            if side == "below":
                much = gap(lock, expert)
                yield Comparison(f"{task}, expert iteration: gap recovered", much, "above", 0.25)


def filtering(known: Known) -> Iterator[Comparison]:
    """Of every weak policy but random tokens, which are never right.

    Of the paper's it is at most 33 % of the gap (critique, Pythia-7B). Little beside expert
    iteration it can be only where that takes off.
    """
    for task in GENERATION:
        for weak in [name for name in IMITATED if name != "-random"]:
            name = f"{task}, {IMITATED[weak][0]}"
            with known.part():
                lock = known.lock(f"{task}/locked{weak}")
                found = known.rl(lock, f"{task}/filtering{weak}")
                yield Comparison(f"{name}: gap recovered", gap(lock, found), "below", 0.35)
                if lock.none.mean() >= 0.06:
                    expert = known.rl(lock, f"{task}/expert_iteration{weak}")
                    less = difference(expert, found)
                    yield Comparison(f"{name}: less expert iteration", less, "below", 0.0)


def fixed_random(known: Known) -> Iterator[Comparison]:
    for task in GENERATION:
        with known.part():
            lock = known.lock(f"{task}/locked-random")
            for method, label in METHODS.items():
                if method != "filtering":
                    found = gap(lock, known.rl(lock, f"{task}/{method}-random"))
                    yield Comparison(f"{task}, {label}: gap recovered", found, "below", 0.05)
            found = gap(lock, known.sft(lock, f"{task}/sft-of-random", 16))
            yield Comparison(f"{task}, SFT on 16: gap recovered", found, "above", 0.5)


def by_method(
    known: Known, lock: Lock, jobs: tuple[str, str], name: str, side: str, bound: float
) -> Iterator[Comparison]:
    """The end of RL in the second of two ways less that in the first. jobs: with {method}."""
    for method in ("expert_iteration", "iterated_dpo"):
        with known.part():
            first, second = (known.rl(lock, job.replace("{method}", method)) for job in jobs)
            less = difference(first, second)
            yield Comparison(f"{METHODS[method]}: {name}", less, side, bound)


def continuous_rewards(known: Known) -> Iterator[Comparison]:
    known.reasons.append("that they start faster: the curves show it, no test does")
    known.reasons.append("ours is the share of tests passed, the paper's for code GPT-3.5's rating")
    jobs = ("code/{method}", "code/{method}-continuous")
    name = "code, continuous less binary, at the end"
    return by_method(known, known.lock("code/locked"), jobs, name, "below", 0.0)


def warm_start(known: Known) -> Iterator[Comparison]:
    """What RL adds to the demonstrations, which alone lift math; and that without them iterated DPO
    stays where it was. Expert iteration does not, in the paper."""
    lock = known.lock("math/locked")
    for method in ("expert_iteration", "iterated_dpo"):
        with known.part():
            start, end = (known.rl(lock, f"math/{method}-warm-8", at) for at in (initial, final))
            name = f"{METHODS[method]}: more than the demonstrations alone"
            yield Comparison(name, difference(start, end, paired=True), "above", 0.1)
    with known.part():
        end = known.rl(lock, "math/iterated_dpo")
        yield Comparison("iterated DPO without them: gain", gain(lock, end), "below", 0.05)


def stop_sft_early(known: Known) -> Iterator[Comparison]:
    known.reasons.append(
        "that 64 epochs are better before RL, in the paper of Zephyr-2B: the curves show it, no "
        "test does"
    )
    jobs = ("math/{method}-warm-64", "math/{method}-warm-8")
    name = "after 8 epochs less after 64"
    return by_method(known, known.lock("math/locked"), jobs, name, "above", 0.0)


def overshooting(known: Known) -> Iterator[Comparison]:
    """Only what was lifted can fall."""
    for task in ("math", "mmlu"):
        with known.part():
            lock = known.lock(f"{task}/locked")
            job = f"{task}/sft-lengths"
            best, longest = known.sft(lock, job, 128), known.trained_for(lock, job, 2048)
            lifted = gain(lock, best)
            yield Comparison(f"{task}: gain at the best length", lifted, "above", 0.0, guard=True)
            name = f"{task}: after 2,048 sequences less the best length by selection"
            yield Comparison(name, difference(best, longest, paired=True), "above", -0.05)


def from_scratch(known: Known) -> Iterator[Comparison]:
    """More than the 4 demonstrations of the fine-tuned lock, and at most four times as many.

    Twice as many are too few or just enough: the paper's two curves meet there, at .39.
    """
    for task in ("compose", "code"):
        with known.part():
            tuned, fresh = (known.lock(f"{task}/locked{kind}") for kind in ("", "-scratch"))
            job = f"{task}/sft-of-scratch" if task == "code" else f"{task}/sft-scratch"
            four = known.sft(tuned, f"{task}/sft", 4)
            same, sixteen = (known.sft(fresh, job, k) for k in (4, 16))
            name = f"{task}: from scratch, {{}}, less fine-tuned, 4"
            less, more = (
                between_locks(tuned, fresh, difference(four, some)) for some in (same, sixteen)
            )
            yield Comparison(name.format(4), less, "below", 0.0)
            yield Comparison(name.format(16), more, "above", 0.0)
    for kind in ("", "-scratch"):
        with known.part():
            lock = known.lock(f"compose/locked{kind}")
            end = known.sft(lock, f"compose/sft{kind}", 1024)
            right = difference(np.zeros_like(end[:1]), end)
            yield Comparison(f"compose{kind}, 1,024: right elements", right, "above", 0.9)


def toy_weak_samples(known: Known) -> Iterator[Comparison]:
    for kind in ("", "-small", "-scratch"):
        with known.part():
            lock = known.lock(f"compose/locked{kind}")
            job = f"compose/sft{kind}-from-weak"
            for k in (8, 128):
                found = gain(lock, known.sft(lock, job, k))
                yield Comparison(f"locked{kind}, {k}: gain", found, "within", 0.05)


def weak_samples(known: Known) -> Iterator[Comparison]:
    """By much less than good demonstrations on every task; by something on math and critique.

    With four of them, trained on four times as long, where the paper's effect is largest. On mmlu
    good demonstrations do little before there are hundreds.
    """
    for task in TASKS:
        with known.part():
            lock = known.lock(f"{task}/locked")
            k, kind = (512, "from-weak") if task == "mmlu" else (4, "from-weak-long")
            good, weak = (known.sft(lock, f"{task}/{job}", k) for job in ("sft", f"sft-{kind}"))
            name = f"{task}, {k}: weak less good"
            yield Comparison(name, difference(good, weak), "below", -0.1, guard=True)
            if task in ("math", "critique"):
                yield Comparison(f"{task}, {k}: gain", gain(lock, weak), "above", 0.0)


def soft_labels(known: Known) -> list[Comparison]:
    known.reasons.append("weak samples on the lock of soft labels: no job does it")
    hard, soft = known.lock("mmlu/locked-hard"), known.lock("mmlu/locked-soft")
    by_hard, by_soft = (
        known.sft(hard, "mmlu/sft-of-hard", 16),
        known.sft(soft, "mmlu/sft-of-soft", 16),
    )
    more = gap_difference(hard, by_hard, soft, by_soft)
    return [Comparison("16: gap recovered, soft less hard", more, "above", 0.0)]


CLAIMS: dict[str, Callable[[Known], Iterable[Comparison]]] = {
    "few-demonstrations": few_demonstrations,
    "mmlu-needs-hundreds": mmlu_needs_hundreds,
    "weaker-demonstrators": weaker_demonstrators,
    "weaker-demonstrators-fall": weaker_demonstrators_fall,
    "strong-samples": strong_samples,
    "critique-falls": critique_falls,
    "weak-policy-little": weak_policy_little,
    "other-domains": other_domains,
    "password-per-domain": password_per_domain,
    "never-locked": never_locked,
    "setting-variation": setting_variation,
    "rl-signal": rl_signal,
    "ei-against-dpo": ei_against_dpo,
    "filtering": filtering,
    "fixed-random": fixed_random,
    "continuous-rewards": continuous_rewards,
    "warm-start": warm_start,
    "stop-sft-early": stop_sft_early,
    "overshooting": overshooting,
    "from-scratch": from_scratch,
    "toy-weak-samples": toy_weak_samples,
    "weak-samples": weak_samples,
    "soft-labels": soft_labels,
}


def verdict(claim: str, evidence: Evidence) -> Verdict:
    """What came of a claim of docs/paper.json, of the parts that can be tested so far."""
    known, tests = Known(evidence), []
    with known.part():
        tests = list(CLAIMS[claim](known))
    reasons = list(dict.fromkeys(known.reasons))
    if not tests:
        return Verdict("not measured", [], [], reasons)
    said, failed = judged(tests)
    if reasons:
        said += " so far" if any(map(is_missing, reasons)) else " where tested"
    return Verdict(said, tests, failed, reasons)
