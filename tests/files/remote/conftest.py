"""The stores that addresses are tested on."""

from support.files.stores import at_stdin, store  # noqa: F401 (fixtures)
