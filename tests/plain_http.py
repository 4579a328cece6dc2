"""Asking a server on loopback: to load the certificates of the world takes longer than most of these tests."""

from __future__ import annotations

from typing import Any

PLAIN: dict[str, Any] = {"timeout": 120, "trust_env": False, "verify": False}
"""What a client of httpx is made with."""
