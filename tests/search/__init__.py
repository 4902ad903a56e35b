"""A random search for a broken promise of the decode loop; `python -m tests.search --help`."""
