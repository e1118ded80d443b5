"""Checkpoints on disk: directories in Hugging Face's layout, in and out, and the JSON files beside them."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.problems import InputError
from data.text import Tokenizer
from model import Model, ModelConfig, whole


def from_hf(config: dict) -> ModelConfig:
    """Read config.json. Raises InputError for anything that this network would silently compute wrongly."""
    kind = config.get("model_type")
    if kind not in ("llama", "mistral"):
        raise InputError(f"model_type {kind!r} is not supported: use a llama or mistral checkpoint")
    for key in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ):
        if key not in config:
            raise InputError(f"config.json lacks {key}")
    rope = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
    }
    refused = {
        "hidden_act": ("silu", config.get("hidden_act", "silu")),
        "attention_bias": (False, config.get("attention_bias", False)),
        "mlp_bias": (False, config.get("mlp_bias", False)),
        "sliding_window": (None, config.get("sliding_window")),
        "quantization_config": (None, config.get("quantization_config")),
        "rope_type": ("default", rope.get("rope_type", rope.get("type", "default"))),
    }
    for key, (supported, value) in refused.items():
        if value != supported:
            raise InputError(f"config.json has {key} = {value!r}: only {supported!r} is supported")
    heads = config["num_attention_heads"]
    return ModelConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads")
        or (8 if kind == "mistral" else heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        max_position_embeddings=config["max_position_embeddings"],
        rope_theta=rope.get("rope_theta", 10000.0),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
    )


def to_hf(config: ModelConfig, tokenizer: Tokenizer) -> dict:
    """The config.json that transformers opens as LlamaForCausalLM; both spellings of the rotary settings."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(config),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "dtype": "float32",
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


SHARD_BYTES = 5_000_000_000


def load_model(
    path: str | Path, device: torch.device | str = "cpu", compute_dtype: torch.dtype = torch.float32
) -> tuple[Model, Tokenizer]:
    """Open a checkpoint directory in Hugging Face layout: fp32 master weights on `device`, and its tokenizer.

    Raises InputError, naming the file, for anything missing, truncated, corrupted, misshapen, or where tokenizer and model disagree.
    """
    path = Path(path)
    config = from_hf(read_json(path / "config.json"))
    tokenizer = Tokenizer.load(path)
    if tokenizer.size > config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.size} ids but the model only {config.vocab_size} rows: they do not belong together"
        )
    with torch.device("meta"):
        model = Model(config, compute_dtype)
    expected = dict(model.named_parameters())  # a tied head appears once, as the embedding
    index = path / "model.safetensors.index.json"
    files = (
        sorted(set(read_json(index)["weight_map"].values()))
        if index.exists()
        else ["model.safetensors"]
    )
    loaded = {}
    for name in files:
        try:
            with safe_open(path / name, framework="pt", device=str(device)) as f:
                for key in f.keys():
                    if key in expected:
                        tensor = f.get_tensor(key)
                        if tensor.shape != expected[key].shape:
                            raise InputError(
                                f"{path / name}: {key} has shape {tuple(tensor.shape)}, config.json says {tuple(expected[key].shape)}"
                            )
                        loaded[key] = nn.Parameter(tensor.to(torch.float32))
                    elif not (key == "lm_head.weight" or key.endswith("rotary_emb.inv_freq")):
                        raise InputError(f"{path / name}: unexpected tensor {key}")
        except FileNotFoundError:
            raise InputError(
                f"{path / name} does not exist: the checkpoint is incomplete"
            ) from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path / name} is truncated or corrupted ({error})") from None
    if missing := sorted(set(expected) - set(loaded)):
        raise InputError(f"{path}: {len(missing)} tensors are missing, first {missing[0]}")
    for key, parameter in loaded.items():
        module, _, name = key.rpartition(".")
        setattr(model.get_submodule(module), name, parameter)
    model.rebuild()
    model.live_vocab = tokenizer.size
    return model, tokenizer


def collected(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors in the memory of the rank that keeps them; the others only take part in gathering what is sharded."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.contiguous().cpu()
    return found


def save_model(path: str | Path, model: Model, tokenizer: Tokenizer, write: bool = True) -> None:
    """Write a checkpoint directory that `transformers.AutoModelForCausalLM.from_pretrained` opens. All ranks call it, one writes.

    Everything is written and synced beside the old files first and then renamed over them, config.json last: a full disk or a
    kill leaves the previous checkpoint as it was.
    """
    path = Path(path)
    staging = path / ".saving"
    tensors = collected(dict(model.named_parameters()), write)  # a tied head appears once
    if not write:
        return
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        shards, size = [{}], 0
        for name, tensor in tensors.items():
            if size and size + tensor.nbytes > SHARD_BYTES:
                shards, size = [*shards, {}], 0
            shards[-1][name], size = tensor, size + tensor.nbytes
        names = (
            ["model.safetensors"]
            if len(shards) == 1
            else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        )
        for name, shard in zip(names, shards):
            save_file(shard, staging / name, metadata={"format": "pt"})
        if len(shards) > 1:
            where = {key: name for name, shard in zip(names, shards) for key in shard}
            write_json(
                staging / "model.safetensors.index.json",
                {
                    "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
                    "weight_map": where,
                },
            )
        tokenizer.save(staging)
        write_json(
            staging / "generation_config.json",
            {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id},
        )
        write_json(staging / "config.json", to_hf(model.config, tokenizer))
        for file in staging.iterdir():
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        for file in sorted(staging.iterdir(), key=lambda f: (f.name == "config.json", f.name)):
            os.replace(file, path / file.name)
        for stale in path.glob(
            "model*.safetensors*"
        ):  # the other layout's files would be opened in place of ours, or hashed with them
            if stale.name not in names and not (
                len(shards) > 1 and stale.name.endswith(".index.json")
            ):
                stale.unlink()
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"could not write the checkpoint {path} ({error}); what it held before is untouched"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def weights_hash(path: str | Path) -> str:
    """Short sha256 of a checkpoint's weight files: how a run records its parent."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: is {path.parent} a checkpoint directory?"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error})") from None


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Atomic: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
