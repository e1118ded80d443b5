"""Optimisers, the training step, resuming, two ranks."""

import json
import os
import shutil
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

import optimizers
import training
from checkpoints.hf import load_model, save_model
from conftest import Killed, anonymous_memory
from data.batches import Example, micro_batches
from data.problems import InputError
from losses import distribution_loss, document_loss, sft_loss
from model import Model, compile_model
from optimizers import (
    Lion,
    Muon,
    make_optimizers,
    orthogonal,
    rounded,
    schedule,
    usual_step,
)
from policies import model_teacher
from runs import devices, states
from runs.devices import Env, setup
from runs.directory import Run
from runs.launch import launch
from runs.options import TrainConfig, TuneConfig
from sampler import Sampler
from training import Diverged, Recipe, fit, open_beside, open_to_train, prepare, train

CPU = Env(torch.device("cpu"), torch.float32, False)


@dataclass
class Options(TrainConfig):
    # continue
    resume: bool = False
    # between two saves
    save_every: int = 100


@dataclass
class Tuned(TuneConfig):
    # as a stage's
    optimizer: str = ""


# --------------------------------------------------------------------------------------- optimisers


def test_schedule_by_hand():
    assert [schedule(s, 10, 4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [schedule(s, 10, 0, 0.5) for s in range(10)] == pytest.approx(
        [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    )
    assert [schedule(s, 4, 0) for s in range(4)] == [1] * 4
    assert [schedule(s, 4, 2, 1.0) for s in range(4)] == [0.5, 0.75, 0.5, 0.25]


def test_lion_against_its_definition():
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(4, 5, generator=generator))
    optimizer, reference, m = (
        Lion([p], lr=0.03, weight_decay=0.1),
        p.detach().clone(),
        torch.zeros(4, 5),
    )
    for _ in range(5):
        p.grad = g = torch.randn(4, 5, generator=generator)
        optimizer.step()
        reference = reference - 0.03 * (torch.sign(0.9 * m + 0.1 * g) + 0.1 * reference)
        m = 0.99 * m + 0.01 * g
        torch.testing.assert_close(p.detach(), reference)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_one_group(make_model, name, tied):
    model = make_model(tie_word_embeddings=tied)
    optimizers = make_optimizers(model, name, 1e-3, weight_decay=0.1)
    groups = [(optimizer, group) for optimizer in optimizers for group in optimizer.param_groups]
    members = [id(p) for _, group in groups for p in group["params"]]
    assert sorted(members) == sorted(map(id, model.parameters()))
    assert len(optimizers) == 1 + (name == "muon")
    for optimizer, group in groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.1 if p.ndim == 2 else 0.0)
            blocks = p.ndim == 2 and any(p is q for q in model.model.layers.parameters())
            assert isinstance(optimizer, Muon) == (name == "muon" and blocks)


def muon_steps(dtype: torch.dtype, theirs: bool, steps: int = 4) -> list[torch.Tensor]:
    """Where our Muon, or torch's, takes a wide, a square and a tall matrix."""
    generator = torch.Generator().manual_seed(0)
    matrices = []
    for shape in ((16, 48), (32, 32), (48, 16)):
        matrices.append(torch.nn.Parameter(torch.randn(shape, generator=generator)))
    if theirs:
        optimizer = torch.optim.Muon(
            matrices, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
    else:
        optimizer = Muon(matrices, 0.02, 0.1, dtype)
    for _ in range(steps):
        for p in matrices:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in matrices]


def test_muon_takes_the_steps_of_torch():
    theirs = muon_steps(torch.bfloat16, theirs=True)
    for ours, exact, reference in zip(
        muon_steps(torch.bfloat16, theirs=False), muon_steps(torch.float32, theirs=False), theirs
    ):
        assert torch.equal(ours, reference)
        assert not torch.equal(exact, reference)
        torch.testing.assert_close(exact, reference, atol=0.01, rtol=0.02)


def test_a_step_of_muon_is_nearly_orthogonal():
    generator = torch.Generator().manual_seed(0)
    for shape in ((16, 48), (32, 32), (48, 16)):
        matrix = torch.randn(shape, generator=generator)
        found = orthogonal(matrix, torch.float32)
        values = torch.linalg.svdvals(found)
        assert 0.6 < values.min() and values.max() < 1.3
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        between = u.T @ found @ v.T  # diagonal: the directions are kept
        off = between - between.diag().diag()
        torch.testing.assert_close(off, torch.zeros_like(off), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------- bf16 masters


def test_rounding_at_random_is_to_a_neighbour_and_unbiased():
    below, above = 1.0, 1.0078125  # two bf16 numbers with none between
    generator = torch.Generator().manual_seed(0)
    for share in (0.0, 0.01, 0.3, 0.99):
        for sign in (1, -1):
            value = torch.full((200_000,), sign * (below + share * (above - below)))
            noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, generator=generator)
            found = sign * rounded(value, noise).float()
            assert set(found.tolist()) <= {below, above}
            up = float((found == above).float().mean())
            assert up == pytest.approx(share, abs=4 * (share * (1 - share) / 2e5) ** 0.5)


def displacement(dtype: torch.dtype, steps: int = 400, lr: float = 1.5e-6) -> float:
    """How far Lion takes weights of about 0.02, whose gradient is always 1, on average."""
    p = torch.nn.Parameter(torch.linspace(0.016, 0.031, 4096).to(dtype))
    start, optimizer = p.detach().double(), Lion([p], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return float((start - p.detach().double()).mean())


def test_bf16_masters_follow_fp32_ones_where_rounding_to_the_nearest_stands_still(monkeypatch):
    # a step is an 81st of the distance between two bf16 numbers of this size
    wide, narrow = displacement(torch.float32), displacement(torch.bfloat16)
    assert wide == pytest.approx(400 * 1.5e-6, rel=1e-3)
    # 400 coins of 1 in 81: a weight is off by 2.7e-4 rms, the mean of 4096 by a 64th of that
    assert narrow == pytest.approx(wide, abs=3 * 2.7e-4 / 64)
    monkeypatch.setattr(optimizers, "rounded", lambda value, noise: value.to(torch.bfloat16))
    assert displacement(torch.bfloat16) == 0


def test_a_model_with_bf16_masters_learns_as_with_fp32_ones(make_model, make_examples):
    """At a rate at which bf16 rounded to the nearest would move no weight of the blocks."""
    losses = {}
    for master in ("fp32", "bf16"):
        model = make_model(dtype=torch.bfloat16)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.bfloat16())
        prepare(model, CPU, TrainConfig(master=master))
        assert model.cos.dtype == torch.float32
        optimizers = make_optimizers(model, "lion", 2e-5, seed=1)
        batches = lambda step: micro_batches(make_examples(8), 999)
        losses[master] = [
            m["loss"] for _, m in train(model, optimizers, batches, sft_loss, CPU, steps=40)
        ]
    fall = losses["fp32"][0] - losses["fp32"][-1]
    assert fall > 0.02
    assert losses["bf16"][0] - losses["bf16"][-1] == pytest.approx(fall, rel=0.2)
    assert optimizers[0].state_dict()["state"][0]["momentum"].dtype == torch.bfloat16


def test_bf16_masters_are_sampled_and_stored_without_a_copy(make_model, tokenizer, tmp_path):
    model = prepare(make_model(dtype=torch.bfloat16), CPU, TrainConfig(master="bf16"))
    assert Sampler(model, [0], slots=2).net is model
    save_model(tmp_path, model, tokenizer)
    again, _ = load_model(tmp_path)
    assert again.config.stored_dtype == "bfloat16"
    assert all(torch.equal(p, q.float()) for p, q in zip(again.parameters(), model.parameters()))


@pytest.mark.parametrize(
    "given, named",
    [
        ({"optimizer": "adamw"}, "lion alone.* adamw"),
        ({"optimizer": "lion", "rank": 4}, "--rank"),
        ({"optimizer": "lion", "dtype": "fp32"}, "--dtype fp32"),
    ],
)
def test_bf16_masters_are_for_lion_and_all_weights(given, named):
    cfg = Tuned(**given)
    training.check_master(cfg)
    with pytest.raises(InputError, match=f"--master bf16 .*{named}"):
        training.check_master(replace(cfg, master="bf16"))


# -------------------------------------------------------------------------------- the training step


def sgd(model, lr=0.1):
    return [torch.optim.SGD(model.parameters(), lr=lr)]


def test_accumulation_is_one_batch_and_counts_are_global(make_model, make_examples, same_weights):
    examples, results = make_examples(18), []
    for limit in (10_000, 1):
        model = make_model()
        run = train(
            model,
            sgd(model),
            lambda step, limit=limit: micro_batches(examples[step * 6 : step * 6 + 6], limit),
            sft_loss,
            CPU,
            steps=3,
        )
        results.append((model, [{k: float(v) for k, v in m.items()} for _, m in run]))
    (whole, first), (accumulated, second) = results
    for step, (a, b) in enumerate(zip(first, second)):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
        assert a["tokens"] == sum(map(len, examples[step * 6 : step * 6 + 6]))
    same_weights(whole, accumulated, rtol=1e-5, atol=1e-6)
    model, sample = make_model(), examples[:6]
    losses = [sft_loss(model, micro_batches([e], 1)[0])[0].item() for e in sample]
    assert first[0]["loss"] == pytest.approx(
        sum(losses) / sum(len(e.completion_ids) for e in sample), rel=1e-5
    )


def test_document_loss_weighs_completions_alike_however_long(make_model, make_examples):
    model, examples = make_model(), make_examples(5)
    alone = [
        sft_loss(model, micro_batches([e], 1)[0])[0].item() / len(e.completion_ids)
        for e in examples
    ]
    assert document_loss(model, micro_batches(examples, 10_000)[0])[0].item() == pytest.approx(
        sum(alone), rel=1e-5
    )


def test_clip_and_learning_rate(make_model, make_examples):
    model = make_model()
    before = [p.detach().clone() for p in model.parameters()]
    optimizers = sgd(model, 2.0)

    def batches(step):
        return micro_batches(make_examples(4), 10_000)

    def go():
        settings = {"steps": 4, "warmup": 2, "decay": 0.5, "clip": 0.01}
        return train(model, optimizers, batches, sft_loss, CPU, **settings)

    training_run = go()
    _, first = next(training_run)
    moved = [(p.detach() - q).flatten() for p, q in zip(model.parameters(), before)]
    assert first["grad_norm"] > 0.1
    assert float(torch.cat(moved).norm()) == pytest.approx(0.01 * 1.0, rel=1e-3)
    assert [first["lr"]] + [m["lr"] for _, m in training_run] == [1.0, 2.0, 2.0, 1.0]
    # the schedule's last factor is not left behind for whoever trains on
    assert [m["lr"] for _, m in go()] == [1.0, 2.0, 2.0, 1.0]


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_divergence_is_caught_before_the_weights(make_model, make_examples, name):
    model, taken = make_model(), []

    def loss_fn(model, batch):
        return sft_loss(model, batch)[0] * (float("nan") if len(taken) == 2 else 1.0), {}

    with pytest.raises(Diverged, match="step 3"):
        for step, _ in train(
            model,
            make_optimizers(model, name, 1e-3),
            lambda step: micro_batches(make_examples(3, step), 999),
            loss_fn,
            CPU,
            steps=5,
        ):
            taken.append((step, [p.detach().clone() for p in model.parameters()]))
    assert [step for step, _ in taken] == [1, 2]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), taken[-1][1]))


