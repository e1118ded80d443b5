"""A pre-trained model that nobody here trained, beside transformers: SMOLLM2 names its directory.

SMOLLM2=DIR/SmolLM2-135M-Instruct pytest tests/test_real_model.py    # 10 to 30 minutes
"""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import data.prompts as prompts
from checkpoints.hf import load_model, save_model
from data import load
from data.prompts import Overrides
from sampler import Sampler

REAL = Path(__file__).parents[2] / "shared/data"
FILES = {
    "math": ["gsm8k/test.jsonl.gz"],
    "code": ["mbpp/mbpp.jsonl"],
    "mmlu": ["mmlu/mmlu_all.jsonl.gz"],
}
NEW_TOKENS = 48


@pytest.fixture(scope="module")
def path() -> str:
    found = os.environ.get("SMOLLM2", "")
    if not (Path(found) / "config.json").exists():
        pytest.skip("SMOLLM2 names no directory of a checkpoint")
    return found


@pytest.fixture(scope="module")
def theirs(path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(path).float()


def test_a_real_model(path, theirs, tmp_path):
    model, tokenizer = load_model(path)
    text = "The capital of France is"
    [ids] = tokenizer.encode_prompts([text])
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        ours = F.linear(model(torch.tensor([ids])), model.head_weight)
        assert ours.shape == expected.shape and (ours - expected).abs().max() < 1e-3
        written = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    [[sample]] = Sampler(model, tokenizer.eos_ids, 1)([ids], max_new_tokens=12)
    assert sample.ids == written[0, len(ids) :].tolist()
    assert "Paris" in tokenizer.decode(sample.ids)

    save_model(tmp_path, model, tokenizer)
    weights = [load_file(Path(where) / "model.safetensors") for where in (tmp_path, path)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (Path(path) / name).read_bytes()


def by_transformers(model, path: str, texts: list[str], chat: bool) -> list[list[int]]:
    """The ids that transformers writes greedily, with its own tokenizer and template."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    if chat:
        turns = [[{"role": "user", "content": text.strip()}] for text in texts]
        settings = {"add_generation_prompt": True, "padding": True, "return_tensors": "pt"}
        asked = tokenizer.apply_chat_template(turns, return_dict=True, **settings)
    else:
        asked = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**asked, max_new_tokens=NEW_TOKENS, do_sample=False)
    return written[:, asked["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("task", FILES)
def test_greedy_texts_of_50_real_prompts(path, theirs, task, chat, monkeypatch):
    """Those of transformers, in fp32, asked plainly and in the chat template."""
    files = [str(REAL / name) for name in FILES[task]]
    if not all(map(os.path.exists, files)):
        pytest.skip(f"{files[0]} is not there: real data are not in the repository")
    monkeypatch.setattr(prompts, "overrides", Overrides(chat=chat))
    texts = [problem.prompt for problem in load(task, "validation", 50, files=files)]
    model, tokenizer = load_model(path)
    drawn = Sampler(model, tokenizer.eos_ids, 50)(
        tokenizer.encode_prompts(texts), max_new_tokens=NEW_TOKENS
    )
    written = by_transformers(theirs, path, texts, chat)
    assert len(drawn) == len(written) == 50
    differ = []
    for text, [sample], ids in zip(texts, drawn, written):
        if sample.ids != ids[: len(sample.ids)]:
            differ.append((text[-60:], tokenizer.decode(sample.ids), tokenizer.decode(ids)))
    assert not differ
