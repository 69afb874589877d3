"""Reads what `genevar export` and the peers bench write: safetensors with their metadata."""

import json
import struct
import tomllib
from pathlib import Path

import torch

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16,
         "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32, "I8": torch.int8,
         "U8": torch.uint8}


def read(path):
    """(metadata, tensors by name) of a safetensors file."""
    data = Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8:8 + size])
    meta = head.pop("__metadata__", {})
    tensors = {}
    for name, entry in head.items():
        begin, end = (8 + size + at for at in entry["data_offsets"])
        values = torch.frombuffer(bytearray(data[begin:end]), dtype=TYPES[entry["dtype"]]) \
            if end > begin else torch.empty(0, dtype=TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return meta, tensors


def write(path, tensors):
    """Writes tensors as safetensors."""
    names = {dtype: name for name, dtype in TYPES.items()}
    head, body, at = {}, [], 0
    for name, tensor in tensors.items():
        raw = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() \
            if tensor.numel() else b""
        head[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                      "data_offsets": [at, at + len(raw)]}
        body.append(raw)
        at += len(raw)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(body))


class Bundle:
    """A system as `genevar export` writes it: configuration, and f32 tensors by stage and name."""

    def __init__(self, path):
        meta, tensors = read(path)
        if meta.get("format") != "genevar-bundle-1":
            raise SystemExit(f"{path} is no bundle: write one with `genevar export`")
        self.config = tomllib.loads(meta["config"])
        self.stages = {}
        for name, tensor in tensors.items():
            if name.endswith(".i8_scale"):
                continue
            stage, _, short = name.partition("/")
            if tensor.dtype == torch.int8:
                scale = tensors[name + ".i8_scale"]
                tensor = tensor.float() * scale.reshape(-1, *[1] * (tensor.dim() - 1))
            self.stages.setdefault(stage, {})[short] = tensor.float()

    def weights(self, stage):
        """The stage's weights by the names of the model."""
        tensors = self.stages[stage]
        return {n[len("param."):]: t for n, t in tensors.items() if n.startswith("param.")}