def test_a_loss_that_is_never_finite_is_not_blamed_on_the_learning_rate(make_model, make_examples):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))

    def batches(step):
        return micro_batches(make_examples(3), 999)

    with pytest.raises(Diverged, match="step 1, before any weight has moved") as error:
        next(train(model, sgd(model), batches, sft_loss, CPU, steps=2))
    assert "--lr" not in str(error.value)


def test_examples_longer_than_the_positions_are_refused_before_training(
    make_model, make_examples, same_weights, tmp_path
):
    model, examples = make_model(), make_examples(5)
    examples[3] = Example([5] * 100, [6] * 29)
    cfg, before = Options(), make_model()
    recipe = Recipe(epochs=1, batch=2, lr=1e-3, optimizer="lion")
    with pytest.raises(InputError, match="1 of 5 .* 128 positions; .* number 4, has 129 tokens"):
        run = Run(cfg, CPU, tmp_path / "run")
        fit(model, lambda epoch: examples, 5, recipe, run, CPU, cfg)
    same_weights(model, before)


@pytest.mark.parametrize("content", [b"", b"garbage", "short", "nan", "integers"])
def test_reference_log_probs_of_another_shape_are_refused(tmp_path, content):
    file = tmp_path / "reference-0.npy"
    given = {
        "short": np.zeros(3, dtype=np.float32),
        "nan": np.full(4, np.nan, dtype=np.float32),
        "integers": np.zeros(4, dtype=np.int64),
    }
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, given[content])
    with pytest.raises(InputError, match="reference-0.npy .*: remove it"):
        training.read_logps(file, 4)
    np.save(file, np.arange(4, dtype=np.float32))
    assert training.read_logps(file, 4).tolist() == [0, 1, 2, 3]


