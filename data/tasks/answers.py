r"""Mathematical answers: find the final one in a text, and say whether two are equal.

    final_answer(r"so $x = \boxed{\frac{1}{2}}$.")  -> r"\frac{1}{2}"
    equal(r"\frac12", "0.5")                         -> True

`final_answer` takes the first of these that the text has:
    1. the last \boxed{...} or \fbox{...} whose braces close, or \boxed 5
    2. the rest of the line after the last ####, "Answer:" or "Respuesta:", or where that is empty
       or a heading "#### Final Answer", the next line; without the stars of Markdown. Of a
       sentence it is the last $...$ or, without one, the last number, but all of a sentence where
       that is part of something else. A heading "#### Conclusion" with more below is no answer
    3. the last number; of a last line that has it within $...$ or \[...\], all of that, or what
       follows the equals sign there
    4. the last line that is not empty

`equal` compares two answers in one normal form, computed from the text alone: nothing is evaluated,
simplified or factored, so 3 + 4 is not 7 and \sqrt{8} is not 2\sqrt{2}; a question's own
expression, copied, is no answer to it.

    numbers      by value: 1080 = 1,080 = 1,\!080 = 1080.0; 0.5 = .50 = 1/2 = \frac12 = 50 / 100;
                 137 \frac{1}{2} = 137 1/2 = 137.5. But 144/4 is not 36: a division that comes out
                 even was left undone
    units        dropped, not compared: \text{ cm}^2, \mbox{inches}, 90^\circ, 5 dollars, $5, \$5,
                 5\%. Percent is a unit: 50\% is 50 and not 1/2. A lone letter after a number is a
                 variable, and "million" is part of the number
    LaTeX        spacing, \left \right, $ and \( \), \dfrac \tfrac, \cdot \times *,
                 x^2 = x^{2} = x^(2), \sqrt2 = \sqrt{2} = sqrt(2), \frac{a}{b} = a/b, \pi = pi and
                 every other name without its backslash, and the Unicode signs in UNICODE
    words        \text{East} = east
    sums         in any order: 6 - 5i = -5i + 6, 1 \pm \sqrt{2} = \pm\sqrt{2} + 1; products and what
                 stands in brackets as written; equations side by side
    assignments  x = 5 or x \in [0, 1] may be given without "x =", also f(x) =, but y = 5 is not
                 x = 5
    lists, sets  in any order, with repetitions counted: 1,-2 = -2, 1 = \{1,-2\} = "1 and -2" =
                 "x=1 or x=-2". Without brackets or a space after the comma, 1,200 is a number
    tuples, intervals, matrices   in order, brackets compared; a column vector equals a tuple;
                 unions in any order

An answer of more than 400 characters, or with brackets nested more than 12 deep, equals nothing: no
work is spent on hostile text.
"""

import itertools
import re
from fractions import Fraction

LONGEST = 400  # characters of an answer
DEEPEST = 12  # brackets open at once

# fmt: off
UNICODE = {
    "−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "π": "\\pi ", "√": "\\sqrt ", "∈": "=",
    "≤": "<=", "≥": ">=", "°": "", "²": "^2", "³": "^3", "€": "", "£": "",
}
SIGNS = {  # x \in [0, 1] is treated as the assignment of an interval
    "cdot": "*", "times": "*", "cup": "∪", "in": "=", "pm": "±", "infty": "∞", "le": "<=",
    "leq": "<=", "ge": ">=", "geq": ">=", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">",
}
REPLACED = (  # in this order
    (r"\\begin\{[bp]?matrix\}", "(("),  # the rows of a matrix are tuples
    (r"(\\\\\s*)?\\end\{[bp]?matrix\}", "))"),
    (r"\\\\", "),("),
    ("&", ","),
    (r"(,\\!|\{,\})\s*(?=\d{3})", ""),  # thousands
    (r"\\(left|right|[bB]igg?[lr]?|displaystyle)(?![a-zA-Z])", ""),
    (r"\^\{?\\circ\}?|\\degree\b|\\?%", ""),
    (r"\s*/\s*", "/"),
    (r"\\[,;:! ]|\\q?quad\b|~", " "),
    (r"\\\{", "⟦"),  # the braces of a set, unlike those of LaTeX
    (r"\\\}", "⟧"),
    (r"\\([dtc]?frac)", r"\\frac"),
    (r"(?<![\\a-zA-Z])sqrt\b", r"\\sqrt "),
    (r"\\(cdot|times|cup|in|pm|infty|leq?|geq?|neq?|lt|gt)(?![a-zA-Z])", lambda m: SIGNS[m[1]]),
    (r"\b(infinity|inf|oo)\b", "∞"),
)
# fmt: on
CLEANED = [(re.compile(pattern), new) for pattern, new in REPLACED]

