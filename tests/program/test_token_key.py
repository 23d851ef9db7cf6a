"""Processes that start together agree on one token key."""

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from etl.secrets.masking import Secret
from etl.secrets.vault import TokenVault


def encrypt_at_once(path: Path, barrier: Barrier, results: "multiprocessing.Queue[str]") -> None:
    barrier.wait()
    results.put(TokenVault(str(path)).encrypt(Secret("t0ken")))


def test_processes_that_begin_together_end_with_one_key(tmp_path: Path) -> None:
    vault_file = tmp_path / "keys" / "token.key"
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=encrypt_at_once, args=[vault_file, barrier, results])
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    kept = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    vault = TokenVault(str(vault_file))
    assert [vault.decrypt(one).reveal() for one in kept] == ["t0ken"] * 4
    assert [*vault_file.parent.iterdir()] == [vault_file]
