"""Files that Keras 3 writes: .h5, .weights.h5 and .keras, nested models, and layers without names."""

import io
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from checks.audit.__main__ import main as audit
from converter.__main__ import main
from converter.convert import tensorflow_tensors
from converter.errors import SourceError
from converter.formats.detect import open_source
from converter.network_names import NetworkTensors
from tests.conftest import same_bits
from tests.support.keras_network import import_keras, keras_network
from tests.support.shared_files import shared_folder

pytestmark = pytest.mark.slow

ENDINGS = (".h5", ".weights.h5", ".keras")


def save(model, folder: Path, name: str) -> None:
    """Save a model in the three ways of Keras 3."""
    with warnings.catch_warnings(action="ignore"):
        model.save(folder / f"{name}.h5")
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")


@pytest.fixture(scope="module")
def narrow(tensors) -> dict[str, np.ndarray]:
    """The tensors of the network with at most two channels, so that its files are small."""

    def cut(array: np.ndarray) -> np.ndarray:
        kernel = (slice(None),) * (array.ndim - 2)
        return np.ascontiguousarray(array[(*kernel, *(slice(2),) * min(array.ndim, 2))])

    return {name: cut(array) for name, array in tensors.items()}


@pytest.fixture(scope="module")
def whole(tensors, tmp_path_factory) -> Path:
    """The network with all of its channels, as .keras."""

    def write(folder: Path) -> None:
        import_keras()
        keras_network(tensors).save(folder / "network.keras")

    return shared_folder(tmp_path_factory, "keras-3-whole", write) / "network.keras"


@pytest.fixture(scope="module")
def files(narrow, tmp_path_factory) -> Path:
    """The narrow network alone, and as a layer of another model, in every format."""

    def write(folder: Path) -> None:
        keras = import_keras()
        network = keras_network(narrow)
        save(network, folder, "network")
        inputs = [keras.Input(tensor.shape[1:]) for tensor in network.inputs]
        save(keras.Model(inputs, network(inputs), name="outer"), folder, "nested")

    return shared_folder(tmp_path_factory, "keras-3", write)


def assert_holds(path: Path, tensors) -> tuple[NetworkTensors, tuple[str, ...]]:
    """Check every tensor of a file; return what is stated of its names, and the notes of its reader."""
    with open_source(path) as source:
        named = NetworkTensors(source)
        actual = tensorflow_tensors(named)
        assert actual.keys() == tensors.keys()
        assert [name for name in tensors if not same_bits(actual[name], tensors[name])] == []
        return named, source.notes


OPEN_QUESTION = (
    "the file does not say whether the first of three variables of 112 BatchNorms is beta or gamma"
)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ["network", "nested"])
def test_every_tensor_of_every_format_is_read(name: str, ending: str, files: Path, narrow) -> None:
    """With the models around a layer, a prefix like any other, and what the file leaves open."""
    named, notes = assert_holds(files / (name + ending), narrow)
    prefix = "facenet/" if name == "nested" and ending != ".h5" else ""
    assert named.prefix == prefix
    if prefix:
        assert "the names of the network begin with 'facenet/', which is taken off" in named.statements
    if ending == ".weights.h5":  # elsewhere the names or the settings say it
        (note,) = notes
        assert (
            note
            == f"{OPEN_QUESTION}; beta is taken, as in this network, and some of the values are not positive"
        )
        assert note in named.statements
    else:
        assert notes == ()


def test_a_keras_archive_is_converted_and_audited(whole: Path, checkpoint, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "facenet.keras").hardlink_to(whole)
    output = tmp_path / "w.pt"
    assert main([str(folder), "-o", str(output)]) == 0
    assert "facenet.keras (Keras archive)" in capsys.readouterr().out
    assert json.loads(Path(f"{output}.json").read_text())["source"]["format"] == "Keras archive"
    assert audit([str(whole), "--against", str(checkpoint.prefix)]) == 0
    assert "492 equal bit for bit" in capsys.readouterr().out