_TEXT = r"\\(?:text\w*|mbox|hbox|mathrm|mathbf|mathit)\s*\{([^{}]*)\}"
TEXT = re.compile(_TEXT + r"(\^\{?\d\}?)?")
SUBSCRIPT = re.compile(rf"_(\{{)?{_TEXT}(?(1)\}})")  # x_{\text{max}}
NOT_UNITS = "pi|sqrt|sin|cos|tan|log|ln|dozen|hundred|thousand|million|billion|trillion"
NOT_UNITS += "|squared|cubed|plus|minus|times|divided|not|or|less|more"
MEANING = re.compile(rf"\b(?i:(?:{NOT_UNITS})s?)\b")
UNIT = re.compile(
    rf"^([-+\d.,/ ]*\d[.\d]*)\s+(?!.*{MEANING.pattern})[a-zA-Z]{{2}}[a-zA-Z /]*(\^[23])?$"
)
NAME = re.compile(r"(^|,)\s*[a-zA-Z](?:_\w|_\{\w\})?(?:\([a-z]\))?\s*=(?!=)")
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![,\d])")
NUMERAL = re.compile(  # within a text
    r"(?<!\d)[-−–]?\$?(?:\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?"
)
NUMBER = re.compile(
    r"(-?)(?:(\d+)\s+(?=\d+/))?((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)(?:/(-?\d+))?"
)
MARKER = re.compile(r"#{4,}|(?i:\b(?:answer|respuesta)\**:)")
LAID_OUT = re.compile(r"(?:[* \t\n]|\$\$|\\\[)*")
LAID_OUT_END = re.compile(r"(?:\$\$|\\\])\.?$")
HEADING = re.compile(  # a line's words, when more stands below it
    r"(?im)(?:\d+[.)])?[^\w\n#]*(?:(?:step|part) \d+\b[^\n#]*$|"
    r"(?:(?:(?P<answer>answer)|the|final|conclusion|result|solution|summary|reasoning|explanation|"
    r"calculations?|computation|verification|check|therefore|step|by)\b[^\w\n#]*)+$)"
)

# in a sentence
WORD = re.compile(r"[^\W\d_]{2,}")
EMPHASIS = re.compile(
    r"(?:(?<=[\s(])|^)[*_]+(?=[\w$\\.-])|(?<=[\w.,!$%)])(?<![*_])[*_]+(?=[\s.,;:!?)]|$)"
)
FORMULA = re.compile(  # not of "$5 and $6"
    r"(?<!\\)\$(?=\S)([^$]+)(?<=[^\s\\])\$(?!\d)|\\\(((?:[^\\]|\\(?!\())*?)\\\)"
)
ESCAPED = re.compile(r"\\(?=[$%])|(?<=[a-zA-Z]{2})\^\{?[23]\}?|\([^()]*\)")  # \$5, 5 cm^2, (so)
LETTER = re.compile(r"\s*[a-zA-Z]\s*")
FORMAL = re.compile(r"[\\^{√π]|=.*=")
# what makes a number or a formula a part of something else: 25x, 3 - 2, 5:30, 10-25, 3 million
BEFORE = re.compile(r"(?:\w|\d[\s:]|[-+*/×÷^−–±√(]\s*|\b(?i:negative|minus|plus|menos|sqrt)\s+)$")
AFTER = re.compile(
    r"[π√(:^]|(?:[^\W\d_]|th|st|nd|rd|pi|sqrt|sin|cos|tan|log|ln)(?![^\W\d_])|"
    r"\s*(?:[*/×÷+=^±]|[-−–]\s*(?:[\d(√π\\]|[b-zA-Z]\b)|"
    r"(?i:pi|dozen|hundred|thousand|million|billion|trillion|mil|squared|cubed|plus|minus|times)\b)"
)

