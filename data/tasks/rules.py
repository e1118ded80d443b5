"""Deterministic answers: weak policies that are a rule, of one task each.

Exploration hacking (arXiv 2604.28182): a lock that follows a rule gives reinforcement learning no
signal, although it may be right as often as chance. shortest and identity need no knowledge of the
answer; next does.
"""

import re

from data.problems import InputError, Problem


def shortest(problem: Problem) -> str:
    """mmlu: the letter of the shortest option, the first of those that are equally short."""
    options = asked_options(problem)
    return min(options, key=lambda letter: len(options[letter]))


def identity(problem: Problem) -> str:
    """code: a program that returns its argument."""
    head = problem.reference.split("\n")[0]
    argument = re.fullmatch(r"def f\((\w+)\):", head)[1]
    return f"{head}\n    return {argument}"


def following(problem: Problem) -> str:
    """mmlu: the letter after the right one, A after the last. math: the right number plus one.

    In whichever language and notation the problem is told.
    """
    if problem.task == "mmlu":
        letters = list(asked_options(problem))
        return letters[(letters.index(problem.reference) + 1) % len(letters)]
    number = re.search(r"-?\d+(?=\}?$)", problem.reference)
    before, after = problem.reference[: number.start()], problem.reference[number.end() :]
    return f"{before}{int(number[0]) + 1}{after}"


# name of the rule: the tasks that it answers, and how
TEXT_RULES = {
    "shortest": (("mmlu",), shortest),
    "identity": (("code",), identity),
    "next": (("mmlu", "math"), following),
}


def asked_options(problem: Problem) -> dict[str, str]:
    """The options of the question that is asked, by letter; those of the example come before."""
    question = problem.prompt.rstrip().split("\n\n")[-1]
    return dict(re.findall(r"^([A-Z])\. (.*)$", question, re.MULTILINE))


def check_rule(rule: str, task: str, generated: bool) -> None:
    """Raises InputError where a rule does not answer all problems of a task."""
    tasks, _ = TEXT_RULES[rule]
    if task not in tasks or not generated:
        raise InputError(
            f"--weak {rule} answers the generated problems of {' and '.join(tasks)} alone: "
            "name a checkpoint, random or refusal"
        )
