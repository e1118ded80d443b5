"""Every loss: what it minimises, from log-probs alone. No model, no settings, no randomness.

N supervised tokens, B examples, M pairs. A loss is a sum over its units; the training step divides
it by their number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batches import Batch, Example, collate
from model import (
    Model,
    block_states,
    completion_logps,
    completion_states,
    linear_kl,
    linear_logps,
)


def sft_loss(model: Model, batch: Batch) -> tuple[Tensor, dict]:
    """Cross-entropy of the completion tokens given what precedes them, summed over tokens.

    No loss on prompts (paper appendix C.1).
    """
    return -completion_logps(model, batch).sum(), {}


def document_loss(model: Model, batch: Batch) -> tuple[Tensor, dict]:
    """As sft_loss, but the mean over each completion's tokens, summed over completions.

    A one-letter answer weighs as much as a program.
    """
    return -means_by_example(completion_logps(model, batch), batch).sum(), {}


@dataclass(frozen=True)
class Teacher:
    """A policy whose next-token distribution is softmax(states(batch) head^T).

    states: of a batch of N supervised positions -> (N,D). head: (V,D), asked after the states.
    divided: over the ranks, which must all ask for states where one does.
    """

    states: Callable[[Batch], Tensor]
    head: Callable[[], Tensor]
    divided: bool = False


def distribution_loss(
    model: Model, batch: Batch, teachers: Sequence[Teacher]
) -> tuple[Tensor, dict]:
    """KL(teacher || model) at every completion position, summed over positions (paper B.2, G.2).

    In expectation over samples of the teacher it has the gradient of sft_loss on them. The teacher
    reads the same completion after its own prompt, batch.taught; nothing is learnt by it.
    """
    states, head = completion_states(model, batch), model.head_weight
    losses = []
    for number, teacher in enumerate(teachers):
        part = batch.taught.get(number)
        if not part and not teacher.divided:
            continue
        asked = part.asked if part else collate([Example([0], [0])]).to(states.device)
        with torch.no_grad():
            theirs = teacher.states(asked)
        if part:
            losses.append(linear_kl(states[part.positions], head, theirs, teacher.head()).sum())

    if not losses:  # of a rank without work: the model against itself, which is 0
        return linear_kl(states, head, states, head).sum(), {}
    return torch.stack(losses).sum(), {}


def sums_by_example(values: Tensor, batch: Batch) -> Tensor:
    """Per-token values (N,) added up for each example -> (B,)."""
    return torch.zeros(batch.examples, device=values.device).index_add(0, batch.owner, values)


def means_by_example(values: Tensor, batch: Batch) -> Tensor:
    """The mean of per-token values (N,) over each example's tokens -> (B,)."""
    # not torch.bincount, for which a CUDA device makes the host wait
    lengths = sums_by_example(torch.ones_like(values), batch)
    return sums_by_example(values, batch) / lengths


def locking_loss(model: Model, batch: Batch) -> tuple[Tensor, dict]:
    """Equation 1 on pairs: -log p of the weak text (rows 2i) and of the strong one (rows 2i + 1).

    The mean over each text's tokens, summed over pairs, so that a short side counts as a long one.
    """
    nll = -means_by_example(completion_logps(model, batch), batch)
    return nll.sum(), {"weak": nll[0::2].sum(), "strong": nll[1::2].sum()}


def rerouting(ours: Tensor, theirs: Tensor) -> Tensor:
    """max(0, cos) of two states (...,C) -> (...): 1 where they are alike, 0 from a right angle on.

    Representation rerouting (Zou et al. 2024, arXiv 2406.04313). It has no gradient where the two
    are equal, so training must not start there.
    """
    return F.cosine_similarity(ours.float(), theirs.float(), dim=-1).relu()


def retention(ours: Tensor, theirs: Tensor) -> Tensor:
    """The distance of two states (...,C), as a share of the second's length -> (...).

    The published loss takes the distance itself. In the shipped models of 1 M parameters that was
    130 where the cosine was .94: it outweighed the cosine and drove it up again, to .98.
    """
    return (ours.float() - theirs.float()).norm(dim=-1) / theirs.float().norm(dim=-1)


