"""Runs of one workspace side by side: what differed between them, and what came of it."""
