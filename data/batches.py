"""Examples to batches: documents of like length share a batch.

So little compute goes to padding and few shapes occur. An optimiser step holds several such
batches, of different lengths: were all its documents alike in length, they would be alike in more
(task, difficulty, with a password or without), and its gradient would be unlike the next one's. (A
step of no more documents than a run, such as lock.py's of 32, is alike: docs/NOTES.md.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from data.problems import InputError

BUCKET = 16  # row lengths are multiples of this: few distinct shapes, whole SIMD tiles
ENOUGH = 1024  # padded tokens that are worth a forward pass of their own


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on the device. Of CUDA through pinned memory: the host does not wait for what
    the device has still to do."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Example:
    """One supervised text as ids; the loss is on completion_ids only (EOS included).

    For preference and policy-gradient losses also the log-prob of each completion token under the
    policy compared with (the reference, or the policy that sampled it), and the weight of the whole
    text in the loss (an advantage, a score difference). For imitation of a whole distribution the
    number of the policy that is imitated, and the prompt as that one reads it.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logps: Sequence[float] = ()
    weight: float = 1.0
    teacher: int | None = None
    teacher_prompt_ids: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def on_whole_texts(examples: list[Example]) -> list[Example]:
    """The same texts with the loss on all their tokens but the first, which nothing predicts."""
    found = []
    for example in examples:
        ids = example.prompt_ids + example.completion_ids
        found.append(replace(example, prompt_ids=ids[:1], completion_ids=ids[1:]))
    return found


@dataclass
class Batch:
    """One document per row, padded on the right. B rows of T tokens, N supervised positions.

    tokens (B,T). index (N,): flat position b*T + t whose hidden state predicts targets (N,), the
    token at t + 1. owner (N,): the example each supervised position belongs to, numbered as given
    to `collate`. logps (N,), weights (B,): of the examples, where they have any. taught: by the
    number of each teacher what it teaches. Padding is known by construction, never by id.

    Example: [prompt 7 8, completion 5 EOS] and [prompt 9, completion 6 EOS] in rows of 4:
        tokens    7 8 5 E | 9 6 E .      index  1 2 4 5      targets  5 E 6 E      owner  0 0 1 1
    """

    tokens: Tensor
    index: Tensor
    targets: Tensor
    owner: Tensor
    logps: Tensor
    weights: Tensor
    examples: int
    real_tokens: int
    taught: dict[int, "Taught"] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        moved = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                value = sent(value, device)
            moved[part.name] = value
        moved["taught"] = {teacher: part.to(device) for teacher, part in self.taught.items()}
        return Batch(**moved)


@dataclass(frozen=True)
class Taught:
    """Those examples of a batch in which one teacher's distribution is imitated.

    positions (n,): the places of their tokens among the batch's N. asked: the same completions
    after the prompts that the teacher reads, n supervised positions in the same order.
    """

    positions: Tensor
    asked: Batch

    def to(self, device: torch.device) -> "Taught":
        return Taught(sent(self.positions, device), self.asked.to(device))


def collate(examples: list[Example]) -> Batch:
    """One batch, a row for each example, in the order given.

    Raises InputError for an example without a prompt token.
    """
    T = round_up(_longest(examples), BUCKET)
    tokens = np.zeros((len(examples), T), dtype=np.int64)
    index, targets, owner, logps = [], [], [], []
    for row, example in enumerate(examples):
        ids, start = example.prompt_ids + example.completion_ids, len(example.prompt_ids)
        if start == 0:
            raise InputError(
                "an example needs at least one prompt token: "
                "its first completion token has nothing to be predicted from"
            )
        tokens[row, : len(ids)] = ids
        # the state before a token predicts it: shifted here, once
        index.append(row * T + np.arange(start - 1, len(ids) - 1))
        targets.append(np.array(ids[start:], dtype=np.int64))
        owner.append(np.full(len(ids) - start, row))
        logps.extend(example.logps)

    weights = [example.weight for example in examples]
    owners = np.concatenate(owner)
    return Batch(
        tokens=torch.from_numpy(tokens),
        index=torch.from_numpy(np.concatenate(index)),
        targets=torch.from_numpy(np.concatenate(targets)),
        owner=torch.from_numpy(owners),
        logps=torch.from_numpy(np.array(logps, dtype=np.float32)),
        weights=torch.from_numpy(np.array(weights, dtype=np.float32)),
        examples=len(examples),
        real_tokens=sum(len(example) for example in examples),
        taught=_taught(examples, owners),
    )


