"""Commit rules, planners, stop rules, transforms and speculators by name, one file per paper.

They are loaded on first use. Other packages name theirs in the entry-point groups; a user may also
type module:Class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm.registry import Registry

if TYPE_CHECKING:  # they need torch, which `--help` does without
    from dllm.samplers.protocols import Planner, Speculator, StopRule, Transform
    from dllm.samplers.rule import CommitRule

if __name__ != "dllm.samplers":
    raise ImportError("this folder is dllm.samplers: import it under that name")

SAMPLERS: Registry[CommitRule] = Registry(
    "sampler",
    "dllm.samplers",
    {
        "quota": "dllm.samplers.quota:Quota",
        "dream": "dllm.samplers.dream:Dream",
        "threshold": "dllm.samplers.fastdllm:ThresholdRule",
        "factor": "dllm.samplers.fastdllm:Factor",
        "frechet": "dllm.samplers.frechet:Frechet",
        "localleap": "dllm.samplers.localleap:LocalLeap",
        "entropy": "dllm.samplers.dparallel:Entropy",
        "eb": "dllm.samplers.eb:EntropyBound",
        "klass": "dllm.samplers.klass:Klass",
        "hierarchical": "dllm.samplers.hierarchical:Hierarchical",
        "dus": "dllm.samplers.dus:Dilated",
        "pc": "dllm.samplers.pc:PositionCalibrated",
        "fhs": "dllm.samplers.fhs:FirstHitting",
        "saber": "dllm.samplers.saber:Saber",
        "learn2pd": "dllm.samplers.learn2pd:Learn2PD",
        "scheduler": "dllm.samplers.scheduler:Scheduler",
    },
    method="select",
)
PLANNERS: Registry[Planner] = Registry(
    "planner",
    "dllm.planners",
    {
        "fixed": "dllm.samplers.planner:FixedBlocks",
        "adablock": "dllm.samplers.adablock:AdaBlock",
        "slowfast": "dllm.samplers.slowfast:SlowFast",
        "multi": "dllm.samplers.multi:MultiBlock",
    },
    method="windows",
)
STOP_RULES: Registry[StopRule] = Registry(
    "stop rule",
    "dllm.stop_rules",
    {
        "prophet": "dllm.samplers.prophet:Prophet",
        "eotp": "dllm.samplers.learn2pd:EndOfText",
    },
    method="check",
)
TRANSFORMS: Registry[Transform] = Registry(
    "transform", "dllm.transforms", {"credit": "dllm.samplers.credit:Credit"}, method="apply"
)
SPECULATORS: Registry[Speculator] = Registry(
    "speculator",
    "dllm.speculators",
    {
        "freedave": "dllm.samplers.speculation:FreeDave",
        "ssd": "dllm.samplers.speculation:SelfSpeculation",
    },
    method="drafts",
)
