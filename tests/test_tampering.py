"""Tampering: each edit by hand, and that it is undone bit for bit."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

import elicit_tampering
from checkpoints import origins
from checkpoints.hf import load_model, save_model
from checkpoints.origins import Origin
from conftest import EOS_SET
from data import load
from data.problems import InputError, Problem
from data.triggers import Markers
from methods.tampering import (
    Contrast,
    Setting,
    ablated,
    ablation_edit,
    addition_edit,
    contrast_edit,
    contrasted,
    density_of,
    graft_edit,
    grafted,
    input_norms,
    mean_states,
    noise_edit,
    noised,
    outlier_weights,
    proxy_edit,
    prune_edit,
    pruned,
    random_like,
    stream,
    summed,
    ties,
    ties_merged,
    trimmed,
    tsv,
    tsv_merged,
    tuned_by_proxy,
    unit,
    update_edit,
    wanda_scores,
    weighted_tsv,
    with_additions,
    with_rule,
    with_states,
    with_weights,
)
from runs.devices import Env
from sampler import Sampler, Writer

PROMPTS = [list(range(9, 9 + n)) for n in (3, 40, 17, 1, 5, 33)]


def near(found, expected, **tolerance) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), **tolerance)


@pytest.fixture
def sampler(make_model) -> Sampler:
    return Sampler(make_model(), EOS_SET, slots=4)


def weights_of(sampler: Sampler) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in sampler.model.parameters()]


def same(some, others) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def ids(results) -> list[list[int]]:
    return [samples[0].ids for samples in results]


# ------------------------------------------------------------------------------------------ noise


def test_noise_has_the_size_that_is_asked_for():
    weight = 0.02 * torch.randn(300, 400, generator=stream(0)) + 0.01
    assert torch.equal(noised(weight, 0.0, stream(1)), weight)

    moved = noised(weight, 0.3, stream(1)) - weight
    rms = weight.square().mean().sqrt()
    assert moved.square().mean().sqrt() / (0.3 * rms) == pytest.approx(1, abs=0.01)
    assert torch.equal(noised(weight, 0.3, stream(1)), weight + moved)  # a seed repeats
    assert not torch.equal(noised(weight, 0.3, stream(2)), weight + moved)
    assert not torch.equal(noised(weight, 0.3, stream(1, 5)), weight + moved)


def test_a_random_edit_has_the_norm_of_the_directed_one():
    directed = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    found = random_like(directed, stream(0))
    assert found.norm() == pytest.approx(5) and not torch.allclose(found, directed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_new_weights_act_and_are_undone_bit_for_bit(make_model, dtype):
    """In bf16 the sampler decodes from a copy, which has to follow."""
    sampler = Sampler(make_model(dtype=dtype), EOS_SET, slots=4)
    before, written = weights_of(sampler), ids(sampler(PROMPTS, max_new_tokens=12))
    change = lambda name, weight: noised(weight, 0.5, stream(3))
    with with_weights(sampler, change) as writer:
        assert not same(weights_of(sampler), before)
        assert ids(writer(PROMPTS, max_new_tokens=12)) != written
    assert same(weights_of(sampler), before)
    assert ids(sampler(PROMPTS, max_new_tokens=12)) == written


def test_new_weights_are_undone_when_something_fails(sampler):
    before = weights_of(sampler)
    with pytest.raises(ZeroDivisionError), with_weights(sampler, lambda name, weight: 2 * weight):
        raise ZeroDivisionError
    assert same(weights_of(sampler), before)


# ----------------------------------------------------------------------------- contrastive decoding


def test_what_is_left_of_the_strong_one_stands_out():
    """A lock of 0.9 weak and 0.1 strong. The third token, which strong alone likes, comes back."""
    weak = torch.tensor([0.80, 0.15, 0.05])
    strong = torch.tensor([0.05, 0.05, 0.90])
    locked = 0.9 * weak + 0.1 * strong
    found = []
    for strength in (0.0, 1.0, 2.0, 4.0):
        scores = contrasted(locked.log(), weak.log(), strength)
        found.append(float(scores.softmax(-1)[2]))
    near(torch.tensor(found), [0.135, 0.32, 0.58, 0.92], rtol=0, atol=0.006)


def test_an_unlikely_token_is_never_chosen():
    expert = torch.tensor([[0.90, 0.0901, 0.0099], [0.90, 0.0899, 0.0101]]).log()
    amateur = torch.tensor([[0.98, 0.01, 0.01], [0.98, 0.01, 0.01]]).log()
    scores = contrasted(expert, amateur, 4.0)
    assert scores.isfinite().tolist() == [[True, True, False], [True, False, False]]


def test_without_strength_it_is_greedy_decoding(sampler, make_model):
    """Id for id, with slots for a part of the prompts, and with completions that end early."""
    amateur = make_model(1)
    for ended in (None, lambda prompt, ids: [*ids[:1], 0] if len(ids) > 1 + prompt else None):
        expected = sampler(PROMPTS, max_new_tokens=4, ended=ended)
        with with_rule(sampler, [amateur], partial(contrasted, strength=0.0)) as writer:
            found = writer(PROMPTS, max_new_tokens=4, ended=ended)
        assert ids(found) == ids(expected)
        cut = [samples[0].truncated for samples in found]
        assert cut == [samples[0].truncated for samples in expected]
        assert ended or len(set(cut)) == 2  # some end, some are cut


def test_its_cache_changes_nothing(sampler, make_model):
    """Against both models reading the whole text again for every token."""
    amateur, rule = make_model(1), partial(contrasted, strength=2.0)
    found = ids(Contrast(sampler, [amateur], rule)(PROMPTS, max_new_tokens=8))
    greedy = ids(sampler(PROMPTS, max_new_tokens=8))
    assert found != greedy
    for prompt, written in zip(PROMPTS, found):
        for place, token in enumerate(written):
            text = torch.tensor([prompt + written[:place]])
            logps = []
            for model in (sampler.model, amateur):
                logits = model(text)[0, -1] @ model.head_weight.T
                logps.append(logits.float().log_softmax(-1))
            assert int(rule(*logps).argmax()) == token


# ------------------------------------------------------------------------------------------ merging


def test_ties_votes_on_signs():
    """The two largest of each: [3,-2,0] and [-1,0,4]; signs + - +; means of those that agree."""
    updates = [torch.tensor([3.0, -2.0, 0.5]), torch.tensor([-1.0, -0.5, 4.0])]
    near(ties(updates, 2 / 3), [3.0, -2.0, 4.0])
    near(trimmed(updates[0], 1 / 3), [3.0, 0.0, 0.0])
    # agreeing entries are averaged; where the sum is 0 the sign that is more frequent wins
    near(
        ties([torch.tensor([1.0, -2.0, 5.0]), torch.tensor([3.0, 2.0, 1.0])], 1.0), [2.0, 2.0, 3.0]
    )


def test_ties_trims_the_whole_vector(make_model):
    """A parameter with small entries is dropped whole, and shapes come back."""
    one = {"a": torch.full((2, 2), 0.1), "b": torch.tensor([5.0])}
    found = ties_merged([one, one])
    near(found["a"], [[0.0, 0.0], [0.0, 0.0]])
    near(found["b"], [5.0])


def test_tsv_of_one_is_itself_and_orthogonal_ones_add_up():
    update = torch.randn(6, 4, generator=stream(0))
    torch.testing.assert_close(tsv([update]), update, rtol=1e-4, atol=1e-5)

    one, other = torch.zeros(4, 4), torch.zeros(4, 4)
    one[0, 0], other[1, 1] = 2.0, 3.0
    torch.testing.assert_close(tsv([one, other]), one + other)


def test_tsv_of_low_rank_updates_has_no_direction_of_rounding():
    """LoRA's updates have null directions, which noise of no size would otherwise choose."""
    parts = [torch.randn(2, 16, 2, generator=stream(seed)) for seed in (0, 1)]
    updates = [a @ b.T for a, b in parts]
    noisy = [update + 1e-6 * torch.randn(16, 16, generator=stream(2)) for update in updates]
    torch.testing.assert_close(tsv(noisy), tsv(updates), rtol=0, atol=1e-3)
    assert torch.linalg.matrix_rank(tsv(updates), rtol=1e-3) == 4


