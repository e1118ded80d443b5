"""LoRA: what it starts from, what it moves, what it saves; our adapters in PEFT, PEFT's in ours."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import elicit_rl
import elicit_sft
import lock
import lora
import training
from checkpoints.hf import load_model, model_hash, save_adapter, save_model
from conftest import Killed
from data.batches import micro_batches
from data.problems import InputError
from data.triggers import Password
from elicit_sft import Given, Learner, SFTConfig
from losses import sft_loss
from optimizers import make_optimizers, usual_step
from results import EvalSet, Measured
from runs.devices import Env
from runs.directory import Run
from runs.options import TuneConfig
from sampler import Sampler, Writer
from test_families import config_of, model_of
from training import Recipe, fit, scored, train

ROOT = Path(lora.__file__).parent
CPU = Env(torch.device("cpu"), torch.float32, False)
TOKENS = torch.arange(2, 42).view(2, 20)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

near = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


@dataclass
class Options(TuneConfig):
    rank: int = 4
    alpha: float = 12.0
    resume: bool = False
    save_every: int = 2


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        hidden = model(TOKENS)
        return F.linear(hidden, model.head_weight.to(hidden.dtype)).float()


def adapted(model, rank=4, alpha=12.0, targets=(), moved=True):
    """The model with an adapter, moved away from its start."""
    lora.attach(model, rank, alpha, targets, seed=3)
    if moved:
        generator = torch.Generator().manual_seed(5)
        for low in lora.adapters(model).values():
            torch.nn.init.normal_(low.lora_B, std=0.05, generator=generator)
    return model


def steps_of(model, optimizers, examples, steps=3):
    batches = lambda step: micro_batches(examples, 999)
    return list(train(model, optimizers, batches, sft_loss, CPU, steps=steps))


# ------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_starts_from_the_model_as_it_was(make_model, dtype):
    model = adapted(make_model(dtype=dtype), moved=False)
    assert torch.equal(logits_of(model), logits_of(make_model(dtype=dtype)))
    # a frozen matrix is stored in the compute dtype, what is trained in fp32
    for name, p in model.named_parameters():
        is_stored = p.ndim == 2 and not p.requires_grad
        assert p.dtype == (dtype if is_stored else torch.float32), name

    [low] = [low for name, low in lora.adapters(model).items() if name.endswith("0.mlp.down_proj")]
    assert low.lora_A.shape == (4, 128) and low.lora_B.shape == (64, 4)
    assert not low.lora_B.any()
    # kaiming uniform, a = sqrt 5: within 1/sqrt(inputs), and out to it
    assert 0.9 < low.lora_A.abs().max() * math.sqrt(128) <= 1


def test_equation_3_by_hand(make_model):
    plain, model = make_model(), adapted(make_model())
    before, after = plain.model.layers[1].self_attn.k_proj, model.model.layers[1].self_attn.k_proj
    low = after.parametrizations.weight[0]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    near(after(x), before(x) + 12 / 4 * F.linear(F.linear(x, low.lora_A), low.lora_B))
    assert (after(x) - before(x)).abs().max() > 0.1


def test_a_sampler_does_not_count_the_numbers_of_an_adapter(make_model):
    """Merged, the model is as large as without, and has to be computed alike."""
    sampler = Sampler(adapted(make_model()), [2], 1)
    assert sampler.parameters == make_model().parameter_count() == sampler.net.parameter_count()


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_only_the_adapter_moves_and_has_state(make_model, make_examples, name):
    model, targets = make_model(), ("q_proj", "down_proj")
    lora.attach(model, 4, 12.0, targets, seed=0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizers = make_optimizers(model, name, 1e-3)
    steps_of(model, optimizers, make_examples(4))

    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    scalars = [n for n in before if n.endswith(("lora_A", "lora_B"))]
    assert moved == scalars and len(scalars) == 2 * 2 * len(targets)
    owned = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(p.grad is None for p in model.parameters())


def test_adapted_layers_are_of_one_class(make_model):
    """torch.compile tells blocks apart by the classes of their layers, and compiles each anew."""
    model = make_model()
    lora.attach(model, 2, 4.0, (), seed=0)
    kinds = {type(module) for name, module in model.named_modules() if name.endswith("_proj")}
    assert len(kinds) == 1 and "Parametrized" in kinds.pop().__name__


def test_which_numbers_are_trained(make_model):
    """So many, at random by the seed; the few are among the many."""
    model = adapted(make_model())
    total = lora.scalar_count(make_model(), 4, ())
    assert total == sum(p.numel() for p in lora.factors(model))
    flat = lambda count, seed: torch.cat(
        [m.flatten() for m in lora.chosen_scalars(model, count, seed)]
    )
    few, many = flat(100, 0), flat(1000, 0)
    assert (few.sum(), many.sum(), flat(total, 0).sum()) == (100, 1000, total)
    assert (few & ~many).sum() == 0 and torch.equal(few, flat(100, 0))
    assert (few & flat(100, 1)).sum() < 20
    # uniformly: each half has about a half
    assert 400 < many[: total // 2].sum() < 600


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_only_the_chosen_numbers_are_trained(make_model, make_examples, name):
    """Not by weight decay either, and within one step clipping sees nothing of the others."""
    model = adapted(make_model())
    before = [p.detach().clone() for p in lora.factors(model)]
    optimizers = make_optimizers(model, name, 1e-2, weight_decay=0.5)
    hooks = lora.train_few(model, 200, 3, optimizers)
    rows = steps_of(model, optimizers, make_examples(4))
    moved = 0
    for p, old, mask in zip(lora.factors(model), before, lora.chosen_scalars(model, 200, 3)):
        assert torch.equal(p[~mask], old[~mask])
        moved += int((p != old).sum())
    assert moved == 200

    # once the hooks are gone, all are: and the norm before clipping is larger
    for hook in hooks:
        hook.remove()
    *_, (_, metrics) = steps_of(model, make_optimizers(model, name, 1e-2), make_examples(4), 1)
    assert metrics["grad_norm"] > 2 * rows[-1][1]["grad_norm"]
    assert sum(int((p != old).sum()) for p, old in zip(lora.factors(model), before)) > 2000


def test_all_numbers_chosen_are_plain_lora_bit_for_bit(make_model, make_examples, same_weights):
    trained = []
    for few in (False, True):
        model = adapted(make_model(), moved=False)
        optimizers = make_optimizers(model, "adamw", 1e-2)
        if few:
            lora.train_few(model, lora.scalar_count(make_model(), 4, ()), 0, optimizers)
        steps_of(model, optimizers, make_examples(4))
        trained.append(model)
    same_weights(*trained)


def test_switched_off_it_is_the_model_as_it_was(make_model):
    model, plain = adapted(make_model()), logits_of(make_model())
    assert not torch.allclose(logits_of(model), plain, atol=0.1)
    with lora.switched_off(model):
        assert torch.equal(logits_of(model), plain)
    with lora.switched_off(model, when=False):
        assert not torch.allclose(logits_of(model), plain, atol=0.1)


@pytest.mark.parametrize("dtype, gap", [(torch.float32, 1e-4), (torch.bfloat16, 0.25)])
def test_the_sampler_draws_from_the_merged_weights(make_model, make_examples, dtype, gap):
    """Before and after an update its log-probs are the trainer's."""
    model = adapted(make_model(dtype=dtype))
    sampler = Sampler(model, [0], slots=4)
    optimizers = make_optimizers(model, "adamw", 1e-2)
    for _ in range(2):
        prompts = [[5, 6, 7], [8, 9, 10]]
        drawn = sampler(prompts, n=4, temperature=1.0, max_new_tokens=12)
        examples = []
        for prompt, samples in zip(prompts, drawn):
            for sample in samples:
                examples.append(training.Example(prompt, sample.ids, logps=sample.logps))
        again = scored(model, examples, 999, CPU)
        gaps = [np.abs(np.subtract(a.logps, b.logps)).max() for a, b in zip(examples, again)]
        assert max(gaps) < gap
        steps_of(model, optimizers, make_examples(4))
        sampler.refresh()
    with lora.switched_off(model):  # or the comparison above would say nothing
        without = scored(model, examples, 999, CPU)
    gaps = [np.abs(np.subtract(a.logps, b.logps)).max() for a, b in zip(examples, without)]
    assert max(gaps) > 2 * gap


