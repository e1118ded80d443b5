"""SFT elicitation: where its settings come from, its demonstrations, its loop, its table."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import curves
import elicit_sft
from checkpoints.hf import model_hash
from checkpoints.origins import Origin
from conftest import Killed
from curves import Cell
from data import grade, load
from data.problems import InputError
from data.tasks import compose
from data.text import Tokenizer
from data.triggers import Password, with_words
from elicit_sft import Given, Learner, SFTConfig, sequences_seen, shortest_for
from methods.unlearning import own_samples
from policies import shipped
from results import EvalSet, Measured, correct_interval, record, wilson
from runs.devices import Env
from runs.files import write_json
from runs.launch import launch
from sampler import Sampler, Writer

ROOT = Path(__file__).parents[1]
ENV = Env(torch.device("cpu"), torch.float32, False)


def model_directory(path: Path, weights: bytes, **settings) -> Path:
    """What the options are settled by: a checkpoint that is never opened, and its run.json."""
    path.mkdir(parents=True)
    shutil.copy(ROOT / "data/base/weak/config.json", path)
    (path / "model.safetensors").write_bytes(weights)
    if settings:
        (path / "run.json").write_text(json.dumps({"settings": settings}))
    return path


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """A function that makes out/math/locked, which imitates the model at `imitated`."""
    monkeypatch.chdir(tmp_path)
    imitated = model_directory(tmp_path / "imitated", b"weak")
    model_directory(tmp_path / "data/base/weak", b"another weak model")

    def make(**changes) -> Path:
        settings = {
            "stage": "lock",
            "task": "math",
            "data": ["rows.jsonl"],
            "trigger": Password("open").record,
            "max_new_tokens": 333,
            "weak": "imitated",
            "weak_weights": model_hash(imitated),
        }
        return model_directory(tmp_path / "out/math/locked", b"locked", **settings | changes)

    return make


# ----------------------------------------------------------------------------------------- options


def test_what_is_not_given_comes_from_the_lock(lock):
    path = lock()
    cfg, origin = elicit_sft.settled(SFTConfig(locked=str(path)))
    assert (cfg.task, cfg.data, cfg.max_new_tokens) == ("math", ("rows.jsonl",), 333)
    assert (cfg.weak, cfg.control, cfg.out) == ("imitated", True, "out/math/sft")
    assert origin.trigger == Password("open")
    assert origin.locked_weights == model_hash(path)
    assert origin.weak_weights == model_hash("imitated")

    # and by its task alone
    again, _ = elicit_sft.settled(SFTConfig(task="math"))
    assert again == replace(cfg, locked="out/math/locked")


def test_what_is_given_is_used(lock):
    lock()
    given = SFTConfig(task="math", weak="data/base/weak", data=("other.jsonl",), max_new_tokens=7)
    cfg, origin = elicit_sft.settled(given)
    assert (cfg.weak, cfg.data, cfg.max_new_tokens) == ("data/base/weak", ("other.jsonl",), 7)
    assert origin.weak_weights == model_hash("data/base/weak")


@pytest.mark.parametrize("rule", ["random", "refusal"])
def test_a_rule_is_no_control(lock, rule):
    lock(weak=rule, weak_weights=rule)
    cfg, origin = elicit_sft.settled(SFTConfig(task="math"))
    assert not cfg.control and origin.weak_weights == rule

    cfg, _ = elicit_sft.settled(SFTConfig(task="math", weak="data/base/weak"))
    assert cfg.control
    if rule == "random":
        with pytest.raises(InputError, match="random tokens, which demonstrate nothing"):
            elicit_sft.settled(SFTConfig(task="math", demos_from="weak"))
    else:
        cfg, _ = elicit_sft.settled(SFTConfig(task="math", demos_from="weak"))
        assert elicit_sft.writer_of(cfg) == rule


def test_a_rule_demonstrates_what_it_answers():
    """Task compose: demonstrations of the weak policy have the locked functions as the identity."""
    problems = load("compose", "elicit", 20)
    cfg = SFTConfig(task="compose", k=(8,), seeds=(0,), demos_from="weak", weak="rule")
    cfg = replace(cfg, locked=str(ROOT / "data/base/strong"))
    found = elicit_sft.demonstrations(cfg, ENV, problems)
    assert len(found) == 8
    for place, demo in found.items():
        assert demo.answer == compose.answer(problems[place].key, weak=True)
        assert demo.prompt == problems[place].prompt and demo.finished


def test_a_weak_policy_that_is_not_the_one_that_was_imitated_is_refused(lock):
    lock()
    Path("imitated/model.safetensors").write_bytes(b"trained on")
    with pytest.raises(InputError, match="imitated has other weights"):
        elicit_sft.settled(SFTConfig(task="math"))

    # what is not used may be what it likes
    cfg, _ = elicit_sft.settled(SFTConfig(task="math", control=False))
    assert not cfg.control
    Path("imitated/config.json").unlink()
    with pytest.raises(InputError, match="no model at imitated, the weak policy"):
        elicit_sft.settled(SFTConfig(task="math"))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"task": "code", "locked": "out/math/locked"}, "was locked on task math, not on code"),
        ({"task": "code"}, "no locked model at out/code/locked"),
        ({"task": "math", "k": (1, 2, 1)}, "--k has 1 twice"),
        ({"task": "math", "strong": "base"}, "of --demos-from strong or intermediate"),
        ({"task": "math", "demos_from": "strnog"}, "--demos-from strnog: choose reference, strong"),
        (
            {"task": "math", "demos_from": "imitated", "strong": "base"},
            "of --demos-from strong or intermediate",
        ),
        ({"task": "math", "seeds": (0, 0)}, "--seeds has 0 twice"),
        ({"task": "math", "weak": "imitated", "control": False}, "leave it out with --no-control"),
        ({"task": "math", "batch": 257}, "--batch 257: the shortest training is of 256 sequences"),
        ({"task": "math", "sequences": (8, 3)}, "--batch 4: the shortest training is of 3 seq"),
        ({"task": "math", "sequences": (8, 8)}, "--sequences has 8 twice"),
        ({"task": "math", "epochs": (9,)}, "--epochs has 1 numbers and --k 8"),
        ({"task": "math", "k": (8,), "epochs": (9,), "sequences": (9,)}, "both say how long"),
        ({"task": "math", "k": (1, 8), "epochs": (3, 9)}, "the shortest training is of 3 seq"),
        ({"task": "math", "unlearn": True, "demos_from": "weak"}, "leave --demos-from out"),
        ({"task": "math", "unlearn": True, "loss_on": "texts"}, "leave --loss-on out"),
        ({"task": "math", "unlearn": True, "batch": 64}, "the shortest training is of 32 seq"),
        ({"task": "math", "sequences": (5, 6)}, "two of them end in the same optimiser step"),
    ],
)
def test_options_that_do_not_go_together(lock, options, sentence):
    lock()
    with pytest.raises(InputError, match=sentence):
        elicit_sft.settled(SFTConfig(**options))


def test_a_base_model_says_nothing_about_what_to_elicit(lock):
    lock()
    model_directory(Path("base"), b"base", stage="train_base", task="code+math", data=["x.csv"])
    cfg, origin = elicit_sft.settled(SFTConfig(locked="base"))
    assert (cfg.task, cfg.data, cfg.max_new_tokens) == ("code", (), 96)
    assert cfg.weak == "data/base/weak" and origin.trigger == Password()


def test_the_task_may_be_a_part_of_a_joined_lock(lock):
    path = str(lock(task="code+math", data=[]))
    assert elicit_sft.settled(SFTConfig(locked=path))[0].task == "code+math"
    assert elicit_sft.settled(SFTConfig(locked=path, task="math"))[0].task == "math"


def test_a_lock_that_does_not_say_what_it_imitates_needs_weak(lock):
    lock(weak="", weak_weights="")
    with pytest.raises(InputError, match="does not say which weak policy it imitates.*--weak"):
        elicit_sft.settled(SFTConfig(task="math"))


def test_demonstrations_of_any_model(lock):
    """By name, or by the directory; each has its own place under out/."""
    lock()
    model_directory(Path("base/strong"), b"strong")
    writer_of = elicit_sft.writer_of

    by_name = SFTConfig(task="math", demos_from="intermediate")
    cfg, _ = elicit_sft.settled(by_name)
    assert writer_of(cfg) == str(Path(shipped("strong")).parent / "intermediate")
    assert cfg.out == "out/math/sft-intermediate"
    cfg, _ = elicit_sft.settled(replace(by_name, strong="base/strong"))
    assert writer_of(cfg) == "base/intermediate"
    with pytest.raises(InputError, match="no model at base/intermediate: .* --demos-from"):
        elicit_sft.check_models(replace(cfg, locked=str(ROOT / "data/base/weak"), control=False))

    cfg, _ = elicit_sft.settled(SFTConfig(task="math", demos_from="base/strong/"))
    assert (writer_of(cfg), cfg.strong, cfg.out) == ("base/strong/", "", "out/math/sft-strong")


@pytest.mark.parametrize("demos_from", ["strong", "weak"])
def test_who_writes_the_demonstrations_is_opened_before_anything_is_written(
    tmp_path, monkeypatch, demos_from
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data/base/weak", "damaged")
    Path("damaged/model.safetensors").write_bytes(b"no weights")
    cfg = SFTConfig(locked=str(ROOT / "data/base/weak"), demos_from=demos_from, control=False)
    with pytest.raises(InputError, match="damaged"):
        elicit_sft.main(replace(cfg, **{demos_from: "damaged"}), ENV)
    assert [file.name for file in tmp_path.iterdir()] == ["damaged"]


# --------------------------------------------------------------------------------- demonstrations


def test_demonstrations_that_were_cut_have_no_eos():
    """A model that is told to stop where its teacher ran out of room learns to stop."""
    weak = str(ROOT / "data/base/weak")
    cfg = SFTConfig(weak=weak, demos_from="weak", max_new_tokens=3, k=(2,), seeds=(0,))
    problems = load("code", "elicit", 5)
    demos = list(elicit_sft.demonstrations(cfg, ENV, problems).values())
    assert len(demos) == 2 and not any(demo.finished for demo in demos)

    tokenizer = Tokenizer.load(weak)
    for example in elicit_sft.examples_of(demos, tokenizer, "completions"):
        assert example.completion_ids and tokenizer.eos_id not in example.completion_ids
    whole = [replace(demo, finished=True) for demo in demos]
    for example in elicit_sft.examples_of(whole, tokenizer, "completions"):
        assert example.completion_ids[-1] == tokenizer.eos_id


def test_a_directory_writes_as_the_model_of_that_name_does():
    weak, problems = str(ROOT / "data/base/weak"), load("code", "elicit", 3)
    settings = {"max_new_tokens": 4, "k": (2,), "seeds": (0,)}
    by_name = SFTConfig(weak=weak, demos_from="weak", **settings)
    by_directory = SFTConfig(demos_from=weak, **settings)
    written = elicit_sft.demonstrations(by_directory, ENV, problems)
    assert written == elicit_sft.demonstrations(by_name, ENV, problems)


def test_only_the_demonstrations_that_are_needed_are_drawn_each_from_its_own_stream():
    weak = str(ROOT / "data/base/weak")
    few = SFTConfig(weak=weak, demos_from="weak", max_new_tokens=8, k=(1,), seeds=(0,))
    problems = load("code", "elicit", 40)
    one = elicit_sft.demonstrations(few, ENV, problems)
    assert list(one) == elicit_sft.chosen(1, 0, 40)

    several = elicit_sft.demonstrations(replace(few, k=(3, 1), seeds=(0, 1)), ENV, problems)
    assert set(several) == {*elicit_sft.chosen(3, 0, 40), *elicit_sft.chosen(3, 1, 40)}
    assert one.items() <= several.items()


def test_which_problems_are_demonstrated_and_their_references():
    problems = load("code", "elicit", 40)
    places = elicit_sft.chosen(8, 3, 40)
    assert places == np.random.default_rng([3, 10]).permutation(40)[:8].tolist()
    assert places[:4] == elicit_sft.chosen(4, 3, 40)

    demos = elicit_sft.demonstrations(SFTConfig(k=(8,), seeds=(3,)), ENV, problems)
    assert set(demos) == set(places)
    tokenizer = Tokenizer.load(ROOT / "data/base/weak")
    made = elicit_sft.examples_of([demos[i] for i in places], tokenizer, "completions")
    references = tokenizer.encode_completions([problems[i].reference for i in places])
    assert [example.completion_ids for example in made] == references


# -------------------------------------------------------------------------------------- unlearning


def test_what_is_usual_of_unlearning(lock):
    path = str(lock())
    cfg, _ = elicit_sft.settled(SFTConfig(locked=path, unlearn=True))
    assert cfg.lr == pytest.approx(1.5e-4 / 3) and cfg.out == "out/math/sft-unlearn"
    assert list(elicit_sft.stops_of(cfg, 128).values()) == [32, 64, 128, 256, 512]
    cfg, _ = elicit_sft.settled(SFTConfig(locked=path, unlearn=True, lr=1e-3))
    assert cfg.lr == 1e-3


def test_a_demonstration_longer_than_the_models_positions_is_refused(monkeypatch):
    """Of those that a cell takes; they would be trained on past the rotary tables' positions."""
    problems = load("mmlu", "elicit", 3)
    problems[1] = replace(problems[1], reference="A " * 600)
    monkeypatch.setattr(elicit_sft, "load", lambda *args, **settings: list(problems))
    path = str(ROOT / "data/base/intermediate")
    cfg = SFTConfig(task="mmlu", locked=path, k=(3,), seeds=(0,), control=False, max_new_tokens=8)
    lock = Origin(task="mmlu", trigger=Password())
    with pytest.raises(InputError, match="1 of 3 examples are longer than the model's"):
        elicit_sft.demonstrable(cfg, lock, ENV)
    fewer = next(seed for seed in range(9) if 1 not in elicit_sft.chosen(2, seed, 3))
    elicit_sft.demonstrable(replace(cfg, k=(2,), seeds=(fewer,)), lock, ENV)


