"""The optimizer: torch's own interface, whose learning rates the schedule multiplies."""

import torch
from torch.optim import Optimizer


class Example(Optimizer):
    """Lion (Chen et al. 2023): a step of one size in the direction of the sign of the momentum."""

    def __init__(self, params, lr, betas, weight_decay):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        """Take one step along the gradients."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"]
                direction = torch.lerp(p.grad, momentum, group["betas"][0]).sign()
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * direction)
                momentum.lerp_(p.grad, 1 - group["betas"][1])
