"""The state of a run: everything that a checkpoint holds and that a step replaces."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from mv2mae_jax import optim


@flax.struct.dataclass
class TrainState:
    """Attributes:
    step: int32[], steps taken, including those whose update was skipped. It decides the learning rate.
    params: parameters, float32.
    opt_state: optax state.
    ema_params: exponential moving average of the parameters, or None.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema_params: Any = None

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation, with_ema: bool) -> "TrainState":
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            # A copy: donating the state twice over one buffer is an error.
            ema_params=jax.tree.map(jnp.copy, params) if with_ema else None,
        )

    def apply_gradients(
        self, grads: Any, optimizer: optax.GradientTransformation, ema_decay: float | None, usable: jax.Array
    ) -> "TrainState":
        """The next state. If not `usable` (bool[]), the update is skipped and only the step changes."""
        opt_state = optim.scheduled_at(self.opt_state, self.step)
        updates, opt_state = optimizer.update(grads, opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        ema_params = self.ema_params
        if ema_decay is not None:
            ema_params = optax.incremental_update(params, ema_params, 1.0 - ema_decay)
        updated = self.replace(params=params, opt_state=opt_state, ema_params=ema_params)
        chosen = jax.tree.map(lambda new, old: jnp.where(usable, new, old), updated, self)
        return chosen.replace(step=self.step + 1)

    @property
    def eval_params(self) -> Any:
        """The parameters for evaluation and export: the average if there is one."""
        return self.params if self.ema_params is None else self.ema_params
