"""The Triton that nv_triton.py starts: a Python function behind its batcher, as pytriton's documentation shows it."""

from __future__ import annotations

import base64
import json
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from server.ports import free_ports

from serving_bench.peers import plain


def infer_function(network: Any) -> Callable[..., Any]:
    """The function that Triton calls with a batch of bodies."""

    @batch  # type: ignore[untyped-decorator, unused-ignore]
    def infer(body: Any) -> list[Any]:
        answers = network.run([network.decode(base64.b64decode(one)) for one in body.ravel()])
        return [np.array([[json.dumps(answer).encode()] for answer in answers], dtype=object)]

    found: Callable[..., Any] = infer
    return found


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # Triton's Python stub loads the first libpython that it finds, and must find the one of this interpreter.
    libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    gpus = torch.cuda.device_count()
    devices = [f"cuda:{index % gpus}" if gpus else "cpu" for index in range(job["workers"])]
    networks = {device: plain.load(job, device) for device in set(devices)}
    grpc, metrics = free_ports(2)
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=job["port"],
        grpc_address="127.0.0.1",
        grpc_port=grpc,
        metrics_port=metrics,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=[infer_function(networks[device]) for device in devices],
            inputs=[Tensor(name="body", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=job["batch_size"], batcher=DynamicBatcher(max_queue_delay_microseconds=job["delay_us"])
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
