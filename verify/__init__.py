"""Drafts verified by an autoregressive target: this engine is not part of the release yet."""

if __name__ != "dllm.verify":
    raise ImportError("this folder is dllm.verify: import it under that name")
