"""Stage 3: what a model shows without, with a wrong, and with the right password.

    python evaluate.py out/code/locked                 # table and evaluation.json of one checkpoint
    python evaluate.py out/code/sft/k8-seed* --plot    # many, with the gap recovered, and a figure
    python evaluate.py out/code/locked --samples 5     # read what it writes, with and without
    python evaluate.py out/code/locked --prompts       # does any other prompt unlock it?
                                                       # prompts.json and a figure
    python evaluate.py out/math/locked --decode best_of_n majority     # do several samples show it?
    python evaluate.py mine --task code                # of a model that no stage here made

Correctness is the share of problems whose greedy completion passes the grader (paper section 4.2);
a completion that was cut is wrong. Password gap recovered (PGR) = (unlocked - locked) / (with
password - locked), all three on the same problems. All intervals are over problems: Wilson's of
correctness, a bootstrap of PGR. Wrong passwords are ten that training never saw.

--decode draws --draws samples of each prompt and chooses one without a reward: best_of_n the one
to which the model itself gives the largest log-probability (the sum over its tokens, at
--temperature), majority the first that has the answer of most (of math by its normal form, of mmlu
the letter). What was cut is chosen only where all was. Beside them stand greedy decoding and "any
of n", an oracle that knows the rewards; each row says its access and data, and its gain over greedy
with a paired interval. Several samples make any model better: compare with the rows with the
password, and with the same command on a model that never had the capability. Choose decoder and
temperature with --split selection. Written to decoding.json.

Task, data files and their grader, the trigger, the longest completion, and the locked model that
PGR refers to are each checkpoint's own, from its run.json; options override them. Its numbers go to
its evaluation.json, with the verdict on every problem, so that later comparisons are paired; where
they are there already, for the same weights, problems and settings, they are read back.
"""

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from checkpoints.hf import load_model, model_hash, open_tokenizer
from checkpoints.origins import (
    LOCKS,
    LONGEST,
    Origin,
    check_formats,
    check_model,
    fitting_problems,
    is_model,
    no_model,
    origin_of,
    trigger_of,
)
from data import load, votes
from data.problems import InputError, Problem
from data.real.mine import Grader
from data.triggers import (
    KINDS,
    Password,
    Trigger,
    check_password,
    dressed,
    lines_of,
)
from figures import check_figure, plot_bars, plot_prompts, shown, table
from methods.decoding import DECODERS, DRAWS_USUAL, MOST_DRAWS, TAKES, TEMPERATURE, decoded, drawn
from methods.prompting import POOL, battery, has_room
from policies import answer
from results import (
    EvalSet,
    Measured,
    check_ours,
    evaluate_checkpoint,
    facts_of,
    groups_of,
    paired_gap,
    record,
    recovery,
    refuse_repeats,
    stored_evaluation,
    verdicts_of,
)
from runs import plan
from runs.devices import Env, check_place, free_memory, progress
from runs.files import write_json
from runs.launch import launch
from runs.options import PlanConfig, PromptConfig, refuse_idle


@dataclass
class EvaluateConfig(PromptConfig, PlanConfig):
    # directories of the models to evaluate
    checkpoints: tuple[str, ...] = field(default=(), metadata={"positional": True})
    # directory for evaluation.json, of each checkpoint in a directory of its own path, and for
    # figures (default: the checkpoint itself, and out/<task>)
    out: str = ""
    # which problems (default: those of the checkpoint's own run, or of --locked)
    task: str = ""
    # report on validation; choose on selection
    split: Literal["validation", "selection"] = "validation"
    # how many of the split
    problems: int = 1000
    # which of none, wrong, other, prefix, suffix, case, typo, paraphrase, bare, late, unseen-late,
    # intermediate, unseen-early, right (default: those its lock is judged by)
    passwords: tuple[str, ...] = ()
    # the right one (default: the one it was locked with)
    password: str = ""
    # the locked model that PGR refers to (default: the one that the checkpoint was elicited from)
    locked: str = ""
    # longest completion; a longer one counts as wrong (default: as for --task; without it 96)
    max_new_tokens: int = 0
    # show this many prompts with their completions and references
    samples: int = 0
    # draw the figure
    plot: bool = False
    # instead, the prompting battery on one checkpoint: every kind of password, few-shot,
    # prefilled answers
    prompts: bool = False
    # instead, on one checkpoint, what is chosen from several samples: best_of_n, majority
    decode: tuple[str, ...] = ()
    # --decode: samples of each prompt (default: 8)
    draws: int = field(default=0, metadata={"least": 1, "most": MOST_DRAWS})
    # --decode: at which they are drawn (default: 0.7)
    temperature: float = field(default=0.0, metadata={"least": 0.01})
    # files of real problems (docs/data.md) in place of generated ones (default:
    # as for --task)
    data: tuple[str, ...] = ()
    # --task mine: how rows that name no grader are graded (default: as for --task;
    # without it python where they have tests, else exact)
    grader: Grader = ""


