"""Shared by all tests: one thread, fp32, models of two layers and width 64."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

# before torch and numpy read it, and for the stages that tests start
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

import model as model_module
from data.batches import Example
from data.text import train_bpe
from model import Model, ModelConfig

# for sampling tests: one id in eight ends a completion, so lengths vary
EOS_SET = list(range(0, 300, 8))


# made once: the lock of test_stages, the two runs that an interrupted one is compared with, the
# attacks on the sandbox
COSTLY = ("work", "straight_rl", "straight_lock", "outcomes")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Tests that share a costly fixture run in one process; the others are shared out."""
    for item in items:
        for name in COSTLY:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(autouse=True)
def eager():
    """Kernels run eagerly unless a test asks otherwise, whatever a stage's setup() left behind."""
    model_module.compile_kernels = False
    yield
    model_module.compile_kernels = False


class Killed(Exception):
    """Raised in a run to stop it there, as kill does."""


def full_disk(*args, **kwargs):
    """In place of what writes to a disk."""
    raise OSError(28, "No space left on device")


def anonymous_memory() -> int:
    """Bytes of this process that no file is behind, without those that it has freed."""
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon")


class Ranks:
    """Processes forked from this one, which saves the seconds that importing torch takes.

    They work on the CPU: one that CUDA was opened in cannot be forked.
    """

    def __init__(self, work: Callable[[], None], count: int, folder: Path):
        """`count` processes that call work(), with torchrun's variables if there is more than one.

        What rank r prints goes to folder/rank<r>.txt.
        """
        self.files = [folder / f"rank{rank}.txt" for rank in range(count)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pids = []
        for rank in range(count):
            pid = os.fork()
            if pid == 0:
                self._run(work, rank, count, port)
            self.pids.append(pid)

    def _run(self, work: Callable[[], None], rank: int, count: int, port: int) -> None:
        """Never returns."""
        code = 1
        try:
            sys.stdout = sys.stderr = self.files[rank].open("w", buffering=1)
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stdout.fileno(), 2)
            if count > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(count), "MASTER_PORT": str(port)}
                os.environ["MASTER_ADDR"] = "127.0.0.1"
            work()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # none of what pytest does at its end

    def wait(self) -> int:
        """The largest exit code, a signal's negative; the ranks are no more."""
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]
        self.pids = []
        return max(codes, key=abs)

    def kill(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.pids:
            self.wait()

    def printed(self) -> str:
        return "".join(file.read_text() for file in self.files if file.exists())


@pytest.fixture
def start_ranks(tmp_path_factory):
    """A function that starts Ranks; those that are left at the end of the test are killed."""
    started = []

    def start(work: Callable[[], None], count: int = 1) -> Ranks:
        started.append(Ranks(work, count, tmp_path_factory.mktemp("ranks")))
        return started[-1]

    yield start
    for ranks in started:
        ranks.kill()


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
