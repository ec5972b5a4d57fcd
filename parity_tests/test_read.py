"""`twins read`: the classes of both packages beside each other."""

import re
import sys

import pytest
from rich.cells import cell_len

from shared.checks import Error
from twins import beside
from twins.cli import output


@pytest.mark.parametrize(
    "name, found",
    [
        ("basic", ("blocks", "BasicBlock")),
        ("Basic", ("blocks", "BasicBlock")),
        ("BasicBlock", ("blocks", "BasicBlock")),
        ("bottleneck", ("blocks", "Bottleneck")),
        ("preact-basic", ("preactivation", "PreActBasic")),
        ("batch_norm", ("layers", "BatchNorm")),
        ("BatchNorm", ("layers", "BatchNorm")),
        ("conv", ("layers", "Conv")),
        ("inception_a", ("inception", "InceptionA")),
        ("Network", ("network", "Network")),
        ("downsample", ("blocks", "downsample")),
    ],
)
def test_names(name, found):
    assert beside.find(name) == found


def test_everything_that_it_names_can_be_read():
    for name in beside.names():
        one, layers = beside.read(name)
        assert any(row.torch for row in one.rows) and any(row.keras for row in one.rows)
        assert one.name not in [layer.name for layer in layers if layer.files == one.files]


@pytest.mark.parametrize("name, near", [("botleneck", "bottleneck"), ("Bottlenek", "Bottleneck"), ("bach_norm", "batch_norm")])
def test_a_typo(name, near):
    with pytest.raises(Error, match=f"no block or layer is called '{name}', did you mean '{near}'"):
        beside.find(name)
    with pytest.raises(Error, match="no block or layer is called 'xyz'; there are basic, bottleneck, "):
        beside.find("xyz")


def test_words_that_differ_and_layers_that_are_needed():
    one, layers = beside.read("basic")
    differing = [(row.torch[1], row.keras[1]) for row in one.rows if not row.same]
    assert [[text for text, marked in words if marked] for words in differing[0]] == [["nn", "Module"], ["keras", "Layer"]]
    assert len(differing) == 2 and ("forward", True) in differing[1][0] and ("call", True) in differing[1][1]
    needed = {layer.name: layer for layer in layers}
    classes, functions = {"Conv", "BatchNorm", "Identity", "PadChannels", "Chain"}, {"pad_same", "pad", "relu"}
    assert {*needed} == classes | functions | {"at_least_float32", "by_xla_on_cpu", "mean", "moments"}
    pad = needed["pad"]
    assert all(row.torch is None and row.keras for row in pad.rows)


def test_lines_are_those_of_the_files():
    for layer in [*beside.read("bottleneck")[1], beside.read("bottleneck")[0]]:
        for file, lines in zip(layer.files, zip(*((row.torch, row.keras) for row in layer.rows), strict=True), strict=True):
            text = (beside.ROOT / file).read_text().splitlines()
            for number, words in filter(None, lines):
                assert "".join(part for part, _ in words) == text[number - 1]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_widths(width, twins, monkeypatch):
    monkeypatch.setattr(output, "width", lambda: width)
    done = twins("read basic")
    assert done.returncode == 0 and max(map(cell_len, done.stdout.splitlines())) <= width
    text = " ".join(done.stdout.split())
    if width < 100:
        assert "PyTorch class BasicBlock(nn.Module): Keras class BasicBlock(keras.Layer):" in text
        assert text.count("super().__init__() first_dilation") == 1
    else:
        assert "8 class BasicBlock(nn.Module): | 8 class BasicBlock(keras.Layer):" in text
    assert "What it uses from layers.py" in text and "def pad_same(" in text


def test_page(twins, tmp_path):
    assert twins("read", "basic", "--html", tmp_path / "b.html").stdout == ""
    page = (tmp_path / "b.html").read_text()
    assert "class BasicBlock(<mark>nn</mark>.<mark>Module</mark>):" in page and 'name="viewport"' in page
    assert not re.findall(r"(?:src|href)=|https?://(?!\S*arxiv)", page)
    done = twins("read", "basic", "--html", tmp_path / "b.txt")
    assert (done.returncode, done.stderr) == (2, f"twins: {tmp_path}/b.txt: expected a file ending in .html\n")
    done = twins("read", "basic", "--html", tmp_path / "none" / "b.html")
    assert done.returncode == 2 and "none" in done.stderr


def test_no_import(monkeypatch):
    """The sources are read as text."""
    for package in ("torch_impl", "keras_impl"):
        monkeypatch.setitem(sys.modules, package, None)
    assert beside.read("residual_unit")[0].name == "ResidualUnit"
