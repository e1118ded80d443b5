"""LoRA: train a product of two thin matrices beside each frozen one (Hu et al. 2021).

Equation 3: a linear map h = W0 x becomes

    h = W0 x + (alpha / r) B A x,    W0 (out,in) frozen, A (r,in) and B (out,r) trained.

A is random and B zero, so that training starts from the model as it was. There is no dropout: it
would act on x and not on a weight. A torch parametrization puts W = W0 + (alpha / r) B A in the
place of each layer's weight, so whoever reads `layer.weight`, the network's own code, computes with
the sum. That a layer is adapted is known here alone; what needs a model's weights under their names
in a checkpoint (the sampler's copy, a saved model) asks `plain_weights`.

What it saves is memory. For a weight of a frozen matrix nothing is kept but itself, in the compute
dtype, and W while a block's backward pass waits for it (--checkpoint-activations frees that, too):
no fp32 master, no gradient from step to step, no moments. The time of a step is nearly that of full
fine-tuning: the gradient of W is computed on the way to those of A and B.

Read in this order: `LowRank`, `attach`, `plain_weights`; then the layout of PEFT (Hugging Face's
package), `peft_settings`, `peft_tensors` and, back from it, `merge`.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.hooks import RemovableHandle

from data.problems import InputError
from model import Model, local, whole
from runs.files import checked, read_json, shortened

# alpha where nothing else is said. A constant and not the rank, as in the paper (section 4.1): an
# entry of the product is a sum over the rank, so with alpha / rank before it one learning rate
# serves all ranks.
ALPHA = 16.0


class LowRank(nn.Module):
    """W0 -> W0 + (alpha / r) B A, in fp32 whatever W0 is stored in."""

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        outputs, inputs = weight.shape
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, device=weight.device))
        self.lora_B = nn.Parameter(torch.empty(outputs, rank, device=weight.device))
        self.rank = rank
        self.alpha = alpha
        self.is_on = True

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """A random, the same on any number of ranks; B zero."""
        down = torch.empty(self.lora_A.shape)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)  # +-1/sqrt(inputs)
        local(self.lora_A).copy_(own_rows(down, self.lora_A))
        local(self.lora_B).zero_()

    def forward(self, weight: Tensor) -> Tensor:
        if not self.is_on:
            return weight
        return updated(weight, self.lora_A, self.lora_B, self.alpha / self.rank)


def updated(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """weight + scale up down, in fp32; on CUDA the product in TF32 where the model is of bf16.

    weight (out,in), down (r,in), up (out,r).
    """
    return torch.addmm(weight.float(), up, down, alpha=scale)


def own_rows(whole_one: Tensor, like: Tensor) -> Tensor:
    """This rank's rows of a whole tensor that is divided as `like` is; else all of them."""
    if not isinstance(like, DTensor):
        return whole_one
    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(whole_one, mesh, placements, src_data_rank=None).to_local()


# ------------------------------------------------------------------------------- an adapted model


