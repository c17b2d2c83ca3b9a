"""Training as a TrainJob of Kubeflow Trainer: its manifest, creating it, following it, ending it."""