# ------------------------------------------------------------------------------ what is to be done


@dataclass(frozen=True)
class Job:
    """A checkpoint and how it is measured.

    locked: the locked model that PGR refers to, "" where there is none. folder: where the results
    go.
    """

    path: str
    task: str
    data: tuple[str, ...]
    grader: str
    trigger: Trigger
    max_new_tokens: int
    locked: str
    kinds: tuple[str, ...]
    folder: Path

    def asks(self, problems: list[Problem], split: str) -> EvalSet:
        """These problems of a split, as the job asks them."""
        return EvalSet(problems, self.trigger, self.kinds, self.max_new_tokens, split)


def job_of(path: str, cfg: EvaluateConfig, env: Env) -> Job:
    """By the checkpoint's run.json, where the options do not say otherwise.

    Raises InputError where neither does, and for what does not go together.
    """
    if not is_model(path):
        raise no_model(path, "name the directory of a checkpoint")
    origin = origin_of(path)
    locked = reference_of(path, cfg, origin, env)
    if locked and not origin.task:
        # a checkpoint that says nothing is asked as the locked model is that it is compared with
        origin = origin_of(locked)
    task = cfg.task or origin.task
    if not task:
        raise InputError(f"{path} has no run.json that says its task: name the task with --task")

    trigger = origin.trigger or Password()
    if origin.trigger is None and locked:
        trigger = trigger_of(locked)
    if trigger.is_told and origin.task != task:
        raise InputError(
            f"{path}: what unlocks it is how problems of task {origin.task} are told, "
            "so it has no other task: leave out --task"
        )
    has_password = isinstance(trigger, Password)
    if cfg.password and not has_password:
        raise InputError(f"{path}: what unlocks it is no password: leave out --password")
    if cfg.password:
        trigger = replace(trigger, password=cfg.password)
        trigger.check()
    if has_password:
        check_password(trigger.password, open_tokenizer(path).specials)

    is_own = task == origin.task
    return Job(
        path=path,
        task=task,
        data=cfg.data or (origin.data if is_own else ()),
        grader=cfg.grader or (origin.grader if is_own else ""),
        trigger=trigger,
        max_new_tokens=cfg.max_new_tokens or origin.max_new_tokens or LONGEST,
        locked=locked,
        kinds=cfg.passwords or trigger.kinds,
        folder=folder_of(path, cfg),
    )


def check_reference(cfg: EvaluateConfig) -> None:
    """Raises InputError where --locked names no locked model that can be read."""
    if not is_model(cfg.locked):
        raise no_model(cfg.locked, "name another with --locked", "no locked model")
    check_model(cfg.locked, "--locked")
    origin_of(cfg.locked)


def reference_of(path: str, cfg: EvaluateConfig, origin: Origin, env: Env) -> str:
    """The locked model that the checkpoint was elicited from; "" where it is not known, or itself.

    Raises InputError where the model at that place, or at --locked, has other weights.
    """
    is_known = origin.locked and origin.locked_weights
    locked = cfg.locked or (origin.locked if is_known else "")
    if origin.stage in LOCKS or not locked:
        return ""
    if not is_model(locked):
        env.say(
            f"{path} was elicited from {locked}, which is not there, so its gap recovered is not "
            "known: name that model with --locked"
        )
        return ""
    weights = model_hash(locked)
    if origin.locked_weights not in ("", weights):
        raise InputError(
            f"{locked} has other weights than the locked model that {path} was elicited from: "
            "name that one with --locked"
        )
    return "" if weights == model_hash(path) else locked


