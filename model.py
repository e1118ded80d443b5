"""Everything that touches weights: configuration, network, likelihood, sampling, Hugging Face checkpoints.

A hand-written Llama-style decoder: RMSNorm, rotary positions (half-split), grouped-query attention through SDPA, SwiGLU, a tied
or untied head. Parameter names are those of Hugging Face's Llama, so a checkpoint directory loads and saves with no name map.

Read in this order: the kernels (plain functions that torch.compile fuses), the modules, `completion_logps` (the one likelihood
function, under every loss), `Sampler` (the one way to generate), `load_model` and `save_model`.

Shapes: B batch rows, T time, C width, H query heads, K key-value heads, D head width, V vocabulary, S cache length, N supervised
positions, L layers. Weights, gradients and losses are fp32; matrix products run in the model's compute dtype (bf16 or fp32).
"""

import functools
import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from data import InputError
from data.batches import Batch, round_up
from data.text import Tokenizer

# ------------------------------------------------------------------------------------------------------------------- kernels
# Each kernel is a plain function on tensors: no host sync, no data-dependent shape. Called inside a compiled model it is traced
# into the surrounding graph; called on its own it is compiled by itself. `kernel.eager` is always the reference.

torch._dynamo.config.recompile_limit = 256  # graphs of one function; a kernel has one for each model shape and cache bucket
compile_kernels = False  # set once by training.setup(); False means every kernel runs eagerly


def kernel(fn=None, *, dynamic: bool = False):
    """Mark `fn` as a fused kernel. dynamic=True compiles one graph for all sizes instead of one per shape."""
    if fn is None:
        return functools.partial(kernel, dynamic=dynamic)
    compiled = torch.compile(fn, fullgraph=True, dynamic=dynamic)

    @functools.wraps(fn)
    def call(*args):
        return compiled(*args) if compile_kernels and not torch.compiler.is_compiling() else fn(*args)

    call.eager = fn
    return call


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) / rms(x) * weight. Statistics in fp32; rounded to x.dtype *before* the weight, the order HF weights were trained in."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout. x (B,heads,T,D); cos, sin fp32 (T,D/2), or (B,1,1,D/2) where rows differ."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU: (silu(x gate^T) * (x up^T)) down^T. x (...,C); gate, up (I,C); down (C,I)."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


