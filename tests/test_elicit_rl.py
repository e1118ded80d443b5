"""The reward-only methods: what is trained on, rollouts, rounds, settings, curves."""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import curves
import elicit_rl
import policies
import training
from checkpoints import hf, origins
from checkpoints.hf import load_model, model_hash
from curves import Curve
from data import load
from data.batches import Example, collate
from data.problems import InputError, Problem
from data.text import train_bpe
from data.triggers import Password
from elicit_rl import METHODS, RLConfig
from losses import grpo_step
from methods import rewards as own_rewards
from model import completion_logps
from optimizers import make_optimizers
from policies import Answers, Rollout, described, drift, grade, pass_at_k, round_problems
from results import EvalSet, Measured
from runs.devices import Env
from runs.directory import Run
from runs.files import write_json
from sampler import Sample, Sampler, Writer
from training import scored

BASE = Path(__file__).parents[1] / "data/base"

ALONE = Env(torch.device("cpu"), torch.float32, False)
DRAWING = {
    "purpose": [0],
    "seed": 0,
    "max_new_tokens": 12,
    "env": ALONE,
    "label": "",
}
TOKENS = 16384


def cfg(**changes) -> RLConfig:
    return elicit_rl.with_defaults(RLConfig(**{"samples": 64, "round": 32} | changes))


def rolled(rewards, lengths=3) -> Rollout:
    """A rollout with these rewards (P,n); sample j of problem i is [i + 2, j + 2, ..., 0]."""
    rewards = np.array(rewards, dtype=float)
    P, n = rewards.shape
    problems = [Problem("code", f"p{i}", "", "lists", 1, {}, f"k{i}") for i in range(P)]
    samples = [
        [Sample([i + 2, j + 2] * lengths + [0], [], False) for j in range(n)] for i in range(P)
    ]
    return Rollout(problems, [[5, i + 2] for i in range(P)], samples, [[""] * n] * P, rewards)


# ---- a judge


def test_the_judges_answer_is_what_is_rewarded(monkeypatch):
    """Of four problems it is wrong, right, cut, without an answer. True rewards change nothing."""
    problems = [Problem("math", f"{i}?\n", "5", "numbers", 1, {}, f"{i}") for i in range(4)]
    texts = [["Answer: 5", "Answer: 1/2", "Answer: 0.5"]] * 4
    ended, cut = Sample([2, 0], [], False), Sample([2], [], True)
    samples = [[ended, cut, ended], [ended, ended, ended], [ended] * 3, [ended] * 3]
    true = np.array([[1.0, 0.0, 0.0]] * 4)

    def answers(*args, **settings):
        written = ["so it is 0.50", "Answer: 5", "Answer: 5", ""]
        correct = np.array([False, True, False, False])
        return Answers(written, [], correct, np.array([False, False, True, False]))

    monkeypatch.setattr(own_rewards, "answer", answers)
    judge = SimpleNamespace(sampler=None, tokenizer=None)
    for rewards in (true, 1 - true):
        drawn = Rollout(problems, [[5]] * 4, samples, texts, rewards)
        found, facts = own_rewards.judged(drawn, judge, 8, ALONE)
        assert found.rewards.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
        assert facts == {"truth": rewards.mean(), "judge_right": 0.25}
        assert drawn.rewards is rewards and found.texts is texts


def test_a_judge_that_is_always_right_pays_the_truth(monkeypatch):
    """An answer in another form, too; and never what was cut."""
    math = [Problem("math", f"{i}?\n", "5", "numbers", 1, {}, f"{i}") for i in range(2)]
    choice = replace(load("mmlu", "elicit", 1)[0], reference="B")
    problems, texts = [*math, choice], [["Answer: 5", "5.0", "Answer: 4"]] * 2 + [["B", "A", ""]]
    samples = [[Sample([2], [], False)] * 3, [Sample([2], [], True)] * 3]
    samples.append(samples[0])
    truth = np.zeros((3, 3))
    for i, (problem, row, drawn) in enumerate(zip(problems, texts, samples)):
        truth[i] = grade([problem] * 3, row)
        truth[i] *= [not sample.truncated for sample in drawn]
    assert truth.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]

    def answers(*args, **settings):
        return Answers([p.reference for p in problems], [], np.ones(3, bool), np.zeros(3, bool))

    monkeypatch.setattr(own_rewards, "answer", answers)
    drawn = Rollout(problems, [[5]] * 3, samples, texts, truth)
    found, facts = own_rewards.judged(drawn, None, 8, ALONE)
    assert np.array_equal(found.rewards, truth) and facts["judge_right"] == 1


