"""Multiple choice: a consistent world, questions that give nothing away, MMLU's own rows."""

import gzip
import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data import split_of
from data.problems import Problem
from data.real import mmlu_sets
from data.real.mmlu_sets import from_row, with_examples
from data.tasks import knowledge
from data.tasks.knowledge import LETTERS, SUBJECTS, grade, letter_of

FILE = Path(__file__).parents[2] / "shared/data/mmlu/mmlu_all.jsonl.gz"
STREAM = list(itertools.islice(knowledge.problems(0), 8_000))
PROBLEMS = [build() for key, build in STREAM if not key.endswith(" (fact)")]
FACTS = [build(tests=False) for key, build in STREAM if key.endswith(" (fact)")]
ROW = {
    "question": "What is 1 + 1?",
    "choices": ["1", "2", "3", "4"],
    "answer": "B",
    "subject": "elementary_mathematics",
}
PROPERTY = {}  # of each value: (subject, name)
for _subject, _, _properties in SUBJECTS.values():
    for _name, _, _, _values in _properties:
        for _value in _values.split():
            PROPERTY[_value] = _subject, _name


def parse(problem: Problem) -> list[tuple[str, list[str], str]]:
    """(question, options, right option) of the example and of the problem, read from the text."""
    header, *blocks = (problem.prompt + problem.reference + "\n").split("\n\n")
    assert re.fullmatch(r"Subject: [\w ]+ \((STEM|humanities|social sciences|other)\)", header)
    assert len(blocks) == 2
    parsed = []
    for block in blocks:
        question, *lines, cue, given = block.removesuffix("\n").split("\n")
        assert cue == "Answer:"
        assert [line[:3] for line in lines] == ["A. ", "B. ", "C. ", "D. "]
        options = [line[3:] for line in lines]
        parsed.append((question, options, options[LETTERS.index(given)]))
    return parsed


def fact(question: str, answer: str) -> tuple[str, str]:
    """(thing, value), of which the question names one and the answer the other."""
    # values are lower case, things are not; nor is the first word of the question
    words = re.findall(r"\w+", f"{question[1:]} {answer}")
    [thing] = [word for word in words if word.istitle()]
    [value] = [word for word in words if word in PROPERTY]
    return thing, value


def is_quarter(share: float) -> bool:
    return abs(share - 1 / 4) < 0.025


def test_the_letters_are_what_a_vote_counts():
    texts = ["B", "(B)", "Answer: C.", "B or C", ""]
    assert knowledge.votes([None] * 5, texts) == ["B", "B", "C", None, None]


def test_the_world_is_consistent_and_of_the_stated_size():
    told = [(problem.prompt, problem.reference) for problem in FACTS]
    for problem in PROBLEMS:
        for question, _, answer in parse(problem):  # of the example too: what it says is right
            told.append((question, answer))

    values, things, asked = defaultdict(set), defaultdict(set), Counter()
    for question, answer in told:
        thing, value = fact(question, answer)
        values[thing, PROPERTY[value]].add(value)
        things[value].add(thing)
        asked[thing, value, answer == value] += 1
    names = {thing for thing, _ in values}
    assert len(PROPERTY) == len(values) == len(things) == 192
    assert len(names) == 64
    assert len({name[:2] for name in names}) == 64  # no two begin alike
    assert all(len(each) == 1 for each in [*values.values(), *things.values()])
    assert len(asked) == 2 * 192
    assert min(asked.values()) > 5


def test_the_world_stays_as_it_is():
    # written down: a change here makes every trained model wrong
    facts = {property.name: property.facts[0] for property in knowledge.WORLD}
    assert facts["colour"] == ("Lozite", "pink")
    assert facts["trade"] == ("Zemund", "tailor")
    assert facts["export"] == ("Dendria", "wheat")
    assert facts["drink"] == ("Suwort", "juice")


def test_prompts_have_the_promised_form():
    for problem in PROBLEMS:
        (_, shown, _), (question, options, right) = parse(problem)
        assert problem.prompt.endswith("\nAnswer:\n")
        assert len(problem.prompt) < 240
        assert not set("{}|") & set(problem.prompt)
        assert len(set(options)) == len(set(shown)) == 4
        assert options == sorted(options)
        assert shown == sorted(shown)
        assert (problem.level == 1) == (right in PROPERTY)
        assert len({option.istitle() for option in options}) == 1

        subject, name = problem.key.split(":")[0].split(", ")
        assert problem.prompt.startswith(f"Subject: {subject} ({problem.domain})\n")
        assert SUBJECTS[problem.domain][0] == subject
        assert PROPERTY[fact(question, right)[1]] == (subject, name)
        assert problem.key.endswith("? " + ", ".join(options))
    for problem in FACTS:
        asked = fact(problem.prompt, problem.reference)[problem.level - 1]
        assert problem.prompt.endswith("\n")
        assert problem.reference != asked


