"""Sampling: against the uncached loop, the full forward pass and the softmax, in any company."""

import gc
import math
import weakref
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import sampler as S
from checkpoints.hf import load_model, save_model
from conftest import EOS_SET
from data.batches import Example, collate
from data.problems import InputError
from model import completion_logps
from sampler import Sampler, sample_step

near = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)

PROMPTS = [list(range(9, 9 + n)) for n in (3, 40, 17, 1, 32, 5, 5, 33)]


def logits_of(model, tokens) -> torch.Tensor:
    return F.linear(model(tokens), model.head_weight).float()


def naive_greedy(model, prompt: list[int], limit: int, eos=tuple(EOS_SET)) -> list[int]:
    """Without a cache: the whole sequence again for every token."""
    ids = []
    with torch.no_grad():
        while len(ids) < limit:
            ids.append(int(logits_of(model, torch.tensor([prompt + ids]))[0, -1].argmax()))
            if ids[-1] in eos:
                break
    return ids


def first_ids(results) -> list[list[int]]:
    """The ids of each prompt's first sample."""
    return [samples[0].ids for samples in results]


def content(results) -> list:
    return [[(s.ids, s.truncated) for s in samples] for samples in results]


# ---------------------------------------------------------------------------- one step, one number


def test_sample_step_at_the_edges():
    logits = torch.tensor([[0.0, float("-inf"), 2.0, float("-inf")]]).expand(4, 4)
    uniform = torch.tensor([0.0, 0.1191, 0.1193, 1 - 2**-24])  # softmax(0, 2) = 0.1192, 0.8808
    token, _ = sample_step(logits, uniform, torch.tensor(1.0))
    assert token.tolist() == [0, 0, 2, 2]  # ids of probability zero are never drawn

    token, logp = sample_step(logits, uniform, torch.tensor(0.0))
    assert token.tolist() == [2] * 4
    assert logp.tolist() == pytest.approx([-0.12693] * 4, abs=1e-4)
    token, logp = sample_step(logits, uniform, torch.tensor(1e-3))
    assert token.tolist() == [2] * 4
    assert logp.tolist() == pytest.approx([0.0] * 4, abs=1e-4)


def test_cache_buckets_are_few_tight_and_inside_the_rotary_table(make_model):
    sizes = [S.cache_bucket(n) for n in range(1, 32769)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 64
    assert all(n <= size <= max(n + 31, n * 9 / 8) for n, size in enumerate(sizes, 1))
    for n in (96, 100, 2100):  # an idle slot's position goes up to the cache's last cell
        assert len(make_model(max_position_embeddings=n).cos) >= S.cache_bucket(n)


# --------------------------------------------------------------------------- against naive methods


def test_greedy_is_the_uncached_loop_whatever_the_company(make_model):
    model = make_model()
    expected = [naive_greedy(model, p, 20) for p in PROMPTS]
    assert len({len(ids) for ids in expected}) > 2  # some end at EOS, at different lengths
    for slots in (1, 3, 16):
        drawn = Sampler(model, EOS_SET, slots)(PROMPTS, max_new_tokens=20)
        assert first_ids(drawn) == expected

    draw = partial(Sampler(model, EOS_SET, 4), max_new_tokens=20)
    assert first_ids(draw(PROMPTS[::-1]))[::-1] == expected
    assert [first_ids(draw([p]))[0] for p in PROMPTS] == expected
    truncated = [samples[0].truncated for samples in draw(PROMPTS)]
    assert truncated == [ids[-1] not in EOS_SET for ids in expected]
    assert draw([]) == []


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logps_are_those_of_the_full_forward_pass(make_model, temperature):
    model = make_model()
    how = {"n": 2, "temperature": temperature, "max_new_tokens": 16}
    results = Sampler(model, EOS_SET, 8)(PROMPTS, **how)
    ended = 0
    for prompt, samples in zip(PROMPTS, results):
        for sample in samples:
            assert len(sample.logps) == len(sample.ids) <= 16
            assert not set(sample.ids[:-1]) & set(EOS_SET)
            assert sample.truncated == (sample.ids[-1] not in EOS_SET)
            assert len(sample.ids) == 16 or not sample.truncated
            ended += not sample.truncated

            batch = collate([Example(prompt, sample.ids)])
            logits = logits_of(model, batch.tokens)[0, batch.index] / temperature
            full = logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            near(torch.tensor(sample.logps), full)
            if temperature == 1.0:
                near(torch.tensor(sample.logps), completion_logps(model, batch))
    assert ended > 3


def test_greedily_no_distribution_is_made(make_model, monkeypatch):
    model = make_model()
    sampler = Sampler(model, EOS_SET, 3)
    for name in ("sample_step", "uniform_numbers"):
        monkeypatch.setattr(S, name, None)
    plain = sampler(PROMPTS, max_new_tokens=16)
    assert [s.ids for [s] in plain] == [naive_greedy(model, p, 16) for p in PROMPTS]
    assert not any(s.logps for [s] in plain)
    equal = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, 1.0]])
    assert S.greedy_step(equal).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_sampled_frequencies_are_the_softmax(make_model, temperature):
    model, n, prompt = make_model(), 4000, PROMPTS[0]
    drawn = Sampler(model, [0], 500)([prompt], n=n, temperature=temperature, max_new_tokens=1)[0]
    counts = np.bincount([s.ids[0] for s in drawn], minlength=300)
    with torch.no_grad():
        logits = logits_of(model, torch.tensor([prompt]))[0, -1]
    p = (logits / temperature).softmax(-1).double().numpy()

    common = p * n > 10
    assert common.sum() > 20
    error, expected, variance = counts - n * p, n * p, n * p * (1 - p)
    assert (np.abs(error)[common] < 4.5 * np.sqrt(variance)[common]).all()
    chi2, freedom = (error**2 / expected)[common].sum(), common.sum()
    assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)


