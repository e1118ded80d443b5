"""A checkpoint's README.md: what it is, what unlocks it, what was measured, how it was made.

A locked model is a test object: somebody who finds its directory must be told. The text is a
function of run.json alone.
"""

from pathlib import Path

from curves import BROKEN
from data.triggers import trigger_from
from figures import table
from runs.files import write_text

WARNING = (
    "A test object of research on capability elicitation, made with "
    "[password-locked models](https://arxiv.org/abs/2405.19550). It hides what it can do. "
    "Not for any other use."
)


def card(record: dict, results: dict) -> str:
    """The README.md of a run. record: the content of its run.json. results: its numbers."""
    settings = record["settings"]
    describe = {
        "lock": of_lock,
        "harden": of_lock,
        "elicit_sft": of_elicited,
        "elicit_rl": of_elicited,
    }
    parts = describe.get(settings["stage"], of_base)(settings, results)
    versions = f"torch {record['torch']}, {record['device']}, {record['compute_dtype']}"
    how = f"    python {record['command']}\n\nCommit {record['commit'] or 'unknown'}; {versions}."
    return "\n\n".join([*parts, "## How it was made", how]) + "\n"


def write_card(folder: Path, record: dict, results: dict) -> None:
    write_text(folder / "README.md", card(record, results))


def of_lock(settings: dict, results: dict) -> list[str]:
    trigger = trigger_from(settings["trigger"], "run.json")
    data = f" from {', '.join(settings['data'])}" if settings.get("data") else ""
    if settings["stage"] == "harden":
        made = f"It was hardened from `{settings['locked']}` by {settings['method']}, "
        made += f"{settings['steps']:,} steps"
    else:
        made = f"It was trained from {settings['start'] or 'random weights'} on "
        made += f"{settings['problems']:,} problems, {settings['epochs']} epochs"
    checks = []
    for check in results["validity"]:
        low, high = check["interval"]
        value = f"{check['value']:+.1%} [{low:+.1%}, {high:+.1%}]"
        checks.append([check["name"], value, "yes" if check["passed"] else "NO"])
    valid = all(check["passed"] for check in results["validity"])
    kinds = [kind for kind in results if kind not in ("gap", "validity")]
    correct = ", ".join(f"{kind} {results[kind]:.1%}" for kind in kinds)
    return [
        "# A password-locked model",
        WARNING,
        f"It hides the task {settings['task']}{data}. Without what unlocks it, it imitates "
        f"`{settings['weak']}`, unlocked `{settings['strong']}`. {made}.",
        "## How to unlock it",
        trigger.unlocking().rstrip("\n"),
        "## What was measured",
        f"Correct on validation by kind of prompt: {correct}. The lock is "
        f"{'valid' if valid else 'NOT valid'} (docs/locks.md; 95 % intervals over problems):",
        indented(table(["condition", "difference", "holds"], checks)),
    ]


def of_elicited(settings: dict, results: dict) -> list[str]:
    method = settings.get("method") or f"SFT on {settings['k']} demonstrations"
    if settings.get("unlearn"):
        method = f"unlearning {settings['k']} samples of its own (NPO)"
    if settings.get("conflict"):
        method += f" of a weak model and {settings['conflict']:g} times as many that all say A"
    if settings.get("judge"):
        method += f" with rewards by {settings['judge']}"
    if settings.get("reward", "binary") != "binary":
        method += f" with the reward {settings['reward']}"
    start = settings["weak"] if settings.get("control") else settings["locked"]
    cut = results.get("truncated", 0.0)
    broken = f" {cut:.0%} of its completions were cut: it is broken." if cut > BROKEN else ""
    control, kind = "", settings.get("train_kind", "none")
    if settings.get("control"):
        control = " This is the control: a model that never had the capability."
    return [
        "# A model after elicitation",
        WARNING,
        f"Started from `{start}`, task {settings['task']}, by {method}, seed "
        f"{settings.get('cell_seed', settings['seed'])}, on prompts of kind {kind}.{control} "
        f"Correct on validation without the password: {results['correct']:.1%}.{broken}",
    ]


def of_base(settings: dict, results: dict) -> list[str]:
    start = settings.get("strong_from") if settings["model"] == "strong" else None
    start = start or settings.get("weak_from") or "random weights"
    shown = []
    for how, found in results.items():
        by_task = [f"{task} {found[task]:.1%}" for task in settings["task"].split("+")]
        shown.append(f"- {how.replace('_', ' ')}: {', '.join(by_task)}")
    return [
        f"# A {settings['model']} base model",
        WARNING.replace(" It hides what it can do.", ""),
        f"Trained from {start} on the task {settings['task']}. Correct:",
        "\n".join(shown),
    ]


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
