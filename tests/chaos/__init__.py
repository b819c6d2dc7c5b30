"""Random faults against a real server and real workers, from a seed; the history's checker judges what came of it."""
