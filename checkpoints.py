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
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.problems import InputError
from data.text import Tokenizer
from model import ACTIVATIONS, Model, ModelConfig, whole

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

FAMILIES = ("gpt_neox", "llama", "mistral", "qwen2", "qwen3", "stablelm")
LIKE_NEOX = ("gpt_neox", "stablelm")  # layer norms, a part of each head turns, no key head_dim


def from_hf(config: dict, file: str | Path = "config.json") -> ModelConfig:
    """Read config.json (named `file` in errors). It alone says which family a checkpoint is of.

    A missing key means what transformers' class for the family takes it for: files are often older
    than a key. Raises InputError for anything that this network would silently compute wrongly.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"{file} has model_type = {shortened(family)}, which is not supported: "
            f"use a checkpoint of one of these: {', '.join(FAMILIES)}"
        )
    refuse_others(config, file)

    def size(name: str, default: int | None = None) -> int:
        return checked(config, file, name, int, 1, MOST, default)

    heads, kv_heads, head_dim = heads_of(config, family, file)
    eps, usual_eps = ("layer_norm_eps", 1e-5) if family in LIKE_NEOX else ("rms_norm_eps", 1e-6)
    return ModelConfig(
        vocab_size=size("vocab_size"),
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=usable_positions(config, family, file),
        rms_norm_eps=checked(config, file, eps, float, 1e-20, 1, default=usual_eps),
        tie_word_embeddings=checked(config, file, "tie_word_embeddings", bool, default=False),
        activation=activation_of(config, family, file),
        **parts_of(config, family, file),
        **rotary_of(config, family, head_dim, file),
        published=config,
    )


def refuse_others(config: dict, file: str | Path) -> None:
    """Raise InputError for settings that this network has no code for."""
    if config.get("quantization_config") is not None:
        raise InputError(
            f"{file} has quantization_config = {shortened(config['quantization_config'])}: "
            "quantised weights are not read; use the checkpoint that they were made from"
        )

    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(key) not in (None, 0, 1):
            raise InputError(
                f"{file} has {key} = {shortened(config[key])}: mixtures of experts are not "
                "supported; use a dense model"
            )

    for key in ("rope_interleaved", "no_rope_layers"):
        if config.get(key):
            raise InputError(
                f"{file} has {key} = {shortened(config[key])}, which is not supported: "
                "use a model that rotates the two halves of every layer's heads"
            )

    for kind in checked(config, file, "layer_types", list, default=[]):
        if kind not in ("full_attention", "sliding_attention"):
            raise InputError(
                f"{file} has {shortened(kind)} in layer_types: only full_attention is supported, "
                "and sliding_attention within its window"
            )


def heads_of(config: dict, family: str, file: str | Path) -> tuple[int, int, int]:
    """How many query heads there are, how many key-value heads, and how wide each is."""

    def size(name: str, default: int | None = None) -> int:
        return checked(config, file, name, int, 1, MOST, default)

    heads = size("num_attention_heads")
    kv_heads = heads
    if family != "gpt_neox":
        usual = {"mistral": 8, "qwen2": 32, "qwen3": 32, "stablelm": 32}.get(family, heads)
        is_null = "num_key_value_heads" in config  # if it is a number, the default does not matter
        kv_heads = size("num_key_value_heads", heads if is_null else usual)
    if heads % kv_heads:
        raise InputError(
            f"{file} has num_key_value_heads = {kv_heads}: "
            f"it must divide num_attention_heads = {heads}"
        )

    head_dim = size("hidden_size") // heads
    if family == "qwen3" and "head_dim" not in config:
        head_dim = 128
    if family not in LIKE_NEOX and config.get("head_dim") is not None:
        head_dim = size("head_dim")
    if head_dim == 0 or head_dim % 2:
        raise InputError(
            f"{file} makes heads of width {head_dim}: rotary positions turn pairs, "
            "so head_dim (or hidden_size / num_attention_heads) must be even and at least 2"
        )
    return heads, kv_heads, head_dim


def usable_positions(config: dict, family: str, file: str | Path) -> int:
    """How long a text may be. Longer ones are refused where they are sampled or trained on.

    Up to its window a sliding attention is a full one, and up to the original length dynamic
    rotary positions are the default ones. Beyond, this network would compute something else.
    """
    positions = checked(config, file, "max_position_embeddings", int, 1, MOST_POSITIONS)
    rope = rope_settings(config, file)
    if rope.get("rope_type", rope.get("type")) == "dynamic":
        original = checked(
            rope, file, "original_max_position_embeddings", int, 1, MOST_POSITIONS, positions
        )
        positions = min(positions, original)

    # In Qwen's files a window is named even where it is not used; in Mistral's, no key means 4096.
    has_window = config.get("sliding_window", family == "mistral") not in (None, False)
    if family in ("qwen2", "qwen3"):
        has_window = checked(config, file, "use_sliding_window", bool, default=False)
    if has_window:
        window = checked(config, file, "sliding_window", int, 1, MOST, 4096)
        positions = min(positions, window)
    elif "sliding_attention" in (config.get("layer_types") or []):
        raise InputError(f"{file} has sliding_attention in layer_types but no sliding_window")
    return positions


def activation_of(config: dict, family: str, file: str | Path) -> str:
    """The MLP's non-linearity."""
    usual = "gelu" if family == "gpt_neox" else "silu"
    name = checked(config, file, "hidden_act", str, default=usual)
    if name not in ACTIVATIONS:
        raise InputError(
            f"{file} has hidden_act = {shortened(name)}: "
            f"only {', '.join(ACTIVATIONS)} are supported"
        )
    return name


