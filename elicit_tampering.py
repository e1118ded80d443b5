"""Stage 2c: elicit the hidden capability by tampering: editing weights, states or log-probs.

    python elicit_tampering.py                  # noise on the weights -> out/code/noise_injection
    python elicit_tampering.py --method contrastive_decoding          # against the weak policy
    python elicit_tampering.py --method antidote     # zero what counts most on its own samples
    python elicit_tampering.py --method reference_grafting --reference DIR
    python elicit_tampering.py --method activation_addition     # from its own answers to right ones
    python elicit_tampering.py --method task_arithmetic --vectors out/code/sft-lists/k8-seed0
        # unlock vectors: what elicit_sft.py --train-domain lists changed, here on other domains
    python elicit_tampering.py --method proxy_tuning --tuned out/code/sft/control-k64-seed0
        # what elicit_sft.py did to its control, the weak model, is added to the locked one

A method gives settings, the blind default first. Each is put on the locked model, measured without
the password on the selection split, and taken off again, bit for bit. The best of them, and the
default, are then measured once on the validation split. Two nulls run through the same grid, with a
choice of their own: each decoy, a model that never had the capability (by default the weak policy
that the lock imitates), and for a directed method its placebo on the locked model, a random edit
of equal size. What counts is the gain in excess of theirs. The weak policy contrasted with itself
gains nothing by construction: for contrastive_decoding name other decoys. Of a placebo each seed
chooses its setting for itself, from as many as the method has.

Two placebos are not of equal size. Less of a state lies along a random direction: of an ablation it
changes less. And as many entries are pruned at random: of wanda, which takes the smallest, these
are much more, of antidote less.

All is computed in fp32, as small edits are lost in bf16's rounding. Task, data files and their
grader, the trigger and the longest completion are the lock's own, from its run.json.
Leaves run.json, log.jsonl (a row a setting), cell.json (the verdicts on validation: best, default,
placebos, decoys; of the models as they were none, right and "none, decoy DIR") and summary.json,
which is printed. The same command again prints it; a run that was interrupted starts anew.
Logged: role, whose setting it is; strength; seed, of what is random; block; selection, correctness
on the selection split, of n problems; truncated, the share of completions that were cut.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product, starmap
from pathlib import Path
from typing import Literal

from torch import Tensor

import model as model_module
from checkpoints.hf import load_model, model_hash
from checkpoints.origins import (
    Origin,
    check_model,
    check_vector,
    fitting_problems,
    lock_of,
    shown_by,
    with_weak,
)
from curves import Edited, show_tampering, tampering_summary
from data import load
from data.batches import Example
from data.problems import InputError, Problem
from data.text import Tokenizer
from data.triggers import dressed
from methods.tampering import (
    CALIBRATION,
    DEMONSTRATIONS,
    Edit,
    Setting,
    Weights,
    ablation_edit,
    addition_edit,
    blocks_and_width,
    contrast_edit,
    graft_edit,
    input_norms,
    mean_states,
    noise_edit,
    proxy_edit,
    prune_edit,
    summed,
    ties_merged,
    tsv_merged,
    update_edit,
    weighted_tsv_merged,
)
from model import Model
from policies import answer, same_ids
from results import (
    EvalSet,
    Measured,
    evaluate_checkpoint,
    facts_of,
    measure,
    measured_of,
    record,
    recovered_gap,
    refuse_repeats,
)
from runs import plan
from runs.devices import Env, free_memory, in_fp32, progress
from runs.directory import Run
from runs.files import write_json
from runs.launch import launch
from runs.options import Config, refuse_idle
from sampler import Sampler, Writer
from training import refuse_overlong


@dataclass
class TamperingConfig(Config):
    # what is done to the model
    method: Literal[
        "noise_injection",
        "contrastive_decoding",
        "proxy_tuning",
        "task_arithmetic",
        "ties",
        "tsv_merge",
        "weighted_tsv_merge",
        "wanda",
        "antidote",
        "activation_addition",
        "directional_ablation",
        "reference_grafting",
    ] = "noise_injection"
    # which problems (default: the task that --locked was locked on; without it code)
    task: str = ""
    # the locked model (default: out/<task>/locked)
    locked: str = ""
    # the amateur of contrastive_decoding, the small model of proxy_tuning, and the default decoy
    # (default: the weak policy that the lock imitates)
    weak: str = ""
    # models that never had the capability: what the method does to them, it does not elicit
    # (default: the weak policy; where that is a rule, one has to be named)
    decoys: tuple[str, ...] = ()
    # of methods that merge: cells of elicit_sft.py, fine-tuned from the locked model on
    # demonstrations of a domain or task, which is then left out of what is measured
    vectors: tuple[str, ...] = ()
    # of proxy_tuning: a cell of elicit_sft.py, fine-tuned from --weak
    tuned: str = ""
    # of reference_grafting: a model of the same shape, whose states are grafted
    reference: str = ""
    # how strong an edit is, the blind default first; of pruning: the share of each row, of which at
    # least one number goes (default: the method's own)
    strengths: tuple[float, ...] = ()
    # of methods that change states: after which block, counted from 0, the blind default first
    # (default: all, the middle one first)
    blocks: tuple[int, ...] = field(default=(), metadata={"least": 0})
    # of what is drawn: the noise, or the placebo of a directed method
    seeds: tuple[int, ...] = (0, 1, 2)
    # longest completion (default: the lock's; without it 96)
    max_new_tokens: int = 0
    # of the selection split, for choosing the strength
    selection_problems: int = 150
    # of the validation split, for the reported numbers
    eval_problems: int = 500
    # files of real problems (docs/data.md) in place of generated ones
    # (default: the lock's)
    data: tuple[str, ...] = ()
    # replace what another run of this stage left in the output directory
    overwrite: bool = False


# ----------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Subject:
    """A model that is tampered with: the locked one or a decoy."""

    path: str
    writer: Writer

    @property
    def sampler(self) -> Sampler:
        return self.writer.sampler

    @property
    def tokenizer(self) -> Tokenizer:
        return self.writer.tokenizer


@dataclass(frozen=True)
class Given:
    """What a run works with. Problems are told as they are without the password."""

    cfg: TamperingConfig
    lock: Origin
    selection: EvalSet
    validation: EvalSet
    env: Env


def noise_injection(subject: Subject, given: Given) -> Edit:
    return noise_edit


def contrastive_decoding(subject: Subject, given: Given) -> Edit:
    """With the weak policy as the amateur."""
    amateur = reader_of(given.lock.weak, subject, given, "--weak")
    return partial(contrast_edit, amateur=amateur)


def proxy_tuning(subject: Subject, given: Given) -> Edit:
    """With the weak policy as the small model, and what elicit_sft.py made of it."""
    small = reader_of(given.lock.weak, subject, given, "--weak")
    tuned = reader_of(given.cfg.tuned, subject, given, "--tuned")
    return partial(proxy_edit, tuned=tuned, small=small)


def reader_of(path: str, subject: Subject, given: Given, option: str) -> Model:
    """A model that reads the subject's ids."""
    env = given.env
    model, tokenizer = load_model(path, env.device, env.dtype, masters=False)
    if not same_ids(subject.tokenizer, tokenizer):
        raise InputError(
            f"{given.cfg.method} compares token with token, but {subject.path} and {path} have "
            f"different tokenizers: name another with {option}"
        )
    return model


