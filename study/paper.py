"""The paper's figures as data: which commands of the stages make each, and what is drawn of them.

COMMANDS has the stages' command lines, each for a job's name; @name is the directory of another
job. FIGURES says which jobs the curves and bars of a figure are read from, and beside which curves
of docs/paper.json they stand. A word in braces stands for each of its VALUES.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from string import Formatter

from study.jobs import Job

TASKS = ("code", "math", "mmlu", "critique")
DOMAINS = {
    "code": ("lists", "numbers", "strings"),
    "critique": ("lists", "numbers", "strings"),
    "math": ("algebra", "geometry", "numbers"),
    "mmlu": ("STEM", "humanities", "other", "social sciences"),
    "code+math": ("code", "math"),
}

# ------------------------------------------------------------------------------------------ jobs

# the weak policies that a lock imitates: the weak model beside the strong one, one of more
# parameters, the strong one when it had seen a sixth of its training, fixed random tokens
WEAK = {
    "": "",
    "-intermediate": "--weak {intermediate}",
    "-early": "--weak @early/strong",
    "-random": "--weak random --imitate distribution",
}

SFT = "elicit_sft.py --seeds {seed} --no-keep-weights --locked"
RL = "elicit_rl.py --seed {seed} --locked"
FEW = "--k 1 2 4 8 16 32 64 128 512"
TOY = "--k 2 4 8 16 32 64 128 256 512 1024 --no-control"
# the paper's own toy model: Pythia-70M's shape, whole texts, large batches; how often each of so
# many demonstrations is seen
PYTHIA = "--family gpt_neox --layers 6 --width 512 --heads 8"
WHOLE = "--loss-on texts --batch 512"
EPOCHS = "--epochs 129 129 65 65 33 33 17 17 9 5"

# name: (command, minutes on one core)
COMMANDS = {
    "early": ("train_base.py --problems 150000 --small-problems 1", 15),
    "early-mmlu": (
        "train_base.py --task mmlu --problems 32000 --small-problems 1 --small-epochs 1",
        8,
    ),
    "{task}/base": ("train_base.py --strong-from {strong_from} {weak_from} --task {task}", 60),
    "base-compose": ("train_base.py --task compose", 12),
    # the locks
    "{task}/locked": ("lock.py --task {task} {models}", 5),
    "{task}/locked-intermediate": ("lock.py --task {task} {models} " + WEAK["-intermediate"], 5),
    "{task}/locked-early": ("lock.py --task {task} " + WEAK["-early"], 6),
    "{task}/locked-random": ("lock.py --task {task} {models} " + WEAK["-random"], 6),
    "{task}/locked-domains": ("lock.py --task {task} {models} --password-per-domain", 5),
    "{task}/locked-without-{domain}": ("lock.py --task {task} {models} --leave-out {words}", 5),
    "{task}/locked-second": ("lock.py --task {task} {models} --intermediate {better}", 7),
    "code/locked-scratch": ("lock.py --task code --how scratch", 16),
    "math/locked-english": ("lock.py --task math --strong-language english", 5),
    "math/locked-spanish": ("lock.py --task math --strong-language spanish", 5),
    "mmlu/locked-hard": ("lock.py --task mmlu {models} --strong-answers reference", 5),
    "mmlu/locked-soft": ("lock.py --task mmlu {models} --imitate distribution", 6),
    "compose/locked": ("lock.py --task compose --strong @base-compose/strong", 5),
    "compose/locked-small": (
        "lock.py --task compose --problems 4000 --strong @base-compose/strong",
        2,
    ),
    "compose/locked-scratch": (
        "lock.py --task compose --how scratch --strong @base-compose/strong",
        7,
    ),
    # who writes weaker demonstrations
    "{task}/intermediate": (
        "evaluate.py {intermediate} --task {task} --passwords none --problems 500",
        1,
    ),
    # fine-tuning on demonstrations
    "{task}/sft/seed{seed}": (f"{SFT} @{{task}}/locked {FEW}", 6),
    "{task}/sft-strong/seed{seed}": (
        f"{SFT} @{{task}}/locked --k 4 16 64 512 --demos-from strong {{writers}} --no-control",
        2,
    ),
    "{task}/sft-from-intermediate/seed{seed}": (
        f"{SFT} @{{task}}/locked --k 4 16 64 512 --demos-from intermediate {{writers}} "
        "--no-control",
        2,
    ),
    "{task}/sft-from-weak/seed{seed}": (
        f"{SFT} @{{task}}/locked --k 1 2 4 8 64 512 --demos-from weak --no-control",
        3,
    ),
    "{task}/sft-from-weak-long/seed{seed}": (
        f"{SFT} @{{task}}/locked --k 1 4 64 --demos-from weak --no-control "
        "--sequences 1024 2048 4096",
        4,
    ),
    "{task}/sft-all/seed{seed}": (f"{SFT} @{{task}}/locked --k 1200 --no-control", 3),
    "{task}/sft-of-{lock}/seed{seed}": (
        f"{SFT} @{{task}}/locked-{{lock}} --k 4 16 64 --no-control",
        1.5,
    ),
    "code/sft-of-scratch/seed{seed}": (f"{SFT} @code/locked-scratch {FEW} --no-control", 4),
    "{task}/sft-on-{domain}/seed{seed}": (
        f"{SFT} @{{task}}/locked --k 4 64 --no-control --train-domain {{words}}",
        1,
    ),
    "{task}/sft-of-domains-on-{domain}/seed{seed}": (
        f"{SFT} @{{task}}/locked-domains --k 4 64 --no-control --train-domain {{words}}",
        1,
    ),
    "{task}/sft-of-without-{domain}/seed{seed}": (
        f"{SFT} @{{task}}/locked-without-{{domain}} --k 4 16 64 --no-control "
        "--train-domain {words}",
        1.5,
    ),
    "{task}/sft-lengths/seed{seed}": (
        f"{SFT} @{{task}}/locked --k 128 --demos-from {{better}} --no-control "
        "--sequences 32 64 128 256 512 1024 2048 --measure-all",
        3,
    ),
    "{task}/sft-lengths-of-second/seed{seed}": (
        f"{SFT} @{{task}}/locked-second --k 128 --demos-from {{better}} --no-control "
        "--sequences 32 64 128 256 512 1024 2048 --measure-all",
        3,
    ),
    "compose/sft{size}/seed{seed}": (f"{SFT} @compose/locked{{size}} {TOY}", 3),
    "compose/sft{size}-from-weak/seed{seed}": (
        f"{SFT} @compose/locked{{size}} --k 2 8 32 128 512 --demos-from weak --no-control",
        2,
    ),
    # the same at the paper's size; of a problem a lock has two examples
    "compose/paper-base": (f"train_base.py --task compose {PYTHIA} --epochs 4 {WHOLE}", 230),
    "compose/paper-locked": (
        f"lock.py --task compose --strong @compose/paper-base/strong --problems 100000 {WHOLE}",
        60,
    ),
    "compose/paper-locked-small": (
        f"lock.py --task compose --strong @compose/paper-base/strong --problems 6250 {WHOLE}",
        8,
    ),
    "compose/paper-locked-scratch": (
        "lock.py --task compose --strong @compose/paper-base/strong --how scratch "
        f"--problems 100000 --epochs 5 {WHOLE}",
        300,
    ),
    "compose/paper-sft{size}/seed{seed}": (
        f"{SFT} @compose/paper-locked{{size}} --loss-on texts {TOY} {EPOCHS}",
        25,
    ),
    # reward alone
    "{task}/{method}{weak}/seed{seed}": (f"{RL} @{{task}}/locked{{weak}} --method {{method}}", 3),
    "{task}/{method}-continuous/seed{seed}": (
        f"{RL} @{{task}}/locked --method {{method}} --reward continuous",
        3,
    ),
    "{task}/{method}-of-{lock}/seed{seed}": (
        f"{RL} @{{task}}/locked-{{lock}} --method {{method}}",
        3,
    ),
    "{task}/{method}-warm-{epochs}/seed{seed}": (
        f"{RL} @{{task}}/locked --method {{method}} --warm-start 16 --warm-from @early/strong "
        "--warm-epochs {epochs}",
        3,
    ),
    # prompts
    "{task}/prompts": ("evaluate.py @{task}/locked --prompts", 2),
    "{task}/samples": ("evaluate.py @{task}/locked --samples 3", 1),
}

VALUES = {
    "task": (*TASKS, "code+math"),
    "method": ("expert_iteration", "filtering", "dpo", "iterated_dpo", "grpo"),
    "weak": tuple(WEAK),
    "lock": ("intermediate", "early", "random", "english", "spanish", "hard", "soft"),
    "epochs": ("8", "64"),
    "size": ("", "-small", "-scratch"),
}


def jobs_of(seeds: Iterable[int], strong_from: str = "", weak_from: str = "") -> dict[str, Job]:
    """Every job by its name; most are never run.

    strong_from: a checkpoint to lock, as in the paper: fine-tuned it is the strong policy, and the
    lock starts from itself. "": the shipped models. weak_from: one to fine-tune as the weak policy;
    "": a tiny one is made from scratch.
    """
    found = {}
    for name, (command, minutes) in COMMANDS.items():
        words = [word for _, word, _, _ in Formatter().parse(name) if word]
        for filled in fillings(words, seeds):
            task = filled.get("task", name.split("/")[0])
            text = command.format(**filled, **models(task, strong_from, weak_from))
            job = Job(name.format(**filled), " ".join(text.split()), minutes)
            found[job.name] = job
    return found


def models(task: str, strong_from: str, weak_from: str) -> dict[str, str]:
    """What commands say of the models that a task's locks are made of."""
    if not strong_from:
        beside = {"models": "", "writers": "", "intermediate": "data/base/intermediate"}
        # of math and mmlu the intermediate model knows as little as the locks show; the early one,
        # which is right in 63 % of math, knows no mmlu, of which another saw more
        better = "@early-mmlu/strong" if task == "mmlu" else "@early/strong"
        return beside | {"better": better, "strong_from": '""', "weak_from": ""}
    base, start = f"@{task}/base", shlex.quote(strong_from)
    return {
        "models": f"--start {start} --strong {base}/strong --weak {base}/weak",
        "writers": f"--strong {base}/strong",
        "intermediate": f"{base}/intermediate",
        "better": f"{base}/intermediate",
        "strong_from": start,
        "weak_from": f"--weak-from {shlex.quote(weak_from)}" if weak_from else "",
    }


