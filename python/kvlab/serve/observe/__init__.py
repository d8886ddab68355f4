"""What a server shows of itself: Prometheus metrics, and a live page."""

from kvlab.serve.observe.metrics import ServeMetrics
from kvlab.serve.observe.routes import router
from kvlab.serve.observe.state import LiveState

__all__ = ["LiveState", "ServeMetrics", "router"]
