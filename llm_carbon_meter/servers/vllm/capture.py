"""What vLLM's scheduler did: shallow copies, taken on the engine's thread and nothing else.

`StepCapture` is called by the wrappers of engine_hooks.py.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome, RequestEnd
from llm_carbon_meter.servers.shared.events import Done, EventQueue, NewRow, Scheduled


class StepCapture(EventQueue):
    """Events of one scheduler of vLLM."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self._open: dict[int, int] = {}
        """Identity of a SchedulerOutput to its number; identities come again, numbers do not."""
        self._sequence = 0

    def scheduled(self, output: Any, requests: Mapping[str, Any]) -> None:
        """``Scheduler.schedule`` returned.

        Args:
            output: vLLM's `SchedulerOutput`.
            requests: all that the scheduler has (vLLM's `Request`).
        """
        cached = output.scheduled_cached_reqs
        self._sequence += 1
        self._open[id(output)] = self._sequence  # takes the place of one that was lost
        self.append(
            Scheduled(
                self._sequence,
                time.monotonic(),
                output.num_scheduled_tokens.copy(),
                [_new_row(row, requests[row.req_id]) for row in output.scheduled_new_reqs],
                cached.req_ids.copy(),
                cached.num_computed_tokens.copy(),
                cached.num_output_tokens.copy(),
            )
        )

    def done(self, output: Any) -> None:
        """``Scheduler.update_from_output`` is entered: the step has left the GPUs."""
        self.append(Done(self._open.pop(id(output), 0), time.monotonic()))


def _new_row(row: Any, request: Any) -> NewRow:
    """Of ``scheduled_new_reqs``: new to the workers, though perhaps preempted (V2 runner)."""
    prompt = row.prompt_token_ids
    prompt_tokens = len(prompt) if prompt is not None else len(row.prompt_embeds)
    prefill = getattr(row, "prefill_token_ids", None)
    return NewRow(
        row.req_id,
        prompt_tokens,
        row.num_computed_tokens,
        len(prefill) - prompt_tokens if prefill is not None else 0,
        row.pooling_params is not None,
        request.client_index,
    )


OUTCOMES: Final = {
    "stop": Outcome.FINISHED,
    "length": Outcome.FINISHED,
    "repetition": Outcome.FINISHED,
    "abort": Outcome.ABORTED,
    "error": Outcome.FAILED,
}


def request_end(request: Any) -> RequestEnd:
    """The end of a vLLM `Request` whose status is final."""
    reason = request.get_finished_reason()
    return RequestEnd(
        request_id=request.request_id,
        outcome=OUTCOMES.get(str(reason), Outcome.FAILED),
        prompt_tokens=request.num_prompt_tokens,
        cached_tokens=0,  # known from the request's first step
        output_tokens=request.num_output_tokens,
        monotonic_s=time.monotonic(),
    )
