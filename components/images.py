"""The images that the steps run in, built from ``images/``; ``compile.py`` puts others in their place."""

PIPELINE_IMAGE = "quay.io/osft-continual-learning/pipeline:0.1.0"
TRAINER_IMAGE = "quay.io/osft-continual-learning/trainer:0.1.0"
