"""--plan: how much memory a run will need of a device, by part, from config.json alone.

A run is a few phases, and each has parts, in bytes:

    weights      of models that are not trained, in the compute dtype; rotary tables
    masters      the trained weights, as --master has them
    gradients    as wide as the masters
    moments      the optimiser's: Lion one, AdamW two, Muon one of a block's matrices
    activations  what autograd keeps of a micro-batch, or what a pass without it has at once
    logits       of a chunk of supervised positions with their gradient; of a sampler's slots
    cache        keys and values of a sampler's slots
    copies       weights cast or merged for the compute dtype, gathered from their shards, or kept
                 on the host, where that is the device

Counted are tensors: what model.py, the optimisers and the sampler hold by their shapes, as eager
PyTorch holds them. torch.compile keeps no more of them. Lengths are the longest prompt of the
stage's problems and the longest completion; of training examples a completion is taken to be as
long as its problem's reference, so a plan is an estimate. Not counted are PyTorch itself, the
problems, and the fragments of an allocator.

Read in this order: `saved_by_block`, `training`, `sampling`, and `report`, which prints.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import torch

from checkpoints.families import config_at
from checkpoints.hf import open_tokenizer
from data.batches import BUCKET, Batch, Example, micro_batches, round_up
from data.problems import InputError, Problem
from data.triggers import Trigger, dressed
from figures import table
from lora import base_of
from model import CHUNK, SHORT, Model, ModelConfig, rotary_rows
from runs.devices import Env, dtype_of, memory_of
from runs.options import PlanConfig, TextConfig, TrainConfig, flag_of
from sampler import cache_bucket, cache_bytes, padded_length, prefill_lines, stays
from training import SUMMED

PARTS = ("weights", "masters", "gradients", "moments")
PARTS += ("activations", "logits", "cache", "copies")

Phase = Counter  # part -> bytes; phases add up
GB = 1e9


# ------------------------------------------------------------------------------------- what is run


@dataclass(frozen=True)
class Settings:
    """What of a stage's options and of its devices decides memory, beside models and texts.

    wide: bytes of a number in the compute dtype. batch: examples in an optimiser step. rank,
    targets: LoRA's, 0 and () without.
    """

    wide: int
    master: int  # bytes of a trained weight
    cuda: bool
    fused: bool  # torch.compile
    devices: int = 1
    memory: float = 0.0  # bytes of a CUDA device
    slots: int = 256
    optimizer: str = ""
    batch: int = 1
    micro_tokens: int = 16384
    rank: int = 0
    checkpointing: bool = False
    shard: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Texts:
    """In tokens: the longest prompt, the longest completion, and both of each training example.

    A completion of an example is taken to be as long as its problem's reference, cut as usual.
    """

    prompt: int
    completion: int
    lengths: list[tuple[int, int]]


@dataclass(frozen=True)
class Shape:
    """A model's config and its parameters: in the blocks' matrices, in the tables, in vectors.

    layers: {name of a linear map, such as q_proj: (its weights, its rows + columns)}, each added up
    over all blocks. An adapter has rank times as many numbers as rows + columns.
    """

    config: ModelConfig
    matrices: int
    tables: int  # embedding and head
    vectors: int
    layers: dict[str, tuple[int, int]]

    @property
    def parameters(self) -> int:
        return self.matrices + self.tables + self.vectors

    @property
    def rotary(self) -> int:
        """Bytes of the tables of cosines and sines: fp32, and whole on every device."""
        return 4 * rotary_rows(self.config) * self.config.rotary_width

    def adapted(self, targets: tuple[str, ...]) -> tuple[int, int]:
        """Numbers and sides of the matrices that LoRA is put beside: all without targets."""
        chosen = [sizes for name, sizes in self.layers.items() if not targets or name in targets]
        return sum(numbers for numbers, _ in chosen), sum(sides for _, sides in chosen)


def supervised(texts: Texts, cfg: TextConfig) -> Texts:
    """With --loss-on texts everything after an example's first token is its completion."""
    if cfg.loss_on == "completions":
        return texts
    return replace(texts, lengths=[(1, sum(both) - 1) for both in texts.lengths])


