"""Work done by a cluster's workers: an exposure each, or one by all of them."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed import Client, Future, KilledWorker

from skylevel.errors import DIED, SchedulerLostError, WorkerDiedError
from skylevel.io.names import number_of
from skylevel.io.store import ProgramStore
from skylevel.program.cluster import check_workers, dashboard, worker_memory
from skylevel.program.combine import combine_group
from skylevel.program.fan_out import fan_out, require_scheduler, result_of
from skylevel.program.forecast import Need, impossible, too_large
from skylevel.program.ledger import Group, Steps
from skylevel.program.plan import Exposure
from skylevel.program.sealed import open_sealed, seal
from skylevel.program.tasks import (
    Record,
    Where,
    export_blocks,
    in_blocks,
    level_exposure,
    measure,
    read_frame,
    require_place,
)
from skylevel.program.verify import damage_of_store
from skylevel.program.workers import Outcome
from skylevel.version import __version__

# Enough in flight that no worker waits for the driver, few enough that the scheduler stays small.
_IN_FLIGHT_PER_THREAD = 4
_COUNT_WORKERS_EVERY = 5.0


class ClusterWorkers:
    """Work done by a cluster's workers; by all of them together, where an exposure is larger than each."""

    def __init__(self, client: Client, url: str, exposures: Sequence[Exposure], needs: Mapping[str, Need]) -> None:
        self._client, self._url = client, url
        self._in_flight = _in_flight(client)
        available = worker_memory(client)
        self.refused = impossible(exposures, needs, available)
        self._large = set(too_large(needs, available))
        # Keys of an earlier run into the same scheduler must not answer for this one.
        self._token = uuid4().hex[:8]

    @property
    def dashboard(self) -> str:
        """Address of the scheduler's page; empty where none answers."""
        return dashboard(self._client)

    def run(
        self, exposures: Sequence[Exposure], steps: Mapping[str, Steps], group_keys: Mapping[str, str]
    ) -> Generator[Outcome, None, None]:
        """Do some steps of some exposures; see `Workers`."""

        def submit(exposure: Exposure) -> Future:
            call = partial(level_exposure, exposure, self._where(exposure, group_keys), steps[exposure.name])
            key = f"level-{self._token}-{exposure.name}-{steps[exposure.name].value}"
            return self._client.submit(open_sealed, seal(call), key=key, pure=False)

        small = [exposure for exposure in exposures if exposure.name not in self._large]
        # Closed before the client, whatever ends this: what has not begun is taken back while that can be said.
        with closing(fan_out(self._client, submit, small, in_flight=self._in_flight)) as outcomes:
            for exposure, outcome in outcomes:
                yield exposure, _told(outcome)
        for exposure in exposures:
            if exposure.name in self._large:
                yield exposure, self._in_blocks(exposure, steps[exposure.name], self._where(exposure, group_keys))

    def combine(self, group: Group, members: list[Exposure], key: str, url: str) -> str:
        """Combine a group; see `Workers`."""
        call = partial(combine_group, group, members, key, url, __version__)
        return str(self._result(call))

    def _where(self, exposure: Exposure, group_keys: Mapping[str, str]) -> Where:
        return Where(self._url, __version__, group_keys.get(exposure.name))

    def _in_blocks(self, exposure: Exposure, steps: Steps, where: Where) -> Record | Exception:
        """Do an exposure with all workers: the same steps, on Dask arrays."""
        record = Record(exposure.name)
        try:
            if Steps.MEASURE in steps or (Steps.REPAIR in steps and self._is_damaged(exposure)):
                check_workers(self._client)
                frame = in_blocks(read_frame(Path(exposure.source), exposure), exposure)
                n_blocks = len(frame.chunks["y"])
                record.say(f"opened {exposure.job.describe(frame)}, in {number_of(n_blocks, 'block')} of rows")
                measure(exposure, frame, ProgramStore(self._url), record, steps, self._compute)
            if Steps.EXPORT in steps:
                call = partial(export_blocks, exposure, where, record)
                record = self._result(call)
        except SchedulerLostError:
            raise
        except Exception as error:
            require_scheduler(self._client)
            return _told(error)
        return record

    def _is_damaged(self, exposure: Exposure) -> bool:
        store = ProgramStore(self._url)
        place = require_place(exposure, store)
        return bool(damage_of_store(exposure, store.read_records([place]).get(place), store))

    def _compute(self, delayed: list[Any]) -> Sequence[Any]:
        require_scheduler(self._client)
        return [result_of(future) for future in self._client.compute(delayed)]

    def _result(self, call: Callable[[], Any]) -> Any:
        """Make a call on some worker."""
        require_scheduler(self._client)
        return result_of(self._client.submit(open_sealed, seal(call), pure=False))


def _told(outcome: Any) -> Any:
    """Return an outcome; for a worker that died again and again, in our own words."""
    return WorkerDiedError(DIED) if isinstance(outcome, KilledWorker) else outcome


def _in_flight(client: Client) -> Callable[[], int]:
    """Return what says how many exposures may be in flight, by the workers there are, counted every few seconds."""
    most = _IN_FLIGHT_PER_THREAD * check_workers(client)
    counted = time.monotonic()

    def now() -> int:
        nonlocal most, counted
        if time.monotonic() - counted > _COUNT_WORKERS_EVERY:
            require_scheduler(client)
            most = _IN_FLIGHT_PER_THREAD * max(sum(client.nthreads().values()), 1)
            counted = time.monotonic()
        return most

    return now
