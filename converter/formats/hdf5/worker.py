"""The process in which HDF5 files are read: libhdf5 loops and crashes on damaged files, and only this falls.

It is started as `python -m converter.formats.hdf5.worker FD` by `hdf5_process`, which alone talks to it, and
imports nothing but h5py. It forks a worker for each file: the import, most of what a start costs, is paid
once, and a clean process of one thread may be forked at any time, which the process of a user may not.

The orders that come over the socket FD and the frames that a worker speaks in are those of `hdf5_frames`. A
worker sets limits on itself that the kernel enforces: processor time and memory.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
from typing import Any

import h5py

from converter.formats.hdf5.frames import NUMBER, receive, receive_exactly, send

_OPEN_SECONDS = 1.0  # of processor time; 490 weights take 0.15
_TENSOR_SECONDS = 0.01
_BYTES_PER_SECOND = 20 << 20  # slower than any gzip
_SPARE_MEMORY = 200 << 20
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32"}  # H5Zpublic.h, H5Z_FILTER_...
_MAX_RANK = 32  # H5S_MAX_RANK


class _RefusalError(Exception):
    """What is wrong with a file: the problem, the tensor at fault, and what to do."""

    def __init__(self, problem: str, *, tensor: str | None = None, next_step: str | None = None) -> None:
        super().__init__(problem)
        self.message = {"problem": problem, "tensor": tensor, "next_step": next_step}


def _serve(control: socket.socket) -> None:
    """Carry out orders until the other side closes the connection."""
    workers: set[int] = set()
    try:
        while True:
            order, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not order:
                return
            if order == b"o":
                (descriptor,) = descriptors
                worker = os.fork()
                if worker == 0:
                    control.close()
                    _work(socket.socket(fileno=descriptor))
                os.close(descriptor)
                workers.add(worker)
                control.sendall(NUMBER.pack(worker))
            else:
                (worker,) = NUMBER.unpack(receive_exactly(control, NUMBER.size))
                workers.remove(worker)
                os.kill(worker, signal.SIGKILL)
                control.sendall(NUMBER.pack(os.waitpid(worker, 0)[1]))
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


def _work(connection: socket.socket) -> None:
    """Serve one file, and end the process."""
    status = 1
    try:
        path = os.fsdecode(bytes.fromhex(receive(connection)))
        _limit(os.stat(path).st_size)  # noqa: PTH116 - pathlib stays out of a process this small
        reader = _answer(connection, lambda: _Reader(_open(path)))
        if reader is not None:
            send(connection, reader.weights)
            while (number := receive(connection)) is not None:
                _allow(_TENSOR_SECONDS + reader.size(number) / _BYTES_PER_SECOND)
                array = _answer(connection, lambda number=number: reader.read(number))
                if array is not None:
                    send(connection, array.nbytes)
                    connection.sendall(array.reshape(-1).view("u1").data)
        status = 0
    finally:
        os._exit(status)


def _answer(connection: socket.socket, work: Any) -> Any:
    """Do what was asked; where it fails, send what is wrong instead."""
    try:
        return work()
    except _RefusalError as refusal:
        send(connection, refusal.message)
    except MemoryError:
        send(connection, {"problem": "asks for more memory than the file holds"})
    except (RuntimeError, OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        send(connection, {"problem": f"damaged HDF5 ({str(error)[:300]})"})
    return None


def _limit(file_size: int) -> None:
    """Limit the memory and the processor time of this process, which ends where it exceeds the latter."""
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123
            present = int(statm.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:  # only Linux tells: elsewhere the sizes that the parent checks have to do
        pass
    else:
        most = present + 2 * file_size + _SPARE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The default action of SIGPROF ends the process even where it never leaves libhdf5.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, _OPEN_SECONDS)


def _allow(seconds: float) -> None:
    """Allow this process more processor time."""
    remaining, _ = signal.getitimer(signal.ITIMER_PROF)
    signal.setitimer(signal.ITIMER_PROF, remaining + seconds)


def _open(path: str) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise _RefusalError(f"cannot be read as HDF5 ({str(error)[:300]})") from None


class _Reader:
    """The weights that the Keras index of an HDF5 file names.

    Args:
        file: The file, open.

    Raises:
        _RefusalError: It holds no Keras weights, or what is no plain array.
        RuntimeError, OSError, KeyError, TypeError, ValueError, AttributeError: h5py cannot make sense of it.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._datasets: list[Any] = []
        self.weights = []
        for name, dataset in self._index().items():
            self._check(name, dataset)
            # Bytes that lie in the file as they are in memory need not come through here; other layouts have
            # no offset.
            self.weights.append([name, dataset.dtype.str, dataset.shape, dataset.id.get_offset()])
            self._datasets.append(dataset)

    def size(self, number: int) -> int:
        """Bytes of a weight."""
        return int(self._datasets[number].nbytes)

    def read(self, number: int) -> Any:
        """Read one weight into memory, as a C-contiguous array."""
        return self._datasets[number][()]

    def _index(self) -> dict[str, Any]:
        root = self._get(self._file, "model_weights") if "model_weights" in self._file else self._file
        indices = ("layer_names", "layer_names0")
        if not isinstance(root, h5py.Group) or not any(index in root.attrs for index in indices):
            raise _RefusalError(
                "no Keras weights inside", next_step="Give a file written by model.save or save_weights"
            )
        datasets: dict[str, Any] = {}
        for layer in self._names(root, "layer_names"):
            group = self._get(root, layer)
            if not isinstance(group, h5py.Group):
                raise _RefusalError("a layer named in the file, but not there", tensor=layer)
            for name in self._names(group, "weight_names"):
                dataset = self._get(group, name)
                if not isinstance(dataset, h5py.Dataset):
                    raise _RefusalError("named in the file, but not there", tensor=name)
                if name in datasets:
                    raise _RefusalError("there twice", tensor=name)
                datasets[name] = dataset
        return datasets

    def _get(self, group: Any, name: str) -> Any:
        """Find an object by a path of hard links; a soft or external link may lead anywhere."""
        for part in name.split("/"):
            if not isinstance(group, h5py.Group):
                return None
            link = group.get(part, getlink=True) if part else None
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise _RefusalError("a link to elsewhere, which Keras does not write", tensor=name)
            group = group[part]
        return group

    def _names(self, group: Any, attribute: str) -> list[str]:
        # Keras splits a list over attribute0, attribute1, ... where it exceeds HDF5's 64 KiB for a header.
        if attribute in group.attrs:
            pieces = [group.attrs[attribute]]
        else:
            pieces = []
            while f"{attribute}{len(pieces)}" in group.attrs:
                pieces.append(group.attrs[f"{attribute}{len(pieces)}"])
        names = []
        for piece in pieces:
            for name in piece:
                if not isinstance(name, bytes | str):
                    raise _RefusalError(f"{attribute} holds a {type(name).__name__}, not names")
                try:
                    text = name.decode() if isinstance(name, bytes) else name
                    text.encode()  # h5py lets bytes that are not UTF-8 pass as surrogates
                except UnicodeError:
                    raise _RefusalError(f"a name in {attribute} is not UTF-8") from None
                names.append(text)
        return names

    def _check(self, name: str, dataset: Any) -> None:
        """Check that a dataset is a plain array that lies whole in this file."""
        if dataset.external or dataset.is_virtual:
            raise _RefusalError("its data is kept in another file", tensor=name)
        if dataset.dtype.kind not in "fiu":
            raise _RefusalError(f"not numeric ({dataset.dtype})", tensor=name)
        if dataset.shape is None or len(dataset.shape) > _MAX_RANK:
            raise _RefusalError("it has no shape that an array can have", tensor=name)
        # A float of the right size but with another exponent bias is one that HDF5 converts without a word.
        if not dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype)):
            raise _RefusalError("its element type is not a standard one", tensor=name)
        properties = dataset.id.get_create_plist()
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        unknown = [number for number in filters if number not in _FILTERS]
        if unknown:
            known = ", ".join(_FILTERS.values())
            raise _RefusalError(f"filter number {unknown[0]} is not one of {known}", tensor=name)
        # What was never stored reads as zeros, and costs a file nothing.
        whole = True
        if dataset.chunks is not None:
            wanted = 1
            for extent, chunk in zip(dataset.shape, dataset.chunks, strict=True):
                wanted *= -(-extent // chunk)
            whole = dataset.id.get_num_chunks() == wanted
        if not filters:
            stored = dataset.id.get_storage_size()
            exact = dataset.chunks is None
            whole &= stored == dataset.nbytes if exact else stored >= dataset.nbytes
        if not whole:
            raise _RefusalError("not all of its data is stored in the file", tensor=name)


def main() -> None:
    """Serve; before that, read a small file, so that every worker has what is put off until then."""
    with h5py.File("warm-up", "w", driver="core", backing_store=False) as file:
        file.attrs["layer_names"] = [b"layer"]
        file.create_dataset("layer/weight", data=[0.0])
        file["layer"].attrs["weight_names"] = [b"weight"]
        _Reader(file).read(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that reads the answers
    gc.disable()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
