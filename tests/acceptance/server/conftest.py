"""Servers for one test, and for all tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Servers


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Starts servers for one test."""
    made = Servers(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Starts servers for all tests of a module."""
    made = Servers(tmp_path_factory.mktemp("servers"))
    yield made
    made.close()
