"""What the tests of the command line share."""

import re
import subprocess
import sys

import torch

import dllm
from dllm.verify import HFTarget, SpecEngine
from dllm.verify.draft.drafter import ModelDrafter
from tests.verify.tiny_targets import llama

PROMPT = "one two three four five six seven"
FIELDS = {
    "prompt",
    "text",
    "token_ids",
    "finish_reason",
    "nfe",
    "canvases",
    "slots",
    "answer_tokens",
    "tokens_per_forward",
    "committed_per_forward",
    "timings",
}
SUMMARY = r"forwards \d+ · tokens \d+ · tokens/forward [\d.]+ · tokens/s \d+ · finished: {}\n"


def fails(result, *words):
    """One line on stderr that holds `words`, nothing on stdout, status 2."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"error: .*\n", result.stderr)
    for word in words:
        assert word in result.stderr


def modules_after(*arguments):
    """Top-level modules that a command line has imported when it ends."""
    code = (
        "import sys; from dllm.__main__ import main\n"
        f"sys.argv = ['dllm', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def random_pair(folder):
    """A target of random weights, drafted for by the checkpoint in `folder`, whose words it has."""
    drafting = dllm.load(folder)
    spec = drafting.model.spec
    torch.manual_seed(0)
    special = {"eos_token_id": spec.eos_id, "pad_token_id": spec.pad_id}
    target = HFTarget(llama(vocab_size=spec.vocab_size, **special).eval())
    drafter = ModelDrafter(drafting.model, eos=spec.stop_ids)
    return SpecEngine(target, drafting.text, drafter)
