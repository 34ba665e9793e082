"""Drawings of a calibration: ranges, histograms with their clip lines, SQNR, outliers, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intsr.engines.report.measure.layer_names import short_name
from intsr.engines.report.measure.layers import BEYOND
from intsr.engines.report.plots.style import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    NETWORK_COLOURS,
    NETWORK_LABELS,
    SERIES,
    WARN,
    WIDTH,
    drawing,
    svg_from_figure,
)

Layers = Sequence[Mapping[str, Any]]


def _finish(axes: Any, layers: Layers, title: str, ylabel: str) -> None:
    """Label axes whose x is the layers in graph order, with lines between networks."""
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.6)
    for places, _ in _networks(layers).values():
        if places[0]:
            axes.axvline(places[0] - 0.5, color=LINE, linewidth=1)
    axes.set_xlim(-1, len(layers))
    axes.set_xlabel("Layer, in graph order")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=5, borderaxespad=0.2)


def _networks(layers: Layers) -> dict[str, tuple[list[int], list[Mapping[str, Any]]]]:
    """Network -> where in graph order its layers are, and these."""
    found: dict[str, tuple[list[int], list[Mapping[str, Any]]]] = {}
    for place, layer in enumerate(layers):
        places, own = found.setdefault(layer["network"], ([], []))
        places.append(place)
        own.append(layer)
    return found


def _log_ticks(axes: Any, ticks: Sequence[float]) -> None:
    axes.set_yticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    axes.minorticks_off()


def ranges(layers: Layers) -> str:
    """Draw what each integer layer's input is clipped to."""
    with drawing(WIDTH, 3.2) as figure:
        axes = figure.add_subplot()
        for name, (places, own) in _networks(layers).items():
            lows, highs = ([layer[key] for layer in own] for key in ("x_min", "x_max"))
            axes.vlines(places, lows, highs, color=NETWORK_COLOURS[name], linewidth=2.6, label=NETWORK_LABELS[name])
        largest = max((max(abs(layer["x_min"]), abs(layer["x_max"])) for layer in layers), default=1)
        axes.axhline(0, color=LINE, linewidth=0.8)
        axes.set_yscale("symlog", linthresh=1)
        ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000) if tick <= largest * 1.2]
        _log_ticks(axes, [*(-tick for tick in ticks[::-1]), 0, *ticks])
        _finish(axes, layers, "Clipping range of every integer layer", "Input of the quantizer")
        return svg_from_figure(figure, "plot-ranges", f"Clipping ranges of {len(layers)} layers in graph order")


def sqnr(layers: Layers) -> str:
    """Draw output SQNR in graph order, the worst marked."""
    title = "Signal over quantization noise, each layer alone (higher is better)"
    values = [float(layer["output_sqnr_db"]) for layer in layers]
    with drawing(WIDTH, 3.2) as figure:
        axes = figure.add_subplot()
        for name, (places, _) in _networks(layers).items():
            colour, own = NETWORK_COLOURS[name], [values[place] for place in places]
            axes.plot(places, own, "o", markersize=4.5, color=colour, label=NETWORK_LABELS[name])
            axes.vlines(places, min(values), own, color=colour, alpha=0.25)
        worst = values.index(min(values))
        late = worst > len(layers) * 0.6
        axes.annotate(
            short_name(layers[worst]["site"]),
            (worst, values[worst]),
            (-7 if late else 7, -3),
            textcoords="offset points",
            ha="right" if late else "left",
            fontsize=9.5,
            color=INK,
        )
        axes.margins(y=0.12)
        _finish(axes, layers, title, "SQNR of the output, dB")
        return svg_from_figure(figure, "plot-sqnr", f"SQNR of {len(layers)} layers in graph order")


def outliers(layers: Layers) -> str:
    """Draw largest channel over median channel, of the input as it is and as LET leaves it."""
    title = "Channels that stand out, by layer (1 = all channels reach alike)"
    before, after = ([layer[key] for layer in layers] for key in ("outlier_ratio", "outlier_ratio_let"))
    with drawing(WIDTH, 3.0) as figure:
        axes = figure.add_subplot()
        places = range(len(layers))
        if any(layer["let"] for layer in layers):
            axes.vlines(places, after, before, color=MUTED, alpha=0.5, linewidth=1)
            axes.plot(places, before, "o", markersize=4.5, fillstyle="none", color=WARN, label="Before LET")
            axes.plot(places, after, "o", markersize=4.5, color=ACCENT, label="After LET")
        else:
            axes.plot(places, before, "o", markersize=4.5, color=ACCENT, label="Input")
        axes.set_yscale("log")
        _log_ticks(axes, [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= max(before) * 1.5])
        _finish(axes, layers, title, "Largest channel / median channel")
        return svg_from_figure(figure, "plot-outliers", "Ratio of the largest channel to the median one, by layer")


