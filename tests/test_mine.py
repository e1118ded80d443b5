"""A user's own rows: what each grader takes and refuses, and why a row is refused."""

import json
import time

import pytest

import data
from data.problems import InputError, Problem
from data.real import mine
from data.real.mine import from_row, grade
from results import fingerprint

DOUBLE = {
    "prompt": "Write f(x) that doubles x, and g(x) that halves it.",
    "answer": "def f(x): return 2 * x\ndef g(x): return x / 2",
    "tests": ["assert f(2) == 4", "assert g(f(-1)) == -1"],
}


def verdicts(row: dict, completions: list[str]) -> list[bool]:
    return grade([from_row(row)] * len(completions), completions)


def test_a_row_and_its_defaults():
    problem = from_row(
        {"prompt": " What is  1 + 1?\n", "answer": "2 ", "domain": "", "level": None}
    )
    grading = {"grader": "exact"}
    key = "What is 1 + 1?"
    assert problem == Problem("mine", "What is  1 + 1?\n", "2", "mine", 1, grading, key)
    problem = from_row({"prompt": "?", "answer": "2", "domain": "sums", "level": "3", "grader": ""})
    assert (problem.domain, problem.level) == ("sums", 3)
    assert from_row(DOUBLE).grading["grader"] == "python"
    assert json.loads(json.dumps(vars(from_row(DOUBLE)))) == vars(from_row(DOUBLE))


def test_without_a_program_no_sandbox_is_needed(monkeypatch):
    monkeypatch.setattr("data.sandbox._ask", None)
    assert verdicts({"prompt": "?", "answer": "2"}, ["2", "3"]) == [True, False]


@pytest.mark.parametrize(
    "grader, answer, right, wrong",
    [
        ("exact", "New  York", ["New York", " New\nYork\n"], ["new york", "New York.", ""]),
        ("exact", "B", ["B"], ["(B)"]),
        ("number", "It is 1,000.", ["1000", "2 + 998 = 1000.0!", "1,000, so"], ["1000 or 2", "no"]),
        ("number", "-0.5", ["it is -1/2"], ["1/2", "5", ""]),
        ("choice", "(B)", ["B", "B. since", "Answer: B"], ["A", "b", "A or B", ""]),
        ("regex", r"(?i)yes|y\d+", ["YES", " y12\n"], ["yes.", "oh yes", "y", ""]),
        ("regex", "a.c", ["abc"], ["a\nc", "abcd"]),
    ],
)
def test_what_a_grader_takes_and_refuses(grader, answer, right, wrong):
    row = {"prompt": "?", "answer": answer, "grader": grader}
    assert verdicts(row, right + wrong) == [True] * len(right) + [False] * len(wrong)


@pytest.mark.parametrize(
    "grader, answer, texts, equal",
    [
        ("exact", "New York", ["New  York", "New York\n", "new york", ""], [0, 0, 1, None]),
        ("number", "5", ["2 or 1,000", "1000.0", "5", "no"], [0, 0, 1, None]),
        ("choice", "B", ["B", "Answer: B", "C. since", "A or B"], [0, 0, 1, None]),
    ],
)
def test_what_is_counted_in_a_vote(grader, answer, texts, equal):
    problem = from_row({"prompt": "?", "answer": answer, "grader": grader})
    found = data.votes([problem] * len(texts), texts)
    names = list(dict.fromkeys(vote for vote in found if vote is not None))
    assert [None if vote is None else names.index(vote) for vote in found] == equal


def test_programs_and_patterns_have_no_vote():
    pattern = from_row({"prompt": "?", "answer": "a+", "grader": "regex"})
    for problem in (from_row(DOUBLE), pattern):
        with pytest.raises(InputError, match="no answers that could be put to the vote"):
            data.votes([problem], [""])


def test_a_pattern_is_no_reference_to_imitate():
    assert from_row({"prompt": "?", "answer": "a+", "grader": "regex"}).reference == ""


def test_a_pattern_that_never_ends_is_no_match_and_stops_no_other():
    rows = [
        {"prompt": "?", "answer": r"(a+)+b", "grader": "regex"},
        {"prompt": "?", "answer": r"a+!", "grader": "regex"},
    ]
    start = time.perf_counter()
    text = "a" * 200 + "!"
    assert grade([from_row(row) for row in rows], [text, text]) == [False, True]
    assert time.perf_counter() - start < 60  # without a limit it would take the age of the world


def test_tests_that_catch_exceptions_make_no_wrong_program_right():
    """A program that forges its answers could otherwise raise, within a test, what it catches."""
    answer = "def f(x):\n    return x"
    caught = "try:\n    assert f(-1) == -1\nexcept {}:\n    pass"
    forged = "import os\nos.write(3, b'[{}]\\n')\nos._exit(0)"
    for kind, message in (("ValueError", '["1","x"]'), ("IndexError", '["1"]')):
        tests = ["assert f(1) == 1", caught.format(kind)]
        problem = from_row({"prompt": "?", "answer": answer, "tests": tests})
        assert grade([problem] * 2, [answer, forged.format(message)]) == [True, False]


def test_a_test_that_wants_an_exception_is_told():
    answer = "def f(x):\n    if x < 0:\n        raise ValueError\n    return x"
    tests = ["assert f(1) == 1", "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass"]
    problem = from_row({"prompt": "?", "answer": answer, "tests": tests})
    with pytest.warns(UserWarning, match="or want an exception"):
        assert grade([problem], [answer]) == [False]


