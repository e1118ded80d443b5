"""What a Hugging Face checkpoint is of: config.json and the tensors' names, for six families.

    from_hf(config)         config.json -> ModelConfig, or a sentence on what is not supported
    to_hf(config, ...)      the way back
    stored_places(...)      which parameter, or part of one, each tensor of a file is

All families are one network (model.py) that differs in a few parts. To add a family: its name in
FAMILIES, its parts in `parts_of`, and its tensors in `stored_places` where they have other names.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.problems import InputError
from data.text import Tokenizer
from lora import base_of
from model import ACTIVATIONS, ModelConfig
from runs.files import checked, read_json, shortened

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
    positions, limited_by = usable_positions(config, family, file)
    eps, usual_eps = ("layer_norm_eps", 1e-5) if family in LIKE_NEOX else ("rms_norm_eps", 1e-6)
    return ModelConfig(
        vocab_size=size("vocab_size"),
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=positions,
        limited_by=limited_by,
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

    if config.get("is_causal") is False:
        raise InputError(
            f"{file} has is_causal = False, and here no token sees those after it: "
            "use a model that writes from left to right"
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
    if family in LIKE_NEOX and config.get("head_dim") not in (None, head_dim):
        raise InputError(
            f"{file} has head_dim = {shortened(config['head_dim'])}, where heads are {head_dim} "
            f"wide: a {family} model with other heads is not supported"
        )
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


def usable_positions(config: dict, family: str, file: str | Path) -> tuple[int, str]:
    """How long a text may be, and what limits it if that is not max_position_embeddings.

    Longer texts are refused where they are sampled or trained on. Up to its window a sliding
    attention is a full one, and up to the original length dynamic rotary positions are the default
    ones. Beyond, this network would compute something else.
    """
    positions = checked(config, file, "max_position_embeddings", int, 1, MOST_POSITIONS)
    limited_by = ""
    rope = rope_settings(config, file)
    if rope.get("rope_type", rope.get("type")) == "dynamic":
        original = checked(
            rope, file, "original_max_position_embeddings", int, 1, MOST_POSITIONS, positions
        )
        if original < positions:
            positions, limited_by = original, "the original length of its dynamic rope"

    # In Qwen's files a window is named even where it is not used; in Mistral's, no key means 4096.
    has_window = config.get("sliding_window", family == "mistral") not in (None, False)
    if family in ("qwen2", "qwen3"):
        has_window = checked(config, file, "use_sliding_window", bool, default=False)
    if has_window:
        window = checked(config, file, "sliding_window", int, 1, MOST, 4096)
        if window < positions:
            positions, limited_by = window, "its sliding window"
    elif "sliding_attention" in (config.get("layer_types") or []):
        raise InputError(f"{file} has sliding_attention in layer_types but no sliding_window")
    return positions, limited_by


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
    newer = checked(config, file, "rope_parameters", dict, default={})
    older = checked(config, file, "rope_scaling", dict, default={})
    kinds = [one.get("rope_type", one.get("type", "default")) for one in (newer, older) if one]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise InputError(
            f"{file} has {shortened(kinds[0])} in rope_parameters and {shortened(kinds[1])} in "
            "rope_scaling: leave the wrong one out"
        )
    for key in newer.keys() & older.keys() & ROPE_KEYS:
        if None not in (newer[key], older[key]) and newer[key] != older[key]:
            raise InputError(
                f"{file} has {key} = {shortened(newer[key])} in rope_parameters and "
                f"{shortened(older[key])} in rope_scaling: leave the wrong one out"
            )
    rope = older | {key: value for key, value in newer.items() if value is not None}
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
    for key, value in beside.items():
        if None not in (value, rope.get(key)) and value != rope[key]:
            raise InputError(
                f"{file} has {key} twice, {shortened(value)} and {shortened(rope[key])}: "
                "leave the wrong one out"
            )
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
            "only default, linear, llama3 and dynamic are supported, so use a model of these"
        )

    scaling = {"rope_type": kind, "factor": checked(rope, file, "factor", float, 1e-3, 1e6)}
    if kind == "linear":
        return scaling
    for name in ("low_freq_factor", "high_freq_factor"):
        scaling[name] = checked(rope, file, name, float, 1e-3, 1e6)
    if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise InputError(f"{file}: high_freq_factor must be greater than low_freq_factor")
    original = "original_max_position_embeddings"
    usual = checked(config, file, original, int, 1, default=config["max_position_embeddings"])
    twice = None not in (config.get(original), rope.get(original))
    if twice and rope[original] != usual:
        raise InputError(
            f"{file} has {original} twice, {usual} and {rope[original]}: leave the wrong one out"
        )
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
        hf.setdefault("eos_token_id", tokenizer.eos_id)  # else transformers takes the family's
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


def config_at(path: str | Path) -> ModelConfig:
    """Of the model in a checkpoint directory; of an adapter that of its base."""
    file = base_of(path) / "config.json"
    return from_hf(read_json(file), file)


def parameters_at(path: str | Path) -> int:
    """How many parameters the model in a checkpoint directory has, by its config.json."""
    return parameters_of(config_at(path))


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
