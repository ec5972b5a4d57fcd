"""Set before the tests import the frameworks; what runs only with --long; which tests share a process, and in what order."""

import contextlib
import gc
import io
import os
import sys
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # else PyTorch's idle threads spin, and TensorFlow waits for a core
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, each of which gets a core
    threads = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"
    os.environ.update(dict.fromkeys(threads, "1"))

# Inputs that Hypothesis makes up, see test_fuzz.py: the same few in every run of the suite, and others with
# --hypothesis-profile long.
settings.register_profile(
    "suite",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.register_profile("long", settings.get_profile("suite"), max_examples=10_000, derandomize=False, print_blob=True)
settings.load_profile("suite")

# Files that take longest, longest first: those that wait for other processes. The networks of test_networks.py come last,
# one by one, so that all workers are busy to the end.
FIRST = ("test_runs.py", "test_imports.py", "test_benchmarks.py", "test_citizens.py", "test_blocks.py", "test_training.py")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the tests marked long as well; with -m long, only those")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes long and adds little to what runs every time; skipped without --long")
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would sort by number of tests


def scope(nodeid):
    """The tests that share a process: a file's; in `test_networks.py` a network's, which is built once for all of them; in
    `test_docs.py` a page's, whose blocks run in order; in `test_jax.py` each test, which starts a process of its own."""
    file, _, test = nodeid.partition("::")
    if file.endswith("test_jax.py"):
        return nodeid
    if file.endswith("test_docs.py") and "[docs/" in test:
        return test.partition("[")[2].partition(":")[0]
    return test.partition("[")[2] if file.endswith("test_networks.py") and "[" in test else file


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long; pytest --long runs it"))

    def place(item):
        name = item.path.name
        return FIRST.index(name) if name in FIRST else len(FIRST) + (name == "test_networks.py")

    items.sort(key=place)


def pytest_collection_finish():
    """Both frameworks are imported: a million objects that live to the end, and that no collection need look at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class Ended(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def twins():
    """The command `twins`, run in this process, which has both frameworks already; words apart, or in one string."""
    from twins.cli import main

    def run(*arguments, folder="."):
        words = arguments[0].split() if len(arguments) == 1 else map(str, arguments)
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), contextlib.chdir(folder):
            before, sys.argv = sys.argv, ["twins", *words]
            try:
                main()
            except SystemExit as end:
                return Ended(end.code or 0, out.getvalue(), error.getvalue())
            finally:
                sys.argv = before

    return run


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist all tests share one
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return scope(nodeid)

    return Scheduling(config, log)