def parts_of(config: dict, family: str, file: str | Path) -> dict:
    """The parts in which the family's blocks differ from a Llama's, as fields of ModelConfig.

    Some stand in config.json, some the model_type implies.
    """

    def flag(name: str, default: bool = False) -> bool:
        return checked(config, file, name, bool, default=default)

    if family == "gpt_neox":
        biased = flag("attention_bias", True)
        return {
            "norm": "layer",
            "norm_bias": True,
            "qkv_bias": biased,
            "output_bias": biased,
            "gated_mlp": False,
            "mlp_bias": True,
            "parallel": "two norms" if flag("use_parallel_residual", True) else "",
        }
    if family == "stablelm":
        return {
            "norm": "layer",
            "norm_bias": flag("use_norm_bias", True),
            "qk_norm": "layer" if flag("qk_layernorm") else "",
            "qkv_bias": flag("use_qkv_bias"),
            "parallel": "one norm" if flag("use_parallel_residual") else "",
        }
    if family == "qwen2":
        return {"qkv_bias": True}
    if family == "qwen3":
        biased = flag("attention_bias")
        return {"qk_norm": "rms", "qkv_bias": biased, "output_bias": biased}
    if family == "llama":
        biased = flag("attention_bias")
        return {"qkv_bias": biased, "output_bias": biased, "mlp_bias": flag("mlp_bias")}
    return {}  # mistral


ROPE_KEYS = {
    "rope_type",
    "type",  # the older name of rope_type
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
}


def rope_settings(config: dict, file: str | Path) -> dict:
    """The object of rotary settings: rope_parameters, or in older files rope_scaling, or none."""
    rope = checked(config, file, "rope_parameters", dict, default={})
    if not rope:
        rope = checked(config, file, "rope_scaling", dict, default={})
    for key, value in rope.items():
        if key not in ROPE_KEYS and value is not None:
            raise InputError(
                f"{file} has {key} = {shortened(value)} among its rotary settings, "
                "which is not supported: use a model without it"
            )
    return rope


def rotary_of(config: dict, family: str, head_dim: int, file: str | Path) -> dict:
    """The rotary positions, as fields of ModelConfig, from any of three spellings.

    rope_parameters has everything; else the base and the fraction stand beside rope_scaling, and
    GPT-NeoX has names of its own for them.
    """
    base, part = "rope_theta", "partial_rotary_factor"
    if family == "gpt_neox":
        base, part = "rotary_emb_base", "rotary_pct"
    rope = rope_settings(config, file)
    beside = {"rope_theta": config.get(base), "partial_rotary_factor": config.get(part)}
    rope = beside | rope

    theta = checked(rope, file, "rope_theta", float, 1, 1e15, default=10000.0)
    usual = 0.25 if family in LIKE_NEOX else 1.0
    fraction = checked(rope, file, "partial_rotary_factor", float, 0, 1, default=usual)
    if family not in LIKE_NEOX and fraction != 1:
        raise InputError(
            f"{file} has partial_rotary_factor = {fraction}: a {family} model turns whole heads"
        )
    width = int(head_dim * fraction)
    if width < 2 or width % 2:
        raise InputError(
            f"{file} makes {width} of {head_dim} numbers of a head turn ({part} = {fraction}): "
            "rotary positions turn pairs, so it must be even and at least 2"
        )
    scaling = rope_scaling_of(config, rope, file)
    return {"rope_theta": theta, "rotary_fraction": fraction, "rope_scaling": scaling}


