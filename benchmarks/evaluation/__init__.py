"""The forgetting evaluation, measured beside plain lm-eval."""
