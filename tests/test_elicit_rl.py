"""The reward-only methods: losses against numbers worked by hand and naive references, selection, rollouts, pass@k."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import elicit_rl
import policies
import training
from data.batches import Example, collate, micro_batches
from data.problems import Problem
from data.text import train_bpe
from elicit_rl import METHODS, RLConfig
from fixtures import make_trl
from losses import dpo_loss, dpo_step, grpo_loss, grpo_step, sums_by_example
from model import Model, ModelConfig, completion_logps
from policies import Rollout, pass_at_k, round_problems
from runs import Env
from sampler import Sample, Sampler
from training import make_optimizers, scored

ALONE = Env(torch.device("cpu"), torch.float32, False)
DRAWING = {
    "purpose": [0],
    "seed": 0,
    "max_new_tokens": 12,
    "continuous": False,
    "env": ALONE,
    "label": "",
}
TOKENS = 16384


def cfg(**changes) -> RLConfig:
    return elicit_rl.settled(RLConfig(**{"samples": 64, "round": 32} | changes))


def rolled(rewards, lengths=3) -> Rollout:
    """A rollout with these rewards (P,n); sample j of problem i is the ids [i + 2, j + 2, ..., 0]."""
    rewards = np.array(rewards, dtype=float)
    P, n = rewards.shape
    problems = [Problem("code", f"p{i}", "", "lists", 1, {}, f"k{i}") for i in range(P)]
    samples = [
        [Sample([i + 2, j + 2] * lengths + [0], [], False) for j in range(n)] for i in range(P)
    ]
    return Rollout(problems, [[5, i + 2] for i in range(P)], samples, [[""] * n] * P, rewards)


# ---- losses


def test_dpo_by_hand():
    policy, reference = (
        torch.tensor([-2.0, -5.0]),
        torch.tensor([-3.0, -4.0]),
    )  # chosen gained 1, rejected lost 1
    loss, margins = dpo_loss(policy, reference, torch.tensor([1.0]), 0.1)
    assert margins.tolist() == pytest.approx([0.2])
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.2)))
    assert dpo_loss(policy, reference, torch.tensor([0.5]), 0.1)[0].item() == pytest.approx(
        0.5 * math.log(1 + math.exp(-0.2))
    )


def naive_sequence_logp(model, example) -> torch.Tensor:
    """One sequence alone, full logits, no batch, no chunks."""
    ids = torch.tensor([example.prompt_ids + example.completion_ids])
    logps = F.log_softmax(F.linear(model(ids), model.head_weight).float(), -1)[0]
    start = len(example.prompt_ids)
    return sum(logps[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))


def test_dpo_equals_the_naive_reference_in_loss_and_gradient(make_model, make_examples):
    policy, reference, beta = make_model(), make_model(seed=1), 0.3
    examples = make_examples(8, longest=30)
    with torch.no_grad():
        before = [naive_sequence_logp(reference, e) for e in examples]
    total = 0.0
    for i in range(0, 8, 2):
        chosen, rejected = (
            naive_sequence_logp(policy, examples[j]) - before[j] for j in (i, i + 1)
        )
        total = total - F.logsigmoid(beta * (chosen - rejected))
    total.backward()
    expected = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    with_reference = scored(reference, examples, TOKENS, ALONE)
    loss = 0.0
    for batch in micro_batches(
        with_reference, 200, group=2
    ):  # several micro-batches, other padding
        part, _ = dpo_step(policy, batch, beta)
        part.backward()
        loss += part.item()
    assert loss == pytest.approx(total.item(), rel=1e-5)
    for p, grad in zip(policy.parameters(), expected):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5)


def test_dpo_starts_at_ln_2_with_no_margin(make_model, make_examples):
    model, examples = make_model(), make_examples(6)
    loss, metrics = dpo_step(model, collate(scored(model, examples, TOKENS, ALONE)), 0.1)
    assert loss.item() / 3 == pytest.approx(math.log(2), abs=1e-6)
    assert abs(metrics["margin"].item()) < 1e-5 and metrics["accuracy"].item() <= 3


def test_scored_logps_are_live_ones_whatever_the_padding(make_model, make_examples):
    model, examples = make_model(), make_examples(20)
    for micro_tokens in (32, 100_000):
        for example, alone in zip(scored(model, examples, micro_tokens, ALONE), examples):
            torch.testing.assert_close(
                torch.tensor(example.logps),
                completion_logps(model, collate([alone])).detach(),
                rtol=0,
                atol=1e-4,
            )
            assert len(example.logps) == len(example.completion_ids)  # EOS is scored


def test_grpo_by_hand():
    # ratios 1.5, 0.5, 1.5, 0.5 with advantages +1, +1, -1, -1 and clip 0.2: min(r A, clip(r) A)
    policy, advantages = (
        torch.tensor([1.5, 0.5, 1.5, 0.5]).log(),
        torch.tensor([1.0, 1.0, -1.0, -1.0]),
    )
    loss, clipped = grpo_loss(policy, torch.zeros(4), advantages, 0.2)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8))
    assert clipped.item() == 2  # the first and the last


def test_on_policy_grpo_gradient_is_the_policy_gradient(make_model, make_examples):
    model = make_model()
    examples = [
        Example(e.prompt_ids, e.completion_ids, weight=w)
        for e, w in zip(make_examples(4), (0.75, -0.25, -0.25, -0.25))
    ]
    batch = collate(scored(model, examples, TOKENS, ALONE))
    loss, _ = grpo_step(model, batch, 0.2, 10)
    loss.backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (-sum(e.weight * naive_sequence_logp(model, e) for e in examples) / 10).backward()
    for grad, p in zip(ours, model.parameters()):
        torch.testing.assert_close(grad, p.grad, rtol=1e-3, atol=1e-5)


@pytest.fixture
def trl():
    """What TRL computed (tests/fixtures/make_trl.py), the policy and the reference it computed it with, and the texts, chosen before rejected."""
    stored = json.loads(make_trl.FILE.read_text())
    policy, reference = (
        make_trl.with_weights(Model(ModelConfig(**stored["config"])), seed) for seed in (0, 1)
    )
    examples = [
        Example(pair["prompt_ids"], pair[key])
        for pair in stored["pairs"]
        for key in ("chosen_ids", "rejected_ids")
    ]
    return stored, policy, reference, examples


def same_as_trl(
    step, settings: dict, policy: Model, reference: Model, batches: list, theirs: dict, units: int
) -> dict:
    """Loss and gradient of the batches together, divided by the units as train() does, equal TRL's; returns the metrics."""
    total, metrics = 0.0, {}
    for batch in batches:
        loss, extra = step(policy, batch, **settings)
        (loss / units).backward()
        total += loss.item() / units
        metrics = {
            name: metrics.get(name, 0.0) + value.item() / units for name, value in extra.items()
        }
    assert total == pytest.approx(theirs["loss"], abs=1e-5, rel=1e-5)
    ours = make_trl.gradient_of(policy, reference)
    assert ours.keys() == theirs["gradient"].keys()
    for name, gradient in ours.items():
        assert gradient == pytest.approx(theirs["gradient"][name], abs=1e-5, rel=1e-4), name
    return metrics


