# dampened, rung 5
import torch


class SGD(torch.optim.SGD):
    def __init__(self, params, lr, momentum, weight_decay):
        super().__init__(params, lr, momentum, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                g = w.grad + group["weight_decay"] * w
                v = group["momentum"] * self.state[w].get("v", 0) + (1 - group["momentum"]) * g
                self.state[w]["v"] = v
                w -= group["lr"] * v
