"""The rebuilt network in training: its gradients, and steps of TensorFlow 1's optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from facenet_tf import import_tensorflow
from facenet_tf.checkpoint import ADAM_EPSILON, triplet_loss
from facenet_tf.graph import build
from facenet_tf.session import check_images, legacy_graph, open_session
from facenet_tf.variables import (
    STATISTICS,
    NetworkOptions,
    graph_shapes,
    infer_options,
    load_variables,
    require_variables,
)

tf = import_tensorflow()
tf1 = tf.compat.v1

INPUT = "input"
"""The name of the images' gradient among the names of the variables."""

POOLED = 1792
"""Number of features between the last average pool and dropout."""

OptimiserName = Literal["sgd", "adam"]

ADAM_BETAS = (0.9, 0.999)
"""Adam's defaults, which facenet uses."""


def _target_placeholder(options: NetworkOptions, images: int | None) -> Any:
    """Add the target of the loss: labels, or a functional of the embedding for a network without logits."""
    if options.num_classes is None:
        return tf1.placeholder(tf.float64, (images, options.embedding_size), name="functional")
    return tf1.placeholder(tf.int64, (images,), name="labels")


class TrainingNetwork:
    """A context manager: the rebuilt network with a loss and a checkpoint's weights, in float64.

    Every BatchNorm has a gamma, so that it has a gradient. A gamma that the checkpoint lacks consists of
    ones, and no step trains it.

    Dropout takes a given mask, scaled as in the published training. The loss is the mean softmax
    cross-entropy of the logits. For a checkpoint without logits it is the mean, over the images, of a linear
    functional of the embedding. A step may take the triplet loss instead, and add facenet's L2 penalty.

    Args:
        tensors: Variable name to float32 array: the 492 variables, or 490 without the head, and the gammas if
            the checkpoint has them. float64 holds them exactly.
        triplets: (T, 3), at least one: places of anchor, positive and negative in the batch.
        inference: Whether to build the network of inference as well, whose gradients `gradients` takes.
        images: The shape (N, H, W, 3) of the images; None takes any. For a known shape TensorFlow builds the
            gradients in three quarters of the time.

    Attributes:
        trained: The variables that a step moves: weights, biases, betas and the checkpoint's gammas.

    Raises:
        ValueError: Variables are missing, unexpected or of another shape; the message names all of them.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        triplets: NDArray[Any],
        *,
        inference: bool = True,
        images: tuple[int, ...] | None = None,
    ) -> None:
        options = infer_options(tensors)
        with legacy_graph() as graph:
            shape = images or (None, None, None, 3)
            self._images = tf1.placeholder(tf.float64, shape, name=INPUT)
            self._mask = tf1.placeholder(tf.float64, (shape[0], POOLED), name="dropout_mask")
            self._target = _target_placeholder(options, shape[0])
            self._learning_rate = tf1.placeholder(tf.float64, (), name="learning_rate")
            self._triplet_share = tf1.placeholder(tf.float64, (), name="triplet_share")
            self._weight_decay = tf1.placeholder(tf.float64, (), name="weight_decay")
            modes = (False, True) if inference else (True,)
            losses = {training: self._build_loss(options, triplets, training) for training in modes}
            self._initial = {
                **{n: np.ones(shape) for n, shape in graph_shapes().items() if n.endswith("/gamma")},
                **tensors,
            }
            require_variables(self._initial)
            self._variables = {v.op.name: v for v in tf1.global_variables()}
            self._fetches = {mode: (loss, self._differentiate(loss)) for mode, loss in losses.items()}
            self.trained = tuple(
                name for name in self._initial if name in tensors and not name.endswith(STATISTICS)
            )
            self._steps = self._build_steps()
            self._session = open_session(graph)
        self.reset()

    def _build_loss(self, options: NetworkOptions, triplets: NDArray[Any], training: bool) -> Any:
        """Add the network and its losses; the second network shares the variables of the first.

        Both losses have one graph of gradients: what is not wanted is multiplied by zero.
        """
        with tf1.variable_scope(tf1.get_variable_scope(), reuse=tf1.AUTO_REUSE):
            endpoints = build(
                self._images,
                dtype=tf.float64,
                training=training,
                dropout_mask=self._mask,
                **options._replace(gamma=True)._asdict(),
            )
        embeddings = endpoints["embeddings"]
        if options.num_classes is None:
            losses = tf.reduce_sum(embeddings * self._target, axis=1)
        else:
            losses = tf1.nn.sparse_softmax_cross_entropy_with_logits(
                labels=self._target, logits=endpoints["Logits"]
            )
        of_triplets = triplet_loss(tf.gather(embeddings, triplets.reshape(-1)), options.embedding_size)
        return (1 - self._triplet_share) * tf.reduce_mean(losses) + self._triplet_share * of_triplets

    def _differentiate(self, loss: Any) -> dict[str, Any]:
        """Add the gradients for the images and for every variable but the moving statistics."""
        learned = {n: v for n, v in self._variables.items() if not n.endswith(STATISTICS)}
        places = {INPUT: self._images, **learned}
        penalties = [tf.nn.l2_loss(v) for n, v in self._variables.items() if n.endswith("/weights")]
        total = loss + self._weight_decay * tf.add_n(penalties)
        return dict(zip(places, tf1.gradients(total, list(places.values())), strict=True))

    def _build_steps(self) -> dict[OptimiserName, Any]:
        """Add the operations that take a step, by optimiser."""
        # The gradients read the variables, so all must be computed before any variable moves.
        gradients = tf1.tuple([self._fetches[True][1][name] for name in self.trained])
        pairs = list(zip(gradients, (self._variables[name] for name in self.trained), strict=True))
        optimisers: dict[OptimiserName, Any] = {
            "sgd": tf1.train.GradientDescentOptimizer(self._learning_rate),
            # Python numbers would become float32 constants: the relative error of 1 - 0.999 is then 1.3e-5.
            "adam": tf1.train.AdamOptimizer(
                self._learning_rate,
                *(tf.constant(value, tf.float64) for value in (*ADAM_BETAS, ADAM_EPSILON)),
            ),
        }
        return {name: optimiser.apply_gradients(pairs) for name, optimiser in optimisers.items()}

    def reset(self) -> None:
        """Restore the checkpoint's weights and statistics, and the optimisers' initial state."""
        load_variables(self._session, self._initial)
        everything = self._session.graph.get_collection(tf1.GraphKeys.GLOBAL_VARIABLES)
        slots = [variable.initializer for variable in everything if variable.op.name not in self._variables]
        self._session.run(slots)

    def gradients(
        self, images: NDArray[Any], target: NDArray[Any], mask: NDArray[Any], *, training: bool
    ) -> tuple[float, dict[str, NDArray[Any]]]:
        """Differentiate the loss of one batch without changing weights or statistics.

        Args:
            images: Standardised pixels (N, H, W, 3), taken in float64; H and W at least 75.
            target: Labels (N,), or without logits the functional (N, embedding size).
            mask: (N, 1792), 1 for a feature that dropout keeps, otherwise 0; used in training.
            training: True for batch statistics and dropout, False for moving statistics and no dropout.

        Returns:
            The loss, and variable name to gradient in the variable's shape. The gradient of the images is
            under `INPUT`; moving statistics have none.

        Raises:
            ValueError: The images have a wrong shape.
        """
        before = self._statistics() if training else {}
        loss, gradients = self._session.run(self._fetches[training], self._feed(images, target, mask))
        load_variables(self._session, before)
        return float(loss), gradients

    def step(
        self,
        images: NDArray[Any],
        target: NDArray[Any],
        mask: NDArray[Any],
        *,
        optimiser: OptimiserName,
        learning_rate: float,
        triplets: bool = False,
        weight_decay: float = 0.0,
    ) -> float:
        """Take one training step, which changes statistics and variables.

        Args:
            images: As in `gradients`.
            target: As in `gradients`.
            mask: As in `gradients`.
            optimiser: Plain gradient descent, or `tf.train.AdamOptimizer` with facenet's epsilon.
            learning_rate: Learning rate of the optimiser.
            triplets: Whether to take the triplet loss instead of the network's own.
            weight_decay: Factor of the L2 penalty, `tf.nn.l2_loss` of every kernel, which facenet adds.

        Returns:
            The loss before the step, without the penalty.

        Raises:
            ValueError: The images have a wrong shape.
        """
        feed = self._feed(images, target, mask, triplets, weight_decay) | {self._learning_rate: learning_rate}
        loss, _ = self._session.run((self._fetches[True][0], self._steps[optimiser]), feed)
        return float(loss)

    def values(self) -> dict[str, NDArray[Any]]:
        """Return every variable of the network by name, with the gammas."""
        values: dict[str, NDArray[Any]] = self._session.run(self._variables)
        return values

    def _feed(
        self,
        images: NDArray[Any],
        target: NDArray[Any],
        mask: NDArray[Any],
        triplets: bool = False,
        weight_decay: float = 0.0,
    ) -> dict[Any, Any]:
        check_images(images)
        batch = {self._images: images, self._target: target, self._mask: mask}
        return batch | {self._triplet_share: float(triplets), self._weight_decay: weight_decay}

    def _statistics(self) -> dict[str, NDArray[Any]]:
        names = [name for name in self._variables if name.endswith(STATISTICS)]
        values: dict[str, NDArray[Any]] = self._session.run({name: self._variables[name] for name in names})
        return values

    def close(self) -> None:
        """Release the session."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
