"""Set before the tests import the frameworks, and which tests share a process."""

import os

import pytest

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # else PyTorch's idle threads spin, and TensorFlow waits for a core


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """Which tests share a process: those of one pair of networks, which is built once, and else those of one file."""
    for item in items:
        pair = item.callspec.id if "pair" in item.fixturenames and hasattr(item, "callspec") else ""
        item.add_marker(pytest.mark.xdist_group(f"{item.module.__name__} {pair}"))
