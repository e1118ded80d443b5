"""The words of the generated mathematics problems, in English and Spanish.

What each formula is called in a story, in geometry and in a phrase, and how a problem is told
(`tell`): in what order, with whose names and with which number that has no use.
"""

import random
import re
from dataclasses import dataclass

# ---- the words
# A row is a formula (see data/tasks/mathematics.py) and its words in the two languages. (a|b) is a
# choice; a row with a question mark comes last. All things counted are feminine in Spanish, and
# nothing else there agrees with a name.
# fmt: off
ALGEBRA = [
    ("v + c", "(bought|found|collected|was given|made) {c} more",
     "(compró|encontró|juntó|recibió|hizo) {c} más"),
    ("v - c", "(gave away|sold|lost|used up|threw away) {c}",
     "(regaló|vendió|perdió|gastó|tiró) {c}"),
    ("v * c", "(made a trade and had|worked until there were|ended a game with) {times} as many",
     "(hizo un trueque y tuvo|trabajó hasta tener|acabó un juego con) {times} esa cantidad"),
    ("v / c", "(kept only {part} of them|divided them into {c} equal heaps and kept one heap)",
     "(se quedó solo con {part} del total|"
         "las dividió en {c} montones iguales y se quedó con un montón)"),
    ("v / c, v - w", "(sold|lost|gave away|used up) {fraction} of them",
     "(vendió|perdió|regaló|gastó) {fraction} del total"),
    ("v / c, v + w", "(won|found|made) {fraction} as many again",
     "(ganó|encontró|hizo) otro {fraction} de esa cantidad"),
    ("c * d, v + w", "(bought|found|was given) {c} (bags|boxes|packs) of {d}",
     "(compró|encontró|recibió) {c} (bolsas|cajas) de {d}"),
    ("c * d, v - w", "(sold {c} bags of {d}|gave {d} to each of {c} friends)",
     "(vendió {c} bolsas de {d}|dio {d} a cada una de {c} amigas)"),
    ("v + c, w - d", "(bought {c} more but lost {d}|received {c} more and gave {d} back)",
     "(compró {c} más pero perdió {d}|recibió {c} más y devolvió {d})"),
    ("v - c, w / 2", "gave {c} to {f} and then (sold|lost) half of the rest",
     "dio {c} a {f} y luego (vendió|perdió) la mitad del resto"),
    ("c - v", "How many more {things} does {n} need to have {c}?",
     "¿Cuántas {things} más necesita {n} para tener {c}?"),
    ("v + c",
     "({f} has {c} more than {n} now has|"
         "{n} now has {c} fewer than {f}). How many {things} does {f} have?",
     "({f} tiene {c} más de las que ahora tiene {n}|"
         "{n} tiene ahora {c} menos que {f}). ¿Cuántas {things} tiene {f}?"),
    ("v - c",
     "({f} has {c} fewer than {n} now has|"
         "{n} now has {c} more than {f}). How many {things} does {f} have?",
     "({f} tiene {c} menos de las que ahora tiene {n}|"
         "{n} tiene ahora {c} más que {f}). ¿Cuántas {things} tiene {f}?"),
    ("v * c",
     "Each one (costs|is sold for) {c} coins. How many coins is that (in total|altogether)?",
     "Cada una (cuesta|se vende a) {c} monedas. ¿Cuántas monedas son (en total|por todas)?"),
    ("v / c",
     "(They are packed in boxes of {c}. How many boxes is that?|"
         "{c} friends share them equally. How many does each get?)",
     "(Se guardan en cajas de {c}. ¿Cuántas cajas son?|"
         "Se reparten entre {c} amigas. ¿Cuántas recibe cada una?)"),
    ("v * c, v + w", "{f} has {times} as many as {n} now. How many {things} do they have together?",
     "{f} tiene {times} las que ahora tiene {n}. ¿Cuántas {things} suman entre los dos?"),
    ("v + c, v + w", "{f} has {c} more than {n} now has. How many {things} do they have together?",
     "{f} tiene {c} más de las que ahora tiene {n}. ¿Cuántas {things} suman entre los dos?"),
]
GEOMETRY = [  # y is computed from x
    ("v + c",
     "({y} is {c} cm longer than {x}|{x} is {c} cm shorter than {y}|"
         "gluing {c} cm to {x} gives {y})",
     "({y} mide {c} cm más que {x}|{x} mide {c} cm menos que {y}|"
         "al pegar {c} cm a {x} se obtiene {y})"),
    ("v - c",
     "({y} is {c} cm shorter than {x}|{x} is {c} cm longer than {y}|"
         "cutting {c} cm off {x} leaves {y})",
     "({y} mide {c} cm menos que {x}|{x} mide {c} cm más que {y}|"
         "al cortar {c} cm de {x} queda {y})"),
    ("v * c",
     "({y} is {times} as long as {x}|{x} is {part} as long as {y}|{y} is as long as {shape} {x})",
     "({y} mide {times} lo que mide {x}|{x} mide {part} de lo que mide {y}|"
         "{y} mide como {shape} {x})"),
    ("v / c",
     "({y} is {part} as long as {x}|{x} is {times} as long as {y}|{x} is as long as {shape} {y})",
     "({y} mide {part} de lo que mide {x}|{x} mide {times} lo que mide {y}|"
         "{x} mide como {shape} {y})"),
    ("c - v", "({x} and {y}|{y} and {x}) together are {c} cm long",
     "({x} y {y}|{y} y {x}) miden juntos {c} cm"),
    ("v + c, w * 2", "{y} is as long as the perimeter of a rectangle with sides {c} cm and {x}",
     "{y} mide como el perímetro de un rectángulo de lados {c} cm y {x}"),
    ("v * 2, w + c",
     "({y} is as long as {c} cm and two pieces like {x}|"
         "two pieces like {x} and one of {c} cm make {y})",
     "({y} mide como {c} cm y dos trozos como {x}|dos trozos como {x} y uno de {c} cm forman {y})"),
    ("v / 2, w - c", "a rectangle with sides {c} cm and {y} has a perimeter as long as {x}",
     "un rectángulo de lados {c} cm y {y} tiene un perímetro como {x}"),
    ("v - c, w / 2",
     "({x} is as long as {c} cm and two pieces like {y}|"
         "two pieces like {y} and one of {c} cm make {x})",
     "({x} mide como {c} cm y dos trozos como {y}|dos trozos como {y} y uno de {c} cm forman {x})"),
    ("v * c", "What is the area, in square cm, of a rectangle with sides {c} cm and {x}?",
     "¿Cuál es el área, en cm cuadrados, de un rectángulo de lados {c} cm y {x}?"),
    ("v * v", "What is the area, in square cm, of a square with sides like {x}?",
     "¿Cuál es el área, en cm cuadrados, de un cuadrado de lado como {x}?"),
    ("v * c, w / 2",
     "What is the area, in square cm, of a right triangle with legs {c} cm and {x}?",
     "¿Cuál es el área, en cm cuadrados, de un triángulo rectángulo de catetos {c} cm y {x}?"),
]
# x is the phrase for the value so far. It comes last, and no phrase begins with a number: "twice 5
# more than 3" could be read in two ways. Nor is there a "difference between 9 and a number", which
# would have two solutions.
NUMBERS = [
    ("v + c", "(the sum of {c} and|the result of adding {c} to|the number {c} above) {x}",
     "(la suma de {c} y|el resultado de sumar {c} a|el número {c} unidades mayor que) {x}"),
    ("v - c",
     "(the result of taking {c} from|what is left after removing {c} from|"
         "the number {c} below) {x}",
     "(el resultado de quitar {c} a|lo que queda al restar {c} a|"
         "el número {c} unidades menor que) {x}"),
    ("c - v", "(what is left of {c} after removing|what {c} becomes after losing) {x}",
     "(lo que resta de {c} al descontar|lo que queda de {c} al quitarle) {x}"),
    ("v * c", "({times}|the product of {c} and) {x}", "({times}|el producto de {c} y) {x}"),
    ("v / c", "({part} of|the number of times {c} goes into) {x}",
     "({part} de|el número de veces que {c} cabe en) {x}"),
    ("v * v", "(the square of|the area of a square of side) {x}",
     "(el cuadrado de|el área de un cuadrado de lado) {x}"),
    ("t + u", "the (digit sum|sum of the digits) of {x}",
     "la suma de (las|todas las) cifras de {x}"),
    ("t * u", "the (digit product|product of the digits) of {x}",
     "el producto de (las|todas las) cifras de {x}"),
    ("v + c, w / 2", "the (average of|number halfway between) {c} and {x}",
     "el (promedio de|número a medio camino entre) {c} y {x}"),
    ("v + 1, v + w", "the sum of two consecutive numbers of which the smaller is {x}",
     "la suma de dos números consecutivos de los que el menor es {x}"),
    ("v - 1, v + w", "the sum of two consecutive numbers of which the larger is {x}",
     "la suma de dos números consecutivos de los que el mayor es {x}"),
    ("v / c, v - w", "what remains after taking away {fraction} of {x}",
     "lo que queda tras quitar {fraction} de {x}"),
    ("v / c, v + w", "the result of increasing by {fraction} {x}",
     "el resultado de aumentar en {fraction} {x}"),
]
NAMES = "Ana Ben Clara David Eva Hugo Irene Leo Mia Nora Omar Sara Tom Zoe".split()
THINGS = [
    ("marbles", "canicas"), ("stickers", "pegatinas"), ("apples", "manzanas"),
    ("cards", "tarjetas"), ("shells", "conchas"), ("flowers", "flores"), ("cookies", "galletas"),
    ("beads", "cuentas"), ("nuts", "nueces"), ("candles", "velas"),
]
LENGTHS = [
    ("segment", "el segmento"), ("rod", "el palo"), ("ribbon", "el lazo"), ("wire", "el cable"),
]
COUNTED = {  # words for c, from 2 to 6
    "times": [
        ("twice", "el doble de"), ("three times", "el triple de"),
        ("four times", "el cuádruple de"), ("five times", "el quíntuple de"),
        ("six times", "el séxtuple de"),
    ],
    "part": [
        ("half", "la mitad"), ("a third", "un tercio"), ("a quarter", "un cuarto"),
        ("a fifth", "un quinto"), ("a sixth", "un sexto"),
    ],
    "shape": [
        ("the diameter of a circle with a radius like",
         "el diámetro de un círculo de radio como"),
        ("the perimeter of an equilateral triangle with sides like",
         "el perímetro de un triángulo equilátero de lado como"),
        ("the perimeter of a square with sides like",
         "el perímetro de un cuadrado de lado como"),
        ("the perimeter of a regular pentagon with sides like",
         "el perímetro de un pentágono regular de lado como"),
        ("the perimeter of a regular hexagon with sides like",
         "el perímetro de un hexágono regular de lado como"),
    ],
}
FRAMES = {  # everything else that is said
    "had": ("{n} had {v} {things}.", "{n} tenía {v} {things}."),
    "had some": ("{n} had some {things}.", "{n} tenía unas {things}."),
    "event": ("{n} {event}.", "{n} {event}."),
    "next": (
        "(Then|After that|Later|Next) {n} {event}.",
        "(Luego|Después|Más tarde|A continuación) {n} {event}.",
    ),
    "before": ("Just before that, {n} {event}.", "Justo antes de eso, {n} {event}."),
    "end": ("(In the end|Finally) {n} had {v}.", "(Al final|Finalmente) {n} tenía {v}."),
    "how many": (
        "How many {things} did {n} have (in the end|at the end)?",
        "¿Cuántas {things} tenía {n} (al final|al terminar)?",
    ),
    "how many first": (
        "How many {things} did {n} have (at first|to begin with)?",
        "¿Cuántas {things} tenía {n} (al principio|al empezar)?",
    ),
    "length": ("{x} is {v} cm long.", "{x} mide {v} cm."),
    "how long": ("How many cm long is {x}?", "¿Cuántos cm mide {x}?"),
    "start": ("(|the number ){v}", "(|el número ){v}"),
    "unknown": (
        "(a number|a certain number|an unknown number)",
        "(un número|cierto número|un número desconocido)",
    ),
    "what is": (
        "(What is {x}?|Find {x}.|Work out {x}.)",
        "(¿Cuánto es {x}?|Halla {x}.|Calcula {x}.)",
    ),
    "what number": (
        "{x} is {v}. (What is the number?|Find the number.)",
        "{x} es {v}. (¿Cuál es el número?|Halla el número.)",
    ),
    "useless": (
        "({f} is {v} years old.|{f} lives at number {v}.|There are {v} people nearby.)",
        "({f} tiene {v} años.|{f} vive en el número {v}.|Hay {v} personas cerca.)",
    ),
    "answer": ("Answer: ", "Respuesta: "),
}
# fmt: on

