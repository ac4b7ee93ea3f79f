"""The inputs of the checks at a part of their cost, for tests that do not judge the figures."""

from __future__ import annotations

from pathlib import Path

import h5py

from checks.audit.graphs.run_graph import audited_batches
from checks.core.inputs import InputBatch, inputs_of, seeded_inputs
from checks.core.network import Network
from reference.inception_resnet_v1 import MINIMUM_IMAGE_SIZE

TAKEN_FROM = "checks.compare.expected_from_tensorflow.inputs_of"
"""The name that a test replaces by `first_images`: a comparison with TensorFlow takes its inputs there."""

CONTROLS_TAKE_FROM = "checks.controls.tensorflow_reference.seeded_inputs"
"""The name that a test replaces by `small_images`: the controls take their inputs there."""

CONTROLS_AUDIT_TAKES_FROM = "checks.controls.judge_graph.audited_batches"
"""The name that a test replaces by `small_audited`: the audits of the controls take their inputs there."""

# Pixels: the fewest with which a pool fits into its map, or does not, where it is so at 160, and the last map
# has more than one pixel.
_SIDE = 123

AUDIT_TAKES_FROM = (
    "checks.audit.run.audited_batches",
    "checks.audit.audit_graph.audited_batches",
    "checks.audit.graphs.run_whole.audited_batches",
)
"""The names that a test replaces by `first_audited`: an audit takes its inputs there."""


OVERFLOW_TAKES_FROM = "checks.audit.audit_graph.seeded_inputs"
"""The name that a test replaces by `small_noise`: an audit looks there for a source that overflows."""


def first_images(network: Network, seed: int) -> list[InputBatch]:
    """The built-in inputs of a network, each with its first image alone."""
    return [InputBatch(batch.name, batch.images[:1]) for batch in inputs_of(network, seed)]


def five_images_of_noise(network: Network, seed: int) -> list[InputBatch]:
    """The same, with noise whole: the headline is judged on its five images."""
    noise, *others = inputs_of(network, seed)
    return [noise, *(InputBatch(batch.name, batch.images[:1]) for batch in others)]


def five_small_images_of_noise(network: Network, seed: int) -> list[InputBatch]:
    """The same with images of 139x139 pixels, the fewest whose last map a published graph's pool covers."""
    return [
        InputBatch(batch.name, batch.images[:, :139, :139])
        if batch.images.shape[1:3] == (160, 160)
        else batch
        for batch in five_images_of_noise(network, seed)
    ]


def four_images(network: Network, seed: int) -> list[InputBatch]:
    """The built-in inputs, each with at most four images: those of MTCNN's networks have 32."""
    return [InputBatch(batch.name, batch.images[:4]) for batch in inputs_of(network, seed)]


def small_images(seed: int) -> list[InputBatch]:
    """The built-in inputs, each cut to 123 x 123 pixels."""
    return list(map(_cut, seeded_inputs(seed)))


def small_audited(seed: int) -> list[InputBatch]:
    """The inputs of an audit, each cut to 123 x 123 pixels."""
    return list(map(_cut, audited_batches(seed)))


def _cut(batch: InputBatch) -> InputBatch:
    return InputBatch(batch.name, batch.images[:, :_SIDE, :_SIDE])


def keep_first_images(path: Path) -> None:
    """Cut a file of stored activations to the first image of each input."""
    whole = path.rename(path.with_name("whole.h5"))
    with h5py.File(whole) as given, h5py.File(path, "w") as part:
        part.attrs.update(given.attrs)

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                part.create_dataset(name, data=item[:1], chunks=item.chunks, fletcher32=True)
            else:
                part.create_group(name)
            part[name].attrs.update(item.attrs)

        given.visititems(copy)
    whole.unlink()


def small_noise(seed: int) -> list[InputBatch]:
    """One image of noise, of the fewest pixels that the network takes."""
    noise = seeded_inputs(seed)[0]
    return [InputBatch(noise.name, noise.images[:1, :MINIMUM_IMAGE_SIZE, :MINIMUM_IMAGE_SIZE])]


def noise_audited(seed: int) -> list[InputBatch]:
    """The five images of noise, of the inputs of an audit."""
    return audited_batches(seed)[:1]


def first_audited(seed: int) -> list[InputBatch]:
    """One image of noise, of the inputs of an audit."""
    return [InputBatch(batch.name, batch.images[:1]) for batch in noise_audited(seed)]
