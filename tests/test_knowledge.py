"""Multiple choice: a consistent world, questions that give nothing away, MMLU's own rows."""

import gzip
import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data import split_of
from data.real import mmlu_sets
from data.real.mmlu_sets import from_row, with_examples
from data.tasks import knowledge
from data.tasks.knowledge import LETTERS, SUBJECTS, grade, letter_of

FILE = Path(__file__).parents[2] / "shared/data/mmlu/mmlu_all.jsonl.gz"
STREAM = list(itertools.islice(knowledge.problems(0), 12_000))
PROBLEMS = [problem for _, build in STREAM if (problem := build())]
FACTS = [build(tests=False) for key, build in STREAM if key.endswith(" (fact)")]
PROPERTY = {
    value: (subject, name)
    for subject, _, properties in SUBJECTS.values()
    for name, *_, values in properties
    for value in values.split()
}
ROW = {
    "question": "What is 1 + 1?",
    "choices": ["1", "2", "3", "4"],
    "answer": "B",
    "subject": "elementary_mathematics",
}


def parse(problem) -> list[tuple[str, list[str], str]]:
    """(question, options, right option) of the example and of the problem itself, read from the text."""
    header, *blocks = (problem.prompt + problem.reference + "\n").split("\n\n")
    assert (
        re.fullmatch(r"Subject: [\w ]+ \((STEM|humanities|social sciences|other)\)", header)
        and len(blocks) == 2
    )
    parsed = []
    for question, *lines, cue, given in (block.removesuffix("\n").split("\n") for block in blocks):
        options = [line.removeprefix(f"{letter}. ") for letter, line in zip(LETTERS, lines)]
        assert cue == "Answer:" and [line[:3] for line in lines] == [
            f"{letter}. " for letter in LETTERS[: len(lines)]
        ]
        parsed.append((question, options, options[LETTERS.index(given)] if lines else given))
    return parsed


def fact(question: str, answer: str) -> tuple[str, str]:
    """(thing, value), of which the question names one and the answer the other; values are lower case, things are not."""
    [thing] = [
        word for word in re.findall(r"\w+", f"{question[1:]} {answer}") if word.istitle()
    ]  # without the capital that begins the question
    [value] = [word for word in re.findall(r"\w+", f"{question} {answer}") if word in PROPERTY]
    return thing, value


def test_the_world_is_consistent_and_of_the_stated_size():
    values, things, asked = defaultdict(set), defaultdict(set), Counter()
    told = [
        part for problem in PROBLEMS for part in parse(problem)
    ]  # the examples too: what they say is right
    for question, _, answer in told + [
        (problem.prompt, [], problem.reference) for problem in FACTS
    ]:
        thing, value = fact(question, answer)
        values[thing, PROPERTY[value]].add(value)
        things[value].add(thing)
        asked[thing, value, answer == value] += 1
    assert (
        len(PROPERTY) == len(values) == len(things) == 192
        and len({thing for thing, _ in values}) == 64
    )
    assert all(len(each) == 1 for each in [*values.values(), *things.values()])
    assert len({thing[:2] for thing, _ in values}) == 64  # no two begin alike
    assert len(asked) == 2 * 192 and min(asked.values()) > 10


def test_the_world_stays_as_it_is():
    # written down: a change here makes every trained model wrong
    facts = {property.name: property.facts[0] for property in knowledge.WORLD}
    assert facts["colour"] == ("Lozite", "pink") and facts["trade"] == ("Zemund", "tailor")
    assert facts["export"] == ("Dendria", "wheat") and facts["drink"] == ("Suwort", "juice")


def test_prompts_have_the_promised_form():
    for problem in PROBLEMS:
        (example, shown, _), (question, options, right) = parse(problem)
        assert (
            problem.prompt.endswith("\nAnswer:\n")
            and len(problem.prompt) < 240
            and not set("{}|") & set(problem.prompt)
        )
        assert len(options) == len(set(options)) == len(shown) == len(set(shown)) == 4
        assert options == sorted(options) and shown == sorted(shown)
        assert (problem.level == 1) == (right in PROPERTY) and len(
            {option.istitle() for option in options}
        ) == 1
        subject, name = problem.key.split(":")[0].split(", ")
        assert (
            problem.prompt.startswith(f"Subject: {subject} ({problem.domain})\n")
            and SUBJECTS[problem.domain][0] == subject
        )
        value = fact(question, right)[1]
        assert PROPERTY[value] == (subject, name) and problem.key.endswith(
            "? " + ", ".join(options)
        )
    for problem in FACTS:
        assert (
            problem.prompt.endswith("\n")
            and problem.reference != fact(problem.prompt, problem.reference)[problem.level - 1]
        )


