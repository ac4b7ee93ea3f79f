"""TensorFlow 1's Adam, which trained the published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

EPSILON = 0.1  # davidsandberg/facenet, src/facenet.py: train


class TensorFlowAdam(Optimizer):
    """Adam that adds epsilon to the root of the raw second moment, as `tf.train.AdamOptimizer` does.

    This is the variant at the end of section 2 of Kingma and Ba, "Adam: A Method for Stochastic Optimization"
    (arXiv:1412.6980), which calls epsilon "epsilon hat". In step t, counted from 1:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        parameter -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon)

    `torch.optim.Adam` adds epsilon to sqrt(v / (1 - beta2^t)). Its step is the same with an eps of epsilon /
    sqrt(1 - beta2^t), which falls from 31.6 epsilon at the first step to epsilon after thousands.

    Args:
        params: As for every optimiser of PyTorch.
        lr: Learning rate; the training of 2018 went from 0.05 to 0.0005.
        betas: Decay of the first and the second moment.
        eps: Epsilon; 0.1 is facenet's, and TensorFlow's default is 1e-8.

    Raises:
        ValueError: A number is outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = EPSILON,
    ) -> None:
        if not (lr >= 0 and eps >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(
                f"lr={lr}, betas={betas}, eps={eps}: lr and eps must be 0 or above, betas from 0 to below 1"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step; returns the result of `closure`, which evaluates the model again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                first, second = state["exp_avg"], state["exp_avg_sq"]
                first.lerp_(parameter.grad, 1 - beta1)
                second.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                parameter.addcdiv_(first, second.sqrt().add_(group["eps"]), value=-group["lr"] * correction)
        return loss
