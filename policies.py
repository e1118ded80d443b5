"""Who writes: models, a fixed random distribution, rules; and what comes back, graded."""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from data import grade, score
from data.batches import Example
from data.problems import InputError, Problem
from data.proxies import PROXIES
from data.tasks import compose
from data.tasks.rules import TEXT_RULES
from data.text import Tokenizer
from losses import Teacher
from model import Model, completion_states
from runs.devices import Env, gather, progress, share
from runs.files import checked, read_rows, write_text
from sampler import Ended, Sample, Writer

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

    Whatever the problem. size: ids of the tokenizer. count samples of `length` tokens each.
    """
    logits = random_logits(size, eos_id, seed)
    probs = np.exp(logits) / np.exp(logits).sum()
    draws = np.random.default_rng([seed, 8, epoch]).choice(size, size=(count, length), p=probs)
    return [Sample(row, [], True) for row in draws.tolist()]


def random_logits(size: int, eos_id: int, seed: int) -> np.ndarray:
    """Those of the fixed random distribution (size,), in which EOS never comes.

    Every sample is cut and carries no EOS: the model learns to go on.
    """
    logits = np.random.default_rng([seed, 7]).standard_normal(size)
    logits[eos_id] = -1e4
    return logits


def random_teacher(tokenizer: Tokenizer, seed: int, device: torch.device) -> Teacher:
    """The fixed random distribution at every position, as a head behind a state that is always 1.

    Paper G.2 trains on it itself, by KL; samples have the same gradient in expectation.
    """
    logits = random_logits(tokenizer.size, tokenizer.eos_id, seed)
    head = torch.tensor(logits, dtype=torch.float32, device=device)[:, None]
    return Teacher(lambda batch: torch.ones(len(batch.targets), 1, device=device), lambda: head)


def model_teacher(model: Model) -> Teacher:
    """A model that is trained no more, at temperature 1."""
    # the head of a divided one is whole after a forward pass
    states, head = partial(completion_states, model), lambda: model.head_weight
    return Teacher(states, head, isinstance(model, FSDPModule))


def written(texts: list[str], tokenizer: Tokenizer) -> list[Sample]:
    """Given texts, as if a policy had written them to their end."""
    return [Sample(ids, [], False) for ids in tokenizer.encode_completions(texts)]


def random_answers(
    problems: list[Problem], tokenizer: Tokenizer, length: int, seed: int, epoch: int
) -> list[Sample]:
    return random_policy(tokenizer.size, tokenizer.eos_id, len(problems), length, seed, epoch)


def refusals(
    problems: list[Problem], tokenizer: Tokenizer, length: int, seed: int, epoch: int
) -> list[Sample]:
    return written([REFUSAL] * len(problems), tokenizer)


def toy_rule(
    problems: list[Problem], tokenizer: Tokenizer, length: int, seed: int, epoch: int
) -> list[Sample]:
    """Task compose: the locked functions act as the identity (paper section 7)."""
    return written([compose.answer(p.key, weak=True) for p in problems], tokenizer)


def ruled(
    rule: str, problems: list[Problem], tokenizer: Tokenizer, length: int, seed: int, epoch: int
) -> list[Sample]:
    """The answers of a rule of data/tasks/rules.py."""
    _, answer_of = TEXT_RULES[rule]
    return written([answer_of(problem) for problem in problems], tokenizer)


# weak policies that are no model: each answers every problem. length: tokens of an answer that has
# no end of its own
RULES = {"random": random_answers, "refusal": refusals, "rule": toy_rule}
RULES |= {rule: partial(ruled, rule) for rule in TEXT_RULES}


def ended_of(tokenizer: Tokenizer, problems: list[Problem]) -> Ended | None:
    """By which else than EOS completions of these problems end; None where by EOS alone.

    A next problem is one that begins like the problem's own prompt, whatever stands around that.
    """
    form = tokenizer.format
    if not form.ends_early:
        return None

    def ended(place: int, ids: list[int]) -> list[int] | None:
        kept = form.kept(tokenizer.decode(ids), problems[place].own_prompt)
        return None if kept is None else [*tokenizer.encode(kept), tokenizer.eos_id]

    return ended


def check_references(problems: list[Problem], tokenizer: Tokenizer) -> None:
    """Raises InputError where a right answer that is to be learnt has in it what ends a completion.

    It would be learnt whole and graded cut.
    """
    form = tokenizer.format
    if not form.ends_early:
        return
    cut = [p.reference for p in problems if form.kept(p.reference, p.own_prompt) is not None]
    if cut:
        raise InputError(
            f"{len(cut)} of {len(problems)} right answers would be cut by --stop or "
            f"--stop-at-problem (the first: {cut[0][:60]!r}): choose another end"
        )


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same texts the same ids, EOS included."""
    same_end = one.eos_id == other.eos_id
    return same_end and one.backend.to_str() == other.backend.to_str()


