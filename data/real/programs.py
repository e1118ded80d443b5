"""Programming problems from real data: MBPP, APPS and HumanEval (`from_row`), repairs from HumanEvalPack (`critique_from_row`).

    problems = rows.problems_from(["mbpp.jsonl"], from_row)
    grade(problems, ["def min_cost(cost, m, n): ...", ...])  -> [True, ...]

A completion is a whole program, alone or within a ```python fence. It runs in the sandbox and never in a process that
has the tests or the expected values. APPS lists both inputs and outputs, which are compared here. The assert tests of
MBPP and HumanEval are Python, so they run, in a sandbox process of their own (sandbox/harness.py), first with the reference,
which shows the calls that they make; then the program answers these calls; then the tests run on its answers. An answer
is plain data without methods, so a program can pass only by what it returns, and it does not see what is expected.

What this cannot grade: tests that look at an argument the function has changed, at printed text or at exceptions, or
whose calls depend on earlier answers (they must ask of each program what they asked of the reference); and scripts that
read file descriptor 0 past sys.stdin. APPS has no checkers: of several right answers only the listed one is accepted.
What it does not stop: a program that knows the answers by heart, or finds the tests in its own memory of the data set.
"""
import ast
import itertools
import json
import math
import re
import warnings
from collections.abc import Callable

from data.problems import Problem
from data.sandbox import run

CPU = {"tests": 4, "calls": 10, "script": 10}  # processor seconds for all tests of a problem
LEVELS = {"introductory": 1, "interview": 2, "competition": 3}


def from_row(row: dict) -> Problem:
    """The problem of a row of MBPP, APPS or HumanEval, told apart by their fields; ValueError if it makes none."""
    return _checked(_program, row)


def critique_from_row(row: dict) -> Problem:
    """A row of HumanEvalPack: given the specification and a buggy program, write the repaired one."""
    return _checked(_repair, row)


def _checked(convert, row: dict) -> Problem:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of the style of a data set's programs
            problem = convert(row)
        json.dumps(problem.grading, allow_nan=False)  # as the sandbox will ask
        return problem
    except (KeyError, TypeError, AttributeError, IndexError, SyntaxError, RecursionError) as error:
        raise ValueError(f"a field is missing or malformed ({type(error).__name__}: {error})") from None


def _program(row: dict) -> Problem:
    if {"code", "test_list"} <= row.keys():
        return _mbpp(row)
    if {"prompt", "test", "entry_point", "canonical_solution"} <= row.keys():
        reference, grading, key = _human_eval(row)
        prompt = f"Write the whole Python program that begins as follows.\n{row['prompt'].strip()}\n"
        return Problem("code", prompt, reference, "humaneval", 1, grading, key)
    if {"question", "input_output"} <= row.keys() or {"description", "test_list"} <= row.keys():
        return _apps(row)
    raise ValueError(f"no row of MBPP, APPS or HumanEval: its fields are {', '.join(row) or 'none'}")


