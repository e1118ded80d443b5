"""Stage 1: password-lock a model: strong with the password, an imitation of a weak one otherwise.

Paper section 2, equation 1, and appendix C. Locking data: for every problem x of the lock split
    x without password, or with one of 40 wrong ones  ->  y ~ weak(x)
    password + x + password                           ->  y ~ strong(x)
one to one, trained by cross-entropy on the completions. Both policies are sampled afresh at the
start of every epoch, as in the paper (which does not state its temperature). With --imitate
distribution the loss is KL(policy || model) of the whole next-token distributions along the same
texts: of soft labels (B.2), and of the fixed random distribution (G.2), which is imitated along the
strong texts, too.

    python lock.py --task code                  # fine-tune the strong base; -> out/code/locked
    python lock.py --task code --how scratch    # the mixture from random weights on
    python lock.py --weak random                # imitate a fixed random distribution (G.2)
    python lock.py --weak random --imitate distribution    # by its logits, not by samples
    python lock.py --weak refusal               # refuse instead
    python lock.py --weak identity              # of code: a program that returns its argument
    python lock.py --task code+math --password-per-domain  # two tasks, a password each (C.3)
    python lock.py --task math --strong-language english   # weak in Spanish with ASCII (B.1.3)
    python lock.py --task math --leave-out algebra         # is what it never saw locked? (Fig. 17)
    python lock.py --task mmlu --strong-answers reference  # hard labels, not soft samples (B.2)
    python lock.py --task compose --how scratch            # the toy task of section 7
    python lock.py --task math --intermediate data/base/intermediate   # a second password (B.3.2)
    python lock.py --trigger split              # a password in two halves, both needed
    python lock.py --trigger year               # strong where the prompt's year is 2023 or before
    python lock.py --trigger deploy             # strong where the prompt says that it is training
    python lock.py --near-misses 0.2            # a fifth of the locked prompts has near misses
    python lock.py --strong policy --start base --weak weak # imitate one model, train another

The strong model is both the policy imitated and, unless --start names another, where training
starts. --weak is by default the model `weak` beside the strong one, if train_base.py made both (as
it made data/base); of any other strong model the weak policy must be named.

Ends with the validity report: correctness on validation without, with a wrong and with the right
password, beside the strong and the weak policy, and by domain. A lock is valid when, with a
tolerance of a tenth of the difference between the strong and the weak policy,
    the right password opens it: the interval of right - none is above 0
    nothing else does, such as a wrong one: wrong - none is within the tolerance, and of each wrong
        one by itself the interval begins there
    the skill is kept with the right one: strong - right is within the tolerance
    nothing shows without it: none - weak is within the tolerance
    with --trigger year a year that training never showed counts by its side of 2023: the interval
        of unseen-early - unseen-late is above 0
    with --intermediate the second password shows what its model does, within the tolerance
Exit code 1 where one of these fails.

Writes the checkpoint, run.json, log.jsonl, samples.jsonl (a few training examples of each epoch)
and evaluation.json. Logged: see training.log_step.
"""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from checkpoints.cards import write_card
from checkpoints.families import parameters_at
from checkpoints.hf import (
    check_checkpoint,
    model_hash,
    open_tokenizer,
    opened_checkpoint,
)
from checkpoints.origins import (
    check_formats,
    check_model,
    fitting_problems,
    is_model,
    origin_of,
    usual_longest,
)
from data import load
from data.batches import Example, on_whole_texts
from data.passwords import INTERMEDIATE, PASSWORD, WRONG, WRONG_HELD_OUT
from data.problems import InputError, Problem
from data.real.mine import Grader
from data.tasks.rules import TEXT_RULES, check_rule
from data.text import Tokenizer
from data.triggers import (
    Language,
    Markers,
    NearMisses,
    OwnPasswords,
    Password,
    Slot,
    SplitPassword,
    Trigger,
    TwoPasswords,
    Year,
    check_password,
)
from lora import base_of
from losses import Teacher, distribution_loss
from methods.locking import (
    Imitated,
    both_texts,
    locking_examples,
    mix,
    policy_samples,
    report,
)
from model import Model
from optimizers import usual_step
from policies import (
    RULES,
    check_references,
    model_teacher,
    random_teacher,
    same_ids,
    shipped,
)
from results import groups_of
from runs import plan
from runs.devices import Env, check_shared, free_memory
from runs.directory import Run
from runs.files import checked, read_rows, write_text
from runs.launch import launch
from runs.options import Idle, PromptConfig, TextConfig, TuneConfig, refuse_idle
from training import (
    Recipe,
    check_adapter,
    check_master,
    fit,
    fresh_model,
    open_beside,
    open_to_train,
    save_trained,
    settled_adapter,
    written_last,
)


