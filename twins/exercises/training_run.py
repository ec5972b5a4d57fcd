"""The exercises of the lesson on the training run: SGD, Adam, the loss."""

from typing import Any

import numpy as np

from .form import Optimizer, Suspect, Tensors

Memory = dict[str, Any]  # what an optimiser keeps of a weight, empty at the start


def _sgd(
    w: np.ndarray, g: np.ndarray, memory: Memory, rate: float, step: int, options: dict[str, Any], flaw: Any
) -> np.ndarray:
    momentum, decay = options["momentum"], options["weight_decay"]
    if flaw == "rate-never-changes":
        rate = memory.setdefault("rate", rate)
    if flaw in ("weight-decay", "both"):
        w = w - rate * decay * w
    elif flaw != "no-decay":
        g = g + decay * w
    v = memory.get("v", np.zeros_like(w))
    if flaw in ("sgd-momentum-schedule", "both"):
        memory["v"] = momentum * v - rate * g
        return w + memory["v"]
    v = momentum * v + (1 - momentum if flaw == "dampened" else 1) * g
    memory["v"] = v
    if flaw == "nesterov":
        v = g + momentum * v
    return w - rate * (g if flaw == "no-momentum" else v)


SGD = Optimizer(
    "SGD",
    [{"momentum": 0.875, "weight_decay": 0.0}, {"momentum": 0.875, "weight_decay": 0.0625}],
    [0.125] * 5 + [0.0625] * 5,
    1.0,
    _sgd,
    [
        Suspect(
            "sgd-momentum-schedule",
            "your run is ours until the learning rate changes: your velocity holds rate · gradient, as "
            "Keras's SGD has it, so that "
            "it continues at the old rate. Keep the rate out of v, and multiply when the weight is updated",
            "sgd-momentum-schedule",
        ),
        Suspect(
            "weight-decay",
            "your weight decay takes rate · decay · w off the weight itself, as AdamW and all of Keras's optimisers do. In "
            "PyTorch's SGD it is added to the gradient, and so goes through the momentum",
            "weight-decay",
        ),
        Suspect(
            "both",
            "two of Keras's rules at once: the rate is inside the velocity, and weight decay is taken off the weight itself",
            "sgd-momentum-schedule",
        ),
        Suspect("dampened", "your velocity is an average, (1 - momentum) · g; here the gradient enters whole"),
        Suspect("nesterov", "this is Nesterov's momentum: the step is g + momentum · v; here it is v"),
        Suspect("no-momentum", "your steps ignore the velocity"),
        Suspect("no-decay", "weight decay is ignored"),
        Suspect("rate-never-changes", "your run keeps its first learning rate; read it in each step", "sgd-momentum-schedule"),
    ],
)


def _adam(
    w: np.ndarray, g: np.ndarray, memory: Memory, rate: float, step: int, options: dict[str, Any], flaw: Any
) -> np.ndarray:
    (first, second), eps = options["betas"], options["eps"]
    if flaw == "betas-swapped":
        first, second = second, first
    m = memory["m"] = first * memory.get("m", 0) + (1 - first) * g
    v = memory["v"] = second * memory.get("v", 0) + (1 - second) * g * g
    step = step - 1 if flaw == "late-steps" else step
    one, two = 1 - first**step, 1 - second**step
    match flaw:
        case "adam-epsilon":
            return w - rate * np.sqrt(two) / one * m / (np.sqrt(v) + eps)
        case "adam-epsilon-keras":
            return w - rate * np.sqrt(two) / one * m / (np.sqrt(v) + 1e-7)
        case "eps-1e-7":
            eps = 1e-7
        case "no-correction":
            one = two = 1
        case "eps-inside":
            return w - rate * (m / one) / np.sqrt(v / two + eps)
        case "late-steps" if step == 0:
            return w * np.nan
    return w - rate * (m / one) / (np.sqrt(v / two) + eps)