ROWS = {"algebra": ALGEBRA, "geometry": GEOMETRY, "numbers": NUMBERS}
# What undoes a formula: a problem that asks for the beginning tells what happened, and is solved by
# undoing it from the end.
INVERSE = {"v + c": "v - c", "v - c": "v + c", "v * c": "v / c", "v / c": "v * c", "c - v": "c - v"}


# ---- telling a problem
@dataclass
class Tale:
    """What is told, in which language, and what is drawn at random on the way."""

    spanish: bool
    latex: bool
    choices: random.Random  # of words
    facts: random.Random  # of everything else, the same in every setting
    name: str
    friend: str
    things: tuple[str, str]
    start: int  # the number that is given; backward, the last of the story
    backward: bool
    told: list[tuple[tuple, dict]]  # a row of the tables for each step, and its constants
    question: tuple[tuple, dict] | None  # the last step, where its row is a question
    useless: int | None  # a number that has no use

    def say(self, row: tuple | str, **values) -> str:
        """A row of the tables, or a frame by its name, in the tale's language.

        Its choices are made, and its numbers and phrases, the values, are put in.
        """
        if values.get("c") in range(2, 7):
            for name, words in COUNTED.items():
                values[name] = words[values["c"] - 2][self.spanish]
            fraction = r"$\frac{{1}}{{{}}}$" if self.latex else "1/{}"
            values["fraction"] = fraction.format(values["c"])
        for name, value in values.items():
            if self.latex and isinstance(value, int):
                values[name] = f"${value}$"

        languages = FRAMES[row] if isinstance(row, str) else row[1:]
        text = re.sub(r"\((.*?)\)", self._choice, languages[self.spanish])
        text = text.format(n=self.name, f=self.friend, things=self.things[self.spanish], **values)
        if self.spanish:
            text = text.replace(" de el ", " del ").replace(" a el ", " al ")
        return text

    def _choice(self, found: re.Match) -> str:
        return self.choices.choice(found[1].split("|"))


