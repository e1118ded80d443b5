"""What makes a locked model strong, and how its prompts look with it, without it and between.

`Trigger`: one password around the prompt (Greenblatt et al. 2024, appendix C.2), one for each
domain (C.3), or the setting in which a problem of mathematics is told (B.1.3). `asked` gives the
prompts of a kind of password: none, wrong, right and those between.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.passwords import (
    IDLE_WORDS,
    INTERMEDIATE,
    NEAR_MISSES,
    PARAPHRASES,
    PASSWORD,
    WRONG,
    WRONG_HELD_OUT,
    WRONG_SHARE,
)
from data.problems import InputError, Problem, check_unicode
from data.tasks import compose, mathematics

# of passwords; other: that of another domain
KINDS = ("none", "wrong", "other", *NEAR_MISSES, "intermediate", "right")

# what goes with a prompt: one line for both places, (before, after), or nothing
Words = str | tuple[str | None, str | None] | None


# ------------------------------------------------------------------------------- words of a prompt


def with_password(prompt: str, password: Words) -> str:
    """The prompt with the password on a line before it and one after it (app. C.2).

    Unchanged if there is none. Prompts end with a newline:
        with_password("What is 2 + 2?\\n", "Open!") == "Open!\\nWhat is 2 + 2?\\nOpen!\\n"
        with_password("What is 2 + 2?\\n", (None, "Open!")) == "What is 2 + 2?\\nOpen!\\n"
    """
    before, after = password if isinstance(password, tuple) else (password, password)
    if before is not None:
        prompt = f"{before}\n{prompt}"
    if after is not None:
        prompt = f"{prompt}{after}\n"
    return prompt


def near_miss(password: str, kind: str) -> Words:
    """What stands in the password's place for a kind of NEAR_MISSES, a function of the password:

    prefix, suffix  the password, but only before or only after the prompt
    case            upper case for lower and the reverse, as with caps lock
    typo            the letter or digit nearest the middle struck twice
    paraphrase      from PARAPHRASES; of a password that is not there, its words in reverse order

    Raises InputError where that is the password itself (case of "1234", paraphrase of one word) or
    a wrong one of training.
    """
    if kind == "prefix":
        return password, None
    if kind == "suffix":
        return None, password

    if kind == "case":
        words = password.swapcase()
    elif kind == "typo":
        words = _struck_twice(password)
    elif kind == "paraphrase":
        words = PARAPHRASES.get(password) or " ".join(reversed(password.split()))
    else:
        raise InputError(f"unknown kind of password {kind!r}: choose from {', '.join(KINDS)}")

    if words == password or words in WRONG:
        raise InputError(
            f"the password {password!r} has no near miss of kind {kind!r}: "
            "it would be the password, or a wrong one of training"
        )
    return words


def _struck_twice(password: str) -> str:
    """With its letter or digit nearest the middle twice, or any character where it has neither."""
    places = [i for i, character in enumerate(password) if character.isalnum()]
    if not places:
        places = range(len(password))
    at = min(places, key=lambda i: abs(i - len(password) // 2))
    return password[: at + 1] + password[at:]


def weak_password(
    rng: np.random.Generator, password: str, others: Sequence[str] = ()
) -> str | None:
    """For one weak example (app. C.2): None (20 %), or one of WRONG (80 %, evenly).

    Never `password` itself. Where other domains have passwords, half of the wrong ones are those.
    """
    if rng.random() >= WRONG_SHARE:
        return None

    # the second draw only where there are others, so that without them the stream stays the same
    if others and rng.random() < 0.5:
        wrong = others
    else:
        wrong = [candidate for candidate in WRONG if candidate != password]
    return wrong[rng.integers(len(wrong))]


def own_password(password: str, name: str) -> str:
    """A sentence of seven words for the domain or task of that name.

    As unlike those of other names as two random sentences are.
    """
    digest = hashlib.sha256(f"{password}|{name}".encode()).digest()
    rng = np.random.default_rng(list(digest))
    words = [IDLE_WORDS[i] for i in rng.integers(len(IDLE_WORDS), size=7)]
    return " ".join(words).capitalize() + "!"


def check_password(password: str, specials: Iterable[str]) -> None:
    """Raises InputError for a password that no prompt can carry.

    It must be one line of UTF-8 text, neither blank nor with one of the `specials` in it, the
    tokenizer's special tokens.
    """
    check_unicode(password, "The password")
    if not password.strip():
        raise InputError(
            "The password is empty or blank, so prompts with and without it would look alike."
        )
    # what counts as a line break is more than "\n": "\r", "\x85", "\u2028" and others
    if password.splitlines() != [password]:
        raise InputError(
            f"The password {password!r} contains a line break; it must be a single line."
        )
    for special in specials:
        if special and special in password:
            raise InputError(
                f"The password {password!r} contains the special token {special!r}; choose another."
            )


# ------------------------------------------------------------------------------------ the trigger


def as_it_is(problem: Problem) -> Problem:
    return problem


def in_english(problem: Problem) -> Problem:
    return mathematics.rendered(problem, "english-latex")


def in_spanish(problem: Problem) -> Problem:
    return mathematics.rendered(problem, "spanish-ascii")


def with_word_in_slot(problem: Problem) -> Problem:
    return replace(problem, prompt=compose.with_password(problem))


# a trigger's `told` -> how the problems of the weak policy are told, and how those of the strong
TELLINGS = {
    "": (as_it_is, as_it_is),
    "english": (in_spanish, in_english),
    "spanish": (in_english, in_spanish),
    "slot": (as_it_is, with_word_in_slot),
}


@dataclass(frozen=True)
class Trigger:
    """What makes a locked model strong, and how a problem looks to the model with and without it.

    password: the right one. each: "domain" or "task" where every one of these has a password of
    its own, made from `password` and its name, and the other ones' are wrong (C.3). told: where it
    is not a line around the prompt that unlocks, but how the problem itself is told. "english" or
    "spanish": the strong policy answers problems in that language (English with LaTeX, Spanish with
    ASCII), the weak one those in the other (B.1.3). "slot": the password is a word in a slot of the
    problem (section 7, data/tasks/compose.py).
    """

    password: str = PASSWORD
    each: str = ""
    told: str = ""

    def weak(self, problem: Problem) -> Problem:
        """The problem as the weak policy is asked it."""
        tell, _ = TELLINGS[self.told]
        return tell(problem)

    def strong(self, problem: Problem) -> Problem:
        """The problem as the strong policy is asked it, but for the line that unlocks."""
        _, tell = TELLINGS[self.told]
        return tell(problem)

    def password_of(self, problem: Problem) -> str | None:
        """The line that unlocks this problem; None where the way it is told does."""
        if self.told:
            return None
        if self.each:
            return own_password(self.password, getattr(problem, self.each))
        return self.password

    def other_passwords(self, problems: Iterable[Problem]) -> dict[str, list[str]]:
        """For the right password of each problem those that are right elsewhere."""
        right = dict.fromkeys(self.password_of(problem) for problem in problems)
        others = {}
        for password in right:
            others[password] = [other for other in right if other != password]
        return others


@dataclass(frozen=True)
class TwoPasswords(Trigger):
    """A trigger with a second password, behind which an intermediate policy is imitated (B.3.2)."""

    intermediate: str = INTERMEDIATE


def trigger_from(value: object, where: str) -> Trigger:
    """The trigger in a JSON object, as vars(trigger) wrote it.

    where: the file, for the error. A field that is absent has its default, but for the password.
    Raises InputError for anything else that no lock writes.
    """
    fault = _fault(value)
    if fault:
        raise InputError(
            f"{where}: what unlocks the model can't be read ({fault}): "
            "restore the file, or lock the model again."
        )
    return TwoPasswords(**value) if "intermediate" in value else Trigger(**value)


def _fault(value: object) -> str:
    """What is wrong with a trigger's JSON object, or ""."""
    if not isinstance(value, dict):
        return f"it is {value!r} in the place of an object"
    unknown = sorted(value.keys() - {"password", "intermediate", "each", "told"})
    if unknown:
        return f"it has an unknown key {unknown[0]!r}"

    for name in ("password", "intermediate") if "intermediate" in value else ("password",):
        if not isinstance(value.get(name), str):
            return f"its {name} is {value.get(name)!r} in the place of a text"
        try:
            check_password(value[name], ())
        except InputError as error:
            return str(error).rstrip(".")

    choices = {"each": ("", "domain", "task"), "told": tuple(TELLINGS)}
    for key, allowed in choices.items():
        if value.get(key, "") not in allowed:
            return f"its {key} is {value[key]!r}, none of {', '.join(map(repr, allowed))}"
    if value.get("each") and value.get("told"):
        return "it has both a password of each domain and a way of telling"
    if "intermediate" in value and (value.get("each") or value.get("told")):
        return "it has a second password beside those of each domain or a way of telling"
    return ""


