"""Families of real models: each against transformers' class for it, in, out and in between.

Tiny random models; tests/test_real_model.py has a real one.
"""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from checkpoints import hf
from checkpoints.families import FAMILIES, from_hf, parameters_of
from checkpoints.hf import load_model, save_model
from conftest import EOS_SET, anonymous_memory
from data.batches import Example, collate
from data.problems import InputError
from model import Model, completion_logps, inverse_frequencies, rotate
from sampler import Sampler
from training import refuse_overlong

ROOT = Path(__file__).parents[1]

# transformers takes seconds to import: one process does it
pytestmark = pytest.mark.xdist_group("transformers")

TOKENS = torch.arange(2, 98).view(2, 48)
PROMPTS = [list(range(9, 9 + n)) for n in (3, 17, 1)]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def rope(kind: str = "default", theta: float = 10000.0, **numbers) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **numbers}}


LLAMA3 = rope(
    "llama3",
    5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
CASES = {
    "llama": {},
    "llama, heads wider than the model, tied": {"head_dim": 12, "tie_word_embeddings": True},
    "llama with biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "llama, rope linear": {**rope("linear", 1e5, factor=4.0), "rms_norm_eps": 1e-3},
    "llama, rope llama3": {**LLAMA3, "num_key_value_heads": 1, "head_dim": 16},
    "llama, rope dynamic": rope("dynamic", factor=2.0),
    "llama, gelu": {"hidden_act": "gelu"},
    "mistral": {"sliding_window": None},
    "mistral, window of the longest text": {"sliding_window": 48, "head_dim": 16},
    "qwen2": {},
    "qwen2, tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "qwen2, window of the longest text": {
        "use_sliding_window": True,
        "sliding_window": 48,
        "max_window_layers": 1,
    },
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3 with biases": {"head_dim": 8, "attention_bias": True},
    "gpt_neox": {},
    "gpt_neox, attention then MLP": {"use_parallel_residual": False},
    "gpt_neox without biases of attention": {"attention_bias": False, "hidden_act": "gelu_new"},
    "gpt_neox, whole heads turn, tied": {
        **rope(partial_rotary_factor=1.0),
        "tie_word_embeddings": True,
        "layer_norm_eps": 1e-3,
    },
    "gpt_neox, rope linear": {
        **rope("linear", factor=2.0, partial_rotary_factor=0.5),
        "hidden_act": "gelu_fast",
    },
    "stablelm": {},
    "stablelm with biases": {"use_qkv_bias": True}
    | rope("default", 1e6, partial_rotary_factor=0.5),
    "stablelm, norms of heads": {"qk_layernorm": True, "layer_norm_eps": 1e-3},
    "stablelm, attention beside MLP": {
        "use_parallel_residual": True,
        "qk_layernorm": True,
        "tie_word_embeddings": True,
    },
}


def family_of(case: str) -> str:
    return case.replace(",", " ").split()[0]


def theirs_of(case: str, **changes):
    """A random model of transformers: biases not zero, norms not one, and logits that differ."""
    transformers = pytest.importorskip("transformers")
    settings = SIZES | CASES[case] | changes
    config = transformers.AutoConfig.for_model(family_of(case), **settings)
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            is_norm = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + 0.3 * torch.randn(p.shape) if is_norm else 0.2 * torch.randn(p.shape))
    net.generation_config.eos_token_id = EOS_SET
    return net


def logits_of(model: Model) -> torch.Tensor:
    return F.linear(model(TOKENS), model.head_weight).float()


