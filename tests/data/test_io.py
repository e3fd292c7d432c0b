import bz2
import gzip
import hashlib
import http.server
import lzma
import pickle
import shutil
import threading
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pooch
import pytest
import scipy.io
import zarr
from scipy import sparse

from ginseng import GinsengDataset, classify, load_model, mqc, read_adata, report, save_model
from ginseng.data import downloads
from ginseng.data.io import read_10x_h5, read_10x_mtx, write_adata
from ginseng.data.outputs import read_told, write_annotated
from ginseng.data.readers import opened_counts, read_annotation
from ginseng.train.checkpoint import Checkpoint
from ginseng.train.logger import LogFile
from ginseng.utils.counts import Counts
from ginseng.utils.pairs import read_mapping
from ginseng.utils.workspace import workspace
from tests.conftest import GOLDEN, ginseng, untrained

CELLS, IDS, SYMBOLS = ["AAAC-1", "AAAG-1"], ["ENSG1", "ENSG2", "ENSG3", "AB1"], ["CD3D", "MS4A1", "CD3D", "CD3"]
KINDS = ["Gene Expression"] * 3 + ["Antibody Capture"]
COUNTS = np.array([[1, 0, 2, 9], [0, 3, 0, 8]])


def write_mtx(folder, *, gzipped, n_columns, genes_file="features.tsv"):
    folder.mkdir()
    columns = [IDS, SYMBOLS, KINDS, ["GRCh38"] * 4, ["x"] * 4][:n_columns]
    texts = {
        "barcodes.tsv": "".join(f"{cell}\n" for cell in CELLS),
        genes_file: "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True)),
    }
    scipy.io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(COUNTS.T))
    for name, text in texts.items():
        (folder / name).write_text(text)
    if gzipped:
        for name in (*texts, "matrix.mtx"):
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()
    return folder


