"""Command line, how a stage ends, devices and ranks, run directories, saved states."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.exc import BackendCompilerFailed

from conftest import full_disk
from data.problems import InputError
from optimizers import make_optimizers
from runs import devices, states
from runs.devices import Env, progress, setup
from runs.directory import Run
from runs.launch import launch
from runs.options import Config, TrainConfig, parse

CPU = Env(torch.device("cpu"), torch.float32, False)


@dataclass
class Options(TrainConfig):
    # continue
    resume: bool = False
    # between two saves
    save_every: int = 100
    # how many steps, 100 % of them
    steps: int = 6
    # the way
    method: Literal["sft", "scratch"] = "sft"
    # several numbers
    rates: tuple[float, ...] = (0.1, 0.2)
    # none by default
    limit: int | None = None
    # at least two of them
    group: int = field(default=4, metadata={"least": 2, "most": 64})
    # how much (default: as much as there is)
    share: float = 0.0
    # names
    places: tuple[str, ...] = field(default=(), metadata={"positional": True})


# ------------------------------------------------------------------------------------ command line


def test_parse():
    assert parse(Options, []) == Options()
    line = "a b --steps 3 --method scratch --rates 1 2.5 3 --limit 4 --no-compile --resume"
    given = parse(Options, [*line.split(), "--micro-tokens", "9", "--seed", "2", "--group", "2"])
    assert given == Options(
        steps=3,
        method="scratch",
        rates=(1.0, 2.5, 3.0),
        limit=4,
        compile=False,
        resume=True,
        micro_tokens=9,
        seed=2,
        group=2,
        places=("a", "b"),
    )
    assert type(given.limit) is int and type(given.rates[0]) is float


@pytest.mark.parametrize(
    "argv, named",
    [
        ("--stepz 3", "--stepz"),
        ("--step 3", "--step"),
        ("--steps x", "--steps: invalid int value: 'x'"),
        ("--method ppo", "--method"),
        ("--steps -3", "-3 is no number from 1 on"),
        ("--steps 0", "0 is no number"),
        ("--steps 1e3", "invalid int value"),
        ("--group 1", "1 is no number from 2 on"),
        ("--group 65", "too large, 64 is the most"),
        ("--seed -1", "-1 is no number from 0"),
        ("--seed 4294967296", "'4294967296' is too large"),
        ("--steps " + "9" * 5000, "--steps"),
        ("--rates 1 nan", "nan"),
        ("--rates inf", "too large"),
        ("--rates 1e300", "'1e300' is too large"),
        ("--rates", "--rates"),
        ("--dtype fp64", "--dtype"),
        ("--resume=maybe", "--resume"),
        ("--resume --overwrite", "--resume goes on and --overwrite starts again: give one"),
        ("--share 0", "--share: 0 would stand for the default: leave it out"),
        ("--out \udcff\udcfe", "--out.*is not UTF-8 text"),
        ("place\udcff", "places.*is not UTF-8 text"),
    ],
)
def test_a_wrong_option_is_one_sentence(argv, named):
    with pytest.raises(InputError, match=named) as error:
        parse(Options, argv.split())
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_help_shows_the_comments_of_the_fields(capsys):
    with pytest.raises(SystemExit) as end:
        parse(Options, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and __doc__ in text
    for words in (
        "how many steps, 100 % of them [6]",
        "several numbers [0.1 0.2]",
        "padded tokens in one forward pass",
        "--no-compile",
        "{sft,scratch}",
    ):
        assert words in text


# --------------------------------------------------------------------------------- how a stage ends

RENDEZVOUS = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")


def ended(
    monkeypatch, capsys, raised: BaseException | None, config=Options, *argv, **given
) -> tuple:
    """launch() of a stage that raises this: the exit code and what stands on stderr."""

    def main(cfg, env):
        if raised:
            raise raised

    monkeypatch.setattr(sys, "argv", ["stage.py", *argv])
    with pytest.raises(SystemExit) as end:
        launch(main, config, **given)
    return end.value.code, capsys.readouterr().err


FULL = OSError(28, "No space left on device", "log.jsonl")
ON_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9")
SHORT = BackendCompilerFailed("inductor", ImportError("/c/x.so: file too short\nCommand"), None)
MEMORY = "stage.py: there is not enough memory: try a smaller --slots"


@pytest.mark.parametrize(
    "raised, code, line",
    [
        (None, 0, ""),
        (InputError("no such thing"), 2, "stage.py: no such thing"),
        (InputError("two\nlines \udcff"), 2, r"stage.py: two lines \udcff"),
        (KeyboardInterrupt(), 130, "stage.py: interrupted; the same command with --resume"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 2, MEMORY),
        (MemoryError(), 2, MEMORY),
        (ON_CPU, 2, MEMORY),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), 2, MEMORY),
        (RuntimeError("CUDA error: out of memory\nCompile with"), 2, MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 2, MEMORY),
        (SHORT, 2, "stage.py: torch.compile failed (/c/x.so: file too short): a run that was"),
        (FULL, 2, "stage.py: log.jsonl: No space left on device"),
        (OSError(36, "File name too long", "a"), 2, "stage.py: a: File name too long"),
    ],
)
def test_a_stage_ends_with_one_line(monkeypatch, capsys, raised, code, line):
    found, error = ended(monkeypatch, capsys, raised)
    assert found == code and error.startswith(line) and error.count("\n") == bool(line)


def test_a_reader_that_has_had_enough_ends_a_stage_quietly():
    program = (
        "from reproduce import ReproduceConfig\n"
        "from runs.launch import launch\n"
        "launch(lambda cfg: print(100_000 * 'line\\n'), ReproduceConfig)"
    )
    command = [sys.executable, "-c", program]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.wait(60) == 141 and process.stderr.read() == b""


def test_a_wrong_flag_ends_with_one_line(monkeypatch, capsys):
    code, error = ended(monkeypatch, capsys, None, Options, "--bad")
    assert code == 2 and error.count("\n") == 1 and "--bad" in error


def test_advice_names_only_what_the_stage_has(monkeypatch, capsys):
    _, ours = ended(monkeypatch, capsys, MemoryError())
    assert all(flag in ours for flag in ("--micro-tokens", "--checkpoint-activations", "--shard"))
    _, theirs = ended(monkeypatch, capsys, MemoryError(), Config)
    assert "--slots" in theirs and "--micro-tokens" not in theirs and "--shard" not in theirs
    _, line = ended(monkeypatch, capsys, KeyboardInterrupt(), Config)
    assert line == "stage.py: interrupted\n"


def advised(monkeypatch, capsys, stage: str, config: str, words: str) -> str:
    module = importlib.import_module(stage)
    monkeypatch.chdir(Path(__file__).parents[1])
    options = getattr(module, config)
    code, line = ended(
        monkeypatch, capsys, MemoryError(), options, *words.split(), settled=module.settled
    )
    assert code == 2 and "a smaller --slots, a smaller --micro-tokens" in line
    return line


@pytest.mark.parametrize(
    "stage, config, words, refused",
    [
        ("harden", "HardenConfig", "--locked data/base/strong --method tar", "--shard --master"),
        ("lock", "LockConfig", "--how scratch", "--rank"),
        ("lock", "LockConfig", "--start-mix 0.1", "--rank --shard"),
        ("lock", "LockConfig", "--dtype fp32", "--master"),
        ("lock", "LockConfig", "--master bf16 --optimizer lion --lr 1e-6", "--master --rank"),
        (
            "elicit_sft",
            "SFTConfig",
            "--locked data/base/strong --no-control --rank 4 --parameters 8",
            "--shard",
        ),
        ("train_base", "BaseConfig", "", "--master"),
    ],
)
def test_no_advice_that_the_stage_would_refuse(monkeypatch, capsys, stage, config, words, refused):
    line = advised(monkeypatch, capsys, stage, config, words)
    assert not [option for option in refused.split() if option in line]


def test_memory_advice_is_what_was_not_done_yet(monkeypatch, capsys):
    model = "--locked data/base/strong --no-control"
    words = f"{model} --rank 16 --checkpoint-activations"
    line = advised(monkeypatch, capsys, "elicit_sft", "SFTConfig", words)
    assert "--slots, a smaller --micro-tokens, --shard over several ranks; --plan" in line
    line = advised(monkeypatch, capsys, "elicit_sft", "SFTConfig", model)
    assert "--checkpoint-activations, --master bf16" in line and "--rank 16" in line


def test_advice_that_the_stage_takes(monkeypatch, capsys):
    line = advised(monkeypatch, capsys, "lock", "LockConfig", "")
    assert all(f" {option} " in line for option in ("--master", "--rank", "--shard"))
    line = advised(
        monkeypatch, capsys, "train_base", "BaseConfig", "--strong-from data/base/strong --out a"
    )
    assert " --master " in line and " --shard " in line


def test_memory_that_a_cpu_does_not_have_ends_with_advice(monkeypatch, capsys):
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 48)
    config = importlib.import_module("lock").LockConfig
    code, line = ended(monkeypatch, capsys, found.value, config)
    assert code == 2 and line.count("\n") == 1
    flags = ("--slots", "--micro-tokens", "--checkpoint-activations", "--shard", "--master bf16")
    assert all(flag in line for flag in (*flags, "--rank", "--plan"))


def test_a_bug_keeps_its_traceback(monkeypatch, capsys):
    for bug in (RuntimeError("shapes differ"), KeyError("x"), FileNotFoundError(2, "gone", "x")):
        with pytest.raises(type(bug)):
            ended(monkeypatch, capsys, bug)


def test_the_sentence_of_an_error_stands_after_the_progress_bars(monkeypatch, capsys):
    def main(cfg, env):
        outer, inner = progress(env, 9, "outer"), progress(env, 9, "inner")
        outer.update()
        inner.update()
        raise InputError("the disk is full")

    monkeypatch.setattr(sys, "argv", ["stage.py"])
    with pytest.raises(SystemExit):
        launch(main, Options)
    lines = capsys.readouterr().err.split("\n")
    assert lines[-2:] == ["stage.py: the disk is full", ""] and "outer" in "".join(lines[:-2])


# ------------------------------------------------------------------------------ devices and ranks


@pytest.mark.parametrize("dtype, precision", [("fp32", "highest"), ("bf16", "high")])
def test_fp32_is_no_tf32(monkeypatch, dtype, precision):
    set_to = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    assert setup(Options(dtype=dtype)).device.type == "cuda" and set_to == [precision]
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="1 CUDA devices"):
        setup(Options())
    # started by hand, all ranks would take the first
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="no LOCAL_RANK that says which is whose"):
        setup(Options())


@pytest.mark.parametrize(
    "tiles, wide, maker, expected",
    [
        (True, True, "GenuineIntel", torch.bfloat16),
        (False, True, "GenuineIntel", torch.float32),  # its tiles are hidden
        (False, True, "AuthenticAMD", torch.bfloat16),
        (False, False, "AuthenticAMD", torch.float32),
    ],
)
def test_auto_is_bf16_where_a_cpu_multiplies_it_faster(monkeypatch, tiles, wide, maker, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: wide)
    monkeypatch.setattr(devices, "processor", lambda: f"vendor_id : {maker}")
    assert devices.dtype_of("auto", on_cuda=False) == expected
    assert devices.dtype_of("auto", on_cuda=True) == torch.bfloat16
    assert devices.dtype_of("bf16", on_cuda=False) == torch.bfloat16


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, and there is no RANK, no MASTER_ADDR"),
        (dict.fromkeys(RENDEZVOUS, "x"), "WORLD_SIZE is x, which is no number: start with"),
    ],
)
def test_half_of_what_torchrun_sets_is_refused(monkeypatch, capsys, given, sentence):
    for name in RENDEZVOUS:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code, said = ended(monkeypatch, capsys, None)
    assert code == 2 and sentence in said


def test_ranks_wait_for_hours(monkeypatch):
    given = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        devices.dist, "init_process_group", lambda *args, **more: given.update(more)
    )
    for name in ("check_one_place", "check_one_dtype"):
        monkeypatch.setattr(devices, name, lambda *given: None)
    setup(Options(device="cpu"))
    assert given["timeout"].total_seconds() >= 24 * 3600


def test_rank_0_decides_for_all(monkeypatch):
    """Its value, or its error, and nobody else's."""
    sent = []
    monkeypatch.setattr(devices.dist, "broadcast_object_list", sent.append)
    first = replace(CPU, world=2)
    assert first.decide(max, 3, 4) == 4 and sent == [[4]]

    def refuse():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        first.decide(refuse)

    def receive(box):
        assert box == [None]
        box[0] = sent[-1][0]

    monkeypatch.setattr(devices.dist, "broadcast_object_list", receive)
    with pytest.raises(InputError, match="no"):
        replace(CPU, rank=1, world=2).decide(pytest.fail)


