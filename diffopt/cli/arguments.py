"""The sub-commands' argument parser: its complaints are errors like all others."""

import argparse
from typing import NoReturn

from diffopt.errors import ConfigError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; `{self.prog} --help` shows how")
