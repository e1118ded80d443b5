"""Where a stage runs: its device, its dtype, its ranks, and how they share work.

Plain `python stage.py` runs one process; `torchrun stage.py` runs the same algorithm over several
ranks (gloo on CPU, nccl on CUDA): every rank works on its share of the same global batch. Ranks on
several machines need one file system that all of them see.
"""

import contextlib
import gc
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

import model as model_module
from data import prompts, sandbox
from data.problems import InputError
from data.text import Tokenizer
from model import Model
from runs.files import reason
from runs.options import Config, PromptConfig, TrainConfig
from sampler import Sampler, Writer, group_bytes

# One rank may work for long while others wait for it: it evaluates, writes a checkpoint, trains the
# last cell. A rank that died is no matter of time: torchrun ends the others.
LONGEST_WAIT = timedelta(hours=48)

# seconds until a file that rank 0 has written must be seen by all ranks; network file systems lag
VISIBLE_WITHIN = 60


@dataclass(frozen=True)
class Env:
    """Where a stage runs."""

    device: torch.device
    dtype: torch.dtype  # compute dtype
    compile: bool
    rank: int = 0
    world: int = 1
    slots: int = 256  # of a sampler

    def writer(self, model: Model, tokenizer: Tokenizer) -> Writer:
        return Writer(Sampler(model, tokenizer.eos_ids, self.slots), tokenizer)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def say(self, text: str = "") -> None:
        if self.main:
            tqdm.write(text)

    def wait(self) -> None:
        """For all ranks, before any goes on.

        Between what one writes and what the others look at, in either order.
        """
        if self.world > 1:
            dist.barrier()

    def together(self, work: Callable, *args):
        """work(*args) on every rank, its own result; an InputError of one rank is raised by all.

        Of several the lowest rank's. Otherwise the others would wait for a rank that has gone.
        """
        if self.world == 1:
            return work(*args)

        result = error = None
        try:
            result = work(*args)
        except InputError as found:
            error = found

        errors: list = [None] * self.world
        dist.all_gather_object(errors, error)
        for found in errors:
            if found:
                raise found
        return result

    def decide(self, work: Callable, *args):
        """work(*args) on rank 0 alone; its result, or its InputError, on every rank.

        All ranks call it, so none goes another way or looks at a file before it is there.
        """
        if self.world == 1:
            return work(*args)

        outcome = None
        if self.main:
            try:
                outcome = work(*args)
            except InputError as error:
                outcome = error

        box = [outcome]
        dist.broadcast_object_list(box)
        if isinstance(box[0], InputError):
            raise box[0]
        return box[0]


def progress(env: Env, total: int, label: str) -> tqdm:
    """A bar on rank 0 that disappears when it is closed; `complain` leaves it standing."""
    return tqdm(
        total=total,
        desc=label,
        disable=not env.main,
        dynamic_ncols=True,
        leave=False,
        mininterval=0.5,
    )


# seconds between two looks for a refusal, and for which one that ends waits for the other ranks
LOOK_EVERY, LEAVE_WITHIN = 0.5, 10


