"""A sweep on a real Slurm: a controller and two nodes on this machine, a job that fails, and a node that is killed.

    python tests/soak_slurm.py            # and a training in shards over both nodes; --training does that alone

The sweep has to end with every other job done, the job of the killed node begun again by Slurm and gone on from its finished
steps, and a store that is one process's. Needs Debian's slurm-wlm and munge; where they lack it says so and ends with 0. Exit
code 1 where something is lost. There is no accounting database: submitit then waits for ever for a job that Slurm itself ends.
"""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from soak_store import FEW, check, content, ended, start

NODES = ("n1", "n2")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
FIELDS = [*FEW, "export=null", "calib.chunk=1", "calib.batch_size=1"]
ALPHAS = ("0.2", "7", "0.5", "0.8")
"""Of which one is refused."""
CONF = """
ClusterName=soak
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=2
SlurmdParameters=config_overrides
SlurmdTimeout=15
ReturnToService=2
JobRequeue=1
"""


def free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Cluster:
    root: Path
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def begin(self) -> None:
        for name in ("munge", "state", *(f"spool.{n}" for n in NODES)):
            (self.root / name).mkdir(mode=0o755)
        key = self.root / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        conf = CONF.format(root=self.root, user=getpass.getuser(), controller=free())
        for node in NODES:
            conf += f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={free()} CPUs=1 RealMemory=4000\n"
        conf += f"PartitionName=soak Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP\n"
        (self.root / "slurm.conf").write_text(conf)
        os.environ["SLURM_CONF"] = str(self.root / "slurm.conf")
        self._start("munged", "-F", f"--key-file={key}", *(f"--{x}={self.root}/munge/{y}" for x, y in MUNGE), "--force")
        until(lambda: (self.root / "munge" / "socket").exists(), "munged")
        self._start("slurmctld", "-D", "-i")
        for node in NODES:
            self.node(node)
        until(lambda: self.states() == ["idle"] * len(NODES), "the nodes")

    def node(self, name: str) -> None:
        self._start("slurmd", "-D", "-N", name, called=name)

    def _start(self, *command: str, called: str = "") -> None:
        log = (self.root / f"{called or command[0]}.out").open("ab")
        self.daemons[called or command[0]] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def states(self) -> list[str]:
        """Of the nodes."""
        said = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], capture_output=True, text=True).stdout
        return said.split()

    def kill(self, node: str) -> None:
        """As a power loss: the daemon first, then what watches over the jobs, which would tell of their end, and the jobs."""
        self.daemons.pop(node).kill()
        jobs = of_node(node)
        for process in [*watching(jobs), *jobs]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def end(self) -> None:
        subprocess.run(["scancel", "-u", getpass.getuser()], capture_output=True, timeout=60)
        for node in NODES:
            for process in of_node(node):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()


MUNGE = (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))


def of_node(node: str) -> list[int]:
    """Processes that Slurm has started there: its variables are in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            mine = os.environ["SLURM_CONF"].encode()
            if b"SLURMD_NODENAME=" + node.encode() in words and any(w.endswith(mine) for w in words):
                found.append(int(path.parent.name))
    return found


def watching(jobs: list[int]) -> list[int]:
    """Slurm's step daemons, which are above the jobs."""
    found = []
    for process in jobs:
        with suppress(OSError):
            while process > 1:
                about = Path(f"/proc/{process}/stat").read_text()
                if "(slurmstepd)" in about:
                    found.append(process)
                process = int(about.rpartition(")")[2].split()[1])
    return list(dict.fromkeys(found))


def until(holds: Callable[[], object], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"{what}: not there after {seconds:.0f} s")
        time.sleep(0.2)