def test_an_audit_finds_a_changed_weight_in_an_archive(
    whole: Path, checkpoint, tmp_path: Path, capsys
) -> None:
    def change(file: h5py.File) -> None:
        file["layers/conv2d_7/vars/0"][0, 0, 0, 0] += 1

    path = rewrite(whole, tmp_path / "changed.keras", change)
    assert audit([str(path), "--against", str(checkpoint.prefix)]) == 1
    with h5py.File(io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5"))) as file:
        layer = file["layers/conv2d_7/vars"].attrs["name"]
    assert f"{layer}/kernel" in capsys.readouterr().out


def rewrite(source: Path, target: Path, change=lambda file: None, *, config=lambda text: text,
            method: int = zipfile.ZIP_STORED) -> Path:  # fmt: skip
    """Copy a .keras archive with another HDF5 file, configuration or compression in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        content = io.BytesIO(old.read("model.weights.h5"))
        with h5py.File(content, "r+") as file:
            change(file)
        new.writestr("metadata.json", old.read("metadata.json"))
        new.writestr("config.json", config(old.read("config.json")))
        new.writestr("model.weights.h5", content.getvalue())
    return target


def forget_names(file: h5py.File) -> None:
    """Remove the names of layers, which Keras did not write before 3.4."""
    file.visititems(lambda _, item: item.attrs.pop("name", None) and None)


@pytest.mark.parametrize(
    ("name", "method"), [("network", zipfile.ZIP_DEFLATED), ("nested", zipfile.ZIP_STORED)]
)
def test_names_that_only_the_configuration_has_are_taken_from_it(
    name, method, files, narrow, tmp_path
) -> None:
    """Also from a compressed archive."""
    path = rewrite(files / f"{name}.keras", tmp_path / "old.keras", forget_names, method=method)
    assert_holds(path, narrow)


def refuses(path: Path, says: str, tmp_path: Path, capsys, *, step: str = "") -> None:
    """Check that a file is refused with this message and this step, and nothing is written."""
    assert main([str(path), "-o", str(tmp_path / "w.pt")]) == 3
    message = capsys.readouterr().err
    assert says in message
    assert step in message
    assert not (tmp_path / "w.pt").exists()


def test_weights_of_layers_without_names_are_refused_with_the_step_that_works(
    files, tmp_path, capsys
) -> None:
    path = tmp_path / "old.weights.h5"
    shutil.copy(files / "network.weights.h5", path)
    with h5py.File(path, "r+") as file:
        forget_names(file)
    missing = "the names of 246 layers are missing (layers/batch_normalization, "
    refuses(path, missing, tmp_path, capsys, step='save the whole model: model.save("facenet.keras")')


@pytest.fixture(scope="module")
def small_files(tmp_path_factory) -> Path:
    """Small models by Keras: numbered layers, the network's name twice, an offset left out, and trained."""

    def write(folder: Path) -> None:
        keras = import_keras()
        layers = keras.layers

        def stack(name: str | None, **options) -> list:
            return [
                layers.Conv2D(2, 3, use_bias=False, name=name),
                layers.BatchNormalization(name=name and f"{name}_BatchNorm", **options),
                layers.Flatten(),
            ]

        start = keras.Input((5, 5, 3))
        save(keras.Sequential([start, *stack(None)]), folder, "numbered")
        stem = "Conv2d_1a_3x3"
        save(keras.Sequential([start, *stack(stem, center=False)]), folder, "no-offset")
        twins = [keras.Sequential([keras.Input((5, 5, 3)), *stack(stem)], name=name) for name in "ab"]
        save(keras.Model(start, [twin(start) for twin in twins]), folder, "twins")
        trained = keras.Sequential([start, *stack(stem), layers.Dropout(0.5)])
        trained.compile("adam", "mse")
        trained.fit(np.zeros((2, 5, 5, 3)), np.zeros((2, 18)), verbose=0)
        save(trained, folder, "trained")

    return shared_folder(tmp_path_factory, "keras-3-small", write)


@pytest.mark.parametrize("ending", ENDINGS)
def test_layers_that_keras_numbered_are_not_guessed(ending, small_files, tmp_path, capsys) -> None:
    path = small_files / f"numbered{ending}"
    step = "Build the network with the layer names of facenet_keras.h5, such as"
    refuses(path, "its layers have no names of their own: Keras numbered them (", tmp_path, capsys, step=step)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_layer_of_two_models_is_ambiguous(ending, small_files, tmp_path, capsys) -> None:
    assert main([str(small_files / f"twins{ending}"), "-o", str(tmp_path / "w.pt")]) == 2
    error = capsys.readouterr().err
    assert "it holds two networks, under 'a/' and 'b/'. Leave one of them out: --ignore 'a/*' or" in error


def names(path: Path) -> set[str]:
    with open_source(path) as source:
        named = NetworkTensors(source)
        return {name.removeprefix("Conv2d_1a_3x3").removeprefix("_BatchNorm") for name in named}


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_the_role_of_a_variable_is_not_its_number(ending: str, small_files: Path) -> None:
    expected = {"/kernel:0", "/gamma:0", "/moving_mean:0", "/moving_variance:0"}
    assert names(small_files / f"no-offset{ending}") == expected


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_state_of_training_is_no_weight(ending: str, small_files: Path) -> None:
    expected = {"/kernel:0", "/gamma:0", "/beta:0", "/moving_mean:0", "/moving_variance:0"}
    assert names(small_files / f"trained{ending}") == expected


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (lambda text: b"{", "this .keras archive is damaged"),
        (lambda text: b"[" * 100_000, "this .keras archive is damaged"),
        (lambda text: b'"' + bytes(17 << 20) + b'"', "claims more data than its size justifies"),
        (lambda text: b"[]", "the names of 2 layers are missing"),
    ],
)
def test_a_damaged_configuration(config, says, small_files, tmp_path, capsys) -> None:
    path = rewrite(small_files / "no-offset.keras", tmp_path / "x.keras", forget_names, config=config)
    refuses(path, says, tmp_path, capsys)


