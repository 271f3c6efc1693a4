"""Files in and out: exposures, camera raws, and the program store."""
