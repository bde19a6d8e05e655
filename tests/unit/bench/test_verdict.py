"""The floors of bench/peers/compare: caps, shares of bandwidth, void runs."""
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench" / "peers"))
import rows  # noqa: E402
import sides  # noqa: E402
import verdict  # noqa: E402
from rows import Floor, Row, Share  # noqa: E402


def machine(limit=1e9, arithmetic=1e9, barrier=30e-9, bandwidth=25e9):
    return sides.Machine(bandwidth=bandwidth, barrier=barrier, vnni=400e9, bandwidth_limit=limit,
                         arithmetic_limit=arithmetic)


def results(row, ours, peers=None, machines=None):
    result = sides.Results(row)
    result.ours = list(ours)
    result.machine = machines or [machine()] * len(result.ours)
    result.peers = {name: list(samples) for name, samples in (peers or {}).items()}
    return result


def bounds_of(row, ours, peers=None, machines=None, **others):
    result = results(row, ours, peers, machines)
    return verdict.row_bounds(result, {row.name: result, **others})


def row(**fields):
    return Row("r", "title", "decode", peers=("peer",), floors=(Floor("peer", 2.0),), **fields)


def test_a_floor_holds_between_medians():
    bound, = bounds_of(row(), [900, 200, 1], {"peer": [100, 5, 500]})
    assert (bound.reached, bound.floor, bound.met, bound.capped) == (2.0, 2.0, True, "")
    bound, = bounds_of(row(), [900, 199, 1], {"peer": [100, 5, 500]})
    assert not bound.met


def test_bandwidth_replaces_a_floor_that_it_does_not_allow():
    # 2 x 100 lies above 90 % of 180.
    bound, = bounds_of(row(), [163], {"peer": [100]}, [machine(limit=180)])
    assert bound.met and bound.capped == "bandwidth" and bound.floor == pytest.approx(1.62)
    assert bound.table == 2.0
    bound, = bounds_of(row(), [161], {"peer": [100]}, [machine(limit=180)])
    assert not bound.met
    # 90 % of 230 lies above it: the floor stays.
    bound, = bounds_of(row(), [199], {"peer": [100]}, [machine(limit=230)])
    assert not bound.met and bound.floor == 2.0 and not bound.capped


def test_arithmetic_replaces_floors_of_rows_that_it_binds():
    slow = [machine(arithmetic=200)]  # 65 %: 130
    bound, = bounds_of(row(planes=2), [131], {"peer": [100]}, slow)
    assert bound.met and bound.capped == "vpdpbusd" and bound.floor == pytest.approx(1.3)
    bound, = bounds_of(row(planes=2), [129], {"peer": [100]}, slow)
    assert not bound.met
    bound, = bounds_of(row(), [131], {"peer": [100]}, slow)
    assert not bound.met and not bound.capped
    no_vnni = [machine(arithmetic=0)]
    bound, = bounds_of(row(planes=2), [131], {"peer": [100]}, no_vnni)
    assert not bound.met and not bound.capped


def test_the_share_of_bandwidth_is_judged_by_the_state_of_each_round():
    shared, apart = machine(limit=100), machine(limit=100, barrier=160e-9)
    only_share = Row("r", "title", "decode", share=Share(0.85, 0.75))

    def share(ours, machines):
        return bounds_of(only_share, ours, machines=machines)[0]

    assert share([86, 84, 90], [shared] * 3).met
    assert not share([86, 84, 83], [shared] * 3).met
    assert share([76, 74, 76], [apart] * 3).met
    # 80 would not do in the shared state, but is the better half of the three rounds.
    assert share([80, 80, 80], [apart, shared, apart]).met
    assert not share([80, 80, 80], [apart, shared, shared]).met


