"""Text to token ids and back.

One wrapper over a tokenizer.json; the byte-level BPE of the tiny base models; words as tokens.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from data.problems import InputError, check_unicode
from data.prompts import (
    FORMAT,
    PLAIN,
    ChatTemplate,
    divided,
    format_from,
    format_of,
    template_in,
)

EOS, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unknown|>"
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": EOS,
    "pad_token": PAD,
    "add_bos_token": False,
    "clean_up_tokenization_spaces": False,
}
# What a published checkpoint has beside its weights and config.json, and keeps when it is saved.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    FORMAT,
)
IS_MARK = re.compile(r"<\S+>|\[\S+\]|\S*[|｜]\S*")  # <start_of_turn>, [INST], <|im_start|>
AT_ONCE = 4096  # the library's encodings take a hundred times the memory of their ids


class Tokenizer:
    """A tokenizer.json with its tokenizer_config.json.

    Text never turns into special ids: a hostile "<|endoftext|>" stays letters (but not where the
    model of a tokenizer.json finds it as a word, as our `word_level` and "Unigram" do). Prompt and
    completion are always encoded apart and their ids joined, so the seam is the same in training
    and in sampling. A prompt is encoded as a text from its start, a completion as what goes on from
    a prompt's last newline. SentencePiece layouts (Llama 2, Mistral) tell these apart: they put a
    space before the start of a text and take it off when they decode.

    How a prompt is put (data/prompts.py) is the tokenizer's own business: `encode_prompts` puts it
    into the chat template where `format` says so.

    size: one more than the last id; ids between may stand for nothing. eos_id: what ends a
    completion that is trained on. eos_ids: all that end one that is sampled, eos_id first. pad_id,
    bos_id (None where the model has none). backend: the library's tokenizer, for a text from its
    start. later: the same for what goes on. files: those it was read from, which `save` writes
    back, but for where a text starts and ends. format: how the model is asked.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: dict,
        ends: Iterable[int] = (),
        files: dict[str, bytes] | None = None,
    ):
        """config: tokenizer_config.json. ends: ids that end a completion beside its eos_token."""
        self.backend, self.config = backend, config
        self.files = files or {}
        self.swallowing = _swallowing(backend)
        self.template = template_in(self.files, config)
        own = format_from(self.files[FORMAT]) if FORMAT in self.files else None
        self.format = format_of(own)
        if self.template is None:
            self.format = replace(self.format, chat=False)
        template = None
        if self.format.chat:
            template = ChatTemplate(self.template, _named_tokens(config))

        _call_special(backend, _marks(backend, config, ends, template))
        _as_plain_text(backend)
        self.later = _without_start(backend)
        self.size = 1 + max(backend.get_vocab(with_added_tokens=True).values())

        self.eos_id = self._id_of("eos_token")
        if self.eos_id is None:
            raise InputError("tokenizer_config.json names no eos_token that tokenizer.json has")
        self.eos_ids = list(dict.fromkeys([self.eos_id, *ends]))
        self.pad_id = self._id_of("pad_token")
        if self.pad_id is None:
            self.pad_id = self.eos_id
        self.bos_id = self._bos()
        if self._put_before() != [id for id in [self.bos_id] if id is not None]:
            self._tell_start()

        added = backend.get_added_tokens_decoder().values()
        self.specials = [token.content for token in added if token.special]
        if template is not None:
            self._open(template)

    def _open(self, template: ChatTemplate) -> None:
        """The ids and the words that the chat template has around a prompt, and after an answer.

        What it writes after an answer ends a completion, too, and is what is trained on.
        """
        # Behind a special token only some layouts put a space before a text, and none where the
        # config says so, as transformers reads it.
        self.inside = self.later
        if self.config.get("legacy") is not False:
            self.inside = _without_start(self.backend, everywhere=False)

        # words that touch the prompt are encoded with it, as one text
        *first, self.words_before = self._divided(template.before)
        self.words_after, *last = self._divided(template.after)
        self.ids_before = self._ids_of(first)
        self.ids_after = self._ids_of(["", *last])

        after = self._divided(template.end)
        if len(after) > 1 and not after[0].strip():
            self.eos_id = self.backend.token_to_id(after[1])
            self.eos_ids = list(dict.fromkeys([self.eos_id, *self.eos_ids]))

    def _divided(self, text: str) -> list[str]:
        """A template's parts: text, special token, text, and so on."""
        parts = divided(text, self.specials)
        for i in range(1, len(parts), 2):
            if "before" in self.swallowing.get(parts[i], ()):
                parts[i - 1] = parts[i - 1].rstrip()
            if "after" in self.swallowing.get(parts[i], ()):
                parts[i + 1] = parts[i + 1].lstrip()
        return parts

    def _ids_of(self, parts: list[str]) -> list[int]:
        """The ids of a template's parts."""
        ids = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self.backend.token_to_id(part))
            elif part:
                encoder = self.inside if i else self.backend
                ids += encoder.encode(part, add_special_tokens=False).ids
        return ids

    def _id_of(self, name: str) -> int | None:
        """The id of a token that tokenizer_config.json names, as a text or as an object."""
        token = self.config.get(name)
        if isinstance(token, dict):
            token = token.get("content", token)
        if token is not None and not isinstance(token, str):
            raise InputError(
                f"tokenizer_config.json has {name} = {token!r:.60}: it must be a text, "
                "or an object whose content is one"
            )
        return self.backend.token_to_id(token or "")

    def _bos(self) -> int | None:
        """The id that starts every prompt, if one does.

        tokenizer_config.json says so (most of the Llama line), or where it is silent (Llama 3), the
        post-processor of tokenizer.json, by adding one before a text.
        """
        wanted = self.config.get("add_bos_token")
        if wanted is None:
            added = self._put_before()
            if len(added) > 1:
                raise InputError(
                    f"the post-processor of tokenizer.json puts {len(added)} ids before a text: "
                    "only one is supported"
                )
            return added[0] if added else None
        if not isinstance(wanted, bool):
            raise InputError(
                f"tokenizer_config.json has add_bos_token = {wanted!r:.60}: "
                "it must be true or false"
            )
        if not wanted:
            return None
        bos = self._id_of("bos_token")
        if bos is None:
            raise InputError(
                "tokenizer_config.json has add_bos_token = true but names no bos_token that "
                "tokenizer.json has: name it, or set add_bos_token to false"
            )
        return bos

    def _tell_start(self) -> None:
        """Have tokenizer.json itself put the BOS that tokenizer_config.json asks for, or none.

        transformers goes by tokenizer_config.json up to version 4, and from 5 on by tokenizer.json
        (DeepSeek's puts none there): what is saved is to be asked alike by both.
        """
        processor = None
        if self.bos_id is not None:
            bos = self.backend.id_to_token(self.bos_id)
            processor = processors.TemplateProcessing(
                single=f"{bos}:0 $A:0",
                pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
                special_tokens=[(bos, self.bos_id)],
            )
        self.backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        _as_plain_text(self.backend)
        self.backend.post_processor = processor
        if "tokenizer.json" in self.files:
            told = json.loads(self.files["tokenizer.json"])
            told["post_processor"] = json.loads(self.backend.to_str())["post_processor"]
            self.files["tokenizer.json"] = json.dumps(told, ensure_ascii=False).encode()

    def _put_before(self) -> list[int]:
        """The ids that the post-processor puts before a text."""
        text = self.backend.encode("a", add_special_tokens=False).ids
        whole = self.backend.encode("a").ids
        return whole[: whole.index(text[0])] if text else []

    @classmethod
    def load(cls, path: str | Path, adapter: str | Path = "") -> "Tokenizer":
        """Open a checkpoint directory's tokenizer.

        adapter: the directory of a LoRA adapter to this checkpoint, which may say how it is asked.
        Raises InputError naming the file that is missing or broken.
        """
        file, config = Path(path) / "tokenizer.json", Path(path) / "tokenizer_config.json"
        _check_present(Path(path))
        try:
            settings = json.loads(config.read_text())
            if not isinstance(settings, dict):
                raise InputError("tokenizer_config.json holds no object")
            ends = _ends(Path(path))
            files = {}
            for name in COPIED:
                if (Path(path) / name).is_file():
                    files[name] = (Path(path) / name).read_bytes()
            if (Path(adapter or path) / FORMAT).is_file():
                files[FORMAT] = (Path(adapter or path) / FORMAT).read_bytes()
            return cls(tokenizers.Tokenizer.from_file(str(file)), settings, ends, files)
        except FileNotFoundError:
            raise InputError(f"{config} does not exist: the checkpoint is incomplete") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except BaseException as error:  # the library raises bare Exception on a broken file
            is_panic = type(error).__name__ == "PanicException"  # of its Rust, no Exception
            if not isinstance(error, Exception) and not is_panic:
                raise
            raise InputError(f"{file} or {config.name} is corrupted ({error})") from None

    def save(self, path: str | Path) -> None:
        """Write the files that were read, or for a tokenizer of our own, two of them.

        And how the model is asked, and by which ids it ends.
        """
        self.save_format(path)
        self._save_ends(Path(path) / "generation_config.json")
        if self.files:
            for name, content in self.files.items():
                if name not in (FORMAT, "generation_config.json"):
                    (Path(path) / name).write_bytes(content)
            return
        self.backend.save(str(Path(path) / "tokenizer.json"))
        (Path(path) / "tokenizer_config.json").write_text(json.dumps(self.config, indent=1) + "\n")

    def _save_ends(self, file: Path) -> None:
        """generation_config.json as it was read, but for ends that it does not name."""
        content = self.files.get(file.name)
        settings = {} if content is None else json.loads(content)
        named = settings.get("eos_token_id")
        named = named if isinstance(named, list) else [named]
        if content is not None and set(self.eos_ids) <= set(named):
            file.write_bytes(content)
            return
        settings["eos_token_id"] = self.eos_ids if len(self.eos_ids) > 1 else self.eos_id
        settings.setdefault("pad_token_id", self.pad_id)
        file.write_text(json.dumps(settings, indent=1) + "\n")

    def save_format(self, path: str | Path) -> None:
        """Write how the model is asked, where that is not to be taken for granted."""
        if self.template is not None or self.format != PLAIN:
            (Path(path) / FORMAT).write_text(json.dumps(asdict(self.format)) + "\n")

    def encode(self, text: str) -> list[int]:
        """Ids of a text that goes on from a newline, without EOS."""
        [ids] = _encoded(self.later, [text])
        return ids

    def encode_prompts(self, prompts: list[str]) -> list[list[int]]:
        """Prompt ids, with the one BOS where the model wants it, or in its chat template.

        Raises InputError for a lone surrogate, as all that encodes.
        """
        if self.format.chat:
            before, after = self.words_before, self.words_after
            texts = [f"{before}{prompt.strip()}{after}" for prompt in prompts]
            first = self.inside if self.ids_before else self.backend
            return [self.ids_before + ids + self.ids_after for ids in _encoded(first, texts)]
        bos = [] if self.bos_id is None else [self.bos_id]
        return [bos + ids for ids in _encoded(self.backend, prompts)]

    def encode_completions(
        self, completions: list[str], finished: list[bool] | None = None
    ) -> list[list[int]]:
        """Completion ids ending in the one supervised EOS.

        A completion that was cut (finished False) does not get it.
        """
        rows = list(_encoded(self.later, completions))
        for i, ids in enumerate(rows):
            if finished is None or finished[i]:
                ids.append(self.eos_id)
        return rows

    def decode(self, ids: list[int]) -> str:
        """Text of completion ids, without special tokens: decode(encode(text)) == text."""
        return self.later.decode(ids, skip_special_tokens=True)

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        return self.later.decode_batch(batch, skip_special_tokens=True)

    def decode_prompt(self, ids: list[int]) -> str:
        """Text of prompt ids, without special tokens."""
        return self.backend.decode(ids, skip_special_tokens=True)


