"""MinimizeResult: what a minimization brings back."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MinimizeResult:
    """What `minimize` returns.

    * `params`: the parameters, of the kind that was passed in;
    * `value`: the loss there;
    * `success`: whether the method converged, or the run ended as it was asked to (the callback stopped it; all steps
      of an optax method without `tol` were made). Never true where the value is not finite, nor where SciPy claims to
      have converged and the relative gradient, max |g_i| max(|x_i|, 1) / max(|f|, 1), is above 0.01 and `tol`;
    * `message`: why the run ended, and what to do where it failed;
    * `steps`: iterations of the method;
    * `evaluations`: evaluations of the loss, each with its gradient where the method uses one. For optax and optimistix
      those that a method makes inside one step (line searches, simplices) are counted once;
    * `history`: the loss at the start and after each step, `(steps + 1,)`;
    * `aux`: with `has_aux=True`, what the loss returned beside its value at `params`.
    """

    params: Any
    value: float
    success: bool
    message: str
    steps: int
    evaluations: int
    history: np.ndarray
    aux: Any = None

    def __repr__(self) -> str:
        return (
            f"MinimizeResult(value={self.value:.6g}, success={self.success}, steps={self.steps}, "
            f"evaluations={self.evaluations}, message={self.message!r}, params={self.params!r})"
        )