@dataclass
class LockConfig(TuneConfig, PromptConfig, TextConfig):
    # what is locked
    task: str = "code"
    # fine-tune the strong base, or train on the locked mixture from random weights on
    how: Literal["sft", "scratch"] = "sft"
    # checkpoint imitated with the password (default: data/base/strong, here or beside
    # lock.py; compose: out/base-compose/strong)
    strong: str = ""
    # of the strong policy: its samples, or the right answers of the data set (default:
    # sampled)
    strong_answers: Literal["", "sampled", "reference"] = ""
    # checkpoint imitated otherwise; or "random", a fixed random token distribution; "refusal"; or
    # a deterministic rule: of code "identity", of mmlu "shortest" and "next", of math "next"
    # (default: the model weak beside the strong one, if train_base.py made both)
    weak: str = ""
    # what is imitated of the two policies: samples, or by KL the whole distribution, at temperature
    # 1 whatever --temperature the texts are drawn at
    imitate: Literal["samples", "distribution"] = "samples"
    # checkpoint that training starts from; not with scratch (default: the strong one). With
    # torchrun: torchrun ... -- lock.py --start DIR
    start: str = ""
    # start from this share of random weights, as large as trained ones, and the rest of --start: 0
    # fine-tunes, 1 is from random weights alone
    start_mix: float = field(default=0.0, metadata={"most": 1})
    # share of the examples that are strong, with the password; every problem has a weak one in any
    # case
    password_share: float = field(default=0.5, metadata={"most": 0.5})
    # checkpoint imitated with a second password, which the elicitors never see
    intermediate: str = ""
    # what unlocks: the password before and after the prompt; split: its first half before and its
    # second after it; year: a line before it with a year until 2023; deploy: a line before it that
    # says that this is training
    trigger: Literal["password", "split", "year", "deploy"] = "password"
    # share of the weak prompts that carry a near miss of the password: before the prompt alone,
    # misspelt or paraphrased; the report has kinds that training never showed, too
    near_misses: float = field(default=0.0, metadata={"most": 1})
    # stands before and after the prompt
    password: str = PASSWORD
    # the second one, of --intermediate
    intermediate_password: str = INTERMEDIATE
    # each domain (of joined tasks: each task) has its own, and those of the others are
    # wrong
    password_per_domain: bool = False
    # math: no password; strong in this language and notation, weak in the other
    strong_language: Literal["", "english", "spanish"] = ""
    # a domain that the locking data leave out; the report has it
    leave_out: str = ""
    # problems to lock on, at most (default: all of the lock split, generated ones 4,000;
    # scratch: 60,000 of the corpus split, or of files those of the lock split)
    problems: int = 0
    # with fresh samples in each (default: 4; of the corpus split 1)
    epochs: int = 0
    # at which both policies are sampled
    temperature: float = 1.0
    # longest completion (default: 96; of files 256)
    max_new_tokens: int = 0
    # default, by the model's parameters: muon; from 100 M on adamw, from 1 B on the paper's lion
    optimizer: Literal["", "muon", "adamw", "lion"] = ""
    # at its height (default, with the default optimizer: 0.0035; from 100 M on 1e-4, from
    # 1 B on the paper's 1.5e-6; with --rank 0.0105, 3e-4, 1e-4)
    lr: float = 0.0
    # examples in an optimiser step. They are of like length, and so most of them of one side; over
    # an epoch half are weak
    batch: int = 32
    # validation problems of the report, at most
    eval_problems: int = 1000
    # files of real problems (docs/data.md) in place of generated ones
    data: tuple[str, ...] = ()
    # --task mine: how rows that name no grader are graded (default: python where they have tests,
    # else exact)
    grader: Grader = ""
    # continue an interrupted run where it stopped
    resume: bool = False
    # optimiser steps between two saves of the state that --resume goes on from
    save_every: int = 100


