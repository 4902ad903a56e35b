"""KV cache, forward plan, and cache policies by name, one file per paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm.registry import Registry

if TYPE_CHECKING:  # it needs torch, which `--help` does without
    from dllm.cache.policy import CachePolicy

if __name__ != "dllm.cache":
    raise ImportError("this folder is dllm.cache: import it under that name")

POLICIES: Registry[CachePolicy] = Registry(
    "cache policy",
    "dllm.cache",
    {
        "none": "dllm.cache.none:NoCache",
        "prefix": "dllm.cache.fastdllm:Prefix",
        "dual": "dllm.cache.fastdllm:Dual",
        "block": "dllm.cache.block:BlockPolicy",
        "vicinity": "dllm.cache.vicinity:Vicinity",
        "delayed": "dllm.cache.delayed:Delayed",
        "delayed-greedy": "dllm.cache.greedy:GreedyPolicy",
        "freeze": "dllm.cache.freecache:FreezeLeft",
        "elastic": "dllm.cache.elastic:Elastic",
        "interval": "dllm.cache.interval:Interval",
        "sparse": "dllm.cache.sparse:Sparse",
    },
    method="query",
)