@contextmanager
def cluster() -> Iterator[Cluster]:
    root = Path(tempfile.mkdtemp(prefix="diffopt-slurm-"))
    root.chmod(0o755)
    made = Cluster(root)
    try:
        made.begin()
        yield made
    except SystemExit:
        for log in sorted(root.glob("*.log")) + sorted(root.glob("*.out")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
        raise
    finally:
        made.end()
        shutil.rmtree(root, ignore_errors=True)


def busy(root: Path) -> str | None:
    """A node whose job has made something and is not done."""
    if not list((root / "store").glob("calib-chunk/*/record.json")):
        return None
    said = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%N"], capture_output=True, text=True).stdout.split()
    return next((n for n in NODES if n in said and of_node(n)), None)


def sweep(root: Path, slurm: Cluster) -> None:
    asked = [
        "+recipe=emoji_int8_submitit",
        *FIELDS,
        "hydra.sweep.dir=sweep",
        f"calib.alpha={','.join(ALPHAS)}",
        "hydra/launcher=submitit_slurm",
    ]
    asked += ["hydra.launcher.partition=soak", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"]
    asked += ["hydra.launcher.gpus_per_node=null"]
    running = start(asked, root, root / "store")
    victim: list[str] = []
    until(lambda: victim.extend(filter(None, [busy(root)])) or victim or running.poll() is not None, "a job that runs", 600)
    if not victim:
        ended(running, "the sweep, before a node was killed")
    slurm.kill(victim[0])
    print(f"{victim[0]} is killed", flush=True)
    until(lambda: any(s.startswith("down") for s in slurm.states()), "the controller's notice of it")
    slurm.node(victim[0])
    said, _ = running.communicate(timeout=1800)
    text = said.decode(errors="replace")
    if running.returncode != 1 or "1 of 4 jobs failed" not in text or "Traceback" in text:
        sys.exit(f"the sweep ended with {running.returncode}: {text[-3000:]}")
    jobs = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True).stdout
    again = [line for line in jobs.splitlines() if "Restarts=0" not in line]
    done = sorted(p.parent.name for p in (root / "sweep").glob("*/run.json"))
    if not again or done != [str(i) for i, a in enumerate(ALPHAS) if a != "7"]:
        sys.exit(f"{len(again)} jobs were started again, and these are done: {done}\n{text[-3000:]}")
    print(f"{len(done)} of {len(ALPHAS)} jobs done, 1 refused, {len(again)} started again by Slurm", flush=True)


TRAIN = [
    *("train.steps=2", "train.warmup=1", "train.batch_size=4", "train.data.size=8", "train.data.batch_size=8"),
    *("train.data.chunk=8", "train.data.steps=2", "train.validation=null", "train.optimizer=sgd", "train.parallel=fsdp"),
]


def training(root: Path) -> None:
    """A model in shards over both nodes, which meet by what Slurm tells them."""
    asked = ["+recipe=emoji_fp4_qad", *FEW, *TRAIN, "train.processes=1", "train.machines=2", "--multirun"]
    asked += ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=soak", "hydra.launcher.cpus_per_task=1"]
    asked += ["hydra.launcher.mem_gb=null", "hydra.launcher.gpus_per_node=null", "hydra.launcher.nodes=2"]
    ended(start([*asked, "hydra.sweep.dir=trained"], root, root / "store"), "a training on two nodes")
    told = json.loads((root / "trained" / "0" / "train" / "training.json").read_text())
    if (told["parallel"], len(told["peak_bytes"]), told["steps"]) != ("fsdp", 2, 2):
        sys.exit(f"a training on two nodes: {told['parallel']}, {len(told['peak_bytes'])} processes, {told['steps']} steps")
    print("a training in shards over two nodes: 2 processes, 2 steps", flush=True)


def main() -> None:
    if lacking := [p for p in PROGRAMS if not shutil.which(p)]:
        print(f"not run: this machine lacks {', '.join(lacking)}; apt-get install slurm-wlm munge")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the daemons end with it
    with cluster() as slurm, tempfile.TemporaryDirectory(prefix="diffopt-soak-") as folder:
        root = Path(folder)
        (root / "few.txt").write_text("a red apple\na blue fish\n")
        version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True).stdout.strip()
        print(f"{version}: nodes {', '.join(NODES)}", flush=True)
        if "--training" in sys.argv:
            training(root)
            return
        sweep(root, slurm)
        for alpha in ALPHAS:
            if alpha != "7":
                one = ["+recipe=emoji_int8_sq", *FIELDS, f"calib.alpha={alpha}"]
                ended(start(one, root, root / "alone"), f"alpha {alpha} alone")
        check(root / "store", root, content(root / "alone"), "the sweep on Slurm")
        print("the store is that of one process", flush=True)
        training(root)


if __name__ == "__main__":
    main()