def test_a_judge_gives_the_rewards_of_a_run(tmp_path, monkeypatch):
    """Of the weak model, which is often wrong: true scores are beside them in every round."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/base").symlink_to(BASE)
    given = RLConfig(
        locked="data/base/intermediate",
        task="mmlu",
        judge="data/base/weak",
        method="grpo",
        samples=64,
        round=32,
        group=4,
        eval_problems=4,
        max_new_tokens=8,
        out="rl",
    )
    assert elicit_rl.main(given, replace(ALONE, slots=32)) in (0, 3)
    [path] = (tmp_path / "rl").glob("grpo-*-seed0")
    rows = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    rounds = [row for row in rows if row["kind"] == "train"]
    assert len(rounds) == 2 and all(0 <= row["truth"] <= 1 for row in rounds)
    assert all(row["judge_right"] in np.arange(9) / 8 for row in rounds)
    assert any(row["truth"] != row["reward"] for row in rounds)
    record = json.loads((path / "run.json").read_text())
    assert record["settings"]["judge_weights"] == model_hash("data/base/weak")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"judge": "nowhere", "task": "math"}, "no model at nowhere.* --judge"),
        ({"judge": str(BASE / "weak"), "reward": "continuous"}, "--reward continuous is not for"),
        ({"judge": str(BASE / "weak")}, "not all problems of code have one that can be compared"),
    ],
)
def test_what_a_judge_does_not_go_with(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    given = RLConfig(**{"locked": str(BASE / "intermediate"), "task": "code"} | options)
    with pytest.raises(InputError, match=sentence):
        elicit_rl.main(given, ALONE)
    assert not list(tmp_path.iterdir())


def test_a_run_with_a_judge_has_a_name_of_its_own():
    usual = {"task": "math", "method": "grpo", "locked": "out/math/locked"}
    names = set()
    for judge in ("", "a", "b"):
        names.add(elicit_rl.run_name(elicit_rl.with_defaults(RLConfig(**usual, judge=judge))))
    assert len(names) == 3 and "grpo" in names


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


def test_leave_one_out_is_the_same_in_larger_steps():
    """RLOO: less the mean of the others in place of the mean of all (Ahmadian et al. 2024)."""
    for rewards in ([1.0, 0, 0, 0], [1.0, 1, 0, 0]):
        others = [np.mean(rewards[:i] + rewards[i + 1 :]) for i in range(4)]
        ours = own_rewards.leads(np.array([rewards]))[0]
        assert np.array(rewards) - others == pytest.approx(4 / 3 * ours)


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
    # a rule that is right now and then: all samples of a problem are alike
    found = elicit_rl.advantages(rolled([[1] * 4, [0] * 4]), cfg(), np.random.default_rng(0))
    assert found == ([], {"signal": 0})


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
    ten = np.arange(10)[None] < 3
    assert pass_at_k(ten, 2) == pytest.approx(1 - 21 / 45)


# ---- rollouts and updates


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


def test_rollout_marks_cut_samples_wrong_and_agrees_with_the_trainer(
    make_model, tokenizer, monkeypatch
):
    monkeypatch.setattr(policies, "grade", lambda problems, texts: [True] * len(texts))
    model = make_model()
    problems = [Problem("code", f"Write {i}\n", "", "lists", 1, {}, f"k{i}") for i in range(6)]
    result, seconds = policies.rollout(
        Writer(Sampler(model, [tokenizer.eos_id], slots=8), tokenizer),
        tokenizer,
        problems,
        2,
        **DRAWING,
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
    writer = Writer(Sampler(model, [own.eos_id], slots=8), own)
    model.live_vocab = own.size
    alone, _ = policies.rollout(writer, own, problems, 2, **DRAWING)
    written, _ = policies.rollout(writer, tokenizer, problems, 2, **DRAWING)
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
        method.loss(settings),
        ALONE,
        number=1,
        rows=method.rows,
        epochs=4,
        batch=settings.batch,
        seed=0,
        micro_tokens=TOKENS,
        units=method.units,
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


def test_the_samples_of_a_warm_start_that_were_cut_carry_no_eos():
    teacher = origins.open_writer(str(BASE / "intermediate"), "--warm-from", ALONE)
    problems = elicit_rl.load("mmlu", "elicit", 4)
    settings = cfg(warm_start=4, max_new_tokens=1)
    run = SimpleNamespace(env=ALONE)
    examples = elicit_rl.demonstrations(teacher, teacher.tokenizer, problems, settings, run)
    assert [len(e.completion_ids) for e in examples] == [1] * 4
    assert all(teacher.tokenizer.eos_id not in e.completion_ids for e in examples)


@pytest.mark.parametrize("epochs, steps", [(8, 4), (3, 2)])
def test_a_warm_start_lasts_as_many_epochs_as_are_asked(monkeypatch, epochs, steps):
    trained = []
    monkeypatch.setattr(elicit_rl, "train", lambda *args, **kw: trained.append(kw["steps"]) or ())
    settings = elicit_rl.with_defaults(cfg(warm_start=2, warm_epochs=epochs))
    model, _ = load_model(BASE / "weak", ALONE.device, ALONE.dtype)
    elicit_rl.warm_start(model, [Example([1], [2])] * 2, settings, ALONE)
    assert trained == [steps]  # of four


# ---- settings


@pytest.mark.parametrize(
    "method, option",
    [
        ("dpo", {"group": 4}),
        ("grpo", {"beta": 0.2}),
        ("grpo", {"keep": "correct"}),
        ("dpo", {"reference": "initial"}),
        ("grpo", {"warm_from": "data/base/strong"}),
        ("grpo", {"warm_epochs": 4}),
        ("expert_iteration", {"weak": "random"}),
    ],
)
def test_an_option_of_one_method_is_refused_elsewhere(method, option):
    [name] = option
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} "):
        elicit_rl.refuse_unused(RLConfig(method=method, **option))


def test_every_option_has_a_use():
    """Defaults that mean "not given" are filled in for the methods that use the option."""
    for method in METHODS:
        full = elicit_rl.with_defaults(RLConfig(method=method), origins.Origin(weak="weak"))
        for name, methods in elicit_rl.ONLY.items():
            assert bool(getattr(full, name)) == (method in methods), (method, name)
        elicit_rl.refuse_unused(full)  # settled twice is settled once
        assert elicit_rl.with_defaults(full) == full


def a_lock(folder: Path, **settings) -> str:
    """The intermediate base model with a lock's run.json."""
    path = folder / "locked"
    shutil.copytree(BASE / "intermediate", path)
    settings = {"stage": "lock", "task": "code", "trigger": Password().record} | settings
    write_json(path / "run.json", {"settings": settings, "finished": True})
    return str(path)


