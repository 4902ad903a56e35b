"""What tests of adapters share."""

import pytest

from tests.models.adapters import save


@pytest.fixture
def saved(tmp_path):
    """The directory of an adapter, its base beside it."""
    save(tmp_path)
    return tmp_path / "adapter"
