"""Fan items out over a cluster, a bounded number at a time, and never lose one."""

from asyncio import CancelledError
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

from distributed import Client, Future, KilledWorker, as_completed

from skylevel.errors import SchedulerLostError

Item = TypeVar("Item")
Outcome = Any

# Seconds within which a scheduler that lives says so, however much it has to do.
_ANSWERS_WITHIN = 30
GONE = "the scheduler is gone; what was done is stored: run the same command again"


def fan_out(
    client: Client, submit: Callable[[Item], Future], items: Iterable[Item], *, in_flight: Callable[[], int]
) -> Generator[tuple[Item, Outcome], None, None]:
    """Run every item, and yield each with its result, or with the exception that ended it, as they finish.

    Parameters
    ----------
    client : Client
    submit : callable
        Submits an item's task; its result is small.
    items : iterable
    in_flight : callable
        Says how many items the scheduler may know of now. Each one is released as soon as it is done, so that the
        death of a worker re-runs nothing that was finished.

    Raises
    ------
    SchedulerLostError
        The scheduler is gone.

    Notes
    -----
    An item whose worker died again and again may have been the guilty one's neighbour: it is tried once more at the
    end, alone, before that counts.
    """
    suspects: list[Item] = []
    with closing(_run(client, submit, items, in_flight)) as outcomes:
        for item, outcome in outcomes:
            if isinstance(outcome, KilledWorker):
                suspects.append(item)
            else:
                yield item, outcome
    yield from _run(client, submit, suspects, lambda: 1)


def _run(
    client: Client, submit: Callable[[Item], Future], items: Iterable[Item], in_flight: Callable[[], int]
) -> Generator[tuple[Item, Outcome], None, None]:
    waiting = iter(items)
    running: dict[Any, Item] = {}
    # Without results: where the scheduler dies while one is fetched, as_completed would never tell of that future.
    completed = as_completed([], loop=client.loop)

    def start() -> None:
        _require_open(client)
        for item in islice(waiting, max(in_flight() - len(running), 0)):
            future = submit(item)
            running[future.key] = item
            completed.add(future)

    try:
        start()
        for future in completed:
            item = running.pop(future.key)
            outcome = _outcome(future)
            future.release()
            start()
            yield item, outcome
    finally:
        if running:
            # Left early, by an error or the user: what has not begun is not begun.
            client.cancel([*completed.futures], force=True)


def require_scheduler(client: Client) -> None:
    """See that the scheduler answers: what fails without one has not failed, and what is asked of none never ends.

    Raises
    ------
    SchedulerLostError
        The scheduler is gone.
    """
    _require_open(client)
    try:
        client.sync(client.scheduler.identity, callback_timeout=_ANSWERS_WITHIN)
    except OSError as error:
        raise SchedulerLostError(GONE) from error


def _require_open(client: Client) -> None:
    """Refuse a client that has given its scheduler up: it would take what is submitted, and never tell of it."""
    if client.status in ("closing", "closed"):
        raise SchedulerLostError(GONE)


def result_of(future: Future) -> Any:
    """Return a future's result, or raise what ended it.

    Raises
    ------
    SchedulerLostError
        The scheduler is gone.
    """
    outcome = _outcome(future)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _outcome(future: Future) -> Outcome:
    try:
        return future.result()
    except (Exception, CancelledError) as error:
        if future.status == "error":
            return error
        raise SchedulerLostError(GONE) from error