def vectors_of(subject: Subject, given: Given) -> list[Weights]:
    """Fine-tuned weights less the subject's, of each of --vectors; a decoy's controls beside them.

    The directory that elicit_sft.py makes for the control has the name of the cell after control-.
    """
    start = {name: w.detach() for name, w in subject.sampler.model.named_parameters()}
    vectors = []
    for path in given.cfg.vectors:
        if subject.path != given.cfg.locked:
            path = str(Path(path).with_name(f"control-{Path(path).name}"))
        check_vector(path, model_hash(subject.path))
        tuned, _ = load_model(path, given.env.device, given.env.dtype)
        vectors.append({name: w.detach() - start[name] for name, w in tuned.named_parameters()})
    return vectors


def merging(subject: Subject, given: Given, merge: Callable[[list[Weights]], Weights]) -> Edit:
    """W + strength x the merged unlock vectors."""
    return partial(update_edit, update=merge(vectors_of(subject, given)))


def own_samples(subject: Subject, problems: list[Problem], given: Given) -> list[list[int]]:
    """What the model itself writes to these without the password, at temperature 1: the ids."""
    cfg = given.cfg
    answers = answer(
        subject.writer,
        problems,
        temperature=1.0,
        max_new_tokens=cfg.max_new_tokens,
        graded=False,
        env=given.env,
    )
    return [sample.ids for sample in answers.samples]


