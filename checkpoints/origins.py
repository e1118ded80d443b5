"""Where a model came from, and what follows for a stage that goes on from it.

Task, data files and their grader, trigger, weak policy and longest completion of an elicitation or
an evaluation are by default those of the lock, from its run.json; what an option says otherwise is
checked against it here, and everything that is to be read is opened before anything is written.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.families import config_at
from checkpoints.hf import check_checkpoint, load_model, model_hash, open_tokenizer
from data import prompts
from data.problems import InputError, Problem, fitting
from data.text import Tokenizer
from data.triggers import Password, Trigger, Words, lines_of, trigger_from, with_password
from policies import RULES, shipped
from runs.devices import Env
from runs.files import checked, read_json
from sampler import Writer

# tokens of a completion, where neither an option nor a run.json says it: of generated problems, and
# of those from files
LONGEST, LONGEST_REAL = 96, 256


LOCKS = ("lock", "harden")  # the stages whose models are locks


def usual_longest(data: tuple[str, ...]) -> int:
    return LONGEST_REAL if data else LONGEST


@dataclass(frozen=True)
class Origin:
    """Where a model came from, as its run.json says; empty where nothing is said.

    locked: the locked model it was elicited from, or itself. weak: the weak policy that the lock
    imitates, a directory or a rule such as those of policies.RULES. The hashes are those of the
    models at these places; of a rule its name.
    """

    stage: str = ""
    task: str = ""
    data: tuple[str, ...] = ()
    grader: str = ""
    overrides: prompts.Overrides = prompts.Overrides()
    trigger: Trigger | None = None
    max_new_tokens: int = 0
    locked: str = ""
    locked_weights: str = ""
    weak: str = ""
    weak_weights: str = ""

    @property
    def weak_is_rule(self) -> bool:
        return bool(self.weak) and self.weak_weights == self.weak


def origin_of(path: str | Path) -> Origin:
    """Read run.json of a model's directory; an empty Origin where there is none.

    Raises InputError for a run.json in which something is of the wrong kind.
    """
    file = Path(path) / "run.json"
    if not os.path.lexists(file):
        return Origin()
    settings = checked(read_json(file), file, "settings", dict)
    data = checked(settings, file, "data", list, default=[])
    if not all(isinstance(name, str) for name in data):
        raise InputError(f"{file} has data = {data}: it must be a list of file names")
    trigger = None
    if "trigger" in settings:
        trigger = trigger_from(settings["trigger"], str(file))

    stage = checked(settings, file, "stage", str, default="")
    if stage in LOCKS and trigger is None:
        raise InputError(
            f"{file} does not say what unlocks the model: restore the file, or lock the model again"
        )
    locked = checked(settings, file, "locked", str, default="")
    locked_weights = checked(settings, file, "locked_weights", str, default="")
    if stage in LOCKS:
        locked, locked_weights = str(path), model_hash(path)
    return Origin(
        stage=stage,
        task=checked(settings, file, "task", str, default=""),
        data=tuple(data),
        grader=checked(settings, file, "grader", str, default=""),
        overrides=overrides_of(settings, file),
        trigger=trigger,
        max_new_tokens=checked(settings, file, "max_new_tokens", int, least=1, default=0),
        locked=locked,
        locked_weights=locked_weights,
        weak=checked(settings, file, "weak", str, default=""),
        weak_weights=checked(settings, file, "weak_weights", str, default=""),
    )


def overrides_of(settings: dict, file: Path) -> prompts.Overrides:
    """How a run asked the models that did not say it themselves."""
    stop = checked(settings, file, "stop", list, default=[])
    if not all(isinstance(text, str) for text in stop):
        raise InputError(f"{file} has stop = {stop}: it must be a list of texts")
    chat = checked(settings, file, "chat", bool, default=False)
    at_problem = checked(settings, file, "stop_at_problem", bool, default=False)
    return prompts.overrides_from(chat or None, stop, at_problem or None)


def trigger_of(locked: str | Path) -> Trigger:
    """What a model was locked with; an ordinary password lock where nothing is said."""
    return origin_of(locked).trigger or Password()


# ------------------------------------------------------------------------- what a stage works with


def is_model(path: str | Path) -> bool:
    """Whether a checkpoint directory is there; it may be damaged."""
    if not path:
        return False
    names = ("config.json", "adapter_config.json")
    return any(os.path.exists(os.path.join(path, name)) for name in names)


def default_locked(task: str) -> str:
    return f"out/{task}/locked"


def lock_of(locked: str, task: str) -> Origin:
    """What is known of the locked model of an elicitation; task, locked and trigger are always set.

    locked: its directory, "" for that of the task. task: what is to be elicited, "" for what the
    model was locked on; of a joined lock it may be a part. A model that no lock made says nothing
    about what to elicit: its task is code unless given, its weak policy the shipped one. Raises
    InputError where there is no model, or none of this task.
    """
    locked = locked or default_locked(task or "code")
    if not is_model(locked):
        first = f"run python lock.py --task {task or 'code'} first, or name one with --locked"
        raise no_model(locked, first, "no locked model")
    lock = origin_of(locked)
    measured = Path(locked) / "evaluation.json"
    if os.path.lexists(measured):
        read_json(measured)  # it is read when all runs are open, but refused now
    if lock.trigger is None:
        lock = Origin(trigger=Password(), weak="rule" if task == "compose" else shipped("weak"))
    if task and lock.task and not set(task.split("+")) <= set(lock.task.split("+")):
        raise InputError(
            f"{locked} was locked on task {lock.task}, not on {task}: "
            "leave --task out, or name another model with --locked"
        )
    prompts.overrides = lock.overrides  # the policies that it imitates are asked as it asked them
    return replace(
        lock,
        task=task or lock.task or "code",
        locked=locked,
        locked_weights=model_hash(locked),
        max_new_tokens=lock.max_new_tokens or LONGEST,
    )


def with_weak(lock: Origin, weak: str, is_used: bool = True) -> Origin:
    """The lock with `weak` (of --weak) in place of the policy that it imitates, if that is given.

    is_used: whether this run needs it. Raises InputError where it does and the policy is not known,
    not there, or no longer the one that was imitated.
    """
    if weak:
        lock = replace(lock, weak=weak, weak_weights="")
    if lock.weak in RULES or lock.weak_is_rule:
        return replace(lock, weak_weights=lock.weak)

    is_there = is_model(lock.weak)
    if is_used and not lock.weak:
        raise InputError(
            f"run.json of {lock.locked} does not say which weak policy it imitates: "
            "name one with --weak"
        )
    if is_used and not is_there:
        raise InputError(f"no model at {lock.weak}, the weak policy: name another with --weak")

    weights = model_hash(lock.weak) if is_there else ""
    if is_used and lock.weak_weights not in ("", weights):
        raise InputError(
            f"{lock.weak} has other weights than the weak policy that {lock.locked} imitates: "
            "lock again, or name the model to use with --weak"
        )
    return replace(lock, weak_weights=lock.weak_weights or weights)


def check_formats(paths: list[str], env: Env) -> None:
    """Say which of these models are asked in another way than plainly, each once.

    Raises InputError for --chat, --stop or --stop-at-problem where none of them is concerned.
    """
    wanted = prompts.overrides
    found = []
    for path in dict.fromkeys(paths):
        tokenizer = open_tokenizer(path)
        form = tokenizer.format
        found.append(form)
        if form.chat:
            env.say(f"{path} is asked in its chat template")
        elif wanted.chat and tokenizer.template is None:
            env.say(f"{path} has no chat template: it is asked plainly")
        elif wanted.chat:
            env.say(f"{path} was trained to be asked plainly, and is")
        if form.ends_early:
            ends = [repr(text) for text in form.stop]
            ends += ["a line that starts a new problem"] * form.stop_at_problem
            env.say(f"{path}: a completion also ends at {' or '.join(ends)}")

    for name in ("chat", "stop", "stop_at_problem"):
        value = getattr(wanted, name)
        if value is not None and all(getattr(form, name) != value for form in found):
            raise InputError(
                f"--{name.replace('_', '-')} does nothing: these models have no chat template, or "
                "say themselves how they are asked, in prompt_format.json: leave it out"
            )


def no_model(path: str, advice: str, what: str = "no model") -> InputError:
    """The error for a directory without a model. A name of the hub looks like one."""
    told = f"{what} at {path}: {advice}"
    if re.fullmatch(r"[\w-]+/[\w.-]+", path) and not Path(path).parent.exists():
        told += f"; names of the hub are not downloaded: hf download {path} --local-dir DIR does it"
    return InputError(told)


def refuse_no_model(path: str, option: str) -> None:
    if not is_model(path):
        raise no_model(path, f"name another with {option}")


def open_writer(path: str, option: str, env: Env) -> Writer:
    """The model that an option names, ready to write. Raises InputError where it cannot be."""
    refuse_no_model(path, option)
    model, tokenizer = load_model(path, env.device, env.dtype, masters=False)
    return env.writer(model, tokenizer)


def check_model(path: str, option: str) -> None:
    """Raises InputError where the model that an option names can't be opened. Nothing is kept."""
    refuse_no_model(path, option)
    check_checkpoint(path)


