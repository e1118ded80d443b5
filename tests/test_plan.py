"""--plan: its arithmetic against what autograd and the sampler really hold, and what it prints."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import elicit_rl
import elicit_sft
import evaluate
import lock
import train_base
import training
from data import load
from data.batches import collate
from data.problems import InputError
from lora import attach
from losses import sft_loss
from model import Block, Model, ModelConfig
from optimizers import make_optimizers
from runs import plan
from runs.devices import Env, setup
from runs.options import PlanConfig, parse
from sampler import Sampler
from training import fresh_model, train

ROOT = Path(__file__).parents[1]
STRONG, WEAK = str(ROOT / "data/base/strong"), str(ROOT / "data/base/weak")
CPU = Env(torch.device("cpu"), torch.float32, False)
FP32 = plan.Settings(wide=4, master=4, cuda=False, fused=False)

NEOX = {"norm": "layer", "norm_bias": True, "qkv_bias": True, "output_bias": True}
NEOX |= {"gated_mlp": False, "mlp_bias": True, "parallel": "two norms", "num_key_value_heads": 4}
NEOX |= {"activation": "gelu", "rotary_fraction": 0.25}
STABLELM = {"norm": "layer", "norm_bias": True, "qk_norm": "layer", "parallel": "one norm"}
FAMILIES = {"llama": {}, "qwen3": {"qk_norm": "rms"}, "gpt_neox": NEOX, "stablelm": STABLELM}


@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [{}, {"vocab_size": 40_000, "hidden_size": 1024}])
def test_gradients_are_summed_in_buckets_as_large_as_planned(monkeypatch, sizes, master):
    """A small model in one bucket; of a larger one the table is the largest."""
    sizes = {"vocab_size": 300, "hidden_size": 64} | sizes
    config = ModelConfig(
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        **sizes,
    )
    with torch.device("meta"):
        model = Model(config).to(master)
    summed = []
    monkeypatch.setattr(training.dist, "all_reduce", lambda flat: summed.append(flat))
    training.sync_gradients(list(model.parameters()))
    assert all(flat.dtype == torch.float32 for flat in summed)
    measured = max(flat.numel() for flat in summed) * (4 if master == torch.float32 else 6)

    settings = replace(FP32, master=master.itemsize, optimizer="lion", devices=2)
    texts = plan.Texts(8, 8, [(8, 8)])
    *_, height = plan.training(plan.shape(config), texts, settings)
    # the head, which is as large as the table, shares its bucket with the last matrices
    assert height["copies"] == pytest.approx(measured, rel=0.05)
    alone = plan.training(plan.shape(config), texts, replace(settings, devices=1))
    assert len(alone) == 3


def bytes_saved(block: Block, x: torch.Tensor, model: Model) -> int:
    """Of all storages that autograd keeps in a pass, but weights, their casts and the tables."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    known |= {b.untyped_storage().data_ptr() for b in model.buffers()}
    shapes = {tuple(p.shape) for p in block.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tuple(tensor.shape) not in shapes:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        T = x.shape[1]
        out = block(x, model.cos[:T], model.sin[:T])[0]
    del out
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("length", [48, 528])  # below and beyond SHORT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_autograd_keeps_of_a_block(make_model, family, dtype, length):
    model = make_model(0, dtype, max_position_embeddings=600, **FAMILIES[family])
    rows = 3
    x = torch.randn(rows, length, 64, dtype=dtype, requires_grad=True)
    settings = replace(FP32, wide=dtype.itemsize)
    planned = plan.saved_by_block(model.config, length, settings) * rows * length
    assert bytes_saved(model.model.layers[0], x, model) == pytest.approx(planned, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_loss_of_a_model_keeps_what_is_planned(make_model, dtype):
    """Activations of all blocks, and what final norm and head keep: little beside them."""
    model, found = make_model(0, dtype, num_hidden_layers=4), {}
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), model.cos, model.sin)}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    shape, texts = plan.shape(model.config), plan.Texts(40, 24, [(40, 24)])
    settings = replace(FP32, wide=dtype.itemsize, optimizer="adamw")
    settings = replace(settings, batch=64, micro_tokens=2048)  # 32 rows of 64, twice
    [batch, _] = plan.step_of(texts, settings)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sft_loss(model, batch)
    measured = sum(size for size, _ in found.values())
    loss, *_ = plan.training(shape, texts, settings)
    planned = loss["activations"] + loss["copies"]
    assert measured == pytest.approx(planned, rel=0.05)

    checkpointed, *_ = plan.training(shape, texts, replace(settings, checkpointing=True))
    found.clear()
    model.checkpointing = True
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sft_loss(model, batch)
    measured = sum(size for size, _ in found.values())
    assert checkpointed["activations"] < loss["activations"] / 3
    # the head's cast is kept as well as its gathered hidden states
    assert measured == pytest.approx(checkpointed["activations"], rel=0.25)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_masters_and_moments_are_those_of_the_optimisers(make_model, make_examples, optimizer):
    model = make_model()
    optimizers = make_optimizers(model, optimizer, 1e-3)
    batch = collate(make_examples(2))
    for _ in train(model, optimizers, lambda step: [batch], sft_loss, CPU, steps=1):
        pass
    states = [state for o in optimizers for state in o.state.values()]
    measured = sum(t.nbytes for state in states for t in state.values() if t.ndim)
    shape, settings = plan.shape(model.config), replace(FP32, optimizer=optimizer)
    rest = plan.at_rest(shape, settings)
    assert rest["moments"] == measured
    assert rest["masters"] == sum(p.nbytes for p in model.parameters())
    rotary = sum(table.nbytes for table in model.buffers())
    assert rest["weights"] == rotary > 0
    shared = plan.at_rest(shape, replace(settings, shard=True, devices=4))
    assert shared["masters"] == rest["masters"] / 4 and shared["weights"] == rotary

    # as it is read, divided: a share in the compute dtype, and the table at a time
    bf16, table = replace(settings, wide=2, devices=4), 300 * 64
    opening = plan.opening(shape, replace(bf16, rank=4, shard=True))
    assert opening == {"weights": 2 * shape.parameters / 4, "copies": 2 * table}

    lean = plan.at_rest(shape, replace(settings, rank=4))
    attach(model, 4, 8.0, (), seed=0)
    adapter = [p for p in model.parameters() if p.requires_grad]
    assert lean["masters"] == sum(p.nbytes for p in adapter)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert lean["weights"] == sum(p.nbytes for p in frozen) + rotary


