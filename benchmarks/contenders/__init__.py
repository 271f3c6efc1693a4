"""What is timed, one module for each set of imports; each function prepares a contender. See `contender`."""
