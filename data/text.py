"""Text to token ids and back: one wrapper over a tokenizer.json; the byte-level BPE of the tiny base models; words as tokens."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data.problems import InputError

EOS, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unknown|>"


CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": EOS,
    "pad_token": PAD,
    "add_bos_token": False,
    "clean_up_tokenization_spaces": False,
}


class Tokenizer:
    """A tokenizer.json with its tokenizer_config.json. Text never turns into special ids: a hostile "<|endoftext|>" stays letters.

    size: number of ids. eos_id, pad_id, bos_id (None where the model has none). Prompt and completion are always encoded apart
    and their ids joined, so the seam is the same in training and in sampling.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict):
        self.backend, self.config = backend, config
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = (
            True  # the library's name is inverted: True means "as ordinary text"
        )
        self.size = backend.get_vocab_size(with_added_tokens=True)
        name = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in config.items()
            if key.endswith("_token")
        }
        self.eos_id = backend.token_to_id(name.get("eos_token") or "")
        if self.eos_id is None:
            raise InputError("tokenizer_config.json names no eos_token that tokenizer.json has")
        self.pad_id = backend.token_to_id(name.get("pad_token") or "")
        self.pad_id = self.eos_id if self.pad_id is None else self.pad_id
        self.bos_id = (
            backend.token_to_id(name["bos_token"])
            if config.get("add_bos_token") and name.get("bos_token")
            else None
        )
        self.specials = [
            token.content for token in backend.get_added_tokens_decoder().values() if token.special
        ]

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Open a checkpoint directory's tokenizer. Raises InputError naming the file that is missing or broken."""
        file, config = Path(path) / "tokenizer.json", Path(path) / "tokenizer_config.json"
        if not file.exists():
            raise InputError(f"{file} does not exist: is {path} a checkpoint directory?")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)), json.loads(config.read_text()))
        except FileNotFoundError:
            raise InputError(f"{config} does not exist: the checkpoint is incomplete") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except Exception as error:  # the library raises bare Exception on a broken file
            raise InputError(f"{file} or {config.name} is corrupted ({error})") from None

    def save(self, path: str | Path) -> None:
        self.backend.save(str(Path(path) / "tokenizer.json"))
        (Path(path) / "tokenizer_config.json").write_text(json.dumps(self.config, indent=1) + "\n")

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_prompts(self, prompts: list[str]) -> list[list[int]]:
        """Prompt ids, with the one BOS where the model wants it."""
        bos = [] if self.bos_id is None else [self.bos_id]
        return [bos + ids for ids in self._encode_batch(prompts)]

    def encode_completions(
        self, completions: list[str], finished: list[bool] | None = None
    ) -> list[list[int]]:
        """Completion ids ending in the one supervised EOS, which a completion that was cut (finished False) does not get."""
        return [
            ids + [self.eos_id] * (finished is None or finished[i])
            for i, ids in enumerate(self._encode_batch(completions))
        ]

    def _encode_batch(self, texts: list[str]) -> Iterator[list[int]]:
        """In parallel, some thousand at a time: the library's encodings take a hundred times the memory of their ids."""
        for at in range(0, len(texts), 4096):
            for encoding in self.backend.encode_batch(
                texts[at : at + 4096], add_special_tokens=False
            ):
                yield encoding.ids

    def decode(self, ids: list[int]) -> str:
        """Text without special tokens."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        return self.backend.decode_batch(batch, skip_special_tokens=True)


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE with digits kept apart (a number is its digits) and a pad id distinct from EOS."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[EOS, PAD],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return Tokenizer(backend, CONFIG)


def word_level(words: list[str]) -> Tokenizer:
    """Each of these words is a token, and white space only divides them."""
    vocabulary = {word: i for i, word in enumerate([EOS, PAD, UNKNOWN, *words])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([EOS, PAD, UNKNOWN])
    return Tokenizer(backend, CONFIG)
