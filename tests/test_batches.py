"""Examples to batches: every position where it belongs, every example once."""

import numpy as np
import pytest
import torch

from data.batches import (
    BUCKET,
    Example,
    collate,
    demonstration_order,
    micro_batches,
    on_whole_texts,
    plan_epoch,
    round_up,
)
from data.problems import InputError
from losses import sft_loss


def examples_of(batch) -> list[tuple]:
    """(prompt ids, supervised ids) of every example, read back from the tensors alone."""
    T, found = batch.tokens.shape[1], []
    for owner in range(batch.examples):
        at = batch.index[batch.owner == owner].tolist()
        row = batch.tokens[at[0] // T].tolist()
        found.append(
            (tuple(row[: at[0] % T + 1]), tuple(batch.targets[batch.owner == owner].tolist()))
        )
    return found


def test_the_example_of_the_docstring(monkeypatch):
    monkeypatch.setattr("data.batches.BUCKET", 4)
    eos = 2
    batch = collate([Example([7, 8], [5, eos]), Example([9], [6, eos])])
    assert batch.tokens.tolist() == [[7, 8, 5, eos], [9, 6, eos, 0]]
    assert batch.index.tolist() == [1, 2, 4, 5]
    assert batch.targets.tolist() == [5, eos, 6, eos]
    assert batch.owner.tolist() == [0, 0, 1, 1]
    assert (batch.examples, batch.real_tokens) == (2, 7)


def test_a_loss_on_whole_texts_is_on_every_token_but_the_first():
    given = Example([7, 8, 3], [5, 2], weight=0.5)
    [whole] = on_whole_texts([given])
    assert whole == Example([7], [8, 3, 5, 2], weight=0.5)
    assert collate([whole]).targets.tolist() == [8, 3, 5, 2]
    assert collate([given]).tokens.tolist() == collate([whole]).tokens.tolist()


def test_targets_are_the_next_tokens(make_examples):
    batch = collate(make_examples(20))
    assert batch.tokens.shape[1] % BUCKET == 0
    assert torch.equal(batch.tokens.flatten()[batch.index + 1], batch.targets)
    assert (batch.index // batch.tokens.shape[1] == batch.owner).all()
    assert all(
        t.dtype == torch.int64 for t in (batch.tokens, batch.index, batch.targets, batch.owner)
    )


@pytest.mark.parametrize("limit", [1, 64, 200, 10_000])
def test_micro_batches_hold_every_example_once_within_the_limit(make_examples, limit):
    examples = make_examples(50)
    batches = micro_batches(examples, limit)
    found = [e for batch in batches for e in examples_of(batch)]
    assert sorted(found) == sorted((tuple(e.prompt_ids), tuple(e.completion_ids)) for e in examples)
    assert all(b.tokens.numel() <= limit or b.examples == 1 for b in batches)
    assert sum(b.real_tokens for b in batches) == sum(map(len, examples))
    assert micro_batches([], limit) == []


def test_a_batch_with_enough_tokens_takes_in_nothing_much_shorter():
    short, middle, long = (Example([1] * (length - 1), [2]) for length in (30, 60, 120))

    def shapes(examples: list[Example]) -> list[tuple[int, ...]]:
        return [tuple(batch.tokens.shape) for batch in micro_batches(examples, 10_000)]

    enough = [short] * 10 + [long] * 10 + [middle] * 20
    assert shapes(enough) == [(10, 128), (20, 64), (10, 32)]
    assert shapes([short] + [long] * 2) == [(3, 128)]
    # rows of 32 are the shortest that hold these
    alike = [Example([1] * 20, [2])] * 100
    assert shapes(alike) == [(100, 32)]


@pytest.mark.parametrize("limit", [1, 200, 10_000])
def test_groups_stay_together_in_their_order(limit):
    examples = [Example([1] * length, [i]) for i, length in enumerate((5, 40, 9, 9, 60, 1, 20, 3))]
    for batch in micro_batches(examples, limit, group=2):
        pairs = batch.targets.reshape(-1, 2).tolist()
        assert all(first % 2 == 0 and second == first + 1 for first, second in pairs)
        assert batch.tokens.numel() <= limit or len(pairs) == 1


def test_logps_and_weights_follow_their_examples():
    first = Example([1], [2, 3], np.array([-0.5, -1.5], dtype=np.float32), 2.0)
    second = Example([1], [4], [-2.5], -1.0)
    batch = collate([first, second])
    assert batch.logps.tolist() == [-0.5, -1.5, -2.5] and batch.logps.dtype == torch.float32
    assert batch.weights.tolist() == [2.0, -1.0]
    assert torch.equal(batch.to(torch.device("cpu")).logps, batch.logps)


def test_the_loss_does_not_depend_on_the_micro_batches(make_model, make_examples):
    model, examples = make_model(), make_examples(12)
    losses = [
        sum(sft_loss(model, b)[0].item() for b in micro_batches(examples, limit))
        for limit in (1, 100, 10_000)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("count, rows", [(1, 1), (10, 4), (64, 8), (5, 100)])
def test_plan_epoch(count, rows):
    lengths = np.random.default_rng(1).integers(5, 60, count).tolist()
    plan = plan_epoch(lengths, rows, np.random.default_rng(0))
    assert sorted(i for step in plan for i in step) == list(range(count))
    assert len(plan) == -(-count // rows) and sorted(map(len, plan))[1:] == [rows] * (len(plan) - 1)
    assert plan == plan_epoch(lengths, rows, np.random.default_rng(0))
    assert count < 10 or plan != plan_epoch(lengths, rows, np.random.default_rng(1))
    spans = sorted((min(lengths[i] for i in step), max(lengths[i] for i in step)) for step in plan)
    # steps are slices of the lengths in order
    assert all(low[1] <= high[0] for low, high in zip(spans, spans[1:]))
    mixed = plan_epoch(lengths, rows, np.random.default_rng(0), alike=2)
    assert sorted(i for step in mixed for i in step) == list(range(count))
    assert len(mixed) == len(plan)


def test_plan_epoch_does_not_keep_equally_long_examples_together():
    plans = set()
    for seed in range(5):
        steps = plan_epoch([7] * 12, 4, np.random.default_rng(seed))
        plans.add(tuple(sorted(tuple(sorted(step)) for step in steps)))
    assert len(plans) == 5


@pytest.mark.parametrize("k, batch", [(4, 8), (8, 8), (5, 8), (20, 8)])
def test_demonstrations_come_equally_often(k, batch):
    steps = 5 * k
    order = demonstration_order(k, batch, steps, seed=1)
    assert len(order) == steps and order == demonstration_order(k, batch, steps, seed=1)
    counts = np.bincount(np.concatenate(order), minlength=k)
    if batch % k == 0:  # each once in every step
        assert order == [list(range(k))] * steps
    else:
        assert {len(step) for step in order} == {batch} and counts.tolist() == [5 * batch] * k


def test_round_up():
    assert [round_up(n, 16) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_an_example_without_a_prompt_is_refused():
    # no state comes before its first token: index -1 would silently read another row
    with pytest.raises(InputError, match="at least one prompt token"):
        collate([Example([5, 6], [7, 0]), Example([], [8, 0])])


def test_an_example_without_a_completion_supervises_nothing():
    # a completion cut at once: no ids, no EOS
    batch = collate([Example([5, 6], []), Example([5], [8, 0])])
    assert batch.targets.dtype == torch.int64
    assert batch.targets.tolist() == [8, 0] and batch.owner.tolist() == [1, 1]


def test_what_goes_to_cuda_goes_through_pinned_memory(monkeypatch):
    said = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: said.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **how: said.append(how) or self)
    batch = collate([Example([5], [6])])
    batch.to(torch.device("cuda"))
    assert said == ["pinned", {"non_blocking": True}] * 6
    said.clear()
    batch.to(torch.device("cpu"))
    assert said == [{"non_blocking": True}] * 6