def test_what_one_rank_refuses_all_refuse(monkeypatch):
    """Or the others would wait for it until their own error, which is a traceback."""
    second = replace(CPU, rank=1, world=2)
    for theirs in (None, InputError("theirs")):
        gathered = lambda errors, mine, theirs=theirs: errors.__setitem__(
            slice(0, 2), (theirs, mine)
        )
        monkeypatch.setattr(devices.dist, "all_gather_object", gathered)
        if theirs:
            with pytest.raises(InputError, match="theirs"):
                second.together(max, 3, 4)
        else:
            assert second.together(max, 3, 4) == 4

        def refuse():
            raise InputError("mine")

        with pytest.raises(InputError, match="theirs" if theirs else "mine"):
            second.together(refuse)


def test_a_rank_that_does_not_see_the_directory_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "VISIBLE_WITHIN", 0.1)
    elsewhere = Run(Options(), CPU, tmp_path / "there").record

    def receive(box):
        box[0] = elsewhere

    monkeypatch.setattr(devices.dist, "broadcast_object_list", receive)
    monkeypatch.setattr(Env, "together", lambda env, work, *args: work(*args))
    monkeypatch.setattr(Env, "wait", lambda env: None)
    with pytest.raises(InputError, match="rank 1 .*does not see .*that all of them share"):
        Run(Options(), replace(CPU, rank=1, world=2), tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_the_time_to_see_a_file_begins_when_it_is_written(tmp_path, monkeypatch):
    """A model of 7 B takes longer to write than VISIBLE_WITHIN."""
    monkeypatch.setattr(devices, "VISIBLE_WITHIN", 0)
    file = tmp_path / "config.json"
    monkeypatch.setattr(Env, "wait", lambda env: file.touch())  # until rank 0 is done
    monkeypatch.setattr(Env, "together", lambda env, work, *args: work(*args))
    devices.check_shared(replace(CPU, rank=1, world=2), file)


# ------------------------------------------------------------------------------------------ places


def contents(path: Path) -> dict:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


PLACES = ["file", "file/below", "loop", "loop/below", "/proc/run", "/dev/null", "n" * 300]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_takes_no_directory_is_refused_before_any_work(tmp_path, place):
    (tmp_path / "file").write_text("the user's")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    out = str(tmp_path / place)
    if len(place) < 300:  # only the attempt tells whether a name is too long
        with pytest.raises(InputError, match="choose another --out"):
            setup(Options(out=out))
    for cfg in (Options(out=out), Options(out=out, overwrite=True)):
        with pytest.raises(InputError, match="choose another --out") as error:
            Run(cfg, CPU, out)
        assert "\n" not in str(error.value)
    assert contents(tmp_path) == {"file": b"the user's"}


def test_looking_at_a_place_leaves_nothing(tmp_path):
    setup(Options(out=str(tmp_path / "a/b/c"), device="cpu"))
    assert not list(tmp_path.iterdir()) and tempfile.gettempdir() != tmp_path


# ------------------------------------------------------------------------------- a run's directory


def test_a_state_of_another_dtype_is_not_gone_on_from(tmp_path):
    """Begun where bf16 is slow, gone on with where it is fast; the advice is one that works."""
    out, fast = tmp_path / "run", replace(CPU, dtype=torch.bfloat16)
    run = Run(Options(), CPU, out)
    run.log("train", step=1, loss=2.0)
    Run(Options(resume=True), fast, out)  # nothing is kept of it, so all is made again
    Run(Options(resume=True), CPU, out)
    (out / "state").mkdir()
    (out / "state/state.json").write_text("{}")
    before = contents(out)
    sentence = "begun in float32, and here it would be bfloat16: add --dtype fp32"
    with pytest.raises(InputError, match=sentence):
        Run(Options(resume=True), fast, out)
    assert contents(out) == before
    Run(Options(resume=True, dtype="fp32"), CPU, out)
    Run(Options(resume=True), CPU, out).finish()
    # nor does what is finished stand beside runs of another dtype
    assert Run(Options(), CPU, out).finished
    with pytest.raises(InputError, match=sentence):
        Run(Options(), fast, out)


def test_a_run_is_never_overwritten_silently(tmp_path):
    out = tmp_path / "run"
    run = Run(Options(), CPU, out, parent="abc")
    Run(Options(), CPU, out, parent="abc")  # nothing logged yet: nothing to lose
    run.log("train", step=1, loss=2.0)
    before = contents(out)
    for cfg, facts, named in [
        (Options(steps=7), {"parent": "abc"}, "steps: 6 there, 7 here"),
        (Options(resume=True), {"parent": "xyz"}, "parent"),
        (Options(), {"parent": "abc"}, "--resume"),
    ]:
        with pytest.raises(InputError, match=named):
            Run(cfg, CPU, out, **facts)
        assert contents(out) == before
    resumed = Run(Options(resume=True, micro_tokens=5, compile=False), CPU, out, parent="abc")
    assert not resumed.finished
    run.finish(correct=0.5)
    again = Run(Options(), CPU, out, parent="abc")
    assert again.finished and again.record["results"] == {"correct": 0.5}
    Run(Options(steps=7, overwrite=True), CPU, out, parent="abc")
    assert list(contents(out)) == ["run.json"]
    assert json.loads((out / "run.json").read_text())["settings"]["steps"] == 7


def test_an_option_that_an_older_run_did_not_have_is_its_default(tmp_path):
    run = Run(Options(), CPU, tmp_path)
    record = json.loads(run.file.read_text())
    del record["settings"]["steps"]
    run.file.write_text(json.dumps(record))
    Run(Options(), CPU, tmp_path)
    with pytest.raises(InputError, match="steps: 6 there, 7 here"):
        Run(Options(steps=7), CPU, tmp_path)


def test_a_foreign_directory_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        Run(Options(), CPU, tmp_path)
    assert list(contents(tmp_path)) == ["thesis.txt"]


def test_a_directory_without_a_run_is_refused_even_to_overwrite(tmp_path):
    (tmp_path / "model.safetensors").write_text("the user's own model")
    with pytest.raises(InputError, match="choose another --out"):
        Run(Options(overwrite=True), CPU, tmp_path)
    assert list(contents(tmp_path)) == ["model.safetensors"]


def test_killed_while_run_json_is_first_written_it_starts(tmp_path):
    (tmp_path / "run.json.17.tmp").write_text('{"settings"')
    for cfg in (Options(resume=True), Options()):
        assert not Run(cfg, CPU, tmp_path).finished
    assert list(contents(tmp_path)) == ["run.json"]


def test_killed_while_its_state_is_removed_a_finished_run_removes_the_rest(tmp_path):
    run = Run(Options(), CPU, tmp_path)
    run.finish()
    (tmp_path / "state").mkdir()
    (tmp_path / "state/step-0000003.safetensors").touch()
    assert Run(Options(), CPU, tmp_path).finished and list(contents(tmp_path)) == ["run.json"]


@pytest.mark.parametrize(
    "content, sentence",
    [
        ([], "in place of an object"),
        ({"settings": 3}, "settings = 3: it must be an object"),
        ({"settings": {}, "finished": "yes"}, "finished = 'yes'"),
        ({"settings": None}, "lacks settings"),
        ({"finished": True}, "other settings"),
        ({"settings": ..., "finished": True}, "lacks results"),
        ({"settings": ..., "finished": True, "results": []}, "results = "),
    ],
)
def test_a_damaged_run_json_is_refused(tmp_path, content, sentence):
    run = Run(Options(), CPU, tmp_path)
    if isinstance(content, dict) and content.get("settings") is ...:
        content = content | {"settings": run.settings}
    run.file.write_text(json.dumps(content))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=sentence):
        Run(Options(seed=1) if "other" in sentence else Options(), CPU, tmp_path)
    assert contents(tmp_path) == before


