"""What the engine leaves to TensorFlow: graphs, gradients, and the devices of a `tf.distribute` strategy."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import shared
from shared.checks import LostProcessError

from .engine import Engine, Function
from .layers import Tensor


class TensorFlowEngine(Engine):
    """`Engine` on Keras's TensorFlow backend.

    A network built in the scope of a `tf.distribute` strategy trains on all of the strategy's devices. With
    MultiWorkerMirroredStrategy these are divided among the `processes`.
    """

    def _find_devices(self) -> None:
        one_device = tf.distribute.get_strategy()
        made = (getattr(variable.value, "distribute_strategy", one_device) for variable in self.weights.values())
        self.strategy = next(made, one_device)
        self.shares = self.strategy.num_replicas_in_sync
        cluster = self.strategy.cluster_resolver
        self.rank = cluster.task_id if cluster else 0
        self.processes = cluster.cluster_spec().num_tasks("worker") if cluster else 1
        self._total = tf.function(lambda array: self.strategy.reduce("SUM", array, axis=None))

    def _on_all_devices(self) -> contextlib.AbstractContextManager[Any]:
        return self.strategy.scope()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            if self.processes == 1 or isinstance(error, tf.errors.ResourceExhaustedError):
                raise
            # TensorFlow notices by heartbeats, within seconds, that a process is gone, and ends what waits for it.
            raise LostProcessError(
                f"process {self.rank} of {self.processes}: the connection to another process is lost"
            ) from None

    def _inference(self, function: Function) -> Function:
        return tf.function(function)  # twice as fast as eager

    def _updating(self, function: Function, repeated: bool = False) -> Function:
        return tf.function(function) if repeated else function

    def _training(self, function: Function) -> Function:
        self._step = tf.function(function, jit_compile=self._compiled or None)
        return self._step if self.shares == 1 else tf.function(self._all_steps)

    def _all_steps(self, *arguments: Any) -> tuple[Tensor, Tensor, list[Tensor] | None, Tensor | None]:
        """`_one_step` on all devices."""
        loss, correct, gradients, taken = self.strategy.run(self._one_step, args=arguments)
        reduce, kinds = self.strategy.reduce, tf.distribute.ReduceOp
        if taken is not None:
            taken = self.strategy.experimental_local_results(taken)[0]
        return reduce(kinds.MEAN, loss, axis=None), reduce(kinds.SUM, correct, axis=None), gradients, taken

    def _derivatives(
        self, function: Function, images: Tensor, variables: Mapping[str, keras.Variable], of_images: bool = False
    ) -> tuple[Any, Tensor | None, dict[str, Tensor | None]]:
        with tf.GradientTape() as tape:
            if of_images:
                tape.watch(images)
            loss, others = function(images)
        sources = {name: variable.value for name, variable in variables.items()}
        of_input, gradients = tape.gradient(loss, ({"": images} if of_images else {}, sources))
        return others, of_input.get(""), gradients

    def _input_gradients(self, function: Function, images: Tensor) -> dict[str, Tensor]:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(images)
            values = function(images)
        return {name: tape.gradient(value, images) for name, value in values.items()}

    def _clipped(self, gradients: Sequence[Tensor], scale: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """As `Engine._clipped`, by what all devices have together: their share of it each, since the optimiser sums."""
        if not self.clip and scale is None:
            return list(gradients), None
        if self.shares > 1:
            used = [g for g in gradients if g is not None]
            sums = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, used))
            gradients = [None if g is None else next(sums) for g in gradients]
        clipped, is_finite = super()._clipped(gradients, scale)
        return [None if g is None else g / self.shares for g in clipped], is_finite

    def _split(self, batch: Tensor) -> Tensor:
        here = self.shares // self.processes
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: batch[context.replica_id_in_sync_group % here :: here]
        )

    def _sum_of_processes(self, array: np.ndarray) -> np.ndarray:
        own = tf.constant(array)
        here = self.shares // self.processes  # devices, of which the first has the array
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.zeros_like(own) if context.replica_id_in_sync_group % here else own
        )
        return self._total(values).numpy()


def devices(count: int | None) -> contextlib.AbstractContextManager[Any]:
    """The scope in which a network is built for `count` devices, or for those of all workers that TF_CONFIG names.

    Raises `shared.Error` if there are fewer GPUs, and if the workers do not reach one another.
    """
    workers = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {}).get("worker", [])
    if len(workers) > 1:
        try:
            return tf.distribute.MultiWorkerMirroredStrategy().scope()
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            first = f"{error}".partition("\n")[0]
            raise shared.Error(f"the workers of TF_CONFIG cannot reach one another: {first}") from None
    if not count or count == 1:
        return contextlib.nullcontext()

    gpus = tf.config.list_physical_devices("GPU")
    if gpus and len(gpus) < count:
        raise shared.Error(f"--devices is {count}, but there are {len(gpus)} GPUs")
    kind = "GPU" if gpus else "CPU"
    if not gpus:
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    return tf.distribute.MirroredStrategy([f"{kind}:{number}" for number in range(count)]).scope()
