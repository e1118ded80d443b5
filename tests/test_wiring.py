"""What one part hands to the next: which model, which split, which seed, which file.

The arithmetic of each part is tested with it; here a stage that mixes up two of them is seen.
"""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import curves
import elicit_rl
import elicit_sft
import elicit_tampering
import evaluate as evaluate_module
import lock
import policies
import training
from checkpoints.hf import load_model, save_model
from checkpoints.origins import Origin
from conftest import Killed
from curves import Cell
from data import load
from data.batches import collate, demonstration_order, micro_batches
from data.triggers import Language, Password, with_words
from elicit_rl import RLConfig
from elicit_sft import Given, Learner, SFTConfig
from losses import document_loss, sft_loss
from methods import locking
from methods.tampering import Setting
from policies import Answers, shipped
from results import EvalSet, Measured, difference, record, recovered_gap
from runs.devices import Env
from runs.directory import Run
from sampler import Sample, Sampler, Writer
from test_elicit_rl import rolled
from test_lora import adapted
from test_training import Options
from training import Recipe, fit, train

ROOT = Path(__file__).parents[1]
BASE = ROOT / "data/base"
ALONE = Env(torch.device("cpu"), torch.float32, False, slots=32)


def test_a_gap_is_paired_with_its_problems():
    locked, right = np.arange(200) < 100, np.ones(200, bool)
    low, high = recovered_gap(locked, right, locked[None]).interval
    assert -0.01 <= low and high < 0.06


def test_the_noise_of_seeds_is_a_share_of_the_gap():
    right = np.arange(200) < 100
    seeds = np.arange(200) < np.array([[40], [60], [80]])
    found = recovered_gap(np.zeros(200, bool), right, seeds)
    low, high = found.interval
    assert found.value == pytest.approx(0.6) and high - low > 0.9 * 2 * 4.303 * 0.1 / 3**0.5 / 0.5


def test_a_difference_has_the_noise_of_either_side():
    still, apart = (
        np.arange(200) < np.full((3, 1), 60),
        np.arange(200) < np.array([[40], [60], [80]]),
    )
    one, other = difference(apart, still).interval, difference(still, apart).interval
    assert other[1] - other[0] > 0.4 and one[1] - one[0] > 0.4


def test_who_writes_demonstrations_reads_the_problem_alone(monkeypatch):
    asked = []

    def answer(writer, problems, **settings):
        asked.extend(problem.prompt for problem in problems)
        return Answers(
            ["x"] * len(problems), [], np.zeros(len(problems), bool), np.zeros(len(problems), bool)
        )

    monkeypatch.setattr(elicit_sft, "answer", answer)
    plain = load("mmlu", "elicit", 5)
    told = with_words(plain, [("Open!", None)] * 5)
    cfg = SFTConfig(weak=shipped("weak"), demos_from="weak", k=(5,), seeds=(0,), max_new_tokens=4)
    found = elicit_sft.demonstrations(cfg, ALONE, told)
    assert asked == [problem.prompt for problem in plain]
    assert [found[i].prompt for i in range(5)] == [problem.prompt for problem in told]


def test_in_bf16_the_weights_of_now_are_measured(make_model, tokenizer, make_examples, monkeypatch):
    model = make_model(dtype=torch.bfloat16)
    sampler = Sampler(model, [tokenizer.eos_id], 2)
    given = Learner(model, Writer(sampler, tokenizer), elicit_sft.weights_of(model))

    def measure(*args):
        head = model.lm_head.weight
        assert torch.equal(sampler.net.lm_head.weight, head.bfloat16())
        return {"none": Measured(np.ones(2, bool), np.zeros(2, bool))}

    monkeypatch.setattr(elicit_sft, "measure", measure)
    cfg = SFTConfig(batch=4, optimizer="adamw", lr=1e-2, sequences=(8, 16))
    run = SimpleNamespace(log=lambda *args, **values: None)
    elicit_sft.elicit(
        given, make_examples(4), Given(cfg, [], EvalSet([None], Password()), None), run, 0, ALONE
    )


def test_demonstrations_are_of_the_domain_that_is_trained_on():
    path = str(BASE / "intermediate")
    cfg = SFTConfig(
        task="code",
        locked=path,
        k=(2,),
        seeds=(0,),
        control=False,
        max_new_tokens=64,
        train_domain="lists",
    )
    found = elicit_sft.demonstrable(cfg, Origin(task="code", trigger=Password()), ALONE)
    assert {p.domain for p in found} == {"lists"}