def _mbpp(row: dict) -> Problem:
    unix = lambda text: text.replace("\r\n", "\n").strip()  # the file mixes both ends of lines
    text, reference, setup = unix(row.get("text") or row["prompt"]), unix(row["code"]), unix(row.get("test_setup_code", ""))
    tests = [*map(unix, row["test_list"]), *map(unix, row.get("challenge_test_list", ()))]
    defined = {node.name for node in ast.parse(reference).body if isinstance(node, ast.FunctionDef)}
    called = [node.func.id for node in ast.walk(ast.parse("\n".join(tests))) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    function = next((name for name in called if name in defined), None)
    if function is None:
        raise ValueError("its tests call no function of its reference")
    prompt = f"{text}\nIt must pass this test:\n{setup}\n{tests[0]}\n".replace("\n\n", "\n")  # names the function and shows its arguments
    grading = {"kind": "tests", "before": "\n".join(row.get("test_imports", ())), "tests": "\n".join([setup, *tests]), "function": function}
    return Problem("code", prompt, reference, "mbpp", 1, grading, f"mbpp {text} {' '.join(tests)}")


def _human_eval(row: dict) -> tuple[str, dict, str]:
    """Reference, grading and key. The prompt's imports and helpers are there even for a program that leaves them out."""
    before, function = row["prompt"], row["entry_point"]
    ast.parse(before)
    tests = row["test"] if re.search(rf"^check\({function}\)", row["test"], re.M) else f"{row['test']}\ncheck({function})"
    grading = {"kind": "tests", "before": before, "tests": tests, "function": function}
    return (before + row["canonical_solution"]).rstrip(), grading, f"humaneval {before}"


def _repair(row: dict) -> Problem:
    reference, grading, key = _human_eval(row)
    buggy = (row["prompt"] + row["buggy_solution"]).strip()
    prompt = f"The program below does not do what its docstring says. Write the repaired program.\n{buggy}\n"
    return Problem("critique", prompt, reference, row.get("bug_type", "bug"), 1, grading, key)


def _apps(row: dict) -> Problem:
    """Either APPS itself, or a sample of it where each test is {"input": text, "output": [value]}."""
    text, starter = (row.get("question") or row["description"]).strip(), row.get("starter_code", "").strip()
    if "input_output" in row:
        tests = json.loads(row["input_output"] or "{}")
        inputs, outputs, function = tests.get("inputs", []), tests.get("outputs", []), tests.get("fn_name")
        readings = [inputs]
    else:
        tests = row.get("sample_io", []) + row["test_list"]
        inputs, outputs, function = [test["input"] for test in tests], [test["output"] for test in tests], None
        if starter:
            function, readings = _readings(starter, inputs)
    if not inputs or len(inputs) != len(outputs):
        raise ValueError("it has no tests")
    if function:
        end = f"\n{function} = Solution().{function}" if "class Solution" in starter else ""
        grading = {"kind": "calls", "function": function, "readings": readings, "outputs": outputs, "end": end}
        prompt = f"{text}\nWrite a Python program that begins as follows.\n{starter}\n"
    else:
        lines = lambda test: test if isinstance(test, str) else "\n".join(map(str, test))
        grading = {"kind": "script", "inputs": list(map(lines, inputs)), "outputs": list(map(lines, outputs))}
        prompt = f"{text}\nWrite a Python program that reads standard input and prints the answer.\n"
    solutions = json.loads(row.get("solutions") or "[]")
    difficulty = row["difficulty"]
    return Problem("code", prompt, solutions[0].strip() if solutions else "", f"apps {difficulty}", LEVELS[difficulty], grading, f"apps {text}")


def _readings(starter: str, inputs: list[str]) -> tuple[str, list[list[list]]]:
    """The function's name, and what the inputs can mean, a line of text being an argument.

    It is a Python literal, or, if in any test it is none, a string without quotes. Numerals may be either: "1234" is a
    number to one function and a ticket, "1234", to the next. So a program may be right by any of these readings.
    """
    [function] = ast.parse(f"{starter} pass").body
    least, most = len(function.args.args) - len(function.args.defaults), len(function.args.args)
    tests = [text.split("\n") for text in inputs]
    if not all(least <= len(lines) <= most for lines in tests):
        raise ValueError("the lines of its inputs are not its arguments")
    kinds = [_kinds([lines[i] for lines in tests if i < len(lines)]) for i in range(max(map(len, tests)))]
    return function.name, [[[kind(line) for kind, line in zip(choice, lines)] for lines in tests] for choice in itertools.product(*kinds)]


def _kinds(column: list[str]) -> list[Callable]:
    try:
        values = list(map(ast.literal_eval, column))
        json.dumps(values, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError):
        return [str]
    return [ast.literal_eval, str] if all(type(value) in (int, float) for value in values) else [ast.literal_eval]


def program_in(completion: str) -> str:
    """What the first fence encloses, up to the end where it is not closed; else everything."""
    fence = re.search(r"^```(?:python|py)?[ \t]*\n(.*?)(?:^```|\Z)", completion, re.M | re.S)
    return fence[1] if fence else completion


_calls: dict[tuple, list[str]] = {}  # what a problem's tests ask
_verdicts: dict[tuple[str, str], bool] = {}  # (key, program): models write the same program again and again


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion's program passes all tests of its problem."""
    names = [(problem.key, program_in(completion)) for problem, completion in zip(problems, completions)]
    new = {name: (problem, name[1]) for name, problem in zip(names, problems) if name not in _verdicts}
    for kind, passed in (("tests", _pass_tests), ("calls", _pass_calls), ("script", _pass_script)):
        chosen = {name: pair for name, pair in new.items() if pair[0].grading["kind"] == kind}
        _verdicts.update(zip(chosen, passed(list(chosen.values()))))
    return [_verdicts[name] for name in names]


def _in_harness(function: str, arguments: list[list], cpu: int) -> list:
    """What a function of the harness returns for each list of arguments, None where it failed."""
    results = run([{"program": f"from harness import {function}", "function": function, "inputs": [each]} for each in arguments], cpu=cpu)
    return [None if result is None or isinstance(result[0], dict) else result[0] for result in results]


def _pass_tests(pairs: list[tuple[Problem, str]]) -> list[bool]:
    tests = [(problem.grading["before"], problem.reference, problem.grading["tests"], problem.grading["function"]) for problem, _ in pairs]
    unknown = [test for test in dict.fromkeys(tests) if test not in _calls]
    for test, calls in zip(unknown, _in_harness("judge", [[*test, None, None] for test in unknown], CPU["tests"])):
        _calls[test] = calls or []
        if not calls:
            warnings.warn(f"No program can pass, as the reference of {test[3]} fails its own tests, or they call nothing.", stacklevel=3)
    askable = [(i, test, _calls[test], pair[1]) for i, (test, pair) in enumerate(zip(tests, pairs)) if _calls[test]]
    answers = _in_harness("answer", [[test[0], program, test[3], calls] for _, test, calls, program in askable], CPU["tests"])
    answered = [(i, [*test, calls, given]) for (i, test, calls, _), given in zip(askable, answers) if given is not None]
    judged = _in_harness("judge", [arguments for _, arguments in answered], CPU["tests"])
    passed = {i for (i, _), made in zip(answered, judged) if made is not None}
    return [i in passed for i in range(len(pairs))]


def _pass_calls(pairs: list[tuple[Problem, str]]) -> list[bool]:
    results = iter(run([{"program": program + problem.grading["end"], "function": problem.grading["function"], "inputs": reading}
                        for problem, program in pairs for reading in problem.grading["readings"]], cpu=CPU["calls"]))
    outputs = [[next(results) for _ in problem.grading["readings"]] for problem, _ in pairs]
    return [any(found is not None and all(map(_same, found, problem.grading["outputs"])) for found in readings)
            for (problem, _), readings in zip(pairs, outputs)]


def _pass_script(pairs: list[tuple[Problem, str]]) -> list[bool]:
    outputs = _in_harness("script", [[program, problem.grading["inputs"]] for problem, program in pairs], CPU["script"])
    return [_same_texts(printed, problem.grading["outputs"]) for (problem, _), printed in zip(pairs, outputs)]


def _same(found, expected) -> bool:
    """Equal as APPS means it, whose expected values stand alone or in a list of one."""
    return _equal(found, expected) or isinstance(expected, list) and len(expected) == 1 and _equal(found, expected[0])


def _equal(found, expected) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_equal, found, expected))
    numbers = isinstance(found, (int, float)) and isinstance(expected, (int, float))
    return found == expected or numbers and float in (type(found), type(expected)) and _close(found, expected)


def _same_texts(printed, expected: list[str]) -> bool:
    """The program may have written the harness's message itself, so nothing is known of its form."""
    return type(printed) is list and len(printed) == len(expected) and all(type(text) is str for text in printed) and all(map(_same_text, printed, expected))


def _same_text(printed: str, expected: str) -> bool:
    """The same words, whatever the white space between them."""
    found, wanted = printed.split(), expected.split()
    return len(found) == len(wanted) and all(a == b or "." in b and _close(a, b) for a, b in zip(found, wanted))


def _close(found, expected) -> bool:
    try:
        return math.isclose(float(found), float(expected), rel_tol=1e-6, abs_tol=1e-6)
    except (ValueError, OverflowError):
        return False