def test_the_example_is_about_another_property_of_the_same_subject():
    for problem in PROBLEMS:
        (example, _, given), (question, _, right) = parse(problem)
        (subject, name), (of, other) = (
            PROPERTY[fact(question, right)[1]],
            PROPERTY[fact(example, given)[1]],
        )
        assert subject == of and name != other


def test_nothing_but_the_facts_tells_the_answer():
    n = len(PROBLEMS)
    assert all(
        abs(count / n - 1 / 4) < 0.02
        for count in Counter(problem.reference for problem in PROBLEMS).values()
    )
    copied = sum(problem.prompt.split("\n\n")[1][-1] == problem.reference for problem in PROBLEMS)
    assert abs(copied / n - 1 / 4) < 0.02
    shown, right = Counter(), Counter()
    for problem in PROBLEMS:
        _, (_, options, answer) = parse(problem)
        shown.update(options)
        right[answer] += 1
    assert len(shown) == 192 + 64 and min(shown.values()) > 40
    assert all(
        0.02 < right[option] / shown[option] < 0.55 for option in shown
    )  # 1/4 and noise, 40 draws or more each
    favourites = [
        max(range(4), key=lambda i: right[options[i]] / shown[options[i]])
        for _, options, _ in (parse(p)[1] for p in PROBLEMS)
    ]
    assert (
        sum(LETTERS[i] == problem.reference for i, problem in zip(favourites, PROBLEMS)) / n < 0.35
    )  # fitted to these very problems


def test_domains_and_levels_have_their_shares():
    assert all(
        abs(count / len(PROBLEMS) - 1 / 4) < 0.02
        for count in Counter(problem.domain for problem in PROBLEMS).values()
    )
    assert sum(problem.level == 2 for problem in PROBLEMS) / len(PROBLEMS) == pytest.approx(
        1 / 3, abs=0.02
    )
    assert [len(part) / len(STREAM) for part in (PROBLEMS, FACTS)] == pytest.approx(
        [0.7, 0.3], abs=0.02
    )


def test_a_key_has_one_problem_and_one_split_and_the_corpus_teaches_every_fact():
    built, taught, asked = {}, set(), set()
    for key, build in STREAM + list(itertools.islice(knowledge.problems(1), 12_000)):
        problem = build(tests=False)
        assert built.setdefault(key, problem) == problem
    splits = defaultdict(set)
    for key, problem in built.items():
        split = split_of("mmlu", key)
        if not key.endswith(")"):
            question, options, right = parse(problem)[1]
            splits[split].add(
                (fact(question, right), right, *options)
            )  # what is asked, whatever its wording and example
            (taught if split == "corpus" else asked).add((*fact(question, right), right))
    assert len(splits) == 6 and sum(map(len, splits.values())) == len(set().union(*splits.values()))
    assert asked <= taught and len(taught) == 2 * 192


def test_the_reference_is_right_and_every_other_letter_wrong():
    for shift in range(4):
        answers = [LETTERS[(LETTERS.index(problem.reference) + shift) % 4] for problem in PROBLEMS]
        assert grade(PROBLEMS, answers) == [shift == 0] * len(PROBLEMS)


def test_forms_of_an_answer():
    for letter in LETTERS:
        for text in (
            "{}",
            " {}",
            "{}\n",
            "({})",
            "{}.",
            "{})",
            "{}) text",
            "{}. some text",
            "({}) text",
            "Answer: {}",
            "Answer:{}",
            " Answer: ({})",
        ):
            assert letter_of(text.format(letter)) == letter
    for text in (
        "",
        "Answer:",
        "b",
        "E",
        "AB",
        "A B",
        "A good idea",
        "A, B",
        "A or B",
        "BA.",
        "B.A",
        "(B",
        "((B))",
        "[B]",
        "text B",
        "The answer is B",
        "answer: B",
        "Answer: Answer: B",
        "Because",
        "(A)B",
        "BB",
        "red",
        "*B*",
    ):
        assert letter_of(text) is None, text


def test_rows_of_csv_and_jsonl_are_the_same_problem():
    table = {
        "question": ROW["question"],
        **dict(zip(LETTERS, ROW["choices"])),
        "answer": "B",
        "subject": ROW["subject"],
    }
    problem = from_row(ROW)
    assert from_row(table) == from_row({**ROW, "answer": 1}) == problem
    assert (
        problem.prompt
        == "Subject: elementary mathematics (STEM)\n\nWhat is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:\n"
    )
    assert (problem.task, problem.reference, problem.domain) == ("mmlu", "B", "STEM")
    moved = from_row(
        {**ROW, "question": " what  is 1 + 1? ", "choices": ["2", "1", "4", "3"], "answer": "A"}
    )
    assert moved.key == problem.key and moved.reference == "A"
    assert from_row({**ROW, "choices": ["1", "2", "3", "5"]}).key != problem.key