def chosen_layers(model: Model, targets: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The linear maps of the model's blocks that targets name, all where it names none.

    Raises InputError for a name that no block has.
    """
    linear = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("model.layers."):
            linear[name] = module

    kinds = {name: name.rpartition(".")[2] for name in linear}
    choices = list(dict.fromkeys(kinds.values()))
    for target in targets:
        if target not in choices:
            raise InputError(f"--targets {target}: a block's linear maps are {', '.join(choices)}")
    return {name: module for name, module in linear.items() if kinds[name] in (targets or choices)}


def attach(model: Model, rank: int, alpha: float, targets: tuple[str, ...], seed: int) -> None:
    """Freeze the model, in place, and put an adapter beside each chosen matrix.

    Frozen matrices are stored in the compute dtype, to which they are rounded wherever they are
    used. So a merged model that was trained in bf16 is that dtype's W0 and the fp32 product.
    A model on the meta device has no weights yet: once it has, `reset` begins its adapters.
    """
    layers = chosen_layers(model, targets)
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.to(model.compute_dtype)

    kind: type | None = None
    for layer in layers.values():
        low = LowRank(layer.weight, rank, alpha)
        # unsafe: W is fp32 also where W0 is bf16, which torch would refuse
        register_parametrization(layer, "weight", low, unsafe=True)
        # torch makes a class for each layer; of several, blocks would each be compiled anew
        kind = kind or type(layer)
        layer.__class__ = kind
    if model.device.type != "meta":
        reset(model, seed)


def reset(model: Model, seed: int) -> None:
    """Begin the adapters of a model anew, in place."""
    generator = torch.Generator().manual_seed(seed)
    for low in adapters(model).values():
        low.reset(generator)


def adapters(model: Model) -> dict[str, LowRank]:
    """The adapters of a model by their layer's name; none of an ordinary one."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            found[name.removesuffix(".parametrizations.weight.0")] = module
    return found


def read_weights(model: Model) -> dict[str, Tensor]:
    """Every parameter that a checkpoint has, by its name there; of an adapted layer W0."""
    found = {}
    for name, parameter in model.named_parameters():
        layer, _, part = name.partition(".parametrizations.weight.")
        if not part:
            found[name] = parameter
        elif part == "original":
            found[f"{layer}.weight"] = parameter
    return found


def plain_weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its name in a checkpoint, one after the other; of an adapted layer W.

    Those of an adapted model are whole tensors, so where they are sharded all ranks must call this.
    """
    lows = adapters(model)
    for name, parameter in read_weights(model).items():
        low = lows.get(name.removesuffix(".weight"))
        yield name, merged(parameter, low) if low else parameter


@torch.no_grad()
def merged(weight: Tensor, low: LowRank) -> Tensor:
    """W, on every rank, from W0."""
    scale = low.alpha / low.rank
    return updated(whole(weight), whole(low.lora_A), whole(low.lora_B), scale)


@contextmanager
def switched_off(model: Model, when: bool = True) -> Iterator[None]:
    """Within, the model computes as it did before it was adapted: a reference without a copy."""
    lows = adapters(model).values() if when else ()
    for low in lows:
        low.is_on = False
    try:
        yield
    finally:
        for low in lows:
            low.is_on = True


# ------------------------------------------------------------------------- a few of its numbers


def scalar_count(model: Model, rank: int, targets: tuple[str, ...]) -> int:
    """How many numbers the adapters of a model that has none yet would have: all As and Bs."""
    return sum(rank * sum(layer.weight.shape) for layer in chosen_layers(model, targets).values())


def factors(model: Model) -> list[Tensor]:
    """A and B of each adapter."""
    found = []
    for low in adapters(model).values():
        found += [low.lora_A, low.lora_B]
    return found


def chosen_scalars(model: Model, count: int, seed: int) -> list[Tensor]:
    """For each of `factors` which of its entries are chosen (bool): `count` in all, uniformly.

    A function of (seed, count) and of the shapes. Nested: the chosen of a smaller count are among
    those of a larger one.
    """
    sizes = [p.numel() for p in factors(model)]
    order = np.random.default_rng([seed, 19]).permutation(sum(sizes))
    flat = torch.zeros(sum(sizes), dtype=torch.bool)
    flat[torch.from_numpy(order[:count])] = True
    parts = flat.split(sizes)
    return [part.view(p.shape).to(p.device) for part, p in zip(parts, factors(model))]


def train_few(
    model: Model, count: int, seed: int, optimizers: list[torch.optim.Optimizer]
) -> list[RemovableHandle]:
    """From now on only `count` numbers of the adapters are trained, see `chosen_scalars`.

    After Donoway et al.: how many numbers must be trained tells how near a capability is. The
    others have no gradient, before it is clipped, and are put back after each step, because weight
    decay moves what has none. With all of them chosen this is LoRA, bit for bit. Returns the hooks
    that do it, to be removed where it is to end; for optimisers that step each entry by itself.
    """
    trained, masks = factors(model), chosen_scalars(model, count, seed)
    before = [p.detach().clone() for p in trained]

    @torch.no_grad()
    def put_back(*_) -> None:
        for p, mask, value in zip(trained, masks, before):
            p.copy_(torch.where(mask, p, value))

    hooks = [p.register_hook(mask.mul) for p, mask in zip(trained, masks)]
    return hooks + [each.register_step_post_hook(put_back) for each in optimizers]


# ----------------------------------------------------------------------------------- PEFT's layout

# What adapter_config.json may say: it decides the numbers and is read here, ...
READ = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora")
READ += ("init_lora_weights", "bias")
# ... or it decides nothing of a merged model. Anything else must be empty.
HARMLESS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
HARMLESS += ("lora_dropout", "task_type", "inference_mode", "auto_mapping", "revision")
HARMLESS += ("peft_version", "megatron_core", "qalora_group_size", "ensure_weight_tying")
HARMLESS += ("eva_config", "ephemeral_gpu_offload", "runtime_config")

# others change the base model's weights before training
INITS = (None, True, False, "gaussian", "orthogonal", "eva")

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


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


def peft_settings(model: Model, base: str) -> dict:
    """adapter_config.json of an adapted model. base: the directory it was opened from."""
    lows = adapters(model)
    one = next(iter(lows.values()))
    whole_alpha = int(one.alpha) if one.alpha == int(one.alpha) else one.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": one.rank,
        "lora_alpha": whole_alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in lows}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
    }


def peft_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """adapter_model.safetensors of an adapted model, tensor by tensor."""
    for name, low in adapters(model).items():
        yield PREFIX + name + DOWN, low.lora_A
        yield PREFIX + name + UP, low.lora_B


def refuse_others(settings: dict, file: str) -> None:
    """Raise InputError, naming the key, for what is no plain LoRA."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{file} has peft_type = {kind!r:.60}: only LORA adapters are read")
    if settings.get("bias", "none") != "none":
        raise InputError(f"{file} has bias = {settings['bias']!r:.60}: only none is supported")
    init = settings.get("init_lora_weights")
    if init not in INITS:
        raise InputError(
            f"{file} has init_lora_weights = {init!r:.60}, which changes the base model, too: "
            "convert the adapter with PEFT, or merge it there"
        )
    for key, value in settings.items():
        if key not in READ and key not in HARMLESS and value:
            raise InputError(
                f"{file} has {key} = {value!r:.60}: only plain LoRA is read; merge the adapter "
                "with PEFT (merge_and_unload) and save the model"
            )


