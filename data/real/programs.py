"""Programming problems from real data: MBPP, APPS, HumanEval (`from_row`) and HumanEvalPack.

    problems = rows.problems_from(["mbpp.jsonl"], from_row)
    grade(problems, ["def min_cost(cost, m, n): ...", ...])  -> [True, ...]

Rows of HumanEvalPack are repairs, of the task "critique" (`critique_from_row`).

A completion is a whole program, alone or within a ```python fence. It runs in the sandbox and never
in a process that has the tests or the expected values. APPS lists both inputs and outputs, which
are compared here. The assert tests of MBPP and HumanEval are Python, so they run, in a sandbox
process of their own (sandbox/harness.py), first with the reference, which shows the calls that they
make; then the program answers these calls; then the tests run on its answers. An answer is plain
data without methods, so a program can pass only by what it returns, and it does not see what is
expected.

What this cannot grade: tests that look at an argument the function has changed, at printed text or
at exceptions, or whose calls depend on earlier answers (they must ask of each program what they
asked of the reference); scripts that read file descriptor 0 past sys.stdin; and programs that start
threads, or import what the sandbox has not loaded before (sandbox/server.py, PRELOAD). APPS has no
checkers: of several right answers only the listed one is accepted.
What it does not stop: a program that knows the answers by heart, or finds the tests in its own
memory of the data set.
"""

import ast
import itertools
import json
import math
import re
import warnings
from collections.abc import Callable

from data.problems import Problem
from data.real.rows import check_text
from data.sandbox import run
from data.tasks.coding import program_in

# Processor seconds for all tests of a problem. The slowest reference, of MBPP, needs a quarter of
# it, and half where another process keeps the core's other thread busy.
CPU = 10
LEVELS = {"introductory": 1, "interview": 2, "competition": 3}
# what a row raises that makes no problem; Python's parser runs out of memory where it nests deeply
MALFORMED = (KeyError, TypeError, AttributeError, IndexError, SyntaxError, RecursionError)
MALFORMED += (MemoryError,)


# ---- rows
def from_row(row: dict) -> Problem:
    """The problem of a row of MBPP, APPS or HumanEval, told apart by their fields.

    Raises ValueError for a row that makes none.
    """
    return _checked(_program, row)


def critique_from_row(row: dict) -> Problem:
    """A row of HumanEvalPack: given the specification and a buggy program, write the repaired one.

    Raises ValueError for a row that makes none.
    """
    return _checked(_repair, row)


def _checked(convert: Callable[[dict], Problem], row: dict) -> Problem:
    try:
        with warnings.catch_warnings():
            # what the compiler thinks of the style of a data set's programs
            warnings.simplefilter("ignore")
            problem = convert(row)
        # as the sandbox will ask; in strings within strings there may be half characters
        asked = json.dumps(problem.grading, allow_nan=False, ensure_ascii=False)
        check_text(problem.reference + asked)
        return problem
    except MALFORMED as error:
        raise ValueError(
            f"a field is missing or malformed ({type(error).__name__}: {error})"
        ) from None


def _program(row: dict) -> Problem:
    fields = row.keys()
    if {"code", "test_list"} <= fields:
        return _mbpp(row)
    if {"prompt", "test", "entry_point", "canonical_solution"} <= fields:
        reference, grading, key = _human_eval(row)
        begins = row["prompt"].strip()
        prompt = f"Write the whole Python program that begins as follows.\n{begins}\n"
        return Problem("code", prompt, reference, "humaneval", 1, grading, key)
    if {"question", "input_output"} <= fields or {"description", "test_list"} <= fields:
        return _apps(row)
    names = ", ".join(fields) or "none"
    raise ValueError(f"no row of MBPP, APPS or HumanEval: its fields are {names}")


def _mbpp(row: dict) -> Problem:
    text = _unix(row.get("text") or row["prompt"])
    reference = _unix(row["code"])
    setup = _unix(row.get("test_setup_code", ""))
    tests = [_unix(test) for test in row["test_list"]]
    tests += [_unix(test) for test in row.get("challenge_test_list", ())]
    functions = tested_functions(reference, "\n".join(tests))
    if not functions:
        raise ValueError("its tests call no function of its reference")

    # the first test names the function and shows its arguments
    prompt = f"{text}\nIt must pass this test:\n{setup}\n{tests[0]}\n".replace("\n\n", "\n")
    grading = {
        "kind": "tests",
        "before": "\n".join(row.get("test_imports", ())),
        "tests": "\n".join([setup, *tests]),
        "function": functions[0],
    }
    # a request that stands there twice, with other tests, is one problem
    return Problem("code", prompt, reference, "mbpp", 1, grading, f"mbpp {' '.join(text.split())}")


def _unix(text: str) -> str:
    """MBPP's file mixes both ends of lines."""
    return text.replace("\r\n", "\n").strip()


