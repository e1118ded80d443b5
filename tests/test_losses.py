"""The losses against numbers worked by hand, naive references, and TRL."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from data.batches import Example, collate, micro_batches
from fixtures import make_trl
from losses import (
    Teacher,
    distribution_loss,
    dpo_loss,
    dpo_step,
    grpo_loss,
    grpo_step,
    npo_loss,
    npo_step,
    sft_loss,
    sums_by_example,
)
from model import Model, ModelConfig, completion_logps, linear_kl
from policies import model_teacher
from runs.devices import Env
from training import scored

ALONE = Env(torch.device("cpu"), torch.float32, False)
TOKENS = 16384


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


def test_npo_by_hand():
    start = torch.tensor([-7.0, -30.0])
    policy = start.clone().requires_grad_()
    loss = npo_loss(policy, start, 0.1)
    assert loss.item() == pytest.approx(2 * 13.8629, abs=1e-3)  # 2 ln 2 / beta for each text
    loss.backward()
    assert policy.grad.tolist() == pytest.approx([1.0, 1.0])  # of gradient ascent, +log p

    def value(lead: float, beta: float) -> float:
        return npo_loss(torch.tensor([lead], dtype=torch.double), torch.zeros(1), beta).item()

    assert value(10.0, 0.1) == pytest.approx(20 * math.log(1 + math.e))
    assert value(-10.0, 0.1) == pytest.approx(20 * math.log(1 + 1 / math.e))
    # as p falls, to 0 and no further; for small beta ascent, but for a constant
    assert 0 <= value(-1000.0, 0.1) < 1e-40
    assert value(-3.0, 1e-6) - value(0.0, 1e-6) == pytest.approx(-3.0, abs=1e-4)


def test_npo_is_dpo_without_its_chosen_half():
    policy, reference = torch.tensor([-5.0, -9.0]), torch.tensor([-4.0, -12.0])
    pairs = torch.tensor([0.0, -5.0, 0.0, -9.0]), torch.tensor([0.0, -4.0, 0.0, -12.0])
    dpo, _ = dpo_loss(*pairs, torch.ones(2), 0.3)
    assert npo_loss(policy, reference, 0.3).item() == pytest.approx(2 / 0.3 * dpo.item())


def test_the_first_step_of_npo_is_one_of_gradient_ascent(make_model, make_examples):
    model = make_model()
    examples = scored(model, make_examples(3, longest=20), TOKENS, ALONE)
    batch = collate(examples)
    loss, facts = npo_step(model, batch, 0.1)
    assert loss.item() == pytest.approx(3 * 20 * math.log(2), rel=1e-4)
    assert facts["lead"].item() == pytest.approx(0, abs=1e-3)
    weights = list(model.parameters())
    ours = torch.autograd.grad(loss, weights)
    ascent = torch.autograd.grad(completion_logps(model, batch).sum(), weights)
    for one, other in zip(ours, ascent):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


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
    assert abs(metrics["margin"].item()) < 1e-5


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


# ------------------------------------------------------------------ imitation of a distribution


def taught_by(examples: list[Example], teachers: list[int]) -> list[Example]:
    """Each with one of the teachers, which reads a longer prompt than the model."""
    found = []
    for example, teacher in zip(examples, teachers):
        prompt = [9, 8, 7, *example.prompt_ids]
        found.append(replace(example, teacher=teacher, teacher_prompt_ids=prompt))
    return found


def gradients(model: Model, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def test_kl_by_hand():
    ours = torch.zeros(1, 1, requires_grad=True)  # p = (.5, .5)
    q = torch.tensor([[0.8], [0.2]]).log()
    kl = linear_kl(ours, torch.tensor([[1.0], [-1.0]]), torch.ones(1, 1), q)
    assert kl.item() == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    assert kl.item() == pytest.approx(0.1927, abs=1e-4)
    kl.sum().backward()
    assert ours.grad.item() == pytest.approx((0.5 - 0.8) - (0.5 - 0.2))  # p - q through the head


def test_the_same_policy_is_at_no_distance_and_teaches_nothing(make_model, make_examples):
    model, examples = make_model(), make_examples(4)
    same = [replace(e, teacher=0, teacher_prompt_ids=e.prompt_ids) for e in examples]
    loss, _ = distribution_loss(model, collate(same), [model_teacher(make_model())])
    assert loss.item() == 0 and all(not grad.any() for grad in gradients(model, loss))
    idle, _ = distribution_loss(model, collate(examples), [])  # a rank without work
    assert idle.item() == 0 and all(not grad.any() for grad in gradients(model, idle))
    other, _ = distribution_loss(model, collate(same), [model_teacher(make_model(seed=1))])
    assert other.item() > 1


def test_who_is_sure_of_the_sample_teaches_what_the_sample_does(make_model, make_examples):
    model, examples = make_model(), make_examples(4)
    sure = Teacher(
        lambda batch: 1e4 * F.one_hot(batch.targets, 300).float(), lambda: torch.eye(300)
    )
    batch = collate(taught_by(examples, [0] * 4))
    loss, _ = distribution_loss(model, batch, [sure])
    expected, _ = sft_loss(model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients(model, loss), gradients(model, expected)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_distribution_teaches_what_many_of_its_samples_do():
    """Cross-entropy on samples: the same gradient but for noise, and higher by q's entropy."""
    head = torch.tensor([[1.0, 0.5], [0.0, -1.0], [-0.5, 0.3], [0.2, 0.2]])
    q_logits = torch.tensor([[0.3], [1.0], [-1.0], [0.0]])
    q, n = q_logits[:, 0].softmax(0), 40_000
    state = torch.tensor([[0.7, -0.4]], requires_grad=True)
    kl = linear_kl(state, head, torch.ones(1, 1), q_logits)
    [exact] = torch.autograd.grad(kl.sum(), state)

    samples = torch.multinomial(q, n, True, generator=torch.Generator().manual_seed(0))
    cross = F.cross_entropy((state @ head.T).expand(n, 4), samples)
    [sampled] = torch.autograd.grad(cross, state)
    torch.testing.assert_close(sampled, exact, atol=0.02, rtol=0)
    entropy = -(q * q.log()).sum()
    assert cross.item() - entropy.item() == pytest.approx(kl.item(), abs=0.02)
    assert exact.abs().min() > 0.05  # far above the tolerance