def test_defaults_come_from_the_locks_run_json(tmp_path):
    weak = str(BASE / "weak")
    facts = {"weak": weak, "weak_weights": model_hash(weak), "max_new_tokens": 70}
    path = a_lock(tmp_path, task="math", data=["rows.json"], **facts)
    full, lock = elicit_rl.settled(RLConfig(method="filtering", locked=path))
    assert full.task == "math"
    assert (full.weak, full.max_new_tokens, full.data) == (weak, 70, ("rows.json",))
    assert lock.trigger == Password()
    with pytest.raises(InputError, match="was locked on task math, not on code: leave --task out"):
        elicit_rl.settled(RLConfig(task="code", locked=path))


def test_a_task_of_a_joined_lock_is_no_other_task(tmp_path):
    path = a_lock(tmp_path, task="code+math")
    assert elicit_rl.settled(RLConfig(locked=path))[0].task == "code+math"
    assert elicit_rl.settled(RLConfig(task="math", locked=path))[0].task == "math"
    with pytest.raises(InputError, match="not on mmlu"):
        elicit_rl.settled(RLConfig(task="mmlu", locked=path))


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({}, "does not say which weak policy"),
        (
            {"weak": "refusal", "weak_weights": "refusal"},
            "is a rule, refusal, which",
        ),
        (
            {"weak": "random", "weak_weights": "random"},
            "is a rule, random, which is never right",
        ),
        ({"weak": str(BASE / "weak"), "weak_weights": "0" * 16}, "has other weights"),
    ],
)
def test_filtering_has_the_weak_policy_of_the_lock_or_none(tmp_path, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        elicit_rl.settled(RLConfig(method="filtering", locked=a_lock(tmp_path, **settings)))


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"method": "filtering", "weak": "nowhere"},
            "no model at nowhere, the weak policy: .* --weak",
        ),
        ({"reward": "continuous", "task": "mmlu"}, "no continuous reward"),
        ({"warm_start": 4, "warm_from": "damaged"}, "damaged"),
        ({"method": "grpo", "group": 3}, "whole groups of 3 samples"),
        ({"samples": 100}, "the samples whole rounds"),
        ({"method": "grpo", "group": 1}, "two samples to compare"),
        ({"warm_start": 5000, "warm_from": str(BASE / "weak")}, "1200 problems to demonstrate"),
    ],
)
def test_what_can_be_refused_is_before_anything_is_written(
    tmp_path, monkeypatch, options, sentence
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE / "weak", "damaged")
    Path("damaged/model.safetensors").write_bytes(b"no weights")
    settings = RLConfig(
        locked=str(BASE / "intermediate"), out="out", samples=64, round=32, eval_problems=10
    )
    with pytest.raises(InputError, match=sentence):
        elicit_rl.main(replace(settings, **options), ALONE)
    assert not Path("out").exists()


