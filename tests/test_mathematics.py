"""Mathematics: the grader, on data sets and on hostile text, and what generated problems say."""

import itertools
import random
import re
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

import data
from data import split_of
from data.problems import InputError, Problem
from data.real import rows as files
from data.real.math_sets import from_row
from data.tasks import mathematics
from data.tasks.answers import canonical, equal, final_answer
from data.tasks.mathematics import SETTINGS, build, grade, rendered

REAL = Path(__file__).parents[2] / "shared/data"

EQUAL = [
    ("1e5", "100,000"),
    ("0.00001", "1e-05"),
    ("1/2", r"\frac12"),
    ("0.5", r"\dfrac{1}{2}"),
    ("50 / 100", "1/2"),
    (r"137\frac12", "137.5"),
    ("-1 1/2", "-1.5"),
    (r"\frac 59", r"\frac5{9}"),
    (".5", "0.50"),
    ("1,080", "1080"),
    (r"1,\!080", "1080.0"),
    ("10{,}080", "10,080"),
    (r"100,\!000\text{ people}", "100000"),
    ("+5", "5"),
    ("5.", "5"),
    ("−5", "-5"),
    ("x = 5", "5"),
    ("f(x)=2x", "2x"),
    (r"x \in [-2,7]", "[-2,7]"),
    ("x=1 or x=-2", "-2, 1"),
    ("1 and -2", r"\{1,-2\}"),
    ("3, 5, 7", "7,5,3"),
    ("{1, 2}", r"\{2,1\}"),
    (r"(-\infty,2)\cup(3,\infty)", "(3,oo) ∪ (-oo, 2)"),
    ("(1,200)", "(1, 200)"),
    (r"\left( 3, \frac{\pi}{2} \right)", "(3, pi/2)"),
    ("5 dollars", r"\$5"),
    ("$5$", "5"),
    (r"5\%", "5 percent"),
    ("90 degrees", r"90^\circ"),
    ("90°", r"90^{\circ}"),
    (r"15\text{ cm}^2", "15 square feet"),
    (r"2 \sqrt{3}", r"2\sqrt3"),
    ("2*sqrt(3)", r"2\cdot\sqrt{3}"),
    (r"\sqrt[3]{2}", r"\sqrt[3]2"),
    (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2"),
    ("√19", r"\sqrt{19}"),
    ("x^(2)", "x^{2}"),
    ("x^10", "x^{10}"),
    (r"\frac{3\pi}{2}", "3pi/2"),
    (r"-\frac{\pi}{6}", r"\frac{-\pi}{6}"),
    (r"\frac{1}{2a}", "1/(2a)"),
    ("52_8", "52_{8}"),
    (r"x_{\text{max}}", r"x_\text{max}"),
    (r"1\frac{1}{2}\pi", r"1 1/2\pi"),
    ("-5i+6", "6 - 5i"),
    (r"1\pm\sqrt{19}", "±√19 + 1"),
    ("y=2x+3", "y = 3 + 2x"),
    (r"x\le 5", "x <= 5"),
    (r"\text{East}", "east"),
    (r"\text{(C)}", "C"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    (r"\begin{pmatrix}1&2\\3&4\\ \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
]
UNEQUAL = [
    ("1e5", "1e6"),
    ("1e3/2", "500"),
    ("144/4", "36"),
    ("3+4", "7"),
    ("3^2", "9"),
    (r"\sqrt{8}", r"2\sqrt2"),
    ("2*5", "25"),
    ("2(5)", "25"),
    ("2 5", "25"),
    ("2 . 5", "2.5"),
    ("-(2)", "2"),
    ("2/0", "5"),
    ("1 4/5", "14/5"),
    ("0.333", "1/3"),
    ("50%", "1/2"),
    ("5 million", "5"),
    ("2k", "2"),
    ("52", "52_8"),
    ("3R^2", "3r^2"),
    ("x^12", "x^1 2"),
    ("x_12", "x_1 2"),
    ("1/(2a)", "a/2"),
    ("sqrt(1)2", "sqrt(12)"),
    ("(a)(b)", "(ab)"),
    ("6-5i", "6+5i"),
    ("x-2", "2-x"),
    ("y=5", "x=5"),
    ("-5", "5"),
    ("(1,2)", "(2,1)"),
    ("[1,2)", "(1,2)"),
    ("1,2", "(1,2)"),
    ("1,1,2", "1,2,2"),
    ("1 or 2", "1"),
    ("100, 200", "100200"),
    ("x^{2}y", "x^{2y}"),
    (r"2^{n}k", r"2^{nk}"),
    (r"1\frac{1}{2}\pi", r"\frac{11}{2}\pi"),
    (r"2 5\pi", r"25\pi"),
    (r"\frac{1}{2}3", r"\frac{1}{23}"),
    (r"1010_{\text{two}}", r"1010_{\text{five}}"),
    (r"1010_\text{two}", "1010"),
    (r"x_{\text{max}} = 5", r"x_{\text{min}} = 5"),
    ("1 trillion", "1"),
    ("(1,200)", "1200"),
    ("", "5"),
    ("", ""),
]


def rows(name: str) -> list[dict]:
    if not (REAL / name).exists():
        pytest.skip(f"the data set {name} is not on this machine")
    return [row for row, _ in files.read([REAL / name])]


def solved(answer: str) -> Problem:
    return Problem("math", "?\n", answer, "algebra", 1, {}, "?")


def keys(seed: int, n: int) -> set[str]:
    return {key for key, _ in itertools.islice(mathematics.problems(seed), n)}


@pytest.fixture(scope="module")
def generated() -> list[Problem]:
    return [build(key) for key in sorted(keys(0, 1200))]


def test_equal_answers():
    for a, b in EQUAL:
        assert equal(a, b) and equal(b, a), (a, b)
    for a, b in UNEQUAL:
        assert not equal(a, b) and not equal(b, a), (a, b)


def test_answers_are_counted_by_their_normal_form():
    """Equal ones are one; unequal ones are not, but for the name of an assignment."""
    for a, b in EQUAL:
        assert canonical(a) == canonical(b) is not None, (a, b)
    for a, b in UNEQUAL:
        is_of_names = (a, b) == ("y=5", "x=5")
        if canonical(a) is not None:
            assert (canonical(a) == canonical(b)) == is_of_names, (a, b)
    assert canonical("") is None and canonical("1" * 1000) is None

    texts = ["so 1 + 1 = 2\nAnswer: 1/2", r"\boxed{0.5}", "Answer: 0.6", ""]
    half, same, other, nothing = data.votes([solved("1")] * 4, texts)
    assert half == same != other and nothing is None


def test_words_that_change_a_value_are_no_units():
    for given, wanted, same in [
        (r"5 \text{ million}", "5", False),
        (r"5 \text{ million}", "5 million", True),
        (r"3+2\mathrm{i}", "3+2", False),
        (r"3+2\mathrm{i}", "3+2i", True),
        (r"8 \text{ or less}", "8", False),
        ("5 squared", "5", False),
        ("5 less than", "5", False),
        ("5 Million", "5", False),
        (r"5\text{ millions}", "5", False),
        ("18 is not the answer", "18", False),
        (r"12\text{ m}^2", "12", True),
        ("5 dollars", "5", True),
    ]:
        assert equal(given, wanted) == same, (given, wanted)


def test_digits_are_asked_of_values_that_have_two():
    assert mathematics.has_its_digits(28, ["v * c: 3", "t + u:"])
    assert not mathematics.has_its_digits(28, ["v * c: 4", "t + u:"])  # of 112
    assert mathematics.has_its_digits(28, ["v * c: 4", "v / c: 2"])


def test_the_final_answer_is_found_in_the_documented_order():
    for text, answer in [
        (r"\boxed{1} so \boxed{\frac{2}{3}}. #### 4", r"\frac{2}{3}"),
        (r"\boxed{\{1,2\}}, \boxed{3", r"\{1,2\}"),
        (r"$\boxed 7$", "7"),
        (r"} { \fbox{8}", "8"),
        ("#### 1\n#### 2 \nno Answer here", "2"),
        ("#### Step 2\nthen 7\nAnswer: 3", "3"),
        ("**Answer:**\n\n42\n7", "42"),
        ("Answer: **-4**", "-4"),
        ("so it is −5", "−5"),
        ("so it is -$5", "-$5"),
        ("so it is .5", ".5"),
        ("so 1e5", "1e5"),
        ("She earns 42, as said", "42"),
        ("Answer: 3\n**Respuesta:** x = 4\n5", "x = 4"),
        ("a 12-5\nis 1,234.5 or 3/4 then", "3/4"),
        ("so -7 it is", "-7"),
        ("it is\nnone\n", "none"),
        ("the 3 of them\nare $2\\sqrt{3}$.", r"2\sqrt{3}"),
        (r"so \[ x = \frac{1}{2} \]", r"\frac{1}{2}"),
        (r"so $x = \frac{1}{2}$ for each $n$", r"\frac{1}{2}"),
        (r"so $x = \frac{1}{2}$, or 0.5", "0.5"),
        ("so $5 + 13 = 18$.", "18"),
        ("It is $x^2$\nso 4", "4"),
        ("Answer:\r\n18\r\n", "18"),
        # a sentence in the answer's place, and a heading
        ("Answer: Janet makes $18 every day.", "$18"),
        ("#### She has $18 and $5, so 23 in all.", "23"),
        ("Answer: the product is $x^2$, not $x$, so $x^2$.", "x^2"),
        ("Answer: the product is x^2", "the product is x^2"),
        ("Answer: 3 hours and 20 minutes", "3 hours and 20 minutes"),
        ("Answer: no real solutions", "no real solutions"),
        ("Answer: the value of $x$ is 5", "5"),
        ("Answer: As $x = 3$, the number of it is 18.", "18"),
        ("Answer: It is $18$, where $x$ counts eggs", "18"),
        (r"Answer: Janet makes \$18 every day", "$18"),
        ("Answer: The answer is **18**.", "18"),
        (r"Answer: The answer is **$36\pi^2$**.", r"36\pi^2"),
        (r"Answer: The answer is $\sqrt{3}$, about 1.73 (see step 3)", r"\sqrt{3}"),
        ("Answer: one of 5 choices is $C$", "C"),
        ("Answer: an 18-mile trip", "18"),
        ("#### Final Answer\n$$\n18\n$$", "18"),
        ("#### Step-by-step solution\nSo there are 7.", "7"),
        (r"Answer: the value of it is \(18\).", "18"),
        ("Answer: the area of it is 25 cm^2", "25"),
        ("Answer: the value of x is –25.", "–25"),
        ("Answer: 5\n#### Conclusion\nSo there are 7.", "5"),
        ("##### 3. Conclusion\nSo there are 7.", "7"),
        ("#### Step 2: Add 3\nSo there are 7.", "7"),
        ("#### ✅ Final Answer\n$\\frac12$", r"$\frac12$"),
        ("#### East\nHe turned 90 degrees.", "East"),
        ("#### East", "East"),
        ("", ""),
    ]:
        assert final_answer(text) == answer

    # of a sentence whose last number is part of something else no number is told
    for line in [
        "The value is negative 25.",
        "The value is - 25.",
        "The area of it is 25π.",
        "The product of them is 25x.",
        "It is between 10-25 of them",
        "They meet at 5:30 then",
        "There are 3 million of them",
        "the 5th of May",
        "sqrt(2) + sqrt(3) + sqrt(5)",
        "pi/2, pi/4 and pi/8",
        "sin(2x) + cos(3x) + tan(x)",
        "alpha = 5, beta = 3, gamma = 2",
        "The value is negative $25$",
        "There are \\(25\\) million of them",
        "The length is 3 1/2",
        "The point is (3, 25)",
    ]:
        assert final_answer(f"Answer: {line}") == line


@pytest.mark.parametrize("name", ["gsm8k/train.jsonl.gz", "gsm8k/test.jsonl.gz"])
def test_every_gsm8k_answer_is_right_and_any_other_number_wrong(name):
    found = rows(name)
    problems = [from_row(row) for row in found]
    answers = [int(row["answer"].split("####")[1].replace(",", "")) for row in found]
    assert all(grade(problems, [problem.reference for problem in problems]))
    assert all(grade(problems, [rf"so it is \boxed{{{answer:,}}} dollars" for answer in answers]))
    for other in ("{}1", "{}.5", "{}0003"):
        texts = ["Answer: " + other.format(answer) for answer in answers]
        assert not any(grade(problems, texts))
    assert not any("<<" in problem.reference for problem in problems)
    assert len({problem.key for problem in problems}) == len(answers)


def changed(answer: str) -> list[str]:
    """The answer with one character changed: each of its digits, or a letter if it has none."""
    found = []
    for i, c in enumerate(answer):
        in_unit = re.search(r"(mbox|text)\{[^}]*\}\^$", answer[:i])
        if c.isdigit() and not in_unit:
            digit = (int(c) + 1) % 10
            found.append(f"{answer[:i]}{digit}{answer[i + 1 :]}")
    if found:
        return found
    last = max(i for i, c in enumerate(answer) if c.isalpha())
    letter = "x" if answer[last] != "x" else "w"
    return [answer[:last] + letter + answer[last + 1 :]]


def test_every_math500_answer_is_right_and_one_changed_character_is_wrong():
    for row in rows("math/math500_test.json"):
        problem = from_row(row)
        answer = row["answer"]
        assert problem.reference == row["solution"]
        assert problem.level == row["level"]
        right = [row["solution"], rf"\boxed{{{answer}}}", f"Answer: {answer}", f"#### ${answer}$."]
        assert all(grade([problem] * len(right), right)), answer
        wrong = [*changed(answer), f"{answer} + 1", f"{answer}, {answer}", ""]
        if answer != "0":
            wrong.append(f"-{answer}")
        assert not any(grade([problem] * len(wrong), [f"Answer: {text}" for text in wrong])), answer


# fmt: off
LONG = [
    "{", "}", r"\boxed{", "9", "9,", "#", "####ab", "####ab\n", "#### step 1 ", "#### the answer\n",
    "Answer:", "Answer: it is it", r"\(", "$a", "$$", "(", " ", "*", "^2", "\\", "\n",
    "1/", r"\boxed ",
]
SHORT = [
    "^", r"\frac", r"\sqrt", "+", "1 ", "1-", "1,", "1,000", "()", "[(", "=", "1 1/", "a", "5 a",
    r"\text{a}", "1/2 ", ".", "½", "x=",
]
PIECES = [
    r"\frac", r"\sqrt", "{", "}", "(", ")", "[", "]", "1", "2", ",", "x", "^", "_", r"\text{",
    r"\boxed{", "/", "-", ".", r"\pm", r"\cup", r"\{", r"\}", "and", "=", "%", "\\\\", "&",
    r"\begin{pmatrix}", r"\end{pmatrix}", "cm", " ",
]
# fmt: on


def test_hostile_answers_are_wrong_and_cost_little():
    n = 300_000
    texts = {
        "Answer: 10^999999999",
        "Answer: 1e999999999",
        r"\boxed{9^{9^{9^{9^9}}}}",
        r"\boxed{__import__('os').abort()}",
        "\ud800",
        "\x00",
        r"\boxed" + " " * n,
        "Answer: so it is the a" + "_" * n + "x",
        r"\boxed{" + "(" * 190 + "77" + ")" * 190 + "}",
        r"\boxed{" + "{" * 190 + "77" + "}" * 190 + "}",
        r"\boxed{" + r"\frac{" * 60 + "1" + "}{2}" * 60 + "}",
    }
    texts |= {unit * (n // len(unit)) for unit in LONG}
    texts |= {f"Answer: {(unit * 400)[:400]}" for unit in SHORT}
    rng = random.Random(0)
    texts |= {"".join(rng.choices(PIECES, k=30)) for _ in range(150)}

    start = time.perf_counter()
    assert not any(grade([solved(r"\boxed{77}")] * len(texts), sorted(texts)))
    assert not any(equal(text, "77") for text in texts)
    # about 1 s; quadratic work on one of the long texts would take hours
    assert time.perf_counter() - start < 20


GOOD = {
    "problem": "1+1?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": r"It is $\boxed{2}$.",
}


def test_rows_of_math_and_gsm8k():
    problem = from_row(GOOD)
    assert problem == Problem("math", "1+1?\n", r"It is $\boxed{2}$.", "algebra", 1, {}, "1+1?")
    row = {"problem": "1+1?", "level": 1, "subject": "Algebra", "answer": "2"}
    assert from_row(row).reference == r"\boxed{2}"
    problem = from_row({"question": "1 + 1?", "answer": "1+1=<<1+1=2>>2\n#### 2"})
    assert (problem.prompt, problem.reference) == ("1 + 1?\n", "1+1=2\n#### 2")
    assert (problem.domain, problem.level) == ("arithmetic", 1)
    with pytest.raises(InputError, match="real ones come in their own words"):
        rendered(problem, "english-ascii")
    # the same problem in another file's white space
    wrapped = from_row({"question": " 1 +\n1? ", "answer": "#### 2"})
    assert wrapped.key == problem.key


@pytest.mark.parametrize("subject", ["Poetry", "Real Analysis (easy", "C++"])
def test_an_unknown_subject_is_a_domain_of_its_own(subject):
    problem = from_row(GOOD | {"type": subject})
    assert problem.domain == subject.lower()
    with pytest.raises(InputError, match="real ones come in their own words"):
        rendered(problem, "english-ascii")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"level": "Level ?"}, "the level is 'Level ?', not 1 to 5"),
        ({"level": None}, "the level is None"),
        ({"type": ""}, "it has no type or subject"),
        ({"solution": "2"}, "neither an answer nor a solution"),
        ({"answer": "3"}, "the solution ends in '2' but the answer is '3'"),
        ({"problem": " "}, "neither a MATH row"),
        ({"problem": 5}, "neither a MATH row"),
        ({"problem": "", "question": "1+1?", "answer": "B"}, "neither a MATH row"),
        ({"solution": r"\boxed{}"}, "the final answer is empty"),
    ],
)
def test_malformed_rows_say_why(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_row(GOOD | change)


# ---- generated problems
def test_generated_references_are_right_in_every_setting_and_others_wrong(generated):
    assert len(generated) > 1000
    for setting in SETTINGS:
        problems = [rendered(problem, setting) for problem in generated]
        references = [problem.reference for problem in problems]
        assert all(grade(problems, references))
        answers = [final_answer(reference) for reference in references]
        assert answers == [final_answer(problem.reference) for problem in generated]

        wrong = {"{0}0": [], "{1}": [], "{2}/2": []}
        for reference, answer in zip(references[::3], answers[::3]):
            before, after = reference.rsplit(answer, 1)
            value = int(answer)
            for form, texts in wrong.items():
                texts.append(before + form.format(value, value + 1, 2 * value) + after)
        for texts in wrong.values():
            assert not any(grade(problems[::3], texts))


def test_worked_steps_are_right_and_as_many_as_the_level(generated):
    for problem in generated:
        ascii_reference = rendered(problem, "english-ascii").reference
        *lines, answer = ascii_reference.split("\n")
        assert len(lines) == problem.level <= 4
        for line in lines:
            step = re.fullmatch(r"(?:[A-F] = )?(\d+) ([-+*/]) (\d+) = (\d+)", line)
            left, right, result = Fraction(step[1]), Fraction(step[3]), int(step[4])
            computed = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}
            assert computed[step[2]] == result
            assert 2 <= result <= 120
        assert answer == f"Answer: {result}"

        latex = problem.reference.replace("$", "").replace(r"\times", "*")
        latex = re.sub(r"\\boxed\{(\d+)\}", r"\1", latex)
        assert re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1 / \2", latex) == ascii_reference


def without_latex(text: str) -> str:
    return re.sub(r"\\frac\{1\}\{(\d)\}", r"1/\1", text.replace("$", ""))


def test_a_problem_is_the_same_story_in_every_setting(generated):
    for problem in generated:
        told = {setting: rendered(problem, setting) for setting in SETTINGS}
        assert told["english-latex"] == problem
        assert {other.key for other in told.values()} == {problem.key}
        for language in ("english", "spanish"):
            latex = told[f"{language}-latex"].prompt
            text = told[f"{language}-ascii"].prompt
            assert without_latex(latex) == text
            assert not set("{}|()$\\") & set(text)
            assert not re.search(r" (de|a) el |  |\.\.", text), text
            assert text.count("\n") == 1
            assert text.endswith("\n")
            assert 4 <= len(text.split()) <= 90
        for other in told.values():
            assert other.reference == other.reference.rstrip()

        english, spanish = problem.prompt, told["spanish-latex"].prompt
        assert english != spanish
        if problem.domain == "algebra":
            name = re.search(r"(\w+) had", english)[1]
            assert re.search(r"(\w+) tenía", spanish)[1] == name


def test_there_are_many_problems_and_no_common_answer(generated):
    assert len(keys(1, 10_000)) > 8_800
    answers = Counter(final_answer(problem.reference) for problem in generated)
    beginnings = Counter(" ".join(problem.prompt.split()[:4]) for problem in generated)
    for share in (answers, beginnings):
        assert share.most_common(1)[0][1] < 0.05 * len(generated)
    mix = Counter((problem.domain, problem.level) for problem in generated)
    assert len(mix) == 12
    assert min(mix.values()) > 0.02 * len(generated)


def test_splits(generated):
    for split in data.SPLITS:
        problems = data.load("math", split, 60)
        assert {split_of("math", problem.key) for problem in problems} == {split}
        assert split == "corpus" or len({problem.key for problem in problems}) == 60
        for setting in SETTINGS:
            others = [rendered(problem, setting) for problem in problems]
            assert [other.key for other in others] == [problem.key for problem in problems]
    references = [problem.reference for problem in problems]
    assert all(data.grade(problems, references))
    message = "unknown setting 'french': choose from english-latex, english-ascii"
    with pytest.raises(InputError, match=message):
        rendered(generated[0], "french")


# Written down: a change here gives every later model other training and validation problems.
EXAMPLES = [
    (
        "geometry forward 33; v + c: 12; v + c: 19",
        "english-latex",
        "Rod A is $33$ cm long. Gluing $12$ cm to rod A gives rod B. Rod B is $19$ cm shorter "
        "than rod C. How many cm long is rod C?\n",
        "$B = 33 + 12 = 45$\n$C = 45 + 19 = 64$\nAnswer: \\boxed{64}",
    ),
    (
        "geometry forward 58; v - c: 8; v / 2, w - c: 5; c - v: 91",
        "spanish-ascii",  # shuffled
        "El lazo A mide 58 cm. Un rectángulo de lados 5 cm y el lazo C tiene un perímetro como el "
        "lazo B. El lazo C y el lazo D miden juntos 91 cm. "
        "Al cortar 8 cm del lazo A queda el lazo B. ¿Cuántos cm mide el lazo D?\n",
        "B = 58 - 8 = 50\n50 / 2 = 25\nC = 25 - 5 = 20\nD = 91 - 20 = 71\nRespuesta: 71",
    ),
    (
        "algebra backward 60; v * c: 2; v / c: 5; v * c: 3",
        "spanish-ascii",  # the last two events in reverse
        "Zoe tenía unas conchas. Zoe se quedó solo con un tercio del total. A continuación Zoe se "
        "quedó solo con la mitad del total. Justo antes de eso, "
        "Zoe trabajó hasta tener el quíntuple de esa cantidad. Finalmente Zoe tenía 60. ¿Cuántas "
        "conchas tenía Zoe al principio?\n",
        "60 * 2 = 120\n120 / 5 = 24\n24 * 3 = 72\nRespuesta: 72",
    ),
    (
        "algebra forward 50; v / c: 2; c * d, v - w: 3 5; v + c: 10",
        "spanish-latex",
        "Zoe tenía $50$ galletas. Clara tiene $48$ años. Zoe se quedó solo con la mitad del "
        "total. A continuación Zoe recibió $10$ más. Justo antes de eso, "
        "Zoe vendió $3$ bolsas de $5$. ¿Cuántas galletas tenía Zoe al final?\n",
        "$\\frac{50}{2} = 25$\n$3 \\times 5 = 15$\n$25 - 15 = 10$\n$10 + 10 = 20$\nRespuesta: "
        "\\boxed{20}",
    ),
    (
        "numbers forward 72; t + u:; v * v:; v / c, v + w: 3",
        "english-ascii",
        "Work out the result of increasing by 1/3 the square of the digit sum of 72.\n",
        "7 + 2 = 9\n9 * 9 = 81\n81 / 3 = 27\n81 + 27 = 108\nAnswer: 108",
    ),
    (
        "numbers backward 65; v / c: 5; v - c: 3; v - c: 8",
        "spanish-ascii",
        "El quíntuple de la suma de 3 y el resultado de sumar 8 a cierto número es 65. Halla el "
        "número.\n",
        "65 / 5 = 13\n13 - 3 = 10\n10 - 8 = 2\nRespuesta: 2",
    ),
]


def test_worked_examples():
    for key, setting, prompt, reference in EXAMPLES:
        problem = build(key, setting=setting)
        assert (problem.prompt, problem.reference) == (prompt, reference)