@kernel
def chunk_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(hidden weight^T)[target] and the log-normaliser. hidden (n,C), weight (V,C), targets (n,) -> (n,), (n,) in fp32."""
    logits = F.linear(hidden, weight.to(hidden.dtype)).float()
    normaliser = logits.logsumexp(-1)
    return logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser, normaliser


@kernel
def chunk_logps_grad(hidden: Tensor, weight: Tensor, targets: Tensor, normaliser: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of sum(grad * chunk_logps): d logits = grad * (onehot - softmax). -> (n,C) in hidden's dtype, (V,C) fp32."""
    weight = weight.to(hidden.dtype)
    probs = (F.linear(hidden, weight).float() - normaliser[:, None]).exp()
    onehot = torch.arange(weight.shape[0], device=targets.device) == targets[:, None]
    d_logits = (grad[:, None] * (onehot.float() - probs)).to(hidden.dtype)
    return d_logits @ weight, (d_logits.T @ hidden).float()


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
    drawn = (cdf <= (uniform * (1 - 1e-6))[:, None] * cdf[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
    token = torch.where(temperature > 0, drawn, logps.argmax(-1))
    return token, logps.gather(-1, token[:, None]).squeeze(-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + causal mask) v. q (B,H,T,D), k and v (B,K,T,D) -> (B,H,T,D).

    SDPA everywhere but on a CPU at short lengths, where two batched products train faster than its flash kernel (docs/NOTES.md).
    """
    B, H, T, D = q.shape
    if q.device.type != "cpu" or T > 512:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != k.shape[1])
    k, v = (x.repeat_interleave(H // k.shape[1], dim=1).flatten(0, 1) for x in (k, v))
    mask = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1)
    scores = torch.baddbmm(mask, (q * D**-0.5).flatten(0, 1), k.transpose(1, 2))
    return (scores.softmax(-1) @ v).view(B, H, T, D)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One query a row over its cache. q (B,H,1,D), keys and values (B,K,S,D), mask (B,1,1,S) true where to look -> (B,H,1,D).

    SDPA but on a CPU, where products and sums that fuse into loops over the cache are several times faster (docs/NOTES.md).
    """
    B, H, _, D = q.shape
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=H != keys.shape[1])
    q = (q * D**-0.5).view(B, keys.shape[1], -1, 1, D)  # query heads grouped by the key-value head they share
    scores = (keys[:, :, None] * q).sum(-1, dtype=torch.float32).masked_fill(~mask, float("-inf"))  # (B,K,H/K,S)
    return (scores.softmax(-1)[..., None] * values[:, :, None].float()).sum(-2).to(values.dtype).view(B, H, 1, D)


@kernel
def decode_block(block: "Block", x: Tensor, cos: Tensor, sin: Tensor, cache: tuple) -> Tensor:
    """One decode step through one layer, its cache written in place. x (B,1,C) -> (B,1,C). One graph serves all layers."""
    return block(x, cos, sin, cache)[0]


# ------------------------------------------------------------------------------------------------------------------- network


@dataclass
class ModelConfig:
    """The part of a Hugging Face config.json that decides the computation (Llama family)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False

    @classmethod
    def from_hf(cls, config: dict) -> "ModelConfig":
        """Read config.json. Raises InputError for anything that this network would silently compute wrongly."""
        kind = config.get("model_type")
        if kind not in ("llama", "mistral"):
            raise InputError(f"model_type {kind!r} is not supported: use a llama or mistral checkpoint")
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            if key not in config:
                raise InputError(f"config.json lacks {key}")
        rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
        refused = {"hidden_act": ("silu", config.get("hidden_act", "silu")), "attention_bias": (False, config.get("attention_bias", False)),
                   "mlp_bias": (False, config.get("mlp_bias", False)), "sliding_window": (None, config.get("sliding_window")),
                   "quantization_config": (None, config.get("quantization_config")),
                   "rope_type": ("default", rope.get("rope_type", rope.get("type", "default")))}
        for key, (supported, value) in refused.items():
            if value != supported:
                raise InputError(f"config.json has {key} = {value!r}: only {supported!r} is supported")
        heads = config["num_attention_heads"]
        return cls(vocab_size=config["vocab_size"], hidden_size=config["hidden_size"], intermediate_size=config["intermediate_size"],
                   num_hidden_layers=config["num_hidden_layers"], num_attention_heads=heads,
                   num_key_value_heads=config.get("num_key_value_heads") or (8 if kind == "mistral" else heads),
                   head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                   max_position_embeddings=config["max_position_embeddings"], rope_theta=rope.get("rope_theta", 10000.0),
                   rms_norm_eps=config.get("rms_norm_eps", 1e-6), tie_word_embeddings=config.get("tie_word_embeddings", False))

    def to_hf(self, tokenizer: Tokenizer) -> dict:
        """The config.json that transformers opens as LlamaForCausalLM; both spellings of the rotary settings."""
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **asdict(self), "hidden_act": "silu",
                "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32", "dtype": "float32", "rope_scaling": None,
                "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
                "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


class Linear(nn.Linear):
    """A bias-free linear layer whose fp32 weight is cast to the activation's dtype in the forward pass: fp32 masters, bf16 compute."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = Linear(config.hidden_size, self.heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,T,C) -> output (B,T,C), keys and values (B,K,T,D). Without a cache: causal over the row.

        With one, T is 1: cache = (keys (B,K,S,D), values, rows (B,), positions (B,), live, mask (B,1,1,live)); this step's key
        and value are written in place at each row's position and the row attends to the first `live` cells that mask allows.
        """
        B, T, _ = x.shape
        q = rotate(self.q_proj(x).view(B, T, self.heads, self.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        if cache is None:
            y = causal_attention(q, k, v)
        else:
            keys, values, rows, positions, live, mask = cache
            keys[rows, :, positions] = k.squeeze(2)
            values[rows, :, positions] = v.squeeze(2)
            y = cached_attention(q, keys[:, :, :live], values[:, :, :live], mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.heads * self.head_dim)), k, v


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return gated_mlp(x, *(layer.weight.to(x.dtype) for layer in (self.gate_proj, self.up_proj, self.down_proj)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple | None = None) -> tuple[Tensor, Tensor, Tensor]:
        y, k, v = self.self_attn(self.input_layernorm(x), cos, sin, cache)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Model(nn.Module):
    """A Llama-style decoder. Calling it gives final hidden states; logits are made only where they are needed (see completion_logps)."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.checkpointing = False  # compute a block's activations again in the backward pass instead of keeping them
        self.live_vocab = config.vocab_size  # ids the tokenizer has; head rows beyond are never scored or sampled
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.rebuild()

    def rebuild(self) -> None:
        """Tie the head and fill the rotary tables (max positions, D/2), fp32: what materialising from the meta device undoes."""
        config = self.config
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        inverse = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim)
        rows = cache_bucket(config.max_position_embeddings)  # padded rows and the cache reach past the last real position
        angles = torch.outer(torch.arange(rows, dtype=torch.float32, device="cpu"), inverse)
        device = self.lm_head.weight.device
        device = "cpu" if device.type == "meta" else device
        self.register_buffer("cos", angles.cos().to(device), persistent=False)
        self.register_buffer("sin", angles.sin().to(device), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def head_weight(self) -> Tensor:
        return self.lm_head.weight[: self.live_vocab]

    def init_weights(self, generator: torch.Generator) -> "Model":
        """embeddings, head, projections: normal(0, 0.02); o_proj and down_proj: that / sqrt(2 L), so depth keeps the residual's scale; norms: 1."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / math.sqrt(2 * self.config.num_hidden_layers) if residual else 0.02
                with torch.no_grad():
                    p.copy_(torch.randn(p.shape, generator=generator) * std)
        return self

    def forward(self, tokens: Tensor, return_kv: bool = False):
        """tokens (B,T) -> hidden states (B,T,C) in the compute dtype; with return_kv also keys and values, for each layer (B,K,T,D).

        Rows are padded on the right; as attention is causal, padding changes nothing for the real tokens before it.
        """
        x, kv = self.model.embed_tokens(tokens).to(self.compute_dtype), []
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.model.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x, *pair = checkpoint(layer, x, cos, sin, use_reentrant=False)
            else:
                x, *pair = layer(x, cos, sin)
            kv.append(pair)
        x = self.model.norm(x)
        return (x, *zip(*kv)) if return_kv else x

    def decode(self, tokens: Tensor, positions: Tensor, keys: list[Tensor], values: list[Tensor], live: int) -> Tensor:
        """One step for every row. tokens, positions (B,); keys, values: for each layer (B,K,S,D), written in place -> logits (B,V) over live ids."""
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        mask = (torch.arange(live, device=tokens.device) <= positions[:, None])[:, None, None]
        cos, sin = self.cos[positions][:, None, None], self.sin[positions][:, None, None]
        x = self.model.embed_tokens(tokens[:, None]).to(self.compute_dtype)
        for layer, k, v in zip(self.model.layers, keys, values):
            x = decode_block(layer, x, cos, sin, (k, v, rows, positions, live, mask))
        return F.linear(self.model.norm(x)[:, 0], self.head_weight.to(x.dtype))

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, length: int) -> float:
        """Training FLOPs per token, PaLM convention: 6 per matrix weight (head yes, embedding no) + 12 L H D T for attention."""
        c = self.config
        matrices = sum(p.numel() for n, p in self.named_parameters() if p.ndim == 2 and "embed_tokens" not in n)
        matrices += self.lm_head.weight.numel() if c.tie_word_embeddings else 0
        return 6 * matrices + 12 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * length


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all ranks (so all must call this); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


SMALL = 100_000_000  # parameters: below, the whole model is one compiled graph; above, one graph serves every block


def compile_model(model: Model, by_block: bool = False) -> None:
    """Compile in place (parameter names stay clean): the whole model when small, else block by block, one graph for all blocks.

    Dynamic shapes: one graph for every batch shape.
    """
    parts = [model] if model.parameter_count() < SMALL and not by_block else model.model.layers
    for part in parts:
        part.compile(fullgraph=True, dynamic=True)


# ------------------------------------------------------------------------------------------------------------------- likelihood

CHUNK = 1024  # supervised positions whose logits exist at one time


class _LinearLogps(torch.autograd.Function):
    """log softmax(hidden weight^T)[targets], chunk by chunk: the (N,V) logits never exist, forward or backward.

    The backward pass computes each chunk's logits again instead of keeping them: one product more, N/CHUNK times less memory
    (the idea of Liger-Kernel and of Wijmans et al. 2024, "Cut your losses", in plain PyTorch).
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        pairs = [chunk_logps(h, weight, t) for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK))]
        normaliser = torch.cat([n for _, n in pairs])
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        return torch.cat([logps for logps, _ in pairs])

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden, weight, targets, normaliser = ctx.saved_tensors
        d_hidden, d_weight = [], torch.zeros_like(weight)
        for h, t, n, g in zip(hidden.split(CHUNK), targets.split(CHUNK), normaliser.split(CHUNK), grad.split(CHUNK)):
            dh, dw = chunk_logps_grad(h, weight, t, n, g.contiguous())
            d_hidden.append(dh)
            d_weight += dw
        return torch.cat(d_hidden), d_weight, None