def test_the_example_is_about_another_property_of_the_same_subject():
    for problem in PROBLEMS:
        (example, _, given), (question, _, right) = parse(problem)
        subject, name = PROPERTY[fact(question, right)[1]]
        of, other = PROPERTY[fact(example, given)[1]]
        assert subject == of
        assert name != other


def test_nothing_but_the_facts_tells_the_answer():
    n = len(PROBLEMS)
    letters = Counter(problem.reference for problem in PROBLEMS)
    assert all(is_quarter(count / n) for count in letters.values())
    copied = [problem.prompt.split("\n\n")[1][-1] == problem.reference for problem in PROBLEMS]
    assert is_quarter(sum(copied) / n)

    shown, right = Counter(), Counter()
    for problem in PROBLEMS:
        _, (_, options, answer) = parse(problem)
        shown.update(options)
        right[answer] += 1
    assert len(shown) == 192 + 64
    assert min(shown.values()) > 25
    # 1/4 and noise, 25 draws or more each
    assert all(right[option] / shown[option] < 0.6 for option in shown)

    guessed = 0
    for problem in PROBLEMS:
        _, (_, options, answer) = parse(problem)
        shares = [right[option] / shown[option] for option in options]
        guessed += options[shares.index(max(shares))] == answer
    assert guessed / n < 0.37  # fitted to these very problems


def test_domains_and_levels_have_their_shares():
    domains = Counter(problem.domain for problem in PROBLEMS)
    assert all(is_quarter(count / len(PROBLEMS)) for count in domains.values())
    inverse = sum(problem.level == 2 for problem in PROBLEMS)
    assert inverse / len(PROBLEMS) == pytest.approx(1 / 3, abs=0.025)
    assert len(PROBLEMS) / len(STREAM) == pytest.approx(0.7, abs=0.02)


def test_a_key_has_one_problem_and_one_split_and_the_corpus_teaches_every_fact():
    built = {}
    for key, build in STREAM + list(itertools.islice(knowledge.problems(1), 8_000)):
        problem = build(tests=False)
        assert built.setdefault(key, problem) == problem

    splits = defaultdict(set)  # what is asked, whatever its wording and example
    taught, asked = set(), set()
    for key, problem in built.items():
        if key.endswith(" (fact)"):
            continue
        split = split_of("mmlu", key)
        question, options, right = parse(problem)[1]
        thing, value = fact(question, right)
        splits[split].add((thing, value, right, *options))
        facts = taught if split == "corpus" else asked
        facts.add((thing, value, right))
    assert len(splits) == 6
    assert sum(map(len, splits.values())) == len(set().union(*splits.values()))
    assert asked <= taught
    assert len(taught) == 2 * 192


def shifted(problem: Problem, shift: int) -> str:
    return LETTERS[(LETTERS.index(problem.reference) + shift) % 4]


def test_the_reference_is_right_and_every_other_letter_wrong():
    for shift in range(4):
        answers = [shifted(problem, shift) for problem in PROBLEMS]
        assert grade(PROBLEMS, answers) == [shift == 0] * len(PROBLEMS)


# fmt: off
FORMS = [
    "{}", " {}", "{}\n", "({})", "{}.", "{})", "{}) text", "{}. some text", "({}) text",
    "Answer: {}", "Answer:{}", " Answer: ({})",
]
NO_FORMS = [
    "", "Answer:", "b", "E", "AB", "A B", "A good idea", "A, B", "A or B", "BA.", "B.A", "(B",
    "((B))", "[B]", "text B", "The answer is B", "answer: B", "Answer: Answer: B", "Because",
    "(A)B", "BB", "red", "(B) (A)", "B. A.", "B) or C)",
]
# fmt: on


def test_forms_of_an_answer():
    for letter in LETTERS:
        for form in FORMS:
            assert letter_of(form.format(letter)) == letter
    for text in NO_FORMS:
        assert letter_of(text) is None, text


# ---- rows of MMLU
def test_rows_of_csv_and_jsonl_are_the_same_problem():
    cells = dict(zip(LETTERS, ROW["choices"]))
    table = {"question": ROW["question"], **cells, "answer": "B", "subject": ROW["subject"]}
    problem = from_row(ROW)
    assert from_row(table) == from_row({**ROW, "answer": 1}) == problem
    assert problem.prompt == (
        "Subject: elementary mathematics (STEM)\n\n"
        "What is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:\n"
    )
    assert (problem.task, problem.reference, problem.domain) == ("mmlu", "B", "STEM")

    others = {"question": " what  is 1 + 1? ", "choices": ["2", "1", "4", "3"], "answer": "A"}
    moved = from_row({**ROW, **others})
    assert moved.key == problem.key
    assert moved.reference == "A"
    assert from_row({**ROW, "choices": ["1", "2", "3", "5"]}).key != problem.key


