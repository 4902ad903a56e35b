"""A plain decode loop, as the released codes write it, beside the engine on the same weights.

One token a forward in blocks of 32, without a cache, with Fast-dLLM's prefix cache and with its
dual one. The plain loop does what that takes and no more: one method, greedy, rows of equal length,
a softmax in fp32 over the positions of the block, no stop before the last position, no events.
Steps of both are interleaved in one run, and what they commit is equal.
Run: python -m benchmarks.plain_loop
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.common import arguments, opened, write_result
from dllm.cache.plan import Access, ForwardPlan
from dllm.config import DecodeConfig
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec

BLOCK, PROMPT, SIZE = 32, 24, 64
CACHES = ("none", "prefix", "dual")


def model_of(layers: int, width: int, vocabulary: int) -> Decoder:
    """Random weights; the largest two ids are the mask and the end, which is never the best."""
    spec = ModelSpec(
        family="llada",
        vocab_size=vocabulary,
        hidden_size=width,
        num_layers=layers,
        num_heads=width // 32,
        num_kv_heads=width // 32,
        head_dim=32,
        mlp_size=width * 8 // 3,
        norm_eps=1e-5,
        rope_theta=1e4,
        mask_id=vocabulary - 1,
        eos_id=vocabulary - 2,
        pad_id=vocabulary - 2,
    )
    torch.manual_seed(0)
    model = Decoder(spec).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=2.0 * p.shape[1] ** -0.5)
        model.head.weight[vocabulary - 2] = 0  # a logit of 0 among many
    return model


MODELS = {
    "2 layers, width 64, 512 tokens": (2, 64, 512),
    "6 layers, width 192, 1,024 tokens": (6, 192, 1024),  # the shape of the bundled `tiny`
}


@torch.no_grad()
def plain(model: Decoder, prompts: Tensor, cache: str) -> Iterator[Tensor]:
    """The canvas [B, T] behind every step."""
    batch, mask = len(prompts), model.spec.mask_id
    ids = torch.cat([prompts, torch.full((batch, SIZE), mask)], 1)
    size = ids.shape[1]
    kv = None if cache == "none" else model.new_kv(batch, size)
    every = torch.arange(size).expand(batch, size)
    for start in range(PROMPT, size, BLOCK):
        end = start + BLOCK
        for step in range(BLOCK):
            first, last = 0, size
            if step and cache != "none":
                first, last = start, end if cache == "dual" else size
            pos = every[:, first:last]
            access = None if kv is None else Access(pos, None, size)
            head = torch.arange(start - first, end - first).expand(batch, BLOCK)
            plan = ForwardPlan(pos, head, extent=size, access=access, masked=False)
            logits = model(ids, plan, kv).float()
            logits[..., mask] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            open_ = ids[:, start:end] == mask
            best = confidence.masked_fill(~open_, -1.0).argmax(1, keepdim=True)
            ids.scatter_(1, best + start, token.gather(1, best))
            yield ids


def engine_steps(model: Decoder, prompts: Tensor, cache: str) -> Iterator[tuple[Tensor, float]]:
    """The canvas behind every step, and the seconds the model took so far."""
    config = DecodeConfig(SIZE, BLOCK, sampler="quota:count=1", cache=cache)
    batch = opened(model, prompts.tolist(), config)
    while batch.active:
        batch.step()
        yield torch.from_numpy(batch.standing.canvas.ids), batch.forward.seconds


def both(model: Decoder, batch: int, cache: str) -> tuple[list[float], list[float], list[float]]:
    """Seconds of every step: of the plain loop, of the engine, and of the engine without the model.

    AssertionError: they committed different tokens.
    """
    prompts = torch.randint(model.spec.vocab_size - 2, (batch, PROMPT))
    loop, engine = plain(model, prompts, cache), engine_steps(model, prompts, cache)
    plainly, ours, outside, before = [], [], [], 0.0
    for _ in range(SIZE - 1):  # with the last one the rows leave
        began = time.perf_counter()
        expected = next(loop)
        plainly.append(time.perf_counter() - began)
        began = time.perf_counter()
        found, model_seconds = next(engine)
        ours.append(time.perf_counter() - began)
        outside.append(ours[-1] - (model_seconds - before))
        before = model_seconds
        assert torch.equal(expected, found), "the plain loop commits other tokens"
    return plainly, ours, outside


def main() -> None:
    known = {"--runs": (7, "runs, all steps of which count"), "--threads": (1, "of the CPU")}
    asked = arguments(__doc__, known)
    torch.set_num_threads(asked.threads)
    rows = []
    table = Table(
        "model", "batch", "cache", "plain ms", "engine ms", "plain / engine", "outside ms"
    )
    for name, shape in MODELS.items():
        model = model_of(*shape)
        for batch in (1, 8):
            for cache in CACHES:
                found = [both(model, batch, cache) for _ in range(asked.runs + 1)][1:]
                plainly, ours, outside = (
                    1e3 * statistics.median(s for run in found for s in run[i]) for i in range(3)
                )
                ratio = plainly / ours
                rows.append(
                    {
                        "model": name,
                        "batch": batch,
                        "cache": cache,
                        "plain_ms": round(plainly, 3),
                        "engine_ms": round(ours, 3),
                        "outside_ms": round(outside, 3),
                        "plain_over_engine": round(ratio, 3),
                    }
                )
                values = (f"{plainly:.2f}", f"{ours:.2f}", f"{ratio:.2f}", f"{outside:.2f}")
                table.add_row(name, str(batch), cache, *values)
    Console(width=110).print(table)
    settings = {"threads": asked.threads, "runs": asked.runs, "block_length": BLOCK}
    print(write_result("plain_loop", settings | {"rows": rows}))


if __name__ == "__main__":
    main()