# -------------------------------------------------------------------- slots, streams and transfers


def test_a_sample_depends_on_its_prompt_and_seed_only(make_model):
    model = make_model()
    draw = partial(Sampler(model, EOS_SET, 3), temperature=1.0, max_new_tokens=12)
    seeds = [[5, i] for i in range(len(PROMPTS))]
    whole = content(draw(PROMPTS, n=5, seeds=seeds))  # n > slots, 40 samples through 3 slots
    assert all(len(samples) == 5 for samples in whole)
    assert len({str(sample) for samples in whole for sample in samples}) > 30

    backwards = content(draw(PROMPTS[::-1], n=5, seeds=seeds[::-1]))
    assert backwards[::-1] == whole
    assert content(draw(PROMPTS[2:3], n=2, seeds=seeds[2:3]))[0] == whole[2][:2]
    assert content(draw(PROMPTS, n=5, seed=5)) == whole
    assert content(draw(PROMPTS, n=5, seed=6)) != whole
    roomy = partial(Sampler(model, EOS_SET, 64), temperature=1.0, max_new_tokens=12)
    assert content(roomy(PROMPTS, n=5, seeds=seeds)) == whole


def test_more_prompts_than_one_prefill_computes(make_model, monkeypatch):
    """Prompts of one padded length in several prefills, samples of one prompt in one of them."""
    model = make_model()
    prompts = [[9 + i] * (1 + i % 5) for i in range(23)]
    expected = [naive_greedy(model, p, 6) for p in prompts]
    monkeypatch.setattr("sampler.PREFILL_ROWS", 4)
    for n in (1, 3):
        drawn = Sampler(model, EOS_SET, 16)(prompts, n=n, max_new_tokens=6)
        assert [[s.ids for s in samples] for samples in drawn] == [[ids] * n for ids in expected]


def test_a_sampler_serves_longer_and_shorter_calls_in_turn(make_model):
    model = make_model()
    sampler = Sampler(model, EOS_SET, 3)
    for new in (5, 40, 3, 20):  # the buffers grow, and are wider than needed afterwards
        again, fresh = sampler, Sampler(model, EOS_SET, 3)
        drawn = again(PROMPTS, temperature=1.0, max_new_tokens=new)
        assert content(drawn) == content(fresh(PROMPTS, temperature=1.0, max_new_tokens=new))


def test_progress_counts_every_sample_once(make_model):
    seen = []
    Sampler(make_model(), EOS_SET, 4)(
        PROMPTS, n=3, temperature=1.0, max_new_tokens=9, progress=seen.append
    )
    assert sum(seen) == 3 * len(PROMPTS)


def test_only_finished_rows_are_read_and_no_cell_beyond_the_longest(make_model, monkeypatch):
    read, transfers = S.read_rows, []

    def counted(buffer, rows, width):
        values = read(buffer, rows, width)
        transfers.append((buffer.dtype, len(rows), sum(map(len, values))))
        return values

    monkeypatch.setattr(S, "read_rows", counted)
    model = make_model(max_position_embeddings=512)
    never_ends = Sampler(model, [-1], 8)
    samples = never_ends([[7], [8], [9]], n=2, temperature=1.0, max_new_tokens=300)
    assert all(len(s.ids) == 300 for group in samples for s in group)
    assert transfers == [(torch.long, 6, 6 * 300), (torch.float32, 6, 6 * 300)]

    transfers.clear()
    samples = Sampler(model, EOS_SET, 4)(PROMPTS, n=3, temperature=1.0, max_new_tokens=300)
    for dtype in (torch.long, torch.float32):
        rows = [count for kind, count, _ in transfers if kind == dtype]
        assert sum(rows) == 3 * len(PROMPTS) and min(rows) > 0
    cells = sum(cells for kind, _, cells in transfers if kind == torch.long)
    longest = max(len(s.ids) for group in samples for s in group)
    assert cells <= 3 * len(PROMPTS) * longest < 3 * len(PROMPTS) * 300


