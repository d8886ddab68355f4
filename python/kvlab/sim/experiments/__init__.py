"""Experiments: many replays, what they come to together, and how it is shown.

Everything that comes out of here is simulated, and says so.
"""

from __future__ import annotations
