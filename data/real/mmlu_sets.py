"""Real multiple choice: rows of MMLU, and the example before each question."""

import hashlib
from collections import defaultdict
from dataclasses import replace

from data.problems import Problem
from data.tasks.knowledge import LETTERS, one_shot, zero_shot

# group: its subjects, as in the benchmark's own categories
# fmt: off
MMLU = {
    "STEM": """
        abstract_algebra astronomy college_biology college_chemistry college_computer_science
        college_mathematics college_physics computer_security conceptual_physics
        electrical_engineering elementary_mathematics high_school_biology high_school_chemistry
        high_school_computer_science high_school_mathematics high_school_physics
        high_school_statistics machine_learning
    """,
    "humanities": """
        formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios
        philosophy prehistory professional_law world_religions
    """,
    "social sciences": """
        econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology
        human_sexuality professional_psychology public_relations security_studies sociology
        us_foreign_policy
    """,
    "other": """
        anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging
        management marketing medical_genetics miscellaneous nutrition professional_accounting
        professional_medicine virology
    """,
}
# fmt: on

GROUP = {}
for group, subjects in MMLU.items():
    for subject in subjects.split():
        GROUP[subject] = group


def from_row(row: dict) -> Problem:
    """A zero-shot problem from a row of MMLU; `with_examples` makes the problems of a file 1-shot.

    The row is from csv (question, A, B, C, D, answer, subject) or jsonl (question, choices, answer,
    subject). The answer is a letter or, as a number, the index of its option. A subject that is
    none of the benchmark's is of the group "other". ValueError says what is wrong with a row.
    Options that repeat are no error (13 of the benchmark's rows have some): its letter counts.
    """
    options = row["choices"] if "choices" in row else [row.get(letter) for letter in LETTERS]
    if not _four_texts(options):
        raise ValueError(
            "needs four options that are not empty, in choices or in A, B, C and D, got "
            f"{options!r}"
        )
    question = row.get("question")
    if not _is_text(question):
        raise ValueError(f"needs a question, got {question!r}")
    subject = row.get("subject")
    if not _is_text(subject):
        raise ValueError(f"needs a subject, got {subject!r}")
    answer = row.get("answer")
    if type(answer) is int and 0 <= answer < 4:  # not isinstance: True is no index
        answer = LETTERS[answer]
    if answer not in LETTERS:
        raise ValueError(f"answer must be A, B, C or D, or an index from 0 to 3, got {answer!r}")

    # the same question about the same options, whatever their order, is the same problem: some
    # stand in two subjects or splits
    asked, *offered = [" ".join(text.split()).lower() for text in (question, *options)]
    key = " | ".join([asked, *sorted(offered)])
    problem = zero_shot(
        GROUP.get(subject, "other"),
        " ".join(subject.replace("_", " ").split()),
        question.strip(),
        [option.strip() for option in options],
        answer,
        1,
        key,
    )
    # tells rows that contradict each other, whatever the order of their options
    right = offered[LETTERS.index(answer)]
    return replace(problem, grading={"example": row.get("split") == "dev", "answer": right})


def _is_text(value) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _four_texts(options) -> bool:
    return isinstance(options, list) and len(options) == 4 and all(map(_is_text, options))


def with_examples(problems: list[Problem]) -> list[Problem]:
    """The problems of `from_row` made 1-shot.

    Those that serve as examples are left out, so that no answer is seen in another prompt. A
    subject's dev rows serve; where it has none, the one row whose key has the smallest hash. Which
    of them a problem gets is decided by its own key's hash, so the order of the rows does not
    matter.
    """
    subjects = defaultdict(list)
    for problem in problems:
        subjects[_header(problem)].append(problem)

    examples = {}
    keys = set()
    for header, members in subjects.items():
        serving = [problem for problem in members if problem.grading["example"]]
        if not serving:
            serving = [min(members, key=_digest)]
        examples[header] = sorted(serving, key=_digest)
        keys.update(problem.key for problem in serving)

    kept = []
    for problem in problems:
        if problem.key not in keys:
            serving = examples[_header(problem)]
            example = serving[_digest(problem) % len(serving)]
            grading = {"answer": problem.grading["answer"]}
            kept.append(replace(one_shot(problem, example), grading=grading))
    return kept


def _header(problem: Problem) -> str:
    """The line of the prompt that tells the subject."""
    return problem.prompt.split("\n", 1)[0]


def _digest(problem: Problem) -> int:
    return int.from_bytes(hashlib.sha256(problem.key.encode()).digest()[:8], "big")