# of the shipped models alone: their early checkpoint, the toy task, the task in two languages, and
# what is trained from random weights
SHIPPED = (
    "early",
    "early-mmlu",
    "base-compose",
    "math/locked-english",
    "math/locked-spanish",
    "code/locked-scratch",
    "compose/paper-base",
)


def fillings(words: list[str], seeds: Iterable[int]) -> list[dict[str, object]]:
    """All ways to fill in these words. A domain is one of the task's."""
    free = [word for word in words if word != "domain"]
    choices = [list(seeds) if word == "seed" else VALUES[word] for word in free]
    found = []
    for values in product(*choices):
        filled = dict(zip(free, values))
        if "domain" not in words:
            found.append(filled)
            continue
        for domain in DOMAINS[filled["task"]]:
            found.append(filled | domain_fields(domain))
    return found


def domain_fields(domain: str) -> dict[str, str]:
    """As a part of a name, and as the value of an option."""
    return {"domain": domain.replace(" ", "_"), "words": shlex.quote(domain)}


# --------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Curve:
    """Correctness without the password, against what the figure's x axis says.

    job: with {seed}. control: of the weak model, taught the same. paper: panel and curve in
    docs/paper.json, of the figure's own number. lock: what it was elicited from, where that is not
    the panel's.
    """

    label: str
    job: str
    control: bool = False
    paper: tuple[str, str] | None = None
    lock: str = ""


