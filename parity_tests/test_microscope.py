"""The microscope: what it draws is what gradients say, pixel by pixel, in both frameworks; and the page, in a browser."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from test_site import _requests, _resize, browser  # noqa: F401 - a fixture

import keras_impl
import shared
import torch_impl
from shared import networks, weights
from twins import microscope

PACKAGES = {"torch": torch_impl, "tf": keras_impl}
COMMITTED = Path(__file__).parents[1] / "docs" / "_static" / microscope.DATA
ODD = {  # even kernels, "same" and uneven windows, a dilation, a shortcut of every kind; 41x30 pixels
    "name": "odd",
    "input": [3, 41, 30],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 4, "kernel": 4, "stride": 2, "padding": "same"},
        {"name": "pool", "type": "avg_pool", "kernel": 2, "stride": 1, "padding": "same"},
        {"name": "conv2", "type": "conv", "in": 4, "out": 4, "kernel": 3, "dilation": 3, "padding": 1},
        {"name": "unit", "type": "residual_unit", "in": 4, "out": 8, "stride": 2, "repeat": 2},
        {"name": "block", "type": "basic", "in": 8, "out": 8, "dilation": 2, "padding": "same"},
        {"name": "narrow", "type": "conv", "in": 8, "out": 4, "kernel": 1, "stride": 2},
        {"name": "plain", "type": "basic", "in": 4, "out": 4, "shortcut": "none"},
    ],
}


def thin(network, size):
    """A network with four channels in each layer, at another size; max pools are averages over the same windows.

    A max pool has a gradient at one position of its window, an average at all; `test_max_pools` looks at real ones.
    """
    layers = []
    for layer in networks.headless(shared.load(network))["layers"]:
        layer = {key: 4 if key in ("in", "out") and value > 3 else value for key, value in layer.items()}
        layers.append(layer | ({"type": "avg_pool"} if layer["type"] == "max_pool" else {}))
    return shared.load({"name": network, "input": [3, *size], "layers": layers})


def positive(spec):
    """Weights that cancel nothing and that no ReLU clips: above 0, batch norms the identity."""
    state = weights.initial(spec)
    return {name: abs(array) + (0 if "running_" in name or "bn" in name else 0.01) for name, array in state.items()}


def engine(package, spec, state, dtype="float64"):
    net = PACKAGES[package].build(spec, dtype=dtype)
    PACKAGES[package].load(net, state)
    return PACKAGES[package].Engine(net)


def places(row):
    """The central unit of a layer, two in corners and one at a border."""
    height, width = row.shape[1:]
    return [microscope.centre(row), (0, 0), (height - 1, width - 1), (height // 3, width - 1)]


def test_fields_are_those_of_the_table():
    """The side of the field is `twins show`'s for each layer of every network; all that is read is in it."""
    for name in networks.names():
        rows = microscope.layers(shared.load(name))
        for number, row in enumerate(rows, 1):
            top, left, bottom, right = microscope.field(rows, number, (2, 1))
            assert (bottom - top + 1, right - left + 1) == (row.field, row.field), (name, row.name)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    "network, size",
    [
        (ODD, None), ("drn_a_18", (96, 70)), ("drn_c_26", (67, 49)), ("resnet50_keras", (65, 40)), ("vgg11", (64, 47)),
        ("preact_resnet18", (50, 33)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)  # fmt: skip
def test_what_is_read_is_what_has_a_gradient(network, size, package, request):
    if package == "tf" and network in ("drn_a_18", "resnet50_keras") and not request.config.getoption("--long"):
        pytest.skip("takes long; pytest --long runs it")
    spec = thin(network, size) if size else shared.load(network)
    rows, driven = microscope.layers(spec), engine(package, spec, positive(spec))
    images = np.random.default_rng(0).uniform(1, 2, (1, *spec["input"]))
    for place in range(4):
        units = {row.name: places(row)[place] for row in rows}
        gradients = driven.unit_gradients(images, units)
        for number, row in enumerate(rows, 1):
            read, share = microscope.reading(rows, number, units[row.name])
            assert np.array_equal(gradients[row.name][0].sum(0) > 0, read), (row.name, units[row.name])
            assert np.array_equal(share > 0, read)
            top, left, bottom, right = microscope.field(rows, number, units[row.name])
            inside = np.zeros_like(read)
            inside[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
            assert not (read & ~inside).any()
            if inside.sum() == row.field**2:  # none of it is in the padding
                assert read[top].any() and read[bottom].any() and read[:, left].any() and read[:, right].any()


def test_seen_on_an_earlier_map():
    """What a chain reads of the image is what it reads of an earlier map, and each position of that in its turn."""
    spec = thin("drn_a_18", (96, 70))
    rows = microscope.layers(spec)
    onto = [row.name for row in rows].index("layer2.1") + 1
    read, share = microscope.reading(rows, len(rows), (5, 4), onto)
    assert read.shape == rows[onto - 1].shape[1:]
    pairs = [(microscope.reading(rows, onto, tuple(unit)), share[tuple(unit)]) for unit in np.argwhere(read)]
    whole, whole_share = microscope.reading(rows, len(rows), (5, 4))
    assert np.array_equal(np.any([one for (one, _), _ in pairs], 0), whole)
    assert np.allclose(sum(one * value for (_, one), value in pairs), whole_share, rtol=1e-12)


def test_gridding_of_the_three():
    """Of DRN-A's last map every unit reads a lattice of the map where dilation 4 starts; DRN-B and C read all of it."""
    own = {}
    for name, onto in (("drn_a_18", "layer3.1"), ("drn_b_26", "layer5.1"), ("drn_c_26", "layer5.1")):
        rows = microscope.layers(shared.load(name))
        read, share = microscope.reading(rows, len(rows), (14, 14), [row.name for row in rows].index(onto) + 1)
        own[name] = share[2::4, 2::4].sum() / share.sum()
        assert read[::2, ::2].any() and (name == "drn_a_18") != read[1::2].any()
    assert own["drn_a_18"] > own["drn_b_26"] + 0.1 > own["drn_c_26"] + 0.3 and own["drn_c_26"] == pytest.approx(
        1 / 16, abs=0.03
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_max_pools(package):
    """A raised pixel changes the unit exactly if it is read: with max pools, one that rounds up and two with padding."""
    pools = [
        {"kernel": 3, "stride": 2, "padding": 1},
        {"kernel": 2, "ceil": True},
        {"kernel": 3, "stride": 1, "padding": "same"},
    ]
    layers = [{"name": f"pool{number}", "type": "max_pool", **pool} for number, pool in enumerate(pools)]
    layers.insert(1, {"name": "conv", "type": "conv", "in": 1, "out": 2, "kernel": 3, "padding": 1, "dilation": 1})
    spec = shared.load({"name": "pools", "input": [1, 18, 13], "layers": layers})
    images = np.ones((1 + 18 * 13, 1, 18, 13))
    images[1:].reshape(18 * 13, -1)[np.diag_indices(18 * 13)] = 100
    driven, rows = engine(package, spec, positive(spec)), microscope.layers(spec)
    outputs = driven.activations(images)
    for number, row in enumerate(rows, 1):
        for unit in places(row):
            values = driven.channels_first(outputs[row.name])[:, 0, unit[0], unit[1]]
            read, _ = microscope.reading(rows, number, unit)
            assert np.array_equal((values[1:] != values[0]).reshape(18, 13), read), (row.name, unit)


def decoded(stored, size):
    """The effective field that the page draws, (height, width), in [0, 1]."""
    (top, left), (height, width), block = stored["box"], stored["shape"], stored["block"]
    values = np.frombuffer(base64.b64decode(stored["values"]), np.uint8).reshape(height, width) / 255
    field = np.zeros((size[0] + height * block, size[1] + width * block))
    field[top : top + height * block, left : left + width * block] = values.repeat(block, 0).repeat(block, 1)
    return field[: size[0], : size[1]]


@pytest.mark.parametrize("package", PACKAGES)
def test_effective_fields_are_mean_gradients(package):
    """As stored they are PyTorch's own gradients of the channel of largest activation, one image at a time, to 8 bits."""
    torch = torch_impl.engine.torch
    spec = shared.load("drn_a_10_small")
    state, rows = weights.initial(spec), microscope.layers(spec)
    fields = microscope.effective(engine(package, spec, state), spec, rows)
    net = torch_impl.build(spec, dtype="float64").eval()
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((4, *spec["input"])))
    for row in rows:
        expected = 0
        for image in images:
            image = image[None].clone().requires_grad_()
            unit = net.activations(image)[row.name][0][:, row.shape[1] // 2, row.shape[2] // 2]
            unit[unit.argmax()].backward()
            expected = expected + image.grad[0].abs().sum(0).numpy()
        expected /= expected.max()
        assert np.abs(fields[row.name] - expected).max() < 1e-9, row.name
        read, _ = microscope.reading(rows, rows.index(row) + 1, microscope.centre(row))
        assert not expected[~read].any()
        stored = microscope.encode(expected)
        drawn, block, (top, left) = decoded(stored, expected.shape), stored["block"], stored["box"]
        height, width = ((side - edge) // block for side, edge in zip(expected.shape, (top, left), strict=True))
        whole = expected[top : top + height * block, left : left + width * block]
        means = whole.reshape(height, block, width, block).mean((1, 3))
        assert np.abs(drawn[top::block, left::block][:height, :width] - means / means.max()).max() <= 1 / 510 + 1e-9
        assert stored["side"] == pytest.approx(np.sqrt((expected > microscope.HEARD).sum()), abs=0.06)


def test_blocks_are_means():
    values = np.random.default_rng(0).uniform(0.5, 1, (100, 70))
    stored = microscope.encode(values / values.max())
    assert (stored["block"], stored["shape"], stored["box"]) == (3, [34, 24], [0, 0])
    drawn, first = decoded(stored, (100, 70)), values[:99, :69].reshape(33, 3, 23, 3).mean((1, 3))
    assert np.abs(drawn[:99:3, :69:3] - first / first.max()).max() <= 1 / 510 + 1e-9
    assert not decoded(microscope.encode(np.zeros((5, 6))), (5, 6)).any()


def committed():
    """The documentation's data: (command in its first line, what the page reads)."""
    first, text = COMMITTED.read_text(encoding="utf-8").split("\n", 1)
    return first.removeprefix("// Written by: twins microscope "), json.loads(text.removeprefix("window.MICROSCOPE = ")[:-2])


def test_the_documentations_data_are_those_of_the_zoo():
    names, data = committed()
    assert names.split() == [network["name"] for network in data["networks"]] and COMMITTED.stat().st_size < 300_000
    for network in data["networks"]:
        spec = shared.load(network["name"])
        rows = microscope.layers(spec)
        nothing = {row.name: np.zeros(spec["input"][1:]) for row in rows}
        expected = json.loads(json.dumps(microscope.summary(spec, rows, nothing, "PyTorch")))
        for layer in (*network["layers"], *expected["layers"]):
            layer.pop("effective")
        assert network == expected


@pytest.mark.long
@pytest.mark.parametrize("name", committed()[0].split())
def test_the_documentations_effective_fields_are_gradients(name):
    (network,) = (network for network in committed()[1]["networks"] if network["name"] == name)
    spec = shared.load(name)
    rows = microscope.layers(spec)
    fields = microscope.effective(engine("torch", spec, weights.initial(spec), "float32"), spec, rows)
    for layer in network["layers"]:
        now, stored = microscope.encode(fields[layer["name"]]), layer["effective"]
        drawn = [decoded(one, spec["input"][1:]) for one in (now, stored)]
        assert np.abs(drawn[0] - drawn[1]).max() <= 2 / 255, layer["name"]


NETWORKS = ("drn_a_10_small", "drn_b_18_small", "drn_c_18_small", "odd")
PIXELS = """
    const canvas = document.getElementById(arguments[0]);
    return [canvas.height, canvas.width, [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]];
"""
CLICK = """
    const stage = document.getElementById(arguments[0]).parentElement, box = stage.getBoundingClientRect();
    const [row, column, height, width] = arguments[1];
    stage.dispatchEvent(new MouseEvent("click", {bubbles: true,
        clientX: box.left + (column + 0.5) / width * box.width, clientY: box.top + (row + 0.5) / height * box.height}));
"""
MARK = """
    const {top, left, height, width} = document.getElementById(arguments[0]).parentElement.querySelector("div").style;
    return [top, left, height, width].map(parseFloat);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory, twins):
    """The page that the command writes for small networks and a spec of one's own."""
    folder = tmp_path_factory.mktemp("microscope")
    (folder / "odd.json").write_text(json.dumps(ODD))
    done = twins("microscope", *NETWORKS[:3], "odd.json", "--out", "page", folder=folder)
    assert not done.returncode and done.stdout.startswith("page/index.html: "), done.stderr
    return folder / "page"


@pytest.fixture
def opened(page, browser):  # noqa: F811
    _resize(browser, 1400)
    browser.get_log("browser")
    _requests(browser)
    browser.get(f"{page.as_uri()}/index.html")
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert all(url.startswith((f"{page.as_uri()}/", "data:")) for url in _requests(browser))


def pixels(browser, name):  # noqa: F811
    height, width, values = browser.execute_script(PIXELS, f"microscope-{name}")
    return np.array(values).reshape(height, width, 4)


def orange(drawn):
    """(read, how brightly in [0, 1]) of a canvas."""
    return drawn[..., 0] > 100, (drawn[..., 3] - 64) / 191


def choose(browser, name, value):  # noqa: F811
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", f"microscope-{name}")).select_by_value(str(value))


def status(browser):  # noqa: F811
    return browser.find_element("css selector", "[role=status]").text


def check_drawing(browser, spec, number, unit, onto):  # noqa: F811
    """The canvases, the frame and the words say of a unit what Python says."""
    rows = microscope.layers(spec)
    read, share = microscope.reading(rows, number, unit, onto)
    drawn, bright = orange(pixels(browser, "reads"))
    assert np.array_equal(drawn, read), (rows[number - 1].name, unit)
    scale = 1 if onto else 0.8
    assert np.abs(bright - scale * np.sqrt(share / share.max()))[read].max() < 2 / 191 + 1e-9
    box, size = microscope.field(rows, number, unit, onto), read.shape
    expected = [100 * box[0] / size[0], 100 * box[1] / size[1]]
    expected += [100 * (box[2] - box[0] + 1) / size[0], 100 * (box[3] - box[1] + 1) / size[1]]
    assert browser.execute_script(MARK, "microscope-reads") == pytest.approx(expected, abs=1e-3)
    row, whole = rows[number - 1], microscope.field(rows, number, unit)
    words = (
        f"{row.name}, unit ({unit[0]}, {unit[1]}) of {row.shape[1]} x {row.shape[2]}: receptive field {row.field} x {row.field}"
    )
    assert status(browser).startswith(f"{words} pixels from ({whole[0]}, {whole[1]})")
    assert f"stride {row.stride}," in status(browser)
    assert f"It reads {read.sum()} of {read.size} positions of {'the map' if onto else 'the image'}" in status(browser)


def test_the_page_draws_what_python_says(opened):
    """Every layer of a network and of a spec of one's own; of each the central unit and, on an earlier map, a border one."""
    for position, name in ((0, NETWORKS[0]), (3, "odd")):
        spec = shared.load(ODD if name == "odd" else name)
        rows = microscope.layers(spec)
        choose(opened, "network", position)
        buttons = opened.find_elements("css selector", ".microscope-layers button")
        assert [button.text for button in buttons] == [row.name for row in rows]
        for number in range(1, len(rows) + 1):
            buttons[number - 1].click()
            height, width = rows[number - 1].shape[1:]
            check_drawing(opened, spec, number, microscope.centre(rows[number - 1]), 0)
            unit = (height // 3, width - 1)
            opened.execute_script(CLICK, "microscope-map", [*unit, height, width])
            onto = number - 1 if name == "odd" else number // 2
            choose(opened, "onto", onto)
            check_drawing(opened, spec, number, unit, onto)
            choose(opened, "onto", 0)


def test_effective_fields_are_drawn_as_stored(opened, page):
    """Blue is the stored gradient, byte by byte; for another unit it is moved by the stride."""
    text = (page / microscope.DATA).read_text(encoding="utf-8").split("window.MICROSCOPE = ")[1]
    stored = json.loads(text[:-2])["networks"][0]["layers"][-1]
    opened.find_elements("css selector", ".microscope-layers button")[-1].click()
    size = shared.load(NETWORKS[0])["input"][1:]

    def shown():
        drawn = pixels(opened, "hears").astype(float)
        return (drawn[..., 3] / 255 - 0.6) / 0.25

    expected = decoded(stored["effective"], size)
    assert np.abs(shown() - expected).max() < 0.01
    assert "Measured at this unit" in opened.page_source
    row, column = stored["centre"]
    opened.execute_script(CLICK, "microscope-map", [row + 1, column - 1, *stored["map"]])
    assert (
        np.abs(shown()[stored["stride"] :, : -stored["stride"]] - expected[: -stored["stride"], stored["stride"] :]).max()
        < 0.01
    )
    assert f"Measured at unit ({row}, {column}) and moved here" in opened.page_source


def test_side_by_side(opened):
    """The three networks with dilation have a column each, which follow one another."""
    figures = opened.find_elements("css selector", "[id^=microscope-grid-]")
    assert [figure.get_attribute("id").removeprefix("microscope-grid-") for figure in figures] == list(NETWORKS)
    for unit in ((4, 4), (0, 7)):
        opened.execute_script(CLICK, f"microscope-grid-{NETWORKS[1]}", [*unit, 8, 8])
        for name in NETWORKS[:3]:
            rows = microscope.layers(shared.load(name))
            period = max(d for row in rows for d in row.dilations)
            onto = next(number for number, row in enumerate(rows) if period in row.dilations)
            here = tuple(int((at + 0.5) / 8 * side) for at, side in zip(unit, rows[-1].shape[1:], strict=True))
            read, share = microscope.reading(rows, len(rows), here, onto)
            assert np.array_equal(orange(pixels(opened, f"grid-{name}"))[0], read)
            own = share[here[0] % period :: period, here[1] % period :: period].sum() / share.sum()
            label = opened.find_element("id", f"microscope-grid-{name}").get_attribute("aria-label")
            assert f"unit ({here[0]}, {here[1]}), reads {read.sum()} of {read.size}" in label
            assert f"; {100 * own:.1f} % of it from every {period}th" in label


def test_keys_and_screen_readers(opened):
    """Tab reaches every control in order, arrows move the unit and stop at the border, words say what is drawn."""
    from selenium.webdriver.common.keys import Keys

    stage = opened.find_element("id", "microscope-map").find_element("xpath", "..")
    controls = opened.find_elements("css selector", "select, .microscope-layers button, [tabindex='0']")
    opened.execute_script("arguments[0].focus()", controls[0])
    for control in controls:
        assert opened.switch_to.active_element == control
        assert opened.execute_script("return getComputedStyle(arguments[0]).outlineWidth", control) == "3px"
        control.send_keys(Keys.TAB)
    stage.send_keys(Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert "unit (3, 3) of 8 x 8" in status(opened) and "from" in status(opened)
    stage.send_keys(Keys.SHIFT + Keys.ARROW_UP)
    assert "unit (0, 3) of 8 x 8" in status(opened)
    column = opened.find_element("id", f"microscope-grid-{NETWORKS[0]}").find_element("xpath", "..")
    before = column.get_attribute("aria-label")
    column.send_keys(Keys.ARROW_DOWN)
    assert column.get_attribute("aria-label") != before
    for canvas in opened.find_elements("tag name", "canvas"):
        assert canvas.get_attribute("role") == "img" and canvas.get_attribute("aria-label")
    assert all(image.get_attribute("alt") == "" for image in opened.find_elements("tag name", "img"))


@pytest.mark.parametrize("width", [1400, 390])
def test_it_fits(opened, width):
    _resize(opened, width)
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["resnet18", "resnet18"], "two of the networks are called 'resnet18'; the page tells them apart by name"),
        (["resnet19"], "no network is called 'resnet19'"),
        (["flat.json"], "flat has no convolution or pool before its classifier: there is no map to show"),
        (
            ["lenet", "--backend", "both"],
            "--backend both: the fields are of one framework; expected torch, tf, jax or keras-torch",
        ),
        (["lenet", "--out", "flat.json"], "flat.json: is a file; --out takes a folder"),
    ],
)
def test_mistakes(arguments, words, twins, tmp_path):
    layers = [{"name": "flatten", "type": "flatten"}, {"name": "fc", "type": "linear", "in": 12, "out": 2}]
    (tmp_path / "flat.json").write_text(json.dumps({"name": "flat", "input": [3, 2, 2], "layers": layers}))
    out = [] if "--out" in arguments else ["--out", "page"]
    done = twins("microscope", *arguments, *out, folder=tmp_path)
    assert done.returncode == 2 and words in done.stderr and not (tmp_path / "page").exists()