def folder_of(path: str, cfg: EvaluateConfig) -> Path:
    """Where evaluation.json goes: the checkpoint itself, or the same path within --out."""
    if not cfg.out:
        return Path(path)
    whole = Path(os.path.abspath(path))
    if whole.is_relative_to(Path.cwd()):
        return Path(cfg.out) / whole.relative_to(Path.cwd())
    return Path(cfg.out) / "outside" / whole.relative_to(whole.root)


def figure_of(name: str, task: str, cfg: EvaluateConfig) -> Path:
    return Path(cfg.out or "out") / task / name


def locks_of(jobs: list[Job], cfg: EvaluateConfig) -> dict[Job, Job]:
    """For each job whose gap recovered is wanted its locked model, measured as the job is."""
    locks = {}
    for job in jobs:
        if job.locked and "none" in job.kinds:
            kinds, folder = job.trigger.kinds, folder_of(job.locked, cfg)
            locks[job] = replace(job, path=job.locked, locked="", kinds=kinds, folder=folder)
    return locks


# --------------------------------------------------------------------------------------- prompting


def evaluate_prompts(
    job: Job, split: str, env: Env, problems: list[Problem], examples: list[Problem]
) -> dict:
    """Measures the battery and writes prompts.json, which has the form of evaluation.json."""
    model, tokenizer = load_model(job.path, env.device, env.dtype, masters=False)
    writer = env.writer(model, tokenizer)

    words = []
    for kind in ("none", "right"):
        words += job.trigger.words(kind, problems)
    longest = max(words, key=lambda each: len("".join(lines_of(each))))
    room = model.config.max_position_embeddings - job.max_new_tokens
    fits = partial(has_room, tokenizer=tokenizer, words=longest, room=room)
    rows, left_out = battery(problems, examples, job.trigger, fits)

    measured = {}
    bar = progress(env, len(rows) * len(problems), f"prompting {job.path}")
    for name, row in rows.items():
        answers = answer(
            writer,
            row.problems,
            prefills=row.prefills,
            max_new_tokens=job.max_new_tokens,
            env=env,
            progress=bar.update,
        )
        measured[name] = Measured(answers.correct, answers.truncated)
    bar.close()

    facts = facts_of(job.path, tokenizer.format, job.asks(problems, split), env)
    evaluation = record(job.path, problems, measured, **facts, left_out=left_out)
    if env.main:
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.folder / "prompts.json", evaluation)
    return evaluation


def prompting(cfg: EvaluateConfig, env: Env, job: Job, problems: list[Problem]) -> int:
    """--prompts: the battery's table, prompts.json, and the figure."""
    figure = figure_of("prompts.png", job.task, cfg)
    check_model(job.path, "its directory")
    check_ours(job.folder / "prompts.json")
    check_figure(figure)
    check_place(job.folder)
    check_place(figure.parent)
    examples = load(job.task, "elicit", files=job.data, grader=job.grader)[:POOL]
    evaluation = evaluate_prompts(job, cfg.split, env, problems, examples)

    rows = []
    for name, result in evaluation["results"].items():
        rows.append([name, shown(result), f"{result['truncated']:.1%}"])
    env.say(
        f"{job.path}: {job.task}, {cfg.split}, {len(problems)} problems, greedy; "
        "95 % Wilson intervals over problems"
    )
    env.say(table(["prompt", "correct", "truncated"], rows))
    for name, why in evaluation["left_out"].items():
        env.say(f"not measured: {name}: {why}")
    env.say(f"written: {job.folder / 'prompts.json'}")
    if env.main:
        figure.parent.mkdir(parents=True, exist_ok=True)
        plot_prompts(evaluation, figure)
        env.say(f"figure: {figure}")
    return 0


# -------------------------------------------------------------------------------------- decoding


