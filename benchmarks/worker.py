"""One measurement in a process of its own: `sittings.py` starts it, says what to measure, and when.

The first line on standard input is the case, a JSON object; the answer is a line with what is known of it, "out_of_memory" or
"impossible". Each further line asks for a turn, answered by the seconds of its steps, or by a ceiling. Images are random.

Frameworks are imported here as a user of one of them would, not through `twins.backends`, which sets up two in one process.
"""

import abc
import contextlib
import functools
import importlib.util
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
from candidates import AGAIN, CEILING, OURS, Case, Device, Dtype, Format, Mode, Peer
from origin import processor

from shared import renaming, shapes, weights
from shared.checks import Error, is_out_of_memory
from shared.spec import Spec
from twins.backends import KERAS_BACKENDS, Backend
from twins.loading import cores

WARM_UP = 1  # steps after the first
TURN = 1.0  # seconds that a turn takes at least
SIDE = {Device.CPU: 2048, Device.GPU: 8192}  # of the matrices whose product is timed
BYTES = 2**29  # of each of the two arrays whose copy is timed: more than any cache
SGD = {"learning_rate": 0.01, "momentum": 0.9}
PEER_PACKAGES = {Peer.TORCHVISION: "torchvision", Peer.TIMM: "timm", Peer.KERAS_HUB: "keras_hub"}  # beside the frameworks

Ceiling = tuple[Any, Any, Sequence[Callable[[Any], object]], Callable[[], object]]  # as `Side.ceiling` gives it


class Side(abc.ABC):
    """A framework's side of a case, whose `step` returns when it is done."""

    @abc.abstractmethod
    def __init__(self, case: Case) -> None:
        """Start the framework."""

    @abc.abstractmethod
    def prepare(self) -> int | None:
        """Build the network; returns its number of trainable parameters."""

    @abc.abstractmethod
    def step(self) -> None:
        """Do one step of inference or training."""

    @abc.abstractmethod
    def about(self) -> dict[str, Any]:
        """The "device", the "versions" of packages, the number of "threads"."""

    @abc.abstractmethod
    def peak(self) -> int:
        """The most memory that this process has had, in bytes."""

    @abc.abstractmethod
    def ceiling(self) -> Ceiling:
        """A matrix in float32; the same in the case's precision; ways to multiply one by itself; what copies memory."""