def channels(layers: Layers) -> str:
    """The reach of every channel, sorted, of the layers whose channels differ most."""
    columns = 3
    rows = -(-len(layers) // columns)
    high = max(layer["outlier_ratio"] for layer in layers) * 1.3
    low, ticks = 0.08, [tick for tick in (0.1, 1, 10, 100, 1000) if tick <= high]
    with drawing(WIDTH, 0.5 + 2.1 * rows) as figure:
        for index, layer in enumerate(layers):
            axes = figure.add_subplot(rows, columns, index + 1)
            for key, colour, label in (
                ("channel_reach", WARN, "before LET"),
                ("channel_reach_let", ACCENT, "after LET"),
            ):
                values = np.sort(np.asarray(layer[key]))[::-1]
                if key == "channel_reach" or layer["let"]:
                    axes.plot(np.arange(1, len(values) + 1), values / np.median(values), color=colour, label=label)
            axes.set_yscale("log")
            axes.set_ylim(low, high)
            _log_ticks(axes, ticks)
            axes.set_title(short_name(layer["site"]), fontsize=9.5)
            axes.grid(axis="y", alpha=0.6)
            if index == 0:
                axes.legend(loc="upper right")
            if index % columns == 0:
                axes.set_ylabel("Reach / median")
            if index >= len(layers) - columns:
                axes.set_xlabel("Channel, largest first")
        return svg_from_figure(figure, "plot-channels", "Reach of every channel, layers with the largest outliers")


def histograms(layers: Layers, name: str) -> str:
    """Small histograms of x~, log counts, with the clip lines."""
    columns = 4
    rows = -(-len(layers) // columns)
    with drawing(WIDTH, 0.45 + 1.75 * rows) as figure:
        for index, layer in enumerate(layers):
            axes = figure.add_subplot(rows, columns, index + 1)
            low, high = layer["x_min"], layer["x_max"]
            width = high - low
            edges = np.linspace(low - BEYOND * width, high + BEYOND * width, len(layer["histogram"]) + 1)
            counts = np.asarray(layer["histogram"], float)
            axes.stairs(counts, edges, fill=True, color=NETWORK_COLOURS[layer["network"]], alpha=0.75)
            for end in (low, high):
                axes.axvline(end, color=WARN, linewidth=1.2)
            axes.set_yscale("log", nonpositive="clip")
            axes.set_ylim(0.7, max(counts.max(), 1) * 3)
            axes.set_yticks([])
            axes.minorticks_off()
            axes.set_xticks([low, high], [f"{low:.3g}", f"{high:.3g}"])
            axes.spines["left"].set_visible(False)
            axes.set_title(short_name(layer["site"]).replace(" block 0", ""), fontsize=8.5, pad=3)
        figure.supylabel("Values, log scale", fontsize=9.5, color=MUTED)
        return svg_from_figure(figure, name, f"Histograms of {len(layers)} layers with their clip lines")


def joint_curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Loss by step of phases that train a whole network, relative to their start."""
    with drawing(WIDTH / 2, 3.6) as figure:
        axes = figure.add_subplot()
        for index, (name, points) in enumerate(curves.items()):
            steps, training, held_out = np.asarray(points, float).T
            network = name.partition(":")[0]
            colour = NETWORK_COLOURS.get(network, SERIES[(index + 3) % len(SERIES)])
            label = NETWORK_LABELS.get(network, name)
            axes.plot(steps, held_out / held_out[0], "o-", markersize=4, color=colour, label=f"{label}, held out")
            axes.plot(steps, training / training[0], ":", color=colour, label=f"{label}, training")
        axes.axhline(1, color=LINE, linewidth=0.8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("Step")
        axes.set_ylabel("Loss / loss at the start")
        axes.set_title("Whole networks")
        axes.grid(axis="y", alpha=0.6)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        return svg_from_figure(figure, "plot-joint-curves", "Learning curves of whole networks")


def block_curves(phases: Sequence[Mapping[str, Any]]) -> str:
    """Best held-out loss of every block over its start, in the order of training."""
    kinds = list(dict.fromkeys(phase["kind"] for phase in phases))
    with drawing(WIDTH / 2, 3.6) as figure:
        axes = figure.add_subplot()
        for marker, kind in zip("os^Dv", kinds, strict=False):
            for network in NETWORK_COLOURS:
                own = [(i, p["gain"]) for i, p in enumerate(phases) if (p["kind"], p["network"]) == (kind, network)]
                if own:
                    places, gains = zip(*own, strict=True)
                    axes.plot(places, gains, marker, markersize=4.5, color=NETWORK_COLOURS[network])
            axes.plot([], [], marker, markersize=4.5, color=MUTED, label=kind or "all")
        axes.axhline(1, color=LINE, linewidth=0.8)
        # Short trainings gain little: a scale from 0 would show a line.
        axes.set_ylim(min(0.9, min(phase["gain"] for phase in phases) - 0.03), 1.02)
        axes.set_xlabel("Phase, in the order of training")
        axes.set_ylabel("Best held-out loss / start")
        axes.set_title("Block by block (1 = kept its start)")
        axes.grid(axis="y", alpha=0.6)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
        return svg_from_figure(figure, "plot-block-curves", f"Gain of {len(phases)} phases of block-wise training")
