"""What a program can be run behind."""

import pytest

from dllm.errors import DllmError
from dllm.eval.sandbox.execution import WALLS, execute


@pytest.fixture(params=WALLS, ids=[wall.name for wall in WALLS], scope="module")
def wall(request):
    """Each wall that this system has."""
    try:
        execute("", wall=request.param)
    except DllmError as error:
        pytest.skip(str(error))
    return request.param
