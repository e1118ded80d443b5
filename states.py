"""The state of an interrupted run: weights, optimisers and step, so that it continues bitwise.

A folder holds state.json, replaced last, which names the file that counts:
step-0000400.safetensors. A kill at any moment leaves the state before it untouched.
"""

import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from checkpoints import collected
from data.problems import InputError
from devices import Env, check_shared
from files import checked, read_json, reason, shortened, sync, write_json
from model import Model


def name_of(step: int) -> str:
    return f"step-{step:07}.safetensors"


def save(folder: Path, step: int, model: Model, optimizers: list, env: Env) -> None:
    """Write the state after `step`, then remove the one before it. All ranks call it."""
    name = name_of(step)
    tensors = collected(state_tensors(model, optimizers).items(), env.main)
    if not env.main:
        return

    try:
        folder.mkdir(exist_ok=True)
        temporary = folder / (name + ".tmp")
        save_file(tensors, temporary)
        sync(temporary)
        os.replace(temporary, folder / name)
        write_json(folder / "state.json", {"step": step, "file": name})
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"could not write {folder / name} ({reason(error)}); "
            "the state saved before it is untouched"
        ) from None

    for old in folder.glob("step-*"):
        if old.name != name:
            old.unlink()


def load(folder: Path, model: Model, optimizers: list, env: Env) -> int:
    """Put weights and optimisers back, in place; returns their step, 0 where none was saved.

    All ranks call it. Raises InputError for a state that is damaged or of another model.
    """
    step, name = env.decide(saved, folder)
    if not step:
        return 0

    file = folder / name
    check_shared(env, file)
    try:
        restore(file, model, optimizers)
    except (SafetensorError, OSError, InputError) as error:
        raise InputError(
            f"{file} cannot be resumed from ({reason(error)}): --overwrite starts again"
        ) from None
    return step


def saved(folder: Path) -> tuple[int, str]:
    """The step of the state that counts and its file's name; (0, "") where there is none."""
    pointer = folder / "state.json"
    if not os.path.lexists(pointer):
        return 0, ""
    found = read_json(pointer)

    step = checked(found, pointer, "step", int, least=1)
    name = checked(found, pointer, "file", str)
    if Path(name).name != name:
        raise InputError(f"{pointer} names {shortened(name)}, which is not beside it")
    if name != name_of(step):
        raise InputError(f"{pointer} has another step than {name}: --overwrite starts again")
    if not (folder / name).exists():
        raise InputError(
            f"{folder / name} cannot be resumed from (it is gone): --overwrite starts again"
        )
    return step, name


def trained(model: Model) -> dict[str, Tensor]:
    """The parameters that training moves; frozen ones are read again from where they came."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def state_tensors(model: Model, optimizers: list) -> dict[str, Tensor]:
    """Trained weights and optimiser states under the names that `restore` knows."""
    tensors = {f"model.{name}": p for name, p in trained(model).items()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{i}.{j}.{key}"] = value
    return tensors


def restore(file: Path, model: Model, optimizers: list) -> None:
    """Read a file of `state_tensors` back into model and optimisers, in place.

    Raises InputError where they are not those that it was made from. All names and shapes are
    looked at before anything changes.
    """
    parameters = trained(model)
    owners = []  # of each optimiser's states, numbered as it does
    for optimizer in optimizers:
        owners.append([p for group in optimizer.param_groups for p in group["params"]])

    with safe_open(file, framework="pt", device=str(model.device)) as f:
        places = {key: owner_of(key, parameters, owners) for key in f.keys()}
        for key, owner in places.items():
            shape = tuple(f.get_slice(key).get_shape())
            is_count = key.startswith("optimizer.") and shape == ()
            if owner is None or (shape != tuple(owner.shape) and not is_count):
                raise InputError(f"{key} of shape {shape} belongs to another model or optimiser")

        for name in parameters:
            if f"model.{name}" not in places:
                raise InputError(f"model.{name} is missing")

        states: list[dict] = [{} for _ in optimizers]
        for key, owner in places.items():
            tensor = placed(f.get_tensor(key), owner)
            if key.startswith("model."):
                with torch.no_grad():
                    owner.copy_(tensor)
            else:
                _, i, j, name = key.split(".")
                states[int(i)].setdefault(int(j), {})[name] = tensor

    for optimizer, state in zip(optimizers, states):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def owner_of(key: str, parameters: dict[str, Tensor], owners: list[list]) -> Tensor | None:
    """The parameter that a tensor of a state is of, or belongs to; None where there is none."""
    if key.startswith("model."):
        return parameters.get(key.removeprefix("model."))
    found = re.fullmatch(r"optimizer\.(\d+)\.(\d+)\.\w+", key)
    if not found:
        return None
    i, j = int(found[1]), int(found[2])
    return owners[i][j] if i < len(owners) and j < len(owners[i]) else None


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """As the parameter is: sharded if it is, over however many ranks there are now."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