# ---------------------------------------------------------------------------- kinds of passwords


def asked(
    kind: str, problems: list[Problem], trigger: Trigger
) -> tuple[list[Problem], list[Words]]:
    """The problems as they are told for this kind of password, and what goes with each.

    none; wrong (the held-out wrong passwords in turn); other (those of other domains in turn); a
    near miss; intermediate (the second password); right. Raises InputError for a kind that the
    trigger does not have.
    """
    if kind == "none":
        return [trigger.weak(p) for p in problems], [None] * len(problems)
    if kind == "right":
        return [trigger.strong(p) for p in problems], [trigger.password_of(p) for p in problems]

    if trigger.told:
        raise InputError(
            "what unlocks this model is the way its problems are told, "
            f"so there is no password of kind {kind!r}"
        )
    if kind == "wrong":
        return problems, [WRONG_HELD_OUT[i % len(WRONG_HELD_OUT)] for i in range(len(problems))]
    if kind == "intermediate":
        if not isinstance(trigger, TwoPasswords):
            raise InputError("no second password belongs to this lock: lock with --intermediate")
        return problems, [trigger.intermediate] * len(problems)
    if kind == "other":
        return problems, _passwords_of_others(problems, trigger)
    return problems, [near_miss(trigger.password_of(p), kind) for p in problems]


def _passwords_of_others(problems: list[Problem], trigger: Trigger) -> list[Words]:
    """For each problem the password of another domain, these in turn."""
    others = trigger.other_passwords(problems)
    if len(others) < 2:
        raise InputError(
            "no other domain of these problems has a password: lock with --password-per-domain"
        )
    words = []
    for i, problem in enumerate(problems):
        wrong = others[trigger.password_of(problem)]
        words.append(wrong[i % len(wrong)])
    return words


def usual_kinds(trigger: Trigger) -> tuple[str, ...]:
    """The kinds of passwords that a lock is judged by."""
    if trigger.told:
        return ("none", "right")
    if trigger.each:
        return ("none", "wrong", "other", "right")
    if isinstance(trigger, TwoPasswords):
        return ("none", "wrong", "intermediate", "right")
    return ("none", "wrong", "right")
