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
        weight_decay: Factor of an L2 penalty weight_decay / 2 |parameter|^2, whose gradient is added, as that
            of facenet's regularisation losses is. TensorFlow itself has no such option.

    Raises:
        ValueError: A number is outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = EPSILON,
        weight_decay: float = 0.0,
    ) -> None:
        if not all(value >= 0 for value in (lr, eps, weight_decay)) or not all(0 <= b < 1 for b in betas):
            raise ValueError(
                f"lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}: lr, eps and weight_decay "
                "must be 0 or above, betas from 0 to below 1"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

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
                gradient = parameter.grad
                if group["weight_decay"]:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                first.lerp_(gradient, 1 - beta1)
                second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                parameter.addcdiv_(first, second.sqrt().add_(group["eps"]), value=-group["lr"] * correction)
        return loss
