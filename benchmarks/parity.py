"""The table of networks in the README: what each is from, its parameters, published weights, and how far the frameworks part.

The last column is the largest relative difference of any layer's output and of any gradient, in float64, with randomised
batch norms, on white noise: rungs 2 and 3 of the ladder of parity.
"""

import argparse
import os
import re
import sys

import shared
from shared import coexist, compare, shapes

SIZE = 64  # pixels, for networks that take larger images as well


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
        report = compare.run((torch_impl, keras_impl), spec, size=_size(spec), steps=0)
        source = re.split("[:;] ", spec.get("source", ""))[0]
        differences = [f"{compare.largest(found).value:.1e}" for found in (report.activations, report.gradients) if found]
        cells = [f"`{spec['name']}`", source, f"{report.parameters[0]:,}", spec.get("weights", ""), *differences]
        print(f"| {' | '.join(cells)} |", flush=True)


def _size(spec):
    """The spec's own size, or a smaller one where the network takes it."""
    size = spec["input"][1:]
    if max(size) > SIZE:
        try:
            shapes.layers(spec, (SIZE, SIZE))
            return SIZE, SIZE
        except shared.Error:
            pass
    return size


if __name__ == "__main__":
    try:
        main()
    except shared.Error as error:
        sys.exit(f"{error}")
