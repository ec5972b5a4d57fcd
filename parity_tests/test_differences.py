"""`twins diff`: what it prints and writes, on recordings made by hand, and what it says to mistakes."""

import html.parser
import json
import math

import numpy as np
import pytest
from numpy_recording import FIRST, LAST, Network
from test_alignment import residual
from typer.testing import CliRunner

from shared.checks import Error
from twins import backends, differences
from twins.cli import app
from twins.cli import diff as cli_diff
from twins.differences import blame, opening, page, remedies
from twins.differences.alignment import Alignment
from twins.differences.blame import Finding, Verdict
from twins.differences.training import Measure, Training

RUNNER = CliRunner()


class Recorder:
    """Gives a network made by hand as its own recording."""

    @staticmethod
    def record(net, inputs):
        return net


@pytest.fixture
def by_hand(monkeypatch):
    """Networks made by hand in place of a framework's."""
    monkeypatch.setattr(backends, "recorder", lambda framework: Recorder)
    monkeypatch.setattr(differences, "_framework", lambda net, name: "torch" if net.framework == FIRST else "keras")


@pytest.fixture
def opened(by_hand, monkeypatch):
    """The command's A and B: networks made by hand with the faults that are named, `first` and `last`."""

    def open_network(text, arguments, option):
        framework, *faults = text.split("+")
        return residual({"first": FIRST, "last": LAST}[framework], faults)

    monkeypatch.setattr(opening, "open_network", open_network)


def run(*arguments):
    return RUNNER.invoke(app, ["diff", *arguments])


def test_the_same_function_ends_in_status_0(opened):
    result = run("first", "last", "--input", "3x17x17")
    assert result.exit_code == 0 and "The same function" in result.output


def test_three_faults_end_in_status_1_and_are_told_in_few_columns(opened):
    result = run("first", "last+eps+silu+count", "--input", "3x17x17")
    assert result.exit_code == 1 and "3 findings" in result.output
    for words in ("epsilon=1e-05", "twins traps bn-epsilon", "a.act: silu", "twins traps average-pool-padding", "net.py:"):
        assert words in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_json_has_the_findings(opened):
    summary = json.loads(run("first", "last+eps", "--input", "3x17x17", "--json").stdout)
    assert summary["same"] is False
    (finding,) = summary["findings"]
    assert finding["operations"] == ["bn", "bn"] and finding["values"] == [1e-5, 1e-3] and finding["trap"] == "bn-epsilon"


def test_the_map_names_each_weight_and_json_the_rows_of_a_flattened_map(opened, tmp_path):
    path = tmp_path / "map.json"
    result = run("first", "last", "--input", "3x17x17", "--map", str(path), "--json")
    moves = {move["to"]: move for move in json.loads(result.stdout)["map"]}
    assert json.loads(path.read_text()) == {move["from"]: to for to, move in moves.items()}
    assert moves["stem.kernel"]["from"] == "stem.kernel" and "rows" not in moves["stem.kernel"]
    assert sorted(moves["fc.kernel"]["rows"]) == list(range(len(moves["fc.kernel"]["rows"])))


def test_b_keeps_its_own_weights(by_hand):
    one, two = residual(FIRST), residual(LAST, seed=1)
    before = {key: array.copy() for key, array in two.arrays.items()}
    assert differences.diff(one, two, (3, 17, 17)).same
    assert all(np.array_equal(array, two.arrays[key]) for key, array in before.items())


def test_the_page_is_whole_and_marks_the_first_difference(by_hand):
    report = differences.diff(residual(FIRST), residual(LAST, ["eps", "no relu"]), (3, 17, 17))
    text = page.page(report)
    html.parser.HTMLParser().feed(text)
    assert text.count('id="first"') == 1 and text.index('id="first"') < text.index("<code>bn</code>", text.index("<tbody>"))
    assert "http" not in text and text.count("<tr") == len(report.rows) + 1


TRAINED = Training(
    2, 0.01,
    [
        Measure("loss", 2, ("loss", "loss"), (0.5, 0.5), 1e-15, 1e-10),
        Measure("running statistics", 2, ("bn.running_mean", "bn.moving_mean"), (0.125, 0.0125), 0.9, 1e-12),
    ],
    (["drop"], []),
)  # fmt: skip
MOMENTUM = Finding(("bn", "bn"), "normalization", "momentum", (0.1, 0.01), math.nan, remedy="momentum=0.9", trap="bn-momentum")