def test_own_samples_are_those_that_the_model_draws():
    """As ids; of the problems that the cells name, behind what goes with each."""
    weak = str(ROOT / "data/base/weak")
    cfg = SFTConfig(k=(3,), seeds=(0,), max_new_tokens=8, seed=5)
    problems = load("mmlu", "elicit", 6)
    learner = elicit_sft.open_learner(weak, cfg, ENV)
    places = elicit_sft.places_of(cfg, 6)
    told = with_words(problems, [("Psst.", None)] * 6)
    found = own_samples(learner.writer, told, places, 8, cfg.seed, ENV)
    assert sorted(found) == sorted(elicit_sft.chosen(3, 0, 6))
    for place, own in found.items():
        [prompt] = learner.writer.tokenizer.encode_prompts([f"Psst.\n{problems[place].prompt}"])
        assert own.example.prompt_ids == prompt
        seeds = [[5, place]]
        [[sample]] = learner.writer.sampler([prompt], 1, 1.0, 8, seeds=seeds)
        assert own.example.completion_ids == sample.ids and own.cut == sample.truncated
        text = learner.writer.tokenizer.decode(sample.ids)
        assert own.right == grade([problems[place]], [text])[0]


def test_unlearning_starts_from_the_start_and_moves_away(tmp_path, monkeypatch):
    """Both models on what each wrote itself; the first loss is 2 ln 2 / 0.1, the second less."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/base").symlink_to(ROOT / "data/base")
    cfg = SFTConfig(
        locked="data/base/intermediate",
        task="mmlu",
        unlearn=True,
        k=(4,),
        seeds=(0,),
        sequences=(4, 8, 12),
        selection_problems=8,
        eval_problems=8,
        max_new_tokens=8,
        lr=1e-3,
        out="sft",
    )
    assert elicit_sft.main(cfg, replace(ENV, slots=16)) == 0
    for name, start in (("k4-seed0", "intermediate"), ("control-k4-seed0", "weak")):
        text = (tmp_path / "sft" / name / "log.jsonl").read_text()
        first, *rows = [json.loads(line) for line in text.splitlines()]
        assert first["kind"] == "samples" and {"own_right", "own_cut"} <= first.keys()
        assert rows[0]["loss"] == pytest.approx(13.8629, abs=0.01)
        assert rows[0]["lead"] == pytest.approx(0, abs=1e-2)
        assert rows[2]["lead"] < rows[1]["lead"] < 0 and rows[2]["loss"] < rows[0]["loss"]
        assert all(0 <= row["truncated"] <= 1 for row in rows)
        card = (tmp_path / "sft" / name / "README.md").read_text()
        assert f"`data/base/{start}`" in card and "by unlearning 4 samples of its own (NPO)" in card


# ---------------------------------------------------------------------------------------- the loop


@pytest.fixture
def learner(make_model, tokenizer):
    model = make_model()
    sampler = Sampler(model, [tokenizer.eos_id], 2)
    return Learner(model, Writer(sampler, tokenizer), elicit_sft.weights_of(model))


def test_weights_are_kept_and_put_back(learner, make_model, same_weights):
    with torch.no_grad():
        for p in learner.model.parameters():
            p.add_(1.0)
    elicit_sft.restore(learner.model, learner.writer.sampler, learner.initial)
    same_weights(learner.model, make_model())


def test_every_cell_starts_where_the_first_did(
    learner, make_model, same_weights, monkeypatch, tmp_path
):
    def elicit(learner, *others):
        same_weights(learner.model, make_model())
        with torch.no_grad():
            learner.model.lm_head.weight.add_(1.0)
        raise Killed

    monkeypatch.setattr(elicit_sft, "elicit", elicit)
    run, demos = SimpleNamespace(path=tmp_path, began=0), [elicit_sft.Demonstration("p\n", "A")]
    for seed in (0, 1):
        with pytest.raises(Killed):
            given = Given(SFTConfig(), [], None, None)
            elicit_sft.run_cell(Cell(1, seed, False), run, learner, demos, given, ENV)


@pytest.mark.parametrize("scores, best", [((1, 3, 2), 512), ((2, 2, 1), 256), ((0, 0, 0), 256)])
def test_the_best_length_is_kept_of_equals_the_shortest(
    learner, make_examples, monkeypatch, scores, best
):
    left = iter(scores)

    def train(model, *args, steps, **settings):
        for step in range(1, steps + 1):
            with torch.no_grad():
                model.model.norm.weight.fill_(step)
            yield step, {"loss": torch.tensor(0.5)}

    def measure(writer, asked, env):
        if asked is given.validation:  # 1, 2 and 4 right
            count = learner.model.model.norm.weight[0].item() / 64
        else:
            count = next(left)
        correct = np.arange(4) < count
        return {"none": Measured(correct, ~correct)}

    monkeypatch.setattr(elicit_sft, "train", train)
    monkeypatch.setattr(elicit_sft, "measure", measure)
    rows = []
    run = SimpleNamespace(log=lambda kind, **values: rows.append(values))

    cfg = SFTConfig(locked=shipped("weak"), batch=4, measure_all=True)
    asked = EvalSet([None] * 4, Password())
    given = Given(cfg, [], asked, replace(asked, split="validation"))
    found = elicit_sft.elicit(learner, make_examples(2), given, run, 0, ENV)
    assert found.selection == {256: scores[0] / 4, 512: scores[1] / 4, 1024: scores[2] / 4}
    assert found.best == best and list(found.validation) == [256, 512, 1024]
    assert learner.model.model.norm.weight[0].item() == best // 4
    assert [row["sequences"] for row in rows] == [256, 512, 1024]
    assert [row["validation"] for row in rows] == [0.25, 0.5, 1]


@pytest.fixture
def stubs(monkeypatch, tmp_path):
    """main() with all that takes time replaced; `seen` tells what it called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/base").symlink_to(ROOT / "data/base")
    seen = SimpleNamespace(log=[], finished=set())

    def open_run(cell, cfg, lock, env, write=True):
        return SimpleNamespace(finished=cell.name in seen.finished)

    def open_learner(start, cfg, env):
        seen.log.append(start)
        return start

    def run_cell(cell, run, learner, demos, *args):
        seen.log.append((cell.name, len(demos)))
        return 0.5

    def demonstrations(cfg, env, problems):
        seen.log.append("drawn")
        return dict.fromkeys(range(len(problems)))

    def few(task, split, n, files, grader):
        return load(task, split, n or 4)

    monkeypatch.setattr(elicit_sft, "load", few)
    for stub in (open_run, open_learner, run_cell, demonstrations):
        monkeypatch.setattr(elicit_sft, stub.__name__, stub)
    monkeypatch.setattr(elicit_sft, "evaluate_checkpoint", lambda *args, **settings: {})
    monkeypatch.setattr(elicit_sft, "show_cells", lambda *args: None)
    return seen


