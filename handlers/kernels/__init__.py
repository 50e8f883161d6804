"""Triton kernels: tensors in, tensors out. Importing one needs Triton, which torch for CUDA on Linux brings."""
