r"""Mathematical answers: find the final one in a text, and say whether two are equal.

    final_answer(r"so $x = \boxed{\frac{1}{2}}$.")  -> r"\frac{1}{2}"
    equal(r"\frac12", "0.5")                         -> True

`final_answer` takes the first of these that the text has:
    1. the last \boxed{...} or \fbox{...} whose braces close, or \boxed 5
    2. the rest of the line after the last ####
    3. the rest of the line after the last "Answer:" or "Respuesta:"
    4. the last number
    5. the last line that is not empty

`equal` compares two answers in one normal form, computed from the text alone: nothing is evaluated, simplified or
factored, so 3 + 4 is not 7 and \sqrt{8} is not 2\sqrt{2}; a question's own expression, copied, is no answer to it.
    numbers      by value: 1080 = 1,080 = 1,\!080 = 1080.0; 0.5 = .50 = 1/2 = \frac12 = \dfrac{2}{4} = 50 / 100;
                 137 \frac{1}{2} = 137 1/2 = 137.5. But 144/4 is not 36: a division that comes out even was left undone
    units        dropped, not compared: \text{ cm}^2, \mbox{inches}, 90^\circ, 5 dollars, $5, \$5, 5\%. Percent is a unit: 50\% is
                 50 and not 1/2. A lone letter after a number is a variable, and "million" is part of the number
    LaTeX        spacing, \left \right, $ and \( \), \dfrac \tfrac, \cdot \times *, x^2 = x^{2} = x^(2), \sqrt2 = \sqrt{2} = sqrt(2),
                 \frac{a}{b} = a/b, \pi = pi and every other name without its backslash, and the Unicode signs in UNICODE
    words        \text{East} = east
    sums         in any order: 6 - 5i = -5i + 6, 1 \pm \sqrt{2} = \pm\sqrt{2} + 1; products and what stands in brackets as written;
                 equations side by side
    assignments  x = 5 or x \in [0, 1] may be given without "x =", also f(x) =, but y = 5 is not x = 5
    lists, sets  in any order, with repetitions counted: 1,-2 = -2, 1 = \{1,-2\} = "1 and -2" = "x=1 or x=-2". Without brackets
                 or a space after the comma, 1,200 is a number
    tuples, intervals, matrices   in order, brackets compared; a column vector equals a tuple; unions in any order
An answer of more than 400 characters, or with brackets nested more than 12 deep, equals nothing: no work is spent on hostile text.
"""
import itertools
import re
from fractions import Fraction

LONGEST, DEEPEST = 400, 12
UNICODE = {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "π": "\\pi ", "√": "\\sqrt ", "∈": "=", "≤": "<=", "≥": ">=", "°": "", "²": "^2", "³": "^3",
           "€": "", "£": ""}
SIGNS = {"cdot": "*", "times": "*", "cup": "∪", "in": "=", "pm": "±", "infty": "∞", "le": "<=", "leq": "<=", "ge": ">=", "geq": ">=", "ne": "≠", "neq": "≠",
         "lt": "<", "gt": ">"}  # x \in [0, 1] is treated as the assignment of an interval
CLEANED = [(re.compile(pattern), new) for pattern, new in (
    (r"\\begin\{[bp]?matrix\}", "(("), (r"(\\\\\s*)?\\end\{[bp]?matrix\}", "))"), (r"\\\\", "),("), ("&", ","),  # rows as tuples
    (r"(,\\!|\{,\})\s*(?=\d{3})", ""),  # thousands
    (r"\\(left|right|[bB]igg?[lr]?|displaystyle)(?![a-zA-Z])", ""),
    (r"\^\{?\\circ\}?|\\degree\b|\\?%", ""),
    (r"\s*/\s*", "/"), (r"\\[,;:! ]|\\q?quad\b|~", " "),
    (r"\\\{", "⟦"), (r"\\\}", "⟧"),  # the braces of a set, unlike those of LaTeX
    (r"\\([dtc]?frac)", r"\\frac"), (r"(?<![\\a-zA-Z])sqrt\b", r"\\sqrt "),
    (r"\\(cdot|times|cup|in|pm|infty|leq?|geq?|neq?|lt|gt)(?![a-zA-Z])", lambda m: SIGNS[m[1]]), (r"\b(infinity|inf|oo)\b", "∞"),
)]
TEXT = re.compile(r"\\(?:text\w*|mbox|hbox|mathrm|mathbf|mathit)\s*\{([^{}]*)\}(\^\{?\d\}?)?")
UNIT = re.compile(r"^([-+\d.,/ ]*\d[.\d]*)\s+(?!(?:pi|sqrt|sin|cos|tan|log|ln|dozen|hundred|thousand|million|billion)\b)[a-zA-Z]{2}[a-zA-Z /]*(\^[23])?$")
NAME = re.compile(r"(^|,)\s*[a-zA-Z](?:_\w|_\{\w\})?(?:\([a-z]\))?\s*=(?!=)")
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![,\d])")
NUMBER = re.compile(r"(-?)(?:(\d+)\s+(?=\d+/))?(\d+\.?\d*|\.\d+)(?:/(-?\d+))?")


