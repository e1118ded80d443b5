"""Other people's tools give the same correctness: docs/interop.md, as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from results import verdicts_of

ROOT = Path(__file__).parents[1]
N = 100


@pytest.mark.parametrize(
    "model, task, judge, metric",
    [("weak", "mmlu", "locked", "exact_match"), ("intermediate", "code", "graded", "right")],
)
def test_lm_evaluation_harness_agrees_on_every_problem(tmp_path, model, task, judge, metric):
    """Of models that are right in a part of all cases."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    text = (ROOT / "docs/interop.md").read_text()
    for name in ("problems.py", f"{judge}.yaml"):
        [block] = re.findall(rf"```\w+\n(# {re.escape(name)}\n.*?)```", text, re.DOTALL)
        (tmp_path / name).write_text(block.replace("test: problems.jsonl", f"test: {tmp_path}/p"))

    own = {"PYTHONPATH": ".", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}

    def run(*words: str) -> str:
        command, environment = [sys.executable, *words], dict(os.environ, **own)
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert found.returncode == 0, found.stderr
        return found.stdout

    (tmp_path / "p").write_text(run(str(tmp_path / "problems.py"), task, str(N)))
    words = ["--model", "hf", "--model_args", f"pretrained=data/base/{model},dtype=float32"]
    words += ["--tasks", judge, "--include_path", str(tmp_path), "--device", "cpu"]
    words += ["--batch_size", "50", "--output_path", str(tmp_path / "theirs"), "--log_samples"]
    run("-m", "lm_eval", "run", *words)
    [file] = (tmp_path / "theirs").rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    theirs = [row[metric] == 1 for row in sorted(rows, key=lambda row: row["doc_id"])]

    words = [f"data/base/{model}", "--task", task, "--problems", str(N), "--passwords", "none"]
    run("evaluate.py", *words, "--dtype", "fp32", "--out", str(tmp_path / "ours"))
    [file] = (tmp_path / "ours").rglob("evaluation.json")
    ours = verdicts_of(json.loads(file.read_text()), "none").tolist()
    assert len(ours) == len(theirs) == N and 10 < sum(ours) < 90
    assert theirs == ours
