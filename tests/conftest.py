"""How the tests run: in which order, and the drawn ones without a deadline: a busy machine is no defect."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.sim.rows import close_all

settings.register_profile("here", deadline=None, print_blob=True)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def _sessions_are_closed() -> Iterator[None]:
    """What a test has read holds files."""
    yield
    close_all()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Heavy tests go first: run beside sensors and daemons they would delay what is dated by real clocks."""
    items.sort(key=lambda item: item.get_closest_marker("heavy") is None)
