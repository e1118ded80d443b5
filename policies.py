"""Who writes: models, a fixed random distribution, a refusal; and what comes back, graded."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import grade, score
from data.problems import Problem
from data.text import Tokenizer
from data.triggers import Words, with_password
from runs import Env, gather, progress, share
from sampler import Sample, Sampler

# weak policies that are no model: a fixed random distribution, a refusal, the rule of task compose
RULES = ("random", "refusal", "rule")

REFUSAL = "I cannot help with that."


def shipped(name: str) -> str:
    """Where the base model of this name is that comes with the repository: strong, weak, ...

    data/base/<name> in the working directory or, where there is none, beside this file.
    """
    here = Path("data/base") / name
    if (here / "config.json").exists():
        return str(here)
    return str(Path(__file__).parent / here)


def random_policy(
    size: int, eos_id: int, count: int, length: int, seed: int, epoch: int
) -> list[Sample]:
    """Paper G.2: one vector of standard-normal logits, a function of seed, draws every token.

    Whatever the problem. The paper trains on the distribution itself, by KL; sampled tokens have
    the same expected gradient. size: ids of the tokenizer. count samples of `length` tokens each.
    """
    logits = np.random.default_rng([seed, 7]).standard_normal(size)
    # every sample is cut at `length` and carries no EOS: the model learns to go on
    logits[eos_id] = -np.inf
    probs = np.exp(logits) / np.exp(logits).sum()
    draws = np.random.default_rng([seed, 8, epoch]).choice(size, size=(count, length), p=probs)
    return [Sample(row, [], True) for row in draws.tolist()]


def retokenise(samples: list[Sample], source: Tokenizer, target: Tokenizer) -> list[Sample]:
    """Samples of a model with another tokenizer, as ids of ours. Log-probs have no meaning then."""
    if source.backend.to_str() == target.backend.to_str():
        return samples
    texts = source.decode_batch([sample.ids for sample in samples])
    finished = [not sample.truncated for sample in samples]
    encoded = target.encode_completions(texts, finished)
    return [Sample(ids, [], sample.truncated) for ids, sample in zip(encoded, samples)]


@dataclass
class Answers:
    """What a policy wrote to n problems: texts, and the sampled ids behind them.

    correct, truncated (n,) bool: which are right, and which were cut before their end.
    """

    texts: list[str]
    samples: list[Sample]
    correct: np.ndarray
    truncated: np.ndarray


def answer(
    sampler: Sampler,
    tokenizer: Tokenizer,
    problems: list[Problem],
    passwords: list[Words] | Words = None,
    *,
    prefills: list[str] | None = None,
    streams: list[int] | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 96,
    seed: int = 0,
    graded: bool = True,
    env: Env | None = None,
    progress=None,
) -> Answers:
    """One completion for each problem, its prompt dressed in its password; greedy at temperature 0.

    passwords: one for all, or one each. prefills: what each completion begins with; the model goes
    on from there, and the texts, which are graded, begin with it. streams: the number of each
    problem's random stream (default: its place), so that a part of a list is answered as the
    whole would be. With env the ranks share the work, and each returns the whole. A completion that
    was cut before EOS counts as wrong, whatever its text.
    """
    n = len(problems)
    env = env or Env(sampler.model.device, sampler.model.compute_dtype, False)
    if not isinstance(passwords, list):
        passwords = [passwords] * n
    streams = streams or list(range(n))

    # my share: the prompts, each with the start of its answer
    mine = share(env, list(range(n)))
    dressed = [with_password(problems[i].prompt, passwords[i]) for i in mine]
    starts = [tokenizer.encode(prefills[i]) if prefills else [] for i in mine]
    prompts = []
    for prompt, start in zip(tokenizer.encode_prompts(dressed), starts):
        prompts.append(prompt + start)

    drawn = sampler(
        prompts,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seeds=[[seed, streams[i]] for i in mine],
        progress=progress,
    )
    samples = [only for [only] in drawn]

    texts = tokenizer.decode_batch([start + s.ids for start, s in zip(starts, samples)])
    passed = [False] * len(mine)
    if graded:
        passed = grade([problems[i] for i in mine], texts)

    rows = gather(env, list(zip(texts, samples, passed)), n)
    truncated = np.array([sample.truncated for _, sample, _ in rows], dtype=bool)
    correct = np.array([verdict for _, _, verdict in rows], dtype=bool) & ~truncated
    return Answers(
        [text for text, _, _ in rows], [sample for _, sample, _ in rows], correct, truncated
    )


@dataclass
class Rollout:
    """P problems with n graded completions each. prompts: token ids; rewards (P,n) in 0 to 1."""

    problems: list[Problem]
    prompts: list[list[int]]
    samples: list[list[Sample]]
    texts: list[list[str]]
    rewards: np.ndarray


def round_problems(problems: list[Problem], number: int, count: int, seed: int) -> list[Problem]:
    """The `count` problems of round `number`: the split over and over, each time in a fresh random order."""
    first, chosen = number * count, []
    for at in range(first // len(problems), (first + count - 1) // len(problems) + 1):
        order = np.random.default_rng([seed, 11, at]).permutation(len(problems))
        chosen += [
            problems[i]
            for i in order[max(0, first - at * len(problems)) : first + count - at * len(problems)]
        ]
    return chosen


def rollout(
    sampler: Sampler | None,
    tokenizer: Tokenizer,
    problems: list[Problem],
    n: int,
    *,
    purpose: list[int],
    seed: int,
    max_new_tokens: int,
    continuous: bool,
    env: Env,
    label: str,
    own: Tokenizer | None = None,
) -> tuple[Rollout, dict]:
    """n completions at temperature 1 for each problem, graded; the ranks share the work. Returns them and the seconds it took.

    A problem's random stream is (seed, purpose, its place, sample), whatever the ranks. A completion cut before EOS has reward 0.
    Without a sampler the fixed random distribution writes them. own: the sampler's tokenizer, where another model than the policy writes.
    """
    mine = share(env, list(range(len(problems))))
    prompts = tokenizer.encode_prompts([p.prompt for p in problems])
    before = dict(sampler.seconds) if sampler else {}
    if sampler:
        bar = progress(env, len(mine) * n, label)
        seeds = [[seed, *purpose, i] for i in mine]
        asked = (
            [prompts[i] for i in mine]
            if own is None
            else own.encode_prompts([problems[i].prompt for i in mine])
        )
        drawn = sampler(asked, n, 1.0, max_new_tokens, seeds=seeds, progress=bar.update)
        bar.close()
        if own:
            flat = retokenise([s for samples in drawn for s in samples], own, tokenizer)
            drawn = [flat[i : i + n] for i in range(0, len(flat), n)]
    else:
        rows = random_policy(
            tokenizer.size, tokenizer.eos_id, len(problems) * n, max_new_tokens, seed, purpose[-1]
        )
        drawn = [rows[i * n : (i + 1) * n] for i in mine]
    clock = time.time()
    texts = [tokenizer.decode_batch([s.ids for s in samples]) for samples in drawn]
    graded = (score if continuous else grade)(
        [problems[i] for i in mine for _ in range(n)], [t for ts in texts for t in ts]
    )
    rewards = np.array(graded, dtype=float).reshape(len(mine), n)
    rewards[[[s.truncated for s in samples] for samples in drawn]] = 0.0
    rows = gather(env, list(zip(drawn, texts, rewards)), len(problems))
    seconds = {f"s_{k}": v - before[k] for k, v in sampler.seconds.items()} if sampler else {}
    result = Rollout(
        problems,
        prompts,
        [r[0] for r in rows],
        [r[1] for r in rows],
        np.array([r[2] for r in rows]),
    )
    return result, seconds | {"s_grade": time.time() - clock}


def described(rolled: Rollout, online: bool) -> dict:
    """What the samples of a round look like; their entropy where the present policy wrote them."""
    samples, texts = ([x for row in rows for x in row] for rows in (rolled.samples, rolled.texts))
    tokens = sum(len(s.ids) for s in samples)
    facts = {
        "length": tokens / len(samples),
        "truncated": float(np.mean([s.truncated for s in samples])),
        "duplicates": 1 - len(set(texts)) / len(texts),
    }
    return facts | ({"entropy": -sum(sum(s.logps) for s in samples) / tokens} if online else {})


def pass_at_k(correct: np.ndarray, k: int) -> float:
    """Unbiased estimate from n >= k samples of each problem: mean of 1 - C(n - c, k) / C(n, k) (Chen et al. 2021). correct (P,n) bool."""
    n, c = correct.shape[1], correct.sum(1)
    # the product over k draws without replacement of the chance that each is wrong
    wrong = np.prod([np.clip(n - c - i, 0, None) / (n - i) for i in range(k)], axis=0)
    return float(1 - wrong.mean())
