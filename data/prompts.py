"""How a model is asked, and where its completion ends: plainly, or in its own chat template.

Plainly, a prompt is the problem's words, the same for all families. Asked in its chat template, a
model reads the prompt as a user's turn, without the white space around it. Whatever stands in the
prompt stays text: only the template itself makes special tokens.

A completion ends with the model's EOS. A base model that was never trained to end has none, and
goes on with a problem of its own; so it may also end, without the white space before the end,

    before one of the `stop` strings
    with `stop_at_problem` before a line that starts a new problem: one that starts with the first
    four words of its own prompt, or with a heading such as "Question 2:" or "### Problem:". The
    completion's own first line never does

Of several ends it is the one that is complete first. What stands there is cut off before it is
graded, and before anything is trained on it: there the model's EOS takes its place. So a lock that
imitates such a policy learns to end by itself.

A checkpoint's prompt_format.json says how it was trained to be asked.
"""

import datetime
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.problems import InputError

FORMAT = "prompt_format.json"
OPENING = 4  # words of a prompt that a new problem starts with
HEADING = re.compile(  # at the margin: indented it may be a comment or a field of a program
    r"\n(?:[#*][#* \t]*)?(?:(?i:question|problem|exercise|instruction)"
    r"(?:[* \t]*:|[ \t]+\d+[* \t]*[:.)])|(?:Human|HUMAN|User|USER|Q)[* \t]*:)"
)


# --------------------------------------------------------------------------------------- the format


@dataclass(frozen=True)
class PromptFormat:
    """chat: asked in the model's chat template. stop, stop_at_problem: see above."""

    chat: bool = False
    stop: tuple[str, ...] = ()
    stop_at_problem: bool = False

    @property
    def ends_early(self) -> bool:
        return bool(self.stop) or self.stop_at_problem

    def kept(self, completion: str, prompt: str) -> str | None:
        """What the completion of this prompt was before its end; None where it has none yet.

        The same for every text that goes on from this one: so it does not matter when one looks.
        """
        text = completion.rstrip("\ufffd")  # half a character
        patterns = [re.compile(re.escape(stop)) for stop in self.stop]
        if self.stop_at_problem:
            patterns += [HEADING, _opening(prompt)]
        matches = [pattern.search(text) for pattern in patterns]
        found = [match for match in matches if match]
        if not found:
            return None
        first = min(found, key=lambda match: (match.end(), match.start()))
        return text[: first.start()].rstrip()


PLAIN = PromptFormat()


@dataclass(frozen=True)
class Overrides:
    """How the options of a process have models asked; None where they say nothing.

    to_all: they go for all models, also for those that say themselves how they are asked.
    """

    chat: bool | None = None
    stop: tuple[str, ...] | None = None
    stop_at_problem: bool | None = None
    to_all: bool = False


overrides = Overrides()


def overrides_from(
    chat: bool | None, stop: Sequence[str], stop_at_problem: bool | None, to_all: bool = False
) -> Overrides:
    """By the values of --chat, --stop, where \\n is a line break, and --stop-at-problem."""
    texts = tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in stop)
    return Overrides(chat, texts or None, stop_at_problem, to_all)


def format_of(own: PromptFormat | None) -> PromptFormat:
    """How a model is asked: as its prompt_format.json says, as the options say, or plainly."""
    form = own or PLAIN
    if own is not None and not overrides.to_all:
        return form
    said = {name: getattr(overrides, name) for name in ("chat", "stop", "stop_at_problem")}
    return replace(form, **{name: value for name, value in said.items() if value is not None})


def format_from(content: bytes) -> PromptFormat:
    """The content of a prompt_format.json. Raises InputError where it is none."""
    try:
        found = json.loads(content)
        chat, stop, at_problem = found["chat"], found["stop"], found["stop_at_problem"]
        are_bools = isinstance(chat, bool) and isinstance(at_problem, bool)
        are_texts = isinstance(stop, list) and all(isinstance(text, str) and text for text in stop)
    except (ValueError, KeyError, TypeError, RecursionError):
        are_bools = are_texts = False
    if not (are_bools and are_texts):
        raise InputError(
            f"{FORMAT} must be an object with chat and stop_at_problem, true or false, and stop, "
            "a list of texts: repair it, or delete it for a model that is asked plainly"
        )
    return PromptFormat(chat, tuple(stop), at_problem)


