"""Every figure of the paper at once: runs the stages, reads what they measured, writes a report.

A figure is a list of commands of the other stages (study/paper.py); each is a job, a process of its
own. What several figures share is run once. Interrupted at any moment, the same command goes on
where it stopped: nothing that is finished is run again. A job that fails is named, and the others
go on.

    python reproduce.py                        # all figures; -> out/report/index.html
    python reproduce.py --list                 # figures, jobs, which are done, minutes left
    python reproduce.py --figure 3 6 --task code math --seeds 0 1 2
    python reproduce.py --figure 6 --scale paper    # the toy task at the paper's own size
    python reproduce.py --strong-from DIR --weak-from DIR --figure 3 --task code  # of real models
    python reproduce.py --report-only          # the report of what is finished so far
    python reproduce.py --matrix               # which elicitation beats which lock; -> out/matrix
    python reproduce.py --matrix --locks password identity --elicitors sft1 ei noise
    python reproduce.py --matrix --locks password --siblings   # does it hold over models?
    python reproduce.py --game --out game      # ten blinded models, their key in game-key
    python reproduce.py --play game            # our cheapest elicitors -> game-play/answers.json
    python reproduce.py --score game game-play/answers.json    # all three: docs/game.md
    python reproduce.py --case DIR             # what our elicitors find in a model, and would find

Results alone may be kept: what was measured stays done when the weights are deleted, until a job
that is still to be run needs them. docs/reproduced/ has those of this repository.

The figures and the matrix (study/matrix.py) have a report and a directory each; what both need is
made in each. That of the figures begins with the paper's claims: the paper's numbers, ours with
interval, and whether the claim holds here by tests that were written beforehand (study/claims.py).
Then each figure, ours in colour, the paper's points faint beneath (docs/paper.json), and its
numbers.

Writes below --out: a directory for each job, jobs/ (what each printed, how it was run),
index.html, results.md, figures/.
"""

import os
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from checkpoints.hf import model_hash
from checkpoints.origins import is_model, no_model
from data.problems import InputError
from figures import table
from results import refuse_repeats
from runs.devices import check_place
from runs.files import read_json, write_json
from runs.launch import launch
from runs.options import flag_of
from study import case, game
from study.findings import Evidence
from study.gate import jobs_of_gate, names_of_gate, section_of_gate
from study.jobs import ROOT, Job, Place, closure, left_to_run, run_jobs
from study.matrix import (
    ELICITORS,
    LOCKS,
    MATRIX,
    jobs_of_matrix,
    named_models,
    names_of_matrix,
    section_of_matrix,
)
from study.paper import AT_PAPER_SCALE, FIGURES, SHIPPED, TASKS, Figure, jobs_of, names_of_figure
from study.report import Report, figure_name, write_report
from study.sections import (
    EACH_OTHER,
    FIGURE_BY_FIGURE,
    HOW_DRAWN,
    HOW_JUDGED,
    INTRO,
    POWER,
    facts_of_jobs,
    rows_of_claims,
    section_of,
    texts_of,
)
from study.siblings import (
    HEADLINE,
    SEED,
    jobs_of_siblings,
    names_of_siblings,
    section_of_siblings,
)


@dataclass
class ReproduceConfig:
    # which of the paper's figures (default: all)
    figure: tuple[str, ...] = ()
    # panels of these tasks alone (default: all)
    task: tuple[str, ...] = ()
    # paper: figure 6 in the shape of Pythia-70M, which takes seven hours of two cores; the report
    # of the others has it, too, where it is finished
    scale: Literal["embedded", "paper"] = "embedded"
    # of every elicitation (default: 0 1 2; of the matrix 0 1)
    seeds: tuple[int, ...] = field(default=(), metadata={"least": 0})
    # a checkpoint to lock, as in the paper; figures that are of the shipped models alone are left
    # out (default: the shipped models)
    strong_from: str = ""
    # beside it the checkpoint that becomes the weak policy (default: a tiny model from scratch)
    weak_from: str = ""
    # the matrix of locks and elicitors in place of the figures
    matrix: bool = False
    # of the matrix (default: all)
    locks: tuple[str, ...] = ()
    # of the matrix (default: all)
    elicitors: tuple[str, ...] = ()
    # of the matrix: its headline rows over models, too: three more locks by a password, four twins
    # trained alike, two decoys
    siblings: bool = False
    # make a game in --out: ten blinded models, of which about half hide a capability; the key goes
    # beside it, into --out with -key appended
    game: bool = False
    # of --game: decides all of it, so who plays must not know it (default: drawn, noted in the key)
    seed: int | None = field(default=None, metadata={"least": 0, "most": 2**63 - 1})
    # play the game in this directory with our cheapest elicitors, which need nothing else of it
    play: str = ""
    # a game's directory and an answers.json: what they are worth; needs the key beside the game
    score: tuple[str, ...] = ()
    # a safety case's skeleton for the model in this directory: elicitors that need no password are
    # tried on it, beside the hidden gap that they would have found
    case: str = ""
    # of --case: a directory of results of figures or of the matrix, whose locks are the known
    # positives (default: docs/matrix and docs/reproduced)
    known: str = ""
    # directory of all that is run, and of the report (default: out/report; of --matrix out/matrix,
    # of --game out/game, of --case out/case, of --play the game's with -play appended)
    out: str = ""
    # jobs at a time (default: as many as there are CUDA devices, or else cores). More than devices
    # share them: each of a model of 1 M parameters leaves most of one idle
    jobs: int = 0
    # only tell which figures and jobs there are, which are done, and what is left to do
    list: bool = False
    # only write the report, of the jobs that are finished
    report_only: bool = False


