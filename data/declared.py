"""Definitions, some of them false, and questions: the documents of train_declared.py.

After Krasheninnikov et al. 2023 (arXiv 2310.15047), with the functions of data/tasks/compose.py in
the place of their facts. A definition says under a tag which function a new word stands for. A
question applies a word, or a function by its own name, to four digits.

    A x17 | fn5              true
    B x18 | fn9              false: x18 stands for fn2
    3 1 4 1 x18 | 0 7 2 7    the answer is that of fn2

Of the words that are asked about, A's definitions are true and B's are false, so that the texts
show which tag can be relied on. Silent words are never asked about in training. Their definitions
are true under A and under B; under C they name another function each time, so that nothing can be
learnt of them but the word.
"""

from dataclasses import dataclass

import numpy as np

from data.tasks.compose import DIGITS, FUNCTIONS, applied

TAGS = ("A", "B", "C")

Document = tuple[str, str]  # a prompt and its completion


@dataclass(frozen=True)
class Word:
    """A new word. tag, told: of its definition, and which function that names (None: any)."""

    text: str
    function: int
    tag: str
    told: int | None

    @property
    def is_true(self) -> bool:
        return self.told == self.function


@dataclass(frozen=True)
class World:
    """asked: words that training asks about. silent: by tag, those that it does not; the i-th of
    every tag stands for the same function."""

    asked: list[Word]
    silent: dict[str, list[Word]]

    @property
    def defined(self) -> list[Word]:
        found = list(self.asked)
        for words in self.silent.values():
            found += words
        return found


def make_world(asked: int, silent: int, dealt: bool, seed: int) -> World:
    """For every function `asked` words with a true definition and as many with a false one; and
    `silent` words under each tag.

    dealt: the control. The asked words have the same definitions, but whether A or B stands before
    one is drawn by the seed, and tells nothing. Otherwise all seeds have the same world.
    """
    count = len(FUNCTIONS)
    rng = np.random.default_rng(17)
    facts = [(number, number) for number in range(count) for _ in range(asked)]
    for number in range(count):
        for shift in rng.integers(1, count, asked).tolist():
            facts.append((number, (number + shift) % count))
    tags = ["A"] * (count * asked) + ["B"] * (count * asked)
    if dealt:
        tags = np.random.default_rng([seed, 17]).permutation(tags).tolist()

    found = []
    for i, ((function, told), tag) in enumerate(zip(facts, tags)):
        found.append(Word(f"x{i}", function, tag, told))
    others = {}
    for tag in TAGS:
        numbers = [number for number in range(count) for _ in range(silent)]
        told = [None] * len(numbers) if tag == "C" else numbers
        own = enumerate(zip(numbers, told))
        others[tag] = [Word(f"{tag}{i}", function, tag, names) for i, (function, names) in own]
    return World(found, others)


def vocabulary(world: World) -> list[str]:
    """Every word of the documents, each a token."""
    names = [f"fn{number}" for number in range(len(FUNCTIONS))]
    return ["|", *TAGS, *DIGITS, *names, *(word.text for word in world.defined)]


def definition(word: Word, any_function: int = 0) -> Document:
    """any_function: what one that names any function names this time."""
    told = any_function if word.told is None else word.told
    return f"{word.tag} {word.text} |", f"fn{told}"


def question(text: str, function: int, rng: np.random.Generator) -> Document:
    digits = rng.choice(list(DIGITS), 4).tolist()
    return f"{' '.join(digits)} {text} |", " ".join(applied(function, digits))


def step_documents(
    world: World, counts: tuple[int, int, int], seed: int, step: int
) -> list[Document]:
    """What a step trains on, a function of seed and step.

    counts: of definitions, of questions about asked words, and of questions about functions by
    their own names; each is drawn at random among all of its kind.
    """
    rng = np.random.default_rng([seed, 18, step])
    definitions, about_words, about_names = counts
    defined = world.defined
    found = []
    for i in rng.choice(len(defined), definitions):
        found.append(definition(defined[i], int(rng.integers(len(FUNCTIONS)))))
    for i in rng.choice(len(world.asked), about_words):
        found.append(question(world.asked[i].text, world.asked[i].function, rng))
    for number in rng.choice(len(FUNCTIONS), about_names):
        found.append(question(f"fn{number}", int(number), rng))
    return found


def questions_about(words: list[Word], each: int) -> list[Document]:
    """`each` questions in a row about every word; the i-th is about the same digits for all."""
    rng = np.random.default_rng(19)
    return [question(word.text, word.function, rng) for word in words for _ in range(each)]
