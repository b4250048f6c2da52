"""What Numba kernels of any panel are made of: bfloat16 in and out, exponentials in SIMD, views of tensors.

Arrays hold float32, or bfloat16 as its bit pattern in uint16 (NumPy has no bfloat16). `load` and `store` convert, all
arithmetic is float32. None of this is cached on disk: a helper loaded from the cache could not be inlined, and the sums
of a kernel compiled around it would round differently from those of one compiled whole.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from typing import Any, no_type_check

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

F32 = np.float32
# Everything but the assumptions that there are no infinities or NaNs: masked logits are -inf.
FAST = {"reassoc", "contract", "arcp", "nsz"}
_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


@intrinsic
@no_type_check
def load(typing_context: Any, value: Any) -> Any:
    """float32 of a float32, or of a bfloat16 held in uint16."""
    if value == types.float32:
        return types.float32(types.float32), lambda context, builder, signature, args: args[0]

    def widen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(wide, _F32)

    return types.float32(types.uint16), widen


@intrinsic
@no_type_check
def store(typing_context: Any, like: Any, value: Any) -> Any:
    """`value` in the type of `like`: unchanged, or rounded to bfloat16 (to nearest, ties to even)."""
    if like == types.float32:
        return types.float32(types.float32, types.float32), lambda context, builder, signature, args: args[1]

    def narrow(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[1], _I32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(_I32, 16)), _I16)

    return types.uint16(types.uint16, types.float32), narrow


@intrinsic
@no_type_check
def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    """2 ** exponent for a whole float32 in [-126, 127], by writing the exponent bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.add(builder.fptosi(args[0], _I32), ir.Constant(_I32, 127))
        return builder.bitcast(builder.shl(whole, ir.Constant(_I32, 23)), _F32)

    return types.float32(types.float32), build


@njit(fastmath=FAST)
@no_type_check
def exp(x: Any) -> Any:
    """e ** x for x <= 0, relative error below 3e-7, as straight-line code that the compiler turns into SIMD."""
    t = max(x, F32(-87.0)) * F32(1.4426950408889634)
    whole = np.floor(t + F32(0.5))
    r = (t - whole) * F32(0.6931471805599453)
    series = F32(1 / 24) + r * (F32(1 / 120) + r * F32(1 / 720))
    series = F32(1.0) + r * (F32(1.0) + r * (F32(0.5) + r * (F32(1 / 6) + r * series)))
    return series * _power_of_two(whole)


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """A NumPy view of a CPU tensor: float32 as it is, bfloat16 as its bits in uint16."""
    bits = tensor.dtype == torch.bfloat16
    array: npt.NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16) if bits else tensor.numpy()
    return array