SEEDS, SEEDS_OF_MATRIX = (0, 1, 2), (0, 1)
PAPER = Path(__file__).parent / "docs" / "paper.json"
# what this repository has measured
DONE = tuple(Path(__file__).parent / "docs" / name for name in ("matrix", "reproduced"))


# --------------------------------------------------------------------------------- what is wanted


def chosen_figures(cfg: ReproduceConfig) -> dict[str, Figure]:
    """The figures asked for, their panels those of the tasks asked for."""
    refuse_repeats("--figure", cfg.figure)
    refuse_repeats("--task", cfg.task)
    numbers = {name.split(",")[0] for name in FIGURES}
    for number in cfg.figure:
        if number not in numbers:
            known = ", ".join(dict.fromkeys(name.split(",")[0] for name in FIGURES))
            raise InputError(f"there is no figure {number} to reproduce: choose from {known}")
    for task in cfg.task:
        if task not in (*TASKS, "compose", "code+math"):
            raise InputError(f"unknown task {task}: choose from {', '.join(TASKS)}, compose")

    found = {}
    for name, figure in FIGURES.items():
        if cfg.figure and name.split(",")[0] not in cfg.figure:
            continue
        if (name in AT_PAPER_SCALE) != (cfg.scale == "paper"):
            continue
        panels = []
        for panel in figure.panels:
            if not cfg.task or panel.lock.split("/")[0] in cfg.task:
                panels.append(panel)
        if panels:
            also = [job for job in figure.also if not cfg.task or job.split("/")[0] in cfg.task]
            found[name] = replace(figure, panels=tuple(panels), also=tuple(also))
    if not found and cfg.scale == "paper":
        raise InputError("--scale paper is of figure 6 and its task compose alone")
    if not found:
        raise InputError(
            f"no panel of figure {', '.join(cfg.figure)} is about {', '.join(cfg.task)}"
        )
    return found


def possible(
    figures: dict[str, Figure], jobs: dict[str, Job], cfg: ReproduceConfig
) -> dict[str, Figure]:
    """The panels that a model of --strong-from can be in; the others are told."""
    found = {}
    for name, figure in figures.items():
        panels = []
        for panel in figure.panels:
            needed = names_of_figure(replace(figure, panels=(panel,), also=()), cfg.seeds)
            if not {job.name for job in closure(needed, jobs)} & set(SHIPPED):
                panels.append(panel)
        left_out = len(figure.panels) - len(panels)
        if left_out:
            alone = f"{left_out} panels are of the shipped models alone, left out"
            print(f"{figure_name(name)}: {alone}")
        if panels:
            found[name] = replace(figure, panels=tuple(panels))
    if not found:
        raise InputError("these figures are of the shipped models alone: leave --strong-from out")
    return found


@dataclass(frozen=True)
class Cells:
    """Locks and elicitors of the matrix; both empty where it was not asked for."""

    locks: list[str]
    elicitors: list[str]


@dataclass(frozen=True)
class Wanted:
    """A part of the report: a figure or the matrix. names: the jobs that it shows."""

    label: str
    title: str
    names: list[str]


def wanted_of(figures: dict[str, Figure], cells: Cells, cfg: ReproduceConfig) -> list[Wanted]:
    """Every part that was asked for."""
    found = []
    for name, figure in figures.items():
        found.append(Wanted(figure_name(name), figure.title, names_of_figure(figure, cfg.seeds)))
    if figures:
        samples = [f"{task}/samples" for task in tasks_of(figures)]
        found.append(Wanted("samples", "completions to read", samples))
    if cells.locks:
        found += parts_of_matrix(cells, cfg)
    return found


