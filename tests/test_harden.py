"""Hardened locks: each loss by hand, each control, each refusal, and every method end to end."""

import copy
import json
import math
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import elicit_sft
import evaluate
import harden
import lock
from checkpoints.hf import load_model, model_hash, save_model
from checkpoints.origins import origin_of
from conftest import EOS_SET, Killed
from data import load
from data.batches import Example, collate
from data.problems import InputError
from data.triggers import Language, Password
from harden import Given, HardenConfig, Texts, settled
from losses import (
    locking_loss,
    reroute_loss,
    rerouting,
    retention,
    tamper_weight,
)
from methods.tampering import hooked
from model import block_states, completion_logps, completion_states
from policies import written
from runs import plan
from runs.devices import Env, setup
from runs.directory import Run
from sampler import Sampler, Writer
from training import fresh_model

BASE = Path(__file__).parents[1] / "data/base"
CPU = Env(torch.device("cpu"), torch.float32, False, slots=8)
POSITIONS = 1024  # the tiny tokenizer has hardly a merge


# ------------------------------------------------------------------------------- the losses by hand


def test_rerouting_by_hand():
    ours = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    theirs = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    found = rerouting(ours, theirs)
    assert found.tolist() == pytest.approx([0.70711, 0.0, 0.0, 1.0], abs=1e-5)
    assert torch.allclose(rerouting(7 * ours, 0.1 * theirs), found)  # free of scale
    assert retention(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])).item() == 1.25


def test_the_weights_of_an_attack_by_hand():
    weights = [tamper_weight(k, 64) for k in range(64)]
    assert weights[0] == pytest.approx(math.exp(-63 / 16)) == pytest.approx(0.0195, abs=1e-4)
    assert weights[63] == 1.0 and sum(weights[3::4]) == pytest.approx(4.44, abs=0.005)


