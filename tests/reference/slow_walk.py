"""A tree grown one node and one forward at a time, in float64, from the closed forms: slow, and
obviously right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from branchgrpo.algo import noise
from branchgrpo.types import BranchPlan, Conditioning, Subtree
from tests.reference import closed_forms
from tests.reference.linear_model import LinearModel
from tests.reference.node_tree import build, build_comb


class SlowWalk:
    """One tree in float64, one node object and one forward at a time."""

    def __init__(self, plan: BranchPlan, subtree: Subtree, cond: Conditioning, seed: int):
        model = LinearModel()
        prompt = torch.from_numpy(cond.arrays["prompt"][[subtree.prompt_index]])
        self.nodes = build_comb(plan.fanout, plan.stochastic) if plan.comb else build(plan.fanout)
        first = (
            subtree.key.tree // plan.chains * plan.chains if plan.shared_root else subtree.key.tree
        )
        root = noise.draw(seed, replace(subtree.key, tree=first), 0, model.latent_shape)
        self.latents: dict[int, np.ndarray] = {0: root.double().numpy()}
        self.log_prob: dict[int, float] = {}
        self.velocity: dict[int, np.ndarray] = {}
        self.pictures: list[np.ndarray] = []
        clean: dict[int, np.ndarray] = {}
        for node in self.nodes:
            if not node.children:
                continue
            step, x = node.level, self.latents[node.number]
            sigma, after = float(plan.sigmas[step]), float(plan.sigmas[step + 1])
            with torch.no_grad():
                v = (
                    model.denoiser(
                        torch.from_numpy(x).reshape(1, -1), torch.tensor([sigma]), prompt
                    )
                    .reshape(x.shape)
                    .numpy()
                )
            self.velocity[node.number], clean[node.number] = v, x - sigma * v
            noisy = [
                child.number
                for child in node.children
                if (child.random if plan.comb else plan.kernel[step] not in ("ode", "dpm"))
            ]
            for child in node.children:
                if child.number in noisy:
                    continue
                if plan.kernel[step] == "dpm":
                    before = clean[node.parent.number] if plan.kernel[step - 1] == "dpm" else None
                    self.latents[child.number] = closed_forms.dpm(
                        x,
                        clean=clean[node.number],
                        before=before,
                        sigma=sigma,
                        sigma_next=after,
                        sigma_before=float(plan.sigmas[step - 1]),
                    )
                else:
                    self.latents[child.number] = closed_forms.ode(x, v, sigma, after)[0]
            if noisy:
                mean, std = self.transition(plan, step, x, v)
                noises = (
                    noise.branch(
                        plan.branch_noise,
                        scale=plan.branch_scale,
                        seed=seed,
                        key=subtree.key,
                        parent=node.number,
                        children=noisy,
                        shape=x.shape,
                    )
                    .double()
                    .numpy()
                )
                for number, xi in zip(noisy, noises, strict=True):
                    self.latents[number] = mean + std * xi
                    self.log_prob[number] = closed_forms.mean_log_density(
                        self.latents[number], mean, std
                    )
            if step == plan.steps - 1:
                self.pictures += [clean[node.number]] * len(node.children)

    @staticmethod
    def transition(
        plan: BranchPlan, step: int, x: np.ndarray, v: np.ndarray
    ) -> tuple[np.ndarray, float]:
        values = (
            x,
            v,
            float(plan.sigmas[step]),
            float(plan.sigmas[step + 1]),
            plan.noise_scale[step],
        )
        if plan.kernel[step] == "flow":
            mean, std = closed_forms.flow(*values, float(plan.sigmas[1]))
        else:
            mean, std = {"dance": closed_forms.dance, "cps": closed_forms.cps}[plan.kernel[step]](
                *values
            )
        return mean, std * (
            plan.branch_scale if plan.branch_noise == "scaled" and plan.fanout[step] > 1 else 1.0
        )
