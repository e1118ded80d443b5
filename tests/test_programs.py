"""Programs for real problems: references pass, buggy or perturbed ones fail, cheats do not help."""

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
from data.real.programs import critique_from_row, from_row, grade
from data.tasks.coding import program_in
from test_sandbox import ANCHORS, PAGES, confined, probes

SHARED = Path(__file__).parents[2] / "shared/data"
MBPP = SHARED / "mbpp/mbpp.jsonl"
APPS = SHARED / "apps/selected150.jsonl"
PACK = SHARED / "critique/humanevalpack_python.jsonl"


def here(path: Path):
    return pytest.mark.skipif(not path.exists(), reason="the shared data is not here")


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
    "prompt": """from typing import List

def near(xs: List[float]) -> float:
    \"\"\" The mean. \"\"\"
""",
    "entry_point": "near",
    "canonical_solution": "    return sum(xs) / len(xs)\n",
    "buggy_solution": "    return sum(xs)\n",
    "bug_type": "missing logic",
    "test": """def check(candidate):
    for n in range(1, 4):
        assert abs(candidate([1.0] * n + [2.0]) - 1) < 1 / n
""",
}


def human_eval(**changes) -> Problem:
    return from_row(HUMAN | changes)


@cache
def mbpp() -> list[Problem]:
    return files.problems_from([MBPP], from_row)


def wrong(problem: Problem) -> str:
    """The reference, but for what it returns: its value in a list."""
    function = problem.grading["function"]
    listed = f"_right = {function}\ndef {function}(*args):\n    return [_right(*args)]"
    return f"{problem.reference}\n{listed}"


def failed(problems: list[Problem], completions: list[str]) -> list[str]:
    """The prompts of those that fail."""
    verdicts = grade(problems, completions)
    return [problem.prompt for problem, passed in zip(problems, verdicts) if not passed]


@here(MBPP)
def test_all_mbpp_references_pass_and_perturbed_ones_fail():
    assert len(mbpp()) == 974
    assert len({problem.key for problem in mbpp()}) == 970  # four requests stand there twice
    assert failed(mbpp(), [f"```python\n{problem.reference}\n```" for problem in mbpp()]) == []
    some = mbpp()[::6]  # for time; 974 of them take ten seconds
    assert not any(grade(some, list(map(wrong, some))))


@here(PACK)
def test_all_repairs_pass_and_all_buggy_programs_fail(monkeypatch):
    monkeypatch.setattr(programs, "CPU", 1)  # some buggy programs never end
    repairs = files.problems_from([PACK], critique_from_row)
    rows = [row for row, _ in files.read([PACK])]
    assert len(repairs) == 164
    assert {problem.task for problem in repairs} == {"critique"}
    assert len({problem.domain for problem in repairs}) == 6
    for problem, row in zip(repairs, rows):
        assert row["buggy_solution"].strip() in problem.prompt
        assert row["docstring"].split("\n")[0] in problem.prompt
    assert failed(repairs, [problem.reference for problem in repairs]) == []
    buggy = [row["prompt"] + row["buggy_solution"] for row in rows]
    assert len(failed(repairs, buggy)) == 164


@here(PACK)
def test_human_eval_is_also_a_code_task():
    problems = files.problems_from([PACK], from_row)
    assert len(problems) == 164
    assert {problem.task for problem in problems} == {"code"}
    assert failed(problems[:40], [problem.reference for problem in problems[:40]]) == []
    assert not any(grade(problems, ["def f(x): return x"] * 164))


def test_a_verdict_is_of_these_tests_and_of_no_others_with_the_same_prompt():
    """HumanEval+ has HumanEval's prompts and more tests."""
    row = {
        "prompt": 'def f(x):\n    """ Double x. """\n',
        "entry_point": "f",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(g):\n    assert g(2) == 4\n",
    }
    more = row | {"test": row["test"] + "    assert g(3) == 6\n"}
    few, many = from_row(row), from_row(more)
    assert few.key == many.key
    square = "def f(x):\n    return x * x\n"
    assert grade([few], [square]) == [True]
    assert grade([many], [square]) == [False]
    assert grade([few, many], [square, square]) == [True, False]


# Our own, as the sample has none: strings that look like numbers, numbers, lists, both kinds,
# standard input. Each is found by words of its prompt.
SOLUTIONS = {
    "def is_lucky(": """def is_lucky(t):
    return len(t) == 6 and t.isdigit() and sum(map(int, t[:3])) == sum(map(int, t[3:]))""",
    "def sum_of_squares(": """def sum_of_squares(n):
    square = lambda k: int(k ** .5) ** 2 == k
    if square(n): return 1
    if any(square(n - i * i) for i in range(1, int(n ** .5) + 1)): return 2
    while n % 4 == 0: n //= 4
    return 4 if n % 8 == 7 else 3""",
    "def multiple_of_index(": """def multiple_of_index(a):
    return [x for i, x in enumerate(a) if i and x % i == 0]""",
    "def is_polydivisible(": """def is_polydivisible(s, b):
    return all(int(s[:i], b) % i == 0 for i in range(1, len(s) + 1))""",
    '"QAQ" is a word': """s = input()
print(sum(s[:i].count('Q') * s[i:].count('Q') for i, c in enumerate(s) if c == 'A'))""",
}


