"""The PyTorch module: its numbers in closed form, its options and its errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from converter.convert import to_pytorch
from reference import MINIMUM_IMAGE_SIZE, InceptionResnetV1


@pytest.fixture(scope="module")
def state_dict(tensors):
    return to_pytorch(tensors)


@pytest.fixture(scope="module")
def model(state_dict):
    model = InceptionResnetV1(num_classes=7)
    model.load_state_dict(state_dict, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def run(model, images):
    return model(images)


def batch_norms(model):
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def test_parameters_and_keys():
    features = InceptionResnetV1()
    assert sum(parameter.numel() for parameter in features.parameters()) == 23_482_624
    assert len(features.state_dict()) == 714
    published = InceptionResnetV1(num_classes=8631).state_dict()
    assert len(published) == 716

    assert list(published)[:3] == ["conv2d_1a.conv.weight", "conv2d_1a.bn.weight", "conv2d_1a.bn.bias"]
    assert list(published)[-2:] == ["logits.weight", "logits.bias"]
    assert published["logits.weight"].shape == (8631, 512)
    counters = [key for key, value in published.items() if value.dtype == torch.int64]
    assert len(counters) == 112
    assert all(key.endswith(".num_batches_tracked") for key in counters)
    assert {value.dtype for key, value in published.items() if key not in counters} == {torch.float32}


def test_attributes_of_the_peer():
    network = InceptionResnetV1(num_classes=7)
    assert (network.num_classes, network.device) == (7, torch.device("cpu"))
    network.logits = nn.Linear(512, 9)
    assert network.num_classes == 9
    network.logits = None
    assert (network.num_classes, network.to("meta").device) == (None, torch.device("meta"))


def test_batch_norm_has_the_constants_of_the_training():
    layers = batch_norms(InceptionResnetV1())
    assert len(layers) == 112
    for name, layer in layers.items():
        assert layer.eps == 1e-3, name
        assert layer.momentum == pytest.approx(0.005, abs=1e-15), name
    assert nn.BatchNorm2d(1).eps != 1e-3  # PyTorch's own defaults would not pass
    assert nn.BatchNorm2d(1).momentum != pytest.approx(0.005)


def test_momentum_is_the_share_that_is_new(state_dict, images):
    model = InceptionResnetV1(num_classes=7)
    model.load_state_dict(state_dict)
    before = model.conv2d_1a.bn.running_mean.clone()
    with torch.no_grad():
        batch_mean = model.conv2d_1a.conv(images).mean(dim=(0, 2, 3))
        model.train()(images)
    expected = 0.995 * before + 0.005 * batch_mean
    torch.testing.assert_close(model.conv2d_1a.bn.running_mean, expected, atol=1e-7, rtol=0)
    assert not torch.allclose(0.005 * before + 0.995 * batch_mean, expected, atol=1e-7, rtol=0)


def test_residual_scales_and_the_last_block():
    model = InceptionResnetV1()
    scales = {
        "repeat_1": (5, 0.17, True),
        "repeat_2": (10, 0.10, True),
        "repeat_3": (5, 0.20, True),
    }
    for name, (count, scale, relu) in scales.items():
        blocks = list(model.get_submodule(name))
        assert [(block.scale, block.relu) for block in blocks] == [(scale, relu)] * count
    assert (model.block8.scale, model.block8.relu) == (1.0, False)


@torch.no_grad()
def test_the_last_block_may_go_below_zero(model, images):
    features = []
    handle = model.block8.register_forward_hook(lambda _, __, output: features.append(output))
    before = []
    other = model.repeat_3.register_forward_hook(lambda _, __, output: before.append(output))
    model(images)
    handle.remove()
    other.remove()
    assert before[0].min() == 0
    assert features[0].min() < 0


# The head


def test_embeddings_have_length_one(model, images):
    embeddings = run(model, images)
    assert embeddings.shape == (3, 512)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)
    with torch.no_grad():
        prelogits = model.prelogits(images)
    assert (prelogits.norm(dim=1) - 1).abs().min() > 0.1
    torch.testing.assert_close(embeddings, prelogits / prelogits.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-7, 9e-6, 1.1e-5, 1e-3, 2.0])
def test_the_floor_under_the_norm_is_tensorflows(model, length):
    direction = torch.tensor([[3.0, -4.0, 0.0]], dtype=torch.float64) / 5
    prelogits = direction * length
    # tf.nn.l2_normalize(x, 1, 1e-10): x * rsqrt(max(sum(x ** 2), 1e-10))
    expected = prelogits * torch.rsqrt(torch.clamp((prelogits**2).sum(), min=1e-10))
    torch.testing.assert_close(model.head(prelogits), expected, atol=0, rtol=1e-12)
    if 1e-12 < length < 1e-5:
        assert not torch.allclose(nn.functional.normalize(prelogits, eps=1e-12), expected)


def test_classify_may_be_set_later(model, images):
    embeddings = run(model, images)
    model.classify = True
    try:
        logits = run(model, images)
    finally:
        model.classify = False
    assert logits.shape == (3, 7)
    with torch.no_grad():
        expected = model.prelogits(images) @ model.logits.weight.T + model.logits.bias
        normalised = embeddings @ model.logits.weight.T + model.logits.bias
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, normalised, atol=1e-2)
    assert torch.equal(run(model, images), embeddings)


def test_classify_from_the_start(state_dict, model, images):
    classifier = InceptionResnetV1(classify=True, num_classes=7).eval()
    classifier.load_state_dict(state_dict)
    assert run(classifier, images).shape == (3, 7)
    classifier.classify = False
    assert torch.equal(run(classifier, images), run(model, images))


def test_classify_needs_a_classifier(images):
    with pytest.raises(ValueError, match="num_classes"):
        InceptionResnetV1(classify=True)
    features = InceptionResnetV1().eval()
    features.classify = True
    with pytest.raises(ValueError, match="built without num_classes"):
        run(features, images)


def test_loading_is_strict(state_dict):
    model = InceptionResnetV1()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(state_dict)


def test_dropout_acts_in_training_only(model, state_dict, images):
    assert torch.equal(run(model, images), run(model, images))
    assert model.dropout.p == 0.6
    assert InceptionResnetV1(dropout_prob=0.25).dropout.p == 0.25
    dropped = []
    training = InceptionResnetV1(num_classes=7)
    training.load_state_dict(state_dict)
    training.dropout.register_forward_hook(lambda _, args, output: dropped.append((args[0], output)))
    with torch.no_grad():
        training.train()(images)
    before, after = dropped[0]
    kept = after != 0
    assert 0.35 < kept.float().mean() < 0.45
    torch.testing.assert_close(after[kept], before[kept] / 0.4)


# Sizes and dtypes


@pytest.mark.parametrize(("height", "width"), [(75, 75), (75, 200), (161, 139), (160, 160), (224, 181)])
def test_any_size_from_75(model, height, width):
    generator = torch.Generator().manual_seed(1)
    embeddings = run(model, torch.randn(1, 3, height, width, generator=generator))
    assert embeddings.shape == (1, 512)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "shape", [(1, 3, 74, 160), (1, 3, 160, 74), (3, 160, 160), (1, 1, 160, 160), (1, 160, 160, 3)]
)
def test_other_shapes_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"expected \(N, 3, H, W\) with H and W at least 75"):
        run(model, torch.zeros(shape))


def test_the_limit_is_that_of_the_network(model, monkeypatch):
    assert MINIMUM_IMAGE_SIZE == 75
    monkeypatch.setattr("reference.inception_resnet_v1.MINIMUM_IMAGE_SIZE", 0)
    with pytest.raises(RuntimeError, match="size"):
        run(model, torch.zeros(1, 3, 74, 160))


def test_an_image_does_not_depend_on_its_batch(model, images):
    torch.testing.assert_close(run(model, images[1:2]), run(model, images)[1:2], atol=1e-6, rtol=0)
    assert not torch.allclose(run(model, images[:1]), run(model, images[1:2]), atol=1e-3)


def test_float64_shows_the_rounding_of_float32(state_dict, model, images):
    double = InceptionResnetV1(num_classes=7).double().eval()
    double.load_state_dict(state_dict)
    result = run(double, images.double())
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.norm(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-14, rtol=0)
    distance = (run(model, images).double() - result).norm()
    assert 1e-9 < distance < 1e-5


def test_another_embedding_size():
    model = InceptionResnetV1(embedding_size=128).eval()
    assert run(model, torch.randn(1, 3, 80, 80)).shape == (1, 128)
    assert model.state_dict()["last_linear.weight"].shape == (128, 1792)