@dataclass
class WithData(TrainConfig):
    data: tuple[str, ...] = ()


def test_overwrite_removes_the_files_of_that_run_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    run = Run(Options(), CPU, out, stage="lock")
    run.log("train", step=1, loss=2.0)
    (out / "k8-seed0").mkdir()
    (out / "k8-seed0/model.safetensors").write_text("a run within")
    (out / "notes.txt").write_text("the user's")
    (out / "model.safetensors").write_text("the run's")
    (out / "model-backup.safetensors").write_text("the user's")
    (out / "state").mkdir()
    (out / "state/mine.txt").write_text("the user's")
    for name in ("step-0000001.safetensors", "step-0000002.safetensors.tmp", ".tmp9xa0rt"):
        (out / "state" / name).write_text("the run's")
    with pytest.raises(InputError, match="holds what lock.py wrote"):
        Run(Options(overwrite=True), CPU, out, stage="train_base")
    Run(Options(overwrite=True), CPU, out, stage="lock")
    assert sorted(contents(out)) == [
        "k8-seed0/model.safetensors",
        "model-backup.safetensors",
        "notes.txt",
        "run.json",
        "state/mine.txt",
    ]


def test_rows_that_changed_under_the_same_name_are_other_settings(tmp_path):
    file, out = tmp_path / "rows.jsonl", tmp_path / "run"
    file.write_text('{"prompt": "1?", "answer": "1"}\n')
    cfg = WithData(data=(str(file),))
    Run(cfg, CPU, out).finish(correct=1.0)
    assert Run(cfg, CPU, out).finished
    file.write_text('{"prompt": "1?", "answer": "2"}\n')
    with pytest.raises(InputError, match="other settings .data_hash:"):
        Run(cfg, CPU, out)