def final_answer(text: str) -> str:
    """The answer that a solution ends in, in the order above; empty for an empty text."""
    if (box := last_box(text)) is not None:
        return box.strip()
    for marker in (r"####", r"(?i)\b(?:answer|respuesta)\**:\**"):
        if found := list(re.finditer(marker, text)):
            return text[found[-1].end():].split("\n", 1)[0].strip()
    if numbers := re.findall(r"(?<!\d)-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", text):
        return numbers[-1]
    return text.strip().rsplit("\n", 1)[-1].strip()


def last_box(text: str) -> str | None:
    r"""What stands in the last \boxed{} that closes; one pass, so a megabyte of open braces costs no more than a megabyte."""
    box, opened = None, []
    for brace in re.finditer(r"(?P<box>\\boxed|\\fbox)\s*\{|\\boxed (?P<bare>[^\s{}$\\]+)|\\.|[{}]", text):
        if brace["bare"]:
            box = brace["bare"]
        elif brace[0] == "}":
            start, boxed = opened.pop() if opened else (0, False)
            box = text[start:brace.start()] if boxed else box
        elif brace[0] == "{" or brace["box"]:
            opened.append((brace.end(), bool(brace["box"])))
    return box


def equal(given: str, wanted: str) -> bool:
    """Whether the two answers have the same normal form."""
    if any(not 0 < len(answer) <= LONGEST or max(depths(answer)) > DEEPEST for answer in (given, wanted)):
        return False
    given, wanted = clean(given), clean(wanted)
    if bool(NAME.search(given)) != bool(NAME.search(wanted)):  # x = 5 and 5; where both have a name it must be the same
        given, wanted = NAME.sub(r"\1", given), NAME.sub(r"\1", wanted)
    return normal(given) == normal(wanted)


def depths(text: str) -> list[int]:
    """How many brackets are open after each character."""
    return list(itertools.accumulate((c in "([{⟦") - (c in ")]}⟧") for c in text))


def clean(text: str) -> str:
    """The answer without what carries no meaning, on one line."""
    for character, plain in UNICODE.items():
        text = text.replace(character, plain)
    text = re.sub(r"\\?\$|(?<!\\)\\[()\[\]]", "", text)
    text = re.sub(r"\s+", " ", text.strip().rstrip(".")).strip()
    text = TEXT.sub(lambda m: ", " if m[1].strip() in ("and", "or") else m[0], text)
    text = TEXT.sub(" ", text) if TEXT.sub("", text).strip() else TEXT.sub(r"\1", text)  # a unit, or all there is
    for pattern, new in CLEANED:
        text = pattern.sub(new, text)
    return one_line(re.sub(r",? \b(and|or)\b ", ", ", text)).strip()