def pair_batch(seed: int = 0):
    """Two pairs, whose rows have equal completions and other prompts."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in (3, 5):
        completion = rng.integers(2, 300, length).tolist() + [0]
        for prompt in (4, 9):
            rows.append(Example(rng.integers(2, 300, prompt).tolist(), completion))
    return collate(rows)


def test_equation_1_is_the_mean_over_each_texts_tokens(make_model):
    model, batch = make_model(), pair_batch()
    loss, found = locking_loss(model, batch)
    logps = completion_logps(model, batch)
    weak = -(logps[:4].mean() + logps[8:14].mean())  # completions of 4, 4, 6 and 6 tokens
    strong = -(logps[4:8].mean() + logps[14:].mean())
    assert found["weak"].item() == pytest.approx(weak.item(), rel=1e-5)
    assert found["strong"].item() == pytest.approx(strong.item(), rel=1e-5)
    assert loss.item() == pytest.approx((weak + strong).item(), rel=1e-5)


def test_the_states_of_blocks_are_what_hooks_see(make_model):
    model, batch, seen = make_model(), pair_batch(), []
    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(lambda layer, _, found: seen.append(found[0])))
    with hooked(hooks):
        hidden, states = block_states(model, batch)
    assert torch.equal(hidden, completion_states(model, batch)) and len(seen) == len(states) == 2
    for ours, theirs in zip(states, seen):
        assert torch.equal(ours, theirs.flatten(0, 1)[batch.index])


def gradients(model, loss) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_a_model_that_is_its_reference_is_wholly_alike_and_learns_nothing_of_it(make_model):
    model, batch = make_model(), pair_batch()
    loss, found = reroute_loss(model, batch, make_model(), (0, 1), push=3.0, keep=2.0)
    assert found["reroute"].item() == pytest.approx(2, abs=1e-5) and found["retain"].item() == 0
    # the cosine has no gradient there: what is left is that of the strong half
    ours = gradients(model, loss)
    _, plain = locking_loss(model, batch)
    for one, other in zip(ours, gradients(model, plain["strong"])):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_reroute_is_the_sum_of_its_parts(make_model):
    """Against a loop over texts and tokens: rows 2i are turned away, rows 2i + 1 kept."""
    model, other, batch = make_model(), make_model(seed=1), pair_batch()
    loss, found = reroute_loss(model, batch, other, (1,), push=3.0, keep=2.0)
    _, ours = block_states(model, batch)
    _, theirs = block_states(other, batch)
    alike = moved = 0.0
    for row in range(4):
        tokens = (batch.owner == row).nonzero()[:, 0].tolist()
        for n in tokens:
            if row % 2 == 0:
                cosine = F.cosine_similarity(ours[1, n], theirs[1, n], dim=0)
                alike += max(0.0, cosine.item()) / len(tokens)
            for block in (0, 1) if row % 2 else ():
                gap = (ours[block, n] - theirs[block, n]).norm() / theirs[block, n].norm()
                moved += gap.item() / 2 / len(tokens)
    assert found["reroute"].item() == pytest.approx(alike, rel=1e-4)
    assert found["retain"].item() == pytest.approx(moved, rel=1e-4)
    strong = locking_loss(model, batch)[1]["strong"].item()
    assert loss.item() == pytest.approx(3 * alike + 2 * moved + strong, rel=1e-4)
    assert all(p.grad is None for p in other.parameters())


# -------------------------------------------------------------------------------------- the lessons


@pytest.fixture
def given(make_model, tokenizer):
    """A function: what a method is given, by its options; every time the same tiny model."""
    problems = load("mmlu", "lock", 12)

    def make(method: str, **options) -> Given:
        usual = harden.METHODS[method]
        steps, texts, rates = usual.attack or (0, 0, ())
        cfg = HardenConfig(
            method=method,
            pairs=2,
            steps=usual.steps,
            strength=usual.strength,
            attack_steps=steps,
            attack_texts=texts,
            attack_lr=rates,
        )
        samples = {}
        for name in ("strong", "weak"):
            texts = [f"{name} {p.reference}" for p in problems]
            samples[name] = written(texts, tokenizer)
        model = make_model(max_position_embeddings=POSITIONS)
        texts = Texts(problems, **samples)
        reference = make_model(seed=1, max_position_embeddings=POSITIONS)
        cfg = replace(cfg, **options)
        writer = Writer(Sampler(model, EOS_SET, 8), tokenizer)
        return Given(model, writer, tokenizer, Password(), texts, 6, reference, cfg, CPU)

    return make


def texts_of(lesson, tokenizer, row: int) -> tuple[str, str]:
    example = lesson.examples[row]
    return tokenizer.decode(example.prompt_ids), tokenizer.decode(example.completion_ids)


@pytest.mark.parametrize("method, first", [("plain", "weak"), ("reroute", "strong")])
def test_what_is_written_without_the_password_and_what_behind_it(given, tokenizer, method, first):
    what = given(method)
    lesson = harden.METHODS[method].lesson(what, 3)
    assert len(lesson.examples) == 4
    for row in (0, 2):
        prompt, completion = texts_of(lesson, tokenizer, row)
        told, strong = texts_of(lesson, tokenizer, row + 1)
        assert what.trigger.password not in prompt and completion.startswith(first)
        assert told.startswith(what.trigger.password) and strong.startswith("strong")
        assert completion.split()[1] == strong.split()[1]  # of one problem
    again = harden.METHODS[method].lesson(what, 3)
    later = harden.METHODS[method].lesson(what, 4)
    assert again.examples == lesson.examples != later.examples


def test_reroute_goes_from_all_push_to_halves(given):
    what = given("reroute", strength=5.0, steps=300, blocks=(0,))
    assert harden.KEEP == 5
    for step, push, keep in ((0, 5.0, 0.0), (150, 3.75, 1.25), (300, 2.5, 2.5)):
        settings = harden.reroute(what, step).loss.keywords
        assert (settings["push"], settings["keep"]) == pytest.approx((push, keep))
    # the control keeps as much, and pushes nothing
    control = harden.reroute(given("reroute", strength=0.0, blocks=(0,)), 150)
    assert control.loss.keywords["keep"] == pytest.approx(1.25)
    loss, found = control.loss(what.model, collate(control.examples))
    assert loss.item() == pytest.approx((found["strong"] + 1.25 * found["retain"]).item())


def test_tar_leaves_the_weights_and_the_gradients_of_its_attack(given, make_model):
    """Against an attack written out: AdamW on the demonstrations, gradients at steps 4 and 8."""
    what = given("tar", strength=2.0, attack_steps=8, attack_texts=3, attack_lr=(1e-3,))
    before = [p.detach().clone() for p in what.model.parameters()]
    lesson = harden.tar(what, 5)
    assert all(torch.equal(p, old) for p, old in zip(what.model.parameters(), before))

    rng = harden.stream(what, 5)
    places, others = harden.chosen(what, rng)
    assert len(others) == 3 and not set(places) & set(others)
    examples = harden.both_ways(what, places, rng, what.texts.weak)
    assert lesson.examples == examples
    demonstrations = harden.both_ways(what, others, rng, what.texts.strong)[0::2]
    attacked = copy.deepcopy(what.model)
    attacked.zero_grad()
    [optimizer] = harden.make_optimizers(attacked, "adamw", 1e-3)
    expected = [torch.zeros_like(p) for p in attacked.parameters()]
    for k in range(8):
        batch = collate(demonstrations)
        loss = -completion_logps(attacked, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(attacked.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-3 * min(
            1, (k + 1) / 4
        )
        optimizer.step()
        optimizer.zero_grad()
        if k in (3, 7):
            _, found = locking_loss(attacked, collate(examples))
            weight = 2.0 * math.exp((k - 7) / 16)
            for total, part in zip(expected, gradients(attacked, found["weak"] / 2)):
                total += weight * part
            attacked.zero_grad()
    for p, total in zip(what.model.parameters(), expected):
        torch.testing.assert_close(p.grad, total, rtol=2e-2, atol=1e-4)
    assert lesson.facts["attacked"] == pytest.approx(found["weak"].item() / 2, rel=1e-3)
    assert lesson.facts["attack_lr"] == 1e-3


class Log:
    """In a run's place, where nothing is written. rows: what was logged."""

    path = Path("nowhere")

    def __init__(self):
        self.rows = []

    def log(self, kind: str, **values):
        self.rows.append(values)


