"""Programs for real problems: every reference passes, every buggy or perturbed one fails, and cheating does not help."""

import json
import multiprocessing
import os
import time
from functools import cache
from pathlib import Path

import pytest

from data import sandbox
from data.problems import Problem
from data.real import programs
from data.real import rows as files
from data.real.programs import critique_from_row, from_row, grade, program_in
from test_sandbox import ANCHORS, PAGES, confined, probes

SHARED = Path(__file__).parents[2] / "shared/data"
MBPP, APPS, PACK = (
    SHARED / "mbpp/mbpp.jsonl",
    SHARED / "apps/selected150.jsonl",
    SHARED / "critique/humanevalpack_python.jsonl",
)
here = lambda path: pytest.mark.skipif(not path.exists(), reason="the shared data is not here")
ROW = {
    "text": "Write a function to double a number.",
    "code": "def double(n):\r\n    return 2 * n\r\n",
    "task_id": 1,
    "test_setup_code": "",
    "test_list": ["assert double(40617231) == 81234462", "assert double(-1) == -2"],
    "challenge_test_list": [],
}
HUMAN = {
    "task_id": "x/0",
    "prompt": 'from typing import List\n\ndef near(xs: List[float]) -> float:\n    """ The mean. """\n',
    "entry_point": "near",
    "canonical_solution": "    return sum(xs) / len(xs)\n",
    "buggy_solution": "    return sum(xs)\n",
    "bug_type": "missing logic",
    "test": "def check(candidate):\n    for n in range(1, 4):\n        assert abs(candidate([1.0] * n + [2.0]) - 1) < 1 / n\n",
}


def human_eval(**changes) -> Problem:
    return from_row(HUMAN | changes)


@cache
def mbpp() -> list[Problem]:
    return files.problems_from([MBPP], from_row)


def wrong(problem: Problem) -> str:
    """The reference, but for what it returns: its value in a list."""
    function = problem.grading["function"]
    return f"{problem.reference}\n_right = {function}\ndef {function}(*args):\n    return [_right(*args)]"


@here(MBPP)
def test_all_mbpp_references_pass_and_perturbed_ones_fail():
    assert len(mbpp()) == 974 and len({problem.key for problem in mbpp()}) == 974
    failed = [
        p.prompt
        for p, passed in zip(
            mbpp(), grade(mbpp(), [f"```python\n{p.reference}\n```" for p in mbpp()])
        )
        if not passed
    ]
    assert failed == []
    some = mbpp()[::3]  # for time; 974 of them take ten seconds
    assert not any(grade(some, list(map(wrong, some))))


@here(PACK)
def test_all_repairs_pass_and_all_buggy_programs_fail(monkeypatch):
    monkeypatch.setitem(programs.CPU, "tests", 1)  # some buggy programs never end
    repairs = files.problems_from([PACK], critique_from_row)
    rows = [row for row, _ in files.read([PACK])]
    assert (
        len(repairs) == 164
        and {p.task for p in repairs} == {"critique"}
        and len({p.domain for p in repairs}) == 6
    )
    assert all(
        row["buggy_solution"].strip() in p.prompt and row["docstring"].split("\n")[0] in p.prompt
        for p, row in zip(repairs, rows)
    )
    assert [
        p.prompt
        for p, passed in zip(repairs, grade(repairs, [p.reference for p in repairs]))
        if not passed
    ] == []
    buggy = [row["prompt"] + row["buggy_solution"] for row in rows]
    assert [p.prompt for p, passed in zip(repairs, grade(repairs, buggy)) if passed] == []


@here(PACK)
def test_human_eval_is_also_a_code_task():
    problems = files.problems_from([PACK], from_row)
    assert len(problems) == 164 and {p.task for p in problems} == {"code"}
    assert all(grade(problems[:40], [p.reference for p in problems[:40]]))
    assert not any(grade(problems, ["def f(x): return x"] * 164))


