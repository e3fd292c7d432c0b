"""What a call reads and writes: no output replaces an input or another output, or, unasked, what another call made."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ginseng.commands.registry import WrongUse
from ginseng.data.inputs import FILES_OF_10X
from ginseng.data.readers import is_zarr
from ginseng.utils.bounds import read_json
from ginseng.utils.files import is_url, local_path, replacing

Named = Mapping[str, str | Path | Collection[str] | Collection[Path] | None]  # what options and arguments name
_BEGUN = "outputs.json"  # in the folder of a checkpoint


def require_outputs(outputs: Named, inputs: Named, *, overwrite: bool, begun: Collection[Path] = ()) -> None:
    """Refuse, before the work, outputs that would replace what they must not.

    Paths are compared by what they lead to, whatever name or link names it. A folder of 10x files is not changed by a
    further file in it; a store, such as a dataset, is.

    Parameters
    ----------
    outputs, inputs : mapping
        By option, the path or paths that it names; None for none.
    overwrite : bool
        Whether what is there may be replaced.
    begun : collection of Path
        Outputs that are the call's own, since it has begun them before: they may be replaced.

    Raises
    ------
    WrongUse
        If an output is an input or another output, lies within one or holds one, or is there already.

    Examples
    --------
    >>> require_outputs({"--output": "cells.csv"}, {"DATA": ["cells.h5ad"]}, overwrite=False)
    >>> require_outputs({"--output": "a.csv", "--report": "a.csv"}, {}, overwrite=False)
    Traceback (most recent call last):
        ...
    ginseng.commands.registry.WrongUse: --report a.csv is --output a.csv itself; name another output.
    """
    taken: dict[object, tuple[str, Path]] = {}  # by what identifies a place
    around: dict[object, tuple[str, Path]] = {}  # folders in which those are
    for is_output, named in ((False, inputs), (True, outputs)):
        for option, path in _each(named):
            place = Path(os.path.realpath(path))
            if is_output:
                _require_free(option, path, place, taken, around)
            for identity in _identities(place):
                taken.setdefault(identity, (option, path))
            for folder in place.parents:
                for identity in _identities(folder):
                    around.setdefault(identity, (option, path))
    own = {os.path.realpath(path) for path in begun}
    for _, path in _each(outputs):
        if not overwrite and path.exists() and os.path.realpath(path) not in own:
            raise WrongUse(f"{path} exists; --overwrite replaces it.")


def _each(named: Named) -> Iterator[tuple[str, Path]]:
    for option, given in named.items():
        for path in [given] if isinstance(given, str | Path) else given or []:
            if not is_url(path):
                yield option, local_path(path)


def _identities(place: Path) -> Iterator[object]:
    """What two names of one place have in common: where links lead, or else the file itself."""
    yield place
    with suppress(OSError):
        found = place.stat()
        if found.st_ino:
            yield found.st_dev, found.st_ino


def _require_free(
    option: str,
    path: Path,
    place: Path,
    taken: Mapping[object, tuple[str, Path]],
    around: Mapping[object, tuple[str, Path]],
) -> None:
    output, way_out = f"{option} {path}", "name another output."
    for identity in _identities(place):
        if identity in taken:
            raise WrongUse(f"{output} is {_named(taken[identity])} itself; {way_out}")
        if identity in around:
            raise WrongUse(f"{output} holds {_named(around[identity])}; {way_out}")
    for folder in place.parents:
        for identity in _identities(folder):
            if identity in taken and (is_zarr(folder) or place.name.removesuffix(".gz") in FILES_OF_10X):
                raise WrongUse(f"{output} lies within {_named(taken[identity])}; {way_out}")


def _named(found: tuple[str, Path]) -> str:
    return f"{found[0]} {found[1]}"


def begun_with(checkpoint: Path | None) -> list[Path]:
    """The outputs that a call with this checkpoint has begun before: repeated after a kill, it may replace them."""
    if checkpoint is None:
        return []
    with suppress(OSError, ValueError, TypeError):
        return [Path(path) for path in read_json((checkpoint / _BEGUN).read_bytes())]
    return []


def begin(checkpoint: Path | None, outputs: Collection[Path | None]) -> None:
    """Keep in the folder of a checkpoint which outputs the call has begun."""
    if checkpoint is not None:
        with replacing(checkpoint / _BEGUN) as fresh:
            fresh.write_text(json.dumps([os.path.realpath(path) for path in outputs if path is not None]))


def forget(checkpoint: Path | None) -> None:
    """Forget which outputs a call has begun, since it has ended well: they are no longer its own to replace."""
    if checkpoint is not None:
        (checkpoint / _BEGUN).unlink(missing_ok=True)
