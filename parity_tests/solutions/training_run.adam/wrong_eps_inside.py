# eps-inside, rung 5
import torch


class Adam(torch.optim.Optimizer):
    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for w in group["params"]:
                state = self.state[w]
                t = state["t"] = state.get("t", 0) + 1
                m = state["m"] = b1 * state.get("m", 0) + (1 - b1) * w.grad
                v = state["v"] = b2 * state.get("v", 0) + (1 - b2) * w.grad**2
                w -= group["lr"] * (m / (1 - b1**t)) / (v / (1 - b2**t) + group["eps"]).sqrt()
