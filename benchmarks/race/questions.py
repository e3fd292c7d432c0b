"""What is asked, and how the page shows it; `asking.py` has how each is measured."""

from dataclasses import dataclass

OURS = "ginseng-eqx"
REFERENCE = "ginseng 0.2.1"
BEFORE = "before"  # another checkout of this package
SHARES = ("accuracy", "macro-F1", "ECE", "AUROC", "equal labels")


def average_of(figure: str) -> str:
    """The mean of shares; the median of others, of which one round may be slow."""
    return "mean" if figure in SHARES else "median"


@dataclass(frozen=True)
class Question:
    """One section of the page."""

    name: str  # of its section, its picture and its JSON lines
    title: str
    figure: str  # that ours and theirs are compared by
    about: str
    more_is_better: bool = True
    others: tuple[str, ...] = ()  # further figures of its table
    of: tuple[str, ...] = ()  # questions whose JSON lines it shows; by default its own

    @property
    def measured(self) -> tuple[str, ...]:
        """The questions whose JSON lines it shows."""
        return self.of or (self.name,)

    @property
    def is_share(self) -> bool:
        """Whether it is compared by ours - theirs, in points of a hundred, rather than by ours / theirs."""
        return self.figure in SHARES


QUESTIONS = (
    Question(
        "create",
        "How fast is a dataset made, and how large is it on disk?",
        "cells/s",
        "From a backed .h5ad of counts, 8 % of them non-zero.",
        others=("MiB on disk", "peak MiB"),
    ),
    Question(
        "stream-memory",
        "How fast are batches read from memory?",
        "cells/s",
        "Shuffled batches of 128 cells, dense float32, after a first one. Bare scipy is `csr[rows].toarray(out=...)` "
        "of a matrix that is held already: the least that any loader must do. ginseng 0.2.1: ten batches.",
        others=("peak MiB",),
    ),
    Question(
        "stream-budget",
        "How fast are batches read beyond memory?",
        "cells/s",
        "The same batches of data that do not fit the budget named. annbatch (with zarrs) reads the same store in "
        "blocks of the same size, 32 at a time (its default) and 384; its CSR batches are made dense float32, as ours.",
        others=("peak MiB",),
    ),
    Question(
        "step",
        "How fast is a training step?",
        "cells/s",
        "Batches of 128 cells, hidden dimension 64, fitted to one batch again and again, compiled before. The roofline "
        "is the time of the matrix products of a step, each measured on its own at the same shapes, and of moving "
        "parameters, gradients and moments through memory once.",
    ),
    Question(
        "epoch",
        "How fast is an epoch?",
        "cells/s",
        "The same with batches of random cells, streamed, and validation on a tenth as many: the second epoch, "
        "cut short to 100 steps (30 of `--quick`), of ginseng 0.2.1 to 20. So these are rates, and what an epoch costs "
        "once weighs more on theirs.",
        others=("peak MiB",),
    ),
    Question(
        "annotate-memory",
        "How fast are cells annotated from memory?",
        "cells/s",
        "With one model file of hidden dimension 64, compiled before. Bare products are the network's five matrix "
        "products on one batch of 256 cells again and again.",
        others=("cells per CPU second",),
    ),
    Question(
        "annotate-disk",
        "How fast are cells annotated from disk?",
        "cells/s",
        "A backed .h5ad and (ours) an AnnData .zarr of the same cells; compilation is in the time.",
        others=("cells per CPU second", "peak MiB"),
    ),
    Question(
        "memory",
        "How much memory do they take?",
        "peak MiB",
        "Peak memory of the processes that answered other questions here, Python and its imports included.",
        more_is_better=False,
        of=("create", "epoch", "annotate-disk", "whole"),
    ),
    Question(
        "whole",
        "How long from .h5ad to written labels?",
        "seconds",
        "A process that reads training cells and writes a model, and one that reads the model and other cells and "
        "writes their labels; each package at its defaults. With a warm cache, ours finds code compiled before.",
        more_is_better=False,
        others=("CPU seconds", "accuracy"),
    ),
    Question(
        "accuracy",
        "How many cells are labelled rightly?",
        "accuracy",
        "Whole donors are held out, about a third; where there is no `donor`, a third of each type. Each seed draws "
        "the cells held out, and what is random in training. Genes are chosen on training cells. Cells of types not "
        "trained on are left out. Ours and CellTypist at their defaults (ours as `ginseng fit` without `--group`), "
        "ginseng 0.2.1 at its own with ten epochs, on 2,000 variable genes, as logistic regression; SingleR (`singler` "
        "of Python) by its own choice of genes. It tells no confidence: questions of confidence are without it.",
    ),
    Question(
        "macro-f1",
        "And how well is each type, rare ones too?",
        "macro-F1",
        "The same cells; the mean of the F1 scores of the types.",
        of=("accuracy",),
    ),
    Question(
        "calibration",
        "Is confidence right?",
        "ECE",
        "The same cells; expected calibration error of the confidence in the label, in 15 bins of equally many cells.",
        more_is_better=False,
        of=("accuracy",),
    ),
    Question(
        "novelty",
        "Is a type that was never seen told apart?",
        "AUROC",
        "A type is left out of training, drawn by each seed: its cells against those of the donors held out. Ours by "
        "its novelty, the others by their confidence, which is all they tell.",
    ),
    Question(
        "model-file",
        "Do both packages predict the same from one model file?",
        "equal labels",
        "Each trains and saves a small classifier; both annotate with both files, ours without calibration.",
        others=("largest difference of a probability",),
    ),
    Question(
        "trajectory",
        "Do both learn the same, step by step?",
        "last loss",
        "The same seed, the same batches of 128 cells in the same order, `GinsengClassifierTrainerSettings.reference()`"
        " here and the defaults there, without dropout, whose draws differ. Rounding adds up over steps.",
        more_is_better=False,
        others=("largest relative difference",),
    ),
)
BY_NAME = {question.name: question for question in QUESTIONS}