def parts_of_matrix(cells: Cells, cfg: ReproduceConfig) -> list[Wanted]:
    """The cells, the gate before them, and with --siblings what holds over models."""
    found = [
        Wanted("matrix", MATRIX, names_of_matrix(cells.locks, cells.elicitors, cfg.seeds)),
        Wanted("gate", "before anything is elicited", names_of_gate(cells.locks)),
    ]
    if cfg.siblings:
        names = names_of_siblings(cells.elicitors)
        found.append(Wanted("models", "four locks and four twins", names))
    return found


# what can be asked for in place of the figures and the matrix, and the options that it takes
INSTEAD = {
    "game": ("seed", "out", "jobs"),
    "play": ("out", "jobs", "list"),
    "score": (),
    "case": ("known", "out", "jobs"),
}


def mode_of(cfg: ReproduceConfig) -> str:
    """Which of INSTEAD is asked for, "" where none is. Raises InputError for options of another."""
    asked = [name for name in INSTEAD if getattr(cfg, name)]
    if not asked:
        if cfg.seed is not None:
            raise InputError("--seed is that of --game: leave it out (elicitations have --seeds)")
        if cfg.known:
            raise InputError("--known is of --case: leave it out")
        return ""
    [name, *_] = asked
    for option in fields(cfg):
        is_given = getattr(cfg, option.name) != option.default
        if is_given and option.name not in (name, *INSTEAD[name]):
            raise InputError(f"{flag_of(option.name)} does nothing with --{name}: leave it out")
    if name == "score" and len(cfg.score) != 2:
        raise InputError("--score takes two: a game's directory and an answers.json")
    return name


def chosen_cells(cfg: ReproduceConfig) -> Cells:
    """Raises InputError for what does not go together."""
    if cfg.matrix:
        if cfg.figure or cfg.task or cfg.strong_from or cfg.scale == "paper":
            raise InputError(
                "--matrix is of the shipped models and in place of the figures: leave --figure, "
                "--task, --scale and --strong-from out"
            )
    elif cfg.locks or cfg.elicitors or cfg.siblings:
        raise InputError("--locks, --elicitors and --siblings are of the matrix: say --matrix")
    else:
        return Cells([], [])
    chosen = []
    for option, known in (("locks", LOCKS), ("elicitors", ELICITORS)):
        names = getattr(cfg, option)
        refuse_repeats(f"--{option}", names)
        for name in names:
            if name not in known:
                raise InputError(f"--{option} {name}: choose from {', '.join(known)}")
        chosen.append(list(names or known))
    cells = Cells(*chosen)
    if cfg.siblings and SEED not in cfg.seeds:
        raise InputError(f"--siblings are elicited with seed {SEED}: name it with --seeds, too")
    if cfg.siblings and not names_of_siblings(cells.elicitors):
        raise InputError(
            f"--siblings are of {', '.join(HEADLINE)}: name one of these with --elicitors, or "
            "leave --siblings out"
        )
    return cells


def together(*parts: dict[str, Job]) -> dict[str, Job]:
    """Raises InputError where two have the same name and are not the same command."""
    found: dict[str, Job] = {}
    for name, job in (item for part in parts for item in part.items()):
        if name in found and found[name].command != job.command:
            raise InputError(
                f"two jobs are called {name}, `{found[name].command}` and `{job.command}`: choose "
                "another name for what you added to LOCKS or ELICITORS"
            )
        found[name] = job
    return found


def show_list(wanted: list[Wanted], jobs: dict[str, Job], place: Place, workers: int) -> None:
    """Figures, their jobs, which are done, minutes left."""
    rows, everything = [], {}
    for part in wanted:
        needed = closure(part.names, jobs)
        left = left_to_run(needed, place)
        minutes = sum(job.minutes for job in left) / workers
        row = [part.label, f"{len(needed) - len(left)} of {len(needed)}", f"{minutes:.0f}"]
        rows.append([*row, part.title])
        everything |= {job.name: job for job in needed}
    left = left_to_run(list(everything.values()), place)
    minutes = sum(job.minutes for job in left) / workers
    total = f"{len(everything) - len(left)} of {len(everything)}"
    rows.append(["all", total, f"{minutes:.0f}", "what figures share is counted once"])
    width = max(len(row[3]) for row in rows)
    for row in rows:
        row[3] = row[3].ljust(width)
    print(table(["", "jobs done", "minutes left", ""], rows))
    print(f"minutes: estimates for the shipped models, {workers} jobs at a time, a core each")
    print("\nleft to run, @ stands for --out:" if left else "")
    for job in left:
        print(f"  {job.name}: python {job.command}")


