"""An output of a conversion: written, read back, compared bit for bit, and described by a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from converter.atomic import AtomicFiles, sync
from converter.convert import to_numpy_state_dict, to_tensorflow
from converter.errors import DifferenceError, RequirementError, SourceError
from converter.formats.detect import open_source
from converter.formats.source import TensorSource
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.layer_map import Row
from converter.manifest import build_manifest, file_digest, manifest_path
from converter.mtcnn_layer_map import MtcnnNetwork, Network, in_file_order
from converter.output_names import OutputFormat, output_files
from converter.plan import MappingError
from converter.same_bits import same_bits

if TYPE_CHECKING:
    from converter.convert_file import Conversion

_FAILING = "The disk or the memory may be failing; nothing was kept."


class Output:
    """A state_dict or a part of one, on its way to its files.

    Args:
        destination: The file to write, for `tensorflow` the checkpoint prefix.
        rows: The rows of the layer map that go into it.
        output_format: Its format.
        files: The files of the conversion, in the folder of `destination`.

    Raises:
        UsageError: A file of its name exists and must not be replaced.
    """

    def __init__(
        self, destination: Path, rows: Sequence[Row], output_format: OutputFormat, files: AtomicFiles
    ) -> None:
        self.destination = destination
        self.rows = rows
        self._format = output_format
        # The manifest appears last: a process that is killed leaves none without its output.
        self._files = tuple(files.stage(file.name) for file in output_files(destination, output_format))
        self._manifest = files.stage(manifest_path(destination).name)
        self._staged = self._files[0].with_name(destination.name)
        self._hashes: dict[str, Future[str]] = {}

    def write(
        self, state_dict: Mapping[str, NDArray[Any]], network: Network, pool: ThreadPoolExecutor
    ) -> None:
        """Write its part of a state_dict; threads then hash the files and sync them to the disk.

        Raises:
            RequirementError: A file cannot be written, for example because the disk is full.
        """
        part = self._part(state_dict)
        with explain_write_errors(self.destination):
            if self._format == "tensorflow":
                write_tensor_bundle(self._staged, to_tensorflow(part, variant=network))
            elif self._format == "npy":
                from converter.formats.numpy_arrays_writer import write_numpy_pickle

                assert isinstance(network, MtcnnNetwork)  # as `check_network` says
                tensors = to_tensorflow(part, variant=network)
                write_numpy_pickle(self._staged, in_file_order(network, tensors))
            elif self._format == "safetensors":
                from converter.formats.safetensors import write_safetensors

                write_safetensors(self._staged, part)
            else:
                from converter.formats.torch.state_dict import write_state_dict

                with self._staged.open("wb") as stream:
                    write_state_dict(stream, part)
        self._hashes = {file.name: pool.submit(file_digest, file) for file in self._files}
        for file in self._files:
            pool.submit(sync, file)  # the disk is slow, and `AtomicFiles.commit` then need not wait

    def read_back(self, state_dict: Mapping[str, NDArray[Any]], advance: Callable[[int], None]) -> None:
        """Read its files and compare every tensor with the state_dict.

        Args:
            state_dict: As in `write`.
            advance: Called with the size of each equal tensor in bytes.

        Raises:
            DifferenceError: A file cannot be read, or a tensor differs.
        """
        part = self._part(state_dict)
        name = self.destination.name
        try:
            with self._open() as source:
                has_variables = self._format in ("tensorflow", "npy")
                actual: Mapping[str, NDArray[Any]] = to_numpy_state_dict(source) if has_variables else source
                if set(actual) != set(part):
                    raise DifferenceError(f"{name}: it reads back with other tensors. {_FAILING}")
                for key, expected in part.items():
                    if not same_bits(actual[key], expected):
                        problem = f"tensor {key!r} reads back different from what was written"
                        raise DifferenceError(f"{name}: {problem}. {_FAILING}")
                    advance(expected.nbytes)
        except (SourceError, MappingError) as error:
            raise DifferenceError(f"{name}: it cannot be read back. {_FAILING} {error}") from error

    def write_manifest(self, conversion: Conversion) -> dict[Path, str]:
        """Write its manifest, and return the SHA-256 of each of its files, the manifest included.

        Raises:
            RequirementError: The manifest cannot be written.
        """
        digests = {name: future.result() for name, future in self._hashes.items()}
        with explain_write_errors(self.destination):
            self._manifest.write_bytes(build_manifest(conversion, self.rows, digests))
            digests[self._manifest.name] = file_digest(self._manifest)
        return {self.destination.with_name(name): digest for name, digest in digests.items()}

    def _part(self, state_dict: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {row.key: state_dict[row.key] for row in self.rows}

    def _open(self) -> TensorSource:
        if self._format != "pt":
            return open_source(self._files[0])
        from converter.formats.torch.state_dict import StateDictFile

        return StateDictFile(self._staged, verify=False)


@contextmanager
def explain_write_errors(destination: Path) -> Iterator[None]:
    """Turn an OSError, which names a hidden file, into an error about the output.

    Raises:
        RequirementError: The output cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise RequirementError(
            f"{destination}: cannot be written ({error.strerror or error}); nothing was kept. Make room on "
            "the disk, or give another name with -o."
        ) from error
