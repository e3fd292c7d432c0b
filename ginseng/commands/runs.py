"""Runs over several inputs: which these are, what each becomes, and what a run that was killed has finished."""

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ginseng.data.inputs import contents_of
from ginseng.data.outputs import SUFFIXES, require_output
from ginseng.utils.bounds import read_json
from ginseng.utils.files import is_url, local_path, replacing
from ginseng.utils.messages import shorten
from ginseng.utils.workspace import remove_leftovers

_RECORDS = ".ginseng"


def inputs_of(given: Sequence[str]) -> list[str]:
    """Paths and URLs, of which those with wildcards stand for what they match.

    Raises
    ------
    ValueError
        If there is no match.

    Examples
    --------
    >>> inputs_of(["cells.h5ad", "https://host/cells.h5ad?raw=1"])
    ['cells.h5ad', 'https://host/cells.h5ad?raw=1']
    """
    inputs = []
    for name in (name if is_url(name) else str(local_path(name)) for name in given):
        if is_url(name) or not glob.has_magic(name) or Path(name).exists():
            inputs.append(name)
        elif found := sorted(glob.glob(name, recursive=True)):  # noqa: PTH207 (pathlib's takes no absolute pattern)
            inputs += found
        else:
            raise ValueError(f"Nothing matches '{name}'.")
    return inputs


def outputs_of(inputs: Sequence[str], output: Path, kind: str | None, is_folder: bool) -> list[Path]:
    """What each input becomes: `output` itself, or a file in it of the name of the input.

    Raises
    ------
    ValueError
        If two inputs would become the same, or an output cannot be written.

    Examples
    --------
    >>> [path.name for path in outputs_of(["a.h5ad", "b.h5"], Path("out"), "csv", is_folder=True)]
    ['a.csv', 'b.csv']
    """
    if kind is not None and f".{kind}" not in SUFFIXES:
        raise ValueError(f"--format must be one of {', '.join(suffix[1:] for suffix in SUFFIXES)}, but got '{kind}'.")
    if is_folder and output.suffix in SUFFIXES:
        raise ValueError(
            f"{output} names one file for {len(inputs)} inputs; name a folder, and with --format the kind."
        )
    if not is_folder and kind is not None:
        raise ValueError(f"--format is of several outputs; here the suffix of {output} tells the kind.")
    paths = [Path(name) for name in inputs]
    stems = [path.stem if path.suffix in (*SUFFIXES, ".h5") else path.name for path in paths]
    outputs = [output / f"{stem}.{kind or 'h5ad'}" for stem in stems] if is_folder else [output]
    first_of: dict[Path, str] = {}
    for source, target in zip(inputs, outputs, strict=True):
        if target in first_of:
            raise ValueError(f"{first_of[target]} and {source} would both become {target}; annotate them apart.")
        first_of[target] = source
        require_output(target)
    return outputs


def stamp(path: str | Path) -> str:
    """What tells a file or folder from others: the digest of its contents; of a URL, the URL.

    Examples
    --------
    >>> stamp("https://host/cells.h5ad")
    'https://host/cells.h5ad'
    """
    return str(path) if is_url(path) else contents_of(path)


def has_record(output: Path) -> bool:
    """Whether a run over several inputs has begun or finished an output, see `Record`.

    Examples
    --------
    >>> has_record(Path("cells.csv"))
    False
    """
    return any(path.exists() for path in _records_of(output))


def is_finished(output: Path) -> bool:
    """Whether an output is there that such a run has finished, as far as its record says.

    Examples
    --------
    >>> is_finished(Path("cells.csv"))
    False
    """
    return _records_of(output)[0].exists() and output.exists()


def _records_of(output: Path) -> tuple[Path, Path]:
    """Where is kept that an output is finished, and that it is begun."""
    kept = output.parent / _RECORDS
    return kept / f"{output.name}.json", kept / f"{output.name}.begun"


class Record:
    """What is kept of a finished output beside it, in a hidden folder: how it was made, and when.

    Parameters
    ----------
    output : Path
        The output.
    made_with : dict
        All that it follows from.

    Examples
    --------
    >>> import tempfile
    >>> output = Path(tempfile.mkdtemp()) / "cells.csv"
    >>> _ = output.write_text("cell,type")
    >>> Record(output, {"model": "00d5"}).keep({"novel": 0.1})
    >>> Record(output, {"model": "00d5"}).found(), Record(output, {"model": "ff32"}).found()
    ({'novel': 0.1}, None)
    """

    def __init__(self, output: Path, made_with: dict[str, Any]):
        self._output, self.made_with = output, json.loads(json.dumps(made_with, default=str))
        self._path, self._begun = _records_of(output)
        remove_leftovers(self._path.parent)

    def found(self) -> dict[str, float] | None:
        """What was kept when the output was finished; None if it has to be made, since it or its making is another.

        A record that cannot be read is none.
        """
        if not (self._path.exists() and self._output.exists()):
            return None
        try:
            kept = read_json(self._path.read_bytes())
            is_same = kept["made_with"] == self.made_with and kept["output"] == stamp(self._output)
            return kept["shares"] if is_same else None
        except (ValueError, KeyError, TypeError):
            return None

    def found_or_refused(self) -> dict[str, float] | None:
        """What `found` gives of an output that is finished; None if it was begun once more, and has to be made.

        Raises
        ------
        ValueError
            If it or its making is another: it may be the work of a user, or of a run that is still wanted.
        """
        shares = self.found()
        if shares is not None:
            self._begun.unlink(missing_ok=True)  # as is left by a kill in `keep`
        elif not self._begun.exists():
            raise ValueError(
                f"{self._output} exists, and is not what this call finishes: it was changed, or made of another input, "
                "model or options. Move it away, or --overwrite replaces all outputs."
            )
        return shares

    def begin(self) -> None:
        """Keep that the output is begun: a run after a kill may replace it."""
        self._begun.parent.mkdir(parents=True, exist_ok=True)
        self._begun.touch()

    def keep(self, shares: dict[str, float]) -> None:
        """Keep that the output is finished."""
        kept = {"made_with": self.made_with, "output": stamp(self._output), "shares": shares}
        with replacing(self._path) as fresh:
            fresh.write_text(json.dumps(kept))
        self._begun.unlink(missing_ok=True)


def require_there(inputs: Sequence[str]) -> None:
    """Refuse to begin with several inputs of which some are not there.

    Examples
    --------
    >>> require_there(["https://host/cells.h5ad"])
    """
    if missing := [name for name in inputs if not is_url(name) and not Path(name).exists()]:
        raise FileNotFoundError(f"There is no {shorten(missing)}.")
