"""Measure how many images a second the networks take, in inference and in training, in PyTorch or in TensorFlow.

Times are in milliseconds, `param_count` is in millions, `gmacs` are 10^9 multiply-accumulates for one image in inference,
`img_size` is (height, width). A training step is forward pass, cross-entropy, backward pass and an SGD-momentum update.
"""

import datetime
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

try:
    import shared
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import shared
from shared import coexist, shapes
from shared.spec import nearest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

MODES = ("infer", "train")
DTYPES = ("float32", "float64", "bfloat16")
# Of the table: keys of the results, under timm's names where timm has one
COLUMNS = (
    "network infer_samples_per_sec train_samples_per_sec step_time step_time_p95 step_time_iqr first_call "
    "batch_size img_size param_count gmacs"
).split()
UNITS = {"param_count": "M", **dict.fromkeys(("step_time", "step_time_p95", "step_time_iqr", "first_call"), "ms")}


class Case(NamedTuple):
    """What one measurement is of."""

    spec: dict
    mode: str
    batch: int
    size: tuple[int, int]
    dtype: str
    rows: list[shapes.Row]

    @property
    def weight_dtype(self):
        """bfloat16 is mixed precision in both frameworks: the weights stay in float32."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    def inputs(self):
        """Random images (batch, channels, height, width) and labels."""
        generator = np.random.default_rng(0)
        images = generator.standard_normal((self.batch, self.spec["input"][0], *self.size), np.float32)
        return images.astype(self.weight_dtype), generator.integers(self.rows[-1].shape[0], size=self.batch)


def torch_environment():
    """Import PyTorch, and tell where it runs."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {"device": device, "versions": {"torch": torch.__version__}, "threads": torch.get_num_threads()}