@pytest.fixture
def trained(opened, monkeypatch):
    """Steps of training with a difference in the running statistics, in place of those that a framework takes."""
    monkeypatch.setattr(differences, "_trained", lambda *given: (TRAINED, [MOMENTUM]))


def test_what_diverges_in_training_is_told_and_ends_in_status_1(trained):
    result = run("first", "last", "--input", "3x17x17", "--train", "2")
    assert result.exit_code == 1 and "The same function" in result.output
    text = " ".join(result.output.split())
    assert "1. normalization: momentum A bn: 0.1 B bn: 0.01 to fix B: momentum=0.9 see: twins traps bn-momentum" in text
    divergence = (
        "running statistics A bn.running_mean: 0.125 B bn.moving_mean: 0.0125 differs by 9.0e-01; until then: loss 1.0e-15"
    )
    assert f"Training diverges at step 2: {divergence}" in text
    assert "Random in training, compared as in evaluation: drop." in text
    assert max(map(len, result.output.splitlines())) <= 80


def test_json_and_page_have_the_training(trained, tmp_path):
    path = tmp_path / "page.html"
    result = run("first", "last+eps", "--input", "3x17x17", "--train", "2", "--json", "--html", str(path))
    summary = json.loads(result.stdout)
    assert summary["sound"] is False and summary["trained"]["divergence"]["quantity"] == "running statistics"
    assert [measure["sound"] for measure in summary["trained"]["measures"]] == [True, False]
    assert [finding["attribute"] for finding in summary["training"]] == ["momentum"]
    text = path.read_text()
    assert "<h2>Training</h2>" in text and '<ol start="2">' in text and 'id="finding-2"' in text


def test_training_that_agrees_is_sound(opened, monkeypatch):
    agreed = Training(1, 0.01, TRAINED.measures[:1])
    monkeypatch.setattr(differences, "_trained", lambda *given: (agreed, []))
    result = run("first", "last", "--input", "3x17x17", "--train", "1")
    assert result.exit_code == 0 and "Training agrees: 2 steps of SGD (momentum 0.9, rate 0.01)" in " ".join(
        result.output.split()
    )


def test_notes_of_the_recordings_are_shown(opened, by_hand, tmp_path, monkeypatch):
    def noted(text, arguments, option):
        net = residual({"first": FIRST, "last": LAST}[text])
        net.notes = [f"of the {text}"]
        return net

    monkeypatch.setattr(opening, "open_network", noted)
    path = tmp_path / "page.html"
    output = run("first", "last", "--input", "3x17x17", "--html", str(path)).output
    assert "Note: first: of the first." in output and "Note: last: of the last." in output
    assert "<p>first: of the first</p>" in path.read_text()
    assert json.loads(run("first", "last", "--input", "3x17x17", "--json").stdout)["notes"] == [
        "first: of the first", "last: of the last",
    ]  # fmt: skip


@pytest.mark.parametrize("text, low, high", [("16:int", 0, 9), ("16:3-5", 3, 5)])
def test_whole_numbers_as_input(text, low, high):
    array = cli_diff._input(text)
    assert array.shape == (2, 16) and array.dtype == np.int64 and low <= array.min() and array.max() <= high


