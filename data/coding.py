"""Task "code": a short request in plain words whose answer is a Python function, judged by eight hidden tests.

One to three operations are chained and a final value is returned, over lists, strings or numbers. An example:

    prompt     Write f(xs) for a list of integers. First keep only the numbers greater than 3, then sort the list in
               ascending order, and return the sum of the first and the last number, or 0 if the list is empty.
    reference  def f(xs):
                   xs = [x for x in xs if x > 3]
                   xs = sorted(xs)
                   return xs[0] + xs[-1] if xs else 0
    key        xs = [x for x in xs if x > 3]; xs = sorted(xs); return xs[0] + xs[-1] if xs else 0

The key is the body of the reference. It seeds the wording and the hidden tests, so it has exactly one of each. Two keys
can still compute the same function (doubling and adding 4, adding 2 and doubling): no program here is simplified.
"""
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import partial

from data import Problem
from data.sandbox import run

CONSTANTS = {
    "": [""], "digit": range(2, 10), "few": range(2, 6), "letter": "aeilnorst", "mark": "xyz!?",
    "factor": range(3, 10),  # where 2 has an operation of its own
    "round": (10, 20, 50, 100, 200, 500, 1000),
    "swap": ("ae", "eo", "io", "la", "ni", "oa", "rl", "st", "tr", "ts"),  # replace the first by the second
}