NEVER = re.compile(r"(?!)")


@functools.lru_cache(maxsize=4096)
def _opening(prompt: str) -> re.Pattern:
    """A later line that starts with the first words of the prompt's first line, if it has so many.

    What follows them must be there, or the last word may still grow.
    """
    words = prompt.strip().split("\n")[0].split()[:OPENING]
    if len(words) < OPENING:
        return NEVER
    return re.compile(r"\n[ \t]*" + r"[ \t]+".join(map(re.escape, words)) + r"\W")


# ------------------------------------------------------------------------------------ the template

# stand for texts whose place in a rendered template is looked for
USER, ASSISTANT = "\ue000user\ue000", "\ue000assistant\ue000"
# what a template could be tempted to change
PROBE = 'It\'s "a" & <b>\n\n\tc </think> [/INST] {{ d }} \\ think'
# Llama 3 writes the day into its prompts: the one of its own default, the same every day
TODAY = datetime.date(2024, 7, 26)


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, which marks an answer and writes nothing."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


class ChatTemplate:
    """A model's chat template around one user's turn.

    before, after: the texts around the prompt, up to where the model's answer starts. end: what
    follows the answer, "" where the template does not say.
    """

    def __init__(self, source: str, variables: dict[str, str]):
        """source: in Jinja. variables: the model's special tokens, by their names.

        Raises InputError for a template that cannot be rendered around one user's turn.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": TODAY.strftime}
        # jinja's own would write < as \u003c
        environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)

        turn, probe = {"role": "user", "content": USER}, {"role": "user", "content": PROBE}
        try:
            template = environment.from_string(source)
            render = functools.partial(template.render, tools=None, documents=None, **variables)
            asked = render(messages=[turn], add_generation_prompt=True)
            probed = render(messages=[probe], add_generation_prompt=True)
        except Exception as error:  # a template is a program: it may raise anything
            raise InputError(
                f"its chat template cannot be rendered for one user's turn ({error}): "
                "repair it, or ask plainly"
            ) from None
        if asked.count(USER) != 1:
            raise InputError(
                f"its chat template repeats a user's turn {asked.count(USER)} times, not once: "
                "repair it, or ask plainly"
            )
        self.before, self.after = asked.split(USER)
        if probed != self.before + PROBE + self.after:
            raise InputError(
                "its chat template changes what a user says, or itself with it: "
                "repair it, or ask plainly"
            )
        self.end = self._end(render, turn)

    def _end(self, render, turn: dict) -> str:
        reply = {"role": "assistant", "content": ASSISTANT}
        try:
            told = render(messages=[turn, reply], add_generation_prompt=False)
        except Exception:
            return ""  # it need not know answers, only ask for one
        return told.partition(ASSISTANT)[2]


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def template_in(files: dict[str, bytes], config: dict) -> str | None:
    """The chat template of a checkpoint: its file, or what its tokenizer_config.json has.

    files: the content of the checkpoint's small files, by name. Of several templates the one that
    is called default. Raises InputError where it is no text.
    """
    found = config.get("chat_template")
    try:
        if "chat_template.jinja" in files:
            return files["chat_template.jinja"].decode()
        if found is None and "chat_template.json" in files:
            found = json.loads(files["chat_template.json"])["chat_template"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            "chat_template.jinja or chat_template.json cannot be read: repair it, or delete it"
        ) from None
    if isinstance(found, list):
        named = [row for row in found if isinstance(row, dict) and row.get("name") == "default"]
        found = named[0].get("template") if named else None
    if found is not None and not isinstance(found, str):
        raise InputError("its chat_template must be a text, or a list with one named default")
    return found


def divided(text: str, specials: Sequence[str]) -> list[str]:
    """Text between special tokens, and these: [text, special, text, special, ..., text]."""
    longest_first = sorted(specials, key=len, reverse=True)
    pattern = "|".join(re.escape(special) for special in longest_first)
    return re.split(f"({pattern})", text) if specials else [text]