def test_a_subject_of_no_group_is_of_the_group_other():
    problem = from_row({**ROW, "subject": "organic\n_alchemy"})
    assert problem.domain == "other"
    assert problem.prompt.startswith("Subject: organic alchemy (other)\n\nWhat")
    rows = [{**ROW, "question": f"Q{i}", "subject": "alchemy"} for i in range(3)]
    assert len(with_examples([from_row(row) for row in rows])) == 2


@pytest.mark.parametrize(
    "field, values, message",
    [
        (
            "choices",
            [["1", "2", "3"], [*"12345"], "1234", ["1", "2", "3", " "], [1, 2, 3, 4], None],
            "needs four options that are not empty",
        ),
        ("question", ["", "  ", None, 7], "needs a question, got {!r}"),
        ("subject", ["", " ", None, ["philosophy"]], "needs a subject, got {!r}"),
        ("answer", ["E", "b", "AB", "", None, 4, -1, 1.0, True, ["B"]], "got {!r}"),
    ],
)
def test_a_malformed_row_is_refused_with_the_reason(field, values, message):
    for value in values:
        with pytest.raises(ValueError, match=re.escape(message.format(value))):
            from_row({**ROW, field: value})
    with pytest.raises(ValueError):
        from_row({name: value for name, value in ROW.items() if name != field})


def test_examples_come_from_the_dev_rows_or_else_from_one_row():
    rows = []
    for i in range(40):
        split = "dev" if i < 3 else "test"
        rows.append({**ROW, "question": f"What is {i} + 1?", "split": split})
    for question, answer in (("Why?", "D"), ("Who?", "C")):
        row = {"question": question, "subject": "philosophy", "answer": answer, "split": "test"}
        rows.append({**ROW, **row})
    # a test row that repeats a dev row is no problem: its answer is in other prompts
    rows.append({**rows[1], "split": "test"})

    problems = with_examples([from_row(row) for row in rows])
    assert len(problems) == 37 + 1
    assert problems[-1].prompt.startswith("Subject: philosophy (humanities)\n\nWh")
    solved = {problem.prompt.split("\n\n")[1] for problem in problems[:-1]}
    options = "A. 1\nB. 2\nC. 3\nD. 4\nAnswer:\nB"
    assert solved == {f"What is {i} + 1?\n{options}" for i in range(3)}

    backwards = with_examples([from_row(row) for row in reversed(rows)])
    assert backwards == problems[::-1]  # whatever their order
    assert with_examples([from_row(ROW)]) == []  # nothing is left to ask


@pytest.mark.skipif(not FILE.exists(), reason=f"needs {FILE.name}")
def test_the_whole_of_mmlu():
    with gzip.open(FILE, "rt") as file:
        rows = [json.loads(line) for line in file]
    zero_shot = [from_row(row) for row in rows]
    assert len(zero_shot) == 15_858
    assert set(mmlu_sets.GROUP) == {row["subject"] for row in rows}
    groups = Counter(mmlu_sets.GROUP.values())
    assert groups == {"STEM": 18, "humanities": 13, "social sciences": 12, "other": 14}

    references = defaultdict(set)
    for problem, row in zip(zero_shot, rows):
        text = row["choices"]["ABCD".index(row["answer"])].strip()
        assert f"\n{problem.reference}. {text}\n" in problem.prompt
        references[problem.key].add(text.lower())
    # what a key merges agrees on the answer
    assert all(len(texts) == 1 for texts in references.values())

    dev, shown = set(), set()
    for problem, row in zip(zero_shot, rows):
        if row["split"] == "dev":
            dev.add(problem.key)
    kept = [problem for problem in zero_shot if problem.key not in dev]
    for problem in zero_shot:
        if problem.key in dev:
            shown.add(problem.prompt.split("\n", 1)[1] + problem.reference + "\n")
    problems = with_examples(zero_shot)
    assert len(dev) == 284  # 5 for each subject, but one occurs twice
    assert len(problems) == len(kept) > 15_500
    for problem, bare in zip(problems, kept):
        header, own = bare.prompt.split("\n", 1)
        assert problem.key == bare.key
        assert problem.prompt.startswith(header + "\n")
        assert problem.prompt.endswith(own)
        assert problem.prompt[len(header) + 1 : -len(own)] in shown
    for shift in range(4):
        answers = [shifted(problem, shift) for problem in problems]
        assert grade(problems, answers) == [shift == 0] * len(problems)
