"""Checkpoints: ours against transformers', sharded against whole, and what damage is refused."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from checkpoints import hf
from checkpoints.hf import load_model, save_model
from conftest import full_disk
from data.problems import InputError
from data.text import Tokenizer

# transformers takes seconds to import: one process does it
imports_transformers = pytest.mark.xdist_group("transformers")
near = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def logits_of(model, tokens) -> torch.Tensor:
    return F.linear(model(tokens), model.head_weight).float()


TOKENS = torch.arange(2, 42).view(2, 20)


def edit(path, **changes):
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@imports_transformers
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "rope_theta": 5e5,
            "rms_norm_eps": 1e-4,
        },
    ],
)
def test_transformers_opens_what_we_save(make_model, tokenizer, tmp_path, same_weights, changes):
    transformers = pytest.importorskip("transformers")
    model = make_model(**changes)
    save_model(tmp_path / "a", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    assert (
        type(theirs).__name__ == "LlamaForCausalLM"
        and theirs.generation_config.eos_token_id == tokenizer.eos_id
    )
    with torch.no_grad():
        near(logits_of(model, TOKENS), theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)
    loaded, its_tokenizer = load_model(tmp_path / "a")
    same_weights(loaded, model)
    assert loaded.config == model.config and its_tokenizer.size == tokenizer.size
    save_model(tmp_path / "b", loaded, its_tokenizer)
    files = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}


@imports_transformers
@pytest.mark.parametrize("tied, kv_heads", [(False, 2), (True, 4)])
def test_we_open_what_transformers_saves(tokenizer, tmp_path, tied, kv_heads):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
            initializer_range=0.1,
        )
    )
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    ours, _ = load_model(tmp_path)
    with torch.no_grad():
        near(
            F.linear(ours(TOKENS), ours.lm_head.weight), theirs(TOKENS).logits, rtol=1e-4, atol=1e-4
        )


def test_sharded_is_whole(make_model, tokenizer, tmp_path, same_weights, monkeypatch):
    model, newer = make_model(0), make_model(1)
    monkeypatch.setattr(hf, "SHARD_BYTES", 60_000)
    save_model(tmp_path, model, tokenizer)
    shards = sorted(file.name for file in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3 and not (tmp_path / "model.safetensors").exists()
    same_weights(load_model(tmp_path)[0], model)
    (tmp_path / shards[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=shards[1]):
        load_model(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / shards[1])
    monkeypatch.setattr(hf, "SHARD_BYTES", 10**9)
    save_model(tmp_path, newer, tokenizer)
    same_weights(load_model(tmp_path)[0], newer)
    whole = tmp_path / "whole"
    save_model(whole, newer, tokenizer)
    assert hf.model_hash(tmp_path) == hf.model_hash(whole) != hf.model_hash(tmp_path / "nowhere")


def test_killed_while_it_is_replaced_it_does_not_open(
    make_model, tokenizer, tmp_path, same_weights, monkeypatch
):
    """After the first of several shards it would otherwise be half of one model, half of another.

    A disk that is full before that leaves the old one.
    """
    old, newer = make_model(0), make_model(1)
    monkeypatch.setattr(hf, "SHARD_BYTES", 60_000)
    save_model(tmp_path, old, tokenizer)

    with monkeypatch.context() as patch:
        patch.setattr(hf, "sync", full_disk)
        with pytest.raises(InputError, match="what it held before is untouched"):
            save_model(tmp_path, newer, tokenizer)
    same_weights(load_model(tmp_path)[0], old)

    replace, renamed = hf.os.replace, []

    def failing(source, target):
        if ".saving" not in str(target):
            renamed.append(target)
        if len(renamed) > 1:
            raise OSError(5, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(hf.os, "replace", failing)
        with pytest.raises(InputError, match="being replaced, and does not open now"):
            save_model(tmp_path, newer, tokenizer)
    with pytest.raises(InputError, match="config.json"):
        load_model(tmp_path)
    save_model(tmp_path, newer, tokenizer)
    same_weights(load_model(tmp_path)[0], newer)


@imports_transformers
def test_sharded_replaces_whole_for_transformers_too(make_model, tokenizer, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    save_model(tmp_path, make_model(0), tokenizer)
    monkeypatch.setattr(hf, "SHARD_BYTES", 60_000)
    newer = make_model(1)
    save_model(tmp_path, newer, tokenizer)
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        near(theirs(TOKENS).logits, logits_of(newer, TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda p: (p / "config.json").unlink(), "config.json"),
        (lambda p: (p / "config.json").write_text("{"), "config.json"),
        (lambda p: edit(p / "config.json", hidden_size=...), "hidden_size"),
        (lambda p: edit(p / "config.json", model_type="gpt2"), "gpt2"),
        (
            lambda p: edit(
                p / "config.json",
                rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
            ),
            "yarn",
        ),
        (
            lambda p: edit(
                p / "config.json",
                rope_parameters=...,
                rope_scaling={"type": "ntk", "factor": 2.0},
            ),
            "ntk",
        ),
        (lambda p: edit(p / "config.json", attention_bias=True), "k_proj.bias"),
        (lambda p: edit(p / "config.json", vocab_size=299), "tokenizer"),
        (lambda p: edit(p / "config.json", intermediate_size=96), "shape"),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors"),
        (
            lambda p: (p / "model.safetensors").write_bytes(
                (p / "model.safetensors").read_bytes()[:-100]
            ),
            "truncated",
        ),
        (lambda p: (p / "model.safetensors").write_bytes(b"no weights"), "model.safetensors"),
        (lambda p: rewrite(p, drop="model.norm.weight"), "model.norm.weight"),
        (lambda p: rewrite(p, drop="lm_head.weight"), "lm_head.weight"),
        (lambda p: rewrite(p, **{"model.layers.2.mlp.up_proj.weight": torch.zeros(2)}), "layers.2"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(make_model, tokenizer, tmp_path, damage, named):
    save_model(tmp_path, make_model(), tokenizer)
    damage(tmp_path)
    with pytest.raises(InputError, match=named):
        load_model(tmp_path)


def rewrite(path, drop: str = "", **extra):
    tensors = load_file(path / "model.safetensors") | extra
    save_file({k: v for k, v in tensors.items() if k != drop}, path / "model.safetensors")


def test_a_failed_save_leaves_the_old_checkpoint(
    make_model, tokenizer, tmp_path, same_weights, monkeypatch
):
    old = make_model(0)
    save_model(tmp_path, old, tokenizer)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    written = []

    def full_disk(tensors, file, **kwargs):
        if written:
            raise OSError(28, "No space left on device")
        written.append(file)
        save_file(tensors, file, **kwargs)

    monkeypatch.setattr(hf, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(hf, "save_file", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save_model(tmp_path, make_model(1), tokenizer)
    assert written and {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    same_weights(load_model(tmp_path)[0], old)
    assert Tokenizer.load(tmp_path).size == 300
