"""The four models in PyTorch, with the names and layouts of genevar's tensors.

Written as a PyTorch user would write them: modules, F.scaled_dot_product_attention, channels-last
feature maps [B, H, W, d] as in the Rust code, convolutions in torch's own layout inside.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-6
LN_MAX_SCALE = math.log(100.0)


def attention(q, k, v, scale, mask=None, own=False):
    """q, k, v [B, n, H, D] to [B, n, H D]; `own` writes the products out, for func.jvp."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if own:
        s = q @ k.transpose(-1, -2) * scale
        s = s if mask is None else s.masked_fill(~mask, float("-inf"))
        y = torch.softmax(s.float(), -1).to(v.dtype) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y.transpose(1, 2).flatten(2)


def modulate(x, scale, shift):
    """LN(x) (1 + scale) + shift."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def resize(x, side, mode):
    """Maps [B, h, w, d] to side x side: "area" or "bicubic"."""
    if x.shape[1] == side:
        return x
    x = x.permute(0, 3, 1, 2)
    if mode == "area":
        x = F.interpolate(x, size=(side, side), mode="area")
    else:
        x = F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False)
    return x.permute(0, 2, 3, 1)


class Embedder(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, inputs, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x):
        return self.fc2(F.silu(self.fc1(x)))


class AdaLn(nn.Linear):
    """SiLU, Linear, cut into vectors."""

    def __init__(self, width, parts):
        super().__init__(width, parts * width)
        self.parts = parts

    def forward(self, c):
        return super().forward(F.silu(c)).chunk(self.parts, -1)


class Mlp(nn.Module):
    """Width to 4 width, GELU, and back."""

    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SelfAttention(nn.Module):
    """With unit queries and keys and a learned temperature, or plain."""

    def __init__(self, width, heads, unit):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.ln_scale = nn.Parameter(torch.zeros(heads, 1)) if unit else None
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x, mask=None, cache=None, own=False):
        b, n, c = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).view(b, n, 3, self.heads, -1).unbind(2)
        scale = (c // self.heads) ** -0.5
        if self.ln_scale is not None:
            heat = self.ln_scale.float().clamp(max=LN_MAX_SCALE).exp().to(q.dtype)
            q, k, scale = F.normalize(q, dim=-1) * heat, F.normalize(k, dim=-1), 1.0
        if cache is not None:
            if cache:
                k, v = torch.cat([cache["k"], k], 1), torch.cat([cache["v"], v], 1)
            cache["k"], cache["v"] = k, v
        return self.proj(attention(q, k, v, scale, mask, own))


class CrossAttention(nn.Module):
    """Of x to a context."""

    def __init__(self, width, heads):
        super().__init__()
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x, context, own=False):
        b, n, c = x.shape
        q = self.q(x).view(b, n, self.heads, -1)
        k, v = self.kv(context).view(b, context.shape[1], 2, self.heads, -1).unbind(2)
        return self.proj(attention(q, k, v, (c // self.heads) ** -0.5, own=own))


class PhiBlock(nn.Module):
    """Self-attention, cross-attention to r_k, feed-forward, each under adaLN."""

    def __init__(self, width, heads, cross):
        super().__init__()
        self.ada, self.attn = AdaLn(width, 6), SelfAttention(width, heads, False)
        self.mlp = Mlp(width)
        if cross:
            self.ada_r, self.cross = AdaLn(width, 3), CrossAttention(width, heads)

    def forward(self, h, c1, context, own):
        m = self.ada(c1)
        h = h + m[2] * self.attn(modulate(h, m[0], m[1]), own=own)
        if context is not None:
            rho, c2 = context
            a = self.ada_r(c2)
            h = h + a[2] * self.cross(modulate(h, a[0], a[1]), rho, own)
        return h + m[5] * self.mlp(modulate(h, m[3], m[4]))


class Phi(nn.Module):
    """The network of Causal MeanFlow (Eq. 7), modes causal and vanilla."""

    def __init__(self, config):
        super().__init__()
        m, w = config["meanflow"], config["meanflow"]["width"]
        if m["mode"] not in ("causal", "vanilla") or m["formulation"] != "a" or not m["rna"]:
            raise SystemExit("the peers know formulation a in modes causal and vanilla")
        d, latent = config["msvq"]["d"], config["beta_vae"]["latent"]
        self.patch_nums = config["msvq"]["patch_nums"]
        self.side, self.width, self.time_dims = self.patch_nums[-1], w, m["time_dims"]
        self.difference = m["embed"] == "difference"
        self.f_in, self.r_in, self.r_up = (nn.Linear(d, w) for _ in range(3))
        self.z_null = nn.Parameter(torch.zeros(1, latent))
        self.e_z = Embedder(latent, w)
        self.e_t, self.e_r = (Embedder(self.time_dims, w) for _ in range(2))
        self.e_k = nn.Parameter(torch.zeros(len(self.patch_nums), w))
        self.cross = m["mode"] == "causal"
        heads = w // m["head_width"]
        self.blocks = nn.ModuleList(
            PhiBlock(w, heads, self.cross) for _ in range(m["blocks"]))
        self.out_ada, self.out = AdaLn(w, 2), nn.Linear(w, d)
        for side in set(self.patch_nums):
            self.register_buffer(f"places_{side}", self.places(side), persistent=False)

    def places(self, side):
        """Sines and cosines of the cell centres, in cells of the finest grid [side^2, w]."""
        quarter = self.width // 4
        at = (torch.arange(side, dtype=torch.float64) + 0.5) * self.side / side
        rate = 1e4 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        waves = at[:, None] * rate
        x = waves[None].expand(side, side, quarter)
        y = waves[:, None].expand(side, side, quarter)
        table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], -1)
        return table.reshape(side * side, self.width).float()

    def wave(self, t):
        half = self.time_dims // 2
        rate = torch.exp(-math.log(1e4) * torch.arange(half, device=t.device) / half)
        turn = t[:, None].float() * rate
        return torch.cat([turn.cos(), turn.sin()], -1).to(t.dtype)

    def forward(self, f, r_k, z, t, r, k, own=False):
        """u [B, H, H, d] of f^t [B, H, H, d], r_k [B, p, p, d], z [B, latent], times [B]."""
        table = {side: getattr(self, f"places_{side}").to(f.dtype) for side in self.patch_nums}
        h = self.f_in(f.flatten(1, 2)) + table[self.side]
        second = t - r if self.difference else r
        times = self.e_t(self.wave(t)) + self.e_r(self.wave(second)) + self.e_k[k]
        c1 = (self.e_z(z) + times)[:, None]
        context = None
        if self.cross:
            rho = self.r_in(r_k.flatten(1, 2)) + table[self.patch_nums[k]]
            up = resize(r_k, self.side, "bicubic").flatten(1, 2)
            context = (F.layer_norm(rho, rho.shape[-1:], eps=EPS),
                       self.r_up(up) + times[:, None])
        for block in self.blocks:
            h = block(h, c1, context, own)
        o = self.out_ada(c1)
        return self.out(modulate(h, o[0], o[1])).view(f.shape)


class ArBlock(nn.Module):
    """VAR's block: gates, scales and shifts of attention and feed-forward."""

    def __init__(self, width, heads):
        super().__init__()
        self.ada, self.attn = AdaLn(width, 6), SelfAttention(width, heads, True)
        self.mlp = Mlp(width)

    def forward(self, x, m, mask=None, cache=None):
        x = x + m[0] * self.attn(modulate(x, m[2], m[4]), mask, cache)
        return x + m[1] * self.mlp(modulate(x, m[3], m[5]))


