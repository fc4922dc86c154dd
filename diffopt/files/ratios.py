"""`ratios.json`: how large what a backbone's blocks add is at each step beside the step before, for MagCache."""

from dataclasses import dataclass

from diffopt.files.json_file import JsonFile


@dataclass(frozen=True)
class MagRatiosFile(JsonFile):
    NAME = "ratios.json"
    SCHEMA = "diffopt.mag-ratios/1"

    prompts: int
    """That were run, one at a time."""
    steps: int
    """Denoising steps of each."""
    ratios: dict[str, dict[str, list[float]]]
    """By backbone and call the mean over prompts for each pass of the loop, 1 for the first. A call is diffusers' name of it
    within a step: `cond`, `uncond`, or what the pipeline has."""
    deviation: dict[str, dict[str, list[float]]]
    """Their standard deviation over prompts, 0 of one."""
