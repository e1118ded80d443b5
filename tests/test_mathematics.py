"""Mathematics: the grader on whole data sets and on hostile text, and generated problems that say what they compute."""

import gzip
import itertools
import json
import random
import re
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

import data
from data import split_of
from data.problems import Problem
from data.real.math_sets import from_row
from data.tasks import mathematics
from data.tasks.answers import equal, final_answer
from data.tasks.mathematics import SETTINGS, build, grade, rendered

REAL = Path(__file__).parents[2] / "shared/data"

EQUAL = [
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
    ("(1,200)", "1200"),
    ("", "5"),
    ("", ""),
]


def rows(name: str) -> list[dict]:
    if not (REAL / name).exists():
        pytest.skip(f"the data set {name} is not on this machine")
    text = (
        gzip.open(REAL / name, "rt").read() if name.endswith(".gz") else (REAL / name).read_text()
    )
    return (
        json.loads(text)
        if name.endswith(".json")
        else [json.loads(line) for line in text.splitlines()]
    )


def solved(answer: str) -> Problem:
    return Problem("math", "?\n", answer, "algebra", 1, {}, "?")


@pytest.fixture(scope="module")
def generated() -> list[Problem]:
    return [
        build(key)
        for key in sorted({key for key, _ in itertools.islice(mathematics.problems(0), 2500)})
    ]


def test_equal_answers():
    for a, b in EQUAL:
        assert equal(a, b) and equal(b, a), (a, b)
    for a, b in UNEQUAL:
        assert not equal(a, b) and not equal(b, a), (a, b)


def test_the_final_answer_is_found_in_the_documented_order():
    for text, answer in [
        (r"\boxed{1} so \boxed{\frac{2}{3}}. #### 4", r"\frac{2}{3}"),
        (r"\boxed{\{1,2\}}, \boxed{3", r"\{1,2\}"),
        (r"$\boxed 7$", "7"),
        (r"} { \fbox{8}", "8"),
        ("#### 1\n#### 2 \nAnswer: 3", "2"),
        ("Answer: 3\n**Respuesta:** x = 4\n5", "x = 4"),
        ("a 12-5\nis 1,234.5 or 3/4 then", "3/4"),
        ("so -7 it is", "-7"),
        ("it is\nnone\n", "none"),
        ("", ""),
    ]:
        assert final_answer(text) == answer


@pytest.mark.parametrize("name", ["gsm8k/train.jsonl.gz", "gsm8k/test.jsonl.gz"])
def test_every_gsm8k_answer_is_right_and_any_other_number_wrong(name):
    problems = [from_row(row) for row in rows(name)]
    answers = [int(row["answer"].split("####")[1].replace(",", "")) for row in rows(name)]
    assert all(grade(problems, [problem.reference for problem in problems]))
    assert all(grade(problems, [rf"so it is \boxed{{{answer:,}}} dollars" for answer in answers]))
    for change in (lambda a: a + 1, lambda a: 10 * a + 3, lambda a: a + 0.5):
        assert not any(grade(problems, [f"Answer: {change(answer)}" for answer in answers]))
    assert not any("<<" in problem.reference for problem in problems) and len(
        {problem.key for problem in problems}
    ) == len(answers)


def test_every_math500_answer_is_right_and_one_changed_character_is_wrong():
    for row in rows("math/math500_test.json"):
        problem, answer = from_row(row), row["answer"]
        assert problem.reference == row["solution"] and problem.level == row["level"]
        changed = []
        for i, c in enumerate(answer):
            in_unit = re.search(r"(mbox|text)\{[^}]*\}\^$", answer[:i])
            if c.isdigit() and not in_unit:
                changed.append(answer[:i] + str((int(c) + 1) % 10) + answer[i + 1 :])
        if not changed:  # a word or a variable
            last = max(i for i, c in enumerate(answer) if c.isalpha())
            changed.append(
                answer[:last] + ("x" if answer[last] != "x" else "w") + answer[last + 1 :]
            )
        texts = [row["solution"], rf"\boxed{{{answer}}}", f"Answer: {answer}", f"#### ${answer}$."]
        wrong = [f"Answer: {text}" for text in changed] + [
            f"Answer: {answer} + 1",
            f"Answer: {answer}, {answer}",
            "Answer:",
        ]
        wrong += [f"Answer: -{answer}"] if answer != "0" else []
        assert grade([problem] * len(texts), texts) == [True] * len(texts), answer
        assert not any(grade([problem] * len(wrong), wrong)), answer