class MaskedAr(nn.Module):
    """The scale-wise masked transformer, conditioned on z."""

    def __init__(self, config):
        super().__init__()
        a, c = config["ar"], config["ar"]["width"]
        if a["rna"] != "beta_vae":
            raise SystemExit("the peers know transformers that read z")
        self.patch_nums = config["msvq"]["patch_nums"]
        tokens = sum(p * p for p in self.patch_nums)
        self.cond = nn.Linear(config["beta_vae"]["latent"], c)
        self.null = nn.Parameter(torch.zeros(1, c))
        self.pos_start = nn.Parameter(torch.zeros(1, c))
        self.pos = nn.Parameter(torch.zeros(tokens, c))
        self.level = nn.Parameter(torch.zeros(len(self.patch_nums), c))
        self.mask_token = nn.Parameter(torch.zeros(c))
        self.word = nn.Linear(config["msvq"]["d"], c)
        self.word_r = nn.Linear(config["msvq"]["d"], c) if a["add_rk"] else None
        self.blocks = nn.ModuleList(ArBlock(c, a["heads"]) for _ in range(a["depth"]))
        self.head_ada, self.head = AdaLn(c, 2), nn.Linear(c, config["msvq"]["vocab"])

    def tables(self, k):
        """Level and position tables of 0-based scale k [n, C]."""
        start = sum(p * p for p in self.patch_nums[:k])
        return self.pos[start:start + self.patch_nums[k] ** 2] + self.level[k]

    def words(self, features, r, keep):
        x = self.word(features)
        x = x if keep is None else torch.where(keep > 0, x, self.mask_token)
        return x if self.word_r is None else x + self.word_r(r)

    def step(self, k, cond, caches, seen):
        """Logits [B, n_k, V] of scale k; `seen` is (features, r, keep), None for the first."""
        first = (cond + self.pos_start)[:, None]
        x = (first if seen is None else self.words(*seen)) + self.tables(k)
        for block, cache in zip(self.blocks, caches):
            # As in VAR's reference, the vectors of the condition are made at each scale.
            x = block(x, block.ada(cond[:, None]), cache=cache)
        scale, shift = self.head_ada(cond[:, None])
        return self.head(modulate(x, scale, shift))

    def forward(self, cond, features, r, keep):
        """Teacher forcing: logits [B, L, V] of all scales, attending by blocks of scales."""
        sides = range(len(self.patch_nums))
        tables = torch.cat([self.tables(k) for k in sides])
        x = torch.cat([(cond + self.pos_start)[:, None], self.words(features, r, keep)], 1)
        x = x + tables
        level = torch.cat([torch.full((p * p,), k) for k, p in enumerate(self.patch_nums)])
        mask = (level[:, None] >= level[None]).to(x.device)
        for block in self.blocks:
            x = block(x, block.ada(cond[:, None]), mask)
        scale, shift = self.head_ada(cond[:, None])
        return self.head(modulate(x, scale, shift))


