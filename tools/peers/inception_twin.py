#!/usr/bin/env python3
"""pytorch-fid's own Inception-v3 with random weights, for `genevar eval fd --features`.

    tools/peers/inception_twin.py tests/data/inception_twin.safetensors

writes what tests/eval.rs holds our features against: those of a few tiles of two sizes, and the
shapes of the weights, which both sides draw with Philox by `weight` below. `--genevar PROGRAM`
runs the command too: on weights in a file, on two sets of tiles in archives and in folders of PNG,
and holds its distance to pytorch-fid's. It needs the package pytorch-fid (0.3.0) and torchvision.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from philox import normals, words  # noqa: E402

TEST, SEED = 13, 2015
# Largest difference of a feature, of its standard deviation over tiles, and of the distance.
NEAR, NEAR_FD = 1e-3, 1e-3


def weight(name, shape, index):
    """Tensor number `index` of the sorted keys: what tests/eval.rs draws, too."""
    draw = normals(SEED, index, 0, TEST, int(np.prod(shape)))
    if name.endswith("running_var"):
        draw = np.float32(1) + np.float32(0.2) * np.abs(draw)
    elif name.endswith("bn.weight"):
        draw = np.float32(1) + np.float32(0.1) * draw
    elif name.endswith(("bias", "running_mean")):
        draw = np.float32(0.1) * draw
    else:
        draw = np.float32(math.sqrt(2 / int(np.prod(shape[1:])))) * draw
    return torch.from_numpy(draw.reshape(shape))


def network():
    """The model that `pytorch-fid` runs, its download replaced by random weights; and these."""
    from pytorch_fid import inception
    kept = {}

    def invented(*_, **__):
        net = sys._getframe(1).f_locals["inception"]
        state = {k: v for k, v in net.state_dict().items() if v.dim() > 0}
        kept.update((k, weight(k, tuple(state[k].shape), i)) for i, k in enumerate(sorted(state)))
        return {**net.state_dict(), **kept}

    inception.load_state_dict_from_url = invented
    return inception.InceptionV3().eval(), kept


def tiles(first, n, side):
    """Blocks of noise: bytes [n, side, side, 3]."""
    grain = max(side // 16, 1)
    out = np.empty((n, side, side, 3), np.uint8)
    for i in range(n):
        cells = words(SEED, first + i, 1, TEST, 17 * 17 * 3).reshape(17, 17, 3) >> np.uint32(24)
        out[i] = cells.repeat(grain, 0).repeat(grain, 1)[:side, :side]
    return out


def features(model, images):
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return torch.cat([model(part)[0][:, :, 0, 0] for part in x.split(8)]).numpy()


def command(program, model, weights):
    """Holds the distances of the command to pytorch-fid's."""
    from PIL import Image
    from pytorch_fid.fid_score import calculate_frechet_distance
    from safetensors.torch import save_file
    sets = [tiles(1000, 24, 64), tiles(2000, 24, 64) // 2 + 60]
    seen = [features(model, s).astype(np.float64) for s in sets]
    moments = [m for f in seen for m in (f.mean(0), np.cov(f, rowvar=False))]
    want = float(calculate_frechet_distance(*moments))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_file({k: v.contiguous() for k, v in weights.items()}, root / "w.safetensors")
        np.savez(root / "a.npz", sets[0])
        np.savez_compressed(root / "b.npz", sets[1])
        for name, images in zip(("a", "b"), sets):
            (root / name).mkdir()
            for i, image in enumerate(images):
                Image.fromarray(image).save(root / name / f"{i:04}.png")
        for a, b in (("a.npz", "b.npz"), ("a", "b")):
            asked = ["eval", "fd", "--real", root / a, "--tiles", root / b, "--whole", "--reps",
                     "2", "--features", root / "w.safetensors", "--json", root / "fd.json"]
            subprocess.run([program, *map(str, asked)], check=True, stdout=subprocess.DEVNULL)
            got = json.loads((root / "fd.json").read_text())["rows"][0]["fd"]
            print(f"{a} against {b}: {got:.6f}, pytorch-fid {want:.6f}")
            if not abs(got - want) < NEAR_FD * abs(want):
                sys.exit("these are too far apart")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", help="the file to write")
    parser.add_argument("--genevar", help="the program whose distances are checked")
    args = parser.parse_args()
    torch.manual_seed(0)
    model, weights = network()
    if args.out:
        from safetensors.numpy import save_file
        # The test makes the tiles again: noise of known names.
        parts = {f"features{side}": features(model, tiles(side, 2, side)) for side in (48, 310)}
        shapes = {k: list(v.shape) for k, v in weights.items()}
        save_file(parts, args.out, {"shapes": json.dumps(shapes, sort_keys=True)})
        print({k: (float(v.mean()), float(v.std())) for k, v in parts.items()})
    if args.genevar:
        command(args.genevar, model, weights)


if __name__ == "__main__":
    main()
