"""Send a picture to a Triton server that serves an engine, by HTTP or gRPC, and keep what comes back.

    pip install "tritonclient[http,grpc]"
    python triton_client.py demo photo.jpg -o photo-x4.jpg
    python triton_client.py demo photo.jpg -o photo-x4.webp --grpc --parameter format=webp --parameter quality=80

The file goes as it is and comes back as a file, metadata and all. An array, (H, W, 3) uint8, goes the same way as
input `image` of shape (1, H, W, 3), and comes back as `upscaled_image`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def upscaled(client: Any, module: ModuleType, model: str, data: bytes, parameters: dict[str, Any]) -> bytes:
    """Return the file that the model makes of a file. module: `tritonclient.http` or `.grpc`, which made the client.

    Raises tritonclient.utils.InferenceServerException with what is wrong, in one line.
    """
    picture = np.frombuffer(data, np.uint8)[None]
    sent = module.InferInput("encoded", picture.shape, "UINT8")
    sent.set_data_from_numpy(picture)
    asked = module.InferRequestedOutput("upscaled_encoded")
    answer = client.infer(model, [sent], outputs=[asked], parameters=parameters)
    return answer.as_numpy("upscaled_encoded").tobytes()


def _parameter(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("picture", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--url", help="default: localhost:8000, with --grpc localhost:8001")
    parser.add_argument("--grpc", action="store_true")
    parser.add_argument("--parameter", type=_parameter, action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    if options.grpc:
        import tritonclient.grpc as module
    else:
        import tritonclient.http as module
    from tritonclient.utils import InferenceServerException

    url = options.url or ("localhost:8001" if options.grpc else "localhost:8000")
    with module.InferenceServerClient(url) as client:
        try:
            data = upscaled(client, module, options.model, options.picture.read_bytes(), dict(options.parameter))
        except (InferenceServerException, OSError) as error:
            sys.exit(f"{options.picture}: {error}")
    options.output.write_bytes(data)


if __name__ == "__main__":
    main()