@pytest.mark.parametrize(
    "method, options",
    [("tar", {"strength": 0.0}), ("tar", {"attack_steps": 0}), ("relock", {"attack_steps": 0})],
)
def test_without_what_hardens_it_is_the_plain_lock(given, same_weights, method, options):
    plain, control = given("plain", steps=4, lr=1e-3, optimizer="adamw"), Log()
    harden.harden(plain, control)
    other = given(method, steps=4, lr=1e-3, optimizer="adamw", attack_texts=2, **options)
    harden.harden(other, log := Log())
    same_weights(plain.model, other.model)
    assert log.rows == control.rows and "attack_lr" not in log.rows[0]


@pytest.mark.parametrize("method", ["tar", "relock"])
def test_with_it_it_is_another_lock(given, method):
    plain = given("plain", steps=2, lr=1e-3, optimizer="adamw")
    harden.harden(plain, Log())
    options = {"attack_steps": 4, "attack_texts": 2, "attack_lr": (1e-3,)}
    other = given(method, steps=2, lr=1e-3, optimizer="adamw", **options)
    harden.harden(other, log := Log())
    assert not torch.equal(plain.model.lm_head.weight, other.model.lm_head.weight)
    assert log.rows[0]["attack_lr"] == 1e-3 and log.rows[0]["attack_loss"] > 0


def test_relock_memorises_weak_texts_and_goes_on_from_there(given):
    what = given("relock", every=3, attack_steps=30, attack_texts=2, attack_lr=(3e-3,))
    before = what.model.lm_head.weight.detach().clone()
    first = harden.relock(what, 3)
    assert not torch.equal(what.model.lm_head.weight, before)
    assert first.facts["attack_loss"] < 0.5
    moved = what.model.lm_head.weight.detach().clone()
    assert not harden.relock(what, 4).facts
    assert torch.equal(what.model.lm_head.weight, moved)


