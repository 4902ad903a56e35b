"""The house stands as planned: packages, links, guards, file sizes, and an import that is light."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOP = ("cache", "samplers", "verify")
MAX_LINES = 400
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:home|Users|root|work)/\w")


@pytest.fixture(scope="module")
def setuptools_table(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_with_code_is_a_listed_package(setuptools_table, modules):
    """A folder that the list forgets works in a clone and is absent from the wheel."""
    listed = setuptools_table["packages"]
    assert listed == sorted(set(listed))
    assert {name.rpartition(".")[0] for name in modules} == set(listed)
    assert {f"{package}.__init__" for package in listed} <= modules.keys()


def test_package_dirs_are_the_real_folders(setuptools_table):
    assert setuptools_table["package-dir"] == {"dllm": "dllm"} | {f"dllm.{t}": t for t in TOP}


@pytest.mark.parametrize("name", TOP)
def test_link_is_relative_and_right(root, name):
    link = root / "dllm" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert (root / name).is_dir()
    assert not (root / name).is_symlink()


@pytest.mark.parametrize("name", TOP)
def test_top_folder_imports_under_one_name_only(root, monkeypatch, name):
    monkeypatch.syspath_prepend(str(root))
    with pytest.raises(ImportError, match=f"this folder is dllm.{name}"):
        importlib.import_module(name)
    importlib.import_module(f"dllm.{name}")
    assert not {m for m in sys.modules if m.partition(".")[0] in TOP}


def test_import_dllm_is_light(root):
    heavy = {"torch", "transformers", "tokenizers", "numpy", "rich", "typer"}
    code = f"import sys, dllm; print(*sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_no_file_names_a_path_of_one_machine(root):
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(git, cwd=root, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        try:
            text = (root / name).read_text(encoding="utf-8")
        except (
            UnicodeDecodeError,
            OSError,
        ):  # binary; a link to a folder; deleted but still tracked
            continue
        found += [f"{name}: {hit.group()}" for hit in MACHINE_PATH.finditer(text)]
    assert found == []


def test_files_are_short(modules):
    lengths = {name: len(file.read_text().splitlines()) for name, file in modules.items()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}