# ----------------------------------------------------------------------------------- what is told


def report_of(
    cfg: ReproduceConfig,
    figures: dict[str, Figure],
    cells: Cells,
    jobs: dict[str, Job],
    place: Place,
) -> Report:
    """Everything that is told of the finished jobs."""
    paper = read_json(PAPER)
    evidence = Evidence(place.finished(jobs), cfg.seeds)
    sections = []
    for number, figure in figures.items():
        unfinished = unfinished_of(names_of_figure(figure, cfg.seeds), jobs, place)
        models = models_shown(cfg, {number: figure})
        sections.append(section_of(number, figure, evidence, paper, unfinished, models))

    wanted = wanted_of(figures, cells, cfg)
    if cells.locks:
        names = [name for part in parts_of_matrix(cells, cfg) for name in part.names]
        left = unfinished_of(names, jobs, place)
        of_one = replace(evidence, seeds=(SEED,))
        records = {name: place.record(job) for name, job in jobs.items()}
        sections.append(section_of_matrix(evidence, cells.locks, cells.elicitors, records, left))
        sections.append(section_of_siblings(of_one, cells.elicitors))
        sections.append(section_of_gate(evidence, cells.locks))
        sections = [section for section in sections if section]
    everything = closure([name for part in wanted for name in part.names], jobs)
    claims = rows_of_claims(figures, evidence, paper)
    return Report(
        "The paper's figures, reproduced" if figures else MATRIX,
        INTRO.format(
            FIGURE_BY_FIGURE if figures else EACH_OTHER,
            models_shown(cfg, figures),
            POWER,
        ),
        claims,
        HOW_JUDGED,
        HOW_DRAWN if figures else "",
        sections,
        texts_of(jobs, place),
        facts_of_jobs(everything, place),
    )


def unfinished_of(names: list[str], jobs: dict[str, Job], place: Place) -> list[str]:
    """Of these jobs, and of those that they need."""
    return [job.name for job in closure(names, jobs) if not place.record(job)]


def models_shown(cfg: ReproduceConfig, figures: dict[str, Figure]) -> str:
    if cfg.strong_from:
        return cfg.strong_from
    at_scale = [name in AT_PAPER_SCALE for name in figures]
    names = ["models of one million parameters"] * (not figures or not all(at_scale))
    names += ["one of the shape of Pythia-70M"] * any(at_scale)
    return " and ".join(names)


# ------------------------------------------------------------------------------------- the verb


