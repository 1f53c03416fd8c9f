"""Gumbel noise in hindsight: noise under which a policy would have written exactly a given text.

A rollout's own noise is a function of its key and can be made again. For any other text (pasted,
or a demonstration) noise is drawn from its posterior, given that at each position the argmax of
`log π + noise` was the observed token k. Top-down: the maximum is Gumbel(logsumexp(log π)) =
Gumbel(0), independent of which token has it; the rest are Gumbels truncated below it:

    noise_k = M − log π_k,    M ~ Gumbel(0)
    noise_i = −log( exp(log π_i − M) + exp(−g_i) ),    g_i ~ Gumbel(0)      for i ≠ k

Behind the end of the text the noise is unconditioned. Another policy's completion on this noise is
what it would have written had chance been the same: over texts of the first policy, its texts have
the other policy's own distribution, and a token that became likelier relative to all others stays.

Sources: Maddison, Tarlow, Minka, "A* sampling" (2014); Oberst and Sontag, "Counterfactual
off-policy evaluation with Gumbel-max structural causal models" (2019); for language models
Ravfogel et al., "Gumbel counterfactual generation from language models" (arXiv 2411.07180).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.sampling import Noise, completion_logits, gumbel, pack

MARGIN = 1e-4
"""Nats by which the observed token wins at least, so that rounding cannot undo it. [ours]"""


def posterior_gumbel(prior_NV: Tensor, logprobs_NV: Tensor, observed_N: Tensor) -> Tensor:
    """Gumbel noise given that the argmax of logprobs + noise is `observed`: float32 (N, V).

    prior_NV: independent standard Gumbel noise, of which this is a function: equal prior, equal
    posterior. logprobs_NV: normalised.
    """
    prior, logprobs, chosen = prior_NV.double(), logprobs_NV.double(), observed_N[:, None]
    top = prior.gather(1, chosen)  # M: any of the V would do
    below = -torch.logaddexp(logprobs - top, -prior)
    noise = torch.minimum(below, top - MARGIN - logprobs)
    return noise.scatter(1, chosen, top - logprobs.gather(1, chosen)).float()


@dataclass(frozen=True, eq=False)
class HindsightNoise:
    """Noise streams conditioned on texts; streams i·K … i·K + K − 1 belong to text i of N."""

    prior: Noise
    logprobs_NCV: Tensor
    """log π of the policy that wrote the texts, before each of their tokens."""
    token_ids_NC: Tensor
    sampled_NC: Tensor
    """bool: where the policy drew the token; what an environment put in tells nothing of noise."""
    rollouts: int
    """K."""

    def at(self, sequences: Tensor, position: int | Tensor, vocab_size: int) -> Tensor:
        """Noise of some streams, each at one position, (len(sequences), V)."""
        prior = gumbel(self.prior, sequences, position, vocab_size)
        text, longest = sequences // self.rollouts, self.token_ids_NC.shape[1]
        wanted = torch.as_tensor(position, device=sequences.device).expand(len(sequences))
        at = wanted.clamp(max=longest - 1)
        conditioned = posterior_gumbel(
            prior, self.logprobs_NCV[text, at], self.token_ids_NC[text, at]
        )
        sampled = (wanted < longest) & self.sampled_NC[text, at]
        return torch.where(sampled[:, None], conditioned, prior)


@torch.no_grad()
def hindsight_noise(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    token_ids: Sequence[Sequence[int]],
    *,
    prior: Noise,
    rollouts: int = 1,
    temperature: float,
    writers: Sequence[Sequence[str]] = (),
) -> HindsightNoise:
    """K = `rollouts` draws of noise under which `model` writes each text behind its prompt.

    writers: who wrote each token, as `sampling.pack` takes it.
    """
    device = next(model.parameters()).device
    # padding is masked out
    tokens = pack(prompt_ids, token_ids, pad_id=0, device=device, writers=writers)
    return HindsightNoise(
        prior,
        completion_logits(model, tokens, temperature).double().log_softmax(-1),
        tokens.completion_ids,
        tokens.completion_mask > 0,
        rollouts,
    )