@here(APPS)
def test_apps_loads_and_wrong_programs_fail(capsys):
    problems = files.problems_from([APPS], from_row)
    assert capsys.readouterr().err.endswith(
        "kept 148 of 150 rows\n"
    )  # one problem, twice, has arguments of several lines
    assert {(p.domain, p.level) for p in problems} == {
        ("apps introductory", 1),
        ("apps interview", 2),
        ("apps competition", 3),
    }
    for text in ("def f(x): return x", "print(0)", "", "raise SystemExit"):
        assert not any(grade(problems, [text] * len(problems)))
    right = {  # our own, as the sample has none: strings that look like numbers, numbers, lists, both kinds, standard input
        "def is_lucky(": "def is_lucky(t): return len(t) == 6 and t.isdigit() and sum(map(int, t[:3])) == sum(map(int, t[3:]))",
        "def sum_of_squares(": "def sum_of_squares(n):\n    square = lambda k: int(k ** .5) ** 2 == k\n    if square(n): return 1\n"
        "    if any(square(n - i * i) for i in range(1, int(n ** .5) + 1)): return 2\n"
        "    while n % 4 == 0: n //= 4\n    return 4 if n % 8 == 7 else 3",
        "def multiple_of_index(": "def multiple_of_index(a): return [x for i, x in enumerate(a) if i and x % i == 0]",
        "def is_polydivisible(": "def is_polydivisible(s, b): return all(int(s[:i], b) % i == 0 for i in range(1, len(s) + 1))",
        '"QAQ" is a word': "s = input()\nprint(sum(s[:i].count('Q') * s[i:].count('Q') for i, c in enumerate(s) if c == 'A'))",
    }
    for words, program in right.items():
        chosen = [p for p in problems if words in p.prompt]
        assert chosen and all(grade(chosen, [program] * len(chosen))), words


def test_apps_in_its_own_format():
    row = {
        "problem_id": 0,
        "question": "Sum two numbers.",
        "solutions": '["a, b = map(int, input().split())\\nprint(a + b)\\n"]',
        "difficulty": "interview",
        "input_output": json.dumps({"inputs": ["1 2\n", ["3 4"]], "outputs": ["3\n", ["7"]]}),
        "url": "",
        "starter_code": "",
    }
    problem = from_row(row)
    assert (problem.task, problem.domain, problem.level) == (
        "code",
        "apps interview",
        2,
    ) and "standard input" in problem.prompt
    read_all = "import sys\nsys.stdout.write(str(sum(map(int, sys.stdin.buffer.read().split()))) + '\\n\\n')\nsys.exit()"
    texts = [
        problem.reference,
        read_all,
        "if __name__ == '__main__':\n    print(sum(int(x) for x in input().split()))",
        "print(3)",
        "print(3, 7)",
        "import os\nos._exit(0)",
        "a, b = map(int, input().split())\nprint(a + b)\nprint(7)",
        "import sys\nfor x in sys.stdin: print(1 / 0)",
        "total = 0",
        "def f(",
    ]
    assert grade([problem] * len(texts), texts) == [True] * 3 + [False] * 7

    tests = {"fn_name": "half", "inputs": [[1], [4]], "outputs": [[0.5], [2]]}
    problem = from_row(
        row
        | {
            "input_output": json.dumps(tests),
            "starter_code": "class Solution:\n    def half(self, n: int) -> float:",
            "solutions": "",
        }
    )
    assert problem.reference == "" and "class Solution" in problem.prompt
    body = "class Solution:\n    def half(self, n): return "
    texts = [
        body + "n / 2",
        body + "0.1 * 5 * n",
        body + "[n / 2]",
        body + "n // 2",
        body + "str(n / 2)",
        "def half(n): return n / 2",
        body + "None",
    ]
    assert grade([problem] * len(texts), texts) == [True] * 3 + [False] * 4


@pytest.mark.parametrize(
    "found, expected, same",
    [
        (1, 1, True),
        (1.0, 1, True),
        (0.1 + 0.2, 0.3, True),
        (0.31, 0.3, False),
        (10**400, 1.0, False),
        ("1", 1, False),
        ([1, [2.0]], [1, [2]], True),
        ([1], 1, False),
        (1, [1], True),
        ([1], [1], True),
        ([[1]], [1], False),
        ([1, 2], [1], False),
        ({"a": 1}, [{"a": 1}], True),
        (None, [None], True),
        ([], [], True),
        ({"error": "ValueError"}, "ValueError", False),
    ],
)
def test_values_are_compared_as_apps_means_it(found, expected, same):
    assert programs._same(found, expected) == same


@pytest.mark.parametrize(
    "printed, expected, same",
    [
        (["1 2\n"], ["1  2"], True),
        (["1"], ["1.0"], True),
        (["0.3000000001"], ["0.3"], True),
        (["0.31"], ["0.3"], False),
        (["1.0"], ["1"], False),
        (["x"], ["0.5"], False),
        (["1\n2"], ["1"], False),
        (["YES"], ["Yes"], False),
        ([], [""], False),
        ([""], [""], True),
        ("a", ["a"], False),
        ([1], ["1"], False),
        (None, ["1"], False),
    ],
)
def test_printed_text_is_compared_word_by_word(printed, expected, same):
    assert programs._same_texts(printed, expected) == same


def test_mbpp_shows_one_test_and_hides_the_others():
    problem = from_row(ROW)
    assert (
        problem.prompt
        == "Write a function to double a number.\nIt must pass this test:\nassert double(40617231) == 81234462\n"
    )
    assert (
        problem.reference == "def double(n):\n    return 2 * n"
        and json.loads(json.dumps(problem.grading)) == problem.grading
    )
    only_shown = "def double(n): return 81234462"
    assert grade([problem] * 3, [problem.reference, only_shown, ""]) == [True, False, False]


