"""What the tests of the command line share."""

import re
import subprocess
import sys

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