def tested_functions(program: str, tests: str) -> list[str]:
    """The functions defined in the program that the tests call, each once."""
    defined = set()
    for node in ast.parse(program).body:
        if isinstance(node, ast.FunctionDef):
            defined.add(node.name)

    called = []
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in defined and name not in called:
                called.append(name)
    return called


def _human_eval(row: dict) -> tuple[str, dict, str]:
    """Reference, grading and key.

    The prompt's imports and helpers are there even for a program that leaves them out.
    """
    before = row["prompt"]
    function = row["entry_point"]
    ast.parse(before)
    tests = row["test"]
    if not re.search(rf"^check\({re.escape(function)}\)", tests, re.M):
        tests = f"{tests}\ncheck({function})"
    grading = {"kind": "tests", "before": before, "tests": tests, "function": function}
    return (before + row["canonical_solution"]).rstrip(), grading, f"humaneval {before}"


def _repair(row: dict) -> Problem:
    reference, grading, key = _human_eval(row)
    buggy = (row["prompt"] + row["buggy_solution"]).strip()
    prompt = (
        "The program below does not do what its docstring says. Write the repaired program.\n"
        f"{buggy}\n"
    )
    return Problem("critique", prompt, reference, row.get("bug_type", "bug"), 1, grading, key)


def _apps(row: dict) -> Problem:
    """Either APPS itself, or a sample of it where each test is {"input": ..., "output": [...]}."""
    text = (row.get("question") or row["description"]).strip()
    starter = row.get("starter_code", "").strip()
    function = None
    if "input_output" in row:
        tests = json.loads(row["input_output"] or "{}")
        inputs = tests.get("inputs", [])
        outputs = tests.get("outputs", [])
        function = tests.get("fn_name")
        readings = [inputs]
    else:
        tests = row.get("sample_io", []) + row["test_list"]
        inputs = [test["input"] for test in tests]
        outputs = [test["output"] for test in tests]
        if starter:
            function, readings = _readings(starter, inputs)
    if not inputs or len(inputs) != len(outputs):
        raise ValueError("it has no tests")

    if function:
        method = "class Solution" in starter
        grading = {
            "kind": "calls",
            "function": function,
            "readings": readings,
            "outputs": outputs,
            "end": f"\n{function} = Solution().{function}" if method else "",
        }
        prompt = f"{text}\nWrite a Python program that begins as follows.\n{starter}\n"
    else:
        grading = {
            "kind": "script",
            "inputs": [_lines(test) for test in inputs],
            "outputs": [_lines(test) for test in outputs],
        }
        prompt = (
            f"{text}\nWrite a Python program that reads standard input and prints the answer.\n"
        )

    solutions = json.loads(row.get("solutions") or "[]")
    reference = solutions[0].strip() if solutions else ""
    difficulty = row["difficulty"]
    level = LEVELS[difficulty]
    domain = f"apps {difficulty}"
    return Problem("code", prompt, reference, domain, level, grading, f"apps {text}")


def _lines(test: str | list) -> str:
    return test if isinstance(test, str) else "\n".join(map(str, test))


def _readings(starter: str, inputs: list[str]) -> tuple[str, list[list[list]]]:
    """The function's name, and what the inputs can mean, a line of text being an argument.

    It is a Python literal, or, if in any test it is none, a string without quotes. Numerals may be
    either: "1234" is a number to one function and a ticket, "1234", to the next. So a program may
    be right by any of these readings.
    """
    [function] = ast.parse(f"{starter} pass").body
    most = len(function.args.args)
    least = most - len(function.args.defaults)
    tests = [text.split("\n") for text in inputs]
    if not all(least <= len(lines) <= most for lines in tests):
        raise ValueError("the lines of its inputs are not its arguments")

    kinds = []
    for i in range(max(map(len, tests))):
        column = [lines[i] for lines in tests if i < len(lines)]
        kinds.append(_kinds(column))
    readings = []
    for choice in itertools.product(*kinds):
        reading = []
        for lines in tests:
            reading.append([kind(line) for kind, line in zip(choice, lines)])
        readings.append(reading)
    return function.name, readings


def _kinds(column: list[str]) -> list[Callable]:
    """How the texts of one argument can be read."""
    try:
        values = [ast.literal_eval(text) for text in column]
        json.dumps(values, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError):
        return [str]
    numerals = all(type(value) in (int, float) for value in values)
    return [ast.literal_eval, str] if numerals else [ast.literal_eval]


