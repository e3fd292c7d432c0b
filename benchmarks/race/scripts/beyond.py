"""A budget that a dataset does not fit, a third of its counts, and the cells per block that ours reads: path."""

import sys

from reporting import report

from ginseng.data.dataset import GinsengDataset
from ginseng.data.streaming import block_size_for

dataset = GinsengDataset(sys.argv[1])
budget = int(dataset.bytes_per_cell.sum()) // 3
# The next block size that makes whole batches of 128 of annbatch's buffers of 32 blocks.
report(budget=budget, block_size=-(-block_size_for(dataset._stored, budget) // 4) * 4)