ADAM = Optimizer(
    "Adam",
    [{"betas": (0.9, 0.999), "eps": 1e-8}, {"betas": (0.75, 0.95), "eps": 1e-6}],
    [0.015625] * 10,
    1e-7,
    _adam,
    [
        Suspect(
            "adam-epsilon",
            "your eps is added to the root of v before the bias correction, as Keras's Adam does, which "
            "makes it 1 / sqrt(1 - beta2^t) "
            "times as large as PyTorch's: 32 times at step 1. Correct v first, then add eps",
            "adam-epsilon",
        ),
        Suspect(
            "adam-epsilon-keras",
            "your eps is Keras's in both ways: 1e-7 whatever the argument says, and added before the bias "
            "correction, which makes it 32 "
            "times as large at step 1",
            "adam-epsilon",
        ),
        Suspect("eps-1e-7", "your eps is 1e-7, Keras's default, whatever the argument says", "adam-epsilon"),
        Suspect(
            "no-correction",
            "the bias correction is missing: divide m by 1 - beta1^t and v by 1 - beta2^t, or the first steps are too long",
        ),
        Suspect("eps-inside", "your eps is under the root; add it to the root", "adam-epsilon"),
        Suspect("betas-swapped", "your two betas are swapped"),
        Suspect(
            "late-steps",
            "your first step divides by 1 - beta^0 = 0, which is not a number: t counts from 1 (`self.iterations` from 0)",
        ),
    ],
)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _q(labels: np.ndarray, classes: int, smoothing: float, flaw: Any) -> np.ndarray:
    right = np.eye(classes)[labels]
    if flaw == "label-smoothing":
        return (1 - smoothing) * right + smoothing / (classes - 1) * (1 - right)
    if flaw == "no-smoothing":
        return right
    if flaw == "not-one":
        return (1 - smoothing) * right + smoothing / classes * (1 - right)
    return (1 - smoothing) * right + smoothing / classes


def _loss(arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    logits, labels, smoothing = arguments
    logs = _log_softmax(logits)
    with np.errstate(all="ignore"):
        match flaw:
            case "softmax-in-model":
                logs = _log_softmax(np.exp(logs))
            case "overflow":
                powers = np.exp(logits)
                logs = np.log(powers / powers.sum(1, keepdims=True))
            case "clipped":
                logs = np.log(np.clip(np.exp(logs), 1e-7, 1 - 1e-7))
        losses = -(_q(labels, logits.shape[1], smoothing, flaw) * logs).sum(1)
        return np.array(losses.sum() if flaw == "sum" else losses.mean() / (logits.shape[1] if flaw == "mean-of-all" else 1))


def _loss_gradients(arguments: tuple[Any, ...], projection: np.ndarray) -> dict[int, np.ndarray]:
    logits, labels, smoothing = arguments
    gradient = np.exp(_log_softmax(logits)) - _q(labels, logits.shape[1], smoothing, None)
    return {0: projection * gradient / len(logits)}


def _batches() -> list[tuple[Any, ...]]:
    generator = np.random.default_rng(0)
    batches = []
    for smoothing, scale in ((0.0, 1), (0.125, 1), (0.125, 400)):
        labels = generator.integers(0, 7, 5)
        labels[0] = 6
        batches.append((scale * generator.standard_normal((5, 7)), labels, smoothing))
    return batches


LOSS = Tensors(
    "loss",
    _batches(),
    _loss,
    [
        Suspect(
            "label-smoothing",
            "you share the smoothing among the K - 1 wrong classes; all K get smoothing / K, the right one included",
            "label-smoothing",
        ),
        Suspect("not-one", "your q does not sum to 1: the right class gets smoothing / K too", "label-smoothing"),
        Suspect("no-smoothing", "the smoothing is ignored", "label-smoothing"),
        Suspect("sum", "you take the sum over the batch, {ratio:.3g} times ours; take the mean"),
        Suspect("mean-of-all", "you take the mean over batch and classes, {ratio:.3g} of ours; the classes are summed"),
        Suspect(
            "softmax-in-model",
            "you take the softmax twice: what the function gets are logits, and the cross-entropy takes its own",
            "softmax-in-model",
        ),
        Suspect(
            "overflow",
            "right for small logits, but for logits of several hundred exp overflows or you take the logarithm of 0, and the "
            "loss is infinite or not a number. Take off the largest logit first, or use log_softmax",
            "softmax-in-model",
        ),
        Suspect(
            "clipped",
            "your probabilities are clipped at 1e-7, which Keras does with from_logits=False: large losses, "
            "and their gradients, are "
            "cut off. Work on the logits",
            "softmax-in-model",
        ),
    ],
    ("", "", ""),
    gradients=_loss_gradients,
    arguments=("logits", "labels", "smoothing"),
)

EXERCISES = {"sgd": SGD, "adam": ADAM, "loss": LOSS}