# An operation is (group, expression, constant, words) and a chain never uses a group twice: no sorting of the sorted.
# In words, (a|b) is a choice of wordings.
LIST_OPS = [
    ("size", "[x for x in xs if x > {c}]", "digit", "keep (only |)the numbers (greater than|above) {c}"),
    ("size", "[x for x in xs if x < {c}]", "digit", "keep (only |)the numbers (less than|below) {c}"),
    ("size", "[x for x in xs if x > 0]", "", "keep (only |)the (positive numbers|numbers above zero)"),
    ("parity", "[x for x in xs if x % 2 == 0]", "", "(keep only the even|keep the even|drop the odd) numbers"),
    ("parity", "[x for x in xs if x % 2 == 1]", "", "(keep only the odd|keep the odd|drop the even) numbers"),
    ("parity", "[x for x in xs if x % {c} == 0]", "factor", "keep (only |)the (multiples of|numbers divisible by) {c}"),
    ("shift", "[x + {c} for x in xs]", "digit", "add {c} to (each|every) (number|element)"),
    ("shift", "[x - {c} for x in xs]", "digit", "subtract {c} from (each|every) (number|element)"),
    ("scale", "[x * {c} for x in xs]", "digit", "multiply (each|every) (number|element) by {c}"),
    ("scale", "[x // {c} for x in xs]", "digit", "divide (each|every) (number|element) by {c}, rounding down"),
    ("scale", "[x % {c} for x in xs]", "digit", "replace (each|every) number by its remainder modulo {c}"),
    ("sign", "[x * x for x in xs]", "", "(square each number|replace every number by its square)"),
    ("sign", "[-x for x in xs]", "", "(negate each number|flip the sign of every number)"),
    ("sign", "[abs(x) for x in xs]", "", "(take the absolute value of each number|make every number non-negative)"),
    ("limit", "[min(x, {c}) for x in xs]", "digit", "(cap each number at {c}|lower the numbers above {c} to {c})"),
    ("limit", "[max(x, {c}) for x in xs]", "digit", "raise (the numbers|every number) below {c} to {c}"),
    ("order", "sorted(xs)", "", "sort the (list|numbers) (in ascending order|from smallest to largest)"),
    ("order", "sorted(xs, reverse=True)", "", "sort the (list|numbers) (in descending order|from largest to smallest)"),
    ("order", "xs[::-1]", "", "(reverse the list|reverse the order of the numbers|turn the list around)"),
    ("order", "xs[{c}:] + xs[:{c}]", "few", "(move|shift) the first {c} numbers to the end(| of the list)"),
    ("part", "xs[:{c}]", "few", "(keep only|take|keep) the first {c} numbers"),
    ("part", "xs[-{c}:]", "few", "(keep only|take|keep) the last {c} numbers"),
    ("part", "xs[{c}:]", "few", "(drop|remove|skip) the first {c} numbers"),
    ("part", "xs[:-{c}]", "few", "(drop|remove) the last {c} numbers"),
    ("part", "xs[::2]", "", "(keep|take) every second number(,|) starting with the first"),
    ("unique", "list(dict.fromkeys(xs))", "", "(drop|remove) repeated numbers, keeping the first of each"),
    ("sums", "[sum(xs[:i + 1]) for i in range(len(xs))]", "", "(take|compute) the running totals"),
    ("sums", "[b - a for a, b in zip(xs, xs[1:])]", "", "take the differences of neighbours, next minus current"),
    ("sums", "[a + b for a, b in zip(xs, xs[1:])]", "", "(take|compute) the sums of each two neighbours"),
    ("sums", "[i * x for i, x in enumerate(xs)]", "", "multiply (each|every) number by its position, counting from 0"),
    ("longer", "xs + [{c}]", "digit", "(append {c}|add {c} at the end|put {c} at the end)"),
]
# A reducer is (groups the operation before it may not have, expression, constant, words); the first is the plain value.
LIST_REDUCERS = [
    ("", "xs", "", "the (|resulting |final )list"),
    ("order", "sum(xs)", "", "(the sum|the sum of the list|the total)"),
    ("order", "max(xs, default=0)", "", "the (largest number|maximum), or 0 if the list is empty"),
    ("order", "min(xs, default=0)", "", "the (smallest number|minimum), or 0 if the list is empty"),
    ("order shift scale sign limit", "len(xs)", "", "(the length|how many numbers there are)"),
    ("order", "xs.count({c})", "digit", "(how often {c} occurs|how many times {c} appears|the count of {c})"),
    ("order unique shift", "len(set(xs))", "", "(the number of distinct values|how many different numbers there are)"),
    ("", "xs[0] if xs else 0", "", "the first (number|element), or 0 if the list is empty"),
    ("", "xs[0] + xs[-1] if xs else 0", "", "the sum of the first and the last number, or 0 if the list is empty"),
    ("order shift", "max(xs) - min(xs) if xs else 0", "", "the largest minus the smallest number, or 0 if empty"),
    ("order", "sum(x > {c} for x in xs)", "digit", "how many numbers are (greater than|above) {c}"),
    ("order", "any(x > {c} for x in xs)", "digit", "whether (any|at least one) number is greater than {c}"),
]
STRING_OPS = [
    ("case", "s.upper()", "", "(convert it to|change it to|make it) upper case"),
    ("case", "s.lower()", "", "(convert it to|change it to|make it) lower case"),
    ("case", "s.swapcase()", "", "swap (the case of every letter|upper and lower case)"),
    ("class", '"".join(c for c in s if c not in "aeiouAEIOU")', "", "(remove|drop|delete) (all|the) vowels"),
    ("class", '"".join(c for c in s if c in "aeiouAEIOU")', "", "keep only (the |)vowels"),
    ("class", '"".join(c for c in s if c.isalpha())', "", "keep only (the |)letters"),
    ("letter", 's.replace("{c}", "")', "letter", "(remove|drop|delete) every '{c}'"),
    ("letter", 's.replace("{c[0]}", "{c[1]}")', "swap", "replace every '{c[0]}' (by|with) '{c[1]}'"),
    ("part", "s[:{c}]", "few", "(keep only|take|keep) the first {c} characters"),
    ("part", "s[-{c}:]", "few", "(keep only|take|keep) the last {c} characters"),
    ("part", "s[{c}:]", "few", "(drop|remove|skip) the first {c} characters"),
    ("part", "s[:-{c}]", "few", "(drop|remove) the last {c} characters"),
    ("part", "s[::2]", "", "(keep|take) every second character(,|) starting with the first"),
    ("order", "s[::-1]", "", "(reverse it|reverse the string|turn it around)"),
    ("order", '"".join(sorted(s))', "", "sort (its|the) characters"),
    ("unique", '"".join(dict.fromkeys(s))', "", "(drop|remove) repeated characters, keeping the first of each"),
    ("longer", '"".join(c * 2 for c in s)', "", "(double every character|write every character twice)"),
    ("ends", '"{c}" + s', "mark", "(put|add) '{c}' at the (front|start)"),
    ("ends", 's + "{c}"', "mark", "(put|add) '{c}' at the end"),
    ("words", 's.replace(" ", "")', "", "(remove|drop|delete) (all|the) spaces"),
    ("words", '" ".join(s.split()[::-1])', "", "(reverse the order of the words|put the words in reverse order)"),
    ("words", '" ".join(sorted(s.split()))', "", "(sort the words|put the words in sorted order)"),
    ("words", '"".join(w[0] for w in s.split())', "", "(take|keep only) the first character of (each|every) word"),
    ("words", '"-".join(s.split())', "", "join (its|the) words with '-'"),
]
STRING_REDUCERS = [
    ("", "s", "", "the (|resulting |final )string"),
    ("case order", "len(s)", "", "(its length|the length of the string|the number of characters)"),
    ("case class part", "len(s.split())", "", "(the number of words|how many words there are)"),
    ("case order", 'sum(c in "aeiouAEIOU" for c in s)', "", "(the number of vowels|how many vowels there are)"),
    ("order", 's.count("{c}")', "letter", "(how often '{c}' occurs|how many times '{c}' appears|the count of '{c}')"),
    ("order unique", "len(set(s))", "", "(the number of distinct characters|how many different characters there are)"),
    ("", "s[:1]", "", "the first character, or '' if (it|the string) is empty"),
    ("", "s[-1:]", "", "the last character, or '' if (it|the string) is empty"),
    ("order", '"{c}" in s', "letter", "whether (it|the string) contains '{c}'"),
    ("", 'max(s.split(), key=len, default="")', "", "the longest word, the first if several, or '' if there is none"),
]
NUMBER_OPS = [
    ("shift", "n + {c}", "digit", "(add {c}|add {c} to it|increase it by {c})"),
    ("shift", "max(n - {c}, 0)", "digit", "subtract {c}(, but not|, never going) below 0"),
    ("shift", "abs(n - {c})", "round", "take (the|its) distance (to|from) {c}"),
    ("scale", "n * {c}", "digit", "multiply (it |)by {c}"),
    ("scale", "n // {c}", "digit", "divide (it |)by {c}, rounding down"),
    ("scale", "n % {c}", "digit", "take the remainder (modulo|after division by) {c}"),
    ("scale", "n // 10", "", "(drop|remove) (its|the) last digit"),
    ("scale", "n % 10", "", "(keep only|take) (its|the) last digit"),
    ("round", "n + -n % {c}", "digit", "round (it |)up to a multiple of {c}"),
    ("round", "n - n % {c}", "digit", "round (it |)down to a multiple of {c}"),
    ("grow", "n * n", "", "(square it|take its square|multiply it by itself)"),
    ("grow", "n * (n + 1) // 2", "", "(take the sum of the numbers|add up all numbers) from 1 to it"),
    ("digits", "int(str(n)[::-1])", "", "reverse (its|the) digits"),
    ("digits", 'int("".join(sorted(str(n))))', "", "sort (its|the) digits in ascending order"),
    ("digits", "sum(int(d) for d in str(n))", "", "(take the sum of its digits|add up its digits)"),
    ("digits", "int(max(str(n)))", "", "take (its|the) largest digit"),
    ("digits", "len(str(n))", "", "(count its digits|take the number of its digits)"),
    ("binary", 'bin(n).count("1")', "", "count the ones in (its binary form|binary)"),
    ("limit", "min(n, {c})", "round", "(cap it at {c}|lower it to {c} if it is greater)"),
    ("limit", "max(n, {c})", "round", "(raise it to {c} if it is less|make it at least {c})"),
    ("branch", "n + {c} if n % 2 == 0 else n", "digit", "(add {c} if it is even|increase it by {c} if it is even)"),
    ("branch", "n + {c} if n % 2 == 1 else n", "digit", "(add {c} if it is odd|increase it by {c} if it is odd)"),
    ("branch", "n * 2 if n < {c} else n", "round", "double it if it is (less than|below) {c}"),
]
NUMBER_REDUCERS = [
    ("", "n", "", "(the result|the number|the final number)"),
    ("", "n % 2 == 0", "", "whether (it|the result) is even"),
    ("", "n % {c} == 0", "factor", "whether (it|the result) is (divisible by|a multiple of) {c}"),
    ("", "n > {c}", "round", "whether (it|the result) is (greater than|above) {c}"),
    ("", "str(n) == str(n)[::-1]", "", "whether its digits (are a palindrome|read the same backwards)"),
    ("", '"{c}" in str(n)', "digit", "whether (it contains the digit {c}|the digit {c} is in it)"),
    ("digits", 'str(n).count("{c}")', "digit", "(how often the digit {c} occurs|how many times the digit {c} appears)"),
    ("digits", "len(str(n))", "", "(its number of digits|the number of digits|how many digits it has)"),
    ("", "[int(d) for d in str(n)]", "", "(the list of its digits|its digits as a list)"),
    ("", "str(n)[::-1]", "", "(its digits reversed, as a string|its reversed digits as a string)"),
    ("", "bin(n)[2:]", "", "(its binary form as a string|its binary digits as a string)"),
    ("scale", "[n // {c}, n % {c}]", "digit", "the list of its quotient and remainder when divided by {c}"),
]
DOMAINS = {  # name: (argument, what it is, operations, reducers)
    "lists": ("xs", "a list of integers", LIST_OPS, LIST_REDUCERS),
    "strings": ("s", "a string", STRING_OPS, STRING_REDUCERS),
    "numbers": ("n", "a non-negative integer", NUMBER_OPS, NUMBER_REDUCERS),
}
OPENINGS = ("Write f({v}) for {kind}. ", "Write f({v}), where {v} is {kind}. ", "Write f({v}). Take {kind}. ",
            "Write f({v}). Given {kind}, ")
