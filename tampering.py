"""Edits of a model that may bring back what it hides: of weights, of states, of log-probs.

"Model tampering" is the field's word for it (Che et al. 2025). First pure functions of tensors,
each with its source; then how an edit is put on a sampler's model and taken off again, bit for bit:
`with_weights`, `with_rule`.

Shapes: W (out,in) a matrix, V vocabulary, B rows, T time, C width, K key-value heads, D head width.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import Model
from sampler import Ended, Sample, Sampler

# ------------------------------------------------------------------------------- pure functions


def stream(*numbers: int) -> torch.Generator:
    """A random stream of its own for these numbers, on the CPU: the same on every device."""
    [seed] = np.random.SeedSequence(numbers).generate_state(1)
    return torch.Generator().manual_seed(int(seed))


def random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor of the same shape and norm: what a directed edit is compared with."""
    noise = torch.randn(tensor.shape, generator=generator).to(tensor.device)
    return noise * (tensor.norm() / noise.norm())


def noised(weight: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """weight + sigma E, E standard normal, sigma = scale rms(weight) (after Tice et al. 2024)."""
    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
    return weight + scale * weight.square().mean().sqrt() * noise


PLAUSIBLE = 0.1  # of the likeliest token's probability; what is below is never chosen


def contrasted(expert: Tensor, amateur: Tensor, strength: float) -> Tensor:
    """Contrastive decoding (Li et al. 2022), from log-probs (...,V) of both -> scores (...,V).

    (1 + a) log p - a log q over the tokens with p >= 0.1 max p, -inf elsewhere; a is the strength.
    """
    scores = (1 + strength) * expert - strength * amateur
    likely = expert.amax(-1, keepdim=True) + math.log(PLAUSIBLE)
    return scores.masked_fill(expert < likely, float("-inf"))


# ------------------------------------------------------------------------------ how it is put on


@contextmanager
def with_weights(sampler: Sampler, change: Callable[[str, Tensor], Tensor]) -> Iterator[Sampler]:
    """Within, each parameter is change(name, parameter); then what it was, bit for bit."""
    parameters = dict(sampler.model.named_parameters())
    kept = {name: weight.detach().clone() for name, weight in parameters.items()}
    try:
        replace_weights(parameters, lambda name: change(name, kept[name]))
        sampler.refresh()
        yield sampler
    finally:
        replace_weights(parameters, kept.__getitem__)
        sampler.refresh()


@torch.no_grad()
def replace_weights(parameters: dict[str, Tensor], new: Callable[[str], Tensor]) -> None:
    for name, weight in parameters.items():
        weight.copy_(new(name))


@contextmanager
def with_rule(
    sampler: Sampler, amateur: Model, rule: Callable[[Tensor, Tensor], Tensor]
) -> Iterator["Contrast"]:
    """Within, tokens are chosen by a rule on the log-probs of two models; neither is changed."""
    yield Contrast(sampler, amateur, rule)


class Reader:
    """A model that has read B prompts and goes on token by token. logps (B,V): of what follows."""

    def __init__(self, model: Model, prompts: list[list[int]], new_tokens: int):
        self.model = model
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        hidden, keys, values = model.forward(tokens.to(model.device), return_kv=True)

        # the padding's cells are written over before a row looks at them
        room = (0, 0, 0, new_tokens)  # more cells, behind those of the prompt
        self.keys = [F.pad(cells, room) for cells in keys]  # of each layer (B,K,T,D)
        self.values = [F.pad(cells, room) for cells in values]
        self.positions = lengths
        last = hidden[torch.arange(len(prompts), device=model.device), lengths - 1]
        self.logps = self.normalised(F.linear(last, model.head_weight.to(last.dtype)))

    def normalised(self, logits: Tensor) -> Tensor:
        return logits.float().log_softmax(-1)

    def read(self, tokens: Tensor) -> None:
        """One more token (B,) for every row."""
        live = int(self.positions.max()) + 1
        logits = self.model.decode(tokens, self.positions, self.keys, self.values, live)
        self.positions = self.positions + 1
        self.logps = self.normalised(logits)


class Contrast:
    """Greedy decoding by a rule on the log-probs of two models; called as a Sampler is.

    Both read the same ids. Rows are not refilled: a batch goes on until its last row has ended.
    """

    def __init__(self, sampler: Sampler, amateur: Model, rule: Callable[[Tensor, Tensor], Tensor]):
        self.model = sampler.model
        self.amateur = amateur
        self.rule = rule
        self.eos_ids = sampler.eos_ids
        self.slots = sampler.asked

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[list[int]],
        temperature: float = 0.0,
        max_new_tokens: int = 96,
        seeds: list | None = None,
        ended: Ended | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Sample]]:
        """One completion for each prompt. Nothing is drawn: seeds have no use."""
        assert temperature == 0, "a rule on log-probs is greedy"
        results = []
        for first in range(0, len(prompts), self.slots):
            rows = range(first, min(first + self.slots, len(prompts)))
            results += self._continued(prompts, rows, max_new_tokens, ended)
            if progress:
                progress(len(rows))
        return [[sample] for sample in results]

    def _continued(
        self, prompts: list[list[int]], rows: range, new_tokens: int, ended: Ended | None
    ) -> list[Sample]:
        """The completions of the prompts of these numbers."""
        mine = [prompts[number] for number in rows]
        readers = [Reader(model, mine, new_tokens) for model in (self.model, self.amateur)]
        written: list[list[int]] = [[] for _ in rows]
        samples: list[Sample | None] = [None] * len(rows)
        while True:
            tokens = self.rule(*[reader.logps for reader in readers]).argmax(-1)
            for row, token in enumerate(tokens.tolist()):
                if samples[row] is None:
                    written[row].append(token)
                    samples[row] = self._finished(rows[row], written[row], new_tokens, ended)
            if all(samples):
                return samples
            for reader in readers:
                reader.read(tokens)

    def _finished(
        self, number: int, ids: list[int], new_tokens: int, ended: Ended | None
    ) -> Sample | None:
        """The sample, where these ids of the prompt of that number are all of it."""
        kept = ended(number, ids) if ended else None
        if kept is not None:
            return Sample(kept, [], False)
        is_over = ids[-1] in self.eos_ids
        if is_over or len(ids) == new_tokens:
            return Sample(ids, [], not is_over)
        return None
