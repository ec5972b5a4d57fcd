"""PyTorch's operators in the common terms of `shared/operations.py`.

An operator is a node of the graph that `torch.export` makes. The terms are worked out from its arguments and from the shapes of
its operands; axes are PyTorch's, channels at axis 1.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.fx import Graph, Node

ACTIVATIONS = {
    "relu": "relu", "relu6": "relu6", "leaky_relu": "leaky_relu", "elu": "elu", "selu": "selu", "gelu": "gelu", "silu": "silu",
    "sigmoid": "sigmoid", "hardsigmoid": "hard_sigmoid", "hardswish": "hard_swish", "tanh": "tanh", "softplus": "softplus",
    "softmax": "softmax", "log_softmax": "log_softmax", "mish": "mish", "exp": "exp", "sqrt": "sqrt", "rsqrt": "rsqrt",
    "log": "log", "abs": "abs", "neg": "neg", "log_sigmoid": "log_sigmoid", "celu": "celu",
    "erf": "erf", "sin": "sin", "cos": "cos",
}  # fmt: skip
BINARY = {"add": "add", "sub": "subtract", "rsub": "subtract", "mul": "multiply", "div": "divide", "maximum": "maximum",
          "minimum": "minimum", "pow": "power"}  # fmt: skip
REDUCTIONS = {"sum": "sum", "amax": "max", "amin": "min", "var": "variance"}
RESHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as", "reshape_as")
TRANSPOSES = ("permute", "transpose", "t", "movedim", "swapaxes", "moveaxis", "numpy_T", "mT")
SLICES = ("slice", "select", "narrow", "unbind", "chunk", "split", "split_with_sizes")
SAME = ("contiguous", "clone", "alias", "lift_fresh_copy", "lift_fresh", "identity")  # of value
DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
RANDOM = ("bernoulli", "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal", "uniform",
          "multinomial", "poisson", "exponential", "native_dropout")  # fmt: skip
LOCAL_RESPONSE = r"mul (unsqueeze|view) pad avg_pool[23]d squeeze (view )?mul add pow div\b"
LONGEST = 10  # operators of a local response normalisation
PADS = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "circular"}


class Term(NamedTuple):
    """What an operator is in common terms."""

    kind: str
    attributes: dict[str, Any]
    operands: list[Any]  # nodes, and numbers among them
    roles: dict[str, Any]  # {role: node of the weight, a number, or None}
    transposed: bool = False  # whether PyTorch has the kernel as (out, in)


def base(node: Node) -> str:
    """The operator's name: "conv2d", "relu" for `relu_` too."""
    if node.target is operator.getitem:
        source = node.args[0]
        return base(source) if isinstance(source, Node) else "getitem"
    name = str(getattr(node.target, "_opname", "") or getattr(node.target, "__name__", node.target))
    return name if name.startswith("_") else name.removesuffix("_")


def shape(node: Any) -> tuple[int, ...]:
    """The shape of a node's tensor."""
    return tuple(int(side) for side in node.meta["val"].shape)