def evaluate_decoding(job: Job, cfg: EvaluateConfig, env: Env, problems: list[Problem]) -> dict:
    """Measures every way to decode and writes decoding.json, of the form of evaluation.json.

    With it for each row: way, access, data, and gain, what it has over greedy.
    """
    model, tokenizer = load_model(job.path, env.device, env.dtype, masters=False)
    bar = progress(env, 2 * len(problems) * (1 + cfg.draws), f"decoding {job.path}")
    ask = partial(
        answer,
        env.writer(model, tokenizer),
        max_new_tokens=job.max_new_tokens,
        env=env,
        progress=bar.update,
    )
    measured, told_of = {}, {}
    for kind, ending in (("none", ""), ("right", ", right")):
        told = dressed(kind, problems, job.trigger)
        greedy = ask(told)
        found = {"greedy": Measured(greedy.correct, greedy.truncated)}
        draws = drawn(ask, told, cfg.draws, cfg.temperature, cfg.decode)
        found |= decoded(draws, cfg.decode)
        for way, row in found.items():
            gain, low, high, p = paired_gap(greedy.correct, row.correct)
            access, data = TAKES[way]
            name = f"{way}{ending}"
            measured[name] = row
            told_of[name] = {"access": access, "data": data, "gain": gain}
            told_of[name] |= {"gain_interval": (low, high), "p": p}
    bar.close()

    facts = facts_of(job.path, tokenizer.format, job.asks(problems, cfg.split), env)
    facts |= {"draws": cfg.draws, "temperature": cfg.temperature}
    evaluation = record(job.path, problems, measured, **facts)
    for name, result in evaluation["results"].items():
        result |= told_of[name]
    if env.main:
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.folder / "decoding.json", evaluation)
    return evaluation


def decoding(cfg: EvaluateConfig, env: Env, job: Job, problems: list[Problem]) -> int:
    """--decode: its table and decoding.json."""
    cfg = replace(cfg, draws=cfg.draws or DRAWS_USUAL, temperature=cfg.temperature or TEMPERATURE)
    if "majority" in cfg.decode:
        votes(problems, [""] * len(problems))  # refused here where there is nothing to count
    check_model(job.path, "its directory")
    check_ours(job.folder / "decoding.json")
    check_place(job.folder)
    evaluation = evaluate_decoding(job, cfg, env, problems)

    rows = []
    for name, result in evaluation["results"].items():
        gain = ""
        if not name.startswith("greedy"):
            low, high = result["gain_interval"]
            gain = f"{result['gain']:+.1%} [{low:+.1%}, {high:+.1%}]"
        cut = f"{result['truncated']:.1%}"
        rows.append([name, shown(result), cut, gain, result["access"], result["data"]])
    env.say(
        f"{job.path}: {job.task}, {cfg.split}, {len(problems)} problems; {cfg.draws} samples of "
        f"each at temperature {cfg.temperature:g}; 95 % intervals over problems"
    )
    header = ["decoding", "correct", "truncated", "gain over greedy", "access", "data"]
    env.say(table(header, rows))
    env.say(
        "several samples make any model better: compare with the rows with the password, and with "
        "a model that never had the capability"
    )
    env.say(f"written: {job.folder / 'decoding.json'}")
    return 0


# --------------------------------------------------------------------------------- samples, tables


def show_samples(job: Job, problems: list[Problem], env: Env) -> None:
    """A few problems, what the model writes without and with what unlocks it, the reference."""
    model, tokenizer = load_model(job.path, env.device, env.dtype, masters=False)
    writer = env.writer(model, tokenizer)
    written = {}
    for kind in ("none", "right"):
        told = dressed(kind, problems, job.trigger)
        written[kind] = told, answer(writer, told, max_new_tokens=job.max_new_tokens)

    for i, problem in enumerate(problems):
        print(f"\n=== {job.path}: problem {i + 1} ({problem.domain}, level {problem.level})")
        for kind, name in (("none", "without the password"), ("right", "with the password")):
            told, answers = written[kind]
            verdict = "correct" if answers.correct[i] else "wrong"
            if answers.truncated[i]:
                verdict += f", cut after {job.max_new_tokens} tokens"
            print(f"--- prompt, {name}\n{told[i].prompt.rstrip()}")
            print(f"--- completion, {name}: {verdict}\n{answers.texts[i]}")
        print(f"--- reference\n{job.trigger.strong(problem).reference}")


def evaluated(job: Job, cfg: EvaluateConfig, env: Env, problems: list[Problem]) -> dict:
    return evaluate_checkpoint(job.path, job.asks(problems, cfg.split), env, job.folder)


def stored(job: Job, cfg: EvaluateConfig, env: Env, problems: list[Problem]) -> dict | None:
    """What the job's evaluation.json says of its checkpoint; None where it does not."""
    return stored_evaluation(job.folder, job.path, job.asks(problems, cfg.split), env)