def write_h5(path, layout):
    matrix = sparse.csr_matrix(COUNTS)

    def write(group, matrix):
        group["barcodes"] = np.array(CELLS, "S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array(matrix.shape[::-1])

    with h5py.File(path, "w") as file:
        if layout == "features":
            group = file.create_group("matrix")
            write(group, matrix)
            features = group.create_group("features")
            genomes = ["GRCh38", "mm10", "GRCh38", ""]
            for name, values in {"id": IDS, "name": SYMBOLS, "feature_type": KINDS, "genome": genomes}.items():
                features[name] = np.array(values, "S")
        else:
            for genome, factor in (("hg19", 1), ("mm10", 10)):
                group = file.create_group(genome)
                write(group, matrix * factor)
                group["genes"], group["gene_names"] = np.array(IDS, "S"), np.array(SYMBOLS, "S")
    return path


class TestRead10xMtx:
    @pytest.mark.parametrize("gzipped", [True, False])
    @pytest.mark.parametrize("n_columns", [2, 3, 4, 5])
    def test_plain_and_gzipped_any_number_of_columns(self, tmp_path, gzipped, n_columns):
        adata = read_10x_mtx(write_mtx(tmp_path / "x", gzipped=gzipped, n_columns=n_columns))
        n_genes = 3 if n_columns > 2 else 4
        assert adata.var_names.tolist()[:3] == ["CD3D", "MS4A1", "CD3D-1"]
        assert adata.var["gene_ids"].tolist() == IDS[:n_genes]
        assert adata.obs_names.tolist() == CELLS
        np.testing.assert_array_equal(adata.X.toarray(), COUNTS[:, :n_genes])

    def test_what_is_read_can_be_written_again(self, tmp_path):
        adata = read_10x_mtx(write_mtx(tmp_path / "x", gzipped=True, n_columns=2))
        write_adata(adata, tmp_path / "x.h5ad")
        written = read_adata(tmp_path / "x.h5ad", backed=False)
        assert written.obs_names.tolist() == CELLS
        assert (written.obs.shape, written.obs_names.name) == ((2, 0), None)

    def test_genes_tsv_of_one_column(self, tmp_path):
        folder = write_mtx(tmp_path / "x", gzipped=False, n_columns=1, genes_file="genes.tsv")
        assert read_10x_mtx(folder).var_names.tolist() == IDS

    def test_names(self, tmp_path):
        folder = write_mtx(tmp_path / "x", gzipped=False, n_columns=2, genes_file="genes.tsv")
        adata = read_10x_mtx(folder, var_names="gene_ids")
        assert adata.var_names.tolist() == IDS
        assert adata.var["gene_symbols"].tolist() == SYMBOLS
        assert read_10x_mtx(folder, make_unique=False).var_names.tolist() == SYMBOLS
        with pytest.raises(ValueError, match="'gene_symbols' or 'gene_ids'"):
            read_10x_mtx(folder, var_names="symbols")

    def test_other_features_are_left_out_with_a_message_or_kept(self, tmp_path):
        folder = write_mtx(tmp_path / "x", gzipped=True, n_columns=3)
        with pytest.warns(UserWarning, match="not genes: 1 Antibody Capture"):
            assert read_10x_mtx(folder).n_vars == 3
        assert read_10x_mtx(folder, gex_only=False).n_vars == 4

    def test_a_folder_without_a_gene_is_called_what_it_is(self, tmp_path):
        folder = write_mtx(tmp_path / "adt", gzipped=False, n_columns=3)
        features = (folder / "features.tsv").read_text().replace("Gene Expression", "Antibody Capture")
        (folder / "features.tsv").write_text(features)
        with pytest.raises(ValueError, match="no gene: this is the modality of Antibody Capture"):
            Counts(read_10x_mtx(folder))

    def test_what_is_missing_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder"):
            read_10x_mtx(tmp_path / "nothing")
        folder = write_mtx(tmp_path / "outs", gzipped=False, n_columns=2)
        with pytest.raises(FileNotFoundError, match=r"no matrix.mtx.*Did you mean .*outs"):
            read_10x_mtx(tmp_path)
        (folder / "features.tsv").unlink()
        with pytest.raises(FileNotFoundError, match=r"no features.tsv or genes.tsv.*It has: barcodes.tsv, matrix.mtx"):
            read_10x_mtx(folder)

    def test_tables_that_do_not_fit_are_refused(self, tmp_path):
        folder = write_mtx(tmp_path / "x", gzipped=False, n_columns=2)
        (folder / "barcodes.tsv").write_text("AAAC-1\n")
        with pytest.raises(ValueError, match=r"\(2, 4\) cells and features, but the tables beside it name \(1, 4\)"):
            read_10x_mtx(folder)


class TestRead10xH5:
    def test_features_layout(self, tmp_path):
        adata = read_10x_h5(write_h5(tmp_path / "x.h5", "features"))
        assert adata.var_names.tolist() == ["CD3D", "MS4A1", "CD3D-1"]
        assert list(adata.var.columns) == ["gene_ids", "feature_types", "genome"]
        np.testing.assert_array_equal(adata.X.toarray(), COUNTS[:, :3])
        assert read_10x_h5(tmp_path / "x.h5", gex_only=False).n_vars == 4
        assert read_10x_h5(tmp_path / "x.h5", genome="mm10").var_names.tolist() == ["MS4A1"]
        with pytest.raises(ValueError, match=r"genome 'GRCh37' is not in .*did you mean 'GRCh38'"):
            read_10x_h5(tmp_path / "x.h5", genome="GRCh37")

    def test_legacy_layout_with_two_genomes(self, tmp_path):
        path = write_h5(tmp_path / "x.h5", "legacy")
        with pytest.warns(UserWarning, match="hg19, mm10; reading hg19"):
            np.testing.assert_array_equal(read_10x_h5(path).X.toarray(), COUNTS)
        adata = read_10x_h5(path, genome="mm10", var_names="gene_ids")
        np.testing.assert_array_equal(adata.X.toarray(), 10 * COUNTS)
        assert adata.var_names.tolist() == IDS
        with pytest.raises(ValueError, match=r"genome 'hg38' is not in .*It has: hg19, mm10"):
            read_10x_h5(path, genome="hg38")

    def test_what_is_no_10x_file_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file"):
            read_10x_h5(tmp_path / "nothing.h5")
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["something"] = 1
        with pytest.raises(ValueError, match="not one of 10x Genomics; it has: something"):
            read_10x_h5(tmp_path / "x.h5")
        whole = write_h5(tmp_path / "y.h5", "features").read_bytes()
        (tmp_path / "y.h5").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"y.h5 is an HDF5 file that is truncated or damaged \(.*truncated file"):
            read_10x_h5(tmp_path / "y.h5")


