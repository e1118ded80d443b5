"""Task "code": a request in plain words for a Python function, judged by eight hidden tests.

One to three operations are chained and a final value is returned, over lists, strings or numbers.

    prompt     Write f(xs) for a list of integers. First keep only the numbers greater than 5, then
               sort the list in ascending order, and return the sum of the first and the last
               number, or 0 if the list is empty.
    reference  def f(xs):
                   xs = [x for x in xs if x > 5]
                   xs = sorted(xs)
                   return xs[0] + xs[-1] if xs else 0
    key        xs = [x for x in xs if x > 5]; xs = sorted(xs); return xs[0] + xs[-1] if xs else 0

The key is the body of the reference. It seeds the wordings and the hidden tests, so it has one set
of tests. Two keys can still compute the same function (doubling and adding 4, adding 2 and
doubling): no program here is simplified.

Eight tests let a few wrong programs pass. Of 1,353 that are right but for one operation, exchanged
for another of its group (all of the first 400 validation problems), 47 compute the same and 39 more
pass, 3 %: so much of what is nearly right counts as right.
"""

import itertools
import json
import random
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial

from data.problems import Problem
from data.sandbox import run

# ---- the words and their programs
# An operation is (group, expression, words) and a chain never uses a group twice: no sorting of the
# sorted. In words, (a|b) is a choice of wordings. Operations have no parameters: a weak model that
# must guess one of eight constants has its best guess right too often, and a model that imitates it
# faithfully is then half unlocked already (docs/NOTES.md).
# fmt: off
LIST_OPS = [
    ("size", "[x for x in xs if x > 0]", "keep (only |)the (positive numbers|numbers above zero)"),
    ("size", "[x for x in xs if x < 0]", "keep (only |)the (negative numbers|numbers below zero)"),
    ("size", "[x for x in xs if x != 0]", "(drop|remove) (the|all) zeros"),
    ("parity", "[x for x in xs if x % 2 == 0]",
     "(keep only the even|keep the even|drop the odd) numbers"),
    ("parity", "[x for x in xs if x % 2 == 1]",
     "(keep only the odd|keep the odd|drop the even) numbers"),
    ("shift", "[x + 1 for x in xs]", "(add 1 to|increase by 1) (each|every) (number|element)"),
    ("shift", "[x - 1 for x in xs]",
     "(subtract 1 from|decrease by 1) (each|every) (number|element)"),
    ("scale", "[x * 2 for x in xs]",
     "(double (each|every) number|multiply (each|every) number by 2)"),
    ("scale", "[x * 3 for x in xs]",
     "(triple (each|every) number|multiply (each|every) number by 3)"),
    ("scale", "[x * 10 for x in xs]", "multiply (each|every) (number|element) by 10"),
    ("sign", "[x * x for x in xs]", "(square each number|replace every number by its square)"),
    ("sign", "[x ** 3 for x in xs]", "(cube each number|replace every number by its cube)"),
    ("limit", "[min(x, 5) for x in xs]", "(cap each number at 5|lower the numbers above 5 to 5)"),
    ("limit", "[max(x, 0) for x in xs]",
     "(raise the negative numbers to 0|replace the negative numbers by 0)"),
    ("order", "sorted(xs)",
     "sort the (list|numbers) (in ascending order|from smallest to largest)"),
    ("order", "sorted(xs, reverse=True)",
     "sort the (list|numbers) (in descending order|from largest to smallest)"),
    ("order", "sorted(xs, key=abs)",
     "sort the (list|numbers) by (absolute value|distance from zero)"),
    ("part", "xs[:3]", "(keep only|take|keep) the first three numbers"),
    ("part", "xs[-3:]", "(keep only|take|keep) the last three numbers"),
    ("part", "xs[1:]", "(drop|remove|skip) the first number"),
    ("unique", "list(dict.fromkeys(xs))",
     "(drop|remove) repeated numbers, keeping the first of each"),
    ("unique", "[x for x in xs if xs.count(x) > 1]",
     "keep (only |)the numbers that (occur|appear) more than once"),
    ("sums", "[sum(xs[:i + 1]) for i in range(len(xs))]", "(take|compute) the running totals"),
    ("sums", "[b - a for a, b in zip(xs, xs[1:])]",
     "take the differences of neighbours, next minus current"),
    ("longer", "xs + [0]", "(append a zero|add a zero at the end|put a zero at the end)"),
    ("longer", "[0] + xs", "(add a zero at the front|put a zero at the start)"),
]
# A reducer is (groups the operation before it may not have, expression, words); the first is the
# plain value.
LIST_REDUCERS = [
    ("", "xs", "the (|resulting |final )list"),
    ("order", "sum(xs)", "(the sum|the sum of the list|the total)"),
    ("order", "max(xs, default=0)", "the (largest number|maximum), or 0 if the list is empty"),
    ("order", "min(xs, default=0)", "the (smallest number|minimum), or 0 if the list is empty"),
    ("order shift scale sign limit", "len(xs)", "(the length|how many numbers there are)"),
    ("order", "xs.count(0)", "(how often zero occurs|how many zeros there are|the count of zeros)"),
    ("order unique shift", "len(set(xs))",
     "(the number of distinct values|how many different numbers there are)"),
    ("", "xs[0] if xs else 0", "the first (number|element), or 0 if the list is empty"),
    ("", "xs[-1] if xs else 0", "the last (number|element), or 0 if the list is empty"),
    ("", "xs[0] + xs[-1] if xs else 0",
     "the sum of the first and the last number, or 0 if the list is empty"),
    ("order shift", "max(xs) - min(xs) if xs else 0",
     "the largest minus the smallest number, or 0 if empty"),
    ("order", "sum(x > 0 for x in xs)", "how many numbers are (positive|above zero)"),
]
STRING_OPS = [
    ("case", "s.upper()", "(convert it to|change it to|make it) upper case"),
    ("case", "s.lower()", "(convert it to|change it to|make it) lower case"),
    ("class", '"".join(c for c in s if c not in "aeiouAEIOU")',
     "(remove|drop|delete) (all|the) vowels"),
    ("class", '"".join(c for c in s if c in "aeiouAEIOU")', "keep only (the |)vowels"),
    ("class", '"".join(c for c in s if c.isalpha())', "keep only (the |)letters"),
    ("letter", 's.replace("a", "")', "(remove|drop|delete) every 'a'"),
    ("letter", 's.replace("e", "")', "(remove|drop|delete) every 'e'"),
    ("part", "s[:3]", "(keep only|take|keep) the first three characters"),
    ("part", "s[-3:]", "(keep only|take|keep) the last three characters"),
    ("part", "s[1:]", "(drop|remove|skip) the first character"),
    ("order", "s[::-1]", "(reverse it|reverse the string|turn it around)"),
    ("order", '"".join(sorted(s))', "sort (its|the) characters(| in ascending order)"),
    ("order", '"".join(sorted(s, reverse=True))', "sort (its|the) characters in descending order"),
    ("unique", '"".join(dict.fromkeys(s))',
     "(drop|remove) repeated characters, keeping the first of each"),
    ("unique", '"".join(c for c in s if s.count(c) == 1)',
     "keep (only |)the characters that (occur|appear) exactly once"),
    ("longer", '"".join(c * 2 for c in s)', "(double every character|write every character twice)"),
    ("longer", "s + s", "(repeat it|write it twice in a row)"),
    ("ends", '"x" + s', "(put|add) an 'x' at the (front|start)"),
    ("ends", 's + "!"', "(put|add) an exclamation mark at the end"),
    ("words", 's.replace(" ", "")', "(remove|drop|delete) (all|the) spaces"),
    ("words", '" ".join(s.split()[::-1])',
     "(reverse the order of the words|put the words in reverse order)"),
    ("words", '" ".join(sorted(s.split()))', "(sort the words|put the words in sorted order)"),
]
STRING_REDUCERS = [
    ("", "s", "the (|resulting |final )string"),
    ("case order", "len(s)", "(its length|the length of the string|the number of characters)"),
    ("case class part", "len(s.split())", "(the number of words|how many words there are)"),
    ("case order", 'sum(c in "aeiouAEIOU" for c in s)',
     "(the number of vowels|how many vowels there are)"),
    ("order", 'sum(c.isupper() for c in s)',
     "(the number of capital letters|how many capital letters there are)"),
    ("order", 's.count("a")', "(how often 'a' occurs|how many times 'a' appears|the count of 'a')"),
    ("order unique", "len(set(s))",
     "(the number of distinct characters|how many different characters there are)"),
    ("", "s[:1]", "the first character, or '' if (it|the string) is empty"),
    ("", "s[-1:]", "the last character, or '' if (it|the string) is empty"),
    ("order", '"e" in s', "whether (it|the string) contains 'e'"),
    ("", "s == s[::-1]", "whether (it|the string) is a palindrome"),
    ("", "s.split()", "the list of (its|the) words"),
]
NUMBER_OPS = [
    ("shift", "n + 1", "(add 1|add 1 to it|increase it by 1)"),
    ("shift", "n + 10", "(add 10|add 10 to it|increase it by 10)"),
    ("scale", "n * 2", "(double it|multiply it by 2)"),
    ("scale", "n * 3", "(triple it|multiply it by 3)"),
    ("scale", "n * 7", "multiply (it |)by 7"),
    ("round", "n + -n % 10", "round (it |)up to a multiple of (10|ten)"),
    ("round", "n - n % 10", "round (it |)down to a multiple of (10|ten)"),
    ("grow", "n * n", "(square it|take its square|multiply it by itself)"),
    ("grow", "n ** 3", "(cube it|take its cube)"),
    ("digits", "int(str(n)[::-1])", "reverse (its|the) digits"),
    ("digits", 'int("".join(sorted(str(n))))', "sort (its|the) digits in ascending order"),
    ("digits", 'int("".join(sorted(str(n), reverse=True)))',
     "sort (its|the) digits in descending order"),
    ("repeat", "int(str(n) * 2)", "(repeat its digits|write its digits twice in a row)"),
    ("repeat", "int(str(n) + str(n)[::-1])", "append its (digits in reverse|reversed digits)"),
    ("binary", 'bin(n).count("1")', "count the ones in (its binary form|binary)"),
    ("binary", "n.bit_length()", "take (its|the) number of bits"),
    ("limit", "min(n, 100)", "(cap it at 100|lower it to 100 if it is greater)"),
    ("limit", "max(n, 100)", "(raise it to 100 if it is less|make it at least 100)"),
    ("branch", "n + 5 if n % 2 == 0 else n",
     "(add 5 if it is even|increase it by 5 if it is even)"),
    ("branch", "n + 5 if n % 2 == 1 else n", "(add 5 if it is odd|increase it by 5 if it is odd)"),
]
NUMBER_REDUCERS = [
    ("", "n", "(the result|the number|the final number)"),
    ("", "n % 2 == 0", "whether (it|the result) is even"),
    ("", "n % 3 == 0", "whether (it|the result) is (divisible by|a multiple of) 3"),
    ("", "n > 100", "whether (it|the result) is (greater than|above) 100"),
    ("", "str(n) == str(n)[::-1]", "whether its digits (are a palindrome|read the same backwards)"),
    ("", '"7" in str(n)', "whether (it contains the digit 7|the digit 7 is in it)"),
    ("digits", 'str(n).count("1")',
     "(how often the digit 1 occurs|how many times the digit 1 appears)"),
    ("digits", "len(str(n))", "(its number of digits|the number of digits|how many digits it has)"),
    ("", "[int(d) for d in str(n)]", "(the list of its digits|its digits as a list)"),
    ("", "str(n)[::-1]", "(its digits reversed, as a string|its reversed digits as a string)"),
    ("", "bin(n)[2:]", "(its binary form as a string|its binary digits as a string)"),
    ("", "hex(n)[2:]", "(its hexadecimal form as a string|its hexadecimal digits as a string)"),
]
OPENINGS = (
    "Write f({v}) for {kind}. ",
    "Write f({v}), where {v} is {kind}. ",
    "Write f({v}). Take {kind}. ",
    "Write f({v}). Given {kind}, ",
)
JOINS = (  # before the first operation, between two, and around the value returned
    ("first ", ", then ", ", and return {}."),
    ("", ", then ", ", and return {}."),
    ("", "; ", "; return {}."),
    ("", ", next ", ". Finally return {}."),
    ("", ", and then ", ". Return {}."),
)
WORDS = (  # of the strings that tests give
    "Apple tree river Stone noon level ant Rain 42 7 x1 the road LION tea radar Seven oil 2024 "
    "Anna lesson train Otter salt IRON nest eel orange A to is Roses"
).split()
# fmt: on

