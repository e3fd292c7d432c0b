"""Every command takes the sound files of other writers and versions that `python -m benchmarks.zoo write` makes."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.zoo import reading

ZOO = Path(__file__).parent / "zoo"
OPTIONS = json.loads((ZOO / "options.json").read_text())
EVERY_CHECK = ("anndata-0.12.19+scanpy_log1p.h5ad", "emulated+nulls.h5ad")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return reading.Truth(tmp_path_factory.mktemp("truth"))


def unpacked(name, folder):
    shutil.unpack_archive(ZOO / f"{name}.tar.xz", folder, filter="data")
    return folder / name.partition("+")[2]


def test_all_files_of_the_zoo_are_tried():
    assert sorted(path.name.removesuffix(".tar.xz") for path in ZOO.glob("*.xz")) == sorted(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_others_write_is_read_trained_on_and_annotated(name, truth, tmp_path):
    path = unpacked(name, tmp_path)
    for check, what in reading.checks(path, OPTIONS[name], truth, tmp_path):
        if name in EVERY_CHECK or not ("zarr" in check or "report" in check):
            what()  # raises, with the reason
