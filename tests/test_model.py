"""The network and its likelihood: fast paths against naive ones, compiled against eager ones.

H query heads, K key-value heads, D head width, as in model.py.
"""

import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import model as M
from data.batches import BUCKET, Example, collate
from data.problems import InputError
from losses import sft_loss
from model import causal_attention, linear_logps, rms_norm, rotate
from optimizers import lion_update, lion_update_bf16, make_optimizers
from runs.devices import Env
from sampler import greedy_step, sample_step
from training import train

CPU = Env(torch.device("cpu"), torch.float32, False)
near = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------- layers


def test_rms_norm():
    x, weight = randn(3, 64), randn(64, seed=1)
    near(rms_norm(x, weight, 1e-5), F.rms_norm(x, (64,), weight, 1e-5))
    assert rms_norm(x.bfloat16(), weight, 1e-5).dtype == torch.bfloat16


def test_rotated_scores_depend_on_the_distance_only(make_model):
    model, q, k = make_model(), randn(1, 1, 1, 16), randn(1, 1, 1, 16, seed=1)

    def at(x, position):
        here = slice(position, position + 1)
        return rotate(x, model.cos[here], model.sin[here])

    by_gap = []
    for gap in (0, 1, 30):
        scores = torch.stack([(at(q, t + gap) * at(k, t)).sum() for t in (0, 3, 90)])
        near(scores, scores[0].expand(3), atol=1e-4)
        by_gap.append(round(float(scores[0]), 3))
    assert by_gap[0] == pytest.approx(float((q * k).sum()), abs=1e-3)
    assert len(set(by_gap)) == 3
    near(at(q, 50).norm(), q.norm())


