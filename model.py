"""The network: configuration, kernels, a hand-written decoder, and the one likelihood function.

A Llama-style decoder: RMSNorm, rotary positions (half-split), grouped-query attention, SwiGLU, a
tied or untied head. Parameter names are those of Hugging Face's Llama, so a checkpoint directory
of that family loads and saves with no name map. GPT-NeoX (Pythia), Mistral, Qwen2, Qwen3 and
StableLM are the same network but for a few parts, each chosen by one `if` where modules are built:
on a first reading take the Llama's side of each.

Read in this order, which is the file's: the kernels (plain functions, which torch.compile fuses);
the modules up to `Model.forward` and, one token at a time, `Model.decode`; and `completion_logps`,
the one likelihood function, under every loss.

Shapes: B batch rows, T time, C width, H query heads, K key-value heads, D head width, V vocabulary,
S cache length, N supervised positions, L layers. Weights, gradients and losses are fp32; matrix
products run in the model's compute dtype (bf16 or fp32).
"""

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from data.batches import BUCKET, Batch, round_up
from data.problems import InputError

# ------------------------------------------------------------------------------------------ kernels
# A kernel is a plain function on tensors: no host sync, no shape that depends on data. Within a
# compiled model it is traced into the surrounding graph; called alone it is compiled by itself.
# `kernel.eager` is always the reference.

# Graphs of one function: a kernel has one for each model shape and cache bucket.
torch._dynamo.config.recompile_limit = 256

compile_kernels = False  # set once by devices.setup(); False means every kernel runs eagerly


def kernel(fn=None, *, dynamic: bool = False):
    """Mark `fn` as a fused kernel. dynamic=True compiles one graph for all sizes, not one each."""
    if fn is None:
        return functools.partial(kernel, dynamic=dynamic)
    compiled = torch.compile(fn, fullgraph=True, dynamic=dynamic)

    @functools.wraps(fn)
    def call(*args):
        if compile_kernels and not torch.compiler.is_compiling():
            return compiled(*args)
        return fn(*args)

    call.eager = fn
    return call


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) / rms(x) * weight.

    Statistics in fp32; rounded to x.dtype *before* the weight, the order in which Hugging Face's
    models were trained.
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout. x (B,heads,T,D) -> the same.

    cos, sin: fp32, (T,D/2), or (B,1,1,D/2) where each row has a position of its own. Where they
    are narrower, only the first part of each head turns, and the rest passes.
    """
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), dim=-1)

    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


# Hugging Face's names of the MLP's non-linearity; most of them are one function.
gelu_tanh = functools.partial(F.gelu, approximate="tanh")
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}


@kernel
def chunk_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(hidden weight^T)[target] and the log-normaliser.

    hidden (n,C) in the compute dtype, weight (V,C), targets (n,) -> (n,), (n,) in fp32.

    Precision: the product accumulates in fp32, but its result, the logits, is rounded to the
    compute dtype. What follows (maximum, exponentials, their sum, the difference) is fp32. In bf16
    a logit from 16 to 32 is thereby off by up to 0.06. With a real head of 49,152 ids that is 0.03
    nats a token (rms), a little less than what the bf16 hidden states bring. It stays so: an fp32
    head takes twice the time and would mend only a third of the gap between sampler and trainer.
    """
    logits = F.linear(hidden, weight.to(hidden.dtype)).float()
    normaliser = logits.logsumexp(-1)
    return logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser, normaliser


