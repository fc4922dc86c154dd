"""A run's directory as it was before Hydra came: a refused run leaves it so, though it be that of a finished one."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

LOG, SETTINGS = "diffopt.log", ".hydra"


@dataclass(frozen=True)
class Untouched:
    directory: Path
    there: tuple[Path, ...]
    """Of the directory and those above it, the ones that existed."""
    logged: int | None
    """Bytes of its log; None where it had none."""
    settings: dict[str, bytes]
    """What Hydra has written of an earlier run."""

    @classmethod
    def of(cls, directory: Path) -> "Untouched":
        log, folder = directory / LOG, directory / SETTINGS
        there = tuple(p for p in (directory, *directory.parents) if p.exists())
        settings = {p.name: p.read_bytes() for p in sorted(folder.glob("*.yaml")) if p.is_file()}
        return cls(directory, there, log.stat().st_size if log.is_file() else None, settings)

    def restore(self) -> None:
        """Take away what has come since."""
        log, folder = self.directory / LOG, self.directory / SETTINGS
        if self.logged is None:
            log.unlink(missing_ok=True)
        elif log.is_file():
            os.truncate(log, self.logged)
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
        if self.settings:
            folder.mkdir(exist_ok=True)
            for name, content in self.settings.items():
                (folder / name).write_bytes(content)
        for path in (self.directory, *self.directory.parents):
            if path in self.there or any(path.iterdir()):
                break
            path.rmdir()