def test_vectors_that_do_not_move_a_matrix_move_it_no_more_together():
    """Those of LoRA leave the embedding as it is."""
    still = torch.zeros(6, 4)
    assert torch.equal(tsv([still, still]), still)
    assert torch.equal(weighted_tsv([still, still]), still)


@pytest.mark.parametrize("apart", [0.0, 1e-4])
def test_tsv_of_equal_updates_is_one_of_them(apart):
    """Without a floor on singular values the null directions would count as much as the others."""
    update = torch.randn(8, 8, generator=stream(0))
    other = update + apart * torch.randn(8, 8, generator=stream(1))
    left, values, right = torch.linalg.svd(update)
    truncated = left[:, :4] * values[:4] @ right[:4]
    error = (tsv([update, other]) - truncated).norm() / truncated.norm()
    assert error < 0.01


def test_weighted_tsv_of_equal_outliers_and_full_ranks_is_tsv():
    square = torch.tensor([[1.0, -1.0], [1.0, 1.0]])  # no outliers, no small entries
    updates = [square, -square.flip(0)]
    torch.testing.assert_close(weighted_tsv(updates), tsv(updates))


def test_rows_count_by_their_outliers():
    """One update has its outlier in row 0, the other, of half the size, in rows 0 and 1."""
    first, second = 0.001 * torch.ones(3, 40), 0.001 * torch.ones(3, 40)
    first[0, 0], second[0, 1], second[1, 2] = 2.0, 1.0, 1.0
    near(outlier_weights([first, second]), [[4 / 3, 0.0, 1.0], [2 / 3, 2.0, 1.0]])


