"""Checkpoints on disk: Hugging Face directories, in and out, and the JSON files beside them.

Every file that this repository reads or writes as JSON goes through `read_json`, `checked` and
`write_json`, every checkpoint through `load_model` and `save_model`: what is damaged, misshapen or
cannot be written is an InputError, one sentence that names the file.
"""

import functools
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.problems import InputError
from data.text import Tokenizer
from lora import merge, peft_settings, peft_tensors, plain_weights
from model import Model, ModelConfig, whole

# -------------------------------------------------------------------------------------- JSON files


def size_of(path: Path) -> int:
    """Bytes of a plain file. Raises InputError where there is none, a directory or a device."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: is {path.parent} the directory of a checkpoint?"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)})") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a file")
    return found.st_size


def reason(error: Exception) -> str:
    """What the operating system or a library complains about, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def read_json(path: str | Path) -> dict:
    """The object that a JSON file holds.

    Raises InputError for anything else: no file, no UTF-8, no JSON, a list, a number that is not
    finite, half a surrogate pair (which no output could show).
    """
    path = Path(path)
    size_of(path)

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({reason(error)})") from None

    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__} in place of an object")
    return value


def read_rows(path: str | Path) -> list[dict]:
    """The objects of a file of JSON lines; none where there is no file.

    A last line without its end is left out: its writer was killed. Raises InputError for others.
    """
    path = Path(path)
    if not path.exists():
        return []

    size_of(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines[:-1]]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({reason(error)})") from None
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is damaged (a line is not an object)")
    return rows


KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "an object",
    list: "a list",
}


def checked(
    values: dict,
    file: str | Path,
    name: str,
    kind: type,
    least: float | None = None,
    most: float | None = None,
    default=None,
):
    """values[name], as read from `file`: of this kind, and a number within these bounds.

    kind: a key of KINDS. default: what stands for a missing or null value; None means that it may
    not be missing. Raises InputError.
    """
    value = values.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise InputError(f"{file} lacks {name}")

    accepted = (int, float) if kind is float else kind
    is_right = isinstance(value, accepted)
    if isinstance(value, bool) and kind is not bool:
        is_right = False  # Python counts True as a whole number
    if not is_right:
        raise InputError(f"{file} has {name} = {shortened(value)}: it must be {KINDS[kind]}")

    too_low = least is not None and value < least
    too_high = most is not None and value > most
    if too_low or too_high:
        bounds = []
        if least is not None:
            bounds.append(f"at least {least:,}")
        if most is not None:
            bounds.append(f"at most {most:,}")
        raise InputError(
            f"{file} has {name} = {shortened(value)}: it must be {' and '.join(bounds)}"
        )
    return value


def shortened(value) -> str:
    """A value as a sentence can show it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_text(path: str | Path, text: str) -> None:
    """Atomic: a reader sees the old file or the new one, whole, even if this process is killed.

    Raises InputError where it cannot be written: a full disk, a place that takes no files.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")

    try:
        if path.exists() and not path.is_file():
            # a device would be replaced by the file
            raise InputError(f"{path} cannot be written: it is not a file")
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        discard(temporary)
        raise InputError(
            f"{path} cannot be written ({reason(error)}): "
            "make room, or choose a place that can be written"
        ) from None


