"""A cluster on this machine that tests can use and break, and the checks of what it stored."""
