"""Unlearning what a locked model writes without the password: negative preference optimisation.

It minimises -(2 / beta) log sigmoid(-beta (log p - log p_start)) of samples that the model wrote
before it was trained (Zhang et al. 2024, arXiv 2404.05868). Nothing holds the rest of the model in
place.
"""

from dataclasses import dataclass

import numpy as np

from data.batches import Example
from data.problems import Problem
from policies import answer
from runs.devices import Env
from sampler import Writer

BETA = 0.1  # how strongly NPO stays near the start
SLOWER = 3  # times: its learning rate is so much below that of demonstrations
# how long, in sequences seen: a few steps too many leave a model that writes nothing
LENGTHS = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class OwnSample:
    """What a model wrote itself, as it was sampled: encoding its text might give other ids."""

    example: Example
    right: bool
    cut: bool


def own_samples(
    writer: Writer,
    problems: list[Problem],
    places: list[int],
    max_new_tokens: int,
    seed: int,
    env: Env,
) -> dict[int, OwnSample]:
    """What a model writes to the problems at these places, at temperature 1, by the place."""
    shown = [problems[i] for i in places]
    answers = answer(
        writer,
        shown,
        streams=places,
        temperature=1.0,
        max_new_tokens=max_new_tokens,
        seed=seed,
        env=env,
    )
    prompts = writer.tokenizer.encode_prompts([problem.prompt for problem in shown])
    found = {}
    rows = zip(places, prompts, answers.samples, answers.correct.tolist())
    for i, prompt, sample, right in rows:
        found[i] = OwnSample(Example(prompt, sample.ids), right, sample.truncated)
    return found


def shares_of(own: list[OwnSample]) -> dict[str, float]:
    """What is logged of the samples that are unlearnt: shares of right and of cut ones."""
    right, cut = [one.right for one in own], [one.cut for one in own]
    return {"own_right": float(np.mean(right)), "own_cut": float(np.mean(cut))}