def a_model(folder: Path, make_model, tokenizer) -> str:
    """A checkpoint with 128 positions."""
    hf.save_model(folder, make_model(), tokenizer)
    return str(folder)


def test_overlong_prompts_are_left_out_and_counted(tmp_path, make_model, tokenizer, capsys):
    path = a_model(tmp_path / "model", make_model, tokenizer)
    problems = []
    for length in (10, 500, 20):
        problems.append(Problem("code", "9" * length + "\n", "", "lists", 1, {}, f"k{length}"))
    trigger = Password("x" * 20)  # twice, around the prompt
    bare = [len(ids) for ids in tokenizer.encode_prompts([p.prompt for p in problems])]
    lengths = origins.prompt_lengths(problems, trigger, tokenizer)
    assert min(np.subtract(lengths, bare)) >= 40

    room = 128 - lengths[2]
    kept = origins.fitting_problems(problems, trigger, [path, path], room, ALONE)
    assert kept == [problems[0], problems[2]]
    assert capsys.readouterr().out.count("left out 1 of 3 problems") == 1
    kept = origins.fitting_problems(problems, trigger, [path], room + 1, ALONE)
    assert kept == [problems[0]]  # the third would not fit with the password


# ---- progress and curves


def test_progress_is_what_the_log_says(tmp_path):
    run = Run(RLConfig(), ALONE, tmp_path / "run", stage="elicit_rl")
    progress = curves.Progress()
    for number in range(4):
        correct = np.arange(7) < number  # sevenths: no decimal number is exact
        measured = Measured(correct, ~correct)
        progress.evaluated(number * 32, measured)
        facts = curves.evaluation_row(progress)
        run.log("eval", step=number, **facts)
        if number:
            progress.trained(2 if number == 1 else 0)
            run.log("train", step=number, **({"steps": 2} if number == 1 else {}))
    found = curves.restored(run.path / "log.jsonl", 3, 7)
    assert found.points == progress.points and len(found.points) == 4
    assert not found.first.correct.any() and found.first.truncated.all()
    assert found.idle == progress.idle == 2 and not found.stopped
    assert (found.measured.correct == correct).all() and (
        found.measured.truncated == ~correct
    ).all()
    progress.trained(0)
    assert progress.stopped


