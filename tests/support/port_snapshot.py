"""The state of a port, which shows that a fault was taken out again without a trace."""

from __future__ import annotations

import torch
from torch import Tensor

from checks.controls.port_pipeline import Pipeline


class Snapshot:
    """The state of a port, bit for bit, to compare with after a fault was taken out.

    Args:
        port: The port.
        clean: A clean port that shares no memory with this one.
    """

    def __init__(self, port: Pipeline, clean: Pipeline) -> None:
        self._clean = tuple(model.state_dict() for model in clean.models)
        self._parts = _parts(port)

    def differences(self, port: Pipeline) -> list[str]:
        """Name the tensors and attributes that are not as they were."""
        changed = [
            key
            for model, clean in zip(port.models, self._clean, strict=True)
            for key, tensor in model.state_dict().items()
            if not same_bits(tensor, clean[key])
        ]
        parts = _parts(port)
        return changed + [key for key in {**self._parts, **parts} if self._parts.get(key) != parts.get(key)]


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return True if two tensors have the same dtype, shape and bits."""
    as_bits = torch.int32 if first.dtype == torch.float32 else torch.int64
    return first.dtype == second.dtype and torch.equal(first.view(as_bits), second.view(as_bits))


def _parts(port: Pipeline) -> dict[str, object]:
    """Everything of a port except its tensors, by name."""
    parts: dict[str, object] = {
        "plan": port.plan,
        "prepare": dict(port.prepare),
        "loss": port.loss,
        "optimiser": port.make_optimiser,
    }
    for number, model in enumerate(port.models):
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                parts[f"{number} {path}.{name}"] = _identity(value)
        for key, parameter in model.named_parameters():
            parts[f"{number} {key}"] = (id(parameter), parameter.requires_grad, parameter.grad is None)
    return parts


def _identity(value: object) -> object:
    """A value that is equal if a container holds the same objects, or an object is the same one."""
    if isinstance(value, dict):
        return {key: id(item) for key, item in value.items()}
    return value if isinstance(value, bool | int | float | str | tuple | None) else id(value)
