"""Tasks learnt one after the other: what each way of training leaves of the earlier ones and of the base."""