def test_a_sampler_holds_the_planned_cache(make_model):
    model = make_model()
    sampler = Sampler(model, [-1], slots=6)
    sampler([[5] * 21, [6] * 3], max_new_tokens=30)
    texts = plan.Texts(21, 30, [])
    planned = plan.sampling(plan.shape(model.config), texts, replace(FP32, slots=6))
    assert planned["cache"] == sum(t.nbytes for t in sampler.keys + sampler.values)
    held = [*model.parameters(), *model.buffers()]
    assert planned["weights"] == sum(tensor.nbytes for tensor in held)


def test_the_prefill_of_shorter_prompts_may_be_the_larger_one(make_model):
    """Of 4,096 tokens one prompt of 2,100 is padded to 2,304, and two of 2,048 are all of them."""
    shape = plan.shape(make_model(max_position_embeddings=4096).config)
    texts = plan.Texts(2100, 30, [(2100, 9), (2048, 9)])
    planned = plan.of_sampler(shape, texts, replace(FP32, slots=1))["activations"]
    assert planned == plan.of_prefill(shape, 2048, FP32) > plan.of_prefill(shape, 2304, FP32)


@pytest.fixture(autouse=True)
def few_problems(monkeypatch):
    """Whole splits take seconds to generate."""
    for module in (elicit_sft, elicit_rl, train_base):
        few = lambda task, split, n=None, **rows: load(task, split, n or 40, **rows)
        monkeypatch.setattr(module, "load", few)


def planned_by(capsys, stage, *argv) -> tuple[str, int]:
    """What a stage prints with --plan, and its exit code."""
    module = {"lock": lock, "sft": elicit_sft, "rl": elicit_rl, "evaluate": evaluate}
    module = (module | {"base": train_base})[stage]
    names = {"lock": "Lock", "sft": "SFT", "rl": "RL", "evaluate": "Evaluate", "base": "Base"}
    here = [] if "--device-memory" in argv else ["--device", "cpu"]
    cfg = parse(getattr(module, names[stage] + "Config"), [*argv, "--plan", *here])
    code = module.main(cfg, setup(cfg))
    return capsys.readouterr().out, code