@here(APPS)
def test_apps_loads_and_wrong_programs_fail(capsys):
    problems = files.problems_from([APPS], from_row)
    # one problem, twice, has arguments of several lines
    assert capsys.readouterr().err.endswith("kept 148 of 150 rows\n")
    levels = {"apps introductory": 1, "apps interview": 2, "apps competition": 3}
    assert {(problem.domain, problem.level) for problem in problems} == set(levels.items())
    for text in ("def f(x): return x", "print(0)", "", "raise SystemExit"):
        assert not any(grade(problems, [text] * len(problems)))
    for words, program in SOLUTIONS.items():
        chosen = [problem for problem in problems if words in problem.prompt]
        assert chosen, words
        assert failed(chosen, [program] * len(chosen)) == []


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
    assert (problem.task, problem.domain, problem.level) == ("code", "apps interview", 2)
    assert "standard input" in problem.prompt
    read_all = """import sys
sys.stdout.write(str(sum(map(int, sys.stdin.buffer.read().split()))) + '\\n\\n')
sys.exit()"""
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
    starter = "class Solution:\n    def half(self, n: int) -> float:"
    row |= {"input_output": json.dumps(tests), "starter_code": starter, "solutions": ""}
    problem = from_row(row)
    assert problem.reference == ""
    assert "class Solution" in problem.prompt
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
    assert problem.prompt == (
        "Write a function to double a number.\n"
        "It must pass this test:\nassert double(40617231) == 81234462\n"
    )
    assert problem.reference == "def double(n):\n    return 2 * n"
    assert json.loads(json.dumps(problem.grading)) == problem.grading
    only_shown = "def double(n): return 81234462"
    assert grade([problem] * 3, [problem.reference, only_shown, ""]) == [True, False, False]


def test_human_eval_tests_may_loop_and_compare_with_a_tolerance():
    problem = human_eval()
    assert problem.reference.startswith("from typing")
    assert problem.prompt.endswith('""" The mean. """\n')
    texts = [
        problem.reference,
        "def near(xs: List[float]): return sum(xs) / len(xs)",
        "def near(xs): return sum(xs) / len(xs) + 1e-9",
        "def near(xs): return sum(xs)",
        "",
    ]
    assert grade([problem] * 5, texts) == [True] * 3 + [False] * 2
    repair = critique_from_row(HUMAN)
    assert (repair.task, repair.domain) == ("critique", "missing logic")
    assert repair.prompt.endswith("return sum(xs)\n")
    buggy = HUMAN["prompt"] + HUMAN["buggy_solution"]
    assert grade([repair] * 2, [repair.reference, buggy]) == [True, False]


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
    # its attributes are its own affair
    other = code.replace("self.v", "self.w").replace("node.v", "node.w")
    assert grade([from_row(row)] * 3, [code, other, code.replace("+", "-")]) == [True, True, False]