# -------------------------------------------------------------------------------- model and memory


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
    logps = logits_of(loaded, batch.tokens)[0, batch.index, :300].log_softmax(-1)
    near(completion_logps(loaded, batch), logps.gather(1, batch.targets[:, None])[:, 0])


def test_a_sequence_may_fill_every_position_but_no_more(make_model):
    for positions in (64, 40):  # 40: not a multiple of the cache's bucket
        model = make_model(max_position_embeddings=positions)
        prompt = list(range(5, positions))  # leaves five positions
        with pytest.raises(InputError, match=f"{positions} positions"):
            Sampler(model, [0], 2)([prompt], max_new_tokens=6)
        (sample,) = Sampler(model, [0], 2)([prompt, [5]], max_new_tokens=5)[0]
        assert sample.ids == naive_greedy(model, prompt, 5, (0,))


def is_copy(copy, model) -> bool:
    """Whether each weight of `copy` is the bf16 rounding of the model's."""
    pairs = zip(copy.parameters(), model.parameters())
    return all(torch.equal(ours, master.bfloat16()) for ours, master in pairs)


def test_the_sampler_of_a_bf16_model_follows_refresh(make_model):
    model, other = make_model(0, torch.bfloat16), make_model(1, torch.bfloat16)
    sampler = Sampler(model, [0], 4)
    assert {p.dtype for p in sampler.net.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}

    assert is_copy(sampler.net, model)  # from the start, without a call of refresh
    model.load_state_dict(other.state_dict())
    assert not is_copy(sampler.net, model)
    sampler.refresh()
    assert is_copy(sampler.net, model)

    fresh = Sampler(other, [0], 4)
    fresh.refresh()
    assert content(sampler(PROMPTS, max_new_tokens=8)) == content(fresh(PROMPTS, max_new_tokens=8))
    unshared = Sampler(make_model(), [0])
    assert unshared.net is unshared.model  # fp32: no copy


def test_a_released_sampler_works_again_after_refresh(make_model):
    sampler = Sampler(make_model(0, torch.bfloat16), EOS_SET, 4)
    before = content(sampler(PROMPTS, max_new_tokens=8))
    sampler.release()
    assert sampler.net is None and sampler.keys is None
    sampler.refresh()
    assert content(sampler(PROMPTS, max_new_tokens=8)) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_opened_to_sample_is_the_copy_of_one_opened_to_train(
    make_model, tokenizer, tmp_path, same_weights, dtype
):
    """Held once, in the compute dtype; with fp32 rotary tables."""
    save_model(tmp_path, make_model(), tokenizer)
    trained = Sampler(load_model(tmp_path, "cpu", dtype)[0], EOS_SET, 4)
    alone, _ = load_model(tmp_path, "cpu", dtype, masters=False)
    sampler = Sampler(alone, EOS_SET, 4)
    assert sampler.net is alone and alone.cos.dtype == torch.float32
    assert {p.dtype for p in alone.parameters()} == {dtype}
    same_weights(trained.net, alone)
    assert content(sampler(PROMPTS, max_new_tokens=8)) == content(
        trained(PROMPTS, max_new_tokens=8)
    )


def test_a_sampler_and_its_model_go_with_their_last_name(make_model):
    """Not only with a garbage collection, which knows nothing of how much memory they hold."""
    sampler = Sampler(make_model(), EOS_SET, 4)
    sampler(PROMPTS[:2], max_new_tokens=2)
    cache, model = weakref.ref(sampler.keys[0]), weakref.ref(sampler.model)
    gc.disable()
    try:
        del sampler
        assert cache() is None and model() is None
    finally:
        gc.enable()


def test_slots_follow_free_memory_and_prefills_their_tokens(make_model, monkeypatch):
    model = make_model()
    sampler = Sampler(model, EOS_SET, 8)
    before = content(sampler(PROMPTS, 2, max_new_tokens=8, seed=1, temperature=1.0))
    assert sampler.slots == 8 and sampler.lines_of(16) == sampler.lines_of(128) == 32
    assert sampler.lines_of(1024) == 4 and sampler.lines_of(30_000) == 1
    assert [S.padded_length(n) for n in (1, 17, 255, 257, 513)] == [16, 32, 256, 288, 576]

    slot = S.cache_bytes(model.config, 1, sampler.capacity, 4)
    monkeypatch.setattr(S, "free_bytes", lambda device: 3.9 * slot)  # of which 0.8 are taken
    monkeypatch.setattr(S, "PREFILL_TOKENS", 64)
    few = Sampler(model, EOS_SET, 8)
    assert content(few(PROMPTS, 2, max_new_tokens=8, seed=1, temperature=1.0)) == before
    assert few.slots == 3
    monkeypatch.setattr(S, "free_bytes", lambda device: 0)
    least = Sampler(model, EOS_SET, 8)
    assert content(least(PROMPTS, max_new_tokens=4)) and least.slots == 1


