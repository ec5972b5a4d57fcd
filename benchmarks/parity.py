"""Print the table of networks in docs/reference/networks.md: source, parameters, published weights, parity.

The last two columns are the largest relative difference of any layer's output and of any gradient, in float64, with randomised
batch norms, on white noise: rungs 2 and 3 of the ladder of parity. In parentheses: those of PyTorch from itself, when its
weights start one rounding apart.
"""

import argparse
import gc
import re
from collections.abc import Sequence

import numpy as np
import script

from shared import networks, shapes, weights
from shared.spec import Spec
from twins import backends, compare, ladder
from twins.backends import Backend, Package


def main() -> None:
    """Print the table to stdout, row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", nargs="+", action="extend", metavar="NAME", help="only these; default: all")
    specs = [networks.load(name) for name in parser.parse_args().network or networks.names()]
    packages = backends.start(Backend.BOTH)
    print("| network | source | parameters | published weights | outputs | gradients |")
    print("| --- | --- | ---: | --- | ---: | ---: |")
    for spec in specs:
        print(f"| {' | '.join([*described(spec), *differences(packages, spec)])} |", flush=True)


def described(spec: Spec) -> list[str]:
    """The cells that a spec gives."""
    source = re.split("[:;] ", spec.get("source", ""))[0]
    count = shapes.parameters(shapes.layers(spec))
    return [f"`{spec['name']}`", source, f"{count:,}", spec.get("weights", "")]


def differences(packages: Sequence[Package], spec: Spec) -> list[str]:
    """The cells of the last two columns."""
    state = weights.randomised(weights.initial(spec))
    generator = np.random.default_rng(0)
    size = compare.small_size(spec, spec["input"][1:])
    images = generator.standard_normal((4, spec["input"][0], *size))
    classes, *pixels = shapes.layers(spec, size)[-1].shape
    labels = generator.integers(0, classes, (4, *pixels))
    engines = backends.engines(packages, spec, state, "float64")
    rungs = {"activations": ladder.activations(engines, images), "gradients": ladder.gradients(engines, images, labels)}
    engines.clear()
    gc.collect()  # a VGG in two frameworks takes 6 GB
    chaos = ladder.chaos(packages[0], spec, state, images, labels)
    return [f"{ladder.largest(values).value:.0e} ({chaos[rung]:.0e})" for rung, values in rungs.items()]


if __name__ == "__main__":
    with script.mistakes():
        main()