@pytest.mark.parametrize(
    "change, message",
    [
        *(
            ({"choices": options}, "needs four options that are not empty")
            for options in (
                ["1", "2", "3"],
                [*"12345"],
                "1234",
                ["1", "2", "3", " "],
                [1, 2, 3, 4],
                None,
            )
        ),
        *(
            ({"question": question}, f"needs a question, got {question!r}")
            for question in ("", "  ", None, 7)
        ),
        *(
            ({"subject": subject}, f"subject {subject!r} is none of MMLU's 57")
            for subject in ("alchemy", "", None, ["philosophy"])
        ),
        *(
            ({"answer": answer}, f"got {answer!r}")
            for answer in ("E", "b", "AB", "", None, 4, -1, 1.0, True, ["B"])
        ),
    ],
)
def test_a_malformed_row_is_refused_with_the_reason(change, message):
    from_row(ROW)
    with pytest.raises(ValueError, match=re.escape(message)):
        from_row({**ROW, **change})
    for field in change:
        with pytest.raises(ValueError):
            from_row({name: value for name, value in ROW.items() if name != field})


def test_examples_come_from_the_dev_rows_or_else_from_one_row():
    rows = [
        {**ROW, "question": f"What is {i} + 1?", "split": "dev" if i < 3 else "test"}
        for i in range(40)
    ]
    rows.append(
        {**ROW, "question": "Why?", "subject": "philosophy", "answer": "D", "split": "test"}
    )
    rows.append(
        {**ROW, "question": "Who?", "subject": "philosophy", "answer": "C", "split": "test"}
    )
    rows.append(
        {**rows[1], "split": "test"}
    )  # a test row that repeats a dev row is no problem: its answer is in other prompts
    problems = with_examples([from_row(row) for row in rows])
    assert len(problems) == 37 + 1 and problems[-1].prompt.startswith(
        "Subject: philosophy (humanities)\n\nWh"
    )
    solved = Counter(problem.prompt.split("\n\n")[1] for problem in problems[:-1])
    assert set(solved) == {
        f"What is {i} + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:\nB" for i in range(3)
    }
    assert (
        with_examples([from_row(row) for row in reversed(rows)]) == problems[::-1]
    )  # whatever their order
    assert with_examples([from_row(ROW)]) == []  # nothing is left to ask


@pytest.mark.skipif(not FILE.exists(), reason=f"needs {FILE.name}")
def test_the_whole_of_mmlu():
    with gzip.open(FILE, "rt") as file:
        rows = [json.loads(line) for line in file]
    zero_shot = [from_row(row) for row in rows]
    assert len(zero_shot) == 15_858 and set(mmlu_sets.GROUP) == {row["subject"] for row in rows}
    assert Counter(mmlu_sets.GROUP.values()) == {
        "STEM": 18,
        "humanities": 13,
        "social sciences": 12,
        "other": 14,
    }
    for problem, row in zip(zero_shot, rows):
        assert (
            f"\n{problem.reference}. {row['choices']['ABCD'.index(row['answer'])].strip()}\n"
            in problem.prompt
        )
    references = defaultdict(set)
    for problem, row in zip(zero_shot, rows):
        references[problem.key].add(row["choices"]["ABCD".index(row["answer"])].strip().lower())
    assert all(
        len(texts) == 1 for texts in references.values()
    )  # what a key merges agrees on the answer

    problems = with_examples(zero_shot)
    dev = {problem.key for problem, row in zip(zero_shot, rows) if row["split"] == "dev"}
    assert len(dev) == 284  # 5 for each subject, but one occurs twice
    assert len(problems) == sum(problem.key not in dev for problem in zero_shot) > 15_500
    shown = {
        problem.prompt.split("\n", 1)[1] + problem.reference + "\n"
        for problem in zero_shot
        if problem.key in dev
    }
    kept = (problem for problem in zero_shot if problem.key not in dev)
    for problem, bare in zip(problems, kept):
        header, own = bare.prompt.split("\n", 1)
        assert (
            problem.prompt.startswith(header + "\n")
            and problem.prompt.endswith(own)
            and problem.key == bare.key
        )
        assert problem.prompt[len(header) + 1 : -len(own)] in shown
    for shift in range(4):
        answers = [LETTERS[(LETTERS.index(problem.reference) + shift) % 4] for problem in problems]
        assert grade(problems, answers) == [shift == 0] * len(problems)
