"""Shared by all tests: one thread, fp32, models of two layers and width 64."""

import os
import random

os.environ["OMP_NUM_THREADS"] = (
    "1"  # before torch and numpy read it, and for the stages that tests start
)

import pytest
import torch

import model as model_module
from data.batches import Example
from data.text import train_bpe
from model import Model, ModelConfig

EOS_SET = list(
    range(0, 300, 8)
)  # for sampling tests: one id in eight ends a completion, so lengths vary


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Tests that share the lock of test_stages run in one process; the others are shared out."""
    for item in items:
        if "work" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("work"))


@pytest.fixture(autouse=True)
def eager():
    """Kernels run eagerly unless a test asks otherwise, whatever a stage's setup() left behind."""
    model_module.compile_kernels = False
    yield
    model_module.compile_kernels = False


@pytest.fixture(scope="session")
def tokenizer():
    """300 ids: 256 bytes, EOS, PAD and a few merges."""
    return train_bpe(
        ["def f(xs):\n    return sorted(xs)[::-1]\n", "Write a function that adds 12 to 345.\n"]
        * 4,
        300,
    )


@pytest.fixture(scope="session")
def make_model():
    def make(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Model:
        """2 layers, width 64, 4 heads on 2 kv heads, untied.

        Weights five times larger than at initialisation, so that tokens differ in probability.
        """
        config = ModelConfig(
            **{
                "vocab_size": 300,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 128,
            }
            | changes
        )
        generator = torch.Generator().manual_seed(seed)
        model = Model(config, dtype).init_weights(generator)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(
                    p * 5 if p.ndim == 2 else 1 + 0.1 * torch.randn(p.shape, generator=generator)
                )
        return model

    return make


@pytest.fixture(scope="session")
def make_examples():
    def make(n: int, seed: int = 0, longest: int = 40) -> list[Example]:
        rng = random.Random(seed)
        ids = lambda: [rng.randrange(2, 300) for _ in range(rng.randint(1, longest // 2))]
        return [Example(ids(), ids() + [0]) for _ in range(n)]

    return make


@pytest.fixture(scope="session")
def same_weights():
    def compare(a: Model, b: Model, **tolerance) -> None:
        """Bitwise, unless a tolerance is given."""
        ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
        assert ours.keys() == theirs.keys()
        for name, p in ours.items():
            torch.testing.assert_close(
                p,
                theirs[name],
                **(tolerance or {"rtol": 0, "atol": 0}),
                msg=lambda m, name=name: f"{name}: {m}",
            )

    return compare
