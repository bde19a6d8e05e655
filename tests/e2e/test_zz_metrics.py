"""Last: every registered series has moved in one of the clusters, or the reason stands here."""
import re

import pytest
from cluster import MOVED, ROOT, SERVICES, eventually

# Series that these tests cannot or need not move.
UNMOVED = {
    "vllm:num_preemptions_total": "needs more sequences than pages; the scheduler's tests do it",
    "cogumi_prefix_cache_evictions_total": "needs more pages than there are; the same tests do it",
    "cogumi_engine_requests_failed_total": "only a fault of the engine moves it; unit tests do",
    "cogumi_slow_readers_total": "needs a reader that stalls; the services' tests do it",
    "cogumi_gateway_slow_readers_total": "needs a reader that stalls; the gateway's tests do it",
    "cogumi_session_errors_total": "needs a broken disk; the session store's tests do it",
    "cogumi_session_turns_dropped_total": "needs turns beyond the context; the gateway's tests",
    "cogumi_modifiers_left_out": "needs a damaged store; the modifiers' tests do it",
    "cogumi_adapter_evictions_total": "needs adapters beyond the budget; the adapter table's tests",
    "cogumi_query_cost_dollars_total": "prices are 0 unless configured; the gateway's tests",
}
# Moved here only by chance: the caller's own end and the engine's check meet at the same moment; a
# decoder is found dead by a call before the health watch tells (the gateway's tests count both).
BY_CHANCE = {"cogumi_engine_requests_deadline_exceeded_total",
             "cogumi_gateway_decoder_retries_total"}
# States of the moment: they rest at 0, where they are when these tests look last.
GAUGES = {
    "vllm:num_requests_running": "test_stopping_work reads it while answers run",
    "vllm:num_requests_waiting": "test_stopping_work reads it while the queue is full",
    "vllm:kv_cache_usage_perc": "a share of cogumi_kv_pages, which moves",
    "cogumi_kv_bytes_used": "the decoder service's and the scheduler's tests read it",
    "cogumi_kv_blocks_used": "the decoder service's tests read it",
    "cogumi_http_connections": "the gateway's tests read it",
    "cogumi_gateway_streams": "the gateway's tests read it",
    "cogumi_modifier_watchers": "the modifiers service's tests read it at 1 and at 0",
    "cogumi_adapter_catalogue_age_seconds": "grows when the catalogue is out of reach only; the "
                                            "decoder service's tests",
}


# Families in which each of these series has to have moved, not just one of them.
EACH = {
    "gateway": {"cogumi_gateway_backend_up": [f'service="{name}"' for name in
                                              ("decoder", "router", "modifiers")]},
    "decoder": {"vllm:request_success_total": [f'finished_reason="{reason}"' for reason in
                                               ("stop", "length", "abort")]},
}


@pytest.mark.parametrize("service", sorted(EACH))
def test_each_series_of_these_families_has_moved(cluster, service):
    cluster.remember_metrics()
    for family, labels in EACH[service].items():
        series = MOVED[service][family]
        for label in labels:
            assert any(value for text, value in series.items() if label in text), (label, series)


def test_every_service_behind_the_gateway_is_up(cluster):
    """A channel without calls connects when its state is asked for."""
    def up():
        return cluster.metrics("gateway")["cogumi_gateway_backend_up"]

    eventually(lambda: sorted(up().values()) == [1, 1, 1], up)


@pytest.mark.parametrize("service", SERVICES)
def test_every_series_has_moved(cluster, service):
    cluster.remember_metrics()
    series = MOVED[service]
    assert series, f"{service} has no metrics"
    # A histogram has moved when it has counted something.
    names = {name for name in series if not name.endswith(("_bucket", "_sum"))}
    still = {name for name in names if not any(series[name].values())}
    unexplained = still - set(UNMOVED) - BY_CHANCE - set(GAUGES)
    assert not unexplained, sorted(unexplained)


def test_every_name_is_in_the_manual():
    text = (ROOT / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"`((?:cogumi|vllm|process)[a-z0-9_:]*\*?)`", text))
    prefixes = tuple(name[:-1] for name in documented if name.endswith("*"))
    missing = set()
    for name in {name for series in MOVED.values() for name in series}:
        family = re.sub("_(bucket|sum|count)$", "", name)
        if not {name, family} & documented and not name.startswith(prefixes):
            missing.add(name)
    assert not missing, sorted(missing)


def test_reasons_are_needed():
    """A series that moves needs no excuse."""
    moved = {name for series in MOVED.values() for name, values in series.items()
             if any(values.values())}
    assert not moved & set(UNMOVED), sorted(moved & set(UNMOVED))


def test_a_name_means_the_same_everywhere():
    """Only what every process has may have a name in common."""
    owners = {}
    for service, series in MOVED.items():
        for name in series:
            owners.setdefault(name, set()).add(service)
    shared = {name for name, services in owners.items() if len(services) > 1}
    assert all(name.startswith(("cogumi_rpc_", "cogumi_build_", "process_"))
               for name in shared), sorted(shared)
