"""A whole program of exposures: plan, run, cluster."""
