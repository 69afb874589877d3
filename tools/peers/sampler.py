"""The 10-step sampler in PyTorch: eager, compiled, or captured as a CUDA graph.

It draws with genevar's random numbers, so that tokens can be compared one by one. Nothing in the
loop looks at what was drawn, which is what a capture wants.
"""

import numpy as np
import torch

from models import MaskedAr, Msvq, Phi, load, resize
from philox import MASK, NOISE, TOKEN, normals, uniforms

ROOM = 1e-6


class Noise:
    """Every random number of a batch, on the device."""

    def __init__(self, config, seed, ids, device):
        patch_nums, d = config["msvq"]["patch_nums"], config["msvq"]["d"]
        shape = (patch_nums[-1], patch_nums[-1], d)

        def rows(of, scale, purpose, extents):
            n = int(np.prod(extents))
            every = [of(seed, i, scale, purpose, n).reshape(extents) for i in ids]
            return torch.from_numpy(np.stack(every)).to(device)

        scales = range(len(patch_nums))
        self.eps = [rows(normals, k, NOISE, shape) for k in scales]
        self.gamma = [rows(normals, k, MASK, (patch_nums[k] ** 2,)) for k in scales]
        self.u = [rows(uniforms, k, TOKEN, (patch_nums[k] ** 2,)) for k in scales]