@pytest.mark.parametrize("micro_tokens, parts", [(10_000, 1), (64, 3)])
def test_dpo_is_that_of_trl(trl, micro_tokens, parts):
    stored, policy, reference, examples = trl
    theirs = stored["dpo"]
    examples = scored(reference, examples, TOKENS, ALONE)
    assert [sum(e.logps) for e in examples] == pytest.approx(theirs["reference"], abs=1e-4)
    logps = sums_by_example(completion_logps(policy, collate(examples)), collate(examples)).detach()
    assert logps.tolist() == pytest.approx(theirs["logps"], abs=1e-4)
    batches = micro_batches(examples, micro_tokens, group=2)
    assert len(batches) == parts
    metrics = same_as_trl(
        dpo_step,
        {"beta": theirs["beta"]},
        policy,
        reference,
        batches,
        theirs,
        units=len(examples) // 2,
    )
    assert (metrics["margin"], metrics["accuracy"]) == pytest.approx(
        (theirs["margin"], theirs["accuracy"]), abs=1e-4
    )
    assert (metrics["chosen"], metrics["rejected"]) == pytest.approx(
        (logps[0::2].mean().item(), logps[1::2].mean().item()), abs=1e-4
    )


def test_grpo_is_the_dr_grpo_of_trl(trl):
    stored, policy, reference, examples = trl
    theirs = stored["grpo"]
    for e, row in zip(scored(policy, examples, TOKENS, ALONE), theirs["logps"]):
        assert list(e.logps) == pytest.approx(row, abs=1e-4)
    examples = [
        replace(e, logps=old, weight=advantage)
        for e, old, advantage in zip(examples, theirs["old"], theirs["advantages"])
    ]
    settings = {"clip_ratio": theirs["clip_ratio"], "longest": theirs["max_new_tokens"]}
    metrics = same_as_trl(
        grpo_step, settings, policy, reference, [collate(examples)], theirs, units=len(examples)
    )
    assert (
        metrics["clipped"] == pytest.approx(theirs["clipped"], abs=1e-6) and theirs["clipped"] > 0.1
    )


