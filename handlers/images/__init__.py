"""Image files -> pixels -> the network's input.

payloads: what a client sent -> files. formats: files -> upright RGB. preprocess, geometry, cropping, npy_files,
preparation: files -> crops, on the CPU. jpeg_headers, gpu_decoder: JPEGs -> crops, on the GPU.
batching: crops -> one tensor on the device. processors: transformers' own way, for preprocessing that `Preprocess`
cannot express. pipelines: either way, from files to the network's outputs.
"""