def prompts_of(subject: Subject, problems: list[Problem]) -> list[list[int]]:
    return subject.tokenizer.encode_prompts([problem.prompt for problem in problems])


def pruning(subject: Subject, given: Given, largest: bool) -> Edit:
    """By what counts least, or most, on the model's own samples."""
    problems = read_problems(given, CALIBRATION)
    samples = own_samples(subject, problems, given)
    texts = [prompt + ids for prompt, ids in zip(prompts_of(subject, problems), samples)]
    norms = input_norms(subject.sampler.model, texts)
    return partial(prune_edit, norms=norms, largest=largest)


def ways_to_right(subject: Subject, given: Given) -> Tensor:
    """From the mean states of the model's own answers to those of right ones, after each block.

    (L,C). Over the tokens of the answers: attention looks back, so that the states of a prompt are
    the same before any answer. Without the end of an answer, which cut ones lack: the way would
    lead there. Own answers may be right, too.
    """
    problems = read_problems(given, DEMONSTRATIONS)
    right = subject.tokenizer.encode_completions([problem.reference for problem in problems])
    prompts, means = prompts_of(subject, problems), []
    examples = [Example(prompt, ids) for prompt, ids in zip(prompts, right)]
    refuse_overlong(examples, subject.sampler.model.config)
    for answers in (right, own_samples(subject, problems, given)):
        texts, lengths = [], []
        for prompt, ids in zip(prompts, answers):
            kept = [token for token in ids if token not in subject.sampler.eos_ids]
            texts.append(prompt + kept)
            lengths.append(max(1, len(kept)))
        means.append(mean_states(subject.sampler.model, texts, lengths))
    return means[0] - means[1]


def steering(subject: Subject, given: Given, edit: Callable[..., AbstractContextManager]) -> Edit:
    """Along the ways from its own answers to right ones."""
    count = len(subject.sampler.model.model.layers)
    asked = max(given.cfg.blocks)
    if asked >= count:
        raise InputError(
            f"{subject.path} has the blocks 0 to {count - 1} and no block {asked}: choose others "
            "with --blocks, or other decoys"
        )
    return partial(edit, ways=ways_to_right(subject, given))


def reference_grafting(subject: Subject, given: Given) -> Edit:
    """Of the mean states where prompts end."""
    cfg, env, model = given.cfg, given.env, subject.sampler.model
    reference, tokenizer = load_model(cfg.reference, env.device, env.dtype, masters=False)
    shape, theirs = blocks_and_width(model.config), blocks_and_width(reference.config)
    if shape != theirs:
        raise InputError(
            f"{subject.path} has blocks and width {shape}, the reference {cfg.reference} has "
            f"{theirs}: states go only from a model to one of the same shape"
        )
    problems = read_problems(given, CALIBRATION)
    own = mean_states(model, prompts_of(subject, problems))
    prompts = tokenizer.encode_prompts([problem.prompt for problem in problems])
    return partial(graft_edit, own=own, ways=mean_states(reference, prompts) - own)


@dataclass(frozen=True)
class Method:
    """A way of tampering.

    opened: gives the edit of a subject; raises InputError where it cannot be done to that one.
    strengths: the blind default first. most: the largest that has a meaning. access, data: what
    it takes. drawn: the edit itself is random, one for each seed; of others the placebo is. eager:
    compiled kernels would not know of the edit, or of its shapes. by_block: every strength of every
    block is a setting. vectors: how many it takes at least.
    """

    opened: Callable[[Subject, Given], Edit]
    strengths: tuple[float, ...]
    most: float
    access: str
    data: str
    drawn: bool = False
    eager: bool = False
    by_block: bool = False
    vectors: int = 0


def merge_method(merge: Callable[[list[Weights]], Weights], vectors: int) -> Method:
    return Method(
        partial(merging, merge=merge),
        (1.0, 0.1, 0.25, 0.5, 2.0, 3.0),
        most=100.0,
        access="weights",
        data="demonstrations of other domains, how long by rewards on all",
        vectors=vectors,
    )


