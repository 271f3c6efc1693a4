"""The outputs of a program written again, from Python."""

from os import PathLike, fspath
from typing import TYPE_CHECKING

from skylevel.program.notebook_bar import notebook_bar
from skylevel.program.run import ProgramResult, Progress, Target, export_program

if TYPE_CHECKING:
    from distributed import Client


def export(
    output: str | PathLike[str] = "skylevel-output",
    *,
    client: "Client | None" = None,
    cluster: str = "local",
    workers: int | None = None,
    progress: Progress | None = None,
) -> ProgramResult:
    """Write the FITS files of every measured exposure again, from the store and the inputs, without measuring.

    Parameters
    ----------
    output : str or path-like
        Folder or URL of a program that was run.
    client : distributed.Client, optional
        Where to run; by default a cluster is started as `cluster` says, and closed again.
    cluster : str
        ``local``, ``slurm``, or a scheduler's address.
    workers : int, optional
        Processes (local) or jobs at the most (slurm).
    progress : callable, optional
        Called with how many exposures are finished, and of how many. By default a bar, where this runs in a notebook.

    Returns
    -------
    ProgramResult
        An exposure that was never measured, or cannot be written, is in ``failed`` with its reason.

    Raises
    ------
    StoreError
        No program was run into `output`.
    ClusterError
        There is nowhere to run.
    """
    target = Target(client=client, cluster=cluster, workers=workers)
    return export_program(fspath(output), target=target, progress=progress or notebook_bar())