# ---- what is trained on


def test_best_samples_takes_right_ones_first_and_ties_at_random():
    rewards = np.zeros((40, 1))
    rewards[[7, 30]] = 1
    first, facts = elicit_rl.best_samples(rolled(rewards), cfg(), np.random.default_rng(0))
    assert [e.prompt_ids[1] - 2 for e in first[:2]] in ([7, 30], [30, 7]) and len(first) == 4
    assert facts["kept_right"] == 0.5 and facts["signal"] == 2 / 40
    second, _ = elicit_rl.best_samples(rolled(rewards), cfg(), np.random.default_rng(1))
    assert {e.prompt_ids[1] for e in first} != {e.prompt_ids[1] for e in second}
    only, facts = elicit_rl.best_samples(
        rolled(rewards), cfg(keep="correct"), np.random.default_rng(0)
    )
    assert len(only) == 2 and facts["kept_right"] == 1
    none, facts = elicit_rl.best_samples(
        rolled(np.zeros((40, 1))), cfg(keep="correct"), np.random.default_rng(0)
    )
    assert none == [] and facts["signal"] == 0


def test_pairs_are_chosen_then_rejected_and_equal_rewards_give_none():
    pairs, facts = elicit_rl.unequal_pairs(
        rolled([[0, 1], [1, 1], [0, 0], [0.75, 0.25]]), cfg(), np.random.default_rng(0)
    )
    assert [e.completion_ids[1] - 2 for e in pairs] == [1, 0, 0, 1]  # which of the two samples
    assert [e.weight for e in pairs] == [1, 1, 0.5, 0.5] and facts["signal"] == 0.5


