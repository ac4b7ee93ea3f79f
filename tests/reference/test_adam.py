"""TensorFlowAdam against `tf.train.AdamOptimizer` itself, in float64, on gradients of all sizes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.optim import Adam, Optimizer

from reference.adam import TensorFlowAdam

STEPS = 10
RATE = 0.05
BETAS = (0.9, 0.999)
SCALES = np.logspace(-4, 4, 50)  # gradients from far below facenet's epsilon of 0.1 to far above
START = np.linspace(-1, 1, 50)


def descend(make: Callable[[list[torch.Tensor]], Optimizer], steps: int = STEPS) -> NDArray:
    """Minimise a scaled bowl from START."""
    parameter = torch.tensor(START, requires_grad=True)
    optimiser = make([parameter])
    for _ in range(steps):
        optimiser.zero_grad()
        loss(parameter).backward()
        optimiser.step()
    return parameter.detach().numpy()


def loss(parameter: torch.Tensor) -> torch.Tensor:
    return (torch.from_numpy(SCALES) * torch.cos(parameter)).sum()


@pytest.fixture(scope="module", params=[0.1, 1e-8], ids=["facenet", "default"])
def epsilon(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture(scope="module")
def tensorflow(epsilon: float) -> NDArray:
    """Optimise START with TensorFlow's optimiser."""
    return descend_in_tensorflow(epsilon)


def descend_in_tensorflow(epsilon: float, weight_decay: float = 0.0) -> NDArray:
    """Minimise as `descend`, with TensorFlow's L2 penalty; Python numbers would become float32 constants."""
    pytest.importorskip("tensorflow")
    from facenet_tf.session import legacy_graph, open_session, tf, tf1

    with legacy_graph() as graph:
        variable = tf1.get_variable("parameter", initializer=tf.constant(START), use_resource=False)
        constants = (tf.constant(value, tf.float64) for value in (RATE, *BETAS, epsilon))
        bowl = tf.reduce_sum(SCALES * tf.cos(variable))
        step = tf1.train.AdamOptimizer(*constants).minimize(bowl + weight_decay * tf.nn.l2_loss(variable))
        with open_session(graph) as session:
            session.run(tf1.global_variables_initializer())
            for _ in range(STEPS):
                session.run(step)
            values: NDArray = session.run(variable)
    return values


def test_ten_steps_are_tensorflows(tensorflow: NDArray, epsilon: float) -> None:
    actual = descend(lambda parameters: TensorFlowAdam(parameters, RATE, BETAS, epsilon))
    np.testing.assert_allclose(actual, tensorflow, rtol=1e-13)
    assert np.abs(tensorflow - START).max() > 0.1  # it has moved


def test_weight_decay_is_tensorflows_l2_penalty() -> None:
    expected = descend_in_tensorflow(0.1, 0.3)
    actual = descend(lambda parameters: TensorFlowAdam(parameters, RATE, weight_decay=0.3))
    np.testing.assert_allclose(actual, expected, rtol=1e-13)
    assert np.abs(expected - descend(lambda parameters: TensorFlowAdam(parameters, RATE))).max() > 1e-2


def test_pytorchs_own_adam_is_another_optimiser(tensorflow: NDArray, epsilon: float) -> None:
    actual = descend(lambda parameters: Adam(parameters, RATE, BETAS, eps=epsilon))
    assert np.abs(actual - tensorflow).max() > (1e-2 if epsilon == 0.1 else 1e-9)


def test_pytorchs_own_adam_agrees_with_an_epsilon_of_each_step() -> None:
    """The equivalence that the docstring states."""

    class Corrected(Adam):
        steps = 0

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            self.steps += 1
            for group in self.param_groups:
                group["eps"] = 0.1 / math.sqrt(1 - BETAS[1] ** self.steps)
            super().step()

    ours = descend(lambda parameters: TensorFlowAdam(parameters, RATE))
    np.testing.assert_allclose(descend(lambda p: Corrected(p, RATE)), ours, rtol=1e-12)


def test_training_goes_on_from_a_saved_state_to_the_last_bit() -> None:
    straight = descend(lambda parameters: TensorFlowAdam(parameters, RATE))

    parameter = torch.tensor(descend(lambda p: TensorFlowAdam(p, RATE), 4), requires_grad=True)
    first = torch.tensor(START, requires_grad=True)
    optimiser = TensorFlowAdam([first], RATE)
    for _ in range(4):
        optimiser.zero_grad()
        loss(first).backward()
        optimiser.step()
    file = io.BytesIO()
    torch.save(optimiser.state_dict(), file)
    file.seek(0)

    resumed = TensorFlowAdam([parameter], 1.0)  # the rate comes with the state
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(STEPS - 4):
        resumed.zero_grad()
        loss(parameter).backward()
        resumed.step()
    assert np.array_equal(parameter.detach().numpy(), straight)


def test_a_parameter_without_a_gradient_stays(epsilon: float) -> None:
    frozen = torch.tensor(START)
    moving = torch.tensor(START, requires_grad=True)
    optimiser = TensorFlowAdam([frozen, moving], RATE, eps=epsilon)

    def closure() -> float:
        optimiser.zero_grad()
        value = loss(moving)
        value.backward()
        return value.item()

    assert optimiser.step(closure) == pytest.approx(float((SCALES * np.cos(START)).sum()))
    assert torch.equal(frozen, torch.tensor(START))
    assert not torch.equal(moving, frozen)


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (1.0, 0.999)}, {"eps": -0.1}])
def test_numbers_outside_their_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be 0 or above"):
        TensorFlowAdam([torch.zeros(1)], **{"lr": 0.1, **wrong})
