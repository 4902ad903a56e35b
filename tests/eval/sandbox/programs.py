"""Programs to run, and ways to run them without some of what keeps them in."""

from __future__ import annotations

import marshal

from dllm.eval.sandbox import execution

TEST = "assert add(2, 3) == 5"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"


def scripted(monkeypatch, text):
    """Put a script in the place of the sandbox."""
    script = marshal.dumps([("script", compile(f"{text}\ndef main(): pass", "<script>", "exec"))])
    monkeypatch.setattr(execution, "compiled", lambda: script)


def without_hook(monkeypatch):
    """The sandbox without its second wall."""
    text = execution.source("inside")
    for line in ("    hide()\n", "    sys.addaudithook(guard(os.getcwd(), tuple(shown)))\n"):
        assert text.count(line) == 1
        text = text.replace(line, "")
    sources = {name: execution.source(name) for name in execution.INSIDE} | {"inside": text}
    monkeypatch.setattr(execution, "source", sources.get)
    changed = execution.compiled.__wrapped__()
    monkeypatch.setattr(execution, "compiled", lambda: changed)
