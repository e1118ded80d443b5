"""The rules of the house that a command can check, and the examples of docs/extending.md.

PYTHONPATH=. python tests/test_house.py   # counts the code: lines, comments, comprehensions, ...
"""

import ast
import json
import re
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

import data
import evaluate
import policies
import reproduce
from checkpoints.hf import load_model
from runs.launch import launch
from study import gate, matrix, paper, siblings

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
STAGES = {"train_base", "lock", "elicit_sft", "elicit_rl", "elicit_tampering"}
STAGES |= {"evaluate", "harden", "reproduce", "train_declared"}
PACKAGES = ("checkpoints", "methods", "runs", "study")
# each noun reads only those before it
NOUNS = """
    model runs.files lora sampler methods.tampering checkpoints.families checkpoints.hf losses
    runs.options runs.devices runs.launch runs.states runs.directory optimizers training policies
    results checkpoints.origins figures methods.locking methods.unlearning methods.rewards
    methods.prompting methods.decoding runs.plan curves methods.deception checkpoints.cards
    study.jobs study.paper study.findings study.claims study.report study.matrix study.game
    study.gate study.siblings study.sections study.case
""".split()


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def nouns_here() -> set[str]:
    """The modules at the top and in the packages beside data/, but for the stages."""
    files = set(ROOT.glob("*.py"))
    for package in PACKAGES:
        files |= set((ROOT / package).glob("*.py")) - {ROOT / package / "__init__.py"}
    return {name_of(file) for file in files} - STAGES


def imports(file: Path) -> set[str]:
    """The modules of this repository that a file imports; of data/ no more than that."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = found & (nouns_here() | STAGES)
    return own | ({"data"} if any(name.split(".")[0] == "data" for name in found) else set())


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_no_stage_imports_a_stage(stage):
    assert not imports(ROOT / f"{stage}.py") & STAGES


def test_a_noun_imports_only_nouns_before_it():
    assert set(NOUNS) == nouns_here()
    for place, noun in enumerate(NOUNS):
        file = ROOT / f"{noun.replace('.', '/')}.py"
        assert imports(file) <= {"data", *NOUNS[:place]}, noun


def test_a_package_says_what_it_holds_and_imports_nothing():
    for package in PACKAGES:
        tree = ast.parse((ROOT / package / "__init__.py").read_text())
        assert len(tree.body) == 1
        said = set(re.findall(r"^([a-z]+)\.py  ", ast.get_docstring(tree), re.MULTILINE))
        assert {f"{package}.{name}" for name in said} == {
            name for name in nouns_here() if name.startswith(f"{package}.")
        }


def test_data_imports_nothing_above_it():
    for file in (ROOT / "data").rglob("*.py"):
        assert imports(file) <= {"data"}, file


# ----------------------------------------------------------------------------------------- counting

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def documented(tree: ast.Module) -> set[int]:
    """The numbers of the lines that are docstrings."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            found |= set(range(text.lineno, text.end_lineno + 1))
    return found


