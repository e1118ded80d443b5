"""The one way to generate: a static cache, fixed slots, continuous batching, and samples that depend on their prompt alone.

Shapes: B slots, K key-value heads, D head width, V vocabulary, S cache length, L layers.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

import model as model_module
from data.batches import round_up
from data.problems import InputError
from model import Model, kernel, whole


@kernel
def sample_step(logits: Tensor, uniform: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row. logits (B,V), uniform (B,) in [0,1), temperature () -> token (B,), its log-prob (B,) in fp32.

    Inverse-CDF sampling: the token is the first whose cumulative probability exceeds the row's uniform, so a row's draw depends
    on its own number alone and not on which slot or batch it sits in. Log-probs are those of the tempered distribution, the one
    that was sampled from. Temperature 0 is greedy: the untempered distribution, its argmax.
    """
    logits = logits.float() / torch.where(temperature > 0, temperature, 1.0)
    logps = logits.log_softmax(-1)
    cdf = logps.exp().cumsum(-1)
    # 1 - 1e-6 keeps the threshold under the total although fp32 rounds: an id of probability zero is never drawn
    drawn = (
        (cdf <= (uniform * (1 - 1e-6))[:, None] * cdf[:, -1:])
        .sum(-1)
        .clamp(max=logits.shape[-1] - 1)
    )
    token = torch.where(temperature > 0, drawn, logps.argmax(-1))
    return token, logps.gather(-1, token[:, None]).squeeze(-1)


@dataclass
class Sample:
    """One completion: token ids (EOS included when reached), their log-probs under the sampling distribution, and whether it was cut."""

    ids: list[int]
    logps: list[float]
    truncated: bool


def cache_bucket(cells: int) -> int:
    """Cells of cache that a decode step reads for so many live ones: of a few sizes, as each is a graph; at most an eighth too many from 256 on."""
    return round_up(cells, max(32, 1 << cells.bit_length() >> 4))