# before the first operation, between two, and around the value returned
JOINS = (("first ", ", then ", ", and return {}."), ("", ", then ", ", and return {}."), ("", "; ", "; return {}."),
         ("", ", next ", ". Finally return {}."), ("", ", and then ", ". Return {}."))
WORDS = ("Apple tree river Stone noon level ant Rain 42 7 x1 the road LION tea radar Seven oil 2024 "
         "Anna lesson train Otter salt IRON nest eel orange A to is Roses").split()


def problems(seed: int) -> Iterator[tuple[str, Callable[..., Problem | None]]]:
    """An endless stream of (key, build); keys repeat."""
    rng = random.Random(f"coding {seed}")
    while True:
        domain = rng.choice(tuple(DOMAINS))
        v, _, ops, reducers = DOMAINS[domain]
        level = rng.choices((1, 2, 3), weights=(20, 50, 30))[0]
        while True:
            chain = rng.choices(ops, k=level)
            reducer = reducers[0] if rng.random() < 0.25 else rng.choice(reducers)
            if len({op[0] for op in chain}) == level and chain[-1][0] not in reducer[0].split():
                break
        steps = [(step, rng.choice(CONSTANTS[step[2]])) for step in (*chain, reducer)]
        codes = [step[1].format(c=constant) for step, constant in steps]
        key = "; ".join([f"{v} = {code}" for code in codes[:-1]] + [f"return {codes[-1]}"])
        yield key, partial(_build, domain, steps, key)