def test_human_eval_tests_may_loop_and_compare_with_a_tolerance():
    problem = human_eval()
    assert problem.reference.startswith("from typing") and problem.prompt.endswith(
        '""" The mean. """\n'
    )
    texts = [
        problem.reference,
        "def near(xs: List[float]): return sum(xs) / len(xs)",
        "def near(xs): return sum(xs) / len(xs) + 1e-9",
    ]
    assert grade([problem] * 5, [*texts, "def near(xs): return sum(xs)", ""]) == [
        True,
        True,
        True,
        False,
        False,
    ]
    repair = critique_from_row(HUMAN)
    assert (repair.task, repair.domain) == ("critique", "missing logic") and repair.prompt.endswith(
        "return sum(xs)\n"
    )
    assert grade([repair] * 2, [repair.reference, HUMAN["prompt"] + HUMAN["buggy_solution"]]) == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    "value",
    [
        "(1, [2.5, {'a': {3}}], frozenset({4}), b'x', 1j, None, True)",
        "float('inf')",
        "collections.Counter('aab')",
        "10 ** 3000",
    ],
)
def test_answers_keep_their_types(value):
    row = {
        "text": "x",
        "code": f"import collections\ndef f(x): return {value}",
        "test_list": [f"assert repr(f([{{1: (2,)}}])) == repr({value})"],
    }
    if "Counter" in value:  # it counts as the dict it extends
        row["test_list"] = ["assert f(0) == {'a': 2, 'b': 1} and type(f(0)) is dict"]
    problem = from_row(row)
    assert grade([problem] * 2, [problem.reference, "def f(x): return 0"]) == [True, False]


def test_tests_may_use_classes_of_the_program_and_types():
    code = """class Node:
    def __init__(self, v): self.v, self.next = v, None
def total(node, kind): return kind(node.v + (total(node.next, kind) if node.next else 0))"""
    row = {
        "text": "x",
        "code": code,
        "test_setup_code": "a = Node(1)\na.next = Node(v=2)",
        "test_list": ["assert total(a, int) == 3", "assert total(Node(5), str) == '5'"],
    }
    other = code.replace("self.v", "self.w").replace(
        "node.v", "node.w"
    )  # its attributes are its own affair
    assert grade([from_row(row)] * 3, [code, other, code.replace("+", "-")]) == [True, True, False]


