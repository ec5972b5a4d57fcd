# softmax-in-model, rung 2
import torch.nn.functional as F


def loss(logits, labels, smoothing):
    return F.cross_entropy(logits.softmax(1), labels, label_smoothing=smoothing)
