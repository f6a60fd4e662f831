"""Implementations of attention: their platforms, and the shapes that each kernel supports."""

# Kernel -> platform that it is written for, a `jax.Device.platform`.
KERNEL_PLATFORMS = {"tpu": "tpu", "cudnn": "gpu"}
ATTENTION = ("auto", "xla", *KERNEL_PLATFORMS)
# Lanes of a TPU's vector register. Its kernel reads columns in multiples of it: two heads of 64.
TPU_LANES = 128
_CUDNN_DTYPES = ("bfloat16", "float16")
# cuDNN supports 256 from Hopper on; `jax.nn` checks the limit of older GPUs where none is here.
_CUDNN_ALIGNMENT, _CUDNN_WIDEST = 8, 128


def misfit(kernel: str, heads: int, head_width: int, dtype: str) -> str:
    """Returns why a kernel does not support a layer, or "" if it does.

    Args:
        kernel: "tpu" or "cudnn".
        heads: attention heads of each device; 0 if they do not divide over the devices.
        head_width: width of each head.
        dtype: dtype of queries, keys and values.
    """
    if heads < 1:
        return "the heads do not divide over the devices of mesh.tensor"
    if kernel == "tpu":
        if TPU_LANES % head_width == 0 and heads % (TPU_LANES // head_width) == 0:
            return ""
        return f"{heads} heads of width {head_width} do not fill registers of {TPU_LANES} lanes"
    if dtype not in _CUDNN_DTYPES:
        return f"it computes in bfloat16, not in {dtype}"
    if head_width % _CUDNN_ALIGNMENT or head_width > _CUDNN_WIDEST:
        return (
            f"heads of width {head_width} are no multiple of {_CUDNN_ALIGNMENT} "
            f"up to {_CUDNN_WIDEST}"
        )
    return ""
