"""Names that genes have beside those that they go by, and tables of names."""

import re

import numpy as np
import pandas as pd
import pytest

from ginseng.utils.genes import OTHER_GENES, match_genes
from ginseng.utils.names import (
    SPELLINGS,
    GeneNames,
    agreed_names,
    called_by,
    column_of_names,
    read_gene_table,
    second_names,
)

SYMBOLS = ["CD3D", "CD4", "CD8A", "MS4A1"]
IDS = ["ENSG00000167286", "ENSG00000010610", "ENSG00000153563.8", "ENSG00000156738"]


def second(index, **columns):
    found = second_names(pd.DataFrame(columns, index=index))
    return None if found is None else found.tolist()


class TestSecondNames:
    def test_identifiers_in_whatever_column(self):
        others = {"chromosome": ["11", "12", "2", "11"], "n_cells": [1, 2, 3, 4]}
        assert second(SYMBOLS, **others, anything=IDS) == IDS
        assert second(SYMBOLS, **others, anything=pd.Categorical(IDS)) == IDS
        assert second(SYMBOLS, **others) is None
        assert second(SYMBOLS, gene_ids=SYMBOLS) is None

    @pytest.mark.parametrize("column", ["gene_symbols", "feature_name", "Symbol"])
    def test_symbols_in_a_column_of_that_name(self, column):
        assert second(IDS, biotype=["protein_coding"] * 4, **{column: SYMBOLS}) == SYMBOLS
        assert second(IDS, biotype=["protein_coding"] * 4) is None

    @pytest.mark.parametrize("missing", [np.nan, None, ""])
    def test_what_is_missing_or_shared_is_not_known(self, missing):
        assert second(IDS, gene_name=["CD3D", missing, "CD3D", "MS4A1"]) == ["", "", "", "MS4A1"]
        assert second(IDS, gene_name=[missing] * 4) is None

    def test_identifiers_of_other_species(self):
        for ids in (["ENSMUSG00000032094", "ENSDARG00000000001"], ["FBgn0000001", "FBgn0000002"]):
            assert second(["a", "b"], gene_ids=ids) == ids


def test_inputs_that_contradict_each_other_leave_a_name_unknown():
    first, other = np.array(["a", "b", "c", ""]), np.array(["a", "x", "", "c"])
    assert agreed_names([first, other, np.array(["", "", "", ""])]).tolist() == ["a", "", "", ""]
    assert agreed_names([np.array(["a", ""]), np.array(["b", ""])]) is None


def test_versions_and_transcripts_are_no_other_names():
    versions = [np.array(["ENSG00000167286.1"]), np.array(["ENSG00000167286.2"]), np.array(["ENSG00000167286"])]
    assert agreed_names(versions).tolist() == ["ENSG00000167286.1"]
    columns = {"transcript_id": ["ENST00000300692", "ENST00000011653"], "gene_id": ["ENSG00000167286", IDS[1]]}
    assert second_names(pd.DataFrame(columns, ["CD3D", "CD4"])).tolist() == columns["gene_id"]


