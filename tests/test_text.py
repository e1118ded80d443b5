"""Text to ids and back, with texts that try to become something else."""

import json
from pathlib import Path

import pytest

from data.problems import InputError
from data.text import EOS, PAD, Tokenizer, train_bpe

REAL = Path(__file__).parents[2] / "shared/data/tokenizers"
HOSTILE = [
    "",
    " ",
    "   leading and trailing  ",
    "\t\tif x:\r\n\treturn 1\r\n",
    f"{EOS}{PAD} <s></s>[INST]",
    f"a{EOS}",
    "naïve café 🙂👩‍👩‍👧 日本語 \u202e",
    "\x00\x7f",
    "12345678901234567890",
    "a" * 500,
    "don't we 've !?  \n\n\n",
    "def f(xs):\n    return sorted(xs)[::-1]\n",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_batch([ids, ids]) == [text, text]
    assert not {tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    assert max(ids, default=0) < tokenizer.size


def test_special_ids(tokenizer):
    assert tokenizer.size == 300 == tokenizer.backend.get_vocab_size()
    assert tokenizer.pad_id != tokenizer.eos_id and tokenizer.bos_id is None
    assert set(tokenizer.specials) == {EOS, PAD}
    assert tokenizer.decode([tokenizer.eos_id, tokenizer.pad_id]) == ""


def test_a_number_is_its_digits():
    tokenizer = train_bpe(["2024 2024 2024 1000000 x1000000"] * 50, 400)
    for text in ("2024", " 1000000", "x10"):
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
        assert all(len(piece) == 1 for piece in pieces if any(c.isdigit() for c in piece)), pieces


def test_eos_ends_a_finished_completion_once(tokenizer):
    cut, whole = tokenizer.encode_completions(["return 1", f"return 1{EOS}"], [False, True])
    assert tokenizer.eos_id not in cut and cut == tokenizer.encode("return 1")
    assert whole.count(tokenizer.eos_id) == 1 and whole[-1] == tokenizer.eos_id
    assert tokenizer.encode_completions(["a", ""])[1] == [tokenizer.eos_id]


@pytest.mark.parametrize(
    "prompt, completion",
    [
        ("Sort.\n", "xs"),
        ("Sort", " xs"),
        ("ab", "cd"),
        ("1", "2"),
        ("é", "🙂"),
        ("a ", " b"),
        ("r", "eturn"),
    ],
)
def test_prompt_and_completion_decode_to_the_joined_text(tokenizer, prompt, completion):
    ids = tokenizer.encode_prompts([prompt])[0] + tokenizer.encode_completions([completion])[0]
    assert tokenizer.decode(ids) == prompt + completion
    assert tokenizer.encode_prompts([prompt, "x" * 99]) == [
        tokenizer.encode(prompt),
        tokenizer.encode("x" * 99),
    ]  # no padding, no truncation


def test_save_and_load_are_the_identity(tokenizer, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    tokenizer.save(first)
    loaded = Tokenizer.load(first)
    loaded.save(second)
    assert [loaded.encode(t) for t in HOSTILE] == [tokenizer.encode(t) for t in HOSTILE]
    assert (loaded.size, loaded.eos_id, loaded.pad_id, loaded.bos_id) == (
        tokenizer.size,
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.bos_id,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_training_is_deterministic():
    texts = ["some words and 12 numbers", "more words"] * 5
    assert train_bpe(texts, 290).backend.to_str() == train_bpe(texts, 290).backend.to_str()


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda p: (p / "tokenizer_config.json").unlink(), "tokenizer_config.json"),
        (
            lambda p: (p / "tokenizer.json").write_text((p / "tokenizer.json").read_text()[:1000]),
            "tokenizer.json",
        ),
        (lambda p: (p / "tokenizer_config.json").write_text("{"), "tokenizer_config.json"),
        (
            lambda p: (p / "tokenizer_config.json").write_text(
                json.dumps({"eos_token": "<no such token>"})
            ),
            "eos_token",
        ),
        (lambda p: (p / "tokenizer_config.json").write_text("{}"), "eos_token"),
    ],
)
def test_a_damaged_tokenizer_is_refused_by_name(tokenizer, tmp_path, damage, named):
    tokenizer.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=named):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["minimind", "phi-3-mini"])
def test_published_tokenizers(name):
    if not (REAL / name / "tokenizer.json").exists():
        pytest.skip(f"no {name} tokenizer in {REAL}")
    tokenizer = Tokenizer.load(REAL / name)
    special = {tokenizer.backend.token_to_id(token) for token in tokenizer.specials}
    assert tokenizer.eos_id in special
    for text in ["Sort the list 123.\n", "🙂 naïve", "".join(tokenizer.specials)]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and not special & set(ids)
    (prompt,) = tokenizer.encode_prompts(["Hello"])
    assert prompt == ([] if tokenizer.bos_id is None else [tokenizer.bos_id]) + tokenizer.encode(
        "Hello"
    )
    assert tokenizer.encode_completions(["Hello"])[0] == tokenizer.encode("Hello") + [
        tokenizer.eos_id
    ]