def _check_present(path: Path) -> None:
    """Raise InputError where a directory has no tokenizer.json."""
    file = path / "tokenizer.json"
    if file.exists():
        return
    others = [*path.glob("tokenizer.model"), *path.glob("*.tiktoken"), *path.glob("vocab.json")]
    if others:
        raise InputError(
            f"{file} does not exist, only {others[0].name}, which is not read: make one with "
            "transformers (AutoTokenizer.from_pretrained(...).save_pretrained(NEW))"
        )
    raise InputError(f"{file} does not exist: put the model's own tokenizer there")


def _ends(path: Path) -> list[int]:
    """The ids that end a completion by config.json and generation_config.json, as far as there.

    A model that was tuned to chat ends its turn with another token than a document.
    """
    ends = []
    for name in ("config.json", "generation_config.json"):
        file = path / name
        if not file.exists():
            continue
        try:
            value = json.loads(file.read_text()).get("eos_token_id")
        except (OSError, ValueError, AttributeError, RecursionError):
            raise InputError(f"{name} cannot be read as a JSON object: repair it") from None
        found = value if isinstance(value, list) else [value]
        for end in found:
            is_id = type(end) is int and 0 <= end < 2**31  # not isinstance: True is no id
            if not (is_id or end is None):
                raise InputError(
                    f"{name} has eos_token_id = {value!r:.60}: it must be an id or a list of ids"
                )
        ends += [end for end in found if end is not None]
    return ends


