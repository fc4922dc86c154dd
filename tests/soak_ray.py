"""A sweep on a real Ray cluster: a head and two nodes on this machine, a job that fails, and a node that is killed.

    python tests/soak_ray.py

The sweep has to end with every other job done, the job of the killed node begun again by Ray and gone on from its finished
steps, and a store that is one process's. Where Ray is not installed it says so and ends with 0. Exit code 1 where something is
lost.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from soak_slurm import free
from soak_store import FEW, check, content, ended, start

FIELDS = [*FEW, "export=null", "calib.chunk=1", "calib.batch_size=1"]
ALPHAS = ("0.2", "7", "0.5", "0.8")
"""Of which one is refused."""
MEMORY = 100 << 20
TRIES, STARTS = 3, 240
TASK = b"ray::_run_job"
"""As Ray calls a process that runs one of the launcher's jobs."""
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
PATIENT = {
    "agent_register_timeout_ms": 300_000,
    "worker_register_timeout_seconds": 300,
    "gcs_server_request_timeout_seconds": 120,
}
"""Ray gives its own daemons 30 or 60 seconds, which on a machine that is busy are few."""


def until(holds: Callable[[], object], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"{what}: not there after {seconds:.0f} s")
        time.sleep(0.2)


@contextmanager
def cluster() -> Iterator[Any]:
    """The nodes have the environment of this process, and its directory, which is not the sweep's."""
    from ray.cluster_utils import Cluster

    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    made = Cluster()
    patiently(lambda: made.add_node(num_cpus=0, include_dashboard=False, _system_config=PATIENT, **daemons()))
    try:
        yield made
    finally:
        made.shutdown()


def node(ray: Any, number: int) -> Any:
    return patiently(lambda: ray.add_node(num_cpus=1, resources={f"node{number}": 1}, **daemons()))


def daemons() -> dict[str, int]:
    """Of a node. It waits 15 seconds for a daemon that is to find a port, and longer for one that is given it."""
    return {"object_store_memory": MEMORY} | {name: free() for name in PORTS}


def patiently(begin: Callable[[], Any]) -> Any:
    """Ray gives a node 30 seconds to tell of itself, which on a machine that is busy are few: more, and several tries."""
    from ray._private import services

    told = services.get_node

    def wait(*given: Any, **named: Any) -> Any:
        end = time.monotonic() + STARTS
        while True:
            try:
                return told(*given, **named)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(1)

    for left in reversed(range(TRIES)):
        try:
            with patch.object(services, "get_node", wait):
                return begin()
        except Exception as e:
            print(f"a node did not start: {str(e).splitlines()[0][:120]}", flush=True)
            if not left:
                raise
    raise AssertionError


def workers(raylet: Any) -> list[int]:
    """Processes below a node's daemon that run a task."""
    above = {p.process.pid for found in raylet.all_processes.values() for p in found}
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            said = path.read_text()
            task = TASK in (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if task and int(said.rpartition(")")[2].split()[1]) in above:
            found.append(int(path.parent.name))
    return found


def busy(nodes: list[Any], store: Path) -> Any | None:
    """A node whose job has made something and is not done."""
    if not list(store.glob("calib-chunk/*/record.json")):
        return None
    return next((n for n in nodes if workers(n)), None)


def cmdline(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def sweep(root: Path, ray: Any) -> None:
    nodes = [node(ray, 1), node(ray, 2)]
    ray.wait_for_nodes()
    store = root / "store"
    asked = ["+recipe=emoji_int8_ray", *FIELDS, "hydra.sweep.dir=sweep", f"calib.alpha={','.join(ALPHAS)}"]
    asked += [f"hydra.launcher.ray.init.address={ray.address}", "hydra.launcher.ray.remote.num_cpus=1"]
    asked += ["hydra.launcher.ray.remote.num_gpus=0", "hydra.launcher.ray.remote.max_retries=2"]
    running = start(asked, root, store)
    victim: list[Any] = []
    until(lambda: victim.extend(filter(None, [busy(nodes, store)])) or victim or running.poll() is not None, "a job", 600)
    if not victim:
        ended(running, "the sweep, before a node was killed")
    lost = workers(victim[0])
    ray.remove_node(victim[0], allow_graceful=False)
    for process in lost:
        if TASK in cmdline(process):
            os.kill(process, signal.SIGKILL)
    print(f"node {nodes.index(victim[0]) + 1} is killed, with {len(lost)} jobs", flush=True)
    node(ray, 3)
    said, _ = running.communicate(timeout=1800)
    text = said.decode(errors="replace")
    if running.returncode != 1 or "1 of 4 jobs failed" not in text or "Traceback" in text:
        sys.exit(f"the sweep ended with {running.returncode}: {text[-3000:]}")
    done = sorted(p.parent.name for p in (root / "sweep").glob("*/run.json"))
    if not lost or done != [str(i) for i, a in enumerate(ALPHAS) if a != "7"]:
        sys.exit(f"{len(lost)} jobs were lost with their node, and these are done: {done}\n{text[-3000:]}")
    print(f"{len(done)} of {len(ALPHAS)} jobs done, 1 refused, {len(lost)} begun again by Ray", flush=True)


def main() -> None:
    if not find_spec("ray"):
        print("not run: Ray is not installed; pip install 'diffopt[ray]'")
        return
    import ray

    with tempfile.TemporaryDirectory(prefix="diffopt-soak-") as folder:
        root = Path(folder)
        (root / "few.txt").write_text("a red apple\na blue fish\n")
        print(f"Ray {ray.__version__}: a head and 2 nodes", flush=True)
        with cluster() as made:
            sweep(root, made)
        for alpha in ALPHAS:
            if alpha != "7":
                one = ["+recipe=emoji_int8_sq", *FIELDS, f"calib.alpha={alpha}"]
                ended(start(one, root, root / "alone"), f"alpha {alpha} alone")
        check(root / "store", root, content(root / "alone"), "the sweep on Ray")
        print("the store is that of one process", flush=True)


if __name__ == "__main__":
    main()