def test_damaged_archives(small_files: Path, tmp_path: Path, capsys) -> None:
    whole = (small_files / "trained.keras").read_bytes()
    path = tmp_path / "x.keras"
    at = whole.index(b"\x89HDF")
    for damaged in (whole[: at + 100] + b"\xff" + whole[at + 101 :], whole[: at + 9] + whole[at + 10 :]):
        path.write_bytes(damaged)
        refuses(path, "x.keras: this .keras archive is damaged or cut off. Download or", tmp_path, capsys)
    for size in (50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refuses(path, "x.keras: this .keras archive is damaged or cut off. Download or", tmp_path, capsys)
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", "model.weights.h5", "model.weights.h5"):
            archive.writestr(name, b"{}")
    refuses(path, "this .keras archive holds a file twice", tmp_path, capsys)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", b"{}")
    refuses(path, "this zip archive is no .keras file: there is no config.json in it", tmp_path, capsys)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b"{}")
        archive.writestr("model.weights.h5", bytes(110 << 20))
    refuses(path, "claims more data than its size justifies", tmp_path, capsys)


def test_a_link_out_of_the_file_is_refused(small_files: Path, tmp_path: Path, capsys) -> None:
    def change(file: h5py.File) -> None:
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = h5py.ExternalLink("/etc/passwd", "/")

    path = rewrite(small_files / "trained.keras", tmp_path / "x.keras", change)
    refuses(path, "it is a soft or external link", tmp_path, capsys)


def test_a_layer_of_an_unknown_class_is_named(small_files: Path, tmp_path: Path) -> None:
    path = rewrite(
        small_files / "trained.keras",
        tmp_path / "x.keras",
        lambda file: file.move("layers/conv2d", "layers/own"),
    )
    with pytest.raises(SourceError, match=r"tensor 'Conv2d_1a_3x3': a layer of 1 variable, of which own"):
        open_source(path)


# What the file leaves open


def test_gammas_are_not_taken_for_betas(files: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "x.weights.h5"
    shutil.copy(files / "network.weights.h5", path)
    with h5py.File(path, "r+") as file:
        for name in file["layers"]:
            if name.startswith("batch_normalization"):
                file[f"layers/{name}/vars/0"][...] = 1.0
    refuses(path, f"{OPEN_QUESTION}; the values are all positive, as those of gamma are", tmp_path, capsys)
    with h5py.File(path, "r+") as file:
        file["layers/batch_normalization/vars/0"][0] = 0.0
    with open_source(path) as source:
        assert "Bottleneck_BatchNorm/beta:0" in source


def test_the_names_of_keras_3_0(tmp_path: Path) -> None:
    """Keras 3.0 writes `kernel` into .h5, and the layer in the name of the group alone."""
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"Conv2d_1a_3x3", b"Conv2d_2a_3x3"]
        for number, layer in enumerate(("Conv2d_1a_3x3", "Conv2d_2a_3x3")):
            weights = group.create_group(layer)
            weights.attrs["weight_names"] = [b"kernel"]
            weights["kernel"] = np.full((3, 3), number, np.float32)
    with open_source(path) as source:
        assert list(source) == ["Conv2d_1a_3x3/kernel:0", "Conv2d_2a_3x3/kernel:0"]
        assert source["Conv2d_2a_3x3/kernel:0"][0, 0] == 1
