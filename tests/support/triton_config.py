"""Runs with Triton's own Python: a `config.pbtxt` from stdin through the official schema, as JSON to stdout."""

from __future__ import annotations

import sys

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

config = text_format.Parse(sys.stdin.read(), model_config_pb2.ModelConfig())
print(json_format.MessageToJson(config, preserving_proto_field_name=True))