def is_question(row: tuple) -> bool:
    return "?" in row[1]


def tell(
    key: str, setting: str, domain: str, backward: bool, start: int, program: list[tuple]
) -> tuple[str, list[str]]:
    """The prompt, and for each formula of the program the letter that names its result, or "".

    The program is (formula, constants) for each step, in the order of solving. The key seeds what
    is drawn: names and order are the same in every setting (as in "spanish-ascii").
    """
    language, notation = setting.split("-")
    facts = random.Random(f"facts {key}")
    name, friend = facts.sample(NAMES, 2)
    tale = Tale(
        spanish=language == "spanish",
        latex=notation == "latex",
        choices=random.Random(f"words {key} {language}"),
        facts=facts,
        name=name,
        friend=friend,
        things=facts.choice(THINGS),
        start=start,
        backward=backward,
        told=[],
        question=None,
        useless=None,
    )

    # a row for each event
    events = program
    if backward:
        events = [(INVERSE[formula], constants) for formula, constants in reversed(program)]
    for i, (formula, constants) in enumerate(events):
        may_ask = i == len(events) - 1 and not backward
        rows = []
        for row in ROWS[domain]:
            if row[0] == formula and (may_ask or not is_question(row)):
                rows.append(row)
        tale.told.append((facts.choice(rows), dict(zip("cd", constants))))
    if is_question(tale.told[-1][0]):
        tale.question = tale.told.pop()
    if facts.random() < 0.3:
        tale.useless = facts.randint(3, 60)

    letters = [""] * len(program)
    if domain == "algebra":
        sentences = story(tale)
    elif domain == "geometry":
        sentences, letters = lengths(tale)
    else:
        sentences = nesting(tale)
    capitalised = [sentence[0].upper() + sentence[1:] for sentence in sentences]
    return " ".join(capitalised) + "\n", letters