@pytest.mark.parametrize(
    "text, message",
    [
        ("rubbish", "rubbish: expected file.py:name"),
        ("resnet50", "did you mean torch:resnet50 or keras:resnet50?"),
        ("net.py", "name the network in the file: net.py:NAME"),
        (":resnet50", ":resnet50: expected file.py:name"),
        ("shared.checks.Error", "did you mean shared.checks:Error?"),
        ("shared.networks:", "is a module, expected a network in it: shared.networks:"),
        ("shared:networks", "is a module, expected a network in it: shared.networks:"),
        ("torchvision.models:resnet5O", "nothing is called 'resnet5O', did you mean 'resnet50'?"),
        ("torchvision.model:resnet50", "there is no module 'torchvision.model', did you mean 'models'?"),
        ("torchvision.models:", "torchvision.models: is a module, expected a network in it: torchvision.models:alexnet, "),
        ("no_such.py:net", "no_such.py: there is no such file"),
        ("no_such.keras", "no_such.keras: there is no such file"),
        ("twins.cli.outputs:show", "no module 'twins.cli.outputs', did you mean 'output'?"),
        ("shared.checks:Eror", "nothing is called 'Eror', did you mean 'Error'?"),
        ("shared.limits:WHOLE", "is a int, expected a network"),
        ("shared.checks:nearest", "missing a required argument: 'word'; pass --a-args"),
        ("shared.networks:names", "returns a list, expected a PyTorch module or a Keras model"),
    ],
)
def test_what_is_no_network_gets_one_message(text, message):
    with pytest.raises(Error) as caught:
        opening.open_network(text, {}, "--a-args")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text, arguments, message",
    [
        (
            "torch:lenet5",
            {"num_classes": 10},
            "unexpected keyword argument 'num_classes', did you mean 'classes'?; pass --a-args",
        ),
        (
            "keras:lenet5",
            {"chanels": 1},
            "keras:lenet5: got an unexpected keyword argument 'chanels', did you mean 'channels'?",
        ),
        ("torch:lenet5", {"network": "resnet50"}, "torch:lenet5: got an unexpected keyword argument 'network'"),
        ("torch:lenet5", {"weights": 5}, "torch:lenet5: cannot be built: "),
        ("shared.checks:nearest", {"word": "a", "words": [], "cutof": 1}, "argument 'cutof', did you mean 'cutoff'?"),
    ],
)
def test_wrong_arguments_get_one_message(text, arguments, message):
    with pytest.raises(Error) as caught:
        opening.open_network(text, arguments, "--a-args")
    assert message in str(caught.value)


def test_arguments_of_the_zoo():
    given = {"seed": 1, "classes": 7, "dtype": "float32"}
    net, other = (opening.open_network("torch:lenet5", arguments, "--a-args") for arguments in (given, given | {"seed": 2}))
    assert list(net.state_dict().values())[-1].shape == (7,)
    assert any((ours != theirs).any() for ours, theirs in zip(net.parameters(), other.parameters(), strict=True))


def test_code_that_raises_is_told_with_its_line(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("def build():\n    return 1 / 0\n\nprint('hello')\n")
    with pytest.raises(Error) as caught:
        opening.open_network(f"{path}:build", {}, "--a-args")
    assert "line 2: ZeroDivisionError: division by zero" in str(caught.value)
    path.write_text("import no_such_module\n")
    with pytest.raises(Error) as caught:
        opening.open_network(f"{path}:build", {}, "--a-args")
    assert "line 1: ModuleNotFoundError: No module named 'no_such_module'" in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--a-args", "[1]"], "--a-args is [1], expected an object"),
        (["--b-args", "{"], "--b-args is not JSON"),
        (["--input", "no.png"], "--input no.png: there is no such file"),
        (["--input", "16:9-2"], "--input 16:9-2: there is no such file; expected a picture, a shape"),
        (["--html", "page.txt"], "page.txt: expected a file ending in .html"),
    ],
)
def test_mistakes_in_options(options, message):
    result = run("first", "last", *options)
    assert result.exit_code and message in f"{result.exception}"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--input", "3x0x3"], "the shape of the input is 3x0x3, expected sizes above 0"),
        (["--input", "3x17x17", "--train", "101"], "train is 101, expected a number of steps from 0 to 100"),
    ],
)
def test_mistakes_that_need_the_networks(opened, options, message):
    result = run("first", "last", *options)
    assert result.exit_code and message in f"{result.exception}"


@pytest.mark.parametrize(
    "value, words",
    [
        (1e-5, "1e-05"),
        ((2, 2), "2"),
        ((2, 1), "(2, 1)"),
        (((1, 1), (1, 1)), "1 on each side"),
        (((0, 1), (0, 1)), "0 before and 1 after"),
        (((0, 1), (2, 2)), "(0 before and 1 after, 2 on each side)"),
        ("none", "none"),
    ],
)
def test_values_in_words(value, words):
    assert remedies.in_words(value) == words


