"""A random search for a broken guarantee of the decode loop; `python -m tests.search --help`."""