def test_groups_of_equal_rewards_are_left_out_and_their_number_is_not():
    rewards = [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    rng = np.random.default_rng(0)
    examples, facts = elicit_rl.advantages(rolled(rewards), cfg(), rng)
    assert [e.prompt_ids for e in examples] == [[5, 2]] * 4 + [[5, 5]] * 4
    assert facts["signal"] == 0.5
    lead = [0.75, -0.25, -0.25, -0.25, -0.25, 0.75, -0.25, -0.25]
    assert [e.weight for e in examples] == [a * 8 / 16 for a in lead]  # 8 of the 16 are left


def test_with_half_of_the_groups_silent_the_loss_of_grpo_halves(make_model):
    model, rng = make_model(), np.random.default_rng(0)
    losses = {}
    for name, rewards in {
        "all speak": [[1, 0, 0]] * 4,
        "half are silent": [[1, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]],
    }.items():
        drawn = rolled(rewards)
        for row in drawn.samples:
            row[0].ids[-1:] = [9, 9, 9, 0]  # else the advantages of a group cancel
        examples, _ = elicit_rl.advantages(drawn, cfg(method="grpo"), rng)
        batch = collate(scored(model, examples, TOKENS, ALONE))
        loss, _ = grpo_step(model, batch, elicit_rl.CLIP_RATIO, 10)
        losses[name] = loss.item() / batch.examples
    # on policy every ratio is 1: minus the mean over the samples of lead * tokens / longest
    assert losses["all speak"] == pytest.approx(-(2 / 3 * 10 - 2 * 1 / 3 * 7) / 3 / 10)
    assert losses["half are silent"] == pytest.approx(losses["all speak"] / 2)


def test_partial_rewards_alone_are_no_signal_where_only_right_samples_are_kept():
    rewards, rng = np.full((40, 1), 0.5), np.random.default_rng(0)
    kept, facts = elicit_rl.best_samples(rolled(rewards), cfg(keep="correct"), rng)
    assert kept == [] and facts["signal"] == 0
    kept, facts = elicit_rl.best_samples(rolled(rewards), cfg(keep="best"), rng)
    assert len(kept) == 4 and facts["signal"] == 1


def test_a_round_without_any_reward_is_not_trained_on():
    """The best tenth of samples that are all wrong would be a tenth at random."""
    for name, rewards in {
        "expert_iteration": np.zeros((40, 1)),
        "dpo": np.zeros((20, 2)),
        "grpo": np.zeros((10, 4)),
    }.items():
        rng = np.random.default_rng(0)
        examples, facts = METHODS[name].choose(rolled(rewards), cfg(method=name), rng)
        assert examples == [] and facts["signal"] == 0, name


def test_round_problems_goes_through_the_split_in_fresh_orders():
    problems = list(range(10))
    rounds = [round_problems(problems, number, 4, seed=3) for number in range(5)]
    seen = [p for chosen in rounds for p in chosen]
    assert sorted(seen[:10]) == sorted(seen[10:]) == problems and seen[:10] != seen[10:]
    assert round_problems(problems, 2, 4, 3) == rounds[2] != round_problems(problems, 2, 4, 4)


def test_pass_at_k_by_counting():
    from itertools import combinations

    correct = np.array([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=bool)
    for k in (1, 2, 4):
        by_hand = np.mean(
            [np.mean([any(row[list(c)]) for c in combinations(range(5), k)]) for row in correct]
        )
        assert pass_at_k(correct, k) == pytest.approx(by_hand)


# ---- rollouts and updates


def test_rollout_marks_cut_samples_wrong_and_agrees_with_the_trainer(
    make_model, tokenizer, monkeypatch
):
    monkeypatch.setattr(policies, "grade", lambda problems, texts: [True] * len(texts))
    model = make_model()
    problems = [Problem("code", f"Write {i}\n", "", "lists", 1, {}, f"k{i}") for i in range(6)]
    result, seconds = policies.rollout(
        Sampler(model, [tokenizer.eos_id], slots=8), tokenizer, problems, 2, **DRAWING
    )
    cut = np.array([[s.truncated for s in row] for row in result.samples])
    assert cut.any() and (result.rewards == ~cut).all()
    flat = [
        Example(prompt, s.ids, s.logps)
        for prompt, row in zip(result.prompts, result.samples)
        for s in row
    ]
    for sampled, trained in zip(flat, scored(model, flat, TOKENS, ALONE)):
        np.testing.assert_allclose(sampled.logps, trained.logps, rtol=0, atol=1e-4)
    assert {"s_prefill", "s_decode", "s_grade"} <= seconds.keys()


def test_a_writer_with_another_tokenizer_reads_and_writes_its_own(
    make_model, tokenizer, monkeypatch
):
    monkeypatch.setattr(policies, "grade", lambda problems, texts: [True] * len(texts))
    model, own = make_model(seed=3), train_bpe(["Write 0 1 2 3 4 5\n"] * 9, 290)
    problems = [Problem("code", f"Write {i}\n", "", "lists", 1, {}, f"k{i}") for i in range(6)]
    draw = lambda ours, theirs: policies.rollout(
        Sampler(model, [ours.eos_id], slots=8), ours, problems, 2, own=theirs, **DRAWING
    )[0]
    model.live_vocab = own.size
    alone, written = draw(own, None), draw(tokenizer, own)
    assert (
        own.size != tokenizer.size
        and alone.prompts
        != written.prompts
        == tokenizer.encode_prompts([p.prompt for p in problems])
    )
    assert [len(row) for row in written.samples] == [2] * 6
    for before, after in zip(alone.samples, written.samples):
        for a, b in zip(before, after):
            assert (
                b.ids == tokenizer.encode_completions([own.decode(a.ids)], [not a.truncated])[0]
                and b.truncated == a.truncated
            )


def test_reference_log_probs_are_read_back_and_equal_live_ones(
    make_model, make_examples, tokenizer, tmp_path, monkeypatch
):
    model, examples = make_model(), make_examples(6)
    live, stored = (
        scored(model, examples, TOKENS, ALONE),
        training.reference_scored(model, examples, ["w"], tokenizer, tmp_path, TOKENS, ALONE),
    )
    assert live == stored and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(training, "scored", None)  # so only a file can give them
    assert (
        training.reference_scored(model, examples, ["w"], tokenizer, tmp_path, TOKENS, ALONE)
        == live
    )
    for weights, data in ((["v"], examples), (["w"], examples[:5])):
        with pytest.raises(TypeError):
            training.reference_scored(model, data, weights, tokenizer, tmp_path, TOKENS, ALONE)


def steps_of_update(examples: list, rows: int, batch: int, monkeypatch) -> list[list[Example]]:
    """The examples of each step that update() trains on, of one epoch."""
    steps = []

    def noted(model, optimizers, batches, loss_fn, env, *, steps: int, **_):
        taken.extend(batches(step) for step in range(steps))
        return iter(())

    taken = steps
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", noted)
        patch.setattr(training, "micro_batches", lambda mine, tokens, group: mine)
        training.update(
            None,
            [],
            examples,
            None,
            ALONE,
            number=0,
            rows=rows,
            epochs=1,
            batch=batch,
            seed=0,
            micro_tokens=TOKENS,
            units=None,
        )
    return steps


def test_the_steps_of_a_round_are_alike_although_reward_goes_with_length(monkeypatch):
    rng = np.random.default_rng(0)
    rewards, examples = rng.random((80, 8)) < 0.5, []
    for row in rewards - rewards.mean(1, keepdims=True):
        for lead in row:  # right completions are short
            examples.append(Example([5], [6] * (10 if lead > 0 else 30), weight=lead))
    steps = steps_of_update(examples, 1, 64, monkeypatch)
    assert len(steps) == 10
    for step in steps:
        assert abs(np.mean([e.weight for e in step])) < 0.2


@pytest.mark.parametrize("count, rows, batch", [(65, 1, 8), (9, 1, 8), (66, 2, 16), (3, 1, 8)])
def test_all_examples_of_a_round_weigh_about_the_same(count, rows, batch, monkeypatch):
    examples = [Example([5, i], [6] * (1 + i // rows)) for i in range(count)]
    steps = steps_of_update(examples, rows, batch, monkeypatch)
    taken = [e.prompt_ids[1] for step in steps for e in step]
    assert sorted(taken) == list(range(count))  # once each
    assert len(steps) == math.ceil(count / batch)
    sizes = [len(step) // rows for step in steps]
    assert max(sizes) - min(sizes) <= 1  # an example weighs one over its step's size
    for step in steps:
        first = [e.prompt_ids[1] for e in step[::rows]]
        assert all(i % rows == 0 for i in first)  # pairs stay together, chosen first
        assert [e.prompt_ids[1] for e in step] == [i + j for i in first for j in range(rows)]


def test_every_epoch_and_round_has_an_order_of_its_own():
    steps = training.round_steps(20, 8, 2, seed=0, number=0)
    assert len(steps) == 6 and steps[:3] != steps[3:]
    assert steps == training.round_steps(20, 8, 2, seed=0, number=0)
    assert steps != training.round_steps(20, 8, 2, seed=0, number=1)
    assert steps != training.round_steps(20, 8, 2, seed=1, number=0)


@pytest.mark.parametrize("name", ["dpo", "grpo", "expert_iteration"])
def test_update_moves_the_policy_the_right_way(name, make_model):
    model, method, settings = make_model(), METHODS[name], cfg(method=name)
    rewards = {"dpo": [[1, 0]] * 4, "grpo": [[1, 0, 0]] * 4, "expert_iteration": [[1.0]] * 10}[name]
    examples, _ = method.choose(rolled(rewards), cfg(), np.random.default_rng(0))
    before = scored(model, examples, TOKENS, ALONE)
    metrics = training.update(
        model,
        make_optimizers(model, "adamw", 1e-3),
        before,
        elicit_rl.loss_of(settings),
        ALONE,
        number=1,
        rows=method.rows,
        epochs=4,
        batch=settings.batch,
        seed=0,
        micro_tokens=TOKENS,
        units=elicit_rl.units_of(method),
    )
    after = scored(model, examples, TOKENS, ALONE)
    gain = [np.sum(a.logps) - np.sum(b.logps) for a, b in zip(after, before)]
    if name == "dpo":
        assert min(np.subtract(gain[0::2], gain[1::2])) > 0
    elif name == "grpo":
        assert np.mean([g for g, e in zip(gain, examples) if e.weight > 0]) > np.mean(
            [g for g, e in zip(gain, examples) if e.weight < 0]
        )
    else:
        assert min(gain) > 0
    assert metrics["steps"] >= 4 and math.isfinite(metrics["loss"])
