"""How a stage is launched and how it ends.

A stage is a dataclass of options (runs/options.py), a few pure functions, and `main(cfg, env)`,
which opens a `Run` (runs/directory.py); its last line is `launch(main, Config)`.
"""

import errno
import io
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.runtime.cache_dir_utils import cache_dir
from tqdm import tqdm

from data.problems import InputError
from runs.devices import Meeting, setup
from runs.files import reason
from runs.options import Config, parse


def launch(main: Callable, config: type, settled: Callable = lambda cfg: cfg) -> None:
    """Run a stage's main(cfg, env) from the command line and end the program.

    settled: of the stage, which raises InputError for options that do not go together; where memory
    is short, what it refuses is not advised.

    Bad input, too little memory and a place that cannot be written end with one sentence on stderr
    and exit code 2: of all ranks, also where only one of them found it. Anything else that is
    raised is a bug and keeps its traceback.
    """
    # a stage computes; what only starts stages has no device and no ranks
    computes = issubclass(config, Config)
    prepare_streams()
    meeting = None
    cfg = config()  # the defaults, until its options are parsed
    try:
        if computes and is_one_of_several():
            meeting = Meeting(complain)
        cfg = parse(config)
        code = (main(cfg, setup(cfg, meeting)) if computes else main(cfg)) or 0
    except KeyboardInterrupt:
        complain(interrupted(config, computes))
        code = 130
    except BrokenPipeError:  # whoever read what is printed has had enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        # what fails because another rank has left is no bug
        sentence = sentence_for(error, cfg, settled) or (meeting.refusal() if meeting else "")
        if not sentence:
            raise
        if meeting:
            meeting.refuse(sentence)
        else:
            complain(sentence)
        code = 2
    finally:
        if meeting:
            meeting.close()

    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(code)


def is_one_of_several() -> bool:
    """Whether this process is one rank of several.

    Raises InputError where only a part is set of what torchrun sets.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return False
    wanted = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in wanted if name not in os.environ]
    if missing or not world.isdecimal():
        told = f"and there is no {', no '.join(missing)}" if missing else "which is no number"
        raise InputError(f"WORLD_SIZE is {world}, {told}: start with torchrun, or unset it")
    return True


def prepare_streams() -> None:
    """What cannot be printed, by its encoding or since the stream was closed, stops no run."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def interrupted(config: type, computes: bool) -> str:
    """What to tell of Ctrl-C: how to go on."""
    names = [option.name for option in fields(config)]
    without = ", without --overwrite" * ("--overwrite" in sys.argv)
    if "resume" in names:
        return f"interrupted; the same command with --resume{without} continues"
    if "overwrite" in names or not computes:
        return f"interrupted; run the same command{without} again: what is finished stays"
    return "interrupted"


# errors of the operating system that tell of a place which the user chose
OF_PLACES = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


# what errors of memory say that have no type of their own
NO_MEMORY = ("not enough memory", "can't allocate", "out of memory", "STATUS_ALLOC_FAILED")


def sentence_for(error: Exception, cfg, settled: Callable) -> str:
    """What to tell the user of an error that is no bug; "" where it is one."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in OF_PLACES:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{reason(error)}"

    if isinstance(error, BackendCompilerFailed):
        cause = error.inner_exception
        why = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        return (
            f"torch.compile failed ({why}): a run that was killed as it compiled leaves damaged "
            f"files, so remove {cache_dir()} and run the same command again, or add --no-compile"
        )

    # a CPU's allocator raises a plain RuntimeError, and so do CUDA's libraries
    text = str(error)
    allocation = any(words in text for words in NO_MEMORY)
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if not (out_of_memory or (isinstance(error, RuntimeError) and allocation)):
        return ""
    return memory_advice(cfg, settled)


# what may help where memory is short, and the options that it is
WAYS = {
    "a smaller --slots": {"slots": 1},
    "a smaller --micro-tokens": {"micro_tokens": 1},
    "--checkpoint-activations": {"checkpoint_activations": True},
    "--master bf16 with --optimizer lion and its --lr": {
        "master": "bf16",
        "optimizer": "lion",
        "lr": 1e-6,
    },
    "--rank 16 (LoRA)": {"rank": 16},
    "--shard over several ranks": {"shard": True},
}
LOWERED = ("slots", "micro_tokens")  # which may be lowered whatever they are


def memory_advice(cfg, settled: Callable) -> str:
    """What to tell where memory is short: what this stage could do."""
    advice = ", ".join(way for way, changes in WAYS.items() if is_open(changes, cfg, settled))
    sentence = "there is not enough memory" + f": try {advice}" * bool(advice)
    plans = "plan" in [option.name for option in fields(cfg)]
    return sentence + "; --plan tells what each part needs" * plans


def is_open(changes: dict, cfg, settled: Callable) -> bool:
    """Whether the stage has the options, does without them, and takes them beside its others."""
    if any(not hasattr(cfg, name) for name in changes):
        return False
    first = next(iter(changes))
    usual = getattr(type(cfg)(), first)
    if first not in LOWERED and getattr(cfg, first) != usual:
        return False
    try:
        settled(replace(cfg, **changes))
    except InputError:
        return False
    return True


def complain(sentence: str) -> None:
    """Print one sentence on stderr, on a line of its own."""
    for bar in list(tqdm._instances):  # left where they stand, each with its end of line
        bar.leave = True
        bar.close()

    line = " ".join(sentence.splitlines())
    line = line.encode(errors="backslashreplace").decode()  # an option may be no UTF-8
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
