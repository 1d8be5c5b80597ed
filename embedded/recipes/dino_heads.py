"""DINO's projection heads, the teacher's targets, and the two losses between student and teacher."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class PrototypeHead(nn.Module):
    """Features -> cosines with learnt prototypes: an MLP of three layers, an L2-normalised bottleneck, unit prototypes.

    Source: DINO (Caron et al. 2021), section 3.1 and appendix C, without batch normalisation.
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in (*self.mlp[::2], self):
            nn.init.trunc_normal_(layer.prototypes if layer is self else layer.weight, std=0.02)
        for layer in self.mlp[::2]:
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "b c"]) -> Float[Tensor, "b g"]:
        """Cosines, float32, in -1..1."""
        projected = F.normalize(self.mlp(features).float(), dim=-1)
        with torch.autocast(projected.device.type, enabled=False):
            return projected @ F.normalize(self.prototypes.float(), dim=-1).T


@torch.no_grad()
def assign(cosines: Float[Tensor, "b g"], temperature: float, *, rounds: int = 3) -> Float[Tensor, "b g"]:
    """The teacher's assignments: sharpened by a low temperature, and every prototype used by the batch equally.

    Sharpening alone would drive all pictures to one prototype; the even use, found by Sinkhorn's and Knopp's rounds of
    scaling columns and rows in turn, replaces DINO's centring.

    Returns:
        Probabilities, float32.

    Source: DINOv2, section 4 ("Sinkhorn-Knopp centering"), three rounds.
    """
    scores = cosines.float() / temperature
    for _ in range(rounds):
        scores = scores - torch.logsumexp(scores, dim=0, keepdim=True)
        scores = scores - torch.logsumexp(scores, dim=1, keepdim=True)
    return scores.exp()


def cross_entropy(
    targets: Float[Tensor, "b g"], cosines: Float[Tensor, "b g"], temperature: float
) -> Float[Tensor, " b"]:
    """How badly the student's cosines foretell the teacher's assignments, in nats."""
    return -(targets * F.log_softmax(cosines / temperature, dim=-1)).sum(-1)


def picture_loss(
    targets: Float[Tensor, "v b g"], cosines: Float[Tensor, "w b g"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy over all pairs of a teacher's view and another view of the student of the same picture.

    The first views of the student are the teacher's, in the same order; a view is never compared with itself.
    """
    pairs = [
        cross_entropy(target, seen, temperature).mean()
        for number, target in enumerate(targets)
        for other, seen in enumerate(cosines)
        if number != other
    ]
    return torch.stack(pairs).mean()


def entropies(assigned: Float[Tensor, "b g"]) -> tuple[float, float]:
    """Entropy in nats of the mean assignment, and the mean of each one's own.

    The second as high as the first: all pictures are assigned alike, and the assignments say nothing.
    """
    mean = assigned.mean(0)
    return float(torch.special.entr(mean).sum()), float(torch.special.entr(assigned).sum(-1).mean())