class Torch(Side):
    """PyTorch's side."""

    def __init__(self, case: Case) -> None:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the commands do; other projects gain by it too
        import torch

        self.torch, self.case = torch, case
        if case["device"] == Device.GPU and not torch.cuda.is_available():
            raise Error("PyTorch sees no GPU; --device cpu measures the processor")
        self.device = "cuda" if case["device"] == Device.GPU else "cpu"
        self.dtype = getattr(torch, compute_dtype(case))
        torch.backends.cudnn.benchmark = True  # the first call picks the fastest kernels, as TensorFlow always does
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case["dtype"] == Dtype.TF32

    def prepare(self) -> int | None:
        torch, case = self.torch, self.case
        net = self.network()
        training = case["mode"] == Mode.TRAIN
        count = sum(parameter.numel() for parameter in net.parameters())
        layout = torch.channels_last if case["format"] == Format.NHWC else torch.contiguous_format
        # In training the weights stay in float32 and autocast chooses; in inference they are of the case's precision.
        dtype = torch.float32 if training else self.dtype
        net = net.to(self.device, dtype, memory_format=layout).train(training)
        images, labels = (torch.from_numpy(array).to(self.device) for array in inputs(case))
        images = images.to(dtype, memory_format=layout)
        run = net
        if case["compile"]:
            run = torch.compile(net, mode="reduce-overhead" if case["cuda_graphs"] else None)
        mixed = torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)
        if training:
            optimizer = torch.optim.SGD(net.parameters(), SGD["learning_rate"], SGD["momentum"])

        def train() -> None:
            with mixed:
                loss = torch.nn.functional.cross_entropy(only_logits(run(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def infer() -> None:
            with torch.inference_mode():
                run(images)

        self.work = train if training else infer
        return count

    def network(self) -> Any:
        """The network, or another project's of the same name with its weights, where these fit."""
        case = self.case
        spec = case["spec"]
        if is_ours(case):
            import torch_impl

            net = torch_impl.build(spec)
            return torch_impl.folded(net) if case["fold"] else net
        net = self.torchvision(spec) if case["implementation"] == Peer.TORCHVISION else self.timm(spec)
        state = {name: self.torch.from_numpy(array) for name, array in weights.initial(spec).items()}
        with contextlib.suppress(RuntimeError):  # names of its own
            net.load_state_dict(state, strict=False)
        return net

    def torchvision(self, spec: Spec) -> Any:
        """torchvision's network. Raises `Error` if it has none."""
        from torchvision import models

        name = self.published(spec, "torchvision")
        options = {"aux_logits": False} if name == "googlenet" else {}
        with warnings.catch_warnings(action="ignore"):  # of its slow initial weights
            return models.get_model(name, weights=None, num_classes=classes(spec), **options)

    def timm(self, spec: Spec) -> Any:
        """timm's network. Raises `Error` if it has none."""
        import timm  # type: ignore[import-not-found, import-untyped, unused-ignore]

        name = self.published(spec, "timm")
        if name not in timm.list_models():
            raise Error(f"timm has no {spec['name']}")
        return timm.create_model(name, num_classes=classes(spec))

    @staticmethod
    def published(spec: Spec, peer: str) -> str:
        """torchvision's name for the network, which timm has taken over. Raises `Error` if there is none."""
        publisher, _, name = spec.get("weights", "").partition(" ")
        if publisher != "torchvision":
            raise Error(f"{peer} has no {spec['name']}")
        return str(name)

    def step(self) -> None:
        self.work()
        self.wait()

    def wait(self) -> None:
        """Wait until the GPU is done."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def about(self) -> dict[str, Any]:
        torch = self.torch
        name = torch.cuda.get_device_name() if self.device == "cuda" else processor()
        return {"device": name, "versions": versions(self.case, "torch"), "threads": torch.get_num_threads()}

    def peak(self) -> int:
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else peak_memory()

    def ceiling(self) -> Ceiling:
        torch, side = self.torch, SIDE[self.case["device"]]
        matrix = torch.rand(side, side, device=self.device)
        source = torch.rand(BYTES // 4, device=self.device)
        target = torch.empty_like(source)

        def product(a: Any) -> None:
            a @ a
            self.wait()

        def convolution(a: Any) -> None:
            # The same product by another library, oneDNN: on AMD's processors MKL is the slower of the two
            torch.conv2d(a.view(1, side, 1, side).permute(0, 3, 1, 2), a.view(side, side, 1, 1))
            self.wait()

        def copy() -> None:
            target.copy_(source)
            self.wait()

        ways = (product, convolution) if self.device == "cpu" else (product,)
        return matrix, matrix.to(self.dtype), ways, copy


class Keras(Side):
    """Keras's side, on a backend that each subclass names."""

    backend: ClassVar[Backend]

    def __init__(self, case: Case) -> None:
        os.environ["KERAS_BACKEND"] = KERAS_BACKENDS[self.backend]
        import keras

        self.keras, self.case = keras, case
        name = compute_dtype(case)
        self.dtype = name if name == Dtype.FLOAT32 or case["mode"] == Mode.INFER else f"mixed_{name}"
        keras.config.set_dtype_policy(self.dtype)

    @abc.abstractmethod
    def inference(self) -> Callable[[], Any]:
        """What classifies `self.images`; returns what to wait for."""

    @abc.abstractmethod
    def training(self) -> Callable[[], Any]:
        """What takes a step on `self.images` and `self.labels`; returns what to wait for."""

    @abc.abstractmethod
    def wait(self, result: Any) -> None:
        """Wait for what a step returns."""

    @abc.abstractmethod
    def device_name(self) -> str:
        """The name of the processor or GPU."""

    @abc.abstractmethod
    def threads(self) -> int | None:
        """The number of threads that an operation may use."""

    def prepare(self) -> int | None:
        case, net = self.case, self.network()
        images, labels = inputs(case)
        self.images = self.keras.ops.convert_to_tensor(np.moveaxis(images, 1, -1), dtype=net.compute_dtype)
        self.labels = self.keras.ops.convert_to_tensor(labels.astype("int32"))
        self.net = net
        if case["mode"] == Mode.TRAIN:
            self.optimizer = self.keras.optimizers.SGD(**SGD)
            self.optimizer.build(net.trainable_variables)
            self.work = self.training()
        else:
            self.work = self.inference()
        return sum(int(np.prod(variable.shape)) for variable in net.trainable_variables) or None

    def network(self) -> Any:
        """The network, or another project's of the same name."""
        case = self.case
        spec = case["spec"]
        if is_ours(case):
            import keras_impl

            net = keras_impl.build(spec, dtype=self.dtype)
            return keras_impl.folded(net) if case["fold"] else net
        return self.applications(spec) if case["implementation"] == Peer.KERAS_APPLICATIONS else self.hub(spec)

    def applications(self, spec: Spec) -> Any:
        """keras.applications' network, named by "weights" in the spec, with our initial weights. Raises `Error` without one."""
        publisher, _, name = spec.get("weights", "").partition(" ")
        if publisher != "keras.applications":
            raise Error(f"keras.applications has no {spec['name']}; it has resnet50_keras, vgg16_keras and their like")
        size = (*self.case["size"], spec["input"][0])
        if size[:2] != tuple(spec["input"][1:]) and spec["layers"][-3]["type"] != "global_avg_pool":
            raise Error(f"keras.applications' {name} takes images of {size[0]}x{size[1]} only without its classifier")
        net = getattr(self.keras.applications, name)(weights=None, input_shape=size, classifier_activation=None)
        arrays = dict(renaming.to_application(weights.initial(spec), spec).values())
        for layer in net.layers:
            layer.set_weights([arrays[f"{layer.name}/{variable.name}"] for variable in layer.weights])
        return net

    def hub(self, spec: Spec) -> Any:
        """keras_hub's network. Raises `Error` if it has none."""
        import keras_hub  # type: ignore[import-not-found, import-untyped, unused-ignore]

        blocks = [layer for layer in spec["layers"] if layer["type"] in ("basic", "bottleneck")]
        if spec["name"] not in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
            raise Error(f"keras_hub has no {spec['name']}; it has resnet18 to resnet152")
        backbone = keras_hub.models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=[layer["repeat"] for layer in blocks],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type=f"{blocks[0]['type']}_block",
            image_shape=(*self.case["size"], spec["input"][0]),
        )
        return keras_hub.models.ResNetImageClassifier(backbone, classes(spec))

    def loss(self, logits: Any) -> Any:
        """The mean cross-entropy, in float32."""
        keras = self.keras
        logits = keras.ops.cast(only_logits(logits), "float32")
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(self.labels, logits, from_logits=True))

    def step(self) -> None:
        self.wait(self.work())

    def about(self) -> dict[str, Any]:
        packages = versions(self.case, "keras", KERAS_BACKENDS[self.backend])
        return {"device": self.device_name(), "versions": packages, "threads": self.threads()}


class TensorFlow(Keras):
    """Keras on TensorFlow, in a `tf.function`."""

    backend = Backend.TF

    def __init__(self, case: Case) -> None:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the commands do; other projects gain by it too
        import tensorflow as tf

        self.tf = tf
        self.gpus = tf.config.list_physical_devices("GPU")
        if case["device"] == Device.GPU and not self.gpus:
            raise Error("TensorFlow sees no GPU; --device cpu measures the processor")
        tf.config.experimental.enable_tensor_float_32_execution(case["dtype"] == Dtype.TF32)
        super().__init__(case)

    def inference(self) -> Callable[[], Any]:
        infer = self.tf.function(lambda images: self.net(images, training=False), jit_compile=self.case["compile"])
        return lambda: infer(self.images)

    def training(self) -> Callable[[], Any]:
        @self.tf.function(jit_compile=self.case["compile"])
        def train() -> Any:
            with self.tf.GradientTape() as tape:
                loss = self.loss(self.net(self.images, training=True))
            variables = self.net.trainable_variables
            self.optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
            return loss

        return train

    def wait(self, result: Any) -> None:
        result.numpy()  # a tensor may be there before its numbers are

    def device_name(self) -> str:
        details = self.tf.config.experimental.get_device_details
        return details(self.gpus[0]).get("device_name", "GPU") if self.gpus else processor()

    def threads(self) -> int | None:
        return self.tf.config.threading.get_intra_op_parallelism_threads() or cores()  # 0: one for each core it may use

    def peak(self) -> int:
        return self.tf.config.experimental.get_memory_info("GPU:0")["peak"] if self.gpus else peak_memory()

    def ceiling(self) -> Ceiling:
        tf, side = self.tf, SIDE[self.case["device"]]
        matrix = tf.random.uniform((side, side))
        cast = tf.cast(matrix, self.keras.config.dtype_policy().compute_dtype)
        source = tf.random.uniform((BYTES // 4,))
        # A mere copy would be left out
        product, copy = tf.function(lambda a: tf.matmul(a, a)[0, 0]), tf.function(lambda a: (a + 1)[0])
        return matrix, cast, [lambda a: product(a).numpy()], lambda: copy(source).numpy()


class Jax(Keras):
    """Keras on JAX, which compiles every step."""

    backend = Backend.JAX

    def __init__(self, case: Case) -> None:
        import jax

        self.jax = jax
        if case["device"] == Device.GPU and jax.default_backend() != "gpu":
            raise Error("JAX sees no GPU; --device cpu measures the processor")
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if case["dtype"] == Dtype.TF32 else "float32")
        if case["dtype"] in (Dtype.BFLOAT16, Dtype.FLOAT16):
            jax.config.update("jax_default_matmul_precision", "default")
        super().__init__(case)

    def inference(self) -> Callable[[], Any]:
        infer = self.jax.jit(lambda state, images: self.net.stateless_call(*state, images, training=False)[0])
        state = [[v.value for v in vs] for vs in (self.net.trainable_variables, self.net.non_trainable_variables)]
        return lambda: infer(state, self.images)

    def training(self) -> Callable[[], Any]:
        net, optimizer = self.net, self.optimizer

        def loss(trainable: Any, others: Any, images: Any) -> Any:
            logits, others = net.stateless_call(trainable, others, images, training=True)
            return self.loss(logits), others

        @functools.partial(self.jax.jit, donate_argnums=0)
        def train(state: Any, images: Any) -> Any:
            trainable, others, slots = state
            (value, others), gradients = self.jax.value_and_grad(loss, has_aux=True)(trainable, others, images)
            trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
            return value, (trainable, others, slots)

        state: Any = [
            [v.value for v in vs] for vs in (net.trainable_variables, net.non_trainable_variables, optimizer.variables)
        ]

        def step() -> Any:
            nonlocal state
            _, state = train(state, self.images)
            return state

        return step

    def wait(self, result: Any) -> None:
        self.jax.block_until_ready(result)

    def device_name(self) -> str:
        device = self.jax.devices()[0]
        return device.device_kind if device.platform != "cpu" else processor()

    def threads(self) -> int | None:
        return cores()

    def peak(self) -> int:
        statistics = self.jax.devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use") or peak_memory()

    def ceiling(self) -> Ceiling:
        jax, side = self.jax, SIDE[self.case["device"]]
        matrix = jax.random.uniform(jax.random.key(0), (side, side))
        cast = matrix.astype(self.keras.config.dtype_policy().compute_dtype)
        source = jax.random.uniform(jax.random.key(1), (BYTES // 4,))
        product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)  # a mere copy would be left out
        return matrix, cast, [lambda a: product(a).block_until_ready()], lambda: copy(source).block_until_ready()


class KerasTorch(Keras):
    """Keras on PyTorch."""

    backend = Backend.KERAS_TORCH

    def __init__(self, case: Case) -> None:
        self.pytorch = Torch(case)
        super().__init__(case)

    def inference(self) -> Callable[[], Any]:
        torch = self.pytorch.torch

        def infer(images: Any) -> Any:
            with torch.inference_mode():
                return self.net(images, training=False)

        run = torch.compile(infer) if self.case["compile"] else infer
        return lambda: run(self.images)

    def training(self) -> Callable[[], Any]:
        torch = self.pytorch.torch
        call = functools.partial(self.net, training=True)
        run = torch.compile(call) if self.case["compile"] else call
        variables = self.net.trainable_variables

        def step() -> None:
            self.net.zero_grad()
            self.loss(run(self.images)).backward()
            with torch.no_grad():
                self.optimizer.apply([variable.value.grad for variable in variables], variables)

        return step

    def wait(self, result: Any) -> None:
        self.pytorch.wait()

    def device_name(self) -> str:
        return str(self.pytorch.about()["device"])

    def threads(self) -> int | None:
        return int(self.pytorch.about()["threads"])

    def peak(self) -> int:
        return self.pytorch.peak()

    def ceiling(self) -> Ceiling:
        return self.pytorch.ceiling()


SIDES: dict[Backend, type[Side]] = {
    Backend.TORCH: Torch,
    Backend.TF: TensorFlow,
    Backend.JAX: Jax,
    Backend.KERAS_TORCH: KerasTorch,
}


def is_ours(case: Case) -> bool:
    """Whether the network is this project's."""
    return case["implementation"] in (*OURS, AGAIN)


def compute_dtype(case: Case) -> str:
    """The precision as frameworks name it: float32, bfloat16 or float16."""
    return str(Dtype.FLOAT32 if case["dtype"] == Dtype.TF32 else case["dtype"])


def inputs(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Random images (batch, channels, height, width) and labels."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((case["batch"], case["spec"]["input"][0], *case["size"]), np.float32)
    return images, generator.integers(classes(case["spec"]), size=(case["batch"],))


def classes(spec: Spec) -> int:
    """The number of a network's classes."""
    return shapes.layers(spec)[-1].shape[0]


def only_logits(output: Any) -> Any:
    """The logits of an output; some networks add auxiliary ones."""
    return output.logits if hasattr(output, "logits") else output


def versions(case: Case, *packages: str) -> dict[str, str]:
    """{package: version} of the frameworks, and of the peer if it is a package of its own."""
    peer = PEER_PACKAGES.get(case["implementation"])
    return {name: version(name.replace("_", "-")) for name in (*packages, *([peer] if peer else []))}


def missing_package(case: Case) -> str | None:
    """The first package that the case needs and that is not installed, or None."""
    framework = KERAS_BACKENDS.get(case["backend"], "torch")
    peer = PEER_PACKAGES.get(case["implementation"])
    needed = [framework, *([peer] if peer else []), *(["keras"] if case["implementation"] == Peer.KERAS_APPLICATIONS else [])]
    return next((name for name in needed if not importlib.util.find_spec(name)), None)


def peak_memory() -> int:
    """The most main memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def timed(work: Callable[[], object]) -> float:
    """How many seconds a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turn(step: Callable[[], object]) -> list[float]:
    """The seconds of the steps of one turn."""
    step()  # brings back what an idle process loses: caches, and pages that the system has reclaimed
    times = [timed(step)]
    while sum(times) < TURN:
        times.append(timed(step))
    return times


def serve_ceiling(side: Side, case: Case, requests: Iterable[str], answer: Callable[..., None]) -> None:
    """Measure what the machine can do, turn by turn."""
    matrix, cast, ways, copy = side.ceiling()
    # In float32, too, which a network may fall back on
    matrices = [matrix] if cast.dtype == matrix.dtype else [matrix, cast]
    products = [functools.partial(multiply, each) for multiply in ways for each in matrices]
    for product in products:
        product()
    copy()
    answer(**side.about())
    for _ in requests:
        flops = 2 * SIDE[case["device"]] ** 3 / min(timed(product) for product in products for _ in range(3))
        answer(flops=flops, bytes=2 * BYTES / min(timed(copy) for _ in range(3)))


def serve_network(side: Side, requests: Iterable[str], answer: Callable[..., None]) -> None:
    """Measure the steps of a network, turn by turn."""
    parameters = side.prepare()
    first = timed(side.step)
    for _ in range(WARM_UP):
        side.step()
    answer(parameters=parameters, first_call=first, **side.about())
    for _ in requests:
        answer(times=turn(side.step), peak=side.peak())


def serve(requests: Iterable[str], answer: Callable[..., None]) -> None:
    """Measure what the lines of `requests` ask for, and `answer` each."""
    requests = iter(requests)
    case = json.loads(next(requests))
    missing = missing_package(case)
    if missing:
        return answer(impossible=f"{missing} is not installed: pip install {missing.replace('_', '-')}")
    try:
        side = SIDES[case["backend"]](case)
        if case["implementation"] == CEILING:
            serve_ceiling(side, case, requests, answer)
        else:
            serve_network(side, requests, answer)
    except Error as error:
        answer(impossible=str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        answer(out_of_memory=True)


if __name__ == "__main__":
    screen = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the frameworks print is no answer
    serve(sys.stdin, lambda **values: print(json.dumps(values), file=screen, flush=True))