def opened_by_transformers(path: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(path)


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("case", CASES)
def test_a_family_is_transformers(case, tokenizer, tmp_path):
    theirs = theirs_of(case)
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    ours, _ = load_model(tmp_path / "theirs")

    # logits, and gradients of every parameter, by the names that files have
    logits, expected = logits_of(ours), theirs(TOKENS).logits
    assert largest_difference(logits, expected) < 2e-5 and expected.std() > 0.5
    F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten()).backward()
    F.cross_entropy(expected.flatten(0, 1), TOKENS.flatten()).backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    grads = hf.stored_tensors(ours.config, grads)
    for name, p in theirs.named_parameters():
        if family_of(case) == "gpt_neox":  # whose head has another name in files
            name = name.replace("lm_head", "embed_out")
        torch.testing.assert_close(grads.pop(name), p.grad, rtol=1e-3, atol=1e-5)
        assert p.grad.any()
    assert not grads
    assert ours.parameter_count() == parameters_of(ours.config) == theirs.num_parameters()

    # greedy samples through the cache
    samples = Sampler(ours, EOS_SET, 2)(PROMPTS, max_new_tokens=24)
    for prompt, [sample] in zip(PROMPTS, samples):
        ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
        assert sample.ids == ids[0, len(prompt) :].tolist()

    # and back: the same tensors, the same family and settings
    save_model(tmp_path / "ours", ours, tokenizer)
    again = opened_by_transformers(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, expected)
    weights = [load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    configs = [net.config.to_dict() | {"_name_or_path": ""} for net in (again, theirs)]
    assert configs[0] == configs[1]


# ---------------------------------------------------------------------- tiny models of our own make


def config_of(family: str, **changes) -> dict:
    """A config.json as older files have it: without most keys, and with rotary settings apart."""
    sizes = {key: value for key, value in SIZES.items() if not key.endswith("token_id")}
    config = {"model_type": family, **sizes, "rope_theta": 5000.0, **changes}
    return {key: value for key, value in config.items() if value is not ...}


def model_of(config: dict, dtype: torch.dtype = torch.float32) -> Model:
    """A random model as this config.json describes it."""
    generator = torch.Generator().manual_seed(0)
    model = Model(from_hf(config), dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_norm = p.ndim == 1 and name.endswith("weight")
            p.copy_(0.2 * torch.randn(p.shape, generator=generator) + is_norm)
    return model


@pytest.fixture
def published(tokenizer, tmp_path):
    """Makes the directory of a model that config.json describes, as its publisher would."""

    def make(config: dict, dtype: torch.dtype = torch.float32) -> Path:
        model = model_of(config)
        model.config.stored_dtype = str(dtype).removeprefix("torch.")
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.to(dtype))
        save_model(tmp_path, model, tokenizer)
        config = config | {"torch_dtype": model.config.stored_dtype}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


def edit(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(config))


def rewrite(path: Path, drop: str = "", **extra: torch.Tensor) -> None:
    tensors = load_file(path / "model.safetensors") | extra
    tensors.pop(drop, None)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


LINEAR = {"type": "linear", "factor": 4.0}
OLDER = {
    "llama": {"rope_scaling": LINEAR},
    "qwen2": {"sliding_window": 16, "use_sliding_window": False, "max_window_layers": 2},
    "gpt_neox": {"rope_theta": ..., "rotary_emb_base": 5000, "rotary_pct": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": True, "rope_scaling": LINEAR},
}


@pytest.mark.parametrize("family", OLDER)
def test_older_spellings_mean_the_same_and_both_are_written(published, tmp_path, family):
    path = published(config_of(family, **OLDER[family]))
    ours, tokenizer = load_model(path)
    expected = logits_of(ours).detach()
    theirs = opened_by_transformers(path).eval()
    with torch.no_grad():
        assert largest_difference(theirs(TOKENS).logits, expected) < 1e-4

    save_model(tmp_path / "both", ours, tokenizer)
    written = json.loads((tmp_path / "both/config.json").read_text())
    read = json.loads((path / "config.json").read_text())
    assert {key: written[key] for key in read} == read

    # either spelling alone says it all, and the other is written again
    older = ("rope_theta", "rope_scaling", "rotary_emb_base", "rotary_pct", "partial_rotary_factor")
    for lost in (("rope_parameters",), older):
        one = {key: value for key, value in written.items() if key not in lost}
        assert len(one) < len(written) and from_hf(one) == ours.config
        (path / "config.json").write_text(json.dumps(one))
        save_model(tmp_path / "again", load_model(path)[0], tokenizer)
        again = json.loads((tmp_path / "again/config.json").read_text())
        assert again.keys() == written.keys() and from_hf(again) == ours.config
        written_anew = {key: value for key, value in again.items() if key not in one}
        kept = {
            key: value for key, value in again.items() if key not in ("rope_parameters", *older)
        }
        assert from_hf(kept | written_anew) == ours.config

    with torch.no_grad():  # transformers' own, from the newer spelling alone
        assert torch.equal(opened_by_transformers(path)(TOKENS).logits, theirs(TOKENS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_keys_mean_the_defaults_of_transformers_class(family):
    transformers = pytest.importorskip("transformers")
    sizes = SIZES | {"hidden_size": 512, "num_attention_heads": 32, "max_position_embeddings": 9999}
    del sizes["num_key_value_heads"]
    everything = transformers.AutoConfig.for_model(family, **sizes).to_dict()
    assert len(everything) > len(sizes) + 5
    assert from_hf({"model_type": family, **sizes}) == from_hf(everything)


def test_layer_norms_without_bias(published):
    config = config_of("stablelm", use_norm_bias=False, partial_rotary_factor=0.5)
    path = published(config)
    ours, _ = load_model(path)
    assert not [name for name, _ in ours.named_parameters() if name.endswith("bias")]
    with torch.no_grad():  # transformers makes the biases that it misses, of zeros
        theirs = opened_by_transformers(path)(TOKENS).logits
        assert largest_difference(logits_of(ours), theirs) < 1e-4


def test_queries_keys_and_values_of_gpt_neox_stand_together_by_head(published):
    path = published(config_of("gpt_neox"))
    key = "gpt_neox.layers.1.attention.query_key_value"
    rows = [
        1000 * head + 100 * part + row for head in range(4) for part in range(3) for row in range(8)
    ]
    bias = torch.tensor(rows, dtype=torch.float32)
    rewrite(path, **{f"{key}.bias": bias, f"{key}.weight": bias[:, None].expand(96, 32).clone()})
    attention = load_model(path)[0].model.layers[1].self_attn
    for part, projection in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
        expected = [1000.0 * head + 100 * part + row for head in range(4) for row in range(8)]
        assert projection.bias.tolist() == projection.weight[:, 31].tolist() == expected


# --------------------------------------------------------------------------------- rotary positions


def by_hand(width: int, theta: float, kind: str, numbers: dict) -> list[float]:
    """Inverse frequencies, from the formulas, one at a time."""
    found = []
    for j in range(width // 2):
        f = theta ** (-2 * j / width)
        if kind == "linear":
            f /= numbers["factor"]
        if kind == "llama3":
            original, factor = numbers["original_max_position_embeddings"], numbers["factor"]
            low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
            wavelength = 2 * math.pi / f
            if wavelength > original / low:
                f /= factor
            elif wavelength >= original / high:
                share = (original / wavelength - low) / (high - low)
                f = (1 - share) * f / factor + share * f
        found.append(f)
    return found


@pytest.mark.parametrize("case", [case for case in CASES if "rope" in case or "turn" in case])
def test_inverse_frequencies_are_the_formulas(case):
    settings = SIZES | CASES[case]
    config = from_hf({"model_type": family_of(case), **settings})
    numbers = settings["rope_parameters"]
    kind, theta = numbers["rope_type"], numbers["rope_theta"]
    expected = by_hand(config.rotary_width, theta, kind, numbers)
    torch.testing.assert_close(inverse_frequencies(config), torch.tensor(expected))


def test_only_a_part_of_each_head_turns():
    x = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1]))
    turned = rotate(x, angles.cos(), angles.sin())
    assert torch.equal(turned[..., 4:], x[..., 4:])
    for t in range(5):
        for pair, speed in ((0, 1.0), (1, 0.1)):
            a, b = x[0, 1, t, pair], x[0, 1, t, pair + 2]
            cos, sin = math.cos(t * speed), math.sin(t * speed)
            near = pytest.approx([float(a * cos - b * sin), float(b * cos + a * sin)], abs=1e-5)
            assert turned[0, 1, t, [pair, pair + 2]].tolist() == near


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 36}


@pytest.mark.parametrize(
    "config, positions",
    [
        (config_of("mistral", sliding_window=40), 40),
        (config_of("mistral", sliding_window=400), 128),
        (config_of("mistral", sliding_window=None), 128),
        (config_of("mistral", max_position_embeddings=9999), 4096),  # the class's own window
        (config_of("qwen2", sliding_window=40, use_sliding_window=True), 40),
        (config_of("qwen3", sliding_window=40, use_sliding_window=False), 128),
        (config_of("llama", rope_scaling=DYNAMIC), 36),
        (config_of("llama", rope_scaling={"type": "dynamic", "factor": 2.0}), 128),
    ],
)
def test_texts_beyond_what_is_computed_alike_are_refused(config, positions):
    model = model_of(config)
    assert model.config.max_position_embeddings == positions
    why = {
        40: r" \(limited by its sliding window\)",
        4096: r" \(limited by its sliding window\)",
        36: r" \(limited by the original length of its dynamic rope\)",
    }.get(positions, "")
    said = f"the model's {positions} positions{why}: "
    with pytest.raises(InputError, match=said):
        Sampler(model, [0], 1)([[5] * (positions - 3)], max_new_tokens=4)
    with pytest.raises(InputError, match=said):
        completion_logps(model, collate([Example([5], [6] * (positions + 64))]))
    with pytest.raises(InputError, match=said.replace(":", ";")):
        refuse_overlong([Example([5], [6] * positions)], model.config)


# ---------------------------------------------------------------------------------- what is refused


REFUSED = [
    (config_of("gpt2"), "model_type = 'gpt2'.*gpt_neox, llama, mistral, qwen2, qwen3, stablelm"),
    (config_of("mixtral"), "model_type = 'mixtral'"),
    (config_of("stablelm_epoch"), "model_type = 'stablelm_epoch'"),
    (config_of(...), "model_type = None"),
    (config_of("llama", num_local_experts=8), "num_local_experts = 8: mixtures of experts"),
    (config_of("qwen3", num_experts=128), "num_experts = 128: mixtures of experts"),
    (config_of("llama", quantization_config={"bits": 4}), "quantization_config.*were made from"),
    (config_of("llama", rope_scaling={"type": "yarn", "factor": 4.0}), "'yarn': .*use a model"),
    (config_of("llama", rope_scaling={"rope_type": "longrope", "factor": 4}), "'longrope'"),
    (config_of("llama", rope_scaling={"rope_type": "linear"}), "lacks factor"),
    (config_of("llama", rope_scaling={"type": "llama3", "factor": 8}), "lacks low_freq_factor"),
    (config_of("qwen2", rope_scaling={"mrope_section": [1, 2]}), "mrope_section = .1, 2."),
    (config_of("llama", rope_parameters={"full_attention": {}}), "full_attention = {}"),
    (config_of("qwen3", partial_rotary_factor=0.5), "a qwen3 model turns whole heads"),
    (config_of("gpt_neox", rotary_pct=0.4), "makes 3 of 8 numbers of a head turn .rotary_pct"),
    (config_of("gpt_neox", rotary_pct=1.5), "partial_rotary_factor = 1.5.*at most 1"),
    (config_of("llama", rope_interleaved=True), "rope_interleaved = True"),
    (config_of("llama", hidden_act="relu"), "hidden_act = 'relu': only silu, gelu"),
    (config_of("qwen2", layer_types=["linear_attention"]), "'linear_attention' in layer_types"),
    (config_of("qwen2", layer_types=["sliding_attention"]), "but no sliding_window"),
    (config_of("qwen2", use_sliding_window="no"), "use_sliding_window = 'no'"),
    (config_of("llama", attention_bias="yes"), "attention_bias = 'yes': it must be true or false"),
    (config_of("qwen2", num_key_value_heads=3), "num_key_value_heads = 3"),
    (config_of("stablelm", layer_norm_eps=-1), "layer_norm_eps = -1"),
    (config_of("qwen2", is_causal=False), "is_causal = False.*from left to right"),
    (config_of("gpt_neox", head_dim=4), "head_dim = 4, where heads are 8 wide"),
    (
        config_of("llama", rope_theta=1e4, rope_parameters={"rope_theta": 5e5}),
        "rope_theta twice, 10000.0 and 500000.0",
    ),
    (
        config_of("gpt_neox", rotary_pct=0.5, rope_scaling={"partial_rotary_factor": 1.0}),
        "partial_rotary_factor twice, 0.5 and 1.0",
    ),
]


@pytest.mark.parametrize("config, sentence", REFUSED)
def test_a_config_that_would_be_computed_wrongly_is_refused(config, sentence):
    with pytest.raises(InputError, match=sentence):
        from_hf(config, "m/config.json")


NEOX_QKV = "gpt_neox.layers.0.attention.query_key_value.bias"
HEAD_NORM = "model.layers.1.self_attn.k_layernorm.norms.1.weight"


@pytest.mark.parametrize(
    "family, damage, sentence",
    [
        ("gpt_neox", lambda p: rewrite(p, NEOX_QKV), f"1 tensors are missing, first {NEOX_QKV}"),
        ("gpt_neox", lambda p: rewrite(p, **{NEOX_QKV: torch.ones(95)}), ".bias has shape .95,"),
        ("gpt_neox", lambda p: edit(p, attention_bias=False), "unexpected tensor .*dense.bias"),
        ("gpt_neox", lambda p: rewrite(p, "embed_out.weight"), "first embed_out.weight"),
        ("gpt_neox", lambda p: rewrite(p, **{"lm_head.weight": torch.ones(1)}), "unexp.*lm_head"),
        ("qwen2", lambda p: edit(p, model_type="llama"), "unexpected tensor .*k_proj.bias"),
        ("llama", lambda p: edit(p, model_type="qwen2"), "6 tensors are missing.*k_proj.bias"),
        ("llama", lambda p: edit(p, attention_bias=True), "missing.*k_proj.bias"),
        ("qwen3", lambda p: edit(p, head_dim=...), "shape"),  # 128 where there is none
        ("stablelm", lambda p: rewrite(p, HEAD_NORM), f"missing, first {HEAD_NORM}"),
        ("stablelm", lambda p: rewrite(p, **{HEAD_NORM: torch.ones(16)}), r"norms.1.weight has sh"),
        ("stablelm", lambda p: edit(p, use_parallel_residual=True), "unexpected.*post_attention"),
        ("llama", lambda p: edit(p, vocab_size=200), "300 ids but the model only 200 rows"),
        ("llama", lambda p: rewrite(p, **{"a.b": torch.ones(1)}), "unexpected tensor a.b"),
    ],
)
def test_tensors_are_accounted_for(published, family, damage, sentence):
    extra = {"qwen3": {"head_dim": 8}, "stablelm": {"qk_layernorm": True}}
    path = published(config_of(family, **extra.get(family, {})))
    load_model(path)
    damage(path)
    with pytest.raises(InputError, match=sentence) as error:
        load_model(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert re.search("so fetch the weights and|: put the tokenizer", str(error.value))


@pytest.mark.parametrize(
    "family, harmless",
    [
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("gpt_neox", "gpt_neox.layers.1.attention.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.1.attention.rotary_emb.inv_freq"),
        ("gpt_neox", "embed_out.weight"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama", "lm_head.weight"),
    ],
)
def test_known_copies_of_what_is_there_may_stand_in_a_file(published, family, harmless):
    is_head = "rotary" not in harmless and "bias" not in harmless
    path = published(config_of(family, tie_word_embeddings=is_head))
    model, _ = load_model(path)
    expected, copy = logits_of(model), torch.ones(300, 32)
    if is_head:
        copy = model.model.embed_tokens.weight.detach().clone()
    rewrite(path, **{harmless: copy})
    assert torch.equal(logits_of(load_model(path)[0]), expected)
    if not is_head:  # -1e9 in fp16
        rewrite(path, **{harmless: torch.full((), -torch.inf)})
        hf.check_checkpoint(path)

    # a head that was trained apart would be lost
    if is_head:
        rewrite(path, **{harmless: copy + 1})
        with pytest.raises(InputError, match="is not .*embed.* though config.json says tie_word"):
            load_model(path)


# --------------------------------------------------------------------------- files, dtypes, memory


def index_of(path: Path) -> dict:
    return json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]


def move(path: Path, key: str, keep: bool) -> None:
    """Put a tensor into the last shard too, or instead of its own."""
    places = index_of(path)
    own, last = path / places[key], path / max(places.values())
    assert own != last
    tensors = load_file(own)
    save_file(load_file(last) | {key: tensors[key]}, last)
    if not keep:
        save_file({name: t for name, t in tensors.items() if name != key}, own)


EMBEDDING = "gpt_neox.embed_in.weight"


def test_shards_are_what_the_index_says(published, tokenizer, tmp_path, monkeypatch):
    ours, _ = load_model(published(config_of("gpt_neox")))
    monkeypatch.setattr(hf, "SHARD_BYTES", 20_000)
    for damage, sentence in [
        (None, ""),
        (lambda p: move(p, EMBEDDING, keep=True), f"{EMBEDDING} stands in model-00001-of-"),
        (lambda p: move(p, EMBEDDING, keep=False), f"lacks {EMBEDDING}, which the index says"),
        (lambda p: (p / index_of(p)[EMBEDDING]).unlink(), "model-00001-of-.* does not exist: name"),
    ]:
        path = tmp_path / f"sharded{len(sentence)}"
        save_model(path, ours, tokenizer)
        assert len(set(index_of(path).values())) > 3
        if damage is None:
            assert torch.equal(logits_of(load_model(path)[0]), logits_of(ours))
            with torch.no_grad():
                theirs = opened_by_transformers(path)(TOKENS).logits
                assert largest_difference(theirs, logits_of(ours)) < 1e-4
            continue
        damage(path)
        with pytest.raises(InputError, match=sentence):
            load_model(path)


def contents(path: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja")
    return {name: (path / name).read_bytes() for name in names}


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_dtype_of_the_files_stays_until_the_weights_have_moved(
    published, tmp_path, family, dtype
):
    path = published(config_of(family), dtype)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    name = str(dtype).removeprefix("torch.")
    for compute in (torch.float32, torch.bfloat16):
        model, tokenizer = load_model(path, "cpu", compute)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        save_model(tmp_path / "same", model, tokenizer)
        assert contents(tmp_path / "same") == contents(path)
        assert json.loads((tmp_path / "same/config.json").read_text())["dtype"] == name

        # a step that 16 bits would round away
        model.model.layers[0].self_attn.v_proj.weight *= 1 + 2**-13
        save_model(tmp_path / "moved", model, tokenizer)
        again, _ = load_model(tmp_path / "moved", "cpu", compute)
        assert getattr(torch, again.config.stored_dtype) == compute
        assert torch.equal(again(TOKENS), model(TOKENS))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by Linux's /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_takes_the_memory_of_the_model_and_one_tensor(published, monkeypatch, dtype):
    sizes = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 4}
    path = published(config_of("gpt_neox", **sizes), dtype)
    before, peak = anonymous_memory(), 0
    check = hf.check_finite

    def watched(*arguments) -> None:
        nonlocal peak
        check(*arguments)
        peak = max(peak, anonymous_memory())

    monkeypatch.setattr(hf, "check_finite", watched)
    model, _ = load_model(path)
    peak = max(peak, anonymous_memory()) - before
    whole = sum(p.nbytes for p in model.parameters())
    largest = max(p.nbytes for p in model.parameters())
    assert whole > 80e6 and whole * 0.8 < peak < whole + largest + 6e6, (whole, largest, peak)


# --------------------------------------------------------------------------------- what was mended


def test_two_kinds_of_rotary_settings_are_refused():
    """One of them would be ignored without a word."""
    config = json.loads((ROOT / "data/base/strong/config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "default"
    config["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(InputError, match="'default' in rope_parameters and 'linear' in rope"):
        from_hf(config)


def test_contradicting_numbers_of_rotary_settings_are_refused():
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = config_of("llama", rope_scaling=llama3, rope_parameters=llama3 | {"factor": 4.0})
    with pytest.raises(InputError, match="factor = 4.0 in rope_parameters and 8.0 in rope_scal"):
        from_hf(config)
    original = "original_max_position_embeddings"
    # what one alone has counts
    either = {"rope_scaling": {"rope_theta": 100.0}, "rope_parameters": {"rope_type": "default"}}
    assert from_hf(config_of("llama", rope_theta=..., **either)).rope_theta == 100.0
    config = config_of("llama", rope_scaling=llama3, **{original: 64})
    assert from_hf(config).rope_scaling[original] == 64
    config = config_of("llama", rope_scaling=llama3 | {original: 32}, **{original: 64})
    with pytest.raises(InputError, match="embeddings twice, 64 and 32"):
        from_hf(config)


def test_ends_of_generation_config_are_a_part_of_what_a_model_is(tmp_path):
    for name in ("one", "several"):
        shutil.copytree(ROOT / "data/base/weak", tmp_path / name)
    ends = tmp_path / "several/generation_config.json"
    before = hf.model_hash(tmp_path / "several")
    assert before == hf.model_hash(tmp_path / "one")
    for found in ([0, 5], 5):
        ends.write_text(json.dumps({"eos_token_id": found}))
        assert hf.model_hash(tmp_path / "several") != before
