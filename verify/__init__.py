"""Drafts verified by an autoregressive target, whose own output they never change."""

if __name__ != "dllm.verify":
    raise ImportError("this folder is dllm.verify: import it under that name")