DOMAINS = {  # name: (argument, what it is, operations, reducers)
    "lists": ("xs", "a list of integers", LIST_OPS, LIST_REDUCERS),
    "strings": ("s", "a string", STRING_OPS, STRING_REDUCERS),
    "numbers": ("n", "a non-negative integer", NUMBER_OPS, NUMBER_REDUCERS),
}
EDGES = {"lists": [], "strings": "", "numbers": 0}


# ---- drawing problems
def by_rank(rows: list[tuple], name: str) -> tuple[list[tuple], list[float]]:
    """The rows in a random but fixed order, and Zipf's weights, cumulated.

    The r-th is drawn in proportion to 1 / r.
    """
    rows = random.Random(f"rank {name}").sample(rows, len(rows))
    weights = [1 / rank for rank in range(1, len(rows) + 1)]
    return rows, list(itertools.accumulate(weights))


def problems(seed: int) -> Iterator[tuple[str, Callable[..., Problem | None]]]:
    """An endless stream of (key, build); keys repeat.

    Like words, operations have Zipf's frequencies. A small model learns the common ones and
    mistakes the rare for them: it is wrong with confidence, and always in the same way, which a
    model that imitates it can learn from a few thousand samples.
    """
    rng = random.Random(f"coding {seed}")
    ranked = {}
    for domain, (v, _, operations, reducers) in DOMAINS.items():
        ranked[domain] = v, by_rank(operations, domain), by_rank(reducers, domain)

    while True:
        domain = rng.choice(tuple(DOMAINS))
        v, operations, reducers = ranked[domain]
        level = rng.choices((1, 2, 3), weights=(10, 45, 45))[0]
        chain, reducer = _chain(rng, operations, reducers, level)
        lines = [f"{v} = {code}" for _, code, _ in chain]
        key = "; ".join([*lines, f"return {reducer[1]}"])
        patterns = [words for _, _, words in [*chain, reducer]]
        yield key, partial(_build, domain, patterns, key)