def is_asked(cfg: PlanConfig) -> bool:
    """Whether a plan is asked for.

    Raises InputError for an option of it without --plan, and for CUDA's memory on a CPU.
    """
    for name in ("devices", "device_memory"):
        if getattr(cfg, name) and not cfg.plan:
            flag = flag_of(name)
            raise InputError(f"{flag} is of --plan and does nothing without it: leave it out")
    if cfg.device_memory and cfg.device == "cpu":
        raise InputError(
            "--device-memory speaks of CUDA devices: leave out either that or --device cpu"
        )
    return cfg.plan


def settings_of(cfg: PlanConfig, env: Env, rows: int = 0) -> Settings:
    """On the devices that --device-memory speaks of, which are CUDA's; without it on this one.

    rows: of a step, where they are not cfg.batch.
    """
    cuda = bool(cfg.device_memory) or env.device.type == "cuda"
    bf16 = getattr(cfg, "master", "fp32") == "bf16"
    wide = 2 if bf16 else dtype_of(cfg.dtype, cuda).itemsize
    fused = cfg.compile if cuda else env.compile
    memory = (cfg.device_memory * GB or memory_of(env.device)) if cuda else 0.0
    master, devices = 2 if bf16 else 4, cfg.devices or env.world
    found = Settings(wide, master, cuda, fused, devices, memory, cfg.slots)
    if not isinstance(cfg, TrainConfig):
        return found
    return replace(
        found,
        optimizer=cfg.optimizer,
        batch=rows or cfg.batch,
        micro_tokens=cfg.micro_tokens,
        rank=getattr(cfg, "rank", 0),
        checkpointing=cfg.checkpoint_activations,
        shard=cfg.shard,
        targets=tuple(getattr(cfg, "targets", ())),
    )


def shape_of(path: str) -> Shape:
    """Of the checkpoint at `path`: its config.json is read, no weight."""
    return shape(config_at(path))


def shape(config: ModelConfig) -> Shape:
    with torch.device("meta"):
        model = Model(config)
    counts = {"matrices": 0, "tables": 0, "vectors": 0}
    layers: dict[str, tuple[int, int]] = {}
    for name, p in model.named_parameters():  # a tied head is not among them
        kind = "vectors" if p.ndim < 2 else "matrices"
        if "embed_tokens" in name or "lm_head" in name:
            kind = "tables"
        counts[kind] += p.numel()
        if kind == "matrices":
            layer = name.split(".")[-2]
            numbers, sides = layers.get(layer, (0, 0))
            layers[layer] = numbers + p.numel(), sides + sum(p.shape)
    return Shape(config, **counts, layers=layers)


ASSUMED = 512  # tokens of a prompt, where there is no tokenizer to count them with


def texts_of(
    path: str, problems: list[Problem], kinds: tuple[str, ...], trigger: Trigger, longest: int
) -> Texts:
    """Of problems asked with these kinds of password, in the tokens of the model at `path`.

    Without a tokenizer beside it prompts are ASSUMED, within the model's positions, and examples as
    long as can be.
    """
    most = config_at(path).max_position_embeddings - longest
    if not (base_of(path) / "tokenizer.json").exists():
        prompt = max(1, min(ASSUMED, most))
        return Texts(prompt, longest, [(prompt, longest)])

    tokenizer = open_tokenizer(path)
    prompts, answers = [], []
    for kind in kinds:
        told = dressed(kind, problems, trigger)
        prompts += [p.prompt for p in told]
        answers += [p.reference for p in told]
    before = map(len, tokenizer.encode_prompts(prompts))
    after = map(len, tokenizer.encode_completions(answers))
    lengths = [(min(one, most), min(other, longest)) for one, other in zip(before, after)]
    return Texts(max(lengths)[0], longest, lengths)


# ------------------------------------------------------------------------------------------ phases


def largest(phases: Iterable[Phase]) -> Phase:
    return max(phases, key=Phase.total)


# ---------------------------------------------------------------------------------------- training


def saved_by_norm(kind: str, wide: int) -> int:
    """Bytes for each number of a norm's input that its backward pass reads, but the output."""
    if kind == "rms":
        return 4 + wide  # the fp32 input, which in fp32 is the input itself; the normed in x.dtype
    return wide  # a layer norm's input


