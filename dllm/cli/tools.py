"""The verbs around decoding: samplers, env."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

from rich.console import Console
from typer import Argument, Option

from dllm.cli.app import verb


@verb()
def samplers(
    name: Annotated[
        str | None, Argument(help="Show in full what is called so.", metavar="NAME")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all components, their options with defaults and their papers; then the presets."""
    import dllm.cli.listing as listing

    if name is not None:
        listing.check_name(name)
    console = Console(highlight=False)
    if as_json:
        print(json.dumps(listing.as_json(name), ensure_ascii=False))
    elif name is None:
        listing.print_components(console)
    else:
        listing.print_named(console, name)


@verb()
def env(as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, devices and threads."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    import dllm

    found: dict[str, Any] = {"dllm": dllm.__version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found |= {
        "platform": platform.platform(),
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        value = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<14}{value or 'none'}")