CHEATS = {
    "exits": "import sys\nsys.exit(0)",
    "exits in the call": "import os\ndef double(n): os._exit(0)",
    "raises SystemExit": "def double(n): raise SystemExit(0)",
    "is equal to all": """class Yes:
    def __eq__(self, other): return True
def double(n): return Yes()""",
    "is an int that is equal to all": """class Yes(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def double(n): return Yes(3)""",
    "is a str of another class": """class Yes(str):
    __eq__ = lambda *_: True
    __class__ = int
def double(n): return Yes()""",
    "replaces json": """import json
json.dumps = lambda *_: '81234462'
json.loads = lambda *_: [1]
def double(n): return 1""",
    "replaces the harness": """import harness, sys
harness.encode = lambda x: 81234462
sys.modules['harness'].judge = lambda *_: []
def double(n): return 1""",
    "replaces builtins": """import builtins
builtins.all = lambda *_: True
builtins.compile = lambda *_: ''
def double(n): return 1""",
    "reads its callers": """import gc, sys
def double(n):
    frame, found = sys._getframe(), []
    while frame:
        found += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    found += [x for x in gc.get_objects() if type(x) in (list, dict, tuple)]
    if str(2 * n) in repr(found): return 2 * n""",
    "closes the channel": "import os\nos.close(3)\ndef double(n): return 2 * n",
    "forges calls": "import os\nos.write(3, b'[[\"{}\"]]\\n')\nos._exit(0)",
    "forges a verdict": "import os\nos.write(3, b'[true]\\n')\nos._exit(0)",
    "forges no answers": "import os\nos.write(3, b'[[]]\\n')\nos._exit(0)",
    "forges a wrong form": "import os\nos.write(3, b'[[1, null]]\\n')\nos._exit(0)",
    "forges an object": """import json, os
made = json.dumps({'made': ['int', [], {}, {}]})
os.write(3, json.dumps([[made] * 2]).encode() + b'\\n')
os._exit(0)""",
    "raises AssertionError": "def double(n): raise AssertionError",
    "returns a generator": "def double(n): yield 2 * n",
    "asks the tests": "def double(n): return check(n)",
    "changes its argument": "def double(n): n += n",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_fail_and_their_neighbours_pass(cheat):
    programs._verdicts.clear()
    problem = from_row(ROW)
    texts = [problem.reference, CHEATS[cheat], problem.reference + " "]
    assert grade([problem] * 3, texts) == [True, False, True]

    tests = '{"inputs": [""], "outputs": ["7"]}'
    row = {"question": "Print 7.", "difficulty": "interview", "input_output": tests}
    script = from_row(row)
    assert grade([script] * 3, ["print(7)", CHEATS[cheat], "print( 7)"]) == [True, False, True]


# Answers as the tests say that it finds in its memory; of them it knows only the function's name.
SEARCH = (
    f"import ctypes, re\nPROBE, NAMES = {probes()['rt_sigprocmask']}, {ANCHORS}\n{PAGES}"
    + r"""
import ast
known = {}
for page in look():
    for args, value in re.findall(rb"assert NAME\(([^\n\\]*?)\) ?== ?([^\n\\\0]*)", page):
        for end in (value, value.split(b'"')[0]):
            try:
                key = repr(ast.literal_eval(f"({args.decode()},)"))
                known[key] = ast.literal_eval(end.decode())
            except Exception: pass
def NAME(*args): return known[repr(args)]
"""
)


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


@pytest.mark.parametrize("end", ["exit()", "quit()", "sys.exit()"])
def test_a_script_may_end_as_scripts_do(end):
    tests = {"inputs": ["2\n"], "outputs": ["4\n"]}
    row = {"question": "Double it.", "input_output": json.dumps(tests), "solutions": "[]"}
    row["difficulty"] = "introductory"
    problem = from_row(row)
    assert grade([problem], [f"import sys\nprint(2 * int(input()))\n{end}\n"]) == [True]


def test_a_reference_that_fails_its_own_tests_is_told():
    problem = from_row(ROW | {"code": "def double(n): return 3 * n"})
    with pytest.warns(UserWarning, match="the reference of double fails its own tests"):
        verdicts = grade([problem] * 2, [problem.reference, "def double(n): return 2 * n"])
    assert verdicts == [False, False]


@pytest.mark.parametrize(
    "completion, program",
    [
        ("x = 1\n", "x = 1\n"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx\n```\n```\ny\n```", "x\n"),
        ("```bash\npip x\n```\nThen:\n``` python\nx = 1\n```", "x = 1\n"),
        ("```c++\nint x;\n```\nNo.", "```c++\nint x;\n```\nNo."),
        ("```py\nx = 1\ny", "x = 1\ny"),
        ("", ""),
        ("x = '```'\n", "x = '```'\n"),
        ("```Python3\r\nx = 1\n```", "x = 1\n"),
        ("  ```py\n  def f():\n      pass\n  ```", "def f():\n    pass\n"),
    ],
)
def test_the_program_in_a_completion(completion, program):
    assert program_in(completion) == program


def test_a_hostile_fence_costs_little():
    start = time.perf_counter()
    for filling in ("a", " ", " a", "\n"):
        text = "```" + filling * 100_000
        program_in(text)
    # milliseconds; quadratic work would take minutes
    assert time.perf_counter() - start < 10


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
        # what Python's parser has no memory for; half a character in text within text
        ROW | {"code": f"def double(n): return {'-' * 20000}n"},
        {
            "question": "x",
            "input_output": json.dumps({"inputs": [""], "outputs": ["1"]}),
            "solutions": json.dumps(["print('\ud83d')"]),
            "difficulty": "interview",
        },
    ],
)
def test_malformed_rows_are_value_errors(row):
    with pytest.raises(ValueError):
        from_row(row)


@pytest.mark.parametrize("change", [{"buggy_solution": None}, {"prompt": 1}, {"entry_point": 2}])
def test_malformed_programs_to_repair_are_value_errors(change):
    assert critique_from_row(HUMAN)
    with pytest.raises(ValueError):
        critique_from_row(HUMAN | change)
    missing = next(iter(change))
    with pytest.raises(ValueError):
        critique_from_row({name: value for name, value in HUMAN.items() if name != missing})


def spin(end: float) -> None:
    while time.monotonic() < end:
        pass


@here(MBPP)
def test_verdicts_are_the_same_under_load():
    # its reference needs a quarter of the limit, or half on a core that it shares
    slow = [problem for problem in mbpp() if "amicable" in problem.prompt]
    others = mbpp()[::40]
    right = slow + others
    problems = right + others
    texts = [problem.reference for problem in right] + list(map(wrong, others))
    quiet = grade(problems, texts)
    assert quiet == [True] * len(right) + [False] * len(others)

    programs._verdicts.clear()
    context = multiprocessing.get_context("spawn")
    end = time.monotonic() + 60
    busy = [context.Process(target=spin, args=(end,)) for _ in range(os.cpu_count())]
    for process in busy:
        process.start()
    try:
        assert grade(problems, texts) == quiet
    finally:
        for process in busy:
            process.kill()
            process.join()