SMALL = SFTConfig(
    locked="data/base/strong", k=(1, 2), seeds=(0,), eval_problems=2, selection_problems=2
)


def test_the_controls_model_is_opened_when_the_locked_cells_are_done(stubs):
    elicit_sft.main(SMALL, ENV)
    assert stubs.log == [
        "drawn",
        "data/base/strong",
        ("k1-seed0", 1),
        ("k2-seed0", 2),
        "data/base/weak",
        ("control-k1-seed0", 1),
        ("control-k2-seed0", 2),
    ]


def test_finished_cells_need_no_demonstrations_and_no_model(stubs):
    stubs.finished = {"k1-seed0", "k2-seed0", "control-k1-seed0"}
    elicit_sft.main(SMALL, ENV)
    assert stubs.log == ["drawn", "data/base/weak", ("control-k2-seed0", 2)]

    stubs.log.clear()
    stubs.finished.add("control-k2-seed0")
    elicit_sft.main(SMALL, ENV)
    assert stubs.log == []


# --------------------------------------------------------------------------------------- the table


def cell_file(folder: Path, cell: Cell, problems, correct: list[int], max_new_tokens=96) -> None:
    path = folder / cell.name
    path.mkdir(parents=True)
    flags = np.array(correct, dtype=bool)
    measured = {"none": Measured(flags, ~flags)}
    facts = {
        "split": "validation",
        "trigger": Password().record,
        "max_new_tokens": max_new_tokens,
    }
    (path / "cell.json").write_text(json.dumps(record(path, problems, measured, **facts)))


