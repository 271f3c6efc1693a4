"""Level a program with workers that a batch system starts: workers.py CLUSTER JOBS INPUT OUTPUT."""

import sys

import dask_jobqueue
from dask.distributed import Client

import skylevel as sl

# SITE: what dask-jobqueue asks the batch system for, a job; see its documentation for what else there is.
JOB = {
    "cores": 1,
    "processes": 1,
    "memory": "4GiB",
    "walltime": "01:00:00",
    "worker_extra_args": ["--no-dashboard", "--dashboard-address=127.0.0.1:0"],
    # On a file system that every node sees: the run's certificate is put there, readable by you alone.
    "shared_temp_directory": ".",
}


def main(kind: str, jobs: str, inputs: str, output: str) -> int:
    """Start the jobs, level what there is, and say what became of it."""
    options = {"scheduler_options": {"dashboard_address": "127.0.0.1:0"}, "security": True}
    with getattr(dask_jobqueue, kind)(**JOB, **options) as cluster, Client(cluster) as client:
        cluster.scale(jobs=int(jobs))
        print(f"dashboard {client.dashboard_link}")
        result = sl.run(inputs, output, client=client)
    for reason in result.failed.values():
        print(f"failed: {reason}", file=sys.stderr)
    print(f"done {len(result.done)}, done before {len(result.skipped)}, failed {len(result.failed)}")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
