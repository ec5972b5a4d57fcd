"""The twins, the blocks and the network, are the same text, but for a list of words."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TWINS = ["blocks.py", "preactivation.py", "inception.py", "network.py", "feature_maps.py"]

# PyTorch's word: Keras's. CONTRIBUTING.md prints the same table.
WORDS = {
    "from torch import nn": "import keras",
    "nn.Module": "keras.Layer",
    "def forward(self, x: Tensor)": "def call(self, x: Tensor, training: bool | None = None)",
    "PyTorch": "Keras",
}


def in_keras(text):
    return re.sub("|".join(map(re.escape, WORDS)), lambda match: WORDS[match.group()], text)


@pytest.mark.parametrize("name", TWINS)
def test_the_same_text(name):
    ours, theirs = (Path(ROOT, package, name).read_text() for package in ("torch_impl", "keras_impl"))
    assert in_keras(ours).splitlines() == theirs.splitlines()


def test_every_word_is_needed():
    text = "".join(Path(ROOT, "torch_impl", name).read_text() for name in TWINS)
    assert all(word in text for word in WORDS)


def test_contributing_lists_the_words():
    text = Path(ROOT, "CONTRIBUTING.md").read_text()
    for word, other in WORDS.items():
        row = f"`{word}` | `{other}`".replace(" | None", r" \| None")  # a bar in a table is escaped
        assert f"| {row} |" in text