def test_either_the_share_or_the_ratio_is_enough_where_the_table_says_so():
    either = row(share=Share(0.92, 0.92, instead=True))
    wide, narrow = [machine(limit=1000)], [machine(limit=260)]
    assert all(b.met for b in bounds_of(either, [201], {"peer": [100]}, wide))  # by ratio
    assert all(b.met for b in bounds_of(either, [240], {"peer": [200]}, narrow))  # by share
    assert not any(b.met for b in bounds_of(either, [199], {"peer": [100]}, wide))


def test_own_rows_are_compared_in_every_round_where_asked():
    base = results(row(), [100, 100, 100], {"peer": [1, 1, 1]})
    loaded = Row("r", "title", "decode", floors=(Floor("decode", 0.4, own=True, every_round=True),))
    bound, = bounds_of(loaded, [90, 41, 90], decode=base)
    assert bound.met and bound.reached == pytest.approx(0.41) and not bound.capped
    bound, = bounds_of(loaded, [90, 39, 90], decode=base)
    assert not bound.met and bound.floor == 0.4  # the median alone would do
    # 90 % of what the bandwidth of that round allows is 38 of 100.
    narrow = [machine(limit=1e9), machine(limit=38 / 0.9), machine(limit=1e9)]
    bound, = bounds_of(loaded, [90, 39, 90], machines=narrow, decode=base)
    assert bound.met and bound.capped == "bandwidth" and bound.floor == pytest.approx(0.38)
    bound, = bounds_of(loaded, [90, 37, 90], machines=narrow, decode=base)
    assert not bound.met
    bound, = bounds_of(loaded, [39, 90, 90], machines=narrow, decode=base)
    assert not bound.met  # another round's bandwidth does not help
    assert bounds_of(loaded, [90, 39, 90]) == []  # the base row did not run


def test_own_rows_are_compared_between_medians_without_caps():
    base = results(row(), [100, 100, 100], {"peer": [1, 1, 1]})
    narrow = Row("r", "title", "decode", floors=(Floor("depth", 1.15, own=True),))
    bound, = bounds_of(narrow, [114, 114, 114], machines=[machine(limit=10)] * 3, depth=base)
    assert not bound.met and bound.floor == 1.15


def test_peers_that_something_disturbed_make_a_run_void():
    def reasons(decode_q4_1, decode_q4_0, prefill_q4_0, vnni=True, bandwidth=25e9):
        run = {
            "decode": results(rows.BY_NAME["decode"], [1.0],
                              {rows.Q4_1: [decode_q4_1], rows.Q4_0: [decode_q4_0]},
                              [machine(bandwidth=bandwidth)]),
            "prefill": results(rows.BY_NAME["prefill"], [1.0], {rows.Q4_0: [prefill_q4_0]})}
        return verdict.void_reasons(run, vnni)

    assert reasons(96, 138, 651) == []
    assert "llama.cpp Q4_1 decoded 94 tok/s" in reasons(94, 138, 651)[0]
    assert "llama.cpp Q4_0 decoded 137 tok/s" in reasons(96, 137, 651)[0]
    assert "below 650" in reasons(96, 138, 649)[0]
    assert reasons(96, 138, 649, vnni=False) == []
    assert len(reasons(96, 138, 651, bandwidth=30e9)) == 2
    assert verdict.void_reasons({}, True) == []


def test_floors_are_those_of_vnni_without_amx():
    assert verdict.has_floors({"avx2", "avx512f", "avx512_vnni"})
    assert not verdict.has_floors({"avx2", "avx512f"})
    assert not verdict.has_floors({"avx512_vnni", "amx_tile", "amx_int8"})


def test_the_table_refers_to_what_exists():
    for entry in rows.ROWS:
        assert all(name in (rows.Q4_1, rows.Q4_0, rows.OPENVINO, rows.Q4_1_AVX2)
                   for name in entry.peers)
        assert not entry.base or entry.base in rows.BY_NAME
        for floor in entry.floors:
            assert floor.of in (rows.BY_NAME if floor.own else entry.peers)
        if entry.base:  # another configuration: labelled, without floors
            assert "fast" in entry.title and not entry.floors