class TestReadAdata:
    def test_every_kind_of_file(self, adata, tmp_path):
        adata.write_h5ad(tmp_path / "a.h5ad")
        shutil.copy(tmp_path / "a.h5ad", tmp_path / "a.h5")
        adata.write_zarr(tmp_path / "a.zarr")
        for name in ("a.h5ad", "a.h5", "a.zarr"):
            assert read_adata(tmp_path / name).shape == adata.shape
        assert read_adata(str(tmp_path / "a.h5ad")).isbacked
        assert not read_adata(tmp_path / "a.h5ad", backed=False).isbacked
        assert read_adata(write_h5(tmp_path / "x.h5", "legacy")).shape == (2, 4)
        assert read_adata(write_mtx(tmp_path / "mtx", gzipped=True, n_columns=3)).shape == (2, 3)

    def test_the_wrong_file_is_named(self, tmp_path):
        (tmp_path / "b.h5ad").write_text("")
        with pytest.raises(FileNotFoundError, match=r"There is no .*a.h5ad. Beside it: b.h5ad"):
            read_adata(tmp_path / "a.h5ad")
        (tmp_path / "b.h5ad").write_text("name,value")
        with pytest.raises(ValueError, match=r"b.h5ad is a table of text: read it with pandas"):
            read_adata(tmp_path / "b.h5ad")
        with h5py.File(tmp_path / "c.h5", "w") as file:
            file["something"] = 1
        with pytest.raises(ValueError, match="neither an AnnData nor a 10x file; it has: something"):
            read_adata(tmp_path / "c.h5")
        with pytest.raises(ValueError, match="zarr store, but not one of AnnData"):
            read_adata(GOLDEN / "dataset.zarr")

    @pytest.mark.parametrize("version", ["v3", "v1.2"])
    def test_real_10x_folder_and_file_agree(self, real_data, version):
        folder, file = {
            "v3": ("filtered_feature_bc_matrix", "filtered_feature_bc_matrix.h5"),
            "v1.2": ("filtered_gene_bc_matrices/hg19_chr21", "filtered_gene_bc_matrices_h5.h5"),
        }[version]
        from_folder = read_adata(real_data(f"10x/{version}/{folder}"))
        from_file = read_adata(real_data(f"10x/{version}/{file}"))
        assert from_folder.var_names.tolist() == from_file.var_names.tolist()
        assert from_folder.obs_names.tolist() == from_file.obs_names.tolist()
        assert (from_folder.X != from_file.X).nnz == 0
        assert from_file.shape == {"v3": (1107, 507), "v1.2": (12, 343)}[version]