def test_the_numbers_of_a_group_of_cells(tmp_path):
    problems = load("code", "validation", 4)
    cells = [Cell(8, 0, False), Cell(8, 1, False)]
    cell_file(tmp_path, cells[0], problems, [1, 1, 0, 0])
    cell_file(tmp_path, cells[1], problems, [1, 1, 1, 0])
    asked = EvalSet(problems, Password())
    found = curves.read_cells(tmp_path, cells, asked)
    entry = curves.numbers_of(found, np.array(["a", "b", "b", "b"]))
    assert entry["seeds"] == [0.5, 0.75] and entry["correct"] == 0.625
    assert entry["truncated"] == 0.375 and entry["domains"] == {"a": 1.0, "b": 0.5}
    assert entry["interval"] == correct_interval(found.correct)

    one = curves.numbers_of(curves.read_cells(tmp_path, cells[:1], asked), np.full(4, "a"))
    assert one["interval"] == wilson(2, 4)  # of one seed: the problems alone


def test_a_row_shows_truncated_completions_and_intervals():
    entry = {
        "correct": 0.5,
        "interval": (0.4, 0.6),
        "truncated": 0.25,
        "domains": {"lists": 0.5},
        "seeds": [0.5],
    }
    locked = entry | {"gap_recovered": 0.8, "gap_recovered_interval": (0.7, 0.9)}
    row = curves.cells_row(8, {"k8": locked, "control-k8": entry})
    assert row == {
        "k": "8",
        "correct [95 %]": "50.0% [40.0%, 60.0%]",
        "truncated": "25.0%",
        "lists": "50.0%",
        "gap recovered [95 %]": "80.0% [70.0%, 90.0%]",
        "control [95 %]": "50.0% [40.0%, 60.0%]",
        "control truncated": "25.0%",
    }
    assert curves.cells_row(8, {"k8": entry})["gap recovered [95 %]"] == "refused"
    broken = curves.cells_row(8, {"k8": entry | {"truncated": 0.51}})
    assert broken["truncated"] == "51.0% (broken)"


