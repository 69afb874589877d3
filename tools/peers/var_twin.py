#!/usr/bin/env python3
"""A twin of FoundationVision/VAR in PyTorch with its key names, for `genevar import var`.

    tools/peers/var_twin.py tests/data/var_twin.safetensors

writes what tests/var.rs holds our import against: of a small tokenizer and transformer with random
weights the tokens of images, the images of tokens, teacher-forced logits and greedy samples. The
weights are not in the file: both sides draw them with Philox, by `weight` below. `--weights DIR`
writes them too, as state dicts that the command line can read; `--paper` takes the released sizes.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bundle import TYPES  # noqa: E402
from philox import normals  # noqa: E402

# Of the streams that both sides draw from: the purpose of tests, a seed for weights and images.
TEST, SEED = 13, 4242


def conv(i, o, kernel=3, **more):
    return nn.Conv2d(i, o, kernel, padding=more.pop("padding", kernel // 2), **more)


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = norm(i), conv(i, o), norm(o), conv(o, o)
        if i != o:
            self.nin_shortcut = conv(i, o, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv, self.proj_out = norm(c), conv(c, 3 * c, 1), conv(c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, c, h * w).unbind(1)
        p = torch.softmax(q.transpose(1, 2) @ k * c ** -0.5, -1)
        return x + self.proj_out((v @ p.transpose(1, 2)).view(b, c, h, w))


class Resize(nn.Module):
    """A convolution that doubles a map or halves it."""

    def __init__(self, c, up):
        super().__init__()
        self.conv = conv(c, c) if up else conv(c, c, padding=0, stride=2)
        self.up = up

    def forward(self, x):
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Half(nn.Module):
    """Encoder (`down`) or decoder (`up`)."""

    def __init__(self, side, ch, mult, blocks, ends):
        super().__init__()
        levels, self.side = len(mult), side
        widths = [ch * m for m in mult]
        width = ch if side == "down" else widths[-1]
        self.conv_in = conv(ends[0], width)
        order = range(levels) if side == "down" else reversed(range(levels))
        made = {}
        if side == "up":
            self.middle(width)
        for i in order:
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks):
                level.block.append(ResnetBlock(width, widths[i]))
                width = widths[i]
                if i == levels - 1:
                    level.attn.append(AttnBlock(width))
            if side == "down" and i < levels - 1:
                level.downsample = Resize(width, False)
            if side == "up" and i > 0:
                level.upsample = Resize(width, True)
            made[i] = level
        setattr(self, side, nn.ModuleList(made[i] for i in range(levels)))
        if side == "down":
            self.middle(width)
        self.norm_out, self.conv_out = norm(width), conv(width, ends[1])

    def middle(self, width):
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1 = ResnetBlock(width, width), AttnBlock(width)
        self.mid.block_2 = ResnetBlock(width, width)

    def mix(self, x):
        return self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))

    def forward(self, x):
        x = self.conv_in(x)
        levels = list(getattr(self, self.side))
        if self.side == "up":
            x, levels = self.mix(x), levels[::-1]
        for level in levels:
            for i, block in enumerate(level.block):
                x = block(x)
                if len(level.attn):
                    x = level.attn[i](x)
            for way in ("downsample", "upsample"):
                if hasattr(level, way):
                    x = getattr(level, way)(x)
        if self.side == "down":
            x = self.mix(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Vae(nn.Module):
    """The tokenizer with VAR's keys."""

    def __init__(self, c):
        super().__init__()
        self.sides, d = c["patch_nums"], c["d"]
        self.encoder = Half("down", c["ch"], c["ch_mult"], c["blocks"], (3, d))
        self.decoder = Half("up", c["ch"], c["ch_mult"], c["blocks"] + 1, (d, 3))
        self.quant_conv, self.post_quant_conv = conv(d, d), conv(d, d)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(c["vocab"], d)
        self.quantize.quant_resi = nn.Module()
        self.quantize.quant_resi.qresi_ls = nn.ModuleList(conv(d, d) for _ in range(4))
        hits = torch.zeros(len(self.sides), c["vocab"])
        self.quantize.register_buffer("ema_vocab_hit_SV", hits)

    def phi(self, k, h):
        ticks = np.linspace(1 / 3 / 4, 1 - 1 / 3 / 4, 4)
        own = int(np.argmin(np.abs(ticks - k / (len(self.sides) - 1))))
        return h * 0.5 + self.quantize.quant_resi.qresi_ls[own](h) * 0.5

    def lift(self, k, tokens):
        """What tokens [B, n] of scale k add to f."""
        p, last = self.sides[k], self.sides[-1]
        h = self.quantize.embedding(tokens).transpose(1, 2).reshape(len(tokens), -1, p, p)
        if p != last:
            h = F.interpolate(h, size=(last, last), mode="bicubic")
        return self.phi(k, h)

    def tokens(self, image):
        rest, all_tokens = self.quant_conv(self.encoder(image)), []
        book = self.quantize.embedding.weight
        for k, p in enumerate(self.sides):
            last = k == len(self.sides) - 1
            q = rest if last else F.interpolate(rest, size=(p, p), mode="area")
            q = q.flatten(2).transpose(1, 2)
            tokens = ((q[:, :, None] - book) ** 2).sum(-1).argmin(-1)
            rest = rest - self.lift(k, tokens)
            all_tokens.append(tokens)
        return all_tokens

    def image(self, f):
        return self.decoder(self.post_quant_conv(f)).clamp(-1, 1)


