"""A zoo of sound files of counts, by every writer that can be had, and what reads them."""