def write_json(path: str | Path, value) -> None:
    """`write_text` of the value; raises ValueError for numbers that are not finite."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def discard(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    try:
        path.unlink()
    except OSError:
        pass


# ------------------------------------------------------------------------------------- config.json

MOST = 10_000_000  # of any size in config.json: beyond all models, and before all memory is gone
MOST_POSITIONS = 2**21  # the rotary tables, which no file vouches for, have a row for each


def from_hf(config: dict, file: str | Path = "config.json") -> ModelConfig:
    """Read config.json (named `file` in errors).

    Raises InputError for anything that this network would silently compute wrongly.
    """
    kind = config.get("model_type")
    if kind not in ("llama", "mistral"):
        raise InputError(
            f"{file} has model_type = {shortened(kind)}, which is not supported: "
            "use a llama or mistral checkpoint"
        )

    rope = checked(config, file, "rope_parameters", dict, default={})
    if not rope:
        rope = checked(config, file, "rope_scaling", dict, default={})
    rope = {"rope_theta": config.get("rope_theta"), **rope}

    # what this network has no code for
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
            raise InputError(
                f"{file} has {key} = {shortened(value)}: only {supported!r} is supported"
            )

    def size(name: str, default: int | None = None) -> int:
        return checked(config, file, name, int, 1, MOST, default)

    hidden = size("hidden_size")
    heads = size("num_attention_heads")
    kv_heads = size("num_key_value_heads", 8 if kind == "mistral" else heads)

    if heads % kv_heads:
        raise InputError(
            f"{file} has num_key_value_heads = {kv_heads}: "
            f"it must divide num_attention_heads = {heads}"
        )

    head_dim = size("head_dim", hidden // heads)
    if head_dim == 0 or head_dim % 2:
        raise InputError(
            f"{file} makes heads of width {head_dim}: rotary positions turn pairs, "
            "so head_dim (or hidden_size / num_attention_heads) must be even and at least 2"
        )

    return ModelConfig(
        vocab_size=size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=checked(
            config, file, "max_position_embeddings", int, 1, MOST_POSITIONS
        ),
        rope_theta=checked(rope, file, "rope_theta", float, 1, 1e15, default=10000.0),
        rms_norm_eps=checked(config, file, "rms_norm_eps", float, 1e-20, 1, default=1e-6),
        tie_word_embeddings=checked(config, file, "tie_word_embeddings", bool, default=False),
    )


def to_hf(config: ModelConfig, tokenizer: Tokenizer) -> dict:
    """The config.json that transformers opens as LlamaForCausalLM.

    With both spellings of the rotary settings, the older and the newer.
    """
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


def parameters_of(config: ModelConfig) -> int:
    """How many parameters a model of this shape has, without making it."""
    c = config
    attention = 2 * c.hidden_size * c.head_dim * (c.num_attention_heads + c.num_key_value_heads)
    mlp = 3 * c.hidden_size * c.intermediate_size
    norms = 2 * c.hidden_size
    vocabularies = 1 if c.tie_word_embeddings else 2
    embeddings = vocabularies * c.vocab_size * c.hidden_size
    return embeddings + c.num_hidden_layers * (attention + mlp + norms) + c.hidden_size


def parameters_at(path: str | Path) -> int:
    """How many parameters the model in a checkpoint directory has, by its config.json."""
    file = base_of(path) / "config.json"
    return parameters_of(from_hf(read_json(file), file))


# ------------------------------------------------------------------------------------ weights, read

# a tensor of these is converted to fp32 exactly; F64 is rounded
DTYPES = ("F32", "BF16", "F16", "F64")


def load_model(
    path: str | Path, device: torch.device | str = "cpu", compute_dtype: torch.dtype = torch.float32
) -> tuple[Model, Tokenizer]:
    """Open a checkpoint directory: fp32 master weights on `device`, and its tokenizer.

    A directory that holds a LoRA adapter in PEFT's layout opens as its base model with the adapter
    merged.
    Raises InputError, naming the file, for anything missing, truncated, corrupted, misshapen, not
    finite, or where tokenizer and model disagree. Nothing large is allocated before the sizes in
    config.json are found to fit the weight files.
    """
    path = Path(path)
    if is_adapter(path):
        return load_adapter(path, device, compute_dtype)
    config = from_hf(read_json(path / "config.json"), path / "config.json")

    tokenizer = Tokenizer.load(path)
    if tokenizer.size > config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.size} ids but the model only "
            f"{config.vocab_size} rows: they do not belong together"
        )

    files = weight_files(path)
    total = sum(size_of(file) for file in files)

    if parameters_of(config) > total:
        raise InputError(
            f"{path / 'config.json'} describes {parameters_of(config):,} parameters, for which "
            f"{files[0]}{' and the others' if len(files) > 1 else ''} with {total:,} bytes "
            "cannot be enough: it is truncated or of another model"
        )

    with torch.device("meta"):
        model = Model(config, compute_dtype)
    expected = dict(model.named_parameters())  # a tied head appears once, as the embedding
    loaded = {}
    for file in files:
        loaded |= read_tensors(file, expected, device)
    if missing := sorted(set(expected) - set(loaded)):
        raise InputError(f"{path}: {len(missing)} tensors are missing, first {missing[0]}")

    for key, tensor in loaded.items():
        module, _, name = key.rpartition(".")
        setattr(model.get_submodule(module), name, nn.Parameter(tensor))
    model.rebuild()
    model.live_vocab = tokenizer.size
    return model, tokenizer


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint, whether they exist or not."""
    index = path / "model.safetensors.index.json"
    whole_file = path / "model.safetensors"
    if os.path.lexists(index):
        places = checked(read_json(index), index, "weight_map", dict)
        for name in places.values():
            is_plain = isinstance(name, str) and Path(name).name == name
            if not (is_plain and name.endswith(".safetensors")):
                raise InputError(
                    f"{index} names {shortened(name)}: weights are safetensors files beside it"
                )
        if not places:
            raise InputError(f"{index} names no files")
        return [path / name for name in sorted(set(places.values()))]

    pickled = [*path.glob("*.bin"), *path.glob("*.pth"), *path.glob("*.pt")]
    if pickled and not os.path.lexists(whole_file):
        raise InputError(
            f"{path} holds its weights as pickle ({sorted(pickled)[0].name}), which may run code "
            "when it is opened and is not read here: convert it once, where you trust it, with "
            "transformers (AutoModelForCausalLM.from_pretrained(...).save_pretrained(NEW))"
        )
    return [whole_file]