def rope_scaling_of(config: dict, rope: dict, file: str | Path) -> dict | None:
    """How positions are stretched beyond the length of the first training, if they are."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "dynamic"):  # for dynamic see usable_positions
        return None
    if kind not in ("linear", "llama3"):
        raise InputError(
            f"{file} has rope_type = {shortened(kind)}: "
            "only default, linear, llama3 and dynamic are supported"
        )

    scaling = {"rope_type": kind, "factor": checked(rope, file, "factor", float, 1e-3, 1e6)}
    if kind == "linear":
        return scaling
    for name in ("low_freq_factor", "high_freq_factor"):
        scaling[name] = checked(rope, file, name, float, 1e-3, 1e6)
    if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise InputError(f"{file}: high_freq_factor must be greater than low_freq_factor")
    original = "original_max_position_embeddings"
    usual = config["max_position_embeddings"]
    scaling[original] = checked(rope, file, original, int, 1, MOST_POSITIONS, usual)
    return scaling


def to_hf(config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32) -> dict:
    """The config.json that transformers opens: the one that was read, or a Llama's of our own.

    With both spellings of the rotary settings, the older and the newer: versions of transformers
    that know only one of them take a model without it for one with the default settings.
    """
    dtype_name = str(dtype).removeprefix("torch.")
    if config.published:
        hf = config.published | {"torch_dtype": dtype_name, "dtype": dtype_name}
        for key, value in rope_spellings(config).items():
            if hf.get(key) is None:
                hf[key] = value
    else:
        hf = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": config.max_position_embeddings,
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.rms_norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "torch_dtype": dtype_name,
            "dtype": dtype_name,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
        }
    assert from_hf(hf) == config, "config.json would describe another model"
    return hf


def rope_spellings(config: ModelConfig) -> dict:
    """The rotary settings of a published config.json in the newer and the older spelling."""
    published = config.published
    rope = dict(rope_settings(published, "config.json"))
    kind = rope.pop("type", "default")
    kind = rope.pop("rope_type", kind)
    rope.pop("rope_theta", None)
    rope.pop("partial_rotary_factor", None)

    newer = {"rope_type": kind, "rope_theta": config.rope_theta, **rope}
    base, part = "rope_theta", "partial_rotary_factor"
    if published["model_type"] == "gpt_neox":
        base, part = "rotary_emb_base", "rotary_pct"
    older = {
        base: config.rope_theta,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **rope},
    }
    if published["model_type"] in LIKE_NEOX:
        newer["partial_rotary_factor"] = config.rotary_fraction
        older[part] = config.rotary_fraction
    return {"rope_parameters": newer, **older}


def parameters_of(config: ModelConfig) -> int:
    """How many parameters a model of this shape has, without making it."""
    c = config
    width, kv_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim

    attention = 2 * c.hidden_size * (width + kv_width)
    if c.qkv_bias:
        attention += width + 2 * kv_width
    if c.output_bias:
        attention += c.hidden_size
    if c.qk_norm == "rms":
        attention += 2 * c.head_dim
    if c.qk_norm == "layer":
        attention += width + kv_width

    ways_in = 2 if c.gated_mlp else 1
    mlp = (ways_in + 1) * c.hidden_size * c.intermediate_size
    if c.mlp_bias:
        mlp += ways_in * c.intermediate_size + c.hidden_size

    norm = 2 * c.hidden_size if c.norm_bias else c.hidden_size
    norms = norm if c.parallel == "one norm" else 2 * norm
    vocabularies = 1 if c.tie_word_embeddings else 2
    embeddings = vocabularies * c.vocab_size * c.hidden_size
    return embeddings + c.num_hidden_layers * (attention + mlp + norms) + norm


def parameters_at(path: str | Path) -> int:
    """How many parameters the model in a checkpoint directory has, by its config.json."""
    file = Path(path) / "config.json"
    return parameters_of(from_hf(read_json(file), file))


# ----------------------------------------------------------------------------------- tensors' names
# A Llama's files name tensors as we do. Two families need more: GPT-NeoX has other names and one
# matrix for queries, keys and values; StableLM has a tensor for each head's norm.

NEOX_NAMES = {
    "model.embed_tokens.": "gpt_neox.embed_in.",
    "model.norm.": "gpt_neox.final_layer_norm.",
    "model.layers.": "gpt_neox.layers.",
    "lm_head.": "embed_out.",
    "self_attn.q_proj.": "attention.query_key_value.",
    "self_attn.k_proj.": "attention.query_key_value.",
    "self_attn.v_proj.": "attention.query_key_value.",
    "self_attn.o_proj.": "attention.dense.",
    "mlp.up_proj.": "mlp.dense_h_to_4h.",
    "mlp.down_proj.": "mlp.dense_4h_to_h.",
}

# Known to stand in files, and to be copies of what is there anyway: tables of rotary frequencies
# and, in older GPT-NeoX files, masks.
HARMLESS = (
    ".rotary_emb.inv_freq",
    ".attention.masked_bias",
    ".attention.bias",
)


class Place(NamedTuple):
    """A parameter, or the part of one, that a tensor of a file holds."""

    parameter: str
    third: int | None = None  # of GPT-NeoX's query_key_value: 0, 1 and 2 for q, k and v
    head: int | None = None  # of StableLM's norms


def stored_places(config: ModelConfig, names: Iterable[str]) -> dict[str, list[Place]]:
    """For each tensor that a checkpoint's files have, the places of these parameters in it."""
    family = config.published.get("model_type", "llama")
    heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
    places: dict[str, list[Place]] = {}
    for name in names:
        part = name.split(".")[-2]
        if family == "gpt_neox":
            stored = name
            for ours, theirs in NEOX_NAMES.items():
                stored = stored.replace(ours, theirs)
            third = {"q_proj": 0, "k_proj": 1, "v_proj": 2}.get(part)
            places.setdefault(stored, []).append(Place(name, third=third))
        elif config.qk_norm == "layer" and part in heads:
            norms = name.removesuffix(".weight").replace("_norm", "_layernorm") + ".norms"
            for head in range(heads[part]):
                places[f"{norms}.{head}.weight"] = [Place(name, head=head)]
        else:
            places[name] = [Place(name)]
    return places


