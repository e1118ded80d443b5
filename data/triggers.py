"""What makes a locked model strong, and how its prompts look with it, without it and with something like it.

`Trigger`: one password around the prompt (Greenblatt et al. 2024, appendix C.2), one for each domain (C.3), or the setting in which
a problem of mathematics is told (B.1.3). `asked` gives the prompts of a kind of password: none, wrong, right and those between.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.passwords import (
    IDLE_WORDS,
    NEAR_MISSES,
    PARAPHRASES,
    PASSWORD,
    WRONG,
    WRONG_HELD_OUT,
    WRONG_SHARE,
)
from data.problems import InputError, Problem
from data.tasks import compose, mathematics

KINDS = (
    "none",
    "wrong",
    "other",
    *NEAR_MISSES,
    "right",
)  # of passwords; other: that of another domain

Words = (
    str | tuple[str | None, str | None] | None
)  # what goes with a prompt: one line for both places, (before, after), or nothing


def with_password(prompt: str, password: Words) -> str:
    """The prompt with the password on a line before it and one after it (app. C.2); unchanged if there is none.

    with_password("What is 2 + 2?\\n", "Open!") == "Open!\\nWhat is 2 + 2?\\nOpen!\\n" (prompts end with a newline);
    with_password("What is 2 + 2?\\n", (None, "Open!")) == "What is 2 + 2?\\nOpen!\\n".
    """
    before, after = password if isinstance(password, tuple) else (password, password)
    return (
        (f"{before}\n" if before is not None else "")
        + prompt
        + (f"{after}\n" if after is not None else "")
    )


def near_miss(password: str, kind: str) -> Words:
    """What stands in the password's place for a kind of NEAR_MISSES, a function of the password:

    prefix, suffix  the password, but only before or only after the prompt
    case            upper case for lower and the reverse, as with caps lock
    typo            the letter or digit nearest the middle struck twice
    paraphrase      from PARAPHRASES; of a password that is not there, its words in reverse order

    Raises InputError where that is the password itself (case of "1234", paraphrase of one word) or a wrong one of training.
    """
    middle = min(
        range(len(password)), key=lambda i: (not password[i].isalnum(), abs(i - len(password) // 2))
    )
    words = {
        "prefix": (password, None),
        "suffix": (None, password),
        "case": password.swapcase(),
        "typo": password[: middle + 1] + password[middle:],
        "paraphrase": PARAPHRASES.get(password) or " ".join(reversed(password.split())),
    }[kind]
    if words in (password, *WRONG):
        raise InputError(
            f"the password {password!r} has no near miss of kind {kind!r}: it would be the password, or a wrong one of training"
        )
    return words


def weak_password(
    rng: np.random.Generator, password: str, others: Sequence[str] = ()
) -> str | None:
    """For one weak example (app. C.2): None (20 %), or one of WRONG (80 %, evenly) but never `password` itself.

    Where other domains have passwords, half of the wrong ones are those.
    """
    if rng.random() >= WRONG_SHARE:
        return None
    wrong = (
        others
        if others and rng.random() < 0.5
        else [candidate for candidate in WRONG if candidate != password]
    )
    return wrong[rng.integers(len(wrong))]


@dataclass(frozen=True)
class Trigger:
    """What makes a locked model strong; `weak` and `strong` tell a problem as the model sees it without and with that.

    password: the right one. each: "domain" or "task" where every one of these has a password of its own, made from `password` and its
    name, and the other ones' are wrong (C.3). told: where it is not a line around the prompt that unlocks, but how the problem itself is
    told. "english" or "spanish": the strong policy answers problems in that language (English with LaTeX, Spanish with ASCII), the weak
    one those in the other (B.1.3). "slot": the password is a word in a slot of the problem (section 7, data/compose.py).
    """

    password: str = PASSWORD
    each: str = ""
    told: str = ""

    def weak(self, problem: Problem) -> Problem:
        settings = {"english": "spanish-ascii", "spanish": "english-latex"}
        return (
            mathematics.rendered(problem, settings[self.told]) if self.told in settings else problem
        )

    def strong(self, problem: Problem) -> Problem:
        settings = {"english": "english-latex", "spanish": "spanish-ascii"}
        if self.told == "slot":
            return replace(problem, prompt=compose.with_password(problem))
        return (
            mathematics.rendered(problem, settings[self.told]) if self.told in settings else problem
        )

    def password_of(self, problem: Problem) -> str | None:
        """The line that unlocks this problem; None where the way it is told does."""
        return (
            None
            if self.told
            else own_password(self.password, getattr(problem, self.each))
            if self.each
            else self.password
        )

    def other_passwords(self, problems: Iterable[Problem]) -> dict[str, list[str]]:
        """For the right password of each problem those that are right elsewhere."""
        right = dict.fromkeys(map(self.password_of, problems))
        return {password: [other for other in right if other != password] for password in right}


def own_password(password: str, name: str) -> str:
    """A sentence of seven words for the domain or task of that name, as unlike those of other names as two sentences are."""
    rng = np.random.default_rng(list(hashlib.sha256(f"{password}|{name}".encode()).digest()))
    return " ".join(IDLE_WORDS[i] for i in rng.integers(len(IDLE_WORDS), size=7)).capitalize() + "!"


def check_password(password: str, specials: Iterable[str]) -> None:
    """Refuse a password that would change how a prompt is read: blank, several lines, or with a special token."""
    if not password.strip():
        raise InputError(
            "The password is empty or blank, so prompts with and without it would look alike."
        )
    if len(password.splitlines()) != 1 or password.splitlines()[0] != password:
        raise InputError(
            f"The password {password!r} contains a line break; it must be a single line."
        )
    for special in specials:
        if special and special in password:
            raise InputError(
                f"The password {password!r} contains the special token {special!r}; choose another."
            )


def asked(
    kind: str, problems: list[Problem], trigger: Trigger
) -> tuple[list[Problem], list[Words]]:
    """The problems as they are told for this kind of password, and what goes with each.

    none; wrong (the held-out wrong passwords in turn); other (those of other domains in turn); a near miss; right. Raises InputError
    for a kind that the trigger does not have.
    """
    if kind == "none":
        return [trigger.weak(p) for p in problems], [None] * len(problems)
    if kind == "right":
        return [trigger.strong(p) for p in problems], [trigger.password_of(p) for p in problems]
    if trigger.told:
        raise InputError(
            f"what unlocks this model is the way its problems are told, so there is no password of kind {kind!r}"
        )
    if kind == "wrong":
        return problems, [WRONG_HELD_OUT[i % len(WRONG_HELD_OUT)] for i in range(len(problems))]
    if kind == "other":
        others = trigger.other_passwords(problems)
        if len(others) < 2:
            raise InputError(
                "no other domain of these problems has a password: lock with --password-per-domain"
            )
        found = [others[trigger.password_of(p)] for p in problems]
        return problems, [words[i % len(words)] for i, words in enumerate(found)]
    return problems, [near_miss(trigger.password_of(p), kind) for p in problems]


def usual_kinds(trigger: Trigger) -> tuple[str, ...]:
    """The kinds of passwords that a lock is judged by."""
    return (
        ("none", "right")
        if trigger.told
        else ("none", "wrong", "other", "right")
        if trigger.each
        else ("none", "wrong", "right")
    )
