"""One measurement in a process of its own: `run.py` starts it, says what to measure, and when.

The first line on standard input is the case, a JSON object; the answer is a line with what is known of it, "out_of_memory" or
"impossible". Each further line asks for a turn, answered by the seconds of its steps, or by a ceiling. Images are random.
"""

import contextlib
import functools
import importlib.util
import json
import os
import platform
import resource
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed
import shared
from shared import renaming, shapes, weights

WARM_UP = 1  # steps behind the first
OURS = ("twins", "recommended", "twins again")  # the others are other projects'
TURN = 1.0  # seconds that a turn takes at least
SIDE = {"cpu": 2048, "gpu": 8192}  # of the matrices whose product is timed
BYTES = 2**29  # of each of the two arrays whose copy is timed: more than any cache
SGD = {"learning_rate": 0.01, "momentum": 0.9}


class Torch:
    """PyTorch's side of a case: `step()` does one step and returns when it is done."""

    def __init__(self, case):
        import torch

        self.torch, self.case = torch, case
        self.device = _torch_device(torch, case["device"])
        self.dtype = getattr(torch, "float32" if case["dtype"] == "tf32" else case["dtype"])
        torch.backends.cudnn.benchmark = True  # the first call picks the fastest kernels, as TensorFlow always does
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case["dtype"] == "tf32"

    def prepare(self):
        """Build the network; returns its number of trainable parameters."""
        torch, case = self.torch, self.case
        net = self.network()
        training = case["mode"] == "train"
        count = sum(parameter.numel() for parameter in net.parameters())
        layout = torch.channels_last if case["format"] == "nhwc" else torch.contiguous_format
        # In training the weights stay in float32 and autocast chooses; in inference they are of the type.
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

        def train():
            with mixed:
                loss = torch.nn.functional.cross_entropy(_logits(run(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def infer():
            with torch.inference_mode():
                run(images)

        self.work = train if training else infer
        return count

    def network(self):
        """The network, or another project's of the same name with its weights, where these fit."""
        case = self.case
        if case["implementation"] in OURS:
            import torch_impl

            net = torch_impl.build(case["spec"])
            return torch_impl.folded(net) if case["fold"] else net
        net = getattr(self, case["implementation"])(case["spec"])
        state = {name: self.torch.from_numpy(array) for name, array in weights.initial(case["spec"]).items()}
        with contextlib.suppress(RuntimeError):  # names of its own
            net.load_state_dict(state, strict=False)
        return net

    def torchvision(self, spec):
        from torchvision import models

        name = self.published(spec, "torchvision")
        options = {"aux_logits": False} if name == "googlenet" else {}
        with warnings.catch_warnings(action="ignore"):  # of its slow initial weights
            return models.get_model(name, weights=None, num_classes=_classes(spec), **options)

    def timm(self, spec):
        import timm

        name = self.published(spec, "timm")
        if name not in timm.list_models():
            raise shared.Error(f"timm has no {spec['name']}")
        return timm.create_model(name, num_classes=_classes(spec))

    @staticmethod
    def published(spec, peer):
        """torchvision's name for the network, which timm has from it."""
        publisher, _, name = spec.get("weights", "").partition(" ")
        if publisher != "torchvision":
            raise shared.Error(f"{peer} has no {spec['name']}")
        return name

    def step(self):
        self.work()
        self.wait()

    def wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def about(self):
        torch = self.torch
        name = torch.cuda.get_device_name() if self.device == "cuda" else processor()
        return {"device": name, "versions": versions(self.case, "torch"), "threads": torch.get_num_threads()}

    def peak(self):
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else _peak()

    def ceiling(self):
        """A matrix in float32, the same in the case's type; what multiplies one with itself; what copies memory."""
        torch = self.torch
        a = torch.rand(SIDE[self.case["device"]], SIDE[self.case["device"]], device=self.device)
        source = torch.rand(BYTES // 4, device=self.device)
        target = torch.empty_like(source)
        return a, a.to(self.dtype), lambda a: (a @ a, self.wait()), lambda: (target.copy_(source), self.wait())


class Keras:
    """Keras's side of a case, on the backend that `os.environ["KERAS_BACKEND"]` names."""

    peers = {"keras.applications": "keras", "keras_hub": "keras_hub"}

    def __init__(self, case):
        os.environ["KERAS_BACKEND"] = self.backend
        import keras

        self.keras, self.case = keras, case
        name = "float32" if case["dtype"] == "tf32" else case["dtype"]
        self.dtype = name if name == "float32" or case["mode"] == "infer" else f"mixed_{name}"
        keras.config.set_dtype_policy(self.dtype)

    def prepare(self):
        case, net = self.case, self.network()
        images, labels = inputs(case)
        self.images = self.keras.ops.convert_to_tensor(np.moveaxis(images, 1, -1), dtype=net.compute_dtype)
        self.labels = self.keras.ops.convert_to_tensor(labels.astype("int32"))
        self.net = net
        if case["mode"] == "train":
            self.optimizer = self.keras.optimizers.SGD(**SGD)
            self.optimizer.build(net.trainable_variables)
            self.work = self.training()
        else:
            self.work = self.inference()
        return sum(int(np.prod(variable.shape)) for variable in net.trainable_variables) or None

    def network(self):
        case = self.case
        spec = case["spec"]
        if case["implementation"] in OURS:
            import keras_impl

            net = keras_impl.build(spec, dtype=self.dtype)
            return keras_impl.folded(net) if case["fold"] else net
        return self.applications(spec) if case["implementation"] == "keras.applications" else self.hub(spec)

    def applications(self, spec):
        """The network that "weights" in the spec names, with the weights that ours begins with."""
        publisher, _, name = spec.get("weights", "").partition(" ")
        if publisher != "keras.applications":
            raise shared.Error(f"keras.applications has no {spec['name']}; it has resnet50_keras, vgg16_keras and their like")
        size = (*self.case["size"], spec["input"][0])
        if size[:2] != tuple(spec["input"][1:]) and spec["layers"][-3]["type"] != "global_avg_pool":
            raise shared.Error(f"keras.applications' {name} takes images of {size[0]}x{size[1]} without its classifier alone")
        net = getattr(self.keras.applications, name)(weights=None, input_shape=size, classifier_activation=None)
        arrays = dict(renaming.to_application(weights.initial(spec), spec).values())
        for layer in net.layers:
            layer.set_weights([arrays[f"{layer.name}/{variable.name}"] for variable in layer.weights])
        return net

    def hub(self, spec):
        import keras_hub

        blocks = [layer for layer in spec["layers"] if layer["type"] in ("basic", "bottleneck")]
        if spec["name"] not in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
            raise shared.Error(f"keras_hub has no {spec['name']}; it has resnet18 to resnet152")
        backbone = keras_hub.models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=[layer["repeat"] for layer in blocks],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type=f"{blocks[0]['type']}_block",
            image_shape=(*self.case["size"], spec["input"][0]),
        )
        return keras_hub.models.ResNetImageClassifier(backbone, _classes(spec))

    def loss(self, logits):
        keras = self.keras
        logits = keras.ops.cast(_logits(logits), "float32")
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(self.labels, logits, from_logits=True))

    def step(self):
        self.wait(self.work())

    def about(self):
        return {"device": self.name(), "versions": versions(self.case, "keras", self.backend), "threads": self.threads()}


class TensorFlow(Keras):
    """Keras on TensorFlow, in a `tf.function`."""

    backend = "tensorflow"

    def __init__(self, case):
        import tensorflow as tf

        self.tf = tf
        self.gpus = tf.config.list_physical_devices("GPU")
        if case["device"] == "gpu" and not self.gpus:
            raise shared.Error("TensorFlow sees no GPU; --device cpu measures the processor")
        tf.config.experimental.enable_tensor_float_32_execution(case["dtype"] == "tf32")
        super().__init__(case)

    def inference(self):
        infer = self.tf.function(lambda images: self.net(images, training=False), jit_compile=self.case["compile"])
        return lambda: infer(self.images)

    def training(self):
        @self.tf.function(jit_compile=self.case["compile"])
        def train():
            with self.tf.GradientTape() as tape:
                loss = self.loss(self.net(self.images, training=True))
            found = self.net.trainable_variables
            self.optimizer.apply(tape.gradient(loss, [variable.value for variable in found]), found)
            return loss

        return train

    def wait(self, result):
        result.numpy()  # a tensor may be there before its numbers are

    def name(self):
        details = self.tf.config.experimental.get_device_details
        return details(self.gpus[0]).get("device_name", "GPU") if self.gpus else processor()

    def threads(self):
        return self.tf.config.threading.get_intra_op_parallelism_threads() or cores()  # 0: one for each core it may use

    def peak(self):
        return self.tf.config.experimental.get_memory_info("GPU:0")["peak"] if self.gpus else _peak()

    def ceiling(self):
        tf, side = self.tf, SIDE[self.case["device"]]
        a = tf.random.uniform((side, side))
        half = tf.cast(a, self.keras.config.dtype_policy().compute_dtype)
        source = tf.random.uniform((BYTES // 4,))
        product, copy = tf.function(lambda a: tf.matmul(a, a)[0, 0]), tf.function(lambda a: (a + 1)[0])  # a copy would be none
        return a, half, lambda a: product(a).numpy(), lambda: copy(source).numpy()


class Jax(Keras):
    """Keras on JAX, which compiles every step."""

    backend = "jax"

    def __init__(self, case):
        import jax

        self.jax = jax
        if case["device"] == "gpu" and jax.default_backend() != "gpu":
            raise shared.Error("JAX sees no GPU; --device cpu measures the processor")
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if case["dtype"] == "tf32" else "float32")
        if case["dtype"] in ("bfloat16", "float16"):
            jax.config.update("jax_default_matmul_precision", "default")
        super().__init__(case)

    def inference(self):
        infer = self.jax.jit(lambda state, images: self.net.stateless_call(*state, images, training=False)[0])
        state = [[v.value for v in vs] for vs in (self.net.trainable_variables, self.net.non_trainable_variables)]
        return lambda: infer(state, self.images)

    def training(self):
        net, optimizer = self.net, self.optimizer

        def loss(trainable, others, images):
            logits, others = net.stateless_call(trainable, others, images, training=True)
            return self.loss(logits), others

        @functools.partial(self.jax.jit, donate_argnums=0)
        def train(state, images):
            trainable, others, kept = state
            (value, others), gradients = self.jax.value_and_grad(loss, has_aux=True)(trainable, others, images)
            trainable, kept = optimizer.stateless_apply(kept, gradients, trainable)
            return value, (trainable, others, kept)

        state = [[v.value for v in vs] for vs in (net.trainable_variables, net.non_trainable_variables, optimizer.variables)]

        def step():
            nonlocal state
            value, state = train(state, self.images)
            return state

        return step

    def wait(self, result):
        self.jax.block_until_ready(result)

    def name(self):
        device = self.jax.devices()[0]
        return device.device_kind if device.platform != "cpu" else processor()

    def threads(self):
        return cores()

    def peak(self):
        found = self.jax.devices()[0].memory_stats() or {}
        return found.get("peak_bytes_in_use") or _peak()

    def ceiling(self):
        jax, side = self.jax, SIDE[self.case["device"]]
        a = jax.random.uniform(jax.random.key(0), (side, side))
        half = a.astype(self.keras.config.dtype_policy().compute_dtype)
        source = jax.random.uniform(jax.random.key(1), (BYTES // 4,))
        product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)  # a mere copy would be left out
        return a, half, lambda a: product(a).block_until_ready(), lambda: copy(source).block_until_ready()


class KerasTorch(Keras):
    """Keras on PyTorch."""

    backend = "torch"

    def __init__(self, case):
        self.engine = Torch(case)
        super().__init__(case)

    def inference(self):
        def infer(images):
            with self.engine.torch.inference_mode():
                return self.net(images, training=False)

        run = self.engine.torch.compile(infer) if self.case["compile"] else infer
        return lambda: run(self.images)

    def training(self):
        call = functools.partial(self.net, training=True)
        run = self.engine.torch.compile(call) if self.case["compile"] else call
        found = self.net.trainable_variables

        def step():
            self.net.zero_grad()
            self.loss(run(self.images)).backward()
            with self.engine.torch.no_grad():
                self.optimizer.apply([variable.value.grad for variable in found], found)

        return step

    def wait(self, result):
        self.engine.wait()

    def name(self):
        return self.engine.about()["device"]

    def threads(self):
        return self.engine.about()["threads"]

    def peak(self):
        return self.engine.peak()

    def ceiling(self):
        return self.engine.ceiling()


BACKENDS = {"torch": Torch, "tf": TensorFlow, "jax": Jax, "keras-torch": KerasTorch}
NEEDS = {"torch": "torch", "tf": "tensorflow", "jax": "jax", "keras-torch": "torch"}


def inputs(case):
    """Random images (batch, channels, height, width) and labels."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((case["batch"], case["spec"]["input"][0], *case["size"]), np.float32)
    return images, generator.integers(_classes(case["spec"]), size=case["batch"])


def processor():
    """The processor's name, which Python itself does not know on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(case, *packages):
    """{package: version} of the frameworks, and of the peer if it is a package of its own."""
    peer = [case["implementation"]] if case["implementation"] in ("torchvision", "timm", "keras_hub") else []
    return {name: version(name.replace("_", "-")) for name in (*packages, *peer)}


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def timed(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def turn(step):
    """The seconds of the steps of one turn."""
    step()  # brings back what an idle process loses: caches, and pages that the system has reclaimed
    times = [timed(step)]
    while sum(times) < TURN:
        times.append(timed(step))
    return times


def _torch_device(torch, device):
    if device == "gpu" and not torch.cuda.is_available():
        raise shared.Error("PyTorch sees no GPU; --device cpu measures the processor")
    return "cuda" if device == "gpu" else "cpu"


def _classes(spec):
    return shapes.layers(spec)[-1].shape[0]


def _logits(output):
    return output.logits if hasattr(output, "logits") else output


def _peak():
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def out_of_memory(error):
    # By name, since only one framework is there; PyTorch has no class of its own for a CPU's memory.
    words = f"{type(error).__name__} {error}".lower().replace(" ", "").replace("_", "")
    signs = ("outofmemory", "resourceexhausted", "defaultcpuallocator", "allocfailed", "badalloc")
    return isinstance(error, MemoryError) or any(sign in words for sign in signs)


def serve(ask, answer):
    """Measure what the lines that `ask` gives ask for, and `answer` each."""
    case = json.loads(next(ask))
    for package in (NEEDS[case["backend"]], Keras.peers.get(case["implementation"], case["implementation"])):
        if package not in (*OURS, "ceiling") and not importlib.util.find_spec(package):
            return answer(impossible=f"{package} is not installed: pip install {package.replace('_', '-')}")
    try:
        side = BACKENDS[case["backend"]](case)
        if case["implementation"] == "ceiling":
            a, half, product, copy = side.ceiling()
            # In float32, too, which a network may fall back on
            products = [functools.partial(product, matrix) for matrix in ([a] if half.dtype == a.dtype else [a, half])]
            for work in (*products, copy):
                work()
            answer(**side.about())
            for _ in ask:
                flops = 2 * SIDE[case["device"]] ** 3 / min(timed(work) for work in products for _ in range(3))
                answer(flops=flops, bytes=2 * BYTES / min(timed(copy) for _ in range(3)))
            return None
        parameters = side.prepare()
        first = timed(side.step)
        for _ in range(WARM_UP):
            side.step()
        answer(parameters=parameters, first_call=first, **side.about())
        for _ in ask:
            answer(times=turn(side.step), peak=side.peak())
    except shared.Error as error:
        answer(impossible=str(error))
    except Exception as error:
        if not out_of_memory(error):
            raise
        answer(out_of_memory=True)


if __name__ == "__main__":
    screen = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the frameworks print is no answer
    serve(sys.stdin, lambda **values: print(json.dumps(values), file=screen, flush=True))
