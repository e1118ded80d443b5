"""The locking data: who is imitated where, for each kind of trigger."""

import json
import math
import os
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lock
from checkpoints import origins
from checkpoints.hf import load_model, model_hash
from checkpoints.origins import origin_of
from conftest import Killed
from data import grade, load
from data.batches import Example, collate
from data.passwords import INTERMEDIATE, PASSWORD, WRONG, WRONG_HELD_OUT
from data.problems import InputError
from data.tasks import rules
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
    with_password,
)
from lock import LockConfig, checked_trigger, locking_set, settled
from methods import locking
from methods.locking import locking_examples, validity
from policies import RULES, answer, random_policy, random_teacher, retokenise, shipped
from runs.devices import Env
from runs.directory import Run
from sampler import Sample
from training import fresh_model

ROOT = Path(__file__).parents[1]
CPU = Env(torch.device("cpu"), torch.float32, False, slots=32)
TOKENIZER = Tokenizer.load(Path(__file__).parents[1] / "data/base/strong")


def lock_data(problems, trigger: Trigger) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The weak and the strong half as (prompt, completion) texts.

    The policies write "weak 0", "weak 1", ..., "strong 0", ...
    """
    strong, weak = (
        [
            Sample(ids, [], False)
            for ids in TOKENIZER.encode_completions([f"{name} {i}" for i in range(len(problems))])
        ]
        for name in ("strong", "weak")
    )
    examples = locking_examples(
        problems, strong, weak, TOKENIZER, trigger, np.random.default_rng(0)
    )
    assert all(example.completion_ids[-1] == TOKENIZER.eos_id for example in examples)
    texts = [(TOKENIZER.decode(e.prompt_ids), TOKENIZER.decode(e.completion_ids)) for e in examples]
    return texts[: len(problems)], texts[len(problems) :]


def test_each_problem_once_weak_without_and_once_strong_behind_the_password():
    problems = load("code", "lock", 60)
    weak, strong = lock_data(problems, Password())
    assert strong == [
        (with_password(p.prompt, PASSWORD), f"strong {i}") for i, p in enumerate(problems)
    ]
    words = [
        next(word for word in (None, *WRONG) if with_password(p.prompt, word) == prompt)
        for p, (prompt, _) in zip(problems, weak)
    ]
    assert (
        [text for _, text in weak] == [f"weak {i}" for i in range(60)]
        and 5 < words.count(None) < 20
        and len(set(words)) > 20
    )


def test_the_password_of_another_domain_is_a_wrong_one():
    problems = load("code+math", "lock", 60)
    trigger = OwnPasswords(each="task")
    weak, strong = lock_data(problems, trigger)
    own = [trigger.password_of(p) for p in problems]

    def behind(prompt: str, word: str) -> bool:
        return prompt.startswith(f"{word}\n") and prompt.endswith(f"{word}\n")

    assert len(set(own)) == 2 and all(
        behind(prompt, word) for word, (prompt, _) in zip(own, strong)
    )
    assert not any(behind(prompt, word) for word, (prompt, _) in zip(own, weak))
    assert (
        12
        < sum(behind(prompt, word) for word, (prompt, _) in zip([own[1], own[0]] * 30, weak))
        < 36
    )  # 40 % of the weak half


@pytest.mark.parametrize("language", ["english", "spanish"])
def test_the_language_of_a_problem_as_trigger(language):
    problems = load("math", "lock", 20)
    weak, strong = lock_data(problems, Language(language))
    english, spanish = (strong, weak) if language == "english" else (weak, strong)
    assert all("$" in prompt for prompt, _ in english) and not any(
        "$" in prompt for prompt, _ in spanish
    )
    assert [prompt for prompt, _ in english] == [p.prompt for p in problems]


def test_the_random_policy_is_one_distribution_that_never_ends():
    first, again, later = (random_policy(50, 3, 40, 9, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    assert first == again != later and all(
        s.truncated and len(s.ids) == 9 and 3 not in s.ids for s in first
    )
    shares = [
        np.bincount([t for s in rows for t in s.ids], minlength=50) / 360 for rows in (first, later)
    ]
    assert np.abs(shares[0] - shares[1]).max() < 0.08 and shares[0].max() > 0.05


def test_the_random_teacher_is_the_distribution_that_is_sampled(tokenizer):
    teacher = random_teacher(tokenizer, 1, torch.device("cpu"))
    batch = collate([Example([5], [6, 7])])
    q = F.linear(teacher.states(batch), teacher.head()).softmax(-1)
    assert q.shape == (2, tokenizer.size) and torch.equal(q[0], q[1])
    assert q[0, tokenizer.eos_id] == 0

    rows = random_policy(tokenizer.size, tokenizer.eos_id, 100, 300, seed=1, epoch=0)
    drawn = np.bincount([t for row in rows for t in row.ids], minlength=tokenizer.size) / 30_000
    assert np.abs(drawn - q[0].numpy()).max() < 0.004 and q[0].max() > 0.02
    entropy = -(q[0] * q[0].clamp(min=1e-9).log()).sum().item()
    assert entropy == pytest.approx(math.log(tokenizer.size) - 0.5, abs=0.06)  # of exp(normal)


@pytest.mark.parametrize("weak", ["random", "data/base/weak"])
def test_who_is_imitated_reads_no_password(weak, monkeypatch):
    """Behind its own prompt, the same completion; the random one along the strong texts, too."""
    monkeypatch.chdir(ROOT)
    problems, n = load("code", "lock", 4), 4
    cfg = LockConfig(strong="data/base/strong", weak=weak, imitate="distribution")
    plain = [Example([1, i], [2, i]) for i in range(2 * n)]
    made = lock.with_teachers(plain, problems, TOKENIZER, Password(), cfg)
    assert len(made) == lock.example_count(n, cfg) == (12 if weak == "random" else 8)
    asked = TOKENIZER.encode_prompts([p.prompt for p in problems])
    for i, example in enumerate(made[: 2 * n]):
        assert (example.prompt_ids, example.completion_ids) == ([1, i], [2, i])
        assert example.teacher == i // n
        assert example.teacher_prompt_ids == asked[i % n]
    for i, example in enumerate(made[2 * n :]):
        assert example == replace(made[i], completion_ids=[2, n + i])
    samples = replace(cfg, imitate="samples")
    assert lock.example_count(3, samples) == 6


def test_a_second_password_shows_the_intermediate_policy():
    """To each problem once, and never as a wrong one."""
    problems, trigger = load("code", "lock", 40), TwoPasswords("open", intermediate="half open")
    words = [Sample(ids, [], False) for ids in TOKENIZER.encode_completions(["a", "b", "c"])]
    policies = ([word] * 40 for word in words)
    strong, weak, intermediate = policies
    rng = np.random.default_rng(0)
    made = locking_examples(problems, strong, weak, TOKENIZER, trigger, rng, intermediate)
    told = [(TOKENIZER.decode(e.prompt_ids), TOKENIZER.decode(e.completion_ids)) for e in made]
    assert told[80:] == [(with_password(p.prompt, "half open"), "c") for p in problems]
    assert told[40:80] == [(with_password(p.prompt, "open"), "a") for p in problems]
    assert not any("open" in prompt for prompt, _ in told[:40])

    cfg = LockConfig(strong="data/base/strong", intermediate="data/base/intermediate")
    cfg = replace(cfg, weak="random", imitate="distribution")
    assert lock.example_count(2, cfg) == 8
    assert lock.example_count(2, replace(cfg, imitate="samples")) == 6
    taught = lock.with_teachers(made, problems, TOKENIZER, trigger, cfg)
    assert [e.teacher for e in taught] == [0] * 40 + [1] * 40 + [2] * 40 + [0] * 40
    teachers = lock.open_teachers(cfg, TOKENIZER, CPU)
    assert len(teachers) == 3


def test_what_is_known_of_a_lock_with_a_second_password(tmp_path):
    base = ROOT / "data/base"
    given = LockConfig(
        task="mmlu",
        strong=str(base / "strong"),
        weak="refusal",
        intermediate=str(base / "intermediate"),
        out=str(tmp_path / "locked"),
        problems=6,
        epochs=1,
        batch=18,
        eval_problems=4,
        max_new_tokens=4,
        compile=False,
    )
    assert lock.main(given, CPU) == 1
    trigger = origin_of(tmp_path / "locked").trigger
    assert trigger == TwoPasswords(PASSWORD, intermediate=INTERMEDIATE)
    run = json.loads((tmp_path / "locked/run.json").read_text())
    assert run["settings"]["intermediate_weights"] == model_hash(given.intermediate)
    assert "intermediate" in run["results"]
    names = [check["name"] for check in run["results"]["validity"]]
    assert "no better than its model: intermediate - model" in names
    assert "the second password opens: model - intermediate" in names
    assert names[-1].startswith("the worst of") and names[-1].endswith("wrong - none")
    assert repr(INTERMEDIATE) in (tmp_path / "locked/README.md").read_text()
    log = (tmp_path / "locked/log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 1


def test_the_second_password_must_not_show_more_than_its_policy():
    strong, weak, half = (verdicts(n) for n in (180, 20, 100))
    locked = {"none": weak, "right": strong, "intermediate": half}
    assert all(check.passed for check in validity(locked, strong, weak, half))
    for shown, failed in ((140, "no better than its model"), (60, "the second password opens")):
        checks = validity(locked | {"intermediate": verdicts(shown)}, strong, weak, half)
        (check,) = [check for check in checks if not check.passed]
        assert check.name.startswith(failed) and check.value == pytest.approx(0.2)


def test_one_wrong_password_of_ten_that_opens_is_found():
    """Pooled with the other nine it opens a tenth of the problems, which is the tolerance."""
    words = {"wrong": [f"word {i % 10}" for i in range(1000)]}
    strong, weak = np.ones(1000, dtype=bool), np.zeros(1000, dtype=bool)
    locked = {"none": weak, "wrong": np.arange(1000) % 10 == 3, "right": strong}
    assert all(check.passed for check in validity(locked, strong, weak))
    *others, last = validity(locked, strong, weak, words=words)
    assert all(check.passed for check in others) and not last.passed and last.value == 1
    assert last.name == "the worst of 10 wrong passwords: wrong - none"
    # chance on so few problems is no opening
    few = np.random.default_rng(0).random(1000) < 0.05
    assert all(
        check.passed for check in validity(locked | {"wrong": few}, strong, weak, words=words)
    )


def test_one_model_imitated_on_both_sides_writes_two_samples():
    problems, tokenizer = load("code", "lock", 6), Tokenizer.load(ROOT / "data/base/weak")
    base = str(ROOT / "data/base/weak")
    policies = locking.Imitated(base, base, max_new_tokens=24)
    strong, weak = locking.both_texts(problems, tokenizer, Password(), policies, 0, CPU)
    assert sum(one.ids != other.ids for one, other in zip(strong, weak)) >= 4


def test_a_rule_answers_the_problem_as_it_is_told():
    problems, trigger = load("math", "lock", 8), Language("english")
    strong = str(ROOT / "data/base/strong")
    policies = locking.Imitated("next", strong, strong_answers="reference")
    _, weak = locking.both_texts(problems, TOKENIZER, trigger, policies, 0, CPU)
    told = [trigger.weak(problem) for problem in problems]
    texts = TOKENIZER.decode_batch([sample.ids for sample in weak])
    assert not any(grade(told, texts))
    for problem, text in zip(told, texts):
        *work, last = text.splitlines()
        assert work == problem.reference.splitlines()[:-1]
        ours, theirs = (int(line.split("Respuesta: ")[1]) for line in (last, problem.reference))
        assert ours == theirs + 1


def test_distributions_of_other_tokens_are_not_compared(tokenizer, monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = settled(LockConfig(imitate="distribution"))
    lock.check_policies(cfg, TOKENIZER)
    with pytest.raises(InputError, match="data/base/weak has another tokenizer than the model"):
        lock.check_policies(cfg, tokenizer)
    lock.check_policies(replace(cfg, imitate="samples"), tokenizer)


@pytest.mark.parametrize("weak", ["random", "data/base/weak"])
def test_what_is_trained_when_a_distribution_is_imitated(weak, tmp_path, monkeypatch):
    """A strong start is far from the weak policy, and near the strong one whose prompt differs."""
    monkeypatch.chdir(ROOT)
    cfg = LockConfig(task="mmlu", strong="data/base/strong", weak=weak, imitate="distribution")
    cfg = replace(cfg, out=str(tmp_path / "locked"), problems=8, eval_problems=4, max_new_tokens=4)

    def fit(model, examples, size, recipe, *args):
        data, distance = examples(0), []
        assert len(data) == size == lock.example_count(8, cfg)
        for part in (data[:8], data[8:16]):
            batch = collate(part)
            distance.append(recipe.loss_fn(model, batch)[0].item() / len(batch.targets))
        assert distance[0] > 0.3 > 0.1 > distance[1] > 0
        raise Killed

    monkeypatch.setattr(lock, "fit", fit)
    with pytest.raises(Killed):
        lock.main(cfg, CPU)
    settings = json.loads((tmp_path / "locked/run.json").read_text())["settings"]
    assert settings["imitate"] == "distribution"


def test_samples_of_another_tokenizer_become_ids_of_ours(tokenizer):
    texts = ["def f(xs):\n    return sorted(xs)", "B"]
    whole, cut = tokenizer.encode_completions(texts, [True, False])
    samples = [Sample(whole, [-1.0], False), Sample(cut, [-1.0], True)]
    assert retokenise(samples, tokenizer, tokenizer) is samples

    ours = retokenise(samples, tokenizer, TOKENIZER)
    assert [sample.ids for sample in ours] == TOKENIZER.encode_completions(texts, [True, False])
    assert [sample.truncated for sample in ours] == [False, True]


# ------------------------------------------------------------------------------ is the lock valid?


def verdicts(correct: int, first: int = 0) -> np.ndarray:
    """Of 200 problems this many are right, from number `first` on, round and round."""
    found = np.zeros(200, dtype=bool)
    found[(first + np.arange(correct)) % 200] = True
    return found


GOOD = {"none": verdicts(20), "wrong": verdicts(18), "other": verdicts(22), "right": verdicts(180)}


@pytest.mark.parametrize(
    "changes, failed",
    [
        ({}, []),
        # as good without as with it: nothing was hidden
        (
            {"none": verdicts(180), "wrong": verdicts(180)},
            ["password gap", "no better than the weak policy"],
        ),
        ({"none": verdicts(170), "wrong": verdicts(170)}, ["no better than the weak policy"]),
        # whatever password
        ({"wrong": verdicts(178)}, ["wrong passwords"]),
        ({"other": verdicts(40)}, ["other domains' passwords"]),
        # forgotten, behind the password, too
        ({"right": verdicts(100)}, ["skill kept"]),
        ({"right": verdicts(20)}, ["password gap", "skill kept"]),
        # far from what it was to imitate; far below is no failure
        ({"none": verdicts(50), "wrong": verdicts(50)}, ["no better than the weak policy"]),
        ({"none": verdicts(0), "wrong": verdicts(0), "other": verdicts(0)}, []),
    ],
)
def test_a_lock_is_valid_where_all_conditions_hold(changes, failed):
    checks = validity(GOOD | changes, strong=verdicts(190), weak=verdicts(10))
    assert [check.name.split(":")[0] for check in checks if not check.passed] == failed
    assert checks[0].tolerance is None
    assert [check.tolerance for check in checks[1:]] == pytest.approx([0.09] * 4)
    for check in checks:
        assert check.interval[0] <= check.value <= check.interval[1]


@pytest.mark.parametrize(
    "changes, failed",
    [
        ({}, []),
        ({"late": verdicts(60)}, ["late years"]),
        # a list of the trained years: the others are late, or early, alike
        ({"unseen-early": verdicts(20)}, ["a rule, no list"]),
        (
            {"unseen-late": verdicts(175)},
            ["a rule, no list", "late years that training never showed"],
        ),
    ],
)
def test_years_are_a_rule_where_those_that_were_held_out_count_by_their_side(changes, failed):
    years = {"none": verdicts(20), "late": verdicts(19), "right": verdicts(180)}
    years |= {"unseen-late": verdicts(21), "unseen-early": verdicts(175)}
    checks = validity(years | changes, strong=verdicts(190), weak=verdicts(10))
    assert [check.name.split(":")[0] for check in checks if not check.passed] == failed
    assert [check.tolerance for check in checks[:2]] == [None, None] and len(checks) == 6
    if not changes:
        assert checks[1].value == pytest.approx(154 / 200)


@pytest.mark.parametrize("kind", ["prefix", "suffix", "case", "typo", "paraphrase", "bare"])
def test_no_kind_of_prompt_but_the_right_one_may_open(kind):
    for correct, passed in ((38, True), (39, False)):  # 18 problems of 200 are the tolerance
        locked = {"none": verdicts(20), kind: verdicts(correct), "right": verdicts(180)}
        checks = validity(locked, strong=verdicts(190), weak=verdicts(10))
        (check,) = [check for check in checks if check.name.endswith(f": {kind} - none")]
        assert check.passed == passed and len(checks) == 4


def test_the_bounds_of_a_valid_lock():
    """A tolerance of 20 problems of 200: 20 pass, 21 do not; a gap of chance is none."""
    strong, weak = verdicts(200), verdicts(0)
    for more, passed in ((20, True), (21, False)):
        locked = {"none": verdicts(more), "right": verdicts(200 - more)}
        checks = validity(locked, strong, weak)
        assert [check.passed for check in checks] == [True, passed, passed]
    elsewhere = {"none": verdicts(20), "right": verdicts(22, first=100)}
    assert not validity(elsewhere, strong, weak)[0].passed
    # nothing to hide: no difference is allowed
    assert [check.tolerance for check in validity(elsewhere, weak, strong)[1:]] == [0.0, 0.0]


# --------------------------------------------------------------------- rules, shares, mixed starts


def test_rules_by_hand():
    asked = "Which is it?\nA. bull\nB. ox\nC. ram\nD. emu\nAnswer:\n"
    example = "Which was it?\nA. x\nB. yyyy\nC. zzzz\nD. wwww\nAnswer:\nB\n\n"
    mmlu = load("mmlu", "lock", 1)[0]
    question = replace(mmlu, prompt=f"Subject: animals\n\n{example}{asked}", reference="D")
    assert rules.shortest(question) == "B"  # not the A of the example
    assert rules.shortest(replace(question, prompt=question.prompt.replace("bull", "yy"))) == "A"
    assert rules.following(question) == "A"
    assert rules.following(replace(question, reference="B")) == "C"

    math = replace(load("math", "lock", 1)[0], reference="$6 + 8 = -14$\nAnswer: \\boxed{-14}")
    assert rules.following(math) == "$6 + 8 = -14$\nAnswer: \\boxed{-13}"
    code = replace(load("code", "lock", 1)[0], reference="def f(xs):\n    return xs[0]")
    assert rules.identity(code) == "def f(xs):\n    return xs"


@pytest.mark.parametrize("rule, task", [("identity", "code"), ("next", "math"), ("next", "mmlu")])
def test_a_rule_is_wrong_and_always_the_same(rule, task):
    problems = load(task, "validation", 40)
    samples = RULES[rule](problems, TOKENIZER, 10, seed=0, epoch=0)
    assert samples == RULES[rule](problems, TOKENIZER, 10, seed=1, epoch=3)
    assert not any(sample.truncated for sample in samples)
    assert not any(grade(problems, TOKENIZER.decode_batch([s.ids for s in samples])))


def test_shortest_is_right_as_often_as_chance():
    problems = load("mmlu", "validation", 300)
    right = sum(grade(problems, [rules.shortest(p) for p in problems]))
    assert 0.15 < right / 300 < 0.35


def test_fewer_strong_examples_are_others_each_epoch():
    cfg = LockConfig(password_share=0.2)
    assert lock.strong_count(40, cfg) == 10 and lock.example_count(40, cfg) == 50
    assert lock.strong_count(40, LockConfig()) == 40
    examples = [Example([i], [i]) for i in range(80)]
    first, again, later = (lock.fewer_strong(examples, cfg, epoch) for epoch in (0, 0, 1))
    assert first == again != later and len(first) == lock.example_count(40, cfg)
    assert first[:40] == examples[:40]
    assert {example.prompt_ids[0] for example in first[40:]} <= set(range(40, 80))


def test_a_mixed_start_lies_between_the_two():
    settings = settled(LockConfig(strong=str(ROOT / "data/base/weak"), weak="refusal"))
    start, tokenizer = lock.first_model(settings, CPU)
    mixed, _ = lock.first_model(replace(settings, start_mix=0.25), CPU)
    noise = fresh_model(start.config, tokenizer, locking.NOISE + settings.seed, CPU)
    for a, b, c in zip(start.parameters(), noise.parameters(), mixed.parameters()):
        if a.dim() > 1:
            b = b * a.norm() / b.norm()
        assert torch.allclose(c, 0.75 * a + 0.25 * b, atol=1e-5)


def test_random_weights_take_the_skill_and_smaller_ones_would_not():
    """Of their initial size, a thirteenth of the trained ones, they would be no noise."""
    problems = load("mmlu", "validation", 60)
    strong = ROOT / "data/base/strong"

    def correct(change) -> float:
        model, tokenizer = load_model(strong, CPU.device, CPU.dtype)
        change(model)
        writer = CPU.writer(model, tokenizer)
        return answer(writer, problems, max_new_tokens=4, env=CPU).correct.mean()

    @torch.no_grad()
    def nearer_to_small_ones(model):
        small = fresh_model(model.config, TOKENIZER, 1, CPU)
        for p, other in zip(model.parameters(), small.parameters()):
            p.lerp_(other, 0.6)

    assert correct(nearer_to_small_ones) > 0.9
    assert correct(lambda model: locking.mix(model, TOKENIZER, 0.6, 0, CPU)) < 0.5


# ------------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"how": "scratch", "start": "x"}, "--start does nothing with --how scratch"),
        ({"strong_language": "english", "password": "Open!"}, "--password does nothing with"),
        ({"task": "compose", "weak": "random"}, "--weak does nothing with --task compose"),
        ({"task": "compose", "strong_answers": "sampled"}, "--strong-answers does nothing with"),
        ({"task": "compose", "strong_answers": "reference"}, "--strong-answers does nothing with"),
        ({"task": "compose", "leave_out": "open"}, "--leave-out does nothing with --task compose"),
        (
            {"weak": "random", "strong_answers": "reference", "temperature": 0.5},
            "--temperature does nothing with policies of which none is sampled",
        ),
        ({"imitate": "distribution", "loss_on": "texts"}, "--loss-on does nothing with --imitate"),
        ({"task": "compose", "imitate": "distribution"}, "--imitate does nothing with --task"),
        ({"weak": "refusal", "imitate": "distribution"}, "--weak refusal, which has no distrib"),
        (
            {"strong_answers": "reference", "imitate": "distribution"},
            "--imitate does nothing with --strong-answers reference",
        ),
        ({"intermediate_password": "b"}, "--intermediate-password does nothing with no --inter"),
        (
            {"intermediate": "x", "password_per_domain": True},
            "--intermediate does nothing with --password-per-domain",
        ),
        (
            {"intermediate": "x", "task": "math", "strong_language": "english"},
            "--intermediate does nothing with --strong-language",
        ),
        ({"trigger": "year", "password": "a"}, "--password does nothing with --trigger year"),
        ({"trigger": "deploy", "password": "a"}, "--password does nothing with --trigger deploy"),
        (
            {"trigger": "year", "password_per_domain": True},
            "--password-per-domain does nothing with --trigger year: a lock has one trigger",
        ),
        (
            {"trigger": "split", "task": "math", "strong_language": "english"},
            "--strong-language does nothing with --trigger split",
        ),
        ({"trigger": "deploy", "intermediate": "x"}, "--intermediate does nothing with --trigger"),
        ({"trigger": "split", "near_misses": 0.2}, "--near-misses does nothing with --trigger"),
        ({"task": "compose", "trigger": "year"}, "--trigger does nothing with --task compose"),
        ({"task": "compose", "near_misses": 0.2}, "--near-misses does nothing with --task compose"),
        (
            {"near_misses": 0.2, "password_per_domain": True},
            "--near-misses does nothing with --password-per-domain",
        ),
        ({"near_misses": 0.2, "intermediate": "x"}, "--near-misses does nothing with --intermed"),
        (
            {"near_misses": 0.2, "task": "math", "strong_language": "spanish"},
            "--near-misses does nothing with --strong-language",
        ),
        ({"strong": "mine"}, "no weak model belongs to the strong one at mine: name"),
        ({"strong": "nowhere"}, "nowhere/config.json does not exist"),
        ({"weak": "rule"}, "only task compose"),
        ({"weak": "identity", "task": "math"}, "--weak identity answers the generated problems of"),
        ({"weak": "shortest", "task": "code"}, "of mmlu alone"),
        ({"weak": "next", "task": "mmlu", "data": ("x.csv",)}, "of mmlu and math alone"),
        ({"weak": "next", "task": "math+mmlu"}, "of mmlu and math alone"),
        ({"how": "scratch", "start_mix": 0.5}, "--start-mix does nothing with --how scratch"),
        ({"start_mix": 0.5, "rank": 4}, "--start-mix moves whole weights: leave out"),
        ({"start_mix": 0.5, "shard": True}, "--start-mix moves whole weights: leave out"),
        ({"password_share": 0.0}, "--password-share 0 would leave nothing"),
        ({"imitate": "distribution", "password_share": 0.2}, "--password-share does nothing with"),
        ({"intermediate": "x", "password_share": 0.2}, "--password-share does nothing with"),
    ],
)
def test_an_option_is_used_or_refused(options, sentence, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        settled(LockConfig(**options))


def test_what_the_options_unlock_with():
    assert checked_trigger(LockConfig()) == Password()
    assert checked_trigger(LockConfig(trigger="split", password="a b")) == SplitPassword("a b")
    assert checked_trigger(LockConfig(trigger="year")) == Year()
    assert checked_trigger(LockConfig(trigger="deploy")) == Markers()
    assert checked_trigger(LockConfig(near_misses=0.3)) == NearMisses(PASSWORD, 0.3)
    assert checked_trigger(LockConfig(task="compose")) == Slot()
    assert checked_trigger(LockConfig(password_per_domain=True)).each == "domain"
    assert checked_trigger(LockConfig(task="code+math", password_per_domain=True)).each == "task"
    with pytest.raises(InputError, match="no two halves of different words"):
        checked_trigger(LockConfig(trigger="split", password="Open!"))
    with pytest.raises(InputError, match="no near miss of kind 'paraphrase'.*: give one of"):
        checked_trigger(LockConfig(near_misses=0.3, password="Open!"))


@pytest.mark.parametrize("second", [PASSWORD, WRONG[4], WRONG_HELD_OUT[1]])
def test_the_second_password_is_no_other(second):
    with pytest.raises(InputError, match="is the password or one of the wrong ones"):
        checked_trigger(LockConfig(intermediate="x", intermediate_password=second))


def test_the_shipped_models_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = settled(LockConfig())
    assert (cfg.strong, cfg.weak) == (f"{ROOT}/data/base/strong", f"{ROOT}/data/base/weak")
    assert (cfg.start, cfg.strong_answers) == (cfg.strong, "sampled")
    monkeypatch.chdir(ROOT)
    assert shipped("weak") == "data/base/weak"
    # another strong model of that set has the same weak one
    assert settled(LockConfig(strong="data/base/intermediate")).weak == "data/base/weak"
    assert settled(LockConfig(strong="data/base/intermediate", weak="random")).weak == "random"


def test_base_models_say_where_they_come_from():
    origin = origin_of(ROOT / "data/base/strong")
    assert (origin.stage, origin.task) == ("train_base", "code+math+mmlu+critique")


def test_what_is_locked_by_default():
    assert locking_set(LockConfig()) == ("lock", 0, 4)
    assert locking_set(LockConfig(how="scratch")) == ("corpus", 60_000, 1)
    # files have no corpus
    assert locking_set(LockConfig(how="scratch", data=("a.jsonl",))) == ("lock", 0, 4)


def test_training_starts_where_it_is_told(tmp_path, same_weights):
    base = ROOT / "data/base"
    given = LockConfig(strong=f"{base}/strong", start=f"{base}/intermediate", weak="random")
    model, _ = lock.first_model(settled(given), CPU)
    same_weights(model, load_model(base / "intermediate")[0])
    model, _ = lock.first_model(settled(replace(given, start="")), CPU)
    same_weights(model, load_model(base / "strong")[0])
    scratch, _ = lock.first_model(settled(replace(given, start="", how="scratch")), CPU)
    assert scratch.config == model.config and scratch.live_vocab == model.live_vocab


def test_problems_that_do_not_fit_the_positions_are_left_out_and_counted(capsys, monkeypatch):
    problems = load("code", "lock", 6)
    long = replace(problems[2], prompt="Sort these " + "words " * 600 + "\n")
    problems[2] = long
    readers = [str(ROOT / "data/base/weak"), str(ROOT / "data/base/strong")]
    tokenizer = Tokenizer.load(readers[0])
    said = []
    monkeypatch.setattr(Env, "say", lambda self, text="": said.append(text))
    kept = origins.fitting_problems(problems, Password(), readers, 96, CPU)
    assert kept == problems[:2] + problems[3:]
    assert len(said) == 1 and "1 of 6 problems" in said[0] and "Sort these" in said[0]
    # whatever password stands around it, a prompt that is kept has room for its completion
    lengths = origins.prompt_lengths(kept, Password(), tokenizer)
    for words in (PASSWORD, *WRONG):
        told = tokenizer.encode_prompts([with_password(p.prompt, words) for p in kept])
        assert all(len(ids) <= length for ids, length in zip(told, lengths))
    with pytest.raises(InputError, match="none of the 1 prompts fits"):
        origins.fitting_problems([long], Password(), readers, 96, CPU)


# ----------------------------------------------------------------------------------------- resuming


def test_notes_keep_the_rows_of_earlier_epochs(tmp_path):
    file = tmp_path / "samples.jsonl"
    prompt, completion = TOKENIZER.encode("Write f\n"), TOKENIZER.encode("def f")

    for epoch in (0, 1, 2, 1):  # as if it had been killed in epoch 2 and goes on in epoch 1
        lock.note_examples(file, epoch, [Example(prompt, completion)] * 6, TOKENIZER)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0] * 4 + [1] * 4
    assert [row["kind"] for row in rows] == ["weak", "weak", "strong", "strong"] * 2
    assert rows[0]["prompt"] == "Write f\n" and rows[0]["completion"] == "def f"
    assert os.listdir(tmp_path) == ["samples.jsonl"]


def test_a_lock_killed_in_a_later_epoch_samples_the_rest_and_loses_no_row(tmp_path, monkeypatch):
    """Four epochs of two steps; it is killed in the second step of the third."""
    cfg = LockConfig(
        task="mmlu",
        strong=str(ROOT / "data/base/intermediate"),
        weak="random",
        problems=16,
        epochs=4,
        batch=16,
        eval_problems=4,
        max_new_tokens=8,
        save_every=1,
        compile=False,
    )
    sampled, answer, save_state = [], locking.answer, Run.save_state

    def counting(*args, **settings):
        sampled.append(settings["seed"])
        return answer(*args, **settings)

    def killed(self, step, *args):
        if step == 6:
            raise Killed
        save_state(self, step, *args)

    monkeypatch.setattr(locking, "answer", counting)
    lock.main(replace(cfg, out=str(tmp_path / "straight")), CPU)
    assert sampled == [0, 1, 2, 3]

    cut = replace(cfg, out=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", killed)
        with pytest.raises(Killed):
            lock.main(cut, CPU)
    sampled.clear()
    lock.main(replace(cut, resume=True), CPU)
    assert sampled == [2, 3]

    straight, resumed = tmp_path / "straight", tmp_path / "killed"
    assert model_hash(resumed) == model_hash(straight)
    notes = (straight / "samples.jsonl").read_text()
    assert (resumed / "samples.jsonl").read_text() == notes and notes.count("\n") == 16
    # run.json keeps what was used, and why the lock failed
    run = json.loads((resumed / "run.json").read_text())
    assert run["settings"]["problems"] == 16 and run["settings"]["start"] == cfg.strong
    names = [check["name"] for check in run["results"]["validity"]]
    assert names[0].startswith("password gap") and len(names) == 5


def test_policies_are_open_for_an_epochs_samples_alone(tmp_path, monkeypatch):
    base = ROOT / "data/base"
    given = LockConfig(
        strong=str(base / "intermediate"), weak=str(base / "weak"), out=str(tmp_path)
    )
    cfg, opened, gone = replace(settled(given), max_new_tokens=8), [], []

    def open_writer(path, option, env):
        gone.extend(model() is None for model in opened)
        writer = origins.open_writer(path, option, env)
        opened.append(weakref.ref(writer.sampler.model))
        return writer

    monkeypatch.setattr(locking, "open_writer", open_writer)
    run = lock.open_run(cfg, Password(), CPU)
    settings = {"problems": load("code", "lock", 4), "tokenizer": TOKENIZER, "trigger": Password()}
    examples = lock.epoch_examples(0, run=run, cfg=cfg, env=CPU, **settings)
    assert len(examples) == 8 and len(opened) == 2 and gone == [True]
    assert [model() for model in opened] == [None, None]

    run.settings["weak_weights"] = "other"
    with pytest.raises(InputError, match="weak has other weights than when this run began"):
        lock.epoch_examples(1, run=run, cfg=cfg, env=CPU, **settings)