def linear_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Token log-probs in fp32: hidden (N,C), weight (V,C), targets (N,) -> (N,). Padded to whole chunks, so shapes never change."""
    n, extra = len(targets), -len(targets) % CHUNK
    if extra:
        hidden, targets = F.pad(hidden, (0, 0, 0, extra)), F.pad(targets, (0, extra))
    return _LinearLogps.apply(hidden, weight, targets)[:n]


def completion_logps(model: Model, batch: Batch) -> Tensor:
    """log p(token | everything before it) of every completion token of the batch, EOS included -> (N,) fp32, in batch.index order.

    The one likelihood function: the SFT loss is its negative sum, sequence log-probs are its sums over batch.owner.
    """
    hidden = model(batch.tokens)
    return linear_logps(hidden.flatten(0, 1)[batch.index], model.head_weight, batch.targets)


# ------------------------------------------------------------------------------------------------------------------- sampling


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
        self.step = torch.compile(self._step, mode="reduce-overhead", fullgraph=True) if self._compiled() else self._step

    def _compiled(self) -> bool:
        # On a CPU `decode_block` is compiled alone: a graph of the whole step takes longer to compile than it returns (docs/NOTES.md).
        return compile_kernels and self.model.device.type == "cuda"

    def refresh(self) -> None:
        """Take over the model's present weights: into a copy in the compute dtype, gathered once, or as they are (whole and fp32)."""
        if self.model.compute_dtype == self.model.lm_head.weight.dtype and not isinstance(self.model.lm_head.weight, DTensor):
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
        self.keys, self.values = ([torch.zeros(B, c.num_key_value_heads, length, c.head_dim, dtype=self.model.compute_dtype, device=device)
                                   for _ in range(c.num_hidden_layers)] for _ in range(2))
        self.tokens, self.positions, self.count, self.limit = (torch.zeros(B, dtype=torch.long, device=device) for _ in range(4))
        self.done = torch.ones(B, dtype=torch.bool, device=device)
        self.out_ids = torch.zeros(B, new_tokens, dtype=torch.long, device=device)
        self.out_logps, self.uniform = (torch.zeros(B, new_tokens, device=device) for _ in range(2))
        for state in (*self.keys, *self.values, self.tokens, self.positions, self.count, self.limit, self.done, self.out_ids,
                      self.out_logps, self.uniform):
            torch._dynamo.mark_static_address(state)

    def _step(self, temperature: Tensor, live: int) -> None:
        """Every slot: choose a token from the last one, note it, advance. Finished slots repeat their last cell, harmlessly."""
        self._advance(self.net.decode(self.tokens, self.positions, self.keys, self.values, live), temperature)
        self.positions.add_(1).clamp_(max=self.capacity - 1)

    def _advance(self, logits: Tensor, temperature: Tensor) -> None:
        at = self.count.clamp(max=self.uniform.shape[1] - 1)[:, None]
        token, logp = sample_step(logits, self.uniform.gather(1, at).squeeze(1), temperature)
        self.out_ids.scatter_(1, at, torch.where(self.done, self.out_ids.gather(1, at).squeeze(1), token)[:, None])
        self.out_logps.scatter_(1, at, torch.where(self.done, self.out_logps.gather(1, at).squeeze(1), logp)[:, None])
        self.tokens.copy_(token)
        self.count.add_(~self.done)
        self.done.logical_or_((token[:, None] == self.eos).any(1)).logical_or_(self.count >= self.limit)

    @torch.no_grad()
    def __call__(self, prompts: list[list[int]], n: int = 1, temperature: float = 0.0, max_new_tokens: int = 96, seed: int = 0,
                 seeds: list | None = None, progress=None) -> list[list[Sample]]:
        """n completions for each prompt (lists of token ids); temperature 0 is greedy.

        seeds gives each prompt its own random stream (default: seed and the prompt's place); a sample depends on its prompt,
        stream and weights, not on the other prompts or their number. progress(k) is called as k samples finish. Raises
        InputError when a prompt and its completion cannot fit the model's positions.
        """
        longest = max(map(len, prompts), default=0)
        if not all(prompts):
            raise InputError("an empty prompt cannot be continued: it needs at least one token")
        if longest + max_new_tokens > self.model.config.max_position_embeddings:
            raise InputError(f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's "
                             f"{self.model.config.max_position_embeddings} positions: shorten the prompt or lower --max-new-tokens")
        self._allocate(longest + max_new_tokens, max_new_tokens)
        seeds = seeds or [[seed, i] for i in range(len(prompts))]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # neighbours in length share a prefill bucket
        waiting = [(i, range(j, min(j + self.slots, n))) for i in order for j in range(0, n, self.slots)]
        results: list[list] = [[None] * n for _ in prompts]
        owner: list = [None] * self.slots  # (prompt, sample) of each slot
        heat = torch.tensor(float(temperature), device=self.model.device)
        self.done.fill_(True)
        reach = [0] * self.slots  # host-side bound on each slot's position: no device read needed to know how much cache is live
        while waiting or any(owner):
            clock = time.time()
            free = [s for s in range(self.slots) if owner[s] is None]
            if len(free) >= min(self.slots, self.PREFILL_ROWS):  # a prefill computes PREFILL_ROWS rows however few are new
                self._fill(waiting, free, prompts, owner, reach, seeds, heat, max_new_tokens)
            self.seconds["prefill"] += time.time() - clock
            clock = time.time()
            for _ in range(self.CHECK):
                live = max((reach[s] + 1 for s in range(self.slots) if owner[s]), default=1)
                self.step(heat, min(cache_bucket(live), self.capacity))
                reach = [r + 1 for r in reach]
            finished = 0
            done, count, ids, logps = self.done.tolist(), self.count.tolist(), self.out_ids.tolist(), self.out_logps.tolist()
            for s in range(self.slots):
                if owner[s] and done[s]:
                    i, j = owner[s]
                    row = ids[s][: count[s]]
                    results[i][j] = Sample(row, logps[s][: count[s]], row[-1] not in self.eos.tolist())
                    owner[s], finished = None, finished + 1
            self.seconds["decode"] += time.time() - clock
            if progress and finished:
                progress(finished)
        return results

    def _fill(self, waiting: list, free: list[int], prompts, owner, reach, seeds, heat, max_new_tokens: int) -> None:
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
            while admitted and len(group) < self.PREFILL_ROWS and round_up(len(prompts[admitted[0][0]]), self.BUCKET) == length:
                group.append(admitted.pop(0))
            tokens = torch.zeros(self.PREFILL_ROWS, length, dtype=torch.long)
            for row, (i, _) in enumerate(group):
                tokens[row, : len(prompts[i])] = torch.tensor(prompts[i])
            ends = torch.tensor([len(prompts[i]) - 1 for i, _ in group], device=device)
            hidden, k, v = self.net.forward(tokens.to(device), return_kv=True)
            rows = torch.arange(len(group), device=device)
            logits = F.linear(hidden[rows, ends], self.net.head_weight.to(hidden.dtype)).float()
            source = torch.tensor([row for row, (_, places) in enumerate(group) for _ in places], device=device)
            slots = torch.tensor([s for _, places in group for s, _ in places], device=device)
            for caches, states in ((self.keys, k), (self.values, v)):
                for cache, state in zip(caches, states):
                    cache[slots, :, :length] = state[source]
            first[slots], new[slots] = logits[source], True
            self.positions[slots] = ends[source] + 1
            uniform = np.stack([np.random.default_rng([*np.atleast_1d(seeds[i]).tolist(), j]).random(max_new_tokens, dtype=np.float32)
                                for i, places in group for _, j in places])
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


