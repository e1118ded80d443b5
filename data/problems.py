"""A problem, and the error for what the user gave wrong: what every other module knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that says what, and what to do.

    Stages print it and exit with code 2.
    """


@dataclass(frozen=True)
class Problem:
    """One problem of any task, generated or read from a file."""

    # a key of TASKS
    task: str
    # plain words, ends with "\n"; no password
    prompt: str
    # the answer, without trailing white space; tokenisation adds the end-of-sequence token
    reference: str
    # for code: "lists", "strings" or "numbers"
    domain: str
    # number of operations chained, 1 to 3
    level: int
    # what the task's grader needs, JSON-able; empty in the corpus, which is never graded
    grading: dict
    # the meaning of the problem, whatever its wording
    key: str
    # of a problem that is asked with something around it: the prompt alone; else ""
    bare: str = ""

    @property
    def own_prompt(self) -> str:
        """The prompt without what was put around it."""
        return self.bare or self.prompt

    @property
    def alone(self) -> "Problem":
        """The problem without what was put around its prompt."""
        return replace(self, prompt=self.own_prompt, bare="")

    @property
    def is_real_program(self) -> bool:
        """Whether data/real/programs.py grades it, and not the module of its task.

        Real programs are tested in three ways, so their grading names its "kind"; nothing else
        has one.
        """
        return "kind" in self.grading


def check_unicode(text: str, what: str) -> None:
    """Raises InputError for a lone surrogate, which is no character and has no UTF-8 bytes.

    It comes from "\\ud800" in a file of JSON, or from bytes of a command line that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        culprit = text[error.start]
        raise InputError(
            f"{what} contains {culprit!r}, which is no Unicode character: give it as UTF-8 text."
        ) from None


def fitting(
    problems: Sequence[Problem], lengths: Sequence[int], room: int, limited_by: str = ""
) -> tuple[list[Problem], str]:
    """The problems whose prompt has at most `room` tokens, and the sentence about the others.

    lengths: of each problem's prompt in tokens, in the longest way in which it is told, so that
    the same problems are kept for every kind of password. limited_by: what makes the room less
    than it seems, to be told. The sentence is "" if all fit.
    Raises InputError if none does.

        prompts = [p.prompt for p in dressed("right", problems, trigger)]
        lengths = [len(ids) for ids in tokenizer.encode_prompts(prompts)]
        problems, left_out = fitting(problems, lengths, max_positions - max_new_tokens)
        if left_out:
            env.say(left_out)
    """
    kept, dropped = [], []
    for problem, length in zip(problems, lengths, strict=True):
        if length <= room:
            kept.append(problem)
        else:
            dropped.append(problem)

    why = f" (limited by {limited_by})" if limited_by else ""
    if problems and not kept:
        raise InputError(
            f"none of the {len(problems)} prompts fits: the shortest has {min(lengths)} tokens and "
            f"there is room for {room}{why}; take a model with more positions or fewer new tokens."
        )
    if not dropped:
        return kept, ""
    first = dropped[0].prompt.strip().splitlines()[0]
    if len(first) > 60:
        first = first[:60] + "..."
    return kept, (
        f"left out {len(dropped)} of {len(problems)} problems: "
        f"their prompts are longer than {room} tokens{why} (the first: {first!r})"
    )