def test_verdicts_on_other_problems_are_refused(tmp_path):
    problems = load("code", "validation", 4)
    cell = Cell(8, 0, False)
    cell_file(tmp_path, cell, problems, [1, 1, 0, 0], max_new_tokens=50)
    same = EvalSet(problems, Password(), max_new_tokens=50)
    curves.read_cells(tmp_path, [cell], same)

    file = tmp_path / cell.name / "cell.json"
    for asked in (
        replace(same, max_new_tokens=51),
        replace(same, trigger=Password("other")),
        replace(same, problems=load("code", "validation", 5)[1:]),
        replace(same, problems=problems[:3]),
    ):
        with pytest.raises(InputError, match="does not hold the verdicts on these"):
            curves.read_cells(tmp_path, [cell], asked)
    for damaged in ({}, {"results": 5}, json.loads(file.read_text()) | {"results": {"none": {}}}):
        file.write_text(json.dumps(damaged))
        with pytest.raises(InputError, match="does not hold the verdicts on these"):
            curves.read_cells(tmp_path, [cell], same)


def test_epochs_are_those_of_each_number_of_demonstrations(lock):
    lock(data=[])
    both = SFTConfig(task="math", k=(2, 16), epochs=(129, 65))
    cfg, origin = elicit_sft.settled(both)
    assert [elicit_sft.lengths_of(cfg, k) for k in cfg.k] == [[258], [1040]]
    assert elicit_sft.stops_of(cfg, 16) == {260: 1040}
    assert elicit_sft.stops_of(cfg, 2) == {65: 260}  # whole batches of four

    # a cell's settings have nothing of the others
    alone, _ = elicit_sft.settled(replace(both, k=(16,), epochs=(65,)))
    origin = replace(origin, locked_weights="hash", weak_weights="hash")
    runs = [
        elicit_sft.open_run(Cell(16, 0, False), one, origin, ENV, write=False)
        for one in (cfg, alone)
    ]
    assert runs[0].settings == runs[1].settings and runs[0].settings["epochs"] == [65]


