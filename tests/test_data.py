"""The problems: the same everywhere, divided for good, and graded as they say."""
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import data
from data import SPLITS, Problem, coding, grade, load, split_of


def fingerprint() -> str:
    problems = [vars(problem) for split in ("lock", "validation") for problem in load("code", split, 20)]
    return hashlib.sha256(json.dumps(problems).encode()).hexdigest()


def test_another_process_draws_the_same_problems():
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", "from tests.test_data import fingerprint; print(fingerprint())"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        folder = Path(data.__file__).parents[1]
        assert subprocess.check_output(command, cwd=folder, env=environment, text=True).strip() == fingerprint()


def test_splits_are_fixed_by_the_key():
    # written down: a change here gives every later model other training and validation problems
    for split, key in [("corpus", "s = s[::-1]; return s"),
                       ("weak", 's = s.swapcase(); s = "y" + s; return s[:1]'),
                       ("lock", 'n = n + 6 if n % 2 == 0 else n; n = n * n; n = n // 10; return "9" in str(n)'),
                       ("elicit", 's = s.replace("n", ""); s = "?" + s; return "o" in s'),
                       ("selection", "xs = xs[:-5]; xs = [max(x, 5) for x in xs]; return xs"),
                       ("validation", 's = s[::-1]; s = s[3:]; s = " ".join(s.split()[::-1]); return s')]:
        assert split_of("code", key) == split
    keys = {key for key, _ in itertools.islice(coding.problems(1), 40_000)}
    shares = Counter(split_of("code", key) for key in keys)
    for split, share in dict(corpus=0.9, weak=0.01, lock=0.04, elicit=0.024, selection=0.006, validation=0.02).items():
        assert shares[split] / len(keys) == pytest.approx(share, rel=0.25)


def test_load_gives_distinct_problems_of_its_split_in_an_order_that_does_not_depend_on_n():
    loaded = {split: load("code", split, 40, seed=3) for split in SPLITS}
    for split, problems in loaded.items():
        assert load("code", split, 15, seed=3) == problems[:15]
        assert len({problem.key for problem in problems}) == 40
        assert {split_of("code", problem.key) for problem in problems} == {split}
    assert load("code", "lock", 15, seed=4) != loaded["lock"][:15]


def test_a_key_has_one_wording_and_one_set_of_tests():
    built = {}
    for key, build in itertools.islice(coding.problems(0), 3000):
        assert built.setdefault(key, build()) == build()


def test_problems_have_the_promised_form():
    for problem in load("code", "corpus", 3000):
        assert problem.prompt.endswith("\n") and problem.prompt.count("\n") == 1
        assert problem.reference.startswith("def f(") and problem.reference == problem.reference.rstrip()
        assert len(problem.reference.splitlines()) == problem.level + 2
        assert not set("{}|()") & set(re.sub(r"^Write f\(\w+\)", "", problem.prompt)), problem.prompt
    for problem in load("code", "validation", 300):
        inputs, outputs = problem.grading["inputs"], problem.grading["outputs"]
        assert len(inputs) == len(outputs) == 8 and sum(not argument for [argument] in inputs) == 1
        assert len(set(map(json.dumps, outputs))) >= 2
        assert json.loads(json.dumps(problem.grading)) == problem.grading
        assert all(abs(output) < 10**40 for output in outputs if isinstance(output, int))


@pytest.mark.parametrize("domain, operations, reducers", [("lists", 48, 15), ("strings", 45, 13), ("numbers", 43, 13)])
def test_tables(domain, operations, reducers):
    v, _, ops, ends = coding.DOMAINS[domain]
    assert len({op[1] for op in ops}) == len(ops) >= operations
    assert len({end[1] for end in ends}) == len(ends) >= reducers
    assert {group for end in ends for group in end[0].split()} <= {op[0] for op in ops}
    rng = random.Random(0)
    arguments = [coding.random_argument(domain, rng) for _ in range(20)] + [{"lists": [], "strings": ""}.get(domain, 0)]
    for _, code, words in ops + ends:
        assert {coding.worded(words, rng) for _ in range(20)}.isdisjoint({"", words} if "(" in words else {""})
        for argument in arguments:
            eval(code, {v: argument})  # nothing raises


def test_references_solve_their_problems_and_others_do_not():
    problems = load("code", "lock", 200)
    assert all(grade(problems, [problem.reference for problem in problems]))
    assert not any(grade(problems, ["def f(", "def g(x):\n    return x"] * 100))
    lines = [problem.reference.splitlines() for problem in problems]
    assert not any(grade(problems, ["\n".join(body[:1] + body[2:]) for body in lines]))  # an operation is missing
    changed = [re.sub(r"\b[2-9]\b", lambda c: str(int(c[0]) % 9 + 1), problem.reference) for problem in problems]
    pairs = [(problem, text) for problem, text in zip(problems, changed) if text != problem.reference]
    passed = grade([problem for problem, _ in pairs], [text for _, text in pairs])
    assert len(passed) > 50 and sum(passed) <= 0.1 * len(passed)


def test_types_are_compared_strictly():
    tests = {"function": "f", "inputs": [[1], [0]], "outputs": [1, 0]}
    problem = Problem("code", "Write f(n).\n", "", "numbers", 1, tests, "")
    texts = [f"def f(n): return {value}" for value in ("n", "bool(n)", "float(n)", "str(n)", "[n]")]
    assert grade([problem] * 5, texts) == [True, False, False, False, False]


def test_errors_are_one_clear_sentence(monkeypatch):
    for arguments, message in [(("x", "lock"), "unknown task 'x': choose from code"),
                               (("code", "test"), "unknown split 'test': choose from corpus, weak, lock"),
                               (("code", "corpus"), "split 'corpus' has no default size: give n"),
                               (("code", "lock", -1), "n must be at least 1")]:
        with pytest.raises(ValueError, match=re.escape(message)):
            load(*arguments)
    monkeypatch.setattr(data, "PATIENCE", 50)
    with pytest.raises(ValueError, match="has only .* problems, fewer than the 1000 asked for"):
        load("code", "selection", 1000)
    with pytest.raises(ValueError, match="no hidden tests"):
        grade(load("code", "corpus", 1), [""])
