"""The words of generated problems mean what is computed: an independent reading of the English."""

import itertools
import re
from collections import Counter
from fractions import Fraction

import pytest

from data.problems import Problem
from data.tasks import mathematics
from data.tasks.answers import final_answer
from data.tasks.mathematics import build

WORDS = {
    "twice": 2,
    "three times": 3,
    "four times": 4,
    "five times": 5,
    "six times": 6,
    "half": Fraction(1, 2),
    "a third": Fraction(1, 3),
    "a quarter": Fraction(1, 4),
    "a fifth": Fraction(1, 5),
    "a sixth": Fraction(1, 6),
    "diameter of a circle": 2,
    "triangle": 3,
    "square": 4,
    "pentagon": 5,
    "hexagon": 6,
}
WORD = f"({'|'.join(WORDS)})"
USELESS = r"(\w+ is \d+ years old|\w+ lives at number \d+|There are \d+ people nearby)\. ?"
EVENTS = [  # what v things become
    (r"(?:bought|found|collected|was given|made) (\d+) more", lambda v, a: v + a),
    (r"(?:gave away|sold|lost|used up|threw away) (\d+)", lambda v, a: v - a),
    (
        rf"(?:made a trade and had|worked until there were|ended a game with) {WORD} as many",
        lambda v, a: v * a,
    ),
    (rf"kept only {WORD} of them", lambda v, a: v * a),
    (r"divided them into (\d+) equal heaps and kept one heap", lambda v, a: v / a),
    (r"(?:sold|lost|gave away|used up) (1/\d) of them", lambda v, a: v - v * a),
    (r"(?:won|found|made) (1/\d) as many again", lambda v, a: v + v * a),
    (r"(?:bought|found|was given) (\d) (?:bags|boxes|packs) of (\d)", lambda v, a, b: v + a * b),
    (r"sold (\d) bags of (\d)|gave (\d) to each of (\d) friends", lambda v, a, b: v - a * b),
    (
        r"bought (\d+) more but lost (\d)|received (\d+) more and gave (\d) back",
        lambda v, a, b: v + a - b,
    ),
    (r"gave (\d+) to [A-Z]\w+ and then (?:sold|lost) half of the rest", lambda v, a: (v - a) / 2),
]
QUESTIONS = [  # what is asked of v things
    (r"How many \w+ did \w+ have (?:in|at) the end\?", lambda v: v),
    (r"How many more \w+ does \w+ need to have (\d+)\?", lambda v, a: a - v),
    (
        r"(?:\w+ has (\d+) more than \w+ now has|\w+ now has (\d+) fewer than \w+)\. How many \w+ "
        r"does \w+ have\?",
        lambda v, a: v + a,
    ),
    (
        r"(?:\w+ has (\d+) fewer than \w+ now has|\w+ now has (\d+) more than \w+)\. How many \w+ "
        r"does \w+ have\?",
        lambda v, a: v - a,
    ),
    (
        r"Each one (?:costs|is sold for) (\d) coins\. How many coins is that .*\?",
        lambda v, a: v * a,
    ),
    (
        r"They are packed in boxes of (\d)\. How many boxes is that\?|(\d) friends share them "
        r"equally\. How many does each get\?",
        lambda v, a: v / a,
    ),
    (
        rf"\w+ has {WORD} as many as \w+ now\. How many \w+ do they have together\?",
        lambda v, a: v + v * a,
    ),
    (
        r"\w+ has (\d+) more than \w+ now has\. How many \w+ do they have together\?",
        lambda v, a: v + v + a,
    ),
]
LENGTHS = [  # what is true of lengths
    (r"([A-F]) is (\d+) cm long", lambda x, a: x == a),
    (r"([A-F]) and ([A-F]) together are (\d+) cm long", lambda x, y, a: x + y == a),
    (r"([A-F]) is (\d+) cm longer than ([A-F])", lambda x, a, y: x == y + a),
    (r"([A-F]) is (\d+) cm shorter than ([A-F])", lambda x, a, y: x == y - a),
    (r"Gluing (\d+) cm to ([A-F]) gives ([A-F])", lambda a, x, y: y == x + a),
    (r"Cutting (\d+) cm off ([A-F]) leaves ([A-F])", lambda a, x, y: y == x - a),
    (rf"([A-F]) is {WORD} as long as ([A-F])", lambda x, a, y: x == y * a),
    (
        rf"([A-F]) is as long as the (?:perimeter of an? (?:regular |equilateral )?)?{WORD} with "
        rf"(?:sides|a radius) like ([A-F])",
        lambda x, a, y: x == y * a,
    ),
    (
        r"([A-F]) is as long as the perimeter of a rectangle with sides (\d+) cm and ([A-F])",
        lambda x, a, y: x == 2 * (a + y),
    ),
    (
        r"A rectangle with sides (\d+) cm and ([A-F]) has a perimeter as long as ([A-F])",
        lambda a, y, x: x == 2 * (a + y),
    ),
    (r"([A-F]) is as long as (\d+) cm and two pieces like ([A-F])", lambda x, a, y: x == a + 2 * y),
    (r"Two pieces like ([A-F]) and one of (\d+) cm make ([A-F])", lambda y, a, x: x == a + 2 * y),
]
MEASURES = [  # what is asked of lengths
    (r"How many cm long is ([A-F])", lambda x: x),
    (
        r"What is the area, in square cm, of a rectangle with sides (\d+) cm and ([A-F])",
        lambda a, x: a * x,
    ),
    (r"What is the area, in square cm, of a square with sides like ([A-F])", lambda x: x * x),
    (
        r"What is the area, in square cm, of a right triangle with legs (\d+) cm and ([A-F])",
        lambda a, x: a * x / 2,
    ),
]
PHRASES = [  # what a phrase makes of the number v after it
    (r"the (?:sum of (\d+) and|result of adding (\d+) to|number (\d+) above) ", lambda v, a: v + a),
    (
        r"the (?:result of taking (\d+) from|number (\d+) below) |what is left after removing "
        r"(\d+) from ",
        lambda v, a: v - a,
    ),
    (r"what (?:is left of (\d+) after removing|(\d+) becomes after losing) ", lambda v, a: a - v),
    (r"the product of (\d+) and ", lambda v, a: v * a),
    (r"the number of times (\d+) goes into ", lambda v, a: v / a),
    (rf"{WORD} (?:of )?", lambda v, a: v * a),
    (r"the square of |the area of a square of side ", lambda v: v * v),
    (r"the (?:digit sum|sum of the digits) of ", lambda v: v // 10 + v % 10),
    (r"the (?:digit product|product of the digits) of ", lambda v: v // 10 * (v % 10)),
    (r"the (?:average of|number halfway between) (\d+) and ", lambda v, a: (v + a) / 2),
    (r"the sum of two consecutive numbers of which the smaller is ", lambda v: 2 * v + 1),
    (r"the sum of two consecutive numbers of which the larger is ", lambda v: 2 * v - 1),
    (r"what remains after taking away (1/\d) of ", lambda v, a: v - v * a),
    (r"the result of increasing by (1/\d) ", lambda v, a: v + v * a),
]


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    keys = {key for key, _ in itertools.islice(mathematics.problems(2), 3000)}
    return [build(key, setting="english-ascii") for key in sorted(keys)]


def of(problems: list[Problem], domain: str) -> list[Problem]:
    return [problem for problem in problems if problem.domain == domain]


def read(table: list, text: str, *before, lengths: dict | None = None, match=re.fullmatch):
    """What the one row of the table that fits the text makes of the numbers before and in it."""
    [(pattern, meaning)] = [row for row in table if match(row[0], text)]
    values = []
    for part in match(pattern, text).groups():
        if part:
            known = WORDS | (lengths or {})
            values.append(known.get(part) or Fraction(part))
    return meaning(*before, *values)


def events_of(name: str, text: str) -> tuple[list[str], int, str]:
    """The events of a story in their order, how many were told in reverse, and the rest."""
    pattern = rf"(Just before that, |Then |After that |Later |Next |){name} (?!now|had)([^.?]+)\. "
    events = []
    swapped = 0
    found = re.match(pattern, text)
    while found:
        if found[1] == "Just before that, ":
            events.insert(len(events) - 1, found[2])
            swapped += 1
        else:
            events.append(found[2])
        text = text[found.end() :]
        found = re.match(pattern, text)
    return events, swapped, text


def test_stories(problems):
    seen = Counter()
    for problem in of(problems, "algebra"):
        story = re.sub(USELESS, "", problem.prompt)
        found = re.fullmatch(r"(\w+) had (some|\d+) \w+\. (.*)\n", story)
        name, first, rest = found.groups()
        events, swapped, rest = events_of(name, rest)
        seen["swapped"] += swapped

        answer = int(final_answer(problem.reference))
        value = Fraction(answer if first == "some" else first)
        for event in events:
            value = read(EVENTS, event, value)
        if first == "some":
            seen["backward"] += 1
            asked = (
                rf"(?:In the end|Finally) {name} had (\d+)\. "
                rf"How many \w+ did {name} have (?:at first|to begin with)\?"
            )
            assert value == int(re.fullmatch(asked, rest)[1]), problem
        else:
            assert read(QUESTIONS, rest, value) == answer, problem
    assert seen["swapped"] > 100
    assert seen["backward"] > 100


def test_lengths(problems):
    shuffled = 0
    for problem in of(problems, "geometry"):
        kinds = r"(?i)\b(segment|rod|ribbon|wire) (?=[A-F]\b)"
        *sentences, question = re.findall(r"(\S[^.?]*)[.?]", re.sub(kinds, "", problem.prompt))
        lengths = {}
        for sentence in sentences:
            given = re.fullmatch(r"([A-F]) is (\d+) cm long", sentence)
            if given:
                lengths[given[1]] = Fraction(given[2])
        shuffled += not re.fullmatch(r"[A-F] is \d+ cm long", sentences[0])
        for letter, result in re.findall(r"(?m)^([A-F]) = .* = (\d+)$", problem.reference):
            lengths[letter] = Fraction(result)

        for sentence in sentences:
            assert read(LENGTHS, sentence, lengths=lengths), problem
        answer = int(final_answer(problem.reference))
        assert read(MEASURES, question, lengths=lengths) == answer, problem
    assert shuffled > 100


def evaluate(phrase: str, unknown: int) -> Fraction:
    """The value of a nested phrase, with the number that it may not tell."""
    number = re.fullmatch(r"(?:the number )?(\d+)|an? (?:certain |unknown )?number", phrase)
    if number:
        return Fraction(number[1] or unknown)
    [row] = [row for row in PHRASES if re.match(row[0], phrase)]
    inner = phrase[re.match(row[0], phrase).end() :]
    return read([row], phrase, evaluate(inner, unknown), match=re.match)


def test_phrases(problems):
    backward = 0
    for problem in of(problems, "numbers"):
        text = re.sub(USELESS, "", problem.prompt).strip()
        answer = int(final_answer(problem.reference))
        told = re.fullmatch(r"(.*) is (\d+)\. (?:What is|Find) the number[.?]", text)
        if told:
            backward += 1
            phrase = told[1][0].lower() + told[1][1:]
            assert evaluate(phrase, answer) == int(told[2]), problem
        else:
            phrase = re.fullmatch(r"(?:What is|Find|Work out) (.*)[.?]", text)[1]
            assert evaluate(phrase, answer) == answer, problem
    assert backward > 100