@kernel
def chunk_logps_grad(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    normaliser: Tensor,
    grad: Tensor,
    frozen: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gradient of sum(grad * chunk_logps): d logits = grad * (onehot - softmax).

    grad, normaliser (n,) fp32 -> d hidden (n,C) in hidden's dtype, d weight (V,C) fp32; None for
    a frozen weight, as every weight of a head is with LoRA.
    """
    weight = weight.to(hidden.dtype)
    probs = (F.linear(hidden, weight).float() - normaliser[:, None]).exp()
    onehot = torch.arange(weight.shape[0], device=targets.device) == targets[:, None]
    d_logits = (grad[:, None] * (onehot.float() - probs)).to(hidden.dtype)
    d_weight = None if frozen else (d_logits.T @ hidden).float()
    return d_logits @ weight, d_weight


SHORT = 512  # tokens of a row, up to which a CPU's attention is two batched products


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + causal mask) v. q (B,H,T,D), k and v (B,K,T,D) -> (B,H,T,D).

    SDPA everywhere but on a CPU at short lengths, where two batched products train faster than its
    flash kernel (docs/NOTES.md).
    """
    B, H, T, D = q.shape
    K = k.shape[1]
    if q.device.type != "cpu" or T > SHORT:
        if q.device.type != "cpu" and q.dtype == torch.float32:
            # no fused kernel of CUDA's takes grouped queries in fp32
            k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)
        grouped = k.shape[1] != H
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    q = (q * D**-0.5).flatten(0, 1)  # (BH,T,D)
    k = k.repeat_interleave(H // K, dim=1).flatten(0, 1)
    v = v.repeat_interleave(H // K, dim=1).flatten(0, 1)
    mask = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2))  # (BH,T,T)
    return (scores.softmax(-1) @ v).view(B, H, T, D)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One query a row over its cache. mask (B,1,1,S) is true where to look.

    q (B,H,1,D), keys and values (B,K,S,D) -> (B,H,1,D). SDPA but on a CPU, where products and sums
    that fuse into loops over the cache are several times faster (docs/NOTES.md).
    """
    B, H, _, D = q.shape
    K = keys.shape[1]
    if q.device.type != "cpu":
        return grouped_attention(q, keys, values, mask)

    # Query heads are grouped by the key-value head that they share: (B,K,H/K,...).
    q = (q * D**-0.5).view(B, K, -1, 1, D)
    scores = (keys[:, :, None] * q).sum(-1, dtype=torch.float32)  # (B,K,H/K,S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    mixed = (weights[..., None] * values[:, :, None].float()).sum(-2)  # (B,K,H/K,D)
    return mixed.to(values.dtype).view(B, H, 1, D)


def grouped_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """As `cached_attention`, by SDPA: heads that share keys are rows of one head's queries.

    With a mask and enable_gqa no fused kernel of CUDA applies: SDPA would repeat keys and values
    and compute all scores. So grouped, and with S a multiple of 8, one does.
    """
    B, H, _, D = q.shape
    K = keys.shape[1]
    rows = q.view(B, K, H // K, D)
    return F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask).view(B, H, 1, D)


class LayerCache(NamedTuple):
    """Where one layer's decode step writes and looks."""

    keys: Tensor  # (B,K,S,D), written in place
    values: Tensor  # (B,K,S,D), written in place
    rows: Tensor  # (B,): 0 to B - 1
    positions: Tensor  # (B,): the cell of each row's token
    live: int  # cells that are looked at
    mask: Tensor  # (B,1,1,live): true up to each row's position


@kernel
def decode_block(block: "Block", x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache) -> Tensor:
    """One decode step through one layer. x (B,1,C) -> (B,1,C). One graph serves all layers."""
    return block(x, cos, sin, cache)[0]


# ------------------------------------------------------------------------------------------ network