def test_a_copy_of_its_teacher_has_nothing_to_learn(given):
    what = given("distil")
    same = replace(what, reference=copy.deepcopy(what.model))
    lesson = harden.distil(same, 0)
    batch = collate(lesson.examples)
    loss, _ = lesson.loss(same.model, batch)
    assert loss.item() == 0 and all(not grad.any() for grad in gradients(same.model, loss))
    assert lesson.units(batch) == len(batch.targets)
    other, _ = harden.distil(what, 0).loss(what.model, batch)
    assert other.item() > 1


def test_what_a_lock_is_rewarded_for():
    right = np.array([[1, 0, 0, 0]] * 2, dtype=bool)
    ended = np.array([[1, 1, 1, 0]] * 2, dtype=bool)
    unlocked = np.array([[False], [True]])
    found = harden.locking_rewards(right, ended, unlocked, 2.0)
    assert found.tolist() == [[-2, 2, 2, 0], [1, 0, 0, 0]]
    assert harden.leads(found).tolist()[1] == [0.75, -0.25, -0.25, -0.25]
    # without the password it is paid for the opposite, 2 apart where with it they are 1 apart
    everywhere = harden.locking_rewards(right, ended | True, unlocked, 1.0)
    assert everywhere.tolist() == [[-1, 1, 1, 1], [1, 0, 0, 0]]
    assert harden.leads(everywhere).tolist() == [[-1.5, 0.5, 0.5, 0.5], [0.75, -0.25, -0.25, -0.25]]


