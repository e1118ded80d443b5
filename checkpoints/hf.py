"""Checkpoints on disk: Hugging Face directories, in (`load_model`) and out (`save_model`).

What is damaged, misshapen or of a kind that this network would compute wrongly is an InputError,
one sentence that names the file and the tensor.
"""

import contextlib
import functools
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from checkpoints.families import (
    HARMLESS,
    Place,
    from_hf,
    parameters_of,
    part_of_file,
    part_of_model,
    stored_places,
    stored_shape,
    to_hf,
)
from data.problems import InputError
from data.prompts import FORMAT
from data.text import Tokenizer
from lora import (
    base_of,
    is_adapter,
    merge,
    own_rows,
    peft_settings,
    peft_tensors,
    plain_weights,
    read_weights,
)
from model import Model, ModelConfig, local, whole
from runs.files import checked, read_json, reason, shortened, size_of, sync, write_json

# ------------------------------------------------------------------------------------ weights, read

# what to do about files that contradict each other
AGAIN = "so fetch the weights and the config.json that belong to them again"

# a tensor of these is converted to fp32 exactly; F64 is rounded
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    masters: bool = True,
    divide: Callable[[Model], object] | None = None,
) -> tuple[Model, Tokenizer]:
    """Open a checkpoint directory: fp32 master weights on `device`, and its tokenizer.

    masters=False: the weights are stored in the compute dtype, as a model's are that is never
    trained; it computes the same, but where an adapter is merged, whose sum is then rounded twice,
    as it was in training. divide(model) is called before there are any weights; where it
    divides them over the ranks, a rank never holds more than its share and one tensor.

    A directory that holds a LoRA adapter in PEFT's layout opens as its base model with the adapter
    merged.
    Raises InputError, naming the file, for anything missing, truncated, corrupted, misshapen, not
    finite, or where tokenizer and model disagree. Nothing large is allocated before all files are
    found to hold what config.json says; then tensors are read one at a time, so that memory never
    holds more than the model and one of them.
    """
    path = Path(path)
    if is_adapter(path):
        return load_adapter(path, device, compute_dtype, masters, divide)
    model, tokenizer, files = opened_checkpoint(path, compute_dtype)

    if not masters:
        model.to(compute_dtype)
    if divide:
        divide(model)
    model.to_empty(device=device).rebuild()  # ties the head anew, which to_empty undoes
    begun: dict[str, Tensor] = {}
    with torch.no_grad():
        for file in files:
            fill(model, file, device, begun)
        parameters = read_weights(model)
        for name, tensor in begun.items():
            keep_share(parameters[name], tensor)
    model.live_vocab = tokenizer.size
    return model, tokenizer


def check_checkpoint(path: str | Path) -> None:
    """Raises InputError for what `load_model` refuses.

    Holds one tensor at a time; of an adapter the whole model, in bf16.
    """
    path = Path(path)
    if is_adapter(path):
        load_model(path, compute_dtype=torch.bfloat16, masters=False)
        return
    _, _, files = opened_checkpoint(path, torch.float32)
    for file in files:
        with opened(file, "cpu") as f:
            for key in f.keys():
                if not is_harmless(key):  # a mask of -1e9 is infinite in fp16
                    check_finite(file, key, f.get_tensor(key))


def opened_checkpoint(
    path: Path, compute_dtype: torch.dtype
) -> tuple[Model, Tokenizer, list[Path]]:
    """The model on the meta device, its tokenizer, and the files of its weights, all checked."""
    if os.path.lexists(path / "adapter_config.json"):
        raise InputError(
            f"{path} holds a whole model and adapter_config.json, so that it is two models: "
            "move one of them to a directory of its own"
        )
    config = from_hf(read_json(path / "config.json"), path / "config.json")

    tokenizer = Tokenizer.load(path)
    if tokenizer.size > config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.size} ids but the model only "
            f"{config.vocab_size} rows, so they do not belong together: "
            "put the tokenizer that was published with the model there"
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
    return model, tokenizer, files


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
                    f"{index} names {shortened(name)}: weights are safetensors files beside it, "
                    "so fetch the checkpoint again"
                )
            files.setdefault(path / name, set()).add(tensor)
        if os.path.lexists(whole_file) and whole_file not in files:
            raise InputError(
                f"{path} has {whole_file.name} and {index.name} with other files, which may be "
                "two models: remove the one that is not meant"
            )
        return files

    pickled = [*path.glob("*.bin"), *path.glob("*.pth"), *path.glob("*.pt")]
    if pickled and not os.path.lexists(whole_file):
        raise InputError(
            f"{path} holds its weights as pickle ({sorted(pickled)[0].name}), which may run code "
            "when it is opened and is not read here: convert it once, where you trust it, with "
            "transformers (AutoModelForCausalLM.from_pretrained(...).save_pretrained(NEW))"
        )
    return {whole_file: None}