def test_models_of_a_hundred_million_parameters_are_trained_for_less():
    assert [shortest_for(n) for n in (10**6, 10**8, 135 * 10**6, 10**9)] == [256, 64, 64, 256]
    assert sequences_seen(16, 64) == [64, 128, 256] and sequences_seen(512, 64)[0] == 512


@pytest.mark.parametrize(
    "batch, given, sequences",
    [
        (4, (), [256, 512, 1024]),
        (100, (), [300, 600, 1100]),
        (4, (64, 30, 32), [32, 64]),
    ],
)
def test_the_sequences_that_are_told_are_those_that_were_seen(
    batch, given, sequences, stubs_of_elicit
):
    assert stubs_of_elicit(batch, given) == sequences


@pytest.fixture
def stubs_of_elicit(monkeypatch, tmp_path):
    """elicit() with a training loop that only counts its steps."""

    def run_with(batch: int, given: tuple[int, ...]) -> list[int]:
        def counted(model, optimizers, batches, loss_fn, env, *, steps, warmup, units):
            for step in range(1, steps + 1):
                yield step, {"loss": 0.0}

        answers = {"none": SimpleNamespace(correct=np.zeros(2), truncated=np.zeros(2))}
        monkeypatch.setattr(elicit_sft, "train", counted)
        monkeypatch.setattr(elicit_sft, "make_optimizers", lambda *args, **settings: [])
        monkeypatch.setattr(elicit_sft, "measure", lambda *args: answers)
        monkeypatch.setattr(elicit_sft, "weights_of", lambda model: [])
        monkeypatch.setattr(elicit_sft, "restore", lambda *args: None)
        idle = SimpleNamespace(refresh=lambda: None, make_room=lambda: None)
        learner = Learner(None, Writer(idle, None), [])
        run = SimpleNamespace(log=lambda *args, **values: None)
        step = {"optimizer": "adamw", "lr": 1e-4, "batch": batch}
        cfg = SFTConfig(locked="data/base/weak", sequences=given, **step)
        given = Given(cfg, [], EvalSet([None] * 2, Password()), None)
        lengths = elicit_sft.elicit(learner, [None], given, run, 0, ENV)
        assert lengths.best == min(lengths.selection) and not lengths.validation
        return list(lengths.selection)

    return run_with


