"""Ready-made consumers for other systems; each needs an extra package.

- `nstat_async.integrations.prometheus`: a collector (``nstat-async[prometheus]``)
- `nstat_async.integrations.otel`: OpenTelemetry metrics (``nstat-async[otel]``)
- `nstat_async.integrations.server`: HTTP, server-sent events, a live page (``nstat-async[server]``)

This module imports none of them, so that a missing package matters only to those who use it.
"""

__all__: list[str] = []