# ------------------------------------------------------------------------------------------------------------------- checkpoints

SHARD_BYTES = 5_000_000_000


def load_model(path: str | Path, device: torch.device | str = "cpu", compute_dtype: torch.dtype = torch.float32) -> tuple[Model, Tokenizer]:
    """Open a checkpoint directory in Hugging Face layout: fp32 master weights on `device`, and its tokenizer.

    Raises InputError, naming the file, for anything missing, truncated, corrupted, misshapen, or where tokenizer and model disagree.
    """
    path = Path(path)
    config = ModelConfig.from_hf(read_json(path / "config.json"))
    tokenizer = Tokenizer.load(path)
    if tokenizer.size > config.vocab_size:
        raise InputError(f"{path}: the tokenizer has {tokenizer.size} ids but the model only {config.vocab_size} rows: they do not belong together")
    with torch.device("meta"):
        model = Model(config, compute_dtype)
    expected = dict(model.named_parameters())  # a tied head appears once, as the embedding
    index = path / "model.safetensors.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    loaded = {}
    for name in files:
        try:
            with safe_open(path / name, framework="pt", device=str(device)) as f:
                for key in f.keys():
                    if key in expected:
                        tensor = f.get_tensor(key)
                        if tensor.shape != expected[key].shape:
                            raise InputError(f"{path / name}: {key} has shape {tuple(tensor.shape)}, config.json says {tuple(expected[key].shape)}")
                        loaded[key] = nn.Parameter(tensor.to(torch.float32))
                    elif not (key == "lm_head.weight" or key.endswith("rotary_emb.inv_freq")):
                        raise InputError(f"{path / name}: unexpected tensor {key}")
        except FileNotFoundError:
            raise InputError(f"{path / name} does not exist: the checkpoint is incomplete") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path / name} is truncated or corrupted ({error})") from None
    if missing := sorted(set(expected) - set(loaded)):
        raise InputError(f"{path}: {len(missing)} tensors are missing, first {missing[0]}")
    for key, parameter in loaded.items():
        module, _, name = key.rpartition(".")
        setattr(model.get_submodule(module), name, parameter)
    model.rebuild()
    model.live_vocab = tokenizer.size
    return model, tokenizer