def draw(logits, u, guidance, top_k, top_p):
    """Guided mix, top-k, top-p and a draw by inverse transform: [B or 2 B, n, V] to [B, n]."""
    logits = logits.float()
    if guidance is not None:
        own, null = logits.chunk(2)
        logits = own + guidance * (own - null)
    best, index = torch.sort(logits, dim=-1, descending=True, stable=True)
    kept = best >= best[..., top_k - 1:top_k]
    weight = (best - best[..., :1]).exp() * kept
    if top_p < 1:
        tail = weight.flip(-1).cumsum(-1).flip(-1)
        dropped = tail <= (1 - top_p) * weight.sum(-1, keepdim=True)
        dropped[..., 0] = False
        weight = weight.masked_fill(dropped, 0)
    weight = torch.zeros_like(weight).scatter(-1, index, weight)
    below = weight.cumsum(-1)
    aim = u[..., None] * below[..., -1:]
    token = (below <= aim).sum(-1)
    # Rounding may leave the whole sum at the aim: then it is the last with any weight.
    last = weight.shape[-1] - 1 - (weight.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(token, last)


class Sampler:
    """The models of a bundle on a device, in a type."""

    def __init__(self, bundle, device, dtype):
        c = self.config = bundle.config
        if c["mask"]["kind"] not in ("gradient", "none") or c["mask"]["draws"] != 1 \
                or c["mask"]["normalise"] != "z_score" or c["mask"]["target"] == "sens":
            raise SystemExit("the peers know z-scored gradient masks of one draw")
        self.device, self.dtype = device, dtype
        self.msvq = load(Msvq(c), bundle.weights("msvq")).to(device)
        # The code book and what follows it stay in f32, as features are sums over scales.
        self.msvq.decoder.to(dtype)
        self.msvq.post_quant_conv.to(dtype)
        self.ar = load(MaskedAr(c), bundle.weights("ar")).to(device, dtype)
        self.phi = None
        if not c["ar"]["plain_var"]:
            self.phi = load(Phi(c), bundle.weights("meanflow")).to(device, dtype)
        stats = bundle.stages["ar"]
        self.mean, self.std = (stats[f"feature.{n}"].to(device) for n in ("mean", "std"))
        for model in (self.msvq, self.ar, self.phi):
            if model is not None:
                model.requires_grad_(False)
        self.paint, self.step, self.velocity = self.msvq.paint, self.ar.step, self.phi

    def compile(self, **options):
        """Lets torch.compile have the networks; the loop round them stays Python."""
        self.step = torch.compile(self.ar.step, **options)
        self.paint = torch.compile(self.msvq.paint, **options)
        if self.phi is not None:
            self.velocity = torch.compile(self.phi, **options)
        return self

    def keep(self, k, f_hat, r_k, target, gamma):
        """M_k [B, n, 1] from the gradient of the squared error to r_k."""
        each = f_hat[0].numel()
        error = (f_hat - target).detach() * (2 / each)
        (g,) = torch.autograd.grad(f_hat, r_k, error.to(f_hat.dtype))
        saliency = g.float().flatten(1, 2).square().sum(-1).sqrt()
        spread = saliency.std(-1, correction=0, keepdim=True) + ROOM
        level = (saliency - saliency.mean(-1, keepdim=True)) / spread
        bar = gamma if self.config["mask"]["gamma"] == "sampled" else 0.0
        return (level > bar).to(self.dtype)[..., None]

    def inputs(self, k, f, z, noise):
        """(features, r, keep) of scale k from f_{k-1}."""
        c = self.config
        p, side = c["msvq"]["patch_nums"][k], c["msvq"]["patch_nums"][-1]
        pooled = resize(f, p, "area")
        r_k = (pooled - self.mean) / self.std
        r_seen = (r_k if c["ar"]["standardise"] else pooled).to(self.dtype).flatten(1, 2)
        if self.phi is None:
            return r_seen, r_seen, None
        eps, keep = noise.eps[k].to(self.dtype), None
        masked = c["mask"]["kind"] == "gradient" and k + 1 >= c["mask"]["k_m"]
        with torch.set_grad_enabled(masked):
            leaf = r_k.to(self.dtype).requires_grad_(masked)
            one, zero = torch.ones(len(z), device=self.device, dtype=self.dtype), \
                torch.zeros(len(z), device=self.device, dtype=self.dtype)
            f_hat = eps - self.velocity(eps, leaf, z.to(self.dtype), one, zero, k)
            if masked:
                target = (f - self.mean) / self.std
                keep = self.keep(k, f_hat, leaf, target, noise.gamma[k])
        f_hat = f_hat.detach().float()
        restored = f_hat * self.std + self.mean
        seen = resize(f_hat if c["ar"]["standardise"] else restored, p, "area")
        return seen.to(self.dtype).flatten(1, 2), r_seen, keep

    def __call__(self, z, noise, follow=None):
        """z [B, latent] to (tokens [B, L], f_K, pixels). `follow` [B, L] are tokens to go on with
        in place of those drawn, so that a draw is judged behind the same past."""
        s, patch_nums = self.config["sample"], self.config["msvq"]["patch_nums"]
        top_k = s["top_k"] or -(-self.config["msvq"]["vocab"] * 900 // 4096)
        top_k = min(top_k, self.config["msvq"]["vocab"])
        guided, last = s["cfg"] != 0, len(patch_nums) - 1
        with torch.no_grad():
            cond = self.ar.cond(z.to(self.dtype))
            if guided:
                cond = torch.cat([cond, self.ar.null.expand_as(cond)])
            caches, f, drawn, at = [{} for _ in self.ar.blocks], 0.0, [], 0
            for k, p in enumerate(patch_nums):
                seen = self.inputs(k, f, z, noise) if k else None
                if guided and seen is not None:
                    seen = tuple(None if x is None else torch.cat([x, x]) for x in seen)
                logits = self.step(k, cond, caches, seen)
                tau = s["cfg"] * (k / max(last, 1) if s["guidance"] == "ramp" else 1)
                tokens = draw(logits, noise.u[k], tau if guided else None, top_k, s["top_p"])
                drawn.append(tokens)
                used = tokens if follow is None else follow[:, at:at + p * p]
                at += p * p
                f = f + self.msvq.raised(k, used)
            return torch.cat(drawn, 1), f, self.paint(f).float()


class Graph:
    """A sampler's batch captured as one CUDA graph."""

    def __init__(self, sampler, z, noise):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                sampler(z, noise)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.drawn = sampler(z, noise)

    def __call__(self, *_):
        self.graph.replay()
        return self.drawn
