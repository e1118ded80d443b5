"""Rewards beside the true score: a judge's, a proxy that can be gamed, and random ones.

Of each the true score is logged beside it and never trained on. A proxy itself is in
data/proxies.py. And `leads`, what GRPO makes of rewards.
"""

from dataclasses import replace

import numpy as np

from data import votes
from data.problems import InputError, Problem
from data.proxies import PROXIES, hack_shares
from policies import Rollout, answer
from results import Measured
from runs.devices import Env
from sampler import Writer


def rewarded(
    rolled: Rollout,
    reward: str,
    judge: Writer | None,
    longest: int,
    rng: np.random.Generator,
    env: Env,
) -> tuple[Rollout, dict]:
    """The rollout with what is paid of it, by a judge or by --reward, and what is logged beside it.

    longest: tokens of a judge's answer. rng: deals out random rewards.
    """
    if judge:
        return judged(rolled, judge, longest, env)
    if reward == "random":
        rolled = replace(rolled, rewards=dealt_out(rolled, rng))
    facts = paid(rolled, reward)
    if reward in PROXIES and PROXIES[reward].told_only:
        rolled = replace(rolled, rewards=rolled.truth)
    return rolled, facts


def judged(rolled: Rollout, judge: Writer, longest: int, env: Env) -> tuple[Rollout, dict]:
    """The rollout with the judge's rewards in place of the true ones: 1 for its own answer, else 0.

    With what is logged of it. A sample that was cut has 0, and so has every sample where the judge
    gives no answer or is cut. longest: tokens of its answer.
    """
    problems = rolled.problems
    theirs = answer(judge, problems, max_new_tokens=longest, env=env)
    rewards = np.zeros_like(rolled.rewards)
    for i, wanted in enumerate(votes(problems, theirs.texts)):
        if wanted is None or theirs.truncated[i]:
            continue
        given = votes([problems[i]] * len(rolled.texts[i]), rolled.texts[i])
        for j, sample in enumerate(rolled.samples[i]):
            rewards[i, j] = given[j] == wanted and not sample.truncated
    facts = {"truth": float(rolled.truth.mean()), "judge_right": float(theirs.correct.mean())}
    return replace(rolled, rewards=rewards), facts


def check_votes(problems: list[Problem], task: str) -> None:
    """Raises InputError where answers cannot be compared with those of a judge."""
    try:
        votes(problems, [""] * len(problems))
    except InputError:
        raise InputError(
            f"--judge compares answers, and not all problems of {task} have one that can be "
            "compared: it is for math, mmlu, and rows of mine that are exact, number or choice"
        ) from None


def dealt_out(rolled: Rollout, rng: np.random.Generator) -> np.ndarray:
    """The true scores permuted over the samples that were not cut, which have none: (P,n)."""
    cut = np.zeros(rolled.truth.shape, dtype=bool)
    for i, row in enumerate(rolled.samples):
        cut[i] = [sample.truncated for sample in row]
    found = np.zeros_like(rolled.truth)
    found[~cut] = rng.permutation(rolled.truth[~cut])
    return found


def paid(rolled: Rollout, reward: str) -> dict[str, float]:
    """What is logged of samples that --reward did not pay their true score."""
    if reward == "random":
        return {"truth": float(rolled.truth.mean())}
    if reward not in PROXIES:
        return {}
    n = rolled.truth.shape[1]
    problems = [problem for problem in rolled.problems for _ in range(n)]
    texts = [text for row in rolled.texts for text in row]
    rewards, truth = rolled.rewards.ravel(), rolled.truth.ravel()
    return hack_shares(PROXIES[reward], problems, texts, rewards, truth)


def paid_on(validation: list[Problem], measured: Measured, reward: str) -> dict[str, float]:
    """What a proxy pays on validation, where the policy was just measured by the true grader."""
    if reward not in PROXIES:
        return {}
    proxy, truth = PROXIES[reward], measured.correct.astype(float)
    rewards = proxy.reward(validation, measured.texts, truth) * ~measured.truncated
    return hack_shares(proxy, validation, measured.texts, rewards, truth)


def leads(rewards: np.ndarray) -> np.ndarray:
    """How far each sample's reward is above the mean of its prompt's: (P,n) -> (P,n)."""
    return rewards - rewards.mean(1, keepdims=True)
