"""Converting: exact both ways for every variant, and one report of everything that does not fit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from converter.convert import (
    convert_tensors,
    to_numpy_state_dict,
    to_pytorch,
    to_tensorflow,
)
from converter.formats.detect import open_source
from converter.formats.source import TensorInfo
from converter.layer_map import ConvertedRow, SynthesisedRow, Variant, table
from converter.plan import AVERAGE, MappingError, Problem, describe, infer_variant, plan_conversion
from reference import InceptionResnetV1
from tests.conftest import CLASSES, same_bits

BITS = np.random.default_rng(0).integers(0, 1 << 32, 1 << 22, np.uint32).view(np.float32)
ODD = np.array([0x80000000, 0x00000001, 0x807FFFFF, 0x7FA00001, 0xFFC00000, 0x7F800000], np.uint32)
BOTTLENECKS = ("InceptionResnetV1/Bottleneck", "Bottleneck")
STEM = "InceptionResnetV1/Conv2d_1a_3x3"
BLOCK = "InceptionResnetV1/Repeat_1/block17_3"

variants = st.builds(
    Variant,
    embedding_size=st.integers(1, 600),
    num_classes=st.none() | st.integers(1, 300),
    gamma=st.booleans(),
    bottleneck_scope=st.sampled_from(BOTTLENECKS),
)


def any_bits(variant, seed=0):
    """Tensors of a variant, each a different window on random bits with special values at its start."""
    starts = np.random.default_rng(seed)
    drawn = {}
    for row in table(variant):
        if isinstance(row, ConvertedRow):
            size = int(np.prod(row.shape))
            start = starts.integers(0, BITS.size - size)
            drawn[row.variable] = BITS[start : start + size].copy()
            drawn[row.variable][: ODD.size] = ODD.view(np.float32)[:size]
            drawn[row.variable] = drawn[row.variable].reshape(row.shape)
    return drawn


def info_of(variant, averages=False):
    """List the tensors of a variant, without any array."""
    info = {}
    for row in table(variant):
        if isinstance(row, ConvertedRow):
            info[row.variable] = TensorInfo(np.dtype("float32"), row.shape)
            if averages:
                info[f"{row.variable}/{AVERAGE}"] = info[row.variable]
    return info


def problems_of(info, **options):
    with pytest.raises(MappingError) as caught:
        plan_conversion(info, **options)
    assert caught.value.exit_code == 3
    return caught.value


def has(error, kind, name):
    return any((problem.kind, problem.name) == (kind, name) for problem in error.problems)


# There and back


@pytest.mark.slow
@settings(max_examples=8)
@given(variants, st.integers(0, 1000))
@example(Variant(512, 8, gamma=False), 0)
@example(Variant(128, None, gamma=True, bottleneck_scope="Bottleneck"), 1)
@example(Variant(1, 1, gamma=True), 2)
def test_round_trip_is_bit_for_bit(variant, seed):
    original = any_bits(variant, seed)
    assert infer_variant(describe(original)) == variant
    state_dict = to_numpy_state_dict(original)
    assert list(state_dict) == [row.key for row in table(variant)]
    again = to_tensorflow(state_dict, variant=variant)
    assert again.keys() == original.keys()
    assert [name for name in original if not same_bits(again[name], original[name])] == []


def test_the_odd_values_survive_in_pytorch():
    state_dict = to_numpy_state_dict(any_bits(Variant()))
    bits = state_dict["conv2d_1a.bn.bias"].view(np.uint32)
    assert bits[: ODD.size].tolist() == ODD.tolist()
    # The first six of HWIO run along the output channel, which is the first axis of OIHW.
    assert state_dict["conv2d_1a.conv.weight"].view(np.uint32)[:6, 0, 0, 0].tolist() == ODD.tolist()


def test_every_tensor_is_the_plain_transposition_of_its_variable(tensors):
    state_dict = to_numpy_state_dict(tensors)
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    for row in table(Variant(num_classes=CLASSES)):
        if isinstance(row, SynthesisedRow):
            expected = np.full(row.shape, row.fill, row.dtype)
        else:
            expected = tensors[row.variable].transpose(axes[tensors[row.variable].ndim])
        assert same_bits(state_dict[row.key], expected), row.key
        assert state_dict[row.key].flags.c_contiguous
    assert state_dict["last_bn.weight"].tolist() == [1.0] * 512
    assert state_dict["last_bn.num_batches_tracked"].dtype == np.int64


def test_results_are_the_callers_own(tensors):
    state_dict = to_numpy_state_dict(tensors)
    beta = f"{STEM}/BatchNorm/beta"
    before = tensors[beta].copy()
    state_dict["conv2d_1a.bn.bias"] += 1
    assert same_bits(tensors[beta], before)


def test_results_of_to_tensorflow_are_the_callers_own(tensors):
    state_dict = to_pytorch(tensors)
    again = to_tensorflow(state_dict)
    for tensor in state_dict.values():
        tensor.zero_()
    assert [name for name in tensors if not same_bits(again[name], tensors[name])] == []


def test_a_network_takes_the_result_as_it_is_and_gives_it_back():
    original = any_bits(Variant(num_classes=3))
    model = InceptionResnetV1(num_classes=3)
    model.load_state_dict(to_pytorch(original))
    again = to_tensorflow(model.state_dict())
    assert [name for name in original if not same_bits(again[name], original[name])] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_another_precision_keep_it(tensors, dtype):
    cast = {key: value.to(dtype) for key, value in to_pytorch(tensors).items()}
    beta = to_tensorflow(cast)[f"{STEM}/BatchNorm/beta"]
    assert beta.dtype.name == str(dtype).removeprefix("torch.")
    assert same_bits(beta.astype(np.float64), cast["conv2d_1a.bn.bias"].double().numpy())


def test_order_of_the_source_does_not_matter(tensors):
    backwards = dict(reversed(tensors.items()))
    one, other = to_numpy_state_dict(tensors), to_numpy_state_dict(backwards)
    assert list(one) == list(other)
    assert all(same_bits(one[key], other[key]) for key in one)


def test_gamma_is_told_from_a_state_dict(tensors):
    state_dict = to_numpy_state_dict(tensors)
    assert not any(name.endswith("/gamma") for name in to_tensorflow(state_dict))
    state_dict["repeat_2.2.branch1.1.bn.weight"][5] = np.nextafter(np.float32(1), np.float32(2))
    again = to_tensorflow(state_dict)
    assert sum(name.endswith("/BatchNorm/gamma") for name in again) == 112
    gamma = again[f"{BLOCK}/Branch_1/Conv2d_0b_1x7/BatchNorm/gamma"]
    assert gamma[5] == np.float32(1.0000001)
    assert (np.delete(gamma, 5) == 1).all()
    with pytest.raises(
        MappingError, match=r"repeat_2.2.branch1.1.bn.weight: a BatchNorm scale other than one"
    ):
        to_tensorflow(state_dict, variant=Variant(num_classes=CLASSES))


# Averages, slots and steps


def test_training_state_is_left_out_with_its_reason():
    kernel, beta = f"{STEM}/weights", f"{STEM}/BatchNorm/beta"
    info = info_of(Variant(num_classes=CLASSES))
    scalar = TensorInfo(np.dtype("float32"), ())
    extra = {
        "global_step": "step counter",
        "beta1_power": "step state of the Adam optimiser",
        f"{kernel}/Adam": "slot of the Adam optimiser (first moment)",
        f"{kernel}/Adam_1": "slot of the Adam optimiser (second moment)",
        f"{beta}/RMSProp_2": "slot of the RMSProp optimiser (mean gradient)",
        f"{beta}/{AVERAGE}": "moving average; --weights average uses it",
        f"{STEM}/weights_quant/min": "range of a value that was rounded in training (FakeQuant)",
    }
    plan = plan_conversion(info | dict.fromkeys(extra, scalar))
    assert {item.name: item.reason for item in plan.left_out} == extra
    assert plan.sources == {name: name for name in info}


@pytest.mark.parametrize(
    "name",
    [
        "globalstep",
        "x/global_step",
        f"{STEM}/weights/Adam_2",
        f"{STEM}/Adam",
        f"Foo/weights/{AVERAGE}",
        "Logits/b",
    ],
)
def test_only_exact_names_are_left_out(name):
    info = info_of(Variant(num_classes=CLASSES)) | {name: TensorInfo(np.dtype("float32"), (3,))}
    error = problems_of(info)
    assert error.problems == (Problem("unexpected", name, "float32 (3,)"),)


def test_averages_are_used_when_asked_for(tensors):
    averages = {f"{name}/{AVERAGE}": array + 1 for name, array in tensors.items()}
    both = tensors | averages
    plain, average = to_numpy_state_dict(both), to_numpy_state_dict(both, weights="average")
    assert same_bits(plain["logits.bias"], tensors["Logits/biases"])
    assert same_bits(average["logits.bias"], tensors["Logits/biases"] + 1)
    expected = to_numpy_state_dict({name: array + 1 for name, array in tensors.items()})
    assert all(same_bits(average[key], expected[key]) for key in expected)
    plan = plan_conversion(describe(both), weights="average")
    assert {item.name for item in plan.left_out} == set(tensors)
    assert {item.reason for item in plan.left_out} == {"its moving average is used instead"}


def test_statistics_without_averages_are_their_own():
    info = info_of(Variant(), averages=True)
    statistics = [name for name in info if name.endswith(("/moving_mean", "/moving_variance"))]
    for name in statistics:
        del info[f"{name}/{AVERAGE}"]
    plan = plan_conversion(info, weights="average")
    assert {plan.sources[name] for name in statistics} == set(statistics)
    assert plan.sources[f"{STEM}/weights"] == f"{STEM}/weights/{AVERAGE}"
    del info[f"{STEM}/weights/{AVERAGE}"]
    error = problems_of(info, weights="average")
    assert [problem.name for problem in error.problems] == [f"{STEM}/weights/{AVERAGE}"]


def test_averages_that_are_not_there_are_said_so():
    error = problems_of(info_of(Variant()), weights="average")
    assert str(error) == (
        "it holds no moving averages, which have names that end in /ExponentialMovingAverage. Leave out "
        "--weights average to take the variables."
    )


# Other precisions


PRECISIONS = (np.dtype("float16"), np.dtype(ml_dtypes.bfloat16), np.dtype("float64"), np.dtype("float32"))


@pytest.fixture(scope="module")
def mixed(tensors):
    """Tensors in four dtypes in turn; float32 cannot hold the values of the float64 tensors."""
    drawn = {}
    for number, (name, array) in enumerate(tensors.items()):
        dtype = PRECISIONS[number % 4]
        drawn[name] = array.astype(dtype)
        if dtype == np.float64:
            drawn[name] *= 1 + 2.0**-30
    return drawn


def test_every_precision_becomes_float32(mixed):
    state_dict = to_numpy_state_dict(mixed)
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    for row in table(Variant(num_classes=CLASSES)):
        if isinstance(row, ConvertedRow):
            array = mixed[row.variable]
            # PyTorch casts here, not NumPy.
            bits = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array
            tensor = torch.from_numpy(bits.copy())
            tensor = tensor.view(torch.bfloat16) if bits is not array else tensor
            expected = tensor.float().numpy().transpose(axes[array.ndim])
            assert same_bits(state_dict[row.key], expected), row.key


def test_the_plan_tells_what_will_be_cast(mixed, tensors):
    casts = plan_conversion(describe(mixed)).casts
    assert casts == {name: array.dtype for name, array in mixed.items() if array.dtype != np.float32}
    assert len(casts) == 369
    assert plan_conversion(describe(tensors)).casts == {}


def test_entries_say_what_their_cast_changed(mixed):
    casts = {}
    for entry in convert_tensors(mixed, plan_conversion(describe(mixed))):
        if isinstance(entry.row, ConvertedRow):
            casts[entry.row.variable] = entry.cast
        else:
            assert entry.cast is None
    for name, array in mixed.items():
        if array.dtype == np.float32:
            assert casts[name] is None
            continue
        exact = array.astype(np.float32).astype(np.float64)
        assert (casts[name].dtype, casts[name].elements) == (array.dtype.name, array.size)
        assert casts[name].changed == (exact != array.astype(np.float64)).sum()
        assert (casts[name].changed > 0) == (array.dtype == np.float64), name


@pytest.mark.parametrize(
    ("dtype", "counters"),
    [(torch.float16, False), (torch.float16, True), (torch.bfloat16, True), (torch.float64, False)],
)
def test_a_state_dict_of_another_precision(tensors, tmp_path, dtype, counters):
    """`model.half()` does not change the batch counters; a cast of every entry does."""
    state_dict = to_pytorch(tensors)
    content = {
        key: value.to(dtype) if counters or value.is_floating_point() else value
        for key, value in state_dict.items()
    }
    torch.save(content, tmp_path / "w.pt")
    with open_source(tmp_path / "w.pt") as source:
        again = to_numpy_state_dict(source)
    assert list(again) == list(state_dict)
    for key, value in content.items():
        expected = value.to(state_dict[key].dtype).numpy()
        assert same_bits(again[key], expected), key


def test_a_gamma_in_half_precision_is_told_from_ones(tensors):
    state_dict = {key: array.astype(np.float16) for key, array in to_numpy_state_dict(tensors).items()}
    assert not any(name.endswith("/gamma") for name in to_tensorflow(state_dict))
    state_dict["last_bn.weight"][3] = 2
    again = to_tensorflow(state_dict)
    assert again["InceptionResnetV1/Bottleneck/BatchNorm/gamma"][3] == 2
    assert to_numpy_state_dict(again)["last_bn.weight"].dtype == np.float32


def test_values_beyond_float32_are_refused_in_one_report(tensors):
    kernel, beta = f"{STEM}/weights", f"{STEM}/BatchNorm/beta"
    large = {kernel: tensors[kernel].astype(np.float64), beta: tensors[beta].astype(np.float64)}
    large[kernel][0, 0, 0, :2] = 1e39, -1e300
    large[beta][5] = np.inf
    to_numpy_state_dict(tensors | {beta: large[beta]})  # an infinity is one in float32 as well
    large[beta][6] = 1e39
    with pytest.raises(MappingError) as caught:
        to_numpy_state_dict(tensors | large)
    assert caught.value.problems == (
        Problem(
            "out of range",
            kernel,
            "2 of 864 values are beyond float32, the largest is -1e+300 (for conv2d_1a.conv.weight)",
        ),
        Problem(
            "out of range",
            beta,
            "1 of 32 values is beyond float32, the largest is 1e+39 (for conv2d_1a.bn.bias)",
        ),
    )
    assert caught.value.exit_code == 3


# What does not fit


def test_every_problem_is_in_one_report():
    info = info_of(Variant(num_classes=CLASSES))
    missing = f"{BLOCK}/Conv2d_1x1/biases"
    misshapen, wrong = f"{STEM}/weights", f"{STEM}/BatchNorm/beta"
    assert plan_conversion(info).left_out == ()
    del info[missing]
    info[misshapen] = TensorInfo(np.dtype("float32"), (3, 3, 32, 3))
    info[wrong] = TensorInfo(np.dtype("int64"), (32,))
    info["Bottleneck/weights"] = info["InceptionResnetV1/Bottleneck/weights"]
    info["InceptionResnetV1/Conv2d_9z/weights"] = TensorInfo(np.dtype("float32"), (1, 1, 3, 3))
    error = problems_of(info)
    assert error.problems == (
        Problem("misshapen", misshapen, "(3, 3, 32, 3), expected (3, 3, 3, 32)"),
        Problem("wrong dtype", wrong, "int64, expected float32"),
        Problem("missing", missing, "for repeat_2.2.conv2d.bias"),
        Problem("duplicate", "Bottleneck/weights", "InceptionResnetV1/Bottleneck exists as well"),
        Problem("unexpected", "InceptionResnetV1/Conv2d_9z/weights", "float32 (1, 1, 3, 3)"),
    )
    for problem in error.problems:
        assert f"{problem.kind} (1):\n    {problem.name}: {problem.detail}" in str(error)


def test_every_problem_of_a_state_dict_is_in_one_report(tensors):
    state_dict = to_numpy_state_dict(tensors)
    del state_dict["repeat_2.2.conv2d.bias"]
    state_dict["conv2d_1a.conv.weight"] = tensors[f"{STEM}/weights"]
    state_dict["conv2d_1a.bn.bias"] = state_dict["conv2d_1a.bn.bias"].astype(np.int16)
    state_dict["conv2d_1a.bn.num_batches_tracked"] = np.zeros(2, np.int64)
    state_dict["last_linear.bias"] = np.zeros(512, np.float32)
    with pytest.raises(MappingError) as caught:
        to_tensorflow(state_dict)
    assert set(caught.value.problems) == {
        Problem("missing", "repeat_2.2.conv2d.bias"),
        Problem("misshapen", "conv2d_1a.conv.weight", "(3, 3, 3, 32), expected (32, 3, 3, 3)"),
        Problem("wrong dtype", "conv2d_1a.bn.bias", "int16, expected float32"),
        Problem("misshapen", "conv2d_1a.bn.num_batches_tracked", "(2,), expected ()"),
        Problem("unexpected", "last_linear.bias", "float32 (512,)"),
    }


def test_a_long_report_counts_what_it_does_not_show():
    info = info_of(Variant())
    extra = {f"other/{n}": TensorInfo(np.dtype("float32"), ()) for n in range(20)}
    error = problems_of(info | extra)
    assert len(error.problems) == 20
    assert "unexpected (20):" in str(error)
    assert "... and 8 more" in str(error)
    assert str(error).count("other/") == 12


def test_another_network_is_called_so():
    other = {"resnet/conv1/kernel": TensorInfo(np.dtype("float32"), (7, 7, 3, 64))}
    assert (
        "not an Inception-ResNet-v1: its only tensor does not have an expected name, such as "
        "InceptionResnetV1/" in str(problems_of(other))
    )
    assert "not an Inception-ResNet-v1" not in str(problems_of(info_of(Variant()) | other))


@pytest.mark.parametrize("leaf", ["weights", "biases"])
def test_half_a_classifier_is_missing_the_other_half(leaf):
    info = info_of(Variant(num_classes=CLASSES))
    del info[f"Logits/{leaf}"]
    error = problems_of(info)
    assert [(problem.kind, problem.name) for problem in error.problems] == [("missing", f"Logits/{leaf}")]


def test_one_missing_gamma_is_seen():
    info = info_of(Variant(gamma=True))
    gamma = f"{STEM}/BatchNorm/gamma"
    del info[gamma]
    assert has(problems_of(info), "missing", gamma)


@pytest.mark.parametrize("shape", [(), (512,), (1792, 512, 1), (512, 1792)])
def test_a_misshapen_bottleneck_is_reported_and_not_tripped_over(shape):
    info = info_of(Variant(num_classes=CLASSES))
    info["InceptionResnetV1/Bottleneck/weights"] = TensorInfo(np.dtype("float32"), shape)
    assert has(problems_of(info), "misshapen", "InceptionResnetV1/Bottleneck/weights")


@pytest.mark.parametrize("dtype", ["bool", "complex64", ">f4", ">f8", "object"])
def test_what_is_no_dtype_of_a_weight(dtype):
    info = info_of(Variant())
    info[f"{STEM}/weights"] = TensorInfo(np.dtype(dtype), (3, 3, 3, 32))
    error = problems_of(info)
    assert [problem.kind for problem in error.problems] == ["wrong dtype"]
    assert "float32, float16, bfloat16 and float64 are converted" in str(error)


def test_nothing_at_all_is_refused():
    assert len(problems_of({}).problems) == 490
    with pytest.raises(MappingError):
        to_tensorflow({})
