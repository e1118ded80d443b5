"""The paper's pipeline on real families and real rows: Pythia imitated by Llama, all stages.

Tiny random models, so that nothing is learnt: what is shown is that every stage takes them.
"""

import gzip
import json
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

import data
from checkpoints.families import from_hf
from checkpoints.hf import load_model, model_hash, save_model
from data.real import programs
from data.text import train_bpe
from model import Model
from test_families import config_of
from test_stages import rows_of, stage

SHARED = Path(__file__).parents[2] / "shared/data"
# for each task: the file its rows are from, and the module that grades them
SETS = {
    "code": ("mbpp/mbpp.jsonl", "data.real.programs"),
    "math": ("gsm8k/train.jsonl.gz", "data.tasks.mathematics"),
    "mmlu": ("mmlu/mmlu_all.jsonl.gz", "data.tasks.knowledge"),
    "mine": ("gsm8k/train.jsonl.gz", "data.real.mine"),
}
ROWS = 80
POSITIONS = 512


def real_rows(task: str) -> list[dict]:
    """The first short ones of a published data set; of GSM8K, for "mine", as a user's own."""
    file = SHARED / SETS[task][0]
    if not file.exists():
        pytest.skip(f"the shared data is not here: {file.name}")
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        # MMLU's file begins with its examples
        short = (line for line in lines if len(line) < 400 and '"split": "dev"' not in line)
        rows = [json.loads(line) for line in islice(short, ROWS)]
    if task == "mine":
        rows = [
            {"prompt": row["question"], "answer": row["answer"].rpartition("#### ")[2]}
            for row in rows
        ]
    return rows


def publish(path: Path, family: str, texts: list[str], seed: int) -> None:
    """A random model of the family, with a tokenizer of its own."""
    tokenizer = train_bpe(texts, 1000 + 100 * seed)
    changes = {"vocab_size": tokenizer.size, "max_position_embeddings": POSITIONS}
    config = from_hf(config_of(family, **changes))
    model = Model(config).init_weights(torch.Generator().manual_seed(seed))
    save_model(path, model, tokenizer)


@pytest.fixture(params=SETS)
def place(request, tmp_path) -> tuple[str, Path]:
    """A task, and a directory with real rows of it, a Pythia and a Llama."""
    rows = real_rows(request.param)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [" ".join(map(str, row.values())) for row in rows]
    publish(tmp_path / "pythia", "gpt_neox", texts, 0)
    publish(tmp_path / "llama", "llama", texts, 1)
    return request.param, tmp_path


@pytest.fixture
def graded(monkeypatch) -> Counter:
    """Counts the completions that each module that grades has judged."""
    counts = Counter()

    def counting(module, problems, completions):
        counts[module.__name__] += len(problems)
        if module.__name__ == "data.real.mine":
            assert {problem.grading["grader"] for problem in problems} == {"number"}
        return graders[module](problems, completions)

    graders = {module: module.grade for module in (programs, *data.TASKS.values())}
    for module in graders:
        monkeypatch.setattr(module, "grade", partial(counting, module))
    return counts


def settings_of(path: Path) -> dict:
    run = json.loads((path / "run.json").read_text())
    assert run["finished"]
    return run["settings"]


def family_of(path: Path) -> str:
    load_model(path)
    return json.loads((path / "config.json").read_text())["model_type"]


def check_lengths(cell: Path) -> None:
    """Every length was measured on validation, and chosen by selection."""
    content = json.loads((cell / "cell.json").read_text())
    chosen, rows = content["sequences"], {row["sequences"]: row for row in rows_of(cell, "eval")}
    assert list(content["lengths"]) == ["8", "16"] and list(rows) == [8, 16]
    assert content["lengths"][str(chosen)] == content["results"]["none"]
    assert rows[chosen]["selection"] == max(row["selection"] for row in rows.values())
    for length, measured in content["lengths"].items():
        assert measured["correct"] == rows[int(length)]["validation"] and measured["n"] == 3


def test_a_pythia_and_a_llama_go_through_all_stages(place, graded, monkeypatch):
    monkeypatch.setattr("sampler.PREFILL_ROWS", 4)  # of few prompts that is the time it takes
    task, folder = place
    run = partial(stage, cwd=folder)
    small = ("--max-new-tokens", 6, "--slots", 16, "--no-compile", "--device", "cpu")
    taught = (*small, "--eval-problems", 3)
    mine = ("--grader", "number") if task == "mine" else ()
    rows = ("--task", task, "--data", "rows.jsonl", *mine)

    given = ("--strong-from", "llama", "--weak-from", "pythia", "--out", "base")
    run("train_base", *given, *rows, *taught, "--problems", 4, "--epochs", 1, "--small-epochs", 1)
    made = ("--start", "llama", "--strong", "base/strong", "--weak", "base/weak")
    made = (*made, "--out", "locked", "--problems", 4, "--epochs", 1, "--batch", 4)
    assert "valid" in run("lock", *made, *rows, *taught, code=None)

    # what follows knows task, rows, grader and weak policy from the lock
    cells = ("--locked", "locked", "--k", 2, "--seeds", 0, "--batch", 8, "--out", "sft")
    cells = (*cells, *taught, "--selection-problems", 2, "--sequences", 8, 16)
    printed = run("elicit_sft", *cells, "--measure-all")
    assert "gap recovered" in printed
    check_lengths(folder / "sft/k2-seed0")
    rounds = ("--locked", "locked", "--samples", 10, "--round", 10, "--out", "rl")
    run("elicit_rl", *rounds, *taught)
    [rl] = (folder / "rl").glob("expert_iteration-*seed0")

    tuned = folder / "sft/k2-seed0"
    paths = {"locked": folder / "locked", "sft": tuned, "rl": rl}
    printed = run("evaluate", *paths.values(), "--problems", 3, *small[2:])
    assert "gap recovered against locked" in printed
    for path in paths.values():
        evaluation = json.loads((path / "evaluation.json").read_text())
        assert evaluation["n"] == 3 and evaluation["weights"] == model_hash(path)
        settings = settings_of(path)
        assert (settings["task"], settings["data"]) == (task, ["rows.jsonl"])
        assert settings.get("grader", "") == ("number" if mine else "")
        assert family_of(path) == "llama"
    settings = settings_of(folder / "locked")
    assert settings["start_weights"] == model_hash(folder / "llama")
    assert settings["strong_weights"] == model_hash(folder / "base/strong")
    assert settings["weak_weights"] == model_hash(folder / "base/weak")
    for path in (folder / "base/weak", folder / "sft/control-k2-seed0"):
        settings_of(path)
        assert family_of(path) == "gpt_neox"
    assert len(rows_of(rl, "train")) == 1

    # one module judged every completion, and none is asked for twice
    assert set(+graded) == {SETS[task][1]}
    before = graded.total()
    run("evaluate", "locked", "--problems", 3, *small[2:])
    assert graded.total() == before  # read back
