"""The demo: real vLLM server, tiny model, realistic traffic. Never imported when serving."""
