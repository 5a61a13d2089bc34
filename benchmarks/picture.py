"""The picture: a panel for each scenario, a bar for each peer, the shortest on top, gowsev in colour."""

import statistics

from launch import PEERS
from medians import MINE, figure, median
from scenarios import SCENARIOS

PANELS = (
    "echo",
    "echo_pipelined",
    "fanout_1",
    "fanout_8",
    "echo_64k",
    "echo_tls",
    "latency_loaded",
    "churn",
    "memory_idle",
    "echo_10k",
    "echo_deflate",
    "fanout_deflate",
)
#: A bar longer than this many times the median of its panel is cut off there, hatched; its figure stands beside it.
CUT = 3
UNITS = {"us": "µs of processor time", "kb": "KB of memory", "p50_us": "µs", "p99_us": "µs"}
COLOURS = {MINE: "#0b6e4f", "gowsev_pure": "#7fb5a2", "floor": "#cfd8dc"}
OTHER = "#90a4ae"


def panel(axes, results, name):
    """Draw one scenario."""
    values = {peer: value for peer in PEERS if (value := median(results, name, peer)) is not None}
    order = sorted(values, key=values.get)
    limit = min(CUT * statistics.median(values.values()), values[order[-1]])
    for row, peer in enumerate(order):
        value, colour = values[peer], COLOURS.get(peer, OTHER)
        cut = value > limit
        axes.barh(
            row, min(value, limit), color=colour, height=0.72, hatch="//" if cut else None, edgecolor="white", lw=0
        )
        weight = "bold" if peer == MINE else "normal"
        text = f" {figure(value)}" + (" →" if cut else "")
        axes.text(min(value, limit), row, text, va="center", fontsize=8, weight=weight)
        axes.text(-0.02 * limit, row, PEERS[peer].title, va="center", ha="right", fontsize=8, weight=weight)
    scenario = SCENARIOS[name]
    axes.set_title(f"{scenario.title}\n{UNITS[scenario.figure]}", fontsize=9, loc="left")
    axes.set_xlim(0, limit * 1.22)
    axes.set_ylim(len(PEERS) - 0.5, -0.5)
    axes.set_axis_off()


def draw(results, path):
    """Draw what was measured into an SVG file, which needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    names = [name for name in PANELS if results["figures"].get(name)]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    plt.rcParams["svg.hashsalt"] = "gowsev"  # the same figures make the same file
    figure_, grid = plt.subplots(rows, columns, figsize=(4.6 * columns, 2.35 * rows + 0.6), squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        panel(axes, results, name)
    figure_.suptitle(
        "Processor time of the server a message, latency and memory: shorter is better", fontsize=12, weight="bold"
    )
    figure_.text(0.5, 0.005, f"{results['date']}, {results['machine']}", ha="center", fontsize=8, color="#555555")
    figure_.tight_layout(rect=(0, 0.02, 1, 0.985), w_pad=2.0, h_pad=1.4)
    figure_.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
    plt.close(figure_)
