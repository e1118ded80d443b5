"""Speed and memory of this repository against transformers, TRL and plain PyTorch, one machine.

    python tests/bench.py                     # the short table; 3 minutes of 2 quiet cores
    python tests/bench.py train --repeats 9   # a section in full, narrower spread
    SMOLLM2=DIR python tests/bench.py real    # a model that nobody here trained
    python tests/bench.py gpu                 # one H100 or H200; skipped without CUDA
    python tests/bench.py --quick             # tiny sizes: shows only that it runs
    python tests/bench.py --json FILE         # also writes the table

Variants run in turn (A B A B ...) in one process, every shape warm. ours, peer: medians. ratio: how
many times better ours is (more per second, or less time or memory), median over the alternations
[lowest, highest]. Each row names the size, the dtype, the peer and the versions of both. Other load
on the machine falsifies it: the header shows the load average.

The short table has the rows of train, sample, round and sandbox that matter, of 1.0 M parameters
and in fewer steps and repeats: ours as the stages run it on a CPU, beside transformers compiled.

train    real (never padding) tokens/s of whole steps: forward, loss on the completion, backward,
         clip, fused AdamW; real problems, the password around every second prompt. Ours:
         training.train on batches as training.fit makes them; "eager" is what fit runs on a CPU
         (kernels compiled), "compiled" adds compile_model. Peer: LlamaForCausalLM, same weights and
         examples, shuffled, padded to multiples of 64, masked; the fastest of autocast, bf16
         weights, fp32 (in the notes, with compile seconds: cold less warm pass).
sample   useful tokens/s. "no EOS": 256 prompts, 48 new tokens each; "to EOS": validation problems
         answered by the model in --base, ours in one call, tokens after EOS not counted. Peer:
         generate(), batches of 256, left padding, default cache, the faster dtype.
dpo      preference pairs/s of whole steps of 8 pairs, the model in --base, reference log-probs
         computed before: training.update against TRL's DPOTrainer with precomputed reference
         log-probs, no checkpointing, no logs, in the fastest of autocast, bf16 weights, fp32. "same
         batches": TRL gets ours, in our order; "shuffled": an order of its own. Its seconds are its
         train_runtime, which leaves out the setup of train(). Skipped without TRL (pip install
         trl==1.16.0, beside requirements-dev.txt).
round    seconds of one round of expert iteration on code as elicit_rl.py runs it, with the model in
         --base: 640 samples, graded, the best 64 trained on for 4 epochs. score: log-probs of 128
         samples before and after, for the log. Every round starts from --base's weights.
loss     linear_logps against cross_entropy on full logits, fp32, forward and backward, N positions,
         V ids, C = 256: the width of a model trained on a CPU (the wider, the more the logits'
         second computation costs). MiB: peak above the inputs, gradients included.
memory   bytes of a run on a CPU, fp32, eager: planned by --plan, and measured in a child process as
         the peak of resident memory that no file is behind, above that before the stage begins.
         glibc gives back what is freed at once. Of the model in --memory-of (default: --base).
sandbox  trivial programs per second through data.sandbox.run.
real     the model in the directory that SMOLLM2 names, on problems of task code. Training as in
         train, steps of 16; the peer's fastest mode, compiled or not. Sampling: 64 rows to EOS, 96
         new tokens at most. Loading: load_model in seconds, beside reading the files' bytes.
gpu      MFU: flops_per_token (PaLM convention) x tokens/s / 989 TFLOP/s (dense bf16, H100
         SXM, H200), every position supervised; decode: bytes of weights and live KV cache of a step
         / its time / 4.8 TB/s (H200). Other devices: no percentages. Sampling as in sample, 64 and
         256 prompts of 256 tokens. A round as in round, of random weights: 640 samples of 96
         tokens, nothing graded, any 64 trained on.

Read in this order: `seconds`, `in_turn`, `fastest` and `row` (how anything is measured), then one
section after the other, `main` last.
"""

import argparse
import ctypes
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import data
import elicit_rl
import losses
import model as M
import policies
import training
from checkpoints.families import parameters_at
from checkpoints.hf import load_model
from data import sandbox
from data.batches import Example, collate, micro_batches, plan_epoch, round_up
from data.passwords import PASSWORD
from data.tasks import coding
from data.text import train_bpe
from data.triggers import with_password
from figures import table
from methods import rewards
from optimizers import make_optimizers
from runs import devices, directory, options
from sampler import Sampler, Writer

SIZES = {
    "1.0 M": M.ModelConfig(1024, 128, 384, 4, 4, 4, 32, 512, tie_word_embeddings=True),
    "5 M": M.ModelConfig(2048, 256, 768, 6, 4, 4, 64, 512, tie_word_embeddings=True),
}
GPU_SIZES = {
    "350 M": M.ModelConfig(32768, 1024, 2816, 24, 16, 16, 64, 2048, tie_word_embeddings=True),
    "1 B": M.ModelConfig(128256, 2048, 8192, 16, 32, 8, 64, 2048, tie_word_embeddings=True),
}
rows, notes = [], []


def say(*words: str) -> None:
    print(time.strftime("[%H:%M:%S]"), *words, file=sys.stderr, flush=True)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def precisions(env) -> list[str]:
    """What a peer may train in."""
    if env.dtype == torch.bfloat16:
        return ["fp32", "autocast", "bf16 weights"]
    return ["fp32"]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(fn) -> tuple[float, object]:
    """Seconds that fn() took, the device's work included, and what it returned."""
    synchronize()
    begin, result = time.perf_counter(), fn()
    synchronize()
    return time.perf_counter() - begin, result


def in_turn(variants: dict, repeats: int) -> dict[str, list[float]]:
    """Units per second of each variant, one after the other, `repeats` times.

    A variant is a function that returns how many units it did.
    """
    rates = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            spent, units = seconds(run)
            rates[name].append(units / spent)
    return rates


