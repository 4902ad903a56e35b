"""Which predicted tokens are kept: commit rules, planners and stop rules, one file per paper."""

if __name__ != "dllm.samplers":
    raise ImportError("this folder is dllm.samplers: import it under that name")

# Name a user types -> where it lives. Loaded on first use; third parties add theirs through the
# entry-point group "dllm.samplers" or by typing module:Class.
SAMPLERS = {
    "quota": "dllm.samplers.quota:Quota",
    "dream": "dllm.samplers.dream:Dream",
    "threshold": "dllm.samplers.threshold:Threshold",
}
PLANNERS = {"fixed": "dllm.samplers.planner:Fixed"}
