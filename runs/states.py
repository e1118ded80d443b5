"""The state of an interrupted run: weights, optimisers and step, so that it goes on as it would.

On a CPU bit for bit; on CUDA sums by several threads come in any order.

A folder holds state.json, replaced last, which names the files that count: one,
step-0000400.safetensors, or of a run whose weights are divided over ranks one of each rank,
step-0000400-00001-of-00002.safetensors, with its rows of every tensor. No rank ever holds the
whole, and however many ranks there are later, each reads the rows that are its own then. A kill at
any moment leaves the state before it untouched.
"""

import os
import re
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from data.problems import InputError
from model import Model, local
from runs.devices import Env, check_shared
from runs.files import checked, discard, read_json, reason, shortened, sync, write_json


def name_of(step: int) -> str:
    return f"step-{step:07}.safetensors"


def names_of(step: int, parts: int) -> list[str]:
    """Of the files of a state, in the order of their rows."""
    whole = name_of(step)
    if parts == 1:
        return [whole]
    stem = whole.removesuffix(".safetensors")
    return [f"{stem}-{part + 1:05}-of-{parts:05}.safetensors" for part in range(parts)]


def save(folder: Path, step: int, model: Model, optimizers: list, env: Env) -> None:
    """Write the state after `step`, then remove the one before it. All ranks call it.

    Raises InputError on all of them where one cannot write its part.
    """
    tensors = state_tensors(model, optimizers)
    is_divided = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    names = names_of(step, env.world if is_divided else 1)
    if env.rank < len(names):
        env.together(write, folder / names[env.rank], own_part(tensors, env.main))
    else:
        env.together(lambda: None)
    env.decide(point_to, folder, step, names)


def own_part(tensors: dict[str, Tensor], main: bool) -> dict[str, Tensor]:
    """This rank's rows of what is divided, on the host; of the rest the main rank has all."""
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            found[name] = tensor.detach().to_local().contiguous().cpu()
        elif main:
            found[name] = tensor.detach().contiguous().cpu()
    return found


def write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Beside what is there, then renamed. Raises InputError where it cannot be written."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(exist_ok=True)
        save_file(tensors, temporary)
        sync(temporary)
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        discard(temporary)
        raise not_written(file, error) from None


def point_to(folder: Path, step: int, names: list[str]) -> None:
    """From now on these files count; others are removed."""
    pointer = folder / "state.json"
    try:
        write_json(pointer, {"step": step, "file": name_of(step), "parts": len(names)})
    except OSError as error:
        raise not_written(pointer, error) from None
    for old in folder.glob("step-*"):
        if old.name not in names:
            # another rank may have renamed it by now: listings of shared file systems are late
            old.unlink(missing_ok=True)


def not_written(file: Path, error: Exception) -> InputError:
    return InputError(
        f"could not write {file} ({reason(error)}); the state saved before it is untouched"
    )


def load(folder: Path, model: Model, optimizers: list, env: Env) -> int:
    """Put weights and optimisers back, in place; returns their step, 0 where none was saved.

    All ranks call it. Raises InputError for a state that is damaged or of another model.
    """
    step, parts = env.decide(saved, folder)
    if not step:
        return 0
    files = [folder / name for name in names_of(step, parts)]
    check_shared(env, files[-1])
    env.together(restore, files, model, optimizers)
    return step


def saved(folder: Path) -> tuple[int, int]:
    """The step of the state that counts and how many files it has; (0, 0) where there is none."""
    pointer = folder / "state.json"
    if not os.path.lexists(pointer):
        return 0, 0
    found = read_json(pointer)

    step = checked(found, pointer, "step", int, least=1)
    parts = checked(found, pointer, "parts", int, default=1, least=1)
    name = checked(found, pointer, "file", str)
    if Path(name).name != name:
        raise InputError(f"{pointer} names {shortened(name)}, which is not beside it")
    if name != name_of(step):
        raise InputError(f"{pointer} has another step than {name}: --overwrite starts again")
    for name in names_of(step, parts):
        if not (folder / name).exists():
            raise InputError(
                f"{folder / name} cannot be resumed from (it is gone): --overwrite starts again"
            )
    return step, parts


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