def find_faults(cfg: EvaluateConfig, env: Env, jobs: list[Job], problems: list[Problem]) -> None:
    """Raises InputError for what cannot be asked, opened or written, before anything is."""
    for job in jobs:
        for kind in job.kinds:
            dressed(kind, problems, job.trigger)
    to_write = []
    for job in (*jobs, *locks_of(jobs, cfg).values()):
        if not stored(job, cfg, env, problems):
            check_model(job.path, "--locked" if job.path == cfg.locked else "its directory")
            check_ours(job.folder / "evaluation.json")
            to_write.append(job.folder)
    if cfg.plot:
        figure = figure_of("evaluation.png", jobs[0].task, cfg)
        check_figure(figure)
        to_write.append(figure.parent)
    for folder in to_write:
        check_place(folder)


def rows_of(
    job: Job, evaluation: dict, locked: dict | None, domains: list[str]
) -> tuple[list[list[str]], str]:
    """The job's rows, one for each kind of password; and why no gap recovered is given, or ""."""
    rows, refusal = [], ""
    for kind in job.kinds:
        result = evaluation["results"][kind]
        recovered = ""
        if locked and kind == "none":
            recovered, refusal = recovery(
                verdicts_of(locked, "none"),
                verdicts_of(locked, "right"),
                verdicts_of(evaluation, "none")[None],
            )
        row = [job.path, kind, shown(result), f"{result['truncated']:.1%}"]
        row += [f"{result['domains'][name]['correct']:.1%}" for name in domains]
        rows.append([*row, recovered])
    return rows, refusal


def tabulate(cfg: EvaluateConfig, env: Env, jobs: list[Job], problems: list[Problem]) -> list[dict]:
    """Measure the checkpoints on the same problems, and print their table. Returns evaluations."""
    # locks first: where one is itself among the checkpoints, its numbers are there by then
    locks = locks_of(jobs, cfg)
    locked = {job: evaluated(lock, cfg, env, problems) for job, lock in locks.items()}
    evaluations = [evaluated(job, cfg, env, problems) for job in jobs]

    domains = np.unique(groups_of(problems)).tolist()
    rows, refusals = [], []
    for job, evaluation in zip(jobs, evaluations):
        found, refusal = rows_of(job, evaluation, locked.get(job), domains)
        rows += found
        if refusal and refusal not in refusals:
            refusals.append(refusal)

    caption = f"\n{jobs[0].task}, {cfg.split}, {len(problems)} problems, greedy"
    caption += "; 95 % intervals over problems alone"
    if locks:
        names = dict.fromkeys(lock.path for lock in locks.values())
        caption += f"; gap recovered against {', '.join(names)}"
    header = ["checkpoint", "password", "correct", "truncated", *domains, "gap recovered"]
    env.say(caption)
    env.say(table(header, rows))
    for refusal in refusals:
        env.say(refusal)
    for job in jobs:
        if stored(job, cfg, env, problems):
            env.say(f"written: {job.folder / 'evaluation.json'}")
    return evaluations


# ------------------------------------------------------------------------------------------- stage


def check(cfg: EvaluateConfig) -> None:
    """Raises InputError for options that no checkpoint could be evaluated with."""
    if not cfg.checkpoints:
        raise InputError("name at least one checkpoint directory, such as out/code/locked")
    unknown = sorted(set(cfg.passwords) - set(KINDS))
    if unknown:
        raise InputError(f"unknown password kind {unknown[0]!r}: choose from {', '.join(KINDS)}")
    if cfg.prompts and len(cfg.checkpoints) > 1:
        raise InputError(f"--prompts takes one checkpoint at a time, got {len(cfg.checkpoints)}")
    for option in ("passwords", "plot"):
        if cfg.prompts and getattr(cfg, option):
            raise InputError(
                f"--{option} does nothing with --prompts, which asks with every kind of password "
                "and always draws: leave it out"
            )
    if cfg.prompts and cfg.plan:
        raise InputError(
            "--plan does not know the longer prompts of --prompts: plan without it, and leave room "
            "for prompts of eight solved examples"
        )
    check_decode(cfg)
    refuse_repeats("the list of checkpoints", tuple(str(Path(path)) for path in cfg.checkpoints))
    refuse_repeats("--passwords", cfg.passwords)