def test_hostile_answers_are_wrong_and_cost_little():
    n = 10**6
    texts = {
        unit * (n // len(unit))
        for unit in ("{", "}", r"\boxed{", "9", "9,", "#", "Answer:", "\\", "\n", "1/", r"\boxed ")
    }
    texts |= {
        "Answer: 10^999999999",
        "Answer: 1e999999999",
        r"\boxed{9^{9^{9^{9^9}}}}",
        r"\boxed{__import__('os').abort()}",
        "\ud800",
        "\x00",
        r"\boxed" + " " * n,
        r"\boxed{" + "(" * 190 + "77" + ")" * 190 + "}",
        r"\boxed{" + "{" * 190 + "77" + "}" * 190 + "}",
        r"\boxed{" + r"\frac{" * 60 + "1" + "}{2}" * 60 + "}",
    }
    texts |= {
        f"Answer: {(unit * 400)[:400]}"
        for unit in (
            "^",
            r"\frac",
            r"\sqrt",
            "+",
            "1 ",
            "1-",
            "1,",
            "1,000",
            "()",
            "[(",
            "=",
            "1 1/",
            "a",
            "5 a",
            r"\text{a}",
            "1/2 ",
            ".",
            "½",
            "x=",
        )
    }
    rng = random.Random(0)
    pieces = (
        r"\frac \sqrt { } ( ) [ ] 1 2 , x ^ _ \text{ \boxed{ / - . \pm \cup \{ \} and = % \\ & \begin{pmatrix} \end{pmatrix} cm".split()
        + [" "]
    )
    texts |= {"".join(rng.choices(pieces, k=30)) for _ in range(300)}
    start = time.perf_counter()
    assert not any(grade([solved(r"\boxed{77}")] * len(texts), sorted(texts)))
    assert not any(equal(text, "77") for text in texts)
    assert (
        time.perf_counter() - start < 20
    )  # about 2 s; quadratic work on one of the long texts would take hours


def test_malformed_rows_say_why():
    good = {
        "problem": "1+1?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": r"It is $\boxed{2}$.",
    }
    assert from_row(good) == Problem(
        "math", "1+1?\n", r"It is $\boxed{2}$.", "algebra", 1, {}, "1+1?"
    )
    assert (
        from_row({"problem": "1+1?", "level": 1, "subject": "Algebra", "answer": "2"}).reference
        == r"\boxed{2}"
    )
    for change, message in [
        ({"level": "Level ?"}, "the level is 'Level ?', not 1 to 5"),
        ({"type": "Poetry"}, "unknown subject 'Poetry'"),
        ({"solution": "2"}, "neither an answer nor a solution"),
        ({"answer": "3"}, "the solution ends in '2' but the answer is '3'"),
        ({"problem": " "}, "neither a MATH row"),
        ({"problem": 5}, "neither a MATH row"),
        ({"solution": r"\boxed{}"}, "the final answer is empty"),
        ({"level": None}, "the level is None"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            from_row(good | change)
    with pytest.raises(ValueError, match="neither a MATH row"):
        from_row({"question": "1+1?", "answer": "B"})
    problem = from_row({"question": "1 + 1?", "answer": "1+1=<<1+1=2>>2\n#### 2"})
    assert (problem.prompt, problem.reference, problem.domain, problem.level) == (
        "1 + 1?\n",
        "1+1=2\n#### 2",
        "arithmetic",
        1,
    )
    with pytest.raises(ValueError, match="real ones come in their own words"):
        rendered(problem, "english-ascii")


def test_generated_references_are_right_in_every_setting_and_others_wrong(generated):
    assert len(generated) > 2000
    for setting in SETTINGS:
        problems = [rendered(problem, setting) for problem in generated]
        references = [problem.reference for problem in problems]
        heads, answers = zip(
            *(
                re.fullmatch(r"(.*\D)(\d+)(?=}?$).*", reference, re.DOTALL).groups()
                for reference in references
            )
        )
        assert all(grade(problems, references))
        assert [final_answer(reference) for reference in references] == [
            final_answer(problem.reference) for problem in generated
        ]
        for change in (lambda a: a + "0", lambda a: str(int(a) + 1), lambda a: f"{2 * int(a)}/2"):
            texts = [
                head + change(answer) + reference[len(head + answer) :]
                for head, answer, reference in zip(heads, answers, references)
            ]
            assert not any(grade(problems, texts))


def test_worked_steps_are_right_and_as_many_as_the_level(generated):
    compute = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": Fraction,
    }
    for problem in generated:
        ascii_reference = rendered(problem, "english-ascii").reference
        *lines, answer = ascii_reference.split("\n")
        assert len(lines) == problem.level <= 4
        for line in lines:
            left, sign, right, result = re.fullmatch(
                r"(?:[A-F] = )?(\d+) ([-+*/]) (\d+) = (\d+)", line
            ).groups()
            assert compute[sign](int(left), int(right)) == int(result) and 2 <= int(result) <= 120
        assert answer == f"Answer: {result}"
        latex = (
            problem.reference.replace("$", "")
            .replace(r"\times", "*")
            .replace(r"\boxed{", "")
            .rstrip("}")
        )
        assert re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1 / \2", latex) == ascii_reference


def test_a_problem_is_the_same_story_in_every_setting(generated):
    for problem in generated:
        english, ascii_, spanish, spanish_ascii = (
            rendered(problem, setting) for setting in SETTINGS
        )
        assert english == problem and {
            p.key for p in (english, ascii_, spanish, spanish_ascii)
        } == {problem.key}
        plain = lambda latex: re.sub(r"\\frac\{1\}\{(\d)\}", r"1/\1", latex.replace("$", ""))
        assert (
            plain(english.prompt) == ascii_.prompt != spanish_ascii.prompt == plain(spanish.prompt)
        )
        if problem.domain == "algebra":
            assert (
                re.search(r"(\w+) had", english.prompt)[1]
                == re.search(r"(\w+) tenía", spanish.prompt)[1]
            )
        for p in (ascii_, spanish_ascii):
            assert (
                p.prompt.endswith("\n")
                and p.prompt.count("\n") == 1
                and p.reference == p.reference.rstrip()
                and 4 <= len(p.prompt.split()) <= 90
            )
            assert not set("{}|()$\\") & set(p.prompt) and not re.search(
                r" (de|a) el |  |\.\.", p.prompt
            ), p.prompt


def test_there_are_many_problems_and_no_common_answer(generated):
    assert len({key for key, _ in itertools.islice(mathematics.problems(1), 20_000)}) > 17_000
    for share in (
        Counter(final_answer(problem.reference) for problem in generated),
        Counter(" ".join(problem.prompt.split()[:4]) for problem in generated),
    ):
        assert share.most_common(1)[0][1] < 0.04 * len(generated)
    mix = Counter((problem.domain, problem.level) for problem in generated)
    assert len(mix) == 12 and min(mix.values()) > 0.02 * len(generated)


def test_splits(monkeypatch, generated):
    monkeypatch.setitem(data.TASKS, "math", mathematics)
    loaded = {split: data.load("math", split, 60) for split in data.SPLITS}
    for split, problems in loaded.items():
        assert {split_of("math", problem.key) for problem in problems} == {split}
        assert split == "corpus" or len({problem.key for problem in problems}) == 60
        assert {
            split_of("math", rendered(problem, setting).key)
            for problem in problems
            for setting in SETTINGS
        } == {split}
    assert all(
        data.grade(loaded["validation"], [problem.reference for problem in loaded["validation"]])
    )
    wrapped = from_row(
        {"question": " 1 +\n1? ", "answer": "#### 2"}
    )  # the same problem in another file's white space
    assert wrapped.key == from_row({"question": "1 + 1?", "answer": "2\n#### 2"}).key
    with pytest.raises(
        data.InputError, match="unknown setting 'french': choose from english-latex, english-ascii"
    ):
        rendered(generated[0], "french")


# Written down: a change here gives every later model other training and validation problems.
EXAMPLES = [
    (
        "geometry forward 33; v + c: 12; v + c: 19",
        "english-latex",
        "Rod A is $33$ cm long. Gluing $12$ cm to rod A gives rod B. Rod B is $19$ cm shorter than rod C. How many cm long is rod C?\n",
        "$B = 33 + 12 = 45$\n$C = 45 + 19 = 64$\nAnswer: \\boxed{64}",
    ),
    (
        "geometry forward 58; v - c: 8; v / 2, w - c: 5; c - v: 91",
        "spanish-ascii",  # shuffled
        "El lazo A mide 58 cm. Un rectángulo de lados 5 cm y el lazo C tiene un perímetro como el lazo B. El lazo C y el lazo D miden juntos 91 cm. "
        "Al cortar 8 cm del lazo A queda el lazo B. ¿Cuántos cm mide el lazo D?\n",
        "B = 58 - 8 = 50\n50 / 2 = 25\nC = 25 - 5 = 20\nD = 91 - 20 = 71\nRespuesta: 71",
    ),
    (
        "algebra backward 60; v * c: 2; v / c: 5; v * c: 3",
        "spanish-ascii",  # the last two events in reverse
        "Zoe tenía unas conchas. Zoe se quedó solo con un tercio del total. A continuación Zoe se quedó solo con la mitad del total. Justo antes de eso, "
        "Zoe trabajó hasta tener el quíntuple de esa cantidad. Finalmente Zoe tenía 60. ¿Cuántas conchas tenía Zoe al principio?\n",
        "60 * 2 = 120\n120 / 5 = 24\n24 * 3 = 72\nRespuesta: 72",
    ),
    (
        "algebra forward 50; v / c: 2; c * d, v - w: 3 5; v + c: 10",
        "spanish-latex",
        "Zoe tenía $50$ galletas. Clara tiene $48$ años. Zoe se quedó solo con la mitad del total. A continuación Zoe recibió $10$ más. Justo antes de eso, "
        "Zoe vendió $3$ bolsas de $5$. ¿Cuántas galletas tenía Zoe al final?\n",
        "$\\frac{50}{2} = 25$\n$3 \\times 5 = 15$\n$25 - 15 = 10$\n$10 + 10 = 20$\nRespuesta: \\boxed{20}",
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
        "El quíntuple de la suma de 3 y el resultado de sumar 8 a cierto número es 65. Halla el número.\n",
        "65 / 5 = 13\n13 - 3 = 10\n10 - 8 = 2\nRespuesta: 2",
    ),
]


def test_worked_examples():
    for key, setting, prompt, reference in EXAMPLES:
        problem = build(key, setting=setting)
        assert (problem.prompt, problem.reference) == (prompt, reference)