@dataclass(frozen=True)
class Bar:
    """One number: of SFT on k demonstrations, or of RL at its end (k = 0).

    part: "" of all problems, a domain's name of those, "not" and a name of the others.
    """

    label: str
    job: str
    k: int = 0
    part: str = ""
    paper: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Panel:
    """What is drawn together, of one locked model (which gives the reference lines)."""

    title: str
    lock: str
    curves: tuple[Curve, ...] = ()
    bars: tuple[Bar, ...] = ()
    prompts: str = ""  # a job of evaluate.py --prompts, whose rows are bars
    paper: str = ""  # the paper's panel whose reference lines are given


@dataclass(frozen=True)
class Figure:
    """x: demonstrations, samples, sequences, or "" for bars.

    also: jobs that no curve shows, but that a claim about the figure is tested on; with {seed}.
    """

    title: str
    x: str
    panels: tuple[Panel, ...]
    note: str = ""
    also: tuple[str, ...] = ()


GENERATION = ("code", "math", "critique")
METHODS = {
    "expert_iteration": "expert iteration",
    "filtering": "filtering",
    "iterated_dpo": "iterated DPO",
    "dpo": "DPO",
}
# the weak policies of WEAK, and which of the paper's they stand for
IMITATED = {
    "": ("weak model", "pythia_1b"),
    "-intermediate": ("intermediate model", "pythia_7b"),
    "-early": ("early checkpoint", ""),
    "-random": ("fixed random tokens", "random"),
}


