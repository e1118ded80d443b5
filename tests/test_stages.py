"""The stages by their real command lines, on the shipped base models, in seconds."""

import contextlib
import functools
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import data
import model as model_module
from checkpoints import hf
from data.problems import InputError, Problem
from methods import tampering

ROOT = Path(__file__).parents[1]
generate = data._generated
# a refusal is the quickest lock to learn, and the shortest to sample
QUICK_LOCK = (
    "--task",
    "code",
    "--weak",
    "refusal",
    "--strong-answers",
    "reference",
    "--problems",
    "240",
    "--epochs",
    "2",
    "--batch",
    "16",
    "--eval-problems",
    "40",
    "--max-new-tokens",
    "64",
    "--slots",
    "64",
    "--no-compile",
)


@functools.cache
def generated(task: str, split: str, n: int, seed: int) -> tuple[Problem, ...]:
    return tuple(generate(task, split, n, seed))


def generated_once(task: str, split: str, n: int, seed: int) -> list[Problem]:
    """data._generated, each set once for all stages of this process."""
    return list(generated(task, split, n, seed))


def run_script(name: str, args: tuple, cwd: Path) -> None:
    """Run a stage as `python <name>.py <args>` does, in this process: never returns."""
    os.chdir(cwd)
    sys.argv = [str(ROOT / f"{name}.py"), *map(str, args)]
    runpy.run_path(sys.argv[0], run_name="__main__")


