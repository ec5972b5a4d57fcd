"""Candidates that take turns, each in a process of its own, A B B A, so that whatever else the machine does meets all of them.

Two processes of one network may differ for as long as they live, so all are started afresh for each of several sittings.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candidates import Case, Device, Peer, title

from shared import shapes

Say = Callable[[str], None]  # called with what is being done


class Failed(Exception):  # noqa: N818
    """A candidate cannot be measured; the message says why."""


@dataclass(eq=False)
class Measured:
    """What one process has measured of one candidate."""

    case: Case
    about: dict[str, Any]  # the answer to the case
    turns: list[dict[str, Any]]  # the answers to the turns


class Worker(Measured):
    """A process that measures one candidate when asked."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, {}, [])
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = os.environ | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # the others need memory, too
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            **({"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"} if case["device"] == Device.CPU else {}),
        }
        command = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        pipe = subprocess.PIPE
        self.oom_kills = oom_kills()
        # In a session of its own, so that its compilers end with it.
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment, start_new_session=True
        )
        assert self.process.stdin and self.process.stdout
        self.questions, self.answers = self.process.stdin, self.process.stdout

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to a line. Raises `Failed` or `MemoryError`."""
        try:
            self.questions.write(f"{line}\n")
            self.questions.flush()
        except BrokenPipeError:
            pass  # its exit says why
        text = self.answers.readline()
        if not text:
            raise self.death(self.process.wait())
        answer: dict[str, Any] = json.loads(text)
        if "out_of_memory" in answer:
            raise MemoryError
        if "impossible" in answer:
            raise Failed(answer["impossible"])
        return answer

    def death(self, status: int) -> Failed | MemoryError:
        """Why the process has ended, with this exit status."""
        if status == -signal.SIGKILL and oom_kills() > self.oom_kills:
            return MemoryError()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        if status < 0:
            return Failed(f"{self.case['implementation']} was killed by {signal.Signals(-status).name}")
        return Failed(f"{self.case['implementation']} failed: {lines[-1] if lines else status}")

    def close(self) -> None:
        """End the process and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.questions, self.answers, self.errors):
            with contextlib.suppress(BrokenPipeError):  # a question that nobody has read
                file.close()


def oom_kills() -> int:
    """How many processes Linux has ended since it started because memory had run out; 0 where it does not say."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))


def compare(cases: Sequence[Case], processes: int, rounds: int, say: Say) -> tuple[list[list[Measured]], list[str]]:
    """(workers of each candidate, one a sitting; notes on what failed). The batch halves until there is memory for all.

    A candidate that fails is left out of the sittings that follow.
    """
    cases = [dict(case) for case in cases]
    order = list(cases)
    sittings: list[list[Measured]] = []
    notes: list[str] = []

    def say_which(text: str) -> None:
        say(f"{text}, process {len(sittings) + 1} of {processes}")

    while order and len(sittings) < processes:
        try:
            sittings.append(sit(order, rounds, notes, say_which))
            order.reverse()  # the first of this sitting is the last of the next
        except MemoryError as error:
            sittings, batch = [], cases[0]["batch"]
            if batch == 1:
                notes.append(f"{title(cases[0])}: out of memory with a batch of 1 ({error})")
                break
            notes.append(f"{title(cases[0])}: out of memory with a batch of {batch} ({error}), measured with {batch // 2}")
            for case in cases:
                case["batch"] = batch // 2
    candidates = [[worker for workers in sittings for worker in workers if worker.case is case] for case in cases]
    return [workers for workers in candidates if workers], notes


def sit(cases: list[Case], rounds: int, notes: list[str], say: Say) -> list[Measured]:
    """Workers that have taken their turns, one a case. What fails is noted in `notes` and removed from `cases`.

    Raises `MemoryError` if there is not enough for all of them at once.
    """
    workers: list[Worker] = []
    try:
        for case in list(cases):
            say(f"{title(case)}: starting {case['implementation']}")
            workers.append(Worker(case))
            try:
                workers[-1].about = workers[-1].ask(json.dumps(case))
                check_same(case, workers[-1].about.get("parameters"))
            except Failed as error:
                workers.pop().close()
                cases.remove(case)
                notes.append(str(error))
        for number in range(rounds):
            for worker in workers[:: -1 if number % 2 else 1]:  # no worker always follows the same one
                say(f"{title(worker.case)}: {worker.case['implementation']}, turn {number + 1} of {rounds}")
                try:
                    worker.turns.append(worker.ask("turn"))
                except Failed as error:
                    workers.remove(worker)
                    worker.close()
                    cases.remove(worker.case)
                    notes.append(f"{title(worker.case)}: {error}")
        return list(workers)
    except MemoryError:
        raise MemoryError(f"{len(workers)} processes at once") from None
    finally:
        for worker in workers:
            worker.close()


def check_same(case: Case, parameters: int | None) -> None:
    """Raise `Failed` if a network of another project, by its number of parameters, is not the spec's."""
    expected = shapes.parameters(shapes.layers(case["spec"]))
    if case["implementation"] in list(Peer) and parameters != expected:
        name = f"{case['implementation']}'s {case['spec']['name']}"
        raise Failed(f"{name} has {parameters:,} parameters, not {expected:,}: another network")
