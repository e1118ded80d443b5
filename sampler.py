"""The one way to generate: a static cache, fixed slots, continuous batching.

Read in this order: `sample_step` and `greedy_step` (how a token is chosen), `Slot` (what the host
knows of a row), then `Sampler.__call__`, whose loop names the parts: `_admit`, `_prefill`,
`_first_tokens`, `_step`, `_harvest`. Weights and memory (`refresh`, `release`, `_allocate`) come
last, and `Writer`, what the rest of the code asks.

Shapes: B slots, T time, C width, H query heads, K key-value heads, D head width, V vocabulary,
S cache length, N new tokens at most, L layers.
"""

import math
import os
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

import model as model_module
from data.batches import round_up, sent
from data.problems import InputError
from data.text import Tokenizer
from lora import adapters, plain_weights, read_weights
from model import SMALL, Model, ModelConfig, kernel, whole


@kernel
def sample_step(logits: Tensor, uniform: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row. logits (B,V), uniform (B,) in [0,1), temperature () -> token, log-prob.

    Inverse-CDF sampling: the token is the first whose cumulative probability exceeds the row's
    uniform number, so a row's draw depends on its own number alone and not on its slot or batch.
    Log-probs are those of the tempered distribution, the one that was sampled from. Temperature 0
    is greedy: the untempered distribution, its argmax.

    Precision: logits arrive in the compute dtype, so in bf16 they are rounded, as those of
    `model.chunk_logps` are; everything from there on (temperature, log-softmax, cumulative sum,
    the log-prob returned) is fp32. In bf16 the rounding errors of sampler and trainer are of one
    size but not the same errors: their log-probs of a token differ (by 0.06 nats rms with a real
    model of 135 M parameters at temperature 1). In fp32 they agree.
    """
    logits = logits.float() / torch.where(temperature > 0, temperature, 1.0)
    logps = logits.log_softmax(-1)
    cumulative = logps.exp().cumsum(-1)

    # 1 - 1e-6 keeps the threshold below the total, which fp32 rounds: where ids are added up one
    # after the other, as on a CPU, one of probability zero is never drawn
    threshold = (uniform * (1 - 1e-6))[:, None] * cumulative[:, -1:]
    drawn = (cumulative <= threshold).sum(-1).clamp(max=logits.shape[-1] - 1)

    token = torch.where(temperature > 0, drawn, logps.argmax(-1))
    return token, logps.gather(-1, token[:, None]).squeeze(-1)


@kernel
def greedy_step(logits: Tensor) -> Tensor:
    """The likeliest token a row, the first of equal ones: (B,V) -> (B,). Makes no distribution."""
    return logits.argmax(-1)


@dataclass
class Sample:
    """One completion. ids: its tokens, EOS included when reached; logps: their log-probs under the
    distribution that was sampled from, fewer than ids where these are not as they were drawn (see
    `Ended`), none of a greedy sample; truncated: whether it was cut before its end."""

    ids: list[int]
    logps: list[float]
    truncated: bool


# Whether a completion has ended otherwise than by EOS: (number of its prompt, its ids so far) ->
# its ids up to there, with EOS in the place of what follows; None where it has not.
Ended = Callable[[int, list[int]], list[int] | None]


@dataclass
class Slot:
    """A row of the cache in use, and the sample that it holds: one of the n of one prompt."""

    row: int
    prompt: int  # the prompt's number
    sample: int  # the sample's number among the prompt's n
    reach: int  # the position it has come to at most: known without looking at the device


def cache_bucket(cells: int) -> int:
    """Cells of cache that a decode step reads when `cells` are live: at most an eighth more from
    256 on. Of few sizes, because each size is a graph of its own."""
    return round_up(cells, max(32, 1 << cells.bit_length() >> 4))


def padded_length(length: int) -> int:
    """To how many tokens a prompt is padded: an eighth more at most from 128 on. Of few sizes,
    because prompts of one size are read together."""
    return round_up(length, max(16, 1 << length.bit_length() >> 4))


PREFILL_ROWS = 32  # prompts that a prefill computes, however few are new,
PREFILL_TOKENS = 4096  # but no more than so many padded tokens, where it is several prompts;
LARGE_PREFILL = 512  # so many of a large model on a CPU: its products are no faster with more


def prefill_lines(length: int, parameters: int, cuda: bool) -> int:
    """Prompts of this padded length that one prefill computes: always as many, so that there is
    one shape for each length, and so that a prompt's bits do not depend on its company."""
    tokens = PREFILL_TOKENS if cuda or parameters < SMALL else LARGE_PREFILL
    return max(1, min(PREFILL_ROWS, tokens // length))


ROOM = 0.8  # of the memory that is free, for a cache


def cache_bytes(config: ModelConfig, slots: int, cells: int, itemsize: int) -> int:
    """Keys and values of so many slots of so many cells, in all layers."""
    cell = config.num_key_value_heads * config.head_dim * itemsize
    return 2 * config.num_hidden_layers * slots * cells * cell


KEPT = 0.1  # of a CUDA device's memory, that a large model's sampler may hold during an update


def stays(parameters: int, held: float, memory: float) -> bool:
    """Whether a sampler that holds so many bytes keeps them while its model is trained.

    memory: of a CUDA device, whose graphs would have to be recorded anew; 0 of another device.
    """
    return parameters < SMALL or held <= KEPT * memory


def free_bytes(device: torch.device) -> float:
    """Memory that can be had on a device; infinite on a CPU whose system does not tell.

    The ranks of one machine share what a CPU has.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return math.inf
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    room = [max(0, limit - used) for limit, used in group_bytes()]
    free = min([int(found[1]) * 1024, *room]) if found else min(room, default=math.inf)
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def group_bytes(root: Path = Path("/")) -> list[tuple[int, int]]:
    """(limit, used) of memory, for each of this process's control groups that has a limit.

    Containers and SLURM set them; those of version 1 are not seen. used: without what the system
    gives back when it is needed. root: of the file system.
    """
    try:
        text = (root / "proc/self/cgroup").read_text()
    except OSError:
        return []
    own = re.search(r"^0::/(.*)$", text, re.MULTILINE)
    top = root / "sys/fs/cgroup"
    folder = top / own[1] if own else top
    found = []
    while folder.is_relative_to(top):
        try:
            limit = (folder / "memory.max").read_text().strip()
            parts = re.findall(
                r"^(?:anon|shmem) (\d+)$", (folder / "memory.stat").read_text(), re.M
            )
        except OSError:
            limit = ""
        if limit.isdecimal():
            found.append((int(limit), sum(map(int, parts))))
        folder = folder.parent
    return found


def uniform_numbers(seed: int | list[int], sample: int, count: int) -> np.ndarray:
    """The random stream of one sample: fp32 numbers (count,) in [0,1)."""
    rng = np.random.default_rng([*np.atleast_1d(seed).tolist(), sample])
    return rng.random(count, dtype=np.float32)


def agreeing(some: list[int], others: list[int]) -> int:
    """How many ids from the first on are the same."""
    count = 0
    for one, other in zip(some, others):
        if one != other:
            break
        count += 1
    return count


def read_rows(buffer: Tensor, rows: list[int], width: int) -> list[list]:
    """The first `width` entries of these rows, on the host: one transfer."""
    return buffer[sent(torch.tensor(rows), buffer.device), :width].tolist()


class Sampler:
    """Generation with a static cache and fixed slots that are refilled as rows finish.

    A prompt is prefilled once, and its keys and values are copied to the slots of all its samples.
    Every decode step runs all B rows. The host looks at the device once every `CHECK` steps. In
    bf16 the sampler decodes from one bf16 copy of the weights, made by `refresh`.

    A sample depends on its prompt, its random stream and the weights, not on the other rows: no
    operation mixes rows, and a prompt is padded by its own length. That tokens are the same in any
    company is shown on a CPU (tests/test_sampler.py); on CUDA the kernel chosen may depend on the
    shapes, and with it the last bits.
    """

    CHECK = 8  # decode steps between two looks at the device

    def __init__(self, model: Model, eos_ids: list[int], slots: int = 256):
        self.model = model
        # without an adapter's: merged, it is computed alike
        self.parameters = sum(p.numel() for p in read_weights(model).values())
        self.asked = self.slots = slots
        self.eos_ids = set(eos_ids)
        self.eos = torch.tensor(eos_ids, device=model.device)

        self.net: Model | None = None
        self.refresh()
        self.capacity = 0  # S, nothing allocated yet
        self.keys = self.values = None
        self.reserved = (0, 0)  # cells, new tokens
        self.seconds = {"prefill": 0.0, "decode": 0.0}  # spent so far, as the host sees it

        # On a CPU `decode_block` is compiled alone: a graph of the whole step takes longer to
        # compile than it returns (docs/NOTES.md).
        self.compiled: Callable | None = None
        if model_module.compile_kernels and model.device.type == "cuda":
            self.compiled = torch.compile(self._step, mode="reduce-overhead", fullgraph=True)

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[list[int]],
        n: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 96,
        seed: int = 0,
        seeds: list | None = None,
        ended: Ended | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Sample]]:
        """n completions for each prompt (lists of token ids); temperature 0 is greedy.

        seeds gives each prompt its own random stream (default: seed and the prompt's place). ended
        is asked between steps; a completion is what it says, whenever it was asked. progress(k) is
        called as k samples finish. Raises InputError when a prompt is empty, or when it and its
        completion cannot fit the model's positions.
        """
        longest = max(map(len, prompts), default=0)
        self._refuse_what_cannot_fit(prompts, longest, max_new_tokens)
        self._allocate(longest + max_new_tokens, max_new_tokens)
        self.done.fill_(True)
        self.limit.fill_(max_new_tokens)
        heat = None
        if temperature:
            heat = torch.full((), float(temperature), device=self.model.device)
        seeds = seeds or [[seed, i] for i in range(len(prompts))]

        waiting = self._queue(prompts, n)
        results: list[list] = [[None] * n for _ in prompts]
        busy: list[Slot] = []
        while waiting or busy:
            # New prompts, if there is room for enough of them, and the first token of each sample.
            clock = time.time()
            admitted = self._admit(waiting, busy, prompts)
            if admitted:
                logits = self._prefill(admitted, prompts)
                if temperature:
                    self._set_streams(admitted, seeds, max_new_tokens)
                self._first_tokens(admitted, logits, heat)
                busy += admitted
            self.seconds["prefill"] += time.time() - clock

            # Some steps for all rows without a look at the device, then the samples that are done.
            clock = time.time()
            step = self.compiled or self._step
            for _ in range(self.CHECK):
                live = 1 + max(slot.reach for slot in busy)
                step(heat, min(cache_bucket(live), self.capacity))
                for slot in busy:
                    slot.reach += 1
            if ended:
                self._end(busy, ended)
            unfinished = self._harvest(busy, results, ended, heat is not None)
            self.seconds["decode"] += time.time() - clock

            if progress and len(unfinished) < len(busy):
                progress(len(busy) - len(unfinished))
            busy = unfinished
        return results

    # ------------------------------------------------------------------ which prompts, which slots

    def _refuse_what_cannot_fit(self, prompts: list, longest: int, max_new_tokens: int) -> None:
        if not all(prompts):
            raise InputError("an empty prompt cannot be continued: it needs at least one token")
        positions = self.model.config.max_position_embeddings
        if longest + max_new_tokens > positions:
            raise InputError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's "
                f"{self.model.config.positions}: shorten the prompt or lower --max-new-tokens"
            )

    def _queue(self, prompts: list[list[int]], n: int) -> deque[tuple[int, range]]:
        """What is to be sampled: (prompt, sample numbers), at most B samples in one entry.

        Longest prompts first: neighbours in length share a prefill.
        """
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        queue = deque()
        for prompt in order:
            for start in range(0, n, self.slots):
                queue.append((prompt, range(start, min(start + self.slots, n))))
        return queue

    def _admit(self, waiting: deque, busy: list[Slot], prompts: list[list[int]]) -> list[Slot]:
        """Take from the queue what fits into free slots. Host only: nothing is computed yet."""
        if not waiting:
            return []
        taken = {slot.row for slot in busy}
        free = [row for row in range(self.slots) if row not in taken]

        # A prefill costs the same however few prompts are new: wait for enough free slots.
        longest = padded_length(len(prompts[waiting[0][0]]))
        if len(free) < min(self.slots, self.lines_of(longest)):
            return []

        admitted = []
        while waiting and len(waiting[0][1]) <= len(free):
            prompt, samples = waiting.popleft()
            for sample in samples:
                admitted.append(Slot(free.pop(), prompt, sample, reach=len(prompts[prompt])))
        return admitted

    def _prefill_groups(self, admitted: list[Slot], prompts: list) -> list[list[Slot]]:
        """Slots that are prefilled together: of one padded length, `lines_of` it prompts at most.

        A prompt's padded length depends on itself alone, not on what else is admitted.
        """
        groups: list[list[Slot]] = []
        length, members = 0, set()
        for slot in admitted:
            padded = padded_length(len(prompts[slot.prompt]))
            is_full = slot.prompt not in members and len(members) == self.lines_of(padded)
            if padded != length or is_full:
                groups.append([])
                length, members = padded, set()
            groups[-1].append(slot)
            members.add(slot.prompt)
        return groups

    def lines_of(self, length: int) -> int:
        """Prompts of this padded length that one prefill computes."""
        return prefill_lines(length, self.parameters, self.model.device.type == "cuda")

    # ------------------------------------------------------------------------- work on the device

    def _prefill(self, admitted: list[Slot], prompts: list[list[int]]) -> Tensor:
        """Fill the admitted slots' caches -> logits (B,V) fp32 of what follows each slot's prompt.

        Rows of other slots are zero. (B,V) whoever is new, so that `sample_step` is one graph.
        """
        logits = torch.zeros(self.slots, len(self.net.head_weight), device=self.model.device)
        for group in self._prefill_groups(admitted, prompts):
            self._prefill_group(group, prompts, logits)
        return logits

    def _prefill_group(self, group: list[Slot], prompts: list, logits: Tensor) -> None:
        """Read the group's prompts once each; copy keys, values and logits to their slots' rows."""
        device = self.model.device
        members = list(dict.fromkeys(slot.prompt for slot in group))
        length = padded_length(len(prompts[members[0]]))

        # One line a prompt, always as many lines: one shape for each padded length.
        tokens = torch.zeros(self.lines_of(length), length, dtype=torch.long)
        for line, prompt in enumerate(members):
            tokens[line, : len(prompts[prompt])] = torch.tensor(prompts[prompt])

        # .forward, because a call goes through the graph of a model compiled for training.
        hidden, keys, values = self.net.forward(sent(tokens, device), return_kv=True)

        # The state of a prompt's last token predicts what follows.
        ends = sent(torch.tensor([len(prompts[prompt]) - 1 for prompt in members]), device)
        last = hidden[torch.arange(len(members), device=device), ends]
        following = F.linear(last, self.net.head_weight.to(last.dtype)).float()

        # Every sample of a prompt gets a copy of its line.
        rows = sent(torch.tensor([slot.row for slot in group]), device)
        source = sent(torch.tensor([members.index(slot.prompt) for slot in group]), device)
        for cache, state in zip(self.keys, keys):
            cache[rows, :, :length] = state[source]
        for cache, state in zip(self.values, values):
            cache[rows, :, :length] = state[source]
        self.positions[rows] = ends[source] + 1
        logits[rows] = following[source]

    def _set_streams(self, admitted: list[Slot], seeds: list, count: int) -> None:
        """Give each admitted slot the random numbers of its sample, one for every new token."""
        uniform = np.empty((len(admitted), count), dtype=np.float32)
        for line, slot in enumerate(admitted):
            uniform[line] = uniform_numbers(seeds[slot.prompt], slot.sample, count)
        rows = sent(torch.tensor([slot.row for slot in admitted]), self.model.device)
        self.uniform[rows, :count] = sent(torch.from_numpy(uniform), self.model.device)

    def _first_tokens(self, admitted: list[Slot], logits: Tensor, heat: Tensor | None) -> None:
        """Draw each admitted slot's first token and set its row going; no other row is touched.

        logits (B,V) of what follows the prompts. heat: the temperature, as for `_step`.
        """
        rows = sent(torch.tensor([slot.row for slot in admitted]), self.model.device)
        if heat is None:
            token = greedy_step(logits)[rows]
        else:
            token, logp = sample_step(logits, self.uniform[:, 0].contiguous(), heat)
            token, self.out_logps[rows, 0] = token[rows], logp[rows]
        self.out_ids[rows, 0] = token
        self.tokens[rows] = token
        self.count[rows] = 1
        self.done[rows] = self._ends(token) | (self.limit <= 1)

    def _step(self, heat: Tensor | None, live: int) -> None:
        """Every row: from its last token to the next, which is noted and stepped onto.

        heat: the temperature; None: greedily, and no log-probs are noted. A row that is done goes
        on drawing; nothing of it is noted, and its cache is its own.
        """
        logits = self.net.decode(self.tokens, self.positions, self.keys, self.values, live)
        at = self.count.clamp(max=self.uniform.shape[1] - 1)[:, None]
        if heat is None:
            token = greedy_step(logits)
        else:
            token, logp = sample_step(logits, self.uniform.gather(1, at).squeeze(1), heat)
            self._note(self.out_logps, at, logp)
        self._note(self.out_ids, at, token)

        self.tokens.copy_(token)
        self.positions.add_(1).clamp_(max=self.capacity - 1)
        self.count.add_(~self.done)
        self.done.logical_or_(self._ends(token)).logical_or_(self.count >= self.limit)

    def _note(self, buffer: Tensor, at: Tensor, value: Tensor) -> None:
        """value (B,) at (B,1) of the rows still going; written back as it was where one is done."""
        noted = torch.where(self.done, buffer.gather(1, at).squeeze(1), value)
        buffer.scatter_(1, at, noted[:, None])

    def _ends(self, token: Tensor) -> Tensor:
        """Which of these tokens end a completion: (rows,) -> (rows,)."""
        return (token[:, None] == self.eos).any(1)

    def _end(self, busy: list[Slot], ended: Ended) -> None:
        """Mark the rows that have ended otherwise than by EOS as done."""
        count = self.count.tolist()
        rows = [slot.row for slot in busy]
        written = read_rows(self.out_ids, rows, max(count[row] for row in rows))
        for slot, ids in zip(busy, written):
            if ended(slot.prompt, ids[: count[slot.row]]) is not None:
                self.done[slot.row] = True

    def _harvest(
        self, busy: list[Slot], results: list[list], ended: Ended | None, noted: bool
    ) -> list[Slot]:
        """Put finished samples into results -> the slots that go on. Reads finished rows only.

        noted: whether log-probs were.
        """
        # One small transfer; mostly nobody is done, and nothing else is read.
        done, count = torch.stack((self.done.long(), self.count)).tolist()
        finished = [slot for slot in busy if done[slot.row]]
        if not finished:
            return busy

        rows = [slot.row for slot in finished]
        width = max(count[row] for row in rows)
        ids = read_rows(self.out_ids, rows, width)
        logps = read_rows(self.out_logps, rows, width) if noted else [[]] * len(rows)
        for slot, its_ids, its_logps in zip(finished, ids, logps):
            length = count[slot.row]
            its_ids, its_logps = its_ids[:length], its_logps[:length]
            kept = ended(slot.prompt, its_ids) if ended else None
            if kept is None:
                sample = Sample(its_ids, its_logps, its_ids[-1] not in self.eos_ids)
            else:
                sample = Sample(kept, its_logps[: agreeing(kept, its_ids)], False)
            results[slot.prompt][slot.sample] = sample
        return [slot for slot in busy if not done[slot.row]]

    # -------------------------------------------------------------------------- weights and memory

    def refresh(self) -> None:
        """Take over the model's present weights: a copy in the compute dtype, gathered once, or
        the weights themselves where they are whole and of that dtype already."""
        master = self.model.lm_head.weight
        # A whole model in the compute dtype is decoded from as it is. Of an adapted one a merged
        # copy is made, or every step would merge it again.
        is_whole = not isinstance(master, DTensor) and not adapters(self.model)
        if is_whole and master.dtype == self.model.compute_dtype:
            self.net = self.model
            return

        if self.net is None or self.net is self.model:
            with torch.device("meta"):
                self.net = Model(self.model.config, self.model.compute_dtype)
            self.net.to(self.model.compute_dtype).to_empty(device=self.model.device).rebuild()
        copies = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, weight in plain_weights(self.model):
                copies[name].copy_(whole(weight))
        self.net.live_vocab = self.model.live_vocab

    def reserve(self, longest: int, max_new_tokens: int) -> None:
        """Calls with prompts and completions of at most these lengths will follow.

        The cache is made for them at once, so that it keeps its addresses from one to the next.
        """
        self.reserved = longest + max_new_tokens, max_new_tokens

    def make_room(self) -> None:
        """`release`, unless all this may stay where it is, and where CUDA graphs know it."""
        held = [*(self.keys or []), *(self.values or [])]
        if self.net is not None and self.net is not self.model:
            held += self.net.parameters()
        size, memory = sum(tensor.nbytes for tensor in held), 0
        if self.model.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.model.device).total_memory
        if not stays(self.parameters, size, memory):
            self.release()

    def release(self) -> None:
        """Free the copy and the cache until the next `refresh`: the update needs their memory."""
        self.net = None
        self.keys = self.values = None
        self.capacity = 0

    def _affordable(self, cells: int) -> int:
        """The slots asked for, or fewer where ROOM of the device's free memory does not hold them.

        What is sampled does not depend on it.
        """
        dtype, device = self.model.compute_dtype, self.model.device
        slot = cache_bytes(self.model.config, 1, cells, dtype.itemsize)
        return int(max(1, min(self.asked, ROOM * free_bytes(device) // slot)))

    def _allocate(self, length: int, new_tokens: int) -> None:
        """Cache and state for sequences of `length`; kept between calls and only ever grown.

        Their addresses are fixed, which CUDA graphs need: a step writes into them in place.
        """
        length = max(length, self.reserved[0])
        new_tokens = max(new_tokens, self.reserved[1])
        if self.capacity:
            length = max(length, self.capacity)
            new_tokens = max(new_tokens, self.uniform.shape[1])
            if length == self.capacity and new_tokens == self.uniform.shape[1]:
                return

        config, device = self.model.config, self.model.device
        self.capacity = S = cache_bucket(length)
        self.keys = self.values = None  # their memory serves the new ones
        self.slots = B = self._affordable(S)

        # One tensor a layer: of a stack, a compiled step would copy the whole at every write into
        # a part (docs/NOTES.md).
        self.keys, self.values = [], []
        shape = (B, config.num_key_value_heads, S, config.head_dim)
        for _ in range(config.num_hidden_layers):
            self.keys.append(torch.zeros(shape, dtype=self.model.compute_dtype, device=device))
            self.values.append(torch.zeros(shape, dtype=self.model.compute_dtype, device=device))

        # The row's last token and the position it goes to; tokens noted, and whether that is all.
        self.tokens = torch.zeros(B, dtype=torch.long, device=device)
        self.positions = torch.zeros(B, dtype=torch.long, device=device)
        self.count = torch.zeros(B, dtype=torch.long, device=device)
        self.done = torch.ones(B, dtype=torch.bool, device=device)
        self.limit = torch.zeros((), dtype=torch.long, device=device)

        self.uniform = torch.zeros(B, new_tokens, device=device)
        self.out_ids = torch.zeros(B, new_tokens, dtype=torch.long, device=device)
        self.out_logps = torch.zeros(B, new_tokens, device=device)

        states = [self.tokens, self.positions, self.count, self.done, self.limit]
        states += [self.uniform, self.out_ids, self.out_logps]
        for state in self.keys + self.values + states:
            torch._dynamo.mark_static_address(state)


@dataclass(frozen=True)
class Writer:
    """A model that writes: its sampler, and the tokenizer that it reads and writes with."""

    sampler: Sampler
    tokenizer: Tokenizer