def torch_step(case):
    """A function that does one step of the case in PyTorch, eagerly, and returns when it is done."""
    import torch

    import torch_impl

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True  # the first call picks the fastest kernels, as TensorFlow always does
    net = torch_impl.build(case.spec, dtype=case.weight_dtype).to(device).train(case.mode == "train")
    images, labels = (torch.from_numpy(array).to(device) for array in case.inputs())
    optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9)

    def forward():
        with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            return net(images)

    def train():
        loss = torch.nn.functional.cross_entropy(forward().to(images.dtype), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def step():
        with torch.inference_mode(case.mode == "infer"):
            train() if case.mode == "train" else forward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def tf_environment():
    """Import TensorFlow, and tell where it runs."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with coexist.silence():
        import keras
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else processor()
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = tf.config.threading.get_intra_op_parallelism_threads() or cores  # 0: one for each core it may use
    return {"device": device, "versions": versions, "threads": threads}


def tf_step(case):
    """A function that does one step of the case in TensorFlow, as a `tf.function`, and returns when it is done."""
    import tensorflow as tf

    import keras_impl

    net = keras_impl.build(case.spec, dtype="mixed_bfloat16" if case.dtype == "bfloat16" else case.dtype)
    images, labels = case.inputs()
    images, labels = tf.constant(np.moveaxis(images, 1, -1)), tf.constant(labels)
    optimizer = keras_impl.SGD(0.01, 0.9)
    optimizer.build(net.trainable_variables)

    @tf.function
    def infer(images, labels):
        return net(images, training=False)

    @tf.function
    def train(images, labels):
        with tf.GradientTape() as tape:
            logits = tf.cast(net(images, training=True), images.dtype)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        weights = net.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in weights], unconnected_gradients="zero"), weights)
        return loss

    step = train if case.mode == "train" else infer
    return lambda: step(images, labels).numpy()  # a tensor may be there before its numbers are


BACKENDS = {"torch": (torch_environment, torch_step), "tf": (tf_environment, tf_step)}


def measure(step, steps=None):
    """Time a function: its first call apart, then, warm, `steps` calls one by one; by default 10 to 100, for 10 seconds."""

    def timed():
        start = time.perf_counter()
        step()
        return 1000 * (time.perf_counter() - start)

    first_call, times = timed(), []
    for _ in range(3):
        step()
    while len(times) < (steps or 10) or (not steps and len(times) < 100 and sum(times) < 10_000):
        times.append(timed())
    low, median, high, p95 = np.percentile(times, (25, 50, 75, 95)).tolist()
    found = {"step_time": median, "step_time_p95": p95, "step_time_iqr": high - low}
    return found | {"first_call": first_call, "steps": len(times)}


def result(case, make_step, steps):
    """What is measured and known of a case. Raises `shared.Error` when it does not fit into memory."""
    name = case.spec["name"]
    try:
        found = measure(make_step(case), steps)
    except Exception as error:
        # By name, since only one framework is there; PyTorch has no class of its own for a CPU's memory.
        named = type(error).__name__ in ("OutOfMemoryError", "ResourceExhaustedError") or "DefaultCPUAllocator" in str(error)
        if not named and not isinstance(error, MemoryError):
            raise
        advice = f"--batch {case.batch // 2}" if case.batch > 1 else "a smaller --size"
        raise shared.Error(f"{name}, {case.mode}: out of memory with a batch of {case.batch}; try {advice}") from None
    return {
        "network": name,
        "mode": case.mode,
        f"{case.mode}_samples_per_sec": 1000 * case.batch / found["step_time"],
        **found,
        "batch_size": case.batch,
        "img_size": case.size,
        "dtype": case.dtype,
        "param_count": shapes.parameters(case.rows) / 1e6,
        "gmacs": sum(row.macs for row in case.rows) / 1e9,
    }


def cases_of(network, modes, batch, size, dtype):
    """The cases of one network. Raises `shared.Error` where it does not take the images or cannot be trained."""
    spec = shared.load(network)
    size = size or tuple(spec["input"][1:])
    try:
        rows = shapes.layers(spec, size)
    except shared.Error as error:
        raise shared.Error(f"{network}, images of {size[0]}x{size[1]}: {error}") from None
    if "train" in modes and len(rows[-1].shape) > 1:
        raise shared.Error(f"{network}: it ends in a map, not in a vector of logits to train on; use --mode infer")
    return [Case(spec, mode, batch, size, dtype, rows) for mode in modes]


@app.command()
def run(
    backend: Annotated[str, typer.Option(help="torch or tf.")],
    network: Annotated[list[str], typer.Option(help="A name, or the path of a .json spec; may be repeated.")] = ("resnet18",),
    mode: Annotated[str, typer.Option(help="infer, train or both.")] = "both",
    batch: Annotated[int, typer.Option(help="Images in a batch.")] = 16,
    size: Annotated[int | None, typer.Option(help="Height and width of the images, in pixels. Default: the spec's.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16 (mixed precision).")] = "float32",
    steps: Annotated[int | None, typer.Option(help="Timed steps. Default: 10 to 100, for about 10 seconds.")] = None,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON; - is stdout, alone.")] = None,
):  # fmt: skip
    """Measure images a second of networks, on the GPU if there is one, else on the CPU."""
    choices_of = {"backend": (backend, BACKENDS), "mode": (mode, (*MODES, "both")), "dtype": (dtype, DTYPES)}
    for option, (value, choices) in choices_of.items():
        if value not in choices:
            raise shared.Error(f"--{option} is {value!r}{nearest(value, choices)}; expected {', '.join(choices)}")
    for option, value in (("batch", batch), ("size", size), ("steps", steps)):
        if value is not None and value < 1:
            raise shared.Error(f"--{option} is {value}, expected a whole number of at least 1")
    modes = MODES if mode == "both" else (mode,)
    cases = [case for name in network for case in cases_of(name, modes, batch, size and (size, size), dtype)]
    if json_file not in (None, "-"):
        write(json_file)

    environment, make_step = BACKENDS[backend]
    with Console(stderr=True).status(f"starting {backend}") as status:
        about = {"backend": backend, **environment(), "python": platform.python_version(), "platform": platform.platform()}
        about["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        about["command"] = shlex.join(["python", *sys.argv])
        results = []
        for number, case in enumerate(cases, start=1):
            status.update(f"{backend}: {case.spec['name']}, {case.mode} ({number} of {len(cases)})")
            results.append(result(case, make_step, steps))
    text = json.dumps({"environment": about, "results": results}, indent=2) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
        return
    show(results, about)
    if json_file:
        write(json_file, text)


def show(results, about):
    # A pipe has no width of its own: wide enough there for a row to stay a row.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    wide = console.width >= 160
    keys = [key for key in COLUMNS if any(key in row for row in results) and (wide or key != "first_call")]
    for key in keys:
        name = f"{key} {UNITS.get(key, '')}".strip()
        if not wide:  # else the long names would take the numbers' place
            name = name.replace("_", "_\n").replace(" ", "\n")
        if key == "network":
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in results:
        table.add_row(*(in_words(row.get(key, "")) for key in keys))
    console.print(table)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(f"{about['device']}, {versions}, {about['threads']} threads, {results[0]['dtype']}", soft_wrap=True)


def in_words(value):
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def write(path, text=None):
    """Write a file, aside first and renamed when complete; without a text, only try whether it can be written."""
    path = Path(path)
    if path.is_dir():
        raise shared.Error(f"{path}: cannot be written: it is a folder")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text or "", encoding="utf-8")
        if text:
            os.replace(aside, path)
        else:
            aside.unlink()
    except OSError as error:
        raise shared.Error(f"{path}: cannot be written: {error.strerror or error}") from None


def processor():
    """The processor's name, which Python itself does not know on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    try:
        app()
    except shared.Error as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"run.py: {error}")
        sys.exit(2)