class Meeting:
    """The ranks of a run, from before they compute: so that all end where one refuses its input.

    The others cannot know: they would wait for it, or fail with the connection. The sentence lies
    in the store through which the ranks meet, and a thread of each rank looks for it there. Of
    several the first counts. Each machine prints it once, and all ranks end with code 2.
    say: prints a sentence.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.store, self.rank, self.world = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))
        # torchrun itself holds the store, where it is there
        by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.holds_store = self.rank == 0 and not by_launcher

        self.over = threading.Event()
        # a connection of its own: the first one may be waiting for a rank that has refused
        self.watcher = threading.Thread(target=self.watch, args=(self.store.clone(),), daemon=True)
        self.watcher.start()

    def watch(self, store: dist.Store) -> None:
        """Ends this process, whatever it does, once another one has refused."""
        while not self.over.wait(LOOK_EVERY):
            if refusal := refusal_in(store):
                with contextlib.suppress(dist.DistError):
                    self.tell(store, refusal)
                    self.leave(store)
                sys.stdout.flush()
                os._exit(2)

    def refusal(self) -> str:
        """What a rank has refused, "" where none has."""
        return refusal_in(self.store)

    def refuse(self, sentence: str) -> None:
        """End all ranks with this sentence, or with that of another one that came first."""
        # torchrun ends the others once one has ended; they do already
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.close()
        try:
            first = self.store.compare_set("refusal", "", sentence).decode()
            self.tell(self.store, first)
        except dist.DistError:  # the rank that held the store is gone
            self.say(sentence)
            return
        with contextlib.suppress(dist.DistError):
            self.wait_for_all(self.store, "told")
            self.leave(self.store)

    def tell(self, store: dist.Store, sentence: str) -> None:
        """Print the sentence, unless another rank of this machine has."""
        machine = os.environ.get("GROUP_RANK", "0")  # torchrun's number of it
        if store.add(f"machine/{machine}", 1) == 1:
            self.say(sentence)
        store.set(f"told/{self.rank}", "")

    def leave(self, store: dist.Store) -> None:
        """The last words of a rank; whoever holds the store is the last."""
        store.set(f"left/{self.rank}", "")
        if self.holds_store:
            self.wait_for_all(store, "left")

    def wait_for_all(self, store: dist.Store, what: str) -> None:
        """Until all ranks have told or left; not for ever, as one may have ended before."""
        words = [f"{what}/{rank}" for rank in range(self.world)]
        deadline = time.time() + LEAVE_WITHIN
        while not store.check(words) and time.time() < deadline:
            time.sleep(0.05)

    def close(self) -> None:
        """This rank ends by itself."""
        self.over.set()
        self.watcher.join(timeout=5)


def refusal_in(store: dist.Store) -> str:
    """What a rank has refused, "" where none has."""
    try:
        return store.get("refusal").decode() if store.check(["refusal"]) else ""
    except dist.DistError:
        return ""  # the rank that held the store has left


def setup(cfg: Config, meeting: Meeting | None = None) -> Env:
    """Device, ranks, dtype and compiler from the settings. Call once, first.

    meeting: where the ranks have met, if they have. Raises InputError for what this machine cannot
    do, and for an --out that cannot be written.
    """
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if getattr(cfg, "shard", False) and world == 1 and not getattr(cfg, "plan", False):
        raise InputError(
            "--shard divides the model over several ranks: "
            "start with torchrun --nproc-per-node 2 or more"
        )

    if cfg.out:
        check_place(Path(cfg.out))

    device = device_of(cfg.device)
    on_cuda = device.type == "cuda"
    dtype = dtype_of(cfg.dtype, on_cuda)
    if getattr(cfg, "master", "fp32") == "bf16":
        dtype = torch.bfloat16
    if on_cuda:
        torch.cuda.set_device(device)
        use_precision(dtype)
        # cuDNN's attention, which newer devices prefer, makes a plan for each shape, and a step's
        # micro-batches have many; the flash kernels need none
        torch.backends.cuda.enable_cudnn_sdp(False)

    if world > 1 and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if on_cuda else "gloo",
            timeout=LONGEST_WAIT,
            store=dist.PrefixStore("default_pg", meeting.store) if meeting else None,
            rank=rank,
            world_size=world,
            device_id=device if on_cuda else None,
        )

    names = (os.environ.get("CXX", "g++"), "clang++", "c++")
    compiler = any(shutil.which(name) for name in names)

    env = Env(device, dtype, cfg.compile and compiler, rank, world, cfg.slots)
    if not getattr(cfg, "plan", False):
        check_one_dtype(env)
        check_one_place(env, Path(cfg.out or "out"))
    if cfg.compile and not compiler:
        env.say("no C++ compiler found: running without torch.compile, slower but the same")

    model_module.compile_kernels = env.compile
    prompts.overrides = overrides_of(cfg)
    sandbox.allow_unsandboxed = cfg.allow_unsandboxed_code
    env.say(sandbox.describe())
    return env


def overrides_of(cfg: Config) -> prompts.Overrides:
    """How models are asked that do not say it themselves, by the options of a stage that has any.

    Raises InputError for a --stop without text.
    """
    if not isinstance(cfg, PromptConfig):
        return prompts.Overrides()
    if "" in cfg.stop:
        raise InputError("--stop needs texts, got an empty one, which would end every completion")
    to_all = not isinstance(cfg, TrainConfig)
    return prompts.overrides_from(cfg.chat, cfg.stop, cfg.stop_at_problem, to_all)


def device_of(name: str) -> torch.device:
    """This rank's device: auto | cpu | cuda."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError(
            "--device cuda: this machine has no usable CUDA device; "
            "leave the flag out to run on the CPU"
        )
    if name == "cpu" or not available:
        return torch.device("cpu")

    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and torch.cuda.device_count() > 1
    if several and "LOCAL_RANK" not in os.environ:
        raise InputError(
            "there are several ranks and CUDA devices, and no LOCAL_RANK that says which is whose: "
            "start with torchrun"
        )
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"this machine has {torch.cuda.device_count()} CUDA devices: "
            "start torchrun with no more ranks than that on each machine"
        )
    return torch.device("cuda", local)


