"""Augmentations of counts: keyed, of fixed shape, traceable by `jax.jit` (with their settings static)."""

import math

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Num, PRNGKeyArray

from ginseng.utils.values import is_integer, require_number


def require_parts(
    rate: float | None = None,
    lam_max: float | None = None,
    lower: int | None = None,
    upper: int | None = None,
    n_genes: int | None = None,
) -> None:
    """Raise a ValueError unless each part of an augmentation is off or can be done; a part is off where it is None.

    Parameters
    ----------
    rate, lam_max, lower, upper : optional
        See `augment`.
    n_genes : int, optional
        The number of genes of the counts, where it is known.

    Examples
    --------
    >>> require_parts(rate=0.1, lower=0, upper=2)
    """
    if rate is not None:
        require_number("rate", rate, "[0, 1]")
    if lam_max is not None:
        require_number("lam_max", lam_max, "[0, inf)")
    if lower is None and upper is None:
        return
    if lower is None or upper is None:
        raise ValueError(
            f"Genes to drop need `lower` and `upper`, or None for both to drop none, but got {lower} and {upper}."
        )
    most = math.inf if n_genes is None else n_genes + 1
    are_integers = is_integer(lower) and is_integer(upper)
    if not are_integers or not (lower == upper == 0 or 0 <= lower < upper <= most):
        within = "" if n_genes is None else f" <= {most}"
        raise ValueError(
            f"Genes to drop need integers 0 <= `lower` < `upper`{within}, but got {lower!r} and {upper!r}; 0 and 0 "
            "drop none."
        )


def augment_mask(key: PRNGKeyArray, x: Num[Array, "..."], rate: float = 0.1) -> Num[Array, "..."]:
    """Set each count to zero with probability `rate`, without rescaling the others.

    Parameters
    ----------
    key : Array
        PRNG key.
    x : Array
        Counts of any shape.
    rate : float
        Probability of losing a count.

    Returns
    -------
    Array
        Of the shape and type of `x`.

    Raises
    ------
    ValueError
        If `rate` does not lie in [0, 1].

    Examples
    --------
    >>> bool((augment_mask(jr.key(0), jnp.ones((4, 5)), 0.5) <= 1).all())
    True
    """
    require_parts(rate=rate)
    return jnp.where(jr.bernoulli(key, 1.0 - rate, x.shape), x, 0)


def augment_background(
    key: PRNGKeyArray, x: Num[Array, "batch genes"], lam_max: float = 0.1
) -> Num[Array, "batch genes"]:
    """Add Poisson noise, as ambient RNA does, at a rate drawn anew for each cell.

    Parameters
    ----------
    key : Array
        PRNG key.
    x : Array
        Counts (not normalised) of shape ``(cells, genes)``.
    lam_max : float
        The mean of each cell's noise, in counts per gene, is uniform in [0, `lam_max`).

    Returns
    -------
    Array
        Of the shape and type of `x`; never smaller than `x`.

    Raises
    ------
    ValueError
        If `lam_max` is negative or not finite.

    Examples
    --------
    >>> x = jnp.zeros((4, 5))
    >>> bool((augment_background(jr.key(0), x, 1.0) >= x).all())
    True
    """
    require_parts(lam_max=lam_max)
    rate_key, noise_key = jr.split(key)
    rates = jr.uniform(rate_key, (x.shape[0], 1), maxval=lam_max)
    return x + jr.poisson(noise_key, rates, x.shape).astype(x.dtype)


def augment_dropgene(
    key: PRNGKeyArray, x: Num[Array, "batch genes"], lower: int = 0, upper: int = 2
) -> Num[Array, "batch genes"]:
    """Set a random set of genes to zero in all cells.

    Parameters
    ----------
    key : Array
        PRNG key.
    x : Array
        Counts of shape ``(cells, genes)``.
    lower, upper : int
        The number of genes lost is uniform over `lower`, ..., ``upper - 1``; none are lost where both are 0.

    Returns
    -------
    Array
        Of the shape and type of `x`.

    Raises
    ------
    ValueError
        If not ``0 <= lower < upper <= genes + 1``, unless both are 0.

    Examples
    --------
    >>> x = jnp.ones((4, 5))
    >>> int((augment_dropgene(jr.key(0), x, lower=2, upper=3) == 0).all(axis=0).sum())
    2
    """
    require_parts(lower=lower, upper=upper, n_genes=x.shape[1])
    if upper == 0:
        return x
    number_key, order_key = jr.split(key)
    n_dropped = jr.randint(number_key, (), lower, upper)
    dropped: Bool[Array, " genes"] = jr.permutation(order_key, x.shape[1]) < n_dropped
    return jnp.where(dropped, 0, x)


def augment(
    key: PRNGKeyArray,
    x: Num[Array, "batch genes"],
    rate: float | None = 0.1,
    lam_max: float | None = 0.1,
    lower: int | None = 0,
    upper: int | None = 2,
) -> Num[Array, "batch genes"]:
    """Mask counts, add background and drop genes, in this order; None switches a part off.

    Parameters
    ----------
    key : Array
        PRNG key.
    x : Array
        Counts of shape ``(cells, genes)``.
    rate : float, optional
        See `augment_mask`.
    lam_max : float, optional
        See `augment_background`.
    lower, upper : int, optional
        See `augment_dropgene`; both are given, or neither.

    Returns
    -------
    Array
        Of the shape and type of `x`.

    Raises
    ------
    ValueError
        If a part is out of range, or only one of `lower` and `upper` is given.

    Examples
    --------
    >>> x = jnp.ones((4, 5))
    >>> bool((augment(jr.key(0), x, None, None, None, None) == x).all())
    True
    """
    require_parts(rate, lam_max, lower, upper, x.shape[1])
    mask_key, background_key, gene_key = jr.split(key, 3)
    if rate is not None:
        x = augment_mask(mask_key, x, rate)
    if lam_max is not None:
        x = augment_background(background_key, x, lam_max)
    if lower is not None and upper is not None:
        x = augment_dropgene(gene_key, x, lower, upper)
    return x