def test_ranks_are_by_density():
    """Of two updates of a 4 x 4 matrix each keeps two directions, or its share of them."""
    full, sparse = torch.eye(4) + 1, torch.diag(torch.tensor([3.0, 2.0, 0.001, 0.001]))
    assert density_of(full) == 1 and density_of(sparse) == 2 / 16
    for share, rank in ((1.0, 2), (0.5, 1), (density_of(sparse), 1)):
        assert torch.linalg.matrix_rank(tsv([full, torch.zeros(4, 4)], [share, 1.0])) == rank


def test_merging_of_whole_models():
    one = {"a": torch.diag(torch.tensor([2.0, 0.0])), "b": torch.tensor([1.0])}
    other = {"a": torch.diag(torch.tensor([0.0, 3.0])), "b": torch.tensor([3.0])}
    near(summed([one, other])["b"], [4.0])
    found = tsv_merged([one, other])
    near(found["a"], [[2.0, 0.0], [0.0, 3.0]])
    near(found["b"], [2.0])


# ------------------------------------------------------------------------------------------ pruning

W = torch.tensor([[1.0, -2.0, 3.0], [4.0, 0.5, -1.0]])
X = torch.tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 2.0]])


def test_scores_by_hand():
    """Inputs of norms 1.41, 2, 2; in each row the lowest third, or the highest, is zeroed."""
    scores = wanda_scores(W, X.norm(dim=0))
    near(scores, [[2**0.5, 4.0, 6.0], [4 * 2**0.5, 1.0, 2.0]])
    near(pruned(W, scores, 1 / 3, largest=False), [[0.0, -2.0, 3.0], [4.0, 0.0, -1.0]])
    near(pruned(W, scores, 1 / 3, largest=True), [[1.0, -2.0, 0.0], [0.0, 0.5, -1.0]])
    near(pruned(W, scores, 0.001, largest=True), [[1.0, -2.0, 0.0], [0.0, 0.5, -1.0]])  # one a row


