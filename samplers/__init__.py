"""Which predicted tokens are kept: commit rules, planners and stop rules, one file per paper."""

if __name__ != "dllm.samplers":
    raise ImportError("this folder is dllm.samplers: import it under that name")

# Name a user types -> where it lives. Loaded on first use; third parties add theirs through the
# entry-point groups "dllm.samplers", "dllm.planners", ... or by typing module:Class.
SAMPLERS = {
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
}
PLANNERS = {
    "fixed": "dllm.samplers.planner:FixedBlocks",
    "adablock": "dllm.samplers.adablock:AdaBlock",
    "slowfast": "dllm.samplers.slowfast:SlowFast",
    "multi": "dllm.samplers.multi:MultiBlock",
}
STOP_RULES = {
    "prophet": "dllm.samplers.prophet:Prophet",
    "eotp": "dllm.samplers.learn2pd:EndOfText",
}
TRANSFORMS = {"credit": "dllm.samplers.credit:Credit"}
SPECULATORS = {
    "freedave": "dllm.samplers.speculation:FreeDave",
    "ssd": "dllm.samplers.speculation:SelfSpeculation",
}
