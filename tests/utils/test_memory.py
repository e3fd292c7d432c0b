import pytest

from ginseng.utils import memory


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1 GB", 10**9),
        ("1gib", 2**30),
        ("2.5M", 2_500_000),
        (" 300 ", 300),
        (77, 77),
        ("0.5 KiB", 512),
        ("3TB", 3 * 10**12),
    ],
)
def test_amounts(text, n_bytes):
    assert memory.bytes_of(text) == n_bytes


def test_a_container_s_limit_counts(tmp_path):
    assert memory.free_memory(tmp_path) > 10_000
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("file 900\ninactive_file 500\nslab 3\n")
    for limit, expected in (("10000\n", 6500), ("3000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory.free_memory(tmp_path, tmp_path / "own") == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(tmp_path, tmp_path / "own") > 10_000


def test_a_job_s_limit_counts_and_those_of_what_it_is_part_of(tmp_path):
    (tmp_path / "own").write_text("0::/slurm/job1\n")
    for folder, limit in (("slurm", 5000), ("slurm/job1", 7000)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "memory.max").write_text(f"{limit}\n")
        (tmp_path / folder / "memory.current").write_text("1000\n")
        (tmp_path / folder / "memory.stat").write_text("anon 1000\n")
    assert memory.free_memory(tmp_path, tmp_path / "own") == 4000
    (tmp_path / "slurm" / "memory.max").write_text("max\n")
    assert memory.free_memory(tmp_path, tmp_path / "own") == 6000


@pytest.mark.parametrize(
    ("n_bytes", "free", "expected"),
    [
        (500, 1000, 500),
        (10**9, 2 * 10**9, 10**9),
        (10**9, 10**9, 5 * 10**8),
        (10**9, 1000, 2**26),
        (10**12, 10**11, 2**30),
    ],
)
def test_a_budget_by_what_is_free(n_bytes, free, expected):
    assert memory.default_budget(n_bytes, free) == expected