CHEATS = {
    "exits": "import sys\nsys.exit(0)",
    "exits in the call": "import os\ndef double(n): os._exit(0)",
    "raises SystemExit": "def double(n): raise SystemExit(0)",
    "is equal to all": "class Yes:\n    def __eq__(self, other): return True\ndef double(n): return Yes()",
    "is an int that is equal to all": "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef double(n): return Yes(3)",
    "is a str of another class": "class Yes(str):\n    __eq__ = lambda *_: True\n    __class__ = int\ndef double(n): return Yes()",
    "replaces json": "import json\njson.dumps = lambda *_: '81234462'\njson.loads = lambda *_: [1]\ndef double(n): return 1",
    "replaces the harness": "import harness, sys\nharness.encode = lambda x: 81234462\nsys.modules['harness'].judge = lambda *_: []\ndef double(n): return 1",
    "replaces builtins": "import builtins\nbuiltins.all = lambda *_: True\nbuiltins.compile = lambda *_: ''\ndef double(n): return 1",
    "reads its callers": """import gc, sys
def double(n):
    frame, found = sys._getframe(), []
    while frame:
        found += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    if str(2 * n) in repr(found) + repr([x for x in gc.get_objects() if type(x) in (list, dict, tuple)]): return 2 * n""",
    "closes the channel": "import os\nos.close(3)\ndef double(n): return 2 * n",
    "forges calls": "import os\nos.write(3, b'[[\"{}\"]]\\n')\nos._exit(0)",
    "forges a verdict": "import os\nos.write(3, b'[true]\\n')\nos._exit(0)",
    "forges no answers": "import os\nos.write(3, b'[[]]\\n')\nos._exit(0)",
    "forges a wrong form": "import os\nos.write(3, b'[[1, null]]\\n')\nos._exit(0)",
    "forges an object": "import json, os\nos.write(3, json.dumps([[json.dumps({'made': ['int', [], {}, {}]})] * 2]).encode() + b'\\n')\nos._exit(0)",
    "raises AssertionError": "def double(n): raise AssertionError",
    "returns a generator": "def double(n): yield 2 * n",
    "asks the tests": "def double(n): return check(n)",
    "changes its argument": "def double(n): n += n",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_fail_and_their_neighbours_pass(cheat):
    problem = from_row(ROW)
    programs._verdicts.clear()
    assert grade([problem] * 3, [problem.reference, CHEATS[cheat], problem.reference + " "]) == [
        True,
        False,
        True,
    ]
    script = from_row(
        {
            "question": "Print 7.",
            "difficulty": "interview",
            "input_output": '{"inputs": [""], "outputs": ["7"]}',
        }
    )
    assert grade([script] * 3, ["print(7)", CHEATS[cheat], "print( 7)"]) == [True, False, True]


# Answers as the tests say that it finds in its memory; of them it knows only the function's name.
SEARCH = f"import ctypes, re\nPROBE, NAMES = {probes()['rt_sigprocmask']}, {ANCHORS}\n{PAGES}" + r"""
import ast
known = {}
for page in look():
    for args, value in re.findall(rb"assert NAME\(([^\n\\]*?)\) ?== ?([^\n\\\0]*)", page):
        for end in (value, value.split(b'"')[0]):
            try: known[repr(ast.literal_eval(f"({args.decode()},)"))] = ast.literal_eval(end.decode())
            except Exception: pass
def NAME(*args): return known[repr(args)]
"""


def search(problem: Problem) -> str:
    return SEARCH.replace("NAME", problem.grading["function"])


@confined
def test_no_tests_are_found_in_memory():
    """Neither on a new server nor on one that has just judged this problem."""
    problem = from_row(ROW)
    for before in ([], [problem.reference]):
        sandbox.close()
        programs._verdicts.clear()
        programs._calls.clear()
        assert grade([problem] * len(before), before) == [True] * len(before)
        assert grade([problem], [search(problem)]) == [False]


@confined
@here(MBPP)
def test_no_real_tests_are_found_in_memory():
    chosen = mbpp()[::50]
    sandbox.close()
    programs._verdicts.clear()
    programs._calls.clear()
    assert all(grade(chosen, [p.reference for p in chosen]))
    for problem in chosen:
        assert grade([problem], [search(problem)]) == [False]


def test_a_reference_that_fails_its_own_tests_is_told():
    problem = from_row(ROW | {"code": "def double(n): return 3 * n"})
    with pytest.warns(UserWarning, match="the reference of double fails its own tests"):
        assert grade([problem] * 2, [problem.reference, "def double(n): return 2 * n"]) == [
            False,
            False,
        ]


@pytest.mark.parametrize(
    "completion, program",
    [
        ("x = 1\n", "x = 1\n"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx\n```\n```\ny\n```", "x\n"),
        ("```py\nx = 1\ny", "x = 1\ny"),
        ("", ""),
        ("x = '```'\n", "x = '```'\n"),
    ],
)
def test_the_program_in_a_completion(completion, program):
    assert program_in(completion) == program


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"text": 1, "code": "x", "test_list": []},
        ROW | {"code": "def double(n:"},
        ROW | {"test_list": []},
        ROW | {"test_list": ["assert other(1)"]},
        ROW | {"test_list": "assert"},
        HUMAN | {"prompt": "def f("},
        HUMAN | {"test": None},
        {"question": "x", "input_output": ""},
        {
            "question": "x",
            "input_output": '{"fn_name": "f", "inputs": [[NaN]], "outputs": [1]}',
            "difficulty": "interview",
        },
        {"question": "x", "input_output": "{"},
        {"question": "x", "input_output": '{"inputs": [1], "outputs": [1]}', "difficulty": "odd"},
        {
            "description": "x",
            "test_list": [{"input": "1\n2"}],
            "difficulty": "interview",
            "starter_code": "def f(x):",
        },
        {
            "description": "x",
            "test_list": [{"input": "1\n2", "output": [3]}],
            "difficulty": "interview",
            "starter_code": "def f(x):",
        },
    ],
)
def test_malformed_rows_are_value_errors(row):
    with pytest.raises(ValueError):
        from_row(row)
    with pytest.raises(ValueError):
        critique_from_row(row | {"buggy_solution": None})


def spin(end: float) -> None:
    while time.monotonic() < end:
        pass


@here(MBPP)
def test_verdicts_are_the_same_under_load():
    slow = [
        problem for problem in mbpp() if "amicable" in problem.prompt
    ]  # its reference needs half of the limit
    chosen = mbpp()[::20]
    problems, texts = (
        slow + chosen * 2,
        [p.reference for p in slow + chosen] + list(map(wrong, chosen)),
    )
    quiet = grade(problems, texts)
    programs._verdicts.clear()
    busy = [
        multiprocessing.get_context("spawn").Process(target=spin, args=(time.monotonic() + 60,))
        for _ in range(os.cpu_count())
    ]
    for process in busy:
        process.start()
    try:
        assert (
            grade(problems, texts) == quiet == [True] * len(slow + chosen) + [False] * len(chosen)
        )
    finally:
        for process in busy:
            process.kill()
            process.join()