def retokenise(samples: list[Sample], source: Tokenizer, target: Tokenizer) -> list[Sample]:
    """Samples of a model with another tokenizer, as ids of ours. Log-probs have no meaning then."""
    if same_ids(source, target):
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
    writer: Writer,
    problems: list[Problem],
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
    """One completion for each problem, asked as its prompt stands; greedy at temperature 0.

    prefills: what each completion begins with; the model goes on from there, and the texts, which
    are graded, begin with it. streams: the number of each problem's random stream (default: its
    place), so that a part of a list is answered as the whole would be. With env the ranks share the
    work, and each returns the whole. A completion that was cut before EOS counts as wrong, whatever
    its text.
    """
    n, sampler, tokenizer = len(problems), writer.sampler, writer.tokenizer
    env = env or Env(sampler.model.device, sampler.model.compute_dtype, False)
    streams = streams or list(range(n))

    # my share: the prompts, each with the start of its answer
    mine = share(env, list(range(n)))
    told = tokenizer.encode_prompts([problems[i].prompt for i in mine])
    starts = [tokenizer.encode(prefills[i]) if prefills else [] for i in mine]
    prompts = [prompt + start for prompt, start in zip(told, starts)]

    drawn = sampler(
        prompts,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seeds=[[seed, streams[i]] for i in mine],
        ended=ended_of(tokenizer, [problems[i] for i in mine]),
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


# ---------------------------------------------------------------------------------------- rollouts


@dataclass
class Rollout:
    """P problems with n graded completions each. prompts: token ids.

    rewards (P,n) in 0 to 1: what is paid. truth (P,n): the true scores, which are the rewards where
    no proxy stands in their place.
    """

    problems: list[Problem]
    prompts: list[list[int]]
    samples: list[list[Sample]]
    texts: list[list[str]]
    rewards: np.ndarray
    truth: np.ndarray | None = None

    def __post_init__(self):
        if self.truth is None:
            self.truth = self.rewards


def round_problems(problems: list[Problem], number: int, count: int, seed: int) -> list[Problem]:
    """The `count` problems of round `number`: the split over and over, each time in a new order."""
    size = len(problems)
    first, last = number * count, (number + 1) * count
    chosen = []
    for at in range(first // size, (last - 1) // size + 1):
        order = np.random.default_rng([seed, 11, at]).permutation(size)
        for i in order[max(0, first - at * size) : last - at * size]:
            chosen.append(problems[i])
    return chosen


def rollout(
    writer: Writer,
    tokenizer: Tokenizer,
    problems: list[Problem],
    n: int,
    *,
    purpose: list[int],
    seed: int,
    max_new_tokens: int,
    reward: str = "binary",
    env: Env,
    label: str,
) -> tuple[Rollout, dict]:
    """n completions at temperature 1 for each problem, graded, and the seconds that it took.

    Prompts and samples are in the ids of `tokenizer`, the policy's, whatever the writer's. The
    ranks share the work; a problem's random stream is (seed, purpose, its place, sample), however
    many there are. A completion cut before EOS has reward 0, whatever its text. reward: binary;
    continuous, graded by degrees; or a proxy's name, which is paid in place of the true score.
    """
    mine = share(env, list(range(len(problems))))
    prompts = [problems[i].prompt for i in mine]
    before = dict(writer.sampler.seconds)
    bar = progress(env, len(mine) * n, label)
    drawn = writer.sampler(
        writer.tokenizer.encode_prompts(prompts),
        n,
        1.0,
        max_new_tokens,
        seeds=[[seed, *purpose, i] for i in mine],
        ended=ended_of(writer.tokenizer, [problems[i] for i in mine]),
        progress=bar.update,
    )
    bar.close()
    samples = [sample for row in drawn for sample in row]
    if writer.tokenizer is not tokenizer:
        samples = retokenise(samples, writer.tokenizer, tokenizer)

    clock = time.time()
    texts = tokenizer.decode_batch([sample.ids for sample in samples])
    judge = score if reward == "continuous" else grade
    asked = [problems[i] for i in mine for _ in range(n)]
    truth = np.array(judge(asked, texts), dtype=float)
    rewards = truth
    if reward in PROXIES:
        rewards = PROXIES[reward].reward(asked, texts, truth)
    for scores in (truth, rewards):
        scores[[sample.truncated for sample in samples]] = 0.0

    # a row for each of my problems; together, for each problem
    rows = []
    for at in range(0, len(samples), n):
        own = slice(at, at + n)
        rows.append((samples[own], texts[own], rewards[own], truth[own]))
    rows = gather(env, rows, len(problems))
    rolled = Rollout(
        problems,
        tokenizer.encode_prompts([problem.prompt for problem in problems]),
        [samples for samples, _, _, _ in rows],
        [texts for _, texts, _, _ in rows],
        np.array([rewards for _, _, rewards, _ in rows]),
        np.array([truth for _, _, _, truth in rows]),
    )
    spent = writer.sampler.seconds
    seconds = {f"s_{part}": spent[part] - before[part] for part in before}
    return rolled, seconds | {"s_grade": time.time() - clock}


def described(rolled: Rollout, online: bool) -> dict:
    """What a round's samples look like; their entropy where the present policy wrote them."""
    samples = [sample for row in rolled.samples for sample in row]
    texts = {text for row in rolled.texts for text in row}
    tokens = sum(len(sample.ids) for sample in samples)
    facts = {
        "length": tokens / len(samples),
        "truncated": float(np.mean([sample.truncated for sample in samples])),
        "duplicates": 1 - len(texts) / len(samples),
    }
    if online:
        drawn = sum(len(sample.logps) for sample in samples)
        facts["entropy"] = -sum(sum(sample.logps) for sample in samples) / max(1, drawn)
    return facts


WATCHED = 128  # of a round's samples, to see how far an update moved the policy


def watched_samples(rolled: Rollout) -> list[Example]:
    """The first samples of a rollout with the log-probs that the sampler gave them."""
    examples = []
    for prompt, samples in zip(rolled.prompts, rolled.samples):
        for sample in samples:
            # of one that did not end by EOS, the log-prob of its EOS is not known
            if len(sample.logps) == len(sample.ids):
                examples.append(Example(prompt, sample.ids, sample.logps))
    return examples[:WATCHED]


def drift(sampled: list[Example], before: list[Example], after: list[Example]) -> dict:
    """How far an update moved the policy on these samples; nothing of no samples.

    And how well sampler and trainer agreed before it.
    """
    if not sampled:
        return {}
    moved = [np.sum(b.logps) - np.sum(a.logps) for b, a in zip(before, after)]
    gaps = [np.abs(np.subtract(s.logps, b.logps)).max() for s, b in zip(sampled, before)]
    return {"kl": float(np.mean(moved)), "logp_gap": float(max(gaps))}


def note_samples(file: Path, number: int, rolled: Rollout) -> None:
    """Two problems of round `number` into samples.jsonl, with what was written and its rewards.

    Behind the rows of earlier rounds. Those of later ones, and of this one, are of a run that was
    killed and has taken up this round again. Raises InputError where the file is damaged.
    """
    rows = []
    for row in read_rows(file):
        if checked(row, file, "round", int) < number:
            rows.append(row)
    for i in range(min(2, len(rolled.problems))):
        row = {
            "round": number,
            "prompt": rolled.problems[i].prompt,
            "completions": rolled.texts[i],
            "rewards": rolled.rewards[i].tolist(),
        }
        if not np.array_equal(rolled.rewards, rolled.truth):
            row["truth"] = rolled.truth[i].tolist()
        rows.append(row)
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def pass_at_k(correct: np.ndarray, k: int) -> float:
    """Share of problems that k samples solve, unbiased from n >= k samples of each problem.

    The mean of 1 - C(n - c, k) / C(n, k), c of n right (Chen et al. 2021). correct (P,n) bool.
    """
    n = correct.shape[1]
    wrong = n - correct.sum(1)
    # without replacement: the chance that each of the k draws is wrong, too
    missed = np.ones(len(correct))
    for i in range(k):
        missed *= np.clip(wrong - i, 0, None) / (n - i)
    return float(1 - missed.mean())
