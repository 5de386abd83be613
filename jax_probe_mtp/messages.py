"""How the commands say that something is wrong: one line on stderr, exit status 2."""

import argparse
from typing import NoReturn


def one_line(error: object) -> str:
    """A message without line breaks, whatever an error or a file put into it."""
    return " ".join(str(error).split()) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, without the usage text around it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")