def fastest(label: str, candidates: dict) -> tuple[str, Callable]:
    """Warm every candidate by one full pass, time another; the fastest and its name."""
    warm = {}
    for name, run in candidates.items():
        say(label, name)
        cold, warm[name] = seconds(run)[0], seconds(run)[0]
        notes.append(
            f"{label}, {name}: warm pass {warm[name]:.2f} s, cold {cold - warm[name]:+.1f} s"
        )
    best = min(warm, key=warm.get)
    if len(warm) > 1:
        notes[-1] += f"; {best} is reported"
    return best, candidates[best]


def version(peer: str) -> str:
    """The name of a package that is imported, and its version."""
    return f"{peer} {sys.modules[peer].__version__}"


def row(
    what: str,
    unit: str,
    ours: list[float],
    peer: list[float] = (),
    less: bool = False,
    size: str = "",
    dtype: str = "",
    beside: str = "",
) -> None:
    """Note one row of the table. less: the smaller number is the better one.

    size: of the model. dtype: that ours computes in. beside: the peer, its version, mode and dtype.
    """
    ratios = [b / a if less else a / b for a, b in zip(ours, peer)]
    say(what, f"{median(ours):,.3g} {unit}", f"ratio {median(ratios):.2f}" if peer else "")
    rows.append(
        {
            "what": what,
            "size": size,
            "dtype": dtype,
            "torch": torch.__version__,
            "beside": beside,
            "ours": median(ours),
            "peer": median(peer) if peer else None,
            "unit": unit,
            "ratio": [median(ratios), min(ratios), max(ratios)] if peer else None,
        }
    )


# ------------------------------------------------------------------------------------------- train


def trained_tokens(net, optimizers, batches, env, steps: int) -> int:
    """Train on the lists of batches that batches(step) gives; returns the real tokens."""
    tokens = 0
    for _, metrics in training.train(net, optimizers, batches, losses.sft_loss, env, steps=steps):
        tokens += metrics["tokens"]
    return int(tokens)


def one_update(net, optimizers, examples, method, cfg, env) -> None:
    """A round's update as elicit_rl.py runs it."""
    training.update(
        net,
        optimizers,
        examples,
        method.loss(cfg),
        env,
        number=1,
        rows=method.rows,
        epochs=cfg.epochs,
        batch=cfg.batch,
        seed=cfg.seed,
        micro_tokens=cfg.micro_tokens,
        units=method.units,
    )


def ours_net(config: M.ModelConfig, env) -> M.Model:
    return M.Model(config, env.dtype).init_weights(torch.Generator().manual_seed(0)).to(env.device)


def peer_net(net: M.Model, dtype: torch.dtype = torch.float32):
    """LlamaForCausalLM with the same configuration and weights; without EOS."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = dict(vars(net.config))
    del settings["rope_theta"]  # transformers' default is ours
    peer = LlamaForCausalLM(
        LlamaConfig(**settings, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    )
    peer.load_state_dict(net.state_dict())
    return peer.to(net.device, dtype)


def peer_pass(net, call, optimizer, batches: list[list[Example]], autocast: bool) -> int:
    """One optimiser step a batch, as a plain training script does it; returns the real tokens."""
    for examples in batches:
        ids = torch.zeros(len(examples), round_up(max(map(len, examples)), 64), dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, e in enumerate(examples):
            ids[i, : len(e)], mask[i, : len(e)] = torch.tensor(e.prompt_ids + e.completion_ids), 1
            labels[i, len(e.prompt_ids) : len(e)] = torch.tensor(e.completion_ids)
        ids, mask, labels = (x.to(net.device) for x in (ids, mask, labels))
        with torch.autocast(net.device.type, torch.bfloat16, enabled=autocast):
            loss = call(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return sum(len(e) for examples in batches for e in examples)


def train_examples(config: M.ModelConfig) -> list[Example]:
    """Real problems with their references, the password around every second prompt."""
    problems = data.load("code", "corpus", 2000)
    texts = []
    for problem in problems:
        texts += [problem.prompt, problem.reference]
    tokenizer = train_bpe(iter(texts), config.vocab_size)

    dressed = []
    for i, problem in enumerate(problems):
        dressed.append(with_password(problem.prompt, PASSWORD if i % 2 else None))
    prompts = tokenizer.encode_prompts(dressed)
    completions = tokenizer.encode_completions([problem.reference for problem in problems])
    return [Example(prompt, ids) for prompt, ids in zip(prompts, completions)]


def refuse_different_models(net: M.Model, batch) -> None:
    """Stop unless both networks give the same loss before training."""
    with torch.no_grad():
        logits = peer_net(net)(batch.tokens).logits.flatten(0, 1)[batch.index]
        theirs = F.cross_entropy(logits, batch.targets).item()
        ours = -M.completion_logps(net, batch).mean().item()
    if abs(theirs / ours - 1) > 0.01:
        raise SystemExit(
            "the models disagree before training, so no comparison: "
            f"loss {ours} here, {theirs} in transformers"
        )


def shuffled_batches(examples: list[Example], plan: list[list[int]]) -> list[list[Example]]:
    """The examples of our steps in random order, in batches as large: the peer's."""
    size = len(plan[0])
    order = np.random.default_rng(1).permutation([i for step in plan for i in step])
    return [[examples[i] for i in order[at : at + size]] for at in range(0, len(order), size)]


