"""What can be done with an exposure: a job is one object from end to end, and everything else asks it.

A job of one's own is an object with what `Job` names, given to `register` in every process that runs it.
"""

from skylevel.jobs.channels import ChannelsJob
from skylevel.jobs.job import Alone, Facts, Job, Measured, Product, Writing
from skylevel.jobs.rows import RowsJob
from skylevel.recipes import RECIPES, Recipe

__all__ = ["JOBS", "Alone", "Facts", "Job", "Measured", "Product", "Writing", "job_for", "job_of", "register"]

JOBS: dict[str, Job] = {}


def register(job: Job) -> Job:
    """Make a job known, under its recipe's name, to this process."""
    JOBS[job.recipe.name] = job
    RECIPES[job.recipe.name] = job.recipe
    return job


def job_of(recipe: Recipe) -> Job:
    """Return the job whose settings these are."""
    return JOBS[recipe.name]


def job_for(kind: str) -> Job | None:
    """Return the first job that takes frames of a kind."""
    return next((job for job in JOBS.values() if job.kind == kind), None)


register(RowsJob())
register(ChannelsJob())