def arguments(node: Node) -> dict[str, Any]:
    """{name: value} of an operator's arguments, those left out at their defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {f"argument {number}": value for number, value in enumerate(node.args)} | dict(node.kwargs)
    found = {each.name: each.default_value for each in schema.arguments}
    found |= dict(zip((each.name for each in schema.arguments), node.args, strict=False))
    return found | dict(node.kwargs)


def writes_on_view(node: Node) -> bool:
    """Whether an operator writes in place on a part of a value."""
    schema = getattr(node.target, "_schema", None)
    on = node.args[0] if schema is not None and schema.is_mutable and node.args else None
    return isinstance(on, Node) and on.op == "call_function" and base(on) in SLICES


def draws(node: Node) -> bool:
    """Whether an operator draws random numbers."""
    given = arguments(node)
    rate = given.get("dropout_p", given.get("dropout", given.get("p", 0)))
    dropping = (base(node) in DROPOUTS or "dropout" in given) and given.get("train") or "dropout_p" in given
    return base(node) in RANDOM or bool(dropping and rate)


def silence(graph: Graph) -> list[tuple[str, float]]:
    """Let the functions that drop something drop nothing; (name, rate) of them."""
    found = []
    for node in graph.nodes:
        if node.op != "call_function" or not draws(node):
            continue
        given = arguments(node)
        if base(node) in DROPOUTS:
            node.args, rate = (*node.args[:2], False), given["p"]
        elif "dropout_p" in given:
            names = [each.name for each in node.target._schema.arguments]
            node.args = tuple(0.0 if name == "dropout_p" else each for name, each in zip(names, node.args, strict=False))
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "dropout_p"}
            rate = given["dropout_p"]
        else:
            continue
        found.append((node.name, float(rate)))
    return found


def term(node: Node, is_static: Callable[[Any], bool]) -> Term:
    """An operator in common terms; `is_static` says of an operand whether it depends on no input of the network."""
    name = base(node)
    convert = _CONVERTERS.get(name)
    found = convert(node, arguments(node), is_static) if convert else None
    return found or _other(node)


def _other(node: Node) -> Term:
    given = {key: value for key, value in arguments(node).items()}
    operands = [value for value in _flat(given.values()) if isinstance(value, Node)]
    plain = {key: value for key, value in given.items() if not any(isinstance(each, Node) for each in _flat([value]))}
    return Term("other", {"operation": str(node.target), "arguments": {k: _plain(v) for k, v in plain.items()}}, operands, {})


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _flat(values: Any) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        flat += _flat(value) if isinstance(value, list | tuple) else [value]
    return flat


def _sizes(value: Any, count: int) -> tuple[int, ...]:
    """A number, or a list of one or of `count` numbers, as `count` numbers."""
    numbers = [value] if isinstance(value, int) else list(value)
    return tuple(int(each) for each in (numbers * count if len(numbers) == 1 else numbers))


def _convolution(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    x, kernel = given["input"], given["weight"]
    if not is_static(kernel):
        return None
    window = shape(kernel)[2:]
    count, transposed = len(window), bool(given.get("transposed")) or "transpose" in base(node)
    stride, dilation = _sizes(given["stride"], count), _sizes(given["dilation"], count)
    padding = given["padding"]
    if isinstance(padding, str):
        total = [step * (side - 1) if padding == "same" else 0 for step, side in zip(dilation, window, strict=True)]
        pairs = tuple((each // 2, each - each // 2) for each in total)
    else:
        beyond = _sizes(given.get("output_padding", 0), count) if transposed else (0,) * count
        pairs = tuple((each, each - more) for each, more in zip(_sizes(padding, count), beyond, strict=True))
    attributes = {
        "channels": len(shape(x)) - count - 1, "stride": stride, "padding": pairs, "dilation": dilation,
        "groups": int(given["groups"]), "transposed": transposed,
    }  # fmt: skip
    return Term("convolution", attributes, [x], {"kernel": kernel, "bias": given["bias"]})


def _linear(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    x, kernel, bias = given["input"], given["weight"], given.get("bias")
    if not is_static(kernel) or len(shape(kernel)) != 2 or is_static(x):
        return None
    return Term("linear", {"channels": len(shape(x)) - 1}, [x], {"kernel": kernel, "bias": bias}, True)


def _product(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    bias = given["self"] if base(node) == "addmm" else None
    first, second = (given[key] for key in (("mat1", "mat2") if bias is not None else list(given)[:2]))
    if is_static(second) and len(shape(second)) == 2 and (bias is None or is_static(bias)):
        return Term("linear", {"channels": len(shape(first)) - 1}, [first], {"kernel": second, "bias": bias})
    if bias is None and not is_static(first) and not is_static(second):
        return Term("matmul", {"transpose": (False, False)}, [first, second], {})
    return None


def _normalization(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    name, x = base(node), given["input"]
    roles = {"scale": given.get("weight"), "shift": given.get("bias")}
    attributes: dict[str, Any] = {"over": name.removesuffix("_norm"), "channels": 1, "epsilon": given.get("eps")}
    if name in ("layer_norm", "rms_norm"):
        count = len(given["normalized_shape"])
        attributes["channels"] = tuple(range(len(shape(x)) - count, len(shape(x))))
        if attributes["epsilon"] is None:
            attributes["epsilon"] = torch.finfo(x.meta["val"].dtype).eps
    elif name == "group_norm":
        attributes["groups"] = int(given["num_groups"])
    else:
        training = given.get("training", given.get("use_input_stats"))
        roles |= {"mean": given["running_mean"], "variance": given["running_var"]}
        attributes |= {"momentum": given["momentum"] if roles["mean"] is not None else None, "training": bool(training)}
    return Term("normalization", attributes, [x], roles)


def _activation(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    function, attributes = ACTIVATIONS[base(node)], dict[str, Any]()
    if function == "gelu" and given.get("approximate") == "tanh":
        function = "gelu_tanh"
    if function in ("leaky_relu", "elu", "celu"):
        attributes["slope"] = float(given.get("negative_slope", given.get("alpha", 1)))
    if function in ("softmax", "log_softmax"):
        attributes["axis"] = given["dim"] % len(shape(node))
    return Term("activation", {"function": function, **attributes}, [next(iter(given.values()))], {})


def _clamp(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    low, high = given.get("min_val", given.get("min")), given.get("max_val", given.get("max"))
    x = next(iter(given.values()))
    functions = {(0, 6): "relu6", (0, None): "relu"}
    return Term("activation", {"function": functions[low, high]}, [x], {}) if (low, high) in functions else None


def _pool(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    name, x = base(node), given["self"]
    count = int(name[name.index("pool") + 4])
    window = _sizes(given["kernel_size"], count)
    stride = _sizes(given["stride"] or window, count)
    dilation = _sizes(given.get("dilation", 1), count)
    if given.get("divisor_override"):
        return None
    pairs = []
    for axis, before in enumerate(_sizes(given["padding"], count)):
        side, out = (shape(each)[len(shape(each)) - count + axis] for each in (x, node))
        reach = (out - 1) * stride[axis] + dilation[axis] * (window[axis] - 1) + 1
        pairs.append((before, max(before, reach - side - before)))
    how = name.partition("_")[0].replace("avg", "average")
    attributes = {
        "channels": len(shape(x)) - count - 1, "how": how, "window": window, "stride": stride, "padding": tuple(pairs),
        "count_padding": bool(given.get("count_include_pad", False)) and any(map(any, pairs)),
    }  # fmt: skip
    return Term("pool", attributes | ({"dilation": dilation} if max(dilation) > 1 else {}), [x], {})


def _adaptive_pool(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    name, x = base(node), given["self"]
    count = int(name[name.index("pool") + 4])
    before, after = shape(x)[-count:], shape(node)[-count:]
    average = "avg" in name
    if all(side == 1 for side in after):
        axes = tuple(range(len(shape(x)) - count, len(shape(x))))
        extra = {} if average else {"how": "max"}
        return Term("mean" if average else "reduce", {"axes": axes, "keep": True, **extra}, [x], {})
    if any(side % out for side, out in zip(before, after, strict=True)):
        return None
    window = tuple(side // out for side, out in zip(before, after, strict=True))
    attributes = {
        "channels": len(shape(x)) - count - 1, "how": "average" if average else "max", "window": window, "stride": window,
        "padding": ((0, 0),) * count, "count_padding": False,
    }  # fmt: skip
    return Term("pool", attributes, [x], {})


def _reduction(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    x = given["self"]
    ranks = given.get("dim")
    axes = range(len(shape(x))) if ranks is None or ranks == [] else [ranks] if isinstance(ranks, int) else ranks
    attributes: dict[str, Any] = {
        "axes": tuple(sorted(axis % len(shape(x)) for axis in axes)),
        "keep": bool(given.get("keepdim")),
    }
    if base(node) == "mean":
        return Term("mean", attributes, [x], {})
    if base(node) == "var":
        attributes["correction"] = given.get("correction", 1)
    return Term("reduce", {"how": REDUCTIONS[base(node)], **attributes}, [x], {})


def _upsample(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    name, x = base(node), given["input"] if "input" in given else given["self"]
    how = next(each for each in ("nearest", "bilinear", "bicubic", "trilinear", "linear") if each in name)
    count = int(name[-2])
    align = bool(given.get("align_corners", False))
    half = "exact" in name if how == "nearest" else not align
    size = shape(node)[-count:]
    attributes = {"channels": len(shape(x)) - count - 1, "how": how, "size": size, "align_corners": align, "half_pixel": half}
    return Term("upsample", attributes, [x], {})


def _pad(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    x, ends, mode = given["self"], list(given["pad"]), given.get("mode", "constant")
    pairs = [(int(ends[at]), int(ends[at + 1])) for at in range(0, len(ends), 2)][::-1]
    amounts = ((0, 0),) * (len(shape(x)) - len(pairs)) + tuple(pairs)
    value = {"value": float(given.get("value") or 0)} if mode == "constant" else {}
    return Term("pad", {"amounts": amounts, "mode": PADS[mode], **value}, [x], {})


def _binary(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    operands = [value for key, value in given.items() if key in ("self", "other", "exponent")]
    if given.get("alpha", 1) != 1 or given.get("rounding_mode"):
        return None
    if base(node) == "rsub":
        operands.reverse()
    static = [each for each in operands if is_static(each)]
    if len(static) > 1:
        return None
    return Term(BINARY[base(node)], {}, operands, {"constant": static[0]} if static else {})


def _concatenate(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    tensors = given["tensors"]
    static = [each for each in tensors if is_static(each)]
    if len(static) > 1:
        return None
    axis = given.get("dim", 0) % len(shape(node))
    return Term("concatenate", {"axis": axis}, list(tensors), {"constant": static[0]} if static else {})


def _attention(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    if given["attn_mask"] is not None or given["dropout_p"]:
        return None
    scale = given["scale"] or 1 / math.sqrt(shape(given["query"])[-1])
    return Term(
        "attention", {"scale": scale, "causal": bool(given["is_causal"])}, [given[k] for k in ("query", "key", "value")], {}
    )


def _embedding(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    return Term("embedding", {}, [given["indices"]], {"kernel": given["weight"]}) if is_static(given["weight"]) else None


def _dropout(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    return Term("dropout", {"rate": float(given["p"]), "training": bool(given["train"])}, [next(iter(given.values()))], {})


def _reshape(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    return Term("reshape", {"shape": shape(node)}, [next(iter(given.values()))], {})


def _transpose(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    x = next(iter(given.values()))
    sizes = shape(x)
    moved = node.target(torch.empty(sizes, device="meta"), *list(node.args)[1:], **node.kwargs)
    strides = torch.empty(sizes, device="meta").stride()
    # Axes of size 1 may share a stride; where they stand among one another makes no difference.
    left = list(range(len(sizes)))
    order = []
    for stride, side in zip(moved.stride(), moved.shape, strict=True):
        order.append(next(axis for axis in left if strides[axis] == stride and sizes[axis] == side))
        left.remove(order[-1])
    return Term("transpose", {"order": tuple(order)}, [x], {})


def _slice(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term | None:
    source = node.args[0] if node.target is operator.getitem else node
    assert isinstance(source, Node)
    x = next(iter(arguments(source).values()))
    if not isinstance(x, Node):
        return None
    starts, stops, steps = [0] * len(shape(x)), list(shape(x)), [1] * len(shape(x))
    of_source, name = arguments(source), base(source)
    axis = int(of_source.get("dim", 0)) % len(shape(x))
    if name == "slice":
        start, stop, step = slice(of_source["start"], of_source["end"], of_source["step"]).indices(shape(x)[axis])
        starts[axis], stops[axis], steps[axis] = start, stop, step
    elif name == "select":
        starts[axis] = of_source["index"] % shape(x)[axis]
        stops[axis] = starts[axis] + 1
    elif name == "narrow":
        starts[axis] = of_source["start"]
        stops[axis] = starts[axis] + of_source["length"]
    elif node.target is operator.getitem:
        number = node.args[1]
        assert isinstance(number, int)
        parts = [int(np.prod(each.shape)) and int(each.shape[axis]) if name != "unbind" else 1 for each in source.meta["val"]]
        starts[axis] = sum(parts[:number])
        stops[axis] = starts[axis] + parts[number]
    else:
        return None
    return Term("slice", {"starts": tuple(starts), "stops": tuple(stops), "steps": tuple(steps)}, [x], {})


def _stop(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    return Term("stop_gradient", {}, [given["self"]], {})


def _cast(node: Node, given: Mapping[str, Any], is_static: Callable[[Any], bool]) -> Term:
    return Term("cast", {"dtype": str(node.meta["val"].dtype).removeprefix("torch.")}, [next(iter(given.values()))], {})


def local_response(nodes: Sequence[Node]) -> tuple[list[Node], Term] | None:
    """(nodes, term) of PyTorch's local response normalisation, which is several operators, if `nodes` begin with one."""
    found = re.match(LOCAL_RESPONSE, " ".join(map(base, nodes)))
    if not found:
        return None
    several = list(nodes[: found.group().count(" ") + 1])
    x, given = several[-1].args[0], {base(node): arguments(node) for node in several}
    pool = next(node for node in several if base(node).startswith("avg_pool"))
    if several[0].args != (x, x):
        return None
    attributes = {
        "channels": 1, "size": max(_sizes(pool.args[1], 1)), "alpha": float(given["mul"]["other"]),
        "beta": float(given["pow"]["exponent"]), "k": float(given["add"]["other"]),
    }  # fmt: skip
    return several, Term("local_response_normalization", attributes, [x], {})


_CONVERTERS: dict[str, Callable[[Node, Mapping[str, Any], Callable[[Any], bool]], Term | None]] = {
    **{f"conv{way}{n}d": _convolution for n in (1, 2, 3) for way in ("", "_transpose")},
    "convolution": _convolution,
    "linear": _linear,
    **dict.fromkeys(("addmm", "mm", "matmul", "bmm"), _product),
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"), _normalization),
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min"), _clamp),
    **{f"{how}_pool{n}d": _pool for n in (1, 2, 3) for how in ("max", "avg")},
    **{f"adaptive_{how}_pool{n}d": _adaptive_pool for n in (1, 2, 3) for how in ("max", "avg")},
    **dict.fromkeys(("mean", *REDUCTIONS), _reduction),
    **{
        f"{kind}{n}d": _upsample
        for kind in ("upsample_nearest", "_upsample_nearest_exact", "upsample_bilinear", "upsample_bicubic", "upsample_linear")
        for n in (1, 2, 3)
    },
    "pad": _pad,
    "constant_pad_nd": _pad,
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
    **dict.fromkeys(DROPOUTS[:2], _dropout),
    "detach": _stop,
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(TRANSPOSES, _transpose),
    **dict.fromkeys(SLICES, _slice),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
}