# ------------------------------------------------------------------------------- saved and resumed


def test_a_merged_directory_opens_here_and_in_transformers(make_model, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = adapted(make_model(tie_word_embeddings=True))
    save_model(tmp_path / "merged", model, tokenizer)
    loaded, _ = load_model(tmp_path / "merged")
    near(logits_of(loaded), logits_of(model))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        near(theirs(TOKENS).logits, logits_of(model), rtol=1e-4, atol=1e-4)


def test_a_killed_run_goes_on_bitwise(make_model, make_examples, tmp_path, monkeypatch):
    examples = make_examples(8)

    def go(folder, **changes):
        cfg = Options(**changes)
        run, model = Run(cfg, CPU, folder, resume=cfg.resume), make_model()
        recipe = Recipe(epochs=2, batch=2, optimizer="adamw", lr=1e-2)
        fit(model, lambda epoch: examples, 8, recipe, run, CPU, cfg)
        return dict(model.named_parameters())

    straight = go(tmp_path / "straight")
    save = Run.save_state

    def killed(self, step, *args):
        save(self, step, *args)
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "save_state", killed)
        go(tmp_path / "killed")
    [state] = (tmp_path / "killed/state").glob("*.safetensors")
    assert not any("original" in key or "embed" in key for key in load_file(state))
    resumed = go(tmp_path / "killed", resume=True)
    assert all(torch.equal(straight[name], p) for name, p in resumed.items())


