"""Files that are whole or not there at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content`; an old file is replaced at once or not at all."""
    temp = path.with_name(path.name + ".tmp")
    temp.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temp, path)