@contextlib.contextmanager
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

    Returns the dtype that all of them have, or float32. Reads headers only, but for a tied head
    that is stored a second time.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    places = stored_places(model.config, shapes)  # a tied head stands here once, as the embedding
    found: dict[str, Path] = {}
    copies: dict[str, Path] = {}  # of the embedding
    dtypes = set()
    for file, expected in files.items():
        with opened(file) as f:
            keys = set(f.keys())
            for key in sorted(keys & set(places)):
                if key in found:
                    raise InputError(f"{file}: {key} stands in {found[key].name} too, {AGAIN}")
                found[key] = file
                header = f.get_slice(key)
                check_header(file, key, header, stored_shape(model.config, places[key], shapes))
                dtypes.add(DTYPES[header.get_dtype()])
        for key in sorted(keys - set(places)):
            if key in HEADS and model.config.tie_word_embeddings:
                copies[key] = file
            elif not is_harmless(key):
                raise InputError(
                    f"{file}: unexpected tensor {key}: config.json describes a model without it, "
                    + AGAIN
                )
        if expected is not None and (lost := sorted(expected - keys)):
            raise InputError(f"{file} lacks {lost[0]}, which the index says is in it, {AGAIN}")

    if missing := sorted(set(places) - set(found)):
        raise InputError(
            f"{path}: {len(missing)} tensors are missing, first {missing[0]}: "
            "the checkpoint is incomplete, or config.json is of another model, " + AGAIN
        )
    for key, file in copies.items():
        [embedding] = [k for k, at in places.items() if at == [Place(EMBEDDING)]]
        check_tied(key, file, embedding, found[embedding])
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def is_harmless(key: str) -> bool:
    """Whether a tensor that is no parameter may stand in a file: it can be computed."""
    return key.endswith(HARMLESS)


HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDING = "model.embed_tokens.weight"
AT_ONCE = 4096  # rows of a table that are compared in one piece


