"""Fine-tuning: a saved classifier learns from new labelled cells, and what it forgets is told."""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ginseng.data.annotation import mapping_of
from ginseng.data.dataset import GinsengDataset
from ginseng.data.models import load_model
from ginseng.model.adapting import Moved, moved, with_means_of, without_means_of
from ginseng.model.attention import PARTS
from ginseng.model.relabelling import relabelled
from ginseng.model.state import GinsengClassifierState, of_its_weights, state_from_classifier_trainer
from ginseng.train.feed import gene_map_of
from ginseng.train.frozen import frozen_parts, trainable_leaves
from ginseng.train.settings import GinsengClassifierTrainerSettings
from ginseng.train.trainer import GinsengClassifierTrainer
from ginseng.train.tuned import FineTuned, changes, held_out_answers
from ginseng.utils.devices import require_not_forked
from ginseng.utils.labels import in_terms_of
from ginseng.utils.messages import shorten, warn
from ginseng.utils.names import GeneNames
from ginseng.utils.values import require_flags, require_integer, require_kind, require_number

GENES = ("model", "dataset")
_N_STEPS = 100  # of a small dataset; see benchmarks/recipes.md
_MOST_EPOCHS = 10  # of a large one
_N_SAMPLED = 512  # cells that are enough for means


def finetune(
    model: GinsengClassifierState | str | Path,
    dataset: GinsengDataset | str | Path,
    settings: GinsengClassifierTrainerSettings | None = None,
    *,
    epochs: int | None = None,
    genes: str = "model",
    mapping: Any = None,
    unlabeled: str | Sequence[str] = (),
    relabel: Any = None,
    freeze: Any = None,
    rates: Mapping[str, float] | None = None,
    old: GinsengDataset | str | Path | None = None,
    replay: float | None = None,
    memory: int | str | None = None,
    devices: int | Sequence[Any] | None = None,
    card: Mapping[str, str] | None = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    silent: bool = False,
) -> FineTuned:
    """Train a saved classifier on, with new labelled cells.

    Its labels are kept, whether the new data have them or not, and those that it does not know are added, each begun
    from what its cells look like to the network. Nothing is written to `dataset`.

    Parameters
    ----------
    model : GinsengClassifierState, str or Path
        The classifier, or its file.
    dataset : GinsengDataset, str or Path
        The new cells. Where they have not been split, the settings hold some out.
    settings : GinsengClassifierTrainerSettings, optional
        How to train; by default those of `ginseng.train.tuning_settings`. What makes up the network is the
        classifier's own.
    epochs : int, optional
        Passes over the new cells; by default 10, or as many as make 100 steps.
    genes : {"model", "dataset"}
        Keep the classifier's genes, of which those that the new data lack take their mean over the cells it was trained
        on; or carry its weights to the genes of the dataset, see `ginseng.model.adapting.moved`.
    mapping : dict or Harmony, optional
        For labels of the dataset, the name that the classifier has, or is to have, for them; None leaves their cells
        out. What `ginseng.harmonize` returns is one.
    unlabeled : str or sequence of str
        Labels of the dataset that say that there is none, such as ``["Unknown"]``: their cells are left out.
    relabel : dict, optional
        The same for the labels of the classifier: renamed, merged where two get one name, dropped where None. Holds for
        `old`, too.
    freeze : str, sequence of str, or PyTree of bool or callable
        What is not trained: "trunk" (all but the head), names of parts ("features1", "features2", "attn1", "attn2",
        "head"), or a filter spec over the network, True where a leaf is frozen. Of a network that begins with frozen
        parts the answers are computed once, so that an epoch takes a fraction of the time. By default nothing, but
        the trunk where labels are new to the classifier, others of its own have no cell among the new ones, and there
        are no `old` data: training all of it would make it forget those.
    rates : dict, optional
        Factors of the learning rate by part, such as ``{"head": 1.0, "features1": 0.1}``, in place of those of the
        settings.
    old : GinsengDataset, str or Path, optional
        The data that the classifier was trained on, or a part of them, to be replayed lest they be forgotten.
    replay : float, optional
        With `old`, the share of the cells of each step, in [0, 1), that are old (0 only measures what is forgotten);
        without, the weight of the
        classifier's own answers as soft targets beside the labels (Learning without forgetting); 0 for neither.
        By default as the settings say.
    memory, devices, card
        As for `GinsengClassifierTrainer`.
    checkpoint, log, silent
        As for its `fit`.

    Returns
    -------
    FineTuned
        The tuned classifier, and what it gained and forgot.

    Raises
    ------
    ValueError
        If classifier, data and arguments do not fit together.

    References
    ----------
    Li & Hoiem, Learning without forgetting, ECCV 2016. Qi, Brown & Lowe, Low-shot learning with imprinted weights, CVPR
    2018.

    Examples
    --------
    >>> import ginseng
    >>> tuned = ginseng.finetune("model.h5", "mine.zarr", old="reference.zarr")  # doctest: +SKIP
    >>> print(tuned.report())  # doctest: +SKIP
    >>> ginseng.save_model(tuned.state, "tuned.h5")  # doctest: +SKIP
    """
    if genes not in GENES:
        raise ValueError(f"`genes` must be one of {', '.join(GENES)}, but got {genes!r}.")
    require_flags(silent=silent)
    require_not_forked()
    if epochs is not None:
        require_integer("epochs", epochs, 0)
    state = load_model(model) if isinstance(model, str | Path) else model
    require_kind("model", state, GinsengClassifierState)
    state = of_its_weights(state)
    if settings is not None:
        require_kind("settings", settings, GinsengClassifierTrainerSettings)
    data, past = _opened("dataset", dataset), None if old is None else _opened("old", old)
    if past is not None and _identity(past) == _identity(data):
        raise ValueError("`old` is `dataset` itself; it is to be of the data that the model was trained on.")
    settings = tuning_settings(with_old=past is not None) if settings is None else settings
    settings = _with_changes(settings, rates, replay, past is not None)
    if mapping is not None or unlabeled:
        data = data.renamed(mapping, unlabeled=unlabeled)
    if relabel is not None:
        relabel = mapping_of(relabel, "relabel")
        state = relabelled(state, relabel)
        if past is not None:
            past = past.renamed({name: new for name, new in relabel.items() if name in past.label_names})
    data = _in_terms_of(state, data)
    past = None if past is None else _in_terms_of(state, past)
    if past is not None and (unknown := sorted(set(past.label_names) - {*state.output_labels, *data.label_names})):
        raise ValueError(
            f"`old` has labels that the model does not know: {shorten(unknown)}. It is to be of the data that it was "
            "trained on; give other data as `dataset`."
        )
    if data.train_idx is None:
        data = data.changed()  # a view, so that the split is not stored
        data.keep_split(*data.draw_split(**settings.split()))
    if not len(_train_of(data)):
        raise ValueError("There is no cell to train on.")
    state, how_moved, is_lacking = _with_genes(state, data, past, genes, settings.seed)
    begun = state if is_lacking is None else with_means_of(state, is_lacking)
    added = _added(state, data)
    can_train = past is not None or len(added) < len(data.label_names) or epochs is not None
    if freeze is None:
        freeze = _frozen(state, data, past is not None or not can_train or epochs == 0)
    trainable = trainable_leaves(begun.module, freeze)
    _require_some_rate(settings.rates, frozen_parts(begun.module, trainable))
    with warnings.catch_warnings():
        if is_lacking is not None:
            warnings.filterwarnings("ignore", ".*genes of the model are not in the data and count as zero")
        how: dict[str, Any] = {"memory": memory, "devices": devices, "card": card}
        trainer = GinsengClassifierTrainer(data, settings, start=begun, old=past, trainable=trainable, **how)
    if not can_train:
        warn(
            "All labels of the data are new to the model, and there are no old data to tell them from: outputs for "
            "them are begun from what their cells look like, and nothing is trained. Pass `old`, or `epochs`."
        )
        epochs = 0
    elif epochs is None:
        epochs = max(_MOST_EPOCHS, -(-_N_STEPS // trainer.n_steps))
    before = held_out_answers(trainer, state.n_classes)
    trainer.fit(epochs, silent, checkpoint=checkpoint, log=log)
    table = changes(
        before, held_out_answers(trainer), trainer.label_names, 0 if data.test_idx is None else len(data.test_idx)
    )
    tuned = state_from_classifier_trainer(trainer)
    if is_lacking is not None:
        tuned = without_means_of(tuned, state, is_lacking)
    return FineTuned(tuned, table, how_moved, added, trainer)


def _opened(name: str, given: Any) -> GinsengDataset:
    if isinstance(given, str | Path):
        return GinsengDataset(given)
    if not isinstance(given, GinsengDataset):
        kind = type(given).__name__
        raise ValueError(
            f"`{name}` must be a dataset, which GinsengDataset.create makes, or its path, but got a {kind}."
        )
    return given


def _identity(dataset: GinsengDataset) -> Any:
    """What is the same of a dataset and its views."""
    return dataset.root.attrs.get("id", str(dataset.path))


def _in_terms_of(state: GinsengClassifierState, data: GinsengDataset) -> GinsengDataset:
    """The dataset with its labels as the classifier writes them, where these have been floats or integers before."""
    mapping = in_terms_of(data.label_names, map(str, state.output_labels))
    if not mapping:
        return data
    warn(f"Labels of {data.path} are those of the model as floats or integers: {mapping!r} is taken as `mapping`.")
    return data.renamed(mapping)


def _added(state: GinsengClassifierState, data: GinsengDataset) -> list[str]:
    """Labels of the data that are new to a classifier; warns of those that look like one of its own."""
    known = {_plain(name): str(name) for name in state.output_labels}
    added = [name for name in data.label_names if name not in state.output_labels]
    for name in added:
        if _plain(name) in known:
            warn(
                f"'{name}' is added to the model beside its '{known[_plain(name)]}'. If these are the same, pass "
                f"mapping={{{name!r}: {known[_plain(name)]!r}}}."
            )
    return added


def _plain(name: Any) -> str:
    """A name without what people write in several ways."""
    return re.sub(r"[^\w.]|_|(?<!\d)\.|\.(?!\d)", "", str(name).casefold()).rstrip("s")


def _require_some_rate(rates: Mapping[str, float] | None, frozen: Sequence[str]) -> None:
    """Raise a ValueError if rates are of parts that are not trained, or leave nothing to train."""
    if rates is None:
        return
    if both := sorted(set(rates) & set(frozen)):
        raise ValueError(f"`rates` and `freeze` both name {shorten(both)}: what is frozen has no learning rate.")
    if all(rates.get(part, 1.0) == 0 for part in PARTS if part not in frozen):
        raise ValueError("`rates` are 0 for all that is not frozen: there would be nothing to learn.")


def tuning_settings(*, with_old: bool = False, **changes: Any) -> GinsengClassifierTrainerSettings:
    """Settings of `finetune`, with `changes`; chosen by evidence, see ``benchmarks/recipes.md``.

    Parameters
    ----------
    with_old : bool
        Whether old data are replayed, which allow for a higher rate.
    changes
        Of `GinsengClassifierTrainerSettings`.

    Examples
    --------
    >>> tuning_settings().lr, tuning_settings(with_old=True, seed=2).lr
    (0.0001, 0.0003)
    """
    chosen: dict[str, Any] = {"lr": 3e-4 if with_old else 1e-4, "weight_decay": 0.0, "distill": 0.2}
    return GinsengClassifierTrainerSettings(**{**chosen, **changes})


def _with_changes(
    settings: GinsengClassifierTrainerSettings,
    rates: Mapping[str, float] | None,
    replay: float | None,
    has_old: bool,
) -> GinsengClassifierTrainerSettings:
    if replay is not None:
        require_number("replay", replay, "[0, 1)" if has_old else "[0, inf)")
        settings = dataclasses.replace(settings, **{"replay" if has_old else "distill": float(replay)})
    if has_old:  # the data themselves tell more than answers of a classifier
        settings = dataclasses.replace(settings, distill=0.0)
    return settings if rates is None else dataclasses.replace(settings, rates=dict(rates))


def _with_genes(
    state: GinsengClassifierState, data: GinsengDataset, past: GinsengDataset | None, genes: str, seed: int
) -> tuple[GinsengClassifierState, Moved | None, np.ndarray | None]:
    """The classifier for the genes that it is to have, what became of them, and which are not to be known."""
    if genes == "dataset":
        if data.gene_names == list(state.genes):
            return state, None, None
        sample = data.sample(_N_SAMPLED, np.sort(_train_of(data)))
        return *moved(state, GeneNames(data.gene_names, data.second_names), sample, seed=seed), None
    names = GeneNames(state.genes, state.second_names)
    maps = [gene_map_of(one, names, silent=True) for one in (data, past) if one is not None]
    lacks = [found.is_lacking for found in maps if found is not None]
    is_lacking = np.logical_or.reduce(lacks) if lacks else np.zeros(state.n_genes, bool)
    if not is_lacking.any() or state.background is None:
        return state, None, None
    warn(
        f"{is_lacking.sum():,} of the {state.n_genes:,} genes of the model are not in the data and take their mean "
        "over the cells that it was trained on."
    )
    return state, None, is_lacking


def _frozen(state: GinsengClassifierState, data: GinsengDataset, is_safe: bool) -> str | tuple[()]:
    """What is frozen by default."""
    known, present = set(map(str, state.output_labels)), set(data.label_names)
    if is_safe or present <= known or known <= present:
        return ()
    warn(
        "The trunk of the network is frozen: the data have labels that are new to the model, no cells of "
        f"{shorten(sorted(known - present))}, and there are no old data, so that these would be forgotten. Pass `old`, "
        "or freeze=() to train all of it."
    )
    return "trunk"


def _train_of(data: GinsengDataset) -> np.ndarray:
    return data.cells if data.train_idx is None else data.train_idx
