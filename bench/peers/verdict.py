"""Bounds and verdicts: what a run's samples say about the table of floors."""
import dataclasses
import statistics

import rows


@dataclasses.dataclass
class Bound:
    """One floor of one row, with what was reached."""
    row: str
    what: str  # "x of llama.cpp Q4_0", "of bandwidth"
    reached: float
    floor: float  # in the unit of `reached`
    capped: str = ""  # what replaced the floor of the table: bandwidth, vpdpbusd
    table: float = 0.0  # the floor of the table
    met: bool = True


def has_floors(flags):
    """The floors are those of AVX-512 VNNI without AMX (flags: as Linux names them)."""
    return "avx512_vnni" in flags and not any(flag.startswith("amx") for flag in flags)


def limits(result):
    """Medians of what bandwidth and vpdpbusd allowed, tokens a second."""
    return (statistics.median(machine.bandwidth_limit for machine in result.machine),
            statistics.median(machine.arithmetic_limit for machine in result.machine))


def shares(result):
    """Of the bandwidth limit, one a round."""
    return [rate / machine.bandwidth_limit
            for rate, machine in zip(result.ours, result.machine, strict=True)]


def share_bound(result):
    """(share reached, share wanted): of the median round, each judged by its own state."""
    wanted = [result.row.share.shared if machine.barrier < rows.SHARED_CACHE_BARRIER
              else result.row.share.apart for machine in result.machine]
    rounds = sorted(zip(shares(result), wanted, strict=True), key=lambda pair: pair[0] / pair[1])
    return rounds[len(rounds) // 2]


def wanted_of(times, other, caps):
    """(ratio wanted to `other`, what replaced `times`): the lowest cap where it lies below."""
    cap, name = min(caps)
    return (cap / other, name) if cap < times * other else (times, "")


def round_by_round(result, others, times):
    """(ratio reached, ratio wanted, what replaced `times`) of the round that is nearest to missing:
    own rows in every round, each with the bandwidth that was left in it."""
    rounds = [(mine / theirs,
               *wanted_of(times, theirs,
                          [(rows.BANDWIDTH_CAP * machine.bandwidth_limit, "bandwidth")]))
              for mine, theirs, machine in zip(result.ours, others, result.machine)]
    return min(rounds, key=lambda one: one[0] / one[1])


def peer_bounds(result, results):
    """The floors against peers and own rows; those whose other side did not run are left out."""
    row, ours = result.row, statistics.median(result.ours)
    bandwidth, arithmetic = limits(result)
    caps = [(rows.BANDWIDTH_CAP * bandwidth, "bandwidth")]
    if row.planes and arithmetic:
        caps.append((rows.ARITHMETIC_CAP * arithmetic, "vpdpbusd"))
    bounds = []
    for floor in row.floors:
        other = results.get(floor.of) if floor.own else result
        samples = other and (other.ours if floor.own else other.peers[floor.of])
        if not samples:
            continue
        reached, wanted, capped = ours / statistics.median(samples), floor.times, ""
        if floor.every_round:
            reached, wanted, capped = round_by_round(result, samples, floor.times)
        elif not floor.own:
            wanted, capped = wanted_of(floor.times, statistics.median(samples), caps)
        title = rows.BY_NAME[floor.of].title + " of ours" if floor.own else floor.of
        bounds.append(Bound(row.name, "x of " + title, reached, wanted, capped, floor.times,
                            reached >= wanted))
    return bounds


def row_bounds(result, results):
    bounds = peer_bounds(result, results)
    if result.row.share is None:
        return bounds
    reached, wanted = share_bound(result)
    share = Bound(result.row.name, "of bandwidth", reached, wanted, table=wanted,
                  met=reached >= wanted)
    if result.row.share.instead:  # one of them is enough
        good = share.met or all(bound.met for bound in bounds)
        for bound in (*bounds, share):
            bound.met = good
    return [*bounds, share]


def void_reasons(results, vnni):
    """Why the run says nothing: peers that something disturbed."""
    reasons = []
    decode, prefill = results.get("decode"), results.get("prefill")
    for name, least in rows.PLAUSIBLE_DECODE.items() if decode else ():
        bandwidth = statistics.median(machine.bandwidth for machine in decode.machine) / 1e9
        rate = statistics.median(decode.peers[name])
        if rate < least * bandwidth:
            reasons.append(f"{name} decoded {rate:.0f} tok/s, {rate / bandwidth:.1f} per GB/s of "
                           f"bandwidth, below {least}")
    for name, least in rows.PLAUSIBLE_PREFILL.items() if prefill and vnni else ():
        rate = statistics.median(prefill.peers[name])
        if rate < least:
            reasons.append(f"{name} prefilled {rate:.0f} tok/s, below {least:.0f}")
    return reasons
