"""The command line: every verb reads its options, asks the library, and prints.

Defaults live in the library: only options that the user gave are passed on. What imports torch is
imported inside the verbs, so that `dllm --help` answers at once.
"""

from dllm.cli import (  # noqa: F401 (they add their verbs)
    decode,
    eval_lm,
    eval_report,
    eval_run,
    speculate,
    tools,
    train,
    tune,
)
from dllm.cli.app import app, main

__all__ = ["app", "main"]
