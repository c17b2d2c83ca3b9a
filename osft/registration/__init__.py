"""Promoted versions in Kubeflow Model Registry."""