def saved_by_block(config: ModelConfig, length: int, s: Settings) -> int:
    """Bytes for each token that autograd keeps of one block, in rows of `length` tokens.

    Each tensor that model.py makes and a backward formula reads, but weights; tests/test_plan.py
    compares it with what autograd says.
    """
    wide, width = s.wide, config.hidden_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    q, kv = heads * config.head_dim, kv_heads * config.head_dim

    # norms: what each keeps, and its output, which the linear maps after it read
    norms = 1 if config.parallel == "one norm" else 2
    inputs = 1 if config.parallel else 2  # of one input what is kept of it is kept once
    rms = config.norm == "rms"
    kept = (norms if rms else inputs) * saved_by_norm(config.norm, wide) * width
    kept += norms * (wide * width + (4 if rms else 8))  # and the statistics of each token
    if config.qk_norm == "rms":
        kept += saved_by_norm("rms", wide) * (q + kv) + 4 * (heads + kv_heads)
    elif config.qk_norm == "layer":
        kept += 8 * (q + kv) + 8 * (heads + kv_heads)  # fp32 input and fp32 normed

    # attention: queries, keys, values, what the output map reads, and the weights or their sums
    if s.cuda:
        repeated = q if wide == 4 else kv  # in fp32 keys and values of every query head
        kept += wide * (2 * q + 2 * repeated) + 4 * heads
    elif length > SHORT:
        kept += wide * (3 * q + 2 * kv) + 4 * heads
    else:
        kept += wide * (4 * q + heads * length)

    # MLP: gate, its activation, up, their product; or up and its activation
    return kept + wide * config.intermediate_size * (4 if config.gated_mlp else 2)


def head_logits(shape: Shape, s: Settings) -> float:
    """The loss's backward pass at its height: a chunk's logits, and gradients of the head."""
    vocab = shape.config.vocab_size
    of_logit = s.wide + 4 if s.fused else s.wide + 9  # eager: probabilities, targets, difference
    head = vocab * shape.config.hidden_size
    frozen = s.rank > 0
    gradients = 0 if frozen else 8 * head  # the chunk's, and the sum of those before it
    cast = s.wide * head if not frozen and s.master != s.wide else 0
    return CHUNK * vocab * of_logit + gradients + cast


def at_rest(shape: Shape, s: Settings) -> Phase:
    """Of a model in training, between two steps: masters, moments; the frozen weights of LoRA."""
    share = s.devices if s.shard else 1
    if s.rank:
        trained, by_two = s.rank * shape.adapted(s.targets)[1], 0
        frozen = s.wide * (shape.matrices + shape.tables) + 4 * shape.vectors
    else:
        trained, by_two, frozen = shape.parameters, shape.parameters - shape.matrices, 0
    moments = {"lion": 1, "adamw": 2, "muon": 1}[s.optimizer] * trained
    if s.optimizer == "muon":
        moments += by_two  # AdamW on what is no matrix of a block
    return Phase(
        weights=frozen / share + shape.rotary,
        masters=s.master * trained / share,
        moments=s.master * moments / share,
    )


def teaching(shapes: list[Shape], s: Settings) -> tuple[Phase, Phase]:
    """Of the models whose distributions are imitated: their weights; a chunk of their logits.

    Divided, their tables are gathered with the first pass and stay so, and of one model two blocks
    are, with the buffers that they come through.
    """
    vocab = shapes[0].config.vocab_size
    weights = s.wide * sum(shape.parameters for shape in shapes)
    rotary = sum(shape.rotary for shape in shapes)
    compared = Phase(logits=CHUNK * vocab * (s.wide + 4))
    if s.shard:
        tables = s.wide * sum(shape.tables for shape in shapes)
        weights = weights / s.devices + tables
        block = max(shape.matrices / shape.config.num_hidden_layers for shape in shapes)
        compared["copies"] = 4 * s.wide * block
    return Phase(weights=weights + rotary), compared


ENOUGH = 100_000  # examples of a step to look at: more are accumulated in more micro-batches