def read_tensors(
    file: Path, expected: dict[str, Tensor], device: torch.device | str
) -> dict[str, Tensor]:
    """The tensors of one file in fp32. Raises InputError for any that the model cannot take."""
    found = {}
    try:
        with safe_open(file, framework="pt", device=str(device)) as f:
            for key in f.keys():
                if key in expected:
                    check_header(file, key, f.get_slice(key), expected[key])
                    found[key] = f.get_tensor(key).to(torch.float32)
                    check_finite(file, key, found[key])
                elif not (key == "lm_head.weight" or key.endswith("rotary_emb.inv_freq")):
                    # a tied head and the rotary table are copies of what is there anyway
                    raise InputError(f"{file}: unexpected tensor {key}")
    except FileNotFoundError:
        raise InputError(f"{file} does not exist: the checkpoint is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is truncated or corrupted ({reason(error)})") from None
    return found


def check_header(file: Path, key: str, header, like: Tensor) -> None:
    """Raise InputError for a tensor of another shape, or of numbers that are no weights."""
    shape = tuple(header.get_shape())
    if shape != tuple(like.shape):
        raise InputError(f"{file}: {key} has shape {shape}, config.json says {tuple(like.shape)}")
    if header.get_dtype() not in DTYPES:
        raise InputError(
            f"{file}: {key} is of dtype {header.get_dtype()}: only {', '.join(DTYPES)} are read"
        )


def check_finite(file: Path, key: str, tensor: Tensor) -> None:
    """Raise InputError for NaN or infinity, which both survive in the extremes."""
    low, high = torch.aminmax(tensor)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{file}: {key} holds NaN or infinite weights: its training diverged")


HASH_CHUNK = 1 << 24  # bytes in memory at a time


# what decides what a model computes and how text becomes its tokens, beside the weights
SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json")


def model_hash(path: str | Path) -> str:
    """Short sha256 of all that a checkpoint computes from: weights, config, tokenizer; of an
    adapter its base model's too.

    How a run names the models it came from, and an evaluation the one it measured. The files are
    read in pieces, and once in a process as long as they stay as they are.
    """
    files = []
    for folder in dict.fromkeys((Path(path), base_of(path))):
        files += sorted(folder.glob("*.safetensors"))
        files += [folder / name for name in SMALL_FILES if (folder / name).exists()]

    keys = []
    for file in files:
        size_of(file)
        found = file.stat()
        keys.append((str(file.resolve()), found.st_ino, found.st_mtime_ns, found.st_size))
    return _hash_of(tuple(keys))