def stored_shape(config: ModelConfig, places: list[Place], shapes: dict[str, tuple]) -> tuple:
    """The shape of a file's tensor that holds these places. shapes: of the parameters."""
    shape = shapes[places[0].parameter]
    if places[0].head is not None:
        return (config.head_dim,)
    return (len(places) * shape[0], *shape[1:])


def part_of_file(config: ModelConfig, stored: Tensor, place: Place) -> Tensor:
    """A view of the part of a file's tensor that the place is for."""
    if place.third is None:
        return stored
    # by head: each one's rows of q, k and v stand together
    by_head = stored.view(config.num_attention_heads, 3, config.head_dim, *stored.shape[1:])
    return by_head[:, place.third]


def part_of_model(config: ModelConfig, parameter: Tensor, place: Place) -> Tensor:
    """A view of the part of a parameter that the place is, shaped as `part_of_file` is."""
    if place.head is not None:
        return parameter.view(-1, config.head_dim)[place.head]
    if place.third is not None:
        return parameter.view(-1, config.head_dim, *parameter.shape[1:])
    return parameter


# ------------------------------------------------------------------------------------ weights, read

# a tensor of these is converted to fp32 exactly; F64 is rounded
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}


def load_model(
    path: str | Path, device: torch.device | str = "cpu", compute_dtype: torch.dtype = torch.float32
) -> tuple[Model, Tokenizer]:
    """Open a checkpoint directory: fp32 master weights on `device`, and its tokenizer.

    Raises InputError, naming the file, for anything missing, truncated, corrupted, misshapen, not
    finite, or where tokenizer and model disagree. Nothing large is allocated before all files are
    found to hold what config.json says; then tensors are read one at a time, so that memory never
    holds more than the model and one of them.
    """
    path = Path(path)
    config = from_hf(read_json(path / "config.json"), path / "config.json")

    tokenizer = Tokenizer.load(path)
    if tokenizer.size > config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.size} ids but the model only "
            f"{config.vocab_size} rows: they do not belong together"
        )

    places = weight_files(path)
    files = list(places)
    total = sum(size_of(file) for file in files)
    if parameters_of(config) > total:
        raise InputError(
            f"{path / 'config.json'} describes {parameters_of(config):,} parameters, for which "
            f"{files[0]}{' and the others' if len(files) > 1 else ''} with {total:,} bytes "
            "cannot be enough: it is truncated or of another model"
        )

    with torch.device("meta"):
        model = Model(config, compute_dtype)
    config.stored_dtype = check_files(path, places, model)

    model.to_empty(device=device).rebuild()  # ties the head anew, which to_empty undoes
    with torch.no_grad():
        for file in files:
            fill(model, file, device)
    model.live_vocab = tokenizer.size
    return model, tokenizer