def collected(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors in the memory of the rank that keeps them; the others only take part in gathering what is sharded."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.contiguous().cpu()
    return found


def save_model(path: str | Path, model: Model, tokenizer: Tokenizer, write: bool = True) -> None:
    """Write a checkpoint directory that `transformers.AutoModelForCausalLM.from_pretrained` opens. All ranks call it, one writes.

    Everything is written and synced beside the old files first and then renamed over them, config.json last: a full disk or a
    kill leaves the previous checkpoint as it was.
    """
    path = Path(path)
    staging = path / ".saving"
    tensors = collected(dict(model.named_parameters()), write)  # a tied head appears once
    if not write:
        return
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        shards, size = [{}], 0
        for name, tensor in tensors.items():
            if size and size + tensor.nbytes > SHARD_BYTES:
                shards, size = [*shards, {}], 0
            shards[-1][name], size = tensor, size + tensor.nbytes
        names = ["model.safetensors"] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        for name, shard in zip(names, shards):
            save_file(shard, staging / name, metadata={"format": "pt"})
        if len(shards) > 1:
            where = {key: name for name, shard in zip(names, shards) for key in shard}
            write_json(staging / "model.safetensors.index.json", {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where})
        tokenizer.save(staging)
        write_json(staging / "generation_config.json", {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id})
        write_json(staging / "config.json", model.config.to_hf(tokenizer))
        for file in staging.iterdir():
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        for file in sorted(staging.iterdir(), key=lambda f: (f.name == "config.json", f.name)):
            os.replace(file, path / file.name)
        for stale in path.glob("model*.safetensors*"):  # the other layout's files would be opened in place of ours, or hashed with them
            if stale.name not in names and not (len(shards) > 1 and stale.name.endswith(".index.json")):
                stale.unlink()
    except (OSError, SafetensorError) as error:
        raise InputError(f"could not write the checkpoint {path} ({error}); what it held before is untouched") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def weights_hash(path: str | Path) -> str:
    """Short sha256 of a checkpoint's weight files: how a run records its parent."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: is {path.parent} a checkpoint directory?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error})") from None


def write_json(path: Path, value) -> None:
    """Atomic: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)