def story(tale: Tale) -> list[str]:
    """Things come and go; the last two events may be told in reverse."""
    events = [tale.say(row, **constants) for row, constants in tale.told]
    frames = ["event"] + ["next"] * (len(events) - 1)
    if len(events) > 1 and tale.facts.random() < 0.3:
        events[-2], events[-1] = events[-1], events[-2]
        frames[-1] = "before"

    sentences = [tale.say("had some") if tale.backward else tale.say("had", v=tale.start)]
    for frame, event in zip(frames, events):
        sentences.append(tale.say(frame, event=event))
    if tale.useless:  # early, where it parts no "before that" from what it follows
        sentences.insert(tale.facts.randrange(2), tale.say("useless", v=tale.useless))

    if tale.backward:
        sentences.append(tale.say("end", v=tale.start))
        sentences.append(tale.say("how many first"))
    elif tale.question:
        row, constants = tale.question
        sentences.append(tale.say(row, **constants))
    else:
        sentences.append(tale.say("how many"))
    return sentences


def lengths(tale: Tale) -> tuple[list[str], list[str]]:
    """Lengths defined by each other, in any order, and the letter of each step's result."""
    letters = list("ABCDEF"[: len(tale.told) + (2 if tale.useless else 1)])
    stray = letters.pop(tale.facts.randrange(len(letters))) if tale.useless else ""
    kind = tale.facts.choice(LENGTHS)[tale.spanish]

    sentences = [tale.say("length", x=f"{kind} {letters[0]}", v=tale.start)]
    if tale.useless:
        sentences.append(tale.say("length", x=f"{kind} {stray}", v=tale.useless))
    for (row, constants), x, y in zip(tale.told, letters, letters[1:]):
        sentences.append(tale.say(row, x=f"{kind} {x}", y=f"{kind} {y}", **constants) + ".")
    if tale.facts.random() < 0.5:
        tale.facts.shuffle(sentences)

    x = f"{kind} {letters[-1]}"
    if not tale.question:
        return [*sentences, tale.say("how long", x=x)], letters[1:]
    row, constants = tale.question
    return [*sentences, tale.say(row, x=x, **constants)], [*letters[1:], ""]


def nesting(tale: Tale) -> list[str]:
    """A phrase within a phrase, read inside out, or outside in where its number is asked for."""
    nested = tale.say("unknown") if tale.backward else tale.say("start", v=tale.start)
    for row, constants in tale.told:
        nested = tale.say(row, x=nested, **constants)
    if tale.backward:
        sentences = [tale.say("what number", x=nested, v=tale.start)]
    else:
        sentences = [tale.say("what is", x=nested)]
    if tale.useless:
        sentences.insert(tale.facts.randrange(2), tale.say("useless", v=tale.useless))
    return sentences
