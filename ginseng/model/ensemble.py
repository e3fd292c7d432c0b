"""Networks of one making but different weights, whose probabilities are averaged."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Num, PRNGKeyArray

from ginseng.model.modules import logits_of


class Ensemble(eqx.Module):
    """Networks that differ in their weights only: its probabilities are the mean of theirs.

    Trained by `ginseng.Trainer`, each learns from its own loss, and all of them in one compiled step.

    Parameters
    ----------
    members : sequence of eqx.Module
        Equal but for the values of their arrays; at least one.

    Raises
    ------
    ValueError
        If they are not of one making.

    References
    ----------
    Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles, NeurIPS 2017.

    Examples
    --------
    >>> ensemble = Ensemble([eqx.nn.Linear(4, 3, key=jr.key(seed)) for seed in range(5)])
    >>> float(jnp.exp(ensemble(jnp.ones(4))).sum().round(3))
    1.0
    """

    stacked: Any
    n_members: int = eqx.field(static=True)

    def __init__(self, members: Sequence[eqx.Module]):
        parts = [eqx.partition(member, eqx.is_array) for member in members]
        if not parts:
            raise ValueError("An ensemble needs at least one member.")
        if not all(_are_alike(rest, parts[0][1]) for _, rest in parts):
            raise ValueError(
                "The members of an ensemble must be of one making, but they differ in sizes or in settings that are no "
                "arrays."
            )
        try:
            arrays = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arrays for arrays, _ in parts))
        except (TypeError, ValueError) as error:
            raise ValueError(f"The members of an ensemble must be of one making: {error}") from error
        self.stacked = eqx.combine(arrays, parts[0][1])
        self.n_members = len(parts)

    @property
    def members(self) -> list[Any]:
        """The networks, one by one."""
        arrays, rest = eqx.partition(self.stacked, eqx.is_array)
        each = [jax.tree.map(lambda leaf, nth=nth: leaf[nth], arrays) for nth in range(self.n_members)]
        return [eqx.combine(of_member, rest) for of_member in each]

    def __call__(self, x: Num[Array, " genes"], *, key: PRNGKeyArray | None = None) -> Any:
        """Return the logarithm of the mean probabilities for one cell; `key` is needed where dropout is on."""

        def mean(logits: Float[Array, "members 1 classes"]) -> Float[Array, " classes"]:
            return jax.nn.logsumexp(jax.nn.log_softmax(logits[:, 0]), axis=0) - jnp.log(self.n_members)

        return jax.tree.map(mean, member_logits_of(self, x[None], key))


def _are_alike(one: Any, other: Any) -> bool:
    """Whether the parts of two modules that are no arrays are equal; functions, if they have the same name."""
    leaves = [jax.tree.flatten(rest) for rest in (one, other)]
    if leaves[0][1] != leaves[1][1]:
        return False
    names = [[getattr(leaf, "__qualname__", leaf) for leaf in of_rest] for of_rest, _ in leaves]
    return names[0] == names[1]


def member_logits_of(module: Any, x: Num[Array, "batch genes"], key: PRNGKeyArray | None = None) -> Any:
    """Logits of a batch, of shape (members, batch, classes), by each member of an ensemble, or by any other module.

    Of a module with several outputs, a tuple of these.

    Examples
    --------
    >>> member_logits_of(eqx.nn.Linear(4, 3, key=jr.key(0)), jnp.ones((5, 4))).shape
    (1, 5, 3)
    """
    if not isinstance(module, Ensemble):
        return jax.tree.map(lambda logits: logits[None], logits_of(module, x, key))
    keys = None if key is None else jr.split(key, module.n_members)
    of_each = eqx.filter_vmap(logits_of, in_axes=(eqx.if_array(0), None, None if keys is None else 0))
    return of_each(module.stacked, x, keys)


def n_members_of(module: Any) -> int:
    """How many networks a module is.

    Examples
    --------
    >>> n_members_of(eqx.nn.Linear(4, 3, key=jr.key(0)))
    1
    """
    return module.n_members if isinstance(module, Ensemble) else 1


def members_of(module: Any) -> list[Any]:
    """The networks that a module is: those of an ensemble, or itself.

    Examples
    --------
    >>> len(members_of(Ensemble([eqx.nn.Linear(4, 3, key=jr.key(seed)) for seed in range(2)])))
    2
    """
    return module.members if isinstance(module, Ensemble) else [module]


def joined(members: Sequence[Any]) -> Any:
    """An ensemble of several networks, or the one that there is.

    Examples
    --------
    >>> type(joined([eqx.nn.Linear(4, 3, key=jr.key(0))])).__name__
    'Linear'
    """
    return members[0] if len(members) == 1 else Ensemble(members)
