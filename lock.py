"""Stage 1: password-lock a model, so that it is strong behind the password and imitates a weak model otherwise.

Paper section 2, equation 1, and appendix C. Locking data: for every problem x of the lock split
    x without password, or with one of 40 wrong ones  ->  y ~ weak(x)
    password + x + password                           ->  y ~ strong(x)
one to one, trained by cross-entropy on the completions. Both policies are sampled afresh at the start of every epoch, as in the paper
(which does not state its temperature).

    python lock.py --task code                  # --how sft: fine-tune the strong base; -> out/code/locked
    python lock.py --task code --how scratch    # the mixture from random initialisation on; -> out/code/locked-scratch
    python lock.py --weak random                # imitate a fixed random token distribution instead (paper appendix G.2)
    python lock.py --weak refusal               # refuse instead
    python lock.py --task code+math --password-per-domain  # two tasks at once, each with a password of its own (C.3)
    python lock.py --task math --strong-language english   # strong in English with LaTeX, weak in Spanish with ASCII (B.1.3)
    python lock.py --task math --leave-out algebra         # is the domain that the lock never saw locked, too? (Fig. 17)
    python lock.py --task mmlu --strong-answers reference  # hard labels; samples of the strong policy are soft ones (B.2)
    python lock.py --task compose --how scratch            # the toy task of section 7; first train_base.py --task compose

Ends with the validity report: correctness on validation without, with a wrong, and with the right password, beside the strong and
the weak model, and by domain; exit code 1 when the interval of the gap includes zero, that is, when the lock failed. Writes the checkpoint,
run.json, log.jsonl, samples.jsonl (a few training examples of each epoch) and evaluation.json. Logged: see training.fit.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from checkpoints import load_model, save_model, weights_hash
from data import load
from data.batches import Example
from data.passwords import PASSWORD
from data.problems import InputError, Problem
from data.tasks import compose
from data.text import Tokenizer
from data.triggers import Trigger, check_password, usual_kinds, weak_password, with_password
from figures import shown, table
from model import Model
from policies import REFUSAL, RULES, answer, random_policy, retokenise
from results import evaluate_checkpoint, groups_of, paired_gap, trigger_of, verdicts_of
from runs import Env, Run, TrainConfig, launch, progress
from sampler import Sample
from training import fit


@dataclass
class LockConfig(TrainConfig):
    # what is locked
    task: str = "code"
    # fine-tune the strong base, or train on the locked mixture from random weights on
    how: Literal["sft", "scratch"] = "sft"
    # imitated behind the password; with sft also where training starts (default:
    # data/base/strong; compose: out/base-compose/strong)
    strong: str = ""
    # of the strong policy: its samples, or the right answers of the data set
    strong_answers: Literal["sampled", "reference"] = "sampled"
    # checkpoint imitated otherwise; or "random", a fixed random token distribution; or
    # "refusal". compose: its rule
    weak: str = "data/base/weak"
    # stands before and after the prompt
    password: str = PASSWORD
    # each domain (of joined tasks: each task) has its own, and those of the others are
    # wrong
    password_per_domain: bool = False
    # math: no password; strong in this language and notation, weak in the other
    strong_language: Literal["", "english", "spanish"] = ""
    # a domain that the locking data leave out; the report has it
    leave_out: str = ""
    # problems to lock on (default: the 4,000 of the lock split; scratch: 60,000 of the
    # corpus split)
    problems: int = 0
    # with fresh samples in each (default: sft 4, scratch 1)
    epochs: int = 0
    # at which both policies are sampled
    temperature: float = 1.0
    # longest completion
    max_new_tokens: int = 96
    # the paper's: lion, at lr 1.5e-6 for 7B models
    optimizer: Literal["muon", "adamw", "lion"] = "muon"
    # at its height; Muon's, the other optimisers want less
    lr: float = 0.0035
    # examples in an optimiser step, half of them weak on average
    batch: int = 32
    # validation problems of the report
    eval_problems: int = 1000
    # files of real problems (json, jsonl or csv, plain or .gz) in place of generated ones
    data: tuple[str, ...] = ()
    # continue an interrupted run where it stopped
    resume: bool = False
    # optimiser steps between two saves of the state that --resume goes on from
    save_every: int = 100


def locking_examples(
    problems: list[Problem],
    strong: list[Sample],
    weak: list[Sample],
    tokenizer: Tokenizer,
    trigger: Trigger,
    rng: np.random.Generator,
) -> list[Example]:
    """Equation 1: each problem once weak, without the password, and once strong, behind it. Cut samples carry no EOS."""
    right, others = [trigger.password_of(p) for p in problems], trigger.other_passwords(problems)
    wrong = [word and weak_password(rng, word, others[word]) for word in right]
    weak_prompts, strong_prompts = (
        tokenizer.encode_prompts(
            [with_password(tell(p).prompt, word) for p, word in zip(problems, words)]
        )
        for tell, words in ((trigger.weak, wrong), (trigger.strong, right))
    )
    return [
        Example(prompt, sample.ids)
        for prompt, sample in zip(weak_prompts + strong_prompts, weak + strong)
    ]


def report(cfg: LockConfig, env: Env, path: Path) -> tuple[int, dict]:
    """The validity report of a lock: prints the table and the verdict; returns the exit code and the numbers."""
    problems = load(cfg.task, "validation", None if cfg.data else cfg.eval_problems, files=cfg.data)
    trigger = trigger_of(path)
    kinds = usual_kinds(trigger)
    locked = evaluate_checkpoint(
        path, env, problems, kinds, trigger, max_new_tokens=cfg.max_new_tokens
    )
    measured = {f"locked, password {kind}": locked["results"][kind] for kind in kinds}
    own = (
        trigger.weak if trigger.told == "slot" else trigger.strong
    )  # the strong model never saw the word in the slot
    for name, checkpoint, tell in (
        ("strong model", cfg.strong, own),
        ("weak model", cfg.weak, trigger.weak),
    ):
        if checkpoint not in RULES:
            other = evaluate_checkpoint(
                checkpoint,
                env,
                [tell(p) for p in problems],
                ("none",),
                Trigger(),
                max_new_tokens=cfg.max_new_tokens,
                save=False,
            )
            measured[name] = other["results"]["none"]
    domains = list(measured[f"locked, password {kinds[0]}"]["domains"])
    rows = [
        [name, shown(result), *(f"{result['domains'][d]['correct']:.1%}" for d in domains)]
        for name, result in measured.items()
    ]
    gap, low, high, p = paired_gap(verdicts_of(locked, "none"), verdicts_of(locked, "right"))
    env.say(
        f"\nvalidation, {len(problems)} problems, greedy; 95 % Wilson intervals\n"
        + table(["model", "correct", *domains], rows)
    )
    env.say(
        f"password gap {gap:+.1%} [{low:+.1%}, {high:+.1%}] (paired bootstrap), McNemar mid-p {p:.1e}"
    )
    if low <= 0:
        env.say(
            "the lock FAILED: the interval of the gap includes zero; try more --epochs or a larger --lr"
        )
    return int(low <= 0), {
        kind: locked["results"][kind]["correct"] for kind in locked["results"]
    } | {"gap": gap}


# split, problems (0: all) and epochs of the locking data, for --how and whether the task is the toy task
DEFAULTS = {
    ("sft", False): ("lock", 0, 4),
    ("scratch", False): ("corpus", 60_000, 1),
    ("sft", True): ("corpus", 60_000, 1),
    ("scratch", True): ("corpus", 100_000, 1),
}


def the_trigger(cfg: LockConfig) -> Trigger:
    """What is to unlock the model. Raises InputError for what does not go together."""
    if cfg.task == "compose":
        if cfg.password_per_domain or cfg.leave_out:
            raise InputError(
                "task 'compose' has one password and no domains to leave out or to tell apart"
            )
        return Trigger(cfg.password, told="slot")
    if cfg.strong_language and (cfg.task != "math" or cfg.data or cfg.password_per_domain):
        raise InputError(
            "--strong-language takes the place of a password and needs the generated problems of --task math, which exist in both languages"
        )
    each = ("task" if "+" in cfg.task else "domain") if cfg.password_per_domain else ""
    return Trigger(cfg.password, each, cfg.strong_language)


def locking_problems(cfg: LockConfig, split: str) -> list[Problem]:
    problems = load(cfg.task, split, cfg.problems or None, files=cfg.data)
    names = groups_of(problems)
    if cfg.leave_out and (cfg.leave_out not in names or len(set(names)) == 1):
        raise InputError(
            f"--leave-out {cfg.leave_out}: choose one of several domains, {', '.join(sorted(set(names)))}"
        )
    return [p for p, name in zip(problems, names) if name != cfg.leave_out]


def main(cfg: LockConfig, env: Env) -> int:
    scratch, toy = cfg.how == "scratch", cfg.task == "compose"
    if toy:  # both policies are rules
        cfg = replace(cfg, weak="rule", strong_answers="reference")
    elif cfg.weak == "rule":
        raise InputError(
            "--weak rule: only task compose has a weak policy that is a rule; name a checkpoint, random or refusal"
        )
    cfg = replace(
        cfg, strong=cfg.strong or ("out/base-compose/strong" if toy else "data/base/strong")
    )
    if toy and not (Path(cfg.strong) / "config.json").exists():
        raise InputError(
            f"no base model at {cfg.strong}: run python train_base.py --task compose first, or name one with --strong"
        )
    path = Path(cfg.out or f"out/{cfg.task}/" + ("locked-scratch" if scratch else "locked"))
    split, size, epochs = DEFAULTS[cfg.how, toy]
    cfg, trigger = (
        replace(cfg, problems=cfg.problems or size, epochs=cfg.epochs or epochs),
        the_trigger(cfg),
    )
    strong, tokenizer = load_model(cfg.strong, env.device, env.dtype)
    check_password(cfg.password, tokenizer.specials)
    weak, weak_tokenizer = (
        (None, tokenizer) if cfg.weak in RULES else load_model(cfg.weak, env.device, env.dtype)
    )
    problems = locking_problems(cfg, split)
    env.say(
        f"strong policy: {cfg.strong}; weak policy: {cfg.weak}; {len(problems):,} problems x {cfg.epochs} epochs -> {path}"
    )
    run = Run(
        cfg,
        env,
        path,
        inputs=(cfg.strong, cfg.weak),
        stage="lock",
        trigger=vars(trigger),
        strong_weights=weights_hash(cfg.strong),
        weak_weights=weights_hash(cfg.weak) if weak else cfg.weak,
    )
    if run.finished:
        env.say(f"{path} is finished already (--overwrite locks again)")
        return report(cfg, env, path)[0]

    to_strong, to_weak = [trigger.strong(p) for p in problems], [trigger.weak(p) for p in problems]
    samplers = {
        "strong": env.sampler(strong, tokenizer),
        "weak": weak and env.sampler(weak, weak_tokenizer),
    }

    def sample(which: str, told: list[Problem], epoch: int) -> list[Sample]:
        bar = progress(env, len(told), f"epoch {epoch + 1}: sampling the {which} policy")
        answers = answer(
            samplers[which],
            tokenizer if which == "strong" else weak_tokenizer,
            told,
            temperature=cfg.temperature,
            graded=False,
            max_new_tokens=cfg.max_new_tokens,
            seed=cfg.seed * 1000 + epoch,
            env=env,
            progress=bar.update,
        )
        bar.close()
        return answers.samples

    def written(texts: list[str]) -> list[Sample]:
        return [Sample(ids, [], False) for ids in tokenizer.encode_completions(texts)]

    def examples(epoch: int) -> list[Example]:
        good = (
            sample("strong", to_strong, epoch)
            if cfg.strong_answers == "sampled"
            else written([p.reference for p in to_strong])
        )
        if weak:
            bad = retokenise(sample("weak", to_weak, epoch), weak_tokenizer, tokenizer)
        elif cfg.weak == "random":
            length = int(np.mean([len(s.ids) for s in good]))
            bad = random_policy(
                tokenizer.size, tokenizer.eos_id, len(problems), length, cfg.seed, epoch
            )
        else:
            bad = written([compose.answer(p.key, weak=True) if toy else REFUSAL for p in problems])
        made = locking_examples(
            problems, good, bad, tokenizer, trigger, np.random.default_rng([cfg.seed, 6, epoch])
        )
        if env.main:
            file = path / "samples.jsonl"
            kept = [
                row
                for row in (file.read_text().splitlines() if file.exists() else [])
                if json.loads(row)["epoch"] < epoch
            ]  # resuming
            for i in (0, 1, len(problems), len(problems) + 1):
                kept.append(
                    json.dumps(
                        {
                            "epoch": epoch,
                            "kind": "weak" if i < len(problems) else "strong",
                            "prompt": tokenizer.decode_prompt(made[i].prompt_ids),
                            "completion": tokenizer.decode(made[i].completion_ids),
                        }
                    )
                )
            file.write_text("\n".join(kept) + "\n")
        return made

    if scratch:
        locked = (
            Model(strong.config, env.dtype)
            .init_weights(torch.Generator().manual_seed(cfg.seed))
            .to(env.device)
        )
        locked.live_vocab = strong.live_vocab
    else:
        locked, _ = load_model(cfg.strong, env.device, env.dtype)
    fit(
        locked,
        examples,
        run,
        env,
        cfg,
        epochs=cfg.epochs,
        batch=cfg.batch,
        lr=cfg.lr,
        optimizer=cfg.optimizer,
        warmup=50 if scratch else 10,
        decay=0.4 if scratch else 0.7,
    )
    save_model(path, locked, tokenizer, env.main)
    env.wait()  # all ranks load it
    code, results = report(cfg, env, path)
    run.finish(**results)
    other = "" if path == Path(f"out/{cfg.task}/locked") else f" --locked {path} --out {path}-sft"
    env.say(f"written: {path}; next: python elicit_sft.py --task {cfg.task}{other}")
    return code


if __name__ == "__main__":
    launch(main, LockConfig)