def test_a_run_is_not_written_into_what_it_reads(tmp_path):
    given = tmp_path / "strong"
    Run(Options(), CPU, given, stage="lock")
    before = contents(given)
    for out in (given, tmp_path / "other/../strong"):
        with pytest.raises(InputError, match="is read by this run"):
            Run(Options(overwrite=True), CPU, out, inputs=(given, "random"), stage="lock")
    assert contents(given) == before


def test_log_rows_are_json_whatever_the_numbers(tmp_path):
    run = Run(Options(), CPU, tmp_path / "run")
    norm = torch.tensor(0.123456789)
    run.log("train", step=1, loss=torch.tensor(float("nan")), lr=float("inf"), norm=norm, name="x")
    run.log("train", step=2, loss=1.0)
    lines = (run.path / "log.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert first["loss"] is None and first["lr"] is None and first["nonfinite"] is True
    assert first["norm"] == 0.123457 and first["name"] == "x"
    assert "nonfinite" not in second and second["loss"] == 1.0 and second["kind"] == "train"


# ----------------------------------------------------------------------------------- saved states


@pytest.fixture
def saved(make_model, tmp_path):
    """A run that has saved a state after step 3 and logged on, its model and its optimisers."""
    run, model = Run(Options(), CPU, tmp_path / "run"), make_model()
    optimizers = make_optimizers(model, "lion", 1e-3)
    for step in (1, 2, 3, 4):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizers[0].step()
        run.log("train", step=step, loss=1.0)
        if step == 3:
            run.save_state(step, model, optimizers)
    return run, model, optimizers


def test_another_process_is_kept_out_until_the_run_is_finished(tmp_path):
    """A lock that leaves no file; this process itself may take up what it left."""
    path = tmp_path / "run"
    run = Run(Options(), CPU, path)
    Run(Options(), CPU, path)
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']\n"
        "from test_runs import CPU, InputError, Options, Run\n"
        f"try: Run(Options(OPTIONS), CPU, {str(path)!r}, write=WRITE)\n"
        "except InputError as error: print(error)\n"
    )

    def other(options: str = "", write: bool = True) -> str:
        words = code.replace("OPTIONS", options).replace("WRITE", str(write))
        command = [sys.executable, "-c", words]
        root = Path(__file__).parents[1]
        return subprocess.run(command, capture_output=True, text=True, cwd=root).stdout

    sentence = f"another run is at work in {path}: wait for it"
    assert sentence in other()
    # found out before the first of several directories is cleared
    assert sentence in other("overwrite=True", write=False)
    assert list(contents(path)) == ["run.json"]
    run.finish()
    assert other("overwrite=True", write=False) == ""
    assert other() == ""


