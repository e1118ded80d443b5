"""How large a step is and where it goes: AdamW, Muon, Lion, the usual rates, the schedule."""

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from data.problems import InputError
from model import Model, kernel, local


@kernel(dynamic=True)
def lion_update(
    p: Tensor, grad: Tensor, momentum: Tensor, lr: Tensor, decay: Tensor, beta1: float, beta2: float
) -> None:
    """Lion (Chen et al. 2023), in place on flat fp32 tensors.

    p -= lr (sign(beta1 m + (1 - beta1) g) + decay p);  m = beta2 m + (1 - beta2) g
    """
    p.sub_(lr * (torch.lerp(grad, momentum, beta1).sign() + decay * p))
    momentum.lerp_(grad, 1 - beta2)


def rounded(value: Tensor, noise: Tensor) -> Tensor:
    """fp32 -> bf16, to one of the two neighbours: at random, so that the mean is the value.

    A bf16 number is the upper half of an fp32 one. noise: int32, uniform in 0 to 2**16 - 1; where
    its sum with the lower half carries, the result is the neighbour that is further from 0.
    """
    bits = value.contiguous().view(torch.int32) + noise
    return (bits & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


@kernel(dynamic=True)
def lion_update_bf16(
    p: Tensor,
    grad: Tensor,
    momentum: Tensor,
    noise: Tensor,
    lr: Tensor,
    decay: Tensor,
    beta1: float,
    beta2: float,
) -> None:
    """`lion_update` of bf16 tensors: computed in fp32, both results rounded at random.

    noise: int32, uniform over all its values; its halves round the weight and the momentum.
    """
    weight, g, m = p.float(), grad.float(), momentum.float()
    step = lr * (torch.lerp(g, m, beta1).sign() + decay * weight)
    p.copy_(rounded(weight - step, noise & 0xFFFF))
    momentum.copy_(rounded(torch.lerp(m, g, 1 - beta2), (noise >> 16) & 0xFFFF))


PIECE = 1 << 24  # numbers that Lion updates at a time in bf16, which bounds its fp32 copies


class Lion(torch.optim.Optimizer):
    """The paper's optimiser (G.1): the sign of an interpolated momentum, one moment of state.

    Weights of bf16 have a momentum of bf16, and are updated by stochastic rounding. At the paper's
    learning rate a step is a hundredth of the distance between two bf16 numbers: rounded to the
    nearest it would always be lost, so it is made in one case of a hundred. The random numbers are
    a function of (seed, step), and of the rank where weights are sharded.
    """

    def __init__(
        self,
        params,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.seed = seed
        self.generator: torch.Generator | None = None  # of the present step, once it is needed

    @torch.no_grad()
    def step(self) -> None:
        self.generator = None
        for group in self.param_groups:
            device = group["params"][0].device
            # as tensors: a Python float that changes would recompile the kernel; made on the
            # device, because a copy from the host would wait for it
            lr = torch.full((), group["lr"], device=device)
            decay = torch.full((), group["weight_decay"], device=device)
            beta1, beta2 = group["betas"]

            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                weight, momentum = local(p).view(-1), local(state["momentum"]).view(-1)
                grad = local(p.grad).reshape(-1)
                if p.dtype != torch.bfloat16:
                    lion_update(weight, grad, momentum, lr, decay, beta1, beta2)
                    continue
                # saved with the state, so that a resumed run goes on with the numbers that follow
                step = int(state.get("step", 0)) + 1
                state["step"] = torch.tensor(step)
                pieces = zip(weight.split(PIECE), grad.split(PIECE), momentum.split(PIECE))
                for w, g, m in pieces:
                    noise = self.noise(p, len(w), step)
                    lion_update_bf16(w, g, m, noise, lr, decay, beta1, beta2)

    def noise(self, p: Tensor, count: int, step: int) -> Tensor:
        """The next random numbers of this step, for a part of p: int32 (count,)."""
        if self.generator is None:
            rank = dist.get_rank() if isinstance(p, DTensor) else 0
            start = np.random.default_rng([self.seed, 16, step, rank]).integers(2**63)
            self.generator = torch.Generator(p.device).manual_seed(int(start))
        most = 1 << 31
        return torch.randint(
            -most, most, (count,), dtype=torch.int32, device=p.device, generator=self.generator
        )


# A quintic a x + b x^3 + c x^5 that takes singular values between 0 and 1 towards 1 (Jordan et al.
# 2024). After five applications one of at least 0.005 of the matrix's norm lies between 0.7 and
# 1.2; a smaller one is multiplied by at most 3.4445^5 = 485.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix with the same singular vectors and all singular values close to 1.

    Tiny ones stay below it. Computed in dtype.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): momentum's step of a matrix, made orthogonal; one moment of state.

    The step is as large as AdamW's would be (Liu et al. 2025, "Muon is scalable", equation 4), so
    that one learning rate serves all shapes. The same bits as torch.optim.Muon where dtype is bf16;
    that computes in bf16 everywhere, which took a third of all training on a CPU without it.
    """

    def __init__(self, params, lr: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                ahead = p.grad.lerp(state["momentum_buffer"], momentum)  # Nesterov's
                p.mul_(1 - lr * group["weight_decay"])
                size = 0.2 * math.sqrt(max(p.shape))
                p.add_(orthogonal(ahead, self.dtype), alpha=-lr * size)


def decay_groups(parameters: list[Tensor], weight_decay: float) -> list[dict]:
    """An optimiser's parameter groups: matrices decay, vectors (of the norms) do not."""
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizers(
    model: Model, name: str, lr: float, weight_decay: float = 0.01, seed: int = 0
) -> list[torch.optim.Optimizer]:
    """adamw | lion | muon. muon: Muon on the blocks' matrices, AdamW on the rest, both at lr.

    seed: of the random rounding of bf16 weights, which only Lion has.
    """
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if name == "lion":
        return [Lion(decay_groups([p for _, p in trained], weight_decay), lr=lr, seed=seed)]
    if name == "adamw":
        return [adamw([p for _, p in trained], lr, weight_decay)]

    # embedding and head are rows of a table, not maps between activations: no orthogonal steps
    matrices, rest = [], []
    for n, p in trained:
        is_vocabulary = "embed_tokens" in n or "lm_head" in n
        if p.ndim == 2 and not is_vocabulary:
            matrices.append(p)
        else:
            rest.append(p)
    muon = Muon(matrices, lr, weight_decay, model.compute_dtype)
    return [muon, adamw(rest, lr, weight_decay)] if rest else [muon]  # LoRA trains matrices alone


def adamw(parameters: list[Tensor], lr: float, weight_decay: float) -> torch.optim.AdamW:
    groups = decay_groups(parameters, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


MEDIUM, LARGE = 100_000_000, 1_000_000_000  # parameters
# An adapter takes larger steps than the weights it stands for. On 8 demonstrations, where 1.5e-4 is
# usual, 2.5e-4 to 1e-3 did equally well on the selection split, 1.5e-3 and more worse.
LORA_FACTOR = 3


def usual_step(
    optimizer: str,
    lr: float,
    parameters: int,
    tiny: tuple[str, float],
    rank: int = 0,
    flag: str = "--lr",
) -> tuple[str, float]:
    """Optimiser and learning rate as given, or the usual ones for a model of so many parameters.

    optimizer "", lr 0: not given. tiny: what the stage was tuned to with models of 1 M. What moves
    those would destroy a large model. Of MEDIUM size, AdamW at 1e-4: it locked and unlocked one of
    135 M (docs/NOTES.md). From LARGE on the paper's Lion at 1.5e-6 (appendix G.1).

    With LoRA's rank always AdamW: at LORA_FACTOR times those rates, and from LARGE on at 1e-4,
    which is common and untried here. Raises InputError for an optimiser without a learning rate:
    the usual one belongs to the usual one.
    """
    if optimizer and not lr:
        raise InputError(f"--optimizer {optimizer}: name its learning rate, too, with {flag}")
    usual = tiny
    if parameters >= MEDIUM:
        usual = "adamw", 1e-4
    if rank:
        usual = "adamw", LORA_FACTOR * usual[1]
    if parameters >= LARGE:
        usual = ("adamw", 1e-4) if rank else ("lion", 1.5e-6)
    return optimizer or usual[0], lr or usual[1]


def schedule(step: int, steps: int, warmup: int, decay: float = 0.0) -> float:
    """Factor on the learning rate at `step`, counted from 0.

    A linear rise over `warmup` steps, then 1, then linear to 0 over the last `decay` share of all.
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * min(1.0, (steps - step) / max(1.0, decay * steps))


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Every group's learning rate: `factor` times the one that it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor
