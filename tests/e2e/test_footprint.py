"""Memory and idle processor time, as numbers."""
import concurrent.futures
import pathlib

from cluster import SERVICES, eventually
from conftest import collect, model_path

MIB = 1 << 20


def resident(pid, field="VmRSS"):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no such process: {pid}")


def peak_resident(pid):
    return resident(pid, "VmHWM")


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


def test_thirty_two_streams_of_1024_tokens_with_an_int4_cache(own_cluster, connect):
    """All at once, each half prompt and half answer, with default settings otherwise."""
    cluster = own_cluster("--decoder.kv_format", "int4")
    client, pid = connect(cluster), cluster.pid("decoder")

    def stream(number):
        # Different from the first token on, so that nothing is shared.
        prompt = [5000 + number] + [1000 + (number * 7919 + i * 104729) % 40000
                                    for i in range(511)]
        sampling = client.pb.common.SamplingParams(max_tokens=512, ignore_eos=True,
                                                   temperature=1.0, seed=number)
        tokens = client.pb.common.TokenIds(ids=prompt)
        return collect(client.complete(timeout=300, tokens=tokens, sampling=sampling))[2].usage

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        streams = [pool.submit(stream, number) for number in range(32)]
        eventually(lambda: cluster.value("decoder", "vllm:num_requests_running") == 32,
                   "32 streams at once")
        usages = [answered.result() for answered in streams]
    assert all(u.prompt_tokens == 512 and u.completion_tokens == 512 for u in usages)
    # They had room side by side: nobody's pages were taken away for another.
    assert cluster.value("decoder", "vllm:num_preemptions_total") == 0
    assert peak_resident(pid) <= 480e6, peak_resident(pid)


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