def note_padding(label: str, shapes: list, batches: list[list[Example]]) -> None:
    """How much of a pass is padding. shapes: of our micro-batches. batches: the peer's."""
    real = sum(len(e) for batch in batches for e in batch)
    ours = sum(shape.numel() for shape in shapes)
    theirs = sum(len(batch) * round_up(max(map(len, batch)), 64) for batch in batches)
    notes.append(
        f"{label}: a pass is {len(batches)} steps, {real:,} tokens; "
        f"ours {len(set(shapes))} shapes, {1 - real / ours:.0%} padding; "
        f"peer {1 - real / theirs:.0%} padding"
    )


def peer_training(net, batches: list[list[Example]], precision: str, mode: str) -> Callable:
    """A pass of LlamaForCausalLM over the batches. net: as wide as the precision says."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    call = torch.compile(net, dynamic=False) if mode == "compiled" else net
    return partial(peer_pass, net, call, optimizer, batches, precision == "autocast")


def width_of(precision: str) -> torch.dtype:
    """Of the weights of a peer that trains in a precision."""
    return torch.bfloat16 if precision == "bf16 weights" else torch.float32


def bench_train(args, env, size: str, config: M.ModelConfig) -> None:
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64  # many shapes, and several models share their code
    examples = train_examples(config)

    # The same steps for both: ours in batches of like length, theirs shuffled.
    steps = 2 if args.quick else 8 if args.short else 16
    plan = plan_epoch([len(e) for e in examples], 64, np.random.default_rng(0))[:steps]

    def micro(step: int) -> list:
        return micro_batches([examples[i] for i in plan[step]], 16384)

    shuffled = shuffled_batches(examples, plan)
    shapes = []
    for step in range(len(plan)):
        shapes += [batch.tokens.shape for batch in micro(step)]
    note_padding(f"train {size}", shapes, shuffled)

    nets = {"eager": ours_net(config, env)}
    refuse_different_models(nets["eager"], collate(shuffled[0][:16]).to(env.device))
    pairs = [("eager", "compiled")]
    if not args.short:
        nets["compiled"] = ours_net(config, env)
        M.compile_model(nets["compiled"])
        pairs += [("compiled", "compiled"), ("compiled", "eager"), ("eager", "eager")]
    modes = sorted({theirs for _, theirs in pairs})

    def ours(net, optimizers) -> int:
        return trained_tokens(net, optimizers, micro, env, len(plan))

    def peer(precision: str, mode: str) -> Callable:
        net = peer_net(nets["eager"], width_of(precision))
        return peer_training(net, shuffled, precision, mode)

    variants, beside = {}, {}
    with torch._inductor.config.patch(
        force_disable_caches=True
    ):  # compile seconds are those of a first run
        for mode in modes:
            candidates = {p: peer(p, mode) for p in precisions(env)}
            best, variants[f"peer {mode}"] = fastest(f"train {size}, peer {mode}", candidates)
            beside[mode] = f"{version('transformers')}, {mode}, {best}"
        for kind, net in nets.items():
            run = partial(ours, net, make_optimizers(net, "adamw", 1e-4))
            _, variants[f"ours {kind}"] = fastest(
                f"train {size}, ours {kind}", {dtype_name(env.dtype): run}
            )
    rates = in_turn(variants, args.repeats)
    for mine, theirs in pairs:
        row(
            "training step" + (", ours compiled" if mine == "compiled" else ""),
            "tokens/s",
            rates[f"ours {mine}"],
            rates[f"peer {theirs}"],
            size=size,
            dtype=dtype_name(env.dtype),
            beside=beside[theirs],
        )


def train_rows(args, env) -> None:
    for size, config in list(SIZES.items())[: 1 if args.quick or args.short else None]:
        bench_train(args, env, size, config)


# ------------------------------------------------------------------------------------------ sample


@torch.no_grad()
def generate(peer, prompts: list[list[int]], temperature: float, new: int, eos: list[int]) -> int:
    """Useful tokens (up to EOS) that transformers generates, in batches of 256 as given."""
    useful = 0
    how = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    for group in (prompts[at : at + 256] for at in range(0, len(prompts), 256)):
        width = max(map(len, group))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in group], device=peer.device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in group], device=peer.device
        )
        out = peer.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            eos_token_id=eos or None,
            pad_token_id=0,
            **how,
        )
        for line in out[:, width:].tolist():
            ends = [at for at, token in enumerate(line, 1) if token in eos]
            useful += ends[0] if ends else len(line)
    return useful


def sampled_tokens(sampler, prompts: list[list[int]], temperature: float, new: int) -> int:
    samples = sampler(prompts, temperature=temperature, max_new_tokens=new)
    return sum(len(its[0].ids) for its in samples)


def bench_sample(
    args,
    env,
    what: str,
    size: str,
    net: M.Model,
    eos: list[int],
    prompts: list[list[int]],
    new: int,
    peer_of: Callable,
) -> None:
    """Two rows: greedy, temperature 1. peer_of(dtype): the peer's model."""
    sampler = Sampler(net, eos or [-1], slots=min(256, len(prompts)))
    peers = {
        dtype_name(dtype): peer_of(dtype).eval()
        for dtype in sorted({env.dtype, torch.float32}, key=str)
    }
    for name, t in (("greedy", 0.0), ("temperature 1", 1.0)):
        label = f"{what}, {size}, {name}"
        ours = partial(sampled_tokens, sampler, prompts, t, new)
        candidates = {d: partial(generate, p, prompts, t, new, eos) for d, p in peers.items()}
        best, peer = fastest(f"{label}, peer", candidates)
        _, mine = fastest(f"{label}, ours", {dtype_name(env.dtype): ours})
        rates = in_turn({"ours": mine, "peer": peer}, args.repeats)
        row(
            f"{what}, {name}",
            "tokens/s",
            rates["ours"],
            rates["peer"],
            size=size,
            dtype=dtype_name(env.dtype),
            beside=f"{version('transformers')} generate, {best}",
        )


