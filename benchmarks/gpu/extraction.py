"""Images a second of reading posteriors on a device: presets with random weights, by layers and precision.

    python benchmarks/gpu/extraction.py --device cuda --seconds 150

Layers: all of them, the first 31 (`0:31`), or up to the last at 8x8. Modes: the blocks as they are, as a CUDA
graph, with weights in channels-last, and through torch.compile (imagenet64 and cifar10 alone: compiling takes
long). A
row is the median of passes over a batch of random images that stands on the device, results left there;
`of_matrix_rate` holds the operations of the path needed against a large product's in the same precision,
measured in the same run. What there is no time for is named in a last row. Prints one JSON object a line.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch
from rates import matrix_rate, seconds
from torch.utils.flop_counter import FlopCounterMode

import vdvae_repr as vr
from vdvae_repr.model.graphs import graph_inference
from vdvae_repr.model.inference import compile_inference
from vdvae_repr.model.layers import select_layers

BATCHES = {"imagenet64": 128, "cifar10": 256, "imagenet32": 128, "ffhq256": 16, "ffhq1024": 2}
LAYERS = {"all": "all", "0:31": "0:31", "8x8": "<=8x8"}
PRECISIONS = ("bf16", "fp32", "tf32")
COMPILED = ("imagenet64", "cifar10")


def cases(smoke: bool) -> list[tuple[str, str, str, str]]:
    """Return (mode, preset, precision, layers), the most telling first."""
    if smoke:
        groups = [
            ("eager", ("cifar10",), ("bf16", "fp32")),
            ("channels_last", ("cifar10",), ("bf16",)),
        ]
    else:
        others = tuple(preset for preset in BATCHES if preset not in COMPILED)
        groups = [
            ("eager", tuple(BATCHES), PRECISIONS),
            ("graphs", tuple(BATCHES), ("bf16",)),
            ("channels_last", COMPILED, PRECISIONS),
            ("compiled", COMPILED[:1], ("bf16",)),
            ("channels_last", others, PRECISIONS),
            ("compiled", COMPILED, PRECISIONS),
        ]
    ordered = [
        (mode, preset, precision, layers)
        for mode, presets, precisions in groups
        for preset in presets
        for precision in precisions
        for layers in LAYERS
    ]
    return list(dict.fromkeys(ordered))


def build(preset: str, mode: str, device: str, smoke: bool) -> vr.VDVAE:
    """Return a preset's model with random weights; narrow where it is only tried out."""
    config = vr.ModelConfig.from_preset(preset)
    torch.manual_seed(0)
    model = vr.VDVAE(replace(config, width=16) if smoke else config, name=preset).to(device).eval()
    if mode == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    if mode == "compiled":
        compile_inference(model)
    if mode == "graphs":
        graph_inference(model)
    return model


def operations(model: vr.VDVAE, stop: int) -> float:
    """Return the floating-point operations of the path needed, an image."""
    with torch.device("meta"):
        twin = vr.VDVAE(model.config)
        x = torch.zeros(1, 3, model.config.image_size, model.config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin.infer(x, None, stop, top_down=False, bottom_up=False)
    return float(counter.get_total_flops())


def main() -> None:
    """Measure case by case, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=150, help="no case begins after these")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--mode", action="append", help="these modes alone; all of them without it")
    options = parser.parse_args()
    device, deadline = options.device, time.monotonic() + options.seconds
    wanted = [case for case in cases(options.smoke) if not options.mode or case[0] in options.mode]
    precisions = {precision for _, _, precision, _ in wanted}
    rates = {precision: matrix_rate(precision, device) for precision in precisions}
    model, built, left_out = None, None, []
    for case in wanted:
        mode, preset, precision, layers = case
        if time.monotonic() > deadline:
            left_out.append(" ".join(case))
            continue
        row = {"case": "extraction", "preset": preset, "layers": layers, "precision": precision}
        row |= {"mode": mode, "batch_size": 2 if options.smoke else BATCHES[preset]}
        try:
            if built != (mode, preset):
                model = read = None  # let go of the last one first
                model, built = build(preset, mode, device, options.smoke), (mode, preset)
            stop = select_layers(model.layers, LAYERS[layers])[-1].index + 1
            size = model.config.image_size
            shape = (row["batch_size"], size, size, 3)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

            def read(model=model, images=images, layers=layers, precision=precision) -> None:
                model.posterior(images, LAYERS[layers], precision=precision)

            first = seconds(read, device)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds(read, device)  # CUDA graphs are recorded at the second pass
            times = [seconds(read, device) for _ in range(2 if options.smoke else 5)]
            rate = row["batch_size"] / statistics.median(times)
            needed = operations(model, stop)
            row |= {
                "images_per_second": round(rate, 1),
                "gflops_per_image": round(needed / 1e9, 2),
                "of_matrix_rate": round(rate * needed / rates[precision], 4),
                "matrix_tflops": round(rates[precision] / 1e12, 1),
                "first_pass_seconds": round(first, 2),
            }
            if device == "cuda":
                row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        except Exception as error:  # as out of memory: the other cases go on
            row["error"] = (str(error).splitlines() or [type(error).__name__])[0][:200]
        print(json.dumps(row | {"torch": torch.__version__}), flush=True)
    if left_out:
        print(json.dumps({"case": "extraction", "left_out_for_want_of_time": left_out}), flush=True)


if __name__ == "__main__":
    main()
