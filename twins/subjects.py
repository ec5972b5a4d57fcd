"""What the judge of exercises compares: the reference, the reader's code and known mistakes, observed rung by rung.

An observation is {(case, quantity): array}, with PyTorch's axes and names.
"""

import ast
import contextlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared import limits, networks, shapes, weights
from shared.checks import Error, nearest
from shared.files import read_json
from shared.spec import Spec, unroll

from . import backends
from .exercises import arithmetic, form
from .exercises.form import Suspect
from .ladder import TOLERANCES, relative

RUNGS = {
    0: "it runs",
    1: "shapes and parameters",
    2: "output in evaluation",
    3: "output and gradients in training",
    4: "running statistics after a step",
    5: "steps of training",
}
EXACT = TOLERANCES["float64"]
LIMITS = {1: 0.0, 2: EXACT["activations"], 3: EXACT["gradients"], 4: EXACT["statistics"], 5: EXACT["weights"]}
DIFFERENCES = 1e-6  # of gradients by central differences
FLOAT32 = 1e-5  # what is this near and not equal was rounded to float32 on its way
Key = tuple[str, str]  # case, quantity
Observation = dict[Key, np.ndarray]


class FailError(Exception):
    """The reader's code raised an exception, the message says in which line; or it is a known mistake that cannot run."""

    def __init__(self, message: str, suspect: Suspect | None = None) -> None:
        super().__init__(message)
        self.suspect = suspect


def text(shape: Any) -> str:
    return "(" + ", ".join(str(int(n)) for n in np.ravel(shape)) + ")"


def agree(a: np.ndarray | None, b: np.ndarray | None, limit: float) -> bool:
    """Whether two arrays are the same within a limit; what is not finite in one must not be in the other."""
    if a is None or b is None or np.shape(a) != np.shape(b):
        return False
    a, b = np.asarray(a, float), np.asarray(b, float)
    finite = np.isfinite(a)
    return bool(np.array_equal(finite, np.isfinite(b))) and relative(a[finite], b[finite]) <= max(limit, 1e-12)


class Plain:
    """NumPy, for functions of arrays: as each package's `submission`."""

    FRAMEWORK = "NumPy"

    @staticmethod
    def double() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @staticmethod
    def call(function: Any, arguments: Any, layouts: Any, projection: Any = None, layout: str = "") -> Any:
        result = function(*(a.copy() if isinstance(a, np.ndarray) else a for a in arguments))
        if result is None:
            raise TypeError("it returns None: is there a return missing?")
        return [np.array(o) for o in (result if isinstance(result, (tuple, list)) else [result])], {}


