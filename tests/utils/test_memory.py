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


def test_a_container_s_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    of_the_machine = memory.free_memory()
    assert of_the_machine > 10_000
    (tmp_path / "memory.current").write_text("4000\n")
    for limit, expected in (("10000\n", 6000), ("3000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory.free_memory() == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory() > 10_000
