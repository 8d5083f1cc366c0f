"""OpenTelemetry's way in: ``opentelemetry-instrument transformers serve …`` is metered too."""

from typing import Any, Final

SERVER: Final = "transformers.cli.serving.server"


class TransformersInstrumentor:
    """An ``opentelemetry_instrumentor``; every process that OpenTelemetry instruments makes one.

    So nothing is imported, and nothing wrapped, before the server's own module is.
    """

    def instrument(self, **_: Any) -> None:
        """Wrap transformers' classes as soon as a process is about to serve."""
        from wrapt import register_post_import_hook  # OpenTelemetry's instrumentation needs it too

        register_post_import_hook(_install, SERVER)


def _install(_module: Any) -> None:
    from llm_carbon_meter.servers.transformers.serve import install

    install()
