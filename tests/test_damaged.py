"""Whatever is wrong with a file or an option: one sentence that names it, and nothing is written.

First the doors (hf.read_json, checked, write_text, load_model), then a seeded generator of
damaged files and wrong command lines over all stages. More of them: DAMAGED=2000 python -m pytest
tests/test_damaged.py
"""

import functools
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import data
import elicit_rl
import elicit_sft
import evaluate
import harden
import lock
import train_base
import train_declared
from checkpoints import hf
from checkpoints.hf import load_model, model_hash
from conftest import full_disk
from data.problems import InputError
from runs import options
from runs.files import checked, read_json, read_rows, write_text
from runs.launch import launch

ROOT = Path(__file__).parents[1]
DEEP = "[" * 100_000


def one_sentence(error: BaseException) -> bool:
    text = str(error)
    return bool(text) and "\n" not in text and len(text) < 600


# -------------------------------------------------------------------------------------- JSON files


@pytest.mark.parametrize(
    "content, why",
    [
        (None, "does not exist"),
        ("a directory", "is not a file"),
        ("a loop", "symbolic links"),
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (DEEP.encode(), "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": 1e999}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"[1]", "a JSON list in place of an object"),
        (b"null", "in place of an object"),
    ],
)
def test_a_json_file_is_an_object_or_one_sentence(tmp_path, content, why):
    file = tmp_path / "run.json"
    if content == "a directory":
        file.mkdir()
    elif content == "a loop":
        file.symlink_to(file)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=why) as error:
        read_json(file)
    assert str(file) in str(error.value) and one_sentence(error.value)


def test_checked_takes_what_is_right_and_names_what_is_not():
    values = {"n": 3, "x": 2, "flag": True, "name": "a", "none": None}
    assert checked(values, "f", "n", int, 1, 3) == 3 and checked(values, "f", "x", float) == 2
    assert checked(values, "f", "flag", bool) is True
    assert checked(values, "f", "none", int, default=0) == 0
    wrong = [
        ("n", str, {}, "f has n = 3: it must be a text"),
        ("n", int, {"least": 4}, "at least 4"),
        ("n", int, {"most": 2}, "at most 2"),
        ("flag", int, {}, "f has flag = True: it must be a whole number"),
        ("name", float, {}, "f has name = 'a': it must be a number"),
        ("none", int, {}, "f lacks none"),
        ("gone", int, {}, "f lacks gone"),
    ]
    for name, kind, bounds, sentence in wrong:
        with pytest.raises(InputError, match=sentence):
            checked(values, "f", name, kind, **bounds)


def test_rows_end_where_their_writer_was_killed(tmp_path):
    file = tmp_path / "log.jsonl"
    assert read_rows(file) == []
    file.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_rows(file) == [{"a": 1}, {"a": 2}]
    for damaged in ('{"a": 1}\n{"a"\n', "[1]\n"):
        file.write_text(damaged)
        with pytest.raises(InputError, match="log.jsonl is damaged"):
            read_rows(file)


