# SPDX-License-Identifier: Apache-2.0
"""Triton's metrics page."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from blipstream.server.triton import TritonServer

METRICS = b"""\
# TYPE nv_inference_count counter
nv_inference_count{gpu_uuid="GPU-1",model="decoder",version="1"} 3
nv_inference_count{gpu_uuid="GPU-2",model="decoder",version="1"} 4
nv_inference_count{model="preprocess",version="1"} 9
nv_inference_count{model="caption_stream",version="1"} 5
nv_inference_exec_count{model="preprocess",version="1"} 2
blipstream_requests_total{model="caption_stream",result="error"} 5
blipstream_requests_total{model="caption_stream",result="ok"} 0
blipstream_requests_total{model="caption_stream",result="invalid"} 8
blipstream_requests_total{model="decoder",result="invalid"} 20
blipstream_requests_total{model="decoder",result="cancelled"} 3
blipstream_requests_total{model="decoder",result="overloaded"} 500
blipstream_steps_total{model="decoder"} 100
blipstream_steps_total{model="caption_stream"} 0
nv_inference_pending_request_count{model="decoder",version="1"} 1
nv_inference_pending_request_count{model="preprocess",version="1"} 0
blipstream_rows{model="decoder"} 10
blipstream_waiting{model="decoder"} 2
blipstream_waiting{model="preprocess"} 7
"""


def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Triton writes them on a machine with GPUs. A model's own counts go before Triton's.

    A model that refuses faulty requests makes progress, unless it is a route's own: all models behind that may hang.
    """

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS)

    with HTTPServer(("127.0.0.1", 0), Page) as page:
        thread = Thread(target=page.serve_forever)
        thread.start()
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        server = TritonServer(tmp_path, metrics_port=page.server_port)
        metrics = server.metrics()
        assert metrics.inferences == {"decoder": 7, "preprocess": 9, "caption_stream": 0}
        assert metrics.progress == {"decoder": 123, "caption_stream": 0}
        assert metrics.pending == {"decoder": 13, "preprocess": 7}
        page.shutdown()
        thread.join()
