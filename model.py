"""The network: configuration, kernels, a hand-written decoder, and the one likelihood function.

A hand-written Llama-style decoder: RMSNorm, rotary positions (half-split), grouped-query attention through SDPA, SwiGLU, a tied
or untied head. Parameter names are those of Hugging Face's Llama, so a checkpoint directory loads and saves with no name map.

Read in this order: the kernels (plain functions that torch.compile fuses), the modules, `completion_logps` (the one likelihood
function, under every loss).

Shapes: B batch rows, T time, C width, H query heads, K key-value heads, D head width, V vocabulary, S cache length, N supervised
positions, L layers. Weights, gradients and losses are fp32; matrix products run in the model's compute dtype (bf16 or fp32).
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from data.batches import Batch

# ------------------------------------------------------------------------------------------------------------------- kernels
# Each kernel is a plain function on tensors: no host sync, no data-dependent shape. Called inside a compiled model it is traced
# into the surrounding graph; called on its own it is compiled by itself. `kernel.eager` is always the reference.

torch._dynamo.config.recompile_limit = (
    256  # graphs of one function; a kernel has one for each model shape and cache bucket
)
compile_kernels = False  # set once by training.setup(); False means every kernel runs eagerly


def kernel(fn=None, *, dynamic: bool = False):
    """Mark `fn` as a fused kernel. dynamic=True compiles one graph for all sizes instead of one per shape."""
    if fn is None:
        return functools.partial(kernel, dynamic=dynamic)
    compiled = torch.compile(fn, fullgraph=True, dynamic=dynamic)

    @functools.wraps(fn)
    def call(*args):
        return (
            compiled(*args) if compile_kernels and not torch.compiler.is_compiling() else fn(*args)
        )

    call.eager = fn
    return call


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) / rms(x) * weight. Statistics in fp32; rounded to x.dtype *before* the weight, the order HF weights were trained in."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(
        x.dtype
    )


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
def chunk_logps_grad(
    hidden: Tensor, weight: Tensor, targets: Tensor, normaliser: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of sum(grad * chunk_logps): d logits = grad * (onehot - softmax). -> (n,C) in hidden's dtype, (V,C) fp32."""
    weight = weight.to(hidden.dtype)
    probs = (F.linear(hidden, weight).float() - normaliser[:, None]).exp()
    onehot = torch.arange(weight.shape[0], device=targets.device) == targets[:, None]
    d_logits = (grad[:, None] * (onehot.float() - probs)).to(hidden.dtype)
    return d_logits @ weight, (d_logits.T @ hidden).float()


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
        return F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, enable_gqa=H != keys.shape[1]
        )
    q = (q * D**-0.5).view(
        B, keys.shape[1], -1, 1, D
    )  # query heads grouped by the key-value head they share
    scores = (
        (keys[:, :, None] * q).sum(-1, dtype=torch.float32).masked_fill(~mask, float("-inf"))
    )  # (B,K,H/K,S)
    return (
        (scores.softmax(-1)[..., None] * values[:, :, None].float())
        .sum(-2)
        .to(values.dtype)
        .view(B, H, 1, D)
    )


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
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = Linear(config.hidden_size, self.heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,T,C) -> output (B,T,C), keys and values (B,K,T,D). Without a cache: causal over the row.

        With one, T is 1: cache = (keys (B,K,S,D), values, rows (B,), positions (B,), live, mask (B,1,1,live)); this step's key
        and value are written in place at each row's position and the row attends to the first `live` cells that mask allows.
        """
        B, T, _ = x.shape
        q = rotate(self.q_proj(x).view(B, T, self.heads, self.head_dim).transpose(1, 2), cos, sin)
        k = rotate(
            self.k_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2), cos, sin
        )
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
        return gated_mlp(
            x,
            *(layer.weight.to(x.dtype) for layer in (self.gate_proj, self.up_proj, self.down_proj)),
        )


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
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
        self.live_vocab = (
            config.vocab_size
        )  # ids the tokenizer has; head rows beyond are never scored or sampled
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.rebuild()

    def rebuild(self) -> None:
        """Tie the head and fill the rotary tables (max positions, D/2), fp32: what materialising from the meta device undoes."""
        config = self.config
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        inverse = config.rope_theta ** (
            -torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
            / config.head_dim
        )
        rows = (
            config.max_position_embeddings * 9 // 8 + 32
        )  # padded rows and the cache reach past the last real position
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

    def decode(
        self, tokens: Tensor, positions: Tensor, keys: list[Tensor], values: list[Tensor], live: int
    ) -> Tensor:
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
        matrices = sum(
            p.numel() for n, p in self.named_parameters() if p.ndim == 2 and "embed_tokens" not in n
        )
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
        pairs = [
            chunk_logps(h, weight, t) for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK))
        ]
        normaliser = torch.cat([n for _, n in pairs])
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        return torch.cat([logps for logps, _ in pairs])

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden, weight, targets, normaliser = ctx.saved_tensors
        d_hidden, d_weight = [], torch.zeros_like(weight)
        for h, t, n, g in zip(
            hidden.split(CHUNK), targets.split(CHUNK), normaliser.split(CHUNK), grad.split(CHUNK)
        ):
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
