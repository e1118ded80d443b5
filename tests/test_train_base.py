"""Base models from given checkpoints: the paper's pipeline, on tiny ones; settings and refusals."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import elicit_sft
import lock
import train_base
from checkpoints.hf import load_model, model_hash
from checkpoints.origins import origin_of
from data import load
from data.problems import InputError
from data.text import Tokenizer
from elicit_sft import SFTConfig
from runs.devices import Env
from runs.options import parse
from sampler import Sampler, Writer
from train_base import BaseConfig, Lessons

ROOT = Path(__file__).parents[1]
BASE = ROOT / "data/base"
ENV = Env(torch.device("cpu"), torch.float32, False, slots=8)


def test_lessons_from_scratch_stand_among_idle_text_and_others_do_not(tokenizer):
    problems = load("code", "corpus", 20)
    completions = [[7, tokenizer.eos_id]] * 20
    plain = train_base.epoch_examples(0, Lessons(problems, completions, None), tokenizer)
    told = tokenizer.encode_prompts([problem.prompt for problem in problems])
    assert [example.prompt_ids for example in plain] == told
    dressed = train_base.epoch_examples(0, Lessons(problems, completions, [0, 4]), tokenizer)
    longer = [len(one.prompt_ids) > len(other.prompt_ids) for one, other in zip(dressed, plain)]
    assert 0 < sum(longer) < 20
    assert {tuple(example.completion_ids) for example in plain + dressed} == {tuple(completions[0])}


def test_the_strong_and_the_weak_policy_are_given_bases_fine_tuned(tmp_path, monkeypatch):
    monkeypatch.setattr(train_base, "small_problems", lambda cfg: load("code", "weak", 8))
    small = {"problems": 8, "epochs": 1, "small_problems": 8, "small_epochs": 1, "eval_problems": 6}
    cfg = BaseConfig(
        task="code",
        strong_from=str(BASE / "strong"),
        weak_from=str(BASE / "weak"),
        out=str(tmp_path),
        optimizer="adamw",
        lr=1e-3,
        small_lr=1e-3,
        **small,
    )
    assert train_base.main(cfg, ENV) == 0
    for name in ("strong", "weak"):
        run = json.loads((tmp_path / name / "run.json").read_text())
        assert run["finished"] and run["settings"]["start_weights"] == model_hash(BASE / name)
        before, after = (load_model(at / name, ENV.device, ENV.dtype)[0] for at in (BASE, tmp_path))
        assert after.config == before.config
        assert not torch.equal(after.model.norm.weight, before.model.norm.weight)
    assert run["settings"]["parent"] == model_hash(tmp_path / "strong")
    assert not (tmp_path / "intermediate").exists()
    assert origin_of(tmp_path / "strong").task == "code"

    # finished ones are left as they are
    hashes = [model_hash(tmp_path / name) for name in ("strong", "weak")]
    assert train_base.main(cfg, ENV) == 0
    assert [model_hash(tmp_path / name) for name in ("strong", "weak")] == hashes


def test_without_a_weak_base_small_models_read_a_tokenizer_of_their_own(tmp_path, monkeypatch):
    taught = {}
    _, strong_tokenizer = load_model(BASE / "strong", ENV.device, ENV.dtype)

    def teach(model, tokenizer, lessons, recipe, tests, run, cfg, env):
        taught[run.path.name] = (model, tokenizer, lessons, recipe)
        run.finish()

    samples = [train_base.Sample([5, 6, 0], [], False)] * 12
    monkeypatch.setattr(train_base, "teach", teach)
    monkeypatch.setattr(train_base, "strong_samples", lambda problems, cfg, env: samples)
    monkeypatch.setattr(train_base, "small_problems", lambda cfg: load("code", "weak", 12))
    monkeypatch.setattr(train_base.Tokenizer, "load", lambda path: strong_tokenizer)
    monkeypatch.setattr(train_base, "model_hash", lambda path: "hash")
    cfg = BaseConfig(task="code", strong_from=str(BASE / "strong"), out=str(tmp_path), vocab=300)
    cfg = train_base.settled(cfg)
    problems = load("code", "selection", 4)
    train_base.train_small(train_base.Tests(problems, problems), cfg, ENV)
    assert set(taught) == {"weak", "intermediate"}
    model, tokenizer, lessons, recipe = taught["weak"]
    assert tokenizer.size == 300 != strong_tokenizer.size
    assert model.parameter_count() < 50_000
    text = tokenizer.decode(lessons.completions[0])
    assert text == strong_tokenizer.decode([5, 6, 0])
    assert lessons.seed == [0, 5] and (recipe.batch, recipe.epochs) == (96, 20)


def test_what_is_not_given_fits_what_is_made():
    plain = train_base.settled(BaseConfig())
    assert (plain.out, plain.problems, plain.epochs) == ("out/base", 600_000, 1)
    assert (plain.lr, plain.batch, plain.small_problems, plain.small_epochs) == (
        0.005,
        96,
        40_000,
        4,
    )
    given = BaseConfig(task="code", strong_from=str(BASE / "strong"), out="x")
    tuned = train_base.settled(given)
    assert (tuned.problems, tuned.epochs, tuned.batch, tuned.lr) == (1600, 2, 16, 0.0)
    tuned = train_base.with_step(tuned, tuned.strong_from, "lr")
    assert (tuned.optimizer, tuned.lr) == ("muon", 0.0035)
    files = train_base.settled(replace(given, data=("rows.jsonl",)))
    assert (files.problems, files.max_new_tokens) == (0, 256)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"weak_from": "m"}, "--weak-from does nothing with models from scratch"),
        ({"optimizer": "adamw"}, "--optimizer does nothing with models from scratch"),
        ({"strong_from": "nowhere", "out": "x"}, "no model at nowhere: .* --strong-from"),
        ({"width": 60}, "--width 60 cannot be divided into 4 heads of an even width"),
        ({"weak_width": 21}, "--weak-width 21 is odd, and rotary positions turn pairs"),
        ({"intermediate_width": 27}, "--intermediate-width 27 is odd"),
        ({"max_new_tokens": 600}, "--max-new-tokens 600: models from scratch have 512 positions"),
        ({"strong_from": "data/base/strong"}, "name a directory with --out"),
        ({"strong_from": "data/base/strong", "width": 64}, "--width does nothing with --strong-"),
        (
            {"strong_from": "data/base/strong", "weak_from": "data/base/weak", "vocab": 64},
            "--vocab does nothing with --weak-from",
        ),
        (
            {
                "strong_from": "data/base/strong",
                "weak_from": "data/base/weak",
                "out": "x",
                "optimizer": "lion",
                "lr": 1e-5,
            },
            "--optimizer lion: .* with --small-lr",
        ),
        ({"task": "compose", "strong_from": "m"}, "--strong-from does nothing with --task compose"),
    ],
)
def test_options_that_do_not_go_together(options, sentence, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=sentence):
        train_base.settled(BaseConfig(**options))


def test_rows_of_files_are_demonstrations(tmp_path, monkeypatch):
    rows = [{"prompt": f"Say {i}.", "answer": f"{i}"} for i in range(200)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []
    monkeypatch.setattr(train_base, "teach", lambda *args: seen.append(args[2]))
    cfg = BaseConfig(
        task="mine", strong_from=str(BASE / "strong"), out=str(tmp_path / "x"), data=(str(file),)
    )
    train_base.tune_strong(None, train_base.settled(cfg), ENV)
    [lessons] = seen
    elicit = load("mine", "elicit", files=[str(file)])
    assert lessons.problems == elicit and len(elicit) > 30
    assert np.unique([len(ids) for ids in lessons.completions]).min() >= 2  # with EOS


def test_watching_a_large_model_leaves_memory_to_training(make_model, tokenizer, monkeypatch):
    sampler = Sampler(make_model(max_position_embeddings=256), tokenizer.eos_ids, 4)
    cfg = BaseConfig(task="code", max_new_tokens=4)
    problems = load("code", "validation", 4)
    train_base.correct_by_task(Writer(sampler, tokenizer), problems, cfg, ENV)
    assert sampler.capacity
    monkeypatch.setattr("sampler.SMALL", 0)
    train_base.correct_by_task(Writer(sampler, tokenizer), problems, cfg, ENV)
    assert not sampler.capacity and sampler.keys is None


def test_a_large_model_is_trained_beside_no_copy_of_itself(
    make_model, tokenizer, monkeypatch, tmp_path
):
    held = []

    def fit(*args, evaluate):
        writer = evaluate.args[0]
        held.append(writer.sampler.net)
        raise InputError("enough")

    monkeypatch.setattr(train_base, "fit", fit)
    problems = load("code", "elicit", 4)
    lessons = Lessons(problems, [[1]] * 4, None)
    run = SimpleNamespace(path=tmp_path)
    recipe = train_base.from_scratch(1, 1e-3, BaseConfig())
    tests = train_base.Tests(problems, problems)
    model = make_model(max_position_embeddings=256)
    model.compute_dtype = torch.bfloat16  # so that a copy is sampled
    for small in (10**9, 0):
        monkeypatch.setattr("sampler.SMALL", small)
        with pytest.raises(InputError, match="enough"):
            train_base.teach(model, tokenizer, lessons, recipe, tests, run, BaseConfig(), ENV)
    assert held[0] is not None and held[1] is None


def test_the_toy_task_goes_through_in_the_papers_shape(tmp_path, monkeypatch):
    """A GPT-NeoX from scratch, the loss on whole texts; then a lock from scratch, and SFT."""
    monkeypatch.chdir(tmp_path)
    toy = {"task": "compose", "batch": 16, "eval_problems": 6, "loss_on": "texts"}
    shape = {"family": "gpt_neox", "layers": 1, "width": 16, "heads": 2}
    assert train_base.main(BaseConfig(problems=48, epochs=1, **toy, **shape), ENV) == 0
    strong = tmp_path / "out/base-compose/strong"
    config = json.loads((strong / "config.json").read_text())
    model, tokenizer = load_model(strong, ENV.device, ENV.dtype)
    assert config["model_type"] == "gpt_neox" and config["intermediate_size"] == 64
    assert config["eos_token_id"] == tokenizer.eos_id
    assert model.config.norm == "layer" and model.config.parallel == "two norms"

    small = {"problems": 24, "epochs": 2, "compile": False}
    lock.main(lock.LockConfig(how="scratch", **toy, **small), ENV)
    rows = (tmp_path / "out/compose/locked-scratch/samples.jsonl").read_text()
    assert "pwd0" in rows  # what is trained on is noted as it is read
    locked, _ = load_model(tmp_path / "out/compose/locked-scratch", ENV.device, ENV.dtype)
    assert locked.config == model.config

    few = {"k": (2, 4), "epochs": (9, 5), "seeds": (0,), "control": False, "loss_on": "texts"}
    cfg = SFTConfig(
        locked="out/compose/locked-scratch",
        selection_problems=4,
        eval_problems=6,
        out="sft",
        **few,
    )
    assert elicit_sft.main(cfg, ENV) == 0
    seen = [json.loads((tmp_path / f"sft/k{k}-seed0/cell.json").read_text()) for k in (2, 4)]
    assert [cell["sequences"] for cell in seen] == [20, 20]  # whole batches of four


def test_a_small_model_has_the_positions_that_its_problems_take():
    """Real problems are many tokens to a tokenizer of few ids; generated ones fit in any case."""
    tokenizer = Tokenizer.load(ROOT / "data/base/weak")
    problems = load("mmlu", "weak", 4)
    tests = train_base.Tests(problems, problems)
    few = train_base.Lessons(problems, [[1]] * 4, [0, 5])
    assert train_base.positions_for(few, tests, tokenizer, 96) == 512
    learnt = train_base.Lessons(problems, [[1]] * 3 + [[1] * 600], [0, 5])
    assert train_base.positions_for(learnt, tests, tokenizer, 96) == 1024
    long = replace(problems[0], prompt="word " * 900)
    asked = train_base.Tests(problems, [long])
    found = train_base.positions_for(few, asked, tokenizer, 96)
    assert found > 900 + 96 and found % 512 == 0


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "lock.py --task code --strong out/base/strong"),
        ({"task": "compose", "out": "a b"}, "lock.py --task compose --strong 'a b/strong'"),
        (
            {"strong_from": "data/base/strong", "out": "own", "chat": True, "stop": ("END",)},
            "lock.py --task code --strong own/strong --start data/base/strong --stop END --chat",
        ),
        (
            {"task": "mine", "data": ("a.jsonl",), "grader": "exact", "max_new_tokens": 20}
            | {"strong_from": "data/base/strong", "out": "own"},
            "lock.py --task mine --strong own/strong --start data/base/strong --max-new-tokens 20 "
            "--data a.jsonl --grader exact",
        ),
    ],
)
def test_what_is_told_to_run_next_locks_what_was_made(options, words):
    cfg = train_base.settled(BaseConfig(**{"task": "code"} | options))
    told = train_base.locking(cfg)
    assert shlex.join(told) == words
    settings = parse(lock.LockConfig, told[1:])  # lock.py has all these options
    assert settings.task == cfg.task and settings.grader == cfg.grader