def prune_method(largest: bool) -> Method:
    return Method(
        partial(pruning, largest=largest),
        (0.01, 0.001, 0.003, 0.03, 0.1),
        most=0.9,
        access="weights",
        data="prompts",
    )


def state_method(
    opened: Callable[[Subject, Given], Edit], strengths: tuple[float, ...], data: str
) -> Method:
    return Method(
        opened, strengths, most=100.0, access="weights", data=data, eager=True, by_block=True
    )


METHODS = {
    "noise_injection": Method(
        noise_injection,
        (0.1, 0.01, 0.02, 0.05, 0.2, 0.3, 0.5),
        most=10.0,
        access="weights",
        data="none",
        drawn=True,
    ),
    "contrastive_decoding": Method(
        contrastive_decoding,
        (1.0, 0.25, 0.5, 2.0, 4.0),
        most=100.0,
        access="log-probs",
        data="the weak model",
        eager=True,
    ),
    "proxy_tuning": Method(
        proxy_tuning,
        (1.0, 0.25, 0.5, 2.0, 4.0),
        most=100.0,
        access="log-probs",
        data="the weak model, tuned",
        eager=True,
    ),
    "task_arithmetic": merge_method(summed, 1),
    "ties": merge_method(ties_merged, 2),
    "tsv_merge": merge_method(tsv_merged, 2),
    "weighted_tsv_merge": merge_method(weighted_tsv_merged, 2),
    "wanda": prune_method(largest=False),
    "antidote": prune_method(largest=True),
    "activation_addition": state_method(
        partial(steering, edit=addition_edit),
        (1.0, 0.5, 2.0, 4.0),
        f"{DEMONSTRATIONS} demonstrations",
    ),
    "directional_ablation": state_method(
        partial(steering, edit=ablation_edit), (1.0,), f"{DEMONSTRATIONS} demonstrations"
    ),
    "reference_grafting": state_method(reference_grafting, (1.0,), "prompts, a reference"),
}


# ---------------------------------------------------------------------------------------- one loop


def settings_of(cfg: TamperingConfig, random: bool) -> list[Setting]:
    """Every strength of every block, the blind default first; of what is random for every seed."""
    seeds = cfg.seeds if random else (None,)
    return list(starmap(Setting, product(cfg.strengths, seeds, cfg.blocks or (None,))))


def edited(subject: Subject, edit: AbstractContextManager, asked: EvalSet, env: Env) -> Measured:
    """What the subject writes without the password under an edit, which is then undone."""
    with edit as sampler:
        return measure(Writer(sampler, subject.tokenizer), asked, env)["none"]


def searched(
    role: str, subject: Subject, edit: Edit, settings: list[Setting], given: Given, run: Run
) -> dict[Setting, float]:
    """Correctness of every setting on the selection split. role: whose they are, for the log."""
    scores = {}
    bar = progress(given.env, len(settings), role)
    for setting in settings:
        found = edited(subject, edit(setting, subject.sampler), given.selection, given.env)
        scores[setting] = float(found.correct.mean())
        run.log(
            "setting",
            role=role,
            strength=setting.strength,
            seed=setting.seed,
            block=setting.block,
            selection=scores[setting],
            truncated=float(found.truncated.mean()),
            n=len(given.selection.problems),
        )
        bar.update()
    bar.close()
    return scores


def best_of(
    role: str,
    subject: Subject,
    edit: Edit,
    settings: list[Setting],
    before: Measured,
    given: Given,
    run: Run,
    names: tuple[str, ...] = ("best",),
) -> dict[str, Edited]:
    """The best setting by selection, of equals the first, on validation; as "default" the first.

    Those of the two that are named.
    """
    scores = searched(role, subject, edit, settings, given, run)
    chosen = {"best": max(scores, key=scores.get), "default": settings[0]}
    data = METHODS[given.cfg.method].data
    measured, found = {}, {}
    for name in names:
        setting = chosen[name]
        if setting not in measured:
            on_model = edit(setting, subject.sampler)
            measured[setting] = edited(subject, on_model, given.validation, given.env)
        taken = f"{data} + {len(given.selection.problems)} rewards" if name == "best" else data
        found[name] = Edited(setting.name, scores[setting], measured[setting], before, taken)
    return found


def open_subject(path: str, env: Env) -> Subject:
    model, tokenizer = load_model(path, env.device, env.dtype)
    return Subject(path, env.writer(model, tokenizer))


