"""The models under evaluation: found whole, loaded when needed, run by transformers, vLLM or a server."""