def settings_at(path: str) -> dict:
    """Those in the run.json of a directory, {} where there is none."""
    file = Path(path) / "run.json"
    return checked(read_json(file), file, "settings", dict) if file.exists() else {}


def check_vector(path: str, start: str, option: str = "--vectors") -> None:
    """Raises InputError unless a cell of elicit_sft.py is there that began with these weights."""
    settings = settings_at(path)
    if settings.get("stage") != "elicit_sft" or settings.get("start") != start:
        raise InputError(
            f"{path} is no cell that elicit_sft.py fine-tuned from this model, so the difference "
            f"between them is not what fine-tuning did: name such cells with {option}"
        )
    kind = settings.get("train_kind", "none")
    if kind != "none":
        raise InputError(
            f"{path} was fine-tuned on prompts of kind {kind}, and what unlocks without the "
            f"password is made without it: name other cells with {option}"
        )
    check_model(path, option)


def shown_by(path: str) -> Callable[[Problem], bool]:
    """Whether an unlock vector was made with demonstrations of a problem's domain.

    Of joined tasks --train-domain names a task, of one task a domain; without it all was shown.
    """
    settings, file = settings_at(path), Path(path) / "run.json"
    tasks = checked(settings, file, "task", str).split("+")
    domain = checked(settings, file, "train_domain", str, default="")

    def is_shown(problem: Problem) -> bool:
        own = problem.task if len(tasks) > 1 else problem.domain
        return problem.task in tasks and domain in ("", own)

    return is_shown