@dataclass
class ModelConfig:
    """The part of a Hugging Face config.json that decides the computation.

    The defaults are a Llama's.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int  # of the longest text that is computed as the model was trained
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5  # of layer norms too
    tie_word_embeddings: bool = False

    # Where other families are not as a Llama.
    norm: str = "rms"  # or "layer"
    norm_bias: bool = False  # of layer norms
    qk_norm: str = ""  # of queries and keys: "rms" (Qwen3), or "layer", by head (StableLM)
    qkv_bias: bool = False
    output_bias: bool = False
    gated_mlp: bool = True  # False: one matrix up, one down (GPT-NeoX)
    mlp_bias: bool = False
    activation: str = "silu"  # a key of ACTIVATIONS
    parallel: str = ""  # MLP beside attention: "two norms" (GPT-NeoX), "one norm" (StableLM)
    rotary_fraction: float = 1.0  # of each head's width that turns
    rope_scaling: dict | None = None  # "rope_type" linear or llama3, and its numbers

    # What decides nothing, but is kept for saving: the config.json that was read, and the dtype
    # of the weights beside it. Empty for a model of our own.
    published: dict = field(default_factory=dict, compare=False, repr=False)
    stored_dtype: str = field(default="float32", compare=False)

    # What makes max_position_embeddings less than config.json says, for whoever has a longer text.
    limited_by: str = field(default="", compare=False)

    @property
    def positions(self) -> str:
        """max_position_embeddings for a sentence: "4096 positions (limited by the ...)"."""
        why = f" (limited by {self.limited_by})" if self.limited_by else ""
        return f"{self.max_position_embeddings} positions{why}"

    @property
    def rotary_width(self) -> int:
        return int(self.head_dim * self.rotary_fraction)


class Linear(nn.Linear):
    """A linear layer whose fp32 weight is cast to the activation's dtype: fp32 masters, bf16
    compute."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__(inputs, outputs, bias=bias)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    def __init__(self, width: int, eps: float, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), bias, self.eps)


class HeadNorm(nn.Module):
    """A layer norm of each head, without bias: the weights of all heads in one. x (B,T,heads,D)."""

    def __init__(self, heads: int, width: int, eps: float):
        super().__init__()
        # Not (heads, width): parameters of two dimensions are matrices to optimisers.
        self.weight = nn.Parameter(torch.ones(heads * width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        weight = self.weight.to(x.dtype).view(x.shape[-2:])
        return (normed * weight).to(x.dtype)


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm of the residual stream."""
    if config.norm == "layer":
        return LayerNorm(config.hidden_size, config.rms_norm_eps, config.norm_bias)
    return RMSNorm(config.hidden_size, config.rms_norm_eps)


def make_qk_norm(config: ModelConfig, heads: int) -> nn.Module:
    """A norm of `heads` queries or keys: none in a Llama."""
    if config.qk_norm == "rms":
        return RMSNorm(config.head_dim, config.rms_norm_eps)
    if config.qk_norm == "layer":
        return HeadNorm(heads, config.head_dim, config.rms_norm_eps)
    return nn.Identity()


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, width, config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_width, config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_width, config.qkv_bias)
        self.o_proj = Linear(width, config.hidden_size, config.output_bias)
        self.q_norm = make_qk_norm(config, self.heads)
        self.k_norm = make_qk_norm(config, self.kv_heads)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,T,C) -> output (B,T,C), keys and values (B,K,T,D).

        Without a cache: causal over the row. With one, T is 1: this token's key and value are
        written at each row's position, and the row looks at the live cells that its mask allows.
        """
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_dim)
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        q = rotate(self.q_norm(q).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(k).transpose(1, 2), cos, sin)

        # All positions of the row at once, or one of them over what the cache holds of the others.
        if cache is None:
            y = causal_attention(q, k, v)
        else:
            cache.keys[cache.rows, :, cache.positions] = k.squeeze(2)
            cache.values[cache.rows, :, cache.positions] = v.squeeze(2)
            keys, values = cache.keys[:, :, : cache.live], cache.values[:, :, : cache.live]
            y = cached_attention(q, keys, values, cache.mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.heads * self.head_dim)), k, v


class MLP(nn.Module):
    """SwiGLU: (silu(x gate^T) * (x up^T)) down^T. x (...,C); gate, up (I,C); down (C,I)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class PlainMLP(nn.Module):
    """GPT-NeoX's: gelu(x up^T) down^T."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class Block(nn.Module):
    """One layer. Returns its output (B,T,C) and its keys and values (B,K,T,D)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.parallel = config.parallel
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config)
        if config.parallel != "one norm":
            self.post_attention_layernorm = make_norm(config)
        self.mlp = MLP(config) if config.gated_mlp else PlainMLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.input_layernorm(x)
        y, k, v = self.self_attn(normed, cos, sin, cache)

        # Attention and MLP side by side, where a family has them so; a Llama's come in turn.
        if self.parallel == "one norm":
            return x + y + self.mlp(normed), k, v
        if self.parallel == "two norms":
            return x + y + self.mlp(self.post_attention_layernorm(x)), k, v
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class Decoder(nn.Module):
    """What Hugging Face names `model`: everything but the head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = make_norm(config)


