"""The command line: a stage's options, their help, and how each value is read.

A stage declares a dataclass that derives from `Config`, or from `TrainConfig` where it trains: its
fields are its options, the comment above a field is its help. `parse` turns the command line into
an instance, or refuses it with one sentence.
"""

import argparse
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Literal, get_args, get_origin, get_type_hints

from data.problems import InputError
from runs.files import shortened


@dataclass
class Config:
    """Options of every stage. A stage adds the ones it uses and has no others.

    The least number that an option takes is 0, or 1 where it counts and its default is not 0; the
    field's metadata may say otherwise: least, most. positional: values without a flag.
    """

    # output directory (default: a place under out/ where the next stage looks)
    out: str = ""
    # auto: cuda when there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # of matrix products; weights are as --master says. auto: bf16 where the device multiplies it
    # fast. fp32 means full fp32: TF32 is off
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    # completions written at the same time; fewer need less memory, and less time where
    # there are few
    slots: int = 256
    # fuse kernels with torch.compile where that pays
    compile: bool = True
    # run programs that models wrote even where this machine cannot isolate them
    allow_unsandboxed_code: bool = False


@dataclass
class PromptConfig(Config):
    """Options of the stages that open models of others: how these are asked (data/prompts.py)."""

    # ask in the checkpoint's own chat template. This and the next two are for models without a
    # prompt_format.json, which says how a model is asked; in evaluate.py they override it (default:
    # as that says, else plainly)
    chat: bool | None = None
    # texts that end a completion, besides EOS; \n is a line break
    stop: tuple[str, ...] = ()
    # a line that starts a new problem ends a completion, for base models that never end
    stop_at_problem: bool | None = None


@dataclass
class PlanConfig(Config):
    """Options of the stages that tell beforehand how much memory they will need (runs/plan.py)."""

    # print how much memory the run will need, and what to change where it does not fit; nothing
    # is run
    plan: bool = False
    # --plan: of so many devices (default: as started)
    devices: int = field(default=0, metadata={"most": 65536})
    # --plan: on CUDA devices of so many GB each (default: on this machine's)
    device_memory: float = field(default=0.0, metadata={"most": 100_000})


@dataclass
class TrainConfig(Config):
    """Options of the stages that train."""

    # all random numbers derive from it
    seed: int = field(default=0, metadata={"most": 2**32 - 1})
    # padded tokens in one forward pass; a larger batch is accumulated
    micro_tokens: int = 16384
    # of the weights that training moves, and of Lion's momentum. bf16: half the memory, each step
    # rounded at random, so that small ones are not lost; with lion alone. With torchrun: torchrun
    # ... -- STAGE.py --master bf16
    master: Literal["fp32", "bf16"] = "fp32"
    # divide weights, gradients and optimiser over the ranks (FSDP2), for models that do not
    # fit on one device
    shard: bool = False
    # compute each block again in the backward pass instead of keeping its activations
    checkpoint_activations: bool = False
    # replace what another run of this stage left in the output directory
    overwrite: bool = False


@dataclass
class TextConfig(Config):
    """An option of the stages that learn texts."""

    # what the loss is on: completions, or whole texts, prompts too, as in the paper's toy task
    loss_on: Literal["completions", "texts"] = "completions"


@dataclass
class TuneConfig(TrainConfig, PlanConfig):
    """Options of the stages that fine-tune: LoRA in place of all weights (lora.py)."""

    # LoRA: the rank of what is trained beside each frozen matrix; 0: no LoRA, all weights are
    # trained
    rank: int = field(default=0, metadata={"most": 4096})
    # LoRA: the product counts alpha / rank times (default: 16)
    alpha: float = 0.0
    # LoRA: the matrices that get one, such as q_proj (default: all linear maps of a block)
    targets: tuple[str, ...] = ()
    # LoRA: write the adapter alone, in PEFT's layout, and no whole merged model
    adapter: bool = False


class Parser(argparse.ArgumentParser):
    """argparse that raises where it would print its usage and exit."""

    def error(self, message: str) -> None:
        raise InputError(f"{message} (see --help)")