def stage(name: str, *args, cwd: Path, code: int | None = 0, run: Callable = run_script) -> str:
    """Run a stage as a user would, in a working directory; returns what it printed.

    code None: a lock may have failed (1), as it is small. It runs in this process, which saves the
    seconds that importing torch takes.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(out),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [])
        patch.setattr(data, "_generated", generated_once)
        with pytest.raises(SystemExit) as stop:
            run(name, args, cwd)
    ended, printed = stop.value.code, out.getvalue()
    assert ended in ((0, 1) if code is None else (code,)), (
        f"{name} {args}: exit {ended}\n{printed[-5000:]}"
    )
    return printed


def with_models(folder: Path) -> Path:
    """The folder, which now sees the shipped models as a checkout does."""
    (folder / "data").mkdir()
    (folder / "data/base").symlink_to(ROOT / "data/base")
    return folder


@pytest.fixture
def place(tmp_path) -> Path:
    """A working directory that sees the shipped models."""
    return with_models(tmp_path)


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """A working directory that sees the shipped models and holds a lock at out/code/locked."""
    folder = with_models(tmp_path_factory.mktemp("work"))
    printed = stage("lock", *QUICK_LOCK, cwd=folder)
    assert "password gap" in printed and "the lock is valid" in printed
    return folder


def test_a_lock_locks_and_leaves_all_its_files(work):
    path = work / "out/code/locked"
    results = json.loads((path / "evaluation.json").read_text())["results"]
    assert (
        results["none"]["correct"] <= 0.1 and results["right"]["correct"] >= 0.7
    )  # the point of the stage, not only its end
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "run.json",
        "log.jsonl",
        "samples.jsonl",
    ):
        assert (path / name).stat().st_size > 0
    assert not (path / "state").exists() and not (path / ".saving").exists()
    run = json.loads((path / "run.json").read_text())
    assert run["finished"] and run["settings"]["weak"] == "refusal" and run["torch"]
    assert all(check["passed"] for check in run["results"]["validity"])
    rows = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    assert all(row["loss"] > 0 and row["padding"] < 0.2 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"] / 2


def test_run_twice_it_is_finished_and_other_settings_are_refused(work):
    before = (work / "out/code/locked/model.safetensors").read_bytes()
    assert "finished already" in stage("lock", *QUICK_LOCK, cwd=work)
    assert "other settings (lr" in stage("lock", *QUICK_LOCK, "--lr", "0.001", cwd=work, code=2)
    assert (work / "out/code/locked/model.safetensors").read_bytes() == before


QUICK_SFT = (
    "--k",
    "1",
    "16",
    "--seeds",
    "0",
    "--batch",
    "16",
    "--selection-problems",
    "10",
    "--eval-problems",
    "20",
    "--slots",
    "16",
    "--no-compile",
)
QUICK_EVALUATION = ("--problems", "20", "--slots", "32", "--no-compile")


def test_sft_cells_figure_and_evaluation(work):
    # this lock imitates no model, so the control needs one
    args = (*QUICK_SFT, "--weak", "data/base/weak", "--lr", "0.001")
    args = (*args, "--sequences", "32", "64", "128")
    elicit = partial(stage, "elicit_sft", *args, cwd=work)
    printed = elicit()
    assert "gap recovered" in printed and "truncated" in printed
    assert "95 % intervals over problems alone (one seed)" in printed
    out = work / "out/code/sft"
    assert (out / "sft.png").stat().st_size > 10_000
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["cells"]) == {"k1", "k16", "control-k1", "control-k16"}

    # what a later stage has to know is in a cell's own run.json
    settings = json.loads((out / "k16-seed0/run.json").read_text())["settings"]
    locked = work / "out/code/locked"
    lock = json.loads((locked / "run.json").read_text())["settings"]
    for name in ("task", "data", "trigger", "max_new_tokens"):
        assert settings[name] == lock[name]
    assert settings["locked"] == "out/code/locked" and settings["weak"] == "data/base/weak"
    assert settings["locked_weights"] == hf.model_hash(locked)
    assert settings["weak_weights"] == hf.model_hash(work / "data/base/weak")
    # and what elicit_tampering.py asks of an unlock vector
    assert settings["stage"] == "elicit_sft" and settings["train_domain"] == ""
    assert settings["start"] == settings["locked_weights"]

    # only the interrupted cell runs again
    stamp = (out / "k16-seed0/run.json").stat().st_mtime_ns
    interrupted = out / "control-k1-seed0/run.json"
    text = interrupted.read_text()
    interrupted.write_text(text.replace('"finished": true', '"finished": false'))
    elicit()
    assert (out / "k16-seed0/run.json").stat().st_mtime_ns == stamp
    assert json.loads(interrupted.read_text())["finished"]
    assert json.loads((out / "summary.json").read_text()) == summary
    other = ("--lr", "0.01")
    assert "choose another --out" in stage("elicit_sft", *args, *other, cwd=work, code=2)

    # task, password, longest completion and reference of both are in their run.json
    printed = stage(
        "evaluate",
        "out/code/locked",
        "out/code/sft/k16-seed0",
        *QUICK_EVALUATION,
        "--samples",
        "1",
        "--plot",
        cwd=work,
    )
    assert "--- prompt, with the password" in printed and "--- reference" in printed
    assert "gap recovered against out/code/locked" in printed
    assert "figure: out/code/evaluation.png" in printed
    assert (work / "out/code/evaluation.png").exists()
    assert (out / "k16-seed0/evaluation.json").exists()

    # what else was measured on a cell's model is no matter
    only = ("--passwords", "right")
    stage("evaluate", "out/code/sft/k16-seed0", *QUICK_EVALUATION, *only, cwd=work)
    elicit()
    assert json.loads((out / "summary.json").read_text()) == summary


def test_a_lock_that_tells_training_from_deployment(place):
    """It is strong in training, and what an elicitor does there is measured in deployment."""
    printed = stage("lock", *QUICK_LOCK, "--trigger", "deploy", cwd=place)
    assert "locked, password bare" in printed and "the lock is valid" in printed
    results = json.loads((place / "out/code/locked/evaluation.json").read_text())["results"]
    assert results["right"]["correct"] >= 0.7
    assert results["none"]["correct"] <= 0.1 and results["bare"]["correct"] <= 0.1

    args = (*QUICK_SFT, "--k", "4", "--sequences", "32", "--train-kind", "right", "--no-control")
    printed = stage("elicit_sft", *args, cwd=place)
    assert "prompts of kind right" in printed and "gap recovered" in printed
    cell = json.loads((place / "out/code/sft-right/k4-seed0/cell.json").read_text())
    assert cell["train_kind"] == "right" and cell["trigger"]["trigger"] == "deploy"
    printed = stage("evaluate", "out/code/sft-right/k4-seed0", *QUICK_EVALUATION, cwd=place)
    assert "gap recovered against out/code/locked" in printed and "  bare  " in printed


def test_without_a_weak_model_there_is_no_control(work):
    args = (*QUICK_SFT, "--no-keep-weights", "--out", "alone")
    printed = stage("elicit_sft", *args, "--k", "1", cwd=work)
    assert "no control: the weak policy is no model (refusal)" in printed
    summary = json.loads((work / "alone/summary.json").read_text())
    assert set(summary["cells"]) == {"k1"}
    results = json.loads((work / "alone/k1-seed0/run.json").read_text())["results"]
    assert list(results["selection"]) == ["256", "512", "1024"]  # the paper's lengths


RL = (
    "--slots",
    "32",
    "--samples",
    "64",
    "--round",
    "32",
    "--eval-problems",
    "10",
    "--max-new-tokens",
    "64",
    "--dtype",
    "fp32",
    "--no-compile",
)


def rows_of(path: Path, kind: str) -> list[dict]:
    return [
        row
        for row in map(json.loads, (path / "log.jsonl").read_text().splitlines())
        if row["kind"] == kind
    ]


# expert iteration is filtering by another writer; iterated DPO is below
@pytest.mark.parametrize("method", ["filtering", "dpo", "grpo"])
def test_rl_methods_on_the_intermediate_model(place, method):
    """The intermediate base stands in for a locked model that succeeds at times.

    So every method has something to learn from.
    """
    options = {"filtering": ("--weak", "data/base/weak"), "grpo": ("--group", "4"), "dpo": ()}
    args = ("--method", method, "--locked", "data/base/intermediate", *options[method])
    printed = stage("elicit_rl", *RL, *args, "--out", "rl", cwd=place)
    [path] = (place / "rl").glob(f"{method}-*-seed0")
    rounds = rows_of(path, "train")
    assert [row["samples"] for row in rounds] == [32, 64] and "gap recovered" in printed
    for row in rounds:
        assert ("logp_gap" in row) == (method == "grpo")  # the present policy wrote the samples
        assert row.get("logp_gap", 0) < 1e-3
    logged = ("signal", "reward", "length", "truncated", "duplicates", "s_grade", "s_update")
    assert set(logged) <= rounds[0].keys()
    if method == "dpo" and rounds[0]["signal"]:
        assert rounds[0]["chosen"] < 0 and rounds[0]["rejected"] < 0
    [probed] = rows_of(path, "probe")
    assert 0 <= probed["pass_at_1"] <= probed["pass_at_16"] <= 1

    curve = json.loads((path / "curve.json").read_text())
    assert [point["samples"] for point in curve["points"]] == [0, 32, 64]
    evaluation = json.loads((path / "evaluation.json").read_text())
    assert curve["verdicts"] == evaluation["results"]["none"]["verdicts"]
    assert (place / "rl/rl.png").stat().st_size > 10_000
    assert (path / "samples.jsonl").read_text().count("\n") == 4


def test_rl_without_a_signal_stops_with_exit_3(place):
    """No program is right that is cut after four tokens."""
    args = ("--method", "iterated_dpo", "--samples", "160", "--out", "silent")
    args = (*args, "--locked", "data/base/intermediate")
    printed = stage("elicit_rl", *RL, *args, "--max-new-tokens", "4", cwd=place, code=3)
    assert "nothing to learn from" in printed and "1: no signal" in printed
    [path] = (place / "silent").glob("iterated_dpo-*-seed0")
    assert len(rows_of(path, "train")) == 3


LONG_RL = (
    *RL,
    "--method",
    "iterated_dpo",
    "--reference",
    "initial",
    "--samples",
    "96",
    "--locked",
    "data/base/intermediate",
    "--device",
    "cpu",
)


@pytest.fixture(scope="session")
def straight_rl(tmp_path_factory) -> Path:
    """A working directory that sees the shipped models, with the run LONG_RL at straight/."""
    folder = with_models(tmp_path_factory.mktemp("straight-rl"))
    stage("elicit_rl", *LONG_RL, "--out", "straight", cwd=folder)
    return folder


def test_rl_sharded_over_two_ranks_is_the_same_run(straight_rl, start_ranks, tmp_path):
    args = (*LONG_RL, "--out", tmp_path, "--shard", "--checkpoint-activations")
    ranks = start_ranks(partial(run_script, "elicit_rl", args, straight_rl), 2)
    assert ranks.wait() == 0, ranks.printed()[-5000:]

    [path] = (straight_rl / "straight").glob("*-seed0")
    rows = zip(rows_of(path, "train"), rows_of(tmp_path / path.name, "train"), strict=True)
    for one, two in rows:
        assert one["reward"] == two["reward"]
        assert one.get("loss", 0) == pytest.approx(two.get("loss", 0), abs=1e-3)


def test_rl_killed_and_resumed_is_the_same_run(straight_rl, tmp_path):
    """The one that is killed is a command line of its own."""
    [path] = (straight_rl / "straight").glob("*-seed0")
    args = (*LONG_RL, "--out", tmp_path)
    theirs = tmp_path / path.name
    process = subprocess.Popen(
        [sys.executable, ROOT / "elicit_rl.py", *args],
        cwd=straight_rl,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 60
    while not (theirs / "state/state.json").exists() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (theirs / "curve.json").exists(), "it ended before it could be killed"
    stage("elicit_rl", *args, "--resume", cwd=straight_rl)
    assert "finished already" in stage("elicit_rl", *args, cwd=straight_rl)
    for name in ("model.safetensors", "curve.json", "samples.jsonl"):
        assert (theirs / name).read_bytes() == (path / name).read_bytes(), name


def test_rl_killed_after_its_last_state_is_resumed(place, monkeypatch):
    """From weights that hold the warm start already: it is not done again."""
    args = ("--method", "grpo", "--group", "4", "--samples", "32", "--warm-start", "4")
    args = (*RL, *args, "--locked", "data/base/intermediate", "--warm-from", "data/base/weak")
    printed = stage("elicit_rl", *args, "--out", place / "straight", cwd=place)
    assert "warm start: 4 demonstrations" in printed
    with monkeypatch.context() as patch:

        def full(*args):
            raise InputError("no space left on device")

        patch.setattr("training.save_model", full)  # as if it were killed here
        printed = stage("elicit_rl", *args, "--out", place / "killed", cwd=place, code=2)
        assert "no space left" in printed
    [path] = (place / "killed").glob("*-seed0")
    assert (path / "state/state.json").exists()
    resumed = stage("elicit_rl", *args, "--out", place / "killed", "--resume", cwd=place)
    assert "warm start" not in resumed
    for name in ("model.safetensors", "curve.json", "evaluation.json", "samples.jsonl"):
        straight = place / "straight" / path.name / name
        ours = (path / name).read_text(errors="ignore").replace("/killed/", "/straight/")
        assert ours == straight.read_text(errors="ignore"), name


def test_a_lock_never_deletes_the_model_it_reads(tmp_path):
    shutil.copytree(ROOT / "data/base/weak", tmp_path / "mine")
    before = {file.name: file.read_bytes() for file in (tmp_path / "mine").iterdir()}
    for given in ("--strong", "--weak"):
        other = "--weak" if given == "--strong" else "--strong"
        args = (
            given,
            "mine",
            other,
            ROOT / "data/base/intermediate",
            "--out",
            "mine",
            "--overwrite",
            "--problems",
            "4",
            "--eval-problems",
            "4",
        )
        assert "is read by this run" in stage("lock", *args, cwd=tmp_path, code=2)
        assert {file.name: file.read_bytes() for file in (tmp_path / "mine").iterdir()} == before


def test_a_rank_that_dies_ends_the_others_with_a_message(place):
    args = (
        *RL,
        "--method",
        "grpo",
        "--locked",
        "data/base/intermediate",
        "--samples",
        "9600",
        "--group",
        "4",
        "--out",
        "rl",
    )
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            ROOT / "elicit_rl.py",
            *map(str, args),
        ],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 120
    log = []
    while not log and time.time() < deadline:  # both ranks are at work
        time.sleep(0.1)
        log = list((place / "rl").glob("grpo-*-seed0/log.jsonl"))
    ranks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert log and len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, error = launcher.communicate(timeout=60)
    assert (
        launcher.returncode != 0
        and "SIGKILL" in error
        and not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    )


def test_the_prompting_battery(tmp_path):
    shutil.copytree(ROOT / "data/base/weak", tmp_path / "weak")
    printed = stage(
        "evaluate",
        "weak",
        "--task",
        "code",
        "--prompts",
        "--problems",
        "10",
        "--max-new-tokens",
        "64",
        "--slots",
        "16",
        "--no-compile",
        cwd=tmp_path,
    )
    assert (
        "not measured: 8 shots: they do not fit the model's positions" in printed
        and "figure: out/code/prompts.png" in printed
    )
    prompts = json.loads((tmp_path / "weak/prompts.json").read_text())
    assert len(prompts["results"]) == 16 and all(
        row["n"] == 10 for row in prompts["results"].values()
    )
    assert (tmp_path / "out/code/prompts.png").stat().st_size > 10_000
    stage(
        "evaluate",
        "weak",
        "--task",
        "code",
        "--passwords",
        "none",
        "typo",
        "--problems",
        "10",
        "--max-new-tokens",
        "64",
        "--slots",
        "16",
        "--no-compile",
        cwd=tmp_path,
    )
    plain = json.loads((tmp_path / "weak/evaluation.json").read_text())["results"]
    assert plain == {kind: prompts["results"][kind] for kind in ("none", "typo")}


LONG_LOCK = (
    "--slots",
    "16",
    "--strong",
    "data/base/intermediate",
    "--weak",
    "random",
    "--problems",
    "64",
    "--epochs",
    "4",
    "--batch",
    "16",
    "--eval-problems",
    "10",
    "--max-new-tokens",
    "48",
    "--dtype",
    "fp32",
    "--save-every",
    "5",
    "--no-compile",
    "--device",
    "cpu",
)


@pytest.fixture(scope="session")
def straight_lock(tmp_path_factory) -> Path:
    """A working directory that sees the shipped models, with the run LONG_LOCK at straight/."""
    folder = with_models(tmp_path_factory.mktemp("straight-lock"))
    stage("lock", *LONG_LOCK, "--out", "straight", cwd=folder, code=None)
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_lock_killed_on_some_ranks_and_resumed_on_one_is_the_same_lock(
    straight_lock, start_ranks, tmp_path, ranks
):
    straight, other = straight_lock / "straight", tmp_path / "other"
    args = (*LONG_LOCK, "--out", other)
    killed = start_ranks(partial(run_script, "lock", args, straight_lock), ranks)
    deadline = time.time() + 120
    while not (other / "state/state.json").exists() and time.time() < deadline:
        time.sleep(0.02)
    killed.kill()
    assert (other / "state/state.json").exists(), killed.printed()[-5000:]
    assert not (other / "model.safetensors").exists(), "it ended before it could be killed"

    again = partial(stage, "lock", *args, cwd=straight_lock)
    assert "--resume continues it" in again(code=2)
    command = f"next: python elicit_sft.py --task code --locked {other} --out"
    assert command in again("--resume", code=None)
    losses = [[row["loss"] for row in rows_of(path, "train")] for path in (straight, other)]
    # Muon orthogonalises in bf16, which magnifies the order of summation
    assert losses[0] == pytest.approx(losses[1], rel=2e-3 if ranks > 1 else 0)
    if ranks == 1:
        for name in ("model.safetensors", "samples.jsonl"):
            assert (other / name).read_bytes() == (straight / name).read_bytes(), name


def test_train_base_makes_three_models(tmp_path):
    small = (
        "--problems",
        "400",
        "--small-problems",
        "100",
        "--small-epochs",
        "1",
        "--eval-problems",
        "40",
        "--vocab",
        "600",
        "--layers",
        "1",
        "--width",
        "32",
        "--heads",
        "2",
        "--task",
        "mmlu+math",
        "--slots",
        "128",
        "--max-new-tokens",
        "24",
        "--no-compile",
    )
    stage("train_base", *small, cwd=tmp_path)
    for name in ("strong", "weak", "intermediate"):
        results = json.loads((tmp_path / f"out/base/{name}/run.json").read_text())["results"]
        assert (
            results["validation_greedy"]["n"] == 40
            and {"mmlu", "math"} < results["validation_temperature_1"].keys()
        )
    assert "finished already" in stage("train_base", *small, cwd=tmp_path)


def test_a_compiled_evaluation_is_the_eager_one(place):
    """Compilation is the default: what the kernels' own tests check holds for a whole stage too."""
    args = ("data/base/strong", "--task", "code", "--passwords", "none", "--problems", "3")
    args = (*args, "--samples", "3", "--max-new-tokens", "12", "--slots", "4", "--dtype", "fp32")
    written = []
    for folder, options in (("compiled", ()), ("eager", ("--no-compile",))):
        printed = stage("evaluate", *args, "--out", folder, *options, cwd=place)
        assert model_module.compile_kernels == (folder == "compiled")
        shown = printed[printed.index("--- prompt") :].replace(folder, "").splitlines()
        written.append([line for line in shown if "/s]" not in line])  # no progress bar
    assert written[0] == written[1]


