"""The table of networks in the README: what each is from, its parameters, published weights, and how far the frameworks part.

The last columns are the largest relative difference of any layer's output and of any gradient, in float64, with randomised
batch norms, on white noise: rungs 2 and 3 of the ladder of parity. In brackets: of PyTorch from itself, when its weights begin
one rounding apart.
"""

import argparse
import gc
import os
import re
import sys

import numpy as np

import shared
from shared import coexist, shapes, weights
from twins import compare, ladder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", metavar="NAME", help="these alone; default: all")
    names = parser.parse_args().network or shared.names()
    specs = [shared.load(name) for name in names]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else PyTorch's idle threads spin, and TensorFlow waits for a core
    with coexist.silence():
        import torch_impl  # isort: skip
        import keras_impl
    print("| network | source | parameters | published weights | outputs | gradients |")
    print("| --- | --- | ---: | --- | ---: | ---: |")
    for spec in specs:
        source = re.split("[:;] ", spec.get("source", ""))[0]
        count = shapes.parameters(shapes.layers(spec))
        differences = _differences((torch_impl, keras_impl), spec)
        print(
            f"| `{spec['name']}` | {source} | {count:,} | {spec.get('weights', '')} | {' | '.join(differences)} |", flush=True
        )


def _differences(packages, spec):
    """The cells of the two last columns."""
    state = weights.randomised(weights.initial(spec))
    generator = np.random.default_rng(0)
    images = generator.standard_normal((4, spec["input"][0], *compare.small_size(spec, spec["input"][1:])))
    labels = generator.integers(0, shapes.layers(spec)[-1].shape[0], 4)
    engines = []
    for package in packages:
        engines.append(package.Engine(package.build(spec, dtype="float64")))
        package.load(engines[-1].net, state)
    found = ladder.activations(engines, images), ladder.gradients(engines, images, labels)
    engines.clear()
    gc.collect()  # a VGG in two frameworks takes 6 GB
    apart = ladder.chaos(packages[0], spec, state, images, labels)
    rungs = zip(found, ("activations", "gradients"), strict=True)
    return [f"{ladder.largest(differences).value:.0e} ({apart[rung]:.0e})" for differences, rung in rungs]


if __name__ == "__main__":
    try:
        main()
    except shared.Error as error:
        sys.exit(f"{error}")