def weight_files(path: Path) -> dict[Path, set[str] | None]:
    """The safetensors files that make up a checkpoint, whether they exist or not.

    With the tensors that an index expects in each; None where there is no index.
    """
    index = path / "model.safetensors.index.json"
    whole_file = path / "model.safetensors"
    if os.path.lexists(index):
        places = checked(read_json(index), index, "weight_map", dict)
        if not places:
            raise InputError(f"{index} names no files")
        files: dict[Path, set[str] | None] = {}
        for tensor, name in sorted(places.items(), key=lambda item: str(item[1])):
            is_plain = isinstance(name, str) and Path(name).name == name
            if not (is_plain and name.endswith(".safetensors")):
                raise InputError(
                    f"{index} names {shortened(name)}: weights are safetensors files beside it"
                )
            files.setdefault(path / name, set()).add(tensor)
        return files

    pickled = [*path.glob("*.bin"), *path.glob("*.pth"), *path.glob("*.pt")]
    if pickled and not os.path.lexists(whole_file):
        raise InputError(
            f"{path} holds its weights as pickle ({sorted(pickled)[0].name}), which may run code "
            "when it is opened and is not read here: convert it once, where you trust it, with "
            "transformers (AutoModelForCausalLM.from_pretrained(...).save_pretrained(NEW))"
        )
    return {whole_file: None}


@contextmanager
def opened(file: Path, device: torch.device | str = "cpu"):
    """A safetensors file. Raises InputError for one that is not there or is damaged."""
    try:
        with safe_open(file, framework="pt", device=str(device)) as f:
            yield f
    except FileNotFoundError:
        raise InputError(f"{file} does not exist: the checkpoint is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is truncated or corrupted ({reason(error)})") from None


def check_files(path: Path, files: dict[Path, set[str] | None], model: Model) -> str:
    """Raise InputError unless the files hold the model's parameters: all, once, and nothing else.

    Returns the dtype that all of them have, or float32. Reads headers only.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    places = stored_places(model.config, shapes)  # a tied head stands here once, as the embedding
    found: dict[str, Path] = {}
    dtypes = set()
    for file, expected in files.items():
        with opened(file) as f:
            keys = set(f.keys())
            for key in sorted(keys & set(places)):
                if key in found:
                    raise InputError(f"{file}: {key} stands in {found[key].name} too")
                found[key] = file
                header = f.get_slice(key)
                check_header(file, key, header, stored_shape(model.config, places[key], shapes))
                dtypes.add(DTYPES[header.get_dtype()])
        for key in sorted(keys - set(places)):
            if not is_harmless(key, model.config):
                raise InputError(
                    f"{file}: unexpected tensor {key}: config.json describes a model without it"
                )
        if expected is not None and (lost := sorted(expected - keys)):
            raise InputError(f"{file} lacks {lost[0]}, which the index says is in it")

    if missing := sorted(set(places) - set(found)):
        raise InputError(
            f"{path}: {len(missing)} tensors are missing, first {missing[0]}: "
            "the checkpoint is incomplete, or config.json is of another model"
        )
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def is_harmless(key: str, config: ModelConfig) -> bool:
    """Whether a tensor that is no parameter may stand in a file: it is a copy of what is known."""
    if key in ("lm_head.weight", "embed_out.weight"):
        return config.tie_word_embeddings
    return key.endswith(HARMLESS)


def check_header(file: Path, key: str, header, expected: tuple) -> None:
    """Raise InputError for a tensor of another shape, or of numbers that are no weights."""
    shape = tuple(header.get_shape())
    if shape != expected:
        raise InputError(f"{file}: {key} has shape {shape}, config.json says {expected}")
    if header.get_dtype() not in DTYPES:
        raise InputError(
            f"{file}: {key} is of dtype {header.get_dtype()}: only {', '.join(DTYPES)} are read"
        )


def fill(model: Model, file: Path, device: torch.device | str) -> None:
    """Copy a checked file's tensors to their places. Raises InputError for one not finite."""
    parameters = dict(model.named_parameters())
    places = stored_places(model.config, parameters)
    with opened(file, device) as f:
        for key in sorted(set(f.keys()) & set(places)):
            stored = f.get_tensor(key)
            check_finite(file, key, stored)
            for place in places[key]:
                target = part_of_model(model.config, parameters[place.parameter], place)
                target.copy_(part_of_file(model.config, stored, place))


