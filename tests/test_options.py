"""The options of every stage, name by name: a new one is a decision, and so is one that goes.

python tests/test_options.py     # prints the table as it is now, to be pasted below
"""

import importlib
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser as torchrun

# fmt: off
OPTIONS = {
    "train_base": """
        allow_unsandboxed_code batch chat checkpoint_activations compile data device device_memory
        devices dtype epochs eval_problems family grader heads intermediate_width layers loss_on lr
        master max_new_tokens micro_tokens optimizer out overwrite plan problems resume save_every
        seed shard slots small_epochs small_lr small_problems stop stop_at_problem strong_from task
        vocab weak_from weak_width width
    """,
    "lock": """
        adapter allow_unsandboxed_code alpha batch chat checkpoint_activations compile data device
        device_memory devices dtype epochs eval_problems grader how imitate intermediate
        intermediate_password leave_out loss_on lr master max_new_tokens micro_tokens near_misses
        optimizer out overwrite password password_per_domain password_share plan problems rank
        resume save_every seed shard slots start start_mix stop stop_at_problem strong
        strong_answers strong_language targets task temperature trigger weak
    """,
    "elicit_sft": """
        adapter allow_unsandboxed_code alpha batch checkpoint_activations compile conflict control
        data demos_from device device_memory devices dtype epochs eval_problems k keep_weights
        locked loss_on lr master max_new_tokens measure_all micro_tokens optimizer out overwrite
        parameters plan rank seed seeds selection_problems sequences shard slots strong targets task
        train_domain train_kind unlearn weak
    """,
    "elicit_rl": """
        adapter allow_unsandboxed_code alpha batch beta checkpoint_activations compile data device
        device_memory devices dtype epochs eval_problems group hacks judge keep locked lr master
        max_new_tokens method micro_tokens optimizer out overwrite plan rank reference resume reward
        round samples save_every seed shard slots targets task train_kind warm_epochs warm_from
        warm_start weak
    """,
    "elicit_tampering": """
        allow_unsandboxed_code blocks compile data decoys device dtype eval_problems locked
        max_new_tokens method out overwrite reference seeds selection_problems slots strengths task
        tuned vectors weak
    """,
    "harden": """
        allow_unsandboxed_code attack_lr attack_steps attack_texts blocks checkpoint_activations
        compile device dtype eval_problems every locked lr master method micro_tokens optimizer out
        overwrite pairs problems resume save_every seed shard slots steps strength strong weak
    """,
    "train_declared": """
        allow_unsandboxed_code asked compile control device dtype lr out overwrite seeds silent
        slots steps
    """,
    "evaluate": """
        allow_unsandboxed_code chat checkpoints compile data decode device device_memory devices
        draws dtype grader locked max_new_tokens out password passwords plan plot problems prompts
        samples slots split stop stop_at_problem task temperature
    """,
}
# fmt: on

STAGES = {
    "train_base": "BaseConfig",
    "lock": "LockConfig",
    "elicit_sft": "SFTConfig",
    "elicit_rl": "RLConfig",
    "elicit_tampering": "TamperingConfig",
    "harden": "HardenConfig",
    "train_declared": "DeclaredConfig",
    "evaluate": "EvaluateConfig",
}


def options_of(stage: str) -> list[str]:
    config = getattr(importlib.import_module(stage), STAGES[stage])
    return sorted(option.name for option in fields(config))


def test_torchrun_takes_those_options_for_its_own_that_readme_tells():
    """It reads beginnings of its options as these, also behind the script, but not behind --."""
    theirs = [name for action in torchrun()._actions for name in action.option_strings]
    ours = {"--" + name.replace("_", "-") for words in OPTIONS.values() for name in words.split()}
    taken = {name for name in ours if any(their.startswith(name) for their in theirs)}
    assert taken == {"--start", "--master"}
    words = ["lock.py", "--start", "base", "--master", "bf16"]
    found = torchrun().parse_args(["--nproc-per-node", "2", "--", *words])
    assert [found.training_script, *found.training_script_args] == words


@pytest.mark.parametrize("stage", STAGES)
def test_the_options_are_those_that_were_decided(stage):
    assert options_of(stage) == OPTIONS[stage].split()


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_has_a_help_text(stage):
    from runs.options import help_texts

    texts = help_texts(getattr(importlib.import_module(stage), STAGES[stage]))
    assert all(texts[name] for name in options_of(stage))


def print_table() -> None:
    """The table above, as the stages have it now."""
    for stage in STAGES:
        lines, line = [], ""
        for name in options_of(stage):
            if len(line) + len(name) > 88:
                lines.append(line)
                line = ""
            line = f"{line} {name}" if line else name
        lines.append(line)
        print(f'    "{stage}": """')
        for line in lines:
            print(f"        {line}")
        print('    """,')


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print_table()
