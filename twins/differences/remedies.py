"""What fixes a fault that `twins diff` finds, in words of the framework that has it, and the trap that it is."""

from typing import Any

# {attribute: trap of shared/traps.toml}
TRAPS = {
    "padding": "same-padding",
    "padding_value": "max-pool-padding",
    "count_padding": "average-pool-padding",
    "epsilon": "bn-epsilon",
    "momentum": "bn-momentum",
    "running variance": "bn-running-variance",
    "training": "frozen-bn",
    "flatten order": "flatten-order",
    "layout of the kernel": "kernel-layout",
    "alpha": "lrn-alpha",
    "dilation": "dilation-with-stride",
    "align_corners": "upsample-corners",
    "half_pixel": "upsample-corners",
}
# {attribute: (the argument in PyTorch, in Keras)}
ARGUMENTS = {
    "stride": ("stride", "strides"),
    "dilation": ("dilation", "dilation_rate"),
    "groups": ("groups", "groups"),
    "epsilon": ("eps", "epsilon"),
    "window": ("kernel_size", "pool_size"),
    "kernel": ("kernel_size", "kernel_size"),
    "axis": ("dim", "axis"),
    "rate": ("p", "rate"),
    "slope": ("negative_slope", "negative_slope"),
    "alpha": ("alpha", "alpha"),
}


def of(kind: str, attribute: str, values: tuple[Any, Any], framework: str) -> tuple[str, str | None]:
    """(what would fix it in B, which runs in `framework`; the name of the trap or None) where `values` are A's and B's."""
    keras, wanted = framework.startswith("Keras"), values[0]
    trap = TRAPS.get(attribute)
    if attribute == "epsilon" and kind != "normalization":
        trap = None
    if attribute == "padding" and kind == "pool":
        trap = "ceil-mode" if _only_at_the_end(values) else "same-padding"
    if attribute == "order of elements" and "channels in the order" in str(values[1]):
        trap = "bgr-input"
    if attribute.startswith("trainable") and kind == "normalization":
        trap = "frozen-bn"
    if attribute in ("factor", "offset"):
        return f"scale by {wanted}" if attribute == "factor" else f"add {wanted}", "bgr-input"
    return _words(kind, attribute, values, keras), trap


def in_words(value: Any) -> str:
    """A value of an attribute for people: what is the same on every axis once, a padding as pixels before and after."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, (tuple, list)):
        return f"{value}"
    if value and all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in value):
        parts = [f"{pair[0]} on each side" if pair[0] == pair[1] else f"{pair[0]} before and {pair[1]} after" for pair in value]
    else:
        parts = [in_words(part) for part in value]
    return parts[0] if len(set(parts)) == 1 else f"({', '.join(parts)})"


def _only_at_the_end(values: Any) -> bool:
    ours, theirs = values
    return all(one[0] == two[0] for one, two in zip(ours or (), theirs or (), strict=False))


def _words(kind: str, attribute: str, values: tuple[Any, Any], keras: bool) -> str:
    wanted = values[0]
    if attribute == "left out":
        return f"insert the {wanted}"
    if attribute == "added":
        return f"remove the {values[1]}"
    if attribute in ("bias", "scale", "shift"):
        return _learned(attribute, wanted == "one", kind, keras)
    if attribute == "padding":
        pairs = tuple(tuple(pair) for pair in wanted)
        if not keras:
            even = all(a == b for a, b in pairs)
            sizes = pairs[0][0] if len(set(pairs)) == 1 else tuple(a for a, _ in pairs)
            return f"padding={sizes}" if even else f"F.pad by {pairs} before it"
        sizes = pairs[0][0] if len(set(pairs[0])) == len(set(pairs)) == 1 else pairs
        before = f"ZeroPadding{len(pairs)}D({sizes}) before it, and "
        return f'{before if any(map(any, pairs)) else ""}padding="valid"'
    if attribute == "padding_value":
        return "pad with minus infinity" if wanted == float("-inf") else f"pad with {wanted}"
    if attribute == "count_padding":
        return "count the padding as zeros" if wanted else "leave the padding out of the average"
    if attribute == "momentum" and wanted is not None:
        return f"momentum={1 - wanted:.6g}" if keras else f"momentum={wanted:.6g}"
    if attribute in ("training", "running variance", "gradient") or attribute.startswith("trainable"):
        return _of_training(attribute, str(wanted), keras)
    if attribute == "rate" and isinstance(wanted, (list, str)):
        return f"use A's rates: {in_words(wanted)}"
    if attribute in ARGUMENTS:
        value = wanted[0] if isinstance(wanted, tuple) and len(set(wanted)) == 1 else wanted
        return f"{ARGUMENTS[attribute][keras]}={value}"
    general = {
        "operands": "connect it as in A",
        "order of elements": "transpose rather than reshape, or give the channels in A's order",
        "order of axes": "transpose its input as in A",
        "flatten order": "permute the rows of the kernel, or flatten with the channels first",
        "layout of the kernel": "transpose the kernel rather than reshape it",
    }
    if attribute in general:
        return general[attribute]
    if attribute.startswith("values of"):
        return "load A's weights"
    return f"make it {wanted}"


def _of_training(attribute: str, wanted: str, keras: bool) -> str:
    """What fixes what differs in training alone."""
    if attribute == "training":
        if wanted == "True":
            return "trainable=True, and training=True in the call" if keras else "leave it in training mode: no .eval()"
        return "trainable=False" if keras else ".eval() on it after every .train()"
    if attribute == "running variance":
        if wanted.startswith("unbiased"):
            return "multiply the batch's variance by n/(n - 1) before it goes into the running one"
        return "leave the batch's variance biased in the running one"
    if attribute == "gradient":
        if wanted == "stopped":
            return "stop_gradient there" if keras else ".detach() there"
        return "remove the stop_gradient" if keras else "remove the .detach() or torch.no_grad()"
    value = wanted == "trained"
    return f"trainable={value}" if keras else f"requires_grad_({value})"


def _learned(role: str, needed: bool, kind: str, keras: bool) -> str:
    if kind == "normalization":
        return f"{'scale' if role == 'scale' else 'center'}={needed}" if keras else f"affine={needed}"
    return f"{'use_bias' if keras else 'bias'}={needed}"