def check_finite(file: Path, key: str, tensor: Tensor) -> None:
    """Raise InputError for what is NaN or infinite in fp32: both survive in the extremes."""
    low, high = torch.aminmax(tensor)
    if not (math.isfinite(low.float()) and math.isfinite(high.float())):
        raise InputError(f"{file}: {key} holds NaN or infinite weights: its training diverged")


HASH_CHUNK = 1 << 24  # bytes in memory at a time


# what decides what a model computes and how text becomes its tokens, beside the weights
SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def model_hash(path: str | Path) -> str:
    """Short sha256 of all that a checkpoint computes from: weights, config, tokenizer.

    How a run names the models it came from, and an evaluation the one it measured. The files are
    read in pieces, and once in a process as long as they stay as they are.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    for name in SMALL_FILES:
        if (Path(path) / name).exists():
            files.append(Path(path) / name)

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


def collected(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors in the memory of the rank that keeps them.

    The others only take part in gathering what is sharded.
    """
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.contiguous().cpu()
    return found


def save_model(path: str | Path, model: Model, tokenizer: Tokenizer, write: bool = True) -> None:
    """Write a directory that `transformers.AutoModelForCausalLM.from_pretrained` opens.

    The family, its config.json and the tokenizer's files stay those of the checkpoint that was
    read; for the dtype see `dtype_to_store`. All ranks call it, the one with `write` writes.
    Everything is written and synced beside the old files first and then renamed over them,
    config.json last: a full disk or a kill leaves the previous checkpoint as it was. Raises
    InputError where it cannot be written.
    """
    path = Path(path)
    staging = path / ".saving"
    tensors = collected(dict(model.named_parameters()), write)  # a tied head appears once
    if not write:
        return

    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        dtype = dtype_to_store(model, tensors)
        names = write_tensors(staging, stored_tensors(model.config, tensors, dtype))
        tokenizer.save(staging)
        if not (staging / "generation_config.json").exists():
            ends = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
            write_json(staging / "generation_config.json", ends)
        write_json(staging / "config.json", to_hf(model.config, tokenizer, dtype))

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


def dtype_to_store(model: Model, tensors: dict[str, Tensor]) -> torch.dtype:
    """The dtype in which a model's weights are written: that of the files they were read from.

    But weights trained since are no longer numbers of 16 bits, and rounding could undo a small
    step. They are written in the model's compute dtype, in which every use of them rounds them
    anyway: what is opened again computes what was measured.
    """
    stored = getattr(torch, model.config.stored_dtype)
    if stored == torch.float32:
        return stored
    for tensor in tensors.values():
        if not torch.equal(tensor, tensor.to(stored).to(tensor.dtype)):
            return model.compute_dtype
    return stored


def stored_tensors(
    config: ModelConfig, tensors: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of a checkpoint's files, from the parameters: the inverse of `fill`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = {}
    for key, places in stored_places(config, tensors).items():
        if places == [Place(key)]:
            found[key] = tensors[key].to(dtype)
            continue
        found[key] = torch.empty(stored_shape(config, places, shapes), dtype=dtype)
        for place in places:
            part = part_of_model(config, tensors[place.parameter], place)
            part_of_file(config, found[key], place).copy_(part)
    return found


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