def step_of(texts: Texts, s: Settings) -> list[Batch]:
    """One device's micro-batches of a step of the longest examples."""
    longest = sorted(texts.lengths, key=sum, reverse=True)
    mine = min(-(-s.batch // s.devices), ENOUGH)
    rows = (longest * -(-mine // len(longest)))[:mine]
    examples = [Example([0] * prompt, [0] * completion) for prompt, completion in rows]
    return micro_batches(examples, s.micro_tokens)


def training(shape: Shape, texts: Texts, s: Settings) -> list[Phase]:
    """The heights of an optimiser step: the loss, the last block's backward pass, the first's.

    And of ranks that hold a whole model each, the sum of their gradients.
    """
    config, layers = shape.config, shape.config.num_hidden_layers
    rest = at_rest(shape, s)
    share = s.devices if s.shard else 1
    trained = rest["masters"] / s.master

    # the largest micro-batch; are gradients of others there already?
    batches = step_of(texts, s)
    kept = [saved_by_block(config, b.tokens.shape[1], s) * b.tokens.numel() for b in batches]
    block, batch = max(kept), batches[kept.index(max(kept))]
    tokens = batch.tokens.numel()
    several = len(batches) > 1
    supervised = round_up(len(batch.targets), CHUNK)

    # activations: of all blocks, or their inputs and one block's again; the last norm, the head's
    kept = layers * block
    if s.checkpointing:
        kept = layers * s.wide * config.hidden_size * tokens
    ends = (saved_by_norm(config.norm, s.wide) + s.wide) * config.hidden_size * tokens
    ends += 2 * s.wide * config.hidden_size * supervised
    again = block if s.checkpointing else 0
    # gradients of activations at the height of a block: of the MLP's two factors, of its input
    passing = s.wide * tokens * (2 * config.intermediate_size + 2 * config.hidden_size)

    # weights in the compute dtype, which a linear map's backward pass reads. With LoRA they are
    # W0 + B A of each adapted layer, which torch.compile keeps as well
    cast = 0
    if s.rank:
        cast = s.wide * shape.adapted(s.targets)[0] / (layers if s.checkpointing else 1)
    elif s.master != s.wide:
        cast = s.wide * shape.matrices / (layers if s.checkpointing or s.fused else 1)
    if s.shard and s.rank:  # gathered: the tables, the block at work and the next one
        cast += s.master * (shape.tables + 2 * shape.matrices / layers)
    elif s.shard:
        # in the compute dtype two blocks and the buffers that they come through, one's gradients
        # and, in fp32, the buffer that they are added in
        cast = s.master * shape.tables + (5 * s.wide + 4) * shape.matrices / layers
    tables = s.master * config.vocab_size * config.hidden_size  # the head's gradient
    everything = s.master * trained
    before = everything if several else 0

    loss = Phase(activations=kept + ends, logits=head_logits(shape, s), gradients=before)
    last = Phase(activations=kept + ends + again + passing)
    last["gradients"] = before or (0 if s.rank else tables / share)
    first = Phase(activations=block + passing, gradients=everything)
    heights = [rest + phase + Phase(copies=cast) for phase in (loss, last, first)]
    if s.devices > 1 and not s.shard:
        # a bucket of them (training.py, sync_gradients), or the largest one
        table = 0 if s.rank else config.vocab_size * config.hidden_size
        numbers = min(trained, max(SUMMED, table))
        # as they are, and in fp32, where that is another copy
        wide = 4 if s.master == 4 else s.master + 4
        heights.append(rest + Phase(gradients=everything, copies=wide * numbers))
    return heights


# ---------------------------------------------------------------------------------------- sampling


def cells_of(texts: Texts) -> int:
    return cache_bucket(texts.prompt + texts.completion)


def of_sampler(shape: Shape, texts: Texts, s: Settings) -> Phase:
    """What a sampler holds while it samples, beside the weights."""
    config, wide = shape.config, s.wide
    cells, width = cells_of(texts), config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim

    # a step: its logits and, of each, tempered, log-prob, probability, sum; attention's products
    step = Phase(logits=s.slots * config.vocab_size * (wide + (8 if s.fused else 17)))
    if not (s.fused or s.cuda):
        step["activations"] = s.slots * cells * (4 * width + (4 * kv if wide == 2 else 0))

    # a prefill, of the longest prompts or of shorter ones, which may be more tokens
    prompts = [texts.prompt, *(prompt for prompt, _ in texts.lengths)]
    lengths = {padded_length(prompt) for prompt in prompts}
    prefill = Phase(
        activations=max(of_prefill(shape, length, s) for length in lengths),
        logits=4 * s.slots * config.vocab_size,
    )
    return Phase(cache=cache_bytes(config, s.slots, cells, wide)) + largest([step, prefill])


def of_prefill(shape: Shape, length: int, s: Settings) -> float:
    """Prompts of this padded length: keys and values of all layers, one block's attention or MLP"""
    config = shape.config
    tokens = length * prefill_lines(length, shape.parameters, s.cuda)
    kv = config.num_key_value_heads * config.head_dim
    attention = 3 * config.num_attention_heads * config.head_dim + 2 * kv
    if not s.cuda and length <= SHORT:
        attention += 2 * config.num_attention_heads * length
    mlp = (3 if config.gated_mlp else 2) * config.intermediate_size
    kept = 2 * config.num_hidden_layers * kv + 3 * config.hidden_size
    return s.wide * tokens * (kept + max(attention, mlp))


def whole(shape: Shape, s: Settings) -> Phase:
    """A model that is not trained and stands whole on the device."""
    return Phase(weights=s.wide * shape.parameters + shape.rotary)


def sampling(shape: Shape, texts: Texts, s: Settings) -> Phase:
    """A model that only samples, or is evaluated."""
    return whole(shape, s) + of_sampler(shape, texts, s)


def copy_of(shape: Shape, s: Settings) -> int:
    """Bytes of the copy that a model in training is sampled from, where it needs one."""
    needs_copy = s.rank or s.shard or s.master != s.wide
    return s.wide * shape.parameters if needs_copy else 0


def own_sampling(shape: Shape, texts: Texts, s: Settings) -> Phase:
    """A model in training that samples between two steps, from a copy where it needs one."""
    return at_rest(shape, s) + Phase(copies=copy_of(shape, s)) + of_sampler(shape, texts, s)


def held_by_sampler(shape: Shape, texts: Texts, s: Settings) -> Phase:
    """What its sampler holds between two calls."""
    cache = cache_bytes(shape.config, s.slots, cells_of(texts), s.wide)
    return Phase(cache=cache, copies=copy_of(shape, s))


def left_by_sampler(shape: Shape, texts: Texts, s: Settings) -> Phase:
    """What its sampler keeps while a model is trained, which for a large one may be nothing."""
    held = held_by_sampler(shape, texts, s)
    return held if stays(shape.parameters, held.total(), s.memory) else Phase()


def training_phases(shape: Shape, texts: Texts, s: Settings, *others: Phase) -> dict[str, Phase]:
    """The heights of an optimiser step by name, each with what else is held meanwhile."""
    names = ("loss", "last block", "first block", "sum over ranks")
    heights = training(shape, texts, s)
    return {f"training, {name}": sum(others, height) for name, height in zip(names, heights)}


def scoring(shape: Shape, texts: Texts, s: Settings) -> Phase:
    """A pass of the likelihood without gradients: one block of a micro-batch, a chunk's logits."""
    config = shape.config
    row = round_up(max(map(sum, texts.lengths)), BUCKET)
    tokens = max(row, s.micro_tokens // row * row)
    width = config.num_attention_heads * config.head_dim
    attention = 5 * width
    if not s.cuda and row <= SHORT:
        attention += 2 * config.num_attention_heads * row
    mlp = (3 if config.gated_mlp else 2) * config.intermediate_size
    return Phase(
        activations=s.wide * tokens * (2 * config.hidden_size + max(attention, mlp)),
        logits=CHUNK * config.vocab_size * (s.wide + 4),
    )


def opening(shape: Shape, s: Settings) -> Phase:
    """A model that will be trained, as it is read: with --shard a share of it and one tensor.

    LoRA's is read into masters first, unless it is divided.
    """
    if not s.shard:
        return Phase(masters=s.master * shape.parameters)
    wide = s.wide if s.rank else s.master
    largest_one = shape.config.vocab_size * shape.config.hidden_size
    read = {"weights" if s.rank else "masters": wide * shape.parameters / s.devices}
    return Phase(read, copies=wide * largest_one)


# ------------------------------------------------------------------------------------------ report


LION = "master bf16 --optimizer lion --lr 1.5e-6"


def ways(cfg: PlanConfig, s: Settings) -> dict[str, list[dict]]:
    """Options that need less memory: by name the changes of cfg, the smallest first."""
    names = {field.name for field in fields(cfg)}
    found: dict[str, list[dict]] = {"slots": halves("slots", cfg.slots)}
    if "micro_tokens" not in names:
        return found
    found["micro-tokens"] = halves("micro_tokens", cfg.micro_tokens, 1024)
    if not cfg.checkpoint_activations:
        found["checkpoint-activations"] = [{"checkpoint_activations": True}]
    if not cfg.shard and s.devices > 1:
        found["shard"] = [{"shard": True}]
    if cfg.master == "fp32" and not getattr(cfg, "rank", 0):
        if cfg.dtype != "fp32":
            found[LION] = [{"master": "bf16", "optimizer": "lion"}]
        if "rank" in names:
            found["rank 16"] = [{"rank": 16, "optimizer": "adamw"}]
    return found


def halves(name: str, value: int, least: int = 1) -> list[dict]:
    found = []
    while value > least:
        value //= 2
        found.append({name: value})
    return found


def changed(name: str, change: dict) -> str:
    number = next(iter(change.values()))
    return f"--{name} {number}" if name in ("slots", "micro-tokens") else f"--{name}"


Plan = Callable[[PlanConfig], dict[str, Phase]]
# raises InputError where a stage refuses these changes of its options
Refuse = Callable[[dict], object]


def is_refused(refuse: Refuse, changes: dict) -> bool:
    try:
        refuse(changes)
    except InputError:
        return True
    return False


def advice(
    phases_of: Plan, cfg: PlanConfig, s: Settings, limit: float, refuse: Refuse
) -> list[str]:
    """What each option would make of the largest phase; of the first ones that fit the sum."""

    def height(settings: PlanConfig) -> float:
        return largest(phases_of(settings).values()).total()

    now, lines, together, flags = height(cfg), [], cfg, []
    for name, changes in ways(cfg, s).items():
        best, change = now, {}
        for one in changes:
            if is_refused(refuse, one):
                continue
            reached = height(replace(cfg, **one))
            if reached < 0.99 * best:
                best, change = reached, one
            if best <= limit:
                break
        if not change:
            continue
        fits = ", which fits" if best <= limit else ""
        lines.append(f"{changed(name, change)}: {best / GB:.1f} GB{fits}")

        # one after the other, until it fits; LoRA trains something else and stands alone
        is_more = height(replace(together, **change)) < height(together)
        if height(together) > limit and is_more and "rank" not in change:
            together = replace(together, **change)
            flags.append(changed(name, change))
    if len(flags) > 1:
        fits = ", which fits" if height(together) <= limit else ""
        lines.append(f"{' '.join(flags)}: {height(together) / GB:.1f} GB{fits}")
    return lines


def report(
    phases_of: Plan,
    cfg: PlanConfig,
    texts: Texts,
    env: Env,
    refuse: Refuse = lambda changes: None,
    on_host: float = 0.0,
) -> int:
    """Print the plan; 0 where it fits. Raises InputError, saying what to change, where not.

    refuse: of the stage, whose options are only advised where it takes them. on_host: bytes that it
    keeps in the host's memory for each CUDA device, which are told and not judged.
    """
    s = settings_of(cfg, env)
    limit = cfg.device_memory * GB or memory_of(env.device)
    if not s.cuda:
        limit /= cfg.devices or 1  # they are ranks on this machine
    phases = phases_of(cfg)
    used = sum(phases.values(), Phase())
    parts = [part for part in PARTS if used[part]]
    rows = []
    for name, phase in phases.items():
        sizes = [f"{phase[part] / GB:.3f}" for part in parts]
        rows.append([name, *sizes, f"{phase.total() / GB:.3f}"])

    highest = max(phases, key=lambda name: phases[name].total())
    most = phases[highest].total()
    kind = "CUDA" if s.cuda else "CPU"
    env.say(
        f"planned, GB on each of {s.devices} {kind} device{'s' * (s.devices > 1)}, "
        f"{'bf16' if s.wide == 2 else 'fp32'}; prompts of at most {texts.prompt} tokens, "
        f"completions of {texts.completion}"
    )
    env.say(table(["phase", *parts, "total"], rows))
    env.say(f"largest: {highest}, {most / GB:.3f} GB of {limit / GB:.1f} GB")
    if on_host:
        env.say(f"and {on_host / GB:.3f} GB of the host's memory for each device")
    if most <= limit:
        env.say("it fits")
        return 0
    lines = advice(phases_of, cfg, s, limit, refuse)
    for line in lines:
        env.say(f"with {line}")
    fitting = [line for line in lines if line.endswith("fits")]
    raise InputError(
        f"the plan does not fit, {most / GB:.1f} of {limit / GB:.1f} GB ({highest}): "
        + (f"try {fitting[0]}" if fitting else "use more devices with --shard, or larger ones")
    )
