"""Several machines that train one model: which of them this is, and where they meet. Imports no torch."""

import os

from diffopt.errors import PlanError
from diffopt.groups.train import Train, TrainView

NUMBER = "DIFFOPT_MACHINE"
"""The user's variable: 0 on the first machine, which writes what they make, 1 on the second, and so on."""
PORTS = range(20_000, 30_000)
"""Those that a Slurm job takes one of, by its number."""


def number(train: Train | TrainView | None) -> int:
    """Of this machine, from 0, which is also that of a training on one. Raises PlanError where nothing tells it."""
    if train is None or train.machines == 1:
        return 0
    given = os.environ.get(NUMBER) or os.environ.get("SLURM_NODEID", "")
    if not given.isdecimal() or int(given) >= train.machines:
        raise PlanError(
            f"{NUMBER}: does not tell which of the train.machines={train.machines} this is (got {given or 'nothing'}); set it "
            f"to 0 on the first and to 1 to {train.machines - 1} on the others, or start them by Slurm's srun"
        )
    return int(given)


def rendezvous(train: Train | TrainView) -> str | None:
    """HOST:PORT of the first machine, None of a training on one. Raises PlanError where nothing tells it."""
    if train.machines == 1 or train.rendezvous:
        return train.rendezvous
    host, job = os.environ.get("SLURM_LAUNCH_NODE_IPADDR"), os.environ.get("SLURM_JOB_ID", "")
    if not host or not job.isdecimal():
        raise PlanError(
            f"train.rendezvous: is where the train.machines={train.machines} meet, which Slurm alone tells by itself (got "
            "null); set it to HOST:PORT of the first machine"
        )
    return f"{host}:{PORTS[int(job) % len(PORTS)]}"
