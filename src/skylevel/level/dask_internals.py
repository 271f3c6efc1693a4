"""What is used of Dask beyond its public names; pyproject.toml bounds Dask to the versions this was tested with."""

from typing import TYPE_CHECKING, Any

from dask._task_spec import TaskRef, convert_legacy_graph
from dask.core import flatten

if TYPE_CHECKING:
    import dask.array as da


def under_new_names(image: "da.Array") -> "da.Array":
    """Return the same image under new names, made once more when it is computed.

    As ``dask.graph_manipulation.clone``, which leaves tasks under their old names (dask#12455).
    """
    graph = image.dask.to_dict()
    # What a cluster holds already is referred to, not made.
    names = {key: _renamed(key) for key, task in graph.items() if not isinstance(task, TaskRef)}
    if next(flatten(image.__dask_keys__())) not in names:
        return image
    tasks = convert_legacy_graph(graph)
    again = {name: tasks[key].substitute(names, key=name) for key, name in names.items()}
    held = {key: task for key, task in graph.items() if key not in names}
    return type(image)(again | held, _renamed(image.name), image.chunks, meta=image._meta)


def _renamed(key: Any) -> Any:
    """Return a task's key, or an array's name, that no other has."""
    return (_renamed(key[0]), *key[1:]) if isinstance(key, tuple) else f"{key}-again"