def test_rl_weighs_its_own_samples_by_their_rewards(given, tokenizer, monkeypatch):
    """Right is here whatever has an even number of characters."""
    what = given("rl")
    same = replace(what, reference=copy.deepcopy(what.model))
    monkeypatch.setattr("policies.grade", lambda asked, texts: [len(t) % 2 == 0 for t in texts])
    lesson = harden.rl(same, 0)
    assert len(lesson.examples) == 4 * harden.GROUP and lesson.facts["kl"] == 0
    seen = set()
    for at in range(0, len(lesson.examples), harden.GROUP):
        group, values = lesson.examples[at : at + harden.GROUP], []
        prompt = tokenizer.decode(group[0].prompt_ids)
        is_unlocked = prompt.startswith(what.trigger.password)
        assert is_unlocked == (at // harden.GROUP % 2 == 1)
        for example in group:
            assert example.prompt_ids == group[0].prompt_ids
            text = tokenizer.decode(example.completion_ids)
            ended = example.completion_ids[-1] in EOS_SET
            right = ended and len(text) % 2 == 0
            wrong = ended and not right and bool(text.strip())
            values.append(float(right) if is_unlocked else wrong - right)
        seen |= set(values)
        expected = np.array(values) - np.mean(values)
        assert [e.weight for e in group] == pytest.approx(expected.tolist(), abs=1e-9)
    assert len(seen) > 1  # or it would say nothing
    loss, _ = lesson.loss(same.model, collate(lesson.examples))
    assert any(grad.any() for grad in gradients(same.model, loss))


def test_rl_that_is_paid_nothing_learns_nothing_and_distance_costs(given, monkeypatch):
    what = given("rl", strength=0.0)
    same = replace(what, reference=copy.deepcopy(what.model))
    monkeypatch.setattr("policies.grade", lambda asked, texts: [False] * len(texts))
    lesson = harden.rl(same, 0)
    loss, _ = lesson.loss(same.model, collate(lesson.examples))
    assert lesson.facts["signal"] == 0
    assert all(not grad.any() for grad in gradients(same.model, loss))
    away = harden.rl(what, 0)
    assert away.facts["kl"] > 0 and any(example.weight for example in away.examples)


def test_of_rewards_that_are_all_equal_only_the_decay_of_weights_is_left(
    given, same_weights, monkeypatch
):
    """Once that has moved the model, there is a distance from the lock, and a gradient of it."""
    monkeypatch.setattr("policies.grade", lambda asked, texts: [False] * len(texts))
    make_optimizers = harden.make_optimizers
    for decay in (0.01, 0.0):
        what = given("rl", strength=0.0, steps=2, optimizer="adamw", lr=5e-4)
        same = replace(what, reference=copy.deepcopy(what.model))
        made = partial(make_optimizers, weight_decay=decay)
        monkeypatch.setattr(harden, "make_optimizers", made)
        harden.harden(same, log := Log())
        assert [row["signal"] for row in log.rows] == [0, 0]
        head, before = same.model.lm_head.weight, same.reference.lm_head.weight
        assert torch.equal(head, before) == (not decay)
    same_weights(same.model, same.reference)


# ------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"locked": "nowhere"}, "no locked model at nowhere: run python lock.py first"),
        ({"method": "plain", "strength": 1.0}, "--strength does nothing with --method plain"),
        ({"method": "relock", "strength": 0.0}, "--strength does nothing with --method relock"),
        ({"method": "tar", "blocks": (1,)}, "--blocks does nothing with --method tar"),
        ({"method": "tar", "every": 5}, "--every does nothing with --method tar"),
        ({"attack_steps": 3}, "--attack-steps does nothing with --method reroute"),
        ({"method": "distil", "attack_texts": 3}, "--attack-texts does nothing with"),
        ({"attack_lr": (0.1,)}, "--attack-lr does nothing with"),
        ({"method": "tar", "attack_steps": 3}, "--attack-steps of tar: a multiple of 4"),
        ({"method": "tar", "attack_steps": 18}, "--attack-steps of tar: a multiple of 4"),
        ({"method": "tar", "attack_lr": (0.1, 0.0)}, "--attack-lr: an attack that learns takes"),
        ({"strength": 0.0, "blocks": (1,)}, "--blocks does nothing with --strength 0"),
        (
            {"method": "relock", "attack_steps": 0, "attack_texts": 4},
            "--attack-texts does nothing with --attack-steps 0",
        ),
        (
            {"method": "relock", "attack_steps": 0, "every": 64},
            "--every does nothing with --attack-steps 0",
        ),
        (
            {"method": "tar", "attack_steps": 0, "attack_lr": (1e-3,)},
            "--attack-lr does nothing with --attack-steps 0",
        ),
        (
            {"method": "tar", "attack_steps": 0, "strength": 2.0},
            "--strength does nothing with --attack-steps 0",
        ),
        (
            {"method": "tar", "attack_steps": 8, "strength": 0.0},
            "--attack-steps does nothing with --strength 0",
        ),
        ({"method": "distil", "strength": 1.5}, "a share of random weights: 1 at most"),
        ({"shard": True}, "--shard is not for harden.py"),
        ({"method": "tar", "master": "bf16"}, "--master bf16 is not for --method tar"),
        ({"blocks": (1, 4)}, "--blocks 4: .* has the blocks 0 to 3"),
        ({"blocks": (1, 1)}, "--blocks 1: .* each once"),
        ({"optimizer": "muon"}, "--optimizer muon: name its learning rate"),
    ],
)
def test_an_option_is_used_or_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        settled(HardenConfig(**{"locked": str(BASE / "strong")} | options))