# ---- grading
_calls: dict[tuple, list[str]] = {}  # what a problem's tests ask
# (all that the problem is, program): models write the same program again and again
_verdicts: dict[tuple[str, str], bool] = {}


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion's program passes all tests of its problem."""
    names = []
    new = {"tests": {}, "calls": {}, "script": {}}
    for problem, completion in zip(problems, completions):
        program = program_in(completion)
        # not by its key: two data sets may have a problem with other tests
        name = json.dumps([problem.reference, problem.grading], sort_keys=True), program
        names.append(name)
        if name not in _verdicts:
            new[problem.grading["kind"]][name] = problem, program

    for kind, passed in (("tests", _pass_tests), ("calls", _pass_calls), ("script", _pass_script)):
        pairs = list(new[kind].values())
        _verdicts.update(zip(new[kind], passed(pairs)))
    return [_verdicts[name] for name in names]


def _in_harness(function: str, arguments: list[list]) -> list:
    """What a function of the harness returns for each list of arguments, None where it failed."""
    program = f"from harness import {function}"
    jobs = [{"program": program, "function": function, "inputs": [each]} for each in arguments]
    results = []
    for result in run(jobs, cpu=CPU):
        failed = result is None or isinstance(result[0], dict)
        results.append(None if failed else result[0])
    return results


def _pass_tests(pairs: list[tuple[Problem, str]]) -> list[bool]:
    tests = []
    for problem, _ in pairs:
        grading = problem.grading
        tests.append((grading["before"], problem.reference, grading["tests"], grading["function"]))
    _learn_calls(tests)

    # each program answers the calls of its tests, if these make any
    rows, asked = [], []
    for i, (test, (_, program)) in enumerate(zip(tests, pairs)):
        before, _, _, function = test
        if _calls[test]:
            rows.append(i)
            asked.append([before, program, function, _calls[test]])
    answers = _in_harness("answer", asked)

    # the tests judge the answers
    answered, given = [], []
    for i, answer in zip(rows, answers):
        if answer is not None:
            answered.append(i)
            given.append([*tests[i], _calls[tests[i]], answer])
    passed = [False] * len(pairs)
    for i, made in zip(answered, _in_harness("judge", given)):
        passed[i] = made is not None
    return passed


def _learn_calls(tests: list[tuple[str, str, str, str]]) -> None:
    """Fill `_calls` for tests (before, reference, tests, function) by running the references."""
    unknown = [test for test in dict.fromkeys(tests) if test not in _calls]
    asked = [[*test, None, None] for test in unknown]
    for test, calls in zip(unknown, _in_harness("judge", asked)):
        _calls[test] = calls or []
        if not calls:
            warnings.warn(
                f"No program can pass, as the reference of {test[3]} fails its own tests, or they "
                "call nothing, or want an exception.",
                stacklevel=4,
            )


def _pass_calls(pairs: list[tuple[Problem, str]]) -> list[bool]:
    jobs = []
    for problem, program in pairs:
        grading = problem.grading
        for inputs in grading["readings"]:
            job = {"program": program + grading["end"], "function": grading["function"]}
            jobs.append(job | {"inputs": inputs})
    results = iter(run(jobs, cpu=CPU))

    passed = []
    for problem, _ in pairs:
        expected = problem.grading["outputs"]
        right = False
        for _ in problem.grading["readings"]:
            found = next(results)
            right = right or found is not None and all(map(_same, found, expected))
        passed.append(right)
    return passed


def _pass_script(pairs: list[tuple[Problem, str]]) -> list[bool]:
    asked = [[program, problem.grading["inputs"]] for problem, program in pairs]
    passed = []
    for (problem, _), printed in zip(pairs, _in_harness("script", asked)):
        passed.append(_same_texts(printed, problem.grading["outputs"]))
    return passed


# ---- comparing
def _same(found, expected) -> bool:
    """Equal as APPS means it, whose expected values stand alone or in a list of one."""
    if _equal(found, expected):
        return True
    return isinstance(expected, list) and len(expected) == 1 and _equal(found, expected[0])


def _equal(found, expected) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_equal, found, expected))
    if found == expected:
        return True
    numbers = isinstance(found, (int, float)) and isinstance(expected, (int, float))
    return numbers and float in (type(found), type(expected)) and _close(found, expected)


def _same_texts(printed, expected: list[str]) -> bool:
    """The program may have written the harness's message itself: nothing is known of its form."""
    if type(printed) is not list or len(printed) != len(expected):
        return False
    if not all(type(text) is str for text in printed):
        return False
    return all(map(_same_text, printed, expected))


def _same_text(printed: str, expected: str) -> bool:
    """The same words, whatever the white space between them."""
    found = printed.split()
    wanted = expected.split()
    return len(found) == len(wanted) and all(map(_same_word, found, wanted))


def _same_word(found: str, wanted: str) -> bool:
    return found == wanted or "." in wanted and _close(found, wanted)


def _close(found, expected) -> bool:
    try:
        return math.isclose(float(found), float(expected), rel_tol=1e-6, abs_tol=1e-6)
    except (ValueError, OverflowError):
        return False
