"""Ready-made consumers for other systems; each needs an extra package.

- `nstat_async.integrations.prometheus`: a collector (``nstat-async[prometheus]``)
- `nstat_async.integrations.otel`: OpenTelemetry metrics (``nstat-async[otel]``)
- `nstat_async.integrations.server`: HTTP, server-sent events, a live page (``nstat-async[server]``)

Nothing is imported from here, so that a missing package concerns only who asks for it.
"""

__all__: list[str] = []