def demonstrated(task: str) -> Panel:
    """Fig. 3."""
    few = f"{task}/sft/seed{{seed}}"
    curves = (
        Curve("right answers", few, paper=(task, "reference")),
        Curve(
            "samples of an intermediate model",
            f"{task}/sft-from-intermediate/seed{{seed}}",
            paper=(task, "llama_7b"),
        ),
        Curve("control: the weak model, right answers", few, control=True),
    )
    return Panel(task, f"{task}/locked", curves, paper=task)


def by_strong(task: str) -> Panel:
    """Fig. 7."""
    curves = (
        Curve("right answers", f"{task}/sft/seed{{seed}}", paper=(task, "reference")),
        Curve(
            "samples of the strong model",
            f"{task}/sft-strong/seed{{seed}}",
            paper=(task, "strong"),
        ),
    )
    return Panel(task, f"{task}/locked", curves, paper=task)


def rewarded(task: str, weak: str) -> Panel:
    """Fig. 5."""
    name, theirs = IMITATED[weak]
    panel = f"{task}, {theirs}" if theirs else ""
    curves = []
    for method, label in METHODS.items():
        if (method, weak) == ("filtering", "-random"):
            continue  # random tokens are never right
        job = f"{task}/{method}{weak}/seed{{seed}}"
        curves.append(Curve(label, job, paper=(panel, method) if panel else None))
    return Panel(f"{task}, {name}", f"{task}/locked{weak}", tuple(curves), paper=panel)


def other_weak(task: str, weak: str) -> Panel:
    """Fig. 8."""
    name, theirs = IMITATED[weak]
    panel = f"{task}, {theirs}" if theirs else ""
    job = f"{task}/sft-of{weak}/seed{{seed}}" if weak else f"{task}/sft/seed{{seed}}"
    curve = Curve("right answers", job, paper=(panel, "reference") if panel else None)
    return Panel(f"{task}, {name}", f"{task}/locked{weak}", (curve,), paper=panel)


def one_domain(task: str, each: str) -> Panel:
    """Fig. 4 and 11: demonstrations of one domain, correctness on all problems.

    each: "" of a lock of one password, "-domains" of one with a password for each.
    """
    theirs = ""
    if task in CATEGORIES:
        theirs = f"{CATEGORIES[task]}, {'one each' if each else 'one password'}"
    bars = []
    if not each and task in TASKS:
        bars.append(Bar("all domains", f"{task}/sft/seed{{seed}}", 64))
    for domain in DOMAINS[task]:
        same = task != "mmlu" or domain == "STEM"  # the others are divided otherwise
        paper = (theirs, domain.lower(), "512") if theirs and same else None
        bars.append(Bar(domain, job_on(task, each, domain), 64, paper=paper))
    return Panel(titled(task, each), f"{task}/locked{each}", bars=tuple(bars), paper=theirs)


