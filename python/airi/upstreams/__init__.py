"""Models that another OpenAI-compatible server runs: how it is called, and what becomes of a call that goes wrong.

Knows neither who calls nor what may be asked. Its parts are imported one by one: `client` alone needs an HTTP client.
"""
