"""Which errors mean that the GPU is at fault."""

import pytest

from comfy_fleet.domain.jobs.run_results import failed


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("RuntimeError", "CUDA error: an illegal memory access was encountered"),
        ("torch.AcceleratorError", "CUDA error: unspecified launch failure"),
        ("torch.AcceleratorError", "something that no version has said yet"),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        ("RuntimeError", "CUDA error: uncorrectable ECC error encountered"),
        ("RuntimeError", "No CUDA GPUs are available"),
        ("RuntimeError", "HIP error: invalid device function"),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ],
)
def test_faults_of_the_gpu_go_elsewhere(type_: str, message: str) -> None:
    verdict = failed({"exception_type": type_, "exception_message": message})
    assert verdict.error and verdict.error.code == "gpu_fault"
    assert verdict.retryable and verdict.exclude_node and verdict.counts


def test_an_assertion_is_the_graph_s_own_doing() -> None:
    verdict = failed(
        {"exception_type": "RuntimeError", "exception_message": "CUDA error: device-side assert triggered"}
    )
    assert verdict.error and verdict.error.code == "gpu_fault"
    assert not verdict.retryable and not verdict.exclude_node


@pytest.mark.parametrize(
    ("type_", "message", "code"),
    [
        ("torch.OutOfMemoryError", "Allocation on device 0 failed", "out_of_memory"),
        ("RuntimeError", "CUDA error: out of memory", "out_of_memory"),
        ("ValueError", "expected 3 channels, got 4", "node_execution_error"),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied", "node_execution_error"),
    ],
)
def test_others_are_told_apart(type_: str, message: str, code: str) -> None:
    verdict = failed({"exception_type": type_, "exception_message": message})
    assert verdict.error and verdict.error.code == code
    # Memory may be free elsewhere, and the card is sound; the same graph fails the same way everywhere.
    assert (verdict.retryable, verdict.exclude_node) == (code == "out_of_memory", False)