def _swallowing(backend: tokenizers.Tokenizer) -> dict[str, list[str]]:
    """Tokens that take the white space before or after them with them (Phi-3's)."""
    found = {}
    for token in backend.get_added_tokens_decoder().values():
        found[token.content] = ["before"] * token.lstrip + ["after"] * token.rstrip
    return found


def _marks(
    backend: tokenizers.Tokenizer,
    config: dict,
    ends: Iterable[int],
    template: ChatTemplate | None,
) -> set[str]:
    """Added tokens that mark a place, whether tokenizer.json calls them special or not.

    Those that tokenizer_config.json names, that end a completion, that swallow spaces (Phi-3's
    </s>), and that have the shape of a mark and stand in the chat template around a prompt or
    after an answer. But a tag that has its closing tag, such as <think>, is text.
    """
    added = backend.get_added_tokens_decoder()
    marks = {*_named_tokens(config).values(), *_listed_tokens(config)}
    marks |= {added[end].content for end in ends if end in added}
    marks |= {token.content for token in added.values() if token.lstrip or token.rstrip}

    contents = [token.content for token in added.values()]
    around = [template.before, template.after, template.end] if template else []
    for text in around:
        for token in divided(text, contents)[1::2]:
            tag = token.removeprefix("<").removeprefix("/")
            is_text = f"<{tag}" in contents and f"</{tag}" in contents
            if IS_MARK.fullmatch(token) and not is_text:
                marks.add(token)
    return marks