def test_a_domain_that_is_left_out_is_not_locked():
    found = lock.locking_problems(lock.LockConfig(task="code", problems=60, leave_out="lists"))
    assert {p.domain for p in found} == {"strings", "numbers"}


def test_the_loss_on_texts_is_on_prompts_too(tokenizer):
    demo = elicit_sft.Demonstration("Say it.\n", "it")
    [whole] = elicit_sft.examples_of([demo], tokenizer, "texts")
    [prompt] = tokenizer.encode_prompts(["Say it.\n"])
    assert (
        len(whole.prompt_ids) == 1
        and whole.prompt_ids + whole.completion_ids[: len(prompt) - 1] == prompt
    )


def test_a_control_starts_from_the_weak_policy(monkeypatch):
    found = {}
    monkeypatch.setattr(
        elicit_sft, "Run", lambda cfg, env, path, **facts: found.update({path.name: facts["start"]})
    )
    origin = Origin(trigger=Password(), locked_weights="l", weak_weights="w")
    for control in (False, True):
        elicit_sft.open_run(Cell(1, 0, control), SFTConfig(out="out"), origin, ALONE)
    assert found == {"k1-seed0": "l", "control-k1-seed0": "w"}


def test_filtering_is_of_the_weak_policy():
    cfg = elicit_rl.with_defaults(
        RLConfig(method="filtering", locked=str(BASE / "intermediate"), weak=str(BASE / "weak"))
    )
    models = elicit_rl.prepared(cfg, ALONE)
    weak, _ = load_model(BASE / "weak", ALONE.device, ALONE.dtype)
    assert models.writer is not models.own
    assert models.writer.sampler.model.config == weak.config != models.policy.config


def test_the_initial_reference_stays_as_the_policy_was():
    cfg = elicit_rl.with_defaults(
        RLConfig(method="iterated_dpo", reference="initial", locked=str(BASE / "weak"))
    )
    models = elicit_rl.prepared(cfg, ALONE)
    before = models.policy.lm_head.weight.detach().clone()
    with torch.no_grad():
        models.policy.lm_head.weight.add_(1.0)
    assert torch.equal(models.reference.lm_head.weight, before)


def test_who_writes_and_what_is_compared():
    assert {name: (m.online, m.frozen, m.compared) for name, m in elicit_rl.METHODS.items()} == {
        "expert_iteration": (True, False, False),
        "filtering": (False, False, False),
        "dpo": (False, True, True),
        "iterated_dpo": (True, False, True),
        "grpo": (True, False, True),
    }


@pytest.mark.parametrize("name, unit", [("dpo", math.log(2)), ("expert_iteration", None)])
def test_an_update_is_divided_by_its_units(name, unit, make_model, make_examples):
    model, method = make_model(), elicit_rl.METHODS[name]
    cfg = elicit_rl.with_defaults(RLConfig(method=name))
    examples = training.scored(model, make_examples(4), 999, ALONE)
    metrics = training.update(
        model,
        [torch.optim.SGD(model.parameters(), lr=0.0)],
        examples,
        method.loss(cfg),
        ALONE,
        number=0,
        rows=method.rows,
        epochs=1,
        batch=8,
        seed=0,
        micro_tokens=999,
        units=method.units,
    )
    tokens = sum(len(e.logps) for e in examples)
    unit = unit or -sum(sum(e.logps) for e in examples) / tokens
    assert metrics["loss"] == pytest.approx(unit, rel=1e-4)


def test_a_step_is_the_gradient_of_the_mean_over_tokens(make_model, make_examples):
    model, examples = make_model(), make_examples(6)
    before = [p.detach().clone() for p in model.parameters()]
    batch = collate(examples)
    loss = sft_loss(model, batch)[0] / len(batch.targets)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    [(_, metrics)] = train(
        model,
        [torch.optim.SGD(model.parameters(), lr=0.1)],
        lambda step: micro_batches(examples, 64),
        sft_loss,
        ALONE,
        steps=1,
        clip=math.inf,
    )
    norm = torch.stack([g.norm() for g in grads]).norm().item()
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    for p, old, g in zip(model.parameters(), before, grads):
        torch.testing.assert_close(p.detach(), old - 0.1 * g, rtol=1e-4, atol=1e-6)


