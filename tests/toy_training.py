"""A recipe and a data root of a few kilobytes, for tests of training."""

from __future__ import annotations

from pathlib import Path

RECIPE = """
bytes_per_patch = 4.0
[data]
seed = 7
row_bytes = 96
batch_rows = 4
dev_modulo = 4
[[data.sources]]
name = "pairs"
kind = "pairs"
files = ["train/toy.en-fr"]
weight = 0.7
join = 2
[[data.sources]]
name = "prose"
kind = "prose"
files = ["lm/toy.txt"]
weight = 0.3
join = 2
[model]
cross_attn_k = 2
[model.patcher]
hidden_size = 32
num_layers = 1
num_heads = 2
num_kv_heads = 2
intermediate_size = 64
rope_theta = 10000.0
max_positions = 512
max_patch_length = 8
[model.encoder]
hidden_size = 32
num_layers = 1
num_heads = 2
num_kv_heads = 2
intermediate_size = 64
rope_theta = 500000.0
max_positions = 512
window = 64
hash_group_sizes = [3, 4]
hash_vocab = 64
[model.global_model]
hidden_size = 64
num_layers = 1
num_heads = 2
num_kv_heads = 2
intermediate_size = 128
rope_theta = 500000.0
max_positions = 512
[model.decoder]
hidden_size = 32
num_layers = 1
num_heads = 2
num_kv_heads = 2
intermediate_size = 64
rope_theta = 500000.0
max_positions = 512
window = 64
input = "lookup"
[patcher]
steps = 6
learning_rate = 0.005
warmup_steps = 2
[blt]
steps = 6
learning_rate = 0.005
warmup_steps = 2
[optimiser]
save_every = 3
log_every = 1
"""


def write_root(folder: Path) -> Path:
    """A data root with forty pairs and forty hard-wrapped paragraphs."""
    for name in ("train", "lm"):
        (folder / name).mkdir(parents=True)
    english = [f"the cat number {n} sees the dog" for n in range(40)]
    french = [f"le chat numéro {n} voit le chien" for n in range(40)]
    (folder / "train/toy.en-fr.en").write_text("\n".join(english) + "\n")
    (folder / "train/toy.en-fr.fr").write_text("\n".join(french) + "\n")
    prose = [f"Paragraph {n} is long enough to be kept\nand is wrapped by hand." for n in range(40)]
    (folder / "lm/toy.txt").write_text("\n\n".join(prose))
    return folder


def with_blocks(recipe: Path) -> None:
    """Make the recipe one of block diffusion."""
    text = RECIPE.replace("cross_attn_k = 2", "cross_attn_k = 2\nblock_size = 8")
    recipe.write_text(f"{text}[blocks]\nsizes = [4, 8]\nper_row = 4\nrandom_starts = 0.5\n")


def quiet(line: str) -> None:
    """Shows nothing."""
