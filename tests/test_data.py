"""The problems: the same everywhere, divided for good, and graded as they say."""

import gzip
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
from data import SPLITS, TASKS, grade, load, score, split_of
from data.problems import InputError, Problem, check_unicode, fitting
from data.tasks import coding

SHARED = Path(__file__).parents[2] / "shared/data"
REAL = {
    "code": [SHARED / "mbpp/mbpp.jsonl", SHARED / "apps/selected150.jsonl"],
    "math": [
        SHARED / "gsm8k/train.jsonl.gz",
        SHARED / "gsm8k/test.jsonl.gz",
        SHARED / "math/math500_test.json",
    ],
    "mmlu": [SHARED / "mmlu/mmlu_all.jsonl.gz"],
    "critique": [SHARED / "critique/humanevalpack_python.jsonl"],
}
real_data = pytest.mark.skipif(
    not all(file.exists() for files in REAL.values() for file in files),
    reason="the shared data is not here",
)
SUMS = [
    {"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
    for n in range(1, 401)
]

GENERATED = [task for task in TASKS if task != "mine"]  # whose rows come from files alone


def written(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


# a change here gives every later model other training and validation problems
WRITTEN_DOWN = {
    "corpus": "xs = [x for x in xs if x > 0]; xs = [x * x for x in xs]; xs = [x + 1 for x in xs]; "
    "return max(xs, default=0)",
    "weak": "n = n + 1; return len(str(n))",
    "lock": "xs = [x for x in xs if x % 2 == 0]; xs = list(dict.fromkeys(xs)); "
    "xs = [x * 3 for x in xs]; return max(xs, default=0)",
    "elicit": 's = s[-3:]; s = s.replace(" ", ""); return s.count("a")',
    "selection": "n = int(str(n)[::-1]); n = max(n, 100); n = int(str(n) * 2); "
    "return str(n) == str(n)[::-1]",
    "validation": "xs = [x ** 3 for x in xs]; xs = [x for x in xs if x != 0]; "
    "xs = [x * 2 for x in xs]; return max(xs, default=0)",
}


def fingerprint() -> str:
    problems = []
    for task in GENERATED:
        for split in ("lock", "validation"):
            problems += [vars(problem) for problem in load(task, split, 20)]
    return hashlib.sha256(json.dumps(problems).encode()).hexdigest()


def test_another_process_draws_the_same_problems():
    for hash_seed in ("1", "2"):
        command = [
            sys.executable,
            "-c",
            "from tests.test_data import fingerprint; print(fingerprint())",
        ]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        folder = Path(data.__file__).parents[1]
        assert (
            subprocess.check_output(command, cwd=folder, env=environment, text=True).strip()
            == fingerprint()
        )


def test_splits_are_fixed_by_the_key():
    for split, key in WRITTEN_DOWN.items():
        assert split_of("code", key) == split
    keys = {key for key, _ in itertools.islice(coding.problems(1), 40_000)}
    shares = Counter(split_of("code", key) for key in keys)
    for split, share in dict(
        corpus=0.5, weak=0.05, lock=0.2, elicit=0.12, selection=0.03, validation=0.1
    ).items():
        assert shares[split] / len(keys) == pytest.approx(share, rel=0.25)


@pytest.mark.parametrize("task", GENERATED)
def test_load_gives_distinct_problems_of_its_split_in_an_order_that_does_not_depend_on_n(task):
    loaded = {split: load(task, split, 40, seed=3) for split in SPLITS}
    for split, problems in loaded.items():
        assert load(task, split, 15, seed=3) == problems[:15]
        assert len({problem.key for problem in problems}) == 40
        assert {split_of(task, problem.key) for problem in problems} == {split}
        assert {problem.task for problem in problems} == {task}
    assert load(task, "lock", 15, seed=4) != loaded["lock"][:15]
    assert all(grade(loaded["lock"], [problem.reference for problem in loaded["lock"]]))


def test_a_key_has_one_wording_and_one_set_of_tests():
    built = {}
    for key, build in itertools.islice(coding.problems(0), 3000):
        assert built.setdefault(key, build()) == build()


def test_problems_have_the_promised_form():
    for problem in load("code", "corpus", 3000):
        assert problem.prompt.endswith("\n") and problem.prompt.count("\n") == 1
        assert (
            problem.reference.startswith("def f(")
            and problem.reference == problem.reference.rstrip()
        )
        assert len(problem.reference.splitlines()) == problem.level + 2
        assert not set("{}|()") & set(re.sub(r"^Write f\(\w+\)", "", problem.prompt)), (
            problem.prompt
        )
    for problem in load("code", "validation", 300):
        inputs, outputs = problem.grading["inputs"], problem.grading["outputs"]
        assert len(inputs) == len(outputs) == 8 and sum(not argument for [argument] in inputs) == 1
        assert len(set(map(json.dumps, outputs))) >= 2
        assert json.loads(json.dumps(problem.grading)) == problem.grading
        assert all(abs(output) < 10**40 for output in outputs if isinstance(output, int))


@pytest.mark.parametrize(
    "domain, operations, reducers", [("lists", 26, 12), ("strings", 22, 12), ("numbers", 20, 12)]
)
def test_tables(domain, operations, reducers):
    v, _, ops, ends = coding.DOMAINS[domain]
    assert len({op[1] for op in ops}) == len(ops) >= operations
    assert len({end[1] for end in ends}) == len(ends) >= reducers
    assert {group for end in ends for group in end[0].split()} <= {op[0] for op in ops}
    rng = random.Random(0)
    arguments = [coding.random_argument(domain, rng) for _ in range(20)] + [
        {"lists": [], "strings": ""}.get(domain, 0)
    ]
    for _, code, words in ops + ends:
        assert {coding.worded(words, rng) for _ in range(20)}.isdisjoint(
            {"", words} if "(" in words else {""}
        )
        for argument in arguments:
            eval(code, {v: argument})  # nothing raises


def test_references_solve_their_problems_and_others_do_not():
    problems = load("code", "lock", 200)
    assert all(grade(problems, [problem.reference for problem in problems]))
    assert not any(grade(problems, ["def f(", "def g(x):\n    return x"] * 100))
    lines = [problem.reference.splitlines() for problem in problems]
    without_an_operation = ["\n".join(body[:1] + body[2:]) for body in lines]
    assert not any(grade(problems, without_an_operation))
    changed = [
        re.sub(r"\b[2-9]\b", lambda c: str(int(c[0]) % 9 + 1), problem.reference)
        for problem in problems
    ]
    pairs = [
        (problem, text) for problem, text in zip(problems, changed) if text != problem.reference
    ]
    passed = grade([problem for problem, _ in pairs], [text for _, text in pairs])
    assert len(passed) > 50 and sum(passed) <= 0.1 * len(passed)


def test_types_are_compared_strictly():
    tests = {"function": "f", "inputs": [[1], [0]], "outputs": [1, 0]}
    problem = Problem("code", "Write f(n).\n", "", "numbers", 1, tests, "")
    texts = [f"def f(n): return {value}" for value in ("n", "bool(n)", "float(n)", "str(n)", "[n]")]
    assert grade([problem] * 5, texts) == [True, False, False, False, False]


def test_tasks_joined_come_in_turn_and_as_alone():
    joined = load("code+math+mmlu", "elicit", 8)
    assert joined[0::3] == load("code", "elicit", 3)
    assert joined[1::3] == load("math", "elicit", 3)
    assert joined[2::3] == load("mmlu", "elicit", 2)
    assert joined[:5] == load("code+math+mmlu", "elicit", 5)
    assert grade(joined, [p.reference for p in joined]) == [True] * 8
    assert len(load("math+mmlu", "selection")) == 2 * SPLITS["selection"]
    for task in ("code+", "code+x"):
        with pytest.raises(InputError, match=re.escape(f"unknown task {task!r}")):
            load(task, "lock", 4)


def test_a_program_to_repair_is_in_the_split_of_the_program_to_write():
    for split in ("lock", "validation"):
        programs = {
            split_of("code", problem.key.split(" | ")[0]) for problem in load("critique", split, 50)
        }
        assert programs == {split}


def test_errors_are_one_clear_sentence(monkeypatch):
    for arguments, message in [
        (("x", "lock"), "unknown task 'x': choose from code"),
        (("code+math+code", "lock"), "task 'code+math+code' names 'code' twice"),
        (("code", "test"), "unknown split 'test': choose from corpus, weak, lock"),
        (("code", "corpus"), "split 'corpus' has no default size: give n"),
        (("code", "lock", -1), "n must be at least 1"),
        (("code+math+mmlu", "lock", 2), "2 problems of code+math+mmlu are too few: take one"),
        (("code+compose", "lock"), "task 'compose' has a vocabulary of its own"),
        (("code+math", "lock", 2, 0, ["x.jsonl"]), "real problems are of one task"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            load(*arguments)
    monkeypatch.setattr(data, "PATIENCE", 50)
    with pytest.raises(ValueError, match="has only .* problems, fewer than the 1000 asked for"):
        load("code", "selection", 1000)
    with pytest.raises(ValueError, match="no hidden tests"):
        grade(load("code", "corpus", 1), [""])


def test_files_are_divided_by_the_keys_alone(tmp_path, capsys):
    files = [written(tmp_path / "all.jsonl", SUMS)]
    loaded = {split: load("math", split, files=files) for split in SPLITS if split != "corpus"}
    assert capsys.readouterr().err == "kept 400 of 400 rows\n"  # once, for five splits
    assert sorted(problem.key for problems in loaded.values() for problem in problems) == sorted(
        row["question"] for row in SUMS
    )
    for split, share in dict(
        weak=0.1, lock=0.4, elicit=0.24, selection=0.06, validation=0.2
    ).items():
        assert len(loaded[split]) / 400 == pytest.approx(share, abs=0.06)
        assert {split_of("math", problem.key, corpus=False) for problem in loaded[split]} == {split}
        for problem in loaded[split]:  # a pool without a corpus only fills the gap it leaves
            assert split_of("math", problem.key) in (split, "corpus")
    # written down: a change here gives every later model other training and validation problems
    first = [int(problem.key.split()[2]) for problem in loaded["selection"][:5]]
    assert first == [36, 103, 151, 397, 337]
    rows = random.Random(0).sample(SUMS, 400)
    # 50 rows twice
    others = [
        written(tmp_path / "b.jsonl.gz", rows[:150]),
        written(tmp_path / "a.jsonl", rows[100:]),
    ]
    for split, problems in loaded.items():
        assert load("math", split, files=others) == problems
        assert load("math", split, 5, files=others[::-1]) == problems[:5]
    again = load("math", "lock", seed=1, files=files)
    assert again != loaded["lock"] and sorted(problem.key for problem in again) == sorted(
        problem.key for problem in loaded["lock"]
    )


def test_of_files_n_is_at_most_and_without_it_all_are_loaded(tmp_path, monkeypatch):
    files = [written(tmp_path / "all.jsonl", SUMS)]
    whole = load("math", "elicit", files=files)
    assert 50 < len(whole) < SPLITS["elicit"]
    # what a stage asks for by default fits generated problems; files may have fewer
    assert load("math", "elicit", SPLITS["elicit"], files=files) == whole
    assert load("math", "elicit", 10**9, files=files) == whole
    assert load("math", "elicit", 7, files=files) == whole[:7]
    # the usual size is that of generated problems
    monkeypatch.setitem(SPLITS, "elicit", 20)
    assert load("math", "elicit", files=files) == whole


def test_of_equal_keys_one_is_kept_whatever_the_order(tmp_path):
    rows = [
        {"question": "What is  1 + 1?", "answer": "2\n#### 2"},
        {"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
        *(
            {"problem": "What is 1 + 1?", "answer": "2", "type": subject, "level": 1}
            for subject in ("Algebra", "Geometry")
        ),
    ]
    split = split_of("math", "What is 1 + 1?", corpus=False)
    kept = set()
    for i, order in enumerate(itertools.permutations(rows)):
        [problem] = load("math", split, files=[written(tmp_path / f"{i}.jsonl", order)])
        kept.add(json.dumps(vars(problem)))
    assert len(kept) == 1


def test_rows_that_contradict_each_other_are_told_of(tmp_path, capsys):
    """Two solutions of one answer do not; nor is one program another that is indented otherwise."""
    rows = [
        {"prompt": "What is  1 + 1?", "answer": "2"},
        {"prompt": "What is 1 + 1?", "answer": "3"},
    ]
    programs = ("for i in range(2):\n    a()\n    b()", "for i in range(2):\n    a()\nb()")
    rows += [{"prompt": f"What is printed?\n{text}", "answer": "ab"} for text in programs]
    files = (written(tmp_path / "mine.jsonl", rows),)
    assert len(data._rows("mine", files, "")) == 3
    told = "1 rows pose a problem that another row answers otherwise, and only that one counts"
    assert told in capsys.readouterr().err

    row = {
        "text": "Double it.",
        "code": "def f(n): return 2 * n",
        "test_list": ["assert f(1) == 2"],
    }
    other = row | {"test_list": ["assert f(2) == 4"]}
    assert len(data._rows("code", (written(tmp_path / "mbpp.jsonl", [row, other]),), "")) == 1
    assert told in capsys.readouterr().err
    solved = [{"question": "1 + 1?", "answer": f"{how}\n#### 2"} for how in ("a", "b")]
    assert len(data._rows("math", (written(tmp_path / "gsm.jsonl", solved),), "")) == 1
    assert "answers otherwise" not in capsys.readouterr().err
    solved[1]["answer"] = "#### 3"
    assert len(data._rows("math", (written(tmp_path / "gsm8k.jsonl", solved),), "")) == 1
    assert told in capsys.readouterr().err

    # of multiple choice the option counts, not its letter
    row = {"question": "Which is even?", "subject": "algebra", "choices": ["1", "2", "3", "5"]}
    turned = row | {"choices": ["2", "1", "3", "5"], "answer": 0}
    example = row | {"question": "Which is odd?", "answer": 0, "split": "dev"}
    rows = [example, row | {"answer": 1}, turned]
    assert len(data._rows("mmlu", (written(tmp_path / "mmlu.jsonl", rows),), "")) == 1
    assert "answers otherwise" not in capsys.readouterr().err
    rows[2] = turned | {"answer": 1}
    assert len(data._rows("mmlu", (written(tmp_path / "turned.jsonl", rows),), "")) == 1
    assert f"{told}, such as 'which is even?" in capsys.readouterr().err


def test_rows_without_a_reference_are_not_imitated(tmp_path):
    rows = [
        {
            "question": f"Print {n}.",
            "input_output": json.dumps({"inputs": [""], "outputs": [f"{n}"]}),
            "difficulty": "interview",
            "solutions": json.dumps([f"print({n})"] * (n % 2)),
        }
        for n in range(200)
    ]
    files = [written(tmp_path / "apps.jsonl", rows)]
    loaded = {split: load("code", split, files=files) for split in SPLITS if split != "corpus"}
    for split, problems in loaded.items():
        assert {bool(problem.reference) for problem in problems} == (
            {True} if split in ("weak", "elicit") else {True, False}
        )
    assert all(
        grade(
            loaded["validation"],
            [f"print({problem.prompt.split()[1][:-1]})" for problem in loaded["validation"]],
        )
    )


def test_errors_of_files_are_one_clear_sentence(tmp_path):
    files = [written(tmp_path / "few.jsonl", SUMS[:20])]
    for task, arguments, message in [
        ("math", ("corpus",), "problems from files have no split 'corpus'"),
        ("math", ("lock", 0), "n must be at least 1"),
        ("code", ("lock",), "No row makes a problem of this task"),
        ("compose", ("lock",), "task 'compose' has a vocabulary of its own"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            load(task, *arguments, files=files)


@pytest.mark.parametrize(
    "task, named",
    [
        ("code", "no row of MBPP, APPS or HumanEval: its fields are question, choices"),
        ("math", "neither a MATH row .* nor a GSM8K row .question, answer with"),
        ("mmlu", "needs a subject, got None"),
        ("critique", "missing or malformed .*'prompt'"),
        ("mine", "prompt must be a text that is not empty, got None"),
    ],
)
def test_rows_without_the_fields_are_named_with_what_they_lack(tmp_path, task, named):
    row = {"question": "1?", "choices": ["1", "2", "3", "4"], "answer": "A"}
    file = written(tmp_path / "rows.jsonl", [row])
    message = f"No row makes a problem .*rows.jsonl:1: .*{named}.*: choose another task or other"
    with pytest.raises(InputError, match=message):
        load(task, "lock", files=[file])

    files = [written(tmp_path / "one.jsonl", SUMS[:1])]
    its_split = split_of("math", SUMS[0]["question"], corpus=False)
    empty = "lock" if its_split == "weak" else "weak"
    for n in (None, 5):
        with pytest.raises(InputError, match=f"'{empty}' of task 'math' has no problems in these"):
            load("math", empty, n, files=files)


def test_overlong_problems_are_left_out_counted_and_named():
    problems = load("code", "validation", 5)
    lengths = [30, 40, 41, 12, 99]
    kept, left_out = fitting(problems, lengths, 40)
    assert kept == [problems[0], problems[1], problems[3]]
    assert left_out.startswith("left out 2 of 5 problems: their prompts are longer than 40 tokens")
    assert problems[2].prompt[:30] in left_out and "\n" not in left_out
    _, left_out = fitting(problems, lengths, 40, "its sliding window")
    assert "longer than 40 tokens (limited by its sliding window) (the first: " in left_out
    assert fitting(problems, lengths, 99) == (problems, "")
    assert fitting([], [], 10) == ([], "")
    with pytest.raises(InputError, match="none of the 5 prompts fits: the shortest has 12 tokens"):
        fitting(problems, lengths, 11)
    with pytest.raises(InputError, match=r"room for 11 \(limited by its window\); take a model"):
        fitting(problems, lengths, 11, "its window")


def test_text_that_is_no_unicode_is_refused_by_name():
    check_unicode("Sésame 🙂 \x00", "The password")
    with pytest.raises(InputError, match=r"The password contains '\\ud800', which is no Unicode"):
        check_unicode("a\ud800b", "The password")


@real_data
@pytest.mark.parametrize(
    "task, rows", [("code", 1060), ("math", 9292), ("mmlu", 15_431), ("critique", 164)]
)
def test_real_data(task, rows):
    loaded = {split: load(task, split, files=REAL[task]) for split in SPLITS if split != "corpus"}
    keys = [problem.key for problems in loaded.values() for problem in problems]
    assert len(keys) == len(set(keys)) == rows
    for split, problems in loaded.items():
        assert load(task, split, 10**6, files=REAL[task]) == problems
        assert {problem.task for problem in problems} == {task}
    solvable = [problem for problem in loaded["validation"] if problem.reference][:20]
    assert all(grade(solvable, [problem.reference for problem in solvable]))
    assert not any(grade(solvable, ["?"] * len(solvable)))
    assert not {problem.key for problem in load(task, "lock", 100)} & set(keys)


@real_data
def test_one_shot_examples_do_not_depend_on_the_order_of_rows(tmp_path):
    with gzip.open(REAL["mmlu"][0], "rt") as file:
        rows = [json.loads(line) for line in file]
    shuffled = written(tmp_path / "mmlu.jsonl", random.Random(0).sample(rows, len(rows)))
    for split in ("weak", "validation"):
        assert load("mmlu", split, files=[shuffled]) == load("mmlu", split, files=REAL["mmlu"])


@pytest.mark.parametrize("task", ["code", "math", "mmlu", "critique"])
def test_what_is_thought_first_is_no_part_of_the_answer(task):
    one, *others = load(task, "validation", 9)
    other = next(problem for problem in others if problem.reference != one.reference)
    thought = f"<think>\n{other.reference}\n</think>\n\n"
    assert grade([one], [thought + one.reference]) == [True]
    swapped = f"<think>\n{one.reference}\n</think>\n\n{other.reference}"
    assert grade([one], [swapped]) == [False]


def test_real_programs_have_their_own_grader(tmp_path):
    rows = []
    for n in range(20):
        row = {"text": f"Write a function to add {n}.", "test_list": [f"assert add(1) == {n + 1}"]}
        rows.append(row | {"code": f"def add(x):\n    return x + {n}"})
    [real, *_] = load("code", "lock", files=[written(tmp_path / "mbpp.jsonl", rows)])
    assert real.is_real_program
    texts = [f"```python\n{real.reference}\n```", "def add(x): return x"]
    assert grade([real] * 2, texts) == [True, False]
    with pytest.raises(InputError, match="these problems of task 'code' have no continuous reward"):
        score([real], [real.reference])

    code, sum_ = load("code+math", "lock", 2)
    assert not code.is_real_program and not sum_.is_real_program
    texts = [sum_.reference, real.reference, "no"]
    assert grade([sum_, real, code], texts) == [True, True, False]
    assert grade([], []) == [] and score([], []) == []
    with pytest.raises(InputError, match="2 problems but 1 completions"):
        grade([sum_, real], ["no"])
