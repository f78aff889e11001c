# SPDX-License-Identifier: Apache-2.0
"""Model repositories with toys that take and give what the real models do."""

from pathlib import Path

from blipstream.options import PROBE, data_type
from blipstream.server.routes import STREAM

OPTIONS = "".join(  # those that the canary sends
    f',\n  {{ name: "{name}" data_type: TYPE_{data_type(name).replace("BYTES", "STRING")} dims: [1] optional: true }}'
    for name in PROBE
)
CONFIG = f"""
name: "NAME"
backend: "python"
max_batch_size: 4
input [
  {{ name: "image" data_type: TYPE_STRING dims: [1] }}{OPTIONS}
]
output [
  {{ name: "caption" data_type: TYPE_STRING dims: [-1] }},
  {{ name: "score" data_type: TYPE_FP32 dims: [-1] }},
  {{ name: "num_tokens" data_type: TYPE_INT32 dims: [-1] }},
  {{ name: "token_scores" data_type: TYPE_FP32 dims: [-1, -1] }}
]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""
TOY = """
import numpy as np
import triton_python_backend_utils as pb

def answer(request):
    image = pb.get_input_tensor_by_name(request, "image").as_numpy()[0, 0]
    if FAIL:
        return pb.InferenceResponse(error=pb.TritonError("no words"))
    return pb.InferenceResponse([
        pb.Tensor("caption", np.array([[f"WORDS"]], dtype=object)),
        pb.Tensor("score", np.zeros((1, 1), dtype=np.float32)),
        pb.Tensor("num_tokens", np.full((1, 1), 2, dtype=np.int32)),
        pb.Tensor("token_scores", np.zeros((1, 1, 2), dtype=np.float32)),
    ])

class TritonPythonModel:
    def execute(self, requests):
        return [answer(request) for request in requests]
"""
STREAM_CONFIG = CONFIG.replace("NAME", STREAM).replace(
    "output [",
    """model_transaction_policy { decoupled: true }
output [
  { name: "text" data_type: TYPE_STRING dims: [1] },
  { name: "finish_reason" data_type: TYPE_STRING dims: [1] },""",
)
STREAM_TOY = """
import os, time
import numpy as np
import triton_python_backend_utils as pb

def words(value):
    return np.array([[value]], dtype=object)

class TritonPythonModel:
    def execute(self, requests):
        while os.path.exists(HANG):
            time.sleep(0.1)
        for request in requests:
            request.get_response_sender().send(pb.InferenceResponse([
                pb.Tensor("text", words("a word")),
                pb.Tensor("finish_reason", words("stop")),
                pb.Tensor("caption", words("a word")),
                pb.Tensor("score", np.zeros((1, 1), dtype=np.float32)),
                pb.Tensor("num_tokens", np.full((1, 1), 2, dtype=np.int32)),
                pb.Tensor("token_scores", np.zeros((1, 1, 2), dtype=np.float32)),
            ]), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def write_repository(folder: Path, fail: bool = False, words: str = "{len(image)} bytes") -> Path:
    for name in ("caption", "encoder"):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(TOY.replace("FAIL", str(fail)).replace("WORDS", words))
        (folder / name / "config.pbtxt").write_text(CONFIG.replace("NAME", name))
    (folder / "encoder" / "configs").mkdir()
    for config in ("toy", "fast"):
        (folder / "encoder" / "configs" / f"{config}.pbtxt").write_text(CONFIG.replace("NAME", "encoder"))
    return folder