@functools.cache  # a stage asks several times for the same files, which may be large
def _hash_of(files: tuple[tuple[str, int, int, int], ...]) -> str:
    """Of the content of all the files, one after another; a file is its path, inode, time, size."""
    digest = hashlib.sha256()
    for name, *_ in files:
        try:
            with open(name, "rb") as f:
                while chunk := f.read(HASH_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise InputError(f"{name} cannot be read ({reason(error)})") from None
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------------- weights, written

SHARD_BYTES = 5_000_000_000


def collected(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """Whole tensors, by name, in the host memory of the rank that keeps them.

    The others only take part in gathering what is sharded.
    """
    found = {}
    for name, tensor in tensors:
        full = whole(tensor.detach())
        if keep:
            found[name] = full.contiguous().cpu()
    return found


def save_model(path: str | Path, model: Model, tokenizer: Tokenizer, write: bool = True) -> None:
    """Write a directory that `transformers.AutoModelForCausalLM.from_pretrained` opens.

    An adapted model is written merged.
    All ranks call it, the one with `write` writes. Everything is written and synced beside the old
    files first and then renamed over them, config.json last: a full disk or a kill leaves the
    previous checkpoint as it was. Raises InputError where it cannot be written.
    """
    path = Path(path)
    staging = path / ".saving"
    tensors = collected(plain_weights(model), write)  # a tied head appears once
    if not write:
        return

    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        names = write_tensors(staging, tensors)
        tokenizer.save(staging)
        ends = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        write_json(staging / "generation_config.json", ends)
        write_json(staging / "config.json", to_hf(model.config, tokenizer))

        new = sorted(staging.iterdir(), key=lambda file: (file.name == "config.json", file.name))
        for file in new:
            sync(file)
        for file in new:
            os.replace(file, path / file.name)

        # the other layout's files would be opened in place of ours, or hashed with them
        for old in path.glob("model*.safetensors*"):
            if old.name not in names:
                old.unlink()
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"could not write the checkpoint {path} ({reason(error)}); "
            "what it held before is untouched"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_tensors(folder: Path, tensors: dict[str, Tensor]) -> list[str]:
    """Weights in one file, or in several of SHARD_BYTES with an index. Returns the files' names."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes

    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return ["model.safetensors"]

    names, places = [], {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        names.append(name)
        places |= dict.fromkeys(shard, name)

    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)
    return [*names, "model.safetensors.index.json"]


def sync(file: Path) -> None:
    """Wait until a file's content is on the disk."""
    with open(file, "rb") as f:
        os.fsync(f.fileno())


# ------------------------------------------------------------------------------------ LoRA adapters


def is_adapter(path: str | Path) -> bool:
    """Whether a directory holds an adapter in PEFT's layout, and no whole model."""
    path = Path(path)
    if not os.path.lexists(path / "adapter_config.json"):
        return False
    names = ("model.safetensors", "model.safetensors.index.json")
    return not any(os.path.lexists(path / name) for name in names)


def base_of(path: str | Path) -> Path:
    """The directory with a checkpoint's config.json and tokenizer: of an adapter its base model's.

    Raises InputError where that is no directory of a whole model.
    """
    path = Path(path)
    if not is_adapter(path):
        return path

    file = path / "adapter_config.json"
    base = Path(checked(read_json(file), file, "base_model_name_or_path", str))
    if not (base / "config.json").exists():
        raise InputError(
            f"{file} names {shortened(str(base))} as its base model, which is no directory of a "
            "checkpoint here: put the base model's directory there"
        )
    if is_adapter(base):
        raise InputError(f"{file} names {base} as its base model, which is an adapter itself")
    return base


def load_adapter(
    path: Path, device: torch.device | str, compute_dtype: torch.dtype
) -> tuple[Model, Tokenizer]:
    """An adapter's base model with the adapter merged, and the base's tokenizer.

    Raises InputError for what `load_model` refuses, for an adapter that is not plain LoRA, and for
    one of another model.
    """
    base = base_of(path)
    config, file = path / "adapter_config.json", path / "adapter_model.safetensors"
    size_of(file)
    tensors = {}
    try:
        with safe_open(file, framework="pt", device=str(device)) as f:
            trained_on = (f.metadata() or {}).get("base_weights")
            for key in f.keys():
                if f.get_slice(key).get_dtype() not in DTYPES:
                    raise InputError(f"{file}: {key} is no tensor of {', '.join(DTYPES)}")
                tensors[key] = f.get_tensor(key).to(torch.float32)
                check_finite(file, key, tensors[key])
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is truncated or corrupted ({reason(error)})") from None

    if trained_on not in (None, model_hash(base)):
        raise InputError(
            f"{base} has other weights than the base model that the adapter in {path} was trained "
            f"on: put that model there, or its place into {config}"
        )
    model, tokenizer = load_model(base, device, compute_dtype)
    merge(model, read_json(config), tensors, (str(config), str(file)))
    return model, tokenizer


def save_adapter(path: str | Path, model: Model, base: str, write: bool = True) -> None:
    """Write what `peft.PeftModel.from_pretrained(base model, path)` opens: the adapter alone.

    base: the directory that the model was opened from. All ranks call it, the one with `write`
    writes. Raises InputError where it cannot be written.
    """
    path = Path(path)
    file = path / "adapter_model.safetensors"
    tensors = collected(peft_tensors(model), write)
    if not write:
        return

    try:
        path.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        metadata = {"format": "pt", "base_weights": model_hash(base)}
        save_file(tensors, temporary, metadata=metadata)
        sync(temporary)
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"could not write {file} ({reason(error)})") from None
    write_json(path / "adapter_config.json", peft_settings(model, base))
