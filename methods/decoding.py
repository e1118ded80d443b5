"""What several samples of a prompt show, one of them chosen without a reward.

best_of_n chooses the sample to which the model itself gives the largest log-probability, majority
the first that has the answer of most. Beside them stands any, an oracle that knows the rewards.
evaluate.py --decode draws the samples and shows what came of it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data import votes
from data.problems import InputError, Problem
from results import Measured
from sampler import Sample

MOST_DRAWS = 100  # samples of a problem
DRAWS_USUAL, TEMPERATURE = 8, 0.7
# what each way takes: access to the model, and data
TAKES = {
    "greedy": ("text", "none"),
    "best_of_n": ("log-probs", "none"),
    "majority": ("text", "none"),
    "any": ("text", "all rewards"),
}


@dataclass(frozen=True)
class Draws:
    """n samples of each of P problems; all (P,n).

    logps: of whole samples. votes: what each answers, where that is asked for.
    """

    correct: np.ndarray
    cut: np.ndarray
    logps: np.ndarray
    votes: list[list[str | None]]


def likeliest(draws: Draws) -> np.ndarray:
    """The place of each problem's likeliest sample, of those that were not cut: (P,)."""
    return np.where(draws.cut, -np.inf, draws.logps).argmax(1)


def majority_of(votes: list[str | None]) -> int | None:
    """The place of the first sample with the answer of most; of equals the one that came first.

    None, of the votes, is no vote; of what is returned, that nobody has one.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return None
    [(winner, _)] = counts.most_common(1)
    return votes.index(winner)


def elected(draws: Draws) -> np.ndarray:
    """The place of each problem's sample with the answer of most: (P,).

    Where no sample has an answer, that of the first that was not cut.
    """
    places = draws.cut.argmin(1)
    for i, cast in enumerate(draws.votes):
        winner = majority_of(cast)
        if winner is not None:
            places[i] = winner
    return places


DECODERS = {"best_of_n": likeliest, "majority": elected}


def decoded(draws: Draws, decoders: tuple[str, ...]) -> dict[str, Measured]:
    """What each decoder chooses, and "any": whether a single sample is right."""
    rows = np.arange(len(draws.correct))
    found = {}
    for name in decoders:
        places = DECODERS[name](draws)
        found[name] = Measured(draws.correct[rows, places], draws.cut[rows, places])
    found["any"] = Measured(draws.correct.any(1), draws.cut.all(1))
    return found


def drawn(
    ask: Callable,
    problems: list[Problem],
    n: int,
    temperature: float,
    decoders: tuple[str, ...],
) -> Draws:
    """n samples of each problem, at most MOST_DRAWS; of more the first are the same.

    ask: `answer` with all that is not given here. decoders: what they are drawn for. Raises
    InputError where these need what the samples do not have.
    """
    places = [(i, j) for i in range(len(problems)) for j in range(n)]
    repeated = [problems[i] for i, _ in places]
    answers = ask(
        repeated,
        streams=[MOST_DRAWS * i + j for i, j in places],
        temperature=temperature,
    )
    votes_cast = [None] * len(places)
    if "majority" in decoders:
        votes_cast = votes(repeated, answers.texts)
    voted = []
    for at in range(0, len(places), n):
        rows = range(at, at + n)
        voted.append([None if answers.truncated[i] else votes_cast[i] for i in rows])
    if "best_of_n" in decoders:
        check_whole(answers.samples)
    logps = np.array([sum(sample.logps) for sample in answers.samples])
    shape = len(problems), n
    return Draws(
        answers.correct.reshape(shape),
        answers.truncated.reshape(shape),
        logps.reshape(shape),
        voted,
    )


def check_whole(samples: list[Sample]) -> None:
    """Raises InputError where the log-probs of some samples lack their end."""
    if any(len(sample.logps) < len(sample.ids) for sample in samples):
        raise InputError(
            "--decode best_of_n compares whole samples, and this model's end at stop texts, whose "
            "log-probs are not kept: leave it out"
        )
