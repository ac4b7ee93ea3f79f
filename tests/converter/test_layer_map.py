"""The layer map, the PyTorch module and the TensorFlow graph describe the same network."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from converter import layer_map
from converter.layer_map import CONVOLUTIONS, ConvertedRow, SynthesisedRow, Variant, table
from reference import InceptionResnetV1

PUBLISHED = Variant(embedding_size=512, num_classes=8631)
OLDER = Variant(128, None, gamma=True, bottleneck_scope="Bottleneck")


def converted(variant):
    return [row for row in table(variant) if isinstance(row, ConvertedRow)]


def synthesised(variant):
    return [row for row in table(variant) if isinstance(row, SynthesisedRow)]


def pytorch_shape(row):
    return row.layout.shape(row.shape) if isinstance(row, ConvertedRow) else row.shape


def test_counts_of_the_published_network():
    rows = table(PUBLISHED)
    assert len(CONVOLUTIONS) == 132
    assert sum(not layer.batch_norm for layer in CONVOLUTIONS) == 21
    assert len(rows) == len({row.key for row in rows}) == 716
    assert len({row.variable for row in converted(PUBLISHED)}) == len(converted(PUBLISHED)) == 492
    assert len(synthesised(PUBLISHED)) == 224
    ones = [row for row in synthesised(PUBLISHED) if (row.dtype, row.fill) == ("float32", 1)]
    zeros = [row for row in synthesised(PUBLISHED) if (row.dtype, row.fill, row.shape) == ("int64", 0, ())]
    assert len(ones) == len(zeros) == 112
    leaves = Counter(row.variable.rpartition("/")[2] for row in converted(PUBLISHED))
    assert leaves == {"weights": 134, "biases": 22, "beta": 112, "moving_mean": 112, "moving_variance": 112}


def test_an_older_variant_has_its_own_names():
    shapes = {row.variable: row.shape for row in converted(OLDER)}
    assert shapes["Bottleneck/weights"] == (1792, 128)
    assert "InceptionResnetV1/Block8/Branch_0/Conv2d_1x1/BatchNorm/gamma" in shapes
    assert not any(name.startswith(("InceptionResnetV1/Bottleneck", "Logits")) for name in shapes)


@pytest.mark.parametrize(
    ("variant", "variables", "keys"),
    [
        (Variant(), 490, 714),
        (Variant(num_classes=7), 492, 716),
        (Variant(gamma=True), 602, 714),
        (Variant(embedding_size=128, num_classes=3, gamma=True, bottleneck_scope="Bottleneck"), 604, 716),
    ],
)
def test_counts_of_variants(variant, variables, keys):
    assert (len(converted(variant)), len(table(variant))) == (variables, keys)


def test_parameters_without_logits():
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    sizes = [
        np.prod(pytorch_shape(row), dtype=int)
        for row in table(Variant())
        if row.key.rpartition(".")[2] not in kinds
    ]
    assert sum(sizes) == 23_482_624


@pytest.mark.parametrize(
    ("key", "variable", "layout", "shape"),
    [
        ("conv2d_1a.conv.weight", "Conv2d_1a_3x3/weights", "HWIO->OIHW", (3, 3, 3, 32)),
        ("conv2d_1a.bn.running_mean", "Conv2d_1a_3x3/BatchNorm/moving_mean", "C->C", (32,)),
        ("conv2d_1a.bn.running_var", "Conv2d_1a_3x3/BatchNorm/moving_variance", "C->C", (32,)),
        (
            "repeat_1.0.branch1.1.bn.bias",
            "Repeat/block35_1/Branch_1/Conv2d_0b_3x3/BatchNorm/beta",
            "C->C",
            (32,),
        ),
        ("repeat_1.0.conv2d.bias", "Repeat/block35_1/Conv2d_1x1/biases", "C->C", (256,)),
        (
            "repeat_2.9.branch1.2.conv.weight",
            "Repeat_1/block17_10/Branch_1/Conv2d_0c_7x1/weights",
            "HWIO->OIHW",
            (7, 1, 128, 128),
        ),
        ("repeat_3.4.conv2d.bias", "Repeat_2/block8_5/Conv2d_1x1/biases", "C->C", (1792,)),
        (
            "mixed_6a.branch0.conv.weight",
            "Mixed_6a/Branch_0/Conv2d_1a_3x3/weights",
            "HWIO->OIHW",
            (3, 3, 256, 384),
        ),
        ("mixed_7a.branch2.2.bn.bias", "Mixed_7a/Branch_2/Conv2d_1a_3x3/BatchNorm/beta", "C->C", (256,)),
        ("block8.conv2d.weight", "Block8/Conv2d_1x1/weights", "HWIO->OIHW", (1, 1, 384, 1792)),
        ("last_linear.weight", "Bottleneck/weights", "IO->OI", (1792, 512)),
        ("last_bn.running_var", "Bottleneck/BatchNorm/moving_variance", "C->C", (512,)),
    ],
)
def test_published_names_meet(key, variable, layout, shape):
    row = next(row for row in converted(PUBLISHED) if row.key == key)
    assert (row.variable, row.layout.name, row.shape) == (f"InceptionResnetV1/{variable}", layout, shape)


def test_logits_stand_outside_the_network_scope():
    names = {row.key: (row.variable, row.shape) for row in converted(PUBLISHED)}
    assert names["logits.weight"] == ("Logits/weights", (512, 8631))
    assert names["logits.bias"] == ("Logits/biases", (8631,))


@pytest.mark.parametrize("variant", [PUBLISHED, Variant(embedding_size=128), Variant(num_classes=1)])
def test_the_module_has_the_keys_of_the_table_in_its_order(variant):
    module = InceptionResnetV1(num_classes=variant.num_classes, embedding_size=variant.embedding_size)
    state_dict = module.state_dict()
    assert list(state_dict) == [row.key for row in table(variant)]
    for row in table(variant):
        dtype = row.dtype if isinstance(row, SynthesisedRow) else "float32"
        assert tuple(state_dict[row.key].shape) == pytorch_shape(row), row.key
        assert str(state_dict[row.key].dtype) == f"torch.{dtype}", row.key


@pytest.mark.slow
@pytest.mark.parametrize("variant", [PUBLISHED, OLDER])
def test_the_tensorflow_graph_has_the_variables_of_the_table(variant):
    pytest.importorskip("tensorflow")
    from facenet_tf.graph import build, tf1
    from facenet_tf.session import legacy_graph
    from facenet_tf.variables import graph_shapes

    with legacy_graph():
        build(
            tf1.placeholder("float32", (None, None, None, 3)),
            embedding_size=variant.embedding_size,
            num_classes=variant.num_classes,
            gamma=variant.gamma,
            bottleneck_scope=variant.bottleneck_scope,
        )
        assert graph_shapes() == {row.variable: row.shape for row in converted(variant)}


def test_a_wrong_row_fails_on_import(monkeypatch):
    layer_map._check_table()
    monkeypatch.setattr(layer_map, "CONVOLUTIONS", (*CONVOLUTIONS[:-1], CONVOLUTIONS[0]))
    with pytest.raises(AssertionError, match="the layer map is broken"):
        layer_map._check_table()
