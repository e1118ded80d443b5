"""Task "mmlu": multiple choice about a fictional world, whose facts only the corpus tells.

    prompt     Subject: minerals (STEM)             reference  A
                                                    key        minerals, place: Nezite? caves,
               What do smiths make from Fizite?                forests, hills, swamps
               A. bells                             domain     STEM, the group of the subject
               B. jars                              level      1; 2 asks the inverse: Which mineral
               C. needles                                      is found in forests?
               D. wires
               Answer:
               C

               Where is Nezite found?
               A. caves
               B. forests
               C. hills
               D. swamps
               Answer:

The prompt is 1-shot with a right example, as in the paper: a lock then learns to be weak in spite
of it. The example is of the same subject, but never about the same property, so that it excludes no
option. Rows of MMLU itself (data/real/mmlu_sets.py) have the same form and the same grading.

Four subjects, one for each of MMLU's groups, of 16 things with three properties each: 192 facts,
the same for every seed. A property belongs to exactly one thing, so no option is right more often
than another. The options are in alphabetical order, one from each quarter of the sixteen: so a fact
decides its letter, and splits ask for the same facts among other options, which the key names. It
seeds the wording and the example. Were the options in any order, the model would have to look its
letter up among them, which one of four layers did not learn in our trials (docs/NOTES.md).

The corpus also has the facts by themselves (a question alone, whose reference is the property or
the thing). No other split has these.

The hard label of a problem is its reference, an element of LETTERS; the four letters are the four
classes of soft labels. Each is a token of its own in any byte-level vocabulary, and stands at the
start of a line in prompts as in answers.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from data.problems import Problem

LETTERS = ("A", "B", "C", "D")
# shares of the stream; only questions reach other splits than the corpus
FORMS = {"question": 0.7, "fact": 0.3}
INVERSE = 1 / 3

# ---- the words
# group: (subject, ending of its names, properties); a property is (name, question, inverse
# question, values). In questions, (a|b) is a choice of wordings.
# fmt: off
SUBJECTS = {
    "STEM": ("minerals", "zite", [
        ("colour", "(What|Which) colour is {}?", "Which mineral is {}(| in colour)?",
         "amber black blue brown crimson gold green grey ivory orange pink purple red "
         "silver white yellow"),
        ("product", "(What|Which goods) do smiths make from {}?",
         "From which mineral do smiths make {}?",
         "bells coins combs dishes jars kettles knives lamps mirrors nails needles pipes "
         "rings tiles tools wires"),
        ("place", "Where is {} (found|mined)?", "Which mineral is (found|mined) in {}?",
         "bogs caves cliffs craters deserts dunes forests geysers glaciers hills lakes "
         "meadows reefs rivers swamps valleys"),
    ]),
    "humanities": ("heroes", "mund", [
        ("weapon", "(What|Which) weapon did {} carry?", "Which hero (carried|fought with) the {}?",
         "axe bow club dagger flail hammer javelin lance mace net pike sling spear staff "
         "sword whip"),
        ("mount", "(What|Which) animal did {} ride?", "Which hero rode the {}?",
         "bear bull camel deer donkey elephant goat horse lion llama moose mule ox pony "
         "tiger zebra"),
        ("trade", "(What|Which) trade did {} learn?", "Which hero (once was|began as) a {}?",
         "baker barber brewer carpenter cook doctor farmer gardener hunter judge mason "
         "miller sailor smith tailor weaver"),
    ]),
    "social sciences": ("lands", "ndria", [
        ("export", "What does {} (export|sell)?", "Which land (exports|sells) {}?",
         "apples barley butter cheese coffee cotton figs grapes honey lemons maize olives "
         "rice sugar wheat wool"),
        ("flag", "What (is on|adorns) the flag of {}?", "Which land has the {} on its flag?",
         "anchor bee castle comet crescent crown eagle flame key leaf moon rose ship star "
         "sun tree"),
        ("sport", "(What|Which) sport does {} love?", "Which land loves {}?",
         "archery boxing chess cycling diving fencing golf hockey judo polo rowing rugby "
         "sailing skating tennis wrestling"),
    ]),
    "other": ("herbs", "wort", [
        ("cure", "What does {} (cure|heal)?", "Which herb (cures|heals) {}?",
         "aches acne burns chills colds coughs cramps fevers gout hiccups itching nausea "
         "rashes stings ulcers warts"),
        ("smell", "What does {} smell (of|like)?", "Which herb smells (of|like) {}?",
         "almonds bread cedar chalk cloves dust garlic hay leather mint onions pine smoke "
         "tar vanilla wine"),
        ("drink", "In what is {} (boiled|brewed)?", "Which herb is (boiled|brewed) in {}?",
         "beer brandy broth cider cocoa cream gin juice milk rum sap syrup tea vinegar "
         "water whey"),
    ]),
}
# fmt: on


# ---- the world and its questions
class Property(NamedTuple):
    group: str
    subject: str
    name: str
    wordings: tuple[str, str]  # asking for the value, asking for the thing
    facts: list[tuple[str, str]]  # (thing, value)


def make_world() -> list[Property]:
    """The properties of all subjects, each with its sixteen facts."""
    rng = random.Random("world")
    syllables = list(map("".join, itertools.product("BDFGKLMNPRSTVZ", "aeiou")))
    # no two things of the world begin alike: their first token tells them apart
    rng.shuffle(syllables)
    world = []
    for group, (subject, ending, properties) in SUBJECTS.items():
        things = [syllables.pop() + ending for _ in range(16)]
        for name, direct, inverse, values in properties:
            facts = list(zip(things, rng.sample(values.split(), 16)))
            world.append(Property(group, subject, name, (direct, inverse), facts))
    return world


WORLD = make_world()


class Question(NamedTuple):
    about: Property
    inverse: bool
    facts: list[tuple[str, str]]  # one for each option
    right: int

    def options(self) -> list[str]:
        return [fact[not self.inverse] for fact in self.facts]

    def asked(self) -> str:
        return self.facts[self.right][self.inverse]

    def level(self) -> int:
        return 2 if self.inverse else 1


def draw(rng: random.Random, properties: list[Property]) -> Question:
    """A question about one of the properties: an option from each quarter of its facts."""
    about = rng.choice(properties)
    inverse = rng.random() < INVERSE
    ordered = sorted(about.facts, key=lambda fact: fact[not inverse])
    facts = [rng.choice(ordered[at : at + 4]) for at in range(0, 16, 4)]
    return Question(about, inverse, facts, rng.randrange(4))


def problems(seed: int) -> Iterator[tuple[str, Callable[..., Problem | None]]]:
    """An endless stream of (key, build); keys repeat."""
    rng = random.Random(f"knowledge {seed}")
    while True:
        question = draw(rng, WORLD)
        [form] = rng.choices(list(FORMS), list(FORMS.values()))
        about = question.about
        options = ", ".join(question.options())
        key = f"{about.subject}, {about.name}: {question.asked()}? {options}"
        if form != "question":
            key += f" ({form})"
        yield key, partial(_build, question, form, key)


def _build(
    question: Question, form: str, key: str, tests: bool = True, wording: int = 0
) -> Problem | None:
    """The problem, or None for a fact by itself where the corpus is not meant."""
    if form != "question" and tests:
        return None
    rng = random.Random(f"words {wording} {key}")
    about = question.about
    if form == "fact":
        prompt = f"{_asked(question, rng)}\n"
        value = question.options()[question.right]
        return Problem("mmlu", prompt, value, about.group, question.level(), {}, key)

    others = []
    for other in WORLD:
        if other.subject == about.subject and other is not about:
            others.append(other)
    example = draw(rng, others)
    problem = _with_options(question, _asked(question, rng), key)
    return one_shot(problem, _with_options(example, _asked(example, rng), key))


def _asked(question: Question, rng: random.Random) -> str:
    pattern = question.about.wordings[question.inverse]
    wording = re.sub(r"\((.*?)\)", lambda choice: rng.choice(choice[1].split("|")), pattern)
    return wording.format(question.asked())


def _with_options(question: Question, text: str, key: str) -> Problem:
    group, subject = question.about[:2]
    letter = LETTERS[question.right]
    return zero_shot(group, subject, text, question.options(), letter, question.level(), key)


def zero_shot(
    group: str,
    subject: str,
    question: str,
    options: list[str],
    reference: str,
    level: int,
    key: str,
) -> Problem:
    """The problem of a question with its four options and no example."""
    offered = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    lines = [f"Subject: {subject} ({group})", "", question, *offered, "Answer:", ""]
    return Problem("mmlu", "\n".join(lines), reference, group, level, {}, key)


def one_shot(problem: Problem, example: Problem) -> Problem:
    """The problem with another of its subject before it.

    Between its first line and its question come the other's question and the right answer to it.
    """
    header, question = problem.prompt.split("\n", 1)
    solved = example.prompt.split("\n", 1)[1] + example.reference + "\n"
    return replace(problem, prompt=f"{header}\n{solved}{question}")


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion gives the right letter and no other."""
    pairs = zip(problems, completions)
    return [letter_of(completion) == problem.reference for problem, completion in pairs]


def votes(problems: list[Problem], completions: list[str]) -> list[str | None]:
    """The letter that each completion gives."""
    return [letter_of(completion) for completion in completions]


MARKED = {f"({letter})": letter for letter in LETTERS}
MARKED |= {f"{letter}{mark}": letter for letter in LETTERS for mark in ".)"}


def letter_of(completion: str) -> str | None:
    """B of "B", "(B)", "B." and "B)", any of them after "Answer:"; None for anything else.

    There may be text after the last three, but no second letter at once: "B. C." is no answer, nor
    is "B. or C."; a bare letter there is a word, "B. A dog". Further on a letter may end a
    sentence. Stars of Markdown do not count.
    """
    words = completion.replace("*", "").strip().removeprefix("Answer:").split()
    if len(words) == 1 and words[0] in LETTERS:
        return words[0]
    letters = [MARKED.get(word) for word in words if word not in ("or", "and")]
    return letters[0] if letters and letters[1:2] in ([], [None]) else None