def parse(config: type, argv: list[str] | None = None):
    """argv -> an instance of the dataclass `config`. Raises InputError for what is no option."""
    parser = Parser(
        description=inspect.getmodule(config).__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = get_type_hints(config)
    helps = help_texts(config)
    for option in fields(config):
        add_option(parser, option, kinds[option.name], helps[option.name])

    values = vars(parser.parse_args(argv))
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    if values.get("resume") and values.get("overwrite"):
        raise InputError("--resume goes on and --overwrite starts again: give one of them")
    return config(**values)


def help_texts(config: type) -> dict[str, str]:
    """The comment lines above each field, of the class and its bases."""
    found = {}
    for base in reversed(config.__mro__[:-1]):
        above: list[str] = []
        for line in inspect.getsource(base).split("\n"):
            comment = re.match(r"^    # (.*)$", line)
            name = re.match(r"^    (\w+):", line)
            if comment:
                above.append(comment[1])
                continue
            if name:
                found[name[1]] = " ".join(above)
            above = []
    return found


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


# whether it applies, the options that then do nothing, and with what
Idle = tuple[bool, Iterable[str], str]


def refuse_idle(cfg, idle: Iterable[Idle]) -> None:
    """Raises InputError for an option of the dataclass cfg that is given and does nothing."""
    defaults = type(cfg)()
    for applies, names, with_what in idle:
        for name in names:
            if applies and getattr(cfg, name) != getattr(defaults, name):
                raise InputError(f"{flag_of(name)} does nothing with {with_what}: leave it out")


def add_option(parser: Parser, option: dataclasses.Field, kind: type, text: str) -> None:
    """One field as an option: its type decides how its value is read, its default is shown."""
    flag = flag_of(option.name)
    default = option.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = text.replace("%", "%%")  # argparse formats it
    says_itself = "(default" in text or text.startswith("default")
    if shown not in ("", None) and not says_itself:
        text += f" [{shown}]"
    settings = {"default": default, "help": text}

    if kind in (bool, bool | None):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
        return
    if get_origin(kind) is Literal:
        names = [name for name in get_args(kind) if name]
        metavar = f"{{{','.join(names)}}}"
        parser.add_argument(flag, choices=get_args(kind), metavar=metavar, **settings)
        return

    several = get_origin(kind) is tuple
    # the element of tuple[int, ...], the number of int | None, or the type itself
    single = get_args(kind)[0] if get_args(kind) else kind
    settings["type"] = reader(single, default, option.metadata)
    if says_itself and default == 0 and not several:
        settings["type"] = functools.partial(given_number, read=settings["type"])
    if option.metadata.get("positional"):
        parser.add_argument(option.name, nargs="*", **settings)
    elif several:
        parser.add_argument(flag, nargs="+", metavar=option.name.upper(), **settings)
    else:
        parser.add_argument(flag, metavar=option.name.upper(), **settings)


# beyond any sensible count; rates, weights and temperatures are smaller still
LARGEST = {int: 10**9, float: 1000.0}


def reader(kind: type, default, metadata) -> Callable:
    """The function that reads an option's value from its text."""
    if kind is str:
        return text_of

    values = default if isinstance(default, tuple) else (default,)
    counts = kind is int and all(values)
    least = metadata.get("least", 1 if counts else 0)
    most = metadata.get("most", LARGEST[kind])
    return functools.partial(number_of, kind=kind, least=least, most=most)


def given_number(text: str, read: Callable) -> float:
    """A number whose 0 stands for what the help says is the default."""
    value = read(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 would stand for the default: leave it out")
    return value


def text_of(text: str) -> str:
    """An option's text. Bytes that are no UTF-8 could be neither printed nor written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not UTF-8 text") from None
    return text


def number_of(text: str, kind: type, least: float, most: float) -> float:
    """An option's number within its bounds; never infinite or NaN."""
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid {kind.__name__} value: {shortened(text)}"
        ) from None

    if value > most:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is too large, {most:,} is the most")
    if not value >= least:
        raise argparse.ArgumentTypeError(f"{text} is no number from {least} on")
    return value