class Attention(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.scale_mul_1H11 = nn.Parameter(torch.zeros(1, heads, 1, 1))
        self.mat_qkv, self.proj = nn.Linear(c, 3 * c, bias=False), nn.Linear(c, c)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(c)), nn.Parameter(torch.zeros(c))
        self.register_buffer("zero_k_bias", torch.zeros(c))
        self.heads = heads

    def forward(self, x, mask):
        b, n, c = x.shape
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = F.linear(x, self.mat_qkv.weight, bias).view(b, n, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        heat = self.scale_mul_1H11.clamp(max=math.log(100)).exp()
        s = F.normalize(q, dim=-1) * heat @ F.normalize(k, dim=-1).transpose(-1, -2)
        y = torch.softmax(s + mask, -1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.attn, self.ffn = Attention(c, heads), nn.Module()
        self.ffn.fc1, self.ffn.fc2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))

    def forward(self, x, cond, mask):
        g1, g2, a1, a2, b1, b2 = self.ada_lin(cond)[:, None].chunk(6, -1)
        x = x + g1 * self.attn(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + a1) + b1, mask)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + a2) + b2
        return x + g2 * self.ffn.fc2(F.gelu(self.ffn.fc1(h), approximate="tanh"))


class Var(nn.Module):
    """The transformer with VAR's keys."""

    def __init__(self, c):
        super().__init__()
        w, self.sides, self.classes = c["width"], c["patch_nums"], c["classes"]
        n = sum(p * p for p in self.sides)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, w))
        self.pos_1LC = nn.Parameter(torch.zeros(1, n, w))
        self.word_embed, self.class_emb = nn.Linear(c["d"], w), nn.Embedding(c["classes"] + 1, w)
        self.lvl_embed = nn.Embedding(len(self.sides), w)
        self.blocks = nn.ModuleList(Block(w, c["heads"]) for _ in range(c["depth"]))
        self.head_nm = nn.Module()
        self.head_nm.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(w, 2 * w))
        self.head = nn.Linear(w, c["vocab"])
        level = torch.cat([torch.full((p * p,), k) for k, p in enumerate(self.sides)])
        self.register_buffer("lvl_1L", level[None])
        mask = torch.where(level[:, None] >= level[None], 0.0, -torch.inf)
        self.register_buffer("attn_bias_for_masking", mask[None, None])

    def forward(self, label, inputs):
        """Logits of as many scales as the inputs [B, n, d] of scales 2.. reach."""
        cond = self.class_emb(label)
        x = (cond[:, None] + self.pos_start)
        if inputs is not None:
            x = torch.cat([x, self.word_embed(inputs)], 1)
        n = x.shape[1]
        x = x + self.lvl_embed(self.lvl_1L[:, :n]) + self.pos_1LC[:, :n]
        for block in self.blocks:
            x = block(x, cond, self.attn_bias_for_masking[:, :, :n, :n])
        scale, shift = self.head_nm.ada_lin(cond)[:, None].chunk(2, -1)
        return self.head(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


def weight(name, shape, index):
    """Tensor number `index` of the sorted keys: what tests/var.rs draws, too."""
    n = int(np.prod(shape))
    draw = normals(SEED, index, 0, TEST, n)
    fan = int(np.prod(shape[1:]))
    if "norm" in name and name.endswith("weight"):
        draw = np.float32(1) + np.float32(0.1) * draw
    elif "embedding" in name:
        pass
    elif name.endswith(("bias", "scale_mul_1H11")):
        draw = np.float32(0.1) * draw
    else:
        draw = np.float32(1 / math.sqrt(fan)) * draw
    return torch.from_numpy(draw.reshape(shape))


def fill(model):
    """Draws the weights of a model; their shapes by key."""
    state = model.state_dict()
    names = sorted(n for n, _ in model.named_parameters())
    for i, name in enumerate(names):
        state[name] = weight(name, tuple(state[name].shape), i)
    model.load_state_dict(state)
    model.eval().requires_grad_(False)
    return {name: list(state[name].shape) for name in names}


def teacher(vae, tokens):
    """What the transformer reads at scales 2.. [B, n, d]."""
    f, inputs = 0.0, []
    for k in range(len(tokens)):
        f = f + vae.lift(k, tokens[k])
        if k + 1 < len(vae.sides):
            p = vae.sides[k + 1]
            inputs.append(F.interpolate(f, size=(p, p), mode="area").flatten(2).transpose(1, 2))
    return f, inputs


def greedy(vae, var, label, cfg):
    """The likeliest tokens scale by scale, under guidance that grows to cfg."""
    null, tokens, inputs = torch.full_like(label, var.classes), [], []
    for k, p in enumerate(var.sides):
        seen = torch.cat(inputs, 1) if inputs else None
        own, other = (var(who, seen)[:, -p * p:] for who in (label, null))
        tau = cfg * k / (len(var.sides) - 1)
        tokens.append(((1 + tau) * own - tau * other).argmax(-1))
        inputs = teacher(vae, tokens)[1][:k + 1]
    return tokens


def save(path, tensors, meta):
    """Safetensors with metadata."""
    from bundle import write
    write(path, tensors)
    raw = Path(path).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8:8 + size]) | {"__metadata__": meta}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, help="folder for vae and var .safetensors")
    parser.add_argument("--paper", action="store_true", help="the released sizes, d16")
    args = parser.parse_args()
    c = {"ch": 32, "ch_mult": [1, 2, 2], "blocks": 1, "d": 8, "vocab": 64, "cfg": 1.5,
         "patch_nums": [1, 2, 3, 4], "width": 32, "heads": 2, "depth": 2, "classes": 5}
    if args.paper:
        c |= {"ch": 160, "ch_mult": [1, 1, 2, 2, 4], "blocks": 2, "d": 32, "vocab": 4096,
              "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "width": 1024, "heads": 16,
              "depth": 16, "classes": 1000}
    vae, var = Vae(c), Var(c)
    shapes = {"vae": fill(vae), "var": fill(var)}
    rows, side = (1 if args.paper else 2), c["patch_nums"][-1] << len(c["ch_mult"]) - 1
    image = normals(SEED, 1 << 20, 0, TEST, rows * side * side * 3)
    image = torch.from_numpy(np.tanh(image).reshape(rows, side, side, 3))
    label = torch.arange(rows) + 3
    tokens = vae.tokens(image.permute(0, 3, 1, 2))
    f, inputs = teacher(vae, tokens)
    out = {"image": image, "tokens": torch.cat(tokens, 1).int(), "label": label.int(),
           "pixels": vae.image(f).permute(0, 2, 3, 1).contiguous(),
           "logits": var(label, torch.cat(inputs, 1)),
           "greedy": torch.cat(greedy(vae, var, label, c["cfg"]), 1).int()}
    save(args.out, out, {"config": json.dumps(c), "shapes": json.dumps(shapes)})
    if args.weights:
        args.weights.mkdir(parents=True, exist_ok=True)
        for name, model in (("vae", vae), ("var", var)):
            state = {n: t for n, t in model.state_dict().items() if t.dtype in TYPES.values()}
            save(args.weights / f"{name}.safetensors", state, {})


if __name__ == "__main__":
    main()
