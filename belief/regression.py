"""Linear models held as plain arrays, so that they are saved without pickle and act without
scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLIP = 4.0  # standard deviations that an input may be away from its mean
MAX_LOG_ODDS = 5.0
MAX_ITERATIONS = 200


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-log_odds))


@dataclass(frozen=True)
class Standardiser:
    """Inputs (N, F) to zero mean and unit deviation, clipped."""

    mean: np.ndarray  # (F,)
    scale: np.ndarray  # (F,)

    @classmethod
    def fit(cls, inputs: np.ndarray) -> Standardiser:
        scale = inputs.std(0)
        return cls(inputs.mean(0), np.where(scale < 1e-9, 1.0, scale))

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return np.clip((inputs - self.mean) / self.scale, -CLIP, CLIP)


@dataclass(frozen=True)
class Logistic:
    """Logistic regression: inputs (N, F) -> log-odds (N,), within +-MAX_LOG_ODDS."""

    weights: np.ndarray  # (F,)
    bias: float

    @classmethod
    def fit(cls, inputs: np.ndarray, labels: np.ndarray, strength: float) -> Logistic:
        """By scikit-learn; `strength` is its C, the inverse of the L2 penalty."""
        from sklearn.linear_model import LogisticRegression

        if labels.all() or not labels.any():  # nothing to tell apart: the rate, with a prior
            rate = (labels.sum() + 0.5) / (len(labels) + 1)
            return cls(np.zeros(inputs.shape[1]), float(np.log(rate / (1 - rate))))
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=1e-3)
        model.fit(inputs, labels)
        return cls(model.coef_[0].astype(np.float64), float(model.intercept_[0]))

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return np.clip(inputs @ self.weights + self.bias, -MAX_LOG_ODDS, MAX_LOG_ODDS)


class Ridge:
    """Ridge regression from normal equations that are added up block by block."""

    def __init__(self, num_inputs: int):
        self.gram = np.zeros((num_inputs, num_inputs))
        self.moment = np.zeros(num_inputs)
        self.num_rows = 0

    def add(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Take in rows (N, F) with their targets (N,)."""
        self.gram += inputs.T @ inputs
        self.moment += inputs.T @ targets
        self.num_rows += len(inputs)

    @property
    def root_mean_square(self) -> np.ndarray:
        """Of each input (F,)."""
        return np.sqrt(np.diag(self.gram) / self.num_rows)

    def solve(self, penalty: float) -> np.ndarray:
        """Weights (F,); `penalty` counts rows of inputs scaled to a mean square of one."""
        scale = self.root_mean_square + 1e-9
        scaled = self.gram / np.outer(scale, scale)
        scaled[np.diag_indices_from(scaled)] += penalty
        return np.linalg.solve(scaled, self.moment / scale) / scale
