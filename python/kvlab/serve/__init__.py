"""The OpenAI-compatible server with the prefix cache in it, part by part: engine, HTTP, what is observed."""