def _call_special(backend: tokenizers.Tokenizer, marks: set[str]) -> None:
    """Have these added tokens be special, those that tokenizer.json does not call so.

    transformers writes a token that `add_tokens` made, say for a chat, as one that is not.
    """
    for token in backend.get_added_tokens_decoder().values():
        if token.content in marks and not token.special:
            special = tokenizers.AddedToken(token.content, special=True, normalized=False)
            backend.add_special_tokens([special])


def _as_plain_text(backend: tokenizers.Tokenizer) -> None:
    """Sets the library's tokenizer to encode all text as text, whole and without padding."""
    backend.no_truncation()
    backend.no_padding()
    # the library's name is inverted: True means "as ordinary text"
    backend.encode_special_tokens = True


def _named_tokens(config: dict) -> dict[str, object]:
    """The special tokens that tokenizer_config.json names, as a template knows them."""
    found = {}
    for name, token in config.items():
        if isinstance(token, dict):
            token = token.get("content")
        if name.endswith("_token") and isinstance(token, str):
            found[name] = token
    return found


def _listed_tokens(config: dict) -> list[str]:
    """Further special tokens of tokenizer_config.json, under its older and its newer name."""
    found = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(name)
        if isinstance(listed, dict):
            listed = list(listed.values())
        for token in listed if isinstance(listed, list) else []:
            found.append(token.get("content") if isinstance(token, dict) else token)
    return [token for token in found if isinstance(token, str)]


