"""What is called around the continuous batching of transformers, on its own thread: copies only."""

from collections.abc import Sequence
from typing import Any, Final

from llm_carbon_meter.servers.transformers.lifecycle import ServedModel

PREPARING: Final = "preparing"
UPDATING: Final = "updating"


class BatchingHooks:
    """Handlers of the batching thread.

    Args:
        served: the model that is metered.
    """

    def __init__(self, served: ServedModel) -> None:
        self.faults = served.faults
        self._served = served
        self._scheduler: Any = None
        self._doing = ""
        """What the batching's thread is inside of."""
        self._cancelling: Sequence[Any] = ()
        """Requests whose clients have left, before the scheduler forgets them."""

    def _metered(self, processor: Any) -> bool:
        text_config = self._served.text_config
        return text_config is not None and processor.config is text_config

    def before_prepare(self, processor: Any) -> None:
        """``prepare_next_batch`` begins."""
        self._doing = ""
        if self._metered(processor):
            self._doing, self._scheduler = PREPARING, processor.scheduler

    def after_prepare(self, processor: Any, has_batch: bool) -> None:
        """``prepare_next_batch`` has made a batch, or there is nothing to do."""
        doing, self._doing = self._doing, ""
        if not doing:
            return
        outputs = processor.inputs_and_outputs
        pairs = getattr(outputs, "io_pairs", None)
        if has_batch:
            host = outputs if pairs is None else pairs[outputs.current_pair].host_io
            self._served.capture.scheduled(host.requests_in_batch)
        else:  # of two batches that take turns the last one is updated when the next one comes
            for pair in pairs or ():
                pair.d2h_over.synchronize()
                self._served.capture.done(pair.host_io.requests_in_batch)

    def before_update(self, processor: Any) -> None:
        """``update_batch`` begins."""
        self._doing = UPDATING if self._metered(processor) else ""

    def after_update(self, _processor: Any, _: None) -> None:
        """``update_batch`` has ended."""
        self._doing = ""

    def after_outputs(self, _outputs: Any, update: Sequence[Any]) -> None:
        """``prepare_batch_update`` has the outputs of a batch on the host."""
        if self._doing == UPDATING:
            self._served.capture.done(update[0])

    def before_finish(self, scheduler: Any, request_id: str) -> None:
        """The scheduler is about to finish a request, or to make room and let it come again."""
        if scheduler is not self._scheduler or self._doing == PREPARING:
            return
        state = scheduler.active_requests.get(request_id)
        if state is not None:
            self._served.capture.finished(state, cancelled=False)

    def before_cancel(self, scheduler: Any) -> None:
        """The scheduler is about to drop the requests whose clients have left."""
        if scheduler is self._scheduler:
            self._cancelling = _to_cancel(scheduler)

    def after_cancel(self, scheduler: Any, states: Sequence[Any] | None) -> None:
        """The scheduler has dropped them; the oldest versions do not return them."""
        if scheduler is not self._scheduler:
            return
        cancelling, self._cancelling = self._cancelling, ()
        for state in cancelling if states is None else states:
            self._served.capture.finished(state, cancelled=True)

    def drop(self, _owner: Any, error: Exception) -> None:
        """Stop metering a server whose internals are not what we know."""
        self._served.forget()
        self._scheduler = None
        self.faults.note(
            "engine", error, "This transformers' internals do not fit; it is no longer metered."
        )

    def cannot_batch(self, _manager: Any, error: Exception, *_: Any) -> None:
        """The client gets transformers' own answer, which says nothing."""
        self.faults.note(
            "batching",
            error,
            f"transformers cannot batch {self._served.name} continuously: serve it without "
            "--continuous-batching, it is metered then too.",
        )


def _to_cancel(scheduler: Any) -> list[Any]:
    """The requests that a scheduler is about to drop."""
    queues = scheduler.active_requests, scheduler.waiting_requests
    names = list(getattr(scheduler, "_requests_to_cancel", ()))
    return [queue[name] for queue in queues for name in names if name in queue]
