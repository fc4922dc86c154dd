"""The sound of videos on disk: a WAV file beside each. For people, never judged."""

import wave
from pathlib import Path
from typing import Any

import numpy as np


def save(out: Path, first: int, pipe: Any, many: int) -> None:
    """Write `NNN.wav` of prompt `first` and on, where the pipeline has just drawn sound: 16 bits, for `many` of its batch."""
    drawn = getattr(pipe, "sound", None)
    if drawn is None:
        return
    for i, channels in enumerate(drawn[:many].float().cpu().numpy(), first):
        with wave.open(str(out / f"{i:03}.wav"), "wb") as file:
            file.setparams((len(channels), 2, pipe.sound_rate, 0, "NONE", ""))
            file.writeframes((channels.T.clip(-1, 1) * (2**15 - 1)).round().astype(np.int16).tobytes())