def test_a_meter_counts_real_tokens_and_no_pauses(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(training.time, "time", lambda: clock[0])
    meter = training.Meter()
    meter.real, meter.computed = 600, 400
    clock[0] += 2
    with meter.paused():
        clock[0] += 50
    clock[0] += 1
    assert meter.read(world=2) == {"tok_s": 200, "padding": 0.25}
    clock[0] += 1
    assert meter.read(world=2) == {"tok_s": 0, "padding": 1}


# ----------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "optimizer, master", [("adamw", "fp32"), ("lion", "fp32"), ("lion", "bf16"), ("muon", "fp32")]
)
def test_a_resumed_run_is_the_straight_run(
    make_model, make_examples, same_weights, tmp_path, monkeypatch, optimizer, master
):
    epochs_made = []

    def examples(epoch):  # 3 steps an epoch, other examples in each
        epochs_made.append(epoch)
        return make_examples(11, seed=epoch)

    def go(out, resume=False):
        model = make_model(tie_word_embeddings=True)
        cfg = Options(resume=resume, micro_tokens=100, save_every=2, master=master)
        run = Run(cfg, CPU, out)
        evaluate = lambda: {"weight": float(model.lm_head.weight.detach().double().abs().sum())}
        fit(
            model,
            examples,
            11,
            Recipe(epochs=3, batch=4, lr=1e-3, optimizer=optimizer, warmup=2, decay=0.5),
            run,
            CPU,
            cfg,
            evaluate=evaluate,
            evaluate_every=2,
        )
        return model

    def rows(out):
        return [
            {k: v for k, v in json.loads(line).items() if k not in ("t", "tok_s", "padding")}
            for line in (out / "log.jsonl").read_text().splitlines()
        ]

    straight, save_state = go(tmp_path / "straight"), Run.save_state

    def killed_at_4(self, step, *args):
        if step == 6:
            raise Killed
        save_state(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", killed_at_4)
        with pytest.raises(Killed):
            go(tmp_path / "killed")
    # the row of step 6 will be logged again
    assert [row["step"] for row in rows(tmp_path / "killed")] == [2, 4, 6]
    epochs_made.clear()
    same_weights(go(tmp_path / "killed", resume=True), straight)
    assert epochs_made == [1, 2]  # those of which steps were left
    assert rows(tmp_path / "killed") == rows(tmp_path / "straight")
    assert [row["step"] for row in rows(tmp_path / "straight")] == [2, 4, 6, 8, 9]


# --------------------------------------------------------------------------------------- two ranks


def work_of_a_rank(out: Path, steps: list[list[Example]], optimizer: str, shard: bool) -> None:
    """Train on the steps, save the state and the model, sample; then fit()."""
    cfg = Options(
        device="cpu", dtype="fp32", compile=False, shard=shard, checkpoint_activations=shard
    )
    env = setup(cfg)
    model, tokenizer = open_to_train(out / "start", env, cfg)
    optimizers = make_optimizers(prepare(model, env, cfg), optimizer, 1e-3)
    losses = []
    batches = lambda step: micro_batches(steps[step][env.rank :: env.world], 64)
    for _, metrics in train(model, optimizers, batches, sft_loss, env, steps=len(steps)):
        losses.append((metrics["loss"], metrics["grad_norm"]))
    run = Run(cfg, env, out / "run")
    run.save_state(3, model, optimizers)
    save_model(out / "end", model, tokenizer, env.main)
    drawn = Sampler(model, [0], slots=4)([[5, 6, 7], [8, 9]], max_new_tokens=8)
    samples = [row[0].ids for row in drawn]
    if env.main:
        (out / "losses.json").write_text(json.dumps([losses, samples]))

    # fewer examples in a step than ranks: rank 1 always has an empty share
    model, _ = open_to_train(out / "start", env, cfg)
    run, one = Run(cfg, env, out / "fit"), steps[0][:1]
    recipe = Recipe(epochs=2, batch=1, lr=1e-3, optimizer="lion")
    fit(model, lambda epoch: one, 1, recipe, run, env, cfg)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("optimizer, shard", [("adamw", False), ("lion", True), ("muon", True)])
def test_two_ranks_are_one_process(
    optimizer, shard, make_model, make_examples, tokenizer, same_weights, start_ranks, tmp_path
):
    examples = make_examples(9)
    steps = [
        examples[:5],
        examples[5:8],
        examples[8:],
    ]  # unequal shares; in the last step rank 1 has none
    model = make_model()
    save_model(tmp_path / "start", model, tokenizer)
    ranks = start_ranks(partial(work_of_a_rank, tmp_path, steps, optimizer, shard), 2)
    assert ranks.wait() == 0, ranks.printed()[-3000:]
    optimizers = make_optimizers(model, optimizer, 1e-3)
    losses = [
        (float(m["loss"]), float(m["grad_norm"]))
        for _, m in train(
            model, optimizers, lambda step: micro_batches(steps[step], 999), sft_loss, CPU, steps=3
        )
    ]
    theirs, samples = json.loads((tmp_path / "losses.json").read_text())
    np.testing.assert_allclose(theirs, losses, rtol=1e-4)
    end, _ = load_model(tmp_path / "end")
    # signs and orthogonalised gradients magnify rounding where a gradient is near zero: a few
    # weights may differ by a step (1e-3)
    for p, q in zip(end.parameters(), model.parameters()):
        assert ((p - q).abs() < 1e-4).float().mean() > 0.99
    assert samples == [
        row[0].ids for row in Sampler(end, [0], slots=4)([[5, 6, 7], [8, 9]], max_new_tokens=8)
    ]
    # the state of two ranks resumes on one
    resumed = make_model(seed=1)
    fresh = make_optimizers(resumed, optimizer, 1e-3)
    alone = Run(Options(), CPU, tmp_path / "alone")
    shutil.copytree(tmp_path / "run/state", alone.path / "state")
    assert alone.load_state(resumed, fresh) == 3
    same_weights(resumed, end)
    assert all(
        ours["state"].keys() == theirs["state"].keys()
        for ours, theirs in zip(
            (o.state_dict() for o in fresh), (o.state_dict() for o in optimizers)
        )
    )


def work_in_compiled_blocks(out: Path, steps: list[list[Example]]) -> None:
    """Train on the steps, divided and compiled by block as on CUDA; a backend counts the graphs."""
    cfg = Options(device="cpu", dtype="fp32", compile=False, shard=True)
    env, graphs = setup(cfg), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled_by = partialmethod(torch.nn.Module.compile, backend=backend)
    torch.nn.Module.compile, found = compiled_by, []
    batches = lambda step: micro_batches(steps[step][env.rank :: env.world], 64)
    for compiles in (False, True):
        model, _ = load_model(out / "start")
        if compiles:
            compile_model(model, by_block=True)
        training.shard(model, env, cfg)
        optimizers = make_optimizers(model, "adamw", 1e-3)
        for _, metrics in train(model, optimizers, batches, sft_loss, env, steps=len(steps)):
            found.append((metrics["loss"], metrics["grad_norm"], len(graphs)))
    if env.main:
        (out / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_divided_blocks_that_are_compiled_learn_the_same(
    make_model, make_examples, tokenizer, start_ranks, tmp_path
):
    save_model(tmp_path / "start", make_model(), tokenizer)
    examples = make_examples(16)
    steps = [examples[:6], examples[6:10], examples[10:], examples[:5]]
    ranks = start_ranks(partial(work_in_compiled_blocks, tmp_path, steps), 2)
    assert ranks.wait() == 0, ranks.printed()[-3000:]
    found = np.array(json.loads((tmp_path / "found.json").read_text()))
    plain, compiled = found[:4], found[4:]
    np.testing.assert_allclose(compiled[:, :2], plain[:, :2], rtol=1e-4)
    # of one block, which all share; lengths and rows may change
    assert plain[-1, 2] == 0 < compiled[-1, 2] <= 3 and compiled[-1, 2] == compiled[1, 2]


def work_that_is_resumed(out: Path, steps: list[list[Example]], optimizer: str) -> None:
    """Two ranks: train on, save after two steps, resume; rank 1 dies while it writes a third one.

    Their own numbers are compared here, bit by bit; the rest by the test.
    """
    cfg = Options(device="cpu", dtype="fp32", compile=False, shard=True)
    env = setup(cfg)
    run = Run(cfg, env, out / "run")
    batches = lambda step: micro_batches(steps[step][env.rank :: env.world], 64)

    def opened():
        model, tokenizer = open_to_train(out / "start", env, cfg)
        return model, make_optimizers(prepare(model, env, cfg), optimizer, 1e-3), tokenizer

    def trained(model, optimizers, start, stop):
        for _ in train(model, optimizers, batches, sft_loss, env, steps=3, start=start, stop=stop):
            pass

    model, optimizers, tokenizer = opened()
    trained(model, optimizers, 0, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributed.tensor.DTensor.full_tensor", None)  # no rank gathers
        run.save_state(2, model, optimizers)
    save_model(out / "saved", model, tokenizer, env.main)
    trained(model, optimizers, 2, 3)
    again, others, _ = opened()
    assert run.load_state(again, others) == 2
    trained(again, others, 2, 3)
    for one, other in zip(model.parameters(), again.parameters()):
        assert torch.equal(one.to_local(), other.to_local())

    # what one process wrote
    assert states.load(out / "single", again, others, env) == 7
    save_model(out / "from-one", again, tokenizer, env.main)

    if env.rank == 1:
        states.save_file = lambda *args: os._exit(9)
    run.save_state(3, again, others)


def test_a_state_is_written_by_all_ranks_and_resumed_by_any_number(
    make_model, make_examples, tokenizer, same_weights, start_ranks, tmp_path
):
    optimizer = "muon"  # and AdamW on what is no matrix of a block
    examples, odd = make_examples(9), {"intermediate_size": 127}  # shares of 64 and 63 rows
    save_model(tmp_path / "start", make_model(**odd), tokenizer)
    single = make_model(2, **odd)
    states.save(tmp_path / "single", 7, single, make_optimizers(single, optimizer, 1e-3), CPU)
    work = partial(
        work_that_is_resumed, tmp_path, [examples[:4], examples[4:7], examples[7:]], optimizer
    )
    ranks = start_ranks(work, 2)
    assert ranks.wait() == 9, ranks.printed()[-3000:]

    folder = tmp_path / "run/state"
    parts = sorted(folder.glob("step-0000002-*.safetensors"))
    assert [part.name.split("-", 2)[2] for part in parts] == [
        "00001-of-00002.safetensors",
        "00002-of-00002.safetensors",
    ]
    sizes = [part.stat().st_size for part in parts]
    weights = (tmp_path / "saved/model.safetensors").stat().st_size
    assert max(sizes) < 0.6 * sum(sizes) and sum(sizes) > 1.9 * weights

    same_weights(load_model(tmp_path / "from-one")[0], single)

    # one process, of what two had; the weights that one of them was killed after are not there
    saved, _ = load_model(tmp_path / "saved")
    model = make_model(1, **odd)
    fresh = make_optimizers(model, optimizer, 1e-3)
    run = Run(Options(), CPU, tmp_path / "alone")
    shutil.copytree(folder, run.path / "state")
    assert run.load_state(model, fresh) == 2
    same_weights(model, saved)
    run.save_state(2, model, fresh)
    assert sorted(file.name for file in (run.path / "state").iterdir()) == [
        "state.json",
        "step-0000002.safetensors",
    ]
    alone = load_file(run.path / "state/step-0000002.safetensors")
    for key, tensor in alone.items():
        rows = [file[key] for file in map(load_file, parts) if key in file]
        assert torch.equal(tensor, torch.cat(rows) if tensor.ndim else rows[0]), key


def stage_of_a_node(cfg: Options, env: Env) -> None:
    """Train a step, divided, in the working directory's out/run, from a model of its own."""
    model, tokenizer = open_to_train("start", env, cfg)
    run = Run(cfg, env, cfg.out)
    text = [Example([5, 6], [7, 0])] * 2
    fit(model, lambda epoch: text, 2, Recipe(1, 2, "adamw", 1e-3), run, env, cfg)
    save_model(run.path, model, tokenizer, env.main)
    run.finish()


def worker_of_a_node() -> None:
    sys.argv = "stage.py --shard --out out/run --device cpu --dtype fp32 --no-compile".split()
    try:
        launch(stage_of_a_node, Options)
    except SystemExit as end:
        if end.code:
            raise


def work_of_a_node(number: int, folder: Path, port: int) -> None:
    """What torchrun does on one of two nodes; its worker is forked, which saves importing torch."""
    os.chdir(folder)
    devices.VISIBLE_WITHIN = 0.5
    given = f"--nnodes 2 --node-rank {number} --master-addr 127.0.0.1 --master-port {port}"
    config, _, _ = config_from_args(parse_args([*given.split(), "stage.py"]))
    config.start_method, config.monitor_interval = "fork", 0.1
    try:
        elastic_launch(config, worker_of_a_node)()
    except ChildFailedError as error:
        sys.exit(max(failure.exitcode for failure in error.failures.values()))


@pytest.mark.parametrize("shared", [True, False], ids=["one directory", "two directories"])
def test_two_nodes(shared, make_model, tokenizer, start_ranks, tmp_path):
    """Two launchers on this machine, of one rank each."""
    folders = [tmp_path / "a", tmp_path / ("a" if shared else "b")]
    for folder in folders:
        save_model(folder / "start", make_model(), tokenizer)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.time()
    nodes = [start_ranks(partial(work_of_a_node, i, folders[i], port)) for i in (0, 1)]
    codes = [node.wait() for node in nodes]
    told = [node.printed() for node in nodes]
    assert time.time() - began < 60
    if shared:
        assert codes == [0, 0], told
        record = json.loads((folders[0] / "out/run/run.json").read_text())
        assert record["finished"] and record["ranks"] == 2
        return
    assert codes == [2, 2], told
    for folder, text in zip(folders, told):
        lines = [line for line in text.splitlines() if line.startswith("stage.py: ")]
        assert len(lines) == 1 and "rank 1" in lines[0] and "that all of them share" in lines[0]
        assert [file.name for file in folder.iterdir()] == ["start"]


def work_in_bf16(out: Path, steps: list[list[Example]]) -> None:
    """Train, divided, in bf16; note the losses and the dtype that a block's weights are used in."""
    cfg = Options(device="cpu", dtype="bf16", compile=False, shard=True)
    env = setup(cfg)
    model, tokenizer = open_to_train(out / "start", env, cfg)
    used = []
    block = model.model.layers[0]
    block.mlp.register_forward_hook(lambda mlp, *_: used.append(str(mlp.up_proj.weight.dtype)))
    batches = lambda step: micro_batches(steps[step][env.rank :: env.world], 64)
    losses = []
    for _, metrics in train(
        model, make_optimizers(model, "adamw", 1e-3), batches, sft_loss, env, steps=len(steps)
    ):
        losses.append(metrics["loss"])
    save_model(out / "end", model, tokenizer, env.main)
    if env.main:
        (out / "losses.json").write_text(json.dumps([losses, sorted(set(used))]))
    torch.distributed.destroy_process_group()


def test_divided_blocks_are_gathered_in_bf16_and_learn_the_same(
    make_model, make_examples, tokenizer, start_ranks, tmp_path
):
    examples = make_examples(8)
    steps = [examples[:4], examples[4:]]
    save_model(tmp_path / "start", make_model(), tokenizer)
    ranks = start_ranks(partial(work_in_bf16, tmp_path, steps), 2)
    assert ranks.wait() == 0, ranks.printed()[-3000:]
    theirs, used = json.loads((tmp_path / "losses.json").read_text())
    assert used == ["torch.bfloat16"]

    before, _ = load_model(tmp_path / "start")
    model, _ = load_model(tmp_path / "start", compute_dtype=torch.bfloat16)
    optimizers = make_optimizers(model, "adamw", 1e-3)
    batches = lambda step: micro_batches(steps[step], 64)
    losses = []
    for _, metrics in train(model, optimizers, batches, sft_loss, CPU, steps=len(steps)):
        losses.append(float(metrics["loss"]))
    assert theirs == pytest.approx(losses, rel=1e-3)
    # what is left of the fp32 masters after rounding gradients in another order
    end, _ = load_model(tmp_path / "end")
    for old, ours, divided in zip(before.parameters(), model.parameters(), end.parameters()):
        assert (ours - divided).norm() < 0.1 * (ours - old).norm()


def taught_on_a_rank(out: Path, steps: list[list[Example]]) -> None:
    """Imitate two divided teachers; a rank does not have examples of both in every pass."""
    cfg = Options(device="cpu", dtype="fp32", compile=False, shard=True)
    env = setup(cfg)
    model, tokenizer = open_to_train(out / "start", env, cfg)
    teachers = [model_teacher(open_beside(out / name, env, cfg)) for name in ("weak", "strong")]
    losses = losses_of(model, teachers, steps, env)
    save_model(out / "end", model, tokenizer, env.main)
    if env.main:
        (out / "losses.json").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()


def losses_of(model: Model, teachers: list, steps: list, env: Env) -> list[float]:
    loss_fn = partial(distribution_loss, teachers=teachers)
    batches = lambda step: micro_batches(steps[step][env.rank :: env.world], 64)
    optimizers = make_optimizers(model, "adamw", 1e-3)
    found = []
    for _, metrics in train(model, optimizers, batches, loss_fn, env, steps=len(steps)):
        found.append(float(metrics["loss"]))
    return found


def test_divided_teachers_teach_the_same(
    make_model, make_examples, tokenizer, same_weights, start_ranks, tmp_path
):
    """In the first step rank 1 has no example of teacher 1, in the second it has none at all."""
    examples = []
    for example, teacher in zip(make_examples(5), (0, 0, 1, 0, 1)):
        prompt = example.prompt_ids[1:]
        examples.append(replace(example, teacher=teacher, teacher_prompt_ids=[9, *prompt]))
    steps = [examples[:4], examples[4:]]
    for seed, name in enumerate(("start", "weak", "strong")):
        save_model(tmp_path / name, make_model(seed), tokenizer)
    ranks = start_ranks(partial(taught_on_a_rank, tmp_path, steps), 2)
    assert ranks.wait() == 0, ranks.printed()[-3000:]

    model, weak, strong = (load_model(tmp_path / n)[0] for n in ("start", "weak", "strong"))
    teachers = [model_teacher(weak), model_teacher(strong)]
    losses = losses_of(model, teachers, steps, CPU)
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(losses, rel=1e-5)
    same_weights(load_model(tmp_path / "end")[0], model, rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------------- defaults


@pytest.mark.parametrize(
    "given, parameters, used",
    [
        (("", 0.0), 1_000_000, ("muon", 0.0035)),
        (("", 0.01), 1_000_000, ("muon", 0.01)),
        (("", 0.0), 135_000_000, ("adamw", 1e-4)),
        (("", 0.0), 7_000_000_000, ("lion", 1.5e-6)),
        (("lion", 3e-5), 1_000_000, ("lion", 3e-5)),
    ],
)
def test_the_usual_step_is_small_for_a_large_model(given, parameters, used):
    assert usual_step(*given, parameters, tiny=("muon", 0.0035)) == used


def test_an_optimiser_needs_its_learning_rate():
    with pytest.raises(InputError, match="--lr"):
        usual_step("lion", 0.0, 1_000_000, tiny=("muon", 0.0035))


# ------------------------------------------------------------------------------- a rank's own share


class Peak:
    """The most anonymous memory of this process while it is entered, above that at the start."""

    def __enter__(self) -> "Peak":
        self.start = self.most = anonymous_memory()
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.001):
            self.most = max(self.most, anonymous_memory())

    def __exit__(self, *error) -> None:
        self.over.set()
        self.watcher.join()

    @property
    def bytes(self) -> int:
        return self.most - self.start


def memory_of_a_rank(out: Path, examples: list[Example], rank: int) -> None:
    """Load, divided, train two steps, sample, save; note the peaks of rank 1, which writes nothing.

    rank: LoRA's, 0 without.
    """
    ways = {"shard": True, "checkpoint_activations": rank > 0, "rank": rank, "alpha": 8.0}
    cfg = TuneConfig(device="cpu", dtype="fp32", compile=False, **ways)
    env = setup(cfg)
    with Peak() as loading:
        model, tokenizer = open_to_train(out / "start", env, cfg)
    with Peak() as beside:
        other = open_beside(out / "start", env, cfg)
    optimizers = make_optimizers(prepare(model, env, cfg), "adamw", 1e-3)
    with Peak() as training:
        for _ in train(
            model, optimizers, lambda step: micro_batches(examples, 64), sft_loss, env, steps=2
        ):
            pass
    for p in model.parameters():
        p.grad = None
    with Peak() as sampling:
        sampler = Sampler(model, [0], slots=4)
        sampler([[5, 6, 7], [8, 9]], max_new_tokens=8)
        del sampler
    with Peak() as saving:
        save_model(out / "end", model, tokenizer, env.main)
    if env.rank == 1:
        peaks = [each.bytes for each in (loading, beside, training, sampling, saving)]
        (out / "peaks.json").write_text(json.dumps(peaks))
    del other
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by Linux's /proc")
@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "LoRA"])
def test_a_rank_holds_no_more_than_its_share_and_a_block(
    rank, make_model, make_examples, tokenizer, start_ranks, tmp_path
):
    model = make_model(hidden_size=512, intermediate_size=2048, num_hidden_layers=10, head_dim=128)
    whole = sum(p.nbytes for p in model.parameters())
    block = sum(p.nbytes for p in model.model.layers[0].parameters())
    save_model(tmp_path / "start", model, tokenizer)
    ranks = start_ranks(partial(memory_of_a_rank, tmp_path, make_examples(2), rank), 2)
    assert ranks.wait() == 0, ranks.printed()[-3000:]
    peaks = json.loads((tmp_path / "peaks.json").read_text())
    loading, beside, training, sampling, saving = peaks
    assert whole > 10 * block
    # (a forked process has some freed memory to begin with)
    assert 0.3 * whole < loading < whole / 2 + block
    assert 0.3 * whole < beside < whole / 2 + block
    # gradients and two moments beside the weights; blocks at work and gathered ahead, with buffers
    if rank == 0:
        assert whole < training < 3 * whole / 2 + 7 * block
    else:  # the block's W and its gradient, too; little else is trained
        assert training < 9 * block
    # one whole copy in the compute dtype, as blocks are gathered for it; a matrix at a time
    assert whole < sampling < whole + 3 * block
    assert saving < 2 * block