class TestKindsOfFiles:
    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("q.h5ad.gz", lambda whole: gzip.compress(whole), r"packed HDF5 file: unpack it \(gunzip q.h5ad.gz\)"),
            ("q.h5ad.bz2", lambda whole: bz2.compress(whole), r"packed .*file: unpack it \(bunzip2 q.h5ad.bz2\)"),
            ("q.h5ad.xz", lambda whole: lzma.compress(whole), r"packed HDF5 file: unpack it \(unxz q.h5ad.xz\)"),
            ("x.zarr.zip", lambda _: b"PK\x03\x04", "a zip archive: unzip it"),
            ("counts.csv", lambda _: b"cell,CD3D\na,1\n", "a table of text: read it with pandas .* cells as rows"),
            ("counts.tsv.gz", lambda _: gzip.compress(b"\tA\tB\nc\t1\t2"), "a table of text, packed: read it"),
            ("s.rds", lambda _: gzip.compress(b"X\n\0\0\0\3"), "an R file: write it as .h5ad in R"),
            ("s.rda", lambda _: bz2.compress(b"RDX3\nX\n"), "an R file: write it as .h5ad in R"),
            ("matrix.mtx.gz", lambda _: gzip.compress(b"%%MatrixMarket matrix"), "Matrix Market .*: pass the folder"),
            ("lfs.h5ad", lambda _: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer .*git lfs pull"),
            ("annex.h5ad", lambda _: b"/annex/objects/SHA256E-s9--0", "git-annex pointer .*git annex get"),
            ("page.h5ad", lambda _: b"\n<!DOCTYPE HTML><html>", "a web page: .*download the file again"),
            (
                "error.h5ad",
                lambda _: b"<?xml version='1.0'?><Error>AccessDenied",
                "XML or JSON, such as a server's error: .*download",
            ),
            ("t.parquet", lambda _: b"PAR1", "a Parquet table: read it with pandas"),
            ("x.pkl", lambda _: pickle.dumps([1]), "a Python pickle, which may run code and is not opened"),
            ("x.npy", lambda _: b"\x93NUMPY\1\0", "a NumPy array, which has no names"),
            ("x.tar", lambda _: bytes(257) + b"ustar\x0000", "a tar archive: unpack it"),
            ("empty.h5ad", lambda _: b"", "empty: copy or download it again"),
            ("x.h5ad", lambda _: b"\x00\x01what", "not an HDF5 file, or it is truncated: it begins with .*what"),
            ("half.h5ad", lambda whole: whole[:2000], "an HDF5 file that is truncated or damaged"),
        ],
    )
    @pytest.mark.parametrize("read", [read_adata, load_model])
    def test_another_kind_is_named_with_the_way_out(self, adata, tmp_path, name, content, said, read):
        adata.write_h5ad(tmp_path / "whole.h5ad")
        (tmp_path / name).write_bytes(content((tmp_path / "whole.h5ad").read_bytes()))
        with pytest.raises(ValueError, match=rf"{name} is {'' if said[0] in 'enX' else '(a |an )?'}{said}"):
            read(tmp_path / name)

    def test_a_locked_file_is_named(self, adata, tmp_path):
        fcntl = pytest.importorskip("fcntl")
        adata.write_h5ad(tmp_path / "cells.h5ad")
        with (tmp_path / "cells.h5ad").open("rb+") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(ValueError, match=r"cells.h5ad is locked: another .*HDF5_USE_FILE_LOCKING=FALSE"):
                read_adata(tmp_path / "cells.h5ad")
        assert read_adata(tmp_path / "cells.h5ad", backed=False).shape == adata.shape

    @pytest.mark.parametrize("name", ["X/data", "obs/_index"])
    def test_a_filter_that_is_not_installed_is_named(self, adata, tmp_path, name):
        adata.write_h5ad(tmp_path / "cells.h5ad")
        with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
            attributes, n_values = dict(file[name].attrs), len(file[name])
            del file[name]
            creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            creation.set_chunk((n_values,))
            creation.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, (1,))
            kind = h5py.h5t.NATIVE_FLOAT if name == "X/data" else h5py.h5t.C_S1
            stored = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple((n_values,)), dcpl=creation)
            stored.write_direct_chunk((0,), b"packed")
            file[name].attrs.update(attributes)
        for read in (lambda: read_adata(tmp_path / "cells.h5ad", backed=False), lambda: _first_counts(tmp_path)):
            with pytest.raises(ValueError, match=r"cells.h5ad is packed with .*32099.*pip install hdf5plugin"):
                read()

    def test_spatialdata_and_loom_stores_are_told(self, adata, tmp_path):
        root = zarr.open_group(tmp_path / "x.zarr", mode="w")
        root.create_group("images")
        ad.io.write_elem(root.create_group("tables"), "table", adata)
        table = tmp_path / "x.zarr" / "tables" / "table"
        with pytest.raises(ValueError, match=f"is SpatialData: pass its table, {table}; it has: tables/table"):
            read_adata(tmp_path / "x.zarr")
        assert read_adata(table).shape == adata.shape
        root = zarr.open_group(tmp_path / "y.zarr", mode="w")
        root.create_group("row_attrs"), root.create_group("col_attrs")
        with pytest.raises(ValueError, match=r"y.zarr is a loom store: convert it"):
            read_adata(tmp_path / "y.zarr")


