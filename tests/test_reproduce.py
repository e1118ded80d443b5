"""Figures as data, what is read from finished jobs, the report."""

import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import reproduce
from data.problems import InputError
from figures import Drawn
from reproduce import ReproduceConfig, chosen_figures
from runs.files import read_json
from study import jobs as jobs_module
from study import sections
from study.findings import Value
from study.jobs import closure, needed
from study.paper import FIGURES, jobs_of, names_of_figure
from study.report import Report, Row, Section, page, rows_of, tally, write_report

PAPER = read_json(reproduce.PAPER)
ROOT = Path(__file__).parents[1]


# ----------------------------------------------------------------------------------------- the data


def test_a_given_model_is_what_is_locked_in_every_figure_that_is_left():
    model = str(Path("data/base/strong").resolve())
    cfg = ReproduceConfig(strong_from=model, seeds=(0,))
    jobs = jobs_of((0,), model)
    left = reproduce.possible(chosen_figures(cfg), jobs, cfg)
    names = [name for figure in left.values() for name in names_of_figure(figure, (0,))]
    locks = [job for job in closure(names, jobs) if job.stage == "lock"]
    assert len(locks) > 10 and all(f"--start {model} --strong @" in job.command for job in locks)
    base = jobs_of((0,), model, "small one")["code/base"].command
    assert base == f"train_base.py --strong-from {model} --weak-from 'small one' --task code"
    with pytest.raises(InputError, match="--weak-from goes with --strong-from"):
        reproduce.main(ReproduceConfig(weak_from=model))
    with pytest.raises(InputError, match="of the shipped models alone"):
        only = ReproduceConfig(strong_from=model, figure=("13",), seeds=(0,))
        reproduce.possible(chosen_figures(only), jobs, only)


# the paper's figures lack these, or show them elsewhere
NOT_THEIRS = {
    ("8", "code, pythia_1b"),
    ("8", "critique, pythia_1b"),
    ("8", "mmlu, pythia_1b"),
    ("8", "mmlu, pythia_7b"),
    ("8", "mmlu, random"),
    ("8", "code, pythia_7b", "reference"),
    ("8", "critique, pythia_7b", "reference"),
    ("12", "code", "weak"),
    ("12", "mmlu", "weak"),
    ("13", "sft_12.5k", "weak"),
    ("14", "critique", "iterated_dpo"),
    ("14", "critique, pythia_1b", "iterated_dpo"),
    ("14", "critique, pythia_1b", "iterated_dpo, continuous"),
}


def test_curves_beside_the_papers_are_in_the_papers_file():
    """A misspelt panel or curve would silently draw nothing."""
    for name, figure in FIGURES.items():
        number = name.split(",")[0]
        panels = PAPER["figures"].get(number, {"panels": {}})["panels"]
        for panel in figure.panels:
            wanted = {(panel.paper,)} if panel.paper else set()
            wanted |= {curve.paper for curve in panel.curves if curve.paper}
            wanted |= {bar.paper for bar in panel.bars if bar.paper}
            for place in wanted:
                if (number, place[0]) in NOT_THEIRS or (number, *place[:2]) in NOT_THEIRS:
                    continue
                found = panels[place[0]]
                if len(place) > 1:
                    found = found["curves"][place[1]]
                assert len(place) < 3 or place[2] in found, (number, place)


def test_every_curve_is_read_as_elicited_from_its_own_lock():
    """A curve read against another lock would be refused, and take its panel along."""
    jobs = jobs_of((0,))
    for name, figure in FIGURES.items():
        for panel in figure.panels:
            for curve in panel.curves:
                job = jobs[curve.job.format(seed=0)]
                assert needed(job, jobs)[0] == (curve.lock or panel.lock), (name, curve.label)
            for bar in panel.bars:
                assert panel.lock in needed(jobs[bar.job.format(seed=0)], jobs), (name, bar.label)