def one_line(text: str) -> str:
    r"""Fractions, roots and exponents as one types them: \frac{1}{2}x^{2} -> 1/2x^2, \frac{a+1}{2b} -> (a+1)/(2b), \sqrt[3]2 -> sqrt[3](2)."""
    out = ""
    while found := re.search(r"\\frac|\\sqrt\s*(\[[^]]*\])?|[\^_]", text):
        before, command, text = text[:found.start()], found[0], text[found.end():]
        inner, text = argument(text, many=command != r"\frac")
        if command == r"\frac":
            below, text = argument(text)
            plain = re.fullmatch(r"-?[\d.]+|[a-zA-Z]|\\[a-zA-Z]+|sqrt\([^()]*\)", below)
            above = inner if len(terms(inner)) == 1 else f"({inner})"
            # the space tells a mixed number, 1 4/5, from 14/5
            inner = (" " if before.rstrip()[-1:].isdigit() else "") + above + "/" + (below if plain else f"({below})")
        elif command in "^_":
            inner = command + (inner if re.fullmatch(r"\w+|\\[a-zA-Z]+", inner) else f"({inner})") + "*" * bool(re.match(r"\s*\d", text))
        else:
            inner = f"sqrt{found[1] or ''}({inner})"
        out += before + inner
    return out + text


def argument(text: str, many: bool = False) -> tuple[str, str]:
    r"""The argument that a command's text begins with, and the rest: {..} or (..), a \name, or one character (many: all digits)."""
    text = text.lstrip()
    if text[:1] in ("{", "("):
        if 0 in (depth := depths(text)):
            return one_line(text[1:depth.index(0)].strip()), text[depth.index(0) + 1:]
    found = re.match(r"\\[a-zA-Z]+|-?\d+" if many else r"\\[a-zA-Z]+", text)
    end = found.end() if found else 1
    return text[:end], text[end:]


def split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand outside all brackets: split("(1,2),3", ",") -> ["(1,2)", "3"]."""
    cuts = [-1, *(i for i, (c, depth) in enumerate(zip(text, depths(text))) if c == separator and depth == 0), len(text)]
    return [text[start + 1:end] for start, end in itertools.pairwise(cuts)]


def terms(text: str) -> list[str]:
    """The signed terms of a sum: terms("6-5i") -> ["6", "-5i"]."""
    signs = [i for i, (before, c, depth) in enumerate(zip(" " + text, text, depths(text))) if c in "+-±" and depth == 0 and before not in "^*/"]
    return [text[start:end].removeprefix("+") for start, end in itertools.pairwise([0, *signs, len(text)]) if start < end]


def normal(text: str) -> object:
    """Nested tuples that are equal for equal answers."""
    text = text.strip()
    if len(parts := split(text, "∪")) > 1:
        return "union", sorted_parts(parts)
    text = THOUSANDS.sub(lambda m: m[0].replace(",", "") if depths(text)[m.start()] == 0 else m[0], text)  # in brackets a comma separates
    if len(parts := split(text, ",")) > 1:
        return "set", sorted_parts(parts)
    if text.startswith(("(", "[", "{", "⟦")) and [*depths(text), 0].index(0) == len(text) - 1:
        parts = split(text[1:-1], ",")
        if len(parts) == 1:
            return normal(parts[0])
        return ("set", sorted_parts(parts)) if text[0] in "{⟦" else (text[0] + text[-1], tuple(map(normal, parts)))
    text = re.sub(r"/\((-?\d+|[a-zA-Z])\)", r"/\1", text)
    text = unit[1].strip() if (unit := UNIT.match(text)) else text
    if (value := number(text)) is not None:
        return value
    if re.fullmatch(r"[^\W\d_]{2,}( [^\W\d_]+)*", text):
        return text.casefold()
    text = re.sub(r"(?<!\d)\*|\*(?!\d)", "", re.sub(r"[\s\\]", "", text))  # 2*5 keeps its sign: it is not 25
    return tuple(tuple(sorted(terms(side))) for side in re.split(r"([<>≠]?=|[<>≠])", text))


def sorted_parts(parts: list[str]) -> tuple:
    return tuple(sorted(map(normal, parts), key=repr))


def number(text: str) -> Fraction | None:
    """The value of a decimal, a fraction or a mixed number; None for anything else, a division that comes out even included."""
    match = NUMBER.fullmatch(re.sub(r"^([-+])\s+", r"\1", text).removeprefix("+"))
    if not match or (match[4] and ("." in match[3] or int(match[4]) == 0)):
        return None
    value = Fraction(match[3]) / int(match[4] or 1)
    if match[4] and value.denominator == 1:
        return None
    value += int(match[2] or 0)
    return -value if match[1] else value