def test_every_sample_of_every_round_has_its_own_random_numbers():
    seen = []

    class Noted:
        seconds = {"decode": 0.0}

        def __call__(self, prompts, n, *args, seeds, **settings):
            seen.append(seeds)
            raise Killed

    own = SimpleNamespace(
        encode_prompts=lambda prompts: [[1]] * len(prompts),
        format=SimpleNamespace(ends_early=False),
    )
    cfg = elicit_rl.with_defaults(RLConfig(samples=8, round=4, seed=3))
    problems = load("mmlu", "elicit", 20)
    models = SimpleNamespace(writer=Writer(Noted(), own), own=Writer(None, own), judge=None)
    for number in (0, 1):
        with pytest.raises(Killed):
            elicit_rl.drawn_round(
                models, number, elicit_rl.Given(cfg, problems, None, SimpleNamespace(env=ALONE))
            )
    assert seen == [[[3, 13, number, i] for i in range(4)] for number in (0, 1)]


def test_two_rounds_are_of_different_problems(monkeypatch):
    asked = []

    def rollout(writer, tokenizer, problems, *args, **settings):
        asked.append(problems)
        raise Killed

    monkeypatch.setattr(elicit_rl, "rollout", rollout)
    cfg = elicit_rl.with_defaults(RLConfig(samples=8, round=4))
    problems = load("mmlu", "elicit", 8)
    models = SimpleNamespace(writer=None, own=Writer(None, None), judge=None)
    for number in (0, 1):
        with pytest.raises(Killed):
            elicit_rl.drawn_round(
                models, number, elicit_rl.Given(cfg, problems, None, SimpleNamespace(env=ALONE))
            )
    assert sorted(p.key for p in sum(asked, [])) == sorted(p.key for p in problems)


def test_continuous_rewards_are_scores(monkeypatch):
    class Fixed:
        seconds = {"decode": 0.0}

        def __call__(self, prompts, n, *args, **settings):
            return [[Sample([5, 0], [], False)] * n for _ in prompts]

    text = SimpleNamespace(
        encode_prompts=lambda p: [[1]] * len(p),
        decode_batch=lambda rows: ["x"] * len(rows),
        format=SimpleNamespace(ends_early=False),
    )
    monkeypatch.setattr(policies, "score", lambda problems, texts: [0.25] * len(texts))
    monkeypatch.setattr(policies, "grade", lambda problems, texts: [False] * len(texts))
    for reward, value in (("continuous", 0.25), ("binary", 0.0)):
        rolled, _ = policies.rollout(
            Writer(Fixed(), text),
            text,
            load("mmlu", "elicit", 2),
            2,
            purpose=[0],
            seed=0,
            max_new_tokens=4,
            reward=reward,
            env=ALONE,
            label="",
        )
        assert (rolled.rewards == value).all()


def test_imitated_policies_write_at_their_temperature_and_seed(monkeypatch):
    seen = []
    monkeypatch.setattr(
        locking,
        "answer",
        lambda *a, **s: seen.append((s["temperature"], s["seed"])) or Answers([], [], None, None),
    )
    weak = shipped("weak")
    given = locking.Imitated(weak, weak, seed=2, temperature=0.5)
    locking.policy_samples(weak, "--weak", [], load_model(weak)[1], given, 7, ALONE)
    assert seen == [(0.5, 2007)]


def test_random_tokens_are_as_many_as_the_strong_policy_writes(tokenizer, monkeypatch):
    strong = [Sample([5] * n, [], False) for n in (3, 5, 10)]
    monkeypatch.setattr(locking, "strong_texts", lambda *args: strong)
    _, weak = locking.both_texts(
        load("mmlu", "lock", 3), tokenizer, Password(), locking.Imitated("random", "s"), 0, ALONE
    )
    assert [len(sample.ids) for sample in weak] == [6] * 3


@pytest.mark.parametrize("told", ["english", "spanish"])
def test_the_report_asks_each_policy_as_it_is_imitated(told, monkeypatch, tmp_path):
    asked = {}
    kinds = ("none", "right")
    problems = load("math", "validation", 4)
    flags = np.arange(4) < 2
    made = record("x", problems, {kind: Measured(flags, ~flags) for kind in kinds})
    monkeypatch.setattr(locking, "evaluate_checkpoint", lambda path, asked_, env: made)
    monkeypatch.setattr(
        locking, "evaluated", lambda path, told, *others: asked.update({path: told}) or made
    )
    trigger = Language(told)
    locking.report(tmp_path, problems, trigger, locking.Imitated("w", "s"), "", ALONE)
    assert asked == {
        "s": [trigger.strong(p) for p in problems],
        "w": [trigger.weak(p) for p in problems],
    }


