"""Process that renders chat templates, a JSON line in, a JSON line out: see templates.py.

Run as a file, with the seconds of a line and the bytes of memory that end it; imports jinja2 alone.
The environment is the one of transformers' apply_chat_template.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SHOWN = 500  # characters of an error
LONGEST = 2**24  # characters of a text: more tokens than any model has positions


class Generation(Extension):
    """{% generation %}: marks what an assistant wrote, which changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class PlainNamespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args  # a template may call one of its names "self"
        Namespace.__init__(self)
        for name, value in dict(*values, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no name like {name!r}")
        super().__setitem__(name, value)


class Dict:
    """dict() without dict's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def refuse(message: str) -> None:
    raise TemplateError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: jinja2's own filter escapes what HTML would read."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": PlainNamespace,
    }
    return environment.from_string(template)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The text of a template, or what is wrong with it."""
    try:
        text = compiled(request["template"]).render(request["values"])
        if len(text) > LONGEST:
            return {"error": f"gives {len(text)} characters, expected at most {LONGEST}"}
        return {"text": text}
    except TemplateError as error:
        return {"error": f"refuses: {shown(error)}"}
    except MemoryError:
        return {"error": "takes too much memory"}
    except Exception as error:  # a template can raise whatever its operators and filters do
        return {"error": f"fails: {type(error).__name__}: {shown(error)}"}


def shown(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:SHOWN]


def main() -> None:
    seconds, memory = map(int, sys.argv[1:])
    with suppress(ImportError, ValueError, OSError):  # Windows has none, macOS does not keep to it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    alarm = getattr(signal, "alarm", lambda seconds: None)
    for line in sys.stdin.buffer:
        alarm(seconds)  # ends the process where nobody is left to do so
        reply = json.dumps(answer(json.loads(line)))
        alarm(0)
        sys.stdout.buffer.write(reply.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