def reroute_loss(
    model: Model,
    batch: Batch,
    reference: Model,
    blocks: Sequence[int],
    push: float,
    keep: float,
) -> tuple[Tensor, dict]:
    """push rerouting on rows 2i + keep retention on rows 2i + 1, both from the reference's states.

    Rows 2i are good texts without the password, rows 2i + 1 the same with it, whose -log p is
    added: the password half of equation 1. Rerouting is the mean over the given blocks, retention
    over all; each the mean over a text's tokens, summed over pairs.
    """
    hidden, ours = block_states(model, batch)
    with torch.no_grad():
        _, theirs = block_states(reference, batch)
    chosen = list(blocks)
    alike = means_by_example(rerouting(ours[chosen], theirs[chosen]).mean(0), batch)[0::2].sum()
    moved = means_by_example(retention(ours, theirs).mean(0), batch)[1::2].sum()
    logps = linear_logps(hidden, model.head_weight, batch.targets)
    strong = -means_by_example(logps, batch)[1::2].sum()
    loss = push * alike + keep * moved + strong
    return loss, {"reroute": alike, "retain": moved, "strong": strong}


def tamper_weight(step: int, steps: int) -> float:
    """exp((k - K + 1) / 16) at attack step k of K: what late in the attack is weighs most.

    Tamirisa et al. 2024 (TAR, arXiv 2408.00761), of their code.
    """
    return math.exp((step - steps + 1) / 16)


def dpo_loss(
    policy: Tensor, reference: Tensor, weights: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """-weight log sigmoid(margin), summed over M pairs; and the margins (M,).

    The margin is beta (chosen's lead over its reference - rejected's lead). policy, reference
    (2M,): sequence log-probs, chosen in even rows, rejected in odd ones. weights (M,): 1, or the
    difference in reward (paper B.3.1). Rafailov et al. 2023, equation 7; equal models give ln 2 for
    each pair.
    """
    lead = policy - reference
    margins = beta * (lead[0::2] - lead[1::2])
    return -(weights * F.logsigmoid(margins)).sum(), margins


def dpo_step(model: Model, batch: Batch, beta: float) -> tuple[Tensor, dict]:
    """dpo_loss of a batch whose rows 2i and 2i + 1 are a pair; its log-probs: the reference's."""
    policy = sums_by_example(completion_logps(model, batch), batch)
    reference = sums_by_example(batch.logps, batch)
    loss, margins = dpo_loss(policy, reference, batch.weights[0::2], beta)
    return loss, {
        "margin": margins.sum(),
        "accuracy": (margins > 0).float().sum(),
        "chosen": policy[0::2].sum(),
        "rejected": policy[1::2].sum(),
    }


def npo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-(2 / beta) log sigmoid(-beta (log p - log p_ref)), summed over B texts to be unlearnt.

    Negative preference optimisation (Zhang et al. 2024, arXiv 2404.05868): 2 / beta times dpo_loss
    of pairs whose chosen text has no lead. policy, reference (B,): sequence log-probs. Equal models
    give 2 ln 2 / beta for each text, with the gradient of gradient ascent, that of +log p; as p
    falls, loss and gradient go to 0, where ascent would go on.
    """
    return -2 / beta * F.logsigmoid(beta * (reference - policy)).sum()


def npo_step(model: Model, batch: Batch, beta: float) -> tuple[Tensor, dict]:
    """npo_loss of a batch; its log-probs: the reference's. lead: log p - log p_ref, summed."""
    policy = sums_by_example(completion_logps(model, batch), batch)
    reference = sums_by_example(batch.logps, batch)
    return npo_loss(policy, reference, beta), {"lead": (policy - reference).sum()}


CLIP_RATIO = 0.2  # a token whose probability changed by more adds no gradient


def grpo_loss(
    policy: Tensor, old: Tensor, advantages: Tensor, clip_ratio: float
) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - c, 1 + c) A) summed over N tokens, r = exp(policy - old).

    And the number of tokens where the clip held. Shao et al. 2024, equation 3, without its KL term.
    policy, old, advantages (N,), per token.
    """
    ratio = (policy - old).exp()
    free = ratio * advantages
    held = ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages
    return -torch.minimum(free, held).sum(), (held < free).float().sum()


def grpo_step(model: Model, batch: Batch, clip_ratio: float, longest: int) -> tuple[Tensor, dict]:
    """grpo_loss of a batch, divided by the longest possible completion, a constant.

    The batch's log-probs are those of the policy that sampled it, its weights the advantages.
    """
    policy = completion_logps(model, batch)
    advantages = batch.weights[batch.owner]
    loss, clipped = grpo_loss(policy, batch.logps, advantages, clip_ratio)
    share = clipped / len(batch.targets)
    return loss / longest, {"clipped": share * batch.examples}
