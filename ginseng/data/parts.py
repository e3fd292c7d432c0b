"""Shards of an annotation: which cells each has, and putting them together again."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ginseng.data.outputs import SUFFIXES, read_mark, require_output, write_joined
from ginseng.utils.files import naming
from ginseng.utils.messages import shorten

_MOST = 100_000  # shards


class Shard(NamedTuple):
    """One of several parts of the same size.

    Attributes
    ----------
    number : int
        Which, from 1 on.
    n_shards : int
        Of how many.
    """

    number: int
    n_shards: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """What a text like ``"3/10"`` stands for.

        Raises
        ------
        ValueError
            If it is another text, or there is no such shard.

        Examples
        --------
        >>> Shard.parse("3/10")
        Shard(number=3, n_shards=10)
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(*map(int, match.groups())) if match else None
        if shard is None or not 1 <= shard.number <= shard.n_shards:
            raise ValueError(f"A shard is given as 1/10, 2/10, ... 10/10, but got '{text}'.")
        return shard

    def rows(self, sizes: Sequence[int], batch_size: int) -> list[slice]:
        """Which cells of each input, of so many cells, are of this shard.

        Borders are those of batches, so that each cell goes through the network in the batch, and at the place, that it
        has without shards. Answers are then bitwise the same.

        Examples
        --------
        >>> [Shard(number, 2).rows([5, 3], batch_size=2) for number in (1, 2)]
        [[slice(0, 4, None), slice(0, 0, None)], [slice(4, 5, None), slice(0, 3, None)]]
        """
        n_batches = [-(-size // batch_size) for size in sizes]
        first, last = (sum(n_batches) * number // self.n_shards for number in (self.number - 1, self.number))
        found, before = [], 0
        for size, n_here in zip(sizes, n_batches, strict=True):
            start, stop = (min(max(batch - before, 0) * batch_size, size) for batch in (first, last))
            found.append(slice(start, stop))
            before += n_here
        return [rows if rows.start < rows.stop else slice(0, 0) for rows in found]


def merge_shards(shards: Sequence[Path], output: Path) -> dict[Path, str]:
    """Put shards together in their order, as one run would have written it.

    Parameters
    ----------
    shards : sequence of Path
        Outputs of `ginseng annotate --shard`, in any order: files, or folders of such of several inputs.
    output : Path
        A file for files, a folder for folders.

    Returns
    -------
    dict
        What was written, and the key of the names of its columns.

    Raises
    ------
    ValueError
        If a shard is missing, there twice, none, or of another model, input or option; it is named.

    Examples
    --------
    >>> merge_shards([Path("a.csv"), Path("b.csv")], Path("all.csv"))  # doctest: +SKIP
    """
    return {path: _merge(of_path, path) for path, of_path in planned_merge(shards, output).items()}


def planned_merge(shards: Sequence[Path], output: Path) -> dict[Path, list[Path]]:
    """What `merge_shards` would write, and of which shards.

    Examples
    --------
    >>> planned_merge([Path("a.csv"), Path("b.csv")], Path("all.csv"))
    {PosixPath('all.csv'): [PosixPath('a.csv'), PosixPath('b.csv')]}
    """
    is_folder = {shard: shard.is_dir() and shard.suffix not in SUFFIXES for shard in shards}
    if not any(is_folder.values()):
        return {output: list(shards)}
    names = {shard: sorted(_outputs_in(shard)) if is_folder[shard] else [] for shard in shards}
    expected = names[shards[0]]
    for shard, found in names.items():
        if found != expected or not found:
            raise ValueError(
                f"{shard} and {shards[0]} are no shards of the same inputs: one holds {shorten(found) or 'none'}, the "
                f"other {shorten(expected) or 'none'}."
            )
    return {output / name: [shard / name for shard in shards] for name in expected}


def _outputs_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")]


def _mark_of(path: Path) -> dict[str, Any]:
    mark = read_mark(path)
    with naming(path, "is no whole shard"):
        number, n_shards = mark["number"], mark["of"]
        if type(number) is not int or type(n_shards) is not int or not 1 <= number <= n_shards <= _MOST:
            raise ValueError(f"it is number {number} of {n_shards}")
        if lacking := [name for name in ("model", "options", "input", "form") if name not in mark]:
            raise ValueError(f"it does not tell its {lacking[0]}")
        if not isinstance(mark["options"].get("key_added"), str):
            raise ValueError("it does not tell how its columns are named")
    return mark


def _merge(paths: Sequence[Path], output: Path) -> str:
    require_output(output)
    first_path, first = paths[0], _mark_of(paths[0])
    marks: dict[int, tuple[Path, dict[str, Any]]] = {}
    for path in paths:
        if path.suffix != output.suffix:
            raise ValueError(f"{path} and {output} are of different kinds; give both the same suffix.")
        mark = _mark_of(path)
        if differing := [what for what in ("model", "options", "input", "form", "of") if mark[what] != first[what]]:
            what = "number of shards" if differing[0] == "of" else differing[0]
            raise ValueError(f"{path} does not belong to {first_path}: its {what} is another.")
        if mark["number"] in marks:
            raise ValueError(f"{marks[mark['number']][0]} and {path} are both shard {mark['number']} of {mark['of']}.")
        marks[mark["number"]] = (path, mark)
    if missing := [str(number) for number in range(1, first["of"] + 1) if number not in marks]:
        raise ValueError(f"Of {first['of']} shards of {output.name}, these are missing: {shorten(missing)}.")
    write_joined([marks[number][0] for number in sorted(marks)], output)
    return first["options"]["key_added"]
