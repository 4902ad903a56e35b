"""Programs that nobody has read, run behind walls."""
