"""Whatever is wrong with a file or an option: one sentence that names it, and nothing is written.

First the doors (checkpoints.read_json, checked, write_text, load_model), then a seeded generator of
damaged files and wrong command lines over all stages. More of them: DAMAGED=2000 python -m pytest
tests/test_damaged.py
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
from checkpoints import checked, load_model, read_json, read_rows, weights_hash, write_text
from data.problems import InputError

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

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full_disk)
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
    (lambda p: index_of(p, {"weight_map": {"a": "../strong/model.safetensors"}}), "beside it"),
    (lambda p: index_of(p, {"weight_map": {"a": "config.json"}}), "beside it"),
    (lambda p: index_of(p, {"weight_map": {"a": "gone.safetensors"}}), "gone.safetensors"),
    (lambda p: replaced_by_loop(p / "model.safetensors"), "model.safetensors cannot be read"),
    (lambda p: replaced_by_directory(p / "model.safetensors"), "model.safetensors is not a file"),
    (lambda p: with_tensor(p, torch.ones(20).int()), "model.norm.weight is of dtype I32"),
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
        weights_hash(path)


def test_the_hash_is_that_of_the_bytes_and_computed_once(tmp_path, monkeypatch):
    path = damaged_copy(tmp_path)
    before = weights_hash(path)
    content = (path / "model.safetensors").read_bytes()
    assert before == hashlib.sha256(content).hexdigest()[:16]
    opened = []
    monkeypatch.setattr(checkpoints, "HASH_CHUNK", 1000)
    monkeypatch.setattr(checkpoints.hashlib, "sha256", lambda: opened.append(1))
    assert weights_hash(path) == before and not opened
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints, "HASH_CHUNK", 1000)
    checkpoints._hash_of.cache_clear()
    assert weights_hash(path) == before
    file = path / "model.safetensors"
    os.utime(file, ns=(1, 1))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert weights_hash(path) != before