@pytest.mark.parametrize("micro_tokens", [10_000, 64])
def test_each_text_is_compared_with_its_own_teacher(make_model, make_examples, micro_tokens):
    """Behind the teacher's prompt, in whatever batches; against full logits."""
    model, policies = make_model(), [make_model(seed=1), make_model(seed=2)]
    examples = taught_by(make_examples(6), [1, 0, 0, 1, 1, 0])

    def full(policy: Model, prompt: list[int], completion: list[int]) -> torch.Tensor:
        states = policy(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1]
        return F.linear(states, policy.head_weight).log_softmax(-1)

    expected = 0.0
    for e in examples:
        ours = full(model, e.prompt_ids, e.completion_ids)
        with torch.no_grad():
            theirs = full(policies[e.teacher], e.teacher_prompt_ids, e.completion_ids)
        expected = expected + F.kl_div(ours, theirs, reduction="sum", log_target=True)

    loss, teachers = 0.0, [model_teacher(policy) for policy in policies]
    for batch in micro_batches(examples, micro_tokens):
        loss = loss + distribution_loss(model, batch.to(torch.device("cpu")), teachers)[0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients(model, loss), gradients(model, expected)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for policy in policies for p in policy.parameters())


@pytest.fixture
def trl():
    """What TRL computed (tests/fixtures/make_trl.py), its policy and reference, and the texts.

    Chosen ones stand before rejected ones.
    """
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
    """Loss and gradient of the batches, divided by the units, equal TRL's; returns the metrics."""
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
