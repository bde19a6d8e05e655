"""Memory and idle processor time, as numbers."""
import pathlib

from cluster import SERVICES, eventually
from conftest import model_path

MIB = 1 << 20


def resident(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no such process: {pid}")


def cpu_nanoseconds(pid):
    return sum(int(task.read_text().split()[0])
               for task in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"))


def test_resident_memory(own_cluster, connect):
    cluster = own_cluster()
    pids = {service: cluster.pid(service) for service in SERVICES}
    assert resident(pids["gateway"]) <= 40 * MIB, resident(pids["gateway"]) / MIB
    connect(cluster).ask("What is the capital of France?", max_tokens=16)
    limit = model_path().stat().st_size + 120 * MIB
    assert resident(pids["decoder"]) <= limit, (resident(pids["decoder"]) / MIB, limit / MIB)


def test_idle_services_use_no_processor_time(own_cluster, connect):
    cluster = own_cluster()
    connect(cluster).ask("What is 2+2?", max_tokens=4)
    pids = {service: cluster.pid(service) for service in SERVICES}
    window, share = 1.0, {}

    def quiet():
        # Time that passes while nothing happens is what is measured here.
        import time
        before = {service: cpu_nanoseconds(pid) for service, pid in pids.items()}
        time.sleep(window)
        for service, pid in pids.items():
            share[service] = (cpu_nanoseconds(pid) - before[service]) / (window * 1e9)
        return sum(share.values()) < 0.01

    eventually(quiet, lambda: f"all four below 1 %: {share}", 20)