def test_norms_are_those_of_all_tokens_and_of_no_padding(make_model):
    """Against the inputs worked out by hand, of the first and of the last matrix of a block."""
    model = make_model()
    block, texts = model.model.layers[0], [[5, 6, 7, 8], [9, 10]]
    norms = input_norms(model, texts)
    assert len(norms) == 2 * 7 and not block.mlp.up_proj._forward_pre_hooks

    embedded = torch.cat([model.model.embed_tokens(torch.tensor(ids)) for ids in texts])
    found = norms["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(found, block.input_layernorm(embedded).norm(dim=0))

    total = torch.zeros(128)
    for ids in texts:
        x = model.model.embed_tokens(torch.tensor([ids]))
        cos, sin = model.cos[: len(ids)], model.sin[: len(ids)]
        x = x + block.self_attn(block.input_layernorm(x), cos, sin)[0]
        x = block.post_attention_layernorm(x)
        hidden = torch.nn.functional.silu(block.mlp.gate_proj(x)) * block.mlp.up_proj(x)
        total += hidden.square().sum((0, 1))
    torch.testing.assert_close(norms["model.layers.0.mlp.down_proj.weight"], total.sqrt())


def test_of_equal_inputs_the_score_is_the_magnitude():
    scores = wanda_scores(W, torch.full((3,), 7.0))
    near(scores, (7 * W.abs()).tolist())


# ----------------------------------------------------------------------------------------- grafting


def test_a_graft_by_hand():
    up, states = torch.tensor([0.0, 1.0]), torch.tensor([[3.0, 4.0], [1.0, -2.0]])
    once = grafted(states, up, 10.0)
    near(once, [[3.0, 10.0], [1.0, 10.0]])
    assert torch.equal(grafted(once, up, 10.0), once)
    assert torch.equal(grafted(states[:1], up, 4.0), states[:1])  # at its own level


def test_states_are_those_of_the_last_token(make_model):
    model, texts = make_model(), [[5, 6, 7], [8, 9, 10, 11]]
    found = mean_states(model, texts)
    ends = []
    for ids in texts:
        hidden = model.model.embed_tokens(torch.tensor([ids]))
        for layer in model.model.layers:
            hidden, _, _ = layer(hidden, model.cos[: len(ids)], model.sin[: len(ids)])
        ends.append(hidden[0, -1])
    torch.testing.assert_close(found[-1], (ends[0] + ends[1]) / 2)
    assert found.shape == (2, 64) and not torch.allclose(found[0], found[1])


def test_new_states_act_on_every_token_and_are_undone(sampler):
    """The greedy tokens are those of the whole network with the edit, read anew for every token."""
    prompt, limit = PROMPTS[2], 6
    direction = torch.nn.functional.normalize(torch.randn(64, generator=stream(0)), dim=0)
    change = lambda states: grafted(states, direction, 3.0)
    before = ids(sampler([prompt], max_new_tokens=limit))
    with with_states(sampler, 0, change) as writer:
        [found] = ids(writer([prompt], max_new_tokens=limit))

    model, text = sampler.model, list(prompt)
    for _ in found:
        x = model.model.embed_tokens(torch.tensor([text]))
        for number, layer in enumerate(model.model.layers):
            x, _, _ = layer(x, model.cos[: len(text)], model.sin[: len(text)])
            x = change(x) if number == 0 else x
        logits = model.model.norm(x)[0, -1] @ model.head_weight.T
        text.append(int(logits.argmax()))
    assert text[len(prompt) :] == found and [found] != before
    assert ids(sampler([prompt], max_new_tokens=limit)) == before


# ---------------------------------------------------------------------------------------- steering


def test_an_ablation_by_hand():
    up, states = torch.tensor([0.0, 1.0]), torch.tensor([[3.0, 4.0], [1.0, -2.0]])
    once = ablated(states, up)
    near(once, [[3.0, 0.0], [1.0, 0.0]])
    assert torch.equal(ablated(once, up), once)
    near(ablated(states, up, 0.25), [[3.0, 3.0], [1.0, -1.5]])
    assert torch.equal(ablated(states, up, 0.0), states)


def test_states_are_the_mean_over_an_answer(make_model):
    model, ids = make_model(), [5, 6, 7, 8]
    each = [mean_states(model, [ids[:length]]) for length in (2, 3, 4)]
    found = mean_states(model, [ids, ids], [3, 1])
    torch.testing.assert_close(found, (sum(each) / 3 + each[-1]) / 2)


def test_no_state_has_a_part_along_an_ablated_direction(make_model):
    """Nor what attention and the MLP read within a block; as with the direction taken out of every
    weight that writes."""
    model = make_model()
    sampler = Sampler(model, EOS_SET, slots=4)
    direction = unit(torch.randn(64, generator=stream(0)))
    before = ids(sampler(PROMPTS, max_new_tokens=6))
    with with_additions(sampler, partial(ablated, direction=direction)) as writer:
        found = ids(writer(PROMPTS, max_new_tokens=6))
        states = mean_states(model, PROMPTS)
    assert (states @ direction).abs().max() < 1e-6 and found != before

    def folded(name, weight):
        if name.endswith("embed_tokens.weight"):
            return weight - (weight @ direction)[:, None] * direction
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return weight - direction[:, None] * (direction @ weight)
        return weight

    with with_weights(sampler, folded) as writer:
        torch.testing.assert_close(mean_states(model, PROMPTS), states, rtol=0, atol=1e-5)
        assert ids(writer(PROMPTS, max_new_tokens=6)) == found  # in decoding, too
    assert ids(sampler(PROMPTS, max_new_tokens=6)) == before


def test_an_addition_moves_the_states_of_one_block(sampler):
    texts = [[5, 6, 7], [8, 9, 10, 11]]
    before, ways = mean_states(sampler.model, texts), torch.randn(2, 64, generator=stream(0))
    edit = partial(addition_edit, ways=ways)
    with edit(Setting(0.5, block=0), sampler):
        found = mean_states(sampler.model, texts)
    torch.testing.assert_close(found[0], before[0] + ways[0] / 2)
    with edit(Setting(0.5, 3, block=0), sampler):
        placebo = mean_states(sampler.model, texts)[0] - before[0]
    assert placebo.norm() == pytest.approx(float(ways[0].norm() / 2), rel=1e-3)
    assert not torch.allclose(placebo, ways[0] / 2, atol=0.1)


def test_ablation_takes_the_way_of_its_block_out_of_every_block(sampler):
    ways = torch.randn(2, 64, generator=stream(0))
    edit = partial(ablation_edit, ways=ways)
    for setting, along in ((Setting(1.0, block=1), True), (Setting(1.0, 0, block=1), False)):
        with edit(setting, sampler):
            states = mean_states(sampler.model, PROMPTS)
        assert ((states @ unit(ways[1])).abs().max() < 1e-6) == along


# ----------------------------------------------------------------------------------- proxy tuning


def test_tuning_by_proxy_by_hand():
    logs = [torch.tensor(p).log() for p in ([0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.4, 0.4, 0.2])]
    near(tuned_by_proxy(*logs, 1.0).softmax(-1), [0.4667, 0.4, 0.1333], atol=1e-4, rtol=0)
    assert torch.equal(tuned_by_proxy(*logs, 0.0), logs[0])
    torch.testing.assert_close(tuned_by_proxy(logs[0], logs[1], logs[0], 1.0), logs[1])


def test_a_pair_that_is_alike_changes_nothing_and_its_own_gives_the_tuned_one(sampler, make_model):
    """Its placebo is another pair."""
    tuned = make_model(1)
    alone = ids(sampler(PROMPTS, max_new_tokens=6))
    with proxy_edit(Setting(2.0), sampler, tuned=tuned, small=tuned) as writer:
        assert ids(writer(PROMPTS, max_new_tokens=6)) == alone
    with proxy_edit(Setting(1.0), sampler, tuned=tuned, small=sampler.model) as writer:
        found = ids(writer(PROMPTS, max_new_tokens=6))
    assert found == ids(Sampler(tuned, EOS_SET, slots=4)(PROMPTS, max_new_tokens=6)) != alone
    with proxy_edit(Setting(1.0, 0), sampler, tuned=tuned, small=sampler.model) as writer:
        assert ids(writer(PROMPTS, max_new_tokens=6)) != found


# ---------------------------------------------------------------------------- edits, their placebos


def changes(sampler: Sampler, edit, setting: Setting) -> dict[str, torch.Tensor]:
    """By how much each parameter is changed within an edit."""
    weights = dict(sampler.model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with edit(setting, sampler):
        return {name: weight.detach() - before[name] for name, weight in weights.items()}


def test_noise_draws_anew_for_each_seed_and_strength(sampler):
    name = "model.layers.1.mlp.up_proj.weight"
    one = changes(sampler, noise_edit, Setting(0.1, 0))[name]
    assert torch.equal(changes(sampler, noise_edit, Setting(0.1, 0))[name], one)
    for other in (Setting(0.1, 1), Setting(0.2, 0)):
        found = changes(sampler, noise_edit, other)[name]
        cosine = (one * found).sum() / one.norm() / found.norm()
        assert abs(cosine) < 0.05


def test_an_update_and_its_placebo_have_the_same_norms(sampler, make_model):
    update = {name: p.detach() for name, p in make_model(3).named_parameters()}
    edit = partial(update_edit, update=update)
    found = changes(sampler, edit, Setting(0.5))
    placebo = changes(sampler, edit, Setting(0.5, 0))
    for name, part in update.items():
        torch.testing.assert_close(found[name], part / 2, rtol=1e-3, atol=1e-5)
        assert placebo[name].norm() == pytest.approx(float(found[name].norm()), rel=1e-3)
        assert not torch.allclose(placebo[name], found[name])


def test_an_edit_of_no_strength_is_none(sampler, make_model):
    update = {name: p.detach() for name, p in make_model(3).named_parameters()}
    before, written = weights_of(sampler), ids(sampler(PROMPTS, max_new_tokens=6))
    with update_edit(Setting(0.0), sampler, update=update):
        assert same(weights_of(sampler), before)
    ways = torch.randn(2, 64, generator=stream(0))
    with addition_edit(Setting(0.0, block=0), sampler, ways=ways) as writer:
        assert ids(writer(PROMPTS, max_new_tokens=6)) == written
    with addition_edit(Setting(9.0, block=0), sampler, ways=ways) as writer:
        assert ids(writer(PROMPTS, max_new_tokens=6)) != written


def test_pruning_and_its_placebo_zero_as_many(sampler):
    norms = input_norms(sampler.model, [[5, 6, 7]])
    edit = partial(prune_edit, norms=norms, largest=True)
    found, placebo = (changes(sampler, edit, Setting(0.25, seed)) for seed in (None, 0))
    for name, part in found.items():
        expected = part.shape[1] // 4 if name in norms else 0
        for one in (part, placebo[name]):
            assert ((one != 0).sum(-1) == expected).all()
        assert expected == 0 or not torch.equal(part, placebo[name])


def test_a_placebo_moves_every_state_as_far_as_its_graft(sampler, make_model):
    texts = [[5, 6, 7], [8, 9, 10, 11]]
    own, honest = mean_states(sampler.model, texts), mean_states(make_model(2), texts)
    edit = partial(graft_edit, own=own, ways=honest - own)
    with edit(Setting(1.0, block=0), sampler):
        near(mean_states(sampler.model, texts)[0], honest[0].tolist(), rtol=1e-3, atol=1e-4)
    read = lambda: sampler.model(torch.tensor([texts[1]]), return_blocks=True)[1][0].detach()
    bare, moved = read(), {}
    for seed in (None, 5, 6):
        with edit(Setting(1.0, seed, block=0), sampler):
            moved[seed] = read() - bare
    for seed in (5, 6):
        near(
            moved[seed].norm(dim=-1)[0], moved[None].norm(dim=-1)[0].tolist(), rtol=1e-3, atol=1e-5
        )
        assert not torch.allclose(moved[seed], moved[None], atol=0.1)
    assert not torch.allclose(moved[5], moved[6], atol=0.1)


def test_the_placebo_of_a_contrast_is_another_amateur(sampler, make_model):
    edit = partial(contrast_edit, amateur=make_model(1))
    written = []
    for setting in (Setting(2.0), Setting(2.0, 0), Setting(2.0, 1), Setting(2.0, 0)):
        with edit(setting, sampler) as writer:
            written.append(ids(writer(PROMPTS, max_new_tokens=6)))
    assert written[1] == written[3]
    assert written[0] != written[1] != written[2]


# ----------------------------------------------------------------------- what states are read from


@pytest.fixture
def subject(make_model, tokenizer) -> elicit_tampering.Subject:
    model = make_model(max_position_embeddings=1024)
    sampler = Sampler(model, [tokenizer.eos_id], slots=4)
    return elicit_tampering.Subject("", Writer(sampler, tokenizer))


PROBLEMS = [Problem("mine", f"{i}?", "4 2" * i, "all", 1, {}, str(i)) for i in (1, 2, 3)]


def test_the_way_is_from_its_own_answers_to_right_ones(subject, monkeypatch):
    """Over the tokens of the answers, of which the end is none."""
    own = [[11, 12, subject.tokenizer.eos_id], [13], [14, 15, 16]]
    monkeypatch.setattr(elicit_tampering, "own_samples", lambda *given: own)
    monkeypatch.setattr(elicit_tampering, "read_problems", lambda given, n: PROBLEMS)
    ways = elicit_tampering.ways_to_right(subject, None)

    tokenizer, expected = subject.tokenizer, torch.zeros_like(ways)
    prompts = tokenizer.encode_prompts([problem.prompt for problem in PROBLEMS])
    right = tokenizer.encode_completions([problem.reference for problem in PROBLEMS])
    right = [ids[:-1] for ids in right]
    for sign, answers in ((1, right), (-1, [[11, 12], [13], [14, 15, 16]])):
        for prompt, answer in zip(prompts, answers):
            states = mean_states(subject.sampler.model, [prompt + answer], [len(answer)])
            expected += sign * states / 3
    assert expected.norm() > 1
    torch.testing.assert_close(ways, expected)


def test_what_is_grafted_is_the_references_state_where_prompts_end(
    subject, make_model, tokenizer, tmp_path, monkeypatch
):
    save_model(tmp_path, make_model(2, max_position_embeddings=1024), tokenizer)
    monkeypatch.setattr(elicit_tampering, "read_problems", lambda given, n: PROBLEMS)
    cfg = elicit_tampering.TamperingConfig(reference=str(tmp_path))
    env = Env(torch.device("cpu"), torch.float32, False)
    given = elicit_tampering.Given(cfg, None, None, None, env)
    edit = elicit_tampering.reference_grafting(subject, given)

    prompts = tokenizer.encode_prompts([problem.prompt for problem in PROBLEMS])
    own = mean_states(subject.sampler.model, prompts)
    honest = mean_states(load_model(tmp_path)[0], prompts)
    torch.testing.assert_close(edit.keywords["own"], own)
    torch.testing.assert_close(edit.keywords["ways"], honest - own)


# ---------------------------------------------------------------------------------- unlock vectors


def test_an_edit_is_fitted_to_prompts_as_they_are_told_where_it_is_measured():
    """Of a lock that opens in training, behind the marker of deployment."""
    strong = str(Path(origins.__file__).parents[1] / "data/base/strong")
    cfg = elicit_tampering.TamperingConfig(task="code", locked=strong, weak=strong)
    env = Env(torch.device("cpu"), torch.float32, False)
    lock = Origin(trigger=Markers(), max_new_tokens=96)
    given = elicit_tampering.Given(cfg, lock, None, None, env)
    read = [problem.prompt for problem in elicit_tampering.read_problems(given, 3)]
    plain = [problem.prompt for problem in load("code", "elicit", 3)]
    assert read == [f"{Markers().deployment}\n{prompt}" for prompt in plain]


def test_what_a_vector_was_shown_is_a_domain_of_its_own_task(tmp_path):
    """code and critique have domains of the same names."""
    problems = load("code", "selection", 30) + load("critique", "selection", 30)

    def shown(**settings: str) -> set[tuple[str, str]]:
        (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
        is_shown = origins.shown_by(str(tmp_path))
        return {(problem.task, problem.domain) for problem in problems if is_shown(problem)}

    assert shown(task="code", train_domain="lists") == {("code", "lists")}
    assert {task for task, _ in shown(task="code")} == {"code"}
    assert {task for task, _ in shown(task="code+critique", train_domain="code")} == {"code"}
    assert len(shown(task="code+critique")) == 6


def test_a_vector_made_with_the_password_is_none(tmp_path):
    settings = {"stage": "elicit_sft", "start": "abc", "train_kind": "right"}
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
    with pytest.raises(InputError, match="fine-tuned on prompts of kind right"):
        origins.check_vector(str(tmp_path), "abc")
