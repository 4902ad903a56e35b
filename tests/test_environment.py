"""What a result says of the machine it was measured on."""

import json

from dllm.environment import environment, revision


def test_a_folder_inside_somebody_s_checkout_has_no_revision(root):
    """As a virtual environment in the folder of another project."""
    assert revision(root / "docs") is None


def test_no_names_or_paths_of_the_machine(root):
    found = environment()
    assert {"dllm", "revision", "torch", "cpu_cores"} <= found.keys()
    assert str(root) not in json.dumps(found)