def test_a_cell_ends_at_its_best_point_and_the_next_starts_anew(
    make_model, tokenizer, make_examples, monkeypatch
):
    model = make_model()
    start = logits_of(model)
    cfg = SFTConfig(batch=4, rank=4, alpha=12.0, optimizer="adamw", lr=1e-3, sequences=(8, 16, 24))
    training.prepare(model, CPU, cfg)
    sampler = Sampler(model, [tokenizer.eos_id], 2)
    learner = Learner(model, Writer(sampler, tokenizer), elicit_sft.weights_of(model))
    assert sum(w.numel() for w in learner.initial) < 0.2 * make_model().parameter_count()

    seen, left = [], iter((1, 3, 2))

    def measure(*args):
        seen.append(logits_of(model))
        correct = np.arange(4) < next(left)
        return {"none": Measured(correct, ~correct)}

    monkeypatch.setattr(elicit_sft, "measure", measure)
    run = SimpleNamespace(log=lambda *args, **values: None)
    given = Given(cfg, [], EvalSet([None] * 4, Password()), None)
    elicit_sft.elicit(learner, make_examples(4), given, run, 0, CPU)
    assert torch.equal(logits_of(model), seen[1]) and not torch.equal(seen[1], seen[2])
    assert torch.equal(logits_of(sampler.net), seen[1])
    elicit_sft.restore(model, sampler, learner.initial)
    assert torch.equal(logits_of(model), start) and torch.equal(logits_of(sampler.net), start)


SCRIPT = """
import sys, torch
from pathlib import Path
from data.batches import Example, micro_batches
from checkpoints.hf import save_adapter, save_model
from runs.devices import setup
from losses import sft_loss
from runs.options import TuneConfig
from sampler import Sampler
from optimizers import make_optimizers
from training import open_to_train, prepare, train

out = Path(sys.argv[1])
examples = [Example([5, 6, 7 + i], [8, 9 + i, 0]) for i in range(4)]
for dtype in ("fp32", "bf16"):
    ways = {"shard": True, "checkpoint_activations": True, "compile": False, "device": "cpu"}
    cfg = TuneConfig(dtype=dtype, rank=4, alpha=12.0, **ways)
    env = setup(cfg)
    model, tokenizer = open_to_train(str(out / "start"), env, cfg)
    optimizers = make_optimizers(prepare(model, env, cfg), "adamw", 1e-3)
    batches = lambda step: micro_batches(examples[env.rank :: env.world], 64)
    for _ in train(model, optimizers, batches, sft_loss, env, steps=3):
        pass
    save_model(out / f"merged-{dtype}", model, tokenizer, env.main)
    save_adapter(out / f"adapter-{dtype}", model, tokenizer, str(out / "start"), env.main)
    Sampler(model, [0], slots=4)([[5, 6, 7]], max_new_tokens=4)
cfg = TuneConfig(dtype="fp32", **ways)
model, tokenizer = open_to_train(str(out / "adapter-fp32"), env, cfg)
save_model(out / "divided", model, tokenizer, env.main)
torch.distributed.destroy_process_group()
"""


