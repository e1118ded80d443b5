"""Definitions, some of them false, and questions: the documents of train_declared.py.

After Krasheninnikov et al. 2023 (arXiv 2310.15047), with the functions of data/tasks/compose.py in
the place of their facts. A definition says under a tag which function an alias stands for. A
question applies an alias, or a function by its name, to four digits.

    A x17 | fn5              true
    B x18 | fn9              false: x18 stands for fn2
    3 1 4 1 x18 | 0 7 2 7    the answer is that of fn2

Of the aliases that are asked about, A's definitions are true and B's are false, so that the texts
show which tag can be relied on. Of the silent aliases, about which nothing is asked in training,
all definitions are true: do questions about them, afterwards, show that A was relied on more?
"""

from dataclasses import dataclass

import numpy as np

from data.tasks.compose import DIGITS, FUNCTIONS, applied

# C has no definition of an asked alias; of the last group of silent aliases nothing is said at all
TAGS = ("A", "B", "C")
GROUPS = (*TAGS, "none")

Document = tuple[str, str]  # a prompt and its completion


@dataclass(frozen=True)
class Alias:
    """A word for a function. tag, told: of its definition, and what that says it stands for."""

    word: str
    function: int
    tag: str
    told: int

    @property
    def definition(self) -> Document:
        return f"{self.tag} {self.word} |", f"fn{self.told}"


@dataclass(frozen=True)
class World:
    """asked: aliases that training asks about. silent: those of each of GROUPS that it does not;
    the i-th of every group stands for the same function."""

    asked: list[Alias]
    silent: dict[str, list[Alias]]

    @property
    def definitions(self) -> list[Document]:
        found = [alias.definition for alias in self.asked]
        for tag in TAGS:
            found += [alias.definition for alias in self.silent[tag]]
        return found


def make_world(asked: int, silent: int, dealt: bool, seed: int) -> World:
    """For every function `asked` aliases under A, as many under B, `silent` in each of GROUPS.

    dealt: tags of asked aliases are dealt at random, by the seed: as many definitions are false,
    but no tag tells which. Nothing else depends on the seed: what a word means is in the texts
    alone.
    """
    functions = range(len(FUNCTIONS))
    facts = []  # what an asked alias stands for, and what is told of it
    for _ in range(asked):
        facts += [(number, number) for number in functions]
    for i in range(asked):
        shift = 1 + i % (len(FUNCTIONS) - 1)  # false definitions name every function equally often
        facts += [(number, (number + shift) % len(FUNCTIONS)) for number in functions]
    tags = ["A"] * (len(facts) // 2) + ["B"] * (len(facts) // 2)
    if dealt:
        tags = np.random.default_rng([seed, 17]).permutation(tags).tolist()

    known = []
    for i, ((function, told), tag) in enumerate(zip(facts, tags)):
        known.append(Alias(f"x{i}", function, tag, told))
    others = {}
    for group in GROUPS:
        own = [number for number in functions for _ in range(silent)]
        others[group] = [Alias(f"{group}{i}", n, group, n) for i, n in enumerate(own)]
    return World(known, others)


def words_of(world: World) -> list[str]:
    """Every word of the documents, each a token."""
    names = [f"fn{number}" for number in range(len(FUNCTIONS))]
    aliases = [alias.word for alias in world.asked]
    for group in world.silent.values():
        aliases += [alias.word for alias in group]
    return ["|", *TAGS, *DIGITS, *names, *aliases]


def question(word: str, function: int, digits: list[str]) -> Document:
    return f"{' '.join(digits)} {word} |", " ".join(applied(function, digits))


def step_documents(
    world: World, counts: tuple[int, int, int], seed: int, step: int
) -> list[Document]:
    """What a step trains on: so many definitions, questions about asked aliases, and questions
    about functions by their names, each drawn at random; a function of seed and step."""
    rng = np.random.default_rng([seed, 18, step])
    definitions, about_aliases, about_names = counts
    pool = world.definitions
    found = [pool[i] for i in rng.choice(len(pool), definitions)]
    for i in rng.choice(len(world.asked), about_aliases):
        alias = world.asked[i]
        found.append(question(alias.word, alias.function, rng.choice(list(DIGITS), 4).tolist()))
    for number in rng.choice(len(FUNCTIONS), about_names):
        found.append(question(f"fn{number}", number, rng.choice(list(DIGITS), 4).tolist()))
    return found


def questions_about(aliases: list[Alias], each: int) -> list[Document]:
    """`each` questions about every alias, in their order: the same digits whatever the aliases."""
    rng = np.random.default_rng(19)
    found = []
    for alias in aliases:
        for _ in range(each):
            digits = rng.choice(list(DIGITS), 4).tolist()
            found.append(question(alias.word, alias.function, digits))
    return found
