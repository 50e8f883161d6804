"""KServe's protocol v2, also called the Open Inference Protocol: tensors in, tensors out.

Sources: https://github.com/kserve/open-inference-protocol (inference_rest.md), and Triton's extension for binary data
(protocol/extension_binary_data.md in https://github.com/triton-inference-server/server, docs/).
"""
