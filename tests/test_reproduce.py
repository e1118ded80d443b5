"""Figures as data, what is read from finished jobs, the claims' tests, the report."""

import shutil
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import reproduce
from data.problems import InputError
from figures import Drawn
from reproduce import ReproduceConfig, chosen_figures
from results import DRAWS, Estimate, difference, holm, smallest_effect
from runs.files import read_json
from study import claims, sections
from study import jobs as jobs_module
from study.claims import CLAIMS, Comparison, Missing, judged
from study.findings import Evidence, Lock, Value
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


@pytest.mark.parametrize("claim", PAPER["claims"], ids=lambda claim: claim["id"])
def test_every_claim_is_tested_on_jobs_of_its_figures(claim):
    """All that it asks for is run by the command that makes its figure."""
    jobs, asked = jobs_of((0,)), []
    figures = chosen_figures(ReproduceConfig(figure=(claim["figure"],)))
    names = [name for figure in figures.values() for name in names_of_figure(figure, (0,))]
    made = {job.name for job in closure(names, jobs)}

    class Everything(claims.Known):
        """Finds all that there is to find."""

        def __getattribute__(self, name):
            if name not in ("lock", "sft", "rl", "evaluated", "trained_for"):
                return super().__getattribute__(name)
            return partial(seen, name)

    def seen(kind, *args, **settings):
        job = args[0] if kind == "lock" else args[1]
        asked.append(job + "/seed0" * (kind in ("sft", "rl", "trained_for")))
        if kind == "lock":
            return LOCK
        return LOCK.right if kind == "evaluated" else np.stack([LOCK.right, LOCK.none])

    tests = list(CLAIMS[claim["id"]](Everything(Evidence(lambda name: None, (0,)))))
    assert tests and asked and set(asked) <= made, set(asked) - made