@pytest.mark.parametrize("place", ["a directory", "below a file", "nowhere/x", "/proc/x", "device"])
def test_what_cannot_be_written_is_one_sentence(tmp_path, place):
    (tmp_path / "file").write_text("old")
    path = {"a directory": tmp_path, "below a file": tmp_path / "file/x", "device": "/dev/full"}
    with pytest.raises(InputError, match="cannot be written") as error:
        write_text(path.get(place, tmp_path / place), "text")
    assert one_sentence(error.value) and not Path("/dev/full").is_file()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old")

    monkeypatch.setattr(hf.os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_text(tmp_path / "a.json", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


# ------------------------------------------------------------------------------------- checkpoints

NO_SIZES = ["64", [64], 64.0, True, 0, -1, 10**15, 10**30, {}]
WRONG_SETTINGS = [
    *((name, value) for name in ("hidden_size", "num_hidden_layers") for value in NO_SIZES),
    *((name, None) for name in ("vocab_size", "intermediate_size", "max_position_embeddings")),
    ("num_hidden_layers", 9_999_999),
    ("max_position_embeddings", 9_999_999),
    ("num_attention_heads", 0),
    ("num_key_value_heads", 0),
    ("num_key_value_heads", 3),
    ("head_dim", 0),
    ("head_dim", 15),
    ("rms_norm_eps", "1e-5"),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", [1e-5]),
    ("rope_parameters", "default"),
    ("rope_parameters", {"rope_theta": "10000"}),
    ("rope_parameters", {"rope_theta": -1}),
    ("rope_parameters", {"rope_theta": 10**400}),
    ("rope_parameters", {"rope_type": ["default"]}),
    ("tie_word_embeddings", "perhaps"),
    ("model_type", ["llama"]),
    ("hidden_act", {}),
]


def damaged_copy(folder: Path) -> Path:
    """A copy of the weak base model, to be damaged."""
    copy = folder / "model"
    shutil.copytree(ROOT / "data/base/weak", copy)
    return copy


def with_settings(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name, value", WRONG_SETTINGS)
def test_every_setting_of_the_wrong_kind_or_size_is_refused_at_once(tmp_path, name, value):
    path = damaged_copy(tmp_path)
    with_settings(path, **{name: value})
    if name == "num_key_value_heads":
        with_settings(path, num_attention_heads=4)
    with pytest.raises(InputError, match="config.json") as error:
        load_model(path)
    assert one_sentence(error.value)
    assert name in str(error.value) or name in ("rope_parameters", "num_hidden_layers")


def index_of(path: Path, places) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps(places))


def index_alone(path: Path, places) -> None:
    index_of(path, places)
    (path / "model.safetensors").unlink()


def with_tensor(path: Path, value: torch.Tensor) -> None:
    file = path / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": value}, file)


def replaced_by_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def replaced_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


NAN = torch.full((20,), float("nan"))
INFINITE = torch.ones(20).double() * 1e300  # more than fp32 can hold
DAMAGES = [
    (lambda p: index_of(p, []), "in place of an object"),
    (lambda p: index_of(p, {}), "lacks weight_map"),
    (lambda p: index_of(p, {"weight_map": "all"}), "weight_map"),
    (lambda p: index_of(p, {"weight_map": {}}), "names no files"),
    (lambda p: index_of(p, {"weight_map": {"a": 7}}), "names 7"),
    (
        lambda p: index_of(p, {"weight_map": {"a": "../strong/model.safetensors"}}),
        "beside it, so fetch",
    ),
    (lambda p: index_of(p, {"weight_map": {"a": "/etc/model.safetensors"}}), "beside it, so fetch"),
    (lambda p: index_of(p, {"weight_map": {"a": "config.json"}}), "beside it"),
    (lambda p: index_of(p, {"weight_map": {"a": "gone.safetensors"}}), "may be two models"),
    (lambda p: index_alone(p, {"weight_map": {"a": "gone.safetensors"}}), "gone.safetensors"),
    (lambda p: (p / "adapter_config.json").write_text("{}"), "is two models: move one of them"),
    (lambda p: replaced_by_loop(p / "model.safetensors"), "model.safetensors cannot be read"),
    (lambda p: replaced_by_directory(p / "model.safetensors"), "model.safetensors is not a file"),
    (
        lambda p: with_tensor(p, torch.ones(20).int()),
        "model.norm.weight is of dtype I32: .* so take",
    ),
    (lambda p: with_tensor(p, torch.ones(20) * 1j), "model.norm.weight is of dtype C64"),
    (lambda p: with_tensor(p, NAN), "model.norm.weight holds NaN"),
    (lambda p: with_tensor(p, INFINITE), "model.norm.weight holds NaN or infinite"),
    (lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"), "pickle.*save_pretrain"),
]


@pytest.mark.parametrize("damage, sentence", DAMAGES)
def test_weights_that_are_none_are_refused_by_name(tmp_path, damage, sentence):
    path = damaged_copy(tmp_path)
    damage(path)
    with pytest.raises(InputError, match=sentence) as error:
        load_model(path)
    assert one_sentence(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("damage", [replaced_by_loop, replaced_by_directory])
def test_the_hash_of_what_is_no_file_is_refused(tmp_path, damage):
    path = damaged_copy(tmp_path)
    damage(path / "model.safetensors")
    with pytest.raises(InputError, match="model.safetensors"):
        model_hash(path)


def test_the_hash_is_that_of_the_bytes_and_computed_once(tmp_path, monkeypatch):
    path = damaged_copy(tmp_path)
    before = model_hash(path)
    digest = hashlib.sha256()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        digest.update((path / name).read_bytes())
    assert before == digest.hexdigest()[:16]
    opened = []
    monkeypatch.setattr(hf, "HASH_CHUNK", 1000)
    monkeypatch.setattr(hf.hashlib, "sha256", lambda: opened.append(1))
    assert model_hash(path) == before and not opened
    monkeypatch.undo()
    monkeypatch.setattr(hf, "HASH_CHUNK", 1000)
    hf._hash_of.cache_clear()
    assert model_hash(path) == before
    file = path / "model.safetensors"
    os.utime(file, ns=(1, 1))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert model_hash(path) != before


def test_the_hash_tells_models_of_other_settings_apart(tmp_path):
    path = damaged_copy(tmp_path)
    before = model_hash(path)
    for name, change in (
        ("config.json", {"rope_theta": 500.0}),
        ("tokenizer_config.json", {"x": 1}),
    ):
        content = (path / name).read_text()
        (path / name).write_text(json.dumps(json.loads(content) | change))
        assert model_hash(path) != before
        (path / name).write_text(content)
        assert model_hash(path) == before


@pytest.mark.parametrize("token", [7, [], {}, {"content": 7}])
def test_a_token_that_is_no_text_is_named(tmp_path, token):
    path = damaged_copy(tmp_path)
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    with pytest.raises(InputError, match="tokenizer_config.json has eos_token = .* must be a text"):
        load_model(path)


# ------------------------------------------------------------- wrong command lines, damaged inputs

STAGES = {
    "train_base": train_base.BaseConfig,
    "lock": lock.LockConfig,
    "elicit_sft": elicit_sft.SFTConfig,
    "elicit_rl": elicit_rl.RLConfig,
    "evaluate": evaluate.EvaluateConfig,
    "harden": harden.HardenConfig,
    "train_declared": train_declared.DeclaredConfig,
}
# valid and small, so that only the damage is wrong; {} is a checkpoint directory
SMALL = ["--max-new-tokens", "8", "--eval-problems", "4", "--no-compile"]
COMMANDS = {
    "train_base": ["--task", "code", "--eval-problems", "4", "--problems", "8", "--no-compile"],
    "lock": ["--problems", "8", *SMALL],
    "elicit_sft": ["--locked", "weak", "--k", "1", "--selection-problems", "4", *SMALL],
    "elicit_rl": ["--locked", "weak", "--samples", "64", "--round", "32", *SMALL],
    "evaluate": ["weak", "--problems", "4", "--max-new-tokens", "8", "--no-compile"],
    "harden": ["--locked", "weak", "--problems", "24", "--eval-problems", "4", "--no-compile"],
    "train_declared": ["--asked", "1", "--silent", "1", "--steps", "1", "--no-compile"],
}
# the directories that a stage reads, and how each is named
INPUTS = [
    ("lock", ["--strong", "{}"]),
    ("lock", ["--weak", "{}"]),
    ("elicit_sft", ["--locked", "{}"]),
    ("elicit_sft", ["--weak", "{}"]),
    ("elicit_sft", ["--demos-from", "strong", "--strong", "{}"]),
    ("elicit_rl", ["--locked", "{}"]),
    ("elicit_rl", ["--method", "filtering", "--weak", "{}"]),
    ("elicit_rl", ["--warm-start", "4", "--warm-from", "{}"]),
    ("harden", ["--locked", "{}"]),
    ("evaluate", ["{}"]),
    ("evaluate", ["--locked", "{}"]),
]
# where the directory of a run is, within --out
NAME = elicit_rl.run_name(elicit_rl.with_defaults(elicit_rl.RLConfig(locked="weak", round=32)))
RUNS = {"train_base": "strong", "lock": ".", "elicit_rl": f"{NAME}-seed0"}

WHOLE_FILE = ["gone", "directory", "loop", "empty", "cut", "bytes", "list", "deep", "infinite"]
SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
SIZES += ["num_attention_heads", "max_position_embeddings", "num_key_value_heads", "head_dim"]
NO_NUMBERS = ["x", "", "nan", "-1", "1e400", "9" * 30, "0x10", "1,5", "--", "\udcff"]
NO_PLACES = ["file", "file/below", "loop", "loop/below", "/proc/x", "/dev/null", "\udcff"]
NO_MODELS = [*NO_PLACES, "nowhere", "empty", "n" * 300, "nowhere\nelse"]


class Hang(BaseException):
    """Nothing catches it: the case took too long."""


def spoil(file: Path, how: str, rng: random.Random) -> None:
    """Damage a file as a whole."""
    old = file.read_bytes() if file.is_file() else b"{}"
    if os.path.lexists(file):
        file.unlink()
    if how == "directory":
        file.mkdir()
    elif how == "loop":
        file.symlink_to(file)
    elif how == "cut":
        file.write_bytes(old[: rng.randrange(1, max(2, len(old) - 2))])
    elif how != "gone":
        text = {"empty": b"", "bytes": b'{"\xff\xfe": 1}', "list": b"[1, 2]"}
        text |= {"deep": DEEP.encode(), "infinite": b'{"settings": Infinity}'}
        file.write_bytes(text[how])


def wrong_option(rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """An option with a value that it does not take, as its type tells; or no option at all."""
    stage = rng.choice(list(STAGES))
    option = rng.choice([o for o in fields(STAGES[stage]) if not o.metadata.get("positional")])
    flag = "--" + option.name.replace("_", "-")
    kind = str(option.type)
    if rng.random() < 0.1:
        return stage, rng.choice([["--klingon"], [flag + "s", "1"], ["-x"], [flag[:-1]]])
    if "bool" in kind:
        return stage, [flag + "=maybe"]
    if "Literal" in kind:
        return stage, [flag, rng.choice(["klingon", " ", "\udcff", "None"])]
    if "int" in kind or "float" in kind:
        return stage, [flag, rng.choice(NO_NUMBERS)]
    return stage, rng.choice([[flag], [flag, "a\udcffb"]])


def wrong_place(rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """--out where nothing can be written."""
    return rng.choice(list(STAGES)), ["--out", rng.choice(NO_PLACES)]


def wrong_input(rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """What is no checkpoint directory in the place of one."""
    stage, words = rng.choice(INPUTS)
    return stage, named(words, rng.choice(NO_MODELS))


def damaged_input(rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """A checkpoint directory one of whose files is damaged."""
    stage, words = rng.choice(INPUTS)
    path = damaged_copy(folder)
    files = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    choice = rng.random()
    if choice < 0.4:
        spoil(path / rng.choice(files), rng.choice(WHOLE_FILE), rng)
    elif choice < 0.6:
        name = rng.choice(SIZES)
        other = [] if name == "max_position_embeddings" else [7]  # no weight tells that it is wrong
        with_settings(path, **{name: rng.choice(NO_SIZES + other)})
    elif choice < 0.9:
        damage, _ = rng.choice(DAMAGES)
        damage(path)
    else:
        file = path / "tokenizer_config.json"
        file.write_text(json.dumps({"eos_token": rng.choice([None, 7, [], {}, "<none>"])}))
    return stage, named(words, "model")


def damaged_run(rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """A run.json of the wrong shape in the directory of a run."""
    stage = rng.choice(list(RUNS))
    file = folder / "run" / RUNS[stage] / "run.json"
    file.parent.mkdir(parents=True)
    contents = [{"settings": None}, {"settings": []}, {"settings": {}, "finished": 1}]
    contents += [{"settings": {"seed": {}}}, {"finished": "yes"}, {"klingon": 1}]
    file.write_text(json.dumps(rng.choice(contents)))
    if rng.random() < 0.5:
        spoil(file, rng.choice(["directory", "loop", "empty", "bytes", "list", "deep"]), rng)
    flags = rng.choice([[], ["--resume"], ["--overwrite"]])
    return stage, ["--out", "run", *flags]


def damaged_data(rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """--data that is no file of rows."""
    stage = rng.choice(["lock", "elicit_sft", "elicit_rl", "evaluate"])
    file = folder / rng.choice(["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz", "rows"])
    spoil(file, rng.choice(["gone", "directory", "loop", "empty", "bytes", "deep"]), rng)
    return stage, ["--data", file.name]


def damaged_measurement(rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """run.json of the wrong shape, or an evaluation.json that is no object, beside a checkpoint.

    An object that does not hold the measurements asked for is measured anew.
    """
    stage, words = rng.choice([row for row in INPUTS if row[1][0] in ("--locked", "{}")])
    name = "evaluation.json" if words == ["{}"] and rng.random() < 0.5 else "run.json"
    file = damaged_copy(folder) / name
    if name == "evaluation.json" or rng.random() < 0.5:
        spoil(file, rng.choice(["directory", "loop", "empty", "bytes", "list", "deep"]), rng)
    else:
        triggers = [3, {"told": "klingon"}, {"password": 7}, {"password": ""}, {"klingon": 1}]
        settings = [{"trigger": rng.choice(triggers)}, {"max_new_tokens": "x"}, {"data": 3}, []]
        file.write_text(json.dumps({"settings": rng.choice(settings)}))
    return stage, named(words, "model")


MAKERS = [
    wrong_option,
    wrong_place,
    wrong_input,
    damaged_input,
    damaged_run,
    damaged_data,
    damaged_measurement,
]


def named(words: list[str], path: str) -> list[str]:
    return [path if word == "{}" else word for word in words]


def everything(folder: Path) -> dict:
    """Every name below a folder, with what tells whether it was touched."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        found[str(path)] = (state.st_mode, state.st_size, state.st_mtime_ns)
    return found


help_once = functools.cache(options.help_texts)  # it reads the source, every time


@functools.cache
def problems_of(task, split, n, seed, files, grader) -> list:
    return data.load(task, split, n, seed, files, grader)


def load_once(task, split, n=None, seed=0, files=(), grader="") -> list:
    """data.load, each set once for all cases."""
    return list(problems_of(task, split, n, seed, tuple(files), grader))


@pytest.mark.parametrize("number", range(int(os.environ.get("DAMAGED", 200))))
def test_whatever_is_wrong_is_one_sentence(tmp_path, monkeypatch, capsys, number):
    rng = random.Random(number)
    maker = MAKERS[number % len(MAKERS)]
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    (folder / "data/base").symlink_to(ROOT / "data/base")
    shutil.copytree(ROOT / "data/base/weak", folder / "weak")
    (folder / "file").write_text("the user's")
    (folder / "loop").symlink_to("loop")
    (folder / "empty").mkdir()
    stage, words = maker(rng, folder)
    module = importlib.import_module(stage)
    argv = [f"{stage}.py", *COMMANDS[stage], *words]
    if words[0] == "model" or (stage == "evaluate" and words[0] in NO_MODELS):
        argv.remove("weak")

    def too_long(*_):
        raise Hang(argv)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(options, "help_texts", help_once)
    if hasattr(module, "load"):
        monkeypatch.setattr(module, "load", load_once)
    before = everything(folder)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    try:
        with pytest.raises(SystemExit) as end:
            launch(module.main, STAGES[stage])
    finally:
        signal.alarm(0)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1, (end.value.code, " ".join(argv), lines)
    assert lines[0].startswith(f"{stage}.py: ") and len(lines[0]) < 900, argv
    assert everything(folder) == before, argv
