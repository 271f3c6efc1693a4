"""What a program's exposures know together: a group's small arrays in, one result for the group back into the store."""

from skylevel.errors import StoreError
from skylevel.io.names import number_of
from skylevel.io.records import stacked_small
from skylevel.io.store import ProgramStore
from skylevel.program.ledger import Group
from skylevel.program.plan import Exposure
from skylevel.program.tasks import require_place, require_version


def combine_group(group: Group, members: list[Exposure], key: str, url: str, version: str) -> str:
    """Combine a group of measured exposures, and store the result under the key of its members.

    Parameters
    ----------
    group : tuple of str
        Node and name.
    members : list of Exposure
        Measured, of one recipe.
    key : str
        Of the members; part of their export keys, so that one that joins later makes the group's outputs stale.
    url : str
        Of the store.
    version : str
        Of skylevel, where the plan was made.

    Returns
    -------
    str
        What was combined, in words.

    Raises
    ------
    SkylevelError
        What is stored of a member is damaged, or cannot be combined; or this worker runs another version.
    """
    require_version(version)
    store, job, recipe = ProgramStore(url), members[0].job, members[0].recipe
    node = group[0]
    in_order = sorted((member for member in members if member.place), key=lambda member: member.name)
    places = [require_place(member, store) for member in in_order]
    try:
        records = store.read_records(places)
        together = store.open_node(node).isel(exposure=[place.index for place in places])
        named = together.assign_coords(exposure=[member.name for member in in_order])
        result = job.combine(named.assign(stacked_small([records[place] for place in places])), recipe).load()
    except (OSError, ValueError, ArithmeticError, RuntimeError, KeyError) as error:
        raise StoreError(f"{store.name}: the group {node}/{group[1]} cannot be combined: {error}") from error
    store.write_group(node, group[1], result, key)
    return f"combined {number_of(len(places), 'exposure')}" + str(result.attrs.get("finding", ""))