def _build(domain: str, steps: list[tuple], key: str, tests: bool = True) -> Problem | None:
    """The problem with its wording and tests, or None where its tests would say too little."""
    rng = random.Random(f"words {key}")
    v, kind, *_ = DOMAINS[domain]
    # "keep (only |)the numbers above {c}" -> "keep the numbers above 3"
    words = [re.sub(r"\((.*?)\)", lambda choice: rng.choice(choice[1].split("|")), step[3]).format(c=constant)
             for step, constant in steps]
    opening = rng.choice(OPENINGS).format(v=v, kind=kind)
    before, between, after = rng.choice(JOINS)
    sentence = before + between.join(words[:-1]) + after.format(words[-1])
    sentence = sentence[0].upper() + sentence[1:] if opening.endswith(". ") else sentence
    reference = f"def f({v}):\n    " + key.replace("; ", "\n    ")
    grading = hidden_tests(domain, reference, key) if tests else {}
    if grading is None:
        return None
    return Problem("code", opening + sentence + "\n", reference, domain, len(steps) - 1, grading, key)


def hidden_tests(domain: str, reference: str, key: str) -> dict | None:
    """Eight inputs, exactly one of them the empty or zero edge case, and what the reference gives for them.

    None if the outputs hardly vary, or if they stay the same without one of the operations.
    """
    rng = random.Random(f"tests {key}")
    inputs = [[random_argument(domain, rng)] for _ in range(7)]
    inputs.insert(rng.randrange(8), [{"lists": [], "strings": "", "numbers": 0}[domain]])
    outputs = outputs_of(reference, inputs)
    lines = reference.split("\n")
    shorter = ("\n".join(lines[:i] + lines[i + 1:]) for i in range(1, len(lines) - 1))
    varied = len(set(map(repr, outputs))) >= (2 if isinstance(outputs[0], bool) else 3)
    if not varied or any(outputs_of(program, inputs) == outputs for program in shorter):
        return None
    return {"function": "f", "inputs": inputs, "outputs": outputs}


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


_verdicts: dict[tuple[str, str], bool] = {}  # (key, completion): models write the same program again and again


def grade(problems: list[Problem], completions: list[str]) -> list[bool]:
    """Whether each completion gives exactly the right outputs (as JSON text True is not 1, and 1 is not 1.0)."""
    new = {}
    for problem, completion in zip(problems, completions):
        if not problem.grading:
            raise ValueError(f"cannot grade a corpus problem: it has no hidden tests ({problem.key})")
        if (problem.key, completion) not in _verdicts:
            new[problem.key, completion] = problem
    jobs = [{"program": completion, "function": problem.grading["function"], "inputs": problem.grading["inputs"]}
            for (_, completion), problem in new.items()]
    for (pair, problem), outputs in zip(new.items(), run(jobs)):
        _verdicts[pair] = json.dumps(outputs) == json.dumps(problem.grading["outputs"])
    return [_verdicts[problem.key, completion] for problem, completion in zip(problems, completions)]