BRACE = re.compile(r"(?P<box>\\boxed|\\fbox)\s*\{|\\boxed (?P<bare>[^\s{}$\\]+)|\\.|[{}]")
COMMAND = re.compile(r"\\frac|\\sqrt\s*(\[[^]]*\])?|[\^_]")


def final_answer(text: str) -> str:
    """The answer that a solution ends in, in the order above; empty for an empty text."""
    box = last_box(text)
    if box is not None:
        return box.strip()
    text = text.replace("\r\n", "\n").strip()
    for marker in reversed(list(MARKER.finditer(text))):
        start = LAID_OUT.match(text, marker.end()).end()
        heading = HEADING.match(text, start) if marker[0].startswith("#") else None
        if heading and heading.end() < len(text):
            if not heading["answer"]:
                continue
            start = LAID_OUT.match(text, heading.end()).end()
        line = text[start:].split("\n", 1)[0]
        return _told_in(LAID_OUT_END.sub("", line.strip("* ")).rstrip())
    last_line = text.rsplit("\n", 1)[-1].strip()
    return _last_formula(last_line) or last_number(text) or last_line


def _told_in(line: str) -> str:
    r"""The answer that a line tells: all of it, or what a sentence has as its last $...$ or number.

    A sentence begins with a word and has three at least. A $...$ comes before numbers, but the name
    of a variable, $x$, counts as one of these, and an assignment, $x = 5$, only where nothing else
    is told. All of the line is told where what was found is part of something else, and of a number
    where there is mathematics outside of $...$.
    """
    if not WORD.match(line) or len(WORD.findall(line)) < 3:
        return line

    sentence = EMPHASIS.sub("", line)
    bare = FORMULA.sub(lambda found: "\0" * len(found[0]), sentence)  # what is told in words
    bare = ESCAPED.sub(lambda found: "\0" * len(found[0]), bare)
    formulas, assigned = [], []
    numbers = [] if FORMAL.search(bare) else list(NUMERAL.finditer(bare))
    for found in FORMULA.finditer(sentence):
        inside = found[1] or found[2] or ""
        if LETTER.fullmatch(inside):
            numbers.append(found)
        else:
            (assigned if "=" in inside else formulas).append(found)

    told = formulas or sorted(numbers, key=lambda found: found.start()) or assigned
    if not told:
        return line
    last = told[-1]
    before, after = sentence[: last.start()][-20:], sentence[last.end() :]
    if BEFORE.search(before) or AFTER.match(after):
        return line
    if last.re is NUMERAL:
        return last[0]
    return (last[1] or last[2]).strip()


def _last_formula(line: str) -> str | None:
    r"""Of the $...$ or \[...\] that has a line's last number, what follows the last equals sign."""
    line = re.sub(r"\s*\\[\[\]]\s*", "$", line)
    last = None
    for found in FORMULA.finditer(line):
        if NUMERAL.search(found[0]):
            last = found
    if not last or NUMERAL.search(line, last.end()):
        return None
    value = re.split(r"(?<![<>])=|\\approx\b", last[1] or last[2])[-1].strip()
    return value if NUMERAL.search(value) else None


def last_number(text: str) -> str | None:
    """The last number of a text: "2 or 3, 1,000 in all" -> "1,000"."""
    numbers = NUMERAL.findall(text)
    return numbers[-1] if numbers else None


def last_box(text: str) -> str | None:
    r"""What stands in the last \boxed{} that closes, None if there is no such box.

    One pass, so a megabyte of open braces costs no more than a megabyte.
    """
    box = None
    opened = []  # of each open brace: where its inside starts, and whether it is a box's
    for brace in BRACE.finditer(text):
        if brace["bare"]:
            box = brace["bare"]
        elif brace[0] == "{" or brace["box"]:
            opened.append((brace.end(), bool(brace["box"])))
        elif brace[0] == "}" and opened:
            start, boxed = opened.pop()
            if boxed:
                box = text[start : brace.start()]
    return box


