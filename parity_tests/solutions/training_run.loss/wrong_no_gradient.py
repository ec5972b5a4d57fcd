# detached, rung 3
import torch.nn.functional as F


def loss(logits, labels, smoothing):
    q = (1 - smoothing) * F.one_hot(labels, logits.shape[1]) + smoothing / logits.shape[1]
    return -(q * F.log_softmax(logits, 1)).sum(1).mean().detach()