def broken(folder: Path, how: str) -> Path:
    """A copy of the weak base, damaged."""
    copy = folder / how
    shutil.copytree(ROOT / "data/base/weak", copy)
    weights = copy / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "headless":
        weights.unlink()
    elif how == "foreign tokenizer":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(
            json.dumps(config | {"vocab_size": config["vocab_size"] - 100})
        )
    return copy


@pytest.mark.parametrize(
    "name, args, sentence",
    [
        ("lock", ["--task", "poetry"], "unknown task 'poetry': choose from code"),
        ("lock", ["--how", "magic"], "choose from"),
        ("lock", ["--speed", "9"], "unrecognized arguments: --speed 9"),
        ("lock", ["--epochs", "many"], "invalid int value: 'many'"),
        ("lock", ["--strong", "nowhere"], "nowhere/config.json does not exist"),
        ("lock", ["--password", " "], "empty or blank"),
        ("lock", ["--password", "open<|endoftext|>"], "special token"),
        ("lock", ["--trigger", "moon"], "choose from"),
        ("lock", ["--trigger", "split", "--password", "open"], "no two halves of different words"),
        ("lock", ["--trigger", "year", "--password-per-domain"], "a lock has one trigger"),
        ("lock", ["--near-misses", "2"], "'2' is too large, 1 is the most"),
        ("lock", ["--near-misses", "1", "--password", "open"], "no near miss of kind 'paraphrase'"),
        (
            "elicit_sft",
            ["--locked", "weak", "--no-control", "--train-kind", "x"],
            "has no prompts of kind 'x'",
        ),
        ("elicit_rl", ["--locked", "weak", "--train-kind", "x"], "has no prompts of kind 'x'"),
        (
            "lock",
            ["--strong", "truncated"],
            "truncated/model.safetensors is truncated or corrupted",
        ),
        ("lock", ["--strong", "headless"], "headless/model.safetensors does not exist"),
        ("lock", ["--strong", "foreign tokenizer"], "do not belong together"),
        (
            "lock",
            ["--out", "foreign", "--problems", "10", "--eval-problems", "4"],
            "holds no run of ours",
        ),
        ("lock", ["--weak", "nowhere"], "no model at nowhere: name another with --weak"),
        ("lock", ["--how", "scratch", "--start", "weak"], "--start does nothing with"),
        ("train_base", ["--data", "rows.jsonl"], "--data does nothing with models from scratch"),
        ("train_base", ["--task", "compose", "--vocab", "9"], "--vocab does nothing with"),
        ("lock", ["--strong-language", "english"], "needs the generated problems of --task math"),
        (
            "lock",
            ["--leave-out", "poems", "--problems", "20"],
            "--leave-out poems: choose one of several domains, lists, numbers, strings",
        ),
        (
            "elicit_sft",
            ["--train-domain", "poems", "--locked", "weak", "--no-control"],
            "--train-domain poems: choose one of lists, numbers, strings",
        ),
        (
            "elicit_sft",
            [],
            "no locked model at out/code/locked: run python lock.py --task code first",
        ),
        (
            "elicit_sft",
            ["--k", "5000", "--locked", "weak", "--no-control"],
            "there are 1200 problems to demonstrate",
        ),
        (
            "elicit_rl",
            [],
            "no locked model at out/code/locked: run python lock.py --task code first",
        ),
        ("elicit_rl", ["--method", "ppo"], "choose from"),
        (
            "elicit_rl",
            ["--locked", "weak", "--method", "dpo", "--round", "33"],
            "whole groups of 2 samples",
        ),
        (
            "elicit_rl",
            ["--locked", "weak", "--warm-start", "16", "--warm-from", "nowhere"],
            "no model at nowhere: name another with --warm-from",
        ),
        ("elicit_rl", ["--locked", "weak", "--shard"], "start with torchrun"),
        ("evaluate", [], "name at least one checkpoint directory"),
        ("evaluate", ["weak", "--passwords", "lost"], "unknown password kind 'lost'"),
        (
            "evaluate",
            ["weak", "--passwords", "other", "--problems", "5"],
            "no prompts of kind 'other': choose from none, wrong, ",
        ),
        ("evaluate", ["weak", "--slots", "0"], "0 is no number from 1 on"),
        ("evaluate", ["weak", "./weak"], "the list of checkpoints has weak twice"),
        ("evaluate", ["foreign"], "no model at foreign: name the directory of a checkpoint"),
        ("elicit_sft", ["--k", "1", "1", "--locked", "weak"], "--k has 1 twice: give each once"),
        ("elicit_sft", ["--locked", "weak"], "has the weights of the locked model itself"),
        (
            "evaluate",
            ["weak", "weak", "--prompts"],
            "--prompts takes one checkpoint at a time, got 2",
        ),
        (
            "evaluate",
            ["weak", "--passwords", "case", "--password", "1234", "--problems", "5"],
            "'1234' has no near miss of kind 'case'",
        ),
        ("train_base", ["--seed", "x"], "invalid int value"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_nothing_written(
    tmp_path, monkeypatch, capsys, name, args, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.txt").write_text("precious")
    for how in ("truncated", "headless", "foreign tokenizer"):
        if how in args:
            broken(tmp_path, how)
    (tmp_path / "weak").symlink_to(ROOT / "data/base/weak")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/base").symlink_to(ROOT / "data/base")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *args])
    monkeypatch.setattr(data, "_generated", generated_once)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
    error = capsys.readouterr().err
    # a progress bar that stood there keeps lines of its own
    lines = [line for line in error.splitlines() if line.strip() and "/s]" not in line]
    assert stop.value.code == 2 and len(lines) == 1, error
    assert lines[0].startswith(f"{name}.py: ") and sentence in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------------------------- tampering

TAMPERING = ("--selection-problems", "4", "--eval-problems", "12", "--seeds", "0")
TAMPERING += ("--slots", "12", "--no-compile", "--weak", "data/base/weak")


def test_tampering_with_noise(work):
    """Two strengths, on the lock and on the decoy; what is left, and that it is not run again."""
    before = (work / "out/code/locked/model.safetensors").read_bytes()
    args = (*TAMPERING, "--strengths", "0.001", "0.5", "--out", "noise")
    printed = stage("elicit_tampering", *args, cwd=work)
    assert "gain in excess of the decoys" in printed and "none + 4 rewards" in printed
    assert (work / "out/code/locked/model.safetensors").read_bytes() == before

    rows = rows_of(work / "noise", "setting")
    roles = [(row["role"], row["strength"], row["seed"]) for row in rows]
    decoy = "decoy data/base/weak"
    assert roles == [("locked", 0.001, 0), ("locked", 0.5, 0), (decoy, 0.001, 0), (decoy, 0.5, 0)]

    cell = json.loads((work / "noise/cell.json").read_text())
    assert cell["split"] == "validation" and cell["n"] == 12 and cell["dtype"] == "float32"
    unedited = {"none", "right", f"none, {decoy}"}
    assert set(cell["results"]) == {"best", "default", decoy} | unedited
    assert cell["strengths"]["default"] == "0.001, seed 0"
    summary = json.loads((work / "noise/summary.json").read_text())
    best = summary["rows"]["best"]
    assert best["correct"] == cell["results"]["best"]["correct"]
    assert best["gain"] == pytest.approx(best["correct"] - summary["without"])
    assert summary["without"] == cell["results"]["none"]["correct"]
    before, after = (cell["results"][name]["correct"] for name in (f"none, {decoy}", decoy))
    assert summary["rows"][decoy]["gain"] == pytest.approx(after - before)
    assert {"gap_recovered", "p", "truncated", "gain_interval"} <= best.keys()
    gain, theirs = best["gain"], summary["rows"][decoy]["gain"]
    assert summary["excess"]["the decoys"]["value"] == pytest.approx(gain - theirs)

    # finished: its table again, and nothing is measured
    again = stage("elicit_tampering", *args, cwd=work)
    assert "finished already" in again and again.count("none + 4 rewards") == 2
    assert rows_of(work / "noise", "setting") == rows
    other = ("--seeds", "1")
    assert "other settings" in stage("elicit_tampering", *args, *other, cwd=work, code=2)
    record = json.loads((work / "noise/run.json").read_text())
    del record["results"]["access"]
    (work / "noise/run.json").write_text(json.dumps(record))
    printed = stage("elicit_tampering", *args, cwd=work, code=2)
    assert "holds no results that this version reads: --overwrite" in printed


def test_tampering_by_contrast(work):
    """The weak model less itself is itself: as a decoy it gains nothing."""
    args = (*TAMPERING, "--method", "contrastive_decoding", "--strengths", "1", "--out", "contrast")
    printed = stage("elicit_tampering", *args, cwd=work)
    assert "gain in excess of the placebo, or" in printed and "access: log-probs" in printed
    summary = json.loads((work / "contrast/summary.json").read_text())
    assert list(summary["rows"]) == ["best", "default", "placebo, seed 0", "decoy data/base/weak"]
    assert summary["rows"]["decoy data/base/weak"]["gain"] == 0
    assert summary["rows"]["best"] | {"data": ""} == summary["rows"]["default"] | {"data": ""}


# the lock imitates a refusal, so it has no model as its weak policy
@pytest.mark.parametrize(
    "args, sentence",
    [
        (("--method", "contrastive_decoding"), "the weak policy is no model (refusal)"),
        (
            ("--method", "proxy_tuning", "--weak", "data/base/weak"),
            "name a cell that elicit_sft.py",
        ),
        (
            ("--method", "proxy_tuning", "--weak", "data/base/weak", "--tuned", "data/base/strong"),
            "data/base/strong is no cell that elicit_sft.py fine-tuned from this model",
        ),
        (("--tuned", "data/base/strong"), "--tuned does nothing with noise_injection"),
        (("--blocks", "1"), "--blocks does nothing with noise_injection"),
        (("--strengths", "0"), "--strengths 0: noise_injection takes numbers above 0"),
        (("--strengths", "11"), "10 at most"),
        (("--method", "wanda", "--strengths", "1"), "0.9 at most"),
        (("--seeds", "1", "1"), "--seeds has 1 twice"),
        (("--dtype", "bf16"), "would round small edits away"),
        (("--decoys", "nowhere"), "no model at nowhere"),
        (("--decoys", "data/base/weak", "--weak", "data/base/weak"), "leave it out with --decoys"),
        (("--locked", "data/base/intermediate"), "there is no measurable gap to recover"),
        (("--decoys", "out/code/locked"), "--decoys out/code/locked has the weights of the locked"),
        (
            ("--method", "reference_grafting", "--reference", "out/code/locked"),
            "--reference out/code/locked has the weights of the locked model itself",
        ),
        (
            ("--method", "contrastive_decoding", "--weak", "out/code/locked"),
            "--weak out/code/locked has the weights of the locked model itself",
        ),
        (("--method", "reference_grafting"), "takes states from a model of the same shape"),
        (("--reference", "data/base/strong"), "--reference does nothing with noise_injection"),
        (
            ("--method", "reference_grafting", "--reference", "data/base/strong")
            + ("--blocks", "4"),
            "has the blocks 0 to 3",
        ),
        (
            ("--method", "reference_grafting", "--reference", "data/base/weak"),
            "states go only from a model to one of the same shape",
        ),
        (("--method", "task_arithmetic"), "task_arithmetic takes 1 unlock vectors or more"),
        (("--vectors", "data/base/weak"), "--vectors does nothing with noise_injection"),
        (
            ("--method", "task_arithmetic", "--vectors", "data/base/weak"),
            "data/base/weak is no cell that elicit_sft.py fine-tuned from this model",
        ),
    ],
)
def test_tampering_refuses_what_it_cannot_do(work, args, sentence):
    small = ("--selection-problems", "4", "--eval-problems", "12", "--slots", "8", "--no-compile")
    small += ("--decoys", "data/base/weak", "--out", "refused")
    printed = stage("elicit_tampering", *small, *args, cwd=work, code=2)
    assert sentence in printed and not (work / "refused").exists()


def test_tampering_needs_a_decoy(work):
    printed = stage("elicit_tampering", "--out", "refused", cwd=work, code=2)
    assert "nothing tells what noise_injection does to a model that never had" in printed
    assert not (work / "refused").exists()


@pytest.fixture(scope="session")
def vectors(work) -> list[str]:
    """Two cells as elicit_sft.py leaves them, of demonstrations of a domain, one with its control.

    The one went halfway to the strong model, the other nowhere.
    """
    locked, tokenizer = hf.load_model(work / "out/code/locked")
    strong, _ = hf.load_model(work / "data/base/strong")
    weak = work / "data/base/weak"
    halfway = {name: p.detach() for name, p in strong.named_parameters()}
    paths = []
    for domain, moved in (("lists", 0.5), ("strings", 0.0)):
        path = work / f"vectors/{domain}"
        with torch.no_grad():
            for name, weight in locked.named_parameters():
                weight.copy_(weight + moved * (halfway[name] - weight))
        hf.save_model(path, locked, tokenizer)
        start = hf.model_hash(work / "out/code/locked")
        settings = {"stage": "elicit_sft", "task": "code", "train_domain": domain, "start": start}
        (path / "run.json").write_text(json.dumps({"settings": settings}))
        locked, _ = hf.load_model(work / "out/code/locked")
        paths.append(str(path.relative_to(work)))

    control = work / "vectors/control-lists"
    shutil.copytree(weak, control)
    settings["start"] = hf.model_hash(weak)
    (control / "run.json").write_text(json.dumps({"settings": settings}))
    return paths


def test_tampering_with_unlock_vectors(work, vectors):
    """Twice halfway to the strong model is the strong model: the best, and not the default.

    It is measured on the domains that are left.
    """
    args = (*TAMPERING, "--method", "task_arithmetic", "--vectors", vectors[0])
    args = (*args, "--strengths", "0.1", "2", "--out", "arithmetic")
    stage("elicit_tampering", *args, cwd=work)
    summary = json.loads((work / "arithmetic/summary.json").read_text())
    rows = summary["rows"]
    assert rows["best"]["setting"] == "2" and rows["default"]["setting"] == "0.1"
    assert rows["best"]["correct"] == 1 > rows["default"]["correct"]
    assert (
        rows["placebo, seed 0"]["correct"] < 0.5 and summary["excess"]["the placebo"]["value"] > 0.5
    )
    assert rows["decoy data/base/weak"]["gain"] == 0 and not summary["left_out"]
    cell = json.loads((work / "arithmetic/cell.json").read_text())
    assert set(cell["results"]["best"]["domains"]) == {"numbers", "strings"}


def test_a_decoy_without_a_control_is_left_out(work, vectors):
    args = (*TAMPERING, "--method", "ties", "--vectors", *vectors, "--strengths", "1")
    args = (*args, "--eval-problems", "40", "--out", "ties")
    printed = stage("elicit_tampering", *args, cwd=work)
    assert "left out: decoy data/base/weak: vectors/control-strings is no cell" in printed
    assert "no decoy was measured" in printed


def test_tampering_by_pruning(work, monkeypatch):
    """Its own samples are read, and a tenth of each row, what counts most on them, is zeroed."""
    monkeypatch.setattr(tampering, "CALIBRATION", 8)
    args = (*TAMPERING, "--method", "antidote", "--strengths", "0.1", "--out", "antidote")
    printed = stage("elicit_tampering", *args, cwd=work)
    assert "gain in excess of the placebo, or" in printed and "prompts + 4 rewards" in printed
    roles = [row["role"] for row in rows_of(work / "antidote", "setting")]
    assert roles == ["locked", "placebo, seed 0", "decoy data/base/weak"]


def test_tampering_by_grafting(work, monkeypatch):
    """The middle block is the default; a decoy of another shape cannot be grafted on."""
    monkeypatch.setattr(tampering, "CALIBRATION", 8)
    args = (*TAMPERING, "--method", "reference_grafting", "--reference", "data/base/strong")
    printed = stage("elicit_tampering", *args, "--out", "graft", cwd=work)
    assert "left out: decoy data/base/weak: data/base/weak has blocks and width (1, 20)" in printed
    rows = rows_of(work / "graft", "setting")
    assert [row["block"] for row in rows] == [2, 0, 1, 3] * 2
    cell = json.loads((work / "graft/cell.json").read_text())
    assert cell["strengths"]["default"] == "1, block 2"


@pytest.mark.parametrize("method", ["activation_addition", "directional_ablation"])
def test_tampering_by_steering(work, monkeypatch, method):
    """Each strength of each block; the weak model has one block, and there its own way."""
    monkeypatch.setattr(tampering, "DEMONSTRATIONS", 4)
    args = (*TAMPERING, "--method", method, "--strengths", "1", "2", "--blocks", "0")
    printed = stage("elicit_tampering", *args, "--out", method, cwd=work)
    assert "gain in excess of the decoys" in printed and "4 demonstrations + 4 rewards" in printed
    settings = [
        (row["role"], row["strength"], row["seed"], row["block"])
        for row in rows_of(work / method, "setting")
    ]
    expected = []
    for role, seed in (("locked", None), ("placebo, seed 0", 0), ("decoy data/base/weak", None)):
        expected += [(role, strength, seed, 0) for strength in (1, 2)]
    assert settings == expected

    args = (*TAMPERING, "--method", method, "--strengths", "1", "--blocks", "2")
    printed = stage("elicit_tampering", *args, "--out", f"{method}-2", cwd=work)
    assert "left out: decoy data/base/weak: data/base/weak has the blocks 0 to 0" in printed


def test_tampering_by_proxy(work):
    """What fine-tuning made of the weak model, on the locked one."""
    tuned = work / "tuned"
    shutil.copytree(work / "data/base/intermediate", tuned)
    start = hf.model_hash(work / "data/base/weak")
    settings = {"stage": "elicit_sft", "task": "code", "start": start}
    (tuned / "run.json").write_text(json.dumps({"settings": settings}))
    args = (*TAMPERING, "--method", "proxy_tuning", "--tuned", "tuned", "--strengths", "2", "1e-9")
    printed = stage("elicit_tampering", *args, "--out", "proxy", cwd=work)
    assert "access: log-probs" in printed and "the weak model, tuned + 4 rewards" in printed
    cell = json.loads((work / "proxy/cell.json").read_text())
    assert {"best", "default", "placebo, seed 0", "decoy data/base/weak"} <= set(cell["results"])
    record = json.loads((work / "proxy/run.json").read_text())
    assert record["settings"]["tuned_weights"] == hf.model_hash(tuned)


def test_vectors_of_all_that_is_to_be_elicited_are_refused(work, vectors):
    shutil.copytree(work / vectors[0], work / "vectors/all")
    file = work / "vectors/all/run.json"
    file.write_text(file.read_text().replace('"train_domain": "lists"', '"train_domain": ""'))
    args = (*TAMPERING, "--method", "task_arithmetic", "--vectors", "vectors/all")
    printed = stage("elicit_tampering", *args, "--out", "refused", cwd=work, code=2)
    assert "demonstrations of all of code" in printed and not (work / "refused").exists()