def equal(given: str, wanted: str) -> bool:
    """Whether the two answers have the same normal form."""
    if not (_comparable(given) and _comparable(wanted)):
        return False
    given = clean(given)
    wanted = clean(wanted)
    # x = 5 and 5; where both have a name it must be the same
    if bool(NAME.search(given)) != bool(NAME.search(wanted)):
        given = NAME.sub(r"\1", given)
        wanted = NAME.sub(r"\1", wanted)
    return normal(given) == normal(wanted)


def canonical(answer: str) -> str | None:
    """One text for all answers of one normal form, to count them by; None for what equals nothing.

    Without the name of an assignment: x = 5 and 5 are one, and so is y = 5, which `equal` would
    tell from x = 5.
    """
    if not _comparable(answer):
        return None
    return repr(normal(NAME.sub(r"\1", clean(answer))))


def _comparable(answer: str) -> bool:
    return 0 < len(answer) <= LONGEST and max(depths(answer)) <= DEEPEST


def depths(text: str) -> list[int]:
    """How many brackets are open after each character."""
    return list(itertools.accumulate((c in "([{⟦") - (c in ")]}⟧") for c in text))


def clean(text: str) -> str:
    """The answer without what carries no meaning, on one line."""
    for character, plain in UNICODE.items():
        text = text.replace(character, plain)
    text = re.sub(r"\\?\$|(?<!\\)\\[()\[\]]", "", text)
    text = re.sub(r"\s+", " ", text.strip().rstrip(".")).strip()
    text = SUBSCRIPT.sub(r"_{\2}", text)

    # \text{} is a list's "and", or a unit, or all there is
    text = TEXT.sub(lambda m: ", " if m[1].strip() in ("and", "or") else m[0], text)
    if TEXT.sub("", text).strip():
        text = TEXT.sub(lambda m: f" {m[1]} " if has_meaning(m) else " ", text)
    else:
        text = TEXT.sub(r"\1", text)

    for pattern, new in CLEANED:
        text = pattern.sub(new, text)
    return one_line(re.sub(r",? \b(and|or)\b ", ", ", text)).strip()


def has_meaning(found: re.Match) -> bool:
    r"""Whether what stands in a \text{} changes a value: "million", or the i of \mathrm{i}."""
    is_variable = found[0].startswith(r"\math") and len(found[1].strip()) == 1
    return is_variable or bool(MEANING.search(found[1]))


def one_line(text: str) -> str:
    r"""Fractions, roots and exponents as one types them.

    \frac{1}{2}x^{2} -> 1/2x^2, \frac{a+1}{2b} -> (a+1)/(2b), \sqrt[3]2 -> sqrt[3](2)
    """
    out = ""
    found = COMMAND.search(text)
    while found:
        before = text[: found.start()]
        command = found[0]
        inner, text = argument(text[found.end() :], many=command != r"\frac")
        if command == r"\frac":
            below, text = argument(text)
            mixed = before.rstrip()[-1:].isdigit()  # the space tells 1 4/5 from 14/5
            product = "*" * text.lstrip()[:1].isdigit()  # \frac{1}{2}3 is not 1/23
            out += before + " " * mixed + _fraction(inner, below) + product
        elif command in "^_":
            out += before + command + _exponent(inner, rest=text)
        else:
            out += f"{before}sqrt{found[1] or ''}({inner})"
        found = COMMAND.search(text)
    return out + text


def _fraction(above: str, below: str) -> str:
    if len(terms(above)) != 1:
        above = f"({above})"
    if not re.fullmatch(r"-?[\d.]+|[a-zA-Z]|\\[a-zA-Z]+|sqrt\([^()]*\)", below):
        below = f"({below})"
    return f"{above}/{below}"


def _exponent(inner: str, rest: str) -> str:
    """x^{2}3 is x^2 times 3, not x^23; and x^{2y} is not x^{2}y."""
    if not re.fullmatch(r"\d+|\w|\\[a-zA-Z]+", inner):
        inner = f"({inner})"
    return inner + "*" if re.match(r"\s*\d", rest) else inner