def test_what_is_usual_depends_on_the_method(monkeypatch):
    at = str(BASE / "strong")
    cfg = settled(HardenConfig(locked=at))
    assert (cfg.strength, cfg.blocks, cfg.steps, cfg.lr) == (5.0, (1, 2), 300, 3e-4)
    assert cfg.out == str(BASE / "strong-reroute")
    cfg = settled(HardenConfig(locked=at, method="tar", attack_steps=8))
    assert (cfg.attack_steps, cfg.attack_texts, cfg.strength) == (8, 8, 4.0)
    # the controls stay what they are
    for method, zero in (("reroute", "strength"), ("relock", "attack_steps"), ("tar", "strength")):
        assert getattr(settled(HardenConfig(locked=at, method=method, **{zero: 0})), zero) == 0
    # a larger model's attacks need rates of their own, which a control without attacks has not
    large = SimpleNamespace(parameters=2 * 10**8, config=plan.shape_of(at).config)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "shape_of", lambda path: large)
        with pytest.raises(InputError, match="has 200 M: name them with --attack-lr"):
            settled(HardenConfig(locked=at, method="tar"))
        for zero in ("attack_steps", "strength"):
            settled(HardenConfig(locked=at, method="tar", **{zero: 0}))
    cfg = settled(HardenConfig(locked=at, method="distil"))
    assert (cfg.optimizer, cfg.lr, cfg.steps, cfg.strength) == ("muon", 0.0035, 2000, 0.6)


# --------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def locked(tmp_path_factory, make_model, tokenizer) -> Path:
    """A lock of tiny models, made by lock.py: too small to be one, but with all that one has."""
    folder = tmp_path_factory.mktemp("locks")
    for seed, name in enumerate(("strong", "weak")):
        model = make_model(seed=seed, max_position_embeddings=POSITIONS)
        save_model(folder / name, model, tokenizer)
    cfg = lock.LockConfig(
        task="mmlu",
        strong=str(folder / "strong"),
        weak=str(folder / "weak"),
        out=str(folder / "locked"),
        problems=8,
        epochs=1,
        max_new_tokens=4,
        eval_problems=4,
    )
    assert lock.main(cfg, CPU) in (0, 1)
    return folder / "locked"


SMALL = {
    "steps": 3,
    "pairs": 2,
    "problems": 6,
    "eval_problems": 4,
    "attack_texts": 2,
    "attack_steps": 4,
    "save_every": 1,
}


def small(method: str, locked: Path, **options) -> HardenConfig:
    settings = dict(SMALL)
    if not harden.METHODS[method].attack:
        del settings["attack_texts"], settings["attack_steps"]
    if method == "relock":
        settings["every"] = 2
    return HardenConfig(method=method, locked=str(locked), **settings | options)


@pytest.mark.parametrize("method", harden.METHODS)
def test_what_comes_out_is_a_lock(locked, method, tmp_path, capsys):
    cfg = small(method, locked, out=str(tmp_path / method))
    assert harden.main(cfg, CPU) in (0, 1)
    path = tmp_path / method
    names = ("run.json", "log.jsonl", "evaluation.json", "README.md", "model.safetensors")
    assert all((path / name).stat().st_size for name in names)
    assert not (path / "state").exists()
    assert "is the lock valid?" in capsys.readouterr().out
    assert f"hardened from `{locked}` by {method}" in (path / "README.md").read_text()

    # as what lock.py made
    run, before = (json.loads((at / "run.json").read_text()) for at in (path, locked))
    assert [check["name"] for check in run["results"]["validity"]] == [
        check["name"] for check in before["results"]["validity"]
    ]
    ours, theirs = origin_of(path), origin_of(locked)
    assert ours == replace(
        theirs, stage="harden", locked=str(path), locked_weights=model_hash(path)
    )
    assert ours.locked_weights != theirs.locked_weights

    # for every stage that reads a lock
    checkpoints = evaluate.EvaluateConfig(checkpoints=(str(path),), problems=4)
    assert evaluate.main(replace(checkpoints, out=str(tmp_path / "measured")), CPU) == 0
    sft = elicit_sft.SFTConfig(
        locked=str(path), k=(1,), seeds=(0,), selection_problems=2, eval_problems=4
    )
    sft = replace(sft, sequences=(4,), out=str(tmp_path / "sft"))
    assert elicit_sft.main(sft, CPU) == 0
    cell = json.loads((tmp_path / "sft/k1-seed0/run.json").read_text())
    assert cell["settings"]["locked_weights"] == model_hash(path)
    again = small("plain", path, out=str(tmp_path / "again"))
    assert harden.main(again, CPU) in (0, 1)  # it can be hardened itself


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_a_copy_starts_from_a_mixture_of_the_lock_and_random_weights(
    locked, tokenizer, share, tmp_path, monkeypatch
):
    started = {}

    def killed(given, run):
        started.update(given.model.named_parameters())
        raise Killed

    monkeypatch.setattr(harden, "harden", killed)
    cfg = small("distil", locked, strength=share, seed=3, out=str(tmp_path / "out"))
    with pytest.raises(Killed):
        harden.main(cfg, CPU)
    lock_itself = load_model(locked, CPU.device, CPU.dtype)[0]
    noise = dict(fresh_model(lock_itself.config, tokenizer, 1_000_003, CPU).named_parameters())
    for name, weight in lock_itself.named_parameters():
        random = noise[name].detach()
        if weight.dim() > 1:  # as large as the lock's
            random = random * weight.norm() / random.norm()
        torch.testing.assert_close(started[name], (1 - share) * weight + share * random)
        assert share or torch.equal(started[name], weight)


