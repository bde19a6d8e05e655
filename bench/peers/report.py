"""What a run prints and writes."""
import dataclasses
import statistics

import rows
import verdict


def _peers_of(result, results):
    """The peers that stand beside a row: its own or those of its base row in this run."""
    base = results.get(result.row.base) if result.row.base else result
    return {name: samples for name, samples in (base.peers if base else {}).items() if samples}


def _limits_text(result):
    bandwidth, arithmetic = verdict.limits(result)
    ours = statistics.median(result.ours)
    text = f"bandwidth {bandwidth:.0f} ({ours / bandwidth:.0%})"
    if result.row.planes and arithmetic:
        text += f", vpdpbusd {arithmetic:.0f} ({ours / arithmetic:.0%})"
    return text


def _row_lines(result, results, bounds):
    by_name = {bound.what: bound for bound in bounds}
    ours = statistics.median(result.ours)
    yield f"{result.row.title:31} cogumi {ours:8.1f} tok/s   limits: {_limits_text(result)}"
    for name, samples in _peers_of(result, results).items():
        median = statistics.median(samples)
        ratio = f"{ours / median:.2f}x" if median else "-"
        line = f"    {name:27}        {median:8.1f}         {ratio:>7}"
        yield line + _floor_text(by_name.pop("x of " + name, None))
    for bound in by_name.values():
        unit = f"{bound.reached:.0%}" if bound.what == "of bandwidth" else f"{bound.reached:.2f}x"
        what = bound.what.removeprefix("x of ")
        yield f"    {what:52}{unit:>7}" + _floor_text(bound)


def _floor_text(bound):
    if bound is None:
        return ""
    number = f"{bound.floor:.0%}" if bound.what == "of bandwidth" else f"{bound.floor:.2f}x"
    why = {"": "",
           "bandwidth": f" ({rows.BANDWIDTH_CAP:.0%} of bandwidth, for {bound.table:.2f}x)",
           "vpdpbusd": f" ({rows.ARITHMETIC_CAP:.0%} of vpdpbusd, for {bound.table:.2f}x)"
           }[bound.capped]
    return f"  floor {number}{why}: {'met' if bound.met else 'MISSED'}"


def _round_lines(result):
    bandwidths = " ".join(f"{m.bandwidth / 1e9:.1f}" for m in result.machine)
    barriers = " ".join(f"{m.barrier * 1e9:.0f}" for m in result.machine)
    yield f"{result.row.title:31} GB/s {bandwidths}; barrier ns {barriers}"
    for name, samples in (("cogumi", result.ours), *result.peers.items()):
        if samples:
            yield f"    {name:27} " + " ".join(f"{rate:.1f}" for rate in samples)


def text(description, threads, results, bounds, void, configurations):
    """The whole report, a list of lines."""
    undisturbed = [result for result in results.values()
                   if result.row.threads == 0 and not result.row.loaded]
    machines = [machine for result in undisturbed or results.values()
                for machine in result.machine]
    bandwidths = [machine.bandwidth / 1e9 for machine in machines]
    lines = [
        f"machine          {description['cpu']}, {description['cores']} cores, {threads} threads",
        f"features         {description['features']}",
        f"read bandwidth   {statistics.median(bandwidths):.1f} GB/s "
        f"({min(bandwidths):.1f}-{max(bandwidths):.1f}); barrier "
        f"{statistics.median(m.barrier for m in machines) * 1e9:.0f} ns; vpdpbusd "
        f"{statistics.median(m.vnni for m in machines) / 1e9:.0f} G products a second",
        f"default model    {description['bytes_per_token'] / 1e6:.1f} MB a token", "",
        "Medians. Limits: tokens a second that reading (weights once a step, and the cache) or "
        "vpdpbusd would allow.", ""]
    for result in results.values():
        lines += _row_lines(result, results, [b for b in bounds if b.row == result.row.name])
    lines += ["", "Rounds, in order", ""]
    for result in results.values():
        lines += _round_lines(result)
    lines += ["", "Kernel configurations", ""]
    lines += [f"{results[name].row.title:31} {configuration}"
              for name, configuration in configurations.items() if name in results]
    lines += [f"void: {reason}" for reason in void]
    return lines


def as_json(description, threads, results, bounds, void, configurations, extra):
    """The same for programs, and for the plot."""
    return {
        **extra, "machine": description, "threads": threads, "void": void,
        "rows": [{
            "name": name, "title": result.row.title, "configuration": configurations[name],
            "ours": result.ours, "peers": _peers_of(result, results),
            "rounds": [dataclasses.asdict(machine) for machine in result.machine],
            "limits": dict(zip(("bandwidth", "vpdpbusd"), verdict.limits(result))),
            "bounds": [dataclasses.asdict(bound) for bound in bounds if bound.row == name],
        } for name, result in results.items()]}