class Subjects:
    """The reference, the reader's code and the suspects of an exercise, each of which is observed rung by rung."""

    framework = ""
    rungs: tuple[int, ...] = ()

    def precision(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def limit(self, rung: int) -> float:
        return LIMITS[rung]

    def ours(self, rung: int) -> Observation:
        raise NotImplementedError

    def theirs(self, rung: int) -> Observation:
        raise NotImplementedError

    def suspected(self, suspect: Suspect, rung: int) -> Observation:
        raise NotImplementedError

    def matches(
        self, suspect: Suspect, rung: int, key: Key, theirs: Observation, limit: float, only: str | None = None
    ) -> bool:
        """Whether a suspect gives the same as the reader's code for the quantity that differs, in every case or in one."""
        found = self.suspected(suspect, rung)
        keys = [other for other in theirs if other[1] == key[1] and only in (None, other[0])]
        return bool(keys) and all(agree(found.get(k), theirs[k], limit) for k in keys)

    def general(self, rung: int, key: Key, theirs: Observation) -> Suspect | None:
        """A mistake that can be made in any exercise, for what none of the exercise's own explains."""
        if rung == 3 and key[1].startswith("gradient") and not np.any(theirs.get(key, 0.0)):
            return form.DETACHED
        return None

    def numbers(self, rung: int, key: Key) -> dict[str, Any]:
        return {}

    def context(self, rung: int, key: Key) -> str:
        """What is to be said of the place, after the message on an unknown mistake."""
        return ""

    def unknown(self, rung: int, key: Key, ours: np.ndarray | None, theirs: np.ndarray | None) -> str:
        return ""

    def praise(self) -> str:
        return "right: it agrees with the reference on every rung"


class Code(Subjects):
    """Code in a Python file."""

    def __init__(self, exercise: Any, path: Path, thing: Any, submission: Any) -> None:
        self.exercise, self.path, self.thing, self.submission = exercise, path, thing, submission
        self.framework = submission.FRAMEWORK

    def precision(self) -> contextlib.AbstractContextManager[None]:
        context: contextlib.AbstractContextManager[None] = self.submission.double()
        return context


class Layers(Code):
    """A layer or block."""

    rungs = (1, 2, 3, 4)

    def __init__(self, exercise: form.Layer, path: Path, thing: Any, submission: Any, package: Any) -> None:
        super().__init__(exercise, path, thing, submission)
        module, _, name = exercise.reference.partition(".")
        self.reference = getattr(getattr(package, module), name)
        self.labels = {case: f"{exercise.name}{_call(case.arguments)} on {_images(case.shape)}" for case in exercise.cases}
        generator = np.random.default_rng(0)
        self.images = {case: generator.standard_normal(case.shape) - 0.5 for case in exercise.cases}
        self.layers: list[dict[form.Case, Any]] = [{}, {}]
        self.states: dict[form.Case, dict[str, np.ndarray]] = {}
        self.projections: dict[form.Case, np.ndarray] = {}

    def ours(self, rung: int) -> Observation:
        if not self.layers[0]:
            for case in self.exercise.cases:
                make = self.reference
                arguments = self.exercise.ours(*case.arguments)
                layer = self.submission.Layer(lambda m=make, a=arguments: m(*a), self.images[case])
                self.layers[0][case] = layer
                self.states[case] = {self._name(layer, name): a for name, a in _random(layer.state()).items()}
        return self._observe(0, rung)

    def theirs(self, rung: int) -> Observation:
        if not self.layers[1]:
            for case in self.exercise.cases:
                with _running(self.path, self.labels[case]):
                    make = lambda a=case.arguments: self.thing(*a)  # noqa: E731
                    self.layers[1][case] = self.submission.Layer(make, self.images[case])
        return self._observe(1, rung)

    def _observe(self, which: int, rung: int) -> Observation:
        found: Observation = {}
        for case, layer in self.layers[which].items():
            label, names = self.labels[case], {self._name(layer, name): name for name in layer.state()}
            running = _running(self.path, label) if which else contextlib.nullcontext()
            with running:
                if rung == 1:
                    found |= self._outside(label, layer, case)
                    continue
                layer.load({own: self.states[case][name] for name, own in names.items()})
                if rung == 2:
                    found[label, "output"] = layer.output(self.images[case], False)
                    self.projections.setdefault(case, np.random.default_rng(1).standard_normal(found[label, "output"].shape))
                elif rung == 3:
                    found[label, "output in training"] = layer.output(self.images[case], True)
                    layer.load({own: self.states[case][name] for name, own in names.items()})
                    gradients = layer.gradients(self.images[case], self.projections[case])
                    # From the output back, as they are computed: the first to diverge is next to the mistake.
                    backwards = reversed(gradients.items())
                    found |= {(label, f"gradient of {self._name(layer, n)}"): g for n, g in backwards}
                else:
                    layer.output(self.images[case], True)
                    state = {self._name(layer, name): array for name, array in layer.state().items()}
                    found |= {(label, name): state[name] for name in self.states[case] if "running_" in name}
        return found

    def _outside(self, label: str, layer: Any, case: form.Case) -> Observation:
        shapes = {self._name(layer, name): np.array(array.shape) for name, array in layer.state().items()}
        found = {(label, name): shapes[name] for name in sorted(shapes)}
        trained = {self._name(layer, name) for name in layer.trainable()}
        found |= {(label, f"whether {name} is trained"): np.array(name in trained) for name in sorted(shapes)}
        return found | {(label, "output shape"): np.array(layer.output(self.images[case], False).shape)}

    def matches(
        self, suspect: Suspect, rung: int, key: Key, theirs: Observation, limit: float, only: str | None = None
    ) -> bool:
        if rung == 1 and key[1] == "output shape":
            with contextlib.suppress(FailError):
                outputs = self.theirs(2)
                return super().matches(suspect, 2, (key[0], "output"), outputs, limit, only)
            return False
        if rung == 1:
            return self._matches_shapes(suspect, theirs)
        if key[1].startswith("gradient of "):
            return self._matches_gradients(suspect, key[0], theirs)
        return super().matches(suspect, rung, key, theirs, limit, only)

    def _matches_gradients(self, suspect: Suspect, label: str, theirs: Observation) -> bool:
        """Whether a suspect has the same output in training, and the same derivatives in some directions, in one case."""
        case, flaw = next(case for case, own in self.labels.items() if own == label), suspect.flaw or suspect.name

        def total(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
            return self.exercise.function(state, x, True, case.arguments, flaw) * self.projections[case]

        output = self.suspected(suspect, 3).get((label, "output in training"))
        if not agree(output, theirs[label, "output in training"], LIMITS[2]):
            return False
        generator = np.random.default_rng(2)
        own = {k[1].removeprefix("gradient of "): g for k, g in theirs.items() if k[0] == label and "gradient" in k[1]}
        for _ in range(3):
            toward = {name: generator.standard_normal(g.shape) for name, g in own.items()}
            expected = arithmetic.slopes(total, self.states[case], self.images[case], toward)
            found = np.array([np.sum(g * toward[name]) for name, g in own.items()])
            if not agree(expected, found, DIFFERENCES):
                return False
        return True

    def _matches_shapes(self, suspect: Suspect, theirs: Observation) -> bool:
        if not self.exercise.shapes:
            return suspect.name == "no-bias" and {k[1] for k in theirs if _is_weight(k[1])} == {"weight"}
        for case, label in self.labels.items():
            shapes = self.exercise.shapes(case.arguments, suspect.flaw or suspect.name)
            own = {k[1]: tuple(a) for k, a in theirs.items() if k[0] == label and _is_weight(k[1])}
            if own != shapes:
                return False
        return True

    def suspected(self, suspect: Suspect, rung: int) -> Observation:
        found: Observation = {}
        for case, label in self.labels.items():
            state = {name: array.copy() for name, array in self.states[case].items()}
            flaw = suspect.flaw or suspect.name
            try:
                output = self.exercise.function(state, self.images[case], rung > 2, case.arguments, flaw)
            except (ValueError, KeyError):  # its shapes do not fit together, so it is not this one
                return {}
            found[label, "output" if rung == 2 else "output in training"] = output
            if rung == 4:
                found |= {(label, name): array for name, array in state.items() if "running_" in name}
        return found

    def numbers(self, rung: int, key: Key) -> dict[str, Any]:
        """Of running statistics: the ratio in what a pass adds, and the n that a biased variance speaks of."""
        if rung != 4:
            return {}
        case = next(case for case, label in self.labels.items() if label == key[0])
        old, ours, theirs = self.states[case][key[1]], self.ours(4)[key], self.theirs(4)[key]
        share = case.arguments[2] if self.exercise.reference == "layers.BatchNorm" else 0.1
        kept = (1 - share) * old if "running_var" in key[1] else old
        ratio = float(np.median((theirs - kept) / (ours - kept)))
        return {"ratio": ratio, "n": round(1 / (1 - ratio)) if ratio < 1 else 0}

    def unknown(self, rung: int, key: Key, ours: np.ndarray | None, theirs: np.ndarray | None) -> str:
        if rung != 1 or key[1] == "output shape":
            return ""
        name = key[1].removeprefix("whether ").removesuffix(" is trained")
        if theirs is None:
            has = sorted({k[1] for k in self.theirs(1) if k[0] == key[0] and _is_weight(k[1])})
            kind = ", in PyTorch a buffer, in Keras a weight that is not trained" if "running_" in name else ""
            return f"{key[0]}: no weight is called {name!r}{kind}; yours has {', '.join(has) or 'none'}"
        if ours is None:
            return f"{key[0]}: yours has a weight {name!r}, the reference has none of that name"
        if key[1].startswith("whether "):
            how = "a parameter in PyTorch, trainable in Keras" if ours else "a buffer in PyTorch, trainable=False in Keras"
            be, yours = ("to be", "is not") if ours else ("not to be", "is")
            return f"{key[0]}: {name} is {be} trained, and yours {yours}: make it {how}"
        return f"{key[0]}: {name} is of shape {text(theirs)}, expected {text(ours)}, in PyTorch's order"

    def general(self, rung: int, key: Key, theirs: Observation) -> Suspect | None:
        if key[1] == "output in training" and not np.array_equal(self.theirs(3)[key], theirs[key], equal_nan=True):
            return form.RANDOM
        return super().general(rung, key, theirs)

    def context(self, rung: int, key: Key) -> str:
        if rung != 3 or not key[1].startswith("gradient of "):
            return ""
        order = [other[1].removeprefix("gradient of ") for other in self.ours(3) if other[0] == key[0]][1:]
        agreeing = order[: order.index(key[1].removeprefix("gradient of "))]
        names = f"; of {', '.join(agreeing)} it agrees" if agreeing else ""
        return (
            f". The output agrees, and from there back the {key[1]} is the first to differ{names}. Look between the two for "
            "detach(), .data, no_grad() or stop_gradient, and for a gradient of your own"
        )

    def _name(self, layer: Any, name: str) -> str:
        """What the statement calls a weight of the reader's."""
        for start, new in self.exercise.aliases.items():
            name = new + name.removeprefix(start) if name.startswith(start) else name
        if any("." in known for known in next(iter(self.states.values()), {})):
            return name
        wraps = len({known.rpartition(".")[0] for known in layer.state()}) == 1  # a layer of the framework's, and nothing else
        return name.rpartition(".")[2] if wraps else name


class Functions(Code):
    """A function of tensors."""

    rungs = (1, 2, 3)

    def __init__(self, exercise: form.Tensors, path: Path, thing: Any, submission: Any) -> None:
        super().__init__(exercise, path, thing, submission)
        self.labels = [", ".join(map(_argument, exercise.arguments, case)) for case in exercise.cases]
        self.calls: list[Any] = []
        self.projections = [
            np.random.default_rng(1).standard_normal(np.shape(self._all(case, None)[0])) for case in exercise.cases
        ]

    def _all(self, case: Any, flaw: Any) -> list[np.ndarray]:
        result = self.exercise.function(case, flaw)
        return [np.asarray(o) for o in (result if isinstance(result, tuple) else [result])]

    def _observe(self, outputs: Any, gradients: Any, rung: int) -> Observation:
        found: Observation = {}
        for label, arrays, slopes in zip(self.labels, outputs, gradients, strict=True):
            if rung < 3:
                for quantity, a in zip(self.exercise.outputs, arrays, strict=False):
                    found[label, quantity] = np.array(a.shape) if rung == 1 else a
            else:
                found |= {(label, f"gradient of {self.exercise.arguments[n]}"): g for n, g in slopes.items()}
        return found

    def ours(self, rung: int) -> Observation:
        outputs = self._exact(None)
        gradients: list[dict[int, np.ndarray]] = [{}] * len(self.labels)
        if self.exercise.gradients and self.framework != "NumPy":
            gradients = list(map(self.exercise.gradients, self.exercise.cases, self.projections))
        return self._observe(outputs, gradients, rung)

    def _exact(self, flaw: Any) -> list[list[np.ndarray]]:
        return [self._all(case, flaw) for case in self.exercise.cases]

    def theirs(self, rung: int) -> Observation:
        if not self.calls:
            for case, label, projection in zip(self.exercise.cases, self.labels, self.projections, strict=True):
                with _running(self.path, label):
                    options = self.exercise.layouts, projection if self.exercise.gradients else None, self.exercise.layout
                    self.calls.append(self.submission.call(self.thing, case, *options))
        return self._observe([outputs for outputs, _ in self.calls], [gradients for _, gradients in self.calls], rung)

    def suspected(self, suspect: Suspect, rung: int) -> Observation:
        return self._observe(self._exact(suspect.flaw or suspect.name), [{}] * len(self.labels), rung)

    def matches(
        self, suspect: Suspect, rung: int, key: Key, theirs: Observation, limit: float, only: str | None = None
    ) -> bool:
        return super().matches(suspect, 2, key, self.theirs(2), limit, only) if rung < 3 else False


class Optimizers(Code):
    """An optimiser."""

    rungs = (5,)

    def __init__(self, exercise: form.Optimizer, path: Path, thing: Any, submission: Any) -> None:
        super().__init__(exercise, path, thing, submission)
        generator = np.random.default_rng(0)
        self.weights = [generator.standard_normal(shape) for shape in ((4, 3), (5,))]
        scales = exercise.scale ** np.linspace(0, 1, 5)
        self.gradients = [
            [generator.standard_normal(w.shape) * np.resize(scales, w.shape) for w in self.weights] for _ in exercise.rates
        ]

    def ours(self, rung: int) -> Observation:
        return self._run(None)

    def _run(self, flaw: Any) -> Observation:
        found: Observation = {}
        for options in self.exercise.cases:
            current, memories = list(self.weights), [{} for _ in self.weights]  # type: list[np.ndarray], list[dict[str, Any]]
            for step, (rate, arrays) in enumerate(zip(self.exercise.rates, self.gradients, strict=True), start=1):
                current = [
                    self.exercise.function(w, g, memory, rate, step, options, flaw)
                    for w, g, memory in zip(current, arrays, memories, strict=True)
                ]
                found[_options(options), self._step(step)] = np.concatenate([w.ravel() for w in current])
        return found

    def _step(self, step: int) -> str:
        rates = self.exercise.rates
        first = step > 1 and rates[step - 1] != rates[step - 2]
        return f"weights after step {step}" + (", the first with the new rate" if first else "")

    def theirs(self, rung: int) -> Observation:
        found: Observation = {}
        for options in self.exercise.cases:
            with _running(self.path, _options(options)):
                steps = self.submission.optimise(self.thing, options, self.weights, self.gradients, self.exercise.rates)
            for step, arrays in enumerate(steps, start=1):
                found[_options(options), self._step(step)] = np.concatenate([w.ravel() for w in arrays])
        return found

    def suspected(self, suspect: Suspect, rung: int) -> Observation:
        with np.errstate(all="ignore"):
            return self._run(suspect.flaw or suspect.name)

    def matches(
        self, suspect: Suspect, rung: int, key: Key, theirs: Observation, limit: float, only: str | None = None
    ) -> bool:
        """Over the whole run."""
        found = self.suspected(suspect, rung)
        return all(agree(found[k], array, limit) for k, array in theirs.items() if only in (None, k[0]))


class Draws(Code):
    """A function that draws a kernel."""

    rungs = (1, 2)
    errors = 4.0  # standard errors

    def __init__(self, exercise: form.Draw, path: Path, thing: Any, submission: Any) -> None:
        super().__init__(exercise, path, thing, submission)
        self.kernels: dict[str, np.ndarray] = {}
        self.names = {f"a kernel with (out, in, height, width) = {text(s)}": s for s in exercise.shapes}

    def limit(self, rung: int) -> float:
        least = min(int(np.prod(shape)) for shape in self.names.values())
        return self.errors * float(np.sqrt(24 / least)) if rung == 2 else 0.0

    def theirs(self, rung: int) -> Observation:
        for label, shape in self.names.items():
            if label not in self.kernels:
                with _running(self.path, label):
                    self.kernels[label] = np.asarray(self.submission.draw(self.thing, shape), float)
        if rung == 1:
            return {(label, "shape"): np.array(kernel.shape) for label, kernel in self.kernels.items()}
        found: Observation = {}
        for label, kernel in self.kernels.items():
            deviation = kernel.std()
            kurtosis = np.mean((kernel - kernel.mean()) ** 4) / deviation**4 if deviation else 0.0
            mean = 1 + kernel.mean() / (deviation or 1)
            found |= self._moments(label, deviation, kurtosis, mean)
        return found

    @staticmethod
    def _moments(label: str, deviation: float, kurtosis: float, mean: float = 1.0) -> Observation:
        moments = {"standard deviation": deviation, "kurtosis": kurtosis, "mean, in deviations, plus 1": mean}
        return {(label, name): np.array(value) for name, value in moments.items()}

    def ours(self, rung: int) -> Observation:
        if rung == 1:
            return {(label, "shape"): np.array(shape) for label, shape in self.names.items()}
        return self._exact(None)

    def _exact(self, flaw: Any) -> Observation:
        found: Observation = {}
        for label, shape in self.names.items():
            found |= self._moments(label, *self.exercise.moments(shape, flaw))
        return found

    def suspected(self, suspect: Suspect, rung: int) -> Observation:
        return self._exact(suspect.flaw or suspect.name) if rung == 2 else {}

    def matches(
        self, suspect: Suspect, rung: int, key: Key, theirs: Observation, limit: float, only: str | None = None
    ) -> bool:
        found = self.suspected(suspect, rung)
        return bool(found) and all(
            relative(found[k], array) <= self.limit(rung) for k, array in theirs.items() if only in (None, k[0])
        )

    def numbers(self, rung: int, key: Key) -> dict[str, Any]:
        kernel = self.kernels[key[0]]
        return {"peak": float(np.abs(kernel).max() / (kernel.std() or 1))}


class Networks(Subjects):
    """A spec: by arithmetic, then built in each framework that is installed."""

    rungs = (1, 2, 4)

    def __init__(self, exercise: form.Network, path: Path) -> None:
        self.exercise = exercise
        self.reference = networks.load(exercise.spec())
        self.raw = read_json(path, path, limits.SPEC)
        self.shapes: list[list[shapes.Row]] = []
        self.installed = [b for b in (backends.Backend.TORCH, backends.Backend.TF) if backends.installed(b)]
        self.framework = " and ".join(backends.TITLES[backend] for backend in self.installed)
        try:
            self.spec = networks.load(path)
        except Error as error:
            raise self._invalid(f"{error}") from None
        if self.spec["input"] != self.reference["input"]:
            raise FailError(f"{path}: its images are {text(self.spec['input'])}, expected {text(self.reference['input'])}")
        self.outputs: list[Observation] = []

    def _invalid(self, message: str) -> FailError:
        """What to raise for a spec that does not describe a network, with the mistake if it is a known one."""
        with contextlib.suppress(Exception):  # whatever may be wrong in it
            chain = _normal(self.raw)
            for suspect in self.exercise.suspects:
                if chain == _normal(suspect.flaw(self.reference)):
                    return FailError(f"{suspect.message}. {message}", suspect)
        return FailError(message)

    def ours(self, rung: int) -> Observation:
        return self._observe(0, rung)

    def theirs(self, rung: int) -> Observation:
        return self._observe(1, rung)

    def _observe(self, which: int, rung: int) -> Observation:
        spec = self.spec if which else self.reference
        rows = shapes.layers(spec)
        if rung == 1:
            found = {(f"layer {row.name}", "output shape"): np.array(row.shape) for row in rows}
            for row in rows:
                found |= {(f"layer {row.name}", name): np.array(shape) for name, shape in row.weights.items()}
            return found
        if rung == 4:
            chain = _normal(spec)
            return {(f"layer {n}", "momentum of the batch norms"): np.array(o.get("momentum", 0.1)) for n, _, _, o in chain}
        if not self.outputs:
            self.outputs = self._run()
        return self.outputs[which]

    def _run(self) -> list[Observation]:
        """The outputs of the reference in the first framework, twice over, and of the reader's network in each."""
        height, width = self.exercise.size
        images = np.random.default_rng(0).standard_normal((2, self.reference["input"][0], height, width))
        if not self.installed:
            backends.start(backends.Backend.BOTH)  # says what to install
        state = weights.initial(self.reference)
        state = weights.randomised({name: array.astype(np.float64) for name, array in state.items()})
        found: list[Observation] = [{}, {}]
        for number, backend in enumerate(self.installed):
            package = backends.start(backend)[0]
            if number == 0:
                ours = backends.engines([package], self.reference, state, "float64")[0]
                outputs = {n: ours.channels_first(a) for n, a in ours.activations(images).items()}
            engine = backends.engines([package], self.spec, state, "float64")[0]
            own = {n: engine.channels_first(a) for n, a in engine.activations(images).items()}
            for which, arrays in enumerate((outputs, own)):
                found[which] |= {(f"layer {n} in {engine.framework}", "output"): a for n, a in arrays.items()}
            if any(not agree(array, own.get(name), LIMITS[2]) for name, array in outputs.items()):
                break  # there is no need of the other framework
        return found

    def matches(
        self, suspect: Suspect, rung: int, key: Key, theirs: Observation, limit: float, only: str | None = None
    ) -> bool:
        return _normal(self.spec) == _normal(suspect.flaw(self.reference))

    def unknown(self, rung: int, key: Key, ours: np.ndarray | None, theirs: np.ndarray | None) -> str:
        if theirs is None and rung == 1:
            own = [layer.name for layer in unroll(self.spec)]
            name = key[0].removeprefix("layer ")
            if name not in own:
                return f"there is no layer {name!r}; yours are {', '.join(own)}"
            return f"layer {name}: it has no {key[1]}"
        if ours is None and rung == 1:
            known = {layer.name for layer in unroll(self.reference)}
            what = key[1] if key[0].removeprefix("layer ") in known else "there is no such layer"
            return f"{key[0]}: the reference has none of it: {what}"
        return ""

    def praise(self) -> str:
        count = shapes.parameters(shapes.layers(self.spec))
        return f"right: {count:,} parameters, and the same function in {self.framework}"


DEFAULTS = {
    "stride": 1, "padding": 0, "dilation": 1, "norm": True, "eps": 1e-5, "momentum": 0.1, "shortcut": "projection",
    "stride_at": "conv2", "groups": 1, "first_activation": True, "ceil": False,
}  # fmt: skip


def _normal(spec: Spec) -> list[tuple[str, str, list[int], dict[str, Any]]]:
    """The chain of a spec, in which what is a default is left out."""
    chain = []
    for layer in unroll(spec):
        options = {key: value for key, value in layer.options.items() if DEFAULTS.get(key, ...) != value}
        if layer.options.get("bias") is (layer.type in ("conv", "linear")):
            del options["bias"]
        if options.get("first_dilation") == layer.options.get("dilation", 1):
            del options["first_dilation"]
        if "pool" in layer.type and layer.options.get("stride") == layer.options.get("kernel"):
            options.pop("stride", None)
        chain.append((layer.name, layer.type, layer.sizes, options))
    return chain


def code_of(exercise: Any, path: Path) -> Code:
    """The reader's class or function, beside the reference in its framework."""
    source = path.read_bytes()
    try:
        tree = ast.parse(source, str(path))
        code = compile(tree, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise Error(f"{path}{line}: not Python: {getattr(error, 'msg', error)}") from None
    backend = _backend(tree)
    if backend is None and not isinstance(exercise, form.Tensors):
        raise Error(f"{path}: it imports neither torch nor keras; {exercise.name} is to be of one of them")
    package: Any = None
    if backend is backends.Backend.BOTH:
        raise Error(f"{path}: it imports PyTorch and Keras; write for one of them, so that it is clear by which it is judged")
    if backend is not None:
        package = backends.start(backend)[0]
    submission = package.submission if package else Plain
    with submission.double(), _running(path, ""):
        thing = _load(code, path, exercise.name)
    _check_kind(exercise, path, thing, submission)
    if isinstance(exercise, form.Layer):
        return Layers(exercise, path, thing, submission, package)
    return {form.Tensors: Functions, form.Optimizer: Optimizers, form.Draw: Draws}[type(exercise)](
        exercise, path, thing, submission
    )


def _backend(tree: ast.AST) -> backends.Backend | None:
    """The framework that a file imports, or both, or None."""
    found = set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        found |= {name.partition(".")[0] for name in names}
    torch, keras = bool(found & {"torch", "torch_impl", "torchvision"}), bool(found & {"keras", "keras_impl", "tensorflow"})
    if torch and keras:
        return backends.Backend.BOTH
    return backends.Backend.TORCH if torch else backends.Backend.TF if keras else None


def _load(code: Any, path: Path, name: str) -> Any:
    """Run a file, and return what it calls `name`. Raises `Error` if it has nothing of that name."""
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    before = list(sys.path)
    sys.path.append(str(path.absolute().parent))  # files of the reader's own, after all packages
    try:
        exec(code, vars(module))  # the reader's own file, on the reader's own machine
    finally:
        sys.path[:] = before
    if not hasattr(module, name):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == path.stem and not n.startswith("_")]
        raise Error(
            f"{path}: nothing in it is called {name!r}{nearest(name, own) or ('; it has ' + ', '.join(own) if own else '')}"
        )
    return getattr(module, name)


def _check_kind(exercise: Any, path: Path, thing: Any, submission: Any) -> None:
    """Raise `Error` unless what the reader wrote is a class of the framework's, or a function."""
    kinds = {form.Layer: ("LAYER", "LAYER_NAME"), form.Optimizer: ("OPTIMIZER", "OPTIMIZER_NAME")}
    if type(exercise) not in kinds:
        if not callable(thing):
            raise Error(f"{path}: {exercise.name} is a {type(thing).__name__}, expected a function")
        return
    base, words = (getattr(submission, name) for name in kinds[type(exercise)])
    if not (isinstance(thing, type) and issubclass(thing, base)):
        found = f"it derives from {thing.__mro__[1].__name__}" if isinstance(thing, type) else f"it is a {type(thing).__name__}"
        raise Error(f"{path}: {exercise.name} must be a class that derives from {words}; {found}")


@contextlib.contextmanager
def _running(path: Path, where: str) -> Iterator[None]:
    """Raise `FailError`, with the line of the reader's file, for what the reader's code raises in this context."""
    try:
        yield
    except (FailError, Error):
        raise
    except (Exception, SystemExit) as error:
        line, trace = None, error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == str(path):
                line = f", line {trace.tb_lineno}, in {trace.tb_frame.f_code.co_name}"
            trace = trace.tb_next
        message = next((text.strip() for text in f"{error}".splitlines() if text.strip()), "")
        message = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", message)  # where in TensorFlow it was
        if re.search(r"double|float64", message, re.IGNORECASE):
            message += ". All is judged in float64, so set no other dtype"
        place = f"{path}{(line or '').replace(', in <module>', '')}"
        what = f"{type(error).__name__}{': ' if message else ''}{message}"
        if "modified by an inplace operation" in message:
            raise FailError(form.IN_PLACE.message, form.IN_PLACE) from error
        raise FailError(f"{place}: {what}" + (f" ({where})" if where else "")) from error


def _is_weight(quantity: str) -> bool:
    return quantity != "output shape" and not quantity.startswith("whether ")


def _random(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Random values for the weights and running statistics of a layer, none of which can be taken for another."""
    generator = np.random.default_rng(0)
    arrays = {}
    for name, array in sorted(state.items()):
        scales = array.ndim == 1 and name.rpartition(".")[2] in ("weight", "running_var")
        new = generator.uniform(0.5, 1.5, array.shape) if scales else generator.standard_normal(array.shape)
        arrays[name] = new / np.sqrt(np.prod(array.shape[1:])) if array.ndim > 1 else new
    return arrays


def _call(arguments: tuple[Any, ...]) -> str:
    return "(" + ", ".join(map(repr, arguments)) + ")"


def _images(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} images of {shape[2]}x{shape[3]}"


def _argument(name: str, value: Any) -> str:
    return f"{name} of {'x'.join(map(str, value.shape))}" if isinstance(value, np.ndarray) else f"{name} {value:g}"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in options.items())
