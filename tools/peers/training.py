"""Whole training steps in PyTorch: Phi's MeanFlow step with its JVP, the transformer's step."""

import torch
from torch.nn import functional as F

from models import MaskedAr, Phi, load

TINY = 1e-20


def adamw(model, config, stage, device):
    """The optimiser of a stage, fused where PyTorch has that, with genevar's decay rule."""
    c = config["train"][stage]
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": c["weight_decay"]},
              {"params": rest, "weight_decay": 0.0}]
    fused = torch.device(device).type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=1e-4, betas=(c["beta1"], c["beta2"]), fused=fused)


class Step:
    """A model in training; `loss` gives the mean loss of the job's batch."""

    def __init__(self, model, bundle, stage, about, device):
        self.model, self.about = model.train().to(device), about
        self.clip = bundle.config["train"][stage]["clip"]
        self.config = bundle.config
        self.optimiser = adamw(model, bundle.config, stage, device)
        self.start = {n: p.detach().clone() for n, p in model.named_parameters()}

    def __call__(self):
        loss = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.clip if self.clip > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimiser.step()
        return loss.detach(), norm

    def checked(self, outputs):
        """Loss, norm and the gradients that were written, each with ours; weights put back."""
        loss = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        grads = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        pairs = [("loss", loss.detach().reshape(1), outputs["loss"]),
                 ("norm", norm.reshape(1), outputs["norm"])]
        for name, wanted in outputs.items():
            if name.startswith("grad."):
                pairs.append((name, grads[name[len("grad."):]], wanted))
        return pairs


class MeanFlow(Step):
    """The JVP target, the push away from one counterfactual, the adaptive weight."""

    def __init__(self, bundle, about, x, device):
        phi = load(Phi(bundle.config), bundle.weights("meanflow"))
        super().__init__(phi, bundle, "meanflow", about, device)
        self.x = x
        self.t = torch.tensor(about["t"], device=device)
        self.r = torch.tensor(about["r"], device=device)

    def loss(self):
        m, x, about = self.config["meanflow"], self.x, self.about
        v = x["eps"] - x["f"]
        f_t = x["f"] + self.t[:, None, None, None] * v

        def phi(f, t):
            return self.model(f, x["r_k"], x["z"], t, self.r, about["k"], own=True)
        u, du = torch.func.jvp(phi, (f_t, self.t), (v, torch.ones_like(self.t)))
        span = (self.t - self.r)[:, None, None, None]
        a = (v - span * du).detach().flatten(1)
        u, towards = u.flatten(1), (x["eps"] - x["negative"]).flatten(1)
        length = (a.square().sum(1) + TINY).sqrt() / (towards.square().sum(1) + TINY).sqrt()
        c = about["lambda"] * length[:, None] * towards
        s = (u - a).square().sum(1)
        d, reach = (u - c).square().sum(1), (a - c).square().sum(1)
        if m["clamp"] != "relative":
            raise SystemExit("the peers know the relative clamp")
        push = -torch.minimum(d, m["clamp_kappa"] * reach)
        weight = (s + m["adaptive_c"]).detach() ** m["adaptive_p"]
        return ((s + about["alpha"] * push) / weight).mean()


class Ar(Step):
    """Teacher forcing over all scales."""

    def __init__(self, bundle, about, x, device):
        ar = load(MaskedAr(bundle.config), bundle.weights("ar"))
        super().__init__(ar, bundle, "ar", about, device)
        self.x = x
        self.forward = self.model

    def loss(self):
        x = self.x
        logits = self.forward(self.model.cond(x["z"]), x["features"], x["r"], x["keep"])
        return F.cross_entropy(logits.flatten(0, 1), x["tokens"].flatten().long())


def jvp(bundle, about, x, device):
    """Phi and its derivative along (v, 0, 1), as a function without arguments."""
    phi = load(Phi(bundle.config), bundle.weights("meanflow")).to(device).requires_grad_(False)
    rows = len(x["f"])
    t, r = (torch.full((rows,), about[n], device=device) for n in ("t", "r"))

    def of(f, t):
        return phi(f, x["r_k"], x["z"], t, r, about["k"], own=True)

    def run():
        return torch.func.jvp(of, (x["f"], t), (x["eps"], torch.ones_like(t)))
    return run