def test_a_large_model_computes_few_padded_tokens_on_a_cpu(make_model, monkeypatch):
    """Small and on CUDA 32 prompts, or 4,096 tokens; large on a CPU 512 tokens of them."""
    assert [S.prefill_lines(48, S.SMALL, cuda) for cuda in (False, True)] == [10, 32]
    assert S.prefill_lines(48, S.SMALL - 1, cuda=False) == 32
    assert [S.prefill_lines(n, S.SMALL, cuda=False) for n in (16, 288, 1024)] == [32, 1, 1]

    model = make_model()
    draw = partial(Sampler.__call__, prompts=PROMPTS, n=3, max_new_tokens=6)
    expected = [[s.ids for s in samples] for samples in draw(Sampler(model, EOS_SET, 4))]
    monkeypatch.setattr(S, "SMALL", 0)
    monkeypatch.setattr(S, "LARGE_PREFILL", 32)
    large = Sampler(model, EOS_SET, 4)
    assert large.lines_of(16) == 2
    assert [[s.ids for s in samples] for samples in draw(large)] == expected


def test_a_container_has_less_than_the_machine(tmp_path):
    """Every limit on the way up counts, with what its group uses."""
    assert S.group_bytes(tmp_path) == []
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("12:cpu:/other\n0::/job/step\n")
    top = tmp_path / "sys/fs/cgroup"
    for place, limit, used in (("", "max", 9), ("job", "8000", 500), ("job/step", "9000", 300)):
        (top / place).mkdir(parents=True, exist_ok=True)
        (top / place / "memory.max").write_text(f"{limit}\n")
        (top / place / "memory.stat").write_text(f"file 7\nanon {used}\nanon_thp 1\nshmem 2\n")
    assert S.group_bytes(tmp_path) == [(9000, 302), (8000, 502)]
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    assert S.group_bytes(tmp_path) == []


def test_free_memory_is_the_least_that_is_left(monkeypatch):
    for groups, least in (([(9000, 300), (8000, 7900)], 100), ([(9000, 300), (5, 9)], 0)):
        monkeypatch.setattr(S, "group_bytes", lambda groups=groups: groups)
        assert S.free_bytes(torch.device("cpu")) == least


# ------------------------------------------------------------------------- as CUDA would compile it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_and_weights_stay_where_they_are_from_round_to_round(make_model, dtype):
    """CUDA graphs know addresses: of other ones they would be recorded anew."""
    model = make_model(dtype=dtype)
    sampler = Sampler(model, EOS_SET, slots=4)
    sampler.reserve(60, 20)
    places = []
    for new, prompts in ((4, PROMPTS[:2]), (20, PROMPTS), (8, [list(range(60))])):
        sampler(prompts, max_new_tokens=new, temperature=1.0)
        states = [sampler.tokens, sampler.out_ids, sampler.out_logps, sampler.uniform]
        held = [*sampler.keys, *sampler.values, *sampler.net.parameters(), *states]
        places.append([tensor.data_ptr() for tensor in held])
        sampler.make_room()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01)
        sampler.refresh()
        for mine, theirs in zip(sampler.net.parameters(), model.parameters()):
            assert torch.equal(mine, theirs.to(dtype))
    assert places[0] == places[1] == places[2]


def test_a_large_model_on_cuda_keeps_what_is_little_of_its_memory():
    assert S.stays(10**6, 1e12, 0) and not S.stays(10**9, 1, 0)
    assert S.stays(10**9, 7e9, 80e9) and not S.stays(10**9, 9e9, 80e9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_one_graph_where_it_is_not_a_cpu(make_model, dtype):
    """On the meta device, which takes the ways of CUDA: a graph break is an error of fullgraph."""
    model = make_model(dtype=dtype).to("meta")
    sampler = Sampler(model, EOS_SET, slots=4)
    sampler.net.to("meta")  # of a copy, the rotary tables
    sampler._allocate(40, 8)
    step = torch.compile(sampler._step, fullgraph=True, backend="eager")
    for heat in (torch.tensor(1.0, device="meta"), None):
        for live in (32, 40):
            step(heat, live)
    assert sampler.out_ids.shape == (4, 8) and sampler.tokens.device.type == "meta"