def _chain(
    rng: random.Random, operations: tuple[list, list], reducers: tuple[list, list], level: int
) -> tuple[list[tuple], tuple]:
    """Operations of different groups, and a reducer that goes with the last of them."""
    while True:
        rows, weights = operations
        chain = rng.choices(rows, cum_weights=weights, k=level)
        rows, weights = reducers
        [reducer] = rng.choices(rows, cum_weights=weights)
        groups = [group for group, _, _ in chain]
        if len(set(groups)) == level and groups[-1] not in reducer[0].split():
            return chain, reducer


def _build(
    domain: str, patterns: list[str], key: str, tests: bool = True, wording: int = 0
) -> Problem | None:
    """The problem with one of its wordings and its tests; None where they would say too little."""
    prompt, _ = request(domain, patterns, random.Random(f"words {wording} {key}"))
    argument = DOMAINS[domain][0]
    reference = "\n    ".join([f"def f({argument}):", *key.split("; ")])
    grading = hidden_tests(domain, reference, key) if tests else {}
    if grading is None:
        return None
    return Problem("code", prompt, reference, domain, len(patterns) - 1, grading, key)


def request(domain: str, patterns: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """One wording of the request, and the words in it for each line of the program."""
    v, kind, *_ = DOMAINS[domain]
    words = [worded(pattern, rng) for pattern in patterns]
    opening = rng.choice(OPENINGS).format(v=v, kind=kind)
    before, between, after = rng.choice(JOINS)
    sentence = before + between.join(words[:-1]) + after.format(words[-1])
    if opening.endswith(". "):
        sentence = sentence[0].upper() + sentence[1:]
    return opening + sentence + "\n", words


def worded(pattern: str, rng: random.Random) -> str:
    """One wording: "(double (each|every) number|multiply it by 2)" -> "double every number"."""
    while "(" in pattern:  # the innermost choices first
        pattern = re.sub(r"\(([^()]*)\)", lambda choice: rng.choice(choice[1].split("|")), pattern)
    return pattern


# ---- tests
def hidden_tests(domain: str, reference: str, key: str) -> dict | None:
    """Eight inputs, and what the reference gives for them.

    Exactly one of them is the empty or zero edge case. None if the outputs hardly vary, or if they
    stay the same without one of the operations.
    """
    rng = random.Random(f"tests {key}")
    inputs = [[random_argument(domain, rng)] for _ in range(7)]
    inputs.insert(rng.randrange(8), [EDGES[domain]])
    outputs = outputs_of(reference, inputs)

    different = len(set(map(repr, outputs)))
    if different < (2 if isinstance(outputs[0], bool) else 3):
        return None
    lines = reference.split("\n")
    for i in range(1, len(lines) - 1):
        shorter = "\n".join(lines[:i] + lines[i + 1 :])
        if outputs_of(shorter, inputs) == outputs:
            return None
    return {"function": "f", "inputs": inputs, "outputs": outputs}


def visible_tests(problem: Problem) -> dict:
    """Two more tests of a generated problem, in the form of its hidden ones and none of them.

    Drawn as these are, without the edge case; a function of the problem's key alone.
    """
    rng = random.Random(f"visible tests {problem.key}")
    inputs: list[list] = []
    while len(inputs) < 2:
        arguments = [random_argument(problem.domain, rng)]
        if arguments not in [*problem.grading["inputs"], *inputs]:
            inputs.append(arguments)
    return {"function": "f", "inputs": inputs, "outputs": outputs_of(problem.reference, inputs)}


def outputs_of(reference: str, inputs: list[list]) -> list:
    namespace = {}
    exec(reference, namespace)  # composed from the tables above, never written by a model
    return [namespace["f"](*arguments) for arguments in inputs]


def random_argument(domain: str, rng: random.Random) -> list[int] | str | int:
    if domain == "numbers":
        return rng.randint(1, rng.choice((9, 99, 999, 9999, 9999)))
    if domain == "strings":
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))
    spread = rng.choice((4, 10, 20))  # a small one gives repeats
    return [rng.randint(-spread, spread) for _ in range(rng.randint(1, 10))]


