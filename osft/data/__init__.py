"""From a dataset's URI to tokens with labels: download, validation, processing."""
