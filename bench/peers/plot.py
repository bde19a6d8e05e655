"""Draws the figures of a comparison: plot.py FIGURES.json OUT.svg, in an environment of its own."""
import json
import pathlib
import statistics
import subprocess
import sys

REQUIREMENTS = (pathlib.Path(__file__).resolve().parents[2] / "tools" / "setup" /
                "requirements-plot.txt")
COLOURS = {"cogumi": "#1b6e53", "llama.cpp Q4_1": "#c46a2f", "llama.cpp Q4_0": "#e3b23c",
           "OpenVINO GenAI": "#5470c6", "llama.cpp Q4_1, AVX2 build": "#8d6748"}


def draw_in_environment(cache, figures, target, say):
    from llama_cpp import PeerError
    from python_environment import environment
    python = environment(pathlib.Path(cache) / "peers" / "plot", REQUIREMENTS, say, "matplotlib")
    process = subprocess.run([str(python), __file__, str(figures), str(target)],
                             capture_output=True, text=True)
    if process.returncode != 0:
        raise PeerError("drawing failed:\n  " + "\n  ".join(process.stderr.splitlines()[-8:]))


def series_of(row):
    """[(name, samples)], ours first."""
    return [("cogumi", row["ours"]), *row["peers"].items()]


def draw(figures, target):
    import matplotlib
    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "cogumi", "svg.fonttype": "path", "font.size": 8})
    from matplotlib import pyplot

    rows = figures["rows"]
    figure, (speeds, ratios) = pyplot.subplots(
        1, 2, figsize=(11, 1.5 + 0.55 * len(rows)), width_ratios=(3, 2), sharey=True,
        layout="constrained")
    seen = set()
    for place, row in enumerate(rows):
        series = series_of(row)
        height = 0.8 / len(series)
        for number, (name, samples) in enumerate(series):
            y = place - 0.4 + height * (number + 0.5)
            median = statistics.median(samples)
            speeds.barh(y, median, height * 0.9, color=COLOURS[name],
                        label=None if name in seen else name)
            speeds.plot([min(samples), max(samples)], [y, y], color="black", linewidth=0.6)
            seen.add(name)
            if name != "cogumi" and median > 0:
                ratios.plot(statistics.median(row["ours"]) / median, y, "o", color=COLOURS[name])
                for bound in row["bounds"]:
                    if bound["what"] == "x of " + name:
                        ratios.plot(bound["floor"], y, "|", color="black", markersize=10)
        limit = min(value for value in row["limits"].values() if value > 0)
        speeds.plot([limit, limit], [place - 0.42, place + 0.42], color="#b00020", linewidth=1.2)
    speeds.plot([], [], color="#b00020", linewidth=1.2, label="limit of the machine in this run")
    speeds.set(xscale="log", xlabel="tokens a second: median, range of the rounds",
               xlim=(10, None), ylim=(len(rows) - 0.45, -0.55))
    ticks = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    speeds.set_xticks(ticks, [f"{tick}" for tick in ticks])
    speeds.set_yticks(range(len(rows)), [row["title"] for row in rows])
    ratios.axvline(1, color="grey", linewidth=0.8)
    ratios.set(xlabel="cogumi over the peer (black: floor)", xscale="log")
    ticks = (0.5, 1, 2, 3, 5, 8, 12)
    ratios.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    for axes in (speeds, ratios):
        axes.minorticks_off()
        axes.grid(axis="x", linewidth=0.3)
        axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=6, frameon=False)
    machine = figures["machine"]
    figure.supxlabel(f"{machine['cpu']}, {figures['threads']} threads; {figures['model']['file']}",
                     fontsize=7)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(pathlib.Path(sys.argv[1]).read_text()), sys.argv[2])