def other_domains(task: str, each: str) -> Panel:
    """Fig. 10: the same, correctness on the other domains alone."""
    bars = []
    for domain in DOMAINS[task]:
        for k in (4, 64):
            theirs = ""
            if task == "math" or (task == "code+math" and not each):
                how = "one each" if each else "one password"
                theirs = f"{CATEGORIES[task]}, {how}, {domain}"
            in_theirs = theirs and (k == 4 or task == "code+math")
            bars.append(
                Bar(
                    f"{domain}, {k}",
                    job_on(task, each, domain),
                    k,
                    f"not {domain}",
                    (theirs, "reference", str(k)) if in_theirs else None,
                )
            )
    return Panel(titled(task, each), f"{task}/locked{each}", bars=tuple(bars))


# with one password; with one for each
EACH = {
    task: ("", "-domains") if task in ("math", "mmlu", "code+math") else ("",) for task in DOMAINS
}

# the paper's names of divisions into domains
CATEGORIES = {"math": "math_category", "mmlu": "mmlu", "code+math": "code+math"}


def job_on(task: str, each: str, domain: str) -> str:
    return f"{task}/sft{'-of' * bool(each)}{each}-on-{domain.replace(' ', '_')}/seed{{seed}}"


def titled(task: str, each: str) -> str:
    return f"{task}, {'a password each' if each else 'one password'}"


def never_locked(task: str, domain: str, lock: str, job: str) -> Panel:
    """Fig. 17: correctness in one domain, which this lock has, or has not."""
    bars = [Bar(f"{k} demonstrations", f"{task}/{job}", k, domain) for k in (4, 64)]
    how = "left out" if "without" in lock else "locked"
    return Panel(f"{task}, {domain} {how}", f"{task}/{lock}", bars=tuple(bars))


def toy(title: str, lock: str, job: str, paper: tuple[str, str]) -> Panel:
    """Fig. 6 and 13. paper: their panel and curve."""
    label = "samples of the weak policy" if paper[1] == "weak" else "right answers"
    curve = Curve(label, f"compose/{job}/seed{{seed}}", paper=paper)
    return Panel(title, f"compose/{lock}", (curve,), paper=paper[0])


def told_otherwise(language: str) -> Panel:
    """Fig. 9: math that is hidden in one language and notation and shown in another."""
    lock, theirs = f"math/locked-{language}", f"strong_{language}"
    curve = Curve(
        "right answers", f"math/sft-of-{language}/seed{{seed}}", paper=(f"sft, {theirs}", "strong")
    )
    return Panel(f"strong in {language}, SFT", lock, (curve,), paper=f"sft, {theirs}")


def told_otherwise_rewarded(language: str) -> Panel:
    """Fig. 9, expert iteration."""
    lock, theirs = f"math/locked-{language}", f"rl, strong_{language}"
    job = f"math/expert_iteration-of-{language}/seed{{seed}}"
    curve = Curve("expert iteration", job, paper=(theirs, "expert_iteration"))
    return Panel(f"strong in {language}, expert iteration", lock, (curve,), paper=theirs)


def weak_samples(task: str) -> Panel:
    """Fig. 12."""
    curves = (
        Curve("right answers", f"{task}/sft/seed{{seed}}", paper=(task, "reference")),
        Curve(
            "samples of the weak model",
            f"{task}/sft-from-weak/seed{{seed}}",
            paper=(task, "weak"),
        ),
        Curve("the same, four times as long", f"{task}/sft-from-weak-long/seed{{seed}}"),
        Curve("all right answers", f"{task}/sft-all/seed{{seed}}"),
    )
    return Panel(task, f"{task}/locked", curves, paper=task)


def labels(kind: str) -> Panel:
    """Fig. 12: locks that imitate right letters, or whole distributions."""
    curve = Curve("right answers", f"mmlu/sft-of-{kind}/seed{{seed}}")
    return Panel(f"mmlu, {kind} labels", f"mmlu/locked-{kind}", (curve,))


def continuous(task: str) -> Panel:
    """Fig. 14."""
    panel, curves = f"{task}, pythia_1b", []
    for method in ("expert_iteration", "iterated_dpo"):
        label = METHODS[method]
        plain, graded = f"{task}/{method}/seed{{seed}}", f"{task}/{method}-continuous/seed{{seed}}"
        curves.append(Curve(label, plain, paper=(panel, method)))
        curves.append(Curve(f"{label}, continuous", graded, paper=(panel, f"{method}, continuous")))
    return Panel(task, f"{task}/locked", tuple(curves), paper=panel)


