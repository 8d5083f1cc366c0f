"""What the proxy reads in questions and answers of the OpenAI API and its dialects."""

import json
from typing import Any

import pytest

from llm_carbon_meter.records import TokenCount
from llm_carbon_meter.servers.sidecar.answers import (
    METERED,
    EventSplitter,
    Told,
    asked,
    counted,
    data_of,
    text_tokens,
    together,
    told,
    whole_tokens,
)
from llm_carbon_meter.servers.sidecar.capture import Usage

CHAT = "/v1/chat/completions"


def told_of(**answer: Any) -> Any:
    """What a JSON answer tells."""
    return told(json.dumps(answer).encode())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{ "messages": [] }'),
        (CHAT, b'{"stream": true, "stream_options": {"include_usage" :true}}'),
        ("/v1/responses", b'{"stream":  true, "input": "x"}'),
        (CHAT, b"no json"),
        (CHAT, b'["stream"]'),
        (CHAT, b'{"stream": true, "stream_options": "odd"}'),
    ],
)
def test_a_body_that_needs_nothing_goes_as_it_came(path: str, body: bytes) -> None:
    """Byte for byte, spaces and errors included."""
    question = asked(path, body)
    assert question.body == body
    assert not question.added_usage


def test_usage_is_asked_for_in_streams() -> None:
    """Other options of the stream stay."""
    body = {"stream": True, "stream_options": {"more": 1, "include_usage": False}, "prompt": "é"}
    question = asked(CHAT, json.dumps(body).encode())
    expected = {**body, "stream_options": {"more": 1, "include_usage": True}}
    assert json.loads(question.body) == expected
    assert question.added_usage


def test_prompts_are_guessed_from_their_text() -> None:
    """Four characters a token, token ids as they are, pictures not at all."""
    assert text_tokens([{"role": "user", "content": "x" * 36}]) == 10
    assert text_tokens([5, 6, 7]) == 3
    assert text_tokens("data:image/png;base64," + "A" * 10_000) == 1
    assert text_tokens(None) == 1
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert text_tokens(nested) == 1
    question = asked(
        CHAT, b'{"model": "a long name of a model", "max_tokens": 9, "prompt": [1, 2]}'
    )
    assert (question.prompt_tokens, question.max_tokens) == (2, 9)


def test_usage_is_read_in_both_dialects() -> None:
    """Chat says prompt and completion, responses say input and output inside their response."""
    chat = {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert told_of(id="c", usage=chat).usage == Usage(7, 4, 3)
    inner = {"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}}
    event = told_of(type="response.completed", response={"id": "resp_1", "usage": inner})
    assert (event.id, event.usage) == ("resp_1", Usage(5, 1, 2))
    for odd in (None, {}, {"prompt_tokens": "7"}, [1]):
        assert told_of(usage=odd).usage is None


@pytest.mark.parametrize(
    ("event", "tokens"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, 0),
        ({"choices": [{"delta": {"content": "a"}}, {"delta": {"reasoning_content": "b"}}]}, 2),
        ({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}, 1),
        ({"choices": [{"text": "a"}]}, 1),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, 0),
        ({"type": "response.output_text.delta", "delta": "a"}, 1),
        ({"type": "response.created", "response": {}}, 0),
    ],
)
def test_pieces_of_content_are_counted(event: dict[str, Any], tokens: int) -> None:
    """A chunk that only says who speaks or why it ended is none."""
    assert told_of(**event).tokens == tokens