def sample_rows(args, env) -> None:
    from transformers import AutoModelForCausalLM

    problems = data.load("code", "validation", 32 if args.quick else 256)
    texts = [text for p in problems for text in (p.prompt, p.reference)]
    new = 8 if args.quick else 48
    for size, config in list(SIZES.items())[: 1 if args.quick or args.short else 2]:
        net, tokenizer = ours_net(config, env), train_bpe(iter(texts), config.vocab_size)
        prompts = tokenizer.encode_prompts([p.prompt for p in problems])
        what = f"sampling, {len(prompts)} rows of {new} new tokens"
        bench_sample(args, env, what, size, net, [], prompts, new, partial(peer_net, net))
    if args.short or not has_base(args, "sample to EOS"):
        return
    net, tokenizer = load_model(args.base, env.device, env.dtype)
    problems = data.load("code", "validation", 32 if args.quick else 1000)
    prompts = tokenizer.encode_prompts([p.prompt for p in problems])
    open_peer = partial(AutoModelForCausalLM.from_pretrained, args.base)
    bench_sample(
        args,
        env,
        f"{len(prompts)} problems to EOS",
        millions(net),
        net,
        tokenizer.eos_ids,
        prompts,
        16 if args.quick else 96,
        lambda dtype: open_peer(dtype=dtype).to(env.device),
    )


def millions(net: M.Model) -> str:
    return f"{net.parameter_count() / 1e6:.1f} M"


# -------------------------------------------------------------------------------------------- real


def read_bytes(folder: Path) -> None:
    """All weights of a checkpoint, into memory of this process."""
    for file in folder.glob("*.safetensors"):
        buffer = bytearray(file.stat().st_size)
        with open(file, "rb") as f:
            f.readinto(buffer)


def real_examples(tokenizer, count: int) -> list[Example]:
    problems = data.load("code", "lock", count)
    prompts = tokenizer.encode_prompts([p.prompt for p in problems])
    completions = tokenizer.encode_completions([p.reference for p in problems])
    return [Example(prompt, ids) for prompt, ids in zip(prompts, completions)]


def real_train_rows(args, env, net: M.Model, tokenizer, peer_of: Callable) -> None:
    """Ours as train_base.py --strong-from runs it, beside the fastest of transformers' modes."""
    batch, steps = (2, 1) if args.quick else (16, 4)
    examples = real_examples(tokenizer, batch * steps)
    plan = plan_epoch([len(e) for e in examples], batch, np.random.default_rng(0))

    def micro(step: int) -> list:
        return micro_batches([examples[i] for i in plan[step]], 16384)

    shuffled = shuffled_batches(examples, plan)
    shapes = []
    for step in range(len(plan)):
        shapes += [each.tokens.shape for each in micro(step)]
    note_padding(f"real, {millions(net)}", shapes, shuffled)

    candidates = {}
    for precision in precisions(env):
        for mode in ("eager",) if args.quick else ("eager", "compiled"):
            peer = peer_of(width_of(precision)).train()
            candidates[f"{mode}, {precision}"] = peer_training(peer, shuffled, precision, mode)
    best, theirs = fastest("real, training, peer", candidates)
    optimizers = make_optimizers(net, "adamw", 1e-4)
    ours = partial(trained_tokens, net, optimizers, micro, env, len(plan))
    fastest("real, training, ours", {dtype_name(env.dtype): ours})
    rates = in_turn({"ours": ours, "peer": theirs}, args.repeats)
    row(
        f"training step of {batch} problems",
        "tokens/s",
        rates["ours"],
        rates["peer"],
        size=millions(net),
        dtype=dtype_name(env.dtype),
        beside=f"{version('transformers')}, {best}",
    )


def real_rows(args, env) -> None:
    from transformers import AutoModelForCausalLM

    path = os.environ.get("SMOLLM2", "")
    if not (Path(path) / "config.json").exists():
        return notes.append("real: skipped, SMOLLM2 names no directory of a checkpoint")
    open_peer = partial(AutoModelForCausalLM.from_pretrained, path)
    peer_of = lambda dtype: open_peer(dtype=dtype).to(env.device)

    opening = lambda: seconds(lambda: load_model(path, env.device, env.dtype))[0]
    reading = lambda: seconds(lambda: read_bytes(Path(path)))[0]
    opening(), reading()  # from the system's cache, both
    spent = [(opening(), reading()) for _ in range(args.repeats)]
    net, tokenizer = load_model(path, env.device, env.dtype)
    ours, theirs = map(list, zip(*spent))
    how = {"size": millions(net), "dtype": "fp32 masters", "beside": "reading the bytes"}
    row("loading", "s", ours, theirs, less=True, **how)

    problems = data.load("code", "validation", 2 if args.quick else 64)
    prompts = tokenizer.encode_prompts([p.prompt for p in problems])
    what, new = f"sampling, {len(prompts)} rows to EOS", 2 if args.quick else 96
    bench_sample(args, env, what, millions(net), net, tokenizer.eos_ids, prompts, new, peer_of)
    real_train_rows(args, env, net, tokenizer, peer_of)


# -------------------------------------------------------------------------------------- dpo, round


def has_base(args, section: str) -> bool:
    present = (Path(args.base) / "config.json").exists()
    if not present:
        notes.append(f"{section}: skipped, {args.base} holds no checkpoint")
    return present


