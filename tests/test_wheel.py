"""Installed, the package is what the tree is: as a wheel, and from a clone without links."""

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
    archive = zipfile.ZipFile(wheel)
    assert all(archive.read(name) == (root / name).read_bytes() for name in packed)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.parametrize("wheel", [BUILDERS["through the sdist"]], ids=["sdist"], indirect=True)
def test_unpacked_wheel_generates_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import dllm, dllm.cache, dllm.samplers, dllm.verify\n"
        "for m in (dllm, dllm.cache, dllm.samplers, dllm.verify): print(m.__file__)\n"
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


def test_a_clone_without_links_is_installed_whole(root, tmp_path):
    """As git checks out on Windows, where a link becomes a text file."""
    clone, venv = tmp_path / "clone", tmp_path / "venv"
    git = ["git", "clone", "-q", "--depth=1", "-c", "core.symlinks=false", root.as_uri(), clone]
    if subprocess.run(git, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    assert (clone / "dllm" / "cache").read_text() == "../cache"
    python = venv / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-e", "."]
    install = [python, "-m", "pip", "install", "-q", *options]
    done = subprocess.run(install, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packages = [f"dllm.{name}" for name in ("cache", "samplers", "verify", "verify.draft")]
    code = f"import {', '.join(packages)}; print(dllm.__file__, dllm.cache.__file__)"
    for place in (tmp_path, clone):  # there `dllm` is found in the working directory first
        done = subprocess.run([python, "-c", code], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        files = [str(clone / name / "__init__.py") for name in ("dllm", "cache")]
        assert done.stdout.split() == files
    dllm = [venv / "bin" / "dllm", "--version"]
    done = subprocess.run(dllm, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("dllm "), done.stderr