def test_only_the_chunk_that_is_there_for_the_usage_is_told_apart() -> None:
    """Usage in a chunk with content belongs to the client."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    assert told_of(choices=[], usage=usage).only_usage
    assert not told_of(choices=[{"delta": {"content": "a"}}], usage=usage).only_usage
    assert not told_of(choices=[], prompt_filter_results=[]).only_usage


def test_without_usage_the_label_says_guessed() -> None:
    """Chunks, or the text of a whole answer."""
    assert counted(None, 10, 4) == (Usage(10, 0, 4), TokenCount.GUESSED)
    assert counted(Usage(1, 0, 2), 10, 4) == (Usage(1, 0, 2), TokenCount.USAGE)
    answer = {"choices": [{"message": {"role": "assistant", "content": "x" * 40}}]}
    assert whole_tokens(json.dumps(answer).encode()) == 10
    assert whole_tokens(json.dumps({"choices": [{"text": "x" * 20}]}).encode()) == 5


def test_events_are_cut_byte_for_byte_wherever_the_parts_end() -> None:
    """With either kind of line end, and a multi-line event."""
    stream = b"data: 1\n\n: comment\r\n\r\nevent: x\ndata: {\ndata: }\n\ndata: [DONE]"
    for size in range(1, len(stream)):
        splitter = EventSplitter()
        events = []
        for start in range(0, len(stream), size):
            events += splitter.feed(stream[start : start + size])
        assert b"".join(events) + splitter.rest == stream
        assert [data_of(event) for event in events] == [b"1", b"", b"{\n}"]
        assert data_of(splitter.rest) == b"[DONE]"


def test_anthropic_tells_the_prompt_first_and_the_answer_last() -> None:
    """Its input leaves out what was read from a cache or written into it."""
    usage = {"input_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
    message = {"id": "msg_1", "model": "claude", "usage": {**usage, "output_tokens": 1}}
    first = told_of(type="message_start", message=message)
    assert (first.id, first.model, first.usage) == ("msg_1", "claude", Usage(10, 3, 1))
    piece = told_of(type="content_block_delta", delta={"type": "text_delta", "text": "a"})
    assert piece.tokens == 1
    last = told_of(type="message_delta", delta={}, usage={"output_tokens": 9})
    whole = together(together(first, piece), last)
    assert whole.usage == Usage(10, 3, 9)
    assert counted(last.usage, 7, 0) == (Usage(7, 0, 9), TokenCount.USAGE)
    answer = {"content": [{"type": "text", "text": "x" * 40}]}
    assert whole_tokens(json.dumps(answer).encode()) >= 10


def test_ollama_streams_lines() -> None:
    """Unless it is told not to; the last line has the counts."""
    question = asked("/api/chat", b'{"model": "m", "options": {"num_predict": 9}}')
    assert (question.stream, question.max_tokens, question.added_usage) == (True, 9, False)
    assert not asked("/api/generate", b'{"stream": false}').stream
    splitter = EventSplitter(lines=True)
    lines = splitter.feed(b'{"message":{"content":"a"},"done":false}\n{"response":"b","done":fa')
    lines += splitter.feed(
        b'lse}\n{"model":"m","done":true,"prompt_eval_count":26,"eval_count":2}\n'
    )
    said = [told(data_of(line)) for line in lines]
    assert [one.tokens for one in said] == [1, 1, 0]
    assert (said[-1].usage, said[-1].model) == (Usage(26, 0, 2), "m")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/v1/rerank", "/api/embed"])
def test_an_answer_without_text_has_no_tokens(path: str) -> None:
    """Its question is all that is computed."""
    question = asked(path, b'{"input": ["aaaa", "bbbb"]}')
    assert path in METERED
    assert (question.is_pooling, question.stream, question.prompt_tokens) == (True, False, 2)
    assert told_of(usage={"prompt_tokens": 5, "total_tokens": 5}).usage == Usage(5, 0, 0)
    assert told_of(embeddings=[[0.5]], prompt_eval_count=8).usage == Usage(8, 0, 0)


def test_a_later_usage_takes_nothing_away() -> None:
    """Anthropic's last event may repeat the input without its cache, or as 0."""
    first = Usage(1000, 0, 1)
    assert together(Told(usage=first), Told(usage=Usage(0, 0, 9))).usage == Usage(1000, 0, 9)
    cached = Usage(1005, 1000, 1)
    assert together(Told(usage=cached), Told(usage=Usage(5, 0, 9))).usage == Usage(1005, 1000, 9)


def test_half_a_character_in_a_name_can_be_written() -> None:
    """JSON may hold one; UTF-8 may not."""
    assert asked(CHAT, b'{"model": "\\ud800"}').model == "?"
    answer = told(b'{"model": "\\ud800", "id": "\\udfff"}')
    assert (answer.model, answer.id) == ("?", "?")
    assert not asked("/api/chat", b'{"stream": false}').stream
    assert asked("/api/chat", b'{"stream": null}').stream