def test_a_program_is_right_where_all_its_functions_are():
    f, g = DOUBLE["answer"].split("\n")
    completions = [
        f"{f}\n{g}",
        f"Here:\n```python\n{g}\ndef f(y):\n    return y + y\n```",
        f,
        f"{f}\ndef g(x): return x",
        f"def f(x): return x\n{g}",
        "def f(x): raise SystemExit",
        "def f(",
        "",
    ]
    assert verdicts(DOUBLE, completions) == [True] * 2 + [False] * 6
    in_a_fence = DOUBLE | {"answer": f"```\n{f}\n{g}\n```", "tests": "\n".join(DOUBLE["tests"])}
    assert verdicts(in_a_fence, completions[:3]) == [True, True, False]


def test_an_answer_that_fails_its_own_tests_is_told():
    row = DOUBLE | {"tests": ["assert f(2) == 5"]}
    with pytest.warns(UserWarning, match="the reference of f fails its own tests"):
        assert verdicts(row, [row["answer"], "def f(x): return 5"]) == [False, False]


def test_problems_of_several_graders_are_graded_together():
    rows = [
        DOUBLE,
        {"prompt": "?", "answer": "4"},
        {"prompt": "?", "answer": r"\d", "grader": "regex"},
        DOUBLE,
    ]
    completions = [DOUBLE["answer"], "4", "5", "4"]
    assert grade([from_row(row) for row in rows], completions) == [True, True, True, False]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt": None}, "prompt must be a text that is not empty, got None"),
        ({"prompt": " "}, "prompt must be a text that is not empty"),
        ({"answer": 42}, "answer must be a text that is not empty, got 42"),
        ({"domain": 1}, "domain must be a text"),
        ({"level": 0}, "level must be a whole number from 1 on, got 0"),
        ({"level": "hard"}, "got 'hard'"),
        ({"level": True}, "got True"),
        ({"grader": "fuzzy"}, "unknown grader 'fuzzy': choose from exact, number, choice, regex"),
        ({"grader": "exact"}, "only the grader python has tests, got the grader 'exact'"),
        ({"tests": [1]}, "tests must be a list of texts, got [1]"),
        ({"tests": None, "grader": "python"}, "the grader python needs tests"),
        ({"tests": ["assert f("]}, "the tests must be Python"),
        ({"tests": ["f(1)"]}, "the tests assert nothing"),
        ({"tests": ["assert h(1)"]}, "the tests call no function that the answer defines"),
        ({"answer": "def f("}, "the answer must be Python"),
        ({"tests": None, "grader": "number"}, "needs a number in the answer, got 'none'"),
        ({"tests": None, "grader": "choice"}, "needs the answer A, B, C or D, got 'none'"),
        ({"tests": None, "grader": "regex", "answer": "(a"}, "the answer is no regular expression"),
    ],
)
def test_a_row_that_is_wrong_is_refused_with_the_reason(change, message):
    row = DOUBLE | change
    if row.get("grader") in ("number", "choice"):
        row["answer"] = "none"
    with pytest.raises(ValueError) as caught:
        from_row(row)
    assert message in str(caught.value)


def test_a_rows_own_grader_wins_over_that_of_all_rows():
    row = {"prompt": "?", "answer": "It is 42."}
    assert from_row(row, "number").grading == {"grader": "number"}
    assert from_row(row | {"grader": "exact"}, "number").grading == {"grader": "exact"}
    assert from_row(DOUBLE, "python") == from_row(DOUBLE)
    with pytest.raises(ValueError, match="only the grader python has tests"):
        from_row(DOUBLE, "exact")


def test_a_grader_without_rows_of_ones_own_is_refused(tmp_path):
    path = tmp_path / "math.jsonl"
    path.write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}))
    for task, files in (("math", [path]), ("math", []), ("mine", []), ("math+mine", [])):
        with pytest.raises(InputError, match="--grader says .* leave it out"):
            data.load(task, "validation", 2, files=files, grader="exact")


def test_problems_of_another_grader_are_others_to_a_stored_evaluation(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"Say {i}.", "answer": str(i)} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [
        data.load("mine", "validation", files=[path], grader=grader)
        for grader in ("exact", "number", "")
    ]
    assert fingerprint(found[0]) == fingerprint(found[2]) != fingerprint(found[1])
    assert [p.key for p in found[0]] == [p.key for p in found[1]]
    said = [f"It is {problem.reference}." for problem in found[0]]
    assert [sum(data.grade(problems, said)) for problems in found] == [0, len(said), 0]


def test_rows_of_a_file_are_loaded_and_none_are_generated(monkeypatch, tmp_path):
    monkeypatch.setitem(data.TASKS, "mine", mine)
    monkeypatch.setitem(data.FROM_ROW, "mine", from_row)
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"Say {i}.", "answer": str(i)} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    problems = data.load("mine", "lock", files=[path]) + data.load("mine", "elicit", files=[path])
    assert 30 < len(problems) < 60
    assert len({problem.key for problem in problems}) == len(problems)
    assert all(data.grade(problems, [problem.reference for problem in problems]))
    with pytest.raises(InputError, match="give your own rows with --data"):
        data.load("mine", "lock")