def _without_start(backend: tokenizers.Tokenizer, everywhere: bool = True) -> tokenizers.Tokenizer:
    """The same, but a text gets no space before it when encoded, and loses none when decoded.

    everywhere=False: as texts between special tokens are encoded, where the layouts that put a
    space only before the first text put none.

    Parts of a tokenizer.json that do so: the normalizer "Prepend" and the decoder "Strip" (Llama
    2), "Metaspace" in the place of both, and the pre-tokenizer "ByteLevel" with add_prefix_space.
    Where there is none of these (Llama 3, GPT-NeoX, ours), it is the very same object.
    """
    # the vocabulary, nearly all of a tokenizer.json, is written out only where a part changes
    layout = {}
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = getattr(backend, name)
        layout[name] = None if part is None else json.loads(part.__getstate__())
    before = json.dumps(layout)

    # what encodes
    for part in _parts(layout["normalizer"]):
        if part["type"] == "Prepend" and everywhere:
            part["prepend"] = ""
    for part in _parts(layout["pre_tokenizer"]):
        if part["type"] == "Metaspace" and (everywhere or part["prepend_scheme"] == "first"):
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel" and everywhere:
            part["add_prefix_space"] = False

    # what decodes; a decoder "ByteLevel" has add_prefix_space too, but never acts on it
    for part in _parts(layout["decoder"]):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "Strip":
            part["start"] = 0

    if json.dumps(layout) == before:
        return backend
    later = tokenizers.Tokenizer.from_str(json.dumps(json.loads(backend.to_str()) | layout))
    _as_plain_text(later)
    return later


def _parts(part: dict | None) -> list[dict]:
    """The members of a "Sequence" in a tokenizer.json, however nested; else the part alone."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]

    # under "normalizers", "pretokenizers" or "decoders"
    [members] = [value for key, value in part.items() if key != "type"]
    found = []
    for member in members:
        found += _parts(member)
    return found


def _encoded(backend: tokenizers.Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """The ids of each text, in parallel, AT_ONCE at a time."""
    for text in texts:
        check_unicode(text, f"The text {text[:40]!r}")

    for at in range(0, len(texts), AT_ONCE):
        try:
            encodings = backend.encode_batch(texts[at : at + AT_ONCE], add_special_tokens=False)
        except Exception as error:  # the library raises no other
            raise InputError(
                f"the model's tokenizer cannot encode a text ({error}): most likely it knows no "
                "token for one of its characters"
            ) from None
        for encoding in encodings:
            yield encoding.ids


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE with digits kept apart (a number is its digits) and a pad id unlike EOS."""
    backend = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    backend.decoder = decoders.ByteLevel()

    # all 256 bytes have a token, so no text is unknown
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[EOS, PAD],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, CONFIG)


def word_level(words: list[str]) -> Tokenizer:
    """Each of these words is a token, and white space only divides them."""
    vocabulary = {word: i for i, word in enumerate([EOS, PAD, UNKNOWN, *words])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([EOS, PAD, UNKNOWN])
    return Tokenizer(backend, CONFIG)
