# Files by rhdf5, as anndataR and hand-written exporters use it: Rscript rhdf5.R COUNTS.csv LABELS.csv OUT
library(rhdf5)
library(Matrix)

arguments <- commandArgs(trailingOnly = TRUE)
counts <- as.matrix(read.csv(arguments[1], row.names = 1, check.names = FALSE))
obs <- read.csv(arguments[2], row.names = 1)
out <- arguments[3]
dir.create(out, recursive = TRUE, showWarnings = FALSE)
unlink(file.path(out, "files.jsonl"))

tell <- function(name, what, options = "") {
  line <- sprintf('{"file": "%s.h5ad", "what": "%s", "options": [%s]}\n', name, what, options)
  cat(line, file = file.path(out, "files.jsonl"), append = TRUE)
}

attribute <- function(file, name, ..., fixed = FALSE) {
  values <- list(...)
  handle <- H5Fopen(file)
  node <- if (name == "/") handle else H5Oopen(handle, name)
  for (key in names(values)) {
    value <- values[[key]]
    one <- length(value) == 1 && key != "column-order"
    h5writeAttribute(value, node, key, variableLengthString = is.character(value) && !fixed, asScalar = one, encoding = "UTF-8")
  }
  if (name != "/") H5Oclose(node)
  H5Fclose(handle)
}

table <- function(file, name, index, columns, fixed) {
  h5createGroup(file, name)
  attribute(file, name, `encoding-type` = "dataframe", `encoding-version` = "0.2.0", `_index` = "_index", `column-order` = names(columns))
  columns <- c(list(`_index` = index), columns)
  for (column in names(columns)) {
    where <- paste0(name, "/", column)
    value <- columns[[column]]
    if (is.factor(value)) {
      h5createGroup(file, where)
      attribute(file, where, `encoding-type` = "categorical", `encoding-version` = "0.2.0", ordered = 0L)
      h5write(as.integer(value) - 1L, file, paste0(where, "/codes"))
      h5write(levels(value), file, paste0(where, "/categories"), variableLengthString = !fixed, encoding = "UTF-8")
      attribute(file, paste0(where, "/codes"), `encoding-type` = "array", `encoding-version` = "0.2.0")
      attribute(file, paste0(where, "/categories"), `encoding-type` = "string-array", `encoding-version` = "0.2.0")
    } else if (is.character(value)) {
      h5write(value, file, where, variableLengthString = !fixed, encoding = "UTF-8")
      attribute(file, where, `encoding-type` = "string-array", `encoding-version` = "0.2.0")
    } else {
      h5write(value, file, where)
      attribute(file, where, `encoding-type` = "array", `encoding-version` = "0.2.0")
    }
  }
}

sparse_x <- function(file, name, matrix) {
  rows <- as(t(matrix), "CsparseMatrix")
  h5createGroup(file, name)
  h5write(rows@x, file, paste0(name, "/data"))
  h5write(rows@i, file, paste0(name, "/indices"))
  h5write(rows@p, file, paste0(name, "/indptr"))
  attribute(file, name, `encoding-type` = "csr_matrix", `encoding-version` = "0.1.0", shape = dim(matrix))
}

written <- function(name, dense, fixed, what, ...) {
  file <- file.path(out, paste0(name, ".h5ad"))
  unlink(file)
  h5createFile(file)
  attribute(file, "/", `encoding-type` = "anndata", `encoding-version` = "0.1.0")
  if (dense) {
    h5write(t(counts), file, "X")
    attribute(file, "X", `encoding-type` = "array", `encoding-version` = "0.2.0")
  } else {
    sparse_x(file, "X", counts)
  }
  columns <- list(cell_type = factor(obs$cell_type), donor = obs$donor, n = rowSums(counts), logical = obs$donor == "d1", int = seq_len(nrow(counts)))
  table(file, "obs", rownames(counts), columns, fixed)
  table(file, "var", colnames(counts), list(length = seq_len(ncol(counts))), fixed)
  for (group in c("uns", "obsm", "layers", "obsp", "varm", "varp")) {
    h5createGroup(file, group)
    attribute(file, group, `encoding-type` = "dict", `encoding-version` = "0.1.0")
  }
  h5write("counts", file, "uns/X_name", variableLengthString = !fixed)
  h5write(c(1.5, NA), file, "uns/numbers")
  h5write(c(TRUE, NA), file, "uns/logicals")
  h5write(list(a = 1L, b = c("x", "y")), file, "uns/listed")
  h5write(data.frame(a = 1:2, b = c("x", "y")), file, "uns/frame")
  h5write(matrix(0, 2, nrow(counts)), file, "obsm/X_umap")
  attribute(file, "obsm/X_umap", `encoding-type` = "array", `encoding-version` = "0.2.0")
  tell(name, what)
  h5closeAll()
}

written("rhdf5_sparse", FALSE, FALSE, "rhdf5, sparse, text of variable length")
written("rhdf5_dense", TRUE, FALSE, "rhdf5, dense, text of variable length")
written("rhdf5_fixed", FALSE, TRUE, "rhdf5, sparse, text of fixed length")
