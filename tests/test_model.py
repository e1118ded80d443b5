"""Network, likelihood, sampling, checkpoints: fast paths against naive ones, ours against transformers."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import EOS_SET
from safetensors.torch import load_file, save_file

import checkpoints
import model as M
import sampler as sampler_module
from checkpoints import load_model, save_model
from data.batches import BUCKET, Example, collate
from data.problems import InputError
from data.text import Tokenizer
from losses import sft_loss
from model import causal_attention, linear_logps, rms_norm, rotate
from runs import Env
from sampler import Sampler, sample_step
from training import lion_update, make_optimizers, train

CPU = Env(torch.device("cpu"), torch.float32, False)
near = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
randn = lambda *shape, seed=0: torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def logits_of(model, tokens) -> torch.Tensor:
    return F.linear(model(tokens), model.head_weight).float()


# ------------------------------------------------------------------------------------------------------------------- layers


def test_rms_norm():
    x, weight = randn(3, 64), randn(64, seed=1)
    near(rms_norm(x, weight, 1e-5), F.rms_norm(x, (64,), weight, 1e-5))
    assert rms_norm(x.bfloat16(), weight, 1e-5).dtype == torch.bfloat16


def test_rotated_scores_depend_on_the_distance_only(make_model):
    model, q, k = make_model(), randn(1, 1, 1, 16), randn(1, 1, 1, 16, seed=1)
    at = lambda x, t: rotate(x, model.cos[t : t + 1], model.sin[t : t + 1])
    scores = [
        [(at(q, start + gap) * at(k, start)).sum() for start in (0, 3, 90)] for gap in (0, 1, 30)
    ]
    for same_gap in scores:
        near(torch.stack(same_gap), same_gap[0].expand(3), atol=1e-4)
    near(scores[0][0], (q * k).sum())
    assert len({round(float(row[0]), 3) for row in scores}) == 3
    near(at(q, 50).norm(), q.norm())


@pytest.mark.parametrize(
    "heads, kv_heads, length", [(4, 4, 7), (4, 2, 33), (4, 1, 64), (2, 1, 520)]
)
def test_attention_is_sdpa(heads, kv_heads, length):
    q, k, v = (
        randn(2, h, length, 16, seed=i).requires_grad_()
        for i, h in enumerate((heads, kv_heads, kv_heads))
    )
    ours, torchs = (
        causal_attention(q, k, v),
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads),
    )
    near(ours, torchs)
    grads = [torch.autograd.grad((y * y).sum(), (q, k, v)) for y in (ours, torchs)]
    near(grads[0], grads[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kv_heads, tied", [(4, False), (2, True), (1, False)])
def test_padding_on_the_right_and_the_future_change_nothing(make_model, kv_heads, tied):
    model = make_model(num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    tokens = torch.arange(2, 22).view(2, 10)
    padded = torch.cat([tokens, torch.full((2, 22), 77)], dim=1)
    near(model(padded)[:, :10], model(tokens))
    assert model.parameter_count() == sum(p.numel() for p in set(model.parameters()))


@pytest.mark.parametrize("n", [1, 1000, M.CHUNK, 3000])
def test_linear_logps_and_its_gradients(n):
    hidden, weight = randn(n, 32).requires_grad_(), randn(50, 32, seed=1).requires_grad_()
    targets, grad = torch.arange(n) % 50, randn(n, seed=2)
    naive = F.linear(hidden, weight).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    ours = linear_logps(hidden, weight, targets)
    near(ours, naive)
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight), grad),
        torch.autograd.grad(naive, (hidden, weight), grad),
    ):
        near(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


# ------------------------------------------------------------------------------------------------------------------- compiled


def test_compiled_is_eager_and_never_recompiles_after_warm_up(
    make_model, make_examples, same_weights, monkeypatch
):
    """One test, so that everything is compiled once: kernels alone, then the whole model in training steps."""
    monkeypatch.setattr(M, "CHUNK", 256)

    def arguments(seed):
        hidden, weight, targets = (
            randn(256, 64, seed=seed),
            randn(300, 64, seed=seed + 1).requires_grad_(),
            torch.arange(256) % 300,
        )
        normaliser = F.linear(hidden, weight).logsumexp(-1)
        yield M.chunk_logps, (hidden, weight, targets)
        yield M.chunk_logps_grad, (hidden, weight, targets, normaliser, randn(256, seed=seed + 2))
        for temperature in (0.0, 0.7):
            yield (
                sample_step,
                (
                    3 * randn(8, 300, seed=seed),
                    torch.rand(8, generator=torch.Generator().manual_seed(seed)),
                    torch.tensor(temperature),
                ),
            )

    def lion(update, size, lr):
        p, g, m = (randn(size, seed=i) for i in range(3))
        update(p, g, m, torch.tensor(lr), torch.tensor(0.1), 0.9, 0.99)
        return p, m

    @torch.no_grad()  # as inside autograd.Function and the optimisers: another mode would be another graph
    def check(seed, sizes, lr):
        M.compile_kernels = True
        for kernel, args in arguments(seed):
            near(kernel(*args), kernel.eager(*args), rtol=1e-4, atol=1e-4)
        for size in sizes:
            near(lion(lion_update, size, lr), lion(lion_update.eager, size, lr))

    def loss_and_grads(model, batch):
        model.zero_grad()
        loss, _ = sft_loss(model, batch)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters()]

    def steps(model, start, count):
        return [
            torch.tensor(m["loss"])
            for _, m in train(
                model,
                make_optimizers(model, "lion", 1e-3),
                lambda step: [batches[step]],
                sft_loss,
                CPU,
                steps=start + count,
                start=start,
            )
        ]

    batches = [
        collate(
            [
                Example(list(range(5, 5 + BUCKET)), list(range(30 + i, 30 + i + BUCKET)))
                for i in range(step, step + 3)
            ]
        )
        for step in range(4)
    ]
    check(0, [64, 100], 0.01)
    eager, compiled = make_model(num_hidden_layers=1), make_model(num_hidden_layers=1)
    M.compile_model(compiled)
    assert dict(compiled.named_parameters()).keys() == dict(eager.named_parameters()).keys()
    near(
        loss_and_grads(compiled, batches[0]),
        loss_and_grads(eager, batches[0]),
        rtol=1e-4,
        atol=1e-3,
    )
    first = steps(compiled, 0, 1)
    with torch.compiler.set_stance("fail_on_recompile"):
        check(7, [77, 4096], 0.02)
        compiled_losses = first + steps(compiled, 1, 3)
    M.compile_kernels = False
    near(
        torch.stack(compiled_losses),
        torch.stack(steps(eager, 0, 1) + steps(eager, 1, 3)),
        rtol=1e-3,
        atol=1e-3,
    )


@torch.no_grad()
def test_one_compiled_decode_block_serves_all_layers(make_model, monkeypatch):
    model = make_model(num_hidden_layers=2)
    rows, positions = torch.arange(3), torch.tensor([4, 0, 6])
    c, angles = model.config, [table[positions][:, None, None] for table in (model.cos, model.sin)]

    def step(block, fn):
        keys, values = (
            randn(3, c.num_key_value_heads, 16, c.head_dim, seed=seed) for seed in (1, 2)
        )
        x = fn(
            block,
            randn(3, 1, c.hidden_size),
            *angles,
            (
                keys,
                values,
                rows,
                positions,
                8,
                (torch.arange(8) <= positions[:, None])[:, None, None],
            ),
        )
        return torch.cat([x.flatten(), keys.flatten(), values.flatten()])

    monkeypatch.setattr(M, "compile_kernels", True)
    first, second = model.model.layers
    near(step(first, M.decode_block), step(first, M.decode_block.eager))
    with torch.compiler.set_stance("fail_on_recompile"):
        near(step(second, M.decode_block), step(second, M.decode_block.eager))


# ------------------------------------------------------------------------------------------------------------------- sampling

PROMPTS = [list(range(9, 9 + n)) for n in (3, 40, 17, 1, 32, 5, 5, 33)]


def naive_greedy(model, prompt: list[int], limit: int, eos=tuple(EOS_SET)) -> list[int]:
    ids = []
    with torch.no_grad():
        while len(ids) < limit and not (ids and ids[-1] in eos):
            ids.append(int(logits_of(model, torch.tensor([prompt + ids]))[0, -1].argmax()))
    return ids


def content(results) -> list:
    return [[(s.ids, s.truncated) for s in samples] for samples in results]


def test_cache_buckets_are_few_tight_and_inside_the_rotary_table(make_model):
    sizes = [sampler_module.cache_bucket(n) for n in range(1, 32769)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 64
    assert all(n <= size <= max(n + 31, n * 9 / 8) for n, size in enumerate(sizes, 1))
    for n in (96, 100, 2100):  # an idle slot's position goes up to the cache's last cell
        assert len(make_model(max_position_embeddings=n).cos) >= sampler_module.cache_bucket(n)


def test_greedy_is_the_uncached_loop_whatever_the_company(make_model):
    model = make_model()
    expected = [naive_greedy(model, p, 20) for p in PROMPTS]
    assert len({len(ids) for ids in expected}) > 2  # some end at EOS, at different lengths
    for slots in (1, 3, 16):
        assert [
            s.ids for (s,) in Sampler(model, EOS_SET, slots)(PROMPTS, max_new_tokens=20)
        ] == expected
    sampler = Sampler(model, EOS_SET, 4)
    assert [s.ids for (s,) in reversed(sampler(PROMPTS[::-1], max_new_tokens=20))] == expected
    assert [sampler([p], max_new_tokens=20)[0][0].ids for p in PROMPTS] == expected
    truncated = [s.truncated for (s,) in sampler(PROMPTS, max_new_tokens=20)]
    assert truncated == [ids[-1] not in EOS_SET for ids in expected]
    assert sampler([], max_new_tokens=20) == []


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logps_are_those_of_the_full_forward_pass(make_model, temperature):
    model = make_model()
    results = Sampler(model, EOS_SET, 8)(PROMPTS, n=2, temperature=temperature, max_new_tokens=16)
    ended = 0
    for prompt, samples in zip(PROMPTS, results):
        for sample in samples:
            assert len(sample.logps) == len(sample.ids) <= 16
            assert sample.truncated == (sample.ids[-1] not in EOS_SET) and not set(
                sample.ids[:-1]
            ) & set(EOS_SET)
            assert len(sample.ids) == 16 or not sample.truncated
            ended += not sample.truncated
            batch = collate([Example(prompt, sample.ids)])
            logits = logits_of(model, batch.tokens)[0, batch.index] / (temperature or 1.0)
            near(
                torch.tensor(sample.logps),
                logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0],
                rtol=1e-4,
                atol=1e-4,
            )
            if temperature == 1.0:
                near(
                    torch.tensor(sample.logps),
                    M.completion_logps(model, batch),
                    rtol=1e-4,
                    atol=1e-4,
                )
    assert ended > 3


def test_a_sample_depends_on_its_prompt_and_seed_only(make_model):
    model = make_model()
    draw = partial(Sampler(model, EOS_SET, 3), temperature=1.0, max_new_tokens=12)
    seeds = [[5, i] for i in range(len(PROMPTS))]
    whole = content(draw(PROMPTS, n=5, seeds=seeds))  # n > slots, 40 samples through 3 slots
    assert all(len(samples) == 5 for samples in whole)
    assert len({str(sample) for samples in whole for sample in samples}) > 30
    assert content(draw(PROMPTS[::-1], n=5, seeds=seeds[::-1]))[::-1] == whole
    assert content(draw(PROMPTS[2:3], n=2, seeds=seeds[2:3]))[0] == whole[2][:2]
    assert (
        content(
            Sampler(model, EOS_SET, 64)(
                PROMPTS, n=5, temperature=1.0, max_new_tokens=12, seeds=seeds
            )
        )
        == whole
    )
    assert (
        content(draw(PROMPTS, n=5, seed=5)) == whole
        and content(draw(PROMPTS, n=5, seed=6)) != whole
    )


def test_progress_counts_every_sample_once(make_model):
    seen = []
    Sampler(make_model(), EOS_SET, 4)(
        PROMPTS, n=3, temperature=1.0, max_new_tokens=9, progress=seen.append
    )
    assert sum(seen) == 3 * len(PROMPTS)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_sampled_frequencies_are_the_softmax(make_model, temperature):
    model, n, prompt = make_model(), 4000, PROMPTS[0]
    drawn = Sampler(model, [0], 500)([prompt], n=n, temperature=temperature, max_new_tokens=1)[0]
    counts = np.bincount([s.ids[0] for s in drawn], minlength=300)
    with torch.no_grad():
        p = (
            (logits_of(model, torch.tensor([prompt]))[0, -1] / temperature)
            .softmax(-1)
            .double()
            .numpy()
        )
    common = p * n > 10
    assert common.sum() > 20
    assert (np.abs(counts - n * p)[common] < 4.5 * np.sqrt(n * p * (1 - p))[common]).all()
    chi2, freedom = ((counts - n * p)[common] ** 2 / (n * p)[common]).sum(), common.sum()
    assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)


def test_sample_step_at_the_edges():
    logits = torch.tensor([[0.0, float("-inf"), 2.0, float("-inf")]]).expand(4, 4)
    uniform = torch.tensor([0.0, 0.1191, 0.1193, 1 - 2**-24])  # softmax(0, 2) = 0.1192, 0.8808
    assert sample_step(logits, uniform, torch.tensor(1.0))[0].tolist() == [
        0,
        0,
        2,
        2,
    ]  # ids of probability zero are never drawn
    for temperature in (0.0, 1e-3):
        token, logp = sample_step(logits, uniform, torch.tensor(temperature))
        assert token.tolist() == [2] * 4
        assert logp.tolist() == pytest.approx(
            [-0.12693] * 4 if temperature == 0 else [0.0] * 4, abs=1e-4
        )


def test_rows_beyond_the_tokenizer_are_never_sampled(make_model, tokenizer, tmp_path):
    model = make_model(vocab_size=384)
    with torch.no_grad():
        model.lm_head.weight[300:] *= 20
    save_model(tmp_path, model, tokenizer)
    loaded, _ = load_model(tmp_path)
    assert loaded.live_vocab == 300 and loaded.lm_head.weight.shape[0] == 384
    samples = Sampler(loaded, [0], 64)(PROMPTS, n=8, temperature=5.0, max_new_tokens=20)
    assert max(i for group in samples for s in group for i in s.ids) < 300
    batch = collate([Example(PROMPTS[0], samples[0][0].ids)])
    near(
        M.completion_logps(loaded, batch),
        logits_of(loaded, batch.tokens)[0, batch.index, :300]
        .log_softmax(-1)
        .gather(1, batch.targets[:, None])[:, 0],
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_sequence_may_fill_every_position_but_no_more(make_model):
    for positions in (64, 40):  # 40: not a multiple of the cache's bucket
        model = make_model(max_position_embeddings=positions)
        prompt = list(range(5, positions))  # leaves five positions
        with pytest.raises(InputError, match=f"{positions} positions"):
            Sampler(model, [0], 2)([prompt], max_new_tokens=6)
        (sample,) = Sampler(model, [0], 2)([prompt, [5]], max_new_tokens=5)[0]
        assert sample.ids == naive_greedy(model, prompt, 5, (0,))


def test_the_sampler_of_a_bf16_model_follows_refresh(make_model):
    model, other = make_model(0, torch.bfloat16), make_model(1, torch.bfloat16)
    sampler = Sampler(model, [0], 4)
    assert {p.dtype for p in sampler.net.parameters()} == {torch.bfloat16} and {
        p.dtype for p in model.parameters()
    } == {torch.float32}
    with torch.no_grad():
        agree = lambda net: [
            torch.equal(a, b.bfloat16()) for a, b in zip(sampler.net.parameters(), net.parameters())
        ]
        assert all(agree(model))  # from the start, without a call of refresh
        model.load_state_dict(other.state_dict())
        assert not all(agree(model))
        sampler.refresh()
        assert all(agree(model))
    fresh = Sampler(other, [0], 4)
    fresh.refresh()
    assert content(sampler(PROMPTS, max_new_tokens=8)) == content(fresh(PROMPTS, max_new_tokens=8))
    unshared = Sampler(make_model(), [0])
    assert unshared.net is unshared.model  # fp32: no copy


# ------------------------------------------------------------------------------------------------------------------- checkpoints

TOKENS = torch.arange(2, 42).view(2, 20)


def edit(path, **changes):
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "rope_theta": 5e5,
            "rms_norm_eps": 1e-4,
        },
    ],
)
def test_transformers_opens_what_we_save(make_model, tokenizer, tmp_path, same_weights, changes):
    transformers = pytest.importorskip("transformers")
    model = make_model(**changes)
    save_model(tmp_path / "a", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    assert (
        type(theirs).__name__ == "LlamaForCausalLM"
        and theirs.generation_config.eos_token_id == tokenizer.eos_id
    )
    with torch.no_grad():
        near(logits_of(model, TOKENS), theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)
    loaded, its_tokenizer = load_model(tmp_path / "a")
    same_weights(loaded, model)
    assert loaded.config == model.config and its_tokenizer.size == tokenizer.size
    save_model(tmp_path / "b", loaded, its_tokenizer)
    files = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}


@pytest.mark.parametrize("tied, kv_heads", [(False, 2), (True, 4)])
def test_we_open_what_transformers_saves(tokenizer, tmp_path, tied, kv_heads):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
            initializer_range=0.1,
        )
    )
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    ours, _ = load_model(tmp_path)
    with torch.no_grad():
        near(
            F.linear(ours(TOKENS), ours.lm_head.weight), theirs(TOKENS).logits, rtol=1e-4, atol=1e-4
        )


def test_sharded_is_whole(make_model, tokenizer, tmp_path, same_weights, monkeypatch):
    model, newer = make_model(0), make_model(1)
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 60_000)
    save_model(tmp_path, model, tokenizer)
    shards = sorted(file.name for file in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3 and not (tmp_path / "model.safetensors").exists()
    same_weights(load_model(tmp_path)[0], model)
    (tmp_path / shards[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=shards[1]):
        load_model(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / shards[1])
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 10**9)
    save_model(tmp_path, newer, tokenizer)
    same_weights(load_model(tmp_path)[0], newer)
    whole = tmp_path / "whole"
    save_model(whole, newer, tokenizer)
    assert (
        checkpoints.weights_hash(tmp_path)
        == checkpoints.weights_hash(whole)
        != checkpoints.weights_hash(tmp_path / "nowhere")
    )


def test_sharded_replaces_whole_for_transformers_too(make_model, tokenizer, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    save_model(tmp_path, make_model(0), tokenizer)
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 60_000)
    newer = make_model(1)
    save_model(tmp_path, newer, tokenizer)
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        near(theirs(TOKENS).logits, logits_of(newer, TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda p: (p / "config.json").unlink(), "config.json"),
        (lambda p: (p / "config.json").write_text("{"), "config.json"),
        (lambda p: edit(p / "config.json", hidden_size=...), "hidden_size"),
        (lambda p: edit(p / "config.json", model_type="gpt2"), "gpt2"),
        (
            lambda p: edit(
                p / "config.json",
                rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
            ),
            "yarn",
        ),
        (
            lambda p: edit(
                p / "config.json",
                rope_parameters=...,
                rope_scaling={"type": "linear", "factor": 2.0},
            ),
            "linear",
        ),
        (lambda p: edit(p / "config.json", attention_bias=True), "attention_bias"),
        (lambda p: edit(p / "config.json", vocab_size=299), "tokenizer"),
        (lambda p: edit(p / "config.json", intermediate_size=96), "shape"),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors"),
        (
            lambda p: (p / "model.safetensors").write_bytes(
                (p / "model.safetensors").read_bytes()[:-100]
            ),
            "truncated",
        ),
        (lambda p: (p / "model.safetensors").write_bytes(b"no weights"), "model.safetensors"),
        (lambda p: rewrite(p, drop="model.norm.weight"), "model.norm.weight"),
        (lambda p: rewrite(p, drop="lm_head.weight"), "lm_head.weight"),
        (lambda p: rewrite(p, **{"model.layers.2.mlp.up_proj.weight": torch.zeros(2)}), "layers.2"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(make_model, tokenizer, tmp_path, damage, named):
    save_model(tmp_path, make_model(), tokenizer)
    damage(tmp_path)
    with pytest.raises(InputError, match=named):
        load_model(tmp_path)


def rewrite(path, drop: str = "", **extra):
    tensors = load_file(path / "model.safetensors") | extra
    save_file({k: v for k, v in tensors.items() if k != drop}, path / "model.safetensors")


def test_a_failed_save_leaves_the_old_checkpoint(
    make_model, tokenizer, tmp_path, same_weights, monkeypatch
):
    old = make_model(0)
    save_model(tmp_path, old, tokenizer)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    written = []

    def full_disk(tensors, file, **kwargs):
        if written:
            raise OSError(28, "No space left on device")
        written.append(file)
        save_file(tensors, file, **kwargs)

    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save_model(tmp_path, make_model(1), tokenizer)
    assert written and {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    same_weights(load_model(tmp_path)[0], old)
    assert Tokenizer.load(tmp_path).size == 300