def _first_counts(folder):
    with opened_counts(folder / "cells.h5ad") as adata:
        return Counts(adata, file=folder / "cells.h5ad").rows(0, 2)


class TestMuData:
    @staticmethod
    def written(path, modalities):
        """What mudata writes: obs and var of all, and an AnnData for each modality."""
        with warnings.catch_warnings(action="ignore"):
            root = h5py.File(path, "w") if path.suffix == ".h5mu" else zarr.open_group(path, mode="w")
            root.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0", "axis": 0})
            first = next(iter(modalities.values()))
            ad.io.write_elem(root, "obs", first.obs[[]])
            names = [name for modality in modalities.values() for name in modality.var_names]
            ad.io.write_elem(root, "var", pd.DataFrame(index=names))
            group = root.create_group("mod")
            for name, modality in modalities.items():
                ad.io.write_elem(group, name, modality)
                group[name].pop("raw", None) if path.suffix == ".h5mu" else None
        if path.suffix == ".h5mu":
            root.close()
        return path

    @pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
    @pytest.mark.parametrize("name", ["rna", "gex", "genes"])
    def test_the_modality_of_genes_is_read_and_told(self, adata, tmp_path, suffix, name):
        proteins = ad.AnnData(np.ones((adata.n_obs, 2)), adata.obs[[]], pd.DataFrame(index=["CD3", "CD4"]))
        proteins.var["feature_types"] = "Antibody Capture"
        adata.var["feature_types"] = "Gene Expression"
        path = self.written(tmp_path / f"x{suffix}", {"prot": proteins, name: adata})
        told = rf"x{suffix} is MuData with the modalities .*prot.*: mod/{name} is read"
        for backed in (True, False):
            with pytest.warns(UserWarning, match=told):
                found = read_adata(path, backed)
            np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
            assert found.var_names.tolist() == adata.var_names.tolist()
        with pytest.warns(UserWarning, match=told), opened_counts(path) as opened:
            np.testing.assert_array_equal(opened.X[:].toarray(), adata.X.toarray())

    def test_one_that_is_not_known_is_asked_for(self, adata, tmp_path):
        path = self.written(tmp_path / "x.h5mu", {"first": adata, "second": adata})
        with pytest.raises(ValueError, match=r"x.h5mu is MuData, and which of its modalities .*: first, second. Write"):
            read_adata(path)

    @pytest.mark.parametrize("source", [".h5mu", ".zarr"])
    @pytest.mark.parametrize("target", [".h5ad", ".zarr"])
    def test_what_is_written_is_the_modality(self, adata, tmp_path, source, target):
        save_model(untrained(), tmp_path / "m.h5")
        path = self.written(tmp_path / f"x{source}", {"rna": adata})
        with pytest.warns(UserWarning, match="mod/rna is read"):
            ginseng("annotate", tmp_path / "m.h5", path, "-o", tmp_path / f"o{target}")
        written = read_adata(tmp_path / f"o{target}", backed=False)
        assert "ginseng_cell_type" in written.obs
        np.testing.assert_array_equal(written.X.toarray(), adata.X.toarray())