@pytest.mark.parametrize("number, state, warmup", [(0, {}, 4), (3, {}, 4), (3, {"p": 1}, 0)])
def test_the_first_round_that_is_trained_on_is_warmed_up(monkeypatch, number, state, warmup):
    seen = []
    monkeypatch.setattr(training, "train", lambda *a, warmup, **s: seen.append(warmup) or ())
    settings = {"rows": 1, "epochs": 1, "batch": 2, "seed": 0, "micro_tokens": 64, "units": None}
    optimizers = [SimpleNamespace(state=state)]
    training.update(None, optimizers, [Example([1], [2])], None, ALONE, number=number, **settings)
    assert seen == [warmup]


def test_samples_are_rewritten_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "samples.jsonl"
    rows = [json.dumps({"round": number}) + "\n" for number in (1, 1, 2, 3)]
    file.write_text("".join(rows) + '{"round": 4, "promp')  # killed while writing
    drawn = rolled([[1, 0]])
    with monkeypatch.context() as patch:

        def killed(*args):
            raise KeyboardInterrupt

        patch.setattr(hf.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            policies.note_samples(file, 3, drawn)
    assert file.read_text().startswith("".join(rows))
    policies.note_samples(file, 3, drawn)  # taken up again at the third round
    *earlier, last = file.read_text().splitlines(keepends=True)
    assert earlier == rows[:3]
    assert json.loads(last) == {
        "round": 3,
        "prompt": "p0",
        "completions": [""] * 2,
        "rewards": [1.0, 0.0],
    }
    file.write_text('{"round": "one"}\n')
    with pytest.raises(InputError, match="samples.jsonl has round"):
        policies.note_samples(file, 3, drawn)


DIFFERING = {
    "lr": 0.001,
    "group": 4,
    "epochs": 2,
    "batch": 32,
    "round": 64,
    "locked": "out/code/locked-scratch",
    "data": ("rows.json",),
}


@pytest.mark.parametrize("name", DIFFERING)
def test_runs_that_differ_in_anything_but_the_seed_are_different_curves(name):
    plain = cfg(method="grpo", locked="out/code/locked", round=640)
    other = replace(plain, **{name: DIFFERING[name]})
    again = replace(plain, seed=7)
    assert elicit_rl.run_name(plain) == elicit_rl.run_name(again) == "grpo"
    assert elicit_rl.run_name(other) != "grpo"
    digests = [curves.digest_of(asdict(each)) for each in (plain, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_methods_on_one_other_lock_share_its_digits():
    names = set()
    for method in METHODS:
        name = elicit_rl.run_name(cfg(method=method, locked="other", round=640))
        names.add(name.removeprefix(method))
    [suffix] = names
    assert len(suffix) == 5


def test_run_names_can_be_read():
    settings = {"locked": "out/code/locked", "round": 640}
    assert elicit_rl.run_name(cfg(keep="correct", **settings)) == "expert_iteration-correct"
    settings |= {"method": "iterated_dpo", "reference": "initial"}
    name = elicit_rl.run_name(cfg(warm_start=16, beta=0.2, **settings))
    assert name == "iterated_dpo-initial-warm16-beta0.2"
    name = elicit_rl.run_name(cfg(warm_start=16, warm_epochs=64, **settings))
    assert name == "iterated_dpo-initial-warm16-warm_epochs64"


def a_curve(folder: Path, name: str, **changes) -> None:
    points = [{"samples": 0, "correct": 0.0}, {"samples": 32, "correct": 0.5}]
    bits = {"verdicts": "01" * 20, "cut": "1000" * 10}
    locked = {"none": "0" * 40, "right": "1" * 40}
    values = {"name": "grpo", "digest": "a" * 12, "seed": 0, "points": points, "stopped": ""}
    (folder / name).mkdir()
    curve = Curve(**(values | bits | {"locked": locked} | changes))
    write_json(folder / name / "curve.json", vars(curve))


@pytest.mark.parametrize(
    "rounds, n, damage", [(4, 7, ""), (2, 7, ""), (3, 8, ""), (3, 7, "x"), (3, 7, "none left")]
)
def test_a_log_that_does_not_tell_of_the_saved_rounds_is_refused(tmp_path, rounds, n, damage):
    run = Run(RLConfig(), ALONE, tmp_path / "run", stage="elicit_rl")
    progress = curves.Progress()
    for number in range(4):
        progress.evaluated(number * 32, Measured(np.ones(7, bool), np.zeros(7, bool)))
        run.log("eval", step=number, **curves.evaluation_row(progress))
        if number:
            run.log("train", step=number, steps=1)
    file = run.path / "log.jsonl"
    if damage == "x":
        file.write_text(file.read_text().replace("1111111", "111x111", 1))
    elif damage:
        file.write_text("")
    with pytest.raises(InputError, match="does not tell of the|are not those of"):
        curves.restored(file, rounds, n)


def test_what_is_logged_of_a_round_by_hand():
    """Entropy is -log p of what was sampled, KL falls with what the update made less likely."""
    whole, cut = Sample([5, 1], [-1.0, -3.0], False), Sample([5, 2], [-2.0, -2.0], True)
    drawn = Rollout(
        [None], [[3]], [[whole, whole, cut, cut]], [["a", "a", "b", "c"]], np.zeros((1, 4))
    )
    found = described(drawn, online=True)
    assert found == {"length": 2.0, "truncated": 0.5, "duplicates": 0.25, "entropy": 2.0}
    sampled, before, after = (
        [Example([3], [5, 1], logps)] for logps in ([-1.0, -3.0], [-1.0, -3.5], [-2.0, -4.0])
    )
    assert drift(sampled, before, after) == {"kl": 1.5, "logp_gap": 0.5}


def test_where_a_run_started_is_kept(tmp_path):
    progress = curves.Progress()
    for correct in ([True, False], [False, False], [False, True]):
        progress.evaluated(0, Measured(np.array(correct), np.zeros(2, bool)))
    settings = {"settings": {"seed": 3}, "compute_dtype": "float32"}
    locked = {"none": "00", "right": "11"}
    curve = curves.curve_of("dpo", progress, locked, settings)
    assert (curve.start, curve.verdicts) == ("10", "01") and curve.seed == 3


def test_a_curve_on_other_problems_is_left_out_and_named(tmp_path, capsys):
    a_curve(tmp_path, "grpo-seed0")
    fewer = {"locked": {"none": "01", "right": "11"}, "verdicts": "11", "cut": "00"}
    a_curve(tmp_path, "grpo-seed1", seed=1, **fewer)
    found = curves.read_curves(tmp_path, ALONE)
    assert [len(runs) for runs in found.values()] == [1]
    assert "grpo-seed1/curve.json is on other problems" in capsys.readouterr().out


def test_a_curve_of_another_start_is_left_out_and_named(tmp_path, capsys):
    """The same locked model answers the same problems alike, but in another dtype."""
    a_curve(tmp_path, "grpo-seed0")
    a_curve(tmp_path, "grpo-seed1", seed=1, locked={"none": "1" + "0" * 39, "right": "1" * 40})
    found = curves.read_curves(tmp_path, ALONE)
    assert [len(runs) for runs in found.values()] == [1]
    assert "answered them otherwise, as in another dtype" in capsys.readouterr().out


def test_a_copy_of_a_run_is_no_second_seed(tmp_path, capsys):
    for name in ("grpo-seed0", "grpo-seed0-backup"):
        a_curve(tmp_path, name)
    found = curves.read_curves(tmp_path, ALONE)
    assert [len(runs) for runs in found.values()] == [1]
    assert "grpo-seed0-backup/curve.json has the seed and" in capsys.readouterr().out


def test_a_curve_is_a_row_and_two_locks_are_two_curves(tmp_path, capsys):
    a_curve(tmp_path, "grpo-seed0")
    a_curve(tmp_path, "grpo-seed1", seed=1, verdicts="1101" * 10)
    other = {"none": "0" * 40, "right": "1110" * 10}
    a_curve(tmp_path, "other", digest="b" * 12, locked=other, stopped="no signal")
    found = curves.read_curves(tmp_path, ALONE)
    assert {name: len(runs) for name, runs in found.items()} == {
        "grpo (aaaa)": 2,
        "grpo (bbbb)": 1,
    }

    row, refusal = curves.curve_row("a", found["grpo (aaaa)"])
    assert row[:7] == ["a", "2", "32", "0.0%", "0.0%", "62.5%", "25.0%"] and not refusal
    assert row[7].startswith("62.5% [") and row[8] == ""
    row, _ = curves.curve_row("b", found["grpo (bbbb)"])
    assert row[7].startswith("66.7% [") and row[8] == "1: no signal"

    curves.show_curves(tmp_path, "code", ALONE)
    assert "over seeds where there are several" in capsys.readouterr().out
    assert (tmp_path / "rl.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "damage",
    [
        "[1, 2]",
        "{}",
        "not json",
        {"points": []},
        {"points": [3]},
        {"points": [{"samples": 0, "correct": "half"}]},
        {"verdicts": "01"},
        {"start": "01"},
        {"locked": None},
    ],
)
def test_a_damaged_curve_beside_this_run_is_named_and_left_out(tmp_path, damage, capsys):
    a_curve(tmp_path, "good")
    a_curve(tmp_path, "bad")
    file = tmp_path / "bad/curve.json"
    if isinstance(damage, str):
        file.write_text(damage)
    else:
        write_json(file, json.loads(file.read_text()) | damage)
    [runs] = curves.read_curves(tmp_path, ALONE).values()
    assert len(runs) == 1
    said = capsys.readouterr().out
    assert "left out of the table: " in said and "bad/curve.json" in said


@pytest.mark.parametrize("every, saved", [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), (9, [])])
def test_the_state_is_saved_as_often_as_asked(monkeypatch, tmp_path, every, saved):
    found = []
    run = SimpleNamespace(
        env=ALONE,
        path=tmp_path,
        log=lambda *args, **values: None,
        save_state=lambda step, *args: found.append(step),
    )
    idle = SimpleNamespace(refresh=lambda: None, reserve=lambda *lengths: None)
    told = SimpleNamespace(encode_prompts=lambda prompts: [[5]])
    models = SimpleNamespace(policy=None, optimizers=[], own=Writer(idle, told))
    progress = SimpleNamespace(stopped="", points=[{"correct": 0.0}], trained=lambda steps: None)
    monkeypatch.setattr(elicit_rl, "Progress", lambda: progress)
    monkeypatch.setattr(elicit_rl, "trained_round", lambda *args: {"reward": 0.0})
    for stub in ("probe", "evaluate_round", "note_samples"):
        monkeypatch.setattr(elicit_rl, stub, lambda *args: None)
    drawn = SimpleNamespace(rolled=None)
    monkeypatch.setattr(elicit_rl, "drawn_round", lambda *args: drawn)
    settings = cfg(samples=50, round=10, save_every=every)
    given = elicit_rl.Given(settings, [], EvalSet([], Password()), run)
    elicit_rl.run_rounds(models, given)
    assert found == saved
