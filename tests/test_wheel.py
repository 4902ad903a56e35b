"""The wheel holds what the tree holds: every module once, the typing marker and the assets."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BUILDERS = {
    "from the tree": [
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "out",
    ],
    "through the sdist": ["build", "--no-isolation", "--outdir", "out"],
}


@pytest.fixture(scope="module", params=BUILDERS.values(), ids=BUILDERS.keys())
def wheel(request, root: Path, tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves build/ behind and would pack again what is there."""
    copy = tmp_path_factory.mktemp("wheel") / "tree"
    copy.mkdir()
    for folder in ("dllm", "samplers", "cache", "verify"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / folder, copy / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / file, copy)
    command = [sys.executable, "-m", *request.param]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "out").glob("*.whl")
    return built


def test_wheel_holds_the_tree_once(wheel, root, modules):
    names = zipfile.ZipFile(wheel).namelist()
    packed = [name for name in names if ".dist-info/" not in name]
    expected = {name.replace(".", "/") + ".py" for name in modules} | {"dllm/py.typed"}
    assets = (root / "dllm" / "assets").rglob("*")
    expected |= {file.relative_to(root).as_posix() for file in assets if file.is_file()}
    assert len(packed) == len(set(packed))
    assert set(packed) == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_unpacked_wheel_generates_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import dllm, dllm.cache, dllm.samplers, dllm.verify\n"
        "for m in (dllm, dllm.cache, dllm.samplers, dllm.verify): print(m.__file__)\n"
        "out = dllm.load('tiny').generate('Copy the list: fig, plum, kiwi', max_new_tokens=32)\n"
        "assert out.text == 'fig, plum, kiwi', out\n"
        "pair = dllm.verify.load('tiny-ar', 'tiny')\n"
        "out = pair.generate('Copy the list: fig, plum, kiwi')\n"
        "assert out.text == 'fig, plum, kiwi', out"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    files = done.stdout.split("\n")[:-1]
    assert len(files) == 4
    assert all(Path(file).is_relative_to(site) for file in files)
