"""GPUs that costs are planned for, as their makers describe them."""

from dataclasses import dataclass


TERA = 1e12


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Args:
        name: a key of `GPUS`.
        gigabytes: its memory, in 10^9 bytes.
        half: peak rate of dense matrix products in bfloat16 that sum in fp32, in TFLOP/s.
        full: the same in fp32, outside of tensor cores, as PyTorch computes unless it is told otherwise.
    """

    name: str
    gigabytes: int
    half: float
    full: float

    def peak(self, bf16: bool, tf32: bool) -> float:
        """FLOP/s in a run of this precision; TF32 has half the rate of bfloat16 on all of these."""
        return TERA * (self.half if bf16 else self.half / 2 if tf32 else self.full)


# From NVIDIA's data sheets, which print rates with 2:4 sparsity: halved where only these are given
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a10", 24, 125.0, 31.2),  # A10 data sheet
        Gpu("a100", 80, 312.0, 19.5),  # A100 80 GB data sheet, SXM
        Gpu("a100-40gb", 40, 312.0, 19.5),  # A100 40 GB, SXM
        Gpu("b200", 180, 2250.0, 75.0),  # HGX B200 data sheet (8 GPUs): 36 PFLOP/s sparse, 0.6 in fp32, 1.44 TB
        Gpu("h100", 80, 989.5, 67.0),  # H100 data sheet, SXM: 1,979 sparse
        Gpu("h200", 141, 989.5, 67.0),  # H200 data sheet, SXM: 1,979 sparse
        Gpu("l4", 24, 121.0, 30.3),  # L4 data sheet: 242 sparse
        Gpu("l40s", 48, 362.0, 91.6),  # L40S data sheet
        Gpu("rtx4090", 24, 165.2, 82.6),  # white paper of the Ada architecture
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of this name.

    Raises:
        ValueError: listing those that are known.
    """
    if name.lower() not in GPUS:
        raise ValueError(f"gpu must be one of {', '.join(GPUS)}, got {name}: choose the one most like yours")
    return GPUS[name.lower()]
