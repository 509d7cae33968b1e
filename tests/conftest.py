"""What every test can ask for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("prunus", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("prunus")


def pytest_configure(config: pytest.Config) -> None:
    """Tests of one worker share two cores with those of another."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and pretrained weights; tests that need it are skipped, saying so, where it is absent."""
    folder = Path(os.environ.get("PRUNUS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data" / "cifar10").is_dir():
        pytest.skip(f"no data and weights at {folder}; set PRUNUS_SHARED to the folder that holds data/ and models/")
    os.environ["PRUNUS_SHARED"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A test leaves torch's thread count as it found it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