def test_jobs_that_are_not_finished_are_named_once():
    reasons = ["a is not finished", "b/seed* is not finished", "c is no valid lock"]
    assert sections.untested(reasons) == [
        "not finished: a, b/seed*",
        "not tested: c is no valid lock",
    ]
    assert sections.untested([]) == []


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"figure": ("2",)}, "there is no figure 2 to reproduce: choose from 1, 3"),
        ({"figure": ("3", "3")}, "--figure has 3 twice"),
        ({"task": ("chess",)}, "unknown task chess"),
        ({"figure": ("16",), "task": ("code",)}, "no panel of figure 16 is about code"),
    ],
)
def test_what_does_not_exist_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        chosen_figures(ReproduceConfig(**options))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"list": True, "report_only": True}, "--list writes no report"),
        ({"jobs": 2, "report_only": True}, "--report-only runs no job"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        reproduce.main(ReproduceConfig(**options))


def test_a_place_that_cannot_be_written_is_refused():
    with pytest.raises(InputError, match="nothing can be written in /proc/x"):
        reproduce.main(ReproduceConfig(figure=("1",), out="/proc/x", report_only=True))


def test_a_model_whose_path_no_job_can_name_is_refused(tmp_path):
    for name in ("m@x", "two  spaces"):
        shutil.copytree(ROOT / "data/base/weak", tmp_path / name)
        cfg = ReproduceConfig(strong_from=str(tmp_path / name), figure=("3",), list=True)
        with pytest.raises(InputError, match="a path with @ or two spaces"):
            reproduce.main(cfg)


def test_results_without_logs_are_reported_and_without_git_there_is_no_commit(
    tmp_path, monkeypatch
):
    """As where results alone were kept."""
    place = jobs_module.Place(tmp_path)
    monkeypatch.setattr(jobs_module.Place, "record", lambda self, job: {"commit": 5, "seconds": 1})
    assert sections.texts_of(jobs_of((0,)), place) == {}
    assert "commits 5;" in sections.facts_of_jobs([jobs_of((0,))["code/samples"]], place)[0]
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/code--samples.log").write_text("of the run\n\n=== a: problem 1\nf\n")
    told = {"Completions, code": "=== a: problem 1\nf"}
    assert sections.texts_of(jobs_of((0,)), place) == told
    monkeypatch.setenv("PATH", str(tmp_path))
    assert jobs_module.commit() == ""


def test_figures_and_tasks_are_chosen():
    figures = chosen_figures(ReproduceConfig(figure=("5", "9"), task=("math",)))
    assert set(figures) == {"5", "9", "9, RL"}
    assert all(panel.lock.startswith("math/") for f in figures.values() for panel in f.panels)


# ----------------------------------------------------------------------------------- the page


class Balanced(HTMLParser):
    """Fails where an element is not closed, or loaded from elsewhere."""

    EMPTY = {"meta", "br", "img", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                assert value.startswith("#"), (tag, name, value)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def example() -> Report:
    value = Value(0.5, 0.4, 0.6, 100, 2)
    curves = Drawn(
        "code <b>",
        "demonstrations",
        curves={"right answers": {1: value, 8: value}},
        theirs={"right answers": {1: 0.37, 512: 0.49}},
        lines={"locked, without": 0.1},
        their_lines={"without": 0.063},
    )
    bars = Drawn("bars", "", bars={"SFT": value}, their_bars={"SFT": 0.4})
    row = Row("A < B", "3", "1", "holds", ["x: 1"], ["not shown: y"])
    sections = [Section("3", "SFT & more", "caption", [curves, bars], ["Not finished: a."])]
    return Report(
        "Title", "intro", [row], ["how"], "drawn", sections, {"Completions": "<s>"}, ["fact"]
    )


def test_the_page_needs_nothing_else_and_is_well_formed():
    text = page(example())
    Balanced().feed(text)
    assert "A &lt; B" in text and "currentColor" in text and "SFT &amp; more" in text
    assert page(example()) == text  # to the byte
    assert "Of 1 claims: holds 1." in text and "<summary>1 number</summary>" in text


def test_claims_are_counted_from_those_that_hold_to_those_not_measured():
    said = ["not measured", "does not hold where tested", "holds so far", "not measured", "holds"]
    told = tally([Row("", "3", "", each, [], []) for each in said])
    verdicts = "Of 5 claims: holds 2, does not hold 1, not measured 2."
    assert told == f"{verdicts} Of these 1 where tested, 1 so far."


def test_the_papers_points_are_in_a_table_where_ours_have_the_same_place():
    value = Value(0.5, 0.4, 0.6, n=500, seeds=3)
    here = {"at": {8: value}, "elsewhere": {8: value}}
    theirs = {"at": {8: 0.3}, "elsewhere": {9: 0.3}}
    panel = Drawn("code", "demonstrations", curves=here, theirs=theirs)
    names = [row[0] for row in rows_of(panel)]
    assert names == ["code", "at", "elsewhere", "paper: at"]
    # of samples their ends, after more of them
    panel = Drawn("code", "samples", curves=here, theirs=theirs)
    assert rows_of(panel)[-2:] == [["paper: at", "30.0"], ["paper: elsewhere (30.0 after 9)", ""]]


def test_what_a_figure_is_called_in_links_and_files():
    numbers = ("3", "9, RL", "6, the paper's size", "prompts", "")
    sections = [Section(number, "The matrix: what is it?", "", [], []) for number in numbers]
    anchors = [section.anchor for section in sections]
    assert anchors == ["fig-3", "fig-9-rl", "fig-6-the-paper-s-size", "prompts", "matrix"]
    assert [sections[0].name, sections[-1].name] == ["Fig. 3", "Matrix"]


def test_the_report_is_written_and_replaces_only_its_own(tmp_path):
    write_report(example(), tmp_path)
    write_report(example(), tmp_path)
    names = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert names == {"index.html", "results.md", "figures/fig-3-1.svg", "figures/fig-3-2.svg"}
    text = (tmp_path / "results.md").read_text()
    assert "figures/fig-3-1.svg" in text and "50.0 [40.0, 60.0]" in text and "Not finished" in text

    (tmp_path / "results.md").write_text("mine")
    (tmp_path / "index.html").unlink()
    with pytest.raises(InputError, match="was not written by this program"):
        write_report(example(), tmp_path)
    assert not (tmp_path / "index.html").exists()  # refused before anything is written
