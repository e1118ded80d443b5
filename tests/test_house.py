"""The rules of the house that a command can check, and the examples of docs/extending.md."""

import ast
import re
import sys
from itertools import islice
from pathlib import Path

import pytest

import data
import evaluate
import policies
from runs import launch

ROOT = Path(__file__).parents[1]
STAGES = {"train_base", "lock", "elicit_sft", "elicit_rl", "evaluate"}
# each noun reads only those before it
NOUNS = ("model", "files", "lora", "sampler", "families", "checkpoints", "losses", "options")
NOUNS += ("devices", "states", "runs")
NOUNS += ("training", "policies", "results", "origins", "figures", "curves", "cards")


def imports(file: Path) -> set[str]:
    """The modules of this repository that a file imports, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    own = {path.stem for path in ROOT.glob("*.py")} | {"data"}
    return found & own


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_no_stage_imports_a_stage(stage):
    assert not imports(ROOT / f"{stage}.py") & STAGES


def test_a_noun_imports_no_stage():
    for file in ROOT.glob("*.py"):
        if file.stem not in STAGES:
            assert not imports(file) & STAGES, file


def test_a_noun_imports_only_nouns_before_it():
    assert set(NOUNS) == {file.stem for file in ROOT.glob("*.py")} - STAGES
    for place, noun in enumerate(NOUNS):
        assert imports(ROOT / f"{noun}.py") <= {"data", *NOUNS[:place]}, noun


def test_data_imports_nothing_above_it():
    for file in (ROOT / "data").rglob("*.py"):
        assert imports(file) <= {"data"}, file


def blocks() -> list[str]:
    text = (ROOT / "docs/extending.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_task_of_the_docs(monkeypatch):
    module = type(sys)("reversal")
    exec(blocks()[0], vars(module))
    monkeypatch.setitem(data.TASKS, "reversal", module)
    problems = data.load("reversal", "lock", 5)
    assert len({problem.key for problem in problems}) == 5
    answers = [problem.reference for problem in problems]
    assert data.grade(problems, answers) == [True] * 5
    assert data.grade(problems, answers[1:] + answers[:1]) == [False] * 5
    assert len(list(islice(module.problems(0), 3))) == 3


def test_the_lock_and_the_elicitor_of_the_docs(tmp_path, monkeypatch, capsys):
    """In an empty directory, the one after the other, as a reader would run them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/base").symlink_to(ROOT / "data/base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(policies.RULES, "next", None)  # removed at the end

    small = "--problems 48 --epochs 1 --eval-problems 8 --weak next --out out/next --device cpu"
    small += " --no-compile --slots 16"
    monkeypatch.setattr(sys, "argv", ["lock_next.py", *small.split()])
    with pytest.raises(SystemExit) as ended:
        exec(blocks()[1], {"__name__": "__main__"})
    assert ended.value.code == 1  # one epoch makes no valid lock
    assert "weak policy, next" in capsys.readouterr().out

    card = (tmp_path / "out/next/README.md").read_text()
    assert "imitates `next`" in card and "    What is 2 + 2?\n    This problem is quite" in card
    assert "The lock is NOT valid" in card and "python lock_next.py --problems 48" in card

    exec(blocks()[2], {"__name__": "__main__"})
    command = "evaluate.py out/noise --locked out/next --problems 8 --no-compile --slots 16"
    command += " --device cpu"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as ended:
        launch(evaluate.main, evaluate.EvaluateConfig)
    assert ended.value.code == 0
    assert "out/noise" in capsys.readouterr().out