@pytest.mark.parametrize(
    "wanted, framework, remedy",
    [
        (((1, 1), (1, 1)), "Keras on TensorFlow", 'ZeroPadding2D(1) before it, and padding="valid"'),
        (((0, 1), (0, 1)), "Keras on TensorFlow", 'ZeroPadding2D(((0, 1), (0, 1))) before it, and padding="valid"'),
        (((0, 0),), "Keras on TensorFlow", 'padding="valid"'),
        (((2, 2),), "Keras on TensorFlow", 'ZeroPadding1D(2) before it, and padding="valid"'),
        (((1, 1), (1, 1)), "PyTorch", "padding=1"),
        (((1, 1), (2, 2)), "PyTorch", "padding=(1, 2)"),
        (((0, 1), (0, 1)), "PyTorch", "F.pad by ((0, 1), (0, 1)) before it"),
    ],
)
def test_what_fixes_a_padding(wanted, framework, remedy):
    assert remedies.of("convolution", "padding", (wanted, ((9, 9),) * len(wanted)), framework) == (remedy, "same-padding")


@pytest.mark.parametrize("name, by", [("net.pt2", "torch.export"), ("net.keras", "Keras")])
def test_a_file_that_no_framework_has_saved(name, by, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "recorder", lambda framework: pytest.fail("a framework was started"))
    path = tmp_path / name
    with pytest.raises(Error, match="there is no such file"):
        opening.open_network(str(path), {}, "--a-args")
    path.write_text("no zip")
    with pytest.raises(Error, match=f"is not a zip file, as one saved by {by} would be"):
        opening.open_network(str(path), {}, "--a-args")


@pytest.fixture
def unlike(opened, monkeypatch):
    """An alignment in which most operations have no partner."""
    monkeypatch.setattr(Alignment, "certain", False)


def test_of_networks_too_unlike_nothing_is_told(unlike, monkeypatch):
    def judge(aligned, values, copy):
        return Verdict(training=[MOMENTUM])

    monkeypatch.setattr(blame, "judge", judge)
    result = run("first", "last+eps", "--input", "3x17x17")
    assert result.exit_code == 1 and "too different" in result.output
    assert "In training they also differ" not in result.output and "momentum" not in result.output


def test_of_networks_too_unlike_no_map_is_written(unlike, tmp_path):
    path = tmp_path / "map.json"
    result = run("first", "last", "--input", "3x17x17", "--map", str(path))
    assert not path.exists() and isinstance(result.exception, Error)
    assert "--map: most operations of first and last have no partner" in str(result.exception)


def test_random_numbers_are_told_by_the_command(opened, monkeypatch, tmp_path):
    def open_network(text, arguments, option):
        net = residual({"first": FIRST, "last": LAST}[text])
        net.random = ["bn"] if text == "last" else []
        return net

    monkeypatch.setattr(opening, "open_network", open_network)
    path = tmp_path / "page.html"
    result = run("first", "last", "--input", "3x17x17", "--html", str(path))
    text = " ".join(result.output.split())
    assert (
        result.exit_code == 1 and "It cannot be determined whether they are the same function: the results are random" in text
    )
    assert "Note: last: random numbers are drawn in bn: no two runs are the same, so" in text
    assert "It cannot be determined" in path.read_text()
    summary = json.loads(run("first", "last", "--input", "3x17x17", "--json").stdout)
    assert summary["same"] is False and summary["random"] == [[], ["bn"]]


def test_another_number_of_results_is_told_by_the_command(opened, monkeypatch):
    def open_network(text, arguments, option):
        net = residual({"first": FIRST, "last": LAST}[text])
        net.outputs = [net.operations[-2].name, *net.outputs][-2 if text == "first" else -1 :]
        return net

    monkeypatch.setattr(opening, "open_network", open_network)
    result = run("first", "last", "--input", "3x17x17")
    text = " ".join(result.output.split())
    assert result.exit_code == 1 and "output: number of results A -: 2 B -: 1" in text


def test_an_activation_that_the_input_does_not_reach_is_told_by_the_command(opened, monkeypatch):
    def open_network(text, arguments, option):
        net = Network({"first": FIRST, "last": LAST}[text])
        x = net.conv("conv", net.start(3, 9, 9), 4)
        net.activation("act", x, "relu6" if text == "first" else "relu")
        return net

    monkeypatch.setattr(opening, "open_network", open_network)
    result = run("first", "last", "--input", "3x9x9")
    text = " ".join(result.output.split())
    assert result.exit_code == 1 and "activation: function A act: relu6 (net.py:2) B act: relu" in text
    assert "no difference on A's input" in text and "0.0e+00 on" not in text
