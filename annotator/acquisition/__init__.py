"""What to ask next: pure scorers, one file each, and the policy that mixes them into one order.

Every scorer is a function `score(pool) -> (N,) float64`: higher is asked first, NaN means that the arm does not apply
to that face. A scorer reads a `PoolView` and changes nothing.
"""

from annotator.acquisition.candidates import candidate_set
from annotator.acquisition.policy import Mixed, mix, order_pool
from annotator.acquisition.pool import PoolView

__all__ = ["Mixed", "PoolView", "candidate_set", "mix", "order_pool"]