def groups(config, channels):
    """Groups of a norm over so many channels, as config/models.rs chooses them."""
    wanted = config["msvq"]["norm_groups"] or (32 if channels >= 128 else max(channels // 8, 1))
    return next(g for g in range(min(wanted, channels), 0, -1) if channels % g == 0)


class Norm(nn.GroupNorm):
    """Group norm with the tokenizer's epsilon."""

    def __init__(self, config, channels):
        super().__init__(groups(config, channels), channels, eps=EPS)


def conv(inputs, outputs, kernel=3):
    """A convolution that keeps the size of its map."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, config, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = Norm(config, inputs), conv(inputs, outputs)
        self.norm2, self.conv2 = Norm(config, outputs), conv(outputs, outputs)
        self.shortcut = conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class AttnBlock(nn.Module):
    """One head over all positions of a map."""

    def __init__(self, config, channels):
        super().__init__()
        self.norm = Norm(config, channels)
        self.qkv, self.proj = conv(channels, 3 * channels, 1), conv(channels, channels, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v, scale=c ** -0.5)
        return x + self.proj(y.transpose(1, 2).view(b, c, h, w))


class Block(nn.Module):
    """A residual block and, where there is one, the attention block after it."""

    def __init__(self, config, inputs, outputs, attends):
        super().__init__()
        self.res = ResBlock(config, inputs, outputs)
        self.attn = AttnBlock(config, outputs) if attends else nn.Identity()

    def forward(self, x):
        return self.attn(self.res(x))


class Decoder(nn.Module):
    """f [B, d, h, w] to pixels [B, 3, S, S]."""

    def __init__(self, config):
        super().__init__()
        m = config["msvq"]
        mult, depth = m["ch_mult"], m["res_blocks_dec"]
        width = m["ch"] * mult[-1]
        self.conv_in = conv(m["d"], width)
        self.mid = nn.ModuleList(
            [Block(config, width, width, m["attention"]), ResBlock(config, width, width)])
        self.up = nn.ModuleDict()
        for i in reversed(range(len(mult))):
            level, out = nn.ModuleDict(), m["ch"] * mult[i]
            for j in range(depth):
                attends = m["attention"] and i + 1 == len(mult)
                level[str(j)] = Block(config, width, out, attends)
                width = out
            if i > 0:
                level["widen"] = conv(width, width)
            self.up[str(i)] = level
        self.norm_out, self.conv_out = Norm(config, width), conv(width, 3)

    def forward(self, f):
        x = self.conv_in(f)
        for block in self.mid:
            x = block(x)
        for level in self.up.values():
            for name, layer in level.items():
                if name == "widen":
                    x = F.interpolate(x, scale_factor=2, mode="nearest")
                x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Msvq(nn.Module):
    """What the sampler needs of the tokenizer: the code book, phi, the decoder."""

    def __init__(self, config):
        super().__init__()
        m = config["msvq"]
        self.patch_nums, self.side, self.quant_resi = m["patch_nums"], m["patch_nums"][-1], \
            m["quant_resi"]
        self.cosine = m["lookup"] == "cosine"
        self.decoder, self.post_quant_conv = Decoder(config), conv(m["d"], m["d"])
        self.quantiser = nn.Module()
        self.quantiser.book = nn.Parameter(torch.zeros(m["vocab"], m["d"]))
        self.quantiser.phi = nn.ModuleList(conv(m["d"], m["d"]) for _ in range(m["phi"]))

    def phi_of(self, scale):
        """Which phi serves a 0-based scale."""
        n = len(self.quantiser.phi)
        at = scale / (max(len(self.patch_nums), 2) - 1)
        first = 1 / 12 if n == 4 else 0.5 / n
        step = (1 - 2 * first) / (n - 1) if n > 1 else 0.0
        best = 0
        for j in range(1, n):
            if abs(at - first - step * j) <= abs(at - first - step * best) + 1e-9:
                best = j
        return best

    def raised(self, k, tokens):
        """phi(U_p(e[s])) of tokens [B, n] of scale k: [B, H, H, d]."""
        p = self.patch_nums[k]
        h = self.quantiser.book[tokens].view(len(tokens), p, p, -1)
        h = resize(h, self.side, "bicubic")
        if len(self.quantiser.phi) == 0:
            return h
        own = self.quantiser.phi[self.phi_of(k)](h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return h * (1 - self.quant_resi) + own * self.quant_resi

    def paint(self, f):
        """Pixels [B, S, S, 3] in [-1, 1] of f_K [B, H, H, d]."""
        dtype = self.post_quant_conv.weight.dtype
        x = self.post_quant_conv(f.to(dtype).permute(0, 3, 1, 2))
        return self.decoder(x).clamp(-1, 1).permute(0, 2, 3, 1)


def load(module, weights):
    """Fills a module from genevar's tensors; every tensor of the module has to be there."""
    state = {}
    for key, value in module.state_dict().items():
        # A module of torch cannot hold one called double.
        name = key.replace(".widen.", ".double.")
        if name not in weights:
            raise SystemExit(f"the bundle has no tensor {name}")
        given = weights[name]
        # Filters are [out, row, column, in] there and [out, in, row, column] here.
        given = given.permute(0, 3, 1, 2) if given.dim() == 4 else given
        if given.shape != value.shape:
            raise SystemExit(f"{name} is {list(given.shape)}, not {list(value.shape)}")
        state[key] = given.contiguous()
    module.load_state_dict(state)
    return module.eval()
