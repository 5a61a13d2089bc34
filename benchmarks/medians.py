"""Medians of several runs, and how a figure is written, in tables and in the picture alike."""

import statistics

MINE = "gowsev"


def summarize(samples, figure):
    """Return the median of each figure of several runs, and the least and the most of the one that counts.

    Raises:
        ValueError: there are no runs.
    """
    if not samples:
        raise ValueError("no runs to take a median of")
    summary = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
    values = [sample[figure] for sample in samples]
    return {**summary, "median": summary[figure], "least": min(values), "most": max(values), "runs": len(values)}


def median(results, scenario, peer):
    """Return the figure that counts, or `None`."""
    return results["figures"].get(scenario, {}).get(peer, {}).get("median")


def figure(value):
    """Write a number with three digits, or a dash where there is none."""
    if value is None:
        return "–"
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f}"