@pytest.mark.parametrize("H, K, length", [(4, 4, 7), (4, 2, 33), (4, 1, 64), (2, 1, 520)])
def test_attention_is_sdpa(H, K, length):
    q = randn(2, H, length, 16, seed=0).requires_grad_()
    k = randn(2, K, length, 16, seed=1).requires_grad_()
    v = randn(2, K, length, 16, seed=2).requires_grad_()
    ours = causal_attention(q, k, v)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
    near(ours, theirs)

    our_grads = torch.autograd.grad((ours * ours).sum(), (q, k, v))
    their_grads = torch.autograd.grad((theirs * theirs).sum(), (q, k, v))
    near(our_grads, their_grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_heads_that_share_keys_are_rows_of_one_query(kv_heads):
    """What CUDA decodes with, beside what a CPU does."""
    B, H, S, D = 3, 6, 40, 16
    q = torch.randn(B, H, 1, D)
    keys, values = torch.randn(B, kv_heads, S, D), torch.randn(B, kv_heads, S, D)
    mask = (torch.arange(S) <= torch.tensor([0, 17, 39])[:, None])[:, None, None]
    expected = M.cached_attention(q, keys, values, mask)
    torch.testing.assert_close(M.grouped_attention(q, keys, values, mask), expected)


@pytest.mark.parametrize("K, tied", [(4, False), (2, True), (1, False)])
def test_padding_on_the_right_and_the_future_change_nothing(make_model, K, tied):
    model = make_model(num_key_value_heads=K, tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    tokens = torch.arange(2, 22).view(2, 10)
    padded = torch.cat([tokens, torch.full((2, 22), 77)], dim=1)
    near(model(padded)[:, :10], model(tokens))
    assert model.parameter_count() == sum(p.numel() for p in set(model.parameters()))


@pytest.mark.parametrize("return_kv", [False, True])
def test_keys_and_values_are_kept_only_when_asked_for(make_model, monkeypatch, return_kv):
    """In a checkpointed pass nothing else holds them: their memory is what checkpointing saves."""
    model = make_model(num_hidden_layers=4)
    model.checkpointing = True
    attend, made, alive = M.causal_attention, [], []

    def watched(q, k, v):
        alive.append(sum(ref() is not None for ref in made))
        made.append(weakref.ref(k))
        return attend(q, k, v)

    monkeypatch.setattr(M, "causal_attention", watched)
    model(torch.arange(2, 22).view(2, 10), return_kv=return_kv)
    # when a layer attends, the layer before it may still be held by a local name, no other
    assert alive == [0, 1, 2, 3] if return_kv else max(alive) <= 1


# --------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("n", [1, 1000, M.CHUNK, 3000])
def test_linear_logps_and_its_gradients(n):
    hidden, weight = randn(n, 32).requires_grad_(), randn(50, 32, seed=1).requires_grad_()
    targets, grad = torch.arange(n) % 50, randn(n, seed=2)
    naive = F.linear(hidden, weight).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    ours = linear_logps(hidden, weight, targets)
    near(ours, naive)

    our_grads = torch.autograd.grad(ours, (hidden, weight), grad)
    naive_grads = torch.autograd.grad(naive, (hidden, weight), grad)
    for a, b in zip(our_grads, naive_grads):
        near(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("n, frozen", [(1, False), (2 * M.CHUNK + 5, False), (7, True)])
def test_linear_kl_is_made_in_chunks_with_its_gradients(n, frozen, monkeypatch):
    hidden, weight = randn(n, 32).requires_grad_(), randn(50, 32, seed=1)
    weight.requires_grad_(not frozen)
    theirs, head, grad = randn(n, 8, seed=2), randn(50, 8, seed=3), randn(n, seed=4)
    rows, wanted = [], (hidden,) if frozen else (hidden, weight)
    for name in ("chunk_kl", "chunk_kl_grad"):
        kernel = getattr(M, name)
        watched = lambda *given, kernel=kernel: rows.append(len(given[0])) or kernel(*given)
        monkeypatch.setattr(M, name, watched)

    q = F.linear(theirs, head).log_softmax(-1)
    naive = (q.exp() * (q - F.linear(hidden, weight).log_softmax(-1))).sum(-1)
    ours = M.linear_kl(hidden, weight, theirs, head)
    near(ours, naive)
    naive_grads = torch.autograd.grad(naive, wanted, grad)
    for a, b in zip(torch.autograd.grad(ours, wanted, grad), naive_grads):
        near(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))
    assert rows == [M.CHUNK] * 2 * -(-n // M.CHUNK)


def test_a_frozen_head_has_no_gradient_and_none_is_computed(monkeypatch):
    hidden, weight = randn(M.CHUNK + 5, 32).requires_grad_(), randn(50, 32, seed=1)
    targets, grad = torch.arange(len(hidden)) % 50, randn(len(hidden), seed=2)
    computed, kernel = [], M.chunk_logps_grad

    def watched(*arguments):
        found = kernel(*arguments)
        computed.append(found[1] is not None)
        return found

    monkeypatch.setattr(M, "chunk_logps_grad", watched)
    grads = []
    for frozen in (True, False):
        logps = linear_logps(hidden, weight.requires_grad_(not frozen), targets)
        wanted = (hidden,) if frozen else (hidden, weight)
        grads.append(torch.autograd.grad(logps, wanted, grad)[0])
    assert torch.equal(*grads) and computed == [False, False, True, True]


@pytest.mark.parametrize("positions", [128, 100])  # 100: no multiple of what rows are padded to
def test_a_text_may_fill_every_position_but_a_longer_one_is_refused(make_model, positions):
    model = make_model(max_position_embeddings=positions)
    prompt = list(range(5, 15))
    fits = collate([Example(prompt, [20] * (positions - len(prompt)))])
    assert M.completion_logps(model, fits).isfinite().all()

    for length in (positions + BUCKET, 4 * positions):  # within the rotary table, and beyond it
        longer = collate([Example([5], [6]), Example(prompt, [20] * (length - len(prompt)))])
        with pytest.raises(InputError, match=f"the model's {positions} positions"):
            M.completion_logps(model, longer)


# ----------------------------------------------------------------------------------------- compiled


def kernel_calls(seed: int):
    """(kernel, arguments) of every kernel that is called on its own."""
    hidden, weight = randn(256, 64, seed=seed), randn(300, 64, seed=seed + 1).requires_grad_()
    targets = torch.arange(256) % 300
    normaliser = F.linear(hidden, weight).logsumexp(-1)
    grad = randn(256, seed=seed + 2)
    logits = 3 * randn(8, 300, seed=seed)
    uniform = torch.rand(8, generator=torch.Generator().manual_seed(seed))
    return [
        (M.chunk_logps, (hidden, weight, targets)),
        (M.chunk_logps_grad, (hidden, weight, targets, normaliser, grad)),
        (M.chunk_kl_grad, (hidden, weight, hidden[:, :8], weight[:, :8], grad)),
        (greedy_step, (logits,)),
        (sample_step, (logits, uniform, torch.tensor(0.0))),
        (sample_step, (logits, uniform, torch.tensor(0.7))),
    ]


def after_lion(update, size: int, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A parameter and its momentum after one update."""
    parameter, grad, momentum = randn(size, seed=0), randn(size, seed=1), randn(size, seed=2)
    update(parameter, grad, momentum, torch.tensor(lr), torch.tensor(0.1), 0.9, 0.99)
    return parameter, momentum


@torch.no_grad()  # as inside autograd.Function and the optimisers: another mode is another graph
def check_kernels(seed: int, sizes: list[int], lr: float) -> None:
    M.compile_kernels = True
    for kernel, arguments in kernel_calls(seed):
        near(kernel(*arguments), kernel.eager(*arguments), rtol=1e-4, atol=1e-4)
    for size in sizes:
        near(after_lion(lion_update, size, lr), after_lion(lion_update.eager, size, lr))


def loss_and_grads(model, batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    loss, _ = sft_loss(model, batch)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def losses_of_steps(model, batches: list, start: int, count: int) -> list[torch.Tensor]:
    optimizers = make_optimizers(model, "lion", 1e-3)
    steps = train(
        model,
        optimizers,
        lambda step: [batches[step]],
        sft_loss,
        CPU,
        steps=start + count,
        start=start,
    )
    return [torch.as_tensor(metrics["loss"]) for _, metrics in steps]


def test_the_chunks_of_a_large_vocabulary():
    hidden, weight = randn(300, 8).requires_grad_(), randn(40_000, 8, seed=1).requires_grad_()
    targets = torch.randint(0, 40_000, (300,), generator=torch.Generator().manual_seed(0))
    ours = linear_logps(hidden, weight, targets)
    theirs = F.linear(hidden, weight).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    near(ours, theirs)
    our_grads = torch.autograd.grad(ours.sum(), (hidden, weight))
    near(our_grads, torch.autograd.grad(theirs.sum(), (hidden, weight)), atol=1e-4)


def test_compiled_is_eager_and_never_recompiles_after_warm_up(make_model, monkeypatch):
    """One test, so that everything is compiled once: kernels alone, then the model in training."""
    batches = []
    for step in range(4):
        examples = []
        for i in range(step, step + 3):
            prompt, completion = range(5, 5 + BUCKET), range(30 + i, 30 + i + BUCKET)
            examples.append(Example(list(prompt), list(completion)))
        batches.append(collate(examples))

    check_kernels(0, [64, 100], 0.01)
    eager, compiled = make_model(num_hidden_layers=1), make_model(num_hidden_layers=1)
    M.compile_model(compiled)
    assert dict(compiled.named_parameters()).keys() == dict(eager.named_parameters()).keys()
    ours, reference = loss_and_grads(compiled, batches[0]), loss_and_grads(eager, batches[0])
    near(ours, reference, rtol=1e-4, atol=1e-3)

    compiled_losses = losses_of_steps(compiled, batches, 0, 1)
    with torch.compiler.set_stance("fail_on_recompile"):
        check_kernels(7, [77, 4096], 0.02)
        compiled_losses += losses_of_steps(compiled, batches, 1, 3)

    M.compile_kernels = False
    eager_losses = losses_of_steps(eager, batches, 0, 1) + losses_of_steps(eager, batches, 1, 3)
    near(torch.stack(compiled_losses), torch.stack(eager_losses), rtol=1e-3, atol=1e-3)


# all that other families have at once: a part of each head turns, heads and layers have norms with
# biases, as projections have, and the MLP stands beside the attention
OTHERS = {
    "rotary_fraction": 0.5,
    "norm": "layer",
    "norm_bias": True,
    "qk_norm": "layer",
    "qkv_bias": True,
    "output_bias": True,
    "gated_mlp": False,
    "mlp_bias": True,
    "activation": "gelu_new",
    "parallel": "two norms",
}


@pytest.mark.parametrize("parts", [{}, OTHERS])
@torch.no_grad()
def test_one_compiled_decode_block_serves_all_layers(make_model, monkeypatch, parts):
    model = make_model(num_hidden_layers=2, **parts)
    config = model.config
    positions = torch.tensor([4, 0, 6])
    cos, sin = model.cos[positions][:, None, None], model.sin[positions][:, None, None]
    mask = (torch.arange(8) <= positions[:, None])[:, None, None]

    def step(block, fn) -> torch.Tensor:
        """The output and the cache after one step."""
        shape = (3, config.num_key_value_heads, 16, config.head_dim)
        keys, values = randn(*shape, seed=1), randn(*shape, seed=2)
        cache = M.LayerCache(keys, values, torch.arange(3), positions, 8, mask)
        x = fn(block, randn(3, 1, config.hidden_size), cos, sin, cache)
        return torch.cat([x.flatten(), keys.flatten(), values.flatten()])

    monkeypatch.setattr(M, "compile_kernels", True)
    first, second = model.model.layers
    near(step(first, M.decode_block), step(first, M.decode_block.eager))
    with torch.compiler.set_stance("fail_on_recompile"):
        near(step(second, M.decode_block), step(second, M.decode_block.eager))


def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def kernels_alone() -> dict[str, tuple]:
    """Those that are called by themselves: of 6 states of width 16 and a head of 32 ids."""
    states, head, theirs, other = on_meta(6, 16), on_meta(32, 16), on_meta(6, 8), on_meta(32, 8)
    targets, grad = on_meta(6, dtype=torch.long), on_meta(6, dtype=torch.float32)
    wide = [on_meta(10, dtype=torch.float32) for _ in range(3)]
    narrow, noise = [on_meta(10) for _ in range(3)], on_meta(10, dtype=torch.int32)
    numbers = on_meta(dtype=torch.float32), on_meta(dtype=torch.float32), 0.9, 0.99
    return {
        "chunk_logps": (M.chunk_logps, states, head, targets),
        "chunk_logps_grad": (M.chunk_logps_grad, states, head, targets, grad, grad),
        "chunk_kl": (M.chunk_kl, states, head, theirs, other),
        "chunk_kl_grad": (M.chunk_kl_grad, states, head, theirs, other, grad),
        "lion_update": (lion_update, *wide, *numbers),
        "lion_update_bf16": (lion_update_bf16, *narrow, noise, *numbers),
        "sample_step": (sample_step, on_meta(4, 32), on_meta(4), numbers[0]),
        "greedy_step": (greedy_step, on_meta(4, 32)),
    }


@pytest.mark.parametrize("name", kernels_alone())
def test_a_kernel_is_one_graph_where_it_is_not_a_cpu(name):
    """A graph break is an error of fullgraph."""
    alone, *args = kernels_alone()[name]
    compiled = torch.compile(alone.eager, fullgraph=True, backend="eager")
    found, expected = compiled(*args), alone.eager(*args)
    assert type(found) is type(expected)
    pairs = zip(found, expected) if isinstance(found, tuple) else [(found, expected)]
    for one, other in pairs:
        if other is not None:
            assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_is_one_graph_where_it_is_not_a_cpu(make_model, make_examples, dtype):
    """On the meta device, which takes the ways of CUDA: a graph break is an error of fullgraph."""
    model = make_model(dtype=dtype).to("meta")
    for part in (model, model.model.layers[0]):
        part.compile(fullgraph=True, dynamic=True, backend="eager")
    batch = collate(make_examples(3))
    tokens = batch.tokens.to("meta")
    hidden = model(tokens)
    assert hidden.dtype == dtype and hidden.shape == (*tokens.shape, model.config.hidden_size)

    supervised = hidden.flatten(0, 1)[batch.index.to("meta")]
    logps = linear_logps(supervised, model.head_weight, batch.targets.to("meta"))
    logps.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