class TestGeneNames:
    def test_the_names_that_find_most_are_taken_with_a_warning(self):
        model = GeneNames(SYMBOLS, IDS)
        message = (
            "Genes are matched by b with the second names of the model, which finds 3 of 4; a with its names finds 1."
        )
        with pytest.warns(UserWarning, match=re.escape(message)):
            gene_map = model.match(
                {"a": np.array(["x", "CD4", "y"]), "b": np.array([IDS[3], "ENSG00000153563", IDS[0]])}
            )
        assert gene_map.positions.tolist() == [3, 2, 0]

    def test_the_plain_names_win_where_others_find_as_many(self, recwarn):
        data = {"a": np.array(["CD4", "x"]), "b": np.array(["x", "CD8A"])}
        assert GeneNames(SYMBOLS).match(data).positions.tolist() == [1, -1]
        assert not recwarn

    def test_a_few_names_that_differ_do_not_outvote_the_index(self, recwarn):
        genes = [f"G{i}" for i in range(40)]
        data = {"a": np.array(["renamed", *genes[1:]]), "b": np.array(genes[::-1])}
        assert GeneNames(genes).match(data).positions.tolist() == [-1, *range(1, 40)]
        assert not recwarn

    def test_a_table_holds_where_other_names_would_find_more(self):
        table = read_gene_table({"CD3D": "CD4", "CD4": "nothing"})
        data = {"symbols": np.array(SYMBOLS), "ids": np.array(IDS)}
        found = GeneNames(SYMBOLS, IDS, table).match(data).positions
        assert found[SYMBOLS.index("CD3D")] == SYMBOLS.index("CD4")
        assert found[SYMBOLS.index("CD4")] == -1

    def test_a_name_that_is_empty_stands_for_nothing(self):
        table = read_gene_table({"": "CD3D", "Cd4": "CD4"})
        assert GeneNames(SYMBOLS, table=table).match({"a": np.array(["", "Cd4"])}).positions.tolist() == [
            -1,
            SYMBOLS.index("CD4"),
        ]

    def test_unknown_names_match_nothing(self):
        model = GeneNames([*SYMBOLS, OTHER_GENES], ["", "", "i", "j", ""])
        with pytest.warns(UserWarning, match="second names of the model, which finds 2 of 5"):
            gene_map = model.match({"a": np.array(["", "j", "i"])})
        assert gene_map.positions.tolist() == [-1, 3, 2]
        assert gene_map.rest == 4

    def test_a_table_speaks_for_the_names_that_it_has(self):
        table = read_gene_table({"Cd3d": "CD3D", "Cd8a": "absent", "CD4": "CD8A", "other": "CD8A"})
        names = np.array(["Cd3d", "Cd8a", "CD4", "other", "MS4A1"])
        assert GeneNames(SYMBOLS, table=table).match({"a": names}).positions.tolist() == [0, -1, 2, 2, 3]
        folded = GeneNames(SYMBOLS, table=table, ignore_case=True).match({"a": np.array(["Cd8a", "CD3d", "ms4a1"])})
        assert folded.positions.tolist() == [-1, 0, 3]

    def test_of_several_orthologs_the_first_that_the_model_has(self):
        table = read_gene_table(pd.DataFrame([["m", "absent"], ["m", "CD8A"], ["m", "CD4"]]))
        assert GeneNames(SYMBOLS, table=table).match({"a": np.array(["m"])}).positions.tolist() == [2]

    def test_a_table_may_name_identifiers(self):
        table = read_gene_table({"Cd3d": "ENSG00000167286", "Cd8a": "ENSG00000153563"})
        gene_map = GeneNames(SYMBOLS, IDS, table).match({"a": np.array(["Cd8a", "Cd3d", "MS4A1"])})
        assert gene_map.positions.tolist() == [2, 0, 3]

    def test_a_table_adds_to_what_is_found_without_it(self):
        genes, ids = [f"G{i}" for i in range(40)], [f"ENSG{i:011}" for i in range(40)]
        data = {"index": np.array(["old", *genes[1:]]), "ids": np.array(ids)}
        for given in ({"old": "G0", ids[1]: "G1"}, {"old": ids[0]}, {"old": "G0", "G1": ids[1]}):
            model = GeneNames(genes, ids, read_gene_table(given))
            assert model.match(data).positions.tolist() == list(range(40))

    def test_a_table_of_other_genes_is_refused(self):
        table = read_gene_table({"CD3D": "Cd3d", "CD4": "Cd4"})
        message = "No gene of the data is in `gene_map`, which maps CD3D to Cd3d, CD4 to Cd4; the data have x, y.$"
        with pytest.raises(ValueError, match=message):
            GeneNames(SYMBOLS, table=table).match({"a": np.array(["x", "y"])})

    def test_a_table_the_other_way_round_is_named(self):
        table = read_gene_table({"CD3D": "Cd3d", "CD4": "Cd4"})
        model, data = GeneNames(SYMBOLS, table=table), {"a": np.array(["Cd4", "y"])}
        with pytest.raises(ValueError, match="columns are swapped: the name in the data comes first"):
            model.match(data)
        assert model.turned().match(data).positions.tolist() == [1, -1]