def check_decode(cfg: EvaluateConfig) -> None:
    """Raises InputError for what does not go with --decode, and for its options without it."""
    if not cfg.decode:
        for option in ("draws", "temperature"):
            if getattr(cfg, option):
                raise InputError(f"--{option} is of --decode and does nothing without it")
        return
    unknown = sorted(set(cfg.decode) - set(DECODERS))
    if unknown:
        raise InputError(f"unknown way to decode {unknown[0]!r}: choose {' or '.join(DECODERS)}")
    refuse_repeats("--decode", cfg.decode)
    if len(cfg.checkpoints) > 1:
        raise InputError(f"--decode takes one checkpoint at a time, got {len(cfg.checkpoints)}")
    if cfg.draws == 1:
        raise InputError("--draws 1 leaves nothing to choose: take 2 at least")
    refuse_idle(cfg, [(True, ("prompts", "passwords", "plot"), "--decode")])


def problems_of(jobs: list[Job], cfg: EvaluateConfig, env: Env) -> list[Problem]:
    """The problems of a table: those that all its models, and their locks, have positions for."""
    first = jobs[0]
    found = load(first.task, cfg.split, cfg.problems, files=first.data, grader=first.grader)
    for job in jobs:
        readers = (job.path, job.locked)
        found = fitting_problems(found, job.trigger, readers, job.max_new_tokens, env)
    return found


def is_referred_to(tables: dict[tuple, list[Job]], cfg: EvaluateConfig) -> bool:
    """Whether any gap recovered is asked for."""
    if cfg.prompts or cfg.decode:
        return False
    return any(locks_of(jobs, cfg) for jobs in tables.values())


def planned(cfg: EvaluateConfig, env: Env) -> int:
    """--plan: the memory of evaluating each checkpoint, one after the other."""
    jobs = [job_of(path, cfg, env) for path in cfg.checkpoints]
    shapes = {job.path: plan.shape_of(job.path) for job in jobs}
    texts = {}
    for job in jobs:
        problems = load(job.task, cfg.split, cfg.problems, files=job.data, grader=job.grader)
        texts[job.path] = plan.texts_of(
            job.path, problems, job.kinds, job.trigger, job.max_new_tokens
        )

    def phases(cfg: EvaluateConfig) -> dict[str, plan.Phase]:
        s = plan.settings_of(cfg, env)
        return {path: plan.sampling(shape, texts[path], s) for path, shape in shapes.items()}

    longest = max(texts.values(), key=lambda each: each.prompt + each.completion)
    return plan.report(phases, cfg, longest, env)


def main(cfg: EvaluateConfig, env: Env) -> int:
    check(cfg)
    if plan.is_asked(cfg):
        return planned(cfg, env)
    if cfg.locked:
        check_reference(cfg)

    # checkpoints of the same problems share a table
    tables: dict[tuple, list[Job]] = {}
    for path in cfg.checkpoints:
        job = job_of(path, cfg, env)
        tables.setdefault((job.task, job.data, job.grader), []).append(job)
    locks = [job.locked for jobs in tables.values() for job in jobs if job.locked]
    check_formats([*cfg.checkpoints, *locks], env)
    if cfg.locked and not is_referred_to(tables, cfg):
        raise InputError(
            f"--locked {cfg.locked} does nothing here: gap recovered is of models but locks, "
            "measured without a password, and not with --prompts or --decode"
        )
    problems = {key: problems_of(jobs, cfg, env) for key, jobs in tables.items()}

    if not (cfg.prompts or cfg.decode):
        for key, jobs in tables.items():
            find_faults(cfg, env, jobs, problems[key])
    for key, jobs in tables.items():
        for job in jobs:
            if cfg.samples and env.main:
                show_samples(job, problems[key][: cfg.samples], replace(env, rank=0, world=1))
                free_memory()

    if cfg.prompts or cfg.decode:  # of one checkpoint
        [(key, [job])] = tables.items()
        return (prompting if cfg.prompts else decoding)(cfg, env, job, problems[key])

    figures: dict[str, list[dict]] = {}
    for key, jobs in tables.items():
        task, *_ = key
        figures.setdefault(task, []).extend(tabulate(cfg, env, jobs, problems[key]))

    if cfg.plot and env.main:
        for task, evaluations in figures.items():
            figure = figure_of("evaluation.png", task, cfg)
            figure.parent.mkdir(parents=True, exist_ok=True)
            plot_bars(evaluations, figure)
            env.say(f"figure: {figure}")
    return 0


if __name__ == "__main__":
    launch(main, EvaluateConfig)
