"""What the engine leaves to JAX: functions of all variables' values, compiled, their gradients, and a mesh of devices."""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from keras import ops

import shared
from shared.checks import LostProcessError
from shared.coexist import silence
from shared.mixup import Labels, Mixed
from shared.processes import jax_process

from .engine import Engine, Function
from .layers import Tensor
from .network import Network
from .weights import variables as variables_of

BATCH = "batch"  # the axis of the devices


class _Scope(keras.StatelessScope):
    """A scope in which Keras's variables have these values, and what is assigned to them is theirs; it notes what is read."""

    def __init__(self, variables: Sequence[keras.Variable], values: Sequence[Tensor]) -> None:
        super().__init__(list(zip(variables, values, strict=True)))
        self.read: set[int] = set()

    def get_current_value(self, variable: keras.Variable) -> Tensor:
        self.read.add(id(variable))
        return super().get_current_value(variable)

    def values(self, variables: Sequence[keras.Variable]) -> list[Tensor]:
        return [self.state_mapping[id(variable)] for variable in variables]


class JaxEngine(Engine):
    """`Engine` on Keras's JAX backend, on the GPU or TPU if JAX has one.

    JAX compiles functions of values alone. So the functions here take the values of all variables, within a scope in which
    Keras's variables have them, and return them as they are at the end. Those of a step are donated: it writes its own there.

    With `devices`, a step runs on that many, each of which has a share of the batch and normalises by that alone: gradients
    are summed over all, running statistics averaged. Raises `shared.Error` if there are fewer. After
    `jax.distributed.initialize`, they are all devices of all processes; an engine without an optimiser is of its own process.
    """

    framework = "JAX"

    def __init__(
        self, net: Network, optimizer: dict[str, Any] | None = None, *arguments: Any, devices: int | None = None, **options: Any
    ) -> None:
        here = jax.devices() if optimizer else jax.local_devices()
        if optimizer and jax.process_count() > 1:
            devices = len(here)
        if len(here) < (devices or 1):
            raise shared.Error(f"--devices is {devices}, but JAX has {len(here)} of kind {here[0].platform}")
        self.mesh = jax.sharding.Mesh(here[: devices or 1], (BATCH,))
        self.together = False  # in a function that runs on all devices at once
        super().__init__(net, optimizer, *arguments, **options)

    def _find_devices(self) -> None:
        self.shares = self.mesh.size
        if self.mesh.is_multi_process:
            self.rank, self.processes = jax.process_index(), jax.process_count()

    def _variables(self) -> list[keras.Variable]:
        """All that a step may change: the network's, the optimiser's and the average."""
        of_network, average = variables_of(self.net).values(), self.average.values()
        # Keras does not count the learning rate among the optimiser's; as no variable of a step, it would be a constant.
        of_optimizer = [*self.optimizer.variables, self.optimizer._learning_rate] if self.optimizer else []
        return list({id(variable): variable for variable in (*of_network, *of_optimizer, *average)}.values())

    def _inference(self, function: Function) -> Function:
        own = list(variables_of(self.net).values())

        @jax.jit
        def run(values: list[Tensor], *arguments: Any) -> Any:
            with _Scope(own, values):
                return function(*arguments)

        return lambda *arguments: run([variable.value for variable in own], *arguments)

    def _updating(self, function: Function, repeated: bool = False) -> Function:
        return self._on_values(function)

    def _training(self, function: Function) -> Function:
        return self._on_values(function, static=(6,), on_all=self.shares > 1)

    def _on_values(self, function: Function, static: tuple[int, ...] = (), on_all: bool = False) -> Function:
        """A compiled function that may change any variable, on all devices at once if it is a pass of a step."""
        kept: list[keras.Variable] = []

        def run(values: list[Tensor], *arguments: Any) -> tuple[Any, list[Tensor]]:
            with _Scope(kept, values) as self.scope:
                return function(*arguments), self.scope.values(kept)

        run.__name__ = function.__name__  # in profiles, and in what JAX logs of its compiling
        compiled = jax.jit(self._on_mesh(run, kept) if on_all else run, donate_argnums=0, static_argnums=static)

        def call(*arguments: Any) -> Any:
            kept[:] = kept or self._variables()
            own = [variable.value for variable in kept]
            result, values = compiled(self._everywhere(own) if on_all else own, *arguments)
            if on_all and self.processes > 1:
                values = [self._here(value) for value in values]
            for variable, value in zip(kept, values, strict=True):
                variable.assign(value)
            return result

        return call

    def _everywhere(self, arrays: Any) -> Any:
        """Arrays of this process, in any nest, on all devices of all processes."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        if self.processes == 1:
            return jax.device_put(arrays, whole)  # they are already there, except at the first step

        def place(array: Tensor) -> Tensor:
            # What `_here` took from there is there: only further devices of this process need a copy.
            pieces = [jax.device_put(array, device) for device in self.mesh.local_devices]
            return jax.make_array_from_single_device_arrays(array.shape, whole, pieces)

        return jax.tree.map(place, arrays)

    @staticmethod
    def _here(array: Tensor) -> Tensor:
        """What all devices have alike, as this process alone has it."""
        return array.addressable_data(0)

    def _on_mesh(self, run: Function, kept: Sequence[keras.Variable]) -> Function:
        """A pass of a step, `run`, on all devices, each with its share of images, labels and masks."""

        def on_one(last: bool, values: list[Tensor], *arguments: Any) -> tuple[Any, list[Tensor]]:
            self.together = True
            try:
                (loss, correct, gradients, taken), after = run(values, *arguments, last)
            finally:
                self.together = False
            trained = {id(variable) for variable in self.weights.values()}
            of_network = {id(variable) for variable in variables_of(self.net).values()} - trained
            for place, variable in enumerate(kept):  # running statistics
                if id(variable) in of_network and after[place] is not values[place]:
                    after[place] = jax.lax.pmean(after[place], BATCH)
            return (jax.lax.pmean(loss, BATCH), jax.lax.psum(correct, BATCH), gradients, taken), after

        def on_all(values: list[Tensor], images: Tensor, labels: Any, masks: Any, *others: Any) -> Any:
            *rest, last = others
            whole, shared_out = PartitionSpec(), PartitionSpec(BATCH)
            batch = images, labels, masks
            specs = jax.tree.map(lambda array: shared_out if array.ndim else whole, batch)
            return jax.shard_map(
                lambda *given: on_one(last, *given),
                mesh=self.mesh,
                in_specs=(whole, *specs, *(whole for _ in rest)),
                out_specs=whole,
                check_vma=False,
            )(values, *batch, *rest)

        on_all.__name__ = run.__name__
        return on_all

    def _split(self, batch: Tensor) -> Tensor:
        # A device gets what is contiguous; as in the other frameworks, its share is every so-many-th image.
        here = self.shares // self.processes
        batch = ops.concatenate([batch[number::here] for number in range(here)])
        if self.processes == 1:
            return batch
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, PartitionSpec(BATCH)), np.asarray(batch))

    def _inputs(self, images: np.ndarray, labels: Labels) -> tuple[Any, Any, Any]:
        pictures, given, dropout_masks = super()._inputs(images, labels)
        if isinstance(given, Mixed) and self.processes > 1:
            given = given._replace(share=self._everywhere(given.share))
        return pictures, given, dropout_masks

    def _sum_of_processes(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(multihost_utils.process_allgather(array)).sum(0)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            is_own = isinstance(error, ValueError) and "Gloo" not in f"{error}"  # Gloo joins processors
            if self.processes == 1 or is_own or "RESOURCE_EXHAUSTED" in f"{error}":
                raise
            atexit.register(_leave)
            raise LostProcessError(
                f"process {self.rank} of {self.processes}: the connection to another process is lost"
            ) from None

    def _derivatives(
        self, function: Function, images: Tensor, variables: Mapping[str, keras.Variable], of_images: bool = False
    ) -> tuple[Any, Tensor | None, dict[str, Tensor | None]]:
        outer, everything = self.scope, self._variables()
        read: set[int] = set()

        def of_values(values: list[Tensor], pictures: Tensor) -> tuple[Tensor, Any]:
            with _Scope(everything, outer.values(everything)) as scope:
                scope.state_mapping |= {id(v): value for v, value in zip(variables.values(), values, strict=True)}
                loss, others = function(pictures)
            read.update(scope.read)
            return loss, (others, scope.values(everything))

        own = outer.values(list(variables.values()))
        wanted = (0, 1) if of_images else (0,)
        (_, (others, after)), found = jax.value_and_grad(of_values, wanted, has_aux=True)(own, images)
        for variable, value in zip(everything, after, strict=True):
            outer.add_update((variable, value))
        summed = jax.lax.psum(found[0], BATCH) if self.together else found[0]
        gradients = dict(zip(variables, summed, strict=True))
        # JAX's gradient for a variable that nothing uses is zero, by which momentum and weight decay would move it.
        used = {name: gradients[name] if id(variable) in read else None for name, variable in variables.items()}
        return others, found[1] if of_images else None, used

    def _input_gradients(self, function: Function, images: Tensor) -> dict[str, Tensor]:
        return self._inference(jax.jacrev(function))(images)


def _leave() -> None:
    """End this process with exit status 1: JAX, at its own end, would wait for the process that is gone, and then abort."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


def devices(count: int | None) -> contextlib.AbstractContextManager[Any]:
    """The context in which a network is built for `count` devices, which the processor is divided into without a GPU or TPU.

    If the environment variable JAX_NUM_PROCESSES is above 1, this process joins the others, which takes until all are there.
    Raises `shared.Error` if they do not come, or JAX's variables are wrong.
    """
    rank, processes = jax_process()
    if processes > 1 and not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], processes, rank, heartbeat_timeout_seconds=10)
            with silence(stdout=True):  # Gloo says that it is there
                multihost_utils.sync_global_devices("start")
        except (RuntimeError, ValueError) as error:
            first = f"{error}".partition("\n")[0]
            raise shared.Error(f"the processes of JAX_COORDINATOR_ADDRESS cannot reach one another: {first}") from None
    if count and count > 1:
        with contextlib.suppress(RuntimeError):  # JAX runs already; the engine counts what there is
            jax.config.update("jax_num_cpu_devices", count)
    return contextlib.nullcontext()
