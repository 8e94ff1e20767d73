"""Where the kernels' tests run: on a CUDA device, else on the CPU in Triton's interpreter (`TRITON_INTERPRET=1`)."""

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.bfloat16 if CUDA else torch.float32
"""The interpreter's bfloat16 loses what is not finite."""
