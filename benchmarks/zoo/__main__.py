"""Sound files by every writer that can be had, and every command on each of them.

    python -m benchmarks.zoo write OUT                # or: --only 0.7.8 R --python 3.8=/usr/bin/python3.8
    python -m benchmarks.zoo read OUT                 # or: --match 'anndata-0.7*/uns*'

`write` makes an environment for each anndata from 0.6 to the newest (uv, of the extra `bench`), and writes the same 60
cells x 40 genes by each, in .h5ad and in .zarr (formats 2 and 3), with every kind of `obs`, `obsm`, `uns` and X that it
can write and read; by R's rhdf5 and hdf5r, where Rscript is here; and, by h5py, in the layouts of writers that are not.
`read` runs `read_adata`, `inspect`, `doctor`, `create`, `annotate` into .csv, .h5ad and .zarr, `report` of these, and
`classify` on each, and compares counts and labels with those that were put in. Prints one JSON line for each file, with
what was refused and why, and one for each writer. Exits with 1 if a file was refused that the installed anndata reads.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.zoo.reading import read_zoo
from benchmarks.zoo.writing import write_zoo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    write = commands.add_parser("write", help="make the files")
    write.add_argument("zoo", type=Path)
    write.add_argument("--only", nargs="+", default=[], help="some writers, such as 0.7.8, newest, emulated, R")
    write.add_argument("--python", nargs="+", default=[], help="interpreters, such as 3.8=/usr/bin/python3.8")
    read = commands.add_parser("read", help="run every command on each")
    read.add_argument("zoo", type=Path)
    read.add_argument("--match", nargs="+", default=[], help="some files, such as 'anndata-0.7*/uns*'")
    read.add_argument("--quick", action="store_true", help="leave out the files that hold one kind alone")
    arguments = parser.parse_args()
    if arguments.command == "write":
        write_zoo(arguments.zoo.resolve(), arguments.only, dict(part.split("=", 1) for part in arguments.python))
    else:
        sys.exit(read_zoo(arguments.zoo.resolve(), arguments.match, arguments.quick) > 0)


if __name__ == "__main__":
    main()