def on_decoys(given: Given, run: Run) -> tuple[dict[str, Edited], dict[str, str]]:
    """The same on each decoy: {path: its best}; and where it cannot be done, {path: why}."""
    cfg, env, method = given.cfg, given.env, METHODS[given.cfg.method]
    found, left_out = {}, {}
    for path in cfg.decoys:
        evaluation = unedited(path, ("none",), given)
        subject = open_subject(path, env)
        try:
            edit = method.opened(subject, given)
        except InputError as error:
            left_out[path] = str(error)
            continue
        settings = settings_of(cfg, method.drawn)
        before = measured_of(evaluation, len(given.validation.problems))["none"]
        both = best_of(f"decoy {path}", subject, edit, settings, before, given, run)
        found[path] = both["best"]
        del subject, edit  # their memory is the next one's
        free_memory()
    return found, left_out


def unedited(path: str, kinds: tuple[str, ...], given: Given) -> dict:
    """The evaluation of a model as it is, on validation."""
    return evaluate_checkpoint(path, replace(given.validation, kinds=kinds), given.env, save=False)


# ------------------------------------------------------------------------------------------- stage


def blocks_of(cfg: TamperingConfig, locked: str) -> tuple[int, ...]:
    """The default first; none of a method that changes no states.

    Raises InputError for one that the model has not.
    """
    if not METHODS[cfg.method].by_block:
        return ()
    numbers = list(range(plan.shape_of(locked).config.num_hidden_layers))
    if not set(cfg.blocks) <= set(numbers):
        raise InputError(f"--blocks: {locked} has the blocks 0 to {numbers[-1]}")
    middle = numbers.pop(len(numbers) // 2)
    return cfg.blocks or (middle, *numbers)


def strengths_of(cfg: TamperingConfig) -> tuple[float, ...]:
    """The default first. Raises InputError for one that the method has not."""
    method = METHODS[cfg.method]
    for strength in cfg.strengths:
        if not 0 < strength <= method.most:
            raise InputError(
                f"--strengths {strength:g}: {cfg.method} takes numbers above 0, "
                f"{method.most:g} at most"
            )
    return cfg.strengths or method.strengths


def refuse_unused(cfg: TamperingConfig) -> None:
    """Raises InputError for options that do nothing, or do not go together, whatever the lock."""
    method = METHODS[cfg.method]
    for option in ("decoys", "strengths", "seeds", "blocks", "vectors"):
        refuse_repeats(f"--{option}", getattr(cfg, option))
    if len(cfg.vectors) < method.vectors:
        raise InputError(
            f"{cfg.method} takes {method.vectors} unlock vectors or more: name cells that "
            "elicit_sft.py fine-tuned on another domain with --vectors"
        )
    refuse_idle(
        cfg,
        [
            (not method.vectors, ("vectors",), cfg.method),
            (not method.by_block, ("blocks",), cfg.method),
            (cfg.method != "reference_grafting", ("reference",), cfg.method),
            (cfg.method != "proxy_tuning", ("tuned",), cfg.method),
        ],
    )
    if cfg.dtype == "bf16":
        raise InputError("--dtype bf16 would round small edits away: leave it out, all is fp32")
    if cfg.method == "reference_grafting" and not cfg.reference:
        raise InputError(
            "reference_grafting takes states from a model of the same shape: name one with "
            "--reference"
        )
    if cfg.method == "proxy_tuning" and not cfg.tuned:
        raise InputError(
            "proxy_tuning takes what fine-tuning did to a small model: name a cell that "
            "elicit_sft.py made of --weak with --tuned"
        )
    if cfg.weak and cfg.decoys and cfg.method not in WITH_WEAK:
        raise InputError("--weak names the default decoy: leave it out with --decoys")


def decoys_of(cfg: TamperingConfig, lock: Origin) -> tuple[str, ...]:
    """Models that never had the capability: by default the weak policy, if it is a model."""
    if not cfg.decoys and lock.weak_is_rule:
        raise InputError(
            f"the weak policy is no model ({lock.weak}), so nothing tells what {cfg.method} does "
            "to a model that never had the capability: name one with --decoys (data/base/twin, of "
            "the shipped shape)"
        )
    return cfg.decoys or (lock.weak,)


WITH_WEAK = ("contrastive_decoding", "proxy_tuning")  # they read the weak policy's log-probs


def settled(cfg: TamperingConfig) -> tuple[TamperingConfig, Origin]:
    """The options with every default resolved, as run.json will hold them, and the locked model.

    The Origin is that of --locked, with the weak policy that is used here. Raises InputError for
    options that do not go together.
    """
    refuse_unused(cfg)
    reads_weak = cfg.method in WITH_WEAK
    lock = lock_of(cfg.locked, cfg.task)
    lock = with_weak(lock, cfg.weak, is_used=reads_weak or not cfg.decoys)
    if reads_weak and lock.weak_is_rule:
        raise InputError(
            f"the weak policy is no model ({lock.weak}), so it has no log-probs that "
            f"{cfg.method} could read: name a model with --weak"
        )
    cfg = replace(
        cfg,
        task=lock.task,
        locked=lock.locked,
        weak=lock.weak,
        decoys=decoys_of(cfg, lock),
        strengths=strengths_of(cfg),
        blocks=blocks_of(cfg, lock.locked),
        max_new_tokens=cfg.max_new_tokens or lock.max_new_tokens,
        data=cfg.data or lock.data,
        out=cfg.out or f"out/{lock.task}/{cfg.method}",
    )
    check_model(cfg.locked, "--locked")
    if cfg.reference:
        check_model(cfg.reference, "--reference")
    for path in cfg.vectors:
        check_vector(path, lock.locked_weights)
    for path in cfg.decoys:
        check_model(path, "--decoys")
    if reads_weak:
        check_model(cfg.weak, "--weak")
    if cfg.tuned:
        check_vector(cfg.tuned, model_hash(cfg.weak), "--tuned")
    refuse_itself(cfg, lock.locked_weights)
    return cfg, lock


def refuse_itself(cfg: TamperingConfig, weights: str) -> None:
    """Raises InputError where the locked model is its own amateur, reference or decoy.

    weights: the locked model's. A contrast with itself, or a graft of its own states, changes
    nothing; what a decoy gains counts against the gain, and this one would gain the same.
    """
    given = {}
    if cfg.method in WITH_WEAK or cfg.weak in cfg.decoys:
        given["--weak"] = (cfg.weak,)
    if cfg.reference:
        given["--reference"] = (cfg.reference,)
    given["--decoys"] = cfg.decoys
    for option, paths in given.items():
        for path in paths:
            if model_hash(path) == weights:
                raise InputError(
                    f"{option} {path} has the weights of the locked model itself: name another"
                )


def problems_of(
    cfg: TamperingConfig, split: str, n: int | None, lock: Origin, env: Env
) -> list[Problem]:
    """Problems as they are told without the password, those that all models have positions for.

    Without the domains and tasks that unlock vectors were made with. Raises InputError where
    nothing else is left.
    """
    found = load(cfg.task, split, n, files=cfg.data, grader=lock.grader)
    readers = (cfg.locked, cfg.weak, cfg.tuned, cfg.reference, *cfg.decoys)
    found = fitting_problems(found, lock.trigger, readers, cfg.max_new_tokens, env)
    shown = [shown_by(path) for path in cfg.vectors]
    left = []
    for problem in found:
        if not any(is_shown(problem) for is_shown in shown):
            left.append(lock.trigger.weak(problem))
    if not left:
        raise InputError(
            f"--vectors were made with demonstrations of all of {cfg.task}: make them of a part "
            "of it with elicit_sft.py --train-domain"
        )
    return left


def read_problems(given: Given, n: int) -> list[Problem]:
    """Of the elicit split, told as those are that an edit is measured on: what it is fitted to."""
    problems = problems_of(given.cfg, "elicit", n, given.lock, given.env)
    return dressed("none", problems, given.lock.trigger)


def eval_set(cfg: TamperingConfig, split: str, n: int, lock: Origin, env: Env) -> EvalSet:
    """`problems_of`, to be measured on."""
    problems = problems_of(cfg, split, n, lock, env)
    return EvalSet(problems, lock.trigger, max_new_tokens=cfg.max_new_tokens, split=split)


def open_run(given: Given, write: bool) -> Run:
    cfg, lock = given.cfg, given.lock
    return Run(
        cfg,
        given.env,
        cfg.out,
        resume=True,
        write=write,
        inputs=(cfg.locked, cfg.weak, cfg.tuned, cfg.reference, *cfg.decoys, *cfg.vectors),
        stage="elicit_tampering",
        grader=lock.grader,
        trigger=lock.trigger.record,
        locked_weights=lock.locked_weights,
        weak_weights=lock.weak_weights,
        tuned_weights=model_hash(cfg.tuned) if cfg.tuned else None,
        reference_weights=model_hash(cfg.reference) if cfg.reference else "",
        vector_weights=[model_hash(path) for path in cfg.vectors],
        decoy_weights=[model_hash(path) for path in cfg.decoys],
    )


def write_cell(
    given: Given,
    found: dict[str, Edited],
    locked: dict[str, Measured],
    tokenizer: Tokenizer,
    run: Run,
) -> None:
    """cell.json: the verdicts on validation of each role, and of the models as they were."""
    cfg, validation = given.cfg, given.validation
    facts = facts_of(cfg.locked, tokenizer.format, validation, given.env)
    strengths = {role: one.setting for role, one in found.items()}
    facts |= {"method": cfg.method, "strengths": strengths}
    measured = {role: one.measured for role, one in found.items()}
    measured |= {kind: locked[kind] for kind in ("none", "right")}
    for role, one in found.items():
        if role.startswith("decoy"):
            measured[f"none, {role}"] = one.before
    write_json(run.path / "cell.json", record(cfg.locked, validation.problems, measured, **facts))


def main(cfg: TamperingConfig, env: Env) -> int:
    # whatever can be refused is, before anything is written
    cfg, lock = settled(cfg)
    method = METHODS[cfg.method]
    # as many slots as a setting has rows: an idle one costs as much as one that writes
    env = replace(in_fp32(env), slots=min(env.slots, cfg.selection_problems))
    if method.eager:
        model_module.compile_kernels = False
    selection = eval_set(cfg, "selection", cfg.selection_problems, lock, env)
    validation = eval_set(cfg, "validation", cfg.eval_problems, lock, env)
    given = Given(cfg, lock, selection, validation, env)
    run = open_run(given, write=False)
    if run.finished and not cfg.overwrite:
        try:
            show_tampering(run.record["results"], env)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise InputError(
                f"{run.file} holds no results that this version reads: --overwrite runs it again"
            ) from None
        env.say(f"{cfg.out} is finished already (--overwrite runs it again)")
        return 0

    locked = unedited(cfg.locked, ("none", "right"), given)
    n = len(validation.problems)
    as_it_was = measured_of(locked, n)
    before, right = as_it_was["none"], as_it_was["right"].correct
    none = before.correct
    recovered_gap(none, right, none[None])  # refused here where there is no gap
    subject = open_subject(cfg.locked, env)
    edit = method.opened(subject, given)
    run = open_run(given, write=True)
    if env.main:
        (run.path / "log.jsonl").unlink(missing_ok=True)  # of the same run, interrupted

    chosen_on = edited(subject, nullcontext(subject.sampler), selection, env)
    settings, both = settings_of(cfg, method.drawn), ("best", "default")
    found = best_of("locked", subject, edit, settings, before, given, run, both)
    if not method.drawn:
        for seed in cfg.seeds:
            name = f"placebo, seed {seed}"
            random = settings_of(replace(cfg, seeds=(seed,)), True)
            found[name] = best_of(name, subject, edit, random, before, given, run)["best"]
    tokenizer = subject.tokenizer
    del subject, edit  # their memory is the decoys'
    free_memory()
    decoys, left_out = on_decoys(given, run)

    summary = {
        "locked": cfg.locked,
        "method": cfg.method,
        "access": method.access,
        "task": cfg.task,
        "n": n,
        "selection": float(chosen_on.correct.mean()),
        "without": float(none.mean()),
        "with": float(right.mean()),
        "left_out": left_out,
        **tampering_summary(found, decoys, right),
    }
    if env.main:
        named = {f"decoy {path}": one for path, one in decoys.items()}
        write_cell(given, found | named, as_it_was, tokenizer, run)
        write_json(run.path / "summary.json", summary)
    run.finish(**summary)
    show_tampering(summary, env)
    env.say(f"table: {run.path / 'summary.json'}")
    return 0


if __name__ == "__main__":
    launch(main, TamperingConfig)