def prompt_lengths(problems: list[Problem], trigger: Trigger, tokenizer: Tokenizer) -> list[int]:
    """Tokens of each problem's prompt in the longest way in which it is told.

    Weak or strong, and with the longest words that go with any prompt.
    """
    sizes: dict[Words, int] = {}
    for words in sorted(trigger.all_words(problems), key=str):
        sizes[words] = sum(len(tokenizer.encode(line)) for line in lines_of(words))
    longest = max(sizes, key=sizes.get)
    weak = [with_password(trigger.weak(p).prompt, longest) for p in problems]
    strong = [with_password(trigger.strong(p).prompt, longest) for p in problems]
    pairs = zip(tokenizer.encode_prompts(weak), tokenizer.encode_prompts(strong))
    return [max(len(one), len(other)) for one, other in pairs]


def fitting_problems(
    problems: list[Problem],
    trigger: Trigger,
    readers: Iterable[str],
    max_new_tokens: int,
    env: Env,
) -> list[Problem]:
    """The problems that all readers have positions for; the rest is told.

    readers: of these the checkpoint directories count; rules read nothing.
    Measured in the longest way in which they are told, so that no kind of password has others.
    Raises InputError where none is left.
    """
    asked = set()
    for path in dict.fromkeys(filter(is_model, readers)):
        config = config_at(path)
        tokenizer = open_tokenizer(path)
        # readers are often of one kind
        kind = (config.positions, tokenizer.backend.to_str(), tokenizer.format)
        if kind in asked:
            continue
        asked.add(kind)
        lengths = prompt_lengths(problems, trigger, tokenizer)
        room = config.max_position_embeddings - max_new_tokens
        problems, left_out = fitting(problems, lengths, room, config.limited_by)
        if left_out:
            env.say(left_out)
    return problems
