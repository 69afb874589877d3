"""The work of single kernels in PyTorch: what a user of PyTorch would call for it.

Each entry takes a job's description and its inputs and returns the ways to do it, by name; a way
is a function without arguments that gives the outputs, as many as are to be compared.
"""

import torch
from torch.nn import functional as F

from models import EPS, LN_MAX_SCALE
from sampler import ROOM, draw


def linear(about, x):
    """x w^T + b, GELU, gate and residual."""
    def run():
        y = F.linear(x[0], x[1], x[2])
        if about["gelu"]:
            y = F.gelu(y, approximate="tanh")
        return [y if len(x) < 4 else x[3] + x[4] * y]
    return {"eager": run}


def attention(about, x):
    """SDPA, and the products written out."""
    q, k, v = (t.transpose(1, 2) for t in x)
    mask = None
    if "ends" in about:
        at = torch.arange(q.shape[2], device=q.device)
        level = torch.bucketize(at, torch.tensor(about["ends"], device=q.device), right=True)
        mask = level[:, None] >= level[None]
    scale = about["scale"]

    def fused():
        return [F.scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(1, 2)]

    def written():
        s = q @ k.transpose(-1, -2) * scale
        s = s if mask is None else s.masked_fill(~mask, float("-inf"))
        return [(torch.softmax(s, -1) @ v).transpose(1, 2)]
    return {"SDPA": fused, "written out": written}


def attention_jvp(about, x):
    """func.jvp through the products; the flash kernels have no forward mode."""
    values, tangents = tuple(x[:3]), tuple(x[3:])

    def of(q, k, v):
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        s = q @ k.transpose(-1, -2) * about["scale"]
        return (torch.softmax(s, -1) @ v).transpose(1, 2)

    def run():
        y, dy = torch.func.jvp(of, values, tangents)
        # Between value and tangent ours has the log-sum-exp.
        return [y, None, dy]
    ways = {"func.jvp": run}
    try:
        from jvp_flash_attention.jvp_attention import JVPAttn
    except ImportError:
        return ways

    def flash():
        def call(q, k, v):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return JVPAttn.fwd_dual(q, k, v, sm_scale=about["scale"]).transpose(1, 2)
        y, dy = torch.func.jvp(call, values, tangents)
        return [y, None, dy]
    return ways | {"jvp_flash_attention": flash}


def ada_norm(_about, x):
    return {"eager": lambda: [F.layer_norm(x[0], x[0].shape[-1:], eps=EPS) * (1 + x[1]) + x[2]]}


def unit_heads(about, x):
    def run():
        b, n, _ = x[0].shape
        q, k, v = x[0].view(b, n, 3, about["heads"], -1).unbind(2)
        heat = x[1].float().clamp(max=LN_MAX_SCALE).exp().to(q.dtype)
        return [F.normalize(q, dim=-1) * heat, F.normalize(k, dim=-1), v]
    return {"eager": run}


def nearest_code(_about, x):
    half = x[1].square().sum(-1) / 2
    return {"cdist, argmin": lambda: [torch.cdist(x[0], x[1]).argmin(-1)],
            "product, argmax": lambda: [(x[0] @ x[1].T - half).argmax(-1)]}


def keep_mask(_about, x):
    def run():
        saliency = x[0].float().flatten(1, 2).square().sum(-1).sqrt()
        spread = saliency.std(-1, correction=0, keepdim=True) + ROOM
        level = (saliency - saliency.mean(-1, keepdim=True)) / spread
        return [(level > 0).float()[..., None], saliency]
    return {"eager": run}


def sample_token(about, x):
    return {"sort": lambda: [draw(x[0], x[1], about["guidance"], about["top_k"], about["top_p"])]}


def cross_entropy(_about, x):
    target = x[1].long()
    return {"eager": lambda: [F.cross_entropy(x[0].float(), target, reduction="none")]}


def conv(about, x):
    """Channels-last convolution, the input doubled or a residual added."""
    m, w = x[0].permute(0, 3, 1, 2), x[1].permute(0, 3, 1, 2)
    plain = [t.contiguous() for t in (m, w)]
    last = [t.contiguous(memory_format=torch.channels_last) for t in (m, w)]

    def way(pair):
        def run():
            m = F.interpolate(pair[0], scale_factor=2) if about["double"] else pair[0]
            y = F.conv2d(m, pair[1], x[2], padding=1).permute(0, 2, 3, 1)
            return [y if len(x) < 4 else y + x[3]]
        return run
    return {"NCHW": way(plain), "channels last": way(last)}


def group_norm(about, x):
    m = x[0].permute(0, 3, 1, 2).contiguous()

    def run():
        return [F.silu(F.group_norm(m, about["groups"], x[1], x[2], EPS)).permute(0, 2, 3, 1)]
    return {"eager": run}


WORK = {
    "linear": linear, "fused_linear": linear, "attention": attention,
    "attention_dual": attention_jvp, "ada_norm": ada_norm, "unit_heads": unit_heads,
    "nearest_code": nearest_code, "keep_mask": keep_mask, "sample_token": sample_token,
    "cross_entropy": cross_entropy, "fused_conv": conv, "group_norm": group_norm,
}


def compiled(ways, **options):
    """The first way once more, by torch.compile."""
    first = next(iter(ways.values()))
    return ways | {"compile": torch.compile(first, **options)}