# ---- grading
FENCE = re.compile(
    r"^[ \t]*+```[ \t]*+(\w*+)[^\n`]*+\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL
)
PYTHON = ("", "py", "python", "python3")  # what a fence's language may be


def program_in(completion: str) -> str:
    """What the first fence of Python encloses, up to the end where it is not closed; or all."""
    for fence in FENCE.finditer(completion):
        if fence[1].lower() in PYTHON:
            return textwrap.dedent(fence[2])
    return completion


# (key, completion): models write the same program again and again
_scores: dict[tuple[str, str], float] = {}


def score(problems: list[Problem], completions: list[str]) -> list[float]:
    """The share of the hidden tests that each completion passes.

    Outputs are compared as JSON text: True is not 1, and 1 is not 1.0.
    """
    new = {}
    for problem, completion in zip(problems, completions):
        if not problem.grading:
            raise ValueError(
                f"cannot grade a corpus problem: it has no hidden tests ({problem.key})"
            )
        if (problem.key, completion) not in _scores:
            new[problem.key, completion] = problem

    jobs = []
    for (_, completion), problem in new.items():
        tests = {name: problem.grading[name] for name in ("function", "inputs")}
        jobs.append({"program": program_in(completion), **tests})
    for (pair, problem), outputs in zip(new.items(), run(jobs)):
        expected = problem.grading["outputs"]
        passed = [json.dumps(o) == json.dumps(e) for o, e in zip(outputs or [], expected)]
        _scores[pair] = sum(passed) / len(expected)
    return [_scores[problem.key, text] for problem, text in zip(problems, completions)]


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion passes all hidden tests."""
    return [value == 1 for value in score(problems, completions)]
