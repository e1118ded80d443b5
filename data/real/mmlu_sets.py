"""Real multiple choice: rows of MMLU, and the example before each question."""

import hashlib
from collections import defaultdict
from dataclasses import replace

from data.problems import Problem
from data.tasks.knowledge import LETTERS, one_shot, zero_shot

MMLU = {  # group: subjects, as in the benchmark's own categories
    "STEM": """abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics college_physics
        computer_security conceptual_physics electrical_engineering elementary_mathematics high_school_biology high_school_chemistry
        high_school_computer_science high_school_mathematics high_school_physics high_school_statistics machine_learning""",
    "humanities": """formal_logic high_school_european_history high_school_us_history high_school_world_history international_law
        jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law world_religions""",
    "social sciences": """econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics
        high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations security_studies
        sociology us_foreign_policy""",
    "other": """anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
        medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology""",
}

GROUP = {subject: group for group, subjects in MMLU.items() for subject in subjects.split()}


def from_row(row: dict) -> Problem:
    """A zero-shot problem from a row of MMLU, from csv (question, A, B, C, D, answer, subject) or jsonl (question, choices, answer, subject).

    The answer is a letter or, as a number, the index of its option. ValueError says what is wrong with a row. Options that repeat
    are no error (13 of the benchmark's rows have some): its letter counts. `with_examples` makes the problems of a file 1-shot.
    """
    options = row["choices"] if "choices" in row else [row.get(letter) for letter in LETTERS]
    if not isinstance(options, list) or len(options) != 4 or not all(isinstance(option, str) and option.strip() for option in options):
        raise ValueError(f"needs four options that are not empty, in choices or in A, B, C and D, got {options!r}")
    question, subject, answer = row.get("question"), row.get("subject"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"needs a question, got {question!r}")
    if not isinstance(subject, str) or subject not in GROUP:
        raise ValueError(f"subject {subject!r} is none of MMLU's {len(GROUP)}")
    if type(answer) is int and 0 <= answer < 4:  # not isinstance: True is no index
        answer = LETTERS[answer]
    if answer not in LETTERS:
        raise ValueError(f"answer must be A, B, C or D, or an index from 0 to 3, got {answer!r}")
    # the same question about the same options, whatever their order, is the same problem: some stand in two subjects or splits
    asked, *offered = (" ".join(text.split()).lower() for text in (question, *options))
    key = " | ".join((asked, *sorted(offered)))
    problem = zero_shot(GROUP[subject], subject.replace("_", " "), question.strip(), [option.strip() for option in options], answer, 1, key)
    return replace(problem, grading={"example": row.get("split") == "dev"})


def with_examples(problems: list[Problem]) -> list[Problem]:
    """The problems of `from_row` made 1-shot; those that serve as examples are left out, so that no answer is seen in another prompt.

    A subject's dev rows serve; where it has none, the one row whose key has the smallest hash. Which of them a problem gets
    is decided by its own key's hash, so the order of the rows does not matter.
    """
    def digest(problem: Problem) -> int:
        return int.from_bytes(hashlib.sha256(problem.key.encode()).digest()[:8], "big")

    subjects = defaultdict(list)
    for problem in problems:
        subjects[problem.prompt.split("\n", 1)[0]].append(problem)
    examples = {}
    for subject, members in subjects.items():
        serving = [problem for problem in members if problem.grading["example"]] or [min(members, key=digest)]
        examples[subject] = sorted(serving, key=digest)
    keys = {example.key for serving in examples.values() for example in serving}
    kept = []
    for problem in problems:
        if problem.key not in keys:
            serving = examples[problem.prompt.split("\n", 1)[0]]
            kept.append(replace(one_shot(problem, serving[digest(problem) % len(serving)]), grading={}))
    return kept