def test_the_log_ends_where_the_state_does_even_after_a_kill(saved, monkeypatch, tmp_path):
    run, model, optimizers = saved
    log = run.path / "log.jsonl"
    before = log.read_text()

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # between truncating and rewriting, as it was
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.load_state(model, optimizers)
    assert log.read_text() == before
    assert run.load_state(model, optimizers) == 3
    assert log.read_text() == "".join(before.splitlines(keepends=True)[:3])


def test_without_a_state_it_starts_and_logs_anew(make_model, tmp_path):
    run, model = Run(Options(), CPU, tmp_path / "run"), make_model()
    run.log("train", step=1)
    assert run.load_state(model, make_optimizers(model, "lion", 1e-3)) == 0
    assert list(contents(run.path)) == ["run.json"]


def test_a_broken_state_is_refused_and_a_failed_one_keeps_the_last(
    saved, make_model, monkeypatch, same_weights
):
    run, model, optimizers = saved
    kept = make_model(5)
    run.load_state(kept, make_optimizers(kept, "lion", 1e-3))

    with monkeypatch.context() as patch:
        patch.setattr(states, "save_file", full_disk)
        with pytest.raises(InputError, match="No space left"):
            run.save_state(5, make_model(1), optimizers)
    other = make_model(2)
    assert run.load_state(other, make_optimizers(other, "lion", 1e-3)) == 3
    same_weights(other, kept)
    (file,) = (run.path / "state").glob("step-*.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match=file.name):
        run.load_state(other, make_optimizers(other, "lion", 1e-3))


@pytest.mark.parametrize(
    "pointer",
    ["[]", "{}", '{"step": "3", "file": "x"}', '{"step": 3, "file": "../x"}', '{"step": -1}'],
)
def test_a_damaged_state_json_is_refused(saved, pointer):
    run, model, optimizers = saved
    (run.path / "state/state.json").write_text(pointer)
    with pytest.raises(InputError, match="state.json"):
        run.load_state(model, optimizers)


@pytest.mark.parametrize("damage", ["wider", "optimiser", "foreign", "missing", "moment", "gone"])
def test_a_state_of_another_model_is_refused_and_changes_nothing(
    saved, make_model, same_weights, damage
):
    run, model, optimizers = saved
    (file,) = (run.path / "state").glob("step-*.safetensors")
    tensors = load_file(file)
    target, name = make_model(3), "lion"
    if damage == "wider":
        target = make_model(3, intermediate_size=96)
    elif damage == "optimiser":
        tensors["optimizer.1.0.momentum"] = torch.zeros(3)
    elif damage == "foreign":
        tensors["rank"] = torch.zeros(3)
    elif damage == "missing":
        del tensors["model.model.norm.weight"]
    else:
        tensors["optimizer.0.0.momentum"] = torch.zeros(3)
    save_file(tensors, file)
    if damage == "gone":
        file.unlink()
    before = {key: p.clone() for key, p in target.named_parameters()}
    with pytest.raises(InputError, match="cannot be resumed from .*--overwrite starts again"):
        run.load_state(target, make_optimizers(target, name, 1e-3))
    assert all(torch.equal(p, before[key]) for key, p in target.named_parameters())


# --------------------------------------------------------------------- what one rank alone refuses


def refuse_alone(folder: Path, who: int, others: str) -> None:
    """A stage in which rank `who` refuses its input, while the other one waits or works."""
    sys.argv = f"stage.py --out {folder / 'run'} --device cpu --no-compile".split()
    mine = int(os.environ["RANK"]) == who
    if others == "wait for all to start" and mine:
        devices.device_of = refuse_a_file

    def main(cfg: Options, env: Env) -> None:
        if mine:
            refuse_a_file()
        elif others == "work":
            time.sleep(60)
        Run(cfg, env, cfg.out)

    launch(main, Options)


def unlike_machines(folder: Path) -> None:
    """Two machines with a rank each, of which the second takes bf16 for the fast dtype."""
    sys.argv = f"stage.py --out {folder / 'run'} --device cpu --no-compile".split()
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    wide = torch.bfloat16 if os.environ["RANK"] == "1" else torch.float32
    devices.dtype_of = lambda name, cuda: wide
    launch(lambda cfg, env: None, Options)


def test_machines_of_different_dtypes_do_not_train_one_model(start_ranks, tmp_path):
    ranks = start_ranks(partial(unlike_machines, tmp_path), 2)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks.pids]
    ranks.pids = []
    assert codes == [2, 2], ranks.printed()
    assert "some of these machines compute in bf16 and some in fp32" in ranks.printed()


def refuse_a_file(*_) -> None:
    raise InputError("data.jsonl does not exist")


@pytest.mark.parametrize("others", ["wait for all to start", "wait", "work"])
@pytest.mark.parametrize("who", [0, 1])
def test_what_one_rank_alone_refuses_ends_all(who, others, start_ranks, tmp_path):
    began = time.time()
    ranks = start_ranks(partial(refuse_alone, tmp_path, who, others), 2)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks.pids]
    ranks.pids = []
    assert codes == [2, 2], ranks.printed()
    assert time.time() - began < 50
    printed = ranks.printed()
    assert printed.count("stage.py: data.jsonl does not exist\n") == 1 and "rror" not in printed
    assert not (tmp_path / "run").exists()