class TestSpellings:
    WAYS = (
        "GRCh38_{symbol}",
        "GRCh38______{symbol}",
        "hg19_{id}.3",
        "GRCh38-2020-A_{symbol}",
        "{symbol}_{id}",
        "{id}_{symbol}",
        "{id}.7_{symbol}",
        "{symbol}|{id}",
        "{symbol}|123",
        "{symbol} ({id})",
        "{symbol};{id}.2",
        "gene:{id}",
        "gene:{symbol}",
        "gene-{symbol}",
        "human_{symbol}",
        "{symbol} ",
        " {id}",
        '"{symbol}"',
        "{id}.12_PAR_Y",
    )

    @pytest.mark.parametrize("way", WAYS)
    def test_what_surrounds_a_name_can_be_left_out(self, way):
        genes, ids = [f"HLA-D{i}" for i in range(20)], [f"ENSG{i:011}" for i in range(20)]
        names = np.array([way.format(symbol=gene, id=id_) for gene, id_ in zip(genes, ids, strict=True)])
        found = [
            GeneNames(genes, ids, spelling=spelling).best({"a": names})[1].positions for spelling in SPELLINGS.values()
        ]
        assert max(found, key=lambda positions: (positions >= 0).sum()).tolist() == list(range(20))

    def test_signs_of_r_stand_for_the_gene_that_has_them(self):
        model = GeneNames(["HLA-DRA", "7SK", "AC0.1", "A-1", "A.1"], spelling=SPELLINGS["signs of R"])
        names = np.array(["HLA.DRA", "X7SK", "AC0.1", "A_1"])
        assert model.best({"a": names})[1].positions.tolist() == [0, 1, 2, -1]

    def test_what_is_found_as_it_is_written_is_not_added_to(self):
        model = GeneNames(["CD4", "CD8A"], spelling=SPELLINGS["before a separator"])
        assert model.best({"a": np.array(["CD4", "CD4_1", "CD8A_1"])})[1].positions.tolist() == [0, -1, 1]


class TestNamesToTrainOn:
    def test_a_column_is_found_where_the_index_has_numbers(self):
        numbers, symbols = ["0", "1", "2", "3"], pd.Categorical(SYMBOLS)
        others = {"chromosome": ["chr1"] * 4, "n": [1, 2, 3, 4], "place": [f"chr{i}:{i}-9" for i in range(4)]}
        assert column_of_names(pd.DataFrame({**others, "features": symbols}, numbers)) == "features"
        assert column_of_names(pd.DataFrame({**others, "id": IDS, "feature_name": SYMBOLS}, numbers)) == "feature_name"
        assert column_of_names(pd.DataFrame(others, numbers)) is None
        assert column_of_names(pd.DataFrame({"features": SYMBOLS}, IDS)) is None
        assert column_of_names(pd.DataFrame({"features": []}, [])) is None

    def test_the_index_becomes_the_second_names(self):
        var = called_by(pd.DataFrame({"symbol": SYMBOLS}, IDS), "symbol")
        assert (list(var.index), second_names(var).tolist()) == (SYMBOLS, IDS)
        var = called_by(pd.DataFrame({"id": IDS}, SYMBOLS), "id")
        assert (list(var.index), second_names(var).tolist()) == (IDS, SYMBOLS)
        assert second_names(called_by(pd.DataFrame({"symbol": SYMBOLS}, ["0", "1", "2", "3"]), "symbol")) is None


def test_case_is_ignored_where_one_gene_is_meant():
    model = np.array(["CD3D", "Abc", "ABC", "Xist"])
    names = np.array(["Cd3d", "CD3D", "abc", "XIST", "Abc"])
    assert match_genes(names, model).tolist() == [-1, 0, -1, -1, 1]
    assert match_genes(names, model, ignore_case=True).tolist() == [-1, 0, -1, 3, 1]


class TestReadGeneTable:
    @pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t"), ("t.tsv.gz", "\t")])
    @pytest.mark.parametrize("header", [[], [("mouse", "human")]])
    def test_files(self, tmp_path, name, separator, header):
        lines = [*header, ("Cd3d", "CD3D"), ("Cd4", ""), ("Nan", "NA"), ("Cd8a", "CD8A")]
        pd.DataFrame(lines).to_csv(tmp_path / name, sep=separator, header=False, index=False)
        names = np.array(["Cd8a", "Cd3d", "Cd4", "Nan"])
        positions = GeneNames(["CD3D", "CD4", "CD8A", "NA"], table=read_gene_table(tmp_path / name)).match({"a": names})
        assert positions.positions.tolist() == [2, 0, -1, 3]

    def test_what_is_no_table_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"There is no file .*t.csv, which `gene_map` names"):
            read_gene_table(tmp_path / "t.csv")
        with pytest.raises(ValueError, match=r"must be a .csv or .tsv file, a table or a dictionary, but got t.xlsx"):
            read_gene_table("t.xlsx")
        (tmp_path / "t.csv").write_text("a\tb\nc\td\n")
        with pytest.raises(ValueError, match="must have two columns, .*, but has 1"):
            read_gene_table(tmp_path / "t.csv")
        (tmp_path / "t.csv").write_text("")
        with pytest.raises(ValueError, match=r"t.csv is no table of gene names"):
            read_gene_table(tmp_path / "t.csv")
        with pytest.raises(ValueError, match="must have two columns, .*, but has 3"):
            read_gene_table(pd.DataFrame([["a", "b", "c"]]))
