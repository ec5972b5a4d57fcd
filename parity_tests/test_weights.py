"""The weight format: the same bits in both frameworks, strict loading, files that are wrong."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import keras_impl
import shared
import torch_impl
from shared import shapes, weights

PACKAGES = (torch_impl, keras_impl)


@pytest.fixture(scope="module", params=PACKAGES, ids=lambda package: package.__name__)
def package(request):
    return request.param


@pytest.mark.parametrize("name", ["mnist_residual", "resnet18_cifar100", "drn_d_22"])
def test_the_same_seed_gives_the_same_bits(name):
    ours, theirs = (package.state(package.build(name, seed=3)) for package in PACKAGES)
    initial = weights.initial(name, seed=3)
    assert ours.keys() == theirs.keys() == initial.keys()
    for key, array in initial.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, ours[key]) and np.array_equal(array, theirs[key]), key


def test_another_seed_gives_other_weights():
    one, two = (weights.initial("mnist_residual", seed) for seed in (0, 1))
    assert all(not np.array_equal(one[key], two[key]) for key in one)


def test_initial_weights_have_the_stated_spread():
    state = weights.initial("resnet18")
    kernel = state["layer4.0.conv1.weight"]  # 512 x 256 x 3 x 3
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (512 * 9)), rel=0.01)
    assert abs(np.mean(kernel)) < 1e-4
    bound = 1 / np.sqrt(512)
    assert 0.99 * bound < np.max(np.abs(state["fc.weight"])) <= bound
    assert np.max(np.abs(state["fc.bias"])) <= bound
    assert np.all(state["bn1.weight"] == 1) and np.all(state["bn1.running_mean"] == 0)


def test_there_and_back_again_through_a_file(tmp_path):
    state = weights.randomised(weights.initial("resnet20"))
    for number, package in enumerate((torch_impl, keras_impl, torch_impl)):
        net = package.build("resnet20", seed=number)
        package.load(net, state)
        weights.save_state(tmp_path / "w.safetensors", package.state(net))
        state = weights.read_state(tmp_path / "w.safetensors")
    original = weights.randomised(weights.initial("resnet20"))
    assert state.keys() == original.keys()
    assert all(np.array_equal(state[key], original[key]) for key in state)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_state_is_a_copy(package):
    net = package.build("mnist_residual")
    package.state(net)["fc.bias"][:] = 7
    assert not np.any(package.state(net)["fc.bias"] == 7)


def test_what_is_loaded_is_a_copy(package):
    spec = shared.load("mnist_residual")
    empty = package.layers.construct(package.network.Network, spec, "float32")
    for net in (empty, package.build(spec)):
        state = weights.initial(spec, seed=1)
        package.load(net, state)
        for array in state.values():
            array[:] = 7
        assert not any(np.any(array == 7) for array in package.state(net).values())


def test_weights_lie_in_pytorchs_own_memory():
    """NumPy's starts at odd multiples of 16 bytes, where oneDNN takes longer."""
    net = torch_impl.build("resnet20")
    assert {tensor.data_ptr() % 64 for tensor in (*net.parameters(), *net.buffers())} == {0}
    assert {tensor.data_ptr() % 64 for tensor in torch_impl.folded(net).parameters()} == {0}


def test_any_strides_and_byte_order(package):
    net, state = package.build("mnist_residual"), weights.initial("mnist_residual", seed=1)
    turned = {name: array[::-1].copy()[::-1].astype(">f4") for name, array in state.items()}
    turned["fc.weight"] = state["fc.weight"][:, ::-1].copy()[:, ::-1]
    package.load(net, turned)
    assert all(np.array_equal(array, state[name]) for name, array in package.state(net).items())


def test_a_wrong_state_is_named_in_one_error_and_changes_nothing(package):
    net = package.build("mnist_residual")
    before = package.state(net)
    state = weights.initial("mnist_residual", seed=5)
    state["fc.wieght"] = state.pop("fc.weight")
    state["conv1.weight"] = state["conv1.weight"].transpose(1, 0, 2, 3)
    with pytest.raises(shared.Error) as error:
        package.load(net, state)
    for line in ("missing: fc.weight 10x512", "unexpected: fc.wieght 10x512", "conv1.weight is 1x16x5x5, expected 16x1x5x5"):
        assert line in str(error.value)
    assert all(np.array_equal(before[key], array) for key, array in package.state(net).items())


def test_whole_numbers_are_no_weights(package):
    net = package.build("mnist_residual")
    state = weights.initial("mnist_residual") | {"fc.bias": np.arange(10)}
    with pytest.raises(shared.Error, match="not floating-point: fc.bias is int64"):
        package.load(net, state)


def test_unknown_precision(package):
    with pytest.raises(shared.Error, match="has no precision 'float46'"):
        package.build("mnist_residual", dtype="float46")


def test_counters_of_batches_may_be_there(package):
    net = package.build("resnet20")
    state = weights.initial("resnet20", seed=1)
    package.load(net, state | {"bn1.num_batches_tracked": np.array(3)})
    assert np.array_equal(package.state(net)["conv1.weight"], state["conv1.weight"])


def test_loads_by_pytorchs_own_call():
    net = torch_impl.build("resnet20")
    state = weights.initial("resnet20", seed=9)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=True)
    assert np.array_equal(torch_impl.state(net)["fc.weight"], state["fc.weight"])


def test_names_are_those_of_the_arithmetic(package):
    net = package.build("drn_c_58")
    expected = shapes.weights(shapes.layers(shared.load("drn_c_58")))
    assert {key: array.shape for key, array in package.state(net).items()} == expected
    assert "layer7.0.downsample.0.weight" in expected


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("missing.safetensors", None, "there is no such file"),
        ("truncated.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "not a complete safetensors file"),
        ("empty.safetensors", b"", "not a complete safetensors file"),
        ("weights.pth", b"PK", "not a complete safetensors file"),
    ],
)
def test_a_file_that_is_wrong(name, content, words, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(shared.Error, match=words) as error:
        weights.read_state(path)
    assert str(path) in str(error.value)


def test_a_file_in_bfloat16(tmp_path):
    save_file({"a": torch.tensor([1.0, -0.5], dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    array = weights.read_state(tmp_path / "w.safetensors")["a"]
    assert array.dtype == np.float32 and array.tolist() == [1.0, -0.5]


def test_complex_numbers_are_reported_with_their_file(tmp_path):
    save_file({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "w.safetensors")
    with pytest.raises(shared.Error, match="w.safetensors: a holds complex64, expected floating-point numbers"):
        weights.read_state(tmp_path / "w.safetensors")


def test_a_truncated_file_of_real_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save_state(path, weights.initial("mnist_residual"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(shared.Error, match="not a complete safetensors file"):
        weights.read_state(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    weights.save_state(path, {"a": np.zeros(3)})

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "serialise", full)
    with pytest.raises(shared.Error, match="cannot be written: No space left"):
        weights.save_state(path, {"a": np.ones(3)})
    assert np.array_equal(weights.read_state(path)["a"], np.zeros(3))
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_what_a_network_in_bfloat16_gives_goes_back_in(package):
    net = package.build("mnist_residual", dtype="bfloat16")
    state = package.state(net)
    assert {array.dtype for array in state.values()} == {np.dtype("float32")}
    package.load(net, state)
    assert all(np.array_equal(array, state[name]) for name, array in package.state(net).items())


def test_the_spec_of_a_network_builds_another(package):
    net = package.build("resnet20")
    again = package.build(net.spec)
    assert all(np.array_equal(array, package.state(net)[name]) for name, array in package.state(again).items())