def check_tied(key: str, head: Path, embedding: str, file: Path) -> None:
    """Raises InputError where a tied model's stored head is another than its embedding."""
    with opened(head) as f, opened(file) as g:
        one, other = f.get_slice(key), g.get_slice(embedding)
        same = one.get_shape() == other.get_shape()
        rows = one.get_shape()[0] if same else 0
        for start in range(0, rows, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            same &= torch.equal(one[part].nan_to_num(), other[part].nan_to_num())
    if not same:
        raise InputError(
            f"{head}: {key} is not {embedding}, though config.json says tie_word_embeddings: "
            "set that to false there, or leave the tensor out"
        )


def check_header(file: Path, key: str, header, expected: tuple) -> None:
    """Raise InputError for a tensor of another shape, or of numbers that are no weights."""
    shape = tuple(header.get_shape())
    if shape != expected:
        raise InputError(f"{file}: {key} has shape {shape}, config.json says {expected}, {AGAIN}")
    if header.get_dtype() not in DTYPES:
        raise InputError(
            f"{file}: {key} is of dtype {header.get_dtype()}: only {', '.join(DTYPES)} are read, "
            "so take the checkpoint in one of these"
        )


def fill(model: Model, file: Path, device: torch.device | str, begun: dict[str, Tensor]) -> None:
    """Copy a checked file's tensors to their places. Raises InputError for one not finite.

    begun: of parameters that are divided over the ranks and stand in several tensors, what of them
    was read so far.
    """
    parameters = read_weights(model)
    places = stored_places(model.config, parameters)
    with opened(file, device) as f:
        for key in sorted(set(f.keys()) & set(places)):
            stored = f.get_tensor(key)
            check_finite(file, key, stored)
            for place in places[key]:
                parameter = parameters[place.parameter]
                whole_one = parameter
                if isinstance(parameter, DTensor):
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                    whole_one = begun.setdefault(place.parameter, empty)
                target = part_of_model(model.config, whole_one, place)
                target.copy_(part_of_file(model.config, stored, place))
                if place.parameter in begun and place.head is None:
                    keep_share(parameter, begun.pop(place.parameter))


def keep_share(parameter: DTensor, whole_one: Tensor) -> None:
    """Copy this rank's share of a whole tensor into the parameter."""
    local(parameter).copy_(own_rows(whole_one, parameter))


def check_finite(file: Path, key: str, tensor: Tensor) -> None:
    """Raise InputError for what is NaN or infinite in fp32: both survive in the extremes."""
    low, high = torch.aminmax(tensor)
    if not (math.isfinite(low.float()) and math.isfinite(high.float())):
        raise InputError(
            f"{file}: {key} holds NaN or infinite weights: its training diverged, so "
            "take an earlier one"
        )


HASH_CHUNK = 1 << 24  # bytes in memory at a time


# what decides what a model computes and how text becomes its tokens, beside the weights
SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json")
SMALL_FILES += ("chat_template.jinja", "chat_template.json", FORMAT)


def model_hash(path: str | Path) -> str:
    """Short sha256 of all that a checkpoint computes from: weights, config, tokenizer, and how it
    is asked; of an adapter its base model's too.

    How a run names the models it came from, and an evaluation the one it measured. The files are
    read in pieces, and once in a process as long as they stay as they are.
    """
    files = []
    for folder in dict.fromkeys((Path(path), base_of(path))):
        files += sorted(folder.glob("*.safetensors"))
        files += [folder / name for name in SMALL_FILES if (folder / name).exists()]

    # of our own and of most models it repeats what config.json says
    ends = base_of(path) / "generation_config.json"
    if ends.exists():
        known, found = (
            read_json(file).get("eos_token_id") for file in (ends.with_name("config.json"), ends)
        )
        if found not in (None, known):
            files.append(ends)

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
# the names that weights are written under
LAYOUTS = (
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
)


def collected(
    tensors: Iterable[tuple[str, Tensor]], keep: bool, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Whole tensors, by name, in the host memory of the rank that keeps them.

    The others only take part in gathering what is sharded. dtype: they are converted to it one by
    one, so that the host never has them all in another.
    """
    found = {}
    for name, tensor in tensors:
        full = whole(tensor.detach())
        if keep:
            found[name] = full.to(dtype or full.dtype).contiguous().cpu()
    return found


def save_model(path: str | Path, model: Model, tokenizer: Tokenizer, write: bool = True) -> None:
    """Write a directory that `transformers.AutoModelForCausalLM.from_pretrained` opens.

    An adapted model is written merged. The family, its config.json and the tokenizer's files stay
    those of the checkpoint that was read; for the dtype see `dtype_to_store`. All ranks call it,
    the one with `write` writes.
    Everything is written and synced beside the old files first, so that a full disk or a kill
    leaves the previous checkpoint as it was. Then the old config.json goes, the files are renamed
    over the old ones, and the new config.json comes last: a kill among these leaves a directory
    that does not open, never one of two models. Raises InputError where it cannot be written.
    """
    path = Path(path)
    staging = path / ".saving"
    dtype = dtype_to_store(model)
    tensors = collected(plain_weights(model), write, dtype)  # a tied head appears once
    if not write:
        return

    left = "what it held before is untouched"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        names = write_tensors(staging, stored_tensors(model.config, tensors))
        tokenizer.save(staging)
        write_json(staging / "config.json", to_hf(model.config, tokenizer, dtype))

        new = sorted(staging.iterdir(), key=lambda file: (file.name == "config.json", file.name))
        for file in new:
            sync(file)
        left = "it was being replaced, and does not open now"
        (path / "config.json").unlink(missing_ok=True)
        for file in new:
            os.replace(file, path / file.name)

        # the other layout's files would be opened in place of ours, or hashed with them
        for layout in LAYOUTS:
            for old in path.glob(layout):
                if old.name not in names:
                    old.unlink()
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"could not write the checkpoint {path} ({reason(error)}); {left}"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def dtype_to_store(model: Model) -> torch.dtype:
    """The dtype in which a model's weights are written: that of the files they were read from.

    But weights trained since are no longer numbers of 16 bits, and rounding could undo a small
    step. They are written in the model's compute dtype, in which every use of them rounds them
    anyway: what is opened again computes what was measured. All ranks call it.
    """
    stored = getattr(torch, model.config.stored_dtype)
    masters = {tensor.dtype for tensor in read_weights(model).values()}
    if masters == {torch.bfloat16}:
        return torch.bfloat16  # trained in it (--master bf16)
    if stored == torch.float32:
        return stored
    is_kept = True
    for _, tensor in plain_weights(model):  # to the last: of a sharded model every rank gathers
        full = whole(tensor.detach())
        is_kept &= torch.equal(full, full.to(stored).to(full.dtype))
    return stored if is_kept else model.compute_dtype


def stored_tensors(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint's files, from the parameters: the inverse of `fill`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = {}
    for key, places in stored_places(config, tensors).items():
        if places == [Place(key)]:
            found[key] = tensors[key]
            continue
        dtype = tensors[places[0].parameter].dtype
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


# ------------------------------------------------------------------------------------ LoRA adapters


def load_adapter(
    path: Path,
    device: torch.device | str,
    compute_dtype: torch.dtype,
    masters: bool,
    divide: Callable[[Model], object] | None,
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
    model, _ = load_model(base, device, compute_dtype, masters, divide)
    merge(model, read_json(config), tensors, (str(config), str(file)))
    return model, open_tokenizer(path)


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint, which for an adapter is its base model's."""
    base = base_of(path)
    return Tokenizer.load(base, adapter=path if base != Path(path) else "")


def save_adapter(
    path: str | Path, model: Model, tokenizer: Tokenizer, base: str, write: bool = True
) -> None:
    """Write what `peft.PeftModel.from_pretrained(base model, path)` opens: the adapter alone.

    base: the directory that the model was opened from. All ranks call it, the one with `write`
    writes. Raises InputError where it cannot be written.
    """
    path = Path(path)
    file = path / "adapter_model.safetensors"
    temporary = file.with_name(file.name + ".tmp")
    tensors = collected(peft_tensors(model), write)
    if not write:
        return

    try:
        path.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "pt", "base_weights": model_hash(base)}
        save_file(tensors, temporary, metadata=metadata)
        sync(temporary)
        os.replace(temporary, file)
        tokenizer.save_format(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # of a place where no file can be
            temporary.unlink(missing_ok=True)
        raise InputError(f"could not write {file} ({reason(error)})") from None
    write_json(path / "adapter_config.json", peft_settings(model, base))
