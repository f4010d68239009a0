"""What stops a run is one sentence, and a process that fails does not wait for the others."""

import torch

from tests.forks import exit_code, fork
from utils.errors import Terminated, UserError
from utils.run import cost
from utils.run.failures import explain, explained, leaving_at_once


def test_the_libraries_of_a_gpu_run_out_of_memory_in_their_own_words():
    for text in (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NCCL error: unhandled cuda error, CUDA out of memory",
    ):
        assert explain(RuntimeError(text)).startswith("out of memory"), text
    assert explain(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")) is None


def test_one_of_several_processes_reports_and_leaves_without_waiting(tmp_path):
    def failing(error):
        def action():
            try:
                with leaving_at_once(2), explained(tmp_path):
                    raise error
            finally:
                print("waited")

        return action

    for error, code, words in (
        (UserError("wrong"), 2, "error: wrong\n"),
        (torch.OutOfMemoryError("x"), 2, "error: out of memory: "),
        (ValueError("a fault of the program"), 1, "ValueError: a fault of the program"),
        (Terminated("interrupted; resume it"), 143, "interrupted; resume it\n"),
    ):
        assert exit_code(fork(failing(error), tmp_path / "out")) == code, error
        printed = (tmp_path / "out").read_text(encoding="utf-8")
        assert words in printed and "waited" not in printed, printed


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_reports_resident_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cost.peak_memory(torch.device("cpu")) > 10e6