def number(settings: dict, name: str, file: str) -> float:
    """A number of adapter_config.json above 0. Raises InputError for anything else."""
    value = settings.get(name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < 1e6:
        raise InputError(f"{file} has {name} = {value!r:.60}: it must be a number above 0")
    return value


def layer_of(key: str, weights: dict[str, Tensor], file: str) -> str:
    """The layer that a tensor of PEFT's layout is A or B of. Raises InputError where it is none."""
    for end in (DOWN, UP):
        name = key.removeprefix(PREFIX).removesuffix(end)
        weight = weights.get(f"{name}.weight")
        is_linear = weight is not None and weight.ndim == 2 and "embed_tokens" not in name
        if is_linear and key == PREFIX + name + end:
            return name
    raise InputError(
        f"{file}: {key} belongs to no linear map of the base model: "
        "the adapter is of another model, or more than plain LoRA; name its own base model in "
        "adapter_config.json"
    )


def factor(tensors: dict[str, Tensor], key: str, shape: tuple[int, int], file: str) -> Tensor:
    """An A or a B. Raises InputError where it is not there, or has another shape."""
    if key not in tensors:
        raise InputError(f"{file} lacks {key}: the adapter is incomplete, so fetch it again")
    found = tuple(tensors[key].shape)
    if found != shape:
        raise InputError(
            f"{file}: {key} has shape {found}, base model and rank make it {shape}: "
            "the adapter is of another model, so name its own base model in adapter_config.json"
        )
    return tensors[key]


@torch.no_grad()
def merge(
    model: Model, settings: dict, tensors: dict[str, Tensor], places: tuple[str, str]
) -> None:
    """Add an adapter in PEFT's layout to the weights of its base model, in place, divided or not.

    settings and tensors: the content of the two files, whose names, for errors, are places. Raises
    InputError for what is no plain LoRA, or of another model; nothing has changed then.
    """
    config, file = places
    refuse_others(settings, config)
    rank, alpha = number(settings, "r", config), number(settings, "lora_alpha", config)
    # rsLoRA (Kalajdzievski 2023) divides by the root of the rank
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    weights = dict(model.named_parameters())  # a tied head is not among them: it is the embedding
    names = dict.fromkeys(layer_of(key, weights, file) for key in tensors)
    if not names:
        raise InputError(f"{file} holds no tensor")

    updates = []
    for name in names:
        weight = weights[f"{name}.weight"]
        outputs, inputs = weight.shape
        down = factor(tensors, PREFIX + name + DOWN, (rank, inputs), file)
        up = factor(tensors, PREFIX + name + UP, (outputs, rank), file)
        updates.append((weight, down, up))
    for weight, down, up in updates:
        mine = local(weight)
        mine.copy_(updated(mine, down, own_rows(up, weight), scale))