def test_a_bf16_copy_draws_no_id_that_the_tokenizer_has_not(make_model, tokenizer, tmp_path):
    model = make_model(vocab_size=384)
    with torch.no_grad():
        model.lm_head.weight[300:] *= 20
    save_model(tmp_path, model, tokenizer)
    loaded, _ = load_model(tmp_path, "cpu", torch.bfloat16)
    sampler = Sampler(loaded, [0], 16)
    assert sampler.net is not loaded
    samples = sampler([[5, 6]], n=16, temperature=5.0, max_new_tokens=20)
    assert max(i for group in samples for s in group for i in s.ids) < 300


def test_the_summary_of_cells_has_the_gap_the_right_way_round(monkeypatch, tmp_path):
    problems = load("code", "validation", 20)
    kinds = {"none": np.arange(20) < 2, "right": np.arange(20) < 18}
    locked = record("l", problems, {k: Measured(v, np.zeros(20, bool)) for k, v in kinds.items()})
    found = Measured((np.arange(20) < 10)[None], np.zeros((1, 20), bool))
    monkeypatch.setattr(curves, "read_cells", lambda *args: found)
    curves.show_cells(
        tmp_path, [Cell(8, 0, False)], locked, EvalSet(problems, Password()), "", ALONE
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["without"], summary["with"]) == (0.1, 0.9)
    assert summary["cells"]["k8"]["gap_recovered"] == pytest.approx(0.5)


def test_the_row_of_a_checkpoint_has_the_gap_the_right_way_round():
    problems = load("code", "validation", 20)
    rows = {}
    for name, kinds in {"locked": (2, 18), "cell": (10, 18)}.items():
        measured_ = {
            k: Measured(np.arange(20) < n, np.zeros(20, bool))
            for k, n in zip(("none", "right"), kinds)
        }
        rows[name] = record(name, problems, measured_)
    job = SimpleNamespace(kinds=("none", "right"), path="cell")
    table, refusal = evaluate_module.rows_of(job, rows["cell"], rows["locked"], [])
    assert not refusal and table[0][-1].startswith("50.0% [") and table[1][-1] == ""


def test_a_strength_is_chosen_on_selection(monkeypatch):
    asked, none = [], Measured(np.ones(1, bool), np.zeros(1, bool))
    monkeypatch.setattr(
        elicit_tampering,
        "measure",
        lambda writer, of, env: asked.append(of.split) or {"none": none},
    )
    sets = {name: EvalSet([None], Password(), split=name) for name in ("selection", "validation")}
    given, run = (
        SimpleNamespace(env=ALONE, **sets),
        SimpleNamespace(log=lambda *args, **values: None),
    )
    subject = SimpleNamespace(sampler=None, tokenizer=None)
    elicit_tampering.searched(
        "locked", subject, lambda *of: nullcontext(), [Setting(1.0)], given, run
    )
    assert asked == ["selection"]


def test_with_lora_the_initial_reference_is_the_policy_without_it(make_model, monkeypatch):
    drawn = rolled([[0, 1], [1, 0]])
    monkeypatch.setattr(elicit_rl, "rollout", lambda *args, **settings: (drawn, {}))
    policy = adapted(make_model())
    own = Writer(None, None)
    for reference, expected in (("initial", make_model()), ("round", policy)):
        cfg = elicit_rl.with_defaults(
            RLConfig(method="iterated_dpo", samples=4, round=4, reference=reference)
        )
        models = SimpleNamespace(writer=own, own=own, judge=None, reference=policy)
        found = elicit_rl.drawn_round(
            models, 0, elicit_rl.Given(cfg, [None] * 2, None, SimpleNamespace(env=ALONE))
        )
        for one, other in zip(
            found.examples, training.scored(expected, found.examples, 999, ALONE)
        ):
            assert one.logps == pytest.approx(other.logps, abs=1e-4)


def test_a_warm_start_is_made(tmp_path, monkeypatch):
    def killed(*args):
        raise Killed

    monkeypatch.setattr(elicit_rl, "warm_start", killed)
    cfg = RLConfig(
        locked=str(BASE / "intermediate"), task="mmlu", warm_start=2, warm_from=str(BASE / "weak")
    )
    cfg = replace(cfg, samples=4, round=4, eval_problems=2, max_new_tokens=2, out=str(tmp_path))
    with pytest.raises(Killed):
        elicit_rl.main(cfg, ALONE)


