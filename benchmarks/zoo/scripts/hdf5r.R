# Files by hdf5r, in the layout of SeuratDisk::Convert: Rscript hdf5r.R COUNTS.csv LABELS.csv OUT
library(hdf5r)
library(Matrix)

arguments <- commandArgs(trailingOnly = TRUE)
counts <- as.matrix(read.csv(arguments[1], row.names = 1, check.names = FALSE))
obs <- read.csv(arguments[2], row.names = 1)
out <- arguments[3]
text <- H5T_STRING$new(size = Inf)
text$set_cset("UTF-8")
scalar <- H5S$new(type = "scalar")

attribute <- function(node, name, value) {
  if (is.character(value)) {
    node$create_attr(name, robj = value, dtype = text, space = if (length(value) == 1 && name != "column-order") scalar else NULL)
  } else {
    node$create_attr(name, robj = value)
  }
}

sparse_x <- function(parent, name, matrix) {
  rows <- as(t(matrix), "CsparseMatrix")
  group <- parent$create_group(name)
  group$create_dataset("data", rows@x)
  group$create_dataset("indices", rows@i)
  group$create_dataset("indptr", rows@p)
  attribute(group, "encoding-type", "csr_matrix")
  attribute(group, "encoding-version", "0.1.0")
  invisible(attribute(group, "shape", dim(matrix)))
}

table <- function(parent, name, index, columns) {
  group <- parent$create_group(name)
  group$create_dataset("_index", index, dtype = text)
  categories <- NULL
  for (column in names(columns)) {
    value <- columns[[column]]
    if (is.factor(value)) {
      if (is.null(categories)) categories <- group$create_group("__categories")
      group$create_dataset(column, as.integer(value) - 1L)
      levels <- categories$create_dataset(column, levels(value), dtype = text)
      levels$create_attr("ordered", robj = FALSE, dtype = h5types$H5T_NATIVE_INT8, space = scalar)
      reference <- categories$create_reference(column)
      group[[column]]$create_attr("categories", robj = reference, space = scalar)
    } else if (is.character(value)) {
      group$create_dataset(column, value, dtype = text)
    } else {
      group$create_dataset(column, value)
    }
  }
  attribute(group, "encoding-type", "dataframe")
  attribute(group, "encoding-version", "0.1.0")
  attribute(group, "_index", "_index")
  invisible(attribute(group, "column-order", names(columns)))
}

path <- file.path(out, "hdf5r.h5ad")
unlink(path)
file <- H5File$new(path, "w")
sparse_x(file, "X", log1p(counts))
raw <- file$create_group("raw")
sparse_x(raw, "X", counts)
features <- list(features = colnames(counts))
table(file, "var", colnames(counts), features)
table(raw, "var", colnames(counts), features)
columns <- list(cell_type = factor(obs$cell_type), orig.ident = factor(obs$donor), nCount_RNA = rowSums(counts), barcode = rownames(counts), doublet = obs$donor == "d1")
table(file, "obs", rownames(counts), columns)
embedding <- file$create_group("obsm")
embedding$create_dataset("X_umap", matrix(0, 2, nrow(counts)))
uns <- file$create_group("uns")
uns$create_dataset("n", 3L)
uns$create_dataset("method", "SNN", dtype = text)
uns$create_dataset("logical", TRUE)
file$close_all()
line <- '{"file": "hdf5r.h5ad", "what": "hdf5r in the layout of SeuratDisk", "options": ["--layer", "raw"]}\n'
cat(line, file = file.path(out, "files.jsonl"), append = TRUE)
