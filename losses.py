"""Every loss: what it minimises, from log-probs alone. No model, no settings, no randomness.

N supervised tokens, B examples, M pairs. A loss is a sum over its units; the training step divides
it by their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batches import Batch, Example, collate
from model import Model, completion_logps, completion_states, linear_kl


def sft_loss(model: Model, batch: Batch) -> tuple[Tensor, dict]:
    """Cross-entropy of the completion tokens given what precedes them, summed over tokens.

    No loss on prompts (paper appendix C.1).
    """
    return -completion_logps(model, batch).sum(), {}


def document_loss(model: Model, batch: Batch) -> tuple[Tensor, dict]:
    """As sft_loss, but the mean over each completion's tokens, summed over completions.

    A one-letter answer weighs as much as a program.
    """
    lengths = torch.bincount(batch.owner, minlength=batch.examples)
    return -(completion_logps(model, batch) / lengths[batch.owner]).sum(), {}


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
    reads the same completion behind its own prompt, batch.taught; nothing is learnt by it.
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