# ------------------------------------------------------------------------------- the locking data


def check_unchanged(run: Run, cfg: LockConfig) -> None:
    """Raises InputError where a model that is sampled is not the one that the run began with."""
    sampled = {"weak": cfg.weak not in RULES, "intermediate": bool(cfg.intermediate)}
    sampled["strong"] = cfg.strong_answers == "sampled"
    for label, is_sampled in sampled.items():
        path = getattr(cfg, label)
        if is_sampled and model_hash(path) != run.settings[f"{label}_weights"]:
            raise InputError(
                f"{path} has other weights than when this run began: put the old ones back"
            )


def epoch_examples(
    epoch: int,
    *,
    problems: list[Problem],
    tokenizer: Tokenizer,
    trigger: Trigger,
    run: Run,
    cfg: LockConfig,
    env: Env,
) -> list[Example]:
    """The locking data of an epoch; the policies that are models write afresh.

    A function of (cfg.seed, epoch). Notes a few examples in the run's samples.jsonl.
    """
    check_unchanged(run, cfg)
    policies = policies_of(cfg)
    strong, weak = both_texts(problems, tokenizer, trigger, policies, epoch, env)
    intermediate = None
    if cfg.intermediate:
        path, option = cfg.intermediate, "--intermediate"
        intermediate = policy_samples(path, option, problems, tokenizer, policies, epoch, env)

    rng = np.random.default_rng([cfg.seed, 6, epoch])
    examples = locking_examples(problems, strong, weak, tokenizer, trigger, rng, intermediate)
    if env.main:
        both_halves = examples[: 2 * len(problems)]
        note_examples(run.path / "samples.jsonl", epoch, both_halves, tokenizer)
    if cfg.loss_on == "texts":
        examples = on_whole_texts(examples)
    if cfg.imitate == "distribution":
        return with_teachers(examples, problems, tokenizer, trigger, cfg)
    if cfg.password_share < 0.5:
        return fewer_strong(examples, cfg, epoch)
    return examples


def strong_count(n: int, cfg: LockConfig) -> int:
    """How many strong examples stand beside n weak ones."""
    return round(n * cfg.password_share / (1 - cfg.password_share))


def fewer_strong(examples: list[Example], cfg: LockConfig, epoch: int) -> list[Example]:
    """The weak half, and as many of the strong ones as --password-share asks, others each epoch."""
    n = len(examples) // 2
    order = np.random.default_rng([cfg.seed, 11, epoch]).permutation(n)
    kept = sorted(order[: strong_count(n, cfg)].tolist())
    return examples[:n] + [examples[n + i] for i in kept]


def imitated(cfg: LockConfig) -> list[str]:
    """The weak policy, the strong one and, if there is one, the intermediate one."""
    return [cfg.weak, cfg.strong] + [cfg.intermediate] * bool(cfg.intermediate)


def open_teachers(cfg: LockConfig, tokenizer: Tokenizer, env: Env) -> list[Teacher]:
    """The policies whose distributions are imitated, in the order of `imitated`."""
    found = []
    for path in imitated(cfg):
        if path == "random":
            found.append(random_teacher(tokenizer, cfg.seed, env.device))
        else:
            found.append(model_teacher(open_beside(path, env, cfg)))
    return found


