"""Which positions a forward queries: key/value store, plan, one file per cache policy."""

if __name__ != "dllm.cache":
    raise ImportError("this folder is dllm.cache: import it under that name")

# Name a user types -> where it lives; third parties use the entry-point group "dllm.cache".
POLICIES = {
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
}