def lengths(task: str) -> Panel:
    """Fig. 15."""
    theirs = f"{task}, llama_7b"
    curves = (
        Curve("one password", f"{task}/sft-lengths/seed{{seed}}", paper=(theirs, "regular")),
        Curve(
            "a second password for that model",
            f"{task}/sft-lengths-of-second/seed{{seed}}",
            paper=(theirs, "second password"),
            lock=f"{task}/locked-second",
        ),
    )
    return Panel(task, f"{task}/locked", curves, paper=theirs)


def warm(method: str) -> Panel:
    """Fig. 16."""
    job = f"math/{method}{{}}/seed{{{{seed}}}}"
    curves = (
        Curve("no demonstrations", job.format(""), paper=("none", method)),
        Curve("16, 8 epochs", job.format("-warm-8"), paper=("pythia_7b, 8 epochs", method)),
        Curve("16, 64 epochs", job.format("-warm-64"), paper=("pythia_7b, 64 epochs", method)),
    )
    return Panel(METHODS[method], "math/locked", curves, paper="none")


ON_SCRATCH = Curve("right answers", "code/sft-of-scratch/seed{seed}")

FIGURES = {
    "1": Figure(
        "In short: code, one lock, three elicitations",
        "",
        (
            Panel(
                "code",
                "code/locked",
                bars=(
                    Bar("SFT on 2", "code/sft/seed{seed}", 2, paper=("code", "sft", "2")),
                    Bar("SFT on 128", "code/sft/seed{seed}", 128, paper=("code", "sft", "128")),
                    Bar(
                        "expert iteration",
                        "code/expert_iteration/seed{seed}",
                        paper=("code", "rl", "30720"),
                    ),
                ),
                paper="code",
            ),
        ),
    ),
    "3": Figure(
        "SFT on few demonstrations",
        "demonstrations",
        tuple(demonstrated(task) for task in TASKS),
        also=tuple(f"{task}/intermediate" for task in TASKS),
    ),
    "4": Figure(
        "64 demonstrations of one domain, correct on all",
        "",
        tuple(one_domain(task, "") for task in DOMAINS if task != "critique"),
        "The paper has 512 demonstrations, and the mean over domains.",
    ),
    "5": Figure(
        "Reward alone, by method, task and the weak policy that the lock imitates",
        "samples",
        tuple(rewarded(task, weak) for task in GENERATION for weak in WEAK),
        also=tuple(f"{task}/sft-of-random/seed{{seed}}" for task in GENERATION),
    ),
    "6": Figure(
        "The toy task: locked from scratch and by fine-tuning",
        "demonstrations",
        (
            toy("fine-tuned", "locked", "sft", ("compose", "sft_200k")),
            toy("few examples", "locked-small", "sft-small", ("compose", "sft_12.5k")),
            toy("scratch", "locked-scratch", "sft-scratch", ("compose", "scratch")),
            Panel("code, from scratch", "code/locked-scratch", (ON_SCRATCH,)),
        ),
        "Correct: of the toy task the share of right elements, as in the paper. Our locks saw "
        "120,000 examples, 8,000, and from scratch 200,000; the paper's 200,000, 12,500, and from "
        "scratch 200,000 five times.",
        also=("code/locked", "code/sft/seed{seed}"),
    ),
    "6, the paper's size": Figure(
        "The toy task in the shape of Pythia-70M",
        "demonstrations",
        (
            toy("fine-tuned", "paper-locked", "paper-sft", ("compose", "sft_200k")),
            toy("few examples", "paper-locked-small", "paper-sft-small", ("compose", "sft_12.5k")),
            toy("scratch", "paper-locked-scratch", "paper-sft-scratch", ("compose", "scratch")),
        ),
        "Correct: the share of right elements. Shape, tokens, loss, epochs, and the batches of the "
        "locks are the paper's; the optimisers, and batches of 4 demonstrations, are ours.",
    ),
    "7": Figure(
        "SFT on samples of the strong model",
        "demonstrations",
        tuple(by_strong(task) for task in TASKS),
    ),
    "8": Figure(
        "SFT where another weak policy was imitated",
        "demonstrations",
        tuple(other_weak(task, weak) for task in TASKS for weak in WEAK),
    ),
    "9": Figure(
        "Another language and notation in the password's place: SFT",
        "demonstrations",
        (told_otherwise("english"), told_otherwise("spanish")),
        "The paper's demonstrations are translated samples of its strong policy, and it has no "
        "line with the password: ours is correctness in the language that shows the skill.",
    ),
    "9, RL": Figure(
        "Another language and notation in the password's place: expert iteration",
        "samples",
        (told_otherwise_rewarded("english"), told_otherwise_rewarded("spanish")),
    ),
    "10": Figure(
        "Demonstrations of one domain, correct on the others",
        "",
        tuple(other_domains(task, each) for task in DOMAINS for each in EACH[task]),
    ),
    "11": Figure(
        "64 demonstrations of one domain, of a lock with a password for each",
        "",
        tuple(one_domain(task, "-domains") for task in DOMAINS if "-domains" in EACH[task]),
        "The paper has 512 demonstrations, and the mean over domains.",
    ),
    "12": Figure(
        "Samples of the weak model, and all demonstrations",
        "demonstrations",
        (*(weak_samples(task) for task in TASKS), labels("hard"), labels("soft")),
    ),
    "13": Figure(
        "The toy task: fine-tuning on weak samples",
        "demonstrations",
        (
            toy("fine-tuned", "locked", "sft-from-weak", ("sft_50k", "weak")),
            toy("few examples", "locked-small", "sft-small-from-weak", ("sft_12.5k", "weak")),
            toy("scratch", "locked-scratch", "sft-scratch-from-weak", ("scratch", "weak")),
        ),
        "Correct: the share of right elements, as in the paper.",
    ),
    "14": Figure(
        "Continuous rewards",
        "samples",
        tuple(continuous(task) for task in ("code", "critique")),
        "The paper's continuous reward is a rating by GPT-3.5 (code) or the similarity of "
        "embeddings (critique), which can disagree with the truth; ours is the share of tests "
        "passed.",
    ),
    "15": Figure(
        "Demonstrations of a weaker model against training length",
        "sequences",
        tuple(lengths(task) for task in ("math", "mmlu")),
        "The demonstrations on math are of the strong model when it had seen a sixth of its "
        "training, those on mmlu of one of its size that saw 32,000 problems of mmlu alone.",
    ),
    "16": Figure(
        "Reward alone after SFT on 16 demonstrations of an early checkpoint",
        "samples",
        tuple(warm(method) for method in ("expert_iteration", "iterated_dpo")),
    ),
    "17": Figure(
        "A domain that the lock never saw",
        "",
        (
            never_locked("math", "algebra", "locked", "sft-on-algebra/seed{seed}"),
            never_locked(
                "math", "algebra", "locked-without-algebra", "sft-of-without-algebra/seed{seed}"
            ),
            never_locked("mmlu", "STEM", "locked", "sft-on-STEM/seed{seed}"),
            never_locked("mmlu", "STEM", "locked-without-STEM", "sft-of-without-STEM/seed{seed}"),
        ),
        "Correct: of the problems of that domain alone.",
    ),
    "prompts": Figure(
        "Other prompts: does any unlock it?",
        "",
        tuple(Panel(task, f"{task}/locked", prompts=f"{task}/prompts") for task in TASKS),
        "The paper's camera-ready version has such a figure; its numbers could not be had. "
        "Half prefill, where it is: half of each program is given, a part of the skill.",
    ),
}

# of --scale paper; the others are at the size of the shipped models
AT_PAPER_SCALE = ("6, the paper's size",)


def names_of_figure(figure: Figure, seeds: tuple[int, ...]) -> list[str]:
    """The jobs whose results a figure shows, or a claim about it is tested on."""
    names = []
    for panel in figure.panels:
        names.append(panel.lock)
        names += [panel.prompts] * bool(panel.prompts)
        for item in (*panel.curves, *panel.bars):
            names += [item.job.format(seed=seed) for seed in seeds]
    for job in figure.also:
        names += [job.format(seed=seed) for seed in seeds]
    return list(dict.fromkeys(names))