COMMANDS = {
    "lock": ("lock", "--strong", STRONG, "--weak", WEAK, "--problems", "20"),
    "SFT": ("sft", "--locked", STRONG, "--task", "code", "--k", "8", "--seeds", "0"),
    "DPO": ("rl", "--locked", STRONG, "--task", "code", "--method", "dpo"),
    "evaluation": ("evaluate", STRONG, "--task", "code", "--problems", "20"),
    "bases from scratch": ("base", "--task", "code", "--problems", "40"),
    "given bases": ("base", "--task", "code", "--strong-from", STRONG, "--weak-from", WEAK),
}
COMMANDS["given bases"] += ("--out", "none", "--problems", "40", "--small-problems", "40")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_stage_prints_its_plan_and_opens_no_weights(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("checkpoints.hf.fill", None)
    monkeypatch.chdir(tmp_path)
    text, code = planned_by(capsys, *command)
    assert code == 0 and "it fits" in text and not [*tmp_path.iterdir()]
    assert re.search(r"largest: .*, 0\.\d+ GB of", text)


def test_the_policies_whose_distributions_are_imitated_are_planned(capsys):
    weights = []
    for imitate in ("samples", "distribution"):
        text, _ = planned_by(capsys, *COMMANDS["lock"], "--imitate", imitate)
        last = next(line for line in text.splitlines() if "last block" in line)
        weights.append(float(last.split()[3]))
    assert weights[0] == 0 < weights[1]


def test_the_model_that_writes_the_demonstrations_is_planned(capsys):
    text, _ = planned_by(
        capsys, *COMMANDS["SFT"], "--locked", WEAK, "--no-control", "--demos-from", STRONG
    )
    assert "largest: locked model, demonstrations" in text


def seven_billion(folder: Path) -> str:
    """A directory with the config.json of a model of DeepSeek's shape, and nothing else."""
    config = json.loads((ROOT / "data/base/strong/config.json").read_text())
    config |= {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}
    config |= {"vocab_size": 102400, "tie_word_embeddings": False}
    config |= {"max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_plan_that_does_not_fit_says_what_to_change(tmp_path, capsys):
    model = seven_billion(tmp_path)
    given = ("rl", "--locked", model, "--task", "code", "--device-memory", "80")
    with pytest.raises(InputError, match=r"does not fit, \d+.* of 80.0 GB .*: try .*, which fits"):
        planned_by(capsys, *given)
    text = capsys.readouterr().out
    assert "with --master bf16" in text and "with --rank 16" in text
    small = ("--master", "bf16", "--checkpoint-activations", "--slots", "32")
    small += ("--micro-tokens", "4096")
    text, code = planned_by(capsys, *given, *small)
    assert code == 0 and "1 CUDA device, bf16" in text
    # 6.91 B parameters: two bytes each for weights, momentum and gradient
    last = next(line for line in text.splitlines() if "first block" in line)
    assert [float(word) for word in last.split()[4:7]] == pytest.approx([13.82] * 3, abs=0.01)


def test_only_what_the_stage_takes_is_advised(tmp_path, capsys):
    given = ("lock", "--strong", seven_billion(tmp_path), "--weak", WEAK, "--problems", "20")
    given += ("--device-memory", "40")
    for more, advised in ((), True), (("--how", "scratch"), False), (("--start-mix", "0.5"), False):
        with pytest.raises(InputError, match="does not fit"):
            planned_by(capsys, *given, *more)
        text = capsys.readouterr().out
        assert ("--rank 16" in text) == advised and "--micro-tokens" in text


def test_random_weights_are_made_whole_on_every_rank(tmp_path, capsys):
    given = ("lock", "--strong", seven_billion(tmp_path), "--weak", WEAK, "--problems", "20")
    given += ("--device-memory", "1000", "--devices", "8", "--shard")
    opening = {}
    for more in ((), ("--how", "scratch")):
        text, _ = planned_by(capsys, *given, *more)
        row = next(line for line in text.splitlines() if line.startswith("opening"))
        opening[more] = float(row.split()[-1])
    # 27.6 GB of fp32 weights: an eighth and one tensor of 1.7, or all
    assert opening[()] == pytest.approx(27.6 / 8 + 1.7, abs=0.1)
    assert opening[("--how", "scratch")] == pytest.approx(27.6, abs=0.1)

    large = ("--layers", "16", "--width", "4096", "--heads", "32", "--device-memory", "1000")
    text, _ = planned_by(
        capsys, *COMMANDS["bases from scratch"], *large, "--devices", "8", "--shard"
    )
    row = next(line for line in text.splitlines() if line.startswith("strong, opening"))
    # 3.23 B parameters in fp32, and a copy in bf16 that is sampled
    assert float(row.split()[-1]) == pytest.approx(3.23 * 6, abs=0.1)


def test_the_teacher_of_a_warm_start_is_planned(tmp_path, capsys):
    given = ("rl", "--locked", STRONG, "--task", "code", "--warm-start", "8", "--warm-from")
    text, _ = planned_by(capsys, *given, seven_billion(tmp_path), "--device-memory", "80")
    assert "largest: demonstrations" in text


def test_the_training_of_a_warm_start_is_planned(tmp_path, capsys):
    """Its optimiser is elicit_sft.py's, whatever the rounds have."""
    given = ("rl", "--locked", STRONG, "--task", "code", "--optimizer", "lion", "--lr", "1e-4")
    text, _ = planned_by(capsys, *given, "--warm-start", "8", "--device-memory", "80")
    rows = [re.split("  +", line) for line in text.splitlines()]
    [head] = [row for row in rows if "moments" in row]
    moments = {row[0]: row[head.index("moments")] for row in rows if len(row) == len(head)}
    assert float(moments["warm start"]) == 2 * float(moments["training, loss"]) > 0


def test_log_probs_are_computed_beside_the_samplers_cache(tmp_path, capsys):
    """What is released before the update is still there when samples are scored."""
    text, _ = planned_by(
        capsys, "rl", "--locked", seven_billion(tmp_path), "--task", "code", "--rank", "4",
        "--device-memory", "200", "--slots", "16", "--checkpoint-activations",
    )  # fmt: skip
    head, _, *rows = [line.split() for line in text.splitlines() if "  " in line]
    cache = {row[0]: row[1 + head.index("cache")] for row in rows if len(row) == len(head)}
    assert float(cache["log-probs"]) > 0


def test_weights_that_are_kept_on_the_host_are_told(tmp_path, capsys):
    """Those that every cell starts from, and the best so far: 6.9 G parameters of four bytes."""
    given = ("sft", "--locked", seven_billion(tmp_path), "--task", "code", "--no-control")
    text, _ = planned_by(capsys, *given, "--device-memory", "200")
    [told] = [line for line in text.splitlines() if "host" in line]
    assert float(told.split()[1]) == pytest.approx(2 * 27.6, abs=0.1)
    assert "host" not in planned_by(capsys, "sft", "--locked", STRONG, "--task", "code")[0]


def test_another_models_weights_are_counted_once(tmp_path, capsys):
    text, _ = planned_by(
        capsys, "rl", "--locked", STRONG, "--task", "math", "--judge", seven_billion(tmp_path),
        "--device-memory", "200",
    )  # fmt: skip
    rows = [re.split("  +", line) for line in text.splitlines()]
    [head] = [row for row in rows if "moments" in row]
    weights = {row[0]: row[head.index("weights")] for row in rows if len(row) == len(head)}
    for phase in ("samples of a round", "log-probs", "the judge's answers", "training, loss"):
        assert float(weights[phase]) == pytest.approx(13.8, abs=0.1)


def test_adapters_beside_few_matrices_are_planned(make_model):
    model = make_model()
    shape, texts = plan.shape(model.config), plan.Texts(40, 24, [(40, 24)])
    settings = replace(FP32, optimizer="adamw", batch=4, micro_tokens=1024, rank=4)
    some = replace(settings, targets=("q_proj",))
    attach(model, 4, 8.0, ("q_proj",), seed=0)
    adapter = [p for p in model.parameters() if p.requires_grad]
    assert plan.at_rest(shape, some)["masters"] == sum(p.nbytes for p in adapter)
    # the products that a step keeps are those of the layers with an adapter
    everything, few = (plan.training(shape, texts, each)[0]["copies"] for each in (settings, some))
    matrices = sum(layer.self_attn.q_proj.weight.nbytes for layer in model.model.layers)
    assert few == matrices < everything


def test_long_prompts_are_not_planned(capsys):
    with pytest.raises(InputError, match="--plan does not know the longer prompts of --prompts"):
        planned_by(capsys, "evaluate", STRONG, "--task", "code", "--prompts")


def test_a_loss_on_whole_texts_is_planned():
    texts = plan.Texts(5, 9, [(5, 2), (3, 4)])
    assert plan.supervised(texts, elicit_sft.SFTConfig()) == texts
    assert plan.supervised(texts, elicit_sft.SFTConfig(loss_on="texts")).lengths == [(1, 6), (1, 6)]


def test_the_bases_that_are_planned_are_those_that_are_trained(tmp_path, capsys):
    cfg = train_base.settled(train_base.BaseConfig(task="code", problems=40))
    strong = train_base.planned_strong(cfg)
    vocabulary = SimpleNamespace(size=cfg.vocab)
    config = train_base.strong_config(cfg.vocab, cfg)
    fresh = fresh_model(config, vocabulary, 0, CPU)
    assert strong.shape.parameters == fresh.parameter_count()
    small = train_base.planned_small(strong, cfg)
    assert list(small) == ["weak", "intermediate"] and small["weak"].batch == train_base.SCRATCH

    # no LoRA to advise
    given = ("base", "--strong-from", seven_billion(tmp_path), "--task", "code", "--out", "none")
    with pytest.raises(InputError, match=r"does not fit, \d+.* GB \(strong, .*\): try .*"):
        planned_by(capsys, *given, "--slots", "32", "--device-memory", "80")
    text = capsys.readouterr().out
    assert "with --master bf16" in text and "--rank" not in text


def test_options_of_a_plan_are_refused_without_it():
    with pytest.raises(InputError, match="--device-memory is of --plan"):
        plan.is_asked(PlanConfig(device_memory=80.0))
    with pytest.raises(InputError, match="speaks of CUDA devices: leave out"):
        plan.is_asked(PlanConfig(plan=True, device_memory=80.0, device="cpu"))
    assert not plan.is_asked(PlanConfig()) and plan.is_asked(PlanConfig(plan=True, devices=8))
