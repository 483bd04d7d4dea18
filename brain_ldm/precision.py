"""In which floating-point format networks compute."""

from enum import Enum

# Lightning's names; auto is bf16-mixed where the hardware multiplies bf16 natively (a recent GPU,
# a CPU with AMX or AVX512-BF16), otherwise 32-true.
NAMES = ("auto", "32-true", "bf16-mixed")
Precision = Enum("Precision", {name: name for name in NAMES})
# bf16-true also keeps weights and optimiser in bf16: half the memory; small
# updates are lost, and what is read is rounded too.
TrainingPrecision = Enum("TrainingPrecision", {name: name for name in (*NAMES, "bf16-true")})


def resolve(precision: Precision | TrainingPrecision, accelerator: str) -> str:
    """Return Lightning's name of the precision to use on `accelerator` (auto, cpu, gpu, cuda)."""
    import torch

    if precision.value != "auto":
        return precision.value
    if accelerator != "cpu" and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        fast = able.get("amx_bf16", False) or able.get("avx512_bf16", False)
    return "bf16-mixed" if fast else "32-true"