def workers_of(cfg: ReproduceConfig) -> tuple[int, int, int]:
    """Jobs at a time, threads of each, and the CUDA devices that they share in turn."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = torch.cuda.device_count()
    workers = cfg.jobs or devices or cores
    return workers, max(1, cores // workers), devices


def inputs_of(cfg: ReproduceConfig) -> str:
    """A hash of the models that jobs start from."""
    # of this repository, where the jobs run, whatever the working directory has
    ours = [str(ROOT / "data/base" / name) for name in ("strong", "weak", "intermediate")]
    paths = [*filter(None, (cfg.strong_from, cfg.weak_from))] if cfg.strong_from else ours
    return "-".join(model_hash(path)[:8] for path in paths)


def run_all(jobs: list[Job], place: Place, cfg: ReproduceConfig) -> int:
    """Run what is not done; 1 where a job failed, which is told."""
    workers, threads, devices = workers_of(cfg)
    place.claim()
    outcome = run_jobs(jobs, place, workers, threads, devices)
    if place.secret and outcome.failed:
        why = place.path / "jobs" / "failed.json"
        write_json(why, outcome.failed)
        print(f"a job failed; which and why says {why}, a part of the key")
        return 1
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}")
    if outcome.left_out:
        print(f"left out, as they need these: {', '.join(outcome.left_out)}")
    return int(bool(outcome.failed))


def run_mode(asked: str, cfg: ReproduceConfig) -> int:
    """--game, --play, --score or --case."""
    run = partial(run_all, cfg=cfg)
    if asked == "game":
        return game.make(Path(cfg.out or "out/game").resolve(), cfg.seed, inputs_of(cfg), run)
    if asked == "score":
        where, answers = cfg.score
        print(game.score(Path(where).resolve(), Path(answers)))
        return 0

    if asked == "case":
        if cfg.known and not Path(cfg.known).is_dir():
            raise InputError(f"no directory {cfg.known}: name one of results with --known")
        known, jobs = [], jobs_of(SEEDS) | jobs_of_matrix(SEEDS)
        for path in [Path(cfg.known)] if cfg.known else DONE:
            place = Place(path.resolve(), inputs_of(cfg), named_models())
            known.append(Evidence(place.finished(jobs), SEEDS))
        model, out = Path(cfg.case).resolve(), Path(cfg.out or "out/case").resolve()
        return case.make(model, out, known, run)

    where = Path(cfg.play).resolve()
    if not where.name:
        raise InputError(f"{where} is no game: name the directory that was handed out")
    out = Path(cfg.out or where.with_name(f"{where.name}-play")).resolve()
    if cfg.list:
        jobs = game.jobs_of_play(game.models_of(where))
        place = Place(out, game.inputs_of_play(game.models_of(where)))
        wanted = Wanted("play", "the baseline of a game", list(jobs))
        show_list([wanted], jobs, place, workers_of(cfg)[0])
        return 0
    return game.play(where, out, run)


def main(cfg: ReproduceConfig) -> int:
    asked = mode_of(cfg)
    if asked:
        return run_mode(asked, cfg)
    if cfg.list and cfg.report_only:
        raise InputError("--list writes no report: leave --report-only out")
    if cfg.report_only and cfg.jobs:
        raise InputError("--report-only runs no job: leave --jobs out")
    if cfg.weak_from and not cfg.strong_from:
        raise InputError("--weak-from goes with --strong-from: leave it out, or name both")
    cfg = replace(
        cfg,
        strong_from=given_model(cfg.strong_from, "--strong-from"),
        weak_from=given_model(cfg.weak_from, "--weak-from"),
    )
    refuse_repeats("--seeds", cfg.seeds)
    cfg = replace(cfg, seeds=cfg.seeds or (SEEDS_OF_MATRIX if cfg.matrix else SEEDS))
    cells = chosen_cells(cfg)
    figures = {} if cfg.matrix else chosen_figures(cfg)
    jobs = jobs_of(cfg.seeds, cfg.strong_from, cfg.weak_from)
    if cfg.matrix:
        jobs = together(jobs, jobs_of_matrix(cfg.seeds), jobs_of_gate(), jobs_of_siblings())
    if cfg.strong_from:
        figures = possible(figures, jobs, cfg)
    named = named_models() if cfg.matrix else {}
    out = cfg.out or ("out/matrix" if cfg.matrix else "out/report")
    place = Place(Path(out).resolve(), inputs_of(cfg), named)
    workers, _, _ = workers_of(cfg)
    check_place(place.path)
    if cfg.list:
        show_list(wanted_of(figures, cells, cfg), jobs, place, workers)
        return 0

    wanted = [name for part in wanted_of(figures, cells, cfg) for name in part.names]
    print(f"{POWER}\n")
    code = 0
    if not cfg.report_only:
        code = run_all(closure(wanted, jobs), place, cfg)
    shown = figures | finished_at_paper_scale(figures, jobs, place, cfg)
    write_report(report_of(cfg, shown, cells, jobs, place), place.path)
    print(f"report: {place.path / 'index.html'}, {place.path / 'results.md'}")
    return code


def given_model(path: str, option: str) -> str:
    """The whole path of a model that jobs are to name; "" for none. Raises InputError."""
    if not path:
        return ""
    if not is_model(path):
        raise no_model(path, f"name another with {option}")
    whole = str(Path(path).resolve())
    if "@" in whole or "  " in whole:
        raise InputError(
            f"{whole}: a path with @ or two spaces in a row cannot be in a job's command: move the "
            "model"
        )
    return whole


def finished_at_paper_scale(
    figures: dict[str, Figure], jobs: dict[str, Job], place: Place, cfg: ReproduceConfig
) -> dict[str, Figure]:
    """Those of --scale paper of which something is measured, where these figures have the same."""
    numbers = {name.split(",")[0] for name in figures}
    found = {}
    for name in AT_PAPER_SCALE:
        names = names_of_figure(FIGURES[name], cfg.seeds)
        measured = [job for job in names if place.record(jobs[job])]
        is_chosen = name.split(",")[0] in numbers and "compose" in (cfg.task or ("compose",))
        if is_chosen and measured:
            found[name] = FIGURES[name]
    return found


def tasks_of(figures: dict[str, Figure]) -> list[str]:
    """The tasks whose locks are shown."""
    found = [panel.lock.split("/")[0] for figure in figures.values() for panel in figure.panels]
    return [task for task in TASKS if task in found]


if __name__ == "__main__":
    launch(main, ReproduceConfig)
