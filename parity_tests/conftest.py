"""Set before the tests import the frameworks, and which tests share a process."""

import os

import pytest

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # else PyTorch's idle threads spin, and TensorFlow waits for a core
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, each of which gets a core
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"))


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run what takes long")


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist all tests share one
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        """A file's tests share a process; in `test_networks.py` a network's, which is built once for all of them; in
        `test_docs.py` a page's, whose blocks run in order."""

        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            if file.endswith("test_docs.py") and "[docs/" in test:
                return test.partition("[")[2].partition(":")[0]
            return test.partition("[")[2] if file.endswith("test_networks.py") and "[" in test else file

    return Scheduling(config, log)
