"""The processes of `torchrun` or `accelerate launch`, which share the photographs of a command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from converter.errors import RequirementError, UsageError

_LONGEST_WAIT = timedelta(days=30)  # for a process whose share takes longer


@dataclass(frozen=True, slots=True)
class Processes:
    """The place of this process among those that share the work.

    Attributes:
        number: The number of this process, from 0.
        count: The number of processes.
    """

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """True for the process that writes tables and prints results for all."""
        return self.number == 0

    def wait(self) -> None:
        """Wait until every process has come to this point.

        Raises:
            RequirementError: Another process has ended.
        """
        if self.count == 1:
            return
        import torch.distributed

        try:
            torch.distributed.monitored_barrier(timeout=_LONGEST_WAIT)
        except RuntimeError as error:
            raise self._lost("Start the same command again: it goes on where they stopped.") from error

    @contextmanager
    def explain_lost(self, next_step: str) -> Iterator[None]:
        """Name the end of another process, which shows as an error of the connection to it.

        Args:
            next_step: Advice to the user, a sentence.

        Raises:
            RequirementError: Another process has ended.
        """
        if self.count == 1:
            yield
            return
        import torch.distributed

        try:
            yield
        except RuntimeError as error:  # Gloo's has no class of its own; it begins with the source file
            if isinstance(error, torch.distributed.DistError) or "gloo/transport/" in str(error):
                raise self._lost(next_step) from error
            raise

    def _lost(self, next_step: str) -> RequirementError:
        return RequirementError(
            f"process {self.number} of {self.count}: another process has ended before its work was done. "
            f"{next_step}"
        )


ALONE = Processes()


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the processes that a launcher has started, and wait for all of them at the end.

    A launcher stops every process when one ends with an exit code other than 0, so none ends before the
    others are done.

    Args:
        device: `cpu`, `cuda` or `mps`. With `cuda` the processes of a machine take its GPUs in turn.

    Raises:
        UsageError: The environment does not say which process this is.
        RequirementError: The other processes cannot be reached.
    """
    processes = read_processes()
    if processes.count == 1:
        yield processes
        return
    import torch.distributed

    try:
        torch.distributed.init_process_group("gloo", rank=processes.number, world_size=processes.count)
    except (RuntimeError, ValueError) as error:  # among them those of torch.distributed, and no MASTER_ADDR
        raise RequirementError(
            f"process {processes.number} of {processes.count} cannot reach the others "
            f"({str(error).splitlines()[0]}). Start all of them with torchrun or accelerate launch."
        ) from error
    if device == "cuda" and torch.cuda.is_available():
        place = int(os.environ.get("LOCAL_RANK", processes.number))
        torch.cuda.set_device(place % torch.cuda.device_count())
    try:
        yield processes
        processes.wait()
    finally:
        torch.distributed.destroy_process_group()


def read_processes() -> Processes:
    """Read which process this is from RANK and WORLD_SIZE, which a launcher sets.

    Raises:
        UsageError: They name no process of several.
    """
    number, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UsageError(
            f"RANK={number} and WORLD_SIZE={count} in the environment name no process of several. Start the "
            "processes with torchrun or accelerate launch, or remove both variables."
        )
    return Processes(int(number), int(count))