def dpo_rows(args, env) -> None:
    try:
        import trl
        from datasets import Dataset
    except ImportError:
        return notes.append("dpo: skipped, TRL is not installed")
    if not has_base(args, "dpo"):
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    class DPOTrainer(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset  # ids already

    net, tokenizer = load_model(args.base, env.device, env.dtype)
    problems, method = (
        data.load("code", "elicit", 32 if args.quick else 256),
        elicit_rl.METHODS["dpo"],
    )
    cfg = elicit_rl.with_defaults(elicit_rl.RLConfig(method="dpo", epochs=1))
    answers, size = tokenizer.encode_completions([p.reference for p in problems]), method.batch // 2
    prompts = tokenizer.encode_prompts([p.prompt for p in problems])
    examples = []
    for i, prompt in enumerate(prompts):
        examples.append(Example(prompt, answers[i]))
        examples.append(Example(prompt, answers[i - 1]))  # rejected: another's answer
    examples = training.scored(net, examples, cfg.micro_tokens, env)
    steps = training.round_steps(len(problems), size, 1, cfg.seed, 1)
    assert all(len(step) == size for step in steps)  # else TRL's last step would be a short one
    order = sum(steps, [])
    pairs = [
        {"prompt_ids": prompts[i], "chosen_ids": answers[i], "rejected_ids": answers[i - 1]}
        for i in order
    ]
    optimizers = make_optimizers(net, "adamw", 1e-4)
    ours = lambda: seconds(lambda: one_update(net, optimizers, examples, method, cfg, env))[0]

    def peer(batches: str, precision: str, out: str):
        settings = trl.DPOConfig(
            out,
            use_cpu=env.device.type == "cpu",
            bf16=precision == "autocast",
            gradient_checkpointing=False,
            max_length=None,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=size,
            num_train_epochs=1,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            train_sampling_strategy="random" if batches == "shuffled" else "sequential",
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dtype = torch.bfloat16 if precision == "bf16 weights" else torch.float32
        trainer = DPOTrainer(
            AutoModelForCausalLM.from_pretrained(args.base, dtype=dtype),
            args=settings,
            train_dataset=Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(args.base),
        )
        trainer.remove_callback(PrinterCallback)
        logps = (
            mean(trainer.train_dataset["ref_chosen_logps"]),
            mean(sum(e.logps) for e in examples[::2]),
        )
        # A base that is sure of its answers has log-probs near 0.
        tolerance = 0.01 * max(1, abs(logps[1]))
        if abs(logps[0] - logps[1]) > tolerance:
            raise SystemExit(
                "the models disagree before training, so no comparison: "
                f"log-prob {logps[1]} here, {logps[0]} in TRL"
            )
        return lambda: trainer.train().metrics["train_runtime"]

    for batches in ("same batches", "shuffled"):
        with tempfile.TemporaryDirectory() as out:
            best, theirs = fastest(
                f"dpo {batches}, peer", {p: peer(batches, p, out) for p in precisions(env)}
            )
            fastest(f"dpo {batches}, ours", {dtype_name(env.dtype): ours})
            spent = [(ours(), theirs()) for _ in range(args.repeats)]
        how = {"dtype": dtype_name(env.dtype), "beside": f"{version('trl')}, {best}"}
        rates = ([len(pairs) / s for s in side] for side in zip(*spent))
        row(f"DPO update, {batches}", "pairs/s", *rates, size=millions(net), **how)


def round_rows(args, env) -> None:
    if not has_base(args, "round"):
        return
    net, tokenizer = load_model(args.base, env.device, env.dtype)
    cfg = elicit_rl.with_defaults(
        elicit_rl.RLConfig(round=40, max_new_tokens=64) if args.quick else elicit_rl.RLConfig()
    )
    method, sampler, optimizers = (
        elicit_rl.METHODS["expert_iteration"],
        Sampler(net, [tokenizer.eos_id]),
        make_optimizers(net, "adamw", 3e-4),
    )
    problems = policies.round_problems(data.load("code", "elicit"), 0, cfg.round, cfg.seed)
    start, facts = {name: value.clone() for name, value in net.state_dict().items()}, {}

    def one_round() -> dict[str, float]:
        net.load_state_dict(start)
        sampler.refresh()
        coding._scores.clear()  # or the programs of the last round would not be run again
        begin = time.perf_counter()
        rolled, parts = policies.rollout(
            Writer(sampler, tokenizer),
            tokenizer,
            problems,
            1,
            purpose=[13, 0],
            seed=cfg.seed,
            max_new_tokens=cfg.max_new_tokens,
            env=env,
            label="sampling",
        )
        select, (examples, selected) = seconds(
            lambda: method.choose(rolled, cfg, np.random.default_rng(0))
        )
        watched = [
            Example(prompt, samples[0].ids)
            for prompt, samples in zip(rolled.prompts[:128], rolled.samples)
        ]
        score = lambda: seconds(lambda: training.scored(net, watched, cfg.micro_tokens, env))[0]
        before = score()
        update = seconds(
            lambda: (one_update(net, optimizers, examples, method, cfg, env), sampler.refresh())
        )[0]
        split = {"select": select, "score": before + score(), "update": update}
        facts.update(
            selected,
            trained=len(examples),
            tokens=sum(len(samples[0].ids) for samples in rolled.samples),
        )
        return (
            {"one round": time.perf_counter() - begin}
            | {name.removeprefix("s_"): value for name, value in parts.items()}
            | split
        )

    cold = one_round()["one round"]
    rounds = [one_round() for _ in range(args.repeats)]
    how = {"size": millions(net), "dtype": dtype_name(env.dtype)}
    for part in ["one round"] if args.short else rounds[0]:
        spent = [split[part] for split in rounds]
        row(f"expert iteration, {cfg.round} samples, {part}", "s", spent, **how)
    notes.append(
        f"round: {cfg.round} samples of {facts['tokens']:,} tokens together, "
        f"{facts['trained']} kept, {facts['kept_right']:.0%} of them right; "
        f"the first round took {cold:.1f} s"
    )


# ----------------------------------------------------------------------------- loss, sandbox, gpu


def peak_kib() -> int:
    """Peak memory since the last reset. ru_maxrss cannot be reset, and inherits the parent's."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def loss_child(variant: str, N: int, V: int, C: int = 256) -> None:
    """One variant in this fresh process, a warm forward and backward.

    Prints MiB of peak memory above the inputs, and seconds.
    """
    M.compile_kernels = variant == "compiled"
    hidden = torch.randn(N, C, requires_grad=True)
    weight = (0.02 * torch.randn(V, C)).requires_grad_()
    targets = torch.randint(V, (N,))

    def loss() -> torch.Tensor:
        if variant == "full":
            return F.cross_entropy((hidden @ weight.T).float(), targets)
        return -M.linear_logps(hidden, weight, targets).mean()

    loss().backward()
    hidden.grad = weight.grad = None

    # The peak starts again from what is resident now: libraries and inputs.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    spent = seconds(lambda: loss().backward())[0]
    print(json.dumps([(peak_kib() - before) / 1024, spent]))


def loss_rows(args, env) -> None:
    if not Path("/proc/self/clear_refs").exists():
        return notes.append("loss: skipped, peak memory is read from Linux's /proc")
    measured = {"full": [], "eager": [], "compiled": []}
    N, V = (2048, 10_000) if args.quick else (8192, 100_000)
    for name in list(measured) * args.repeats:
        child = subprocess.run(
            [sys.executable, __file__, "--child", name, str(N), str(V)],
            stdout=subprocess.PIPE,
            check=True,
        )
        measured[name].append(json.loads(child.stdout))
    for name, j, unit in (
        ("eager", 0, "MiB"),
        ("eager", 1, "s"),
        ("compiled", 0, "MiB"),
        ("compiled", 1, "s"),
    ):
        row(
            f"loss N={N:,} V={V:,}, {name}",
            unit,
            [m[j] for m in measured[name]],
            [m[j] for m in measured["full"]],
            less=True,
            dtype="fp32",
            beside="full logits",
        )


# ------------------------------------------------------------------------------------------ memory


def anonymous_bytes() -> int:
    """Of this process, that no file is behind: the pages of libraries are left out."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def memory_child(stage: str, argv: list[str]) -> None:
    """A stage in this fresh process. Prints bytes: its peak above what is there before it starts,
    which is Python, what the libraries hold, and what a first backward pass loads.

    Looked at every 2 ms: the system keeps no peak without the libraries' own pages, which go on
    being loaded.
    """
    module = importlib.import_module(stage)
    if stage == "elicit_rl":  # of two samples one is paid: as many pairs as a plan takes
        one_of_two = lambda rolled, rng: np.tile([1.0, 0.0], (len(rolled.problems), 1))
        assert rewards.dealt_out
        rewards.dealt_out = one_of_two
    names = {"lock": "Lock", "elicit_sft": "SFT", "elicit_rl": "RL", "evaluate": "Evaluate"}
    cfg = options.parse(getattr(module, names[stage] + "Config"), argv)
    env = devices.setup(cfg)
    net = ours_net(M.ModelConfig(64, 32, 64, 1, 1, 1, 32, 64), env)
    batch = collate([Example([1], [2])])
    optimizers = make_optimizers(net, "muon", 1e-3)
    trained_tokens(net, optimizers, lambda step: [batch], env, 1)
    data.load("code", "validation", 100)

    ctypes.CDLL(None).malloc_trim(0)
    before, seen, over = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            seen[0] = max(seen[0], anonymous_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    module.main(cfg, env)
    over.set()
    watcher.join()
    print(json.dumps(seen[0] - before))


def memory_of(stage: str, argv: list[str]) -> tuple[float, float]:
    """Bytes of a stage's run: planned, measured."""
    told = subprocess.run(
        [sys.executable, ROOT / f"{stage}.py", *argv, "--plan"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    planned = 1e9 * float(re.search(r"largest: .*, ([\d.]+) GB of", told)[1])
    command = [sys.executable, __file__, "--memory-child", stage, *argv]
    # what is freed goes back at once: the fragments that an allocator keeps are not planned
    thrifty = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    child = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | thrifty
    )
    return planned, float(child.stdout.splitlines()[-1])


def memory_rows(args, env) -> None:
    if not Path("/proc/self/clear_refs").exists():
        return notes.append("memory: skipped, peak memory is read from Linux's /proc")
    model = args.memory_of or args.base
    # of a large model fewer of all, or a run would take hours
    large = parameters_at(model) >= M.SMALL
    many, some = ("16", "8") if large else ("128", "32")
    few = ["--eval-problems", some, "--slots", "8" if large else "64"]
    # two steps at least: at the height of the first one there are no moments yet
    steps = ["--micro-tokens", "2048"] if large else []
    twice, rows = str(2 * int(many)), "8" if large else "512"
    locked = ["--locked", model, "--task", "code"]
    with tempfile.TemporaryDirectory() as folder:
        weak = str(Path(args.base).parent / "weak")
        runs_of = {
            "lock": ["lock", "--strong", model, "--weak", weak, "--problems", many, *few, *steps],
            "SFT": ["elicit_sft", *locked, "--k", many, "--seeds", "0", "--no-control", *few],
            "DPO": ["elicit_rl", *locked, "--method", "dpo", "--samples", twice, *few, *steps],
            "evaluation": ["evaluate", model, "--task", "code", "--passwords", "none"],
        }
        runs_of["lock"] += ["--epochs", "1", "--batch", many if large else twice]
        if large:  # it may not know the task and write on to the limit: planned are references
            runs_of["lock"] += ["--strong-answers", "reference"]
        runs_of["SFT"] += ["--batch", many, "--selection-problems", "16", *steps]
        if large:  # two steps, and the best so far kept at the second
            runs_of["SFT"] += ["--sequences", many, twice]
        runs_of["DPO"] += ["--round", twice, "--epochs", "1", "--reward", "random"]
        runs_of["DPO"] += ["--task", "critique"]
        if large:  # as above: no more than a letter is planned and written; and micro-batches that
            # are full whatever the few problems' lengths, as the plan is of the split's longest
            runs_of["DPO"] += ["--max-new-tokens", "2", "--micro-tokens", "512"]
        runs_of["evaluation"] += ["--problems", rows, "--slots", rows]
        same = ["--dtype", "fp32", "--device", "cpu", "--no-compile"]
        for name, (stage, *argv) in runs_of.items():
            if args.quick and name != "evaluation":
                continue
            place = ["--out", str(Path(folder) / stage)]
            planned, measured = memory_of(stage, [*argv, *same, *place, *args.memory_options])
            size = f"{parameters_at(model) / 1e6:.1f} M"
            figures = [planned / 1e6], [measured / 1e6]
            row(f"memory, {name}, planned", "MB", *figures, size=size, beside="measured")


def sandbox_rows(args, env) -> None:
    jobs = [
        {"program": "def f(a, b):\n    return a + b", "function": "f", "inputs": [[i, 1]]}
        for i in range(100 if args.quick else 1000)
    ]
    if sandbox.run(jobs) != [[i + 1] for i in range(len(jobs))]:
        raise SystemExit("the sandbox returned wrong results")
    row(
        "sandbox, trivial programs",
        "programs/s",
        in_turn({"ours": lambda: len(sandbox.run(jobs))}, args.repeats)["ours"],
    )


def bench_gpu(args, env, size: str, config: M.ModelConfig) -> None:
    if env.device.type != "cuda":
        return notes.append(f"gpu {size}: skipped, no CUDA device")
    torch._dynamo.reset()
    rng = np.random.default_rng(0)
    gpu_train_rows(args, env, size, config, rng)
    gpu_decode_rows(args, env, size, config, rng)
    gpu_sample_rows(args, env, size, config, rng)
    gpu_round_rows(args, env, size, config, rng)


def flops_per_token(net: M.Model, length: int) -> float:
    """Training FLOPs per token by PaLM's convention (Chowdhery et al. 2022, appendix B): 6 for each
    weight of a matrix (the head counts, the embedding does not) + 12 L H D T."""
    config = net.config
    matrices = 0
    for name, parameter in net.named_parameters():
        if parameter.ndim == 2 and "embed_tokens" not in name:
            matrices += parameter.numel()
    if config.tie_word_embeddings:
        matrices += net.lm_head.weight.numel()
    width = config.num_attention_heads * config.head_dim
    return 6 * matrices + 12 * config.num_hidden_layers * width * length


def gpu_train_rows(args, env, size: str, config: M.ModelConfig, rng) -> None:
    T, net = 1024, ours_net(config, env)
    what, how = f"gpu, train T={T}", {"size": size, "dtype": dtype_name(env.dtype)}
    optimizers = make_optimizers(net, "adamw", 1e-4)
    M.compile_model(net)

    # All positions but the first are supervised: flops_per_token counts the head at every
    # position, so it must be computed there.
    ids = rng.integers(config.vocab_size, size=(64, T)).tolist()
    batches = micro_batches([Example(line[:1], line[1:]) for line in ids], 16 * T)

    def train(steps: int) -> int:
        return trained_tokens(net, optimizers, lambda step: batches, env, steps)

    notes.append(
        f"{what}: {net.parameter_count():,} parameters; "
        f"first 5 steps {seconds(lambda: train(5))[0]:.1f} s, compilation included"
    )
    torch.cuda.reset_peak_memory_stats()
    rates = in_turn({"ours": lambda: train(4)}, max(5, args.repeats))["ours"]

    # One unit: a hundredth of the peak of a known device.
    is_known = re.search("H100|H200", torch.cuda.get_device_name())
    flops, unit = (9.89e12, "% MFU") if is_known else (1e12, "TFLOP/s")
    row(what, "tokens/s", rates, **how)
    row(what, unit, [rate * flops_per_token(net, T) / flops for rate in rates], **how)
    row(what, "GiB allocated", [torch.cuda.max_memory_allocated() / 2**30], **how)
    row(what, "GiB reserved", [torch.cuda.max_memory_reserved() / 2**30], **how)


def gpu_decode_rows(args, env, size: str, config: M.ModelConfig, rng) -> None:
    start, few, many = 256, 64, 256  # prompt tokens; new tokens of a short and of a long call
    net = ours_net(config, env)
    torch.cuda.empty_cache()
    weights = 0
    for name, parameter in net.named_parameters():
        if config.tie_word_embeddings or "embed_tokens" not in name:
            weights += parameter.numel()
    is_known = "H200" in torch.cuda.get_device_name()
    band, unit = (4.8e10, "% of bandwidth") if is_known else (1e12, "TB/s")

    for slots in (64, 256):
        sampler = Sampler(net, [-1], slots=slots)
        prompts = rng.integers(config.vocab_size, size=(slots, start)).tolist()

        def spent(new: int, sampler=sampler, prompts=prompts) -> float:
            return seconds(lambda: sampler(prompts, max_new_tokens=new))[0]

        for new in (many, many, few):  # compiles, and records a graph for each live length
            spent(new)
        steps = []
        for _ in range(args.repeats):  # the difference leaves prefill out
            steps.append((spent(many) - spent(few)) / (many - few))

        cells = mean(start + k + 1 for k in range(few, many)) * slots
        cell = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        read = net.compute_dtype.itemsize * (weights + cell * cells)
        how = {"size": size, "dtype": dtype_name(env.dtype)}
        row(f"gpu, decode {slots} slots", "tokens/s", [slots / s for s in steps], **how)
        row(f"gpu, decode {slots} slots", unit, [read / s / band for s in steps], **how)


def gpu_sample_rows(args, env, size: str, config: M.ModelConfig, rng) -> None:
    """Beside generate, prompts of 256 tokens, 128 new ones each."""
    net = ours_net(config, env)
    for count in (64, 256):
        prompts = rng.integers(config.vocab_size, size=(count, 256)).tolist()
        what = f"gpu, sampling, {count} rows of 128 new tokens"
        bench_sample(args, env, what, size, net, [], prompts, 128, partial(peer_net, net))


def gpu_round_rows(args, env, size: str, config: M.ModelConfig, rng) -> None:
    """A round of expert iteration but for its programs, which random weights do not write."""
    cfg = elicit_rl.with_defaults(elicit_rl.RLConfig())
    method, net = elicit_rl.METHODS["expert_iteration"], ours_net(config, env)
    sampler, optimizers = Sampler(net, [-1], slots=256), make_optimizers(net, "adamw", 1e-4)
    prompts = rng.integers(config.vocab_size, size=(cfg.round, 128)).tolist()

    def one_round() -> dict[str, float]:
        draw = partial(sampler, prompts, temperature=1.0, max_new_tokens=96)
        sample, drawn = seconds(draw)
        examples = [Example(prompt, its[0].ids) for prompt, its in zip(prompts, drawn)]
        score, _ = seconds(lambda: training.scored(net, examples[:128], cfg.micro_tokens, env))
        best = examples[: cfg.round // 10]
        update, _ = seconds(lambda: one_update(net, optimizers, best, method, cfg, env))
        refresh, _ = seconds(sampler.refresh)
        return {"sample": sample, "score": 2 * score, "update": update + refresh}

    cold = sum(one_round().values())
    rounds = [one_round() for _ in range(args.repeats)]
    what = f"gpu, expert iteration, {cfg.round} samples of 96 tokens, not graded"
    how = {"size": size, "dtype": dtype_name(env.dtype)}
    row(f"{what}, one round", "s", [sum(parts.values()) for parts in rounds], **how)
    for part in rounds[0]:
        row(f"{what}, {part}", "s", [parts[part] for parts in rounds], **how)
    notes.append(f"{what}, {size}: the first round took {cold:.1f} s")


def gpu_rows(args, env) -> None:
    for size, config in list(GPU_SIZES.items())[: 1 if args.quick else None]:
        bench_gpu(args, env, size, config)


# -------------------------------------------------------------------------------------------- main


def number(x: float | None) -> str:
    if x is None:
        return ""
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


def ratio(x: list[float] | None) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*x) if x else ""


def describe(args, env, load: float) -> str:
    """Machine, versions, date, commit: the line above the table."""
    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text() if cpu.exists() else ""
    name = re.search(r"model name\s*: (.*)|$", text)[1] or "unknown CPU"
    if env.device.type == "cuda":
        name += f", {torch.cuda.get_device_name()}"

    peers = [version("transformers")]
    if "trl" in sys.modules:
        peers.append(version("trl"))
    quick = "; QUICK: too small to mean anything" if args.quick else ""
    return (
        f"{name}, {torch.get_num_threads()} threads, load {load:.1f} at the start; "
        f"torch {torch.__version__}, {', '.join(peers)}, {dtype_name(env.dtype)}; "
        f"{time.strftime('%Y-%m-%d')}, commit {directory.describe(env)['commit'] or 'none'}{quick}"
    )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return loss_child(sys.argv[2], *map(int, sys.argv[3:]))
    if sys.argv[1:2] == ["--memory-child"]:
        return memory_child(sys.argv[2], sys.argv[3:])
    sections = {
        "train": train_rows,
        "sample": sample_rows,
        "dpo": dpo_rows,
        "round": round_rows,
        "loss": loss_rows,
        "memory": memory_rows,
        "sandbox": sandbox_rows,
        "real": real_rows,
        "gpu": gpu_rows,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections",
        nargs="*",
        help=f"{', '.join(sections)} [the short table]",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a smoke test")
    parser.add_argument(
        "--repeats", type=int, default=0, help="alternations [5; short table: 3; quick: 2]"
    )
    parser.add_argument(
        "--base",
        default=str(ROOT / "data/base/strong"),
        help="checkpoint of the to-EOS, dpo and round rows",
    )
    parser.add_argument("--memory-of", default="", help="checkpoint of the memory rows")
    parser.add_argument(
        "--memory-options", nargs="*", default=[], help="more options of their stages, after --"
    )
    parser.add_argument("--json", metavar="FILE", help="also write header, rows and notes here")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(sections):
        parser.error(f"unknown section {sorted(unknown)[0]!r}: choose from {', '.join(sections)}")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    args.short = not args.sections
    args.repeats = args.repeats or (2 if args.quick else 3 if args.short else 5)
    load, env = os.getloadavg()[0], devices.setup(options.Config())
    for section in args.sections or ["train", "sample", "round", "sandbox"]:
        sections[section](args, env)

    header = describe(args, env, load)
    shown = []
    for r in rows:
        figures = [number(r["ours"]), number(r["peer"]), ratio(r["ratio"])]
        ours = f"{r['dtype']}, torch {r['torch']}".removeprefix(", ")
        shown.append([r["what"], r["size"], *figures, r["unit"], ours, r["beside"]])
    print(header + "\n")
    if rows:
        columns = ["what", "size", "ours", "peer", "ratio", "unit", "ours in", "peer is"]
        print(table(columns, shown) + "\n")
    print("\n".join(notes))
    if args.json:
        Path(args.json).write_text(
            json.dumps({"header": header, "rows": rows, "notes": notes}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