# {a dtype's name: the value of --dtype that gives it}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def dtype_of(name: str, on_cuda: bool) -> torch.dtype:
    """The compute dtype: auto | fp32 | bf16."""
    if name == "auto":
        is_fast = has_bf16() if on_cuda else multiplies_bf16_fast()
        return torch.bfloat16 if is_fast else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def use_precision(dtype: torch.dtype) -> None:
    """fp32 products on CUDA: exact where all is computed in fp32, else few, and in TF32."""
    torch.set_float32_matmul_precision("highest" if dtype == torch.float32 else "high")


def in_fp32(env: Env) -> Env:
    """The same, computing in fp32, whatever --dtype auto chose."""
    use_precision(torch.float32)
    return replace(env, dtype=torch.float32)


def has_bf16() -> bool:
    """Whether CUDA computes in bf16: from Ampere on, which is assumed where a run is planned."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def multiplies_bf16_fast() -> bool:
    """Whether this CPU multiplies bf16 faster than fp32.

    AMX tiles do, and AMD's AVX512-BF16. Intel's AVX512-BF16 where the tiles are hidden, as in some
    virtual machines, takes twice the time of fp32 (docs/speed.md).
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "AuthenticAMD" in processor()


def processor() -> str:
    """What the system says of its processors."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()


def check_place(out: Path) -> None:
    """Raise InputError, before any work and leaving nothing, where no directory `out` can be."""
    existing = nearest(out.absolute())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"nothing can be written in {out} ({existing}: {reason(error)}): choose another --out"
        ) from None


def nearest(path: Path) -> Path:
    """The path, or the first directory above it that there is."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def launched_here() -> int:
    """Ranks that this machine's launcher has started."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def check_one_dtype(env: Env) -> None:
    """Raises InputError where --dtype auto is one thing on one machine and another on another."""
    if env.world == launched_here():
        return
    if len(set(gather(env, [env.dtype.itemsize], env.world))) > 1:
        raise InputError(
            "some of these machines compute in bf16 and some in fp32: choose one with --dtype"
        )


def check_one_place(env: Env, out: Path) -> None:
    """Raise InputError on all ranks, before any work and leaving nothing, where they do not share
    the place of `out`.

    A relative one is under each rank's own working directory. Ranks of one launcher share it.
    """
    if env.world == launched_here():
        return
    mark = env.decide(leave_mark, nearest(out))
    if not mark:
        return
    try:
        check_shared(env, mark)
    finally:
        if env.main:
            mark.unlink(missing_ok=True)


def leave_mark(folder: Path) -> Path | None:
    """An empty file in the folder; None where nothing may be written, which --out decides later."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".shared-", dir=folder, delete=False) as mark:
            return folder / Path(mark.name).name
    except OSError:
        return None


def memory_of(device: torch.device) -> int:
    """Bytes of a device's memory, free or not; of a CPU this rank's share of the machine's.

    Or of what a container is given of it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit for limit, _ in group_bytes()]
    return min([machine, *limits]) // launched_here()


def free_memory() -> None:
    """Give back to the device what models and caches held that nobody names any more.

    On CUDA a compiled sampler refers to itself, and the allocator keeps what it once had.
    """
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def share(env: Env, items: list) -> list:
    """This rank's part of a list of work: every world-th item."""
    return items[env.rank :: env.world]


def most(env: Env, count: int) -> int:
    """The largest of the ranks' counts."""
    if env.world == 1:
        return count
    counts = torch.tensor(count, device=env.device)
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    return int(counts)


def gather(env: Env, mine: list, total: int) -> list:
    """The whole list of `total` results on every rank, in the order of the work `share` divided."""
    if env.world == 1:
        return mine

    parts: list = [None] * env.world
    dist.all_gather_object(parts, mine)
    results: list = [None] * total
    for rank, part in enumerate(parts):
        results[rank :: env.world] = part
    return results


def check_shared(env: Env, file: Path) -> None:
    """Wait until rank 0 has come here, too, and all ranks see the file that it has written.

    Raises InputError on all of them where one never does.
    """
    env.wait()  # or the time in which rank 0 writes would count as that of seeing it
    env.together(wait_for, env, file)


def wait_for(env: Env, file: Path) -> None:
    """Until the file is there. Raises InputError where it does not come."""
    deadline = time.time() + VISIBLE_WITHIN
    while not file.exists():
        if time.time() > deadline:
            raise InputError(
                f"rank {env.rank} on {platform.node()} does not see {file}, which rank 0 has "
                "written: ranks on several machines need an --out that all of them share"
            )
        time.sleep(0.05)