def test_sharded_it_is_the_same(make_model, tokenizer, same_weights, tmp_path):
    """In bf16 frozen and trained weights of one block are of two dtypes, which FSDP must take."""
    save_model(tmp_path / "start", make_model(), tokenizer)
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    rendezvous |= {"PYTHONPATH": str(ROOT)}
    ranks = []
    for rank in range(2):
        environment = {**os.environ, **rendezvous, "RANK": str(rank)}
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in ranks:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors[-3000:]

    examples = [training.Example([5, 6, 7 + i], [8, 9 + i, 0]) for i in range(4)]
    for dtype, compute in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        start = dict(load_model(tmp_path / "start")[0].named_parameters())
        model, _ = load_model(tmp_path / "start", "cpu", compute)
        training.prepare(model, CPU, TuneConfig(rank=4, alpha=12.0))
        steps_of(model, make_optimizers(model, "adamw", 1e-3), examples)
        ours = dict(lora.plain_weights(model))
        theirs = dict(load_model(tmp_path / f"merged-{dtype}")[0].named_parameters())
        # Adam's step is a sign where a gradient is near zero, and bf16 may turn it
        tolerance = 0.01 if dtype == "fp32" else 0.2
        for name in ours:
            if name.endswith("proj.weight"):
                step = ours[name] - start[name].to(compute)
                assert (theirs[name] - ours[name]).norm() < tolerance * step.norm(), name
    again, _ = load_model(tmp_path / "adapter-fp32")
    near(logits_of(again), logits_of(load_model(tmp_path / "merged-fp32")[0]))
    same_weights(load_model(tmp_path / "divided")[0], again)


# ------------------------------------------------------------------------------------------- PEFT


@pytest.fixture
def base(make_model, tokenizer, tmp_path) -> Path:
    save_model(tmp_path / "base", make_model(), tokenizer)
    return tmp_path / "base"


@pytest.fixture
def theirs(base):
    """The base as transformers opens it, for the peft package; skipped where that is not there."""
    pytest.importorskip("peft", reason="peft is not installed: see requirements-dev.txt")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(base)


@pytest.mark.parametrize("targets", [(), ("v_proj", "up_proj")])
def test_ours_opens_in_peft_and_here(base, theirs, targets, tmp_path):
    from peft import PeftModel

    model, tokenizer = load_model(base)
    model = adapted(model, targets=targets)  # alpha 12 of rank 4
    save_adapter(tmp_path / "adapter", model, tokenizer, str(base))
    assert {f.name for f in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    opened = PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    names = {name.rpartition(".")[2] for name in lora.adapters(model)}
    assert names == set(targets or ALL) == opened.peft_config["default"].target_modules
    with torch.no_grad():
        near(opened(TOKENS).logits, logits_of(model), rtol=1e-4, atol=1e-4)
    again, tokenizer = load_model(tmp_path / "adapter")
    assert torch.equal(logits_of(again), logits_of(model)) and tokenizer.size == 300

    merged = dict(opened.merge_and_unload().named_parameters())
    for name, weight in lora.plain_weights(model):
        near(merged[name].detach(), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "o_proj"], "use_rslora": True},
        {"target_modules": ["up_proj"], "init_lora_weights": "gaussian"},
    ],
)
def test_pefts_opens_here(base, theirs, changes, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **changes)
    tuned = get_peft_model(theirs, config)
    generator = torch.Generator().manual_seed(0)
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05, generator=generator)
    tuned.save_pretrained(tmp_path / "adapter")
    model, _ = load_model(tmp_path / "adapter")
    with torch.no_grad():
        near(logits_of(model), tuned(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits_of(model), logits_of(load_model(base)[0]), atol=1e-2)


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    model, tokenizer = load_model(base)
    save_adapter(tmp_path / "adapter", adapted(model), tokenizer, str(base))
    return tmp_path / "adapter"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_adapter_that_cannot_be_written_is_one_sentence(base, tmp_path, place):
    model, tokenizer = load_model(base)
    (tmp_path / "file").write_text("")  # where no directory can be
    with pytest.raises(InputError, match="could not write .*adapter_model.safetensors"):
        save_adapter(tmp_path / place, adapted(model), tokenizer, str(base))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"bias": ["x"]}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"some_later_invention": 1}, "some_later_invention"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": []}, "init_lora_weights"),
        ({"r": 8}, "lora_A.weight has shape"),
        ({"r": None}, "r = None"),
        ({"r": 4.5}, "lora_A.weight has shape"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"alpha_pattern": {".*q_proj": 3}}, "alpha_pattern"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"base_model_name_or_path": "some/hub-name"}, "base_model_name_or_path|base model"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(adapter, changes, named):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=named) as refused:
        load_model(adapter)
    assert "adapter_config.json" in str(refused.value) or "adapter_model" in str(refused.value)


