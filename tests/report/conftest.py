"""A run folder for every test that shows one."""

import pytest

from tests.report.sample import write


@pytest.fixture
def run_folder(tmp_path):
    return write(tmp_path / "network-slimming-resnet56")