class Sampler:
    """Generation with a static KV cache and fixed slots that are refilled as rows finish (continuous batching).

    Every decode step runs all `slots` rows at the same shapes, so what a row computes does not depend on what the others hold.
    A prompt is prefilled once and its keys and values are copied to the slots of all its samples. The host looks at the device
    once every `CHECK` steps. In bf16 the sampler decodes from one bf16 copy of the weights, made by `refresh`.
    """

    CHECK, PREFILL_ROWS, BUCKET = 8, 32, 16

    def __init__(self, model: Model, eos_ids: list[int], slots: int = 256):
        self.model, self.slots = model, slots
        self.eos = torch.tensor(eos_ids, device=model.device)
        self.net: Model | None = None
        self.refresh()
        self.capacity = 0
        self.seconds = {"prefill": 0.0, "decode": 0.0}  # spent so far, as the host sees it
        self.step = (
            torch.compile(self._step, mode="reduce-overhead", fullgraph=True)
            if self._compiled()
            else self._step
        )

    def _compiled(self) -> bool:
        # On a CPU `decode_block` is compiled alone: a graph of the whole step takes longer to compile than it returns (docs/NOTES.md).
        return model_module.compile_kernels and self.model.device.type == "cuda"

    def refresh(self) -> None:
        """Take over the model's present weights: into a copy in the compute dtype, gathered once, or as they are (whole and fp32)."""
        if self.model.compute_dtype == self.model.lm_head.weight.dtype and not isinstance(
            self.model.lm_head.weight, DTensor
        ):
            self.net = self.model
            return
        if self.net is None or self.net is self.model:
            with torch.device("meta"):
                self.net = Model(self.model.config, self.model.compute_dtype)
            self.net.to_empty(device=self.model.device).to(self.model.compute_dtype).rebuild()
        with torch.no_grad():
            for copy, master in zip(self.net.parameters(), self.model.parameters()):
                copy.copy_(whole(master))
        self.net.live_vocab = self.model.live_vocab

    def release(self) -> None:
        """Free the copy and the cache until the next `refresh`: the update needs their memory."""
        self.net, self.capacity, self.keys, self.values = None, 0, None, None

    def _allocate(self, length: int, new_tokens: int) -> None:
        """Cache and per-slot state for sequences up to `length`; kept between calls and only ever grown."""
        length = cache_bucket(length)
        if length <= self.capacity and new_tokens <= self.uniform.shape[1]:
            return
        c, device, B = self.model.config, self.model.device, self.slots
        self.capacity = length
        # one tensor for each layer: of a stack, a compiled step would copy the whole at every write into a part (docs/NOTES.md)
        self.keys, self.values = (
            [
                torch.zeros(
                    B,
                    c.num_key_value_heads,
                    length,
                    c.head_dim,
                    dtype=self.model.compute_dtype,
                    device=device,
                )
                for _ in range(c.num_hidden_layers)
            ]
            for _ in range(2)
        )
        self.tokens, self.positions, self.count, self.limit = (
            torch.zeros(B, dtype=torch.long, device=device) for _ in range(4)
        )
        self.done = torch.ones(B, dtype=torch.bool, device=device)
        self.out_ids = torch.zeros(B, new_tokens, dtype=torch.long, device=device)
        self.out_logps, self.uniform = (torch.zeros(B, new_tokens, device=device) for _ in range(2))
        for state in (
            *self.keys,
            *self.values,
            self.tokens,
            self.positions,
            self.count,
            self.limit,
            self.done,
            self.out_ids,
            self.out_logps,
            self.uniform,
        ):
            torch._dynamo.mark_static_address(state)

    def _step(self, temperature: Tensor, live: int) -> None:
        """Every slot: choose a token from the last one, note it, advance. Finished slots repeat their last cell, harmlessly."""
        self._advance(
            self.net.decode(self.tokens, self.positions, self.keys, self.values, live), temperature
        )
        self.positions.add_(1).clamp_(max=self.capacity - 1)

    def _advance(self, logits: Tensor, temperature: Tensor) -> None:
        at = self.count.clamp(max=self.uniform.shape[1] - 1)[:, None]
        token, logp = sample_step(logits, self.uniform.gather(1, at).squeeze(1), temperature)
        self.out_ids.scatter_(
            1, at, torch.where(self.done, self.out_ids.gather(1, at).squeeze(1), token)[:, None]
        )
        self.out_logps.scatter_(
            1, at, torch.where(self.done, self.out_logps.gather(1, at).squeeze(1), logp)[:, None]
        )
        self.tokens.copy_(token)
        self.count.add_(~self.done)
        self.done.logical_or_((token[:, None] == self.eos).any(1)).logical_or_(
            self.count >= self.limit
        )

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[list[int]],
        n: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 96,
        seed: int = 0,
        seeds: list | None = None,
        progress=None,
    ) -> list[list[Sample]]:
        """n completions for each prompt (lists of token ids); temperature 0 is greedy.

        seeds gives each prompt its own random stream (default: seed and the prompt's place); a sample depends on its prompt,
        stream and weights, not on the other prompts or their number. progress(k) is called as k samples finish. Raises
        InputError when a prompt and its completion cannot fit the model's positions.
        """
        longest = max(map(len, prompts), default=0)
        if not all(prompts):
            raise InputError("an empty prompt cannot be continued: it needs at least one token")
        if longest + max_new_tokens > self.model.config.max_position_embeddings:
            raise InputError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's "
                f"{self.model.config.max_position_embeddings} positions: shorten the prompt or lower --max-new-tokens"
            )
        self._allocate(longest + max_new_tokens, max_new_tokens)
        seeds = seeds or [[seed, i] for i in range(len(prompts))]
        order = sorted(
            range(len(prompts)), key=lambda i: -len(prompts[i])
        )  # neighbours in length share a prefill bucket
        waiting = [
            (i, range(j, min(j + self.slots, n))) for i in order for j in range(0, n, self.slots)
        ]
        results: list[list] = [[None] * n for _ in prompts]
        owner: list = [None] * self.slots  # (prompt, sample) of each slot
        heat = torch.tensor(float(temperature), device=self.model.device)
        self.done.fill_(True)
        reach = (
            [0] * self.slots
        )  # host-side bound on each slot's position: no device read needed to know how much cache is live
        while waiting or any(owner):
            clock = time.time()
            free = [s for s in range(self.slots) if owner[s] is None]
            if len(free) >= min(
                self.slots, self.PREFILL_ROWS
            ):  # a prefill computes PREFILL_ROWS rows however few are new
                self._fill(waiting, free, prompts, owner, reach, seeds, heat, max_new_tokens)
            self.seconds["prefill"] += time.time() - clock
            clock = time.time()
            for _ in range(self.CHECK):
                live = max((reach[s] + 1 for s in range(self.slots) if owner[s]), default=1)
                self.step(heat, min(cache_bucket(live), self.capacity))
                reach = [r + 1 for r in reach]
            finished = 0
            done, count, ids, logps = (
                self.done.tolist(),
                self.count.tolist(),
                self.out_ids.tolist(),
                self.out_logps.tolist(),
            )
            for s in range(self.slots):
                if owner[s] and done[s]:
                    i, j = owner[s]
                    row = ids[s][: count[s]]
                    results[i][j] = Sample(
                        row, logps[s][: count[s]], row[-1] not in self.eos.tolist()
                    )
                    owner[s], finished = None, finished + 1
            self.seconds["decode"] += time.time() - clock
            if progress and finished:
                progress(finished)
        return results

    def _fill(
        self,
        waiting: list,
        free: list[int],
        prompts,
        owner,
        reach,
        seeds,
        heat,
        max_new_tokens: int,
    ) -> None:
        """Move waiting prompts into free slots: prefill each once, copy its cache to the slots of its samples, draw the first tokens."""
        admitted = []
        while waiting and len(waiting[0][1]) <= len(free):
            i, samples = waiting.pop(0)
            admitted.append((i, [(free.pop(), j) for j in samples]))
        device = self.model.device
        first = torch.zeros(self.slots, len(self.net.head_weight), device=device)
        new = torch.zeros(self.slots, dtype=torch.bool, device=device)
        while admitted:
            # one prompt's padded length depends on itself alone: part of "a result does not depend on what else is in the batch"
            length = round_up(len(prompts[admitted[0][0]]), self.BUCKET)
            group = [admitted.pop(0)]
            while (
                admitted
                and len(group) < self.PREFILL_ROWS
                and round_up(len(prompts[admitted[0][0]]), self.BUCKET) == length
            ):
                group.append(admitted.pop(0))
            tokens = torch.zeros(self.PREFILL_ROWS, length, dtype=torch.long)
            for row, (i, _) in enumerate(group):
                tokens[row, : len(prompts[i])] = torch.tensor(prompts[i])
            ends = torch.tensor([len(prompts[i]) - 1 for i, _ in group], device=device)
            hidden, k, v = self.net.forward(tokens.to(device), return_kv=True)
            rows = torch.arange(len(group), device=device)
            logits = F.linear(hidden[rows, ends], self.net.head_weight.to(hidden.dtype)).float()
            source = torch.tensor(
                [row for row, (_, places) in enumerate(group) for _ in places], device=device
            )
            slots = torch.tensor([s for _, places in group for s, _ in places], device=device)
            for caches, states in ((self.keys, k), (self.values, v)):
                for cache, state in zip(caches, states):
                    cache[slots, :, :length] = state[source]
            first[slots], new[slots] = logits[source], True
            self.positions[slots] = ends[source] + 1
            uniform = np.stack(
                [
                    np.random.default_rng([*np.atleast_1d(seeds[i]).tolist(), j]).random(
                        max_new_tokens, dtype=np.float32
                    )
                    for i, places in group
                    for _, j in places
                ]
            )
            self.uniform[slots, :max_new_tokens] = torch.from_numpy(uniform).to(device)
            for i, places in group:
                for s, j in places:
                    owner[s], reach[s] = (i, j), len(prompts[i])
        if new.any():
            # the new slots draw their first token from the prompt's last hidden state; the others must not move
            busy, tokens, others = self.done.clone(), self.tokens.clone(), ~new
            self.done.copy_(others)
            self.count.masked_fill_(new, 0)
            self.limit.masked_fill_(new, max_new_tokens)
            self._advance(first, heat)
            self.done.copy_(torch.where(new, self.done, busy))
            self.tokens.copy_(torch.where(new, self.tokens, tokens))
