"""Actions drawn by their scores, so that other policies can be judged on the routes left behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from belief.outcome_model import one_hot


@dataclass(frozen=True)
class Exploration:
    """A share of all decisions is drawn by a softmax over scores; the others take the highest.

    temperature: of the softmax, in units of return.
    """

    share: float = 0.0
    temperature: float = 1.0

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Of actions (B, A), from their scores (B, A) in units of return."""
        best = one_hot(scores.argmax(1), scores.shape[1])
        drawn: np.ndarray = softmax(scores / self.temperature, axis=1)
        return (1 - self.share) * best + self.share * drawn


GREEDY = Exploration()