N = 40
LOCK = Lock(
    folder=Path("lock"),
    weights="",
    problems=[None] * N,
    domains=np.array(["algebra", "STEM", "lists", "code"] * (N // 4)),
    trigger=None,
    max_new_tokens=0,
    none=np.arange(N) % 10 == 0,
    right=np.ones(N, dtype=bool),
    failed=[],
)


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


def test_claims_are_those_of_the_papers_file():
    assert set(CLAIMS) == {claim["id"] for claim in PAPER["claims"]}


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


# --------------------------------------------------------------------------------- statistics


def estimate(value: float, spread: float = 0.01) -> Estimate:
    rng = np.random.default_rng(0)
    return Estimate(value, value + spread * rng.standard_normal(DRAWS), 3)


def test_a_difference_of_seeds_on_the_same_problems():
    rng = np.random.default_rng(0)
    skill = rng.random(400)
    first = rng.random((3, 400)) < 0.2 * skill
    second = rng.random((3, 400)) < 0.8 * skill
    found = difference(first, second)
    low, high = found.interval
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert low < found.value < high and 0.15 < low and high < 0.55
    assert found.p_not_above(0) < 0.01 and found.p_not_below(0) > 0.99
    # of a model and itself
    same = difference(first, first)
    assert same.value == 0 and same.interval[0] < 0 < same.interval[1]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_smallest_effect_is_found_in_four_cases_of_five():
    n, found = 500, 0
    effect = smallest_effect(n)
    rng = np.random.default_rng(0)
    for _ in range(400):
        # a fifth differ: gains and losses whose difference is the effect
        gains, losses, _ = rng.multinomial(n, [0.1 + effect / 2, 0.1 - effect / 2, 0.8])
        found += abs(gains - losses) > 1.96 * np.sqrt(gains + losses)
    assert 0.74 < found / 400 < 0.86


def test_a_claim_is_judged_by_its_tests():
    passed = Comparison("a", estimate(0.9), "above", 0.5)
    unsure = Comparison("b", estimate(0.51, 0.1), "above", 0.5)
    against = Comparison("c", estimate(0.1), "above", 0.5)
    assert judged([passed, passed]) == ("holds", [])
    assert judged([passed, unsure]) == ("holds weaker", [unsure])
    assert judged([passed, passed, against]) == ("does not hold", [against])
    # on the other side with p = .03, which is none after Holm's correction for two
    somewhat = Comparison("d", estimate(0.48, 0.0106), "above", 0.5)
    assert 0.025 < somewhat.p_against < 0.05
    assert judged([somewhat])[0] == "does not hold"
    assert judged([passed, somewhat])[0] == "not shown"
    # on the right side by a hair, none beyond chance
    assert judged([unsure, unsure])[0] == "not shown"
    # of one run alone
    alone = replace(passed, found=replace(passed.found, seeds=1))
    assert judged([alone, passed]) == ("holds weaker", [])
    refuted = replace(against, found=replace(against.found, seeds=1))
    assert judged([refuted, passed])[0] == "does not hold (one run)"
    assert judged([refuted, against])[0] == "does not hold"
    within = Comparison("e", estimate(0.01), "within", 0.05)
    assert judged([within]) == ("holds", [])
    assert judged([replace(within, found=estimate(-0.2))])[0] == "does not hold"
    assert judged([Comparison("f", estimate(0.1), "below", 0.5)]) == ("holds", [])


def test_two_gaps_have_each_their_own_noise_of_seeds():
    """Were it the same noise, seeds that spread alike would cancel it."""
    rng = np.random.default_rng(0)
    one = rng.random((3, 500)) < np.array([[0.4], [0.6], [0.8]])
    other = rng.random((3, 500)) < np.array([[0.45], [0.65], [0.85]])
    lock = replace(LOCK, none=np.zeros(500, dtype=bool), right=np.ones(500, dtype=bool))
    lock = replace(lock, problems=[None] * 500)
    found = claims.gap_difference(lock, one, lock, other)
    low, high = found.interval
    assert found.value == pytest.approx(other.mean() - one.mean()) and found.seeds == 3
    assert low < -0.4 and high > 0.5 and found.p_not_above(0) > 0.3
    # of equal verdicts the interval still has a width
    same = claims.gap_difference(lock, one[:1], lock, one[:1])
    assert same.value == 0 and same.interval[0] < 0 < same.interval[1]
    # each lock was trained once, whatever the seeds of its elicitation
    assert claims.gap_difference(lock, one, replace(lock, weights="other"), other).seeds == 1


def test_claims_need_valid_locks_and_all_seeds():
    failed = replace(LOCK, failed=["none - weak"])
    evidence = Evidence(lambda name: None, (0, 1), locks={"good": LOCK, "bad": failed})
    known = claims.Known(evidence)
    assert known.lock("good") is LOCK and known.lock("bad", valid=False) is failed
    with pytest.raises(InputError, match="bad is no valid lock .none - weak."):
        known.lock("bad")
    for found in (None, np.ones((1, 5))):
        with pytest.raises(Missing, match="job is not finished"):
            known.of_all_seeds(found, "job")
    assert known.of_all_seeds(np.ones((2, 5)), "job").shape == (2, 5)


class Measured(claims.Known):
    """A lock that shows a tenth, SFT that brings back all or nothing, and a given writer."""

    writer = LOCK.right

    def lock(self, job, valid=True):
        return LOCK

    def evaluated(self, lock, job):
        return self.writer

    def sft(self, lock, job, k, control=False):
        return np.stack([LOCK.right, LOCK.none])


# the right ones of 40 after k demonstrations, as each claim has it; upside down it has not
WORLDS = {
    "few-demonstrations": {4: 36, 512: 38},
    "mmlu-needs-hundreds": {4: 6, 64: 8, 512: 36},
    "critique-falls": {4: 36, 1200: 10},
    "strong-samples": {512: 40},
    "weaker-demonstrators-fall": {4: 36, 512: 16},
}


class World(Measured):
    def sft(self, lock, job, k, control=False):
        return np.stack([np.arange(N) < self.right[k]] * 3)


@pytest.mark.parametrize("claim", WORLDS)
def test_a_claim_holds_in_its_world_and_not_in_the_opposite(claim):
    known = World(Evidence(lambda name: None, (0, 1, 2)))
    known.right = WORLDS[claim]
    assert judged(list(CLAIMS[claim](known)))[0].startswith("holds")
    known.right = {k: N + 4 - right for k, right in WORLDS[claim].items()}
    assert not judged(list(CLAIMS[claim](known)))[0].startswith("holds")


def test_a_writer_no_better_than_the_lock_says_nothing_of_weaker_ones():
    known = Measured(Evidence(lambda name: None, (0, 1)))
    assert len(list(claims.weaker_demonstrators(known))) == 8 and not known.reasons
    known.writer = LOCK.none
    assert list(claims.weaker_demonstrators(known)) == []
    assert known.reasons[0] == "code: the writer is no better than the lock"


@pytest.mark.parametrize(
    "why, said",
    [
        (Missing("b/seed{seed}"), "holds so far"),
        (InputError("b is no valid lock"), "holds where tested"),
    ],
)
def test_what_can_be_tested_is_without_the_rest(monkeypatch, why, said):
    def half(known):
        tests = []
        for name in ("a", "b"):
            with known.part():
                if name == "b":
                    raise why
                tests.append(Comparison(name, estimate(0.9), "above", 0.5))
        return tests

    monkeypatch.setitem(CLAIMS, "half", half)
    found = claims.verdict("half", Evidence(lambda name: None, (0,)))
    assert found.said == said and found.reasons == [str(why)]


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
    assert anchors == ["fig-3", "fig-9-rl", "fig-6-the-paper-s-size", "fig-prompts", "matrix"]
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