def _taught(examples: list[Example], owners: np.ndarray) -> dict[int, Taught]:
    """owners (N,): the example of each supervised position."""
    found = {}
    for teacher in sorted({e.teacher for e in examples if e.teacher is not None}):
        rows = [i for i, example in enumerate(examples) if example.teacher == teacher]
        asked = []
        for i in rows:
            prompt = list(examples[i].teacher_prompt_ids)
            asked.append(Example(prompt, examples[i].completion_ids))
        positions = np.flatnonzero(np.isin(owners, rows))
        found[teacher] = Taught(torch.from_numpy(positions), collate(asked))
    return found


def micro_batches(examples: list[Example], tokens: int, group: int = 1) -> list[Batch]:
    """The examples of one optimiser step as batches of at most `tokens` padded tokens.

    A batch that has ENOUGH takes in no document of up to three quarters of its rows, if that would
    have shorter rows in another. Every `group` consecutive examples stay together, in their order:
    with 2, rows 2i and 2i + 1 of a batch are a pair. A group that alone has more than `tokens` is a
    batch of its own.
    """
    # the longest first, so that a batch is as wide as its first group
    groups = [examples[i : i + group] for i in range(0, len(examples), group)]
    groups.sort(key=_longest, reverse=True)

    batches, rows, width = [], [], 0
    for members in groups:
        longest = _longest(members)
        has_no_room = width * (len(rows) + group) > tokens
        has_enough = width * len(rows) >= ENOUGH
        needs_less = round_up(longest, BUCKET) < width  # in a batch of its own
        is_much_shorter = needs_less and longest <= 0.75 * width
        if rows and (has_no_room or (has_enough and is_much_shorter)):
            batches.append(collate(rows))
            rows = []

        if not rows:
            width = round_up(longest, BUCKET)
        rows = rows + members

    if rows:
        batches.append(collate(rows))
    return batches


def _longest(examples: list[Example]) -> int:
    return max(len(example) for example in examples)


def plan_epoch(
    lengths: list[int], rows: int, rng: np.random.Generator, alike: int = 0
) -> list[list[int]]:
    """Divide an epoch's examples into steps of `rows` examples (one may hold fewer), shuffled.

    A step is made of runs of `alike` examples of like length (default: one run). Returns lists of
    example numbers; each occurs once, and there are always ceil(len(lengths) / rows) lists. Which
    of two equally long examples comes first, which runs share a step and the order of the steps
    come from rng alone, so an epoch is a function of its seed.
    """
    # shuffled first: the sort is stable, so equally long examples stay in random order
    order = rng.permutation(len(lengths)).tolist()
    order.sort(key=lambda i: lengths[i])

    if alike:
        runs = [order[at : at + alike] for at in range(0, len(order), alike)]
        order = []
        for i in rng.permutation(len(runs)):
            order += runs[i]

    steps = [order[at : at + rows] for at in range(0, len(order), rows)]
    return [steps[i] for i in rng.permutation(len(steps))]


def demonstration_order(k: int, batch: int, steps: int, seed: int) -> list[list[int]]:
    """Which of the k demonstrations each step trains on.

    Epochs in fresh random orders, cut into steps of `batch`. Where k divides batch, a step would
    hold every demonstration batch / k times; as the loss is a mean, once each is the same gradient
    at a fraction of the work.
    """
    if batch % k == 0:
        return [list(range(k))] * steps
    rng, stream = np.random.default_rng([seed, 9]), []
    while len(stream) < steps * batch:
        stream += rng.permutation(k).tolist()
    return [stream[step * batch : (step + 1) * batch] for step in range(steps)]


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