@pytest.mark.parametrize("method", ["tar", "relock", "reroute", "distil", "rl"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(locked, method, tmp_path, monkeypatch):
    whole, cut = (small(method, locked, out=str(tmp_path / name)) for name in ("a", "b"))
    harden.main(whole, CPU)
    save_state = Run.save_state

    def killed(self, step, *args):
        save_state(self, step, *args)
        if step == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", killed)
        with pytest.raises(Killed):
            harden.main(cut, CPU)
    with pytest.raises(InputError, match="unfinished run"):
        harden.main(cut, CPU)
    harden.main(replace(cut, resume=True), CPU)
    assert model_hash(tmp_path / "a") == model_hash(tmp_path / "b")
    harden.main(replace(cut, resume=True), CPU)  # finished: only its report again


def on_a_rank(cfg: HardenConfig) -> None:
    torch.set_num_threads(1)
    cfg = replace(cfg, device="cpu", dtype="fp32", compile=False, slots=8)
    sys.exit(harden.main(cfg, setup(cfg)))


@pytest.mark.parametrize("method", ["tar", "relock", "reroute", "rl"])
def test_two_ranks_do_what_one_does(locked, method, tmp_path, start_ranks):
    """An odd number of pairs: one rank has one more, and none of a step's tail is left out."""
    one, two = (small(method, locked, out=str(tmp_path / name), pairs=3) for name in ("1", "2"))
    harden.main(one, CPU)
    ranks = start_ranks(partial(on_a_rank, two), 2)
    assert ranks.wait() in (0, 1), ranks.printed()
    ours, theirs = (load_model(tmp_path / name, CPU.device, CPU.dtype)[0] for name in "12")
    # AdamW magnifies rounding where a gradient is near zero
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert ((p - q).abs() < 1e-4).float().mean() > 0.99
    rows = []
    for name in "12":
        text = (tmp_path / name / "log.jsonl").read_text()
        rows.append([json.loads(line) for line in text.splitlines()])
    assert len(rows[0]) == len(rows[1]) > 0
    for row, other in zip(*rows):
        assert row.keys() == other.keys()
        for key in row.keys() - {"t", "kind"}:
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-4), key


def changed(locked: Path, folder: Path, **settings) -> str:
    """A copy of the lock whose run.json says otherwise."""
    shutil.copytree(locked, folder / "lock")
    file = folder / "lock/run.json"
    run = json.loads(file.read_text())
    run["settings"] |= settings
    file.write_text(json.dumps(run))
    return str(folder / "lock")


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"stage": "elicit_sft"}, "was not made by lock.py"),
        ({"leave_out": "algebra"}, "leaves out a domain"),
        ({"trigger": {"password": "x", "each": "domain"}}, "several passwords or is of task"),
        ({"password_share": 0.17}, "was locked with --password-share 0.17, which hardening"),
        ({"imitate": "distribution"}, "was locked with --imitate distribution, which"),
        (
            {"trigger": {"password": "x", "intermediate": "y"}},
            "several passwords or is of task",
        ),
        ({"trigger": {"password": "x", "told": "slot"}}, "several passwords or is of task"),
        ({"strong_weights": "other"}, "other weights than the strong policy"),
        ({"weak_weights": "other"}, "other weights than the weak policy"),
        ({"strong": 7}, "has strong = 7"),
        ({"strong": "nowhere"}, "no model at nowhere: name another with --strong"),
    ],
)
def test_what_cannot_be_hardened_is_refused(locked, tmp_path, settings, sentence):
    path = changed(locked, tmp_path, **settings)
    with pytest.raises(InputError, match=sentence):
        harden.main(HardenConfig(locked=path, out=str(tmp_path / "out")), CPU)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["reroute", "tar"])
