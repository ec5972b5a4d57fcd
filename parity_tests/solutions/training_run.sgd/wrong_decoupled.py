# weight-decay, rung 5
import torch


class SGD(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum, weight_decay):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                w *= 1 - group["lr"] * group["weight_decay"]
                v = self.state[w]["v"] = group["momentum"] * self.state[w].get("v", 0) + w.grad
                w -= group["lr"] * v
