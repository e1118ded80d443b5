"""Text to ids and back, with texts that try to become something else."""

import json
import random
import string
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.problems import InputError
from data.text import CONFIG, EOS, PAD, Tokenizer, train_bpe

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


def break_normalizer(file: Path) -> None:
    """With a table on which the library panics, which is no Exception."""
    table = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": table}))


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json does not exist: put the"),
        (lambda p: (p / "tokenizer_config.json").unlink(), "tokenizer_config.json"),
        (
            lambda p: (p / "tokenizer.json").write_text((p / "tokenizer.json").read_text()[:1000]),
            "tokenizer.json",
        ),
        (lambda p: break_normalizer(p / "tokenizer.json"), "tokenizer.json or .* is corrupted"),
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


def of_published(name: str) -> Tokenizer:
    file, config = REAL / name / "tokenizer.json", REAL / name / "tokenizer_config.json"
    if not file.exists():
        pytest.skip(f"no {name} tokenizer in {REAL}")
    if config.exists():
        return Tokenizer.load(REAL / name)
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.add_special_tokens([EOS])  # which one of the two has, and the other not
    return Tokenizer(backend, {"eos_token": EOS})


def with_a_start(kind: str) -> Tokenizer:
    """A tiny tokenizer that puts a space before a text, in one of the three ways there are."""
    if kind == "byte level":
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=[EOS], show_progress=False, initial_alphabet=alphabet
        )
        backend.train_from_iterator(HOSTILE, trainer)
        return Tokenizer(backend, {"eos_token": EOS})

    mark = "\u2581"
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [mark, *string.ascii_letters, *"():[]-"]
    pieces = [EOS, *fallback, *letters, mark * 2, "re", f"{mark}re", f"{mark}x"]
    merges = [(mark, mark), ("r", "e"), (mark, "re"), (mark, "x")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    backend.add_special_tokens([EOS])
    joined = [decoders.ByteFallback(), decoders.Fuse()]
    if kind == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        first = decoders.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence([first, *joined])
    else:
        marks = [normalizers.Prepend(mark), normalizers.Replace(" ", mark)]
        backend.normalizer = normalizers.Sequence(marks)
        spaces, strip = decoders.Replace(mark, " "), decoders.Strip(" ", 1, 0)
        backend.decoder = decoders.Sequence([spaces, *joined, strip])
    return Tokenizer(backend, {"eos_token": EOS})


STARTS = ["prepend", "metaspace", "byte level"]
PUBLISHED = ["minimind", "gpt-neox-20b", "torchtune-test", "phi-3-mini"]
PARTS = [
    *(" ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", "x", "re", " re", "def f(x):", "return x"),
    *("</s>", "<s>", EOS, "<0x0A>", "[INST]", "0", "12", "é", "🙂", "日本", "\x00"),
]


def texts(n: int) -> list[str]:
    rng = random.Random(0)
    joined = ["".join(rng.choices(PARTS, k=rng.randrange(8))) for _ in range(n)]
    return [*HOSTILE, *joined]


@pytest.mark.parametrize("name", [*STARTS, *PUBLISHED])
def test_a_completion_is_its_own_text_and_goes_on_from_its_prompt(name):
    tokenizer = with_a_start(name) if name in STARTS else of_published(name)
    given = texts(300)
    rows = tokenizer.encode_completions(given)
    assert [tokenizer.decode(ids) for ids in rows] == given == tokenizer.decode_batch(rows)
    assert [tokenizer.encode(text) for text in given] == [ids[:-1] for ids in rows]
    assert all(ids[-1] == tokenizer.eos_id not in ids[:-1] for ids in rows)

    [prompt] = tokenizer.encode_prompts(["Sort.\n"])
    assert tokenizer.decode_prompt(prompt).strip(" ") == "Sort.\n"
    if tokenizer.later is tokenizer.backend:
        assert name in ("minimind", "gpt-neox-20b", "torchtune-test")
        assert rows == [[*tokenizer.backend.encode(t).ids, tokenizer.eos_id] for t in given]
    elif name != "byte level":  # which joins a newline with the spaces behind it
        whole = tokenizer.encode_prompts([f"Sort.\n{text}" for text in given])
        assert whole == [prompt + ids[:-1] for ids in rows]


@pytest.mark.parametrize("name", STARTS)
def test_a_text_from_its_start_is_encoded_as_the_layout_says(name, tmp_path):
    tokenizer = with_a_start(name)
    [prompt] = tokenizer.encode_prompts(["x re"])
    assert prompt == tokenizer.backend.encode("x re").ids == tokenizer.encode(" x re")
    assert tokenizer.encode("x re") != prompt
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode_prompts(["x re"]) == [prompt]
    assert Tokenizer.load(tmp_path).encode("x re") == tokenizer.encode("x re")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tokenizers(name):
    tokenizer = of_published(name)
    special = {tokenizer.backend.token_to_id(token) for token in tokenizer.specials}
    assert tokenizer.eos_id in special
    given = ["Sort the list 123.\n", "🙂 naïve", "".join(tokenizer.specials), "a</s>  b"]
    for text, ids in zip(given, tokenizer.encode_prompts(given)):
        assert tokenizer.decode_prompt(ids) == text and not special & set(ids)


def test_a_bos_comes_once_and_only_before_prompts(tokenizer):
    config = {"eos_token": EOS, "bos_token": {"content": PAD}, "add_bos_token": True}
    own = Tokenizer(tokenizer.backend, config)
    assert own.encode_prompts(["Hello"]) == [[own.bos_id, *tokenizer.encode("Hello")]]
    assert own.encode_completions(["Hello"]) == tokenizer.encode_completions(["Hello"])
    assert own.pad_id == own.eos_id != own.bos_id


def test_a_lone_surrogate_is_refused_by_name(tokenizer):
    for encode in (tokenizer.encode_prompts, tokenizer.encode_completions):
        with pytest.raises(InputError, match="'a.ud800 b' contains '.ud800', which is no Unicode"):
            encode(["fine", "a\ud800 b"])
    with pytest.raises(InputError, match="no Unicode character"):
        tokenizer.encode("\udcff")


# ----------------------------------------------------------------------- what published files say


def with_post_processor(tokenizer: Tokenizer, template: str) -> tokenizers.Tokenizer:
    """Its library's tokenizer with a post-processor, in which $A is the text, as in Llama 3's."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    specials = [(token, backend.token_to_id(token)) for token in (EOS, PAD)]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    return backend


@pytest.mark.parametrize(
    "template, config, starts_with_bos",
    [
        (f"{PAD} $A", {}, True),  # Llama 3: only the post-processor says so
        (f"{PAD} $A {EOS}", {}, True),
        (f"$A {EOS}", {}, False),
        ("$A", {}, False),  # Pythia
        ("$A", {"add_bos_token": True}, True),  # Llama 2, Mistral, DeepSeek
        (f"{PAD} $A", {"add_bos_token": True}, True),
        (f"{PAD} $A", {"add_bos_token": False}, False),
        ("$A", {"add_bos_token": False}, False),  # Qwen
    ],
)
def test_one_bos_from_wherever_a_family_keeps_it(tokenizer, template, config, starts_with_bos):
    backend = with_post_processor(tokenizer, template)
    backend.enable_padding(direction="left", length=50)
    backend.enable_truncation(3)
    own = Tokenizer(backend, {"eos_token": EOS, "bos_token": PAD} | config)
    assert own.bos_id == (tokenizer.pad_id if starts_with_bos else None)
    bos = [tokenizer.pad_id] * starts_with_bos
    for text in ("Hello there, you", PAD, ""):
        assert own.encode_prompts([text]) == [bos + tokenizer.encode(text)]
        assert own.encode_completions([text]) == [tokenizer.encode(text) + [own.eos_id]]


@pytest.mark.parametrize(
    "template, config, named",
    [
        ("$A", {"add_bos_token": True}, "add_bos_token = true but names no bos_token"),
        ("$A", {"add_bos_token": True, "bos_token": "<none>"}, "names no bos_token"),
        ("$A", {"add_bos_token": "no"}, "add_bos_token = 'no': it must be true or false"),
        (f"{PAD} {EOS} $A", {}, "puts 2 ids before a text"),
    ],
)
def test_a_bos_that_nobody_can_know_is_refused(tokenizer, template, config, named):
    with pytest.raises(InputError, match=named):
        Tokenizer(with_post_processor(tokenizer, template), {"eos_token": EOS} | config)


def files_of(tokenizer: Tokenizer, path: Path, **contents) -> Path:
    """A directory with a tokenizer and other files: JSON, if given as objects."""
    tokenizer.save(path)
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / f"{name}.json").write_text(text)
    return path


@pytest.mark.parametrize(
    "config, generation, ends",
    [
        (None, None, [0]),
        ({}, {}, [0]),
        ({"eos_token_id": 0}, {"eos_token_id": None}, [0]),
        ({"eos_token_id": 7}, None, [0, 7]),
        ({"eos_token_id": [9, 0, 7]}, {"eos_token_id": [7, 8]}, [0, 9, 7, 8]),  # Llama 3 Instruct
        ({"eos_token_id": None}, {"eos_token_id": 5}, [0, 5]),
    ],
)
def test_all_that_ends_a_completion(tokenizer, tmp_path, config, generation, ends):
    files = {"config": config, "generation_config": generation}
    given = {name: content for name, content in files.items() if content is not None}
    loaded = Tokenizer.load(files_of(tokenizer, tmp_path, **given))
    assert loaded.eos_ids == ends and loaded.eos_id == 0
    assert loaded.encode_completions([""]) == [[0]]


@pytest.mark.parametrize(
    "content, named",
    [
        ("{", "generation_config.json cannot be read as a JSON object"),
        ("[]", "generation_config.json cannot be read as a JSON object"),
        ({"eos_token_id": "</s>"}, "generation_config.json has eos_token_id = '</s>'"),
        ({"eos_token_id": [1, -1]}, "eos_token_id = .1, -1.: it must be an id or a list"),
        ({"eos_token_id": True}, "eos_token_id = True"),
        ({"eos_token_id": 2**32}, "eos_token_id = 4294967296"),
    ],
)
def test_ends_that_are_none_are_refused_by_name(tokenizer, tmp_path, content, named):
    path = files_of(tokenizer, tmp_path, generation_config=content)
    with pytest.raises(InputError, match=named):
        Tokenizer.load(path)


def test_ids_may_have_holes(tokenizer):
    layout = json.loads(tokenizer.backend.to_str())
    for token in layout["added_tokens"]:  # as in DeepSeek-Coder: what was added comes after a gap
        token["id"] = layout["model"]["vocab"][token["content"]] = token["id"] + 400
    own = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(layout)), {"eos_token": EOS})
    assert own.backend.get_vocab_size() == 300 and own.size == 402 and own.eos_id == 400
    [ids] = own.encode_completions(["sorted"])
    assert ids[-1] == 400 and own.decode(ids) == "sorted"
    assert own.decode([350]) == ""  # an id in the hole, which a model could draw


def test_published_files_are_kept_as_they_are(tokenizer, tmp_path):
    others = {"special_tokens_map": "{ }", "generation_config": '{"eos_token_id": [0,3]}'}
    path = tmp_path / "published"
    path.mkdir()
    files_of(tokenizer, path, **others)
    (path / "chat_template.jinja").write_text("{{ bos_token }}")
    (path / "tokenizer.json").write_text(tokenizer.backend.to_str(pretty=False))
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    saved = tmp_path / "saved"
    saved.mkdir()
    Tokenizer.load(path).save(saved)
    after = {file.name: file.read_bytes() for file in saved.iterdir()}
    assert json.loads(after.pop("prompt_format.json"))["chat"] is False
    assert after == before


@pytest.mark.parametrize("wanted", [True, False])
def test_tokenizer_json_is_saved_with_the_start_that_the_config_asks_for(
    tokenizer, tmp_path, wanted
):
    """transformers 4 goes by the one file, 5 by the other; DeepSeek's and this one differ."""
    AutoTokenizer = pytest.importorskip("transformers").AutoTokenizer
    backend = with_post_processor(tokenizer, "$A" if wanted else f"{PAD} $A")
    config = CONFIG | {"bos_token": PAD, "add_bos_token": wanted}
    for place in ("published", "saved", "again"):
        (tmp_path / place).mkdir()
    Tokenizer(backend, CONFIG).save(tmp_path / "published")
    backend.save(str(tmp_path / "published/tokenizer.json"))
    (tmp_path / "published/tokenizer_config.json").write_text(json.dumps(config))
    own = Tokenizer.load(tmp_path / "published")
    own.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("Sort the list.\n", "a  b"):
        [ids] = own.encode_prompts([text])
        assert theirs(text)["input_ids"] == ids and (ids[0] == own.pad_id) is wanted
    again = Tokenizer.load(tmp_path / "saved")
    assert again.backend.to_str() == own.backend.to_str()
    again.save(tmp_path / "again")
    files = [(tmp_path / place / "tokenizer.json").read_bytes() for place in ("saved", "again")]
    assert files[0] == files[1]


def test_all_that_ends_a_completion_is_saved(tokenizer, tmp_path):
    """Also the end that a chat template writes, which the published files may not name."""
    own = Tokenizer(tokenizer.backend, CONFIG, ends=[0, 7])
    own.save(tmp_path)
    file = tmp_path / "generation_config.json"
    assert json.loads(file.read_text()) == {"eos_token_id": [0, 7], "pad_token_id": own.pad_id}
    loaded = Tokenizer.load(tmp_path)
    loaded.eos_ids = [5, 0, 7]
    file.write_text('{"eos_token_id": 0, "top_p": 0.5}')
    loaded.files[file.name] = file.read_bytes()
    loaded.save(tmp_path)
    told = json.loads(file.read_text())
    assert told["eos_token_id"] == [5, 0, 7] and told["top_p"] == 0.5


def test_a_character_that_has_no_token_is_refused_in_a_sentence():
    backend = tokenizers.Tokenizer(models.WordLevel({EOS: 0, "a": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([EOS])
    tokenizer = Tokenizer(backend, {"eos_token": EOS})
    assert tokenizer.encode("a a") == [1, 1]
    with pytest.raises(InputError, match="cannot encode a text .*: most likely it knows no token"):
        tokenizer.encode("a b")


@pytest.mark.parametrize("other", ["tokenizer.model", "qwen.tiktoken", "vocab.json"])
def test_tokenizers_of_other_kinds_are_refused(tmp_path, other):
    (tmp_path / other).write_text("")
    with pytest.raises(InputError, match=f"only {other}, which is not read: make one with"):
        Tokenizer.load(tmp_path)
