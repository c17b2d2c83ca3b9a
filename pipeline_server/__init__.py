"""What is asked of a pipeline server (RHOAI's Data Science Pipelines, or any KFP 2): uploads, runs and schedules.

All of it goes through :class:`kfp.Client`. Its requests pass :mod:`pipeline_server.transport`, which verifies TLS,
waits only so long, and tries again what may be tried again.
"""