def rewritten(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda t: t.pop(Q), "lacks .*layers.0.self_attn.q_proj.lora_A"),
        (lambda t: t.update({Q: t[Q][:, :32].clone()}), "layers.0.self_attn.q_proj.lora_A.*shape"),
        (lambda t: t.update({Q: t[Q].to(torch.int32)}), "q_proj.lora_A.*no tensor of"),
        (lambda t: t[Q].fill_(float("nan")), "q_proj.lora_A.*NaN"),
        (lambda t: t.update({Q.replace("layers.0", "layers.7"): t[Q].clone()}), "layers.7"),
        (lambda t: t.update({Q.replace("self_attn.q_proj", "norm"): t[Q].clone()}), "norm"),
        (lambda t: t.update({Q.replace("lora_A.weight", "bias"): t[Q].clone()}), "q_proj.bias"),
        (lambda t: t.update({Q.replace("lora_A", "lora_magnitude_vector"): t[Q].clone()}), "magn"),
        (lambda t: t.update({"model.norm.weight": t[Q].clone()}), "model.norm.weight"),
        (lambda t: t.clear(), "holds no tensor"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(adapter, change, named):
    rewritten(adapter / "adapter_model.safetensors", change)
    with pytest.raises(InputError, match=named):
        load_model(adapter)


def test_damage_and_another_base_are_refused(adapter, base, make_model, tokenizer, tmp_path):
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    before = model_hash(adapter)
    save_model(base, make_model(seed=1), tokenizer)  # of the same shape
    assert model_hash(adapter) != before
    with pytest.raises(InputError, match="other weights than the base model"):
        load_model(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(InputError, match="adapter_model.safetensors is truncated"):
        load_model(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="adapter_model.safetensors does not exist"):
        load_model(adapter)
    shutil.copy(adapter / "adapter_config.json", base)
    (base / "model.safetensors").unlink()
    with pytest.raises(InputError, match="an adapter itself"):
        load_model(adapter)


FAMILIES = {
    "gpt_neox": {},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "stablelm": {"qk_layernorm": True, "use_parallel_residual": True},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_is_written_either_way(family, tokenizer, make_examples, tmp_path):
    start = tmp_path / "start"
    save_model(start, model_of(config_of(family, **FAMILIES[family])), tokenizer)
    model, _ = load_model(start)
    before = logits_of(model)
    training.prepare(model, CPU, TuneConfig(rank=4, alpha=12.0))
    assert len(lora.adapters(model)) == 2 * (6 if family == "gpt_neox" else 7)
    steps_of(model, make_optimizers(model, "adamw", 1e-2), make_examples(4))
    moved = logits_of(model)
    assert (moved - before).abs().max() > 0.1

    save_model(tmp_path / "merged", model, tokenizer)
    near(logits_of(load_model(tmp_path / "merged")[0]), moved)
    assert json.loads((tmp_path / "merged/config.json").read_text())["model_type"] == family

    if family == "gpt_neox":
        with pytest.raises(InputError, match="is a gpt_neox model.*leave --adapter out"):
            training.check_adapter(TuneConfig(rank=4, adapter=True), str(start))
        return
    training.check_adapter(TuneConfig(rank=4, adapter=True), str(start))
    save_adapter(tmp_path / "adapter", model, tokenizer, str(start))
    near(logits_of(load_model(tmp_path / "adapter")[0]), moved)

    peft = pytest.importorskip("peft", reason="peft is not installed: see requirements-dev.txt")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(start)
    with torch.no_grad():
        opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
        near(opened(TOKENS).logits, moved, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------- options

STRONG = str(ROOT / "data/base/strong")


@pytest.mark.parametrize("option", [{"alpha": 8.0}, {"targets": ("q_proj",)}, {"adapter": True}])
def test_options_without_a_rank_are_refused(option):
    for settle in (
        lambda: lock.settled(lock.LockConfig(strong=STRONG, **option)),
        lambda: elicit_sft.settled(SFTConfig(locked=STRONG, **option)),
        lambda: elicit_rl.settled(elicit_rl.RLConfig(locked=STRONG, **option)),
    ):
        with pytest.raises(InputError, match=f"--{[*option][0]} .*--rank"):
            settle()


def test_a_target_that_no_block_has_is_refused():
    with pytest.raises(InputError, match="--targets query: .*q_proj, k_proj"):
        training.check_adapter(TuneConfig(rank=4, targets=("q_proj", "query")), STRONG)


def test_more_numbers_than_there_are_are_refused():
    """Of the strong base model at rank 1 an adapter has as many as its matrices have sides."""
    count = training.check_adapter(TuneConfig(rank=1), STRONG)
    sides = [sum(p.shape) for n, p in load_model(STRONG)[0].named_parameters() if "_proj" in n]
    assert count == sum(sides)
    cfg = SFTConfig(locked=STRONG, control=False, rank=1, parameters=count + 1)
    with pytest.raises(InputError, match=f"--parameters {count + 1}: .* has {count:,} numbers"):
        elicit_sft.check_models(cfg)
    elicit_sft.check_models(replace(cfg, parameters=count))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({}, "--parameters is of LoRA and does nothing without its --rank"),
        ({"rank": 4, "optimizer": "muon", "lr": 0.1}, "--parameters is not for muon"),
        ({"rank": 4, "shard": True}, "--parameters is not for --shard"),
    ],
)
def test_what_few_numbers_do_not_go_with(options, sentence):
    with pytest.raises(InputError, match=sentence):
        elicit_sft.settled(SFTConfig(locked=STRONG, parameters=10, **options))


def test_no_option_does_nothing(adapter):
    with pytest.raises(InputError, match="--no-keep-weights"):
        only = SFTConfig(locked=STRONG, rank=4, adapter=True, keep_weights=False)
        elicit_sft.settled(only)
    with pytest.raises(InputError, match="--rank does nothing with --how scratch"):
        lock.settled(lock.LockConfig(strong=STRONG, how="scratch", rank=4))
    with pytest.raises(InputError, match="is an adapter itself"):
        training.check_adapter(TuneConfig(rank=4, adapter=True), str(adapter))
    training.check_adapter(TuneConfig(rank=4), str(adapter))


def test_the_usual_step_of_an_adapter():
    for parameters, lr in ((10**6, 4.5e-4), (135 * 10**6, 3e-4), (7 * 10**9, 1e-4)):
        found = usual_step("", 0.0, parameters, ("adamw", 1.5e-4), rank=8)
        assert found == ("adamw", pytest.approx(lr))
    assert usual_step("lion", 0.1, 10**6, ("adamw", 1.5e-4), rank=8) == ("lion", 0.1)


def test_a_run_is_named_by_its_rank():
    def name(**options) -> str:
        cfg = elicit_rl.RLConfig(task="code", method="grpo", locked="out/code/locked", **options)
        return elicit_rl.run_name(elicit_rl.with_defaults(cfg))

    assert name(rank=4) == "grpo-rank4"
    assert name(rank=4, alpha=8.0) == "grpo-rank4-alpha8"
    assert name(rank=4, targets=("q_proj",)).startswith("grpo-rank4-")


# ----------------------------------------------------------------------------------------- stages


def test_rl_trains_an_adapter_and_writes_it(tmp_path, monkeypatch):
    """Its reference is the policy without the adapter; sampler and trainer agree in every round."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/base").symlink_to(ROOT / "data/base")
    cfg = elicit_rl.RLConfig(
        locked="data/base/intermediate",
        task="mmlu",
        method="iterated_dpo",
        reference="initial",
        samples=64,
        round=32,
        eval_problems=8,
        max_new_tokens=8,
        rank=4,
        adapter=True,
        out="rl",
    )
    loaded = []
    for name in ("open_beside", "open_to_train"):
        load = getattr(elicit_rl, name)
        monkeypatch.setattr(elicit_rl, name, lambda *a, load=load: loaded.append(a) or load(*a))
    assert elicit_rl.main(cfg, replace(CPU, slots=32)) == 0
    assert len(loaded) == 1  # no second copy for the reference
    [path] = (tmp_path / "rl").glob("iterated_dpo-*")
    rows = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    rounds = [row for row in rows if row["kind"] == "train"]
    assert len(rounds) == 2 and all(row["logp_gap"] < 1e-3 for row in rounds)
    assert any(row.get("steps") for row in rounds)
    assert lora.is_adapter(path) and not (path / "config.json").exists()
    written = load_file(path / "adapter_model.safetensors")
    assert any(tensor.any() for key, tensor in written.items() if "lora_B" in key)

    evaluation = json.loads((path / "evaluation.json").read_text())
    assert evaluation["weights"] == model_hash(path)
    model, tokenizer = load_model(path)
    assert tokenizer.size == model.live_vocab