def rotary_rows(config: ModelConfig) -> int:
    """Positions of the rotary tables.

    Padded rows and the cache reach past the last one: by an eighth and 31 at most.
    """
    return config.max_position_embeddings * 9 // 8 + 32


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians by which each pair of a head's numbers turns from one position to the next.

    -> (rotary width / 2,), fp32, on the CPU, so that they are the same bits on every device.
    """
    even = torch.arange(0, config.rotary_width, 2, dtype=torch.float32, device="cpu")
    inverse = config.rope_theta ** (-even / config.rotary_width)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    if scaling["rope_type"] == "linear":
        return inverse / scaling["factor"]

    # Llama 3: slow pairs are slowed down, fast ones left, and those between are in between.
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inverse / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)  # 1: left as it is
    return (1 - share) * inverse / scaling["factor"] + share * inverse


class Model(nn.Module):
    """A Llama-style decoder. Calling it gives final hidden states; logits are made only where they
    are needed (see `linear_logps`)."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype

        # Compute a block's activations again in the backward pass instead of keeping them.
        self.checkpointing = False

        # Ids that the tokenizer has: rows of the head beyond them are never scored or sampled.
        self.live_vocab = config.vocab_size

        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.rebuild()

    def rebuild(self) -> None:
        """Tie the head and fill the rotary tables (positions, D/2), fp32: what materialising from
        the meta device undoes. Only the width that turns counts as D."""
        config = self.config
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

        device = self.lm_head.weight.device
        # on the meta device a config's long promise would take seconds
        rows = 1 if device.type == "meta" else rotary_rows(config)
        positions = torch.arange(rows, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, inverse_frequencies(config))
        self.register_buffer("cos", angles.cos().to(device), persistent=False)
        self.register_buffer("sin", angles.sin().to(device), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def head_weight(self) -> Tensor:
        """(V,C), V counting live ids only."""
        return self.lm_head.weight[: self.live_vocab]

    def init_weights(self, generator: torch.Generator) -> "Model":
        """Matrices: normal(0, 0.02); o_proj and down_proj: that / sqrt(2 L), so that the residual
        stream's scale does not grow with depth (Radford et al. 2019, section 2.3). Norms are 1 and
        biases 0 since they were made."""
        depth_scale = 1 / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim != 2:
                continue
            adds_to_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 * depth_scale if adds_to_residual else 0.02
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return self

    def forward(self, tokens: Tensor, return_kv: bool = False, return_blocks: bool = False):
        """tokens (B,T) -> hidden states (B,T,C) in the compute dtype.

        With return_kv also keys and values: for each layer (B,K,T,D). With return_blocks also what
        each layer adds up to: (B,T,C), before the last norm. Rows are padded on the right; as
        attention is causal, padding changes nothing for the real tokens before it.
        """
        x = self.model.embed_tokens(tokens).to(self.compute_dtype)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        keys, values, outputs = [], [], []
        for layer in self.model.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x, k, v = checkpoint(layer, x, cos, sin, use_reentrant=False)
            else:
                x, k, v = layer(x, cos, sin)
            if return_kv:  # or they would hold a checkpointed pass's memory
                keys.append(k)
                values.append(v)
            if return_blocks:
                outputs.append(x)
        x = self.model.norm(x)
        if return_blocks:
            return x, outputs
        return (x, keys, values) if return_kv else x

    def decode(
        self, tokens: Tensor, positions: Tensor, keys: list[Tensor], values: list[Tensor], live: int
    ) -> Tensor:
        """One token for every row -> logits (B,V) of the next, in the compute dtype.

        tokens, positions (B,). keys, values: the cache, for each layer (B,K,S,D), written in place;
        live: the cells of it that are looked at, more than any position that matters.
        """
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        mask = torch.arange(live, device=tokens.device) <= positions[:, None]
        mask = mask[:, None, None]
        cos, sin = self.cos[positions][:, None, None], self.sin[positions][:, None, None]

        x = self.model.embed_tokens(tokens[:, None]).to(self.compute_dtype)
        for layer, k, v in zip(self.model.layers, keys, values):
            x = decode_block(layer, x, cos, sin, LayerCache(k, v, rows, positions, live, mask))
        return F.linear(self.model.norm(x)[:, 0], self.head_weight.to(x.dtype))

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all ranks (so all must call this); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


SMALL = 100_000_000  # parameters: below, the model is one graph; above, one graph serves all blocks


def compile_model(model: Model, by_block: bool = False) -> None:
    """Compile in place (parameter names stay clean): the whole model when small, else by block.

    Dynamic shapes: one graph for every batch shape.
    """
    is_small = model.parameter_count() < SMALL
    parts = [model] if is_small and not by_block else model.model.layers
    for part in parts:
        part.compile(fullgraph=True, dynamic=True)


# --------------------------------------------------------------------------------------- likelihood

CHUNK = 256  # supervised positions whose logits exist at one time


class _LinearLogps(torch.autograd.Function):
    """log softmax(hidden weight^T)[targets], chunk by chunk: the (N,V) logits never exist.

    The backward pass computes each chunk's logits again instead of keeping them: one product more,
    N / chunk times less memory (the idea of Liger-Kernel and of Wijmans et al. 2024, "Cut your
    losses", in plain PyTorch).
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logps, normalisers = [], []
        head = weight.to(hidden.dtype)
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK)):
            logp, normaliser = chunk_logps(h, head, t)
            logps.append(logp)
            normalisers.append(normaliser)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(normalisers))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden, weight, targets, normaliser = ctx.saved_tensors
        d_hidden = []
        head = weight.to(hidden.dtype)
        frozen = not ctx.needs_input_grad[1]
        d_weight = None if frozen else torch.zeros_like(weight, dtype=torch.float32)
        chunks = zip(
            hidden.split(CHUNK), targets.split(CHUNK), normaliser.split(CHUNK), grad.split(CHUNK)
        )
        for h, t, n, g in chunks:
            d_h, d_w = chunk_logps_grad(h, head, t, n, g.contiguous(), frozen)
            d_hidden.append(d_h)
            if not frozen:
                d_weight += d_w
        d_weight = None if frozen else d_weight.to(weight.dtype)
        return torch.cat(d_hidden), d_weight, None


def linear_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Token log-probs in fp32: hidden (N,C), weight (V,C), targets (N,) -> (N,).

    Padded to whole chunks, so that a kernel's shapes never change.
    """
    n = len(targets)
    missing = -n % CHUNK
    if missing:
        hidden = F.pad(hidden, (0, 0, 0, missing))
        targets = F.pad(targets, (0, missing))
    return _LinearLogps.apply(hidden, weight, targets)[:n]


def completion_states(model: Model, batch: Batch) -> Tensor:
    """The final hidden states that predict the completion tokens of the batch, EOS included.

    -> (N,C), in batch.index order. Raises InputError when a document is longer than the model's
    positions.
    """
    check_width(model, batch)
    return model(batch.tokens).flatten(0, 1)[batch.index]


def block_states(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """As completion_states, and at the same positions the output of each of L blocks: (L,N,C)."""
    check_width(model, batch)
    hidden, outputs = model(batch.tokens, return_blocks=True)
    blocks = [output.flatten(0, 1)[batch.index] for output in outputs]
    return hidden.flatten(0, 1)[batch.index], torch.stack(blocks)


def check_width(model: Model, batch: Batch) -> None:
    """Raises InputError when a document of the batch is longer than the model's positions."""
    # Rows are padded to multiples of BUCKET; their width is known on the host, at no sync.
    positions = model.config.max_position_embeddings
    if batch.tokens.shape[1] > round_up(positions, BUCKET):
        raise InputError(
            f"a training text of more than {positions} tokens does not fit the model's "
            f"{model.config.positions}: leave out or shorten the texts that are longer"
        )


def completion_logps(model: Model, batch: Batch) -> Tensor:
    """log p(token | everything before it) of every completion token of the batch, EOS included.

    -> (N,) fp32, in batch.index order. The one likelihood function: the SFT loss is its negative
    sum, sequence log-probs are its sums over batch.owner. Raises InputError when a document is
    longer than the model's positions.
    """
    return linear_logps(completion_states(model, batch), model.head_weight, batch.targets)


# ---------------------------------------------------------------- the distance from a distribution


@kernel
def chunk_kl(hidden: Tensor, weight: Tensor, theirs: Tensor, head: Tensor) -> Tensor:
    """KL(q || p) at each position, q = softmax(theirs head^T), p = softmax(hidden weight^T).

    hidden (n,C), weight (V,C), theirs (n,D), head (V,D) -> (n,) nats in fp32, after logits in the
    dtypes of the states.
    """
    p = F.linear(hidden, weight).float().log_softmax(-1)
    q = F.linear(theirs, head).float().log_softmax(-1)
    return (q.exp() * (q - p)).sum(-1)


@kernel
def chunk_kl_grad(
    hidden: Tensor,
    weight: Tensor,
    theirs: Tensor,
    head: Tensor,
    grad: Tensor,
    frozen: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gradient of sum(grad * chunk_kl) by our side alone: d logits = grad * (p - q).

    grad (n,) fp32 -> d hidden (n,C) in hidden's dtype, d weight (V,C) fp32; None for a frozen one.
    """
    p = F.linear(hidden, weight).float().softmax(-1)
    q = F.linear(theirs, head).float().softmax(-1)
    d_logits = (grad[:, None] * (p - q)).to(hidden.dtype)
    d_weight = None if frozen else (d_logits.T @ hidden).float()
    return d_logits @ weight, d_weight


class _LinearKL(torch.autograd.Function):
    """KL(q || p), chunk by chunk: as in _LinearLogps, neither side's (N,V) logits ever exist."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, theirs: Tensor, head: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, theirs, head)
        ours, found = weight.to(hidden.dtype), []
        for h, t in zip(hidden.split(CHUNK), theirs.split(CHUNK)):
            found.append(chunk_kl(h, ours, t, head))
        return torch.cat(found)

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden, weight, theirs, head = ctx.saved_tensors
        ours, d_hidden = weight.to(hidden.dtype), []
        frozen = not ctx.needs_input_grad[1]
        d_weight = None if frozen else torch.zeros_like(weight, dtype=torch.float32)
        for h, t, g in zip(hidden.split(CHUNK), theirs.split(CHUNK), grad.split(CHUNK)):
            d_h, d_w = chunk_kl_grad(h, ours, t, head, g.contiguous(), frozen)
            d_hidden.append(d_h)
            if not frozen:
                d_weight += d_w
        d_weight = None if frozen else d_weight.to(weight.dtype)
        return torch.cat(d_hidden), d_weight, None, None


def linear_kl(hidden: Tensor, weight: Tensor, theirs: Tensor, head: Tensor) -> Tensor:
    """KL(q || p) in nats at each of N positions, differentiable by hidden and weight alone.

    p = softmax(hidden weight^T) is ours, q = softmax(theirs head^T) the one that is imitated;
    hidden (N,C), weight (V,C), theirs (N,D), head (V,D) -> (N,) fp32. Padded to whole chunks.
    """
    n = len(hidden)
    missing = -n % CHUNK
    if missing:
        hidden = F.pad(hidden, (0, 0, 0, missing))
        theirs = F.pad(theirs, (0, 0, 0, missing))
    return _LinearKL.apply(hidden, weight, theirs.detach(), head.detach().to(theirs.dtype))[:n]