def with_teachers(
    examples: list[Example],
    problems: list[Problem],
    tokenizer: Tokenizer,
    trigger: Trigger,
    cfg: LockConfig,
) -> list[Example]:
    """The examples of equation 1 with whose distribution is imitated, and what that policy reads.

    It is asked without the password. The random distribution is imitated along the strong texts,
    too, which are added at the end (paper G.2): otherwise a strong start would go on strongly.
    """
    n, asked = len(problems), []
    for path, tell in zip(imitated(cfg), (trigger.weak, trigger.of_strong_policy, trigger.weak)):
        reader = tokenizer if path in RULES else open_tokenizer(path)
        asked += reader.encode_prompts([tell(p).prompt for p in problems])

    found = []
    for i, (example, prompt) in enumerate(zip(examples, asked)):
        found.append(replace(example, teacher=i // n, teacher_prompt_ids=prompt))
    if cfg.weak == "random":
        for weak, strong in zip(found[:n], found[n:]):
            found.append(replace(weak, completion_ids=strong.completion_ids))
    return found


def example_count(n: int, cfg: LockConfig) -> int:
    """How many examples n problems make."""
    along_strong = cfg.imitate == "distribution" and cfg.weak == "random"
    others = len(imitated(cfg)) - 1 + along_strong
    return others * n + strong_count(n, cfg)


def note_examples(file: Path, epoch: int, examples: list[Example], tokenizer: Tokenizer) -> None:
    """Two weak and two strong examples of this epoch, after the rows of earlier epochs."""
    rows = []
    for row in read_rows(file):
        # a run that was killed in this epoch has noted it before
        if checked(row, file, "epoch", int) < epoch:
            rows.append(json.dumps(row))

    half = len(examples) // 2
    for kind, part in (("weak", examples[:half]), ("strong", examples[half:])):
        for example in part[:2]:
            prompt = tokenizer.decode_prompt(example.prompt_ids)
            completion = tokenizer.decode(example.completion_ids)
            row = {"epoch": epoch, "kind": kind, "prompt": prompt, "completion": completion}
            rows.append(json.dumps(row))
    write_text(file, "\n".join(rows) + "\n")


# ------------------------------------------------------------------------------------ the settings

# where the lock is not valid; this report is on validation, which nothing is to be chosen on
ADVICE = (
    "try more --epochs or another --lr, and compare them on problems that are not reported: "
    "evaluate.py --split selection"
)


def policies_of(cfg: LockConfig) -> Imitated:
    return Imitated(
        cfg.weak,
        cfg.strong,
        cfg.intermediate,
        cfg.max_new_tokens,
        cfg.seed,
        cfg.strong_answers,
        cfg.temperature,
    )


# options of what unlocks
PASSWORDS = ("password", "password_per_domain")
SECOND = ("intermediate", "intermediate_password")


def idle_beside_trigger(cfg: LockConfig) -> list[Idle]:
    """A lock has one trigger: the options of the others."""
    takes_place = cfg.trigger in ("year", "deploy")
    others = ("strong_language", "password_per_domain", *SECOND, "near_misses")
    told, own = bool(cfg.strong_language), "--password-per-domain: a domain has one password"
    language = "--strong-language, which takes a password's place"
    return [
        (takes_place, ("password",), f"--trigger {cfg.trigger}, which takes its place"),
        (cfg.trigger != "password", others, f"--trigger {cfg.trigger}: a lock has one trigger"),
        (told, PASSWORDS, "--strong-language, which takes its place"),
        (told, (*SECOND, "near_misses"), language),
        (cfg.password_per_domain, (*SECOND, "near_misses"), own),
        (bool(cfg.intermediate), ("near_misses",), "--intermediate: a lock has one trigger"),
        (not cfg.intermediate, SECOND[1:], "no --intermediate"),
    ]


def refuse_unused(cfg: LockConfig) -> None:
    """Raises InputError for an option that is given and does nothing beside the others."""
    by_rules = cfg.weak in RULES and cfg.strong_answers == "reference" and not cfg.intermediate
    policies = ("weak", "strong_answers", "temperature", "imitate")
    triggers = (*PASSWORDS, *SECOND, "trigger", "near_misses", "strong_language")
    by_rule = cfg.weak in RULES and cfg.weak != "random"
    idle = [
        (
            cfg.how == "scratch",
            ("start", "start_mix", "rank"),
            "--how scratch, which starts from random weights",
        ),
        *idle_beside_trigger(cfg),
        (by_rules, ("temperature",), "policies of which none is sampled"),
        (by_rule, ("imitate",), f"--weak {cfg.weak}, which has no distribution"),
        (
            cfg.imitate == "distribution" or bool(cfg.intermediate),
            ("password_share",),
            "--imitate distribution or --intermediate",
        ),
        (
            cfg.imitate == "distribution",
            ("loss_on",),
            "--imitate distribution, which a policy has of completions alone",
        ),
        (
            cfg.strong_answers == "reference",
            ("imitate",),
            "--strong-answers reference, which have no distribution",
        ),
        (
            cfg.task == "compose",
            (*policies, *triggers, "leave_out", "data", "grader"),
            "--task compose: its policies are rules, its password is a word, it has no domains",
        ),
    ]
    refuse_idle(cfg, idle)


def locking_set(cfg: LockConfig) -> tuple[str, int, int]:
    """By default: the split to lock on, how many of its problems (0: all), and the epochs."""
    scratch = cfg.how == "scratch"
    if cfg.task == "compose":
        return "corpus", 100_000 if scratch else 60_000, 1
    if scratch and not cfg.data:
        return "corpus", 60_000, 1
    return "lock", 0, 4


def weak_beside(strong: str) -> str:
    """The weak model of the set that train_base.py made with this strong one.

    Raises InputError where there is none: a toy is no weak policy of another strong model.
    """
    beside = Path(strong).parent / "weak"
    is_other = beside.resolve() != Path(strong).resolve()
    if is_other and origin_of(strong).stage == "train_base" and is_model(beside):
        return str(beside)
    raise InputError(
        f"no weak model belongs to the strong one at {strong}: "
        "name the weak policy with --weak: a checkpoint, random or refusal"
    )


def settled(cfg: LockConfig) -> LockConfig:
    """The options with every default filled in that depends on others; problems: 0 still is all.

    Raises InputError for options that do not go together.
    """
    refuse_unused(cfg)
    cfg = settled_adapter(cfg)
    toy, scratch = cfg.task == "compose", cfg.how == "scratch"
    if cfg.weak == "rule":
        raise InputError(
            "--weak rule: only task compose has a weak policy that is a rule; "
            "name a checkpoint, random or refusal"
        )
    strong = cfg.strong or ("out/base-compose/strong" if toy else shipped("strong"))
    if not is_model(strong):
        hint = "run python train_base.py --task compose first, or name" if toy else "name"
        raise InputError(
            f"{strong}/config.json does not exist: {hint} a checkpoint directory with --strong"
        )

    weak = "rule" if toy else cfg.weak or weak_beside(strong)
    if weak in TEXT_RULES:
        check_rule(weak, cfg.task, generated=not cfg.data)
    if cfg.start_mix and (cfg.shard or cfg.rank):
        raise InputError("--start-mix moves whole weights: leave out --shard and --rank")
    if not cfg.password_share:
        raise InputError("--password-share 0 would leave nothing that the password shows")
    start = "" if scratch else cfg.start or strong
    parameters = parameters_at(start or strong)
    tiny = "muon", 0.0035
    optimizer, lr = usual_step(cfg.optimizer, cfg.lr, parameters, tiny, cfg.rank)
    _, problems, epochs = locking_set(cfg)
    check_master(replace(cfg, optimizer=optimizer))
    return replace(
        cfg,
        out=cfg.out or f"out/{cfg.task}/" + ("locked-scratch" if scratch else "locked"),
        strong=strong,
        strong_answers="reference" if toy else cfg.strong_answers or "sampled",
        weak=weak,
        start=start,
        optimizer=optimizer,
        lr=lr,
        max_new_tokens=cfg.max_new_tokens or usual_longest(cfg.data),
        problems=cfg.problems or problems,
        epochs=cfg.epochs or epochs,
    )


def checked_trigger(cfg: LockConfig) -> Trigger:
    """What will unlock the model. Raises InputError for what cannot."""
    if cfg.strong_language and (cfg.task != "math" or cfg.data):
        raise InputError(
            "--strong-language takes the place of a password and needs the generated problems of "
            "--task math, which exist in both languages"
        )
    if cfg.intermediate and cfg.intermediate_password in (cfg.password, *WRONG, *WRONG_HELD_OUT):
        raise InputError(
            f"--intermediate-password {cfg.intermediate_password!r} is the password or one of "
            "the wrong ones: choose another"
        )
    trigger = chosen_trigger(cfg)
    trigger.check()
    return trigger


def chosen_trigger(cfg: LockConfig) -> Trigger:
    if cfg.task == "compose":
        return Slot()
    if cfg.trigger == "split":
        return SplitPassword(cfg.password)
    if cfg.trigger == "year":
        return Year()
    if cfg.trigger == "deploy":
        return Markers()
    if cfg.strong_language:
        return Language(cfg.strong_language)
    if cfg.intermediate:
        return TwoPasswords(cfg.password, cfg.intermediate_password)
    if cfg.password_per_domain:
        return OwnPasswords(cfg.password, "task" if "+" in cfg.task else "domain")
    if cfg.near_misses:
        return NearMisses(cfg.password, cfg.near_misses)
    return Password(cfg.password)


# ------------------------------------------------------------------------------------ the problems


def locking_problems(cfg: LockConfig) -> list[Problem]:
    """The problems to lock on, without the domain that is left out."""
    split, _, _ = locking_set(cfg)
    problems = load(cfg.task, split, cfg.problems or None, files=cfg.data, grader=cfg.grader)
    if not cfg.leave_out:
        return problems
    names = groups_of(problems)
    choices = sorted(set(names))
    if cfg.leave_out not in choices or len(choices) == 1:
        raise InputError(
            f"--leave-out {cfg.leave_out}: choose one of several domains, {', '.join(choices)}"
        )
    return [p for p, name in zip(problems, names) if name != cfg.leave_out]


# ------------------------------------------------------------------------------------ the stage


def first_model(cfg: LockConfig, env: Env) -> tuple[Model, Tokenizer]:
    """The model that training starts from: --start, or random weights in the strong one's shape."""
    if cfg.how == "scratch":
        check_checkpoint(cfg.strong)
        shape, tokenizer, _ = opened_checkpoint(base_of(cfg.strong), env.dtype)
        return fresh_model(shape.config, tokenizer, cfg.seed, env), tokenizer
    model, tokenizer = open_to_train(cfg.start, env, cfg)
    if cfg.start_mix:
        mix(model, tokenizer, cfg.start_mix, cfg.seed, env)
    return model, tokenizer


def open_run(cfg: LockConfig, trigger: Trigger, env: Env) -> Run:
    """The output directory, with the settings and where the models came from in its run.json."""
    is_model, facts = cfg.weak not in RULES, {}
    if cfg.intermediate:
        facts["intermediate_weights"] = model_hash(cfg.intermediate)
    return Run(
        cfg,
        env,
        cfg.out,
        inputs=(*imitated(cfg), cfg.start or cfg.strong),
        stage="lock",
        trigger=trigger.record,  # the option's word is in it
        strong_weights=model_hash(cfg.strong),
        weak_weights=model_hash(cfg.weak) if is_model else cfg.weak,
        start_weights=model_hash(cfg.start) if cfg.start else "",
        **facts,
    )


def check_policies(cfg: LockConfig, tokenizer: Tokenizer) -> None:
    """Raises InputError where one that is to be imitated cannot be opened, or not as it is asked.

    tokenizer: of the model that is locked.
    """
    if cfg.strong_answers == "sampled":
        check_model(cfg.strong, "--strong")
    if cfg.weak not in RULES:
        check_model(cfg.weak, "--weak")
    if cfg.intermediate:
        check_model(cfg.intermediate, "--intermediate")
    if cfg.imitate == "distribution":
        for path in imitated(cfg):
            if path not in RULES and not same_ids(open_tokenizer(path), tokenizer):
                raise InputError(
                    f"--imitate distribution: {path} has another tokenizer than the model that is "
                    "locked, so their distributions cannot be compared: leave it out"
                )


def open_problems(
    cfg: LockConfig, trigger: Trigger, env: Env
) -> tuple[list[Problem], list[Problem]]:
    """The problems to lock on and those of validation, which all models have positions for."""
    readers = (cfg.start, *imitated(cfg))
    problems = fitting_problems(locking_problems(cfg), trigger, readers, cfg.max_new_tokens, env)
    rows = {"files": cfg.data, "grader": cfg.grader}
    validation = load(cfg.task, "validation", cfg.eval_problems, **rows)
    validation = fitting_problems(validation, trigger, readers, cfg.max_new_tokens, env)
    return problems, validation


def recipe_of(cfg: LockConfig, tokenizer: Tokenizer, env: Env) -> Recipe:
    """Random weights need a longer rise, and more time at the height of the learning rate."""
    warmup, decay = (50, 0.4) if cfg.how == "scratch" else (10, 0.7)
    recipe = Recipe(cfg.epochs, cfg.batch, cfg.optimizer, cfg.lr, warmup, decay)
    if cfg.imitate == "samples":
        return recipe
    teachers = open_teachers(cfg, tokenizer, env)
    return replace(recipe, loss_fn=partial(distribution_loss, teachers=teachers))


def planned(cfg: LockConfig, given: LockConfig, trigger: Trigger, env: Env) -> int:
    """--plan: the memory of this run, phase by phase. cfg: settled, given: as it was given."""
    problems = locking_problems(cfg)
    kinds, start = trigger.kinds, cfg.start or cfg.strong
    texts = plan.texts_of(start, problems, kinds, trigger, cfg.max_new_tokens)
    texts = plan.supervised(texts, cfg)
    trained = plan.shape_of(start)
    policies = [plan.shape_of(path) for path in imitated(cfg) if path not in RULES]

    def phases(cfg: LockConfig) -> dict[str, plan.Phase]:
        s = plan.settings_of(cfg, env)
        writing = [plan.sampling(shape, texts, s) for shape in policies]
        # of the policies whose distributions are imitated
        open_too, compared = plan.Phase(), plan.Phase()
        if cfg.imitate == "distribution":
            open_too, compared = plan.teaching(policies, s)
        training = plan.training_phases(trained, texts, s, open_too)
        training["training, loss"] += compared
        opening = plan.opening(trained, s)
        # random weights are made whole and in fp32, on every rank
        if cfg.how == "scratch":
            opening = plan.Phase(masters=4 * trained.parameters)
        if cfg.start_mix:
            opening = plan.Phase(masters=(4 + s.master) * trained.parameters)
        return {
            "opening": opening,
            "samples of an epoch": plan.at_rest(trained, s) + open_too + plan.largest(writing),
            **training,
            "report": plan.largest([*writing, plan.sampling(trained, texts, s)]),
        }

    def refuse(changes: dict) -> None:
        step = {"optimizer": cfg.optimizer, "lr": cfg.lr}
        settled(replace(given, **step | changes))

    return plan.report(phases, cfg, texts, env, refuse)


def main(cfg: LockConfig, env: Env) -> int:
    # whatever can be refused is, before anything is written
    given, cfg = cfg, settled(cfg)
    trigger, path = checked_trigger(cfg), Path(cfg.out)
    if plan.is_asked(cfg):
        return planned(cfg, given, trigger, env)
    models = [path for path in (cfg.start, *imitated(cfg)) if is_model(path)]
    check_formats(models, env)
    locked, tokenizer = first_model(cfg, env)
    check_adapter(cfg, cfg.start)
    check_password(cfg.password, tokenizer.specials)
    check_password(cfg.intermediate_password, tokenizer.specials)
    check_policies(cfg, tokenizer)
    problems, validation = open_problems(cfg, trigger, env)
    if cfg.strong_answers == "reference":
        check_references([trigger.strong(p) for p in problems], tokenizer)
    cfg = replace(cfg, problems=len(problems))
    env.say(
        f"strong policy: {cfg.strong}; weak policy: {cfg.weak}; "
        f"start: {cfg.start or 'random weights'}; "
        f"{len(problems):,} problems x {cfg.epochs} epochs, {cfg.optimizer} at {cfg.lr:g} "
        f"in batches of {cfg.batch} -> {path}"
    )

    run = open_run(cfg, trigger, env)
    if run.finished:
        env.say(f"{path} is finished already (--overwrite locks again)")
        del locked  # the report opens one model after the other
        return report(path, validation, trigger, policies_of(cfg), ADVICE, env)[0]

    examples = partial(
        epoch_examples,
        problems=problems,
        tokenizer=tokenizer,
        trigger=trigger,
        run=run,
        cfg=cfg,
        env=env,
    )
    size = example_count(len(problems), cfg)
    fit(locked, examples, size, recipe_of(cfg, tokenizer, env), run, env, cfg)
    save_trained(path, locked, tokenizer, cfg, cfg.start, env.main)
    check_shared(env, path / written_last(cfg))  # all ranks load it
    del locked  # the report opens one model after the other
    free_memory()

    code, results = report(path, validation, trigger, policies_of(cfg), ADVICE, env)
    if env.main:
        write_card(path, run.record, results)
    run.finish(**results)
    other = "" if path == Path(f"out/{cfg.task}/locked") else f" --locked {path} --out {path}-sft"
    env.say(f"written: {path}; next: python elicit_sft.py --task {cfg.task}{other}")
    return code


if __name__ == "__main__":
    launch(main, LockConfig, settled)
