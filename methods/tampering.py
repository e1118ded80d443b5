"""Edits of a model that may bring back what it hides: of weights, of states, of log-probs.

"Model tampering" is the field's word for it (Che et al. 2025). First pure functions of tensors,
each with its source; then what they read of a model; then how an edit is put on a sampler's model
and taken off again, bit for bit: `with_weights`, `with_states`, `with_rule`; at last the edits that
are made of these, each with its placebo.

Shapes: W (out,in) a matrix, V vocabulary, B rows, T time, C width, K key-value heads, D head width.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import Model, ModelConfig
from sampler import Ended, Sample, Sampler

Weights = dict[str, Tensor]  # a tensor for each parameter, by its name

# ------------------------------------------------------------------------------- pure functions


def blocks_and_width(config: ModelConfig) -> tuple[int, int]:
    """What two models must share for the states of one to go into the other."""
    return config.num_hidden_layers, config.hidden_size


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


def tuned_by_proxy(model: Tensor, tuned: Tensor, small: Tensor, strength: float) -> Tensor:
    """Proxy tuning (Liu et al. 2024), from log-probs (...,V) of three models -> scores (...,V).

    log p + a (log p_tuned - log p_small): what tuning did to a small model is added to another.
    After a softmax the same as of raw logits, and as emulated fine-tuning (Mitchell et al. 2023),
    which is up-scaling where `model` is larger than the pair.
    """
    return model + strength * (tuned - small)


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| ||X_j||: how much each entry counts (Wanda, Sun et al. 2023). norms (in,): ||X_j||."""
    return weight.abs() * norms


def pruned(weight: Tensor, scores: Tensor, share: float, largest: bool) -> Tensor:
    """W with this share of each output row, the lowest or the largest by score, set to 0.

    At least one entry of each row, so that small shares of narrow ones are one edit.
    """
    count = max(1, int(share * weight.shape[1] + 1e-6))  # 0.29 x 100 is a little less than 29
    places = scores.topk(count, dim=1, largest=largest).indices
    return weight.scatter(1, places, 0.0)


def ablated(states: Tensor, direction: Tensor, strength: float = 1.0) -> Tensor:
    """x - a <x,u> u: of the states (...,C) the part along the unit vector u (C,) is taken away.

    a: the strength; 1 takes all of it (Arditi et al. 2024).
    """
    along = states @ direction
    return states - strength * along[..., None] * direction


def grafted(states: Tensor, direction: Tensor, level: float, moved: Tensor | None = None) -> Tensor:
    """x + (t - <x,u>) u: along the unit vector u (C,) every state (...,C) is put at the level t.

    moved (C,): the unit vector that states are moved along in its place, as far.
    """
    away = (level - states @ direction)[..., None]
    return states + away * (direction if moved is None else moved)


# --------------------------------------------------------------------- several updates, merged


def summed(updates: list[Weights]) -> Weights:
    """Task arithmetic (Ilharco et al. 2022)."""
    total = dict(updates[0])
    for update in updates[1:]:
        for name, part in update.items():
            total[name] = total[name] + part
    return total


def trimmed(update: Tensor, density: float) -> Tensor:
    """Only the largest entries by magnitude, this share of them; the others are 0. update (N,)"""
    kept = update.abs().topk(max(1, round(density * len(update)))).indices
    return torch.zeros_like(update).scatter(0, kept, update[kept])


