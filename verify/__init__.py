"""Drafts verified by an autoregressive target, whose own output they never change."""

if __name__ != "dllm.verify":
    raise ImportError("this folder is dllm.verify: import it under that name")

# How far to draft and how much to verify: name a user types -> where it lives.
CONTROLS = {
    "fixed": "dllm.verify.control:Fixed",
    "adl": "dllm.verify.control:Adl",
    "threshold": "dllm.verify.control:Threshold",
    "cost": "dllm.verify.goodput:Cost",
}