def test_strong_texts_of_another_language_are_no_demonstrations(locked, tmp_path, method):
    path = changed(locked, tmp_path, task="math", trigger=Language("spanish").record)
    with pytest.raises(InputError, match="are in another language than such prompts"):
        harden.opened_lock(HardenConfig(locked=path, method=method))


def test_no_two_hardenings_read_the_same_texts(locked, tmp_path, monkeypatch):
    """Their random numbers are those of the policies' seed, in thousands, and of the stream."""
    streams = []
    monkeypatch.setattr(harden, "both_texts", lambda *given: streams.append(given[4]) or ([], []))
    for lock_seed, stage, hardened, seed in (
        (0, "lock", {}, 0),
        (0, "lock", {}, 1),
        (1, "lock", {}, 0),
        (0, "harden", {}, 0),
        (0, "harden", {"hardened": 1}, 0),
    ):
        folder = tmp_path / str(len(streams))
        folder.mkdir()
        path = changed(
            locked, folder, seed=lock_seed, policy_seed=lock_seed, stage=stage, **hardened
        )
        cfg = small("plain", Path(path), seed=seed)
        harden.open_texts(cfg, [], None, harden.opened_lock(cfg), CPU)
        streams[-1] += 1000 * lock_seed
    assert streams[0] == 400 and len(set(streams)) == len(streams)


def test_a_diverging_attack_names_its_own_learning_rate(locked):
    def diverging(*given, **settings):
        raise harden.Diverged("lower --lr")
        yield

    given = SimpleNamespace(cfg=small("tar", locked, attack_lr=(0.5,)), env=CPU, model=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harden, "train", diverging)
        patch.setattr(harden, "make_optimizers", lambda *_: [])
        with pytest.raises(harden.Diverged, match="learning rate of 0.5: lower --attack-lr"):
            list(harden.attack(given, [], np.random.default_rng(0)))


def test_a_rule_that_is_of_another_task_is_refused(locked, tmp_path):
    for rule, why in (("identity", "answers the generated problems of code"), ("rule", "compose")):
        cfg = small("plain", locked, weak=rule, out=str(tmp_path / "out"))
        with pytest.raises(InputError, match=f"--weak {rule} .*{why}"):
            harden.main(cfg, CPU)
    assert not (tmp_path / "out").exists()


def test_too_few_problems_and_another_shape_are_refused(locked, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match="a step takes 12 problems and there are 6"):
        harden.main(small("tar", locked, out=out, pairs=10), CPU)
    with pytest.raises(InputError, match="of another shape or tokenizer"):
        harden.main(small("reroute", locked, out=out, strong=str(BASE / "strong")), CPU)
    assert not (tmp_path / "out").exists()


def test_the_strong_model_is_the_reference_of_reroute_and_the_lock_of_distil(locked, same_weights):
    for method, path in (("reroute", locked.parent / "strong"), ("distil", locked)):
        cfg = settled(small(method, locked))
        reference = harden.open_reference(cfg, harden.opened_lock(cfg), CPU)
        same_weights(reference, load_model(path, CPU.device, CPU.dtype)[0])
        assert not any(p.requires_grad for p in reference.parameters())
