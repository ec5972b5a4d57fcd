# label-smoothing, rung 2
import torch.nn.functional as F


def loss(logits, labels, smoothing):
    right = F.one_hot(labels, logits.shape[1])
    q = (1 - smoothing) * right + smoothing / (logits.shape[1] - 1) * (1 - right)
    return -(q * F.log_softmax(logits, 1)).sum(1).mean()
