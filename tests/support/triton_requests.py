"""Runs with Triton's own Python: sends the requests of a plan, and tells what came back. No part of intsr is here.

stdin: {"ports": {"http", "grpc"}, "threads", "requests": [{"protocol", "model", "inputs": {name: path of a .npy},
"outputs": names or null, "parameters", "save": path of a .npy}]}. stdout: a list of {"error"} or {"shape", "s"}.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

PLAN = json.load(sys.stdin)
MODULES = {"http": tritonclient.http, "grpc": tritonclient.grpc}
_own = threading.local()


def client_of(protocol: str) -> Any:
    if not hasattr(_own, protocol):
        client = MODULES[protocol].InferenceServerClient(f"127.0.0.1:{PLAN['ports'][protocol]}")
        setattr(_own, protocol, client)
    return getattr(_own, protocol)


def send(request: dict[str, Any]) -> dict[str, Any]:
    module, inputs = MODULES[request["protocol"]], []
    for name, path in request["inputs"].items():
        array = np.load(path)
        inputs.append(module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    outputs = request.get("outputs")
    asked = None if outputs is None else [module.InferRequestedOutput(name) for name in outputs]
    start = time.perf_counter()
    try:
        answer = client_of(request["protocol"]).infer(
            request["model"], inputs, outputs=asked, parameters=request.get("parameters")
        )
    except InferenceServerException as error:
        return {"error": error.message(), "status": error.status()}
    (output,) = answer.get_response()["outputs"] if module is tritonclient.http else answer.get_response().outputs
    name = output["name"] if module is tritonclient.http else output.name
    result = answer.as_numpy(name)
    if "save" in request:
        np.save(request["save"], result)
    return {"output": name, "shape": list(result.shape), "s": time.perf_counter() - start}


with ThreadPoolExecutor(PLAN["threads"]) as pool:
    print(json.dumps(list(pool.map(send, PLAN["requests"]))))
