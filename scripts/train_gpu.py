"""Train on a machine that is there for minutes at a time, with nothing but PyTorch and what bltcli imports.

    python scripts/parts.py write DATA data.parts --recipe examples/train-gpu-small.toml     # at home
    python scripts/train_gpu.py examples/train-gpu-small.toml --data-parts data.parts --minutes 9 --give OUT
    python scripts/train_gpu.py examples/train-gpu-small.toml --data-parts data.parts --minutes 9 --take OUT --give OUT2

Each call goes on where the run in `--out` stopped, or where the parts `--take` of an earlier call did, and prints
throughput and MFU. `--give` writes what to take home in files of at most 16 MB: the run, or once it has ended its
checkpoint, log and curve.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # runs from a checkout, without being installed

import torch  # noqa: E402
from parts import read_parts, write_parts  # noqa: E402

from bltcli.config import StackConfig  # noqa: E402
from bltcli.errors import BltError  # noqa: E402
from bltcli.train.config import TrainConfig, load_config  # noqa: E402
from bltcli.train.recipe import train  # noqa: E402
from bltcli.train.run import CURVE, LOG  # noqa: E402
from bltcli.train.world import join_world  # noqa: E402

#: Dense bfloat16 peak in TFLOP/s by a part of the device's name, from the vendor's data sheets.
PEAKS: Final = {"H200": 989.0, "H100": 989.0, "A100": 312.0}


def flops_per_id(config: TrainConfig) -> float:
    """Floating point operations that the second phase needs per id of a packed row: 2 per multiply-add, thrice over for
    forward and backward, once for the frozen entropy model. Attention is counted over half a row or window."""
    model, data = config.model, config.data
    h, k, width = model.hidden_size, model.cross_attn_k, model.latent_size
    patches = 1 / config.bytes_per_patch
    rows = 1 + (config.blocks.per_row * max(config.blocks.sizes) / data.row_bytes if config.blocks else 0)

    def stack(part: StackConfig, length: float) -> float:
        kv = part.num_kv_heads * part.head_dim
        context = min(part.window or length, length) / 2
        per_layer = (
            2 * part.hidden_size * (part.hidden_size + kv + context) + 3 * part.hidden_size * part.intermediate_size
        )
        return part.num_layers * per_layer

    g = model.global_model.hidden_size
    cross = model.decoder.num_cross_layers
    decoder = stack(model.decoder, data.row_bytes) + cross * 2 * h * h + 260 * h
    per_patch = stack(model.global_model, data.row_bytes * patches) + h * width + 2 * k * h * h + 2 * width * g
    per_patch += cross * 2 * k * h * h  # keys and values of the decoder's cross-attention
    trained = stack(model.encoder, data.row_bytes) + 2 * h * h + rows * decoder + patches * per_patch
    return 6 * trained + 2 * (stack(model.patcher, data.row_bytes) + 260 * model.patcher.hidden_size)


def report(config: TrainConfig, log: Path, already: int, peak: float | None) -> str:
    """Throughput and MFU of the rows that this call added to `log`, the first left out: it holds the compilation."""
    rows = [json.loads(line) for line in log.read_text().splitlines()[already:]] if log.exists() else []
    rates = [row["bytes_per_s"] for row in rows if row["phase"] == "blt"][1:]
    if not rates:
        return "no throughput: fewer than two rows of the second phase were logged"
    rate = sum(rates) / len(rates)
    tflops = rate * flops_per_id(config) / 1e12
    mfu = f", MFU {tflops / peak:.1%} of {peak:g} TFLOP/s" if peak else ""
    return f"{rate:,.0f} bytes/s, {tflops:.2f} TFLOP/s{mfu}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data-parts", type=Path, required=True, help="parts of the training data")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--init", type=Path, help="checkpoint with the entropy model to keep")
    parser.add_argument("--take", type=Path, help="parts of the run, if --out does not hold it")
    parser.add_argument("--give", type=Path, help="where to write parts of the run")
    parser.add_argument("--minutes", type=float, default=9, help="stop and save after so long")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of the device")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    config, data = load_config(options.recipe), options.out / "data"
    with join_world(options.device) as world:
        if world.first:
            if options.take and not options.out.exists():
                read_parts(options.take, options.out)
            if not data.exists():
                read_parts(options.data_parts, data)
        world.wait()
        log = options.out / LOG
        already = len(log.read_text().splitlines()) if log.exists() else 0
        show = print if world.first else lambda line: None
        figures = train(config, data, options.out, resume=True, show=show, init=options.init, world=world, until=until)
        if not world.first:
            return
        name = torch.cuda.get_device_name(world.device) if world.on_gpu else "CPU"
        peak = options.peak_tflops or next((p for part, p in PEAKS.items() if part in name), None)
        print(f"{name} x {world.size}: {report(config, log, already, peak and peak * world.size)}")
        print("stopped and saved" if figures is None else json.dumps(figures))
        if options.give:
            whole = sorted(file.name for file in options.out.iterdir() if file != data)
            names = whole if figures is None else ["checkpoint", LOG, CURVE]
            print(f"{write_parts(options.out, names, options.give, 16, compressed=False)} parts in {options.give}")


if __name__ == "__main__":
    try:
        main()
    except (BltError, ValueError) as error:
        sys.exit(f"train_gpu: {error}")
