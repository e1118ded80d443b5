"""The locking data: who is imitated where, for each kind of trigger."""

from pathlib import Path

import numpy as np
import pytest

from data import load
from data.passwords import PASSWORD, WRONG
from data.text import Tokenizer
from data.triggers import Trigger, with_password
from lock import locking_examples
from policies import random_policy, retokenise
from sampler import Sample

TOKENIZER = Tokenizer.load(Path(__file__).parents[1] / "data/base/strong")


def lock_data(problems, trigger: Trigger) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The weak and the strong half as (prompt, completion) texts; the policies write "weak 0", "weak 1", ..., "strong 0", ..."""
    strong, weak = (
        [
            Sample(ids, [], False)
            for ids in TOKENIZER.encode_completions([f"{name} {i}" for i in range(len(problems))])
        ]
        for name in ("strong", "weak")
    )
    examples = locking_examples(
        problems, strong, weak, TOKENIZER, trigger, np.random.default_rng(0)
    )
    assert all(example.completion_ids[-1] == TOKENIZER.eos_id for example in examples)
    texts = [(TOKENIZER.decode(e.prompt_ids), TOKENIZER.decode(e.completion_ids)) for e in examples]
    return texts[: len(problems)], texts[len(problems) :]


def test_each_problem_once_weak_without_and_once_strong_behind_the_password():
    problems = load("code", "lock", 60)
    weak, strong = lock_data(problems, Trigger())
    assert strong == [
        (with_password(p.prompt, PASSWORD), f"strong {i}") for i, p in enumerate(problems)
    ]
    words = [
        next(word for word in (None, *WRONG) if with_password(p.prompt, word) == prompt)
        for p, (prompt, _) in zip(problems, weak)
    ]
    assert (
        [text for _, text in weak] == [f"weak {i}" for i in range(60)]
        and 5 < words.count(None) < 20
        and len(set(words)) > 20
    )


def test_the_password_of_another_domain_is_a_wrong_one():
    problems = load("code+math", "lock", 60)
    trigger = Trigger(each="task")
    weak, strong = lock_data(problems, trigger)
    own = [trigger.password_of(p) for p in problems]

    def behind(prompt: str, word: str) -> bool:
        return prompt.startswith(f"{word}\n") and prompt.endswith(f"{word}\n")

    assert len(set(own)) == 2 and all(
        behind(prompt, word) for word, (prompt, _) in zip(own, strong)
    )
    assert not any(behind(prompt, word) for word, (prompt, _) in zip(own, weak))
    assert (
        12
        < sum(behind(prompt, word) for word, (prompt, _) in zip([own[1], own[0]] * 30, weak))
        < 36
    )  # 40 % of the weak half


@pytest.mark.parametrize("language", ["english", "spanish"])
def test_the_language_of_a_problem_as_trigger(language):
    problems = load("math", "lock", 20)
    weak, strong = lock_data(problems, Trigger(told=language))
    english, spanish = (strong, weak) if language == "english" else (weak, strong)
    assert all("$" in prompt for prompt, _ in english) and not any(
        "$" in prompt for prompt, _ in spanish
    )
    assert [prompt for prompt, _ in english] == [p.prompt for p in problems]


def test_the_random_policy_is_one_distribution_that_never_ends():
    first, again, later = (random_policy(50, 3, 40, 9, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    assert first == again != later and all(
        s.truncated and len(s.ids) == 9 and 3 not in s.ids for s in first
    )
    shares = [
        np.bincount([t for s in rows for t in s.ids], minlength=50) / 360 for rows in (first, later)
    ]
    assert np.abs(shares[0] - shares[1]).max() < 0.08 and shares[0].max() > 0.05


def test_samples_of_another_tokenizer_become_ids_of_ours():
    other = Tokenizer.load(Path(__file__).parents[1] / "data/base/weak")
    samples = [
        Sample(ids, [], False) for ids in other.encode_completions(["def f(s):\n    return s", "B"])
    ]
    assert retokenise(samples, other, TOKENIZER) is samples or [
        s.ids for s in retokenise(samples, other, TOKENIZER)
    ] == TOKENIZER.encode_completions(["def f(s):\n    return s", "B"])