def argument(text: str, many: bool = False) -> tuple[str, str]:
    r"""The argument that a command's text begins with, and the rest.

    It is {..} or (..), a \name, or one character (many: all digits).
    """
    text = text.lstrip()
    if text[:1] in ("{", "("):
        depth = depths(text)
        if 0 in depth:
            closed = depth.index(0)
            return one_line(text[1:closed].strip()), text[closed + 1 :]
    found = re.match(r"\\[a-zA-Z]+|-?\d+" if many else r"\\[a-zA-Z]+", text)
    end = found.end() if found else 1
    return text[:end], text[end:]


def split(text: str, separator: str) -> list[str]:
    """The parts between separators outside brackets: split("(1,2),3", ",") -> ["(1,2)", "3"]."""
    parts = []
    start = 0
    for i, depth in enumerate(depths(text)):
        if text[i] == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def terms(text: str) -> list[str]:
    """The signed terms of a sum: terms("6-5i") -> ["6", "-5i"]."""
    starts = [0]
    for i, depth in enumerate(depths(text)):
        before = text[i - 1] if i else " "
        if text[i] in "+-±" and depth == 0 and before not in "^*/":
            starts.append(i)
    ends = [*starts[1:], len(text)]
    return [text[i:j].removeprefix("+") for i, j in zip(starts, ends) if i < j]


def normal(text: str) -> object:
    """Nested tuples that are equal for equal answers."""
    text = text.strip()

    # unions, lists, and what stands in brackets, part by part
    parts = split(text, "∪")
    if len(parts) > 1:
        return "union", sorted_parts(parts)
    text = _without_thousands(text)
    parts = split(text, ",")
    if len(parts) > 1:
        return "set", sorted_parts(parts)
    if text.startswith(("(", "[", "{", "⟦")) and [*depths(text), 0].index(0) == len(text) - 1:
        parts = split(text[1:-1], ",")
        if len(parts) == 1:
            return normal(parts[0])
        if text[0] in "{⟦":
            return "set", sorted_parts(parts)
        return text[0] + text[-1], tuple(map(normal, parts))

    # a number, with or without a unit
    text = re.sub(r"/\((-?\d+|[a-zA-Z])\)", r"/\1", text)
    unit = UNIT.match(text)
    if unit:
        text = unit[1].strip()
    value = number(text)
    if value is not None:
        return value

    # words, and at last sums
    if re.fullmatch(r"[^\W\d_]{2,}( [^\W\d_]+)*", text):
        return text.casefold()
    text = re.sub(r"(?<=\d) (?=\d)", "_", text)  # 1 1/2x is not 11/2x
    text = re.sub(r"[\s\\]", "", text)
    text = re.sub(r"(?<!\d)\*|\*(?!\d)", "", text)  # 2*5 keeps its sign: it is not 25
    sides = re.split(r"([<>≠]?=|[<>≠])", text)
    return tuple(tuple(sorted(terms(side))) for side in sides)


def _without_thousands(text: str) -> str:
    """1,200 -> 1200, but not (1,200): in brackets a comma separates."""
    depth = depths(text)
    plain = ""
    end = 0
    for found in THOUSANDS.finditer(text):
        if depth[found.start()] == 0:
            plain += text[end : found.start()] + found[0].replace(",", "")
            end = found.end()
    return plain + text[end:]


def sorted_parts(parts: list[str]) -> tuple:
    return tuple(sorted(map(normal, parts), key=repr))


def number(text: str) -> Fraction | None:
    """The value of a decimal, a fraction or a mixed number; None for anything else.

    A division that comes out even is no number either.
    """
    match = NUMBER.fullmatch(re.sub(r"^([-+])\s+", r"\1", text).removeprefix("+"))
    if not match:
        return None
    minus, whole, above, below = match.groups()
    if below and (not above.isdecimal() or int(below) == 0):
        return None
    value = Fraction(above) / int(below or 1)
    if below and value.denominator == 1:
        return None
    value += int(whole or 0)
    return -value if minus else value
