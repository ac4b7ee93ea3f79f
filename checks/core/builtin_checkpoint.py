"""The built-in checkpoint: seeded weights in a trained network's range, written as TensorFlow files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from checks.core.inputs import seeded_inputs
from checks.core.types import Array
from converter.atomic import HiddenFolder
from converter.convert import to_tensorflow
from converter.errors import SourceError
from converter.hub.cache import cache_folder, explain_cache_errors
from converter.layer_map import ConvertedRow, Variant, table
from reference import InceptionResnetV1

MODEL_NAME = "built-in-512d-8631"
STEP = 1  # version of the recipe below: a checkpoint of another version is not used
VARIANT = Variant(embedding_size=512, num_classes=8631)  # as the published 20180402-114759
_SEED = 20180402


@explain_cache_errors()
def built_in_checkpoint() -> Path:
    """The folder of the built-in checkpoint, written on first use.

    Raises:
        RequirementError: It must be written, and TensorFlow is not installed or the cache cannot be used.
        SourceError: The folder exists and holds something else.
    """
    folder = cache_folder() / MODEL_NAME
    if folder.is_dir():
        if not (folder / f"model-{MODEL_NAME}.ckpt-{STEP}.index").is_file():
            raise SourceError(
                folder, "not the built-in checkpoint of this version", next_step="Remove the folder"
            )
        return folder
    from checks.core.tensorflow_side import require_tensorflow

    require_tensorflow("to write the built-in checkpoint")
    from facenet_tf.checkpoint import write_checkpoint

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside the folder and renamed at the end: it appears whole or not at all.
    with HiddenFolder(folder.parent) as hidden:
        written = hidden / MODEL_NAME
        write_checkpoint(written, built_in_tensors(), model_name=MODEL_NAME, step=STEP)
        try:
            written.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
    return folder


def built_in_tensors(variant: Variant = VARIANT, seed: int = _SEED) -> dict[str, Array]:
    """Seeded weights under their TensorFlow names.

    Kernels are normal with He's variance, a tenth of it on the residual convolutions. The BatchNorm
    statistics are those of the network's own activations on seeded images, so that every activation is of
    order one. The Bottleneck's offsets are large, so that embeddings of noise lie near each other, as in
    trained networks.

    The large offsets and small residuals also determine the float32 distance of the headline. Seeded weights
    without them are worse conditioned than trained ones and exceed its threshold, so a headline that holds
    for this checkpoint says little. The other judgements do not depend on that choice.

    The kernels are the same on every machine; the statistics may differ in their last bits.

    Args:
        variant: Sizes, gamma and the Bottleneck's scope.
        seed: For numpy's PCG64.

    Returns:
        Variable name to float32 array.
    """
    random = np.random.default_rng(seed)
    model = InceptionResnetV1(num_classes=variant.num_classes, embedding_size=variant.embedding_size)
    state_dict = model.state_dict()
    for row in table(variant):
        if not isinstance(row, ConvertedRow):
            continue
        shape = row.info.shape
        if row.variable.endswith("/weights"):
            scale = math.sqrt(2.0 / math.prod(row.shape[:-1]))
            if f"{row.scope}/biases" in _RESIDUAL_BIASES:
                scale *= math.sqrt(0.1)
            values = random.normal(0.0, scale, shape)
        elif row.variable.endswith("/gamma"):
            values = random.normal(1.0, 0.1, shape)
        elif row.variable == f"{variant.bottleneck_scope}/BatchNorm/beta":
            values = random.normal(0.0, 7.0, shape)
        else:
            values = random.normal(0.0, 0.2, shape)
        state_dict[row.key] = torch.from_numpy(values.astype(np.float32))
    for key in state_dict:
        if key.endswith("running_var"):
            state_dict[key] = torch.ones_like(state_dict[key])
    model.load_state_dict(state_dict)
    _calibrate(model, seed)
    arrays = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    return to_tensorflow(arrays, variant=variant)


_RESIDUAL_BIASES = frozenset(
    row.variable
    for row in table(Variant())
    if isinstance(row, ConvertedRow) and row.variable.endswith("/biases")
)


def _calibrate(model: InceptionResnetV1, seed: int) -> None:
    """Set every BatchNorm's statistics to those of its input, on one batch of noise and smooth images."""
    noise, smooth = (batch.images for batch in seeded_inputs(seed)[:2])
    images = torch.from_numpy(np.concatenate([noise, smooth])).permute(0, 3, 1, 2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.momentum = 1.0  # take the batch's statistics, keep nothing
    model.train()
    model.dropout.eval()
    with torch.inference_mode():
        model(images)
    model.eval()
    for norm in norms:
        norm.momentum = momentum
        torch.nn.init.zeros_(norm.num_batches_tracked)  # type: ignore[arg-type]