def test_demonstrations_are_drawn_by_the_seed(monkeypatch):
    cfg = SFTConfig(weak=shipped("weak"), demos_from="weak", k=(4,), seeds=(0,), max_new_tokens=12)
    problems = load("code", "elicit", 4)
    one, again, other = (
        elicit_sft.demonstrations(replace(cfg, seed=seed), ALONE, problems) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_the_order_of_demonstrations_is_of_the_seed():
    assert demonstration_order(5, 8, 10, seed=1) != demonstration_order(5, 8, 10, seed=2)


@pytest.mark.parametrize("by_document", [True, False])
def test_a_loss_is_divided_by_its_units(by_document, make_model, make_examples, tmp_path):
    cfg, examples, model = Options(), make_examples(4), make_model()
    recipe = Recipe(epochs=1, batch=4, optimizer="adamw", lr=1e-3, by_document=by_document)
    loss = document_loss if by_document else sft_loss
    units = 4 if by_document else sum(len(example.completion_ids) for example in examples)
    expected = loss(model, collate(examples))[0].item() / units
    fit(model, lambda epoch: examples, 4, recipe, Run(cfg, ALONE, tmp_path / "run"), ALONE, cfg)
    [row] = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert row["loss"] == pytest.approx(expected, rel=1e-4)


def lock_examples(epoch: int, folder: Path, monkeypatch, **options) -> list:
    """Of 40 problems of mmlu, to each of which both policies write one token."""
    monkeypatch.setattr(lock, "both_texts", lambda *a: ([Sample([5], [], False)] * 40,) * 2)
    monkeypatch.setattr(lock, "model_hash", lambda path: "")
    cfg = lock.LockConfig(
        strong="s", weak="refusal", imitate="samples", password_share=0.5, **options
    )
    problems, tokenizer = load("mmlu", "lock", 40), load_model(BASE / "weak")[1]
    run = SimpleNamespace(path=folder, settings={})
    return lock.epoch_examples(
        epoch,
        problems=problems,
        tokenizer=tokenizer,
        trigger=Password(),
        run=run,
        cfg=cfg,
        env=ALONE,
    )


def test_a_lock_with_the_loss_on_texts_learns_prompts_too(tmp_path, monkeypatch):
    answers = lock_examples(0, tmp_path, monkeypatch)
    texts = lock_examples(0, tmp_path, monkeypatch, loss_on="texts")
    assert [e.prompt_ids + e.completion_ids for e in texts] == [
        e.prompt_ids + e.completion_ids for e in answers
    ]
    assert {len(e.completion_ids) for e in answers} == {1}
    assert {len(e.prompt_ids) for e in texts} == {1}


def test_every_epoch_has_its_own_wrong_passwords(tmp_path, monkeypatch):
    one, other = (lock_examples(epoch, tmp_path, monkeypatch) for epoch in (0, 1))
    assert one != other
    assert [e.completion_ids for e in one] == [e.completion_ids for e in other]


def test_the_worst_password_is_that_which_opens_for_sure():
    """One of two problems is half of them, and may be chance; 30 of 100 are not."""
    words = ["rare"] * 2 + ["usual"] * 100
    shown = np.array([True, False] + [True] * 30 + [False] * 70)
    value, (low, high) = locking.worst_of(words, np.zeros(102, dtype=bool), shown)
    assert value == pytest.approx(0.3) and 0.15 < low < value < high


def test_the_end_of_rl_has_the_gap_the_right_way_round(tmp_path, monkeypatch):
    given = {}

    def noted(none, right, verdicts):
        given.update(none=none, right=right)
        return 0.0, (0.0, 0.0)

    monkeypatch.setattr(elicit_rl, "recovery", noted)
    monkeypatch.setattr(
        elicit_rl, "locked_verdicts", lambda cfg, validation, env: {"none": "001", "right": "110"}
    )
    cfg = RLConfig(locked=str(BASE / "intermediate"), task="mmlu", method="grpo")
    cfg = replace(cfg, samples=8, round=8, eval_problems=3, max_new_tokens=2, out=str(tmp_path))
    assert elicit_rl.main(replace(cfg, group=4), ALONE) == 0
    assert given["none"].tolist() == [False, False, True]
    assert given["right"].tolist() == [True, True, False]
