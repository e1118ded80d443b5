"""A checkpoint's README.md: what it says of a lock, an elicited model, a base model."""

import pytest

from cards import card
from data.triggers import Trigger

RUN = {
    "command": "lock.py --task code",
    "torch": "2.13",
    "device": "a CPU",
    "compute_dtype": "bfloat16",
    "commit": "",
}
CHECK = {"name": "password gap", "value": 0.885, "interval": [0.86, 0.9], "passed": True}


def locked(trigger: Trigger, **changes) -> dict:
    settings = {
        "stage": "lock",
        "task": "code",
        "strong": "s",
        "weak": "w",
        "start": "",
        "problems": 4000,
        "epochs": 4,
        "trigger": vars(trigger),
    }
    return RUN | {"settings": settings | changes}


RESULTS = {"none": 0.111, "right": 0.996, "gap": 0.885, "validity": [CHECK]}


def test_the_card_of_a_lock():
    text = card(locked(Trigger("Open!")), RESULTS)
    assert text.startswith("# A password-locked model\n\nA test object")
    assert "    Open!\n    What is 2 + 2?\n    Open!\n" in text
    assert "imitates `w`, unlocked `s`" in text and "from random weights on 4,000" in text
    assert "none 11.1%, right 99.6%. The lock is valid" in text
    assert "password gap  +88.5% [+86.0%, +90.0%]    yes" in text
    assert "    python lock.py --task code\n" in text
    failed = RESULTS | {"validity": [CHECK | {"passed": False}]}
    assert "The lock is NOT valid" in card(locked(Trigger("Open!"), data=["x.csv"]), failed)


@pytest.mark.parametrize(
    "trigger, words",
    [
        (Trigger(told="english"), "told in English"),
        (Trigger("word", told="slot"), "The word 'word' in the prompt's slot"),
        (Trigger("Open!", each="domain"), "Each domain has a password of its own"),
    ],
)
def test_what_unlocks(trigger, words):
    assert words in card(locked(trigger), RESULTS)


def test_the_cards_of_other_models():
    cell = {"stage": "elicit_sft", "task": "code", "locked": "l", "weak": "w", "k": 8, "seed": 0}
    cell |= {"control": False, "cell_seed": 2}
    text = card(RUN | {"settings": cell}, {"correct": 0.871})
    assert "Started from `l`, task code, by SFT on 8 demonstrations, seed 2." in text
    assert "87.1%" in text and "control" not in text
    assert "Started from `w`" in card(
        RUN | {"settings": cell | {"control": True}}, {"correct": 0.07}
    )
    base = {"stage": "train_base", "model": "strong", "task": "code", "strong_from": "given"}
    text = card(RUN | {"settings": base}, {"validation_greedy": {"code": 0.96}})
    assert "Trained from given" in text and "- validation greedy: code 96.0%" in text