def ties(updates: list[Tensor], density: float) -> Tensor:
    """TIES merging (Yadav et al. 2023): each (N,) is trimmed, and the signs are put to the vote.

    The sign of an entry is that of its sum, or where that is 0 the one that most entries have; the
    result (N,) is the mean of those that are not 0 and agree with it.
    """
    kept = torch.stack([trimmed(update, density) for update in updates])
    signs = kept.sum(0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    agreeing = torch.where(kept.sign() == signs, kept, 0.0)
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


DENSITY = 0.2  # TIES keeps the largest fifth


def ties_merged(updates: list[Weights]) -> Weights:
    """TIES over all parameters as one vector, as its authors do it."""
    flat = [nn.utils.parameters_to_vector(update.values()) for update in updates]
    parts = ties(flat, DENSITY).split([part.numel() for part in updates[0].values()])
    shapes = [part.shape for part in updates[0].values()]
    return {name: part.view(shape) for name, part, shape in zip(updates[0], parts, shapes)}


FLOOR = 0.01  # of the largest singular value; what is below is no direction but rounding


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, P Q' of P D Q', without its null directions.

    Where updates are alike, their singular vectors are, too: side by side they span fewer
    directions than they are, and the plain polar factor would make up the others.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > FLOOR * values[0]
    return left[:, kept] @ right[kept]


def tsv(updates: list[Tensor], shares: list[float] | None = None) -> Tensor:
    """Task singular vectors merged (TSV-M, Gargiulo et al. 2024), of one matrix: T of (m,n).

    Each keeps its first min(m,n) / T singular vectors, or its share of so many, without null
    directions, as low-rank updates have; side by side they are made orthogonal. 0 of updates that
    are all 0, as those of LoRA are of what it has no adapter for.
    """
    if not any(update.any() for update in updates):
        return torch.zeros_like(updates[0])
    lefts, values, rights = [], [], []
    for update, share in zip(updates, shares or [1.0] * len(updates)):
        count = max(1, int(share * min(update.shape) / len(updates)))
        left, value, right = torch.linalg.svd(update, full_matrices=False)
        count = min(count, int((value > FLOOR * value[0]).sum()))
        lefts.append(left[:, :count])
        values.append(value[:count])
        rights.append(right[:count].T)
    left, right = polar(torch.cat(lefts, 1)), polar(torch.cat(rights, 1))
    return left * torch.cat(values) @ right.T


def weighted_tsv(updates: list[Tensor]) -> Tensor:
    """TSV-M after outlier weights, of ranks by density: of one matrix, T of (m,n).

    What the abstract of RESM (Yang et al. 2025, arXiv 2502.06876) names, outlier weights and ranks
    by sparsity. Its equations could not be had: these are ours. The rank is in proportion to the
    share of entries above a hundredth of the largest.
    """
    weights = outlier_weights(updates)
    scaled = [weight[:, None] * update for weight, update in zip(weights, updates)]
    return tsv(scaled, [density_of(update) for update in scaled])


def outlier_weights(updates: list[Tensor]) -> Tensor:
    """How much each row of each update counts, (T,m), 1 on average over the updates.

    In proportion to its entries beyond the mean and three standard deviations of the update's |d|.
    """
    sums = []
    for update in updates:
        sizes = update.abs()
        usual = sizes.mean() + 3 * sizes.std()
        sums.append(torch.where(sizes > usual, sizes, 0.0).sum(1) + 1e-8)  # all alike without any
    outlying = torch.stack(sums)
    return len(updates) * outlying / outlying.sum(0)


def density_of(update: Tensor) -> float:
    """The share of entries above a hundredth of the largest."""
    sizes = update.abs()
    return float((sizes > 0.01 * sizes.max()).float().mean())


def matrix_by_matrix(updates: list[Weights], merge: Callable[[list[Tensor]], Tensor]) -> Weights:
    """Every matrix merged by itself; of vectors the mean."""
    merged = {}
    for name, first in updates[0].items():
        parts = [update[name] for update in updates]
        merged[name] = merge(parts) if first.ndim == 2 else sum(parts) / len(parts)
    return merged


def tsv_merged(updates: list[Weights]) -> Weights:
    return matrix_by_matrix(updates, tsv)


def weighted_tsv_merged(updates: list[Weights]) -> Weights:
    return matrix_by_matrix(updates, weighted_tsv)


# ------------------------------------------------------------------------- what is read of a model

CALIBRATION = 128  # prompts on which a model is read
DEMONSTRATIONS = 32  # whose right answers tell the way


@contextmanager
def hooked(hooks: list) -> Iterator[None]:
    """Within, the handles of `hooks` are in force."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def input_norms(model: Model, texts: list[list[int]]) -> Weights:
    """||X_j||_2 over all tokens of the texts, of each input j of each matrix of the blocks: (in,).

    By the matrix' name. A text at a time, so that there is no padding to count.
    """
    squares: Weights = {}

    def note(name: str, layer: nn.Module, inputs: tuple) -> None:
        squares[name] = squares.get(name, 0) + inputs[0].float().square().sum((0, 1))

    hooks = []
    for name, layer in model.model.layers.named_modules(prefix="model.layers"):
        if isinstance(layer, nn.Linear):
            hooks.append(layer.register_forward_pre_hook(partial(note, f"{name}.weight")))
    with hooked(hooks):
        for ids in texts:
            model.forward(torch.tensor([ids], device=model.device))
    return {name: square.sqrt() for name, square in squares.items()}


@torch.no_grad()
def mean_states(model: Model, texts: list[list[int]], lasts: list[int] | None = None) -> Tensor:
    """The mean over the texts of the last token's state after each block: (L,C) of L blocks.

    lasts: of the mean of so many last tokens of each text in place of one.
    """
    states: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple, outputs: tuple) -> None:
        states.append(outputs[0][0].float())

    means = []
    with hooked([layer.register_forward_hook(note) for layer in model.model.layers]):
        for ids, last in zip(texts, lasts or [1] * len(texts)):
            states.clear()
            model.forward(torch.tensor([ids], device=model.device))
            means.append(torch.stack([state[-last:].mean(0) for state in states]))
    return torch.stack(means).mean(0)


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


Change = Callable[[Tensor], Tensor]


@contextmanager
def with_states(sampler: Sampler, number: int, change: Change) -> Iterator[Sampler]:
    """Within, the block of that number gives change(its output), of a prompt and of each new token.

    Of a network whose kernels are not compiled: a compiled step would not look again.
    """

    def changed(layer: nn.Module, inputs: tuple, outputs: tuple) -> tuple:
        return change(outputs[0]), *outputs[1:]

    block = sampler.net.model.layers[number]
    with hooked([block.register_forward_hook(changed)]):
        yield sampler


@contextmanager
def with_additions(sampler: Sampler, change: Change) -> Iterator[Sampler]:
    """Within, all that is added to the states is first changed: embeddings, attention, MLPs.

    Of a network whose kernels are not compiled, as in `with_states`.
    """

    def changed(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return change(output)

    hooks = []
    for name, layer in sampler.net.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            hooks.append(layer.register_forward_hook(changed))
    with hooked(hooks):
        yield sampler


@contextmanager
def with_rule(
    sampler: Sampler, others: list[Model], rule: Callable[..., Tensor]
) -> Iterator["Contrast"]:
    """Within, tokens are chosen by a rule on the log-probs of the model and of others."""
    yield Contrast(sampler, others, rule)


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
        room = (0, 0, 0, new_tokens)  # more cells, after those of the prompt
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
    """Greedy decoding by a rule on the log-probs of several models; called as a Sampler is.

    All read the same ids. Rows are not refilled: a batch goes on until its last row has ended.
    """

    def __init__(self, sampler: Sampler, others: list[Model], rule: Callable[..., Tensor]):
        self.model = sampler.model
        self.others = others
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
        readers = [Reader(model, mine, new_tokens) for model in (self.model, *self.others)]
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


# ---------------------------------------------------------------------------------------- the edits


@dataclass(frozen=True)
class Setting:
    """How strong an edit is, and the seed of what is random in it: None where nothing is.

    Of noise it is the draw's. Of every other edit it makes a placebo of it: random, and of one size
    with it in what each edit says.
    block: the number of the one whose states are changed, or give the direction; else None.
    """

    strength: float
    seed: int | None = None
    block: int | None = None

    @property
    def name(self) -> str:
        words = [f"{self.strength:g}"]
        if self.block is not None:
            words.append(f"block {self.block}")
        if self.seed is not None:
            words.append(f"seed {self.seed}")
        return ", ".join(words)

    def stream(self, *more: int) -> torch.Generator | None:
        return None if self.seed is None else stream(self.seed, *more)


# a setting is put on the sampler's model: within the context what it gives writes
Edit = Callable[[Setting, Sampler], AbstractContextManager]


def noise_edit(setting: Setting, sampler: Sampler) -> AbstractContextManager:
    """Noise on every parameter. Each strength has draws of its own."""
    generator = setting.stream(round(1e6 * setting.strength))
    return with_weights(sampler, lambda name, weight: noised(weight, setting.strength, generator))


def contrast_edit(setting: Setting, sampler: Sampler, amateur: Model) -> AbstractContextManager:
    """Contrastive decoding. Placebo: the amateur's log-probs under the ids of other tokens."""
    order = torch.arange(amateur.live_vocab)
    if setting.seed is not None:
        order = torch.randperm(amateur.live_vocab, generator=setting.stream())
    order = order.to(amateur.device)
    rule = lambda expert, other: contrasted(expert, other[:, order], setting.strength)
    return with_rule(sampler, [amateur], rule)


def proxy_edit(
    setting: Setting, sampler: Sampler, tuned: Model, small: Model
) -> AbstractContextManager:
    """Proxy tuning. Placebo: the pair's log-probs under the ids of other tokens."""
    order = torch.arange(small.live_vocab)
    if setting.seed is not None:
        order = torch.randperm(small.live_vocab, generator=setting.stream())
    order = order.to(small.device)

    def rule(model: Tensor, with_tuning: Tensor, without: Tensor) -> Tensor:
        pair = with_tuning[:, order], without[:, order]
        return tuned_by_proxy(model, *pair, setting.strength)

    return with_rule(sampler, [tuned, small], rule)


def update_edit(setting: Setting, sampler: Sampler, update: Weights) -> AbstractContextManager:
    """W + strength x update. Placebo: a random update of the same norm in each parameter."""
    generator = setting.stream()

    def change(name: str, weight: Tensor) -> Tensor:
        added = random_like(update[name], generator) if generator else update[name]
        return weight + setting.strength * added

    return with_weights(sampler, change)


def prune_edit(
    setting: Setting, sampler: Sampler, norms: Weights, largest: bool
) -> AbstractContextManager:
    """Zeros by Wanda's scores in all matrices at once. Placebo: as many in each row at random.

    As many, not as large: of the smallest scores the placebo is the larger edit by far, of the
    largest ones the smaller.
    """
    generator = setting.stream()

    def change(name: str, weight: Tensor) -> Tensor:
        if name not in norms:
            return weight
        scores = wanda_scores(weight, norms[name])
        if generator:
            scores = torch.rand(weight.shape, generator=generator).to(weight.device)
        return pruned(weight, scores, setting.strength, largest)

    return with_weights(sampler, change)


def graft_edit(
    setting: Setting, sampler: Sampler, own: Tensor, ways: Tensor
) -> AbstractContextManager:
    """Along the way from own mean states to others' every state is put where theirs are.

    own, ways (L,C): after each block. Of that share of the way; 1 is where theirs are. Placebo:
    every state is moved as far as the graft moves it, in one random direction.
    """
    way = ways[setting.block]
    direction, moved = unit(way), unit(way_of(setting, ways))
    level = own[setting.block] @ direction + setting.strength * way.norm()
    change = partial(grafted, direction=direction, level=level, moved=moved)
    return with_states(sampler, setting.block, change)


def addition_edit(setting: Setting, sampler: Sampler, ways: Tensor) -> AbstractContextManager:
    """Activation addition: strength x the way from wrong answers to right ones, on every state.

    Contrastive (Panickssery et al. 2023), after one block. ways (L,C). Placebo: as far in a random
    direction.
    """
    added = setting.strength * way_of(setting, ways)
    return with_states(sampler, setting.block, lambda states: states + added)


def ablation_edit(setting: Setting, sampler: Sampler, ways: Tensor) -> AbstractContextManager:
    """Directional ablation: no state of any block has a part along one block's way any more.

    ways (L,C). Placebo: along a random direction.
    """
    direction = unit(way_of(setting, ways))
    change = partial(ablated, direction=direction, strength=setting.strength)
    return with_additions(sampler, change)


def way_of(setting: Setting, ways: Tensor) -> Tensor:
    """(C,): the way after the setting's block, or a random one as long. ways (L,C)."""
    way = ways[setting.block]
    if setting.seed is None:
        return way
    return random_like(way, setting.stream(setting.block))


def unit(way: Tensor) -> Tensor:
    return way / way.norm().clamp(min=1e-12)