def restore(files: list[Path], model: Model, optimizers: list) -> None:
    """Read a state back into model and optimisers, in place.

    Raises InputError for files that are damaged or not made from such ones. All names and shapes
    are looked at before anything changes.
    """
    try:
        with ExitStack() as stack:
            opened = []
            for file in files:
                part = safe_open(file, framework="pt", device=str(model.device))
                opened.append(stack.enter_context(part))
            fill(opened, model, optimizers)
    except (SafetensorError, OSError, InputError) as error:
        raise InputError(
            f"{files[0]} cannot be resumed from ({reason(error)}): --overwrite starts again"
        ) from None


def fill(files: list, model: Model, optimizers: list) -> None:
    """`restore` from opened files."""
    parameters = trained(model)
    owners = []  # of each optimiser's states, numbered as it does
    for optimizer in optimizers:
        owners.append([p for group in optimizer.param_groups for p in group["params"]])

    stored: dict[str, list] = {}  # the files that have rows of a tensor
    for file in files:
        for key in file.keys():
            stored.setdefault(key, []).append(file)
    places = {key: owner_of(key, parameters, owners) for key in stored}
    for key, owner in places.items():
        shape = whole_shape(key, stored[key])
        is_count = key.startswith("optimizer.") and shape == ()
        if owner is None or (shape != tuple(owner.shape) and not is_count):
            raise InputError(f"{key} of shape {shape} belongs to another model or optimiser")
    for name in parameters:
        if f"model.{name}" not in places:
            raise InputError(f"model.{name} is missing")

    states: list[dict] = [{} for _ in optimizers]
    for key, owner in places.items():
        if key.startswith("model."):
            with torch.no_grad():
                local(owner).copy_(own_rows(key, stored[key], owner))
            continue
        _, i, j, name = key.split(".")
        states[int(i)].setdefault(int(j), {})[name] = state_of(key, stored[key], owner)
    for optimizer, state in zip(optimizers, states):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def whole_shape(key: str, files: list) -> tuple[int, ...]:
    """Of a tensor whose rows stand in these files, one after the other.

    Raises InputError where they do not go together.
    """
    shapes = [tuple(file.get_slice(key).get_shape()) for file in files]
    first = shapes[0]
    if len(shapes) == 1:
        return first
    if not first or any(shape[1:] != first[1:] for shape in shapes):
        raise InputError(f"{key} has other shapes in one file than in another")
    return (sum(shape[0] for shape in shapes), *first[1:])


def own_rows(key: str, files: list, like: Tensor) -> Tensor:
    """The rows of a stored tensor that this rank has of the parameter `like`; no more are read."""
    low, high = 0, like.shape[0]
    if isinstance(like, DTensor):
        # divided as torch.chunk does: all but the last ones have equally many
        mesh = like.device_mesh
        most = -(-high // mesh.size())
        low = min(high, most * mesh.get_local_rank())
        high = min(high, low + most)

    found, begin = [], 0
    for file in files:
        rows = file.get_slice(key)
        end = begin + rows.get_shape()[0]
        if max(low, begin) < min(high, end):
            found.append(rows[max(low, begin) - begin : min(high, end) - begin])
        begin = end
    if len(found) == 1:
        return found[0]
    return torch.cat(found) if found else torch.empty_like(local(like))


def state_of(key: str, files: list, like: Tensor) -> Tensor:
    """A tensor of an optimiser, divided as its parameter `like` is; a count as it is."""
    if not files[0].get_slice(key).get_shape():
        return files[0].get_tensor(key)
    rows = own_rows(key, files, like)
    if not isinstance(like, DTensor):
        return rows
    whole = {"shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, **whole)


def owner_of(key: str, parameters: dict[str, Tensor], owners: list[list]) -> Tensor | None:
    """The parameter that a tensor of a state is of, or belongs to; None where there is none."""
    if key.startswith("model."):
        return parameters.get(key.removeprefix("model."))
    found = re.fullmatch(r"optimizer\.(\d+)\.(\d+)\.\w+", key)
    if not found:
        return None
    i, j = int(found[1]), int(found[2])
    return owners[i][j] if i < len(owners) and j < len(owners[i]) else None