class TestHomeFolder:
    def test_a_tilde_stands_for_it_wherever_a_path_is_taken(self, adata, tmp_path, monkeypatch):
        home, here = tmp_path / "home", tmp_path / "here"
        home.mkdir(), here.mkdir()
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.chdir(here)
        write_adata(adata, "~/cells.h5ad")
        save_model(untrained(), "~/m")
        write_mtx(home / "mtx", gzipped=True, n_columns=3)
        (home / "names.csv").write_text("B cell,B\n")
        dataset = GinsengDataset.create("~/cells.zarr", "~/cells.h5ad", "cell_type", silent=True)
        assert dataset.path == home / "cells.zarr"
        assert GinsengDataset("~/cells.zarr").n_cells == adata.n_obs
        assert read_adata("~/mtx").shape == (2, 3)
        assert read_mapping("~/names.csv", "mapping", ("label", "name")) == {"B cell": "B"}
        table = classify("~/m.h5", "~/cells.h5ad", return_table=True, silent=True)
        assert len(table) == adata.n_obs
        ginseng("annotate", "~/m.h5", "~/cells.h5ad", "--output=~/out.h5ad", "-q")
        annotated = read_annotation("~/out.h5ad")
        mqc(annotated, "~/cells_mqc.json")
        report(annotated, "~/page.html")
        Checkpoint("~/run", {})
        LogFile("~/log.csv")
        assert not list(here.iterdir())
        expected = {"cells.h5ad", "m.h5", "cells.zarr", "out.h5ad", "cells_mqc.json", "page.html"}
        assert expected <= {path.name for path in home.iterdir()}

    def test_a_user_that_there_is_not_is_a_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="There is no ~nobody-of-that-name/cells.h5ad"):
            read_adata("~nobody-of-that-name/cells.h5ad")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve `content`, of which the first answer breaks off half way if `broken` is set."""

    class Handler(http.server.BaseHTTPRequestHandler):
        content = b""
        broken = False
        leads_to = ""
        stopped = threading.Event()
        n_requests = 0

        def do_GET(self):
            Handler.n_requests += 1
            if not Handler.content:
                self.send_error(404)
                return
            if self.path.startswith("/hop"):
                self.send_response(302)
                self.send_header("Location", Handler.leads_to)
                self.end_headers()
                return
            self.send_response(200)
            if self.path.startswith("/drip"):
                self.end_headers()
                while not Handler.stopped.wait(0.02):
                    self.wfile.write(b"x")
                return
            self.send_header("Content-Length", str(len(Handler.content)))
            self.end_headers()
            self.wfile.write(Handler.content[: len(Handler.content) // 2] if Handler.broken else Handler.content)

        def log_message(self, *_): ...

    monkeypatch.setattr(pooch, "os_cache", lambda _: tmp_path / "cache")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Handler.url = f"http://127.0.0.1:{server.server_port}/cells.h5ad"
        yield Handler
        Handler.stopped.set()
        server.shutdown()


class TestDownload:
    def test_a_url_is_read_and_kept(self, adata, server, tmp_path):
        adata.write_h5ad(tmp_path / "x.h5ad")
        server.content = (tmp_path / "x.h5ad").read_bytes()
        for _ in range(2):
            downloaded = read_adata(server.url)
            np.testing.assert_array_equal(ad.AnnData(downloaded.X[:]).X.toarray(), adata.X.toarray())
        assert server.n_requests == 1

    def test_a_partial_download_is_never_taken_for_a_whole_one(self, adata, server, tmp_path):
        adata.write_h5ad(tmp_path / "x.h5ad")
        server.content, server.broken = (tmp_path / "x.h5ad").read_bytes(), True
        with pytest.raises(ValueError, match="could not be downloaded.*nothing was kept"):
            read_adata(server.url)
        assert not list((tmp_path / "cache").glob("*"))
        server.broken = False
        assert read_adata(server.url).shape == adata.shape

    def test_what_a_killed_download_left_goes_with_the_next(self, adata, server, tmp_path):
        adata.write_h5ad(tmp_path / "x.h5ad")
        server.content = (tmp_path / "x.h5ad").read_bytes()
        (tmp_path / "cache").mkdir()
        with workspace(tmp_path / "cache") as folder:
            left = folder.parent
        (left / "new").mkdir(parents=True)
        (left / "lock").write_text("")
        (left / "new" / "tmp1234").write_bytes(b"half")
        read_adata(server.url)
        assert not left.exists()
        assert len(list((tmp_path / "cache").iterdir())) == 1

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"<!DOCTYPE html><title>log in", "it is a web page, beginning with b'<!DOCTYPE html><title>log in'"),
            (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file that is truncated or damaged, beginning with b'.x89HDF"),
            (b"try again", "not an HDF5 file.*b'try again'"),
        ],
    )
    def test_what_is_no_data_file_is_not_kept(self, adata, server, tmp_path, content, said):
        server.content = content
        with pytest.raises(ValueError, match=f"cells.h5ad could not be downloaded .*{said}.*nothing was kept"):
            read_adata(server.url)
        assert not list((tmp_path / "cache").glob("*"))
        adata.write_h5ad(tmp_path / "x.h5ad")
        server.content = (tmp_path / "x.h5ad").read_bytes()
        assert read_adata(server.url).shape == adata.shape

    def test_one_that_was_kept_before_is_fetched_anew(self, adata, server, tmp_path):
        adata.write_h5ad(tmp_path / "x.h5ad")
        server.content = (tmp_path / "x.h5ad").read_bytes()
        read_adata(server.url, backed=False)
        (kept,) = (tmp_path / "cache").iterdir()
        kept.write_bytes(b"<html>")
        assert read_adata(server.url).shape == adata.shape

    def test_a_server_that_drips_is_given_up(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(downloads, "_WATCHED", 0.2)
        server.content = b"x"
        with pytest.raises(
            ValueError, match=r"server sent \d+ bytes in 0.2 seconds, and was given up.*nothing was kept"
        ):
            read_adata(server.url.replace("cells", "drip"))
        assert not list((tmp_path / "cache").glob("*"))

    def test_each_hop_of_a_chain_is_over_https_or_here(self, adata, server, tmp_path):
        adata.write_h5ad(tmp_path / "x.h5ad")
        server.content = (tmp_path / "x.h5ad").read_bytes()
        hop = server.url.replace("cells", "hop")
        server.leads_to = "http://example.com/cells.h5ad"
        with pytest.raises(ValueError, match=r"it leads to http://example.com/cells.h5ad, over http.*nothing was kept"):
            read_adata(hop)
        server.leads_to = "cells.h5ad"
        assert read_adata(hop).shape == adata.shape

    def test_a_missing_page_is_named(self, server):
        with pytest.raises(ValueError, match=r"cells.h5ad could not be downloaded.*404"):
            read_adata(server.url)

    def test_what_is_not_as_its_digest_says_is_not_kept(self, adata, server, tmp_path):
        adata.write_h5ad(tmp_path / "x.h5ad")
        server.content = (tmp_path / "x.h5ad").read_bytes()
        digest = hashlib.sha256(server.content).hexdigest()
        assert read_adata(f"{server.url}#sha256={digest.upper()}").shape == adata.shape
        with pytest.raises(ValueError, match="could not be downloaded.*hash.*nothing was kept"):
            read_adata(f"{server.url}?other#sha256={'0' * 64}")
        with pytest.raises(ValueError, match="must end with #sha256= and 64 hexadecimal digits"):
            read_adata(f"{server.url}#sha256=12")

    @pytest.mark.parametrize("address", ["http://example.com/cells.h5ad", "http://127.0.0.1.example.com/cells.h5ad"])
    def test_http_is_for_this_machine_or_for_what_is_checked(self, address):
        with pytest.raises(ValueError, match="not fetched over http, which anyone between can change"):
            read_adata(address)

    def test_a_file_that_the_disk_has_no_room_for_is_not_begun(self, server, tmp_path, monkeypatch):
        server.content = b"x" * 100
        monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30 + 99}))
        with pytest.raises(ValueError, match="it has 100 bytes, and the disk of the cache has room for 99"):
            read_adata(server.url)
        assert not list((tmp_path / "cache").glob("*"))

    def test_a_disk_that_fills_up_meanwhile_keeps_nothing(self, server, tmp_path, monkeypatch):
        resource = pytest.importorskip("resource")
        server.content = b"x" * 2**16
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, hard))
        try:
            with pytest.raises(ValueError, match="could not be downloaded .*File too large.*nothing was kept"):
                read_adata(server.url)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_types_of_tables_are_read_back_as_they_were_written(suffix, tmp_path):
    types = ["NA", "None", "nan", "null", "n/a", "", "cell"]
    table = pd.DataFrame({"ginseng_cell_type": pd.Categorical([*types[:5], None, "cell"]), "cell": np.arange(7) / 4})
    write_annotated(table.set_axis(types, axis=0), tmp_path / f"t{suffix}")
    told = read_told(tmp_path / f"t{suffix}")
    assert told["ginseng_cell_type"].isna().tolist() == [False] * 5 + [True, False]
    assert told["ginseng_cell_type"].dropna().tolist() == [*types[:5], "cell"]
    assert list(told.columns) == ["ginseng_cell_type", "cell"]
    assert told["cell"].tolist() == table["cell"].tolist()