def functions_of(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def counted(files: list[Path]) -> dict[str, float]:
    """Lines in all; of 100 lines those over 100 columns; of 100 lines of code those with a comment
    alone, and the comprehensions; of 100 lines in functions the blank ones; the longest function.
    """
    total = long = code = comments = comprehensions = within = blank = longest = 0
    for file in files:
        tree, lines = ast.parse(file.read_text()), file.read_text().splitlines()
        total += len(lines)
        long += sum(len(line) > 100 for line in lines)
        comments += sum(line.strip().startswith("#") for line in lines)
        text = documented(tree)
        for number, line in enumerate(lines, 1):
            code += bool(line.strip()) and not line.strip().startswith("#") and number not in text
        comprehensions += sum(isinstance(node, COMPREHENSIONS) for node in ast.walk(tree))
        for function in functions_of(tree):
            body = lines[function.lineno - 1 : function.end_lineno]
            longest = max(longest, len(body))
            within += len(body)
            blank += sum(not line.strip() for line in body)
    return {
        "lines": total,
        "over 100 columns, %": round(100 * long / total, 1),
        "comments": round(100 * comments / code, 1),
        "comprehensions": round(100 * comprehensions / code, 1),
        "blank, %": round(100 * blank / within, 1),
        "longest function": longest,
    }


def files_of(*packages: str) -> list[Path]:
    return sorted(file for package in packages for file in (ROOT / package).rglob("*.py"))


COUNTED = {
    "top level": sorted(ROOT.glob("*.py")),
    "packages": files_of(*PACKAGES),
    "data": files_of("data"),
}


@pytest.mark.parametrize("files", COUNTED.values(), ids=COUNTED)
def test_no_line_is_wide_no_function_long_and_the_code_is_not_dense(files):
    found = counted(files)
    assert found["over 100 columns, %"] == 0 and found["longest function"] <= 70
    assert found["comprehensions"] <= 5


# ----------------------------------------------------------------- docs/files.md, docs/extending.md


def test_no_line_of_prose_is_wide():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        wide = [line for line in page.read_text().splitlines() if len(line) > 100]
        prose = [line for line in wide if not line.startswith(("|", "#", "    ", "!["))]
        assert prose == [], page


def test_the_example_of_docs_files_gives_the_gap_recovered(capsys, monkeypatch):
    """Of results that are in the repository, whose table says the same."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/files.md").read_text(), re.DOTALL)[1]
    done = ROOT / "docs/reproduced/code"
    paths = [done / "locked/evaluation.json", done / "sft/seed0/k8-seed0/cell.json"]
    monkeypatch.setattr(sys, "argv", ["gap.py", *map(str, paths)])
    exec(code, {})
    table = json.loads((done / "sft/seed0/summary.json").read_text())["cells"]["k8"]
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(table["gap_recovered"])


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
    monkeypatch.setitem(policies.RULES, "neighbour", None)  # removed at the end

    small = "--problems 48 --epochs 1 --eval-problems 8 --weak neighbour --out out/neighbour"
    small += " --device cpu --no-compile --slots 16"
    monkeypatch.setattr(sys, "argv", ["lock_neighbour.py", *small.split()])
    with pytest.raises(SystemExit) as ended:
        exec(blocks()[1], {"__name__": "__main__"})
    assert ended.value.code == 1  # one epoch makes no valid lock
    assert "weak policy, neighbour" in capsys.readouterr().out

    card = (tmp_path / "out/neighbour/README.md").read_text()
    assert (
        "imitates `neighbour`" in card and "    What is 2 + 2?\n    This problem is quite" in card
    )
    assert "The lock is NOT valid" in card and "python lock_neighbour.py --problems 48" in card

    exec(blocks()[2], {"__name__": "__main__"})
    command = "evaluate.py out/noise --locked out/neighbour --problems 8 --no-compile --slots 16"
    command += " --device cpu"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as ended:
        launch(evaluate.main, evaluate.EvaluateConfig)
    assert ended.value.code == 0
    assert "out/noise" in capsys.readouterr().out


def test_the_fine_tuning_of_the_docs(tmp_path, monkeypatch, capsys):
    weak = ROOT / "data/base/weak"
    monkeypatch.setattr(sys, "argv", ["elicit_last_block.py", str(weak), str(tmp_path / "last")])
    exec(blocks()[3], {"__name__": "__main__"})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 64 and losses[-1] < losses[0]
    before, after = (load_model(path, CPU, torch.float32)[0] for path in (weak, tmp_path / "last"))
    changed = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters())
        if not torch.equal(old, new)
    }
    last = len(before.model.layers) - 1
    assert changed and all(name.startswith(f"model.layers.{last}.") for name in changed)


def test_the_figure_of_the_docs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paper, "COMMANDS", dict(paper.COMMANDS))
    command = f"reproduce_rank.py --figure lora --list --out {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", command.split())
    try:
        with pytest.raises(SystemExit) as ended:
            exec(blocks()[4], {"__name__": "__main__"})
    finally:
        del paper.FIGURES["lora"]
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "0 of 7" in printed and "--rank 8 --no-control" in printed


def test_the_lock_and_the_elicitor_of_the_matrix_of_the_docs(tmp_path, monkeypatch, capsys):
    for name in ("LOCKS", "ELICITORS"):
        copied = dict(getattr(matrix, name))
        for module in (matrix, reproduce, gate, siblings):
            monkeypatch.setattr(module, name, copied, raising=False)
    command = "reproduce_mine.py --matrix --locks password long --elicitors sft8 lora --seeds 0"
    command += f" --list --out {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as ended:
        exec(blocks()[5], {"__name__": "__main__"})
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--locked @matrix/long --k 8 --rank 8" in printed
    # two locks, the twin as it is, and two elicitors on each
    assert "0 of 9" in printed


if __name__ == "__main__":
    for name, files in COUNTED.items():
        print(f"{name}: {counted(files)}")
