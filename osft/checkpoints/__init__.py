"""The state of a training on disk, from which the same call goes on."""