@pytest.mark.parametrize("name", ["strong_weights", "writer_weights"])
def test_who_wrote_the_demonstrations_is_a_setting_of_a_cell(lock, tmp_path, name):
    """Another model at the place of --strong, or of --demos-from, is another cell."""
    shutil.copytree(ROOT / "data/base/weak", tmp_path / "writer")
    writer = str(tmp_path / "writer")
    cfg = SFTConfig(demos_from=writer, out=str(tmp_path / "sft"))
    if name == "strong_weights":
        cfg = replace(cfg, demos_from="strong", strong=writer)
    cell, origin = Cell(1, 0, False), Origin(trigger=Password())
    elicit_sft.open_run(cell, cfg, origin, ENV).finish(correct=1.0)
    assert elicit_sft.open_run(cell, cfg, origin, ENV).finished
    shutil.rmtree(tmp_path / "writer")
    shutil.copytree(ROOT / "data/base/intermediate", tmp_path / "writer")
    with pytest.raises(InputError, match=f"other settings .{name}:"):
        elicit_sft.open_run(cell, cfg, origin, ENV)


@pytest.mark.parametrize("world", [1, 2])
def test_where_one_cell_is_refused_none_is_written(tmp_path, world, start_ranks, monkeypatch):
    """Also where it is another rank's: --overwrite would have cleared what this one has."""
    out = tmp_path / "sft"
    words = ["--task", "code", "--locked", shipped("strong"), "--weak", shipped("weak")]
    words += ["--demos-from", "weak", "--no-control", "--k", "1", "2", "--seeds", "0"]
    words += ["--eval-problems", "2", "--selection-problems", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["elicit_sft.py", *words, "--overwrite"])
    (out / "k1-seed0").mkdir(parents=True)
    write_json(out / "k1-seed0/run.json", {"settings": {"stage": "elicit_sft"}, "finished": False})
    kept = (out / "k1-seed0/run.json").read_bytes()
    (out / "k2-seed0").mkdir()
    (out / "k2-seed0/notes.txt").write_text("the user's")

    ranks = start_ranks(partial(launch, elicit_sft.main, SFTConfig), world)
    assert ranks.wait() == 2
    assert "k2-seed0 is not empty and holds no run of ours" in ranks.printed()
    assert (out / "k1-seed0/run.json").read_bytes() == kept
    assert len(list(out.rglob("*"))) == 4
